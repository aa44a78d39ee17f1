//! What version 2 stores, below the mount's prefix:
//!
//! ```text
//! m/<key>         format byte 1, then a KeyRecord in postcard
//! v/<key>/<n>     format byte 1, created time (8 bytes, big-endian nanoseconds), then the data as JSON
//! given/<key>     8 bytes: the highest number given before a restore
//! config          format byte 1, then a MountRecord in postcard
//! versioned       empty; see `kv::VERSIONED_MARKER`
//! ```
//!
//! The created time in a version's record must be that of its entry in the key's record: so a reader that took the two
//! from different moments (the key was deleted and made again in between) notices it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use time::OffsetDateTime;

use crate::{core::failure::Failure, storage::StorageError, wire::time::rfc3339};

const FORMAT: u8 = 1;
const VERSION_HEADER: usize = 9;

/// Versions kept where neither key nor mount says otherwise.
const DEFAULT_MAX_VERSIONS: u32 = 10;

/// The mount's configuration.
pub const CONFIG_PATH: &str = "config";

/// Below this lie the highest numbers that were given before a restore, as 8 bytes (big-endian), each until its key's next
/// version.
pub const GIVEN_FOLDER: &str = "given/";

/// Where the highest number that was given to a key before a restore lies.
pub fn given_path(key: &str) -> String {
    format!("{GIVEN_FOLDER}{key}")
}

/// Below this lie the key records.
pub const KEYS_FOLDER: &str = "m/";

/// A moment in nanoseconds since 1970.
pub type Nanos = i64;

/// The stored form of a moment; what lies beyond the year 2262 becomes that year.
pub fn nanos(time: OffsetDateTime) -> Nanos {
    i64::try_from(time.unix_timestamp_nanos()).unwrap_or(i64::MAX)
}

/// A stored moment as clients read it.
pub fn shown(nanos: Nanos) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(nanos)).map(rfc3339).unwrap_or_default()
}

/// Where a key's record lies.
pub fn key_path(key: &str) -> String {
    format!("{KEYS_FOLDER}{key}")
}

/// Where a version's record lies. Keys may end in numbers themselves, but only one split at the last slash exists.
pub fn version_path(key: &str, number: u64) -> String {
    format!("v/{key}/{number}")
}

/// One version in its key's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionEntry {
    /// From 1 upwards.
    pub number: u64,
    /// When it was written.
    pub created: Nanos,
    /// From when on it counts as deleted.
    pub deletion: Option<Nanos>,
    /// Whether its data is gone for good.
    pub destroyed: bool,
}

impl VersionEntry {
    /// Whether its data is not to be shown any more.
    pub fn is_gone(&self, now: Nanos) -> bool {
        self.destroyed || self.is_deleted(now)
    }

    /// Whether it was deleted or has expired.
    pub fn is_deleted(&self, now: Nanos) -> bool {
        self.deletion.is_some_and(|deletion| deletion <= now)
    }
}

/// One key: its settings and what is known of its versions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// When the key came to be.
    pub created: Nanos,
    /// When it was last written.
    pub updated: Nanos,
    /// The latest version, 0 before the first.
    pub current: u64,
    /// The oldest version kept, 0 while none was ever dropped.
    pub oldest: u64,
    /// Counts the writes of the settings.
    pub metadata_version: u64,
    /// Versions kept; 0 leaves it to the mount.
    pub max_versions: u32,
    /// Whether writes must name the version that they replace.
    pub cas_required: bool,
    /// Whether writes of the settings must name the `metadata_version` that they replace.
    pub metadata_cas_required: bool,
    /// Life of new versions in seconds; 0 leaves it to the mount.
    pub delete_version_after: u64,
    /// The user's own notes.
    pub custom_metadata: BTreeMap<String, String>,
    /// Versions kept, ascending.
    pub versions: Vec<VersionEntry>,
}

impl KeyRecord {
    /// The entry of a version.
    pub fn version(&self, number: u64) -> Option<&VersionEntry> {
        let index = self.versions.binary_search_by_key(&number, |version| version.number).ok()?;
        self.versions.get(index)
    }

    /// The entry of a version, to be changed.
    pub fn version_mut(&mut self, number: u64) -> Option<&mut VersionEntry> {
        let index = self.versions.binary_search_by_key(&number, |version| version.number).ok()?;
        self.versions.get_mut(index)
    }

    /// Adds the next version and drops those that are now too many; answers their numbers.
    pub fn add_version(&mut self, created: Nanos, deletion: Option<Nanos>, mount_max: u32) -> Vec<u64> {
        self.add_version_above(0, created, deletion, mount_max)
    }

    /// The same with a number above `given`.
    pub fn add_version_above(&mut self, given: u64, created: Nanos, deletion: Option<Nanos>, mount_max: u32) -> Vec<u64> {
        self.current = self.current.max(given) + 1;
        self.versions.push(VersionEntry { number: self.current, created, deletion, destroyed: false });
        self.updated = created;
        if self.created == 0 {
            self.created = created;
        }
        let max = match self.max_versions.max(mount_max) {
            0 => DEFAULT_MAX_VERSIONS,
            max => max,
        };
        // Counted and not reckoned from the numbers: after a restore some may be left out.
        let Some(excess) = self.versions.len().checked_sub(usize::try_from(max).unwrap_or(usize::MAX)) else {
            return Vec::new();
        };
        let dropped = self.versions.drain(..excess).map(|version| version.number).collect();
        self.oldest = self.versions.first().map_or(self.current, |version| version.number);
        dropped
    }

    /// Reads a stored record.
    pub fn decode(path: &str, record: &[u8]) -> Result<Self, Failure> {
        let record: Self = decode(path, record)?;
        if record.oldest > record.current || record.current == u64::MAX {
            return Err(corrupt(path, format!("its versions end at {} and begin at {}", record.current, record.oldest)));
        }
        Ok(record)
    }

    /// The stored form.
    pub fn encode(&self) -> Result<Vec<u8>, Failure> {
        encode(self)
    }
}

/// The mount's settings, which hold for all its keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRecord {
    /// Versions kept per key; 0 for the built-in default.
    pub max_versions: u32,
    /// Whether writes must name the version that they replace.
    pub cas_required: bool,
    /// Whether writes of a key's settings must name the version that they replace.
    pub metadata_cas_required: bool,
    /// Life of new versions in seconds; 0 for no end, -1 switches the keys' own settings off too.
    pub delete_version_after: i64,
}

impl MountRecord {
    /// When a version of `key` that is made (or brought back) now is to be deleted: the shorter life counts.
    pub fn deletion(&self, key: &KeyRecord, now: Nanos) -> Option<Nanos> {
        let mount = u64::try_from(self.delete_version_after).ok()?;
        let life = match (mount, key.delete_version_after) {
            (0, 0) => return None,
            (0, life) | (life, 0) => life,
            (mount, key) => mount.min(key),
        };
        let life = i64::try_from(life).unwrap_or(i64::MAX).saturating_mul(1_000_000_000);
        Some(now.saturating_add(life))
    }

    /// Reads a stored record.
    pub fn decode(record: &[u8]) -> Result<Self, Failure> {
        decode(CONFIG_PATH, record)
    }

    /// The stored form.
    pub fn encode(&self) -> Result<Vec<u8>, Failure> {
        encode(self)
    }
}

/// A version's record.
pub fn encode_version(created: Nanos, json: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(VERSION_HEADER + json.len());
    record.push(FORMAT);
    record.extend_from_slice(&created.to_be_bytes());
    record.extend_from_slice(json);
    record
}

/// Splits a version's record into created time and JSON.
pub fn decode_version<'r>(path: &str, record: &'r [u8]) -> Result<(Nanos, &'r [u8]), Failure> {
    match record.split_first() {
        Some((&FORMAT, rest)) => rest.split_first_chunk::<8>().map(|(created, json)| (Nanos::from_be_bytes(*created), json)),
        _ => None,
    }
    .ok_or_else(|| corrupt(path, "not a version's data".into()))
}

fn encode(record: &impl Serialize) -> Result<Vec<u8>, Failure> {
    postcard::to_extend(record, vec![FORMAT]).map_err(Failure::internal)
}

fn decode<T: DeserializeOwned>(path: &str, record: &[u8]) -> Result<T, Failure> {
    match record.split_first() {
        Some((&FORMAT, rest)) => postcard::from_bytes(rest).map_err(|error| corrupt(path, error.to_string())),
        _ => Err(corrupt(path, "unknown format".into())),
    }
}

/// The failure of a record that is not what was written.
pub fn corrupt(path: &str, reason: String) -> Failure {
    StorageError::Corrupt { key: path.to_owned(), reason }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_of_versions_fills_and_then_moves() {
        let mut key = KeyRecord::default();
        for number in 1..=9 {
            assert!(key.add_version(number, None, 0).is_empty());
            assert_eq!(key.oldest, 0);
        }
        assert!(key.add_version(10, None, 0).is_empty());
        assert_eq!(key.oldest, 1);
        assert_eq!(key.add_version(11, None, 0), [1]);
        key.max_versions = 4;
        assert_eq!(key.add_version(12, None, 0), [2, 3, 4, 5, 6, 7, 8]);
        assert!(key.add_version(13, None, 100).is_empty());
        assert_eq!((key.oldest, key.current, key.versions.len()), (9, 13, 5));
    }

    #[test]
    fn numbers_that_are_left_out_push_no_version_out() {
        let mut key = KeyRecord { max_versions: 3, ..KeyRecord::default() };
        assert!(key.add_version(1, None, 0).is_empty());
        assert!(key.add_version_above(100, 2, None, 0).is_empty());
        assert!(key.add_version_above(100, 3, None, 0).is_empty());
        assert_eq!((key.oldest, key.current), (1, 102));
        assert_eq!(key.add_version_above(7, 4, None, 0), [1]);
        assert_eq!((key.oldest, key.current, key.versions.len()), (101, 103, 3));
    }

    #[test]
    fn the_shorter_life_counts_and_the_mount_can_switch_it_off() {
        let key = |delete_version_after| KeyRecord { delete_version_after, ..KeyRecord::default() };
        let mount = |delete_version_after| MountRecord { delete_version_after, ..MountRecord::default() };
        for (mount_life, key_life, seconds) in [(0, 0, None), (0, 5, Some(5)), (7, 0, Some(7)), (7, 5, Some(5)), (-1, 5, None)] {
            let deletion = mount(mount_life).deletion(&key(key_life), 1);
            assert_eq!(deletion, seconds.map(|seconds: i64| seconds * 1_000_000_000 + 1));
        }
        assert_eq!(mount(0).deletion(&key(u64::MAX), 1), Some(i64::MAX));
    }

    #[test]
    fn records_read_back_and_damage_is_an_error() {
        let mut key = KeyRecord { cas_required: true, ..KeyRecord::default() };
        key.custom_metadata.insert("a".into(), "b".into());
        key.add_version(5, Some(9), 0);
        let stored = key.encode().unwrap();
        assert_eq!(KeyRecord::decode("m/k", &stored).unwrap(), key);
        assert!(KeyRecord::decode("m/k", &stored[..stored.len() - 1]).is_err());
        assert!(KeyRecord::decode("m/k", &[]).is_err());
        assert_eq!(decode_version("v/k/1", &encode_version(-7, b"{}")).unwrap(), (-7, &b"{}"[..]));
        assert!(decode_version("v/k/1", &[1, 2, 3]).is_err());
    }
}
