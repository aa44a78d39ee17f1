//! `sys/health` and `sys/leader`: is this server serving?
//!
//! <https://developer.hashicorp.com/vault/api-docs/system/health>

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
    wire::field::NoParams,
};

/// Endpoints of this file, all answered while sealed.
pub const DIRECT: &[Route<System>] = &[
    Route {
        patterns: &["health"],
        access: Access::Anyone,
        help: "Checks the health of the server; the status tells its state.",
        exists: None,
        operations: &[op!(Read, "Health of the server", health, HealthParams)],
    },
    Route {
        patterns: &["leader"],
        access: Access::Anyone,
        help: "Shows which server is active; without high availability it is this one.",
        exists: None,
        operations: &[op!(Read, "The active server", leader, NoParams)],
    },
];

crate::params! {
    /// Query of `sys/health`: statuses to answer with instead of the usual ones.
    struct HealthParams {
        /// Status when unsealed and active.
        activecode: Option<i64>,
        /// Status when standby; accepted, as this server never is.
        _standbycode as "standbycode": Option<i64>,
        /// Status when sealed.
        sealedcode: Option<i64>,
        /// Status when not initialised.
        uninitcode: Option<i64>,
        /// A standby answers as if active; accepted, as this server never is one.
        _standbyok as "standbyok": Option<bool>,
        /// A performance standby answers as if active; accepted, as this server never is one.
        _perfstandbyok as "perfstandbyok": Option<bool>,
    }
}

#[derive(Serialize)]
struct Health<'a> {
    initialized: bool,
    sealed: bool,
    standby: bool,
    performance_standby: bool,
    replication_performance_mode: &'a str,
    replication_dr_mode: &'a str,
    server_time_utc: i64,
    version: &'a str,
    sos_version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_id: Option<&'a str>,
    /// What an operator should look after; absent when all is well, and Vault has no such member.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

async fn health(system: &System, call: &Call<'_>, params: HealthParams) -> Result<Reply, Failure> {
    let core = system.core()?;
    let sealed = core.active().is_err();
    let initialized = !sealed || core.barrier.is_initialized()?;
    let asked = match (initialized, sealed) {
        (false, _) => params.uninitcode.unwrap_or(501),
        (true, true) => params.sealedcode.unwrap_or(503),
        (true, false) => params.activecode.unwrap_or(200),
    };
    let status = u16::try_from(asked).ok().filter(|status| (100..1000).contains(status));
    let status = status.ok_or_else(|| Failure::invalid("invalid status code"))?;
    let record = if sealed { None } else { core.seal.known_record()?.map(|(record, _)| record) };
    let of_seals = if sealed { Vec::new() } else { core.seal.warnings(&core.services.zones).unwrap_or_default() };
    let body = Health {
        initialized,
        sealed,
        standby: false,
        performance_standby: false,
        replication_performance_mode: "disabled",
        replication_dr_mode: "disabled",
        server_time_utc: call.now.unix_timestamp(),
        version: &core.settings.vault_version,
        sos_version: env!("CARGO_PKG_VERSION"),
        cluster_name: record.as_ref().map(|record| record.cluster_name.as_str()),
        cluster_id: record.as_ref().map(|record| record.cluster_id.as_str()),
        warnings: core.backups.warning(call.now).into_iter().chain(of_seals).collect(),
    };
    Ok(Reply::bare(&body)?.with_status(status))
}

#[derive(Serialize)]
struct Leader<'a> {
    ha_enabled: bool,
    is_self: bool,
    active_time: &'a str,
    leader_address: &'a str,
    leader_cluster_address: &'a str,
    performance_standby: bool,
    performance_standby_last_remote_wal: u64,
}

async fn leader(system: &System, _call: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    let core = system.core()?;
    if core.active().is_err() {
        return Err(Failure::unavailable("Vault is sealed"));
    }
    Reply::bare(&Leader {
        ha_enabled: false,
        is_self: false,
        active_time: "0001-01-01T00:00:00Z",
        leader_address: "",
        leader_cluster_address: "",
        performance_standby: false,
        performance_standby_last_remote_wal: 0,
    })
}
