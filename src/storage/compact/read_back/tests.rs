//! What is seen of a copy that is not what was given to it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    super::super::{
        backend::{Records, Step, Write},
        inmem::Map,
    },
    *,
};

type Files = Arc<Mutex<BTreeMap<Vec<u8>, Vec<u8>>>>;

/// A copy in memory. A look-up may know less than the range does.
#[derive(Clone, Default)]
struct Fake {
    ranged: Files,
    /// Keys that a look-up misses, or finds other bytes at.
    missed: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// Each page waits for one of these.
    gate: Option<Arc<Mutex<std::sync::mpsc::Receiver<()>>>>,
}

impl Copied for Fake {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        let found = self.ranged.lock().get(key).cloned();
        Ok(self.missed.get(key).cloned().unwrap_or(found))
    }

    fn page(&self, from: &[u8], limit: usize, _bytes: usize) -> Result<Records, Fault> {
        if let Some(gate) = &self.gate {
            // Not for ever: who would let it go on may be waiting for this page.
            let _ = gate.lock().recv_timeout(Duration::from_millis(1));
        }
        let ranged = self.ranged.lock();
        Ok(ranged.range(from.to_vec()..).take(limit).map(|(key, framed)| (key.clone(), framed.clone())).collect())
    }
}

/// An engine whose copy it is.
struct Engine(Files);

impl Backend for Engine {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        Map::default().get(key)
    }

    fn visit(&self, _from: &[u8], _visitor: &mut dyn FnMut(&[u8], &[u8]) -> Step) -> Result<(), Fault> {
        Ok(())
    }

    fn apply(&self, _batch: Vec<Write>) -> Result<(), Fault> {
        Ok(())
    }

    fn write_copy(&self, batch: Vec<Write>) -> Result<(), Fault> {
        let mut files = self.0.lock();
        for (key, framed) in batch {
            match framed {
                Some(framed) => files.insert(key, framed),
                None => files.remove(&key),
            };
        }
        Ok(())
    }

    fn reopen(&self) -> Result<(), Fault> {
        Ok(())
    }
}

fn key(n: u32) -> Vec<u8> {
    format!("k/{n:04}").into_bytes()
}

fn framed(n: u32, version: u64) -> Vec<u8> {
    frame::encode(&key(n), version, b"value")
}

fn filled(records: u32) -> Fake {
    let fake = Fake::default();
    let mut files = fake.ranged.lock();
    (0..records).for_each(|n| drop(files.insert(key(n), framed(n, 1))));
    files.insert(SEQUENCE.to_vec(), frame::encode(SEQUENCE, 1, b"census"));
    drop(files);
    fake
}

fn count(fake: &Fake) -> Census {
    let mut census = Census::default();
    fake.ranged.lock().iter().filter(|(key, _)| *key != SEQUENCE).for_each(|(key, framed)| census.add(weight(key, framed)));
    census
}

fn end(mut read_back: ReadBack) -> Result<Census, Fault> {
    let until = Instant::now() + Duration::from_secs(60);
    while !read_back.is_over()? {
        assert!(Instant::now() < until, "it does not end");
        thread::sleep(Duration::from_millis(1));
    }
    Ok(read_back.into_counted())
}

fn found_wrong(fake: Fake) -> String {
    match end(ReadBack::start(Box::new(fake), true).unwrap()) {
        Err(Fault::Corrupt(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_whole_copy_is_counted_and_an_empty_one_too() {
    for records in [0, 1, 63, 64, 65, 1000] {
        let fake = filled(records);
        let counted = end(ReadBack::start(Box::new(fake.clone()), true).unwrap()).unwrap();
        assert_eq!((counted, counted.count()), (count(&fake), u64::from(records)));
    }
    assert_eq!(end(ReadBack::start(Box::new(Fake::default()), false).unwrap()).unwrap(), Census::default());
}

#[test]
fn what_is_missing_is_not_counted_and_what_is_wrong_is_named() {
    let fake = filled(300);
    let whole = count(&fake);
    fake.ranged.lock().remove(&key(200));
    let counted = end(ReadBack::start(Box::new(fake.clone()), true).unwrap()).unwrap();
    assert_eq!(counted.differs(whole).unwrap(), "there are 299 records although 300 were acknowledged");
    // An older one in its place.
    fake.ranged.lock().insert(key(200), frame::encode(&key(200), 7, b"value"));
    assert!(end(ReadBack::start(Box::new(fake), true).unwrap()).unwrap().differs(whole).is_some());

    let torn = filled(300);
    *torn.ranged.lock().get_mut(&key(200)).unwrap().last_mut().unwrap() ^= 1;
    let why = found_wrong(torn);
    assert!(why.contains("k/0200") && why.contains("checksum"), "{why}");

    let mut missed = filled(300);
    missed.missed.insert(key(299), None);
    let why = found_wrong(missed);
    assert!(why.contains("k/0299") && why.contains("a look-up does not find it"), "{why}");

    let mut other = filled(300);
    other.missed.insert(key(0), Some(framed(0, 9)));
    assert!(found_wrong(other).contains("finds another"));

    let cut = filled(300);
    cut.ranged.lock().remove(SEQUENCE);
    assert!(found_wrong(cut).contains("without the number"));
}

#[test]
fn what_is_written_meanwhile_is_counted_as_it_is_in_the_end() {
    let (go, gate) = std::sync::mpsc::channel();
    let fake = Fake { gate: Some(Arc::new(Mutex::new(gate))), ..filled(1000) };
    let engine = Engine(fake.ranged.clone());
    let read_back = ReadBack::start(Box::new(fake.clone()), true).unwrap();
    let mut version = 1;
    let mut change = |n: u32, gone: bool| {
        version += 1;
        let before = fake.ranged.lock().get(&key(n)).map(|framed| weight(&key(n), framed));
        let now = (!gone).then(|| framed(n, version));
        // The same key twice in one piece, as two batches may have it.
        let again = now.as_ref().map(|framed| weight(&key(n), framed));
        let twice = frame::encode(&key(n), version, b"another");
        vec![((key(n), now), before), ((key(n), (!gone).then_some(twice)), again)]
    };
    // Before, within and behind what was counted by then, at the end, and where nothing was.
    for round in 0..40u32 {
        if round % 2 == 0 {
            let _ = go.send(());
        }
        for n in [0, 30 * round, 999 - round, 1000 + round, 500] {
            read_back.write(&engine, change(n, (n + round) % 3 == 0)).unwrap();
        }
    }
    drop(go);
    let counted = end(read_back).unwrap();
    assert_eq!(counted, count(&fake));
}

#[test]
fn a_read_back_that_is_given_up_ends() {
    let (go, gate) = std::sync::mpsc::channel();
    let fake = Fake { gate: Some(Arc::new(Mutex::new(gate))), ..filled(1000) };
    let files = Arc::downgrade(&fake.ranged);
    let read_back = ReadBack::start(Box::new(fake), true).unwrap();
    go.send(()).unwrap();
    drop(go);
    drop(read_back);
    assert!(files.upgrade().is_none(), "nobody holds the copy any more");
}
