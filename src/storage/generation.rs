//! Which files of a store's folder are the store: a compaction writes a whole new generation beside the current one
//! and then makes it current by one rename.
//!
//! ```text
//! current          "generation 3\n"; while it is missing, the store is the folder itself (generation 0)
//! generation-3/    the engine's files
//! ```
//!
//! A crash before the rename leaves the old generation current and a new one that is cleared away; a crash after it
//! leaves the new one current and the old one to be cleared away. Both hold the same records at that moment.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use tracing::warn;

use super::{backend::Fault, folder::sync_folder};

const CURRENT: &str = "current";
const PREFIX: &str = "generation-";

/// The unit of `st_blocks`, on every file system (stat(3type)).
const BLOCK: u64 = 512;

/// The generation that is the store. `first` tells the names of the engine's files in generation 0.
pub(super) fn current(folder: &Path, first: impl Fn(&str) -> bool) -> io::Result<u64> {
    // After a failed sync of the folder the name may be there and not last: what follows from it, as that old files go, must.
    match sync_folder(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let path = folder.join(CURRENT);
    // Taking another generation for the store would bring back old records, or begin a new store beside the old one.
    let unclear = |why: &str| {
        let what = format!("{} {why}; write \"generation N\" of the newest {PREFIX}N into it", path.display());
        Err(io::Error::other(what))
    };
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let names: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
            let names = || names.iter().filter_map(|name| name.to_str());
            // The first compaction may have been killed before its copy became current.
            let begun = names().any(first);
            let newest = names().filter_map(number).max();
            return match newest {
                None => Ok(0),
                Some(1) if begun => Ok(0),
                Some(_) => unclear("is missing"),
            };
        }
        other => other?,
    };
    named(&text).map_or_else(|| unclear("does not name a generation"), Ok)
}

/// The generation that the note names, which nothing but [`note`] has written.
pub(super) fn named(text: &str) -> Option<u64> {
    let number = text.strip_prefix("generation ")?.strip_suffix('\n')?.parse().ok()?;
    (number > 0 && note(number) == text).then_some(number)
}

/// What `current` says.
pub(super) fn note(generation: u64) -> String {
    format!("generation {generation}\n")
}

/// The number of a generation's folder.
fn number(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

/// Where a generation's files are.
pub(super) fn place(folder: &Path, generation: u64) -> PathBuf {
    match generation {
        0 => folder.to_owned(),
        n => folder.join(format!("{PREFIX}{n}")),
    }
}

/// The folders of all generations but the first, current or not.
pub(super) fn places(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_str().and_then(number).is_some()).map(|entry| entry.path()).collect()
}

/// Makes an empty place for a generation that is not current.
pub(super) fn make(folder: &Path, generation: u64) -> io::Result<PathBuf> {
    let place = place(folder, generation);
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    DirBuilder::new().mode(0o700).create(&place)?;
    Ok(place)
}

/// Makes a generation current whose files are synced already.
pub(super) fn make_current(folder: &Path, generation: u64) -> io::Result<()> {
    sync_folder(&place(folder, generation))?;
    sync_folder(folder)?;
    let new = folder.join("current.new");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
    file.write_all(note(generation).as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, folder.join(CURRENT))?;
    sync_folder(folder)
}

/// Removes what is not of the current generation. `first` tells the names of the engine's files in generation 0, where
/// they lie among others. What cannot be removed now is removed after the next start.
pub(super) fn clear_others(folder: &Path, current: u64, first: impl Fn(&str) -> bool) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let other = name.strip_prefix(PREFIX).is_some_and(|number| number != current.to_string());
        let remains = other || (current > 0 && first(name));
        if !remains {
            continue;
        }
        let path = entry.path();
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        if let Err(error) = removed {
            warn!(path = %path.display(), %error, "the remains of a compaction cannot be removed");
        }
    }
}

/// Bytes that the files in a place, and one folder below it, take of the disk, of those whose names `counts`. redb makes its file
/// twice as long each time it grows: what it has not used of that is a hole and takes nothing.
pub(super) fn bytes(place: &Path, counts: &dyn Fn(&str) -> bool) -> u64 {
    let mut bytes = 0;
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        if !entry.file_name().to_str().is_some_and(counts) {
            continue;
        }
        match entry.metadata() {
            Ok(found) if found.is_dir() => bytes += self::bytes(&entry.path(), &|_| true),
            Ok(found) => bytes += found.blocks() * BLOCK,
            Err(_) => {}
        }
    }
    bytes
}

/// Refuses a copy for which there is no room: an engine's files take up to twice its records when written in order.
pub(super) fn refuse_without_room(folder: &Path, records: u64) -> Result<(), Fault> {
    let free = rustix::fs::statvfs(folder).map_or(u64::MAX, |fs| fs.f_bavail.saturating_mul(fs.f_frsize));
    let needed = records.saturating_mul(2).saturating_add(4 << 20);
    if free < needed {
        return Err(Fault::Full(format!("{needed} bytes are needed in {} and {free} are free", folder.display())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_has_not_used_takes_nothing() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("a")).unwrap();
        let files = ["one", "a/two"].map(|name| fs::File::create(place.path().join(name)).unwrap());
        for mut file in &files {
            file.set_len(64 << 20).unwrap();
            file.write_all(&[1; 1 << 20]).unwrap();
            file.sync_all().unwrap();
        }
        let taken = bytes(place.path(), &|name| name != "other");
        assert!((2 << 20..4 << 20).contains(&taken), "{taken}");
        assert!(bytes(place.path(), &|name| name == "one") < taken);
    }

    #[test]
    fn a_note_that_names_no_generation_is_an_error_and_not_the_first_generation() {
        let place = tempfile::tempdir().unwrap();
        let current = || super::current(place.path(), |name| name == "db");
        assert_eq!(current().unwrap(), 0);
        make(place.path(), 7).unwrap();
        make_current(place.path(), 7).unwrap();
        assert_eq!(current().unwrap(), 7);
        for torn in ["", "generation ", "generation 7", "generation x\n", "generation 0\n", "generation +7\n", "generation 07\n"]
        {
            fs::write(place.path().join(CURRENT), torn).unwrap();
            assert!(current().is_err(), "{torn:?}");
        }
    }

    #[test]
    fn the_note_of_a_folder_that_cannot_be_synced_is_not_followed() {
        // A folder without a sync.
        assert!(current(Path::new("/proc/self"), |_| false).is_err());
    }

    #[test]
    fn a_missing_note_is_an_error_where_a_generation_may_be_the_store() {
        let place = tempfile::tempdir().unwrap();
        let current = || super::current(place.path(), |name| name == "db");
        make(place.path(), 1).unwrap();
        assert!(current().unwrap_err().to_string().contains("is missing"));
        // The copy of a first compaction that was killed.
        fs::write(place.path().join("db"), "").unwrap();
        assert_eq!(current().unwrap(), 0);
        make(place.path(), 2).unwrap();
        assert!(current().is_err());
    }

    #[test]
    fn only_other_generations_are_cleared_away() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path();
        (1..4).for_each(|n| drop(make(path, n).unwrap()));
        fs::write(path.join("db"), "old").unwrap();
        fs::write(path.join("lock"), "").unwrap();
        clear_others(path, 0, |name| name == "db");
        assert!(path.join("db").exists() && !path.join("generation-1").exists());
        (1..4).for_each(|n| drop(make(path, n).unwrap()));
        clear_others(path, 2, |name| name == "db");
        let mut left: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["generation-2", "lock"]);
    }
}
