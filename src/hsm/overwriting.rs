//! A buffered reader that overwrites what it has handed on. Frames between server and worker carry plaintexts and key
//! material, and the buffer of a connection lives as long as the connection.

use std::{
    io::{self, Read},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, ReadBuf};

/// Reads ahead from `inner`, as `BufReader` does, and leaves nothing of it behind.
pub struct Overwriting<R> {
    inner: R,
    buffer: Box<[u8]>,
    /// What is still to be handed on.
    ahead: std::ops::Range<usize>,
}

impl<R> Overwriting<R> {
    /// A reader that reads so many bytes ahead.
    pub fn with_capacity(capacity: usize, inner: R) -> Self {
        Self { inner, buffer: vec![0; capacity].into_boxed_slice(), ahead: 0..0 }
    }

    /// Moves what was read ahead to the caller, as far as there is room.
    fn hand_on(&mut self, room: &mut [u8]) -> usize {
        let ahead = &mut self.buffer[self.ahead.clone()];
        let len = ahead.len().min(room.len());
        room[..len].copy_from_slice(&ahead[..len]);
        ahead[..len].fill(0);
        self.ahead.start += len;
        len
    }
}

impl<R: Read> Read for Overwriting<R> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        if self.ahead.is_empty() {
            if room.len() >= self.buffer.len() {
                return self.inner.read(room);
            }
            self.ahead = 0..self.inner.read(&mut self.buffer)?;
        }
        Ok(self.hand_on(room))
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Overwriting<R> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.is_empty() {
            if out.remaining() >= this.buffer.len() {
                return Pin::new(&mut this.inner).poll_read(context, out);
            }
            let mut fresh = ReadBuf::new(&mut this.buffer);
            ready!(Pin::new(&mut this.inner).poll_read(context, &mut fresh))?;
            this.ahead = 0..fresh.filled().len();
        }
        let len = this.hand_on(out.initialize_unfilled());
        out.advance(len);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    const TEXT: &[u8] = b"a first frame and a second one, longer than what is read ahead";

    #[test]
    fn nothing_stays_behind() {
        let mut reader = Overwriting::with_capacity(16, TEXT);
        let mut first = [0; 5];
        Read::read_exact(&mut reader, &mut first).unwrap();
        assert_eq!((&first[..], &reader.buffer[..]), (&TEXT[..5], &b"\0\0\0\0\0st frame an"[..]));
        let mut rest = Vec::new();
        Read::read_to_end(&mut reader, &mut rest).unwrap();
        assert_eq!([&first[..], &rest].concat(), TEXT);
        assert_eq!(&reader.buffer[..], [0; 16]);
    }

    #[tokio::test]
    async fn nor_when_it_is_asked_to_wait() {
        let mut reader = Overwriting::with_capacity(16, TEXT);
        let mut first = [0; 5];
        AsyncReadExt::read_exact(&mut reader, &mut first).await.unwrap();
        let mut rest = vec![0; TEXT.len() - 5];
        AsyncReadExt::read_exact(&mut reader, &mut rest).await.unwrap();
        assert_eq!([&first[..], &rest].concat(), TEXT);
        assert_eq!(&reader.buffer[..], [0; 16]);
    }
}
