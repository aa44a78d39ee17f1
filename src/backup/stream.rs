//! Bytes on their way between a blocking side that reads or writes an archive and an async side that speaks HTTP.

use std::{
    fmt,
    io::{self, ErrorKind, Read, Write},
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
};

use super::BackupError;

/// Pieces under way; with [`PIECE`] it bounds the memory of a stream.
const PIECES: usize = 8;
const PIECE: usize = 64 << 10;

/// How long a client may take for one piece. The snapshot behind the stream holds old values in memory meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);

/// Streams to clients at once; each may hold old values of a snapshot in memory.
const MOST: usize = 4;

/// The streams to clients: not too many, and ended when the store is exchanged.
pub(super) struct Streams {
    places: Arc<Semaphore>,
    end: watch::Sender<()>,
}

impl Default for Streams {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(MOST)), end: watch::Sender::default() }
    }
}

impl Streams {
    /// A place for one more, and what ends it.
    pub(super) fn begin(&self) -> Result<(OwnedSemaphorePermit, watch::Receiver<()>), BackupError> {
        let busy = || BackupError::Busy(format!("{MOST} backups are being handed to clients; try again when one is done"));
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_full| busy())?;
        Ok((place, self.end.subscribe()))
    }

    /// Breaks off all that are under way.
    pub(super) fn end_all(&self) {
        self.end.send_replace(());
    }
}

/// A body that is sent while it is made. An error in it breaks the connection off, so that nobody takes it for whole.
pub struct Download {
    pieces: mpsc::Receiver<Bytes>,
    /// Beside the pieces, as they may have no room for it.
    failed: Arc<OnceLock<String>>,
    ended: bool,
}

impl Download {
    /// A body and the writer that fills it; `end` breaks it off. To be called on a runtime.
    pub fn new(end: watch::Receiver<()>) -> (DownloadWriter, Self) {
        Self::with_patience(end, PATIENCE)
    }

    fn with_patience(end: watch::Receiver<()>, patience: Duration) -> (DownloadWriter, Self) {
        let (sender, pieces) = mpsc::channel(PIECES);
        let failed = Arc::default();
        let body = Self { pieces, failed: Arc::clone(&failed), ended: false };
        let buffer = BytesMut::with_capacity(PIECE);
        (DownloadWriter { runtime: Handle::current(), sender, end, patience, failed, buffer }, body)
    }

    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.ended {
            return None;
        }
        match self.pieces.recv().await {
            Some(piece) => Some(Ok(piece)),
            None => {
                self.ended = true;
                self.failed.get().map(|why| Err(io::Error::other(why.clone())))
            }
        }
    }
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Download")
    }
}

/// The blocking side of a [`Download`].
pub struct DownloadWriter {
    runtime: Handle,
    sender: mpsc::Sender<Bytes>,
    end: watch::Receiver<()>,
    patience: Duration,
    failed: Arc<OnceLock<String>>,
    buffer: BytesMut,
}

/// Breaks the body of a [`Download`] off. To be called before the writer is gone, which is the end of the body.
pub(super) struct BreakOff(Arc<OnceLock<String>>, #[expect(dead_code, reason = "keeps the body open")] mpsc::Sender<Bytes>);

impl BreakOff {
    pub(super) fn because(self, error: &dyn fmt::Display) {
        let _ = self.0.set(error.to_string());
    }
}

impl DownloadWriter {
    /// What breaks the body off when the writer has failed.
    pub(super) fn break_off(&self) -> BreakOff {
        BreakOff(Arc::clone(&self.failed), self.sender.clone())
    }

    fn send(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = self.buffer.split().freeze();
        let Self { runtime, sender, end, patience, .. } = self;
        let send = async {
            tokio::select! {
                biased;
                _ = end.changed() => Err(io::Error::new(ErrorKind::ConnectionAborted, "the store is replaced by a restore")),
                sent = tokio::time::timeout(*patience, sender.send(piece)) => match sent {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(_gone)) => Err(ErrorKind::BrokenPipe.into()),
                    Err(_late) => Err(io::Error::new(
                        ErrorKind::TimedOut,
                        format!("the client took less than {PIECE} bytes in {} seconds", patience.as_secs()),
                    )),
                },
            }
        };
        runtime.block_on(send)
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

#[cfg(test)]
mod tests {
    use super::*;

    async fn filled(mut writer: DownloadWriter) -> io::Result<()> {
        let work = move || {
            let end = writer.break_off();
            let done = (0..100).try_for_each(|_| writer.write_all(&[7; PIECE]));
            drop(writer);
            if let Err(error) = &done {
                end.because(error);
            }
            done
        };
        tokio::task::spawn_blocking(work).await.unwrap()
    }

    async fn rest(mut body: Download) -> (usize, Option<String>) {
        let mut count = 0;
        while let Some(piece) = body.next().await {
            match piece {
                Ok(piece) => count += piece.len(),
                Err(error) => return (count, Some(error.to_string())),
            }
        }
        (count, None)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_body_is_whole_or_ends_in_an_error() {
        let streams = Streams::default();
        let (_place, end) = streams.begin().unwrap();
        let (writer, body) = Download::new(end);
        let (filled, rest) = tokio::join!(filled(writer), rest(body));
        filled.unwrap();
        assert_eq!(rest, (100 * PIECE, None));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_client_that_takes_nothing_is_cut_off() {
        let streams = Streams::default();
        let (_place, end) = streams.begin().unwrap();
        let (writer, body) = Download::with_patience(end, Duration::from_millis(50));
        assert_eq!(filled(writer).await.unwrap_err().kind(), ErrorKind::TimedOut);
        let (count, error) = rest(body).await;
        assert_eq!(count, PIECES * PIECE);
        assert!(error.unwrap().contains("the client took less than"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_exchange_of_the_store_ends_all_and_others_may_begin() {
        let streams = Streams::default();
        let (place, end) = streams.begin().unwrap();
        let (writer, body) = Download::new(end);
        let writing = tokio::spawn(filled(writer));
        tokio::time::sleep(Duration::from_millis(20)).await;
        streams.end_all();
        assert_eq!(writing.await.unwrap().unwrap_err().kind(), ErrorKind::ConnectionAborted);
        assert!(rest(body).await.1.is_some());
        let places: Vec<_> = (1..MOST).map(|_| streams.begin().unwrap()).collect();
        assert!(streams.begin().is_err_and(|error| error.to_string().contains("being handed to clients")));
        drop(place);
        let (_place, end) = streams.begin().unwrap();
        assert!(!end.has_changed().unwrap() && places.len() == MOST - 1);
    }
}
