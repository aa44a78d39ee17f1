//! Files that were damaged behind the engine's back: every record is right or an error, never absent.
//!
//! `SOS_ROT_ROUNDS` sets how often each engine's file is damaged at a random place.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{conformance::*, *};
use crate::secret::random_array;

const RECORDS: usize = 1500;
/// Every so many records one is large: sled gives it a file of its own.
const LARGE: usize = 300;

fn value(n: usize) -> Vec<u8> {
    format!("{n} ").repeat(if n % LARGE == LARGE - 1 { 60_000 } else { 60 }).into_bytes()
}

/// Paths of all files, from the store's folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = PathBuf::from(entry.file_name());
        match entry.path().is_dir() {
            true => found.extend(files(&entry.path()).into_iter().map(|below| name.join(below))),
            false => found.push(name),
        }
    }
    found.sort();
    found
}

fn copy(bench: &Bench) -> Bench {
    let copy = Bench::new(bench.kind);
    for file in files(bench.folder.path()) {
        let to = copy.folder.path().join(&file);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(bench.folder.path().join(&file), to).unwrap();
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

const NOT_MET: &str = "no record touched";

fn damage_is_told(kind: Kind, main: &str, compacted: bool) {
    let rounds: usize = std::env::var("SOS_ROT_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(12);
    let bench = Bench::new(kind);
    let store = bench.try_open().unwrap();
    let commits: Vec<_> = (0..RECORDS).map(|n| store.commit(Txn::new().put(format!("k/{n}"), value(n)))).collect();
    commits.into_iter().for_each(|commit| assert!(now(commit).is_ok()));
    if compacted {
        now(store.compact()).unwrap();
    }
    drop(store);
    let files = files(bench.folder.path());
    let named = |name: &str| -> Vec<&PathBuf> { files.iter().filter(|file| file.ends_with(name)).collect() };
    let blobs: Vec<_> = files.iter().filter(|file| file.parent().is_some_and(|folder| folder.ends_with("blobs"))).collect();
    let (main, current) = (named(main), named("current"));
    assert_eq!((main.len(), current.len()), (1, usize::from(compacted)), "{files:?}");
    assert_eq!(blobs.is_empty(), kind == Kind::Redb, "{files:?}");
    assert_eq!(outcome(&copy(&bench), "nothing"), NOT_MET);
    let met = |file: &Path, round: usize| {
        let damaged = copy(&bench);
        let mut bytes = fs::read(bench.folder.path().join(file)).unwrap();
        let at = below(bytes.len());
        let name = file.display();
        let done = if round % 4 == 3 {
            bytes.truncate(at);
            format!("a cut of {name} at {at}")
        } else {
            bytes[at..].iter_mut().take(8).for_each(|byte| *byte ^= 0xa5);
            format!("damage to {name} at {at}")
        };
        fs::write(damaged.folder.path().join(file), bytes).unwrap();
        (outcome(&damaged, &done), done)
    };
    let mut tally: BTreeMap<&str, usize> = BTreeMap::new();
    for round in 0..rounds {
        *tally.entry(met(main[0], round).0).or_default() += 1;
    }
    eprintln!("{kind:?}, compacted {compacted}: {tally:?}");
    // Much of a file may hold what is not in use, and never all of it.
    assert!(tally.get(NOT_MET).copied().unwrap_or(0) < rounds, "{rounds} times damaged and never noticed");
    // Of blobs some may be of no use any more; each of the others is one record.
    let noticed = blobs.iter().enumerate().filter(|(round, blob)| met(blob, *round).0 != NOT_MET).count();
    assert!(kind == Kind::Redb || noticed >= RECORDS / LARGE, "{noticed} of {} damaged blobs were noticed", blobs.len());
    for (round, current) in (0..4).flat_map(|round| current.iter().map(move |current| (round, *current))) {
        let (outcome, done) = met(current, round);
        assert_ne!(outcome, NOT_MET, "{done}");
    }
    for current in current {
        for said in [None, Some("generation 0\n"), Some("")] {
            let damaged = copy(&bench);
            let path = damaged.folder.path().join(current);
            match said {
                None => fs::remove_file(path).unwrap(),
                Some(said) => fs::write(path, said).unwrap(),
            }
            // Twice: a refused opening must not take away what the next one needs.
            for _ in 0..2 {
                assert_eq!(outcome(&damaged, "a wrong note of the generation"), "refused at the opening", "{said:?}");
            }
            fs::copy(bench.folder.path().join(current), damaged.folder.path().join(current)).unwrap();
            assert_eq!(outcome(&damaged, "nothing that lasts"), NOT_MET, "{said:?}");
        }
    }
    // What stands in a journal may be in the engine too; whatever happens to it, nothing reads as absent.
    let journal = files.iter().filter(|file| file.parent().is_some_and(|folder| folder.ends_with("journal")));
    for (file, round) in journal.filter(|file| !is_empty(&bench, file)).flat_map(|file| (0..4).map(move |round| (file, round))) {
        met(file, round);
    }
}

fn is_empty(bench: &Bench, file: &Path) -> bool {
    fs::metadata(bench.folder.path().join(file)).unwrap().len() == 0
}

#[test]
fn damage_to_the_files_of_sled_is_told() {
    damage_is_told(Kind::Sled, "db", false);
}

#[test]
fn damage_to_the_files_of_redb_is_told() {
    damage_is_told(Kind::Redb, "sos.redb", false);
}

#[test]
fn damage_to_the_files_of_sled_is_told_after_a_compaction() {
    damage_is_told(Kind::Sled, "db", true);
}

#[test]
fn damage_to_the_files_of_redb_is_told_after_a_compaction() {
    damage_is_told(Kind::Redb, "sos.redb", true);
}
