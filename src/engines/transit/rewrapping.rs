//! Moving stored material to a zone's newest master key after its rotation. Old master keys stay, so nothing is in a
//! hurry and everything may be interrupted: a record that has moved already is passed over.

use std::sync::Arc;

use async_trait::async_trait;

use super::{
    Stores, Transit,
    protect::ZoneKeys,
    record::{Secrets, StoredKey, VersionRecord, decode, encode},
    store::Store,
};
use crate::{
    barrier::{BarrierError, Entry, Txn},
    core::failure::Failure,
    stack,
    storage::StorageError,
    zones::{MasterKeyRef, Rewrap, RewrapStep, Zones},
};

#[async_trait]
impl Rewrap for Stores {
    /// The cursor is a mount's uuid, a space, and the path of the last record looked at.
    async fn step(&self, current: &MasterKeyRef, after: Option<&str>, limit: usize) -> Result<RewrapStep, String> {
        let (uuid, path) = after.and_then(|after| after.split_once(' ')).unwrap_or(("", ""));
        let nothing = RewrapStep { rewrapped: 0, seen: 0, next: None };
        let Some((found, store)) = self.next_in_zone(&current.zone, uuid) else { return Ok(nothing) };
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
                if let Err(error) = zones.rewrap(&zone, stores.as_ref()).await {
                    tracing::warn!(%zone, %error, "keys could not be moved to the zone's newest master key; it goes on later");
                }
            }
        }));
    }
}

impl Store {
    /// Looks at up to `limit` version records behind `after` and moves those under other master keys.
    async fn rewrap_some(&self, current: &MasterKeyRef, after: Option<&str>, limit: usize) -> Result<RewrapStep, Failure> {
        let mut step = RewrapStep { rewrapped: 0, seen: 0, next: None };
        let Some(zones) = &self.protection.zones else { return Ok(step) };
        let records = self.view.scan("material/", after, limit)?;
        let full = records.len() >= limit;
        for (path, entry) in records {
            step.seen += 1;
            if self.rewrap_one(zones.as_ref(), current, &path, entry).await? {
                step.rewrapped += 1;
            }
            step.next = Some(path).filter(|_| full);
        }
        Ok(step)
    }

    async fn rewrap_one(&self, zones: &dyn ZoneKeys, current: &MasterKeyRef, path: &str, entry: Entry) -> Result<bool, Failure> {
        let zone = &current.zone;
        let mut record: VersionRecord = decode(&entry.value)?;
        let mut moved = false;
        if let StoredKey::Hsm(wrapped) = &record.key
            && wrapped.wrapped_by != current.id
        {
            record.key = StoredKey::Hsm(zones.rewrap_key(zone, wrapped).await?);
            moved = true;
        }
        match &record.secrets {
            Secrets::Zone(material) if material.data_key.wrapped_by != current.id => {
                record.secrets = Secrets::Zone(zones.rewrap(zone, material).await?);
                moved = true;
            }
            Secrets::Zone(_) | Secrets::Barrier(_) => {}
        }
        if !moved {
            return Ok(false);
        }
        let txn = Txn::new().check(path, Entry::unchanged(Some(&entry))).put_secret(path, encode(&record)?);
        match self.view.commit(txn).await {
            Ok(_) => Ok(true),
            // Changed or deleted meanwhile: whoever did it used the newest master key.
            Err(BarrierError::Storage(StorageError::Conflict { .. })) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Transit {
    /// Destroys every object on the HSM that belongs to the mount, before the mount's records are deleted.
    pub async fn destroy_all_objects(&self) -> Result<(), Failure> {
        const PAGE: usize = 256;
        let mut after: Option<String> = None;
        loop {
            let records = self.store.view.scan("material/", after.as_deref(), PAGE)?;
            let full = records.len() >= PAGE;
            for (path, entry) in records {
                let record: VersionRecord = decode(&entry.value)?;
                if let StoredKey::Token(id) = record.key {
                    self.store.protection.hsm()?.destroy(id).await?;
                }
                after = Some(path);
            }
            if !full {
                break;
            }
        }
        self.find_doomed()?;
        self.destroy_doomed().await;
        if self.store.doomed.lock().is_empty() {
            return Ok(());
        }
        Err(Failure::unavailable("objects of this mount are still in the HSM"))
    }
}
