//! `sys/sos/hsm`: a lost HSM's keys onto a new one.

use serde::Serialize;

use super::System;
use crate::{
    core::{
        engine::Call,
        failure::Failure,
        reply::Reply,
        route::{Access, Route},
    },
    op,
    secret::SecretString,
};

/// Endpoints of this file.
pub const ROUTES: &[Route<System>] = &[Route {
    patterns: &["sos/hsm/recover"],
    access: Access::Sudo,
    help: "Puts the seal key and the zone master keys that the HSM lacks onto it, from escrow. The server is to be unsealed by the shares before.",
    exists: None,
    operations: &[op!(Write, "Put lost keys onto the HSM", recover, RecoverParams)],
}];

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
