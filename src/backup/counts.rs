//! How often key versions had encrypted when their store was replaced: what that store still tells.
//!
//! Counts lie behind the barrier, and whoever exchanges two stores need not have its keys. So the records are carried over as they
//! are, together with the keyring that opens them, and the first unseal of the new store opens them under the same root key:
//!
//! ```text
//! core/given-counts/<last commit>/keyring                                  the replaced store's keyring
//! core/given-counts/<last commit>/logical/<mount>/usage/<key>/<version>    its record of that path, where it is another one
//! ```
//!
//! The record is empty where the replaced store has none any more: the version was deleted there after the backup, and its count
//! with it. The last commit tells replaced stores apart: what a restored store carries that nobody unsealed is passed on. All of it is
//! removed when the mounts have taken it up.

use super::{
    BackupError, Wait,
    given::{MOUNTS, PAGE, version_in},
};
use crate::{
    barrier::{Barrier, BarrierError, KEYRING_PATH, OtherKeys},
    secret::SecretBytes,
    storage::{Record, Storage, StorageError, Txn, Version},
};

/// Where carried counts lie until the first unseal.
pub(super) const COUNTS: &str = "core/given-counts/";
/// The folders of a mount in which counts, and the versions that they count for, lie.
const USAGE: &str = "usage";
const MATERIAL: &str = "material";

/// Paths of records in their mount, each with what is in it where it can be read.
pub type Page = Vec<(String, Option<SecretBytes>)>;

/// Writes what is to be carried into a new store.
pub(super) struct Carrying<'a> {
    new: &'a dyn Storage,
    wait: Wait<'a>,
    /// The last commit of the replaced store.
    last: Version,
    writes: Vec<(String, Vec<u8>)>,
}

impl<'a> Carrying<'a> {
    pub(super) fn to(new: &'a dyn Storage, wait: Wait<'a>) -> Self {
        Self { new, wait, last: 0, writes: Vec::new() }
    }

    /// Looks at a record of the replaced store, whose last commit is `last`.
    pub(super) fn see(&mut self, last: Version, path: &str, record: &Record) -> Result<(), BackupError> {
        self.last = last;
        let to = if path.starts_with(COUNTS) {
            path.to_owned()
        } else if path == KEYRING_PATH {
            format!("{COUNTS}{last:020}/keyring")
        } else if self.is_wanted(path, &record.value)? {
            format!("{COUNTS}{last:020}/{path}")
        } else {
            return Ok(());
        };
        self.push(to, record.value.clone())
    }

    /// Notes the versions of the new store that `old`, all of which was seen, has no count of.
    pub(super) fn note_gone(&mut self, old: &dyn Storage) -> Result<(), BackupError> {
        let mut mount = None::<String>;
        loop {
            let mounts = self.new.list(MOUNTS, mount.as_deref(), PAGE)?;
            let Some(last) = mounts.last() else { return Ok(()) };
            mount = Some(last.clone());
            for mount in &mounts {
                self.note_gone_of(old, &format!("{MOUNTS}{mount}{USAGE}/"))?;
            }
        }
    }

    fn note_gone_of(&mut self, old: &dyn Storage, folder: &str) -> Result<(), BackupError> {
        let mut after = None::<String>;
        loop {
            let found = self.new.scan(folder, after.as_deref(), PAGE)?;
            let Some((last, _)) = found.last() else { return Ok(()) };
            after = Some(last.clone());
            for (path, _) in found {
                if let Some(version) = counted(&path)
                    && old.get(&path)?.is_none()
                    && self.new.get(&version)?.is_some()
                {
                    self.push(format!("{COUNTS}{:020}/{path}", self.last), Vec::new())?;
                }
            }
        }
    }

    fn push(&mut self, path: String, value: Vec<u8>) -> Result<(), BackupError> {
        self.writes.push((path, value));
        if self.writes.len() >= PAGE { self.write() } else { Ok(()) }
    }

    /// Whether it is the count of a version that the new store has too, and another one than is there.
    fn is_wanted(&self, path: &str, value: &[u8]) -> Result<bool, StorageError> {
        let Some(version) = counted(path) else { return Ok(false) };
        Ok(self.new.get(&version)?.is_some() && self.new.get(path)?.is_none_or(|record| record.value != value))
    }

    pub(super) fn write(&mut self) -> Result<(), BackupError> {
        let writes = std::mem::take(&mut self.writes);
        let txn = writes.into_iter().fold(Txn::new(), |txn, (path, value)| txn.put(path, value));
        self.wait.commit(self.new.commit(txn))?;
        Ok(())
    }
}

/// The path of the version that a record counts for, if it is one of those.
fn counted(path: &str) -> Option<String> {
    let (thing, number) = version_in(path)?;
    let (mount, key) = thing.split_once('/')?;
    let key = key.strip_prefix(USAGE)?.strip_prefix('/')?;
    (!key.contains('/')).then(|| format!("{MOUNTS}{mount}/{MATERIAL}/{key}/{number}"))
}

/// What was carried over, and the keys to it.
pub struct Counts(Vec<Store>);

/// What one replaced store had.
pub(super) struct Store {
    folder: String,
    keys: OtherKeys,
}

impl Counts {
    /// What lies in the store behind an open barrier.
    pub async fn of(barrier: &Barrier) -> Result<Self, BarrierError> {
        let storage = barrier.raw();
        let (mut stores, mut after) = (Vec::new(), None::<String>);
        loop {
            let names = storage.list(COUNTS, after.as_deref(), PAGE)?;
            let Some(last) = names.last() else { return Ok(Self(stores)) };
            after = Some(last.clone());
            for name in names {
                let folder = format!("{COUNTS}{name}");
                let keyring = storage.get(&format!("{folder}keyring"))?;
                let keys = barrier.keys_of(keyring.as_ref().map(|record| record.value.as_slice())).await?;
                stores.push(Store { folder, keys });
            }
        }
    }

    pub(super) fn stores(&self) -> impl Iterator<Item = &Store> + Send {
        self.0.iter()
    }
}

/// What one replaced store had of one folder of a mount.
pub(super) struct Pages<'a> {
    storage: &'a dyn Storage,
    store: &'a Store,
    /// The mount's prefix.
    mount: String,
    folder: &'a str,
    after: Option<String>,
    ended: bool,
}

impl<'a> Pages<'a> {
    pub(super) fn of(storage: &'a dyn Storage, store: &'a Store, mount: &str, folder: &'a str) -> Self {
        Self { storage, store, mount: format!("{MOUNTS}{mount}/"), folder, after: None, ended: false }
    }

    fn read(&mut self) -> Result<Page, StorageError> {
        let carried = format!("{}{}{}", self.store.folder, self.mount, self.folder);
        let found = self.storage.scan(&carried, self.after.as_deref(), PAGE)?;
        self.ended = found.len() < PAGE;
        self.after = found.last().map(|(path, _)| path.clone());
        let opened = found.into_iter().filter_map(|(path, record)| {
            let original = path.strip_prefix(&self.store.folder)?;
            let value = self.store.keys.open(original, record.value).ok();
            Some((original.strip_prefix(&self.mount)?.to_owned(), value))
        });
        Ok(opened.collect())
    }
}

impl Iterator for Pages<'_> {
    type Item = Result<Page, StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let page = self.read();
        self.ended |= page.is_err();
        Some(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_told_from_what_else_has_a_number() {
        let material = "logical/u/material/00ff/3";
        assert_eq!(counted("logical/u/usage/00ff/3").as_deref(), Some(material));
        for other in [material, "logical/u/usage/00ff/x", "logical/u/usage/a/b/3", "logical/u/v/usage/3", "core/u/usage/00ff/3"] {
            assert_eq!(counted(other), None, "{other}");
        }
    }
}
