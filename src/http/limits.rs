//! What the server takes on at once. What comes beyond is answered 503 at once instead of being gathered in memory.
//!
//! Requests are few bytes each; what can grow are bodies on their way in, and answers that a slow reader leaves lying.
//! Both are counted, and so are requests in flight. One count for all listeners: memory is shared too.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use actix_web::body::{BodySize, MessageBody};
use bytes::Bytes;

use crate::core::failure::Failure;

/// Requests in flight.
const MAX_REQUESTS: usize = 10_000;

/// Bytes of bodies that are being received or worked on, and of large answers not yet sent: four bodies of the usual
/// largest size.
const MAX_BYTES: usize = 128 << 20;

/// Answers up to this size are not counted: they fit into the connection's own buffers.
pub const SMALL_ANSWER: usize = 64 << 10;

/// How many bytes of a large answer are handed to the connection at a time.
const PIECE: usize = 64 << 10;

/// The counts.
#[derive(Debug, Default)]
pub struct Limits {
    requests: AtomicUsize,
    bytes: AtomicUsize,
}

fn overloaded(what: &str) -> Failure {
    Failure::unavailable(format!("the server is overloaded: {what}; try again later"))
}

impl Limits {
    /// Counts a request, for as long as the value lives.
    pub fn admit(&self) -> Result<Admitted<'_>, Failure> {
        let admitted = Admitted { limits: self, bytes: 0 };
        // Counted before it is judged, so that the value's end takes it off again either way.
        if self.requests.fetch_add(1, Ordering::Relaxed) >= MAX_REQUESTS {
            return Err(overloaded("too many requests in flight"));
        }
        Ok(admitted)
    }

    /// Counts the bytes of a large answer, until it is sent.
    pub fn answer(self: &Arc<Self>, body: Vec<u8>) -> Result<Answered, Failure> {
        let held = body.len();
        let answered = Answered { limits: Arc::clone(self), held, rest: body.into() };
        if self.bytes.fetch_add(held, Ordering::Relaxed) + held > MAX_BYTES {
            return Err(overloaded("too many large answers wait for their readers"));
        }
        Ok(answered)
    }
}

/// A request in flight, with the bytes of its body.
#[derive(Debug)]
pub struct Admitted<'a> {
    limits: &'a Limits,
    bytes: usize,
}

impl Admitted<'_> {
    /// Counts another piece of the body.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Failure> {
        self.bytes += bytes;
        let all = self.limits.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if all > MAX_BYTES { Err(overloaded("too many large bodies are being received")) } else { Ok(()) }
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.limits.requests.fetch_sub(1, Ordering::Relaxed);
        self.limits.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The bytes of an answer, handed over in pieces so that a connection buffers no more than it can send.
#[derive(Debug)]
pub struct Answered {
    limits: Arc<Limits>,
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
        self.limits.bytes.fetch_sub(self.held, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_the_limit_is_refused_and_given_back() {
        let limits = Arc::new(Limits::default());
        let mut first = limits.admit().unwrap();
        first.grow(MAX_BYTES).unwrap();
        let mut second = limits.admit().unwrap();
        assert!(second.grow(1).is_err());
        assert!(limits.answer(vec![0; SMALL_ANSWER + 1]).is_err());
        drop((first, second));
        let held = limits.answer(vec![0; SMALL_ANSWER + 1]).unwrap();
        assert_eq!(limits.bytes.load(Ordering::Relaxed), SMALL_ANSWER + 1);
        drop(held);
        let many: Vec<_> = (0..MAX_REQUESTS).map(|_| limits.admit().unwrap()).collect();
        assert!(limits.admit().is_err());
        drop(many);
        assert_eq!((limits.requests.load(Ordering::Relaxed), limits.bytes.load(Ordering::Relaxed)), (0, 0));
    }
}
