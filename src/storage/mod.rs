//! Where records live: a small contract, several engines, one conformance suite for all of them.
//!
//! Keys are readable paths (`/` separates folders), values are opaque bytes; the barrier encrypts them. The
//! contract is optimistic: read records with their versions, then [`Storage::commit`] a transaction whose checks
//! name the versions that were read. No type of an engine's library crosses this boundary.

use std::{future::Future, path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use thiserror::Error;

mod backend;
mod census;
mod check;
mod compact;
mod folder;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod generation;
mod group;
mod inmem;
mod journal;
mod journaled;
mod mark;
mod names;
mod owner;
mod recent;
mod redb;
mod sled;
mod snapshot;
mod space;
mod standin;
mod whole_sync;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod crash;
#[cfg(test)]
pub(crate) mod faults;
#[cfg(test)]
mod measure;
#[cfg(test)]
mod rot;

pub(crate) use self::folder::{Folder, sync_folder};
pub use self::{
    group::Store,
    inmem::InMem,
    names::Names,
    redb::Redb,
    sled::Sled,
    snapshot::{Snapshot, SnapshotFuture},
};

/// The store-wide sequence number of the commit that wrote a record. Never 0, never given twice, so that a record
/// that was deleted and made again has another version than before.
pub type Version = u64;

/// A stored value and the commit that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The commit that wrote the value.
    pub version: Version,
    /// The bytes as given to [`Txn::put`].
    pub value: Vec<u8>,
}

/// What a transaction demands of a key before anything is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist.
    Absent,
    /// The key exists and was last written by this commit.
    Version(Version),
    /// The key exists, whichever commit wrote it: to be demanded without having read it.
    Present,
}

impl Expect {
    /// Whether it is so for a key that was last written by this commit.
    pub fn holds(self, found: Option<Version>) -> bool {
        match self {
            Expect::Absent => found.is_none(),
            Expect::Version(version) => found == Some(version),
            Expect::Present => found.is_some(),
        }
    }

    /// The expectation that a record is still as it was read.
    pub fn unchanged(read: Option<&Record>) -> Self {
        read.map_or(Expect::Absent, |record| Expect::Version(record.version))
    }
}

/// Checks and writes that take effect together or not at all.
#[derive(Clone, Debug, Default)]
pub struct Txn {
    /// Every check must hold at the moment of the commit.
    pub checks: Vec<(String, Expect)>,
    /// `None` deletes. A later write of the same key wins over an earlier one.
    pub writes: Vec<(String, Option<Vec<u8>>)>,
    /// The commit gets a version above this one: a restored store goes on behind every version given before.
    pub above: Version,
}

impl Txn {
    /// An empty transaction.
    pub fn new() -> Self {
        Self::default()
    }

    /// Demands a version above this one (see [`Txn::above`]).
    #[must_use]
    pub fn above(mut self, version: Version) -> Self {
        self.above = version;
        self
    }

    /// Demands something of a key.
    #[must_use]
    pub fn check(mut self, key: impl Into<String>, expect: Expect) -> Self {
        self.checks.push((key.into(), expect));
        self
    }

    /// Writes a value.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: Vec<u8>) -> Self {
        self.writes.push((key.into(), Some(value)));
        self
    }

    /// Deletes a key; deleting an absent one is no error.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.writes.push((key.into(), None));
        self
    }
}

/// Why the store did not do what was asked.
#[derive(Debug, Error)]
pub enum StorageError {
    /// A check did not hold; nothing was written. Read again and decide again.
    #[error("the record {key:?} changed in the meantime")]
    Conflict {
        /// The first key whose check failed.
        key: String,
    },
    /// What is on disk for this key is not what was written. Never reported as "not found".
    #[error("the record {key:?} is corrupt: {reason}")]
    Corrupt {
        /// The damaged key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The disk is too full to take writes (deletes may still pass); reads go on.
    #[error("the disk is full: {free} bytes free at {path}, writes need {watermark}; free some space, nothing was written")]
    Full {
        /// Where the store lives.
        path: String,
        /// Bytes free now.
        free: u64,
        /// Bytes below which writes are refused.
        watermark: u64,
    },
    /// A key or value that the store does not take (empty key, key over 4 KiB, value over 64 MiB).
    #[error("the store refuses the key or value: {0}")]
    Invalid(String),
    /// Reading, writing or syncing failed. Nothing that was not acknowledged may be assumed to be written or absent.
    #[error("storage failed: {0}")]
    Io(String),
    /// The store was shut down.
    #[error("the store is closed")]
    Closed,
}

/// The answer to a commit, some time later.
pub type CommitFuture = Pin<Box<dyn Future<Output = Result<Version, StorageError>> + Send>>;

/// A store of records. Reads are served from memory or page cache and may be called from async workers; the
/// waiting part of a commit (disk sync) happens on the engine's own thread.
pub trait Storage: Send + Sync + 'static {
    /// The record at `key`, or `None` when there is none.
    fn get(&self, key: &str) -> Result<Option<Record>, StorageError>;

    /// One level below `prefix` (which is empty or ends in `/`), sorted bytewise, at most `limit` names that sort
    /// after `after`. A folder is listed once, with a trailing `/`; a key that is both a record and a folder is
    /// listed as both.
    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, StorageError>;

    /// As [`Storage::list`], in one piece of memory; what is listed often may come from there.
    fn names(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Names, StorageError> {
        Ok(self.list(prefix, after, limit)?.into_iter().collect())
    }

    /// All records whose key starts with `prefix`, sorted bytewise, at most `limit` of those whose full key sorts
    /// after `after`.
    fn scan(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<(String, Record)>, StorageError>;

    /// Checks and writes atomically. When the future yields `Ok`, the writes are durable (synced) and visible to
    /// every later read, and the version is that of every record written; commits under way at the same time share one sync. The
    /// commit goes on when the future is dropped.
    fn commit(&self, txn: Txn) -> CommitFuture;

    /// Grows by one when a write or sync fails, so that nobody knows what of it is durable, and by one when the engine was opened afresh
    /// since: while it is odd, reads show what was durable before, and what failed may come up yet.
    fn doubts(&self) -> u64 {
        0
    }

    /// All records as of one commit: every commit handed in before is in it, none handed in later. Writes go on while it
    /// is read; memory is bounded (see [`Snapshot::page`]).
    fn snapshot(&self) -> SnapshotFuture {
        Box::pin(async { Err(StorageError::Io("this store takes no snapshots".into())) })
    }
}

/// Which engine keeps the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// In memory, gone with the process.
    InMem,
    /// Embedded, one folder.
    Sled,
    /// Embedded, one file in a folder, small in memory.
    Redb,
}

/// What an embedded engine may be told. The defaults suit a small server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes of memory that the engine may cache records in. Both engines read what they do not cache from the system's page
    /// cache; sled takes two to three times as much memory for what it caches.
    pub cache_bytes: u64,
    /// Bytes that must be free on the file system for a transaction that writes a value.
    pub free_watermark: u64,
    /// Bytes kept aside so that deletes still work on a full disk; 0 keeps nothing.
    pub reserve_bytes: u64,
    /// How long an opening waits for the check that no acknowledged record is missing; what it does not finish goes on
    /// in the background while the store serves.
    pub check_at_start: Duration,
    /// The files are written anew once they are so many bytes larger than a multiple of the records.
    pub compact_above: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache_bytes: 8 << 20,
            free_watermark: 64 << 20,
            reserve_bytes: 4 << 20,
            check_at_start: check::AT_START,
            compact_above: compact::SLACK,
        }
    }
}

/// The store that a configuration file names.
#[derive(Clone, Debug)]
pub struct StorageConfig {
    /// The engine.
    pub kind: Kind,
    /// The folder of an embedded engine; made when it is missing.
    pub path: Option<PathBuf>,
    /// Limits of an embedded engine.
    pub options: Options,
}

/// Waits until a store of this process that was dropped has let go of its files. Blocks for some milliseconds at most.
pub fn wait_until_closed(config: &StorageConfig) -> Result<(), StorageError> {
    match (config.kind, &config.path) {
        (Kind::Sled, Some(path)) => {
            let waited = generation::current(path, sled::is_of_sled)
                .and_then(|current| sled::wait_for_own_predecessor(&generation::place(path, current)));
            waited.map(drop).map_err(|error| StorageError::Io(format!("{}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

/// Says why the configured store could not be opened, as far as that is known at once and without changing anything: another
/// engine's folder, one that is in use, or one of which it is not clear which files are the store.
pub fn check(config: &StorageConfig) -> Result<(), StorageError> {
    config.path.as_deref().map_or(Ok(()), |path| owner::check(config.kind, path))
}

/// Opens the configured store, or says why it cannot be opened. Blocks while the engine recovers what was written.
pub fn open(config: &StorageConfig) -> Result<Arc<dyn Storage>, StorageError> {
    let path = || {
        let missing = || StorageError::Invalid("the storage configuration names no path".into());
        config.path.as_deref().ok_or_else(missing)
    };
    if let Some(path) = &config.path {
        owner::refuse_other(config.kind, path)?;
    }
    Ok(Arc::new(match config.kind {
        Kind::InMem => InMem::open()?,
        Kind::Sled => Sled::open(path()?, config.options)?,
        Kind::Redb => Redb::open(path()?, config.options)?,
    }))
}
