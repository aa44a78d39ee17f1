//! What the server takes on at once. What comes beyond is answered 503 at once instead of being gathered in memory.
//!
//! Requests are few bytes each; what can grow are bodies, and heads, on their way in, and answers that a slow reader leaves lying.
//! Both are counted, and so are requests that are worked on: those whose body is there, for a body that does not come costs
//! no more than its connection. One count for all listeners: memory is shared too.
//!
//! Nobody has to have a token to send a body. So that one client cannot take what there is for all, an address may hold as
//! much as it leaves free: one alone takes half, two take a third each and leave a third, and whoever comes new finds room.
//! (The dynamic threshold by which switches share buffers among ports.) Half is a lot, because a proxy is one address.
//! Small bodies have bytes of their own, and the smallest count nowhere: large ones that come slowly do not keep them out.
//! Connections cost little each, and a balancer that stands for all clients opens most of them: of these an address alone has
//! nearly all, and so much less the more others hold.

use std::{
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
pub(super) const TINY_BODY: usize = 4 << 10;

/// Bodies up to this size have bytes of their own.
const SMALL_BODY: usize = 64 << 10;

/// Bytes of small bodies that are being received or worked on.
const MAX_SMALL: usize = 32 << 20;

/// Bytes of larger bodies that are being received or worked on, and of large answers not yet sent: so many bodies of the
/// largest size. An address alone may have half of them.
const LARGEST_BODIES: usize = 4;

/// Answers up to this size are not counted: they fit into the connection's own buffers.
pub const SMALL_ANSWER: usize = 64 << 10;

/// Of connections an address holds so many times what it leaves free: 7/8 of all when it is alone.
const CONNECTIONS_SHARE: usize = 7;

/// How many bytes of a large answer are handed to the connection at a time.
const PIECE: usize = 64 << 10;

/// What is counted.
#[derive(Clone, Copy, Debug)]
enum Of {
    Requests,
    SmallBytes,
    LargeBytes,
    Connections,
}

/// How many connections an address may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PerAddress {
    /// Nearly all while nobody else wants any.
    Share,
    /// So many, as long as there are any.
    Most(usize),
}

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicUsize,
    small: AtomicUsize,
    large: AtomicUsize,
    connections: AtomicUsize,
}

impl Counts {
    fn of(&self, what: Of) -> &AtomicUsize {
        match what {
            Of::Requests => &self.requests,
            Of::SmallBytes => &self.small,
            Of::LargeBytes => &self.large,
            Of::Connections => &self.connections,
        }
    }
}

/// The counts of all addresses together.
#[derive(Debug)]
pub struct Limits {
    most_large: usize,
    most_connections: usize,
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

fn overloaded(what: &str) -> Failure {
    Failure::unavailable(format!("the server is overloaded: {what}; try again later"))
}

impl Limits {
    /// Limits for listeners that take bodies up to so many bytes and serve so many connections, all of them together.
    pub fn new(largest_body: u64, most_connections: usize) -> Arc<Self> {
        let most_large = usize::try_from(largest_body).unwrap_or(usize::MAX).saturating_mul(LARGEST_BODIES);
        Arc::new(Self { most_large, most_connections, all: Counts::default(), shares: Mutex::default() })
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
            Of::Connections => self.most_connections,
        }
    }
}

impl Share {
    /// Takes so much more, unless the address then held more than it leaves free.
    fn take(&self, what: Of, amount: usize) -> bool {
        self.take_if(what, amount, |own, free| own <= free)
    }

    /// Takes so much more if it is there, and if what the address then held fits to what it leaves free.
    fn take_if(&self, what: Of, amount: usize, fits: impl Fn(usize, usize) -> bool) -> bool {
        // Counted before it is judged, so that two who come together do not both get what is there for one.
        let all = self.limits.all.of(what).fetch_add(amount, Ordering::Relaxed).saturating_add(amount);
        let own = self.own.of(what).fetch_add(amount, Ordering::Relaxed).saturating_add(amount);
        if self.limits.most(what).checked_sub(all).is_some_and(|free| fits(own, free)) {
            return true;
        }
        self.give(what, amount);
        false
    }

    fn give(&self, what: Of, amount: usize) {
        self.own.of(what).fetch_sub(amount, Ordering::Relaxed);
        self.limits.all.of(what).fetch_sub(amount, Ordering::Relaxed);
    }

    /// Counts a connection, for as long as the value lives; `None` where there is no room for it.
    pub fn connect(self: &Arc<Self>, per_address: PerAddress) -> Option<Connected> {
        let fits = |own: usize, free: usize| match per_address {
            PerAddress::Share => own <= free.saturating_mul(CONNECTIONS_SHARE),
            PerAddress::Most(most) => own <= most,
        };
        self.take_if(Of::Connections, 1, fits).then(|| Connected { share: Arc::clone(self) })
    }

    /// Whether all connections are taken, and not only those of this address.
    pub fn is_full(&self) -> bool {
        self.limits.all.of(Of::Connections).load(Ordering::Relaxed) >= self.limits.most_connections
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

/// A connection that is served.
#[derive(Debug)]
pub struct Connected {
    share: Arc<Share>,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.share.give(Of::Connections, 1);
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
mod tests;
