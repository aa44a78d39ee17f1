//! A storage prefix that its holder cannot leave.

use std::sync::Arc;

use super::{Barrier, BarrierError, Entry, Txn};
use crate::storage::{Names, Version};

/// The barrier below one prefix. Paths are only ever appended to the prefix; relative segments are refused.
#[derive(Clone, Debug)]
pub struct View {
    barrier: Arc<Barrier>,
    prefix: Arc<str>,
}

impl View {
    /// A view of everything below `prefix`; a trailing `/` is added when it is missing.
    ///
    /// # Errors
    /// [`BarrierError::Path`] for an empty prefix or one with relative segments.
    pub fn new(barrier: Arc<Barrier>, prefix: &str) -> Result<Self, BarrierError> {
        checked(prefix)?;
        if prefix.is_empty() || prefix.starts_with('/') {
            return Err(BarrierError::Path(prefix.to_owned()));
        }
        let prefix = if prefix.ends_with('/') { prefix.to_owned() } else { format!("{prefix}/") };
        Ok(Self { barrier, prefix: prefix.into() })
    }

    /// A smaller view below this one.
    ///
    /// # Errors
    /// As [`View::new`].
    pub fn sub(&self, name: &str) -> Result<Self, BarrierError> {
        if name.is_empty() || name.starts_with('/') {
            return Err(BarrierError::Path(name.to_owned()));
        }
        Self::new(self.barrier.clone(), &self.absolute(name)?)
    }

    /// The prefix, with its trailing `/`.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether nothing can be read here now.
    pub fn is_sealed(&self) -> bool {
        self.barrier.is_sealed()
    }

    /// The decrypted record at `path`.
    pub fn get(&self, path: &str) -> Result<Option<Entry>, BarrierError> {
        self.barrier.get(&self.absolute(path)?)
    }

    /// The same of a record that may be large (see [`Barrier::get_long`]).
    pub async fn get_long(&self, path: &str) -> Result<Option<Entry>, BarrierError> {
        self.barrier.get_long(&self.absolute(path)?).await
    }

    /// Names one level below `prefix`, which is empty or ends in `/` (see [`crate::storage::Storage::list`]).
    pub fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, BarrierError> {
        self.barrier.list(&self.absolute(prefix)?, after, limit)
    }

    /// As [`View::list`], for lists that may be long (see [`Barrier::list_long`]).
    pub async fn list_long(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Names, BarrierError> {
        self.barrier.list_long(&self.absolute(prefix)?, after, limit).await
    }

    /// Decrypted records below `prefix`; paths, also `after`, are relative to this view.
    pub fn scan(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<(String, Entry)>, BarrierError> {
        let after = after.map(|path| self.absolute(path)).transpose()?;
        let found = self.barrier.scan(&self.absolute(prefix)?, after.as_deref(), limit)?;
        Ok(found
            .into_iter()
            .map(|(path, entry)| (path.strip_prefix(&*self.prefix).map(str::to_owned).unwrap_or(path), entry))
            .collect())
    }

    /// Commits a transaction whose paths are relative to this view.
    pub async fn commit(&self, txn: Txn) -> Result<Version, BarrierError> {
        self.barrier.commit(self.lift(txn)?).await
    }

    /// The same for what is kept in memory too (see [`Barrier::commit_surely`]).
    pub async fn commit_surely(&self, txn: Txn) -> Result<Version, BarrierError> {
        self.barrier.commit_surely(self.lift(txn)?).await
    }

    /// Makes durable what is stored at these paths (see [`Barrier::confirm`]).
    pub async fn confirm(&self, paths: impl Iterator<Item = &str>) -> Result<(), BarrierError> {
        let paths = paths.map(|path| self.absolute(path)).collect::<Result<Vec<_>, _>>()?;
        self.barrier.confirm(&paths.iter().map(String::as_str).collect::<Vec<_>>()).await
    }

    /// Commits a transaction of this view and one of another view over the same barrier as one.
    ///
    /// # Errors
    /// [`BarrierError::Path`] when the views lie over different barriers.
    pub async fn commit_with(&self, txn: Txn, other: &View, other_txn: Txn) -> Result<Version, BarrierError> {
        if !Arc::ptr_eq(&self.barrier, &other.barrier) {
            return Err(BarrierError::Path(other.prefix.to_string()));
        }
        self.barrier.commit(self.lift(txn)?.merge(other.lift(other_txn)?)).await
    }

    /// The same transaction with paths from the root of the store, to be merged with those of other views and given to
    /// [`Barrier::commit`] by whoever owns all of them.
    pub fn lift(&self, txn: Txn) -> Result<Txn, BarrierError> {
        let checks = txn.checks.into_iter().map(|(path, expect)| Ok((self.absolute(&path)?, expect)));
        let writes = txn.writes.into_iter().map(|(path, value)| Ok((self.absolute(&path)?, value)));
        Ok(Txn {
            checks: checks.collect::<Result<_, BarrierError>>()?,
            stamps: txn.stamps,
            writes: writes.collect::<Result<_, BarrierError>>()?,
        })
    }

    fn absolute(&self, path: &str) -> Result<String, BarrierError> {
        checked(path)?;
        Ok([&*self.prefix, path].concat())
    }
}

fn checked(path: &str) -> Result<(), BarrierError> {
    if path.contains('.') && path.split('/').any(|segment| segment == ".." || segment == ".") {
        return Err(BarrierError::Path(path.to_owned()));
    }
    Ok(())
}
