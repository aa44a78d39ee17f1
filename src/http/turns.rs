//! Connections that send requests without waiting for answers take turns with all others.
//!
//! actix reads up to 128 KiB of a connection at a time, makes a request of every head in it and answers what it can at once: thousands of
//! requests that nobody can come between, some KB of memory each. So a connection gets the heads of a few requests, and then nothing until
//! others had their turn. Bodies go through as they are.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Heads of requests that a connection hands over in one turn.
const HEADS: usize = 8;

/// A connection of which so much is read at a time.
#[derive(Debug)]
pub struct Turns<T> {
    connection: T,
    ends: Ends,
    /// Heads handed over in this turn.
    heads: usize,
    /// Read and not handed over yet.
    held: BytesMut,
}

impl<T> Turns<T> {
    /// The same connection, read in turns.
    pub fn new(connection: T) -> Self {
        Self { connection, ends: Ends::default(), heads: 0, held: BytesMut::new() }
    }

    /// The connection itself.
    pub fn connection(&self) -> &T {
        &self.connection
    }
}

/// Finds where heads end: at empty lines. So do paragraphs of bodies, which are handed over in smaller pieces for it.
#[derive(Debug, Default)]
struct Ends {
    /// What the line so far is: nothing, a carriage return, or more.
    line: Line,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Line {
    #[default]
    Empty,
    Return,
    Text,
}

impl Ends {
    /// How much of this to hand over, and how many heads end in that: at most `most`.
    fn take(&mut self, bytes: &[u8], most: usize) -> (usize, usize) {
        let (mut at, mut found) = (0, 0);
        while found < most {
            let rest = &bytes[at..];
            let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
                self.line = match (self.line, rest) {
                    (line, []) => line,
                    (Line::Empty, [b'\r']) => Line::Return,
                    _ => Line::Text,
                };
                return (bytes.len(), found);
            };
            let empty = matches!((self.line, &rest[..end]), (Line::Empty, [] | [b'\r']) | (Line::Return, []));
            found += usize::from(empty);
            self.line = Line::Empty;
            at += end + 1;
        }
        (at, found)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Turns<T> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.heads >= HEADS {
            this.heads = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if !this.held.is_empty() {
            let most = this.held.len().min(out.remaining());
            let (taken, heads) = this.ends.take(&this.held[..most], HEADS - this.heads);
            out.put_slice(&this.held[..taken]);
            this.held.advance(taken);
            if this.held.is_empty() {
                this.held = BytesMut::new();
            }
            this.heads += heads;
            return Poll::Ready(Ok(()));
        }
        let before = out.filled().len();
        match Pin::new(&mut this.connection).poll_read(context, out) {
            Poll::Ready(Ok(())) => {}
            Poll::Pending => {
                this.heads = 0;
                return Poll::Pending;
            }
            failed => return failed,
        }
        let (taken, heads) = this.ends.take(&out.filled()[before..], HEADS - this.heads);
        this.heads += heads;
        let end = before + taken;
        this.held.extend_from_slice(&out.filled()[end..]);
        out.set_filled(end);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Turns<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use proptest::prelude::*;

    use super::*;

    /// What one turn after another hands over of this, which all is there at once.
    fn turns(sent: &[u8], pieces: usize) -> Vec<Vec<u8>> {
        let mut server = Turns::new(sent);
        let mut turns = vec![Vec::new()];
        let mut room = vec![0; pieces];
        let mut context = Context::from_waker(Waker::noop());
        loop {
            let mut out = ReadBuf::new(&mut room);
            match Pin::new(&mut server).poll_read(&mut context, &mut out) {
                Poll::Pending => turns.push(Vec::new()),
                Poll::Ready(read) => {
                    read.unwrap();
                    if out.filled().is_empty() {
                        return turns;
                    }
                    turns.last_mut().unwrap().extend_from_slice(out.filled());
                }
            }
        }
    }

    #[test]
    fn a_turn_has_few_requests_however_many_are_there() {
        for head in ["GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\nHost: x\n\n"] {
            for pieces in [1, 7, 4096, 1 << 20] {
                let turns = turns(head.repeat(100).as_bytes(), pieces);
                assert_eq!(turns.concat(), head.repeat(100).as_bytes());
                assert_eq!(turns.len(), 100_usize.div_ceil(HEADS), "{pieces}");
                assert!(turns.iter().all(|turn| turn.len() <= HEADS * head.len()));
            }
        }
        let body = [b"POST / HTTP/1.1\r\n\r\n".as_slice(), &[b'x'; 500_000]].concat();
        assert_eq!(turns(&body, 1 << 20).len(), 1, "a body is no reason to wait");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_exchanged(sent in "[\r\nx]{0,300}", pieces in 1..50_usize) {
            let turns = turns(sent.as_bytes(), pieces);
            prop_assert_eq!(turns.concat(), sent.as_bytes());
            for turn in turns {
                let ended = turn.iter().filter(|byte| **byte == b'\n').count();
                // An empty line may have begun in the turn before.
                let empty = turn.split_inclusive(|byte| *byte == b'\n').filter(|line| matches!(*line, b"\n" | b"\r\n"));
                prop_assert!(empty.count() <= HEADS + 1 && ended <= 300);
            }
        }
    }
}
