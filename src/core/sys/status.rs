//! `sys/sos/status`: what `sos status` shows beyond Vault's `sys/seal-status`, and what `sys/metrics` counts.

use std::sync::Arc;

use serde::Serialize;
use time::OffsetDateTime;

use super::System;
use crate::{
    core::{
        Core,
        engine::Call,
        failure::Failure,
        reply::Reply,
        route::{Access, Route},
    },
    hsm::{Member, Status},
    op,
    wire::{field::NoParams, time::rfc3339},
};

/// Endpoints of this file.
pub const ROUTES: &[Route<System>] = &[Route {
    patterns: &["sos/status"],
    access: Access::Token,
    help: "Shows the state of HSMs, store, disk, backups and keys.",
    exists: None,
    operations: &[op!(Read, "State of the server", read, NoParams)],
}];

/// The same while sealed, when there are no tokens: the HSMs and why it is sealed.
pub const SEALED: &[Route<System>] = &[Route {
    patterns: &["sos/status"],
    access: Access::Anyone,
    help: "Shows why the server is sealed, HSM by HSM.",
    exists: None,
    operations: &[op!(Read, "State of the sealed server", read_sealed, NoParams)],
}];

/// The state of the server.
#[derive(Debug, Serialize)]
pub struct ServerStatus {
    /// Whether the barrier is closed.
    pub sealed: bool,
    /// Why, in the words of `sys/seal-status`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sealed_reason: Option<&'static str>,
    /// Every configured HSM.
    pub hsms: Vec<HsmStatus>,
    /// The store; absent while sealed, as everything below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreStatus>,
    /// The encryption key of the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub barrier: Option<BarrierStatus>,
    /// Backups by schedule, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupStatus>,
    /// From which backup the store comes, where it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restored: Option<RestoredStatus>,
    /// Transit key versions near the bound of their encryptions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub worn_keys: Vec<String>,
    /// What an operator should look after.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// One HSM.
#[derive(Debug, Serialize)]
pub struct HsmStatus {
    /// The stanza's name, as in the list of seals.
    pub name: String,
    /// `ready`, `starting`, or why it cannot be used.
    pub state: &'static str,
    /// The token's label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Whether it lacks this cluster's seal key, and so does not unseal the server.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub seal_key_missing: bool,
    /// The token's serial number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The library.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}

/// The store.
#[derive(Debug, Serialize)]
pub struct StoreStatus {
    /// Kind of store.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The last commit.
    pub sequence: u64,
    /// Bytes of the file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_size: Option<u64>,
    /// Bytes free on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_free: Option<u64>,
    /// Bytes below which writes are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_watermark: Option<u64>,
}

/// The encryption key of the store.
#[derive(Debug, Serialize)]
pub struct BarrierStatus {
    /// Its term.
    pub term: u32,
    /// Encryptions under it.
    pub encryptions: u64,
    /// Encryptions after which it is replaced.
    pub max_operations: u64,
    /// When it was made.
    pub install_time: String,
}

/// Backups by schedule.
#[derive(Debug, Serialize)]
pub struct BackupStatus {
    /// Their folder.
    pub folder: String,
    /// Seconds between two.
    pub interval: u64,
    /// When the last good one was taken.
    pub last: Option<String>,
    /// Its age in seconds.
    pub age: Option<i64>,
    /// Whether it is older than it should be.
    pub overdue: bool,
    /// Why the latest attempt failed.
    pub last_failure: Option<String>,
    /// Good ones since the start.
    pub successes: u64,
    /// Failed attempts since the start.
    pub failures: u64,
}

/// The backup that the store comes from.
#[derive(Debug, Serialize)]
pub struct RestoredStatus {
    /// From when its data is.
    pub created: String,
    /// When it was restored.
    pub restored: String,
    /// The last commit in it.
    pub sequence: u64,
}

async fn read(system: &System, call: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    let core = system.core()?;
    Reply::data(&status(&core, call.now).await?)
}

async fn read_sealed(system: &System, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    let core = system.core()?;
    Reply::bare(&while_sealed(&core)?)
}

fn while_sealed(core: &Core) -> Result<ServerStatus, Failure> {
    let seal = core.seal.status()?;
    Ok(ServerStatus {
        sealed: seal.sealed,
        sealed_reason: seal.sealed_reason,
        hsms: hsms(core),
        store: None,
        barrier: None,
        backup: None,
        restored: None,
        worn_keys: Vec::new(),
        warnings: Vec::new(),
    })
}

/// The whole state.
pub async fn status(core: &Core, now: OffsetDateTime) -> Result<ServerStatus, Failure> {
    let mut status = while_sealed(core)?;
    status.store = Some(store(core).await?);
    status.backup = backup(core, now);
    if status.sealed {
        return Ok(status);
    }
    let (key, config) = (core.barrier.key_status()?, core.barrier.rotate_config()?);
    status.barrier = Some(BarrierStatus {
        term: key.term,
        encryptions: key.encryptions,
        max_operations: config.max_operations,
        install_time: rfc3339(key.install_time),
    });
    status.restored = core.backups.restored().map(|restored| RestoredStatus {
        created: restored.created,
        restored: restored.restored,
        sequence: restored.sequence,
    });
    for mounted in core.active()?.router.all() {
        let path = mounted.entry.full_path();
        status.worn_keys.extend(mounted.engine.worn().await?.into_iter().map(|key| format!("{path}{key}")));
    }
    status.warnings = warnings(core, &status, now);
    Ok(status)
}

fn warnings(core: &Core, status: &ServerStatus, now: OffsetDateTime) -> Vec<String> {
    let mut warnings: Vec<String> = core.backups.warning(now).into_iter().collect();
    warnings.extend(core.seal.warnings(&core.services.zones).unwrap_or_default());
    for hsm in status.hsms.iter().filter(|hsm| hsm.state != READY) {
        warnings.push(format!("the HSM {:?} cannot be used: {}", hsm.name, hsm.state));
    }
    if let Some(StoreStatus { disk_free: Some(free), disk_watermark: Some(watermark), .. }) = &status.store
        && *free < watermark.saturating_mul(2)
    {
        warnings.push(format!("{free} bytes are free on the store's disk; below {watermark} writes are refused"));
    }
    if !status.worn_keys.is_empty() {
        warnings.push(format!("near the bound of their encryptions, rotate them: {}", status.worn_keys.join(", ")));
    }
    warnings
}

/// The state of an HSM that can be used.
pub const READY: &str = "ready";

/// Every HSM that is configured.
pub fn hsms(core: &Core) -> Vec<HsmStatus> {
    let Some(hsm) = &core.services.hsm else { return Vec::new() };
    let group = Arc::clone(hsm).into_group();
    let one = |member: &Member| HsmStatus {
        seal_key_missing: !core.seal.is_sealed() && core.seal.lacks_seal_key(&member.name),
        ..of_hsm(&member.name, &member.hsm.status())
    };
    group.members().iter().map(|member| one(member)).collect()
}

fn of_hsm(name: &str, status: &Status) -> HsmStatus {
    let unknown =
        |state| HsmStatus { name: name.to_owned(), state, seal_key_missing: false, token: None, serial: None, module: None };
    match status {
        Status::Starting => unknown("starting"),
        Status::Down { reason, .. } => unknown(reason.word()),
        Status::Ready(facts) => HsmStatus {
            name: name.to_owned(),
            state: READY,
            seal_key_missing: false,
            token: Some(facts.label.clone()),
            serial: Some(facts.serial.clone()),
            module: Some(facts.module.clone()),
        },
    }
}

async fn store(core: &Core) -> Result<StoreStatus, Failure> {
    let storage = core.backups.storage();
    let path = storage.and_then(|config| config.path.clone());
    let disk = path.as_ref().and_then(|path| rustix::fs::statvfs(path).ok());
    let bytes = |blocks: u64| disk.as_ref().map(|disk| blocks.saturating_mul(disk.f_frsize));
    Ok(StoreStatus {
        kind: core.settings.storage_type.clone(),
        sequence: core.barrier.raw().snapshot().await?.version(),
        disk_size: disk.as_ref().and_then(|disk| bytes(disk.f_blocks)),
        disk_free: disk.as_ref().and_then(|disk| bytes(disk.f_bavail)),
        disk_watermark: path.as_ref().and(storage).map(|config| config.options.free_watermark),
        path: path.map(|path| path.display().to_string()),
    })
}

fn backup(core: &Core, now: OffsetDateTime) -> Option<BackupStatus> {
    let schedule = core.backups.schedule()?;
    let state = core.backups.state();
    let last = state.last.as_ref().map(|made| made.created);
    Some(BackupStatus {
        folder: schedule.folder.display().to_string(),
        interval: schedule.interval.as_secs(),
        last: last.map(rfc3339),
        age: last.map(|last| (now - last).whole_seconds()),
        overdue: core.backups.warning(now).is_some(),
        last_failure: state.failure,
        successes: state.successes,
        failures: state.failures,
    })
}
