//! One suite for every engine: what the contract says, each fact on `inmem`, `sled` and `redb`.
//!
//! `SOS_STORAGE_CASES` sets the number of random histories per engine.

use std::sync::Arc;

use proptest::{prelude::*, test_runner::TestRunner};
use tempfile::TempDir;

use super::*;

/// A place for a store of one kind, to open again and again.
pub(super) struct Bench {
    pub(super) kind: Kind,
    pub(super) folder: TempDir,
    pub(super) options: Options,
}

impl Bench {
    pub(super) fn new(kind: Kind) -> Self {
        let options = Options { free_watermark: 0, reserve_bytes: 0, ..Options::default() };
        Self { kind, folder: tempfile::tempdir().unwrap(), options }
    }

    pub(super) fn try_open(&self) -> Result<Store, StorageError> {
        match self.kind {
            Kind::InMem => InMem::open(),
            Kind::Sled => Sled::open(self.folder.path(), self.options),
            Kind::Redb => Redb::open(self.folder.path(), self.options),
        }
    }

    fn open(&self) -> Store {
        self.try_open().unwrap()
    }

    fn keeps(&self) -> bool {
        self.kind != Kind::InMem
    }
}

pub(super) fn now<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

pub(super) fn commit(store: &Store, txn: Txn) -> Result<Version, StorageError> {
    now(store.commit(txn))
}

fn put(store: &Store, key: &str, value: &str) -> Version {
    commit(store, Txn::new().put(key, value.into())).unwrap()
}

fn value(store: &Store, key: &str) -> Option<String> {
    store.get(key).unwrap().map(|record| String::from_utf8(record.value).unwrap())
}

fn all(store: &Store, prefix: &str) -> Vec<String> {
    store.list(prefix, None, usize::MAX).unwrap()
}

/// Every page of a list, `limit` names at a time.
fn paged(store: &Store, prefix: &str, limit: usize) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    loop {
        let page = store.list(prefix, names.last().map(String::as_str), limit).unwrap();
        if page.is_empty() {
            return names;
        }
        assert!(page.len() <= limit);
        names.extend(page);
    }
}

macro_rules! suite {
    (@$engine:ident $kind:ident $($name:ident)*) => {
        mod $engine {
            use super::*;
            $(#[test] fn $name() { super::$name(&Bench::new(Kind::$kind)) })*
        }
    };
    ($($name:ident)*) => {
        suite!(@inmem InMem $($name)*);
        suite!(@sled Sled $($name)*);
        suite!(@redb Redb $($name)*);
    };
}

suite! {
    an_empty_store_has_nothing
    a_written_record_is_read_with_its_version
    a_later_write_of_a_transaction_wins
    deleting_what_is_absent_is_no_error
    list_shows_one_level_with_folders_once
    list_shows_a_record_and_a_folder_of_the_same_name
    list_pages_are_the_list
    list_goes_on_after_any_name
    list_skips_over_large_folders
    list_refuses_half_a_folder_name
    scan_takes_any_prefix_in_byte_order
    scan_pages_are_the_scan
    checks_decide_all_or_nothing
    a_check_alone_writes_nothing
    a_record_made_again_has_a_new_version
    transactions_of_one_burst_see_each_other
    one_of_many_racing_increments_wins_each_time
    versions_grow_over_reopening
    records_stay_over_reopening
    large_values_come_back
    odd_keys_and_values_are_refused
    odd_keys_read_as_absent
    a_burst_shares_syncs
    a_dropped_future_still_commits
    a_corrupt_record_is_an_error_that_names_it
    a_truncated_record_is_an_error_that_names_it
    a_store_without_its_sequence_is_not_opened
    a_second_opening_is_refused
    puts_stop_at_the_watermark_but_deletes_and_reads_go_on
    readers_see_whole_transactions_only
    random_histories_equal_the_memory_store
}

fn an_empty_store_has_nothing(bench: &Bench) {
    let store = bench.open();
    assert_eq!(store.get("a").unwrap(), None);
    assert!(all(&store, "").is_empty());
    assert!(store.scan("", None, 10).unwrap().is_empty());
    assert_eq!(commit(&store, Txn::new()).unwrap(), 0);
}

fn a_written_record_is_read_with_its_version(bench: &Bench) {
    let store = bench.open();
    let version = commit(&store, Txn::new().put("a/b", b"1".to_vec()).put("a/c", Vec::new())).unwrap();
    assert_eq!(store.get("a/b").unwrap(), Some(Record { version, value: b"1".to_vec() }));
    assert_eq!(store.get("a/c").unwrap(), Some(Record { version, value: Vec::new() }));
    assert_eq!(store.get("a").unwrap(), None);
}

fn a_later_write_of_a_transaction_wins(bench: &Bench) {
    let store = bench.open();
    let txn = Txn::new().put("a", b"1".to_vec()).put("a", b"2".to_vec()).put("b", b"1".to_vec()).delete("b");
    commit(&store, txn).unwrap();
    assert_eq!(value(&store, "a").as_deref(), Some("2"));
    assert_eq!(value(&store, "b"), None);
}

fn deleting_what_is_absent_is_no_error(bench: &Bench) {
    let store = bench.open();
    commit(&store, Txn::new().delete("a")).unwrap();
    assert!(all(&store, "").is_empty());
}

fn fill(store: &Store, keys: &[&str]) {
    let txn = keys.iter().fold(Txn::new(), |txn, key| txn.put(*key, key.as_bytes().to_vec()));
    commit(store, txn).unwrap();
}

const KEYS: &[&str] = &["a", "a-b", "a/x", "a/y/z", "a0", "b/c/d", "b/c/e", "b/cc", "é", "é/ü", "\u{10ffff}/x", "z/\u{7f}", "~"];

fn list_shows_one_level_with_folders_once(bench: &Bench) {
    let store = bench.open();
    fill(&store, KEYS);
    assert_eq!(all(&store, ""), ["a", "a-b", "a/", "a0", "b/", "z/", "~", "é", "é/", "\u{10ffff}/"]);
    assert_eq!(all(&store, "b/"), ["c/", "cc"]);
    assert_eq!(all(&store, "b/c/"), ["d", "e"]);
    assert_eq!(all(&store, "é/"), ["ü"]);
    assert!(all(&store, "c/").is_empty());
}

fn list_shows_a_record_and_a_folder_of_the_same_name(bench: &Bench) {
    let store = bench.open();
    fill(&store, &["f/a", "f/a/b", "f/a/c"]);
    assert_eq!(all(&store, "f/"), ["a", "a/"]);
}

fn list_pages_are_the_list(bench: &Bench) {
    let store = bench.open();
    fill(&store, KEYS);
    for limit in 1..12 {
        assert_eq!(paged(&store, "", limit), all(&store, ""));
        assert_eq!(paged(&store, "b/", limit), all(&store, "b/"));
    }
    assert!(store.list("", None, 0).unwrap().is_empty());
}

fn list_goes_on_after_any_name(bench: &Bench) {
    let store = bench.open();
    fill(&store, KEYS);
    let names = all(&store, "");
    for after in ["", "A", "a", "a-", "a/", "a/x", "a/zzz", "a0", "b", "b/", "z", "é", "é/", "\u{10ffff}", "\u{10ffff}/"] {
        let expected: Vec<_> = names.iter().filter(|name| name.as_str() > after).cloned().collect();
        assert_eq!(store.list("", Some(after), 100).unwrap(), expected, "after {after:?}");
    }
}

fn list_skips_over_large_folders(bench: &Bench) {
    let store = bench.open();
    let keys: Vec<_> = (0..5).flat_map(|f| (0..300).map(move |k| format!("top/{f}/{k}"))).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    fill(&store, &keys);
    assert_eq!(all(&store, "top/"), ["0/", "1/", "2/", "3/", "4/"]);
    assert_eq!(all(&store, "top/3/").len(), 300);
}

fn list_refuses_half_a_folder_name(bench: &Bench) {
    assert!(matches!(bench.open().list("a/b", None, 1), Err(StorageError::Invalid(_))));
}

fn scan_takes_any_prefix_in_byte_order(bench: &Bench) {
    let store = bench.open();
    fill(&store, KEYS);
    let mut sorted = KEYS.to_vec();
    sorted.sort_unstable();
    for prefix in ["", "a", "a/", "b/c", "é", "\u{10ffff}", "zz", "a/y/z"] {
        let expected: Vec<_> = sorted.iter().filter(|key| key.starts_with(prefix)).collect();
        let found = store.scan(prefix, None, 100).unwrap();
        assert_eq!(found.iter().map(|(key, _)| key).collect::<Vec<_>>(), expected, "prefix {prefix:?}");
        assert!(found.iter().all(|(key, record)| record.value == key.as_bytes() && record.version == 1));
    }
}

fn scan_pages_are_the_scan(bench: &Bench) {
    let store = bench.open();
    let keys: Vec<_> = (0..700).map(|n| format!("n/{n:04}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    fill(&store, &keys);
    fill(&store, &["m", "o"]);
    let mut found: Vec<String> = Vec::new();
    loop {
        let page = store.scan("n/", found.last().map(String::as_str), 99).unwrap();
        if page.is_empty() {
            break;
        }
        found.extend(page.into_iter().map(|(key, _)| key));
    }
    assert_eq!(found, keys);
    assert!(store.scan("n/", None, 0).unwrap().is_empty());
    assert!(store.scan("n/", Some("o"), 9).unwrap().is_empty());
    assert_eq!(store.scan("n/", Some("a"), 1).unwrap().len(), 1);
}

fn checks_decide_all_or_nothing(bench: &Bench) {
    let store = bench.open();
    let first = put(&store, "a", "1");
    put(&store, "b", "1");
    let stale = Txn::new().check("a", Expect::Version(first)).check("b", Expect::Absent).put("a", b"2".to_vec()).delete("b");
    assert!(matches!(commit(&store, stale), Err(StorageError::Conflict { key }) if key == "b"));
    assert_eq!((value(&store, "a").unwrap(), value(&store, "b").unwrap()), ("1".into(), "1".into()));
    let read = store.get("a").unwrap();
    let fresh = Txn::new().check("a", Expect::unchanged(read.as_ref())).check("c", Expect::Absent).put("a", b"2".to_vec());
    commit(&store, fresh.clone()).unwrap();
    assert_eq!(value(&store, "a").as_deref(), Some("2"));
    assert!(matches!(commit(&store, fresh), Err(StorageError::Conflict { key }) if key == "a"));
    assert!(matches!(
        commit(&store, Txn::new().check("gone", Expect::Version(1)).put("x", Vec::new())),
        Err(StorageError::Conflict { .. })
    ));
}

fn a_check_alone_writes_nothing(bench: &Bench) {
    let store = bench.open();
    let version = put(&store, "a", "1");
    let syncs = store.syncs();
    commit(&store, Txn::new().check("a", Expect::Version(version))).unwrap();
    assert!(commit(&store, Txn::new().check("a", Expect::Absent)).is_err());
    commit(&store, Txn::new().check("a", Expect::Present)).unwrap();
    let missing = commit(&store, Txn::new().check("gone", Expect::Present).put("x", Vec::new()));
    assert!(matches!(missing, Err(StorageError::Conflict { key }) if key == "gone"));
    assert_eq!(store.syncs(), syncs);
    // Also of what transactions before it change that are under way with it.
    let moves = store.commit(Txn::new().put("moved", Vec::new()));
    let there = store.commit(Txn::new().check("moved", Expect::Present));
    let gone = store.commit(Txn::new().delete("moved"));
    let late = store.commit(Txn::new().check("moved", Expect::Present).put("x", Vec::new()));
    let [moves, there, gone, late] = [moves, there, gone, late].map(now);
    assert!(moves.is_ok() && there.is_ok() && gone.is_ok() && late.is_err());
    assert!(store.get("x").unwrap().is_none());
}

fn a_record_made_again_has_a_new_version(bench: &Bench) {
    let store = bench.open();
    let first = put(&store, "a", "1");
    commit(&store, Txn::new().delete("a")).unwrap();
    let second = put(&store, "a", "1");
    assert!(second > first);
    let stale = Txn::new().check("a", Expect::Version(first)).delete("a");
    assert!(matches!(commit(&store, stale), Err(StorageError::Conflict { .. })));
}

fn transactions_of_one_burst_see_each_other(bench: &Bench) {
    let store = bench.open();
    let creations: Vec<_> = (0..20).map(|n| store.commit(Txn::new().check("a", Expect::Absent).put("a", vec![n]))).collect();
    let created: Vec<_> = creations.into_iter().map(now).collect();
    assert!(created[0].is_ok());
    assert!(created[1..].iter().all(|answer| matches!(answer, Err(StorageError::Conflict { .. }))));
    assert_eq!(store.get("a").unwrap().unwrap().value, [0]);
}

fn one_of_many_racing_increments_wins_each_time(bench: &Bench) {
    let store = Arc::new(bench.open());
    put(&store, "n", "0");
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let store = store.clone();
            std::thread::spawn(move || {
                let mut done = 0;
                while done < 25 {
                    let read = store.get("n").unwrap();
                    let next = String::from_utf8(read.clone().unwrap().value).unwrap().parse::<u32>().unwrap() + 1;
                    let txn = Txn::new().check("n", Expect::unchanged(read.as_ref())).put("n", next.to_string().into());
                    match commit(&store, txn) {
                        Ok(version) => {
                            assert!(store.get("n").unwrap().unwrap().version >= version);
                            done += 1;
                        }
                        Err(StorageError::Conflict { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(value(&store, "n").as_deref(), Some("100"));
}

fn versions_grow_over_reopening(bench: &Bench) {
    if !bench.keeps() {
        return;
    }
    let mut last = 0;
    for _ in 0..4 {
        let store = bench.open();
        let version = put(&store, "a", "1");
        assert!(version > last);
        last = commit(&store, Txn::new().delete("a")).unwrap();
        assert!(last > version);
    }
}

fn records_stay_over_reopening(bench: &Bench) {
    if !bench.keeps() {
        return;
    }
    let store = bench.open();
    fill(&store, KEYS);
    let before = store.scan("", None, 100).unwrap();
    drop(store);
    assert_eq!(bench.open().scan("", None, 100).unwrap(), before);
}

fn large_values_come_back(bench: &Bench) {
    let sizes = [0, 1, 100_000, 131_000, 1 << 20, 5_000_000];
    let value = |size: usize| (0..size).map(|n| (n * 31 % 251) as u8).collect::<Vec<_>>();
    let mut store = bench.open();
    for size in sizes {
        commit(&store, Txn::new().put(format!("v/{size}"), value(size))).unwrap();
    }
    if bench.keeps() {
        drop(store);
        store = bench.open();
    }
    for size in sizes {
        assert!(store.get(&format!("v/{size}")).unwrap().unwrap().value == value(size), "{size} bytes");
    }
}

fn odd_keys_and_values_are_refused(bench: &Bench) {
    let store = bench.open();
    let long = "k".repeat((4 << 10) + 1);
    for key in ["", long.as_str(), "a/"] {
        for txn in [Txn::new().put(key, Vec::new()), Txn::new().delete(key), Txn::new().check(key, Expect::Absent)] {
            assert!(matches!(commit(&store, txn.put("b", Vec::new())), Err(StorageError::Invalid(_))), "{key:.10}");
        }
    }
    let large = Txn::new().put("a", vec![0; (64 << 20) + 1]);
    assert!(matches!(commit(&store, large), Err(StorageError::Invalid(_))));
    assert!(all(&store, "").is_empty());
    put(&store, &"k".repeat(4 << 10), "the longest key");
    put(&store, "a\0b", "a key with a NUL");
}

fn odd_keys_read_as_absent(bench: &Bench) {
    let store = bench.open();
    put(&store, "a/b", "1");
    assert_eq!(store.get("").unwrap(), None);
    assert_eq!(store.get("a/").unwrap(), None);
    assert_eq!(store.get(&"k".repeat(9999)).unwrap(), None);
}

fn a_burst_shares_syncs(bench: &Bench) {
    let store = bench.open();
    let commits: Vec<_> = (0..200).map(|n| store.commit(Txn::new().put(format!("{n}"), vec![0; 100]))).collect();
    let mut versions: Vec<_> = commits.into_iter().map(|commit| now(commit).unwrap()).collect();
    versions.dedup();
    assert_eq!(versions.len(), 200);
    assert!(store.syncs() <= 200);
    if bench.keeps() {
        assert!(store.syncs() < 100, "{} syncs", store.syncs());
    }
}

fn a_dropped_future_still_commits(bench: &Bench) {
    let store = bench.open();
    drop(store.commit(Txn::new().put("a", b"1".to_vec())));
    put(&store, "b", "behind it");
    assert_eq!(value(&store, "a").as_deref(), Some("1"));
}

fn damage(store: &Store, key: &str, change: impl Fn(&mut Vec<u8>)) {
    let mut framed = store.backend().get(key.as_bytes()).unwrap().unwrap();
    change(&mut framed);
    store.backend().apply(vec![(key.into(), Some(framed))]).unwrap();
}

fn names<T: std::fmt::Debug>(result: Result<T, StorageError>, wanted: &str) {
    match result {
        Err(StorageError::Corrupt { key, .. }) => assert_eq!(key, wanted),
        other => panic!("{other:?}"),
    }
}

fn is_told_as_corrupt(store: &Store) {
    names(store.get("a/b"), "a/b");
    names(store.scan("", None, 10), "a/b");
    names(commit(store, Txn::new().check("a/b", Expect::Absent).put("c", Vec::new())), "a/b");
    assert_eq!(all(store, "a/"), ["a", "b", "c"]);
    assert!(store.get("a/a").unwrap().is_some());
    put(store, "a/b", "written anew");
    assert_eq!(value(store, "a/b").as_deref(), Some("written anew"));
}

fn a_corrupt_record_is_an_error_that_names_it(bench: &Bench) {
    let store = bench.open();
    for at in [0, 1, 8, 9, 12, 13] {
        fill(&store, &["a/a", "a/b", "a/c"]);
        damage(&store, "a/b", |framed| framed[at] ^= 0x40);
        is_told_as_corrupt(&store);
    }
}

fn a_truncated_record_is_an_error_that_names_it(bench: &Bench) {
    let store = bench.open();
    for len in [0, 1, 8, 12, 13, 15] {
        fill(&store, &["a/a", "a/b", "a/c"]);
        damage(&store, "a/b", |framed| framed.truncate(len));
        is_told_as_corrupt(&store);
    }
}

fn a_store_without_its_sequence_is_not_opened(bench: &Bench) {
    if !bench.keeps() {
        return;
    }
    let store = bench.open();
    for value in ["1", "2", "3"] {
        put(&store, "a", value);
        // The engine takes it, and the journal begins the other file: it does not know the first commit any more.
        store.backend().apply(Vec::new()).unwrap();
    }
    store.backend().apply(vec![(b"\xffsequence".to_vec(), None)]).unwrap();
    drop(store);
    assert!(matches!(bench.try_open(), Err(StorageError::Corrupt { .. })));
    // Only some engines have one.
    drop(std::fs::remove_dir_all(bench.folder.path().join("journal")));
    assert!(matches!(bench.try_open(), Err(StorageError::Corrupt { .. })));
}

fn a_second_opening_is_refused(bench: &Bench) {
    if !bench.keeps() {
        return;
    }
    let store = bench.open();
    let error = bench.try_open().err().unwrap().to_string();
    assert!(error.contains(&format!("the folder {} is in use by another process", bench.folder.path().display())), "{error}");
    drop(store);
    bench.open();
}

fn puts_stop_at_the_watermark_but_deletes_and_reads_go_on(bench: &Bench) {
    if !bench.keeps() {
        return;
    }
    let store = bench.open();
    fill(&store, &["a", "b"]);
    drop(store);
    let options = Options { free_watermark: u64::MAX, ..bench.options };
    let store = open(&StorageConfig { kind: bench.kind, path: Some(bench.folder.path().into()), options }).unwrap();
    let full = |txn| matches!(now(store.commit(txn)), Err(StorageError::Full { .. }));
    assert!(full(Txn::new().put("c", Vec::new())));
    assert!(full(Txn::new().delete("a").put("c", Vec::new())));
    assert!(store.get("a").unwrap().is_some());
    now(store.commit(Txn::new().delete("a"))).unwrap();
    assert_eq!(store.list("", None, 9).unwrap(), ["b"]);
}

fn readers_see_whole_transactions_only(bench: &Bench) {
    let store = Arc::new(bench.open());
    let rounds = if bench.keeps() { 60 } else { 500 };
    let writer = std::thread::spawn({
        let store = store.clone();
        move || {
            for round in 0..rounds {
                let value = format!("{round}");
                let txn = (0..20).fold(Txn::new(), |txn, key| txn.put(format!("k/{key:02}"), value.clone().into()));
                // Beside it a folder that comes and goes, for the lists.
                let txn = if round % 2 == 0 { txn.put("g/a", Vec::new()) } else { txn.delete("g/a") };
                commit(&store, txn).unwrap();
            }
        }
    });
    let mut last = 0;
    while !writer.is_finished() {
        // Single reads never go back in time.
        let version = store.get("k/00").unwrap().map_or(0, |record| record.version);
        assert!(version >= last);
        last = version;
        let page = store.scan("k/", None, 4).unwrap();
        assert!(page.windows(2).all(|pair| pair[0].1.version == pair[1].1.version), "{page:?}");
    }
    writer.join().unwrap();
}

#[derive(Clone, Debug)]
enum Op {
    Commit { checks: Vec<(String, bool)>, writes: Vec<(String, Option<Vec<u8>>)> },
    List { prefix: String, after: Option<String>, limit: usize },
    Scan { prefix: String, after: Option<String>, limit: usize },
    Reopen,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let key = || "[ab/é-]{0,3}[ab]";
    let folder = || prop_oneof![Just(String::new()), "[ab-]{1,2}/", "[ab]/[ab]/"];
    let after = || proptest::option::of("[ab/é-]{0,4}");
    let value = || proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40));
    let op = prop_oneof![
        6 => (proptest::collection::vec((key(), any::<bool>()), 0..2), proptest::collection::vec((key(), value()), 0..5))
            .prop_map(|(checks, writes)| Op::Commit { checks, writes }),
        3 => (folder(), after(), 0usize..6).prop_map(|(prefix, after, limit)| Op::List { prefix, after, limit }),
        3 => ("[ab/é-]{0,2}", after(), 0usize..6).prop_map(|(prefix, after, limit)| Op::Scan { prefix, after, limit }),
        1 => Just(Op::Reopen),
    ];
    proptest::collection::vec(op, 1..40)
}

/// The same history on both; every answer must be the same, versions included.
fn random_histories_equal_the_memory_store(bench: &Bench) {
    let cases = std::env::var("SOS_STORAGE_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(12);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new(config);
    let outcome = runner.run(&ops(), |ops| {
        let bench = Bench::new(bench.kind);
        let (model, mut store) = (InMem::open().unwrap(), Some(bench.open()));
        for op in ops {
            if matches!(op, Op::Reopen) && bench.keeps() {
                store = None;
            }
            let store = store.get_or_insert_with(|| bench.open());
            let told = [&model, &*store].map(|store| play(store, &op));
            prop_assert_eq!(&told[0], &told[1]);
        }
        let everything = |store: &Store| store.scan("", None, usize::MAX).unwrap();
        prop_assert_eq!(everything(&model), everything(&store.unwrap_or_else(|| bench.open())));
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

fn play(store: &Store, op: &Op) -> String {
    match op {
        Op::Commit { checks, writes } => {
            let mut txn = Txn { writes: writes.clone(), ..Txn::default() };
            for (key, fresh) in checks {
                let read = store.get(key).unwrap();
                let expect = if *fresh { Expect::unchanged(read.as_ref()) } else { Expect::Version(3) };
                txn = txn.check(key.clone(), expect);
            }
            format!("{:?}", commit(store, txn))
        }
        Op::List { prefix, after, limit } => format!("{:?}", store.list(prefix, after.as_deref(), *limit)),
        Op::Scan { prefix, after, limit } => format!("{:?}", store.scan(prefix, after.as_deref(), *limit)),
        Op::Reopen => String::new(),
    }
}
