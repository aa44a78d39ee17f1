//! Connections that send requests without waiting for answers take turns with all others.
//!
//! actix reads up to 128 KiB of a connection at a time, makes a request of every head in it and answers what it can at once: thousands of
//! requests that nobody can come between, some KB of memory each. When it has enough of them it does not always come back for the rest,
//! and what it answers goes by the request that was read last. So a connection gives it one request, with its body, and the next one
//! when the answer was sent; until then nothing more is read, and who does not read its answers gets no further.

pub mod answers;
mod framing;

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use answers::Answers;
use bytes::{Buf, BytesMut};
use framing::Framing;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use super::{
    limits::{Received, TINY_BODY},
    surplus::{self, Taken},
};

/// After so many bytes of a body a connection's turn is over. actix reads at most as much at once, and keeps a buffer that holds it.
const PIECE: usize = 8 << 10;

/// How long the head of a request may take, from its first byte on.
pub const HEAD: Duration = Duration::from_secs(30);

/// Where a head was longer than that the connection ends with its answer: actix would keep as large a buffer for as long as it is open.
const LARGE_HEAD: usize = 16 << 10;

/// How long a connection that is closed waits for its client, which may still be sending what nobody reads any more: closed at once, it
/// would take the answer with it.
pub const GOODBYE: Duration = Duration::from_secs(1);

/// A connection of which one request is read at a time.
#[derive(Debug)]
pub struct Turns<T> {
    connection: T,
    taken: Rc<Taken>,
    framing: Framing,
    answers: Answers,
    /// What is counted of the bytes of a head, while the request is worked on.
    head: Option<Received>,
    counted: usize,
    /// Until when a head has to be there.
    late: Option<Pin<Box<Sleep>>>,
    /// Requests that were handed over, and how many answers were sent.
    asked: u64,
    sent: u64,
    /// Read and not handed over yet.
    held: BytesMut,
    /// Whether the client sends nothing more, and whether nothing more of what it sends is taken.
    ended: bool,
    refused: bool,
    /// Bytes of a body handed over in this turn.
    given: usize,
    /// How long the client may take nothing of what is sent to it, and until when it may do so now.
    patience: Option<Duration>,
    unread: Option<Pin<Box<Sleep>>>,
    /// Whether nothing more is sent, whether more came than was read, and until when the client may notice.
    closed: bool,
    surplus: bool,
    goodbye: Option<Pin<Box<Sleep>>>,
}

impl<T> Turns<T> {
    /// The same connection, read in turns. What of its heads is more than a few KiB counts as bytes of this address.
    pub fn new(connection: T, taken: Rc<Taken>) -> Self {
        Self {
            connection,
            taken,
            head: None,
            counted: 0,
            late: None,
            refused: false,
            framing: Framing::default(),
            answers: Answers::default(),
            asked: 0,
            sent: 0,
            held: BytesMut::new(),
            ended: false,
            given: 0,
            patience: None,
            unread: None,
            closed: false,
            surplus: false,
            goodbye: None,
        }
    }

    /// Gives a client up that takes nothing for so long.
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience: Some(patience), ..self }
    }

    /// Its place.
    pub fn taken(&self) -> Rc<Taken> {
        Rc::clone(&self.taken)
    }

    /// What counts its answers.
    pub fn answers(&self) -> Answers {
        self.answers.clone()
    }

    /// How much of this belongs to the request under way, if there is room for it.
    fn take(&mut self, bytes: &[u8]) -> Option<usize> {
        let in_head = self.framing.is_head();
        let taken = self.framing.take(bytes);
        if in_head {
            let room = self.framing.head_length().next_power_of_two();
            if room > TINY_BODY && room > self.counted {
                let head = self.head.get_or_insert_with(|| self.taken.share().body());
                head.grow(room - self.counted).ok()?;
                self.counted = room;
            }
            if room > LARGE_HEAD {
                self.answers.end();
            }
        } else {
            self.given += taken;
        }
        self.asked += u64::from(self.framing.is_whole());
        Some(taken)
    }

    /// The request is answered: the next one may come.
    fn next(&mut self) {
        self.asked = self.sent;
        self.framing.next();
        if self.counted <= LARGE_HEAD {
            (self.head, self.counted) = (None, 0);
        }
    }

    /// What a write or a flush came to, unless the client has taken nothing for too long.
    fn patiently<R>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        let Some(patience) = self.patience else { return written };
        if written.is_ready() {
            self.unread = None;
            return written;
        }
        let unread = self.unread.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(unread.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncRead + Unpin> Turns<T> {
    /// While a request is worked on: notices that the client is gone, and takes nothing from one that is not.
    fn poll_watch(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.given = 0;
        if self.held.is_empty() && !self.ended {
            let mut room = [0];
            let mut out = ReadBuf::new(&mut room);
            ready!(Pin::new(&mut self.connection).poll_read(context, &mut out))?;
            self.ended = out.filled().is_empty();
            self.held.extend_from_slice(out.filled());
        }
        Poll::Pending
    }

    /// Reads away what the client still sends, until it has closed too or its time is over. Who sent no more than was asked for has
    /// nothing to be waited for.
    fn poll_surplus(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut room = [0; 4096];
        for _ in 0..16 {
            let mut out = ReadBuf::new(&mut room);
            match Pin::new(&mut self.connection).poll_read(context, &mut out) {
                Poll::Ready(Ok(())) if !out.filled().is_empty() => self.surplus = true,
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending if !self.surplus => return Poll::Ready(()),
                Poll::Pending => return self.poll_goodbye(context),
            }
        }
        if self.poll_goodbye(context).is_ready() {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_goodbye(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.goodbye.get_or_insert_with(|| Box::pin(sleep(GOODBYE))).as_mut().poll(context)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Turns<T> {
    /// Whether a head, or a body whose request is answered already, has taken too long.
    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        let under_way = if self.framing.is_head() { self.framing.head_length() > 0 } else { self.sent > self.asked };
        if !under_way {
            self.late = None;
            return false;
        }
        self.late.get_or_insert_with(|| Box::pin(sleep(HEAD))).as_mut().poll(context).is_ready()
    }

    /// Takes nothing more of this client, and tells it why: everything was sent that it asked for.
    fn refuse(&mut self, context: &mut Context<'_>, answer: &str) {
        let _ = Pin::new(&mut self.connection).poll_write(context, answer.as_bytes());
        let _ = Pin::new(&mut self.connection).poll_flush(context);
        self.held = BytesMut::new();
        self.refused = true;
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Turns<T> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.framing.is_unknown() {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        if this.framing.is_whole() {
            if this.sent < this.asked {
                return this.poll_watch(context);
            }
            this.next();
        }
        if this.given >= PIECE {
            this.given = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if !this.refused && this.is_late(context) {
            this.refuse(context, if this.framing.is_asking() { surplus::TOO_SLOW } else { "" });
        }
        if this.refused {
            return Poll::Ready(Ok(()));
        }
        let before = out.filled().len();
        if !this.held.is_empty() {
            let mut held = std::mem::take(&mut this.held);
            let there = held.get(..held.len().min(out.remaining())).unwrap_or_default();
            let Some(taken) = this.take(there) else {
                this.refuse(context, &surplus::answer(surplus::HEADS));
                return Poll::Ready(Ok(()));
            };
            out.put_slice(there.get(..taken).unwrap_or_default());
            held.advance(taken);
            if !held.is_empty() {
                this.held = held;
            }
            return Poll::Ready(Ok(()));
        }
        if this.ended {
            return Poll::Ready(Ok(()));
        }
        match Pin::new(&mut this.connection).poll_read(context, out) {
            Poll::Ready(Ok(())) => {}
            Poll::Pending => {
                this.given = 0;
                return Poll::Pending;
            }
            failed => return failed,
        }
        let read = out.filled().get(before..).unwrap_or_default();
        this.ended = read.is_empty();
        let Some(taken) = this.take(read) else {
            out.set_filled(before);
            this.refuse(context, &surplus::answer(surplus::HEADS));
            return Poll::Ready(Ok(()));
        };
        this.held.extend_from_slice(read.get(taken..).unwrap_or_default());
        out.set_filled(before + taken);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Turns<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.connection).poll_write(context, bytes);
        self.patiently(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.connection).poll_write_vectored(context, pieces);
        self.patiently(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    /// What is flushed is sent, and with the last byte of an answer the next request may come.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.connection).poll_flush(context);
        ready!(self.patiently(context, flushed))?;
        let done = self.answers.done();
        if done != self.sent {
            self.sent = done;
            // Otherwise the connection itself wakes who reads when there is something.
            if !self.held.is_empty() || self.ended {
                context.waker().wake_by_ref();
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.closed {
            ready!(Pin::new(&mut this.connection).poll_shutdown(context))?;
            this.closed = true;
            this.surplus = this.refused || !this.held.is_empty();
        }
        if this.ended { Poll::Ready(Ok(())) } else { this.poll_surplus(context).map(Ok) }
    }
}

#[cfg(test)]
mod tests;
