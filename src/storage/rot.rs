//! Files that were damaged behind the engine's back: every record is right or an error, never absent.
//!
//! `SOS_ROT_ROUNDS` sets how often each engine's file is damaged at a random place.

use std::{collections::BTreeMap, fs, path::Path};

use super::{conformance::*, *};
use crate::secret::random_array;

const RECORDS: usize = 1500;

fn value(n: usize) -> Vec<u8> {
    format!("{n} ").repeat(60).into_bytes()
}

fn files(folder: &Path) -> Vec<fs::DirEntry> {
    fs::read_dir(folder).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file()).collect()
}

fn copy(bench: &Bench) -> Bench {
    let copy = Bench::new(bench.kind);
    fs::create_dir(copy.folder.path().join("blobs")).unwrap();
    for folder in ["", "blobs"] {
        let from = bench.folder.path().join(folder);
        for entry in if from.exists() { files(&from) } else { Vec::new() } {
            fs::copy(entry.path(), copy.folder.path().join(folder).join(entry.file_name())).unwrap();
        }
    }
    copy
}

/// A place below `len`, at random.
fn below(len: usize) -> usize {
    usize::try_from(u64::from_be_bytes(random_array()) % len as u64).unwrap()
}

/// What became of the store, in a word; the test fails where a record is absent or another.
fn outcome(bench: &Bench, done: &str) -> &'static str {
    let store = match bench.try_open() {
        Ok(store) => store,
        Err(_) => return "refused at the opening",
    };
    let mut errors = false;
    for n in 0..RECORDS {
        match store.get(&format!("k/{n}")) {
            Ok(Some(record)) => assert!(record.value == value(n), "record {n} is another after {done}"),
            Ok(None) => panic!("record {n} reads as absent after {done}"),
            Err(_) => errors = true,
        }
    }
    match store.scan("k/", None, usize::MAX) {
        Ok(records) => assert_eq!(records.len(), RECORDS, "a scan leaves out records after {done}"),
        Err(_) => errors = true,
    }
    if errors { "errors at some records" } else { "no record touched" }
}

fn damage_is_told(kind: Kind, file: &str) {
    let rounds: usize = std::env::var("SOS_ROT_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(12);
    let bench = Bench::new(kind);
    let store = bench.try_open().unwrap();
    let commits: Vec<_> = (0..RECORDS).map(|n| store.commit(Txn::new().put(format!("k/{n}"), value(n)))).collect();
    commits.into_iter().for_each(|commit| assert!(now(commit).is_ok()));
    drop(store);
    let good = fs::read(bench.folder.path().join(file)).unwrap();
    assert_eq!(outcome(&copy(&bench), "nothing"), "no record touched");
    let mut tally: BTreeMap<&str, usize> = BTreeMap::new();
    for round in 0..rounds {
        let damaged = copy(&bench);
        let mut bytes = good.clone();
        let at = below(bytes.len());
        let done = if round % 4 == 3 {
            bytes.truncate(at);
            format!("a cut at {at} of {}", good.len())
        } else {
            bytes[at..].iter_mut().take(8).for_each(|byte| *byte ^= 0xa5);
            format!("damage at {at} of {}", good.len())
        };
        fs::write(damaged.folder.path().join(file), bytes).unwrap();
        *tally.entry(outcome(&damaged, &done)).or_default() += 1;
    }
    eprintln!("{kind:?}: {tally:?}");
}

#[test]
fn damage_to_the_file_of_sled_is_told() {
    damage_is_told(Kind::Sled, "db");
}

#[test]
fn damage_to_the_file_of_redb_is_told() {
    damage_is_told(Kind::Redb, "sos.redb");
}
