//! All records as they were at one commit, read page by page while writes go on.
//!
//! The committer registers a snapshot between two batches. From then on it keeps, before each batch, the old bytes of
//! every key that the batch changes and the snapshot has not passed yet. A page is read from the engine first and
//! corrected by what was kept afterwards, so it shows no change that came after the snapshot. This needs nothing of
//! an engine: no old pages stay allocated in its file, and it may be reopened under an open snapshot.

use std::{
    collections::BTreeMap,
    future::Future,
    ops::Bound,
    pin::Pin,
    sync::{Arc, OnceLock, Weak},
};

use parking_lot::Mutex;

use super::{
    Record, StorageError, Version,
    backend::{Backend, Step, Write},
    frame,
    group::{SEQUENCE, corrupt, failed_at, just_behind, refuse_when_lost},
};

/// Bytes of old keys and values that one snapshot may hold in memory. A reader that is slower than this much change
/// is told to begin again.
const MAX_KEPT: usize = 64 << 20;

/// The answer to [`super::Storage::snapshot`], some time later.
pub type SnapshotFuture = Pin<Box<dyn Future<Output = Result<Snapshot, StorageError>> + Send>>;

/// A view of the whole store at one commit. Dropping it ends the keeping of old values.
pub struct Snapshot {
    backend: Arc<dyn Backend>,
    lost: Arc<OnceLock<String>>,
    kept: Arc<Kept>,
    version: Version,
    /// Where the next page starts; `None` behind the last record.
    next: Option<Vec<u8>>,
}

impl Snapshot {
    /// The last commit that the snapshot shows.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The next records in the order of their keys, at most `limit` of them and, but for the last, at most `bytes` of
    /// keys and values; empty at the end only. Blocks for as long as the disk takes: call it off the async workers.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] with the key of a damaged record; the next call goes on behind it. After
    /// [`StorageError::Io`] the same page may be asked for again, unless so much was written meanwhile that the
    /// snapshot had to be given up, which the message says.
    pub fn page(&mut self, limit: usize, bytes: usize) -> Result<Vec<(String, Record)>, StorageError> {
        let (stored, next) = self.stored_page(limit, bytes)?;
        let mut records = Vec::with_capacity(stored.len());
        for (key, framed) in stored {
            let name = String::from_utf8(key.clone()).map_err(|_not_utf8| "its key is not UTF-8".to_owned());
            match name.and_then(|name| Ok((name, frame::decode(&key, &framed)?))) {
                Ok(record) => records.push(record),
                Err(why) if records.is_empty() => {
                    self.pass(Some(just_behind(&key)));
                    return Err(corrupt(&key, why));
                }
                // What stands before it is handed over first; the next call meets the damage again.
                Err(_) => {
                    self.pass(Some(key));
                    return Ok(records);
                }
            }
        }
        self.pass(next);
        Ok(records)
    }

    /// The next records as they are stored, and where the page behind them starts: the same again until
    /// [`Snapshot::pass`] is called.
    pub(super) fn stored_page(&self, limit: usize, bytes: usize) -> Result<(Vec<Stored>, Option<Vec<u8>>), StorageError> {
        let mut next = self.next.clone();
        let mut page = Vec::new();
        while page.is_empty()
            && let Some(from) = next.take()
        {
            (page, next) = self.corrected(&from, limit.max(1), bytes)?;
        }
        Ok((page, next))
    }

    /// Whether a record of the page leads to itself when it is looked up, unless it has changed since.
    pub(super) fn is_found(&self, key: &[u8]) -> Result<bool, StorageError> {
        let found = self.backend.get(key).map_err(|fault| failed_at(key, fault))?;
        Ok(found.is_some() || self.kept.0.lock().values.contains_key(key))
    }

    /// Whether so much was written meanwhile that it had to be given up.
    pub(super) fn is_given_up(&self) -> bool {
        self.kept.0.lock().broken.is_some()
    }

    /// Goes on at `next`; what was kept of the keys before it is let go.
    pub(super) fn pass(&mut self, next: Option<Vec<u8>>) {
        self.kept.pass(next.as_deref());
        self.next = next;
    }

    /// One read of the engine, corrected; may be empty although more follows.
    fn corrected(&self, from: &[u8], limit: usize, bytes: usize) -> Result<(Vec<Stored>, Option<Vec<u8>>), StorageError> {
        refuse_when_lost(&self.lost)?;
        let mut found = BTreeMap::new();
        let mut size = 0;
        let mut last = None;
        let visited = self.backend.visit(from, &mut |key, framed| {
            if key == SEQUENCE {
                return Step::Stop;
            }
            size += key.len() + framed.len();
            found.insert(key.to_vec(), framed.to_vec());
            if found.len() < limit && size < bytes {
                return Step::Next;
            }
            last = Some(key.to_vec());
            Step::Stop
        });
        visited.map_err(|fault| failed_at(from, fault))?;
        self.kept.correct(&mut found, from, last.as_deref())?;
        let mut next = last.map(|last| just_behind(&last));
        let mut page = Vec::new();
        size = 0;
        for (key, framed) in found {
            if page.len() == limit || (size >= bytes && !page.is_empty()) {
                next = Some(key);
                break;
            }
            size += key.len() + framed.len();
            page.push((key, framed));
        }
        Ok((page, next))
    }
}

/// A key and its framed record.
pub(super) type Stored = (Vec<u8>, Vec<u8>);

/// What a snapshot needs that the engine no longer has.
#[derive(Default)]
struct Kept(Mutex<Old>);

#[derive(Default)]
struct Old {
    /// Keys before this one were handed over; `None` when all were.
    next: Option<Vec<u8>>,
    /// What the others held, where it has changed since.
    values: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    bytes: usize,
    /// Why the snapshot is no longer one.
    broken: Option<String>,
}

impl Kept {
    fn correct(&self, found: &mut BTreeMap<Vec<u8>, Vec<u8>>, from: &[u8], last: Option<&[u8]>) -> Result<(), StorageError> {
        let old = self.0.lock();
        if let Some(why) = &old.broken {
            return Err(StorageError::Io(why.clone()));
        }
        let end = last.map_or(Bound::Unbounded, Bound::Included);
        for (key, value) in old.values.range::<[u8], _>((Bound::Included(from), end)) {
            match value {
                Some(value) => found.insert(key.clone(), value.clone()),
                None => found.remove(key),
            };
        }
        Ok(())
    }

    fn pass(&self, next: Option<&[u8]>) {
        let mut old = self.0.lock();
        let ahead = next.map(|next| old.values.split_off(next)).unwrap_or_default();
        let passed = std::mem::replace(&mut old.values, ahead);
        old.bytes -= passed.iter().map(|(key, value)| size(key, value.as_deref())).sum::<usize>();
        old.next = next.map(<[u8]>::to_vec);
    }
}

fn size(key: &[u8], value: Option<&[u8]>) -> usize {
    key.len() + value.map_or(0, <[u8]>::len)
}

/// The open snapshots of a store. Used by the committer thread alone.
#[derive(Default)]
pub(super) struct Snapshots(Vec<Weak<Kept>>);

impl Snapshots {
    /// A snapshot of what is durable now, which must be the end of commit `version`.
    pub(super) fn open(&mut self, backend: &Arc<dyn Backend>, lost: &Arc<OnceLock<String>>, version: Version) -> Snapshot {
        let kept = Arc::new(Kept::default());
        kept.0.lock().next = Some(Vec::new());
        self.0.push(Arc::downgrade(&kept));
        Snapshot { backend: backend.clone(), lost: lost.clone(), kept, version, next: Some(Vec::new()) }
    }

    /// Keeps what the keys of a batch hold, before the engine gets the batch.
    pub(super) fn keep(&mut self, backend: &dyn Backend, batch: &[Write]) {
        self.0.retain(|kept| kept.strong_count() > 0);
        if self.0.is_empty() {
            return;
        }
        let open: Vec<_> = self.0.iter().filter_map(Weak::upgrade).collect();
        for (key, _) in batch.iter().filter(|(key, _)| key != SEQUENCE) {
            let mut value = None;
            for kept in &open {
                let mut old = kept.0.lock();
                let ahead = old.next.as_ref().is_some_and(|next| key >= next);
                if old.broken.is_some() || !ahead || old.values.contains_key(key) {
                    continue;
                }
                match value.get_or_insert_with(|| backend.get(key)) {
                    Ok(value) => {
                        old.bytes += size(key, value.as_deref());
                        old.values.insert(key.clone(), value.clone());
                    }
                    Err(fault) => old.broken = Some(failed_at(key, fault.clone()).to_string()),
                }
                if old.bytes > MAX_KEPT {
                    old.values.clear();
                    old.bytes = 0;
                    old.broken = Some(format!(
                        "more than {} MiB were overwritten while the snapshot was read; take a new one",
                        MAX_KEPT >> 20
                    ));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Kind, Storage, Store, Txn, conformance::*},
        *,
    };

    fn put(n: u32, value: &str) -> Txn {
        Txn::new().put(format!("k/{n:04}"), value.into())
    }

    fn fill(store: &Store, keys: std::ops::Range<u32>, txn: impl Fn(u32) -> Txn) {
        keys.for_each(|n| assert!(commit(store, txn(n)).is_ok()));
    }

    fn rest(snapshot: &mut Snapshot, limit: usize) -> Vec<(String, String)> {
        let mut all = Vec::new();
        loop {
            let page = snapshot.page(limit, 1 << 20).unwrap();
            if page.is_empty() {
                return all;
            }
            assert!(page.len() <= limit);
            all.extend(page.into_iter().map(|(key, record)| (key, String::from_utf8(record.value).unwrap())));
        }
    }

    fn shows_one_commit_only(kind: Kind) {
        let bench = Bench::new(kind);
        let store = bench.try_open().unwrap();
        for n in 0..300 {
            commit(&store, put(n * 2, "old")).unwrap();
        }
        let mut snapshot = now(store.snapshot()).unwrap();
        assert_eq!(snapshot.version(), 300);
        let early = snapshot.page(50, 1 << 20).unwrap();
        assert_eq!(early.len(), 50);
        // Overwritten, deleted, made, deleted and made again: before and behind the place that was reached.
        let expected: Vec<_> = (50..300).map(|n| (format!("k/{:04}", n * 2), "old".to_owned())).collect();
        for n in [0, 10, 98, 100, 101, 102, 350, 351, 598, 599] {
            commit(&store, put(n, "new")).unwrap();
        }
        for n in [4, 104, 101, 200, 400, 598] {
            commit(&store, Txn::new().delete(format!("k/{n:04}"))).unwrap();
        }
        commit(&store, put(200, "again")).unwrap();
        let late = now(store.snapshot()).unwrap().page(1000, 1 << 20).unwrap();
        assert_eq!(rest(&mut snapshot, 7), expected);
        assert!(snapshot.page(7, 1 << 20).unwrap().is_empty());
        assert_eq!(late, store.scan("", None, 1000).unwrap());
        assert!(late.len() == 300 - 4 + 2, "{}", late.len());
    }

    #[test]
    fn memory_shows_one_commit_only() {
        shows_one_commit_only(Kind::InMem);
    }

    #[test]
    fn sled_shows_one_commit_only() {
        shows_one_commit_only(Kind::Sled);
    }

    #[test]
    fn redb_shows_one_commit_only() {
        shows_one_commit_only(Kind::Redb);
    }

    /// Every transaction moves an amount from one record to another: a view between commits has another sum.
    fn holds_while_others_write(kind: Kind) {
        let bench = Bench::new(kind);
        let store = Arc::new(bench.try_open().unwrap());
        fill(&store, 0..100, |n| put(n, "100"));
        let writer = {
            let store = store.clone();
            std::thread::spawn(move || {
                for n in 0..400_u32 {
                    let (from, to) = (format!("k/{:04}", n * 37 % 100), format!("k/{:04}", n * 61 % 97));
                    if from == to {
                        continue;
                    }
                    let amount =
                        |key: &str| String::from_utf8(store.get(key).unwrap().unwrap().value).unwrap().parse::<i64>().unwrap();
                    let (less, more) = (amount(&from) - 7, amount(&to) + 7);
                    commit(&store, Txn::new().put(from, less.to_string().into()).put(to, more.to_string().into())).unwrap();
                }
            })
        };
        let mut versions = Vec::new();
        while !writer.is_finished() {
            let mut snapshot = now(store.snapshot()).unwrap();
            versions.push(snapshot.version());
            let sum: i64 = rest(&mut snapshot, 9).iter().map(|(_, value)| value.parse::<i64>().unwrap()).sum();
            assert_eq!(sum, 10_000, "at {}", snapshot.version());
        }
        writer.join().unwrap();
        versions.dedup();
        assert!(versions.len() > 2, "{versions:?}");
    }

    #[test]
    fn sled_holds_a_snapshot_while_others_write() {
        holds_while_others_write(Kind::Sled);
    }

    #[test]
    fn redb_holds_a_snapshot_while_others_write() {
        holds_while_others_write(Kind::Redb);
    }

    #[test]
    fn a_page_is_bounded_in_bytes() {
        let store = Bench::new(Kind::InMem).try_open().unwrap();
        fill(&store, 0..10, |n| put(n, &"v".repeat(1000)));
        let mut snapshot = now(store.snapshot()).unwrap();
        assert_eq!(snapshot.page(100, 2500).unwrap().len(), 3);
        assert_eq!(snapshot.page(100, 1).unwrap().len(), 1);
        assert_eq!(snapshot.page(100, 1 << 20).unwrap().len(), 6);
    }

    #[test]
    fn a_damaged_record_is_named_and_the_rest_still_comes() {
        let store = Bench::new(Kind::InMem).try_open().unwrap();
        fill(&store, 0..5, |n| put(n, "v"));
        store.backend().apply(vec![(b"k/0002".to_vec(), Some(b"\x01damage".to_vec()))]).unwrap();
        let mut snapshot = now(store.snapshot()).unwrap();
        assert_eq!(snapshot.page(100, 1 << 20).unwrap().len(), 2);
        let error = snapshot.page(100, 1 << 20).unwrap_err();
        assert!(matches!(&error, StorageError::Corrupt { key, .. } if key == "k/0002"), "{error}");
        assert_eq!(snapshot.page(100, 1 << 20).unwrap().len(), 2);
        assert!(snapshot.page(100, 1 << 20).unwrap().is_empty());
    }

    #[test]
    fn a_reader_slower_than_the_writers_is_told_to_begin_again() {
        let store = Bench::new(Kind::InMem).try_open().unwrap();
        let large = "v".repeat(8 << 20);
        fill(&store, 0..10, |n| put(n, &large));
        let mut snapshot = now(store.snapshot()).unwrap();
        fill(&store, 0..10, |n| put(n, "small"));
        let error = snapshot.page(100, 1 << 20).unwrap_err().to_string();
        assert!(error.contains("take a new one"), "{error}");
        assert_eq!(now(store.snapshot()).unwrap().page(100, 1 << 20).unwrap().len(), 10);
    }
}
