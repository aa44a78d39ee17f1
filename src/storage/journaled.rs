//! An engine behind a journal: a commit is one append and one sync, whatever the engine takes to write.
//!
//! A batch is durable when the journal has it ([`super::journal`]) and is kept in memory from then on ([`super::recent`]). When
//! some megabytes have gathered, or nothing was written for a moment, they are frozen and a thread gives them to the engine as one
//! batch of its own, while the other file of the journal takes what is written next. So an engine that needs many writes, two syncs
//! or some milliseconds for a commit does so a few times a second, for thousands of records, and nobody waits for it.
//!
//! Readers look into memory first. What moves from memory to the engine is the same in both, so a look-up needs no lock over
//! both; a visit that finds that something moved before it began begins again.
//!
//! When the engine fails, nothing is lost: what is frozen stays in memory and in its journal until the engine was opened
//! again, which [`Backend::is_failing`] asks for. On a full disk it is given in small parts, deletions first, and tried again
//! every second.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use parking_lot::{Condvar, Mutex, RwLock};
use tracing::error;

use super::{
    Version,
    backend::{Backend, Before, Fault, Step, Trust, Write},
    frame,
    group::SEQUENCE,
    journal::Journal,
    recent::{Map, Merge, Recent, Value},
    space::free_at,
};
use crate::crashpoint::reach;

/// So much is frozen and given to the engine at once.
const TOGETHER: usize = 2 << 20;

/// Writers wait for the engine when so much has gathered, or twice as much where they only delete.
const AT_MOST: usize = 8 << 20;

/// Entries that the engine is given at once on a full disk.
const PART: usize = 128;

/// Bytes that an engine may write for an entry beside the entry itself, and for a batch of any size.
const PAGES: usize = 8 << 10;
const SPARE: u64 = 1 << 20;

/// What was written goes to the engine when nothing more came for so long.
const CALM: Duration = Duration::from_secs(1);

/// An engine with its journal.
pub(super) struct Journaled<E: Backend> {
    shared: Arc<Shared<E>>,
    mover: Option<JoinHandle<()>>,
}

struct Shared<E> {
    engine: E,
    /// Bytes that are free on the file system.
    free: Box<dyn Fn() -> u64 + Send + Sync>,
    /// Locked before `recent` where both are.
    journal: Mutex<Journal>,
    recent: RwLock<Recent>,
    /// Held while the engine's files change.
    changing: Mutex<()>,
    state: Mutex<State>,
    /// The mover has something to do, or has done it.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Something was frozen.
    wanted: bool,
    /// Batches since the mover last looked.
    batches: u64,
    /// Why the engine takes nothing until it is opened again.
    failed: Option<Fault>,
    /// That it takes nothing stands in the log already.
    told: bool,
    stopping: bool,
}

impl<E: Backend> Journaled<E> {
    /// Takes an open engine whose folder is `store`, and what its journal has beyond it.
    pub(super) fn start(engine: E, store: &Path) -> Result<Self, Fault> {
        let folder = store.to_owned();
        Self::with_room(engine, store, Box::new(move || free_at(&folder)))
    }

    fn with_room(engine: E, store: &Path, free: Box<dyn Fn() -> u64 + Send + Sync>) -> Result<Self, Fault> {
        let mut journal = Journal::open(store)?;
        let found = journal.read(version_of(&engine)?)?;
        let recent = Recent::found(found.older, found.newer, 0);
        let state = State { wanted: recent.frozen().is_some(), batches: 1, ..State::default() };
        let shared = Arc::new(Shared {
            engine,
            free,
            journal: Mutex::new(journal),
            recent: RwLock::new(recent),
            changing: Mutex::new(()),
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let moving = Arc::clone(&shared);
        let mover = thread::Builder::new().name("storage-mover".into()).spawn(move || moving.run())?;
        Ok(Self { shared, mover: Some(mover) })
    }
}

impl<E: Backend> Drop for Journaled<E> {
    fn drop(&mut self) {
        self.shared.state.lock().stopping = true;
        self.shared.changed.notify_all();
        if let Some(mover) = self.mover.take() {
            let _ = mover.join();
        }
    }
}

/// The version that the engine ends at, 0 when it is empty.
fn version_of(engine: &impl Backend) -> Result<Version, Fault> {
    let framed = engine.get(SEQUENCE)?;
    framed.map_or(Ok(0), |framed| frame::decode_version(SEQUENCE, &framed).map_err(Fault::Corrupt))
}

impl<E: Backend> Shared<E> {
    /// The mover's thread.
    fn run(&self) {
        let mut seen = 0;
        loop {
            let mut state = self.state.lock();
            if !state.wanted && !state.stopping {
                self.changed.wait_for(&mut state, CALM);
            }
            if let Some(fault) = &state.failed {
                // What is frozen has its journal.
                if state.stopping {
                    return;
                }
                let full = matches!(fault, Fault::Full(_));
                let waited = self.changed.wait_for(&mut state, CALM).timed_out();
                if full && waited {
                    (state.failed, state.wanted) = (None, true);
                }
                continue;
            }
            let (wanted, stopping) = (std::mem::take(&mut state.wanted), state.stopping);
            let calm = state.batches == seen;
            seen = state.batches;
            drop(state);
            // Who appends may be waiting for this thread.
            if !wanted
                && (calm || stopping)
                && let Some(mut journal) = self.journal.try_lock()
            {
                self.freeze(&mut journal);
            }
            let moved = self.move_frozen();
            if stopping && !(moved && self.recent.read().is_active()) {
                return;
            }
        }
    }

    /// Sends what was written since on its way, unless something is on it. The journal goes on in its other file.
    fn freeze(&self, journal: &mut Journal) -> bool {
        let mut recent = self.recent.write();
        if recent.frozen().is_some() || !recent.is_active() {
            return false;
        }
        recent.freeze();
        journal.switch();
        reach("journal-switched");
        true
    }

    /// Gives what is frozen to the engine; false when it failed.
    fn move_frozen(&self) -> bool {
        let changing = self.changing.lock();
        let Some(frozen) = self.recent.read().frozen() else { return true };
        let applied = match self.has_room(frozen.iter()) {
            true => self.give(frozen.iter()),
            false => self.give_in_parts(&frozen),
        };
        reach("engine-applied");
        let moved = applied.is_ok();
        match applied {
            Ok(()) => {
                self.recent.write().moved();
                self.state.lock().told = false;
            }
            Err(fault) => {
                let mut state = self.state.lock();
                if !std::mem::replace(&mut state.told, true) {
                    let text = "the store's engine does not take what was written: it is kept in the journal and tried again; look at the disk and its free space";
                    error!(?fault, "{text}");
                }
                state.failed = Some(fault);
            }
        }
        drop(changing);
        self.changed.notify_all();
        moved
    }

    fn give<'m>(&self, entries: impl Iterator<Item = (&'m Vec<u8>, &'m Value)>) -> Result<(), Fault> {
        let not_known = |fault| match fault {
            // Others have filled the disk meanwhile. The engine is not to be used before it was opened again.
            Fault::Full(why) => Fault::Io(why),
            other => other,
        };
        let batch = entries.map(|(key, value)| (key.clone(), value.as_deref().map(<[u8]>::to_vec))).collect();
        // Readers find all of these keys in memory: the engine need not remember what they held.
        catch_unwind(AssertUnwindSafe(|| self.engine.apply_over(batch, Before::new())))
            .unwrap_or_else(|_panic| Err(Fault::Io("the engine panicked".into())))
            .map_err(not_known)
    }

    /// Whether the disk has room for what an engine may write for these entries: a page for each, and the pages above.
    fn has_room<'m>(&self, entries: impl Iterator<Item = (&'m Vec<u8>, &'m Value)>) -> bool {
        let needed =
            entries.map(|(key, value)| PAGES + 2 * (key.len() + value.as_ref().map_or(0, |value| value.len()))).sum::<usize>();
        (self.free)() >= u64::try_from(needed).unwrap_or(u64::MAX).saturating_add(SPARE)
    }

    /// On a full disk: what makes room first, and so little at once that the room of the last part serves the next. The sequence
    /// sorts behind all other keys and so comes last; until it is there the journal is what counts.
    fn give_in_parts(&self, frozen: &Map) -> Result<(), Fault> {
        let (deleted, written): (Vec<_>, Vec<_>) = frozen.iter().partition(|(_, value)| value.is_none());
        let mut parts = deleted.chunks(PART).chain(written.chunks(PART));
        parts.try_for_each(|part| match self.has_room(part.iter().copied()) {
            true => self.give(part.iter().copied()),
            false => Err(Fault::Full("the disk has no room for what was written; it is kept in the journal".into())),
        })
    }

    /// Gives all that was written to the engine.
    fn move_all(&self, journal: &mut Journal) -> Result<(), Fault> {
        while !self.recent.read().is_empty() {
            self.freeze(journal);
            if !self.move_frozen() {
                return Err(self.state.lock().failed.clone().unwrap_or_else(|| Fault::Io("the engine takes nothing".into())));
            }
        }
        Ok(())
    }

    /// Before a batch: freezes when enough has gathered, and waits while there is too much.
    fn gathered(&self, journal: &mut Journal, batch: &[Write]) -> Result<(), Fault> {
        let only_deletes = batch.iter().all(|(key, value)| value.is_none() || key == SEQUENCE);
        let at_most = if only_deletes { AT_MOST * 2 } else { AT_MOST };
        let mut state = self.state.lock();
        state.batches += 1;
        while self.recent.read().bytes() >= TOGETHER {
            if self.freeze(journal) {
                state.wanted = true;
                self.changed.notify_all();
                break;
            }
            if self.recent.read().bytes() < at_most {
                break;
            }
            if let Some(fault) = &state.failed {
                return Err(fault.clone());
            }
            self.changed.wait_for(&mut state, CALM);
        }
        Ok(())
    }
}

impl<E: Backend> Backend for Journaled<E> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        let recent = self.shared.recent.read().get(key);
        match recent {
            Some(value) => Ok(value.map(|value| value.to_vec())),
            None => self.shared.engine.get(key),
        }
    }

    fn visit(&self, from: &[u8], visitor: &mut dyn FnMut(&[u8], &[u8]) -> Step) -> Result<(), Fault> {
        self.visit_within(b"", from, visitor)
    }

    /// Shows memory as of the beginning, and the engine as it shows itself.
    fn visit_within(&self, prefix: &[u8], from: &[u8], visitor: &mut dyn FnMut(&[u8], &[u8]) -> Step) -> Result<(), Fault> {
        loop {
            let (recent, moves) = {
                let recent = self.shared.recent.read();
                (recent.within(prefix, from), recent.moves())
            };
            // What moved before the engine was looked at would be missed, or seen as it became later.
            let moved = || self.shared.recent.read().moves() != moves;
            let (mut merge, mut begun, mut again) = (Merge::new(recent, from, visitor), false, false);
            self.shared.engine.visit(from, &mut |key, value| {
                if !begun && moved() {
                    again = true;
                    return Step::Stop;
                }
                begun = true;
                merge.meet(key, value)
            })?;
            if !again && (begun || !moved()) {
                merge.finish();
                return Ok(());
            }
        }
    }

    /// A batch without a sequence is none of the committer's: the engine takes it at once.
    fn apply(&self, batch: Vec<Write>) -> Result<(), Fault> {
        let mut journal = self.shared.journal.lock();
        let sequence = batch.iter().rev().find(|(key, _)| key == SEQUENCE).and_then(|(_, value)| value.as_deref());
        let Some(sequence) = sequence else {
            self.shared.move_all(&mut journal)?;
            return self.shared.engine.apply(batch);
        };
        let version = frame::decode_version(SEQUENCE, sequence);
        let version = version.map_err(|why| Fault::Io(format!("the version of a batch: {why}")))?;
        self.shared.gathered(&mut journal, &batch)?;
        journal.append(version, &batch)?;
        self.shared.recent.write().insert(batch);
        Ok(())
    }

    fn trust(&self) -> Trust {
        self.shared.engine.trust()
    }

    fn is_failing(&self) -> bool {
        // A full disk is waited for.
        matches!(&self.shared.state.lock().failed, Some(fault) if !matches!(fault, Fault::Full(_)))
    }

    fn bytes_on_disk(&self) -> u64 {
        self.shared.engine.bytes_on_disk()
    }

    fn clear_remains(&self) {
        self.shared.engine.clear_remains();
    }

    fn begin_copy(&self, bytes: u64) -> Result<(), Fault> {
        self.shared.engine.begin_copy(bytes)
    }

    fn write_copy(&self, batch: Vec<Write>) -> Result<(), Fault> {
        self.shared.engine.write_copy(batch)
    }

    fn settle_copy(&self) -> Result<bool, Fault> {
        self.shared.engine.settle_copy()
    }

    /// The copy has all that was written, also what is only in memory. What is frozen must not follow: it would put back what was written
    /// over it since.
    fn let_copy_take_over(&self) -> Result<(), Fault> {
        let _changing = self.shared.changing.lock();
        self.shared.engine.let_copy_take_over()?;
        self.shared.recent.write().moved();
        Ok(())
    }

    fn abandon_copy(&self) {
        self.shared.engine.abandon_copy();
    }

    fn reopen(&self) -> Result<(), Fault> {
        let shared = &self.shared;
        let mut journal = shared.journal.lock();
        let _changing = shared.changing.lock();
        shared.engine.reopen()?;
        let found = journal.read(version_of(&shared.engine)?)?;
        let mut recent = shared.recent.write();
        *recent = Recent::found(found.older, found.newer, recent.moves());
        let mut state = shared.state.lock();
        state.failed = None;
        state.wanted = recent.frozen().is_some();
        shared.changed.notify_all();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::atomic::{AtomicBool, AtomicU64, Ordering},
    };

    use proptest::prelude::*;

    use super::{super::inmem::Map, *};

    /// An engine in memory that keeps over a reopening what it had taken, and takes nothing while it is told so.
    #[derive(Clone, Default)]
    struct Engine {
        map: Arc<Map>,
        failing: Arc<AtomicBool>,
        batches: Arc<AtomicU64>,
        /// Bytes that are free on its disk, when it is not 0.
        room: Arc<AtomicU64>,
    }

    impl Backend for Engine {
        fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
            self.map.get(key)
        }

        fn visit(&self, from: &[u8], visitor: &mut dyn FnMut(&[u8], &[u8]) -> Step) -> Result<(), Fault> {
            self.map.visit(from, visitor)
        }

        fn apply(&self, batch: Vec<Write>) -> Result<(), Fault> {
            if self.failing.load(Ordering::SeqCst) {
                return Err(Fault::Io("planned".into()));
            }
            self.batches.fetch_add(1, Ordering::SeqCst);
            self.map.apply(batch)
        }

        fn let_copy_take_over(&self) -> Result<(), Fault> {
            Ok(())
        }

        fn reopen(&self) -> Result<(), Fault> {
            Ok(())
        }
    }

    struct Stand {
        engine: Engine,
        place: tempfile::TempDir,
        backend: Option<Journaled<Engine>>,
        version: Version,
    }

    impl Stand {
        fn new() -> Self {
            let (engine, place) = (Engine::default(), tempfile::tempdir().unwrap());
            let mut stand = Self { engine, place, backend: None, version: 0 };
            stand.start();
            stand
        }

        fn start(&mut self) {
            let room = Arc::clone(&self.engine.room);
            let free = Box::new(move || room.load(Ordering::SeqCst).wrapping_sub(1));
            self.backend = Some(Journaled::with_room(self.engine.clone(), self.place.path(), free).unwrap());
        }

        fn backend(&self) -> &Journaled<Engine> {
            self.backend.as_ref().unwrap()
        }

        fn write(&mut self, mut batch: Vec<Write>) -> Result<(), Fault> {
            self.version += 1;
            batch.push((SEQUENCE.to_vec(), Some(frame::encode(SEQUENCE, self.version, b""))));
            self.backend().apply(batch)
        }

        /// As after a kill: nothing goes to the engine any more.
        fn crash(&mut self) {
            let failing = self.engine.failing.swap(true, Ordering::SeqCst);
            self.backend = None;
            self.engine.failing.store(failing, Ordering::SeqCst);
            self.start();
        }

        fn all(&self, from: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
            let mut found = BTreeMap::new();
            let visited = self.backend().visit(from, &mut |key, value| {
                let is_new = key == SEQUENCE || found.insert(key.to_vec(), value.to_vec()).is_none();
                assert!(is_new, "{key:?} was shown twice");
                Step::Next
            });
            visited.unwrap();
            found
        }
    }

    #[derive(Clone, Debug)]
    enum Act {
        Write(Vec<(u8, Option<u16>)>),
        Move,
        Reopen,
        Crash,
    }

    fn act() -> impl Strategy<Value = Act> {
        let writes = prop::collection::vec((any::<u8>(), any::<Option<u16>>()), 1..40);
        prop_oneof![6 => writes.prop_map(Act::Write), 2 => Just(Act::Move), 1 => Just(Act::Reopen), 1 => Just(Act::Crash)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn journal_memory_and_engine_are_one_map(acts in prop::collection::vec(act(), 1..30), from: u8) {
            let mut stand = Stand::new();
            let mut model = BTreeMap::new();
            for act in acts {
                match act {
                    Act::Write(writes) => {
                        let batch = writes.into_iter().map(|(key, value)| (vec![key], value.map(|value| value.to_be_bytes().to_vec())));
                        let batch: Vec<Write> = batch.collect();
                        for (key, value) in batch.clone() {
                            match value {
                                Some(value) => drop(model.insert(key, value)),
                                None => drop(model.remove(&key)),
                            }
                        }
                        stand.write(batch).unwrap();
                    }
                    Act::Move => stand.backend().apply(Vec::new()).unwrap(),
                    Act::Reopen => stand.backend().reopen().unwrap(),
                    Act::Crash => stand.crash(),
                }
                prop_assert_eq!(stand.all(&[]), model.clone());
                prop_assert_eq!(stand.all(&[from]), model.range(vec![from]..).map(|(k, v)| (k.clone(), v.clone())).collect());
                for key in 0..=255 {
                    prop_assert_eq!(stand.backend().get(&[key]).unwrap(), model.get(&vec![key]).cloned());
                }
            }
        }

        #[test]
        fn a_visit_skips_and_stops_as_it_is_told(keys in prop::collection::btree_set(any::<u8>(), 0..200), moved in 0usize..200, step in 1u8..20) {
            let mut stand = Stand::new();
            for (at, key) in keys.iter().enumerate() {
                if at == moved {
                    stand.backend().apply(Vec::new()).unwrap();
                }
                stand.write(vec![(vec![*key], Some(vec![*key]))]).unwrap();
            }
            let (mut seen, mut expected, mut next) = (Vec::new(), Vec::new(), Some(0u8));
            while let Some(key) = next.and_then(|next| keys.range(next..).next()) {
                expected.push(*key);
                next = key.checked_add(step);
            }
            stand.backend().visit(&[], &mut |key, _| {
                if key == SEQUENCE {
                    return Step::Stop;
                }
                seen.push(key[0]);
                key[0].checked_add(step).map_or(Step::Stop, |next| Step::SkipTo(vec![next]))
            }).unwrap();
            prop_assert_eq!(seen, expected);
        }
    }

    fn value(byte: u8) -> Option<Vec<u8>> {
        Some(vec![byte; 100_000])
    }

    #[test]
    fn what_has_gathered_goes_to_the_engine_in_few_batches() {
        let mut stand = Stand::new();
        for number in 0..100u8 {
            stand.write(vec![(vec![number], value(number))]).unwrap();
        }
        stand.backend().apply(Vec::new()).unwrap();
        let batches = stand.engine.batches.load(Ordering::SeqCst);
        assert!((2..=12).contains(&batches), "{batches} batches");
        assert_eq!(stand.engine.get(&[99]).unwrap(), value(99));
    }

    #[test]
    fn what_is_left_goes_to_the_engine_when_the_store_is_closed_or_calm() {
        let mut stand = Stand::new();
        stand.write(vec![(vec![1], value(1))]).unwrap();
        stand.backend = None;
        assert_eq!(stand.engine.get(&[1]).unwrap(), value(1));
        stand.start();
        stand.write(vec![(vec![2], value(2))]).unwrap();
        let until = std::time::Instant::now() + CALM * 20;
        while stand.engine.get(&[2]).unwrap().is_none() {
            assert!(std::time::Instant::now() < until, "it stayed in memory");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn while_the_engine_takes_nothing_writes_go_on_until_memory_is_full_and_nothing_is_lost() {
        let mut stand = Stand::new();
        stand.engine.failing.store(true, Ordering::SeqCst);
        let mut kept = 0u8;
        while stand.write(vec![(vec![kept], value(kept))]).is_ok() {
            kept += 1;
            assert!(kept < 250, "memory grows without end");
        }
        assert!(kept > 80, "{kept}");
        assert!(stand.backend().is_failing());
        let holds = |stand: &Stand| assert!((0..kept).all(|n| stand.backend().get(&[n]).unwrap() == value(n)));
        holds(&stand);
        stand.crash();
        holds(&stand);
        stand.engine.failing.store(false, Ordering::SeqCst);
        stand.backend().reopen().unwrap();
        assert!(!stand.backend().is_failing());
        stand.backend().apply(Vec::new()).unwrap();
        holds(&stand);
        assert_eq!(stand.engine.get(&[kept - 1]).unwrap(), value(kept - 1));
    }

    #[test]
    fn a_full_disk_is_given_small_parts_and_waited_for() {
        let mut stand = Stand::new();
        stand.engine.room.store(1, Ordering::SeqCst);
        let numbers = || (0..1000u16).map(|number| number.to_be_bytes().to_vec());
        stand.write(numbers().map(|key| (key, Some(vec![7]))).collect()).unwrap();
        assert!(matches!(stand.backend().apply(Vec::new()), Err(Fault::Full(_))));
        assert!(!stand.backend().is_failing(), "it is waited for");
        stand.write(numbers().step_by(2).map(|key| (key, None)).collect()).unwrap();
        assert_eq!(stand.all(&[]).len(), 500);
        stand.crash();
        assert_eq!(stand.all(&[]).len(), 500);
        stand.engine.room.store(SPARE + 2 * (PART * PAGES) as u64, Ordering::SeqCst);
        let until = std::time::Instant::now() + CALM * 20;
        while stand.engine.get(SEQUENCE).unwrap() != Some(frame::encode(SEQUENCE, stand.version, b"")) {
            assert!(std::time::Instant::now() < until, "it stayed in memory");
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(stand.all(&[]).len(), 500);
    }

    #[test]
    fn what_a_copy_has_taken_over_is_not_put_back_by_what_was_on_its_way() {
        let mut stand = Stand::new();
        stand.engine.room.store(1, Ordering::SeqCst);
        let key = || b"key".to_vec();
        stand.write(vec![(key(), Some(vec![1]))]).unwrap();
        assert!(matches!(stand.backend().apply(Vec::new()), Err(Fault::Full(_))), "it is on its way");
        stand.write(vec![(key(), Some(vec![2]))]).unwrap();
        // The copy, as a compaction makes it.
        let sequence = frame::encode(SEQUENCE, stand.version, b"");
        stand.engine.map.apply(vec![(key(), Some(vec![2])), (SEQUENCE.to_vec(), Some(sequence))]).unwrap();
        stand.backend().let_copy_take_over().unwrap();
        assert!(stand.backend().shared.recent.read().frozen().is_none());
        stand.crash();
        assert_eq!(stand.backend().get(b"key").unwrap(), Some(vec![2]));
        stand.engine.room.store(0, Ordering::SeqCst);
        stand.write(vec![(key(), Some(vec![3]))]).unwrap();
        stand.backend().apply(Vec::new()).unwrap();
        assert_eq!(stand.engine.get(b"key").unwrap(), Some(vec![3]));
    }
}
