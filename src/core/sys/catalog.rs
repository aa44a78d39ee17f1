//! `sys/plugins/catalog`, `sys/replication/status` and `sys/internal/counters`: what is built in, said to those who ask.

use std::collections::BTreeMap;

use serde::Serialize;

use super::System;
use crate::{
    auth,
    core::{
        engine::Call,
        failure::Failure,
        reply::Reply,
        route::{Access, Route},
    },
    engines, op,
    wire::field::NoParams,
};

/// Endpoints of this file.
pub const ROUTES: &[Route<System>] = &[
    Route {
        patterns: &["plugins/catalog/?"],
        access: Access::Token,
        help: "Lists the built-in engines and auth methods.",
        exists: None,
        operations: &[op!(Read, "List plugins", catalog, NoParams), op!(List, "List plugins", catalog, NoParams)],
    },
    Route {
        patterns: &["plugins/catalog/{type}/?"],
        access: Access::Sudo,
        help: "Lists the built-in plugins of a type.",
        exists: None,
        operations: &[
            op!(List, "List plugins of a type", of_type, PluginParams),
            op!(Read, "List plugins of a type", of_type, PluginParams),
        ],
    },
    Route {
        patterns: &["plugins/catalog/{type}/{name:segment}"],
        access: Access::Sudo,
        help: "Reads a built-in plugin. Plugins cannot be added.",
        exists: None,
        operations: &[
            op!(Read, "Read a plugin", plugin, PluginParams),
            op!(Write, "Not supported", no_plugins),
            op!(Delete, "Not supported", no_plugins),
        ],
    },
    Route {
        patterns: &["plugins/reload/backend", "plugins/reload/{type}/{name}", "plugins/pins/{path:rest}"],
        access: Access::Token,
        help: "Not supported by this server: it has no plugins.",
        exists: None,
        operations: &[op!(Read, "Not supported", no_plugins), op!(Write, "Not supported", no_plugins)],
    },
    Route {
        patterns: &["replication/status"],
        access: Access::Anyone,
        help: "Says that there is no replication.",
        exists: None,
        operations: &[op!(Read, "State of replication", replication, NoParams)],
    },
    Route {
        patterns: &["internal/counters/requests"],
        access: Access::Token,
        help: "Removed from Vault, kept to say so.",
        exists: None,
        operations: &[op!(Read, "Requests by month", no_request_counters)],
    },
    Route {
        patterns: &["internal/counters/tokens"],
        access: Access::Token,
        help: "Counts the service tokens.",
        exists: None,
        operations: &[op!(Read, "Number of tokens", tokens, NoParams)],
    },
];

crate::params! {
    /// A plugin.
    struct PluginParams {
        /// auth, secret or database.
        kind as "type": String,
        /// Name of the plugin.
        name: String,
    }
}

/// Names of Vault's engines and methods; those that are not built in are left out.
const CANDIDATES: [&str; 13] =
    ["approle", "aws", "azure", "cert", "database", "gcp", "github", "jwt", "kubernetes", "kv", "ldap", "transit", "userpass"];

fn names(kind: &str) -> Result<Vec<&'static str>, Failure> {
    let built_in = |test: fn(&str) -> bool| CANDIDATES.into_iter().filter(|name| test(name)).collect();
    match kind {
        "auth" => Ok(built_in(auth::is_mountable)),
        "secret" => Ok(built_in(engines::is_mountable)),
        "database" => Ok(Vec::new()),
        other => Err(Failure::invalid(format!("{other:?} is not a supported plugin type"))),
    }
}

#[derive(Serialize)]
struct Detail<'a> {
    builtin: bool,
    deprecation_status: &'a str,
    name: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    version: &'a str,
}

fn version() -> String {
    format!("v{}+builtin.sos", env!("CARGO_PKG_VERSION"))
}

async fn catalog(_: &System, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    #[derive(Serialize)]
    struct Catalog<'a> {
        auth: Vec<&'a str>,
        database: Vec<&'a str>,
        secret: Vec<&'a str>,
        detailed: Vec<Detail<'a>>,
    }
    let (auth, secret, version) = (names("auth")?, names("secret")?, version());
    let kinds = auth.iter().map(|name| ("auth", *name)).chain(secret.iter().map(|name| ("secret", *name)));
    let detailed = kinds
        .map(|(kind, name)| Detail { builtin: true, deprecation_status: "supported", name, kind, version: &version })
        .collect();
    Reply::mirrored(&Catalog { auth, database: Vec::new(), secret, detailed })
}

async fn of_type(_: &System, _: &Call<'_>, params: PluginParams) -> Result<Reply, Failure> {
    Reply::keys(names(&params.kind)?)
}

async fn plugin(_: &System, _: &Call<'_>, params: PluginParams) -> Result<Reply, Failure> {
    #[derive(Serialize)]
    struct Plugin<'a> {
        args: [&'a str; 0],
        builtin: bool,
        command: &'a str,
        deprecation_status: &'a str,
        name: &'a str,
        sha256: &'a str,
        version: &'a str,
    }
    let name = names(&params.kind)?.into_iter().find(|name| *name == params.name).ok_or_else(Failure::not_found)?;
    Reply::mirrored(&Plugin {
        args: [],
        builtin: true,
        command: "",
        deprecation_status: "supported",
        name,
        sha256: "",
        version: &version(),
    })
}

async fn no_plugins(_: &System, _: &Call<'_>) -> Result<Reply, Failure> {
    Err(Failure::not_implemented("running external plugins"))
}

async fn replication(_: &System, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    Reply::mirrored(&BTreeMap::from([("mode", "disabled")]))
}

async fn no_request_counters(_: &System, _: &Call<'_>) -> Result<Reply, Failure> {
    let text = "Functionality disabled on this path, please refer to documentation for more information";
    Err(Failure::not_found().with_warning(text))
}

async fn tokens(system: &System, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    #[derive(Serialize)]
    struct Total {
        total: usize,
    }
    let total = system.active()?.tokens.accessors(None, usize::MAX).await?.len();
    Reply::data(&BTreeMap::from([("counters", BTreeMap::from([("service_tokens", Total { total })]))]))
}
