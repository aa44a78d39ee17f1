//! The journal in a folder.

use proptest::prelude::*;

use super::{records::HEADER, *};

fn batch(version: Version) -> Vec<Write> {
    vec![(format!("k/{version}").into_bytes(), Some(vec![7; 300])), (b"gone".to_vec(), None)]
}

fn opened(store: &Path, had: Version) -> Result<(Journal, Found), Fault> {
    let mut journal = Journal::open(store)?;
    let found = journal.read(had)?;
    Ok((journal, found))
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
