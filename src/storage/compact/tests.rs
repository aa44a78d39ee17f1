//! When files are written anew, and what they hold then.

use std::{fs, path::Path, sync::Arc};

use super::{
    super::{Kind, Options, Storage, StorageConfig, Store, Txn, conformance::*, open},
    *,
};

fn key(n: u32) -> String {
    format!("k/{n:05}")
}

fn put(n: u32, value: &str) -> Txn {
    Txn::new().put(key(n), value.repeat(120).into_bytes())
}

/// Many records overwritten and most of them deleted again.
fn churned(store: &Store) {
    for round in 0..3 {
        for part in 0..6 {
            let numbers = part * 500..(part + 1) * 500;
            let commits: Vec<_> = numbers.map(|n| store.commit(put(n, &format!("{round}-{n} ")))).collect();
            commits.into_iter().for_each(|commit| assert!(now(commit).is_ok()));
            // From memory to the engine's files.
            store.backend().apply(Vec::new()).unwrap();
        }
    }
    let gone: Vec<_> = (0..3000).filter(|n| n % 10 != 0).map(|n| store.commit(Txn::new().delete(key(n)))).collect();
    gone.into_iter().for_each(|commit| assert!(now(commit).is_ok()));
    store.backend().apply(Vec::new()).unwrap();
}

fn is_whole(store: &Store) {
    let found = store.scan("k/", None, usize::MAX).unwrap();
    assert_eq!(found.len(), 300);
    for (at, (name, record)) in found.iter().enumerate() {
        let n = u32::try_from(at * 10).unwrap();
        assert_eq!(*name, key(n));
        assert!(record.value == format!("2-{n} ").repeat(120).as_bytes(), "{name}");
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() { copy(&entry.path(), &to) } else { assert!(fs::copy(entry.path(), to).is_ok()) }
    }
}

/// Starting with the wrong generation, or as a new store, must not take the right one away.
fn without_the_note_of_the_generation_nothing_is_removed(kind: Kind) {
    let bench = Bench::new(kind);
    let store = bench.try_open().unwrap();
    churned(&store);
    now(store.compact()).unwrap();
    now(store.compact()).unwrap();
    drop(store);
    let note = bench.folder.path().join("current");
    fs::remove_file(&note).unwrap();
    let refused = bench.try_open().err().unwrap().to_string();
    assert!(refused.contains("is missing") && refused.contains("of the newest generation-N"), "{refused}");
    for wrong in ["generation 0\n", "generation 1\n", "generation 3\n"] {
        fs::write(&note, wrong).unwrap();
        assert!(bench.try_open().is_err(), "{wrong}");
    }
    fs::write(&note, "generation 2\n").unwrap();
    is_whole(&bench.try_open().unwrap());
}

#[test]
fn without_the_note_of_the_generation_nothing_of_sled_is_removed() {
    without_the_note_of_the_generation_nothing_is_removed(Kind::Sled);
}

#[test]
fn without_the_note_of_the_generation_nothing_of_redb_is_removed() {
    without_the_note_of_the_generation_nothing_is_removed(Kind::Redb);
}

fn files_become_small_and_stay_whole(kind: Kind) {
    let bench = Bench::new(kind);
    let store = bench.try_open().unwrap();
    churned(&store);
    let before = store.backend().bytes_on_disk();
    now(store.compact()).unwrap();
    let after = store.backend().bytes_on_disk();
    assert!(after * 2 < before, "{before} became {after}");
    is_whole(&store);
    // Versions go on, and so does everything else in the new files.
    let version = commit(&store, put(0, "2-0 ")).unwrap();
    assert_eq!(version, 3 * 3000 + 2700 + 1);
    now(store.compact()).unwrap();
    drop(store);
    assert!(bench.folder.path().join("generation-2").exists() && !bench.folder.path().join("generation-1").exists());
    is_whole(&bench.try_open().unwrap());
}

#[test]
fn files_of_sled_become_small_and_stay_whole() {
    files_become_small_and_stay_whole(Kind::Sled);
}

#[test]
fn files_of_redb_become_small_and_stay_whole() {
    files_become_small_and_stay_whole(Kind::Redb);
}

fn writes_and_reads_go_on_meanwhile(kind: Kind) {
    let bench = Bench::new(kind);
    let store = Arc::new(bench.try_open().unwrap());
    for n in 0..4000 {
        drop(store.commit(put(n, "old ")));
    }
    commit(&store, put(4000, "old ")).unwrap();
    let mut snapshot = now(store.snapshot()).unwrap();
    let compacting = {
        let store = store.clone();
        std::thread::spawn(move || (0..3).for_each(|_| now(store.compact()).unwrap()))
    };
    let mut n = 0;
    while !compacting.is_finished() || n < 50 {
        n += 1;
        let at = n * 797 % 4000;
        commit(&store, put(at, &format!("{n} ")).delete(key((at + 1) % 4000)).put("last", key(at).into())).unwrap();
        assert!(store.get(&key(at)).unwrap().unwrap().value.starts_with(format!("{n} ").as_bytes()));
        assert!(store.get(&key((at + 1) % 4000)).unwrap().is_none());
    }
    compacting.join().unwrap();
    let expected = store.scan("", None, usize::MAX).unwrap();
    let mut seen = 0;
    loop {
        let page = snapshot.page(500, 1 << 20).unwrap();
        if page.is_empty() {
            break;
        }
        assert!(page.iter().all(|(_, record)| record.value.starts_with(b"old ")));
        seen += page.len();
    }
    assert_eq!(seen, 4001, "a snapshot outlives compactions");
    drop(snapshot);
    drop(Arc::into_inner(store).unwrap());
    let store = bench.try_open().unwrap();
    assert!(store.scan("", None, usize::MAX).unwrap() == expected);
}

#[test]
fn writes_and_reads_go_on_while_sled_is_compacted() {
    writes_and_reads_go_on_meanwhile(Kind::Sled);
}

#[test]
fn writes_and_reads_go_on_while_redb_is_compacted() {
    writes_and_reads_go_on_meanwhile(Kind::Redb);
}

/// What a crash can leave at each point of a compaction, made by hand.
fn a_crash_at_any_point_loses_nothing(kind: Kind) {
    let bench = Bench::new(kind);
    let store = bench.try_open().unwrap();
    churned(&store);
    drop(store);
    let old = tempfile::tempdir().unwrap();
    copy(bench.folder.path(), old.path());
    let store = bench.try_open().unwrap();
    now(store.compact()).unwrap();
    drop(store);
    let new = tempfile::tempdir().unwrap();
    copy(bench.folder.path(), new.path());
    let generation = new.path().join("generation-1");

    // While copying, or before the rename: the new files are there, torn or whole, and not current.
    for torn in [true, false] {
        let crashed = Bench::new(kind);
        copy(old.path(), crashed.folder.path());
        copy(&generation, &crashed.folder.path().join("generation-1"));
        fs::write(crashed.folder.path().join("current.new"), "generation 1").unwrap();
        if torn {
            for entry in fs::read_dir(crashed.folder.path().join("generation-1")).unwrap().map(Result::unwrap) {
                if entry.path().is_file() {
                    fs::write(entry.path(), "torn").unwrap();
                }
            }
        }
        let store = crashed.try_open().unwrap();
        is_whole(&store);
        assert!(!crashed.folder.path().join("generation-1").exists());
        now(store.compact()).unwrap();
        is_whole(&store);
    }

    // After the rename: the old files are still there, all or some of them.
    for file in ["", "db", "sos.redb"] {
        let crashed = Bench::new(kind);
        copy(old.path(), crashed.folder.path());
        copy(new.path(), crashed.folder.path());
        let _ = fs::remove_file(crashed.folder.path().join(file));
        is_whole(&crashed.try_open().unwrap());
        assert!(!crashed.folder.path().join("db").exists() && !crashed.folder.path().join("sos.redb").exists());
    }

    // The current generation is gone: never an empty store instead.
    let robbed = Bench::new(kind);
    copy(new.path(), robbed.folder.path());
    fs::remove_dir_all(robbed.folder.path().join("generation-1")).unwrap();
    assert!(robbed.try_open().is_err());
}

#[test]
fn a_crash_at_any_point_of_a_compaction_of_sled_loses_nothing() {
    a_crash_at_any_point_loses_nothing(Kind::Sled);
}

#[test]
fn a_crash_at_any_point_of_a_compaction_of_redb_loses_nothing() {
    a_crash_at_any_point_loses_nothing(Kind::Redb);
}

/// Writes until they are refused, deletes most, and waits until writes are taken again: on a small file system that
/// `SOS_SMALL_DISK` names (64 MiB do), because making one needs root.
fn deletes_make_room_on_a_full_disk(kind: Kind) {
    let Ok(disk) = std::env::var("SOS_SMALL_DISK") else {
        eprintln!("LEFT OUT: {kind:?} and deletes on a full disk, because SOS_SMALL_DISK names no small file system");
        return;
    };
    // Both engines fill the same disk.
    static ONE_AT_A_TIME: parking_lot::Mutex<()> = parking_lot::Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock();
    let folder = tempfile::tempdir_in(disk).unwrap();
    let options = Options { free_watermark: 16 << 20, reserve_bytes: 1 << 20, ..Options::default() };
    let config = StorageConfig { kind, path: Some(folder.path().into()), options };
    let store = open(&config).unwrap();
    let put = |n: u32| Txn::new().put(key(n), n.to_string().repeat(4000).into_bytes());
    let mut kept = 0;
    let refused = loop {
        match now(store.commit(put(kept))) {
            Ok(_) => kept += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, StorageError::Full { .. }), "{refused}");
    assert!(kept > 300, "{kept}");
    for n in (0..kept).filter(|n| n % 20 != 0) {
        now(store.commit(Txn::new().delete(key(n)))).unwrap();
    }
    let until = Instant::now() + Duration::from_secs(60);
    let begun = Instant::now();
    while let Err(error) = now(store.commit(put(kept))) {
        assert!(matches!(error, StorageError::Full { .. }) && Instant::now() < until, "{error}");
        std::thread::sleep(Duration::from_millis(50));
    }
    eprintln!("{kind:?}: full at {kept} records; writes were taken again {:?} after the deletes", begun.elapsed());
    // Not just one: most of what fitted before fits again.
    for n in (0..kept / 2).filter(|n| n % 20 != 0) {
        now(store.commit(put(n))).unwrap();
    }
    drop(store);
    let store = open(&config).unwrap();
    for n in (0..kept).filter(|n| n % 20 == 0 || *n < kept / 2) {
        assert!(store.get(&key(n)).unwrap().unwrap().value == n.to_string().repeat(4000).as_bytes(), "{n}");
    }
}

#[test]
fn deletes_make_room_on_a_full_disk_of_sled() {
    deletes_make_room_on_a_full_disk(Kind::Sled);
}

#[test]
fn deletes_make_room_on_a_full_disk_of_redb() {
    deletes_make_room_on_a_full_disk(Kind::Redb);
}

#[test]
fn a_store_that_lost_a_record_is_not_written_anew() {
    let bench = Bench::new(Kind::Redb);
    let store = bench.try_open().unwrap();
    churned(&store);
    store.backend().apply(vec![(key(10).into_bytes(), None)]).unwrap();
    let error = now(store.compact()).unwrap_err().to_string();
    assert!(error.contains("299 records although 300"), "{error}");
    assert!(!bench.folder.path().join("generation-1").exists(), "the copy is removed");
}

#[test]
fn a_compaction_is_repeated_when_it_gains_something() {
    const MIB: u64 = 1 << 20;
    let is_worth_it = |bytes, records, settled| is_worth_it(bytes * MIB, records * MIB, SLACK, settled, false);
    assert!(!is_worth_it(8, 0, None) && is_worth_it(9, 0, None));
    assert!(!is_worth_it(120, 30, None) && is_worth_it(130, 30, None));
    assert!(super::is_worth_it(70 * MIB, 30 * MIB, SLACK, None, true));
    // While it ran, most of what it copied was deleted.
    assert!(is_worth_it(80, 10, Some((80 * MIB, 40 * MIB))));
    // An engine that needs five times the room of its records.
    assert!(!is_worth_it(100, 20, Some((100 * MIB, 20 * MIB))));
    // Almost nothing was held then.
    assert!(is_worth_it(300, 50, Some((2 * MIB, 100))));
    // As much was written as there is to copy; a quiet store does not wait for that.
    let settled = Some((40 * MIB, 20 * MIB));
    let settled_high = Some((80 * MIB, 20 * MIB));
    assert!(is_worth_it(89, 20, settled) && !is_worth_it(89, 20, settled_high) && is_worth_it(101, 20, settled_high));
    // A calm store does not wait for that.
    assert!(super::is_worth_it(58 * MIB, 20 * MIB, SLACK, settled, true));
    assert!(!super::is_worth_it(44 * MIB, 20 * MIB, 0, settled, true));
}

#[test]
fn files_are_written_anew_only_when_they_hold_little() {
    let mut compaction = Compaction::new(SLACK);
    assert!(compaction.sleep().is_some_and(|sleep| sleep > LOOK), "what a start finds has time");
    compaction.wrote(1, Behind::default());
    assert!(compaction.sleep().is_some_and(|sleep| sleep <= LOOK));
    let bench = Bench::new(Kind::Redb);
    let store = bench.try_open().unwrap();
    commit(&store, put(1, "small")).unwrap();
    compaction.look_at = Some(Instant::now());
    compaction.look(store.backend(), Census::default());
    assert!(!compaction.is_under_way(), "a small file stays as it is");
    assert!(compaction.sleep().is_some_and(|sleep| sleep > LOOK && sleep <= CALM.1), "and is looked at when it is calm");
    compaction.since = Instant::now().checked_sub(CALM.1).unwrap();
    compaction.look_at = Some(Instant::now());
    compaction.look(store.backend(), Census::default());
    assert!(compaction.sleep().is_none(), "an idle store is left alone");
}

/// Copies whose files were harmed between being written and taking over: none is used, and the old files go on.
fn a_harmed_copy_is_not_used(kind: Kind, harm: impl Fn(&Path) + Clone + Send + 'static) -> String {
    let bench = Bench::new(kind);
    let store = bench.try_open().unwrap();
    churned(&store);
    spoil::plan(bench.folder.path(), harm);
    let error = now(store.compact()).unwrap_err().to_string();
    is_whole(&store);
    assert!(!bench.folder.path().join("current").exists() && !bench.folder.path().join("generation-1").exists());
    commit(&store, put(0, "2-0 ")).unwrap();
    // It is no harm to the next one.
    spoil::mend(bench.folder.path());
    now(store.compact()).unwrap();
    is_whole(&store);
    drop(store);
    is_whole(&bench.try_open().unwrap());
    error
}

fn flip(file: &Path, at: usize, bytes: usize) {
    let mut content = fs::read(file).unwrap();
    content[at..].iter_mut().take(bytes).for_each(|byte| *byte ^= 0x55);
    // In place: the file that a test holds open stays the same.
    std::os::unix::fs::FileExt::write_all_at(&fs::OpenOptions::new().write(true).open(file).unwrap(), &content, 0).unwrap();
}

#[test]
fn a_copy_of_sled_that_lost_the_head_of_its_log_is_not_used() {
    let error = a_harmed_copy_is_not_used(Kind::Sled, |place| {
        // Its table would still lead to what the log holds.
        for entry in fs::read_dir(place).unwrap().map(Result::unwrap) {
            if entry.file_name().to_str().unwrap().starts_with("snap.") {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        flip(&place.join("db"), 0, 20);
    });
    assert!(error.contains("read back from the disk"), "{error}");
}

#[test]
fn a_copy_of_redb_with_a_flipped_byte_is_not_used() {
    let error = a_harmed_copy_is_not_used(Kind::Redb, |place| {
        let file = place.join("sos.redb");
        let content = fs::read(&file).unwrap();
        let at = content.windows(8).position(|bytes| bytes == b"2-1500 2").unwrap();
        flip(&file, at, 1);
    });
    assert!(error.contains("corrupt"), "{error}");
}

/// Wherever a copy is harmed, it is not used, or the harm is where nothing is. `SOS_ROT_ROUNDS` sets how often.
fn harm_anywhere_in_a_copy_loses_nothing(kind: Kind, file: &str) {
    let rounds: usize = std::env::var("SOS_ROT_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(6);
    let bench = Bench::new(kind);
    let store = bench.try_open().unwrap();
    churned(&store);
    let mut refused = 0;
    for round in 0..rounds {
        let name = file.to_owned();
        spoil::plan(bench.folder.path(), move |place| {
            let length = usize::try_from(fs::metadata(place.join(&name)).unwrap().len()).unwrap();
            let random = u64::from_be_bytes(crate::secret::random_array());
            let at = usize::try_from(random % u64::try_from(length).unwrap()).unwrap();
            flip(&place.join(&name), at, if round % 2 == 0 { 8 } else { 64 << 10 });
        });
        refused += usize::from(now(store.compact()).is_err());
        is_whole(&store);
        commit(&store, put(0, "2-0 ")).unwrap();
    }
    eprintln!("{kind:?}: {refused} of {rounds} harmed copies were refused");
    spoil::mend(bench.folder.path());
    drop(store);
    is_whole(&bench.try_open().unwrap());
}

#[test]
fn harm_anywhere_in_a_copy_of_sled_loses_nothing() {
    harm_anywhere_in_a_copy_loses_nothing(Kind::Sled, "db");
}

#[test]
fn harm_anywhere_in_a_copy_of_redb_loses_nothing() {
    harm_anywhere_in_a_copy_loses_nothing(Kind::Redb, "sos.redb");
}
