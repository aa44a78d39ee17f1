//! What the store answers when the engine below fails: a backend that fails on demand.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

use super::{
    backend::{Backend, Fault, Step, Write},
    conformance::{commit, now},
    inmem::Map,
    space::Space,
    *,
};

/// How a batch ends.
#[derive(Clone, Debug)]
pub(crate) enum Plan {
    Good,
    /// Nothing of the batch reaches the disk.
    Lost(Fault),
    /// All of the batch reaches the disk, and yet the sync fails.
    Landed(Fault),
    /// As landed, and readers see it once the engine was opened afresh, not before: so do the engines on disk.
    Hidden(Fault),
    Panic,
}

/// Keeps its records in memory.
#[derive(Clone)]
pub(crate) struct Faulty {
    map: Arc<Map>,
    /// For the next batches; all later ones are good.
    plans: Arc<Mutex<VecDeque<Plan>>>,
    hidden: Arc<Mutex<Vec<Write>>>,
    /// Held by a test to gather a batch behind the one under way.
    gate: Arc<Mutex<()>>,
    /// Batches that came to the gate.
    arrived: Arc<AtomicU32>,
    reopenings: Arc<AtomicU32>,
    failing_reopenings: Arc<AtomicU32>,
}

impl Faulty {
    pub(crate) fn new() -> Self {
        Self {
            map: Arc::default(),
            plans: Arc::default(),
            hidden: Arc::default(),
            gate: Arc::default(),
            arrived: Arc::default(),
            reopenings: Arc::default(),
            failing_reopenings: Arc::default(),
        }
    }

    pub(crate) fn start(&self) -> Store {
        Store::start(self.clone(), None, None, u64::MAX).unwrap()
    }

    /// How the next batch ends for which nothing is planned yet.
    pub(crate) fn plan(&self, plan: Plan) {
        self.plans.lock().push_back(plan);
    }

    /// So many times the engine cannot be opened again.
    pub(crate) fn stay_closed(&self, times: u32) {
        self.failing_reopenings.store(times, Ordering::SeqCst);
    }

    /// Holds a first commit in the engine until the others wait, so that they become one batch with this end.
    fn gather(&self, store: &Store, txns: Vec<Txn>, end: Plan) -> Vec<Result<Version, StorageError>> {
        self.plan(Plan::Good);
        self.plan(end);
        let closed = self.gate.lock();
        let arrived = self.arrived.load(Ordering::SeqCst);
        let first = store.commit(Txn::new().put("gate", Vec::new()));
        while self.arrived.load(Ordering::SeqCst) == arrived {
            std::thread::sleep(Duration::from_millis(1));
        }
        let waiting: Vec<_> = txns.into_iter().map(|txn| store.commit(txn)).collect();
        drop(closed);
        now(first).unwrap();
        waiting.into_iter().map(now).collect()
    }
}

impl Backend for Faulty {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        self.map.get(key)
    }

    fn visit(&self, from: &[u8], visitor: &mut dyn FnMut(&[u8], &[u8]) -> Step) -> Result<(), Fault> {
        self.map.visit(from, visitor)
    }

    fn apply(&self, batch: Vec<Write>) -> Result<(), Fault> {
        self.arrived.fetch_add(1, Ordering::SeqCst);
        let _open = self.gate.lock();
        let plan = self.plans.lock().pop_front().unwrap_or(Plan::Good);
        match plan {
            Plan::Good => self.map.apply(batch),
            Plan::Lost(fault) => Err(fault),
            Plan::Landed(fault) => self.map.apply(batch).and(Err(fault)),
            Plan::Hidden(fault) => {
                *self.hidden.lock() = batch;
                Err(fault)
            }
            Plan::Panic => panic!("planned"),
        }
    }

    fn reopen(&self) -> Result<(), Fault> {
        self.reopenings.fetch_add(1, Ordering::SeqCst);
        let failing = self.failing_reopenings.load(Ordering::SeqCst);
        if failing > 0 {
            self.failing_reopenings.store(failing - 1, Ordering::SeqCst);
            return Err(io());
        }
        self.map.apply(std::mem::take(&mut *self.hidden.lock()))
    }
}

pub(crate) fn io() -> Fault {
    Fault::Io("planned".into())
}

fn put(key: &str) -> Txn {
    Txn::new().put(key, b"1".to_vec())
}

#[test]
fn a_failed_write_or_sync_acknowledges_nobody_and_the_store_goes_on() {
    for plan in [Plan::Lost(io()), Plan::Landed(io()), Plan::Lost(Fault::Corrupt("planned".into())), Plan::Panic] {
        let backend = Faulty::new();
        let store = backend.start();
        let before = commit(&store, put("a")).unwrap();
        backend.plan(plan.clone());
        let answer = commit(&store, put("b"));
        assert!(matches!(answer, Err(StorageError::Io(_))), "{plan:?}: {answer:?}");
        assert_eq!(backend.reopenings.load(Ordering::SeqCst), 1);
        assert_eq!(store.syncs(), 1);
        assert!(commit(&store, put("c")).unwrap() > before + 1, "the failed batch's version is burnt");
        assert_eq!(store.syncs(), 2);
    }
}

#[test]
fn nobody_is_told_a_decision_that_rests_on_a_failed_batch() {
    let backend = Faulty::new();
    let store = backend.start();
    let create = || put("a").check("a", Expect::Absent);
    // The second is refused because of the first, whose write is then lost.
    let answers = backend.gather(&store, vec![create(), create()], Plan::Lost(io()));
    assert!(answers.iter().all(|answer| matches!(answer, Err(StorageError::Io(_)))), "{answers:?}");
    let answers = backend.gather(&store, vec![create(), create()], Plan::Good);
    assert!(matches!(*answers, [Ok(_), Err(StorageError::Conflict { .. })]), "{answers:?}");
}

#[test]
fn transactions_that_wait_become_one_batch_with_one_sync() {
    let backend = Faulty::new();
    let store = backend.start();
    let txns = (0..100).map(|n| put(&format!("k/{n}"))).collect();
    let answers = backend.gather(&store, txns, Plan::Good);
    let versions: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(versions, (2..102).collect::<Vec<_>>());
    assert_eq!(store.syncs(), 2);
}

#[test]
fn while_the_engine_cannot_be_reopened_writes_fail_and_reads_go_on() {
    let backend = Faulty::new();
    let store = backend.start();
    commit(&store, put("a")).unwrap();
    backend.plan(Plan::Lost(io()));
    backend.failing_reopenings.store(3, Ordering::SeqCst);
    for _ in 0..3 {
        assert!(matches!(commit(&store, put("b")), Err(StorageError::Io(_))));
        assert!(store.get("a").unwrap().is_some());
    }
    commit(&store, put("b")).unwrap();
    assert_eq!(backend.reopenings.load(Ordering::SeqCst), 4);
}

#[test]
fn doubts_are_odd_from_a_failed_write_until_the_engine_is_open_again() {
    for end in [Plan::Lost(io()), Plan::Hidden(io())] {
        let backend = Faulty::new();
        let store = backend.start();
        commit(&store, put("a")).unwrap();
        assert_eq!(store.doubts(), 0);
        let landed = matches!(end, Plan::Hidden(_));
        backend.plan(end);
        backend.stay_closed(u32::MAX);
        commit(&store, put("b")).unwrap_err();
        assert_eq!((store.doubts(), store.get("b").unwrap()), (1, None));
        let absent = || Txn::new().check("b", Expect::Absent);
        assert!(matches!(commit(&store, absent()), Err(StorageError::Io(_))), "what only checks waits for certainty too");
        backend.stay_closed(0);
        assert_eq!(commit(&store, absent()).is_ok(), !landed);
        assert_eq!((store.doubts(), store.get("b").unwrap().is_some()), (2, landed));
        // An engine that is opened afresh at once.
        backend.plan(Plan::Lost(io()));
        commit(&store, put("c")).unwrap_err();
        assert_eq!(store.doubts(), 4);
    }
}

#[test]
fn a_full_disk_gives_up_the_reserve_and_says_full_only_when_nothing_was_written() {
    let place = tempfile::tempdir().unwrap();
    let reserve = place.path().join("reserve");
    let options = Options { free_watermark: 0, reserve_bytes: 1 << 16, ..Options::default() };
    let backend = Faulty::new();
    let store = Store::start(backend.clone(), Some(Space::new(place.path(), &options)), None, options.compact_above).unwrap();
    assert!(reserve.exists());
    let full = || Fault::Full("planned".into());
    backend.plan(Plan::Lost(full()));
    assert!(matches!(commit(&store, put("a")), Err(StorageError::Full { .. })));
    assert!(!reserve.exists());
    assert_eq!(store.get("a").unwrap(), None);
    backend.plan(Plan::Landed(full()));
    assert!(matches!(commit(&store, put("a")), Err(StorageError::Io(_))));
    commit(&store, put("b")).unwrap();
    assert!(reserve.exists(), "made again when there is room");
}

#[test]
fn dropping_the_store_finishes_what_was_handed_in() {
    let backend = Faulty::new();
    let store = backend.start();
    let commits: Vec<_> = (0..50).map(|n| store.commit(put(&format!("k/{n}")))).collect();
    drop(store);
    assert!(commits.into_iter().all(|commit| now(commit).is_ok()));
}

#[test]
fn a_commit_blocks_no_async_worker() {
    let backend = Faulty::new();
    let store = backend.start();
    let closed = backend.gate.lock();
    now(async {
        let stuck = store.commit(put("a"));
        // One thread runs everything here: were the commit to block it, the timer could not end.
        let early = tokio::select! {
            _ = stuck => true,
            () = std::future::ready(()) => false,
        };
        assert!(!early);
    });
    drop(closed);
}
