//! Finding out what became of a commit that the store could not answer.
//!
//! After a failed write or sync the store says that the outcome is unknown, and opens its engine afresh. What the engine holds
//! then is what counts. So the records that the commit was to write are read, and written once more as they are: when that is
//! acknowledged, the engine is open again and what was read is durable, whichever way it went.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::record::HEADER_LEN;
use crate::storage::{Expect, Record, Storage, StorageError, Txn, Version};

/// How long what makes keys or hands out shares waits for a store that has failed.
pub(super) const PATIENCE: Duration = if cfg!(test) { Duration::from_millis(40) } else { Duration::from_secs(15) };
/// Between two looks at a store that has failed.
const PAUSE: Duration = if cfg!(test) { Duration::from_millis(5) } else { Duration::from_millis(250) };
/// How often others may change what was read before it is written again.
const CONFLICTS: usize = 16;

/// What became of a commit.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Its records are there, in this version, and durable.
    Landed(Version),
    /// Nothing of it was written.
    NotWritten,
    /// The store does not answer, or others have written there since.
    Unknown,
}

/// By what a commit is recognised.
pub(super) struct Footprint {
    /// Keys with the beginning of what is to stand there; the random nonce of an encrypted record is in it.
    writes: BTreeMap<String, Option<Vec<u8>>>,
    checks: Vec<(String, Expect)>,
}

impl Footprint {
    /// Of a transaction whose first `raw` writes are not encrypted.
    pub(super) fn of(txn: &Txn, raw: usize) -> Self {
        let head = |(at, (key, value)): (usize, &(String, Option<Vec<u8>>))| {
            let length = if at < raw { usize::MAX } else { HEADER_LEN };
            (key.clone(), value.as_ref().map(|value| value.get(..length).unwrap_or(value).to_vec()))
        };
        Self { writes: txn.writes.iter().enumerate().map(head).collect(), checks: txn.checks.clone() }
    }

    /// Looks until the store answers or `patience` is over, and at least once.
    pub(super) async fn outcome(&self, store: &dyn Storage, patience: Duration) -> Outcome {
        let until = Instant::now() + patience;
        loop {
            match self.look(store).await {
                Ok(outcome) => return outcome,
                Err(StorageError::Io(_)) if Instant::now() < until => tokio::time::sleep(PAUSE).await,
                Err(error) => {
                    tracing::error!(%error, "what became of a failed write could not be found out");
                    return Outcome::Unknown;
                }
            }
        }
    }

    async fn look(&self, store: &dyn Storage) -> Result<Outcome, StorageError> {
        let found = confirm(store, self.writes.keys().map(String::as_str)).await?;
        let mut versions = Vec::new();
        let mut landed = true;
        // A key that it was to write and that is still as it was to be before.
        let mut untouched = false;
        for ((key, wanted), Confirmed { record, version }) in self.writes.iter().zip(&found) {
            landed &= match (wanted, record) {
                (Some(head), Some(record)) => record.value.starts_with(head),
                (None, None) => true,
                _ => false,
            };
            versions.push(*version);
            let unchanged = Expect::unchanged(record.as_ref());
            untouched |= self.checks.iter().any(|(checked, expect)| checked == key && *expect == unchanged);
        }
        Ok(match (landed, untouched) {
            (true, _) => Outcome::Landed(versions.into_iter().max().unwrap_or_default()),
            (false, true) => Outcome::NotWritten,
            (false, false) => Outcome::Unknown,
        })
    }
}

/// A record that is durable as it was read.
pub(super) struct Confirmed {
    /// As it was read; `None` where there is nothing.
    record: Option<Record>,
    /// Its version now.
    version: Version,
}

/// Makes what is read at these keys durable: it may come from an engine that has failed and waits for being opened afresh.
pub(super) async fn confirm<'a>(
    store: &dyn Storage,
    keys: impl Iterator<Item = &'a str> + Clone,
) -> Result<Vec<Confirmed>, StorageError> {
    let mut conflicts = 0;
    loop {
        let found = keys.clone().map(|key| store.get(key)).collect::<Result<Vec<_>, _>>()?;
        let checks: Vec<_> =
            keys.clone().zip(&found).map(|(key, record)| (key.to_owned(), Expect::unchanged(record.as_ref()))).collect();
        let again = keys.clone().zip(&found).map(|(key, record)| (key.to_owned(), record.as_ref().map(|r| r.value.clone())));
        let txn = Txn { checks: checks.clone(), writes: again.collect(), ..Txn::new() };
        let written = match store.commit(txn).await {
            Ok(version) => Some(version),
            // A disk without room takes no values, but it tells what is on it.
            Err(StorageError::Full { .. }) => store.commit(Txn { checks, ..Txn::new() }).await.map(|_nothing_written| None)?,
            Err(StorageError::Conflict { .. }) if conflicts < CONFLICTS => {
                conflicts += 1;
                continue;
            }
            Err(error) => return Err(error),
        };
        let confirmed = |record: Option<Record>| {
            let version = written.or(record.as_ref().map(|record| record.version)).unwrap_or_default();
            Confirmed { record, version }
        };
        return Ok(found.into_iter().map(confirmed).collect());
    }
}
