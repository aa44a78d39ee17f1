//! Connections beyond those that are served, of all clients or of one address: each is told so and closed, instead of waiting
//! unanswered to be accepted.

use std::{
    any::Any,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use actix_tls::accept::rustls_0_23::TlsStream;
use actix_web::rt::net::{TcpStream, UnixStream};
use parking_lot::Mutex;
use rustix::net::{RecvFlags, SendFlags, Shutdown};

use super::limits::{Connected, Limits, PerAddress, Share};

const ALL: &str = "too many connections are open";
const OF_ADDRESS: &str = "too many connections of this address are open";

/// Between two lines in the log about addresses that have too many.
const QUIET: Duration = Duration::from_secs(60);

/// What a surplus client reads where the connection is not encrypted.
fn answer(what: &str) -> String {
    let body = format!("{{\"errors\":[\"the server is overloaded: {what}; try again later\"]}}");
    let length = body.len();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncache-control: no-store\r\n\
         retry-after: 1\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// The places for connections at one listener; there are so many of all listeners together.
#[derive(Debug)]
pub struct Places {
    limits: Arc<Limits>,
    per_address: PerAddress,
    told: Mutex<Option<Instant>>,
}

impl Places {
    /// The places of these limits, of which an address has so many.
    pub fn new(limits: Arc<Limits>, per_address: PerAddress) -> Arc<Self> {
        Arc::new(Self { limits, per_address, told: Mutex::default() })
    }

    /// Gives a new connection its place. Where none is left it is answered 503 if it is not encrypted, and closed.
    pub fn take(&self, stream: &dyn Any) -> Taken {
        let plain = stream.downcast_ref::<TcpStream>();
        let encrypted = stream.downcast_ref::<TlsStream<TcpStream>>().map(|stream| stream.get_ref().0);
        let address = plain.or(encrypted).and_then(|stream| stream.peer_addr().ok()).map(|peer| peer.ip());
        let share = self.limits.share(address);
        let place = share.connect(self.per_address);
        if place.is_none() {
            let full = share.is_full();
            let what = answer(if full { ALL } else { OF_ADDRESS });
            self.tell(address.filter(|_| !full));
            if let Some(stream) = plain {
                close(stream.as_fd(), &what);
            } else if let Some(stream) = stream.downcast_ref::<UnixStream>() {
                close(stream.as_fd(), &what);
            } else if let Some(stream) = encrypted {
                close(stream.as_fd(), "");
            }
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
    place: Option<Connected>,
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
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn the_answer_is_as_long_as_it_says() {
        let answer = answer(ALL);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("content-length: {}", body.len())));
    }

    #[tokio::test]
    async fn who_finds_no_place_is_answered_and_closed_and_places_are_given_back() {
        let places = Places::new(Limits::new(1, 1), PerAddress::Most(usize::MAX));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connect = async || {
            let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (client, listener.accept().await.unwrap().0)
        };
        let (_first, accepted) = connect().await;
        let first = places.take(&accepted);
        assert!(!first.is_surplus());
        let (mut client, accepted) = connect().await;
        client.write_all(b"GET /v1/sys/health HTTP/1.1\r\n\r\n").unwrap();
        let second = places.take(&accepted);
        assert!(second.is_surplus());
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, super::answer(ALL));
        drop((first, second));
        let (_third, accepted) = connect().await;
        assert!(!places.take(&accepted).is_surplus());
    }
}
