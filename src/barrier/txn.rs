//! Plaintext transactions and entries, kept apart from the encrypted ones of the store by type.

use crate::secret::SecretBytes;
use crate::storage::{Expect, Version};

/// A decrypted record and the commit that wrote it.
#[derive(Debug)]
pub struct Entry {
    /// The commit that wrote the record; for the checks of a [`Txn`].
    pub version: Version,
    /// The plaintext.
    pub value: SecretBytes,
}

impl Entry {
    /// The expectation that a record is still as it was read.
    pub fn unchanged(read: Option<&Entry>) -> Expect {
        read.map_or(Expect::Absent, |entry| Expect::Version(entry.version))
    }
}

/// A record as it was when it was read, by its path from the root of the store: a transaction of another view may depend on
/// it ([`Txn::while_as`]).
#[derive(Clone, Debug)]
pub struct Stamp {
    path: String,
    expect: Expect,
}

impl Stamp {
    /// The record at `path` as it was read.
    pub fn new(path: impl Into<String>, read: &Entry) -> Self {
        Self { path: path.into(), expect: Entry::unchanged(Some(read)) }
    }

    /// That there is a record at `path`, whatever it says: it need not be read for that.
    pub fn present(path: impl Into<String>) -> Self {
        Self { path: path.into(), expect: Expect::Present }
    }
}

/// Checks and plaintext writes that take effect together or not at all.
#[derive(Debug, Default)]
pub struct Txn {
    pub(super) checks: Vec<(String, Expect)>,
    /// Checks whose paths are from the root of the store, whatever the view.
    pub(super) stamps: Vec<(String, Expect)>,
    pub(super) writes: Vec<(String, Option<SecretBytes>)>,
}

impl Txn {
    /// An empty transaction.
    pub fn new() -> Self {
        Self::default()
    }

    /// Demands something of a path.
    #[must_use]
    pub fn check(mut self, path: impl Into<String>, expect: Expect) -> Self {
        self.checks.push((path.into(), expect));
        self
    }

    /// Demands that a record of whatever view is still as it was.
    #[must_use]
    pub fn while_as(mut self, stamp: Stamp) -> Self {
        self.stamps.push((stamp.path, stamp.expect));
        self
    }

    /// Writes a value; the plaintext is overwritten in memory after encryption.
    #[must_use]
    pub fn put(self, path: impl Into<String>, value: Vec<u8>) -> Self {
        self.put_secret(path, SecretBytes::new(value))
    }

    /// Writes a value that is a secret already.
    #[must_use]
    pub fn put_secret(mut self, path: impl Into<String>, value: SecretBytes) -> Self {
        self.writes.push((path.into(), Some(value)));
        self
    }

    /// Deletes a path; deleting an absent one is no error.
    #[must_use]
    pub fn delete(mut self, path: impl Into<String>) -> Self {
        self.writes.push((path.into(), None));
        self
    }

    /// Adds everything of `other`, whose paths must be of the same view.
    #[must_use]
    pub fn merge(mut self, other: Txn) -> Self {
        self.checks.extend(other.checks);
        self.stamps.extend(other.stamps);
        self.writes.extend(other.writes);
        self
    }

    /// Whether nothing is checked or written.
    pub fn is_empty(&self) -> bool {
        self.checks.is_empty() && self.stamps.is_empty() && self.writes.is_empty()
    }

    /// Number of encryptions it costs.
    pub(super) fn puts(&self) -> u64 {
        self.writes.iter().filter(|(_, value)| value.is_some()).map(|_| 1).sum()
    }
}
