//! Which requests of a connection are answered, so that the next one is let through.

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use actix_http::{ConnectionType, Response};
use actix_web::body::{BodySize, BoxBody, MessageBody};
use bytes::Bytes;

/// Shared by a connection and the answers that are written to it.
#[derive(Clone, Debug, Default)]
pub struct Answers(Rc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// Answers of which the last byte was handed over.
    done: Cell<u64>,
    /// Whether no more requests are taken after the one that is worked on.
    last: Cell<bool>,
}

impl Answers {
    /// How many answers were handed over to their last byte.
    pub(super) fn done(&self) -> u64 {
        self.0.done.get()
    }

    /// Whatever is answered next is the last answer of this connection.
    pub(super) fn end(&self) {
        self.0.last.set(true);
    }

    /// An answer that is counted when all of it was handed over, or when it is given up.
    pub fn count(&self, mut response: Response<BoxBody>) -> Response<Counted> {
        if self.0.last.get() {
            response.head_mut().set_connection_type(ConnectionType::Close);
        }
        response.map_body(|_, body| Counted { body, counts: Some(Rc::clone(&self.0)) })
    }
}

/// The body of an answer that is counted.
#[derive(Debug)]
pub struct Counted {
    body: BoxBody,
    counts: Option<Rc<Counts>>,
}

impl Counted {
    /// One that nothing waits for.
    pub fn by_nobody(body: BoxBody) -> Self {
        Self { body, counts: None }
    }
}

impl MessageBody for Counted {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.body).poll_next(context)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(counts) = &self.counts {
            counts.done.set(counts.done.get() + 1);
        }
    }
}
