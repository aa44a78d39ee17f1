//! `sys/sos/hsm`: a lost HSM's keys onto a new one, and objects on the tokens that no record names.

use std::collections::HashSet;

use serde::Serialize;

use super::System;
use crate::{
    core::{
        Core,
        engine::Call,
        failure::Failure,
        reply::Reply,
        route::{Access, Route},
    },
    engines::transit::survey,
    hsm::KeyId,
    op,
    seal::{Orphan, SealError},
    secret::SecretString,
    wire::field::NoParams,
};

/// Endpoints of this file.
pub const ROUTES: &[Route<System>] = &[
    Route {
        patterns: &["sos/hsm/recover"],
        access: Access::Sudo,
        help: "Puts the seal key and the zone master keys that the HSM lacks onto it, from escrow. The server is to be unsealed by the shares before.",
        exists: None,
        operations: &[op!(Write, "Put lost keys onto the HSM", recover, RecoverParams)],
    },
    Route {
        patterns: &["sos/hsm/orphans"],
        access: Access::Sudo,
        help: "Shows objects under this cluster's label on the HSMs that no record names: keys that were made after the backup that was restored, or belong to an HSM that was removed.",
        exists: None,
        operations: &[op!(Read, "Show objects without a record", orphans, NoParams)],
    },
    Route {
        patterns: &["sos/hsm/orphans/{id}"],
        access: Access::Sudo,
        help: "Destroys an object that no record names. What a newer backup needs of it is lost.",
        exists: None,
        operations: &[op!(Delete, "Destroy an object without a record", destroy_orphan, OrphanParams)],
    },
];

crate::params! {
    /// An object on an HSM.
    struct OrphanParams {
        /// Its CKA_ID in hexadecimal.
        id: String,
    }
}

crate::params! {
    /// The shares.
    struct RecoverParams {
        /// Escrow shares, as many as their threshold, in hexadecimal or base64.
        keys: Vec<String>,
    }
}

/// What was put onto the HSM. Key versions of level `hsm-only` died with the old one and are not listed.
#[derive(Serialize)]
struct RecoverResponse {
    seal_key: bool,
    master_keys: Vec<String>,
    lost: Vec<String>,
}

async fn recover(system: &System, _: &Call<'_>, params: RecoverParams) -> Result<Reply, Failure> {
    let shares: Vec<_> = params.keys.into_iter().map(SecretString::new).collect();
    if shares.is_empty() {
        return Err(Failure::invalid("'keys' must hold the escrow shares"));
    }
    let core = system.core()?;
    let done = core.seal.recover_hsm(&core.services.zones, &shares).await?;
    Reply::data(&RecoverResponse { seal_key: done.seal_key, master_keys: done.master_keys, lost: done.lost })
}

#[derive(Serialize)]
struct OrphanResponse {
    hsm: String,
    id: String,
    label: String,
}

impl OrphanResponse {
    fn of(orphan: Orphan) -> Self {
        Self { hsm: orphan.hsm, id: orphan.id.to_string(), label: orphan.label }
    }
}

#[derive(Serialize)]
struct OrphansResponse {
    orphans: Vec<OrphanResponse>,
}

async fn orphans(system: &System, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    let core = system.core()?;
    let found = core.seal.orphans(&core.services.zones, || own_objects(&core)).await?;
    Reply::data(&OrphansResponse { orphans: found.into_iter().map(OrphanResponse::of).collect() })
}

async fn destroy_orphan(system: &System, _: &Call<'_>, params: OrphanParams) -> Result<Reply, Failure> {
    let core = system.core()?;
    let id: KeyId =
        params.id.parse().map_err(|_| Failure::invalid("the id must be a CKA_ID of 16 bytes in hexadecimal, as GET shows it"))?;
    let destroyed = core.seal.destroy_orphan(&core.services.zones, id, || own_objects(&core)).await?;
    Reply::data(&OrphanResponse::of(destroyed))
}

/// The objects of Transit keys: announced ones before those with a key, as one becomes the other.
fn own_objects(core: &Core) -> Result<HashSet<KeyId>, SealError> {
    let failed = |failure: Failure| SealError::Internal(failure.to_string());
    let mut own = HashSet::new();
    for view in core.transit_views().map_err(failed)?.into_iter().map(|(_, view)| view) {
        own.extend(survey::in_the_making(&view).map_err(failed)?);
    }
    own.extend(core.hsm_only_keys().map_err(failed)?.into_iter().map(|(_, id)| id));
    Ok(own)
}
