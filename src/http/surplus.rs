//! Connections beyond those that are served, of all clients or of one address: each is told so and closed, instead of waiting
//! unanswered to be accepted.

use std::{
    net::IpAddr,
    os::fd::BorrowedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustix::net::{RecvFlags, SendFlags, Shutdown};

use super::limits::{Connected, Limits, PerAddress, Share};

const ALL: &str = "too many connections are open";
const OF_ADDRESS: &str = "too many connections of this address are open";
/// Why a head is not taken.
pub(super) const HEADS: &str = "too many large headers and bodies are being received";

/// What a client reads whose head takes too long.
pub(super) const TOO_SLOW: &str = "HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// Between two lines in the log about addresses that have too many.
const QUIET: Duration = Duration::from_secs(60);

/// What a client reads that is one too many.
pub(super) fn answer(what: &str) -> String {
    let body = format!("{{\"errors\":[\"the server is overloaded: {what}; try again later\"]}}");
    let length = body.len();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncache-control: no-store\r\n\
         retry-after: 1\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// The places for connections at one listener. It has its part of all that may be open, so that no other listener's can fill it.
#[derive(Debug)]
pub struct Places {
    limits: Arc<Limits>,
    /// Counts the connections at this listener alone.
    own: Arc<Limits>,
    per_address: PerAddress,
    told: Mutex<Option<Instant>>,
}

impl Places {
    /// So many places at one of the listeners that these limits are for. Nearly all of them are an address's, or as many as are set for
    /// it at all listeners together.
    pub fn new(limits: Arc<Limits>, most_connections: usize, per_address: PerAddress) -> Arc<Self> {
        Arc::new(Self { limits, own: Limits::new(0, most_connections), per_address, told: Mutex::default() })
    }

    /// Gives a new connection its place. Where none is left it is answered 503 if it is not encrypted, and closed.
    pub fn take(&self, address: Option<IpAddr>, socket: BorrowedFd<'_>, encrypted: bool) -> Taken {
        let (own, share) = (self.own.share(address), self.limits.share(address));
        let all = PerAddress::Most(usize::MAX);
        let (here, everywhere) = match self.per_address {
            PerAddress::Share => (PerAddress::Share, all),
            most @ PerAddress::Most(_) => (all, most),
        };
        let place = own.connect(here).and_then(|here| Some((here, share.connect(everywhere)?)));
        if place.is_none() {
            let full = own.is_full() || share.is_full();
            self.tell(address.filter(|_| !full));
            close(socket, &if encrypted { String::new() } else { answer(if full { ALL } else { OF_ADDRESS }) });
        }
        Taken { share, place }
    }

    fn tell(&self, address: Option<IpAddr>) {
        let Some(address) = address else { return };
        let mut told = self.told.lock();
        if told.is_none_or(|told| told.elapsed() > QUIET) {
            *told = Some(Instant::now());
            tracing::warn!(%address, "an address holds as many connections as it may: more of them are answered 503 (max_connections_per_address)");
        }
    }
}

/// A connection's place, given back when the connection is gone, and the share of its address.
#[derive(Debug)]
pub struct Taken {
    share: Arc<Share>,
    place: Option<(Connected, Connected)>,
}

impl Taken {
    /// Whether there was no place: what still arrives from this client must not be carried out.
    pub fn is_surplus(&self) -> bool {
        self.place.is_none()
    }

    /// The share of the address that this connection comes from.
    pub fn share(&self) -> Arc<Share> {
        Arc::clone(&self.share)
    }
}

/// Never waits: what the socket does not take at once is left out. What was sent already is read, or the answer would be lost to
/// a reset.
fn close(socket: BorrowedFd<'_>, answer: &str) {
    let mut sent = [0; 4096];
    let _ = rustix::net::recv(socket, &mut sent[..], RecvFlags::DONTWAIT);
    let _ = rustix::net::send(socket, answer.as_bytes(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    let _ = rustix::net::shutdown(socket, Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::fd::AsFd,
    };

    use super::*;

    #[test]
    fn the_answer_is_as_long_as_it_says() {
        let answer = answer(ALL);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("content-length: {}", body.len())));
    }

    #[tokio::test]
    async fn who_finds_no_place_is_answered_and_closed_and_places_are_given_back() {
        let places = Places::new(Limits::new(1, 10), 1, PerAddress::Most(usize::MAX));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connect = async || {
            let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (client, listener.accept().await.unwrap().0)
        };
        let (_first, accepted) = connect().await;
        let first = places.take(None, accepted.as_fd(), false);
        assert!(!first.is_surplus());
        let (mut client, accepted) = connect().await;
        client.write_all(b"GET /v1/sys/health HTTP/1.1\r\n\r\n").unwrap();
        let second = places.take(None, accepted.as_fd(), false);
        assert!(second.is_surplus());
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, super::answer(ALL));
        drop((first, second));
        let (_third, accepted) = connect().await;
        assert!(!places.take(None, accepted.as_fd(), false).is_surplus());
    }

    #[tokio::test]
    async fn an_address_fills_no_listener_and_what_is_set_for_it_holds_for_all_of_them() {
        let (limits, socket) = (Limits::new(1, 200), tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
        let fill = |places: &Places, last: u8| -> Vec<Taken> {
            let take = || places.take(Some(IpAddr::from([10, 0, 0, last])), socket.as_fd(), true);
            std::iter::repeat_with(take).take_while(|taken| !taken.is_surplus()).collect()
        };
        let [one, other] = [0, 1].map(|_| Places::new(Arc::clone(&limits), 80, PerAddress::Share));
        let first = fill(&one, 1);
        assert_eq!(first.len(), 70, "nearly all");
        assert!(!fill(&one, 2).is_empty(), "another address at the same listener");
        assert_eq!(fill(&other, 1).len(), 70, "the same one at the other listener");
        let [one, other] = [0, 1].map(|_| Places::new(Arc::clone(&limits), 80, PerAddress::Most(100)));
        assert_eq!(fill(&one, 3).len(), 80);
        assert_eq!(fill(&one, 1).len(), 30);
        assert_eq!(fill(&other, 1).len(), 30);
        drop(first);
        let kept = fill(&one, 1);
        assert_eq!(kept.len(), 80);
        assert_eq!(fill(&other, 1).len(), 20);
    }
}
