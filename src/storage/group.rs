//! The store that every engine is wrapped in: group commit, checks, versions, framing, answers.
//!
//! One thread per store owns all writing. It takes every transaction that waits, decides each one's checks in order
//! against the durable state plus the accepted writes of the same batch, gives the accepted ones to the engine as one
//! atomic batch, waits for its one sync, and only then answers anyone. A decision may rest on the writes of an
//! earlier transaction, so when the sync fails nobody in the batch gets an answer that relies on it.

mod committer;
mod records;
mod recovery;

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::sync::oneshot;

use super::{
    CommitFuture, Record, Storage, StorageError, Txn, Version,
    backend::{Backend, Fault, Step, Trust},
    census::Census,
    check::Check,
    compact::{self, Compaction},
    frame,
    mark::Mark,
    names::{Listings, Names},
    snapshot::{Snapshot, SnapshotFuture, Snapshots},
    space::Space,
};
use crate::relay::{Teller, receipt};
use committer::Committer;
use recovery::Broken;

/// The record that holds the last version given. No UTF-8 key holds the byte 0xFF, so no caller can reach it, and it
/// sorts behind every record. Its value is the census.
pub(crate) const SEQUENCE: &[u8] = b"\xffsequence";

/// How often an engine that could not be reopened is tried again.
const RETRY: Duration = Duration::from_millis(500);

const MAX_KEY: usize = 4 << 10;
const MAX_VALUE: usize = 64 << 20;

/// Bounds of one batch, so that the first transaction in it does not wait long for the last.
const MAX_BATCH_TXNS: usize = 1024;
const MAX_BATCH_BYTES: usize = 16 << 20;

/// An open store of any engine. Dropping it finishes what was handed in and frees the folder.
pub struct Store {
    backend: Arc<dyn Backend>,
    // Options only because both must be taken apart in `drop`: the thread ends when the sender is gone.
    jobs: Option<mpsc::Sender<Work>>,
    thread: Option<JoinHandle<()>>,
    syncs: Arc<AtomicU64>,
    lost: Arc<OnceLock<String>>,
    doubts: Arc<AtomicU64>,
    check: Arc<Check>,
    listings: Arc<Listings>,
}

enum Work {
    Commit(Job),
    Snapshot(oneshot::Sender<Result<Snapshot, StorageError>>),
    Compact(compact::Answer),
}

struct Job {
    txn: Txn,
    answer: Answer,
}

type Answer = Teller<Result<Version, StorageError>>;

impl Store {
    /// `compact_above`: see [`super::Options`].
    pub(crate) fn start(
        backend: impl Backend,
        space: Option<Space>,
        mark: Option<Mark>,
        compact_above: u64,
    ) -> Result<Self, StorageError> {
        let backend: Arc<dyn Backend> = Arc::new(backend);
        let syncs = Arc::new(AtomicU64::new(0));
        let lost = Arc::new(OnceLock::new());
        let doubts = Arc::new(AtomicU64::new(0));
        let patience = match backend.trust() {
            Trust::Proven => Duration::ZERO,
            Trust::Counted { patience, .. } => patience,
        };
        let check = Check::new(lost.clone(), patience);
        let listings = Arc::new(Listings::new());
        let mut committer = Committer {
            backend: backend.clone(),
            space,
            mark,
            sequence: 0,
            census: Census::default(),
            broken: Broken::new(doubts.clone()),
            syncs: syncs.clone(),
            lost: lost.clone(),
            snapshots: Snapshots::default(),
            check: check.clone(),
            listings: listings.clone(),
            compaction: Compaction::new(compact_above),
            remains: false,
        };
        committer.examine()?;
        let (jobs, waiting) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("storage".into())
            .spawn(move || committer.run(&waiting))
            .map_err(|error| StorageError::Io(format!("starting the storage thread: {error}")))?;
        Ok(Self { backend, jobs: Some(jobs), thread: Some(thread), syncs, lost, doubts, check, listings })
    }

    /// How many batches were synced since the store was opened.
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// Writes the engine's files anew without the room that overwritten and deleted records had; answers when the new
    /// ones are in use. The store does so by itself when its files have grown to a multiple of what they hold.
    pub async fn compact(&self) -> Result<(), StorageError> {
        let (answer, answered) = oneshot::channel();
        let _ = self.jobs.as_ref().map(|jobs| jobs.send(Work::Compact(answer)));
        answered.await.unwrap_or(Err(StorageError::Closed))
    }

    /// Whether the records are still being counted after an opening.
    pub fn is_being_checked(&self) -> bool {
        self.check.is_running()
    }

    #[cfg(test)]
    pub(super) fn backend(&self) -> &dyn Backend {
        &*self.backend
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.jobs = None;
        self.check.stop();
        if let Some(thread) = self.thread.take() {
            // A panic there was already answered with `Closed`.
            let _ = thread.join();
        }
    }
}

impl Storage for Store {
    fn get(&self, key: &str) -> Result<Option<Record>, StorageError> {
        refuse_when_lost(&self.lost)?;
        let framed = self.backend.get(key.as_bytes()).map_err(|fault| failed_at(key.as_bytes(), fault))?;
        framed.map(|framed| frame::decode_owned(key.as_bytes(), framed).map_err(|why| corrupt(key.as_bytes(), why))).transpose()
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, StorageError> {
        Ok(self.names(prefix, after, limit)?.iter().map(str::to_owned).collect())
    }

    fn names(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Names, StorageError> {
        refuse_when_lost(&self.lost)?;
        if !prefix.is_empty() && !prefix.ends_with('/') {
            return Err(StorageError::Invalid(format!("the folder {prefix:?} does not end in a slash")));
        }
        let mut names = Names::default();
        if limit == 0 {
            return Ok(names);
        }
        let mark = if after.is_none() { self.listings.mark(prefix) } else { None };
        if let Some(kept) = mark.and_then(|mark| self.listings.get(prefix, mark)).filter(|kept| kept.len() < limit) {
            return Ok(kept);
        }
        let mut wrong = None;
        self.visit(prefix, list_start(prefix, after), &mut |key, _| {
            let Some(Ok(rest)) = key.get(prefix.len()..).map(std::str::from_utf8) else {
                wrong = Some(corrupt(key, "its key is not UTF-8".into()));
                return Step::Stop;
            };
            let step = match rest.find('/') {
                Some(end) => {
                    names.push(rest.get(..=end).unwrap_or(rest));
                    Step::SkipTo(behind_folder(prefix, rest.get(..end).unwrap_or(rest)))
                }
                None => {
                    names.push(rest);
                    Step::Next
                }
            };
            if names.len() == limit { Step::Stop } else { step }
        })?;
        if let Some(error) = wrong {
            return Err(error);
        }
        if let Some(mark) = mark.filter(|_| names.len() < limit) {
            self.listings.keep(prefix, mark, &names);
        }
        Ok(names)
    }

    fn scan(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<(String, Record)>, StorageError> {
        let mut records = Vec::new();
        if limit == 0 {
            return Ok(records);
        }
        let start = after.map_or(Vec::new(), |after| just_behind(after.as_bytes())).max(prefix.as_bytes().to_vec());
        let mut wrong = None;
        self.visit(prefix, start, &mut |key, framed| {
            match std::str::from_utf8(key).map_err(|_not_utf8| "its key is not UTF-8".to_owned()) {
                Ok(name) => match frame::decode(key, framed) {
                    Ok(record) => records.push((name.to_owned(), record)),
                    Err(why) => wrong = Some(corrupt(key, why)),
                },
                Err(why) => wrong = Some(corrupt(key, why)),
            }
            if wrong.is_some() || records.len() == limit { Step::Stop } else { Step::Next }
        })?;
        wrong.map_or(Ok(records), Err)
    }

    fn commit(&self, txn: Txn) -> CommitFuture {
        let (answer, answered) = receipt();
        // A failed send drops the job, and with it `answer`: the future then says `Closed`.
        let _ = self.jobs.as_ref().map(|jobs| jobs.send(Work::Commit(Job { txn, answer })));
        Box::pin(async move { answered.await.unwrap_or(Err(StorageError::Closed)) })
    }

    fn doubts(&self) -> u64 {
        self.doubts.load(Ordering::Acquire)
    }

    fn snapshot(&self) -> SnapshotFuture {
        let (answer, answered) = oneshot::channel();
        let _ = self.jobs.as_ref().map(|jobs| jobs.send(Work::Snapshot(answer)));
        Box::pin(async move { answered.await.unwrap_or(Err(StorageError::Closed)) })
    }
}

impl Store {
    fn visit(&self, prefix: &str, start: Vec<u8>, visitor: &mut dyn FnMut(&[u8], &[u8]) -> Step) -> Result<(), StorageError> {
        refuse_when_lost(&self.lost)?;
        self.backend
            .visit_within(prefix.as_bytes(), &start, &mut |key, framed| {
                if key == SEQUENCE || !key.starts_with(prefix.as_bytes()) {
                    return Step::Stop;
                }
                visitor(key, framed)
            })
            .map_err(|fault| failed_at(prefix.as_bytes(), fault))
    }
}

/// After a failure the engine may come back with less than was acknowledged. What is missing must not read as absent.
pub(super) fn refuse_when_lost(lost: &OnceLock<String>) -> Result<(), StorageError> {
    match lost.get() {
        None => Ok(()),
        Some(reason) => Err(StorageError::Corrupt { key: String::new(), reason: reason.clone() }),
    }
}

/// The first key that is not in a folder: `0` is the byte behind `/`.
fn behind_folder(prefix: &str, folder: &str) -> Vec<u8> {
    [prefix.as_bytes(), folder.as_bytes(), b"0"].concat()
}

/// The first key that can follow.
pub(super) fn just_behind(key: &[u8]) -> Vec<u8> {
    [key, b"\0"].concat()
}

/// Names sort as their keys do, so paging needs no memory: a folder's name stands before all that is in it.
fn list_start(prefix: &str, after: Option<&str>) -> Vec<u8> {
    match after {
        None => prefix.as_bytes().to_vec(),
        Some(after) => match after.split_once('/') {
            Some((folder, _)) => behind_folder(prefix, folder),
            None => just_behind(format!("{prefix}{after}").as_bytes()),
        },
    }
}

pub(super) fn failed_at(key: &[u8], fault: Fault) -> StorageError {
    match fault {
        Fault::Corrupt(why) => corrupt(key, why),
        Fault::Full(why) | Fault::Io(why) => StorageError::Io(why),
    }
}

pub(super) fn corrupt(key: &[u8], reason: String) -> StorageError {
    StorageError::Corrupt { key: String::from_utf8_lossy(key).into_owned(), reason }
}
