//! The journal that stands before an engine: every batch is appended and synced here, and that is its commit. The engine takes
//! what was written some time later, many batches at once (see [`super::journaled`]).
//!
//! Two files in `journal/`, used in turn. A file begins anew, over its old content, when the engine has durably what it holds: its blocks
//! exist already, so that a sync writes data and nothing else. Records follow each other from the beginning of the file:
//!
//! ```text
//! "SOSj" | length of the writes (4 bytes) | version of the record before (8) | version (8) | CRC-32 of all but itself, and the place (4) | writes
//! a write: length of the key (2) | length of the value, or 0xffffffff for a deletion (4) | key | value
//! ```
//!
//! Numbers are big endian. The version is that of the batch's [`SEQUENCE`] record, which also tells what the engine has already. A record
//! that names another one before it than was found shows that something is missing; so do whole records behind a damaged one.
//! A torn record at the very end was never acknowledged.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{
    Version,
    backend::{Fault, Write},
    folder::{Folder, sync_folder},
};
use crate::crashpoint::{reach, sync_is_skipped};

const FOLDER: &str = "journal";
const NAMES: [&str; 2] = ["one", "two"];

const MAGIC: &[u8; 4] = b"SOSj";
const HEADER: usize = 28;
/// The length of a value that is no value.
const DELETED: u32 = u32::MAX;

/// A file that grew beyond this is cut when it begins anew.
const KEPT: u64 = 8 << 20;

/// An open journal.
pub(super) struct Journal {
    folder: PathBuf,
    files: [File; 2],
    /// The file that is appended to, and where.
    current: usize,
    at: u64,
    /// Of the last record.
    last: Version,
    buffer: Vec<u8>,
}

/// The batches that were found in a file, oldest first.
pub(super) type Batches = Vec<Vec<Write>>;

/// What the engine does not have yet.
#[derive(Default)]
pub(super) struct Found {
    /// Of the file that is not appended to.
    pub(super) older: Batches,
    /// Of the file that is.
    pub(super) newer: Batches,
}

impl Journal {
    /// Opens or makes the files in a store's folder; [`Journal::read`] must come next.
    pub(super) fn open(store: &Path) -> Result<Self, Fault> {
        let folder = store.join(FOLDER);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let open = |name| -> io::Result<File> {
            let path = folder.join(name);
            let is_new = !path.exists();
            let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)?;
            if is_new {
                file.sync_all()?;
            }
            Ok(file)
        };
        let files = [open(NAMES[0])?, open(NAMES[1])?];
        sync_folder(&folder)?;
        sync_folder(store)?;
        Ok(Self { folder, files, current: 0, at: 0, last: 0, buffer: Vec::new() })
    }

    /// Reads what an engine that ends at `version` does not have, and goes on behind it.
    pub(super) fn read(&mut self, version: Version) -> Result<Found, Fault> {
        Folder::forget_cached(&self.folder);
        let [one, two] = [self.read_file(0, version)?, self.read_file(1, version)?];
        self.current = usize::from(two.last() > one.last());
        let [older, newer] = if self.current == 0 { [two, one] } else { [one, two] };
        self.last = version;
        let mut found = Found::default();
        // A file whose content the engine has begins anew.
        self.at = if newer.last() > version { newer.end } else { 0 };
        for (records, batches) in [(older.records, &mut found.older), (newer.records, &mut found.newer)] {
            for record in records.into_iter().filter(|record| record.version > version) {
                // The first may lead over what the engine has.
                if record.previous > self.last || (self.last > version && record.previous != self.last) {
                    return Err(Fault::Corrupt(format!(
                        "{}: the journal goes from version {} to {}, which came after {}, so acknowledged writes are missing; restore a backup",
                        self.folder.display(),
                        self.last,
                        record.version,
                        record.previous
                    )));
                }
                self.last = record.version;
                batches.push(record.writes);
            }
        }
        Ok(found)
    }

    /// Appends a batch and syncs. After an error the journal must be read again before it is used.
    pub(super) fn append(&mut self, version: Version, batch: &[Write]) -> Result<(), Fault> {
        let mut record = std::mem::take(&mut self.buffer);
        record.clear();
        record.resize(HEADER, 0);
        for (key, value) in batch {
            write_one(&mut record, key, value.as_deref())?;
        }
        seal(&mut record, self.at, self.last, version)?;
        let file = self.file();
        file.write_all_at(&record, self.at)?;
        reach("commit-applied");
        if !sync_is_skipped() {
            file.sync_data()?;
        }
        reach("commit-flushed");
        self.at += u64::try_from(record.len()).unwrap_or(u64::MAX);
        self.last = version;
        record.shrink_to(1 << 20);
        self.buffer = record;
        Ok(())
    }

    /// Goes on at the beginning of the other file, whose content the engine must have.
    pub(super) fn switch(&mut self) {
        self.current = 1 - self.current;
        self.at = 0;
        let file = self.file();
        if file.metadata().is_ok_and(|found| found.len() > KEPT) {
            // Only to give room back.
            let _ = file.set_len(KEPT);
        }
    }

    fn file(&self) -> &File {
        let [one, two] = &self.files;
        if self.current == 0 { one } else { two }
    }

    /// `had` is the version that the engine ends at: what an earlier use left in a file is not newer.
    fn read_file(&self, which: usize, had: Version) -> Result<Records, Fault> {
        let path = self.folder.join(NAMES.get(which).unwrap_or(&""));
        let bytes = fs::read(&path).map_err(|error| Fault::Io(format!("{}: {error}", path.display())))?;
        let mut records = Records::default();
        let mut at = 0;
        while let Some((record, end)) = record_at(&bytes, at) {
            // Of an earlier use of the file.
            if record.version <= records.last() {
                break;
            }
            records.records.push(record);
            at = end;
        }
        records.end = u64::try_from(at).unwrap_or(u64::MAX);
        let behind = bytes.get(at..).unwrap_or_default();
        let starts = behind.windows(MAGIC.len()).enumerate().filter(|(_, window)| *window == MAGIC).map(|(start, _)| at + start);
        for start in starts {
            if let Some((record, _)) = record_at(&bytes, start)
                && record.version > records.last().max(had)
            {
                let what = "is damaged, and acknowledged writes stand behind the damage; restore a backup";
                return Err(Fault::Corrupt(format!("{} {what} (byte {at})", path.display())));
            }
        }
        Ok(records)
    }
}

/// What one file holds.
#[derive(Default)]
struct Records {
    records: Vec<Record>,
    /// Where the next one would begin.
    end: u64,
}

impl Records {
    fn last(&self) -> Version {
        self.records.last().map_or(0, |record| record.version)
    }
}

struct Record {
    previous: Version,
    version: Version,
    writes: Vec<Write>,
}

fn write_one(record: &mut Vec<u8>, key: &[u8], value: Option<&[u8]>) -> Result<(), Fault> {
    let too_long = |_| Fault::Io("a key or value is too long for the journal".into());
    let length = value.map_or(Ok(DELETED), |value| u32::try_from(value.len())).map_err(too_long)?;
    record.extend_from_slice(&u16::try_from(key.len()).map_err(too_long)?.to_be_bytes());
    record.extend_from_slice(&length.to_be_bytes());
    record.extend_from_slice(key);
    record.extend_from_slice(value.unwrap_or_default());
    Ok(())
}

/// Fills the header of a record whose writes are there.
fn seal(record: &mut [u8], at: u64, previous: Version, version: Version) -> Result<(), Fault> {
    let too_long = || Fault::Io("a batch is too long for the journal".into());
    let (header, writes) = record.split_at_mut_checked(HEADER).ok_or_else(too_long)?;
    let length = u32::try_from(writes.len()).map_err(|_long| too_long())?;
    let summed = [MAGIC.as_slice(), &length.to_be_bytes(), &previous.to_be_bytes(), &version.to_be_bytes()].concat();
    let sum = checksum(&summed, at, writes);
    header.copy_from_slice(&[summed.as_slice(), &sum.to_be_bytes()].concat());
    Ok(())
}

fn checksum(header: &[u8], at: u64, writes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(&at.to_be_bytes());
    hasher.update(writes);
    hasher.finalize()
}

/// The whole record at a place, and where it ends.
fn record_at(bytes: &[u8], at: usize) -> Option<(Record, usize)> {
    let (summed, rest) = bytes.get(at..)?.split_at_checked(HEADER - 4)?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let (magic, numbers) = summed.split_first_chunk::<4>()?;
    let (length, numbers) = numbers.split_first_chunk::<4>()?;
    let (previous, numbers) = numbers.split_first_chunk::<8>()?;
    let (version, _) = numbers.split_first_chunk::<8>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let writes = rest.get(..length)?;
    if magic != MAGIC || u32::from_be_bytes(*sum) != checksum(summed, u64::try_from(at).ok()?, writes) {
        return None;
    }
    let (previous, version) = (Version::from_be_bytes(*previous), Version::from_be_bytes(*version));
    Some((Record { previous, version, writes: read_writes(writes)? }, at + HEADER + length))
}

fn read_writes(mut bytes: &[u8]) -> Option<Vec<Write>> {
    let mut writes = Vec::new();
    while !bytes.is_empty() {
        let (key_length, rest) = bytes.split_first_chunk::<2>()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (key, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*key_length)))?;
        let length = u32::from_be_bytes(*length);
        let (value, rest) = match length {
            DELETED => (None, rest),
            _ => rest.split_at_checked(usize::try_from(length).ok()?).map(|(value, rest)| (Some(value.to_vec()), rest))?,
        };
        writes.push((key.to_vec(), value));
        bytes = rest;
    }
    Some(writes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
}
