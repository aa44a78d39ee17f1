//! `sys/init`, `sys/unseal`, `sys/seal`, rekeying, root generation and the barrier's key: the seal over HTTP.
//!
//! <https://developer.hashicorp.com/vault/api-docs/system/seal> and its neighbours. What they do is in [`crate::seal`].

use serde::de::DeserializeOwned;

use super::System;
use crate::{
    barrier::RotateConfig,
    core::{
        engine::Call,
        failure::{Failure, Kind},
        reply::Reply,
        route::{Access, Route},
    },
    op,
    seal::{
        RekeyKind, SealError,
        wire::{
            GenerateRootRequest, InitRequest, InitStatusResponse, KeyStatusResponse, RekeyRequest, RotateConfigResponse,
            ShareRequest, UnsealRequest,
        },
    },
    wire::{
        field::{NoParams, Seconds},
        json::without_values,
    },
};

/// Endpoints that answer while sealed, without a token: who has the shares needs none.
pub const DIRECT: &[Route<System>] = &[
    Route {
        patterns: &["init"],
        access: Access::Anyone,
        help: "Makes a new cluster in an empty store.",
        exists: None,
        operations: &[op!(Read, "Whether there is a cluster", init_status), op!(Write, "Make a new cluster", init)],
    },
    Route {
        patterns: &["seal-status"],
        access: Access::Anyone,
        help: "Shows whether the server is sealed, and why.",
        exists: None,
        operations: &[op!(Read, "State of the seal", seal_status)],
    },
    Route {
        patterns: &["unseal"],
        access: Access::Anyone,
        help: "Takes one share; enough of them unseal the server.",
        exists: None,
        operations: &[op!(Write, "Enter a share", unseal)],
    },
    Route {
        patterns: &["rekey/init", "rekey-recovery-key/init"],
        access: Access::Anyone,
        help: "Starts, shows or cancels making new shares.",
        exists: None,
        operations: &[
            op!(Read, "State of the rekeying", rekey_status),
            op!(Write, "Start a rekeying", rekey_init),
            op!(Delete, "Cancel the rekeying", rekey_cancel),
        ],
    },
    Route {
        patterns: &["rekey/update", "rekey-recovery-key/update"],
        access: Access::Anyone,
        help: "Takes one of the old shares.",
        exists: None,
        operations: &[op!(Write, "Enter an old share", rekey_update)],
    },
    Route {
        patterns: &["rekey/verify", "rekey-recovery-key/verify"],
        access: Access::Anyone,
        help: "Takes the new shares once, to prove that they arrived.",
        exists: None,
        operations: &[
            op!(Read, "State of the verification", verify_status),
            op!(Write, "Enter a new share", verify),
            op!(Delete, "Start the verification again", verify_restart),
        ],
    },
    Route {
        patterns: &["generate-root", "generate-root/attempt"],
        access: Access::Anyone,
        help: "Starts, shows or cancels making a root token from shares.",
        exists: None,
        operations: &[
            op!(Read, "State of the root generation", root_status),
            op!(Write, "Start a root generation", root_start),
            op!(Delete, "Cancel the root generation", root_cancel),
        ],
    },
    Route {
        patterns: &["generate-root/update"],
        access: Access::Anyone,
        help: "Takes one share; enough of them make a root token.",
        exists: None,
        operations: &[op!(Write, "Enter a share", root_update)],
    },
];

/// Endpoints that need a token.
pub const ROUTES: &[Route<System>] = &[
    Route {
        patterns: &["seal"],
        access: Access::Sudo,
        help: "Seals the server until it is unsealed or restarted.",
        exists: None,
        operations: &[op!(Write, "Seal the server", seal, NoParams).computing()],
    },
    Route {
        patterns: &["step-down"],
        access: Access::Sudo,
        help: "Gives up leadership; a server without high availability has nobody to give it to.",
        exists: None,
        operations: &[op!(Write, "Step down", step_down, NoParams).computing()],
    },
    Route {
        patterns: &["key-status"],
        access: Access::Token,
        help: "Shows the barrier's encryption key: term, age and use.",
        exists: None,
        operations: &[op!(Read, "The barrier's key", key_status, NoParams)],
    },
    Route {
        patterns: &["rotate", "rotate/keyring"],
        access: Access::Sudo,
        help: "Gives the barrier a new encryption key; old records stay readable.",
        exists: None,
        operations: &[op!(Write, "Rotate the barrier's key", rotate, NoParams)],
    },
    Route {
        patterns: &["rotate/config", "rotate/keyring/config"],
        access: Access::Token,
        help: "Shows or sets when the barrier's key rotates by itself.",
        exists: None,
        operations: &[
            op!(Read, "When the key rotates", rotate_config, NoParams),
            op!(Write, "Set when the key rotates", set_rotate_config, RotateParams),
        ],
    },
];

crate::params! {
    /// Parameters of the automatic rotation.
    struct RotateParams {
        /// Whether the key rotates by itself.
        enabled: Option<bool>,
        /// Encryptions after which it does.
        max_operations: Option<i64>,
        /// Age after which it does; 0 for never.
        interval: Option<Seconds>,
    }
}

impl From<SealError> for Failure {
    fn from(error: SealError) -> Self {
        match error {
            SealError::Sealed => Failure::unavailable("Vault is sealed"),
            SealError::NotInitialized
            | SealError::AlreadyInitialized
            | SealError::Invalid(_)
            | SealError::InvalidKey
            | SealError::HsmInUse { .. }
            | SealError::TokenInUse { .. } => Failure::invalid(error.to_string()),
            SealError::Counts(text) => Failure::plain(Kind::Internal, text),
            SealError::HsmUnavailable { .. } => Failure::unavailable(error.to_string()),
            SealError::Hsm(error) => error.into(),
            SealError::Barrier(error) => error.into(),
            SealError::Zone(error) => error.into(),
            SealError::Record { .. } | SealError::Host(_) | SealError::Internal(_) => Failure::internal(error),
        }
    }
}

/// The body as one of the seal's request structs; an absent one is all defaults.
fn body<T: DeserializeOwned + Default>(call: &Call<'_>) -> Result<T, Failure> {
    if call.body.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(&call.request.body)
        .map_err(|error| Failure::invalid(format!("failed to parse JSON input: {}", without_values(&error))))
}

/// Which shares a path is about.
fn kind(call: &Call<'_>) -> RekeyKind {
    if call.path.starts_with("rekey-recovery-key/") { RekeyKind::Recovery } else { RekeyKind::Barrier }
}

async fn init_status(system: &System, _: &Call<'_>) -> Result<Reply, Failure> {
    Reply::bare(&InitStatusResponse { initialized: system.core()?.seal.is_initialized()? })
}

async fn init(system: &System, call: &Call<'_>) -> Result<Reply, Failure> {
    Reply::bare(&system.core()?.seal.init(body::<InitRequest>(call)?, call.now).await?)
}

async fn seal_status(system: &System, _: &Call<'_>) -> Result<Reply, Failure> {
    Reply::bare(&system.core()?.seal.status()?)
}

async fn unseal(system: &System, call: &Call<'_>) -> Result<Reply, Failure> {
    Reply::bare(&system.core()?.seal.unseal(body::<UnsealRequest>(call)?).await?)
}

async fn rekey_status(system: &System, call: &Call<'_>) -> Result<Reply, Failure> {
    Reply::bare(&system.core()?.seal.rekey_status(kind(call))?)
}

async fn rekey_init(system: &System, call: &Call<'_>) -> Result<Reply, Failure> {
    Reply::bare(&system.core()?.seal.rekey_init(kind(call), &body::<RekeyRequest>(call)?)?)
}

async fn rekey_cancel(system: &System, call: &Call<'_>) -> Result<Reply, Failure> {
    system.core()?.seal.rekey_cancel(kind(call))?;
    Ok(Reply::empty())
}

async fn rekey_update(system: &System, call: &Call<'_>) -> Result<Reply, Failure> {
    Reply::bare(&system.core()?.seal.rekey_update(kind(call), body::<ShareRequest>(call)?).await?)
}

async fn verify_status(system: &System, call: &Call<'_>) -> Result<Reply, Failure> {
    Reply::bare(&system.core()?.seal.verify_status(kind(call))?)
}

async fn verify(system: &System, call: &Call<'_>) -> Result<Reply, Failure> {
    Reply::bare(&system.core()?.seal.rekey_verify(kind(call), body::<ShareRequest>(call)?).await?)
}

async fn verify_restart(system: &System, call: &Call<'_>) -> Result<Reply, Failure> {
    Reply::bare(&system.core()?.seal.verify_restart(kind(call))?)
}

async fn root_status(system: &System, _: &Call<'_>) -> Result<Reply, Failure> {
    Reply::bare(&system.core()?.seal.generate_root_status()?)
}

async fn root_start(system: &System, call: &Call<'_>) -> Result<Reply, Failure> {
    Reply::bare(&system.core()?.seal.generate_root_start(&body::<GenerateRootRequest>(call)?)?)
}

async fn root_cancel(system: &System, _: &Call<'_>) -> Result<Reply, Failure> {
    system.core()?.seal.generate_root_cancel()?;
    Ok(Reply::empty())
}

async fn root_update(system: &System, call: &Call<'_>) -> Result<Reply, Failure> {
    Reply::bare(&system.core()?.seal.generate_root_update(body::<ShareRequest>(call)?).await?)
}

async fn seal(system: &System, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    let core = system.core()?;
    core.seal.seal().await?;
    tracing::warn!("sealed by an operator; it stays so until it is unsealed or restarted");
    Ok(Reply::empty())
}

async fn step_down(_: &System, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    Ok(Reply::empty())
}

async fn key_status(system: &System, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    Reply::mirrored(&KeyStatusResponse::from(system.core()?.barrier.key_status()?))
}

async fn rotate(system: &System, call: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    let term = system.core()?.barrier.rotate(call.now).await?;
    tracing::info!(term, "the barrier has a new encryption key");
    Ok(Reply::empty())
}

async fn rotate_config(system: &System, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    Reply::data(&RotateConfigResponse::from(system.core()?.barrier.rotate_config()?))
}

async fn set_rotate_config(system: &System, _: &Call<'_>, params: RotateParams) -> Result<Reply, Failure> {
    let core = system.core()?;
    let negative = || Failure::invalid("max_operations and interval cannot be negative");
    let mut config: RotateConfig = core.barrier.rotate_config()?;
    if let Some(enabled) = params.enabled {
        config.enabled = enabled;
    }
    if let Some(operations) = params.max_operations {
        config.max_operations = u64::try_from(operations).map_err(|error| negative().caused_by(error))?;
    }
    if let Some(interval) = params.interval {
        config.interval = interval.0;
    }
    config.check().map_err(|error| Failure::invalid(error.to_string()))?;
    core.barrier.set_rotate_config(config).await?;
    Ok(Reply::empty())
}
