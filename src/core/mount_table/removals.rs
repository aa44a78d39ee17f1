//! What is left of removed mounts goes in the background: first what they held outside the store, then their records.
//!
//! A removal is durable by its record `removed/<uuid>`, which stays until nothing is left. Whatever ends the work in between (a crash,
//! sealing, an HSM that is away), it goes on with what the mount's records still tell. Removals take turns, and none of them keeps a
//! change of mounts or other periodic work waiting.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{MountTable, decode};
use crate::{
    barrier::{Stamp, Txn, View},
    core::{
        Core,
        failure::Failure,
        mounts::{MountEntry, Table},
    },
    engines,
};

/// Records deleted in one transaction while a mount's data goes.
const BATCH: usize = 500;
/// How long one removal goes on before the others get their turn.
const TURN: Duration = Duration::from_secs(1);
/// The records of removals.
const REMOVED: &str = "removed/";

/// The path of a mount's record, in the view of `core/`, while what is left of it goes.
pub(super) fn removed_path(uuid: &str) -> String {
    format!("{REMOVED}{uuid}")
}

/// A removal's turn.
pub struct Removal {
    table: View,
    path: String,
    ends: Instant,
}

/// What is left at the end of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// Something: there was no time for it.
    Something,
}

impl Removal {
    /// A turn of so long for the removal of the mount with this uuid; `table` is the view of `core/`.
    pub fn turn(table: &View, uuid: &str, budget: Duration) -> Self {
        Self { table: table.clone(), path: removed_path(uuid), ends: Instant::now() + budget }
    }

    /// What of the turn is left.
    pub fn time_left(&self) -> Duration {
        self.ends.saturating_duration_since(Instant::now())
    }

    /// Whether to go on at all, to be asked before anything is destroyed outside the store.
    ///
    /// # Errors
    /// 503 once the server was sealed, or the store holds no such removal any more: an older one was restored.
    pub fn check(&self) -> Result<(), Failure> {
        match self.table.get(&self.path)? {
            Some(_) => Ok(()),
            None => Err(Failure::unavailable("the store does not say any more that this mount is being removed")),
        }
    }

    /// What every commit of the removal depends on: that the store holds the removal.
    pub fn stamp(&self) -> Stamp {
        Stamp::present(format!("{}{}", self.table.prefix(), self.path))
    }
}

impl MountTable {
    /// Goes on with all removals, turn by turn, until nothing is left or none can go on now. Does nothing while that is being done
    /// already. Ends when `serving` says no.
    pub async fn finish_removals(&self, core: &Arc<Core>, serving: impl Fn() -> bool + Send + Sync) -> Result<(), Failure> {
        let Ok(_alone) = self.removing.try_lock() else { return Ok(()) };
        // Those that have to wait for something; the next tick tries them again.
        let mut waiting = BTreeSet::new();
        loop {
            let mut removals = self.removals(core).await?;
            removals.retain(|entry| !waiting.contains(&entry.uuid));
            if removals.is_empty() {
                return Ok(());
            }
            for entry in removals {
                if !serving() {
                    return Ok(());
                }
                if let Err(failure) = self.go_on(core, &entry).await {
                    if serving() && self.told.is_news(format!("{} {failure}", entry.uuid)) {
                        tracing::warn!(mount = %entry.full_path(), error = ?failure, "what is left of a removed mount is not gone yet; it is tried again every few seconds");
                    }
                    waiting.insert(entry.uuid);
                }
            }
        }
    }

    /// The mounts of which something is left.
    async fn removals(&self, core: &Arc<Core>) -> Result<Vec<MountEntry>, Failure> {
        // What the router still shows is not among them: after a commit of unknown end it is looked first what became of it.
        let _one = self.changing.lock().await;
        self.settle(core).await?;
        let mut removals = Vec::new();
        for uuid in self.view.list(REMOVED, None, usize::MAX)? {
            match self.removal(&removed_path(&uuid)) {
                Ok(entry) => removals.extend(entry),
                // The others go on.
                Err(failure) if failure.is_damage() => {
                    if self.told.is_news(&uuid) {
                        tracing::error!(
                            record = removed_path(&uuid), error = ?failure,
                            "the record of a removed mount cannot be read: what is left of that mount stays, in the store and in the HSM; restore a backup to have it removed"
                        );
                    }
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(removals)
    }

    fn removal(&self, path: &str) -> Result<Option<MountEntry>, Failure> {
        self.view.get(path)?.map(|entry| decode(path, &entry)).transpose()
    }

    /// One turn. What a mount holds outside the store goes before its records: these tell what there is, so they wait for an HSM
    /// that is away.
    async fn go_on(&self, core: &Arc<Core>, entry: &MountEntry) -> Result<(), Failure> {
        let removal = Removal::turn(&self.view, &entry.uuid, TURN);
        // Auth methods hold nothing else than records.
        if entry.table == Table::Secret {
            match self.context(core, entry).and_then(engines::build) {
                Ok(engine) => {
                    if engine.retire(&removal).await? == Left::Something {
                        return Ok(());
                    }
                }
                Err(failure) => {
                    tracing::error!(mount = %entry.full_path(), error = ?failure, "a removed mount has no engine; what it held outside the store stays");
                }
            }
        }
        self.delete_data(entry, &removal).await
    }

    async fn delete_data(&self, entry: &MountEntry, removal: &Removal) -> Result<(), Failure> {
        let data = self.data(entry)?;
        loop {
            let records = match data.scan("", None, BATCH) {
                Ok(records) => records.into_iter().map(|(path, _)| path).collect(),
                // A record need not be readable to be deleted.
                Err(error) => match error.damaged().and_then(|path| path.strip_prefix(data.prefix())) {
                    Some(path) => {
                        tracing::warn!(mount = %entry.full_path(), record = path, "a damaged record of a removed mount is deleted");
                        vec![path.to_owned()]
                    }
                    None => return Err(error.into()),
                },
            };
            if records.is_empty() {
                break;
            }
            data.commit(records.into_iter().fold(Txn::new(), Txn::delete).while_as(removal.stamp())).await?;
            if removal.time_left().is_zero() {
                return Ok(());
            }
        }
        self.view.commit(Txn::new().delete(removed_path(&entry.uuid))).await?;
        Ok(())
    }
}
