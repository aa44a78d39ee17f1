//! A store in memory for the tests of barrier, seal and zones; it dies or fails at a chosen commit when told to.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::storage::{CommitFuture, Record, Storage, StorageError, Txn};

/// Keeps its records over a simulated restart.
pub(crate) struct Store {
    state: parking_lot::Mutex<(u64, BTreeMap<String, Record>)>,
    commits: AtomicUsize,
    dead_from: AtomicUsize,
    reads: AtomicUsize,
    /// Whether the first failing commit is still written (killed before the answer).
    written: std::sync::atomic::AtomicBool,
    failing: parking_lot::Mutex<Option<Failing>>,
}

/// A failure that the store comes back from, opened afresh.
struct Failing {
    /// The commit that fails, counted from the first one of all.
    at: usize,
    landed: bool,
    /// So many further commits fail before the engine can be opened again.
    closed_for: usize,
    /// What landed, and shows only once the engine was opened again.
    hidden: Option<Txn>,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            state: Default::default(),
            commits: AtomicUsize::new(0),
            dead_from: AtomicUsize::new(usize::MAX),
            reads: AtomicUsize::new(0),
            written: false.into(),
            failing: parking_lot::Mutex::new(None),
        }
    }
}

impl Store {
    /// Makes the `nth` commit from now and all later ones fail; with `written` that one is written all the same.
    pub(crate) fn die_at(&self, nth: usize, written: bool) {
        self.written.store(written, Ordering::SeqCst);
        self.dead_from.store(self.commits.load(Ordering::SeqCst) + nth, Ordering::SeqCst);
    }

    /// Makes the `nth` commit from now fail, landed or not, and `closed_for` more after it. What landed is not read before the
    /// next commit that does not fail.
    pub(crate) fn fail_at(&self, nth: usize, landed: bool, closed_for: usize) {
        let at = self.commits.load(Ordering::SeqCst) + nth;
        *self.failing.lock() = Some(Failing { at, landed, closed_for, hidden: None });
    }

    /// Whether the failure came and the store is well again.
    pub(crate) fn has_recovered(&self) -> bool {
        self.failing.lock().is_none()
    }

    /// As after a restart.
    pub(crate) fn come_back(&self) {
        self.dead_from.store(usize::MAX, Ordering::SeqCst);
        if let Some(landed) = self.failing.lock().take().and_then(|failing| failing.hidden) {
            self.write(landed).ok();
        }
    }

    fn write(&self, txn: Txn) -> Result<u64, StorageError> {
        let mut state = self.state.lock();
        let conflict = txn.checks.iter().find(|(key, expect)| !expect.holds(state.1.get(key).map(|record| record.version)));
        if let Some((key, _)) = conflict {
            return Err(StorageError::Conflict { key: key.clone() });
        }
        state.0 += 1;
        let version = state.0;
        for (key, value) in txn.writes {
            match value {
                Some(value) => drop(state.1.insert(key, Record { version, value })),
                None => drop(state.1.remove(&key)),
            }
        }
        Ok(version)
    }

    /// The error of a commit that fails, which then keeps or loses what it was to write; otherwise the transaction.
    fn fail(&self, commit: usize, txn: Txn) -> Result<Txn, StorageError> {
        let mut slot = self.failing.lock();
        let Some(failing) = slot.as_mut().filter(|failing| commit >= failing.at) else { return Ok(txn) };
        if commit == failing.at {
            failing.hidden = failing.landed.then_some(txn);
        } else if commit > failing.at + failing.closed_for {
            let hidden = slot.take().and_then(|failing| failing.hidden);
            hidden.map(|landed| self.write(landed));
            return Ok(txn);
        }
        Err(StorageError::Io("failed".into()))
    }

    /// How often it was read or listed.
    pub(crate) fn reads(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }

    /// All keys, sorted.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.state.lock().1.keys().cloned().collect()
    }
}

impl Storage for Store {
    fn get(&self, key: &str) -> Result<Option<Record>, StorageError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        Ok(self.state.lock().1.get(key).cloned())
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, StorageError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let state = self.state.lock();
        let names = state.1.keys().filter_map(|key| key.strip_prefix(prefix)).filter(|key| !key.contains('/'));
        Ok(names.filter(|name| after.is_none_or(|after| *name > after)).take(limit).map(str::to_owned).collect())
    }

    fn scan(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<(String, Record)>, StorageError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let state = self.state.lock();
        let found = state.1.iter().filter(|(k, _)| k.starts_with(prefix) && after.is_none_or(|a| k.as_str() > a));
        Ok(found.take(limit).map(|(k, r)| (k.clone(), r.clone())).collect())
    }

    fn commit(&self, txn: Txn) -> CommitFuture {
        let commit = self.commits.fetch_add(1, Ordering::SeqCst);
        let dead_from = self.dead_from.load(Ordering::SeqCst);
        let dies = commit >= dead_from;
        if dies && !(commit == dead_from && self.written.load(Ordering::SeqCst)) {
            return Box::pin(async { Err(StorageError::Io("killed".into())) });
        }
        let txn = match self.fail(commit, txn) {
            Ok(txn) => txn,
            Err(error) => return Box::pin(async { Err(error) }),
        };
        let written = self.write(txn);
        let answer = match written {
            Ok(_) if dies => Err(StorageError::Io("killed".into())),
            written => written,
        };
        Box::pin(async { answer })
    }
}
