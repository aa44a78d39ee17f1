//! The journal in a folder.

use std::fs;

use proptest::prelude::*;

use super::{
    records::{HEADER, WINDOW},
    *,
};

/// What was found, by place.
#[derive(Default)]
struct Batches {
    older: Vec<Vec<Write>>,
    newer: Vec<Vec<Write>>,
    torn: bool,
}

fn batch(version: Version) -> Vec<Write> {
    vec![(format!("k/{version}").into_bytes(), Some(vec![7; 300])), (b"gone".to_vec(), None)]
}

fn opened(store: &Path, had: Version) -> Result<(Journal, Batches), Fault> {
    let (mut journal, mut batches) = (Journal::open(store)?, Batches::default());
    let found = journal.read(had, &mut |place, batch| match place {
        Place::Older => batches.older.push(batch),
        Place::Newer => batches.newer.push(batch),
    })?;
    batches.torn = found.torn;
    Ok((journal, batches))
}

/// A journal of the versions 1 to 3 in one file and 4 to 6 in the other.
fn filled(store: &Path) {
    let (mut journal, _) = opened(store, 0).unwrap();
    for version in 1..=6 {
        journal.append(version, &batch(version)).unwrap();
        if version == 3 {
            journal.switch();
        }
    }
}

fn file(store: &Path, name: &str) -> PathBuf {
    store.join(FOLDER).join(name)
}

/// The versions that are found, or that the journal is damaged.
fn versions(store: &Path, had: Version) -> Result<(usize, usize), String> {
    match opened(store, had) {
        Ok((_, found)) => Ok((found.older.len(), found.newer.len())),
        Err(Fault::Corrupt(why)) => Err(why),
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn what_was_appended_is_found_and_what_the_engine_has_is_not() {
    let place = tempfile::tempdir().unwrap();
    filled(place.path());
    let (_, found) = opened(place.path(), 0).unwrap();
    let all: Vec<_> = found.older.into_iter().chain(found.newer).collect();
    assert_eq!(all, (1..=6).map(batch).collect::<Vec<_>>());
    assert_eq!(versions(place.path(), 2), Ok((1, 3)));
    assert_eq!(versions(place.path(), 4), Ok((0, 2)));
    assert_eq!(versions(place.path(), 6), Ok((0, 0)));
    // An engine that went on without the journal, as after a restore.
    assert_eq!(versions(place.path(), 60), Ok((0, 0)));
}

#[test]
fn a_file_that_begins_anew_shows_nothing_of_what_it_held() {
    let place = tempfile::tempdir().unwrap();
    filled(place.path());
    let (mut journal, _) = opened(place.path(), 3).unwrap();
    journal.switch();
    assert_eq!(versions(place.path(), 3), Ok((0, 3)), "nothing was appended yet");
    journal.append(9, &batch(9)).unwrap();
    assert_eq!(versions(place.path(), 3), Ok((3, 1)));
    journal.append(10, &batch(10)).unwrap();
    assert_eq!(versions(place.path(), 6), Ok((0, 2)));
}

#[test]
fn a_torn_end_is_nothing_and_is_written_over() {
    let place = tempfile::tempdir().unwrap();
    filled(place.path());
    let whole = fs::read(file(place.path(), "two")).unwrap();
    let last = whole.len() / 3 * 2;
    for length in [last, last + 1, last + HEADER, whole.len() - 1] {
        fs::write(file(place.path(), "two"), &whole[..length]).unwrap();
        assert_eq!(versions(place.path(), 0), Ok((3, 2)), "{length} of {}", whole.len());
    }
    let (mut journal, _) = opened(place.path(), 0).unwrap();
    journal.append(7, &batch(7)).unwrap();
    journal.append(8, &batch(8)).unwrap();
    assert_eq!(versions(place.path(), 0), Ok((3, 4)));
}

#[test]
fn what_is_missing_before_other_records_is_told() {
    let place = tempfile::tempdir().unwrap();
    filled(place.path());
    let one = fs::read(file(place.path(), "one")).unwrap();
    // The end of the older file: the newer one begins behind it.
    fs::write(file(place.path(), "one"), &one[..one.len() - 1]).unwrap();
    let why = versions(place.path(), 0).unwrap_err();
    assert!(why.contains("from version 2 to 4") && why.contains("restore a backup"), "{why}");
    assert!(versions(place.path(), 3).is_ok(), "the engine has it");
    fs::write(file(place.path(), "one"), "").unwrap();
    assert!(versions(place.path(), 1).is_err());
    // An engine that does not reach to where the journal begins.
    fs::write(file(place.path(), "two"), "").unwrap();
    filled_from(place.path(), 50);
    assert!(versions(place.path(), 49).is_ok());
    assert!(versions(place.path(), 48).is_err());
}

/// A process that was killed between a write and its sync leaves what only the page cache has: serving that before it is synced
/// would be taken back by a power cut.
#[test]
fn what_cannot_be_synced_is_not_read() {
    let place = tempfile::tempdir().unwrap();
    filled(place.path());
    fs::remove_file(file(place.path(), "one")).unwrap();
    // Reads as empty, and its sync is an error.
    std::os::unix::fs::symlink("/dev/null", file(place.path(), "one")).unwrap();
    let Err(Fault::Io(why)) = opened(place.path(), 3).map(drop) else { panic!("it is served") };
    assert!(why.contains("journal/one"), "{why}");
}

#[test]
fn records_larger_than_what_is_read_at_once_are_found_and_so_is_damage_before_them() {
    let place = tempfile::tempdir().unwrap();
    let (mut journal, _) = opened(place.path(), 0).unwrap();
    let batches: Vec<Vec<Write>> = (1..8usize).map(|n| vec![(vec![7], Some(vec![n as u8; n * WINDOW / 3]))]).collect();
    for (version, batch) in (1..).zip(&batches) {
        journal.append(version, batch).unwrap();
    }
    assert_eq!(opened(place.path(), 0).unwrap().1.newer, batches);
    let mut bytes = fs::read(file(place.path(), "one")).unwrap();
    for at in [40, WINDOW, 2 * WINDOW + 5] {
        bytes[at] ^= 1;
        fs::write(file(place.path(), "one"), &bytes).unwrap();
        let why = versions(place.path(), 0).unwrap_err();
        assert!(why.contains("behind the damage"), "{at}: {why}");
        bytes[at] ^= 1;
    }
}

#[test]
fn files_are_cut_when_the_engine_has_what_they_hold() {
    let place = tempfile::tempdir().unwrap();
    let (mut journal, _) = opened(place.path(), 0).unwrap();
    let large = vec![(vec![7], Some(vec![7; 10 << 20]))];
    journal.append(1, &large).unwrap();
    journal.switch();
    journal.append(2, &large).unwrap();
    let lengths = || NAMES.map(|name| fs::metadata(file(place.path(), name)).unwrap().len());
    journal.files().cut_left(KEPT);
    assert!(lengths()[0] == KEPT && lengths()[1] > KEPT);
    journal.cut(0);
    assert!(lengths()[1] > KEPT, "it holds a record");
    assert_eq!(versions(place.path(), 1), Ok((0, 1)));
    assert_eq!(lengths(), [KEPT, lengths()[1]]);
    assert_eq!(versions(place.path(), 2), Ok((0, 0)));
    assert_eq!(lengths(), [KEPT, KEPT]);
    let (mut journal, _) = opened(place.path(), 2).unwrap();
    journal.append(3, &batch(3)).unwrap();
    journal.switch();
    journal.cut(0);
    assert_eq!(lengths(), [0, 0]);
    journal.append(4, &batch(4)).unwrap();
    assert_eq!(versions(place.path(), 3), Ok((0, 1)));
}

#[test]
fn a_last_record_that_is_not_whole_is_seen_and_what_an_earlier_use_left_is_not_taken_for_one() {
    let place = tempfile::tempdir().unwrap();
    filled(place.path());
    let torn = |had| opened(place.path(), had).unwrap().1.torn;
    assert!(!torn(0) && !torn(6));
    let whole = fs::read(file(place.path(), "two")).unwrap();
    let last = whole.len() / 3 * 2;
    for at in last..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(file(place.path(), "two"), bytes).unwrap();
        assert!(torn(0) && torn(4), "{at}");
    }
    fs::write(file(place.path(), "two"), &whole).unwrap();
    // The first record of a file that began anew.
    let (mut journal, _) = opened(place.path(), 3).unwrap();
    journal.switch();
    journal.append(7, &batch(7)).unwrap();
    assert!(!torn(3));
    let mut bytes = fs::read(file(place.path(), "one")).unwrap();
    bytes[HEADER + 3] ^= 1;
    fs::write(file(place.path(), "one"), bytes).unwrap();
    assert!(torn(3));
}

fn filled_from(store: &Path, first: Version) {
    let (mut journal, _) = opened(store, first - 1).unwrap();
    journal.append(first, &batch(first)).unwrap();
}

proptest! {
    #[test]
    fn a_changed_byte_never_passes_for_what_was_written(newer: bool, at: prop::sample::Index, mask in 1u8..) {
        let place = tempfile::tempdir().unwrap();
        filled(place.path());
        let path = file(place.path(), if newer { "two" } else { "one" });
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        let in_last = at >= bytes.len() / 3 * 2;
        bytes[at] ^= mask;
        fs::write(&path, bytes).unwrap();
        match versions(place.path(), 0) {
            // As if the very last append had been torn: the note of the last acknowledged version tells them apart.
            Ok(found) => prop_assert!(newer && in_last && found == (3, 2), "{found:?}"),
            Err(_) => prop_assert!(!(newer && in_last)),
        }
    }
}
