//! Version numbers that were given and must not be given again: what the store that a restore replaces still tells.
//!
//! The name of a version's record ends in its number, `logical/<mount>/<what>/<number>`, and names are readable. So the
//! numbers that the replaced store gave after the backup can be carried over without any key:
//!
//! ```text
//! core/given-versions/<mount>/<what>   the highest number, in decimal; removed when the mounts have taken them up
//! ```
//!
//! How often the versions that both stores know have encrypted is carried over beside them (`counts.rs`).

use std::collections::BTreeMap;

use super::{
    BackupError, Restored, Wait,
    counts::{self, Counts, Pages},
    restore::RESTORED_PATH,
};
use crate::storage::{Storage, StorageError, Txn};

/// Where carried numbers lie until the first unseal.
const GIVEN: &str = "core/given-versions/";
/// Where the records of mounts lie.
pub(super) const MOUNTS: &str = "logical/";
/// Records looked at, and numbers noted, at a time.
pub(super) const PAGE: usize = 1000;
const PAGE_BYTES: usize = 1 << 20;
/// Numbers collected before they are written.
const COLLECTED: usize = 10_000;

/// What the mounts of a restored store learn of the numbers that were given.
pub struct Given<'a> {
    storage: &'a dyn Storage,
    mount: &'a str,
    counts: Option<&'a Counts>,
    /// Where it is mounted, for the log.
    pub path: &'a str,
    /// Numbers left out behind the highest one known.
    pub skip: u64,
}

impl<'a> Given<'a> {
    /// The numbers and the counts of the mount with this uuid, which is mounted at `path`.
    pub fn of(storage: &'a dyn Storage, (mount, path): (&'a str, &'a str), skip: u64, counts: &'a Counts) -> Self {
        Self { storage, mount, counts: Some(counts), path, skip }
    }

    /// Nothing carried over, and so many numbers to leave out.
    #[cfg(test)]
    pub fn skipping(storage: &'a dyn Storage, skip: u64) -> Self {
        Self { storage, mount: "none", counts: None, path: "none/", skip }
    }

    /// What lies below `folder` in the mount, without the folder, each with its highest number; behind `after`.
    pub fn page(&self, folder: &str, after: Option<&str>) -> Result<Vec<(String, u64)>, StorageError> {
        let prefix = format!("{GIVEN}{}/{folder}", self.mount);
        let after = after.map(|after| format!("{prefix}{after}"));
        let found = self.storage.scan(&prefix, after.as_deref(), PAGE)?;
        let entry = |(path, record): (String, crate::storage::Record)| {
            let name = path.strip_prefix(&prefix).unwrap_or(&path).to_owned();
            Ok((name, number(&record.value).ok_or(StorageError::Corrupt { key: path, reason: "it is no number".into() })?))
        };
        found.into_iter().map(entry).collect()
    }

    /// Counts of encryptions that differ from what this mount has below `folder`, as their records' paths in the mount and what
    /// the replaced stores had there; some at a time, and a path again where there was a store before the replaced one.
    pub fn counts(&self, folder: &'a str) -> impl Iterator<Item = Result<counts::Page, StorageError>> + Send {
        let (storage, mount) = (self.storage, self.mount);
        self.counts.into_iter().flat_map(Counts::stores).flat_map(move |store| Pages::of(storage, store, mount, folder))
    }

    /// Removes what all mounts have taken up.
    pub async fn forget_all(storage: &dyn Storage) -> Result<(), StorageError> {
        for folder in [GIVEN, counts::COUNTS] {
            loop {
                let found = storage.scan(folder, None, PAGE)?;
                if found.is_empty() {
                    break;
                }
                storage.commit(found.into_iter().fold(Txn::new(), |txn, (path, _)| txn.delete(path))).await?;
            }
        }
        Ok(())
    }
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// What a record's name says: the thing and the number of its version.
pub(super) fn version_in(path: &str) -> Option<(&str, u64)> {
    let (thing, number) = path.strip_prefix(MOUNTS)?.rsplit_once('/')?;
    let canonical = number.starts_with(|first: char| first.is_ascii_digit() && first != '0');
    // A mount's uuid, a folder, a name.
    let deep = thing.split('/').count() >= 3;
    (canonical && deep).then(|| Some((thing, number.parse().ok()?)))?
}

/// Carries the numbers over that `old` has given and `new`, filled from a backup, does not know, and the counts that `old` has
/// gone on with. Where `old` cannot be read to its end, numbers are left out instead.
pub(crate) fn carry(old: &dyn Storage, new: &dyn Storage, wait: Wait<'_>) -> Result<(), BackupError> {
    let mut collected = Collected { new, wait, highest: BTreeMap::new(), counts: counts::Carrying::to(new, wait) };
    let whole = collected.all_of(old)?;
    if whole {
        collected.counts.note_gone(old)?;
    } else {
        let why = "the replaced store cannot be read to its end";
        tracing::warn!("{why}: version numbers are left out, so that none is given twice");
    }
    // A restored store that nobody unsealed yet has numbers of its own to pass on.
    let earlier = Restored::load(old).ok().flatten().map(|(earlier, _)| earlier).filter(|earlier| !earlier.settled);
    amend(new, wait, |restored| {
        let least = [(!whole).then_some(super::restore::SKIPPED), earlier.as_ref().map(|earlier| earlier.skip_versions)];
        restored.skip_versions = least.into_iter().flatten().fold(restored.skip_versions, u64::max);
        restored.counts_carried &= whole && earlier.as_ref().is_none_or(|earlier| earlier.counts_carried);
    })?;
    collected.write()?;
    collected.counts.write()
}

/// Changes what the new store remembers of its origin.
fn amend(new: &dyn Storage, wait: Wait<'_>, change: impl FnOnce(&mut Restored)) -> Result<(), BackupError> {
    let Some((before, _)) = Restored::load(new)? else { return Ok(()) };
    let mut restored = before.clone();
    change(&mut restored);
    if restored != before {
        let json = serde_json::to_vec(&restored).map_err(|error| BackupError::Damaged(error.to_string()))?;
        wait.commit(new.commit(Txn::new().put(RESTORED_PATH, json)))?;
    }
    Ok(())
}

struct Collected<'a> {
    new: &'a dyn Storage,
    wait: Wait<'a>,
    highest: BTreeMap<String, u64>,
    counts: counts::Carrying<'a>,
}

impl Collected<'_> {
    /// Whether all of it could be read.
    fn all_of(&mut self, old: &dyn Storage) -> Result<bool, BackupError> {
        let mut snapshot = match self.wait.snapshot(old) {
            Ok(snapshot) => snapshot,
            Err(error) => {
                tracing::warn!(%error, "the replaced store cannot be read");
                return Ok(false);
            }
        };
        let mut whole = true;
        let last = snapshot.version();
        loop {
            let page = match snapshot.page(PAGE, PAGE_BYTES) {
                Ok(page) => page,
                Err(StorageError::Corrupt { .. }) => {
                    whole = false;
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%error, "the replaced store cannot be read");
                    return Ok(false);
                }
            };
            if page.is_empty() {
                return Ok(whole);
            }
            for (path, record) in &page {
                self.counts.see(last, path, record)?;
                match (version_in(path), path.strip_prefix(GIVEN)) {
                    (Some((thing, found)), _) if self.new.get(path)?.is_none() => self.note(thing, found)?,
                    (None, Some(thing)) => self.note(thing, number(&record.value).unwrap_or(0))?,
                    _ => {}
                }
            }
        }
    }

    fn note(&mut self, thing: &str, number: u64) -> Result<(), BackupError> {
        let highest = self.highest.entry(thing.to_owned()).or_default();
        *highest = number.max(*highest);
        if self.highest.len() >= COLLECTED { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<(), BackupError> {
        let mut txn = Txn::new();
        for (thing, highest) in std::mem::take(&mut self.highest) {
            let path = format!("{GIVEN}{thing}");
            let known = self.new.get(&path)?.and_then(|record| number(&record.value)).unwrap_or(0);
            txn = txn.put(path, highest.max(known).to_string().into_bytes());
        }
        self.wait.commit(self.new.commit(txn))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::InMem;

    #[test]
    fn only_canonical_numbers_behind_a_mount_and_a_folder_are_versions() {
        assert_eq!(version_in("logical/u/v/a/b/17"), Some(("u/v/a/b", 17)));
        assert_eq!(version_in("logical/u/material/00ff/3"), Some(("u/material/00ff", 3)));
        for other in
            ["logical/u/v/3", "logical/u/v/a/03", "logical/u/v/a/+3", "logical/u/v/a/3x", "core/a/b/c/3", "logical/u/m/a"]
        {
            assert_eq!(version_in(other), None, "{other}");
        }
    }

    #[test]
    fn what_the_new_store_does_not_know_is_carried_over_also_from_a_store_that_was_never_unsealed() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let wait = Wait(runtime.handle());
        let store = |paths: &[&str]| {
            let store = InMem::open().unwrap();
            let txn = paths.iter().fold(Txn::new().put("core/x", vec![]), |txn, path| txn.put(*path, b"v".to_vec()));
            wait.commit(store.commit(txn)).unwrap();
            store
        };
        let old = store(&["logical/u/v/a/1", "logical/u/v/a/10", "logical/u/v/a/9", "logical/u/v/a/9/4", "logical/u/v/same/2"]);
        let (new, later) = (store(&["logical/u/v/a/1", "logical/u/v/same/2"]), store(&["logical/u/v/a/1"]));
        carry(&old, &new, wait).unwrap();
        let noted = |store: &dyn Storage| {
            let given = Given { storage: store, mount: "u", path: "u/", counts: None, skip: 0 };
            given.page("v/", None).unwrap()
        };
        let expected = [("a".to_owned(), 10), ("a/9".to_owned(), 4)];
        assert_eq!(noted(&new), expected);
        carry(&new, &later, wait).unwrap();
        assert_eq!(noted(&later)[..2], expected);
        runtime.block_on(Given::forget_all(&later)).unwrap();
        assert!(noted(&later).is_empty());
    }
}
