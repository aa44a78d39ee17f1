//! Room on the disk: a watermark below which writes are refused, and a reserve that lets deletes still work.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tracing::warn;

use super::{Options, StorageError};

/// How long a reading of the free space is trusted.
const TRUST: Duration = Duration::from_millis(100);

/// Bytes that an engine may write when it opens.
const PROBE: usize = 1 << 20;

/// Watches the file system that a store lives on. Used by the committer thread alone.
pub(crate) struct Space {
    folder: PathBuf,
    watermark: u64,
    reserve: u64,
    read: Option<(Instant, u64)>,
    refusing: bool,
}

impl Space {
    pub(crate) fn new(folder: &Path, options: &Options) -> Self {
        let mut space = Self {
            folder: folder.to_owned(),
            watermark: options.free_watermark,
            reserve: options.reserve_bytes,
            read: None,
            refusing: false,
        };
        space.free();
        space.keep_reserve();
        space
    }

    /// Refuses when a transaction that puts something should not go on.
    pub(crate) fn admit_puts(&mut self) -> Result<(), StorageError> {
        let free = self.free();
        if free < self.watermark {
            if !self.refusing {
                self.refusing = true;
                warn!(path = %self.folder.display(), free, watermark = self.watermark, "the disk is nearly full: writes are refused");
            }
            return Err(self.full(free));
        }
        if self.refusing {
            self.refusing = false;
            warn!(path = %self.folder.display(), free, "the disk has room again: writes are taken");
        }
        self.keep_reserve();
        Ok(())
    }

    /// Gives up the reserve when the room left is so small that a delete might fail.
    pub(crate) fn make_room_for_deletes(&mut self) {
        if self.free() < self.reserve {
            self.release_reserve();
        }
    }

    /// The error after the engine met a full disk.
    pub(crate) fn met_full_disk(&mut self) -> StorageError {
        self.release_reserve();
        let free = self.free();
        self.full(free)
    }

    /// Refuses while the disk takes no file of the size that an engine may need to open.
    pub(crate) fn probe(&mut self) -> Result<(), StorageError> {
        let path = self.folder.join("probe");
        let tried = fs::write(&path, vec![0x5a; PROBE]).and_then(|()| fs::File::open(&path)?.sync_all());
        let removed = fs::remove_file(&path);
        match tried.and(removed) {
            Ok(()) => Ok(()),
            Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                let free = self.free();
                Err(self.full(free))
            }
            Err(error) => Err(StorageError::Io(format!("the disk takes no writes: {}: {error}", path.display()))),
        }
    }

    fn full(&self, free: u64) -> StorageError {
        StorageError::Full { path: self.folder.display().to_string(), free, watermark: self.watermark }
    }

    /// Bytes free for this process. A file system that cannot be asked counts as having room: the engine's own
    /// errors still guard every write.
    fn free(&mut self) -> u64 {
        if let Some((at, free)) = self.read
            && at.elapsed() < TRUST
        {
            return free;
        }
        let free = free_at(&self.folder);
        self.read = Some((Instant::now(), free));
        free
    }

    fn keep_reserve(&mut self) {
        let file = self.reserve_file();
        // A crash while it was made may have left it short.
        let there = fs::metadata(&file).is_ok_and(|found| found.len() >= self.reserve);
        if self.reserve == 0 || there || self.free() < self.watermark.saturating_add(self.reserve) {
            return;
        }
        if let Err(error) = make_reserve(&file, self.reserve) {
            warn!(path = %file.display(), %error, "the reserve for a full disk cannot be made");
            let _ = fs::remove_file(&file);
        }
        self.read = None;
    }

    fn release_reserve(&mut self) {
        if fs::remove_file(self.reserve_file()).is_ok() {
            warn!(path = %self.folder.display(), "the reserve is given up so that deletes go on");
            self.read = None;
        }
    }

    fn reserve_file(&self) -> PathBuf {
        self.folder.join("reserve")
    }
}

/// Bytes free for this process at a place; as much as can be where the file system cannot be asked.
pub(super) fn free_at(folder: &Path) -> u64 {
    rustix::fs::statvfs(folder).map_or(u64::MAX, |fs| fs.f_bavail.saturating_mul(fs.f_frsize))
}

/// Allocates real blocks: a sparse file would reserve nothing.
fn make_reserve(path: &Path, bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(free_watermark: u64) -> Options {
        Options { free_watermark, reserve_bytes: 1 << 20, ..Options::default() }
    }

    #[test]
    fn puts_are_refused_below_the_watermark_only() {
        let place = tempfile::tempdir().unwrap();
        Space::new(place.path(), &options(0)).admit_puts().unwrap();
        let error = Space::new(place.path(), &options(u64::MAX)).admit_puts().unwrap_err();
        assert!(matches!(error, StorageError::Full { watermark: u64::MAX, .. }), "{error}");
    }

    #[test]
    fn the_reserve_is_made_released_and_made_again() {
        let place = tempfile::tempdir().unwrap();
        let mut space = Space::new(place.path(), &options(0));
        let file = place.path().join("reserve");
        assert_eq!(fs::metadata(&file).unwrap().len(), 1 << 20);
        assert!(matches!(space.met_full_disk(), StorageError::Full { .. }));
        assert!(!file.exists());
        space.admit_puts().unwrap();
        assert!(file.exists());
    }
}
