//! What can be done to a key, and what it does: pure decisions over the key as it is stored.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    keys::Keys,
    metadata::MetadataChange,
    patch,
    record::{self, KeyRecord, MountRecord, Nanos, VersionEntry, encode_version, given_path, key_path, version_path},
    show,
};
use crate::{
    barrier::{Entry, Txn},
    core::{failure::Failure, reply::Reply},
    secret::SecretBytes,
    storage::Expect,
};

/// Which version a write expects to replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cas {
    /// It does not say.
    None,
    /// This one; 0 stands for none, and negative numbers match nothing.
    Version(i64),
}

/// A change of one key. It owns everything, as it may be applied more than once.
#[derive(Debug)]
pub enum Change {
    /// A new version.
    Write {
        /// The data as JSON.
        data: SecretBytes,
        /// The expectation.
        cas: Cas,
    },
    /// A new version that merges a patch into the latest one.
    Patch {
        /// The JSON merge patch.
        patch: SecretBytes,
        /// The expectation.
        cas: Cas,
    },
    /// Deletes the latest version, so that it can be brought back.
    DeleteLatest,
    /// Deletes versions, so that they can be brought back.
    Delete(Vec<i64>),
    /// Brings deleted versions back.
    Undelete(Vec<i64>),
    /// Deletes the data of versions for good.
    Destroy(Vec<i64>),
    /// Changes the settings.
    Metadata(MetadataChange),
    /// Removes the key with all its versions.
    Remove,
}

impl Change {
    /// About how many bytes it adds to a transaction.
    pub fn size(&self) -> usize {
        match self {
            Change::Write { data, .. } => data.len(),
            Change::Patch { patch, .. } => patch.len(),
            _ => 0,
        }
    }
}

/// A key while changes are applied to it.
pub struct State<'a> {
    keys: &'a Keys,
    key: &'a str,
    read: Expect,
    record: Option<KeyRecord>,
    written: BTreeMap<u64, SecretBytes>,
    dropped: BTreeSet<u64>,
    /// A number given before a restore has been passed.
    passed_given: bool,
    changed: bool,
}

impl<'a> State<'a> {
    /// The key as it is stored.
    pub fn read(keys: &'a Keys, key: &'a str) -> Result<Self, Failure> {
        let stored = keys.entry(key)?;
        let read = Entry::unchanged(stored.as_ref().map(|(entry, _)| entry));
        let record = stored.map(|(_, record)| record);
        let (written, dropped) = (BTreeMap::new(), BTreeSet::new());
        Ok(Self { keys, key, read, record, written, dropped, passed_given: false, changed: false })
    }

    /// The transaction that stores what was changed. Where nothing was, it demands that the key is as it was read: what is answered
    /// rests on that, and after a failure the store may show what will not last.
    pub fn into_txn(self) -> Result<Txn, Failure> {
        let path = key_path(self.key);
        if !self.changed && path.ends_with('/') {
            // No key has such a name.
            return Ok(Txn::new());
        }
        let mut txn = Txn::new().check(&path, self.read);
        if !self.changed {
            return Ok(txn);
        }
        let latest = self.record.as_ref().map(|record| record.current);
        for number in self.dropped {
            let path = version_path(self.key, number);
            // The record's name stays where it is the only one that tells how far the numbers went (`backup/given.rs`).
            txn = match latest == Some(number) {
                true => txn.put(path, Vec::new()),
                false => txn.delete(path),
            };
        }
        if self.passed_given {
            txn = txn.delete(given_path(self.key));
        }
        for (number, data) in self.written {
            txn = txn.put_secret(version_path(self.key, number), data);
        }
        Ok(match self.record {
            Some(record) => txn.put(path, record.encode()?),
            None => txn.delete(path),
        })
    }

    /// Applies a change, or refuses it and stays as it is.
    pub fn apply(&mut self, change: &Change, config: &MountRecord) -> Result<Reply, Failure> {
        let now = self.keys.now();
        match change {
            Change::Write { data, cas } => {
                check_cas(*cas, config, self.record.as_ref())?;
                self.add_version(data.expose(), config, now)
            }
            Change::Patch { patch, cas } => self.patch(patch.expose(), *cas, config, now),
            Change::DeleteLatest => {
                let latest = self.record.as_ref().map_or(0, |record| record.current);
                self.each([latest], |version, _| delete(version, now))
            }
            Change::Delete(numbers) => self.each(valid(numbers), |version, _| delete(version, now)),
            Change::Undelete(numbers) => self.each(valid(numbers), |version, record| {
                let deletion = config.deletion(record, now);
                let changes = !version.destroyed && version.deletion != deletion;
                if changes {
                    version.deletion = deletion;
                }
                changes
            }),
            Change::Destroy(numbers) => self.destroy(numbers),
            Change::Metadata(change) => self.change_metadata(change, config, now),
            Change::Remove => {
                self.remove();
                Ok(Reply::empty())
            }
        }
    }

    fn add_version(&mut self, json: &[u8], config: &MountRecord, now: Nanos) -> Result<Reply, Failure> {
        let given = self.keys.given(self.key)?;
        let record = self.record.get_or_insert_default();
        let deletion = config.deletion(record, now);
        let trimmed = record.add_version_above(given, now, deletion, config.max_versions);
        self.passed_given |= given > 0;
        let number = record.current;
        self.written.insert(number, SecretBytes::new(encode_version(now, json)));
        self.dropped.remove(&number);
        self.changed = true;
        let reply = record.version(number).map(|version| show::version_reply(version, record));
        for number in trimmed {
            self.drop_version(number);
        }
        reply.ok_or_else(|| Failure::internal("a version that was just added is not there"))
    }

    fn drop_version(&mut self, number: u64) {
        self.written.remove(&number);
        self.dropped.insert(number);
    }

    fn patch(&mut self, patch: &[u8], cas: Cas, config: &MountRecord, now: Nanos) -> Result<Reply, Failure> {
        let Some(record) = &self.record else { return Ok(show::nothing()) };
        check_cas(cas, config, Some(record))?;
        let Some(version) = record.version(record.current) else { return Ok(show::nothing()) };
        if version.is_gone(now) {
            return Ok(show::version_reply(version, record).with_status(404));
        }
        let merged = SecretBytes::new(patch::merge(self.data(version)?.expose(), patch)?);
        self.add_version(merged.expose(), config, now)
    }

    /// The data of a version, as an earlier change of the batch left it or as it is stored.
    fn data(&self, version: &VersionEntry) -> Result<SecretBytes, Failure> {
        let path = version_path(self.key, version.number);
        let strip = |record: &SecretBytes| {
            record::decode_version(&path, record.expose()).map(|(_, json)| SecretBytes::new(json.to_vec()))
        };
        if let Some(record) = self.written.get(&version.number) {
            return strip(record);
        }
        match self.keys.view.get(&path)? {
            Some(entry) => strip(&entry.value),
            None => Err(record::corrupt(&path, "the version's data is missing".into())),
        }
    }

    /// Changes the named versions; those that do not exist are passed over.
    fn each(
        &mut self,
        numbers: impl IntoIterator<Item = u64>,
        change: impl Fn(&mut VersionEntry, &KeyRecord) -> bool,
    ) -> Result<Reply, Failure> {
        if let Some(record) = &mut self.record {
            let settings = KeyRecord { delete_version_after: record.delete_version_after, ..KeyRecord::default() };
            for number in numbers {
                if let Some(version) = record.version_mut(number) {
                    self.changed |= change(version, &settings);
                }
            }
        }
        Ok(Reply::empty())
    }

    fn destroy(&mut self, numbers: &[i64]) -> Result<Reply, Failure> {
        for number in valid(numbers) {
            let version = self.record.as_mut().and_then(|record| record.version_mut(number));
            if let Some(version) = version.filter(|version| !version.destroyed) {
                version.destroyed = true;
                self.changed = true;
                self.drop_version(number);
            }
        }
        Ok(Reply::empty())
    }

    fn change_metadata(&mut self, change: &MetadataChange, config: &MountRecord, now: Nanos) -> Result<Reply, Failure> {
        if self.record.is_none() && change.is_patch {
            return Ok(show::nothing());
        }
        change.check_cas(self.record.as_ref(), config)?;
        let record = self.record.get_or_insert_with(|| KeyRecord { created: now, ..KeyRecord::default() });
        record.metadata_version += 1;
        record.updated = now;
        change.apply(record);
        self.changed = true;
        Ok(change.warnings(config))
    }

    fn remove(&mut self) {
        if let Some(record) = self.record.take() {
            for version in record.versions {
                self.drop_version(version.number);
            }
            self.changed = true;
        }
    }
}

fn valid(numbers: &[i64]) -> impl Iterator<Item = u64> + '_ {
    numbers.iter().filter_map(|number| u64::try_from(*number).ok())
}

fn delete(version: &mut VersionEntry, now: Nanos) -> bool {
    let changes = !version.is_gone(now);
    if changes {
        version.deletion = Some(now);
    }
    changes
}

fn check_cas(cas: Cas, config: &MountRecord, record: Option<&KeyRecord>) -> Result<(), Failure> {
    match cas {
        Cas::None if config.cas_required || record.is_some_and(|record| record.cas_required) => {
            Err(Failure::invalid("check-and-set parameter required for this call"))
        }
        Cas::Version(version) if u64::try_from(version).ok() != Some(record.map_or(0, |record| record.current)) => {
            Err(Failure::invalid("check-and-set parameter did not match the current version"))
        }
        _ => Ok(()),
    }
}
