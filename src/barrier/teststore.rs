//! A store in memory for the tests of barrier, seal and zones; it dies at a chosen commit when told to.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::storage::{CommitFuture, Expect, Record, Storage, StorageError, Txn};

/// Keeps its records over a simulated restart.
pub(crate) struct Store {
    state: parking_lot::Mutex<(u64, BTreeMap<String, Record>)>,
    commits: AtomicUsize,
    dead_from: AtomicUsize,
    /// Whether the first failing commit is still written (killed before the answer).
    written: std::sync::atomic::AtomicBool,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            state: Default::default(),
            commits: AtomicUsize::new(0),
            dead_from: AtomicUsize::new(usize::MAX),
            written: false.into(),
        }
    }
}

impl Store {
    /// Makes the `nth` commit from now and all later ones fail; with `written` that one is written all the same.
    pub(crate) fn die_at(&self, nth: usize, written: bool) {
        self.written.store(written, Ordering::SeqCst);
        self.dead_from.store(self.commits.load(Ordering::SeqCst) + nth, Ordering::SeqCst);
    }

    /// As after a restart.
    pub(crate) fn come_back(&self) {
        self.dead_from.store(usize::MAX, Ordering::SeqCst);
    }

    /// All keys, sorted.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.state.lock().1.keys().cloned().collect()
    }
}

impl Storage for Store {
    fn get(&self, key: &str) -> Result<Option<Record>, StorageError> {
        Ok(self.state.lock().1.get(key).cloned())
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, StorageError> {
        let state = self.state.lock();
        let names = state.1.keys().filter_map(|key| key.strip_prefix(prefix)).filter(|key| !key.contains('/'));
        Ok(names.filter(|name| after.is_none_or(|after| *name > after)).take(limit).map(str::to_owned).collect())
    }

    fn scan(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<(String, Record)>, StorageError> {
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
        let mut state = self.state.lock();
        let conflict = txn.checks.iter().find(|(key, expect)| Expect::unchanged(state.1.get(key)) != *expect);
        if let Some((key, _)) = conflict {
            let key = key.clone();
            return Box::pin(async { Err(StorageError::Conflict { key }) });
        }
        state.0 += 1;
        let version = state.0;
        for (key, value) in txn.writes {
            match value {
                Some(value) => drop(state.1.insert(key, Record { version, value })),
                None => drop(state.1.remove(&key)),
            }
        }
        let answer = if dies { Err(StorageError::Io("killed".into())) } else { Ok(version) };
        Box::pin(async { answer })
    }
}
