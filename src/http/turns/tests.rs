use std::{
    collections::VecDeque,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Wake, Waker},
};

use actix_http::Response;
use actix_web::body::BoxBody;

use super::*;
use crate::http::{
    limits::{Limits, PerAddress},
    surplus::Places,
};

/// A client that has sent this, and takes so many bytes of its answers.
#[derive(Default)]
struct Client {
    sends: VecDeque<u8>,
    ends: bool,
    takes: usize,
    read: Vec<u8>,
}

impl AsyncRead for Client {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.sends.is_empty() && !self.ends {
            return Poll::Pending;
        }
        let piece: Vec<u8> = {
            let many = out.remaining().min(self.sends.len());
            self.sends.drain(..many).collect()
        };
        out.put_slice(&piece);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Client {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let taken = self.takes.min(bytes.len());
        self.takes -= taken;
        self.read.extend_from_slice(&bytes[..taken]);
        if taken == 0 { Poll::Pending } else { Poll::Ready(Ok(taken)) }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The places of a server that takes bodies and heads of so many bytes.
fn places(largest: u64) -> Arc<Places> {
    Places::new(Limits::new(largest, 100), 100, PerAddress::Share)
}

fn turns(client: Client, places: &Places) -> Turns<Client> {
    // There is room: the socket is not looked at.
    Turns::new(client, Rc::new(places.take(None, io::stdin().as_fd(), true)))
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Server {
    turns: Turns<Client>,
    woken: Arc<Woken>,
}

impl Server {
    fn new(sent: &str, ends: bool) -> Self {
        Self::with(sent, ends, &places(1 << 20))
    }

    fn with(sent: &str, ends: bool, places: &Places) -> Self {
        let client = Client { sends: sent.bytes().collect(), ends, takes: usize::MAX, read: Vec::new() };
        Self { turns: turns(client, places), woken: Arc::default() }
    }

    /// What can be read now, and whether the client has ended.
    fn read(&mut self, size: usize) -> (String, bool) {
        let waker = Waker::from(Arc::clone(&self.woken));
        let (mut read, mut room) = (Vec::new(), vec![0; size]);
        loop {
            let mut out = ReadBuf::new(&mut room);
            match Pin::new(&mut self.turns).poll_read(&mut Context::from_waker(&waker), &mut out) {
                Poll::Pending => return (String::from_utf8(read).unwrap(), false),
                Poll::Ready(done) => done.unwrap(),
            }
            if out.filled().is_empty() {
                return (String::from_utf8(read).unwrap(), true);
            }
            read.extend_from_slice(out.filled());
        }
    }

    /// Answers the request under way.
    fn answer(&self) {
        drop(self.turns.answers().count(Response::ok().set_body(BoxBody::new("ok"))));
    }

    /// Whether all was sent, and whether the one who reads was woken by it.
    fn flush(&mut self) -> (bool, bool) {
        let before = self.woken.0.load(Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&self.woken));
        let flushed = Pin::new(&mut self.turns).poll_flush(&mut Context::from_waker(&waker));
        (flushed.is_ready(), self.woken.0.load(Ordering::Relaxed) > before)
    }
}

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

#[tokio::test]
async fn the_next_request_comes_when_the_answer_is_sent() {
    for size in [1, 7, 4096] {
        let mut server = Server::new(&GET.repeat(3), true);
        for _ in 0..3 {
            assert_eq!(server.read(size), (GET.to_owned(), false), "pieces of {size}");
            assert_eq!(server.read(size), (String::new(), false));
            assert_eq!(server.flush(), (true, false), "nothing is answered");
            server.answer();
            assert_eq!(server.read(size), (String::new(), false), "it is not sent yet");
            assert_eq!(server.flush(), (true, true));
        }
        assert_eq!(server.read(size), (String::new(), true));
    }
}

#[tokio::test]
async fn who_waits_for_an_answer_is_not_woken_by_it() {
    let mut server = Server::new(GET, false);
    assert_eq!(server.read(4096), (GET.to_owned(), false));
    server.answer();
    assert_eq!(server.flush(), (true, false));
    assert_eq!(server.woken.0.load(Ordering::Relaxed), 0);
    server.turns.connection.sends.extend(GET.bytes());
    assert_eq!(server.read(4096), (GET.to_owned(), false));
}

#[tokio::test]
async fn bodies_come_in_pieces_whatever_was_answered_already() {
    let body = "\n".repeat(100_000);
    let put = format!("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    for answered in [false, true] {
        let mut server = Server::new(&format!("{put}{GET}"), false);
        let (mut read, mut turns) = (String::new(), 0);
        while read.len() < put.len() {
            let (piece, _) = server.read(4096);
            assert!(!piece.is_empty() && piece.len() <= 4 * PIECE);
            read += &piece;
            turns += 1;
            if answered && turns == 2 {
                server.answer();
                assert!(server.flush().0);
            }
        }
        assert!(read.starts_with(&put) && turns >= body.len() / (2 * PIECE));
        assert!(server.woken.0.load(Ordering::Relaxed) >= turns - 1, "it comes back for the rest");
        if !answered {
            assert_eq!(read, put);
            assert_eq!(server.read(4096), (String::new(), false));
            server.answer();
            assert_eq!(server.flush(), (true, true));
            read += &server.read(4096).0;
        }
        assert_eq!(read, format!("{put}{GET}"));
    }
}

#[tokio::test]
async fn who_takes_nothing_is_given_up() {
    let mut slow = turns(Client::default(), &places(1)).with_patience(Duration::from_millis(50));
    slow.connection.takes = 3;
    let began = std::time::Instant::now();
    let mut write = async |bytes: &[u8]| tokio::io::AsyncWriteExt::write(&mut slow, bytes).await;
    assert_eq!(write(b"abc").await.unwrap(), 3);
    assert_eq!(write(b"d").await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert!(began.elapsed() >= Duration::from_millis(50));
}

#[tokio::test]
async fn who_sends_more_than_is_read_has_a_second_to_read_its_answer() {
    let close = async |sent: &str, ends: bool| {
        let mut server = Server::new(sent, ends);
        let began = std::time::Instant::now();
        server.read(4096);
        tokio::io::AsyncWriteExt::shutdown(&mut server.turns).await.unwrap();
        assert!(server.turns.connection.sends.is_empty());
        began.elapsed()
    };
    assert!(close(GET, false).await < GOODBYE, "nobody waits");
    assert!(close(&GET.repeat(1000), true).await < GOODBYE);
    assert!(close(&GET.repeat(1000), false).await >= GOODBYE);
}

#[tokio::test]
async fn heads_count_as_bytes_of_their_address_until_they_are_answered() {
    // Of four times a MiB an address has half.
    let places = places(1 << 20);
    let begun = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}", "x".repeat(100_000));
    let mut held: Vec<Server> = Vec::new();
    let refused = loop {
        let mut server = Server::with(&begun, false, &places);
        match server.read(8192) {
            (_, true) => break server,
            (read, false) => assert_eq!(read, begun),
        }
        held.push(server);
    };
    assert_eq!(held.len(), (2 << 20) / (128 << 10), "each counts as the buffer that holds it");
    let answer = String::from_utf8_lossy(&refused.turns.connection.read).into_owned();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("too many large headers"), "{answer}");
    assert_eq!(Server::with(GET, false, &places).read(4096).0, GET, "small ones do not count");
    // It counts while its request is worked on, and then its connection ends.
    let mut first = held.remove(0);
    first.turns.connection.sends.extend(b"\r\n\r\n");
    assert_eq!(first.read(8192), ("\r\n\r\n".to_owned(), false));
    assert!(Server::with(&begun, false, &places).read(8192).1);
    let answer = first.turns.answers().count(Response::ok().set_body(BoxBody::new("ok")));
    assert_eq!(answer.head().connection_type(), actix_http::ConnectionType::Close);
    drop((answer, first));
    assert!(!Server::with(&begun, false, &places).read(8192).1);
}

#[tokio::test]
async fn a_head_under_way_has_its_time_also_behind_other_requests() {
    for (sent, first) in [("GET / HT", false), ("GET / HT", true), ("\r\n", true)] {
        let mut server = Server::new("", false);
        if first {
            server.turns.connection.sends.extend(GET.bytes());
            assert_eq!(server.read(4096).0, GET);
            server.answer();
            assert_eq!(server.flush(), (true, false));
            assert_eq!(server.read(4096), (String::new(), false));
        }
        assert!(server.turns.late.is_none(), "who sends nothing is not late");
        server.turns.connection.sends.extend(sent.bytes());
        assert_eq!(server.read(4096), (sent.to_owned(), false));
        let late = server.turns.late.as_mut().expect("it has a time");
        assert!(late.deadline() <= tokio::time::Instant::now() + HEAD);
        late.as_mut().reset(tokio::time::Instant::now());
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(server.read(4096), (String::new(), true));
        let expected = if sent.starts_with("GET") { surplus::TOO_SLOW } else { "" };
        assert_eq!(String::from_utf8_lossy(&server.turns.connection.read), expected);
    }
    // A body whose request is answered already, of which the rest is only read away.
    let mut server = Server::new("PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx", false);
    server.read(4096);
    assert!(server.turns.late.is_none());
    server.answer();
    server.flush();
    server.read(4096);
    assert!(server.turns.late.is_some());
}
