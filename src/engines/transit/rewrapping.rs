//! Moving stored material to a zone's newest master key after its rotation. Old master keys stay, so nothing is in a
//! hurry and everything may be interrupted: a record that has moved already is passed over.

use std::sync::Arc;

use async_trait::async_trait;

use super::{
    Stores,
    pages::damaged,
    protect::Vault,
    record::{MATERIAL_FOLDER, VersionRecord, decode, encode},
    store::Store,
};
use crate::{
    barrier::{BarrierError, Entry, Txn},
    core::failure::Failure,
    stack,
    storage::StorageError,
    zones::{MasterKeyRef, Rewrap, RewrapStep, ZoneError, Zones},
};

/// How often a record is tried again when others change it.
const TRIES: usize = 8;

#[async_trait]
impl Rewrap for Stores {
    /// The cursor is a mount's uuid, a space, and the path of the last record looked at.
    async fn step(&self, current: &MasterKeyRef, after: Option<&str>, limit: usize) -> Result<RewrapStep, String> {
        let (uuid, path) = after.and_then(|after| after.split_once(' ')).unwrap_or(("", ""));
        let Some((found, store)) = self.next_in_zone(&current.zone, uuid) else { return Ok(RewrapStep::default()) };
        let after = Some(path).filter(|path| !path.is_empty() && found == uuid);
        let mut step = store.rewrap_some(current, after, limit).await.map_err(|failure| failure.to_string())?;
        step.next = match step.next {
            Some(path) => Some(format!("{found} {path}")),
            // On to the next mount: no uuid lies between this one and this one with a `!` behind it.
            None => self.next_in_zone(&current.zone, &format!("{found}!")).map(|(uuid, _)| format!("{uuid} ")),
        };
        Ok(step)
    }
}

impl Stores {
    /// Moves material to the newest master key of every zone, on a task of its own; to be called from time to time.
    /// Costs next to nothing where everything has moved.
    pub fn follow_rotations(self: &Arc<Self>, zones: &Arc<Zones>) {
        let (stores, zones) = (Arc::clone(self), Arc::clone(zones));
        tokio::spawn(stack::overwriting(async move {
            let Ok(_turn) = stores.rewrapping.try_lock() else { return };
            let names = zones.list().unwrap_or_default();
            for zone in names {
                match zones.rewrap(&zone, stores.as_ref()).await {
                    // Why it stopped was said when it was new.
                    Ok(_) | Err(ZoneError::Rewrap(_)) => {}
                    Err(error) => tracing::warn!(%zone, %error, "keys could not be moved to the zone's newest master key"),
                }
            }
        }));
    }
}

impl Store {
    /// Looks at up to `limit` version records behind `after` and moves those under other master keys.
    async fn rewrap_some(&self, current: &MasterKeyRef, after: Option<&str>, limit: usize) -> Result<RewrapStep, Failure> {
        let mut step = RewrapStep::default();
        let records = match self.view.scan(MATERIAL_FOLDER, after, limit) {
            Ok(records) => records,
            Err(error) => match damaged(&self.view, MATERIAL_FOLDER, after, &error) {
                // What lies before it is gone over one by one, then it is passed over.
                Some(path) => match self.view.scan(MATERIAL_FOLDER, after, 1) {
                    Ok(one) => return self.rewrap_all(current, one, 1).await,
                    Err(_) => {
                        step.fails(&path, &error.into());
                        return Ok(RewrapStep { seen: 1, next: Some(path), ..step });
                    }
                },
                None => return Err(error.into()),
            },
        };
        self.rewrap_all(current, records, limit).await
    }

    async fn rewrap_all(
        &self,
        current: &MasterKeyRef,
        records: Vec<(String, Entry)>,
        limit: usize,
    ) -> Result<RewrapStep, Failure> {
        let mut step = RewrapStep::default();
        let full = records.len() >= limit;
        for (path, entry) in records {
            step.seen += 1;
            match self.rewrap_one(current, &path, entry).await? {
                Ok(moved) => step.rewrapped += u64::from(moved),
                // An HSM that is away fails for every record.
                Err(failure) if self.protection.facts().is_err() => return Err(failure),
                Err(failure) => step.fails(&path, &failure),
            }
            step.next = Some(path).filter(|_| full);
        }
        Ok(step)
    }

    /// Whether a record was moved, or why it cannot be; the outer error is that of the store.
    async fn rewrap_one(&self, current: &MasterKeyRef, path: &str, entry: Entry) -> Result<Result<bool, Failure>, Failure> {
        let vault = Vault { protection: &self.protection, zone: &current.zone };
        let mut stored = Some(entry);
        // Changed or deleted meanwhile: it is looked at again.
        for _ in 0..TRIES {
            let Some(entry) = stored else { return Ok(Ok(false)) };
            let mut record: VersionRecord = match decode(&entry.value) {
                Ok(record) => record,
                Err(failure) => return Ok(Err(failure)),
            };
            match vault.move_under(current.id, &mut record).await {
                Ok(true) => {}
                unmoved => return Ok(unmoved),
            }
            let txn = Txn::new().check(path, Entry::unchanged(Some(&entry))).put_secret(path, encode(&record)?);
            match self.view.commit(txn).await {
                Ok(_) => return Ok(Ok(true)),
                Err(BarrierError::Storage(StorageError::Conflict { .. })) => stored = self.view.get(path)?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Err(Failure::unavailable("the record was changed by others again and again")))
    }
}

impl RewrapStep {
    /// Counts a record that cannot be moved.
    fn fails(&mut self, path: &str, failure: &Failure) {
        tracing::warn!(record = path, ?failure, "this key version could not be moved to the zone's newest master key");
        self.failed += 1;
        self.reason.get_or_insert_with(|| match failure.cause() {
            Some(cause) => format!("{path}: {cause}"),
            None => format!("{path}: {failure}"),
        });
    }
}
