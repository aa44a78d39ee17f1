//! How far the store was acknowledged, noted beside it.
//!
//! An engine that finds damage in its log may take it for the end of the log and open without what came behind, as
//! if it had never been. The mark is written after each sync, so it is never ahead of what is durable: a store that
//! ends before its mark has lost acknowledged writes, and is not served.
//!
//! The mark itself is synced once, when it is made, and not with every commit. After a power loss it may be old, which weakens the
//! check and never makes it wrong; being shorter than a sector it is not torn by one.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use tracing::warn;

use super::{StorageError, Version, frame};

const NAME: &str = "acknowledged";

/// The note of the last acknowledged version: a framed record without a value.
pub(crate) struct Mark {
    path: PathBuf,
    file: File,
    last: Version,
    /// There was a note, and it cannot be read.
    damaged: bool,
    failing: bool,
    /// The file holds a whole note that is synced.
    made: bool,
}

impl Mark {
    pub(crate) fn open(folder: &Path) -> Result<Self, StorageError> {
        let path = folder.join(NAME);
        let opened = || -> io::Result<(File, Vec<u8>)> {
            let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(&path)?;
            let noted = std::fs::read(&path)?;
            Ok((file, noted))
        };
        let (file, noted) = opened().map_err(|error| StorageError::Io(format!("{}: {error}", path.display())))?;
        let (last, damaged) = read(&noted);
        if damaged {
            warn!(
                path = %path.display(),
                "the note of the last acknowledged version is damaged: records missing elsewhere are found by counting, but whether the store lacks its last writes cannot be told; compare with a backup when the disk may have lost data"
            );
        }
        Ok(Self { path, file, last, damaged, failing: false, made: last > 0 })
    }

    /// Refuses a store whose last version lies before what was acknowledged.
    pub(crate) fn check(&self, found: Version) -> Result<(), StorageError> {
        if found >= self.last {
            return Ok(());
        }
        let reason = format!(
            "the store ends at version {found} although {} was acknowledged, so writes were lost; restore a backup, or remove {} to go on without them",
            self.last,
            self.path.display()
        );
        Err(StorageError::Corrupt { key: String::new(), reason })
    }

    /// Whether there was no note when the store was opened: a new store, or one to be taken as it is.
    pub(crate) fn is_blank(&self) -> bool {
        self.last == 0 && !self.damaged
    }

    /// Whether there was a note that cannot be read: where the store should end is not known.
    pub(crate) fn is_damaged(&self) -> bool {
        self.damaged
    }

    /// Notes a version whose sync has succeeded.
    pub(crate) fn note(&mut self, durable: Version) {
        self.last = durable;
        let mut noted = self.file.write_all_at(&written(durable), 0);
        if !self.made && noted.is_ok() {
            // A power cut could leave the new file with its length and without its content.
            noted = self.file.sync_data();
            self.made = noted.is_ok();
        }
        if let Err(error) = &noted
            && !self.failing
        {
            warn!(path = %self.path.display(), %error, "the note of the last acknowledged version cannot be written");
        }
        self.failing = noted.is_err();
    }
}

/// The version in a note, 0 when there is none, and whether there was a note that cannot be read: that one says nothing about the
/// store.
pub(super) fn read(noted: &[u8]) -> (Version, bool) {
    let last = frame::decode_version(NAME.as_bytes(), noted).unwrap_or(0);
    (last, last == 0 && !noted.is_empty())
}

/// The note of a version.
pub(super) fn written(durable: Version) -> Vec<u8> {
    frame::encode(NAME.as_bytes(), durable, &[])
}

impl Drop for Mark {
    fn drop(&mut self) {
        // Only to make the note fresh after an orderly stop.
        let _ = self.file.sync_data();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_behind_its_mark_is_refused_until_the_mark_is_removed() {
        let place = tempfile::tempdir().unwrap();
        let mut mark = Mark::open(place.path()).unwrap();
        mark.check(0).unwrap();
        mark.note(7);
        drop(mark);
        let mark = Mark::open(place.path()).unwrap();
        mark.check(7).unwrap();
        assert!(matches!(mark.check(6), Err(StorageError::Corrupt { .. })));
        std::fs::remove_file(place.path().join(NAME)).unwrap();
        Mark::open(place.path()).unwrap().check(0).unwrap();
    }

    #[test]
    fn a_torn_mark_says_nothing_and_is_not_taken_for_none() {
        let place = tempfile::tempdir().unwrap();
        assert!(Mark::open(place.path()).unwrap().is_blank());
        std::fs::write(place.path().join(NAME), b"\x01\0\0").unwrap();
        let mark = Mark::open(place.path()).unwrap();
        mark.check(0).unwrap();
        assert!(!mark.is_blank());
    }
}
