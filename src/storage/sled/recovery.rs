//! What is done before sled opens its files, so that its recovery does no harm.
//!
//! - A write of the table of its pages that was cut off (no room, an error, a kill) leaves `snap.<number>.generating`. sled renames that
//!   file when it is whole, and yet takes one that is there for the newest table, which it then finds damaged, at every opening. It is unfinished by
//!   its name, so it goes.
//! - What it cannot read while it recovers its log, sled takes for absent: a segment whose header or body, or a large value's file, gives
//!   an error ends the log there. It then overwrites what follows, which may be acknowledged records. So everything
//!   that its recovery will read is read before; an error is then the opening's, and nothing was changed. What sled reads after that comes from the page
//!   cache, unless memory is so short that it was dropped again.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::storage::{backend::Fault, sync_folder};

/// Bytes of a segment of sled's log, as it makes its files where nobody says otherwise.
const SEGMENT: u64 = 512 << 10;

/// Bytes at the beginning of a segment: a checksum, the segment's place in the log, and how far the log was stable, little-endian; the
/// latter two with all bits but the highest inverted.
const HEADER: usize = 20;
const INVERTED: i64 = i64::MAX;

const UNFINISHED: &str = ".generating";

/// Removes tables that were never finished.
pub(super) fn remove_unfinished(place: &Path) -> io::Result<()> {
    let mut removed = false;
    for (name, path) in tables(place)? {
        if name.ends_with(UNFINISHED) {
            tracing::warn!(file = %path.display(), "removing what sled was writing when it failed or ended");
            fs::remove_file(path)?;
            removed = true;
        }
    }
    if removed { sync_folder(place) } else { Ok(()) }
}

/// Reads what sled's recovery will read.
pub(super) fn read_beforehand(place: &Path) -> Result<(), Fault> {
    let path = place.join("db");
    let log = match File::open(&path) {
        Ok(log) => log,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unreadable(&path, &error)),
    };
    let length = log.metadata().map_err(|error| unreadable(&path, &error))?.len();
    let stable = stable(place)?;
    let first = stable - stable % i64::try_from(SEGMENT).unwrap_or(i64::MAX);
    let mut segment = vec![0; usize::try_from(SEGMENT).unwrap_or_default()];
    for begin in (0..length).step_by(segment.len()) {
        let bytes = usize::try_from(length - begin).unwrap_or(usize::MAX).min(segment.len());
        let header = segment.get_mut(..HEADER.min(bytes)).unwrap_or_default();
        let mut read = log.read_exact_at(header, begin);
        if read.is_ok() && place_in_log(header).is_some_and(|place| place >= first) {
            read = log.read_exact_at(segment.get_mut(..bytes).unwrap_or_default(), begin);
        }
        read.map_err(|error| unreadable(&path, &error))?;
    }
    read_values(&place.join("blobs"), stable)
}

/// Values in files of their own that are younger than the table. sled names them by their place in the log.
fn read_values(folder: &Path, stable: i64) -> Result<(), Fault> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unreadable(folder, &error)),
    };
    let mut part = vec![0; 64 << 10];
    for entry in entries {
        let path = entry.map_err(|error| unreadable(folder, &error))?.path();
        let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<i64>().ok());
        if number.is_some_and(|number| number >= stable) {
            let mut file = File::open(&path).map_err(|error| unreadable(&path, &error))?;
            while file.read(&mut part).map_err(|error| unreadable(&path, &error))? > 0 {}
        }
    }
    Ok(())
}

fn unreadable(path: &Path, error: &io::Error) -> Fault {
    Fault::Io(format!("{} cannot be read, and sled would take what it cannot read for absent: {error}", path.display()))
}

/// Where in the log a segment belongs, by its header.
fn place_in_log(header: &[u8]) -> Option<i64> {
    let bytes = header.get(4..12)?;
    Some(i64::from_le_bytes(bytes.try_into().ok()?) ^ INVERTED)
}

/// How far the newest table of pages goes, by its name; 0 where there is none.
fn stable(place: &Path) -> Result<i64, Fault> {
    let numbers = tables(place)?.into_iter().filter_map(|(name, _)| i64::from_str_radix(name.strip_prefix("snap.")?, 16).ok());
    Ok(numbers.max().unwrap_or(0))
}

/// The files of tables, unfinished ones among them.
fn tables(place: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(place)? {
        let entry = entry?;
        if let Some(name) = entry.file_name().to_str().filter(|name| name.starts_with("snap.")) {
            found.push((name.to_owned(), entry.path()));
        }
    }
    Ok(found)
}

/// The file that damage is in which sled found when it opened.
pub(super) fn damaged_file(place: &Path, at: Option<&str>) -> PathBuf {
    match at {
        // Without a place in the log it is mostly the table.
        None => tables(place).ok().and_then(|tables| tables.into_iter().max()).map_or_else(|| place.join("db"), |(_, path)| path),
        Some(at) if at.starts_with("Blob") => place.join("blobs"),
        Some(_) => place.join("db"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn filled(place: &Path, records: u32) {
        let db = ::sled::Config::new().path(place).flush_every_ms(None).open().unwrap();
        for n in 0..records {
            db.insert(n.to_be_bytes(), vec![7; 3000]).unwrap();
        }
        db.insert("large", vec![7; 3 << 20]).unwrap();
        db.flush().unwrap();
    }

    #[test]
    fn the_places_of_segments_and_of_the_table_are_read_as_sled_wrote_them() {
        let place = tempfile::tempdir().unwrap();
        filled(place.path(), 1000);
        assert_eq!(stable(place.path()).unwrap(), 0);
        let log = File::open(place.path().join("db")).unwrap();
        let segments = log.metadata().unwrap().len().div_ceil(SEGMENT);
        assert!(segments > 4, "{segments}");
        for n in 0..segments {
            let mut header = [0; HEADER];
            log.read_exact_at(&mut header, n * SEGMENT).unwrap();
            // Nothing was overwritten yet: the log is in its order.
            assert_eq!(place_in_log(&header).map(|place| place % i64::try_from(SEGMENT).unwrap()), Some(0), "segment {n}");
        }
        crate::storage::sled::wait_for_own_predecessor(place.path()).unwrap();
        filled(place.path(), 1);
        let table = stable(place.path()).unwrap();
        assert!(table > i64::try_from(SEGMENT).unwrap(), "{table}");
        read_beforehand(place.path()).unwrap();
    }

    #[test]
    fn what_cannot_be_read_is_an_error_before_sled_sees_it() {
        let place = tempfile::tempdir().unwrap();
        filled(place.path(), 10);
        let blobs = fs::read_dir(place.path().join("blobs")).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
        assert!(!blobs.is_empty());
        read_beforehand(place.path()).unwrap();
        // A folder in the place of a file opens and gives an error when it is read, whoever asks.
        fs::remove_file(&blobs[0]).unwrap();
        fs::create_dir(&blobs[0]).unwrap();
        let Err(Fault::Io(why)) = read_beforehand(place.path()) else { panic!("it was read") };
        assert!(why.contains(blobs[0].to_str().unwrap()), "{why}");
        fs::set_permissions(&blobs[0], fs::Permissions::from_mode(0o700)).unwrap();
    }

    #[test]
    fn unfinished_tables_go_before_sled_opens_and_damaged_ones_are_named() {
        use crate::storage::{
            Options, Sled, Storage,
            conformance::{commit, now},
        };
        let place = tempfile::tempdir().unwrap();
        let open = || Sled::open(place.path(), Options { free_watermark: 0, reserve_bytes: 0, ..Options::default() });
        commit(&open().unwrap(), crate::storage::Txn::new().put("k", b"v".to_vec())).unwrap();
        for content in [&b""[..], b"half of a table that was being written"] {
            let unfinished = place.path().join("snap.7FFFFFFFFFFFFFFF.generating");
            fs::write(&unfinished, content).unwrap();
            let store = open().unwrap();
            assert_eq!(store.get("k").unwrap().unwrap().value, b"v");
            now(store.commit(crate::storage::Txn::new().put("other", content.to_vec()))).unwrap();
            assert!(!unfinished.exists());
        }
        let (_, table) = tables(place.path()).unwrap().into_iter().max().unwrap();
        fs::write(&table, b"").unwrap();
        let error = open().err().unwrap().to_string();
        assert!(error.contains(table.to_str().unwrap()), "{error}");
    }
}
