//! What a server owes at the first unseal of a store that was restored from a backup.
//!
//! - The backup must be authentic: the code in it is checked as soon as there is a key to check it by.
//! - What ran after the backup may have encrypted under the keyring's active term: it gets a new one.
//! - It may have encrypted under Transit key versions too: every count of encryptions goes on behind what the replaced store
//!   had (`backup/counts.rs`). Where that is not known, nobody can tell how far, and the log says so.
//! - Version numbers that were given after the backup are not given again: the mounts take up what was carried over from
//!   the replaced store (`backup/given.rs`), or leave numbers out.
//! - Work on an HSM that was under way is forgotten and not undone (`seal/orphans.rs`).
//! - Tokens and leases that expired meanwhile are expired; they are swept before anything is answered.
//!
//! All of it is done before the first request is answered, and done again when a crash came in between.

use std::sync::Arc;

use super::{Active, Core, SWEEP, failure::Failure};
use crate::{
    backup::{BackupError, BackupKey, Counts, Given, RESTORED_PATH, Restored},
    crashpoint::reach,
    storage::{Expect, Txn, Version},
};

/// Looks at the origin of the store behind the barrier that was just opened.
pub(super) async fn admit(core: &Core) -> Result<Option<(Restored, Version)>, Failure> {
    core.backups.set_restored(None);
    let Some((restored, version)) = Restored::load(core.barrier.raw().as_ref())? else { return Ok(None) };
    if !restored.settled {
        // A store without a key never made a backup.
        let key = BackupKey::read(&core.barrier)?.ok_or(BackupError::NotAuthentic)?;
        restored.seal.check(&key)?;
        // What was half-made then may have been finished since and be needed by a newer backup: nothing on an HSM is destroyed.
        core.seal.forget_intents().await?;
        core.services.zones.forget_intents().await?;
        let term = core.barrier.rotate(core.clock.now()).await?;
        tracing::info!(term, "the restored store has a new encryption key");
        reach("restored-rotated");
    }
    Ok(Some((restored, version)))
}

/// With all mounts loaded and none started yet: what ran after the backup has used up more than the records tell.
pub(super) async fn burn(core: &Core, active: &Active, found: Option<&(Restored, Version)>) -> Result<(), Failure> {
    if let Some((restored, _)) = found
        && !restored.settled
    {
        let storage = core.barrier.raw();
        let counts = Counts::of(&core.barrier).await?;
        for mounted in active.router.all() {
            let path = mounted.entry.full_path();
            let given = Given::of(storage.as_ref(), (&mounted.entry.uuid, &path), restored.skip_versions, &counts);
            mounted.engine.restored(&given).await?;
        }
        if !restored.counts_carried {
            tracing::warn!(
                "how often Transit keys encrypted after the backup is not known, as no store that tells it was replaced: rotate keys \
                 that may have come near 2^32 encryptions under one version"
            );
        }
        reach("restored-burnt");
    }
    Ok(())
}

/// Makes good what else is owed, with nothing answered yet.
pub(super) async fn settle(core: &Core, active: &Arc<Active>, found: Option<(Restored, Version)>) -> Result<(), Failure> {
    let Some((mut restored, version)) = found else { return Ok(()) };
    if !restored.settled {
        while active.tokens.sweep(SWEEP).await? == SWEEP {}
        reach("restored-swept");
        Given::forget_all(core.barrier.raw().as_ref()).await?;
        restored.settled = true;
        let json = serde_json::to_vec(&restored).map_err(Failure::internal)?;
        let txn = Txn::new().check(RESTORED_PATH, Expect::Version(version)).put(RESTORED_PATH, json);
        core.barrier.raw().commit(txn).await?;
    }
    tracing::warn!(
        created = %restored.created, restored = %restored.restored, sequence = restored.sequence,
        "this store was restored from a backup: its data is as of {}, and what has been written since", restored.created
    );
    core.backups.set_restored(Some(restored));
    Ok(())
}
