//! The bytes of the journal's files, without any file: batches to records and back.
//!
//! ```text
//! "SOSj" | length of the writes (4 bytes) | version of the record before (8) | version (8) | CRC-32 of all but itself, and the place (4) | writes
//! a write: length of the key (2) | length of the value, or 0xffffffff for a deletion (4) | key | value
//! ```
//!
//! Numbers are big endian. No length is believed that the file does not have the bytes for.

use super::super::{
    Version,
    backend::{Fault, Write},
};

const MAGIC: &[u8; 4] = b"SOSj";
pub(super) const HEADER: usize = 28;
/// The length of a value that is no value.
const DELETED: u32 = u32::MAX;

/// One batch as it was found.
pub(in crate::storage) struct Record {
    /// Of the record before.
    pub(in crate::storage) previous: Version,
    pub(in crate::storage) version: Version,
    pub(in crate::storage) writes: Vec<Write>,
}

/// What one file holds.
#[derive(Default)]
pub(in crate::storage) struct Records {
    /// Oldest first.
    pub(in crate::storage) records: Vec<Record>,
    /// Where the next one would begin.
    pub(in crate::storage) end: usize,
}

impl Records {
    /// Reads a file from its beginning. `had` is the version that the engine ends at: what an earlier use left in a file is not
    /// newer.
    ///
    /// # Errors
    /// Where the damage is, when records that the engine does not have stand behind it.
    pub(in crate::storage) fn read(bytes: &[u8], had: Version) -> Result<Self, usize> {
        let mut found = Self::default();
        while let Some((record, end)) = record_at(bytes, found.end) {
            // Of an earlier use of the file.
            if record.version <= found.last() {
                break;
            }
            found.records.push(record);
            found.end = end;
        }
        let behind = bytes.get(found.end..).unwrap_or_default();
        let mut starts = behind.windows(MAGIC.len()).enumerate().filter(|(_, window)| *window == MAGIC);
        let newest = found.last().max(had);
        match starts.any(|(start, _)| record_at(bytes, found.end + start).is_some_and(|(record, _)| record.version > newest)) {
            true => Err(found.end),
            false => Ok(found),
        }
    }

    /// The last version, 0 when there is none.
    pub(in crate::storage) fn last(&self) -> Version {
        self.records.last().map_or(0, |record| record.version)
    }
}

/// What both files hold that the engine does not have, and where the journal goes on.
pub(in crate::storage) struct Joined {
    /// The file that is appended to, and where.
    pub(in crate::storage) current: usize,
    pub(in crate::storage) at: usize,
    /// Of the last record.
    pub(in crate::storage) last: Version,
    /// Of the file that is not appended to.
    pub(in crate::storage) older: Vec<Vec<Write>>,
    /// Of the file that is.
    pub(in crate::storage) newer: Vec<Vec<Write>>,
}

/// Records are missing between two others.
pub(in crate::storage) struct Gap {
    /// The last version before it.
    pub(in crate::storage) last: Version,
    /// The first version behind it, and the one that it came after.
    pub(in crate::storage) version: Version,
    pub(in crate::storage) previous: Version,
}

/// Puts the two files in order behind an engine that ends at `had`.
pub(in crate::storage) fn join([one, two]: [Records; 2], had: Version) -> Result<Joined, Gap> {
    let current = usize::from(two.last() > one.last());
    let [older, newer] = if current == 0 { [two, one] } else { [one, two] };
    // A file whose content the engine has begins anew.
    let at = if newer.last() > had { newer.end } else { 0 };
    let mut joined = Joined { current, at, last: had, older: Vec::new(), newer: Vec::new() };
    for (records, batches) in [(older.records, &mut joined.older), (newer.records, &mut joined.newer)] {
        for Record { previous, version, writes } in records.into_iter().filter(|record| record.version > had) {
            // The first may lead over what the engine has.
            if previous > joined.last || (joined.last > had && previous != joined.last) {
                return Err(Gap { last: joined.last, version, previous });
            }
            joined.last = version;
            batches.push(writes);
        }
    }
    Ok(joined)
}

/// Puts the record of a batch into `record`, for the place `at` of a file.
pub(in crate::storage) fn encode(
    record: &mut Vec<u8>,
    batch: &[Write],
    at: u64,
    previous: Version,
    version: Version,
) -> Result<(), Fault> {
    record.clear();
    record.resize(HEADER, 0);
    for (key, value) in batch {
        write_one(record, key, value.as_deref())?;
    }
    seal(record, at, previous, version)
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
pub(in crate::storage) fn seal(record: &mut [u8], at: u64, previous: Version, version: Version) -> Result<(), Fault> {
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
    // Versions only grow.
    if version <= previous {
        return None;
    }
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
