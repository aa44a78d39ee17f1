//! Whose files a store's folder holds. An engine that is given another's folder would make a new, empty store among them; whoever
//! believed that store had lost its records and acknowledged the loss would go on with nothing.

use std::{fs, path::Path};

use super::{Kind, StorageError, folder::Folder, generation, redb, sled};

/// An engine: the name in the configuration, and which names in a folder are of its files.
type Engine = (&'static str, fn(&str) -> bool);

const SLED: Engine = ("sled", sled::is_of_sled);
const REDB: Engine = ("redb", redb::is_of_redb);

/// Says whether a store of this kind could be opened in the folder, as far as that is known without opening it: nothing is made and
/// nothing is changed.
pub(super) fn check(kind: Kind, folder: &Path) -> Result<(), StorageError> {
    let own = match kind {
        Kind::InMem => return Ok(()),
        Kind::Sled => SLED,
        Kind::Redb => REDB,
    };
    refuse_other(kind, folder)?;
    if !folder.exists() {
        return Ok(());
    }
    Folder::probe(folder)?;
    let read = generation::current(folder, own.1);
    read.map(drop).map_err(|error| StorageError::Io(format!("opening the {} store in {}: {error}", own.0, folder.display())))
}

/// Refuses a folder in which the other engine has a store and this one none.
pub(super) fn refuse_other(kind: Kind, folder: &Path) -> Result<(), StorageError> {
    let (own, other) = match kind {
        Kind::InMem => return Ok(()),
        Kind::Sled => (SLED, REDB),
        Kind::Redb => (REDB, SLED),
    };
    let found = |engine: Engine| {
        let first = first_of(folder, engine.1);
        first.or_else(|| generation::places(folder).iter().find_map(|place| first_of(place, engine.1)))
    };
    match found(other) {
        Some(file) if found(own).is_none() => Err(StorageError::Io(format!(
            "the folder {} holds a store of {} ({file}), and the configuration says storage \"{}\": write storage \"{}\", or give {} an empty folder and restore a backup into it",
            folder.display(),
            other.0,
            own.0,
            other.0,
            own.0,
        ))),
        _ => Ok(()),
    }
}

/// A file of an engine in a folder, by its path.
fn first_of(folder: &Path, is_own: fn(&str) -> bool) -> Option<String> {
    let entries = fs::read_dir(folder).ok()?;
    let mut names: Vec<_> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    let name = names.into_iter().find(|name| is_own(name))?;
    Some(folder.join(name).display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Options, StorageConfig, Txn, open};

    fn files(folder: &Path) -> Vec<String> {
        let mut found: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        found.sort();
        found
    }

    #[tokio::test]
    async fn the_folder_of_another_engine_is_refused_before_anything_is_made() {
        for (own, other, name) in [(Kind::Sled, Kind::Redb, "sled"), (Kind::Redb, Kind::Sled, "redb")] {
            let place = tempfile::tempdir().unwrap();
            let of = |kind| StorageConfig { kind, path: Some(place.path().to_owned()), options: Options::default() };
            check(own, &place.path().join("missing")).unwrap();
            check(own, place.path()).unwrap();
            let store = open(&of(own)).unwrap();
            let version = store.commit(Txn::new().put("a", b"b".to_vec())).await.unwrap();
            drop(store);
            crate::storage::wait_until_closed(&of(own)).unwrap();
            let before = files(place.path());
            for error in [check(other, place.path()).err(), open(&of(other)).err()] {
                let error = error.unwrap().to_string();
                assert!(error.contains(&format!("holds a store of {name} (")), "{error}");
                assert!(error.contains(&format!("write storage \"{name}\"")), "{error}");
            }
            assert_eq!(files(place.path()), before);
            check(own, place.path()).unwrap();
            assert_eq!(open(&of(own)).unwrap().get("a").unwrap().unwrap().version, version);
        }
    }

    #[test]
    fn a_store_is_known_by_its_later_generations_too() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("generation-3")).unwrap();
        fs::write(place.path().join("generation-3/sos.redb"), "").unwrap();
        fs::write(place.path().join("current"), "generation 3\n").unwrap();
        let error = check(Kind::Sled, place.path()).unwrap_err().to_string();
        assert!(error.contains("generation-3/sos.redb"), "{error}");
        check(Kind::Redb, place.path()).unwrap();
    }

    #[test]
    fn what_keeps_a_store_from_opening_is_told_without_opening_it() {
        let place = tempfile::tempdir().unwrap();
        let taken = Folder::open(place.path()).unwrap();
        let error = check(Kind::Redb, place.path()).unwrap_err().to_string();
        assert!(error.contains("is in use by another process"), "{error}");
        drop(taken);
        check(Kind::Redb, place.path()).unwrap();
        fs::write(place.path().join("current"), "nonsense").unwrap();
        let error = check(Kind::Redb, place.path()).unwrap_err().to_string();
        assert!(error.contains("does not name a generation"), "{error}");
    }
}
