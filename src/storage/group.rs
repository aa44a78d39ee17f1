//! The store that every engine is wrapped in: group commit, checks, versions, framing, answers.
//!
//! One thread per store owns all writing. It takes every transaction that waits, decides each one's checks in order
//! against the durable state plus the accepted writes of the same batch, gives the accepted ones to the engine as one
//! atomic batch, waits for its one sync, and only then answers anyone. A decision may rest on the writes of an
//! earlier transaction, so when the sync fails nobody in the batch gets an answer that relies on it.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::sync::oneshot;
use tracing::{error, info};

use super::{
    CommitFuture, Record, Storage, StorageError, Txn, Version,
    backend::{Backend, Before, Fault, Step, Trust, Write},
    census::{Census, weight},
    check::Check,
    compact::{self, Behind, Compaction, Progress},
    frame,
    mark::Mark,
    names::{Changing, Listings, Names},
    snapshot::{Snapshot, SnapshotFuture, Snapshots},
    space::Space,
};
use crate::{
    crashpoint::reach,
    receipt::{self, Teller, receipt},
};

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
            broken: false,
            syncs: syncs.clone(),
            lost: lost.clone(),
            snapshots: Snapshots::default(),
            check: check.clone(),
            listings: listings.clone(),
            compaction: Compaction::new(compact_above),
        };
        committer.examine()?;
        let (jobs, waiting) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("storage".into())
            .spawn(move || committer.run(&waiting))
            .map_err(|error| StorageError::Io(format!("starting the storage thread: {error}")))?;
        Ok(Self { backend, jobs: Some(jobs), thread: Some(thread), syncs, lost, check, listings })
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

/// The thread's own state.
struct Committer {
    backend: Arc<dyn Backend>,
    space: Option<Space>,
    mark: Option<Mark>,
    /// The last version given to anyone, acknowledged or not.
    sequence: Version,
    /// Of what is durable.
    census: Census,
    /// The engine failed and could not be reopened yet.
    broken: bool,
    syncs: Arc<AtomicU64>,
    /// Why nothing is served any more, once acknowledged writes are known to be gone.
    lost: Arc<OnceLock<String>>,
    snapshots: Snapshots,
    check: Arc<Check>,
    listings: Arc<Listings>,
    compaction: Compaction,
}

/// What the accepted transactions of a batch leave at their keys.
type Pending = BTreeMap<Vec<u8>, Change>;

struct Change {
    /// The framed record that stood there before the batch.
    before: Option<Vec<u8>>,
    now: Option<(Version, Vec<u8>)>,
}

impl Committer {
    fn run(mut self, waiting: &mpsc::Receiver<Work>) {
        let mut put_back = None;
        while let Some(work) = put_back.take().or_else(|| self.next(waiting)) {
            let first = match work {
                Work::Commit(job) => job,
                Work::Snapshot(answer) => {
                    let _ = answer.send(self.snapshot());
                    continue;
                }
                Work::Compact(answer) => {
                    self.compaction.begin(&*self.backend, self.census, Some(answer));
                    continue;
                }
            };
            let mut bytes = size(&first.txn);
            let mut jobs = vec![first];
            while jobs.len() < MAX_BATCH_TXNS && bytes < MAX_BATCH_BYTES {
                match waiting.try_recv() {
                    Ok(Work::Commit(job)) => {
                        bytes += size(&job.txn);
                        jobs.push(job);
                    }
                    // A snapshot shows what was handed in before it, so it ends the batch.
                    Ok(other) => {
                        put_back = Some(other);
                        break;
                    }
                    Err(_) => break,
                }
            }
            self.commit(jobs);
            self.compact();
        }
    }

    /// Waits for work; spends the time on a compaction when there is one. `None` when the store was dropped.
    fn next(&mut self, waiting: &mpsc::Receiver<Work>) -> Option<Work> {
        loop {
            if self.broken {
                match waiting.recv_timeout(RETRY) {
                    Ok(work) => return Some(work),
                    Err(mpsc::RecvTimeoutError::Disconnected) => return None,
                    // Requests read before they write, so none of them would ever bring a closed engine back.
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        let _ = self.reopen();
                        continue;
                    }
                }
            }
            if self.compaction.is_under_way() {
                match waiting.recv_timeout(self.compaction.pause().unwrap_or(Duration::ZERO)) {
                    Ok(work) => return Some(work),
                    Err(mpsc::RecvTimeoutError::Disconnected) => return None,
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        self.compact();
                        continue;
                    }
                }
            }
            let Some(sleep) = self.compaction.sleep() else { return waiting.recv().ok() };
            match waiting.recv_timeout(sleep) {
                Ok(work) => return Some(work),
                Err(mpsc::RecvTimeoutError::Disconnected) => return None,
                Err(mpsc::RecvTimeoutError::Timeout) => self.compact(),
            }
        }
    }

    fn compact(&mut self) {
        if self.broken || self.lost.get().is_some() {
            return self.compaction.abandon(&*self.backend, &Fault::Io("the engine failed".into()));
        }
        self.compaction.look(&*self.backend, self.census);
        if let Progress::Unsure = self.compaction.step(&*self.backend, self.census) {
            self.broken = true;
        }
    }

    fn snapshot(&mut self) -> Result<Snapshot, StorageError> {
        if self.broken {
            self.reopen()?;
        }
        refuse_when_lost(&self.lost)?;
        Ok(self.snapshots.open(&self.backend, &self.lost, self.sequence))
    }

    fn commit(&mut self, jobs: Vec<Job>) {
        self.broken |= self.backend.is_failing();
        let ready = if self.broken { self.reopen().map(drop) } else { Ok(()) };
        if let Err(error) = ready.and_then(|()| refuse_when_lost(&self.lost)) {
            answer_all(jobs.into_iter().map(|job| job.answer), &error);
            return;
        }
        if self.check.wants_again() {
            let snapshot = self.snapshots.open(&self.backend, &self.lost, self.sequence);
            self.check.begin_behind(snapshot, self.census, self.looks_up());
        }
        let mut pending = Pending::new();
        let mut decided = Vec::with_capacity(jobs.len());
        let mut puts = false;
        for Job { txn, answer } in jobs {
            puts |= txn.writes.iter().any(|(_, value)| value.is_some());
            let verdict = self.decide(&txn, &pending).and_then(|()| self.accept(txn, &mut pending));
            decided.push((answer, verdict.map(|()| self.sequence)));
        }
        if !puts && let Some(space) = &mut self.space {
            space.make_room_for_deletes();
        }
        match self.make_durable(pending) {
            Ok(()) => {
                let told: Vec<_> = decided.into_iter().map(|(answer, verdict)| answer.tell(verdict)).collect();
                receipt::wake(told);
            }
            Err(error) => answer_all(decided.into_iter().map(|(answer, _)| answer), &error),
        }
    }

    /// Whether a transaction may be part of the batch.
    fn decide(&mut self, txn: &Txn, pending: &Pending) -> Result<(), StorageError> {
        refuse_odd(txn)?;
        if let Some(space) = &mut self.space
            && txn.writes.iter().any(|(_, value)| value.is_some())
        {
            space.admit_puts()?;
        }
        for (key, expect) in &txn.checks {
            let found = match pending.get(key.as_bytes()) {
                Some(change) => change.now.as_ref().map(|(version, _)| *version),
                None => stored_version(&*self.backend, key.as_bytes())?,
            };
            if !expect.holds(found) {
                return Err(StorageError::Conflict { key: key.clone() });
            }
        }
        Ok(())
    }

    /// Makes a transaction whose checks hold part of the batch.
    fn accept(&mut self, txn: Txn, pending: &mut Pending) -> Result<(), StorageError> {
        let read = |(key, _): &(String, Option<Vec<u8>>)| match pending.contains_key(key.as_bytes()) {
            true => Ok(None),
            false => self.backend.get(key.as_bytes()).map_err(|fault| failed_at(key.as_bytes(), fault)),
        };
        let before = txn.writes.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        if !txn.writes.is_empty() {
            self.sequence = self.sequence.max(txn.above) + 1;
        }
        for ((key, value), before) in txn.writes.into_iter().zip(before) {
            let now = value.map(|value| (self.sequence, value));
            match pending.entry(key.into_bytes()) {
                Entry::Occupied(mut change) => change.get_mut().now = now,
                Entry::Vacant(place) => drop(place.insert(Change { before, now })),
            }
        }
        Ok(())
    }

    fn make_durable(&mut self, pending: Pending) -> Result<(), StorageError> {
        if pending.is_empty() {
            return Ok(());
        }
        let mut census = self.census;
        let mut behind = Behind::default();
        let mut batch: Vec<Write> = Vec::with_capacity(pending.len() + 1);
        let mut held = Before::new();
        let mut changing = Changing::default();
        for (key, Change { before, now }) in pending {
            if before.is_none() != now.is_none() {
                changing.add(&key);
            }
            let weighed = before.as_ref().map(|framed| weight(&key, framed));
            let framed = now.map(|(version, value)| frame::encode(&key, version, &value));
            self.compaction.behind(&key, weighed, framed.as_ref(), &mut behind);
            weighed.into_iter().for_each(|weight| census.subtract(weight));
            framed.iter().for_each(|framed| census.add(weight(&key, framed)));
            held.insert(key.clone(), before);
            batch.push((key, framed));
        }
        self.snapshots.keep(&*self.backend, &batch);
        batch.push((SEQUENCE.to_vec(), Some(frame::encode(SEQUENCE, self.sequence, &census.encode()))));
        let bytes = batch.iter().map(|(key, framed)| key.len() + framed.as_ref().map_or(0, Vec::len)).sum::<usize>();
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.listings.begin(&mut changing);
        // The engine is foreign code: were it to panic, the store must recover as from any other failure.
        reach("commit-begun");
        let applied = catch_unwind(AssertUnwindSafe(|| self.backend.apply_over(batch, held)))
            .unwrap_or_else(|_panic| Err(Fault::Io("the engine panicked".into())));
        match applied {
            Ok(()) => {
                self.listings.end(&changing);
                reach("commit-synced");
                self.syncs.fetch_add(1, Ordering::Relaxed);
                self.census = census;
                self.compaction.wrote(bytes, behind);
                if let Some(mark) = &mut self.mark {
                    mark.note(self.sequence);
                }
                reach("commit-noted");
                Ok(())
            }
            Err(fault) => Err(self.recover(fault)),
        }
    }

    /// After a failed batch: starts the engine afresh and finds the error to tell.
    fn recover(&mut self, fault: Fault) -> StorageError {
        error!(?fault, "writing to the store failed; the engine is reopened");
        let given = self.sequence;
        self.broken = true;
        let full = match (&fault, &mut self.space) {
            (Fault::Full(_), Some(space)) => Some(space.met_full_disk()),
            _ => None,
        };
        let found = self.reopen();
        let why = match fault {
            Fault::Full(why) | Fault::Corrupt(why) | Fault::Io(why) => why,
        };
        match (full, found) {
            // `Full` promises that nothing was written; the sequence is part of the batch and tells.
            (Some(full), Ok(found)) if found < given => full,
            _ => StorageError::Io(format!("{why}; whether the write took effect is not known")),
        }
    }

    /// Reopens the engine; the last sequence that it holds.
    fn reopen(&mut self) -> Result<Version, StorageError> {
        self.listings.begin_all();
        self.compaction.abandon(&*self.backend, &Fault::Io("the engine is reopened".into()));
        // Engines write when they open. As long as the disk takes nothing the old instance goes on serving reads.
        if let Some(space) = &mut self.space {
            space.probe()?;
        }
        let found = catch_unwind(AssertUnwindSafe(|| {
            self.backend.reopen().map_err(|fault| failed_at(b"", fault))?;
            self.examine()
        }))
        .unwrap_or_else(|_panic| Err(StorageError::Io("the engine panicked".into())));
        match found {
            Ok(found) => {
                self.listings.end_all();
                self.broken = false;
                info!(sequence = found, "the store is open again");
                Ok(found)
            }
            Err(error) => {
                error!(%error, "the store cannot be reopened yet");
                if let StorageError::Corrupt { reason, .. } = &error {
                    let _ = self.lost.set(reason.clone());
                }
                Err(error)
            }
        }
    }

    /// Takes over the sequence and the census of what the engine holds, and answers that sequence. Refuses a store that
    /// lost something; counting versions from 0 again would give them twice.
    fn examine(&mut self) -> Result<Version, StorageError> {
        let (found, written) = read_sequence(&*self.backend)?;
        self.mark.as_ref().map_or(Ok(()), |mark| mark.check(found))?;
        self.backend.clear_remains();
        self.census = written;
        if self.backend.trust() != Trust::Proven {
            let snapshot = self.snapshots.open(&self.backend, &self.lost, found);
            // Without the note the operator takes the store as it is.
            let as_it_is = self.mark.as_ref().is_some_and(Mark::is_blank);
            self.census = self.check.begin(snapshot, written, self.looks_up(), as_it_is)?;
        }
        // Versions given to a failed batch are burnt: nothing may get them again.
        self.sequence = self.sequence.max(found);
        Ok(found)
    }

    fn looks_up(&self) -> bool {
        matches!(self.backend.trust(), Trust::Counted { look_up: true, .. })
    }
}

fn answer_all(answers: impl Iterator<Item = Answer>, error: &StorageError) {
    let told: Vec<_> = answers
        .map(|answer| {
            answer.tell(Err(match error {
                StorageError::Full { path, free, watermark } => {
                    StorageError::Full { path: path.clone(), free: *free, watermark: *watermark }
                }
                StorageError::Corrupt { key, reason } => StorageError::Corrupt { key: key.clone(), reason: reason.clone() },
                StorageError::Io(why) => StorageError::Io(why.clone()),
                other => StorageError::Io(other.to_string()),
            }))
        })
        .collect();
    receipt::wake(told);
}

fn size(txn: &Txn) -> usize {
    txn.writes.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len)).sum()
}

/// A key that ends in a slash would be a record that looks like a folder; no list could show it.
fn refuse_odd(txn: &Txn) -> Result<(), StorageError> {
    let checked = txn.checks.iter().map(|(key, _)| key);
    for key in checked.chain(txn.writes.iter().map(|(key, _)| key)) {
        if key.is_empty() {
            return Err(StorageError::Invalid("an empty key".into()));
        }
        if key.len() > MAX_KEY {
            return Err(StorageError::Invalid(format!("a key of {} bytes; {MAX_KEY} are allowed", key.len())));
        }
        if key.ends_with('/') {
            return Err(StorageError::Invalid(format!("the key {key:?} ends in a slash")));
        }
    }
    for (key, value) in &txn.writes {
        let len = value.as_ref().map_or(0, Vec::len);
        if len > MAX_VALUE {
            return Err(StorageError::Invalid(format!("{len} bytes for {key:?}; {MAX_VALUE} are allowed")));
        }
    }
    Ok(())
}

fn stored_version(backend: &dyn Backend, key: &[u8]) -> Result<Option<Version>, StorageError> {
    let framed = backend.get(key).map_err(|fault| failed_at(key, fault))?;
    framed.map(|framed| frame::decode_version(key, &framed).map_err(|why| corrupt(key, why))).transpose()
}

/// The last version given, 0 in a new store, and the census that was written with it.
fn read_sequence(backend: &dyn Backend) -> Result<(Version, Census), StorageError> {
    let framed = backend.get(SEQUENCE).map_err(|fault| failed_at(SEQUENCE, fault))?;
    match framed {
        Some(framed) => {
            let record = frame::decode(SEQUENCE, &framed).map_err(|why| corrupt(SEQUENCE, why))?;
            let census = Census::decode(&record.value).ok_or_else(|| corrupt(SEQUENCE, "it has no census".into()))?;
            Ok((record.version, census))
        }
        None if is_empty(backend)? => Ok((0, Census::default())),
        None => Err(corrupt(SEQUENCE, "it is missing although there are records".into())),
    }
}

fn is_empty(backend: &dyn Backend) -> Result<bool, StorageError> {
    let mut empty = true;
    let visited = backend.visit(&[], &mut |_, _| {
        empty = false;
        Step::Stop
    });
    visited.map_err(|fault| failed_at(SEQUENCE, fault)).map(|()| empty)
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
