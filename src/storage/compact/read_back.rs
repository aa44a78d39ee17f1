//! What a copy really holds, read back from its files before it takes over.
//!
//! That all records were given to the copy says little: an engine that opens files takes what it cannot read for absent, and a disk may keep
//! something else than it was given. So a thread of its own reads the whole copy after it was opened again: every record's frame must be
//! right, a look-up must find it as the range does, and all of them together are counted. The committer goes on writing to the copy meanwhile, between two
//! pages of that: what it changes at keys that were counted already is counted with it, and the rest is read as it is by then. So in the
//! end the count is that of the copy at that moment, however much was written, and nothing is held up for longer than a page takes.
//!
//! What is written after a key was read is not read again. It stands in the same files as every later write of the store, and no better or worse.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use parking_lot::{Mutex, MutexGuard};

use super::{
    super::{
        backend::{Backend, Copied, Fault},
        census::{Census, weight},
        check::give_way,
        frame,
        group::{SEQUENCE, just_behind},
    },
    Change,
};

/// Records, and bytes of them, that are read at a time.
const PAGE: (usize, usize) = (64, 256 << 10);

/// A copy being read back. Dropping it ends that.
pub(super) struct ReadBack {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<Result<(), Fault>>>,
}

struct Shared {
    /// Held while the copy is read or written.
    progress: Mutex<Progress>,
    stop: AtomicBool,
}

struct Progress {
    /// Keys before this one are counted; `None` when all are.
    next: Option<Vec<u8>>,
    counted: Census,
    /// Whether the number of the last commit stands at the end.
    numbered: bool,
}

impl ReadBack {
    /// `numbered`: whether the copy was given the number of its last commit.
    pub(super) fn start(copied: Box<dyn Copied>, numbered: bool) -> Result<Self, Fault> {
        let progress = Mutex::new(Progress { next: Some(Vec::new()), counted: Census::default(), numbered });
        let shared = Arc::new(Shared { progress, stop: false.into() });
        let reading = Arc::clone(&shared);
        let read = move || {
            give_way();
            reading.read(&*copied)
        };
        let reader = thread::Builder::new().name("storage-read-back".into()).spawn(read)?;
        Ok(Self { shared, reader: Some(reader) })
    }

    /// Writes to the copy.
    pub(super) fn write(&self, backend: &dyn Backend, changes: Vec<Change>) -> Result<(), Fault> {
        if changes.is_empty() {
            return Ok(());
        }
        let mut progress = self.shared.progress.lock();
        for ((key, framed), before) in changes.iter().filter(|((key, _), _)| key != SEQUENCE) {
            if progress.next.as_ref().is_none_or(|next| key < next) {
                before.iter().for_each(|before| progress.counted.subtract(*before));
                framed.iter().for_each(|framed| progress.counted.add(weight(key, framed)));
            }
        }
        backend.write_copy(changes.into_iter().map(|(write, _)| write).collect())
    }

    /// Whether everything was read.
    ///
    /// # Errors
    /// What is wrong with the copy, or why it cannot be read.
    pub(super) fn is_over(&mut self) -> Result<bool, Fault> {
        if self.reader.as_ref().is_some_and(|reader| !reader.is_finished()) {
            return Ok(false);
        }
        match self.reader.take().map(JoinHandle::join) {
            None => Ok(true),
            Some(Ok(read)) => read.map(|()| true),
            Some(Err(_panic)) => Err(Fault::Io("the copy could not be read back".into())),
        }
    }

    /// What was counted. To be called when everything was read.
    pub(super) fn into_counted(self) -> Census {
        self.shared.progress.lock().counted
    }
}

impl Drop for ReadBack {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Shared {
    fn read(&self, copied: &dyn Copied) -> Result<(), Fault> {
        while !self.stop.load(Ordering::Relaxed) {
            let mut progress = self.progress.lock();
            if progress.next.is_none() {
                break;
            }
            progress.page(copied)?;
            // The committer may wait, and comes first then.
            MutexGuard::unlock_fair(progress);
        }
        Ok(())
    }
}

impl Progress {
    fn page(&mut self, copied: &dyn Copied) -> Result<(), Fault> {
        let Some(from) = &self.next else { return Ok(()) };
        let mut next = None;
        for (key, framed) in copied.page(from, PAGE.0, PAGE.1)? {
            let wrong = |why: &str| {
                Fault::Corrupt(format!("read back from the disk, the record {:?}: {why}", String::from_utf8_lossy(&key)))
            };
            frame::decode_version(&key, &framed).map_err(|why| wrong(&why))?;
            match copied.get(&key)? {
                Some(found) if found == framed => {}
                Some(_) => return Err(wrong("a look-up finds another than the range")),
                None => return Err(wrong("a look-up does not find it")),
            }
            if key == SEQUENCE {
                // The last of all; it is not counted.
                self.next = None;
                return Ok(());
            }
            self.counted.add(weight(&key, &framed));
            next = Some(just_behind(&key));
        }
        match next {
            None if self.numbered => {
                Err(Fault::Corrupt("read back from the disk, it ends without the number of its last commit".into()))
            }
            next => {
                self.next = next;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests;
