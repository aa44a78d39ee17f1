//! The folder of an embedded store: made private, locked against a second process, synced.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::StorageError;

/// A folder that belongs to this process for as long as the value lives.
pub(crate) struct Folder {
    path: PathBuf,
    lock: File,
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Closing the file is not enough: the lock stays as long as a child has it that was forked and not yet made another
        // program (flock(2)).
        let _ = self.lock.unlock();
    }
}

impl Folder {
    /// Makes the folder when it is missing (0700) and takes its lock.
    pub(crate) fn open(path: &Path) -> Result<Self, StorageError> {
        let failed = |doing: &str, error: io::Error| StorageError::Io(format!("{doing} {}: {error}", path.display()));
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| failed("making the folder", error))?;
        // Values are encrypted, paths of secrets are not.
        if let Ok(found) = fs::metadata(path)
            && found.mode() & 0o077 != 0
        {
            let mode = format!("{:04o}", found.mode() & 0o7777);
            tracing::warn!(folder = %path.display(), mode, "others can look into the store's folder: chmod 0700 it");
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join("lock"))
            .map_err(|error| failed("opening the lock file in", error))?;
        take(path, &lock)?;
        Ok(Self { path: path.to_owned(), lock })
    }

    /// Whether another process holds the folder now, without making anything in it.
    pub(crate) fn probe(path: &Path) -> Result<(), StorageError> {
        match OpenOptions::new().write(true).open(path.join("lock")) {
            Ok(lock) => take(path, &lock).map(|()| drop(Self { path: path.to_owned(), lock })),
            // What else keeps it from being opened is told when it is.
            Err(_) => Ok(()),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the names of new files durable, the folder's own among them.
    pub(crate) fn sync_names(&self) -> io::Result<()> {
        sync_folder(&self.path)?;
        match self.path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => sync_folder(Path::new(".")),
            Some(parent) => sync_folder(parent),
            None => Ok(()),
        }
    }

    /// Forgets what the page cache holds of the files in a place of the folder. After a failed sync the kernel may keep pages
    /// that never reached the disk and call them clean; what is read next must come from the disk.
    pub(crate) fn forget_cached(place: &Path) {
        for folder in [place.to_owned(), place.join("blobs")] {
            let Ok(entries) = fs::read_dir(folder) else { continue };
            for entry in entries.flatten() {
                if let Ok(file) = File::open(entry.path()) {
                    // Advice only: where it is not taken, the frames' checksums still guard every record.
                    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
                }
            }
        }
    }
}

fn take(path: &Path, lock: &File) -> Result<(), StorageError> {
    match lock.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            Err(StorageError::Io(format!("the folder {} is in use by another process", path.display())))
        }
        Err(TryLockError::Error(error)) => Err(StorageError::Io(format!("locking the folder {}: {error}", path.display()))),
    }
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_taken_once() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("new/store");
        let first = Folder::open(&path).unwrap();
        let error = Folder::open(&path).err().unwrap().to_string();
        assert!(error.contains(&format!("the folder {} is in use by another process", path.display())), "{error}");
        let with_a_child = first.lock.try_clone().unwrap();
        drop(first);
        Folder::probe(&path).unwrap();
        Folder::open(&path).unwrap();
        drop(with_a_child);
    }
}
