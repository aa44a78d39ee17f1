//! The journal with an engine behind it that does as it is told.

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
        self.backend = Some(Journaled::with_room(self.engine.clone(), self.place.path(), false, free).unwrap());
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

/// Bytes of the journal's files.
fn journal(stand: &Stand) -> u64 {
    let files = std::fs::read_dir(stand.place.path().join("journal")).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

/// Overwriting the same few keys never fills memory, and takes room in the journal each time.
#[test]
fn steady_overwriting_is_given_to_the_engine_and_leaves_a_small_journal() {
    let mut stand = Stand::new();
    for number in 0..1000u32 {
        stand.write(vec![(vec![(number % 5) as u8], value((number % 251) as u8))]).unwrap();
        let bytes = journal(&stand);
        assert!(bytes < 2 * APPENDED_AT_MOST + (1 << 20), "{bytes} bytes after {number} writes");
    }
    let batches = stand.engine.batches.load(Ordering::SeqCst);
    assert!((3..=13).contains(&batches), "{batches} batches for 100 MB");
    stand.crash();
    assert_eq!(stand.backend().get(&[4]).unwrap(), value((999 % 251) as u8));
    let until = Instant::now() + CALM * 20;
    while journal(&stand) > 2 * KEPT_CALM {
        assert!(Instant::now() < until, "{} bytes are kept", journal(&stand));
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(stand.engine.get(&[4]).unwrap(), value((999 % 251) as u8));
    assert_eq!(stand.all(&[]).len(), 5);
}

#[test]
fn writers_wait_for_an_engine_that_is_behind_before_the_journal_grows_without_end() {
    let mut stand = Stand::new();
    stand.engine.failing.store(true, Ordering::SeqCst);
    let mut kept = 0u32;
    while stand.write(vec![(vec![7], value((kept % 251) as u8))]).is_ok() {
        kept += 1;
        assert!(kept < 1000, "the journal grows without end");
    }
    assert!(journal(&stand) < APPENDED + APPENDED_AT_MOST + (1 << 20), "{}", journal(&stand));
    // Deletions have room still.
    stand.write(vec![(vec![8], None)]).unwrap();
    assert_eq!(stand.backend().get(&[7]).unwrap(), value(((kept - 1) % 251) as u8));
    stand.engine.failing.store(false, Ordering::SeqCst);
    stand.backend().reopen().unwrap();
    stand.write(vec![(vec![7], value(9))]).unwrap();
    stand.backend().apply(Vec::new()).unwrap();
    assert_eq!(stand.engine.get(&[7]).unwrap(), value(9));
    assert!(journal(&stand) <= 2 * KEPT);
}

#[test]
fn what_is_written_slowly_goes_to_the_engine_after_some_time() {
    let mut stand = Stand::new();
    stand.write(vec![(vec![1], value(1))]).unwrap();
    // As if one write a second had followed.
    stand.backend().shared.state.lock().since = Instant::now().checked_sub(OLD);
    stand.write(vec![(vec![2], value(2))]).unwrap();
    let until = Instant::now() + CALM * 20;
    while stand.engine.get(&[1]).unwrap().is_none() {
        stand.backend().shared.state.lock().batches += 1;
        assert!(Instant::now() < until, "it stayed in memory");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Room comes back without a further write.
#[test]
fn on_a_full_disk_the_journal_is_cut_when_the_engine_has_what_it_held() {
    let mut stand = Stand::new();
    stand.engine.room.store(TIGHT, Ordering::SeqCst);
    for number in 0..70u8 {
        stand.write(vec![(vec![7], value(number))]).unwrap();
    }
    assert!(journal(&stand) > 6 << 20);
    let until = Instant::now() + CALM * 20;
    while journal(&stand) > 0 {
        assert!(Instant::now() < until, "{} bytes are kept", journal(&stand));
        thread::sleep(Duration::from_millis(10));
    }
    stand.crash();
    assert_eq!(stand.backend().get(&[7]).unwrap(), value(69));
}

#[test]
fn without_the_note_of_what_was_acknowledged_the_journal_must_have_lost_nothing() {
    let mut stand = Stand::new();
    for number in 0..3 {
        stand.write(vec![(vec![number], value(number))]).unwrap();
    }
    stand.engine.failing.store(true, Ordering::SeqCst);
    stand.backend = None;
    let start =
        |unmarked| Journaled::with_room(stand.engine.clone(), stand.place.path(), unmarked, Box::new(|| u64::MAX)).map(drop);
    start(true).unwrap();
    let one = stand.place.path().join("journal/one");
    let mut bytes = std::fs::read(&one).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&one, bytes).unwrap();
    let Err(Fault::Corrupt(why)) = start(true) else { panic!("it is served") };
    assert!(why.contains("not whole") && why.contains("\"acknowledged\""), "{why}");
    // With the note it is found out from there.
    start(false).unwrap();
    std::fs::remove_file(one).unwrap();
    let Err(Fault::Corrupt(why)) = start(true) else { panic!("it is served") };
    assert!(why.contains("missing"), "{why}");
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
