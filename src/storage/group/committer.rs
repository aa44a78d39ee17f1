//! The one thread that writes: it gathers what waits into batches, has each made durable, and only then answers.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use super::{
    Answer, Job, MAX_BATCH_BYTES, MAX_BATCH_TXNS, RETRY, SEQUENCE, Work, failed_at,
    records::{refuse_odd, size, stored_version},
    recovery::Broken,
    refuse_when_lost,
};
use crate::{
    crashpoint::reach,
    relay,
    storage::{
        StorageError, Txn, Version,
        backend::{Backend, Before, Fault, Write},
        census::{Census, weight},
        check::Check,
        compact::{Behind, Compaction, Progress},
        frame,
        mark::Mark,
        names::{Changing, Listings},
        snapshot::{Snapshot, Snapshots},
        space::Space,
    },
};

/// The thread's own state.
pub(super) struct Committer {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) space: Option<Space>,
    pub(super) mark: Option<Mark>,
    /// The last version given to anyone, acknowledged or not.
    pub(super) sequence: Version,
    /// Of what is durable.
    pub(super) census: Census,
    pub(super) broken: Broken,
    pub(super) syncs: Arc<AtomicU64>,
    /// Why nothing is served any more, once acknowledged writes are known to be gone.
    pub(super) lost: Arc<OnceLock<String>>,
    pub(super) snapshots: Snapshots,
    pub(super) check: Arc<Check>,
    pub(super) listings: Arc<Listings>,
    pub(super) compaction: Compaction,
    /// What an interrupted compaction may have left is still there.
    pub(super) remains: bool,
}

/// What the accepted transactions of a batch leave at their keys.
type Pending = BTreeMap<Vec<u8>, Change>;

struct Change {
    /// The framed record that stood there before the batch.
    before: Option<Vec<u8>>,
    now: Option<(Version, Vec<u8>)>,
}

impl Committer {
    pub(super) fn run(mut self, waiting: &mpsc::Receiver<Work>) {
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
            if self.broken.is() {
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
            // An engine that fails while it is given what its journal has says so to nobody else.
            let sleep = self.compaction.sleep();
            match waiting.recv_timeout(sleep.map_or(RETRY, |sleep| sleep.min(RETRY))) {
                Ok(work) => return Some(work),
                Err(mpsc::RecvTimeoutError::Disconnected) => return None,
                Err(mpsc::RecvTimeoutError::Timeout) if self.backend.is_failing() => self.broken.set(true),
                Err(mpsc::RecvTimeoutError::Timeout) if sleep.is_some_and(|sleep| sleep <= RETRY) => self.compact(),
                Err(mpsc::RecvTimeoutError::Timeout) => self.clear_remains(),
            }
        }
    }

    /// What an interrupted compaction left goes once the files in use were counted and are whole.
    pub(super) fn clear_remains(&mut self) {
        if self.remains && !self.compaction.is_under_way() && !self.check.is_running() && self.lost.get().is_none() {
            self.backend.clear_remains();
            self.remains = false;
        }
    }

    fn compact(&mut self) {
        self.clear_remains();
        if self.broken.is() || self.lost.get().is_some() {
            return self.compaction.abandon(&*self.backend, &Fault::Io("the engine failed".into()));
        }
        self.compaction.look(&*self.backend, self.census);
        if let Progress::Unsure = self.compaction.step(&*self.backend, self.census) {
            self.broken.set(true);
        }
    }

    fn snapshot(&mut self) -> Result<Snapshot, StorageError> {
        if self.broken.is() {
            self.reopen()?;
        }
        refuse_when_lost(&self.lost)?;
        Ok(self.snapshots.open(&self.backend, &self.lost, self.sequence))
    }

    fn commit(&mut self, jobs: Vec<Job>) {
        if self.backend.is_failing() {
            self.broken.set(true);
        }
        let ready = if self.broken.is() { self.reopen().map(drop) } else { Ok(()) };
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
                relay::wake(told);
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
    relay::wake(told);
}
