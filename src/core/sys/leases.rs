//! `sys/leases/…`: the tokens of logins, roles and `auth/token/create` as leases. No other engine gives leases.
//!
//! <https://developer.hashicorp.com/vault/api-docs/system/leases>

use serde::Serialize;
use time::OffsetDateTime;

use super::System;
use crate::{
    core::{
        engine::Call,
        failure::Failure,
        reply::Reply,
        route::{Access, Route},
    },
    op,
    wire::{
        field::{NoParams, Seconds},
        time::rfc3339,
    },
};

/// Endpoints of this file.
pub static ROUTES: &[Route<System>] = &[
    Route {
        patterns: &["leases/lookup/{prefix:rest}"],
        access: Access::Sudo,
        help: "Lists leases one level below a path.",
        exists: None,
        operations: &[op!(List, "List leases", list, Prefix)],
    },
    Route {
        patterns: &["leases/lookup"],
        access: Access::Token,
        help: "Shows times of a lease.",
        exists: None,
        operations: &[op!(Write, "Look up a lease", lookup, LeaseId).computing()],
    },
    Route {
        patterns: &["leases/renew", "leases/renew/{url_lease_id:rest}", "renew", "renew/{url_lease_id:rest}"],
        access: Access::Token,
        help: "Renews a lease; tokens are renewed at auth/token/renew.",
        exists: None,
        operations: &[op!(Write, "Renew a lease", renew, RenewLease)],
    },
    Route {
        patterns: &["leases/revoke-prefix/{prefix:rest}", "revoke-prefix/{prefix:rest}"],
        access: Access::Sudo,
        help: "Revokes all leases below a path.",
        exists: None,
        operations: &[op!(Write, "Revoke leases", revoke_prefix, RevokePrefix)],
    },
    Route {
        patterns: &["leases/revoke-force/{prefix:rest}", "revoke-force/{prefix:rest}"],
        access: Access::Sudo,
        help: "Revokes all leases below a path, whatever their engines say.",
        exists: None,
        operations: &[op!(Write, "Revoke leases", revoke_force, Prefix)],
    },
    Route {
        patterns: &["leases/revoke", "leases/revoke/{url_lease_id:rest}", "revoke", "revoke/{url_lease_id:rest}"],
        access: Access::Token,
        help: "Revokes a lease.",
        exists: None,
        operations: &[op!(Write, "Revoke a lease", revoke, RevokeLease)],
    },
    Route {
        patterns: &["leases/tidy"],
        access: Access::Token,
        help: "Removes what expired leases left.",
        exists: None,
        operations: &[op!(Write, "Tidy leases", tidy, NoParams)],
    },
    Route {
        patterns: &["leases/count"],
        access: Access::Token,
        help: "Counts leases that cannot be revoked; there are none.",
        exists: None,
        operations: &[op!(Read, "Count irrevocable leases", count, Irrevocable)],
    },
    Route {
        patterns: &["leases/?"],
        access: Access::Sudo,
        help: "Lists leases that cannot be revoked; there are none.",
        exists: None,
        operations: &[op!(Read, "List irrevocable leases", irrevocable, Irrevocable)],
    },
];

crate::params! {
    /// A path.
    struct Prefix {
        /// The path that leases lie below.
        prefix: String,
    }
}

crate::params! {
    /// A lease.
    struct LeaseId {
        /// The lease.
        lease_id: String,
    }
}

crate::params! {
    /// A renewal.
    #[allow(dead_code)] // the increment is checked and then of no use: tokens are renewed elsewhere
    struct RenewLease {
        /// The lease.
        lease_id: String,
        /// The lease, as part of the path.
        url_lease_id: String,
        /// TTL asked for.
        increment: Seconds,
    }
}

crate::params! {
    /// A revocation.
    struct RevokeLease {
        /// The lease.
        lease_id: String,
        /// The lease, as part of the path.
        url_lease_id: String,
        /// Whether to wait for the revocation, as is the default.
        sync: Option<bool>,
    }
}

crate::params! {
    /// Revocation of many.
    struct RevokePrefix {
        /// The path that leases lie below.
        prefix: String,
        /// Whether to wait for the revocation, as is the default.
        sync: Option<bool>,
    }
}

crate::params! {
    /// Which leases.
    #[allow(dead_code)] // one namespace, one page: the other two make no difference
    struct Irrevocable {
        /// `irrevocable` is the only type.
        kind as "type": String,
        /// There are no child namespaces.
        include_child_namespaces: bool,
        /// Bound of the list.
        limit: String,
    }
}

async fn list(system: &System, call: &Call<'_>, params: Prefix) -> Result<Reply, Failure> {
    let mut prefix = params.prefix;
    if !prefix.is_empty() && !prefix.ends_with('/') {
        prefix.push('/');
    }
    let (after, limit) = call.page()?;
    Reply::keys(system.active()?.tokens.lease_names(&prefix, after.as_deref(), limit).await?)
}

#[derive(Serialize)]
struct Lease<'a> {
    id: &'a str,
    path: &'a str,
    issue_time: String,
    expire_time: Option<String>,
    last_renewal: Option<String>,
    renewable: bool,
    ttl: i64,
}

async fn lookup(system: &System, call: &Call<'_>, params: LeaseId) -> Result<Reply, Failure> {
    if params.lease_id.is_empty() {
        return Err(Failure::invalid("lease_id must be specified"));
    }
    let entry = system.active()?.tokens.lease(&params.lease_id)?.ok_or_else(|| Failure::invalid("invalid lease"))?;
    let now = i64::try_from(call.now.unix_timestamp_nanos()).unwrap_or(i64::MAX);
    Reply::data(&Lease {
        id: &params.lease_id,
        path: &entry.path,
        issue_time: shown(entry.issued_at),
        expire_time: entry.expires_at.map(shown),
        last_renewal: entry.last_renewal.map(shown),
        renewable: entry.renewable,
        ttl: entry.expires_at.map_or(0, |end| (end - now).max(0) / 1_000_000_000),
    })
}

fn shown(nanos: i64) -> String {
    rfc3339(OffsetDateTime::from_unix_timestamp_nanos(i128::from(nanos)).unwrap_or(OffsetDateTime::UNIX_EPOCH))
}

fn named(lease_id: String, url_lease_id: String) -> Result<String, Failure> {
    let id = if lease_id.is_empty() { url_lease_id } else { lease_id };
    if id.is_empty() { Err(Failure::invalid("lease_id must be specified")) } else { Ok(id) }
}

async fn renew(system: &System, _: &Call<'_>, params: RenewLease) -> Result<Reply, Failure> {
    let id = named(params.lease_id, params.url_lease_id)?;
    let entry = system.active()?.tokens.lease(&id)?.ok_or_else(|| Failure::invalid("lease not found"))?;
    let text = if entry.renewable { "tokens cannot be renewed through this endpoint" } else { "lease is not renewable" };
    Err(Failure::invalid(text))
}

/// The revocation is done when this answers, also where the client asked not to wait; clients are told 202 then.
fn revoked(sync: Option<bool>) -> Reply {
    if sync.unwrap_or(true) { Reply::empty() } else { Reply::empty().with_status(202) }
}

async fn revoke(system: &System, _: &Call<'_>, params: RevokeLease) -> Result<Reply, Failure> {
    let id = named(params.lease_id, params.url_lease_id)?;
    let active = system.active()?;
    if let Some(entry) = active.tokens.lease(&id)? {
        active.tokens.revoke_tree(&entry.hash).await?;
    }
    Ok(revoked(params.sync))
}

async fn revoke_prefix(system: &System, _: &Call<'_>, params: RevokePrefix) -> Result<Reply, Failure> {
    system.active()?.tokens.revoke_prefix(&params.prefix).await?;
    Ok(revoked(params.sync))
}

async fn revoke_force(system: &System, _: &Call<'_>, params: Prefix) -> Result<Reply, Failure> {
    system.active()?.tokens.revoke_prefix(&params.prefix).await?;
    Ok(Reply::empty())
}

async fn tidy(system: &System, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    let tokens = system.active()?.tokens.clone();
    tokio::spawn(async move { tokens.tidy().await });
    Ok(Reply::empty().with_status(202).with_warning(
        "Tidy operation successfully started. Any information from the operation will be printed to the server logs.",
    ))
}

#[derive(Serialize)]
struct Count {
    counts: serde_json::Map<String, serde_json::Value>,
    lease_count: u64,
}

async fn count(_: &System, _: &Call<'_>, params: Irrevocable) -> Result<Reply, Failure> {
    check_kind(&params)?;
    Reply::data(&Count { counts: serde_json::Map::new(), lease_count: 0 })
}

#[derive(Serialize)]
struct Irrevocables {
    lease_count: u64,
    leases: [(); 0],
}

async fn irrevocable(_: &System, _: &Call<'_>, params: Irrevocable) -> Result<Reply, Failure> {
    check_kind(&params)?;
    Reply::data(&Irrevocables { lease_count: 0, leases: [] })
}

fn check_kind(params: &Irrevocable) -> Result<(), Failure> {
    if params.kind.eq_ignore_ascii_case("irrevocable") { Ok(()) } else { Err(Failure::not_found()) }
}
