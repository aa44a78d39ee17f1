//! KV version 1: one JSON object per path, given back as the bytes that came.
//!
//! A record is a format byte (1), the lease to show in seconds (8 bytes, big-endian; all ones for the mount's default),
//! and the object. The lease is read out of `ttl` or `lease` when the object is written, so a read parses nothing.

#[cfg(test)]
mod tests;

use std::{sync::LazyLock, time::Duration};

use serde_json::value::RawValue;

use super::{
    MountContext,
    kv::{UPGRADING, V1_FOLDER, VERSIONED_MARKER, keys_below, scan_reply},
};
use crate::{
    barrier::{BarrierError, Txn, View},
    core::{
        engine::Call,
        failure::Failure,
        mounts::MountRecord,
        reply::Reply,
        route::{Access, Route, RouteTable, Routed},
    },
    op,
    storage::{Expect, StorageError},
    wire::{duration, json::RawObject},
};

const FORMAT: u8 = 1;
const DEFAULT_LEASE: u64 = u64::MAX;
const HEADER: usize = 9;

/// A version 1 mount.
pub struct Kv1 {
    view: View,
    /// Nothing is written once the mount is gone: nobody would ever delete it.
    record: MountRecord,
    default_lease: u64,
}

impl Kv1 {
    /// The engine of a mount.
    pub fn new(context: &MountContext) -> Self {
        Self { view: context.view.clone(), record: context.record.clone(), default_lease: context.default_ttl() }
    }

    /// Whether an upgrade to version 2 has begun; then what is not here may be there already.
    fn check_upgrade(&self) -> Result<(), Failure> {
        if self.view.get(VERSIONED_MARKER)?.is_some() { Err(Failure::invalid(UPGRADING)) } else { Ok(()) }
    }

    async fn commit(&self, txn: Txn) -> Result<(), Failure> {
        match self.view.commit(txn.check(VERSIONED_MARKER, Expect::Absent).while_as(self.record.there())).await {
            Ok(_) => Ok(()),
            Err(error) if self.record.is_gone(&error) => Err(MountRecord::removed()),
            Err(BarrierError::Storage(StorageError::Conflict { .. })) => Err(Failure::invalid(UPGRADING)),
            Err(error) => Err(error.into()),
        }
    }
}

static ROUTES: &[Route<Kv1>] = &[Route {
    patterns: &["{path:rest}"],
    access: Access::Token,
    help: "Reads and writes secrets as they are; a write replaces the whole secret.",
    exists: Some(|engine, call| {
        Box::pin(async move { Ok(engine.view.get_long(&record_path(call.capture("path"))).await?.is_some()) })
    }),
    operations: &[
        op!(Read, "Read a secret.", read),
        op!(Write, "Write a secret: any fields; `ttl` sets the lease that reads show.", write),
        op!(Delete, "Delete a secret.", delete),
        op!(List, "List the secrets and folders one level below a path.", list),
        op!(Scan, "List all secrets below a path.", scan),
    ],
}];

impl Routed for Kv1 {
    fn table() -> &'static RouteTable<Self> {
        static TABLE: LazyLock<RouteTable<Kv1>> = LazyLock::new(|| RouteTable::new(ROUTES));
        &TABLE
    }
}

fn record_path(path: &str) -> String {
    format!("{V1_FOLDER}{path}")
}

async fn read(engine: &Kv1, call: &Call<'_>) -> Result<Reply, Failure> {
    let path = record_path(call.capture("path"));
    let Some(entry) = engine.view.get_long(&path).await? else {
        engine.check_upgrade()?;
        return Err(Failure::not_found());
    };
    let (lease, json) = decode(&path, entry.value.expose())?;
    let lease = if lease == DEFAULT_LEASE { engine.default_lease } else { lease };
    Ok(Reply { lease_duration: Some(Duration::from_secs(lease)), ..Reply::raw_data(json.to_vec()) })
}

async fn write(engine: &Kv1, call: &Call<'_>) -> Result<Reply, Failure> {
    let path = call.capture("path");
    if path.is_empty() {
        return Err(Failure::invalid("missing path"));
    }
    if call.body.is_empty() {
        return Err(Failure::invalid("missing data fields"));
    }
    let lease = lease_of(call.body);
    let mut record = Vec::with_capacity(HEADER + call.request.body.len());
    record.push(FORMAT);
    record.extend_from_slice(&lease.to_be_bytes());
    match call.body.without_repetition() {
        Some(json) => record.extend_from_slice(&json),
        None => record.extend_from_slice(call.request.body.trim_ascii()),
    }
    engine.commit(Txn::new().put(record_path(path), record)).await?;
    Ok(Reply::empty())
}

async fn delete(engine: &Kv1, call: &Call<'_>) -> Result<Reply, Failure> {
    let path = record_path(call.capture("path"));
    if path.ends_with('/') {
        // No secret has such a name.
        engine.check_upgrade()?;
        return Ok(Reply::empty());
    }
    // Without a look at what is there: while the store has failed at a write, it does not show what may come up yet.
    engine.commit(Txn::new().delete(path)).await?;
    Ok(Reply::empty())
}

async fn list(engine: &Kv1, call: &Call<'_>) -> Result<Reply, Failure> {
    engine.check_upgrade()?;
    let (after, limit) = call.page()?;
    Reply::keys(engine.view.list_long(&record_path(&folder(call)), after.as_deref(), limit).await?.iter())
}

async fn scan(engine: &Kv1, call: &Call<'_>) -> Result<Reply, Failure> {
    engine.check_upgrade()?;
    scan_reply(&keys_below(&engine.view, record_path(&folder(call))).await?)
}

fn folder(call: &Call<'_>) -> String {
    let path = call.capture("path");
    if path.is_empty() || path.ends_with('/') { path.to_owned() } else { format!("{path}/") }
}

/// `ttl`, or else `lease`, in seconds. One that cannot be read means the mount's default, also when the other could.
fn lease_of(body: &RawObject<'_>) -> u64 {
    let Some(raw) = body.member("ttl").or_else(|| body.member("lease")) else { return DEFAULT_LEASE };
    seconds(raw).unwrap_or(DEFAULT_LEASE)
}

fn seconds(raw: &RawValue) -> Option<u64> {
    let json = raw.get();
    if json == "null" {
        return Some(0);
    }
    let text = if json.starts_with('"') { serde_json::from_str::<String>(json).ok()? } else { json.to_owned() };
    Some(u64::try_from(duration::parse_signed(&text).ok()? / 1_000_000_000).unwrap_or(0))
}

/// Splits a record into lease and JSON. Also for the upgrade to version 2.
pub(super) fn decode<'r>(path: &str, record: &'r [u8]) -> Result<(u64, &'r [u8]), Failure> {
    let corrupt = || Failure::from(StorageError::Corrupt { key: path.to_owned(), reason: "not a version 1 secret".into() });
    let (&format, rest) = record.split_first().ok_or_else(corrupt)?;
    let (lease, json) = rest.split_first_chunk::<8>().ok_or_else(corrupt)?;
    if format != FORMAT {
        return Err(corrupt());
    }
    Ok((u64::from_be_bytes(*lease), json))
}
