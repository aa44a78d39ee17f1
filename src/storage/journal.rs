//! The journal that stands before an engine: every batch is appended and synced here, and that is its commit. The engine takes
//! what was written some time later, many batches at once (see [`super::journaled`]).
//!
//! Two files in `journal/`, used in turn. A file begins anew, over its old content, when the engine has durably what it holds: its blocks
//! exist already, so that a sync writes data and nothing else. What it has beyond some megabytes is cut off as soon as the engine has
//! it. Records follow each other from the beginning of the file ([`records`]). A record's version is that of the batch's
//! [`SEQUENCE`](super::group::SEQUENCE) record, which also tells what the engine has already. A record that names another one before it
//! than was found shows that something is missing; so do whole records behind a damaged one. A torn record at the very end was never
//! acknowledged.
//!
//! Whoever opens a journal may find what a killed process wrote and did not sync, or what a failed sync left in the page cache. Both
//! files are synced, and the page cache forgotten, before anything of them is believed.

pub(super) mod records;

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    Version,
    backend::{Fault, Write},
    folder::{Folder, sync_folder},
};
use crate::crashpoint::{reach, sync_is_skipped};
pub(super) use records::Place;
use records::Unread;

const FOLDER: &str = "journal";
const NAMES: [&str; 2] = ["one", "two"];

/// So much of a file is kept for its next use.
pub(super) const KEPT: u64 = 8 << 20;

/// An open journal.
pub(super) struct Journal {
    folder: PathBuf,
    files: Arc<Files>,
    /// Where in the current file the next record goes.
    at: u64,
    /// Of the last record.
    last: Version,
    buffer: Vec<u8>,
    /// Opening found a file missing.
    made: bool,
}

/// The two files.
pub(super) struct Files {
    files: [File; 2],
    /// The one that is appended to.
    current: AtomicUsize,
}

/// How the journal was found; the batches that the engine lacks were handed on one by one.
pub(super) struct Found {
    /// At the end stands the beginning of a record that is not whole: torn when it was written, or damaged since.
    pub(super) torn: bool,
    /// A file was missing and was made.
    pub(super) made: bool,
}

impl Files {
    fn current(&self) -> usize {
        self.current.load(Ordering::Acquire)
    }

    fn get(&self, which: usize) -> &File {
        let [one, two] = &self.files;
        if which == 0 { one } else { two }
    }

    /// Cuts the file that is not appended to, whose content the engine must have durably. A crash leaves it as it was or cut, and
    /// either way nothing in it is newer than the engine.
    pub(super) fn cut_left(&self, kept: u64) {
        self.cut(1 - self.current(), kept);
    }

    fn cut(&self, which: usize, kept: u64) {
        let file = self.get(which);
        if file.metadata().is_ok_and(|found| found.len() > kept) {
            // Only to give room back.
            let _ = file.set_len(kept);
        }
    }
}

impl Journal {
    /// Opens or makes the files in a store's folder; [`Journal::read`] must come next.
    pub(super) fn open(store: &Path) -> Result<Self, Fault> {
        let folder = store.join(FOLDER);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let mut made = false;
        let mut open = |name| -> io::Result<File> {
            let path = folder.join(name);
            let is_new = !path.exists();
            let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)?;
            if is_new {
                made = true;
                file.sync_all()?;
            }
            Ok(file)
        };
        let files = [open(NAMES[0])?, open(NAMES[1])?];
        sync_folder(&folder)?;
        sync_folder(store)?;
        let files = Arc::new(Files { files, current: AtomicUsize::new(0) });
        Ok(Self { folder, files, at: 0, last: 0, buffer: Vec::new(), made })
    }

    /// The files, for whoever moves what they hold.
    pub(super) fn files(&self) -> Arc<Files> {
        Arc::clone(&self.files)
    }

    /// Bytes of the current file.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Hands on what an engine that ends at `version` does not have, oldest first, and goes on behind it. What it has beside a
    /// record's own bytes in memory is bounded, whatever the files hold.
    pub(super) fn read(&mut self, version: Version, take: &mut dyn FnMut(Place, Vec<Write>)) -> Result<Found, Fault> {
        let files = self.files();
        let [one, two] = &files.files;
        for (which, file) in [one, two].into_iter().enumerate() {
            file.sync_data().map_err(|error| Fault::Io(format!("{}: {error}", self.path(which).display())))?;
        }
        Folder::forget_cached(&self.folder);
        let read = records::read([one, two], version, take).map_err(|unread| self.fault(unread))?;
        files.current.store(read.current, Ordering::Release);
        (self.at, self.last) = (read.at, read.last);
        // What the engine has begins anew.
        let had = (0..2).zip(read.needed).filter(|(_, needed)| !needed);
        had.for_each(|(which, _)| files.cut(which, KEPT));
        Ok(Found { torn: read.torn, made: self.made })
    }

    /// Appends a batch and syncs. After an error the journal must be read again before it is used.
    pub(super) fn append(&mut self, version: Version, batch: &[Write]) -> Result<(), Fault> {
        let mut record = std::mem::take(&mut self.buffer);
        records::encode(&mut record, batch, self.at, self.last, version)?;
        let file = self.files.get(self.files.current());
        file.write_all_at(&record, self.at)?;
        reach("commit-applied");
        if !sync_is_skipped() {
            file.sync_data()?;
        }
        reach("commit-flushed");
        self.at += u64::try_from(record.len()).unwrap_or(u64::MAX);
        self.last = version;
        record.shrink_to(1 << 20);
        self.buffer = record;
        Ok(())
    }

    /// Goes on at the beginning of the other file, whose content the engine must have.
    pub(super) fn switch(&mut self) {
        self.files.current.store(1 - self.files.current(), Ordering::Release);
        self.at = 0;
    }

    /// Cuts both files of a journal that holds nothing that the engine does not have.
    pub(super) fn cut(&self, kept: u64) {
        if self.at == 0 {
            (0..2).for_each(|which| self.files.cut(which, kept));
        }
    }

    fn path(&self, which: usize) -> PathBuf {
        self.folder.join(NAMES.get(which).unwrap_or(&""))
    }

    fn fault(&self, unread: Unread) -> Fault {
        match unread {
            Unread::Io { which, error } => Fault::Io(format!("{}: {error}", self.path(which).display())),
            Unread::Damaged { which, at } => {
                let what = "is damaged, and acknowledged writes stand behind the damage; restore a backup";
                Fault::Corrupt(format!("{} {what} (byte {at})", self.path(which).display()))
            }
            Unread::Gap { last, version, previous } => Fault::Corrupt(format!(
                "{}: the journal goes from version {last} to {version}, which came after {previous}, so acknowledged writes are missing; restore a backup",
                self.folder.display(),
            )),
        }
    }
}

#[cfg(test)]
mod tests;
