//! From version 1 to version 2, over the same records.
//!
//! The marker comes first: from then on no engine of version 1 writes any more. Then every record of version 1 becomes
//! version 1 of a key, each move whole in one transaction, so that it can stop anywhere and go on at the next start.

use super::{
    keys::Keys,
    record::{KeyRecord, encode_version, key_path, version_path},
};
use crate::{
    barrier::{BarrierError, Entry, Txn},
    core::failure::Failure,
    engines::{
        kv::{V1_FOLDER, VERSIONED_MARKER},
        kv1,
    },
    storage::{Expect, StorageError},
};

/// Records moved in one transaction.
const BATCH: usize = 200;

/// How often others may come in between.
const CONFLICTS: usize = 16;

/// Moves what version 1 left. Cheap when there is nothing to move.
pub async fn finish(keys: &Keys) -> Result<(), Failure> {
    let view = &keys.view;
    if view.get(VERSIONED_MARKER)?.is_none() {
        let marked = view.commit(Txn::new().check(VERSIONED_MARKER, Expect::Absent).put(VERSIONED_MARKER, Vec::new())).await;
        match marked {
            Ok(_) | Err(BarrierError::Storage(StorageError::Conflict { .. })) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let (mut moved, mut conflicts) = (0, 0);
    loop {
        let records = view.scan(V1_FOLDER, None, BATCH)?;
        if records.is_empty() {
            break;
        }
        match view.commit(moves(keys, &records)?).await {
            Ok(_) => moved += records.len(),
            // Another node moves them too. A key that is in both places for good must not keep the server from starting.
            Err(BarrierError::Storage(StorageError::Conflict { .. })) if conflicts < CONFLICTS => conflicts += 1,
            Err(error) => return Err(error.into()),
        }
    }
    if moved > 0 {
        tracing::info!(secrets = moved, "secrets of version 1 became first versions");
    }
    Ok(())
}

fn moves(keys: &Keys, records: &[(String, Entry)]) -> Result<Txn, Failure> {
    let now = keys.now();
    let mut txn = Txn::new();
    for (path, entry) in records {
        let key = path.strip_prefix(V1_FOLDER).unwrap_or(path);
        let (_, json) = kv1::decode(path, entry.value.expose())?;
        let mut record = KeyRecord::default();
        // Vault makes the first version of an upgraded key the oldest that was ever kept.
        record.add_version(now, None, 1);
        txn = txn
            .check(path, Expect::Version(entry.version))
            .check(key_path(key), Expect::Absent)
            .put(version_path(key, 1), encode_version(now, json))
            .put(key_path(key), record.encode()?)
            .delete(path);
    }
    Ok(txn)
}
