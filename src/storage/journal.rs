//! The journal that stands before an engine: every batch is appended and synced here, and that is its commit. The engine takes
//! what was written some time later, many batches at once (see [`super::journaled`]).
//!
//! Two files in `journal/`, used in turn. A file begins anew, over its old content, when the engine has durably what it holds: its blocks
//! exist already, so that a sync writes data and nothing else. Records follow each other from the beginning of the file
//! ([`records`]). A record's version is that of the batch's [`SEQUENCE`](super::group::SEQUENCE) record, which also tells what the engine
//! has already. A record that names another one before it than was found shows that something is missing; so do whole records behind a
//! damaged one. A torn record at the very end was never acknowledged.

pub(super) mod records;

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{
    Version,
    backend::{Fault, Write},
    folder::{Folder, sync_folder},
};
use crate::crashpoint::{reach, sync_is_skipped};
use records::{Gap, Records, join};

const FOLDER: &str = "journal";
const NAMES: [&str; 2] = ["one", "two"];

/// A file that grew beyond this is cut when it begins anew.
const KEPT: u64 = 8 << 20;

/// An open journal.
pub(super) struct Journal {
    folder: PathBuf,
    files: [File; 2],
    /// The file that is appended to, and where.
    current: usize,
    at: u64,
    /// Of the last record.
    last: Version,
    buffer: Vec<u8>,
}

/// The batches that were found in a file, oldest first.
pub(super) type Batches = Vec<Vec<Write>>;

/// What the engine does not have yet.
#[derive(Default)]
pub(super) struct Found {
    /// Of the file that is not appended to.
    pub(super) older: Batches,
    /// Of the file that is.
    pub(super) newer: Batches,
}

impl Journal {
    /// Opens or makes the files in a store's folder; [`Journal::read`] must come next.
    pub(super) fn open(store: &Path) -> Result<Self, Fault> {
        let folder = store.join(FOLDER);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let open = |name| -> io::Result<File> {
            let path = folder.join(name);
            let is_new = !path.exists();
            let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)?;
            if is_new {
                file.sync_all()?;
            }
            Ok(file)
        };
        let files = [open(NAMES[0])?, open(NAMES[1])?];
        sync_folder(&folder)?;
        sync_folder(store)?;
        Ok(Self { folder, files, current: 0, at: 0, last: 0, buffer: Vec::new() })
    }

    /// Reads what an engine that ends at `version` does not have, and goes on behind it.
    pub(super) fn read(&mut self, version: Version) -> Result<Found, Fault> {
        Folder::forget_cached(&self.folder);
        let files = [self.read_file(0, version)?, self.read_file(1, version)?];
        let joined = join(files, version).map_err(|Gap { last, version, previous }| {
            Fault::Corrupt(format!(
                "{}: the journal goes from version {last} to {version}, which came after {previous}, so acknowledged writes are missing; restore a backup",
                self.folder.display(),
            ))
        })?;
        self.current = joined.current;
        self.at = u64::try_from(joined.at).unwrap_or(u64::MAX);
        self.last = joined.last;
        Ok(Found { older: joined.older, newer: joined.newer })
    }

    /// Appends a batch and syncs. After an error the journal must be read again before it is used.
    pub(super) fn append(&mut self, version: Version, batch: &[Write]) -> Result<(), Fault> {
        let mut record = std::mem::take(&mut self.buffer);
        records::encode(&mut record, batch, self.at, self.last, version)?;
        let file = self.file();
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
        self.current = 1 - self.current;
        self.at = 0;
        let file = self.file();
        if file.metadata().is_ok_and(|found| found.len() > KEPT) {
            // Only to give room back.
            let _ = file.set_len(KEPT);
        }
    }

    fn file(&self) -> &File {
        let [one, two] = &self.files;
        if self.current == 0 { one } else { two }
    }

    /// `had` is the version that the engine ends at: what an earlier use left in a file is not newer.
    fn read_file(&self, which: usize, had: Version) -> Result<Records, Fault> {
        let path = self.folder.join(NAMES.get(which).unwrap_or(&""));
        let bytes = fs::read(&path).map_err(|error| Fault::Io(format!("{}: {error}", path.display())))?;
        Records::read(&bytes, had).map_err(|at| {
            let what = "is damaged, and acknowledged writes stand behind the damage; restore a backup";
            Fault::Corrupt(format!("{} {what} (byte {at})", path.display()))
        })
    }
}

#[cfg(test)]
mod tests;
