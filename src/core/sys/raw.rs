//! `sys/raw`: decrypted records by path, for repairs. Off unless `raw_storage_endpoint = true`.
//!
//! <https://developer.hashicorp.com/vault/api-docs/system/raw>. Records that hold keys stay out of reach.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Serialize;

use super::System;
use crate::{
    barrier::Txn,
    core::{
        engine::Call,
        failure::Failure,
        reply::Reply,
        route::{Access, Route},
    },
    op,
};

/// Endpoints of this file.
pub const ROUTES: &[Route<System>] = &[Route {
    patterns: &["raw/{path:rest}", "raw"],
    access: Access::Sudo,
    help: "Reads, writes, deletes or lists decrypted records.",
    exists: None,
    operations: &[
        op!(Read, "Read a record", read, RawParams),
        op!(Write, "Write a record", write, RawParams),
        op!(Delete, "Delete a record", delete, RawParams),
        op!(List, "List records", list, RawParams),
    ],
}];

crate::params! {
    /// A record.
    struct RawParams {
        /// Its path.
        path: String,
        /// Its value.
        value: Option<String>,
        /// "base64" where the value is not text.
        encoding: String,
        /// Not supported: records are not compressed.
        compressed: Option<bool>,
        /// Not supported: records are not compressed.
        compression_type: Option<String>,
    }
}

/// The path, where `sys/raw` is on and the record holds no key.
fn checked(system: &System, params: &RawParams) -> Result<String, Failure> {
    let core = system.core()?;
    if !core.settings.raw_storage_endpoint {
        return Err(Failure::unsupported_path());
    }
    if params.compression_type.as_deref().is_some_and(|kind| !kind.is_empty()) {
        return Err(Failure::not_implemented("compression of records"));
    }
    let path = params.path.clone();
    let guarded = [
        "core/keyring",
        "core/seal",
        "core/init-intent",
        "core/cluster",
        "core/audit",
        "core/backup-key",
        "core/restored",
        "sos",
        "sys/token/salt",
        "sys/token/batch-key",
        "sys/token/wrapping-key",
    ];
    let inside = |name: &str| path.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if guarded.iter().any(|name| inside(name)) {
        return Err(Failure::invalid(format!("cannot access {path:?}: it holds keys")));
    }
    Ok(path)
}

fn is_base64(params: &RawParams) -> Result<bool, Failure> {
    match params.encoding.as_str() {
        "" => Ok(false),
        "base64" => Ok(true),
        other => Err(Failure::invalid(format!("invalid encoding {other:?}; supported values are \"\" and \"base64\""))),
    }
}

async fn read(system: &System, _: &Call<'_>, params: RawParams) -> Result<Reply, Failure> {
    #[derive(Serialize)]
    struct Value {
        value: String,
    }
    let path = checked(system, &params)?;
    let entry = system.core()?.barrier.get(&path)?.ok_or_else(Failure::not_found)?;
    let value = if is_base64(&params)? {
        STANDARD.encode(entry.value.expose())
    } else {
        let text = std::str::from_utf8(entry.value.expose());
        text.map_err(|_| Failure::invalid("the record is not text: use encoding=base64"))?.to_owned()
    };
    Reply::mirrored(&Value { value })
}

async fn write(system: &System, _: &Call<'_>, params: RawParams) -> Result<Reply, Failure> {
    let path = checked(system, &params)?;
    if path.is_empty() || path.ends_with('/') {
        return Err(Failure::invalid("missing path"));
    }
    let base64 = is_base64(&params)?;
    let value = params.value.ok_or_else(|| Failure::invalid("missing value"))?;
    let value = if base64 {
        STANDARD.decode(&value).map_err(|error| Failure::invalid(format!("the value is not base64: {error}")))?
    } else {
        value.into_bytes()
    };
    system.core()?.barrier.commit(Txn::new().put(path, value)).await?;
    Ok(Reply::empty())
}

async fn delete(system: &System, _: &Call<'_>, params: RawParams) -> Result<Reply, Failure> {
    let path = checked(system, &params)?;
    system.core()?.barrier.commit(Txn::new().delete(path)).await?;
    Ok(Reply::empty())
}

async fn list(system: &System, call: &Call<'_>, params: RawParams) -> Result<Reply, Failure> {
    let path = checked(system, &params)?;
    let (after, limit) = call.page()?;
    let path = path.trim_matches('/');
    let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
    Reply::keys(system.core()?.barrier.list_long(&prefix, after.as_deref(), limit).await?.iter())
}
