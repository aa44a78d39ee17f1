//! `sys/storage/raft/snapshot`: backups as Vault's clients take and restore them.
//!
//! <https://developer.hashicorp.com/vault/api-docs/system/storage/raft>. The archive is SOS's own (`backup/archive.rs`), laid
//! out so that clients tell a complete one. As in Vault, `snapshot-force` takes a backup of another cluster; it is also
//! what gives up writes that are newer than the backup.

use std::{collections::HashSet, sync::Arc};

use parking_lot::Mutex;

use super::System;
use crate::{
    backup::{Asked, BackupError, Header, Needs, Source, some_of},
    core::{
        Core,
        engine::Call,
        failure::Failure,
        reply::{Body, Reply},
        request::Operation,
        route::{Access, Route},
    },
    hsm::{KeyId, Status},
    op,
    wire::field::NoParams,
};

const SNAPSHOT: &str = "sys/storage/raft/snapshot";
const FORCE: &str = "sys/storage/raft/snapshot-force";
/// More numbers than anybody leaves out, and few enough that clients with 32-bit integers go on working.
const MOST_SKIPPED: u64 = 1_000_000_000;

/// Endpoints of this file.
pub const ROUTES: &[Route<System>] = &[
    Route {
        patterns: &["storage/raft/snapshot"],
        access: Access::Token,
        help: "Takes a backup of everything, or puts one in the place of everything.",
        exists: None,
        operations: &[op!(Read, "Take a backup", take, NoParams).making(), op!(Write, "Restore a backup", restore)],
    },
    Route {
        patterns: &["storage/raft/snapshot-force"],
        access: Access::Token,
        help: "Restores a backup also where it is older than what runs, of another cluster, or needs keys that are not here.",
        exists: None,
        operations: &[op!(Write, "Restore a backup whatever is here", restore_force)],
    },
];

/// The same for a server that holds no cluster.
pub const EMPTY: &[Route<System>] = &[
    Route {
        patterns: &["storage/raft/snapshot"],
        access: Access::Anyone,
        help: "Restores a backup into an empty server.",
        exists: None,
        operations: &[op!(Write, "Restore a backup", restore)],
    },
    Route {
        patterns: &["storage/raft/snapshot-force"],
        access: Access::Anyone,
        help: "Restores a backup into an empty server, also where it needs keys that are not here.",
        exists: None,
        operations: &[op!(Write, "Restore a backup", restore_force)],
    },
];

/// Whether a request's body is read while it arrives.
pub fn takes_upload(path: &str, operation: Operation) -> bool {
    operation == Operation::Update && (path == SNAPSHOT || path == FORCE)
}

/// A snapshot of the store as it is now.
pub async fn source(core: &Arc<Core>) -> Result<Source, BackupError> {
    let hsm_only = {
        let core = Arc::clone(core);
        move || core.hsm_only_keys().map_err(|failure| failure.to_string())
    };
    Source::take(&core.seal, &core.services.zones, hsm_only, &core.settings.storage_type, core.clock.now()).await
}

async fn take(system: &System, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    let core = system.core()?;
    let download = core.backups.stream(source(&core)).await?;
    Ok(Reply { body: Body::Stream { content_type: "application/gzip", download }, ..Reply::default() })
}

async fn restore(system: &System, call: &Call<'_>) -> Result<Reply, Failure> {
    put_back(system, call, false).await
}

async fn restore_force(system: &System, call: &Call<'_>) -> Result<Reply, Failure> {
    put_back(system, call, true).await
}

async fn put_back(system: &System, call: &Call<'_>, force: bool) -> Result<Reply, Failure> {
    let core = system.core()?;
    let archive = call.request.upload.as_ref().and_then(|upload| upload.take());
    let archive = archive.ok_or_else(|| Failure::invalid("the body must be a backup"))?;
    let asked = Asked { force, skip_versions: skip_versions(call)? };
    let handle = tokio::runtime::Handle::current();
    let forced: Arc<Mutex<Option<String>>> = Arc::default();
    let admit = {
        let (core, forced) = (Arc::clone(&core), Arc::clone(&forced));
        move |header: &Header| match handle.block_on(missing_keys(&core, header)) {
            Some(why) if !force => Err(BackupError::Refused(why)),
            Some(why) => {
                tracing::warn!("restoring with force: {why}");
                *forced.lock() = Some(why);
                Ok(())
            }
            None => Ok(()),
        }
    };
    core.backups.restore(&core.seal, archive, asked, call.now, admit, || core.services.transit.forget()).await?;
    // With its HSM the server opens the new store at once; otherwise it waits for shares, as after a start.
    core.seal.auto_unseal().await;
    let forced = forced.lock().take();
    Ok(match forced {
        Some(why) => Reply::empty().with_warning(why),
        None => Reply::empty(),
    })
}

/// The query's `skip_versions`: how many version numbers every secret and Transit key leaves out.
fn skip_versions(call: &Call<'_>) -> Result<Option<u64>, Failure> {
    let given = call.request.query.get("skip_versions");
    let number = |texts: &[String]| if let [text] = texts { text.parse::<u64>().ok() } else { None };
    let parsed = given.map(|texts| number(texts).filter(|count| *count <= MOST_SKIPPED));
    match parsed {
        Some(None) => Err(Failure::invalid(format!("skip_versions must be a number from 0 to {MOST_SKIPPED}"))),
        Some(count) => Ok(count),
        None => Ok(None),
    }
}

/// What a restore would lose for good: keys that only an HSM has, and none of those that are ready here.
fn lost_keys(needs: &Needs, held: &HashSet<KeyId>) -> Option<String> {
    let lost = needs.lost_without(held);
    (!lost.is_empty()).then(|| {
        format!(
            "the HSMs that are ready here do not hold these keys of the backup, and nothing else has them: {}. What they encrypted              would be lost; restoring with force gives it up",
            some_of(&lost)
        )
    })
}

/// What a backup needs and is not here.
async fn missing_keys(core: &Core, header: &Header) -> Option<String> {
    let needs = &header.needs;
    if needs.hsms.is_empty() {
        return None;
    }
    let why = match core.services.hsm.as_ref().filter(|hsm| hsm.in_use()) {
        None => "no HSM is in use here".to_owned(),
        Some(hsm) => match hsm.status() {
            Status::Ready(_) => match hsm.find("sos/").await {
                Ok(found) if needs.hsms.iter().any(|need| found.iter().any(|object| object.id == Some(need.seal_key))) => {
                    let held = found.into_iter().filter_map(|object| object.id).collect();
                    return lost_keys(needs, &held);
                }
                Ok(_) => "the HSM here does not hold its seal key".to_owned(),
                Err(error) => error.to_string(),
            },
            Status::Starting => "the HSM is still starting".to_owned(),
            Status::Down { reason, .. } => format!("the HSM is not available ({})", reason.word()),
        },
    };
    Some(format!(
        "the backup opens with {}; {why}, so only shares would open it. Restoring with force does so all the same",
        needs.sentence()
    ))
}
