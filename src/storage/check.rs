//! Whether all that was acknowledged is still there: counted after every opening, without holding up the start.
//!
//! What a crash can take is the end of the log, and that is checked at once: the sequence against the mark. What
//! damage in the middle takes is seen only by reading everything. A store that is read within [`AT_START`] is checked
//! before it serves anything; the check of a larger one goes on behind the first requests, on a snapshot, and stops
//! the store when it finds a loss. Until then a lost record of a large store may read as absent. Whether a store is larger is
//! seen after [`PROBE`] of that time, so that nobody waits for a check that will not be done.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tracing::{error, info};

use super::{
    StorageError,
    census::{Census, weight},
    group::corrupt,
    snapshot::Snapshot,
};

/// How long an opening waits for the check.
pub(super) const AT_START: Duration = Duration::from_millis(400);

/// The share of that time after which it is reckoned how long the whole check takes.
const PROBE: u32 = 8;

/// How nice a count behind the served requests is: it has a tenth of what a request's thread has where they compete.
const BEHIND: i32 = 10;

/// Records, and bytes of them, that are read at a time.
const PAGE: (usize, usize) = (512, 1 << 20);

/// How long the check waits after an engine could not be read, and how often it says how far it is.
const AGAIN: Duration = Duration::from_secs(1);
const SAY: Duration = Duration::from_secs(10);

/// The checks of one store.
pub(super) struct Check {
    lost: Arc<OnceLock<String>>,
    /// How long an opening waits.
    patience: Duration,
    stop: AtomicBool,
    again: AtomicBool,
    running: Mutex<Vec<JoinHandle<()>>>,
}

/// A count under way.
struct Count {
    snapshot: Snapshot,
    /// What the store says it holds.
    written: Census,
    counted: Census,
    /// Every record must also be found when it is looked up: a range can lead to records that a look-up misses.
    look_up: bool,
}

impl Check {
    pub(super) fn new(lost: Arc<OnceLock<String>>, patience: Duration) -> Arc<Self> {
        Arc::new(Self { lost, patience, stop: false.into(), again: false.into(), running: Mutex::default() })
    }

    /// Counts what the snapshot shows and compares it with what was written at its commit. What takes longer than an
    /// opening should wait goes on in the background. Answers the census to go on with: `written`, or what was counted
    /// when the store is to be taken `as_it_is`.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] when records are missing, as far as that was found at once.
    pub(super) fn begin(
        self: &Arc<Self>,
        snapshot: Snapshot,
        written: Census,
        look_up: bool,
        as_it_is: bool,
    ) -> Result<Census, StorageError> {
        let mut count = Count { snapshot, written, counted: Census::default(), look_up };
        let begun = Instant::now();
        while as_it_is || count.can_end_within(self.patience, begun.elapsed()) {
            if count.page()? {
                return if as_it_is { Ok(count.counted) } else { count.verdict().map(|()| written) };
            }
        }
        info!(
            records = written.count(),
            bytes = written.bytes(),
            "the store serves while its records are counted in the background"
        );
        self.go_on(count);
        Ok(written)
    }

    /// Goes on with a count from its start, off the caller's thread.
    pub(super) fn begin_behind(self: &Arc<Self>, snapshot: Snapshot, written: Census, look_up: bool) {
        self.go_on(Count { snapshot, written, counted: Census::default(), look_up });
    }

    /// Whether a count had to be given up because too much was written meanwhile; asks once.
    pub(super) fn wants_again(&self) -> bool {
        self.again.load(Ordering::Relaxed) && self.again.swap(false, Ordering::Relaxed)
    }

    /// Whether a count is under way.
    pub(super) fn is_running(&self) -> bool {
        self.running.lock().iter().any(|thread| !thread.is_finished()) || self.again.load(Ordering::Relaxed)
    }

    /// Ends what is under way.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in std::mem::take(&mut *self.running.lock()) {
            let _ = thread.join();
        }
    }

    fn go_on(self: &Arc<Self>, count: Count) {
        let check = Arc::clone(self);
        let spawned = thread::Builder::new().name("storage-check".into()).spawn(move || check.finish(count));
        match spawned {
            Ok(thread) => {
                let mut running = self.running.lock();
                running.retain(|thread| !thread.is_finished());
                running.push(thread);
            }
            Err(error) => error!(%error, "the store's records are not counted: no thread could be started"),
        }
    }

    fn finish(&self, mut count: Count) {
        give_way();
        let mut said = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            match count.page() {
                Ok(false) => {}
                Ok(true) => {
                    match count.verdict() {
                        Ok(()) => info!(records = count.written.count(), "all records are there"),
                        Err(error) => self.found(&error),
                    }
                    return;
                }
                Err(error @ StorageError::Corrupt { .. }) => return self.found(&error),
                Err(_) if count.snapshot.is_given_up() => return self.again.store(true, Ordering::Relaxed),
                Err(error) => {
                    tracing::warn!(%error, "the store's records cannot be counted now; it is tried again");
                    thread::sleep(AGAIN);
                }
            }
            if said.elapsed() > SAY {
                said = Instant::now();
                info!(counted = count.counted.count(), of = count.written.count(), "the store's records are being counted");
            }
        }
    }

    /// From now on nothing is served: what is missing must not read as absent.
    fn found(&self, error: &StorageError) {
        error!(%error, "acknowledged records are lost; the store serves nothing any more");
        let reason = match error {
            StorageError::Corrupt { key, reason } if !key.is_empty() => format!("{key:?}: {reason}"),
            StorageError::Corrupt { reason, .. } => reason.clone(),
            other => other.to_string(),
        };
        let _ = self.lost.set(reason);
    }
}

/// Lets requests, and at a start the way to the first of them, have the processors before the calling thread (setpriority(2), which
/// means one thread on Linux). A system that refuses that costs time and nothing else.
pub(super) fn give_way() {
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), BEHIND);
}

impl Count {
    /// Counts the next page; true at the end.
    fn page(&mut self) -> Result<bool, StorageError> {
        let (page, next) = self.snapshot.stored_page(PAGE.0, PAGE.1)?;
        for (key, framed) in &page {
            self.counted.add(weight(key, framed));
            if self.look_up && !self.snapshot.is_found(key)? {
                return Err(corrupt(key, "the engine's index does not lead to it; restore a backup".into()));
            }
        }
        let end = next.is_none();
        self.snapshot.pass(next);
        Ok(end)
    }

    /// Whether the count can be done `patience` after its beginning, at the rate that it has had so far.
    fn can_end_within(&self, patience: Duration, elapsed: Duration) -> bool {
        if elapsed < patience / PROBE {
            return true;
        }
        // What is left, by records; at least some are counted by then.
        let (counted, written) = (self.counted.count().max(1), self.written.count().max(1));
        elapsed < patience && elapsed.as_secs_f64() * written as f64 / counted as f64 <= patience.as_secs_f64()
    }

    fn verdict(&self) -> Result<(), StorageError> {
        match self.counted.differs(self.written) {
            None => Ok(()),
            Some(why) => Err(corrupt(b"", format!("{why}; restore a backup"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs};

    use super::{
        super::{Kind, Storage, Store, Txn, conformance::*},
        *,
    };
    use crate::secret::random_array;

    const RECORDS: usize = 1500;

    fn value(n: usize) -> Vec<u8> {
        format!("{n} ").repeat(60).into_bytes()
    }

    fn fill(store: &Store) {
        let commits: Vec<_> = (0..RECORDS).map(|n| store.commit(Txn::new().put(format!("k/{n}"), value(n)))).collect();
        commits.into_iter().for_each(|commit| assert!(now(commit).is_ok()));
    }

    fn wait(store: &Store) {
        let until = Instant::now() + Duration::from_secs(60);
        while store.is_being_checked() {
            assert!(Instant::now() < until, "the check does not end");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// With no patience at all, every check runs behind the opened store.
    fn impatient(kind: Kind) -> Bench {
        let mut bench = Bench::new(kind);
        bench.options.check_at_start = Duration::ZERO;
        bench
    }

    #[test]
    fn nobody_waits_for_a_count_that_will_not_end_in_time() {
        let bench = Bench::new(Kind::Sled);
        let store = bench.try_open().unwrap();
        fill(&store);
        let snapshot = now(store.snapshot()).unwrap();
        let mut counted = Census::default();
        (0..100u8).for_each(|n| counted.add(weight(&[n], b"")));
        let mut written = counted;
        (0..200u8).for_each(|n| written.add(weight(&[n, 1], b"")));
        let count = Count { snapshot, written, counted, look_up: false };
        let patience = Duration::from_millis(800);
        let can_end = |milliseconds| count.can_end_within(patience, Duration::from_millis(milliseconds));
        // Too early to tell; then a third is counted.
        assert!(can_end(0) && can_end(99));
        assert!(can_end(100) && can_end(266));
        assert!(!can_end(267) && !can_end(800));
        assert!(!count.can_end_within(Duration::ZERO, Duration::ZERO));
    }

    #[test]
    fn a_count_behind_the_start_gives_way_and_nothing_else_does() {
        let nice = || rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap();
        let before = nice();
        let behind = thread::spawn(move || {
            give_way();
            nice()
        });
        assert_eq!(behind.join().unwrap(), BEHIND);
        assert_eq!(nice(), before);
    }

    fn an_intact_store_is_served_at_once_and_found_whole(kind: Kind) {
        let bench = impatient(kind);
        let store = bench.try_open().unwrap();
        fill(&store);
        drop(store);
        let store = bench.try_open().unwrap();
        assert_eq!(store.get("k/7").unwrap().unwrap().value, value(7));
        // Writes go on while it counts, and do not disturb it.
        for n in 0..50 {
            commit(&store, Txn::new().put(format!("k/{n}"), b"new".to_vec()).delete(format!("k/{}", 1499 - n))).unwrap();
        }
        wait(&store);
        assert_eq!(store.get("k/7").unwrap().unwrap().value, b"new");
        assert_eq!(store.scan("k/", None, usize::MAX).unwrap().len(), RECORDS - 50);
    }

    #[test]
    fn an_intact_sled_store_is_served_at_once_and_found_whole() {
        an_intact_store_is_served_at_once_and_found_whole(Kind::Sled);
    }

    #[test]
    fn an_intact_redb_store_is_served_at_once_and_found_whole() {
        an_intact_store_is_served_at_once_and_found_whole(Kind::Redb);
    }

    fn a_loss_is_found_behind_the_start_and_stops_everything(kind: Kind) {
        let bench = impatient(kind);
        let store = bench.try_open().unwrap();
        fill(&store);
        // Behind the store's back: the record is gone, and so is every trace of it but the census.
        store.backend().apply(vec![(b"k/77".to_vec(), None)]).unwrap();
        drop(store);
        let store = bench.try_open().unwrap();
        wait(&store);
        for answer in [store.get("k/77").map(drop), store.get("k/1").map(drop), store.list("", None, 9).map(drop)] {
            let error = answer.unwrap_err();
            assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
            assert!(error.to_string().contains("1499 records although 1500 were acknowledged"), "{error}");
        }
        assert!(matches!(commit(&store, Txn::new().put("a", Vec::new())), Err(StorageError::Corrupt { .. })));
        assert!(matches!(now(store.snapshot()), Err(StorageError::Corrupt { .. })));
        drop(store);
        let patient = Bench { options: Default::default(), ..bench };
        assert!(matches!(patient.try_open(), Err(StorageError::Corrupt { .. })), "found before anything is served");
    }

    #[test]
    fn a_loss_in_sled_is_found_behind_the_start_and_stops_everything() {
        a_loss_is_found_behind_the_start_and_stops_everything(Kind::Sled);
    }

    #[test]
    fn a_loss_in_redb_is_found_behind_the_start_and_stops_everything() {
        a_loss_is_found_behind_the_start_and_stops_everything(Kind::Redb);
    }

    /// `SOS_ROT_ROUNDS` sets how often the file is damaged at a random place.
    fn damage_is_found_behind_the_start(kind: Kind, file: &str) {
        let rounds: usize = std::env::var("SOS_ROT_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(8);
        let bench = impatient(kind);
        let store = bench.try_open().unwrap();
        fill(&store);
        drop(store);
        let good = fs::read(bench.folder.path().join(file)).unwrap();
        let mut tally: BTreeMap<&str, usize> = BTreeMap::new();
        for _ in 0..rounds {
            let damaged = impatient(kind);
            for entry in fs::read_dir(bench.folder.path()).unwrap().map(Result::unwrap) {
                if entry.path().is_file() {
                    fs::copy(entry.path(), damaged.folder.path().join(entry.file_name())).unwrap();
                }
            }
            let mut bytes = good.clone();
            let at = usize::try_from(u64::from_be_bytes(random_array()) % good.len() as u64).unwrap();
            bytes[at..].iter_mut().take(8).for_each(|byte| *byte ^= 0xa5);
            fs::write(damaged.folder.path().join(file), bytes).unwrap();
            let Ok(store) = damaged.try_open() else {
                *tally.entry("refused at the opening").or_default() += 1;
                continue;
            };
            wait(&store);
            let mut outcome = "no record touched";
            for n in 0..RECORDS {
                match store.get(&format!("k/{n}")) {
                    Ok(Some(record)) => assert!(record.value == value(n), "record {n} is another after damage at {at}"),
                    Ok(None) => panic!("record {n} reads as absent after damage at {at} of {}", good.len()),
                    Err(StorageError::Corrupt { key, .. }) if !key.is_empty() => outcome = "errors that name keys",
                    Err(_) => outcome = "stopped by the check",
                }
            }
            *tally.entry(outcome).or_default() += 1;
        }
        eprintln!("{kind:?}: {tally:?}");
    }

    #[test]
    fn damage_to_sled_is_found_behind_the_start() {
        damage_is_found_behind_the_start(Kind::Sled, "db");
    }

    #[test]
    fn damage_to_redb_is_found_behind_the_start() {
        damage_is_found_behind_the_start(Kind::Redb, "sos.redb");
    }
}
