//! `sys/config/…`: CORS, headers of the web interface, the sanitized configuration, reloading.
//!
//! <https://developer.hashicorp.com/vault/api-docs/system/config-cors> and its neighbours.

use std::collections::BTreeMap;

use serde::Serialize;

use super::System;
use crate::{
    barrier::{Txn, View},
    core::{
        cors::CorsSettings,
        engine::Call,
        failure::Failure,
        reply::Reply,
        route::{Access, Route},
    },
    op,
    storage::StorageError,
    wire::field::NoParams,
};

/// Endpoints of this file.
pub const ROUTES: &[Route<System>] = &[
    Route {
        patterns: &["config/cors"],
        access: Access::Sudo,
        help: "Reads, sets or removes who may send cross-origin requests.",
        exists: None,
        operations: &[
            op!(Read, "Read the CORS settings", read_cors, NoParams),
            op!(Write, "Allow cross-origin requests", write_cors, CorsParams),
            op!(Delete, "Turn CORS off", delete_cors, NoParams),
        ],
    },
    Route {
        patterns: &["config/ui/headers/?"],
        access: Access::Sudo,
        help: "Lists the headers configured for the web interface.",
        exists: None,
        operations: &[op!(List, "List headers", list_headers, NoParams)],
    },
    Route {
        patterns: &["config/ui/headers/{header:segment}"],
        access: Access::Sudo,
        help: "Reads, sets or removes a header of the web interface, which this server does not have.",
        exists: None,
        operations: &[
            op!(Read, "Read a header", read_header, HeaderParams),
            op!(Write, "Set a header", write_header, HeaderParams),
            op!(Delete, "Remove a header", delete_header, HeaderParams),
        ],
    },
    Route {
        patterns: &["config/state/sanitized"],
        access: Access::Token,
        help: "Shows the server's configuration without secrets.",
        exists: None,
        operations: &[op!(Read, "Show the configuration", sanitized, NoParams)],
    },
    Route {
        patterns: &["config/reload/{subsystem}"],
        access: Access::Token,
        help: "Reads a part of the configuration again.",
        exists: None,
        operations: &[op!(Write, "Reload", reload, ReloadParams).computing()],
    },
];

crate::params! {
    /// Who may send cross-origin requests.
    struct CorsParams {
        /// Turns CORS on or off.
        enable: Option<bool>,
        /// Origins, or "*".
        allowed_origins: Vec<String>,
        /// Headers beside the standard ones.
        allowed_headers: Vec<String>,
        /// Whether credentials may be sent.
        allow_credentials: bool,
        /// Not used: whether CORS is on follows from the origins.
        enabled: Option<bool>,
    }
}

crate::params! {
    /// A header of the web interface.
    struct HeaderParams {
        /// Name of the header.
        header: String,
        /// Its values.
        values: Vec<String>,
        /// Whether all values are shown.
        multivalue: bool,
    }
}

crate::params! {
    /// What to reload.
    struct ReloadParams {
        /// Part of the configuration.
        subsystem: String,
    }
}

async fn read_cors(system: &System, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    #[derive(Serialize)]
    struct Shown<'a> {
        enabled: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        allowed_origins: Option<&'a [String]>,
        #[serde(skip_serializing_if = "Option::is_none")]
        allowed_headers: Option<&'a [String]>,
        #[serde(skip_serializing_if = "Option::is_none")]
        allow_credentials: Option<bool>,
    }
    let settings = system.core()?.cors.settings();
    Reply::mirrored(&Shown {
        enabled: settings.is_some(),
        allowed_origins: settings.as_ref().map(|settings| settings.allowed_origins.as_slice()),
        allowed_headers: settings.as_ref().map(|settings| settings.allowed_headers.as_slice()),
        allow_credentials: settings.as_ref().map(|settings| settings.allow_credentials),
    })
}

async fn write_cors(system: &System, _: &Call<'_>, params: CorsParams) -> Result<Reply, Failure> {
    let _follows_from_the_origins = params.enabled;
    let settings = match params.enable {
        Some(false) => None,
        _ => Some(CorsSettings::new(params.allowed_origins, params.allowed_headers, params.allow_credentials)?),
    };
    system.core()?.cors.set(settings).await?;
    Ok(Reply::empty())
}

async fn delete_cors(system: &System, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    system.core()?.cors.set(None).await?;
    Ok(Reply::empty())
}

/// Headers by name in lower case, each `(name as written, values)`.
type UiHeaders = BTreeMap<String, (String, Vec<String>)>;

/// Where the headers are stored.
const UI_HEADERS: &str = "config/ui-headers";

fn ui_headers(system: &System) -> Result<(View, UiHeaders), Failure> {
    system.active()?;
    let view = View::new(system.core()?.barrier.clone(), "core/")?;
    let headers = match view.get(UI_HEADERS)? {
        None => UiHeaders::new(),
        Some(entry) => serde_json::from_slice(entry.value.expose())
            .map_err(|error| StorageError::Corrupt { key: UI_HEADERS.into(), reason: error.to_string() })?,
    };
    Ok((view, headers))
}

async fn list_headers(system: &System, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    Reply::keys(ui_headers(system)?.1.into_values().map(|(name, _)| name))
}

async fn read_header(system: &System, _: &Call<'_>, params: HeaderParams) -> Result<Reply, Failure> {
    let (_, mut headers) = ui_headers(system)?;
    let (_, values) = headers.remove(&params.header.to_ascii_lowercase()).ok_or_else(Failure::not_found)?;
    if params.multivalue {
        return Reply::data(&BTreeMap::from([("values", values)]));
    }
    Reply::data(&BTreeMap::from([("value", values.first())]))
}

async fn write_header(system: &System, _: &Call<'_>, params: HeaderParams) -> Result<Reply, Failure> {
    if params.header.is_empty() || params.values.is_empty() {
        return Err(Failure::invalid("header and values must be specified"));
    }
    let key = params.header.to_ascii_lowercase();
    if key.starts_with("x-vault-") {
        return Err(Failure::invalid("X-Vault headers cannot be set"));
    }
    let (view, mut headers) = ui_headers(system)?;
    let overrides = key == "content-security-policy";
    headers.insert(key, (params.header, params.values));
    view.commit(Txn::new().put(UI_HEADERS, serde_json::to_vec(&headers).map_err(Failure::internal)?)).await?;
    let reply = Reply::empty().with_status(200);
    Ok(if overrides {
        reply.with_warning("overriding default Content-Security-Policy which is secure by default, proceed with caution")
    } else {
        reply
    })
}

async fn delete_header(system: &System, _: &Call<'_>, params: HeaderParams) -> Result<Reply, Failure> {
    let (view, mut headers) = ui_headers(system)?;
    if headers.remove(&params.header.to_ascii_lowercase()).is_some() {
        view.commit(Txn::new().put(UI_HEADERS, serde_json::to_vec(&headers).map_err(Failure::internal)?)).await?;
    }
    Ok(Reply::empty())
}

async fn sanitized(system: &System, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    Reply::data(&system.core()?.settings.sanitized)
}

async fn reload(_: &System, _: &Call<'_>, params: ReloadParams) -> Result<Reply, Failure> {
    let subsystem = params.subsystem;
    Err(Failure::invalid(format!("unknown subsystem {subsystem:?}: the server reads its configuration again on SIGHUP")))
}
