//! Connections beyond those that are served: each is told so and closed, instead of waiting unanswered to be accepted.

use std::{
    any::Any,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use actix_tls::accept::rustls_0_23::TlsStream;
use actix_web::rt::net::{TcpStream, UnixStream};
use rustix::net::{RecvFlags, SendFlags, Shutdown};

/// What a surplus client reads where the connection is not encrypted.
const ANSWER: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncache-control: no-store\r\n\
    retry-after: 1\r\nconnection: close\r\ncontent-length: 87\r\n\r\n\
    {\"errors\":[\"the server is overloaded: too many connections are open; try again later\"]}";

/// Places for connections, of all listeners together.
#[derive(Debug)]
pub struct Places {
    most: usize,
    taken: AtomicUsize,
}

impl Places {
    /// So many places.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, taken: AtomicUsize::new(0) })
    }

    /// Gives a new connection its place. Where none is left it is answered 503 if it is not encrypted, and closed.
    pub fn take(self: &Arc<Self>, stream: &dyn Any) -> Taken {
        let surplus = self.taken.fetch_add(1, Ordering::Relaxed) >= self.most;
        if surplus {
            if let Some(stream) = stream.downcast_ref::<TcpStream>() {
                close(stream.as_fd(), ANSWER);
            } else if let Some(stream) = stream.downcast_ref::<UnixStream>() {
                close(stream.as_fd(), ANSWER);
            } else if let Some(stream) = stream.downcast_ref::<TlsStream<TcpStream>>() {
                close(stream.get_ref().0.as_fd(), "");
            }
        }
        Taken { places: Arc::clone(self), surplus }
    }
}

/// A connection's place, given back when the connection is gone.
#[derive(Debug)]
pub struct Taken {
    places: Arc<Places>,
    surplus: bool,
}

impl Taken {
    /// Whether there was no place: what still arrives from this client must not be carried out.
    pub fn is_surplus(&self) -> bool {
        self.surplus
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.places.taken.fetch_sub(1, Ordering::Relaxed);
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
        let (head, body) = ANSWER.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("content-length: {}", body.len())));
    }

    #[tokio::test]
    async fn who_finds_no_place_is_answered_and_closed_and_places_are_given_back() {
        let places = Places::new(1);
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
        assert_eq!(answer, ANSWER);
        drop((first, second));
        let (_third, accepted) = connect().await;
        assert!(!places.take(&accepted).is_surplus());
    }
}
