//! `sys/audit`, `sys/audit-hash` and `sys/config/auditing/request-headers`.
//!
//! <https://developer.hashicorp.com/vault/api-docs/system/audit>

use std::collections::BTreeMap;

use serde::Serialize;

use super::System;
use crate::{
    audit::DeviceRecord,
    core::{
        engine::Call,
        failure::Failure,
        reply::Reply,
        route::{Access, Route},
    },
    op,
    wire::field::{NoParams, Pairs},
};

/// Endpoints of this file.
pub const ROUTES: &[Route<System>] = &[
    Route {
        patterns: &["audit"],
        access: Access::Sudo,
        help: "Lists the audit devices.",
        exists: None,
        operations: &[op!(Read, "List audit devices", list, NoParams)],
    },
    Route {
        patterns: &["audit/{path:rest}"],
        access: Access::Sudo,
        help: "Enables or disables an audit device.",
        exists: None,
        operations: &[
            op!(Write, "Enable an audit device", enable, EnableParams),
            op!(Delete, "Disable an audit device", disable, PathParams),
        ],
    },
    Route {
        patterns: &["audit-hash/{path:rest}"],
        access: Access::Token,
        help: "Gives the HMAC that the records of an audit device show for a value.",
        exists: None,
        operations: &[op!(Write, "HMAC of a value", hash, HashParams).computing()],
    },
    Route {
        patterns: &["config/auditing/request-headers"],
        access: Access::Sudo,
        help: "Lists the headers that audit records show.",
        exists: None,
        operations: &[op!(Read, "List audited headers", list_headers, NoParams)],
    },
    Route {
        patterns: &["config/auditing/request-headers/{header:segment}"],
        access: Access::Sudo,
        help: "Adds a header to audit records or removes it.",
        exists: None,
        operations: &[
            op!(Read, "Read an audited header", read_header, HeaderParams),
            op!(Write, "Audit a header", write_header, HeaderParams),
            op!(Delete, "Audit a header no longer", delete_header, HeaderParams),
        ],
    },
];

crate::params! {
    /// The path of a device.
    struct PathParams {
        /// Path of the audit device.
        path: String,
    }
}

crate::params! {
    /// A device to enable.
    struct EnableParams {
        /// Path of the audit device.
        path: String,
        /// Kind of device: file.
        kind as "type": String,
        /// For people.
        description: String,
        /// Options of the device: file_path, mode, format, log_raw, hmac_accessor, elide_list_responses.
        options: Pairs,
        /// Shown only.
        local: bool,
    }
}

crate::params! {
    /// A value to hash.
    struct HashParams {
        /// Path of the audit device.
        path: String,
        /// The value.
        input: String,
    }
}

crate::params! {
    /// An audited header.
    struct HeaderParams {
        /// Name of the header, in any case.
        header: String,
        /// Whether records show an HMAC of its value.
        hmac: bool,
    }
}

#[derive(Serialize)]
struct Shown {
    path: String,
    #[serde(rename = "type")]
    kind: String,
    description: String,
    options: BTreeMap<String, String>,
    local: bool,
}

/// Paths are kept with one trailing slash.
fn full(path: &str) -> String {
    format!("{}/", path.trim_matches('/'))
}

async fn list(system: &System, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    let devices: BTreeMap<String, Shown> = system.core()?.audit.list().into_iter().map(shown).collect();
    Reply::mirrored(&devices)
}

fn shown(record: DeviceRecord) -> (String, Shown) {
    let DeviceRecord { uuid: _, path, kind, description, options, local } = record;
    (path.clone(), Shown { path, kind, description, options, local })
}

async fn enable(system: &System, _: &Call<'_>, params: EnableParams) -> Result<Reply, Failure> {
    match params.kind.as_str() {
        "file" => {}
        "" => return Err(Failure::invalid("backend type must be specified as a string")),
        known @ ("syslog" | "socket" | "http") => {
            return Err(Failure::invalid(format!("unknown backend type: {known:?}: only \"file\" is supported by this server")));
        }
        other => return Err(Failure::invalid(format!("unknown backend type: {other:?}"))),
    }
    let path = full(&params.path);
    if path == "/" {
        return Err(Failure::unsupported_path());
    }
    let uuid = uuid::Uuid::new_v4().to_string();
    let EnableParams { kind, description, options, local, .. } = params;
    system.core()?.audit.enable(DeviceRecord { uuid, path, kind, description, options: options.0, local }).await?;
    Ok(Reply::empty())
}

async fn disable(system: &System, _: &Call<'_>, params: PathParams) -> Result<Reply, Failure> {
    system.core()?.audit.disable(&full(&params.path)).await?;
    Ok(Reply::empty())
}

async fn hash(system: &System, _: &Call<'_>, params: HashParams) -> Result<Reply, Failure> {
    #[derive(Serialize)]
    struct Hash {
        hash: String,
    }
    if params.input.is_empty() {
        return Err(Failure::invalid("the \"input\" parameter is empty"));
    }
    let path = full(&params.path);
    match system.core()?.audit.hash(&path, &params.input) {
        Some(hash) => Reply::mirrored(&Hash { hash }),
        None => Err(Failure::invalid(format!("unknown audit backend {path:?}"))),
    }
}

#[derive(Serialize)]
struct Header {
    hmac: bool,
}

async fn list_headers(system: &System, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    #[derive(Serialize)]
    struct Headers<'a> {
        headers: BTreeMap<&'a str, Header>,
    }
    let headers = system.core()?.audit.headers();
    Reply::mirrored(&Headers { headers: headers.iter().map(|(name, hmac)| (name.as_str(), Header { hmac: *hmac })).collect() })
}

async fn read_header(system: &System, _: &Call<'_>, params: HeaderParams) -> Result<Reply, Failure> {
    let name = params.header.to_ascii_lowercase();
    match system.core()?.audit.headers().get(&name) {
        Some(hmac) => Reply::mirrored(&BTreeMap::from([(params.header, Header { hmac: *hmac })])),
        None => Err(Failure::invalid("Could not find header in config")),
    }
}

async fn write_header(system: &System, _: &Call<'_>, params: HeaderParams) -> Result<Reply, Failure> {
    system.core()?.audit.set_header(&params.header, Some(params.hmac)).await?;
    Ok(Reply::empty())
}

async fn delete_header(system: &System, _: &Call<'_>, params: HeaderParams) -> Result<Reply, Failure> {
    system.core()?.audit.set_header(&params.header, None).await?;
    Ok(Reply::empty())
}
