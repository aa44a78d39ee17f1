//! Bytes on their way between a blocking side that reads or writes an archive and an async side that speaks HTTP.

use std::{
    fmt,
    io::{self, Read, Write},
};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::mpsc;

/// Pieces under way; with [`PIECE`] it bounds the memory of a stream.
const PIECES: usize = 8;
const PIECE: usize = 64 << 10;

/// A body that is sent while it is made. An error in it breaks the connection off, so that nobody takes it for whole.
pub struct Download(mpsc::Receiver<io::Result<Bytes>>);

impl Download {
    /// A body and the writer that fills it.
    pub fn new() -> (DownloadWriter, Self) {
        let (sender, receiver) = mpsc::channel(PIECES);
        (DownloadWriter { sender, buffer: BytesMut::with_capacity(PIECE) }, Self(receiver))
    }

    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Option<io::Result<Bytes>> {
        self.0.recv().await
    }
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Download")
    }
}

/// The blocking side of a [`Download`].
pub struct DownloadWriter {
    sender: mpsc::Sender<io::Result<Bytes>>,
    buffer: BytesMut,
}

impl DownloadWriter {
    /// Breaks the body off.
    pub fn fail(self, error: &dyn fmt::Display) {
        let _ = self.sender.blocking_send(Err(io::Error::other(error.to_string())));
    }

    fn send(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = self.buffer.split().freeze();
        self.sender.blocking_send(Ok(piece)).map_err(|_gone| io::Error::from(io::ErrorKind::BrokenPipe))
    }

    /// A second writer of the same body, for its end.
    pub(super) fn again(&self) -> Self {
        Self { sender: self.sender.clone(), buffer: BytesMut::new() }
    }
}

impl Write for DownloadWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

/// A request's body that is read while it arrives.
pub struct Upload(Mutex<Option<UploadReader>>);

impl Upload {
    /// A body and where its pieces are handed in.
    pub fn new() -> (mpsc::Sender<io::Result<Bytes>>, Self) {
        let (sender, receiver) = mpsc::channel(PIECES);
        (sender, Self(Mutex::new(Some(UploadReader { receiver, piece: Bytes::new() }))))
    }

    /// The blocking side; once.
    pub fn take(&self) -> Option<UploadReader> {
        self.0.lock().take()
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upload")
    }
}

/// The blocking side of an [`Upload`].
pub struct UploadReader {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Read for UploadReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.piece.len());
        let now = self.piece.split_to(length);
        buffer.get_mut(..length).unwrap_or_default().copy_from_slice(&now);
        Ok(length)
    }
}
