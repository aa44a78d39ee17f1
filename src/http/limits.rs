//! What the server takes on at once. What comes beyond is answered 503 at once instead of being gathered in memory.
//!
//! Requests are few bytes each; what can grow are bodies on their way in, and answers that a slow reader leaves lying.
//! Both are counted, and so are requests that are worked on: those whose body is there, for a body that does not come costs
//! no more than its connection. One count for all listeners: memory is shared too.
//!
//! Nobody has to have a token to send a body. So that one client cannot take what there is for all, an address may hold as
//! much as it leaves free: one alone takes half, two take a third each and leave a third, and whoever comes new finds room.
//! (The dynamic threshold by which switches share buffers among ports.) Half is a lot, because a proxy is one address.
//! Small bodies have bytes of their own, and the smallest count nowhere: large ones that come slowly do not keep them out.

use std::{
    cell::OnceCell,
    collections::HashMap,
    convert::Infallible,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use actix_web::body::{BodySize, MessageBody};
use bytes::Bytes;
use parking_lot::Mutex;

use crate::core::{auth_failures::Source, failure::Failure};

/// Requests that are worked on.
const MAX_REQUESTS: usize = 10_000;

/// Bodies up to this size are not counted: with the head before them they are what a connection's own buffer holds.
const TINY_BODY: usize = 4 << 10;

/// Bodies up to this size have bytes of their own.
const SMALL_BODY: usize = 64 << 10;

/// Bytes of small bodies that are being received or worked on.
const MAX_SMALL: usize = 32 << 20;

/// Bytes of larger bodies that are being received or worked on, and of large answers not yet sent: so many bodies of the
/// largest size. An address alone may have half of them.
const LARGEST_BODIES: usize = 4;

/// Answers up to this size are not counted: they fit into the connection's own buffers.
pub const SMALL_ANSWER: usize = 64 << 10;

/// How many bytes of a large answer are handed to the connection at a time.
const PIECE: usize = 64 << 10;

/// What is counted.
#[derive(Clone, Copy, Debug)]
enum Of {
    Requests,
    SmallBytes,
    LargeBytes,
}

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicUsize,
    small: AtomicUsize,
    large: AtomicUsize,
}

impl Counts {
    fn of(&self, what: Of) -> &AtomicUsize {
        match what {
            Of::Requests => &self.requests,
            Of::SmallBytes => &self.small,
            Of::LargeBytes => &self.large,
        }
    }
}

/// The counts of all addresses together.
#[derive(Debug)]
pub struct Limits {
    most_large: usize,
    all: Counts,
    shares: Mutex<Shares>,
}

/// The addresses that have connections. Clients of unix sockets have none and count together.
#[derive(Debug, Default)]
struct Shares {
    known: HashMap<Option<Source>, Weak<Share>>,
    /// At how many known ones those without connections are looked for.
    sweep_at: usize,
}

/// What one address holds.
#[derive(Debug)]
pub struct Share {
    limits: Arc<Limits>,
    own: Counts,
}

/// The share of a connection's address, looked up at its first request.
#[derive(Debug, Default)]
pub struct Connection(OnceCell<Arc<Share>>);

impl Connection {
    /// The share of the address that this connection comes from.
    pub fn share(&self, limits: &Arc<Limits>, address: Option<IpAddr>) -> Arc<Share> {
        Arc::clone(self.0.get_or_init(|| limits.share(address)))
    }
}

fn overloaded(what: &str) -> Failure {
    Failure::unavailable(format!("the server is overloaded: {what}; try again later"))
}

impl Limits {
    /// Limits for listeners that take bodies up to so many bytes.
    pub fn new(largest_body: u64) -> Arc<Self> {
        let largest = usize::try_from(largest_body).unwrap_or(usize::MAX);
        Arc::new(Self { most_large: largest.saturating_mul(LARGEST_BODIES), all: Counts::default(), shares: Mutex::default() })
    }

    /// What this address holds.
    pub fn share(self: &Arc<Self>, address: Option<IpAddr>) -> Arc<Share> {
        let source = address.map(Source::of);
        let mut shares = self.shares.lock();
        if let Some(share) = shares.known.get(&source).and_then(Weak::upgrade) {
            return share;
        }
        if shares.known.len() >= shares.sweep_at {
            shares.known.retain(|_, share| share.strong_count() > 0);
            shares.sweep_at = (shares.known.len() * 2).max(64);
        }
        let share = Arc::new(Share { limits: Arc::clone(self), own: Counts::default() });
        shares.known.insert(source, Arc::downgrade(&share));
        share
    }

    fn most(&self, what: Of) -> usize {
        match what {
            Of::Requests => MAX_REQUESTS,
            Of::SmallBytes => MAX_SMALL,
            Of::LargeBytes => self.most_large,
        }
    }
}

impl Share {
    /// Takes so much more, unless the address then held more than it leaves free.
    fn take(&self, what: Of, amount: usize) -> bool {
        // Counted before it is judged, so that two who come together do not both get what is there for one.
        let all = self.limits.all.of(what).fetch_add(amount, Ordering::Relaxed).saturating_add(amount);
        let own = self.own.of(what).fetch_add(amount, Ordering::Relaxed).saturating_add(amount);
        if own <= self.limits.most(what).saturating_sub(all) {
            return true;
        }
        self.give(what, amount);
        false
    }

    fn give(&self, what: Of, amount: usize) {
        self.own.of(what).fetch_sub(amount, Ordering::Relaxed);
        self.limits.all.of(what).fetch_sub(amount, Ordering::Relaxed);
    }

    /// A body of which nothing is there yet.
    pub fn body(self: &Arc<Self>) -> Received {
        Received { share: Arc::clone(self), len: 0, small: 0, large: 0 }
    }

    /// Counts a request that is worked on, for as long as the value lives.
    pub fn work(self: &Arc<Self>) -> Result<Working, Failure> {
        if !self.take(Of::Requests, 1) {
            return Err(overloaded("too many requests in flight"));
        }
        Ok(Working { share: Arc::clone(self) })
    }

    /// Counts the bytes of a large answer, until it is sent.
    pub fn answer(self: &Arc<Self>, body: Vec<u8>) -> Result<Answered, Failure> {
        let held = body.len();
        if !self.take(Of::LargeBytes, held) {
            return Err(overloaded("too many large answers wait for their readers"));
        }
        Ok(Answered { share: Arc::clone(self), held, rest: body.into() })
    }
}

/// The bytes of a body, for as long as it is received and worked on.
#[derive(Debug)]
pub struct Received {
    share: Arc<Share>,
    len: usize,
    /// What of it is counted where.
    small: usize,
    large: usize,
}

impl Received {
    /// Counts another piece of the body.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Failure> {
        self.len += bytes;
        if self.len <= TINY_BODY {
            return Ok(());
        }
        if self.len <= SMALL_BODY {
            let more = self.len - self.small;
            if !self.share.take(Of::SmallBytes, more) {
                return Err(overloaded("too many bodies are being received"));
            }
            self.small += more;
            return Ok(());
        }
        let more = self.len - self.large;
        if !self.share.take(Of::LargeBytes, more) {
            return Err(overloaded("too many large bodies are being received"));
        }
        self.large += more;
        self.share.give(Of::SmallBytes, std::mem::take(&mut self.small));
        Ok(())
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.share.give(Of::SmallBytes, self.small);
        self.share.give(Of::LargeBytes, self.large);
    }
}

/// A request that is worked on.
#[derive(Debug)]
pub struct Working {
    share: Arc<Share>,
}

impl Drop for Working {
    fn drop(&mut self) {
        self.share.give(Of::Requests, 1);
    }
}

/// The bytes of an answer, handed over in pieces so that a connection buffers no more than it can send.
#[derive(Debug)]
pub struct Answered {
    share: Arc<Share>,
    held: usize,
    rest: Bytes,
}

impl MessageBody for Answered {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(u64::try_from(self.rest.len()).unwrap_or(u64::MAX))
    }

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let piece = PIECE.min(self.rest.len());
        Poll::Ready(Some(Ok(self.rest.split_to(piece))))
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        self.share.give(Of::LargeBytes, self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGEST: usize = 1 << 20;

    fn limits() -> Arc<Limits> {
        Limits::new(u64::try_from(LARGEST).unwrap())
    }

    fn share(limits: &Arc<Limits>, last: u8) -> Arc<Share> {
        limits.share(Some(IpAddr::from([10, 0, 0, last])))
    }

    /// Requests until the address gets no more.
    fn fill(share: &Arc<Share>) -> Vec<Working> {
        std::iter::from_fn(|| share.work().ok()).collect()
    }

    fn held(limits: &Limits) -> [usize; 3] {
        [Of::Requests, Of::SmallBytes, Of::LargeBytes].map(|what| limits.all.of(what).load(Ordering::Relaxed))
    }

    #[test]
    fn an_address_holds_no_more_than_it_leaves_free() {
        let limits = limits();
        let mut all = vec![fill(&share(&limits, 0))];
        assert_eq!(all[0].len(), MAX_REQUESTS / 2, "one alone has half");
        all.push(fill(&share(&limits, 1)));
        assert_eq!(all[1].len(), MAX_REQUESTS / 4, "a second one finds room, and leaves some");
        // However many there are, the next finds as much as the one before left.
        for last in 2..8 {
            all.push(fill(&share(&limits, last)));
            assert_eq!(all.last().unwrap().len(), (MAX_REQUESTS - all[..all.len() - 1].iter().flatten().count()) / 2);
        }
        // Those that come to and fro share evenly.
        all.clear();
        let mut even: Vec<Vec<Working>> = (0..4).map(|_| Vec::new()).collect();
        for _ in 0..MAX_REQUESTS {
            for (last, own) in even.iter_mut().enumerate() {
                own.extend(share(&limits, u8::try_from(last).unwrap()).work().ok());
            }
        }
        assert!(even.iter().all(|own| own.len() == MAX_REQUESTS / 5), "{:?}", even.iter().map(Vec::len).collect::<Vec<_>>());
        drop(even);
        assert_eq!(held(&limits), [0; 3]);
    }

    #[test]
    fn large_bodies_keep_out_neither_small_ones_nor_other_addresses() {
        let limits = limits();
        let slow = share(&limits, 0);
        let mut bodies: Vec<Received> = Vec::new();
        // Five that never end, in pieces, as large as they can.
        for _ in 0..5 {
            let mut body = slow.body();
            while body.len < LARGEST && body.grow(32 << 10).is_ok() {}
            bodies.push(body);
        }
        assert_eq!(held(&limits)[2], LARGEST * LARGEST_BODIES / 2);
        assert!(slow.answer(vec![0; SMALL_ANSWER + 1]).is_err());
        slow.body().grow(TINY_BODY).unwrap();
        slow.body().grow(SMALL_BODY).unwrap();
        let mut other = share(&limits, 1).body();
        other.grow(LARGEST).unwrap();
        drop((bodies, other));
        let answer = slow.answer(vec![0; SMALL_ANSWER + 1]).unwrap();
        assert_eq!(held(&limits), [0, 0, SMALL_ANSWER + 1]);
        drop(answer);
        assert_eq!(held(&limits), [0; 3]);
    }

    #[test]
    fn small_bodies_that_do_not_end_keep_out_neither_tiny_ones_nor_other_addresses() {
        let limits = limits();
        let slow = share(&limits, 0);
        let mut bodies = Vec::new();
        let grown = |share: &Arc<Share>, size| {
            let mut body = share.body();
            body.grow(size).map(|()| body)
        };
        bodies.extend(std::iter::from_fn(|| grown(&slow, SMALL_BODY).ok()));
        assert_eq!(bodies.len(), MAX_SMALL / SMALL_BODY / 2);
        assert!(grown(&slow, TINY_BODY + 1).is_err());
        grown(&slow, TINY_BODY).unwrap();
        grown(&share(&limits, 1), SMALL_BODY).unwrap();
        // One that outgrows the small ones gives their bytes back.
        bodies[0].grow(1).unwrap();
        assert_eq!(held(&limits), [0, MAX_SMALL / 2 - SMALL_BODY, SMALL_BODY + 1]);
        drop(bodies);
        assert_eq!(held(&limits), [0; 3]);
    }

    #[test]
    fn addresses_without_connections_are_forgotten() {
        let limits = limits();
        let kept = share(&limits, 0);
        let request = kept.work().unwrap();
        for last in 0..=255 {
            for third in 0..4 {
                limits.share(Some(IpAddr::from([10, 0, third, last])));
            }
        }
        assert!(limits.shares.lock().known.len() <= 64, "{}", limits.shares.lock().known.len());
        assert!(Arc::ptr_eq(&kept, &share(&limits, 0)), "it is in use");
        drop((kept, request));
        // A /64 counts as one, and so do all clients of unix sockets.
        let network = limits.share(Some("2001:db8::1".parse().unwrap()));
        assert!(Arc::ptr_eq(&network, &limits.share(Some("2001:db8::2".parse().unwrap()))));
        let unix = limits.share(None);
        assert!(Arc::ptr_eq(&unix, &limits.share(None)));
    }
}
