//! `sys/mounts` and `sys/auth`: what is mounted, mounting, unmounting, tuning.
//!
//! <https://developer.hashicorp.com/vault/api-docs/system/mounts>, `…/system/auth`

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;
use serde_json::Value;

use super::System;
use crate::{
    core::{
        Core,
        engine::Call,
        failure::Failure,
        mount_table::new_entry,
        mounts::{MountConfig, MountEntry, Mounted, Table},
        reply::Reply,
        route::{Access, Route},
    },
    engines, op,
    wire::{
        duration,
        field::{NoParams, Object, Pairs},
    },
};

/// Endpoints of this file.
pub const ROUTES: &[Route<System>] = &[
    Route {
        patterns: &["mounts"],
        access: Access::Token,
        help: "Lists the mounted secrets engines.",
        exists: None,
        operations: &[op!(Read, "All secrets engines", list_secret, NoParams)],
    },
    Route {
        patterns: &["auth"],
        access: Access::Token,
        help: "Lists the enabled auth methods.",
        exists: None,
        operations: &[op!(Read, "All auth methods", list_auth, NoParams)],
    },
    Route {
        patterns: &["mounts/auth/{path:path}/tune"],
        access: Access::Sudo,
        help: "Shows or changes the tunable part of an auth method.",
        exists: None,
        operations: &[
            op!(Read, "Tunables of an auth method", read_auth_tune, TuneParams),
            op!(Write, "Tune an auth method", write_auth_tune, TuneParams),
        ],
    },
    Route {
        patterns: &["mounts/{path:path}/tune"],
        access: Access::Token,
        help: "Shows or changes the tunable part of a secrets engine.",
        exists: None,
        operations: &[
            op!(Read, "Tunables of a secrets engine", read_secret_tune, TuneParams),
            op!(Write, "Tune a secrets engine", write_secret_tune, TuneParams),
        ],
    },
    Route {
        patterns: &["auth/{path:path}/tune"],
        access: Access::Sudo,
        help: "Shows or changes the tunable part of an auth method.",
        exists: None,
        operations: &[
            op!(Read, "Tunables of an auth method", read_auth_tune, TuneParams),
            op!(Write, "Tune an auth method", write_auth_tune, TuneParams),
        ],
    },
    Route {
        patterns: &["mounts/{path:path}"],
        access: Access::Token,
        help: "Mounts, shows and unmounts a secrets engine.",
        exists: None,
        operations: &[
            op!(Read, "One secrets engine", read_secret, MountParams),
            op!(Write, "Mount a secrets engine", mount_secret, MountParams),
            op!(Delete, "Unmount a secrets engine; its data is deleted", unmount_secret, MountParams),
        ],
    },
    Route {
        patterns: &["auth/{path:path}"],
        access: Access::Sudo,
        help: "Enables, shows and disables an auth method.",
        exists: None,
        operations: &[
            op!(Read, "One auth method", read_auth, MountParams),
            op!(Write, "Enable an auth method", mount_auth, MountParams),
            op!(Delete, "Disable an auth method; its tokens are revoked", unmount_auth, MountParams),
        ],
    },
];

/// Paths that clients can neither mount nor unmount.
const PROTECTED: [&str; 5] = ["auth/", "sys/", "cubbyhole/", "identity/", "audit/"];

crate::params! {
    /// Parameters of mounting.
    struct MountParams {
        /// Where to mount.
        path: String,
        /// Kind of engine or method.
        kind as "type": String,
        /// For people.
        description: String,
        /// TTLs, visibility and other tunables.
        config: Object,
        /// Options of the engine.
        options: Option<Pairs>,
        /// Shown only: there is one node.
        local: bool,
        /// Shown only: everything is encrypted.
        seal_wrap: bool,
        /// Shown only.
        external_entropy_access: bool,
        /// Accepted; engines are built in.
        _plugin_name as "plugin_name": String,
        /// Accepted; engines are built in.
        _plugin_version as "plugin_version": String,
    }
}

crate::params! {
    /// Parameters of tuning; absent ones stay as they are.
    struct TuneParams {
        /// The mount.
        path: String,
        /// Default TTL; 0 or `system` for the system's.
        default_lease_ttl: Option<String>,
        /// Maximal TTL; 0 or `system` for the system's.
        max_lease_ttl: Option<String>,
        /// For people.
        description: Option<String>,
        /// Request fields that audit records show in clear.
        audit_non_hmac_request_keys: Option<Vec<String>>,
        /// Response fields that audit records show in clear.
        audit_non_hmac_response_keys: Option<Vec<String>>,
        /// `hidden` or `unauth`.
        listing_visibility: Option<String>,
        /// Request headers for the engine.
        passthrough_request_headers: Option<Vec<String>>,
        /// Response headers from the engine.
        allowed_response_headers: Option<Vec<String>>,
        /// Auth methods: kind of tokens.
        token_type: Option<String>,
        /// Options of the engine.
        options: Option<Pairs>,
        /// Accepted; engines are built in.
        _plugin_version as "plugin_version": Option<String>,
        /// Accepted: users are not locked out yet.
        _user_lockout_config as "user_lockout_config": Option<Object>,
    }
}

#[derive(Serialize)]
struct ShownConfig<'a> {
    default_lease_ttl: u64,
    max_lease_ttl: u64,
    force_no_cache: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    listing_visibility: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    audit_non_hmac_request_keys: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    audit_non_hmac_response_keys: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    passthrough_request_headers: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    allowed_response_headers: &'a [String],
    #[serde(skip_serializing_if = "str::is_empty")]
    token_type: &'a str,
}

/// A mount as `sys/mounts` shows it.
#[derive(Serialize)]
pub struct Shown<'a> {
    accessor: &'a str,
    config: ShownConfig<'a>,
    /// Of engines that clients mount; the built-in mounts have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    deprecation_status: Option<&'static str>,
    description: &'a str,
    external_entropy_access: bool,
    local: bool,
    /// `null` for built-in mounts, an object for those of clients.
    options: Option<&'a BTreeMap<String, String>>,
    plugin_version: &'a str,
    running_plugin_version: &'a str,
    running_sha256: &'a str,
    seal_wrap: bool,
    #[serde(rename = "type")]
    kind: &'a str,
    uuid: &'a str,
}

impl<'a> Shown<'a> {
    /// What clients see of a mount.
    pub fn new(entry: &'a MountEntry) -> Self {
        let config = &entry.config;
        Self {
            accessor: &entry.accessor,
            config: ShownConfig {
                default_lease_ttl: config.default_lease_ttl,
                max_lease_ttl: config.max_lease_ttl,
                force_no_cache: config.force_no_cache,
                listing_visibility: &config.listing_visibility,
                audit_non_hmac_request_keys: &config.audit_non_hmac_request_keys,
                audit_non_hmac_response_keys: &config.audit_non_hmac_response_keys,
                passthrough_request_headers: &config.passthrough_request_headers,
                allowed_response_headers: &config.allowed_response_headers,
                token_type: &config.token_type,
            },
            deprecation_status: matches!(entry.kind.as_str(), "kv" | "transit").then_some("supported"),
            description: &entry.description,
            external_entropy_access: entry.external_entropy_access,
            local: entry.local,
            options: options(entry),
            plugin_version: "",
            running_plugin_version: concat!("v", env!("CARGO_PKG_VERSION"), "+builtin.sos"),
            running_sha256: "",
            seal_wrap: entry.seal_wrap,
            kind: &entry.kind,
            uuid: &entry.uuid,
        }
    }
}

/// Mounts that the server makes itself have no options at all (`null`), others may have none (`{}`).
pub(super) fn options(entry: &MountEntry) -> Option<&BTreeMap<String, String>> {
    let built_in = matches!(entry.kind.as_str(), "system" | "identity" | "cubbyhole" | "token");
    (!built_in).then_some(&entry.options)
}

async fn list_secret(system: &System, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    list(system, Table::Secret)
}

async fn list_auth(system: &System, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    list(system, Table::Auth)
}

fn list(system: &System, table: Table) -> Result<Reply, Failure> {
    let mounts = system.active()?.router.all();
    let shown: BTreeMap<&str, Shown<'_>> = mounts
        .iter()
        .filter(|mounted| mounted.entry.table == table)
        .map(|mounted| (mounted.entry.path.as_str(), Shown::new(&mounted.entry)))
        .collect();
    Reply::mirrored(&shown)
}

/// The path with one trailing slash, as the mount table keeps it.
fn folder(path: &str) -> String {
    format!("{}/", path.trim_matches('/'))
}

/// The full path of a mount named in a URL. `mounts/auth/x` names an auth method.
fn full_path(table: Table, path: &str) -> String {
    match table {
        Table::Secret => folder(path),
        Table::Auth => format!("auth/{}", folder(path)),
    }
}

/// The mount at a full path, when it is of this table: `auth/token` is no secrets engine, and its rules are stricter.
fn at(system: &System, table: Table, full: &str) -> Result<Option<Arc<Mounted>>, Failure> {
    Ok(system.active()?.router.at(full).filter(|mounted| mounted.entry.table == table))
}

async fn read_secret(system: &System, _: &Call<'_>, params: MountParams) -> Result<Reply, Failure> {
    read(system, Table::Secret, &params.path)
}

async fn read_auth(system: &System, _: &Call<'_>, params: MountParams) -> Result<Reply, Failure> {
    read(system, Table::Auth, &params.path)
}

fn read(system: &System, table: Table, path: &str) -> Result<Reply, Failure> {
    let what = match table {
        Table::Secret => "secret",
        Table::Auth => "auth",
    };
    let absent = || {
        Failure::invalid(format!("No {what} engine at {}", folder(path)).replace("secret engine at", "secret engine mount at"))
    };
    let mounted = at(system, table, &full_path(table, path))?.ok_or_else(absent)?;
    Reply::mirrored(&Shown::new(&mounted.entry))
}

async fn mount_secret(system: &System, _: &Call<'_>, params: MountParams) -> Result<Reply, Failure> {
    let path = folder(&params.path);
    if PROTECTED.iter().any(|protected| path.starts_with(protected)) {
        return Err(Failure::invalid(format!("cannot mount {path:?}")));
    }
    let (kind, version) = match params.kind.as_str() {
        "kv-v1" | "generic" => ("kv", Some("1")),
        "kv-v2" => ("kv", Some("2")),
        "" => return Err(Failure::invalid("backend type must be specified as a string")),
        kind @ ("system" | "identity" | "cubbyhole") => {
            return Err(Failure::invalid(format!("mount type of {kind:?} is not mountable")));
        }
        kind if engines::is_mountable(kind) => (kind, None),
        kind => return Err(Failure::invalid(format!("plugin not found in the catalog: {kind}"))),
    };
    let mut entry = entry(system, Table::Secret, &path, kind, &params)?;
    if let Some(version) = version {
        entry.options.insert("version".into(), version.into());
    }
    let core = system.core()?;
    core.active()?.mounts.mount(&core, entry).await?;
    tracing::info!(%path, kind, "mounted");
    Ok(Reply::empty())
}

async fn mount_auth(system: &System, _: &Call<'_>, params: MountParams) -> Result<Reply, Failure> {
    let kind = params.kind.as_str();
    match kind {
        "" => return Err(Failure::invalid("backend type must be specified as a string")),
        "token" => return Err(Failure::invalid("token credential backend cannot be instantiated")),
        kind if !crate::auth::is_mountable(kind) => {
            return Err(Failure::invalid(format!("plugin not found in the catalog: {kind}")));
        }
        _ => {}
    }
    let path = folder(&params.path);
    let entry = entry(system, Table::Auth, &path, kind, &params)?;
    let core = system.core()?;
    core.active()?.mounts.mount(&core, entry).await?;
    tracing::info!(%path, kind, "auth method enabled");
    Ok(Reply::empty())
}

fn entry(system: &System, table: Table, path: &str, kind: &str, params: &MountParams) -> Result<MountEntry, Failure> {
    let core = system.core()?;
    let mut entry = new_entry(table, path, kind);
    entry.config = config(&core, table, &params.config)?;
    entry.description.clone_from(&params.description);
    entry.options = params.options.as_ref().map(|pairs| pairs.0.clone()).unwrap_or_default();
    entry.local = params.local;
    entry.seal_wrap = params.seal_wrap;
    entry.external_entropy_access = params.external_entropy_access;
    Ok(entry)
}

/// The `config` of a new mount.
fn config(core: &Core, table: Table, given: &Object) -> Result<MountConfig, Failure> {
    let text = |name: &str| given.0.get(name).map(plain_text).transpose();
    let list = |name: &str| given.0.get(name).map_or_else(|| Ok(Vec::new()), strings);
    let ttl = |name: &str, what: &str| -> Result<u64, Failure> {
        let given = text(name)?.unwrap_or_default();
        seconds(&given).map_err(|error| Failure::invalid(format!("unable to parse {what} TTL of {given}: {error}")))
    };
    let mut config = MountConfig {
        default_lease_ttl: ttl("default_lease_ttl", "default")?,
        max_lease_ttl: ttl("max_lease_ttl", "max")?,
        force_no_cache: matches!(given.0.get("force_no_cache"), Some(Value::Bool(true))),
        listing_visibility: text("listing_visibility")?.unwrap_or_default(),
        audit_non_hmac_request_keys: list("audit_non_hmac_request_keys")?,
        audit_non_hmac_response_keys: list("audit_non_hmac_response_keys")?,
        passthrough_request_headers: list("passthrough_request_headers")?,
        allowed_response_headers: list("allowed_response_headers")?,
        token_type: String::new(),
    };
    if config.max_lease_ttl != 0 && config.default_lease_ttl > config.max_lease_ttl {
        return Err(Failure::invalid("given default lease TTL greater than given max lease TTL"));
    }
    let bound = core.settings.max_lease_ttl;
    if config.max_lease_ttl == 0 && config.default_lease_ttl > bound {
        return Err(Failure::invalid(format!("given default lease TTL greater than system max lease TTL of {bound}")));
    }
    check_visibility(&config.listing_visibility)?;
    if table == Table::Auth {
        config.token_type = token_type(text("token_type")?.as_deref().unwrap_or(""))?;
    }
    Ok(config)
}

/// A scalar of `config`; numbers are seconds.
fn plain_text(value: &Value) -> Result<String, Failure> {
    match value {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(Failure::invalid("unable to convert given mount config information")),
    }
}

fn strings(value: &Value) -> Result<Vec<String>, Failure> {
    match value {
        Value::Array(items) => items.iter().map(plain_text).collect(),
        other => Ok(plain_text(other)?.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect()),
    }
}

fn seconds(text: &str) -> Result<u64, duration::DurationError> {
    // "system" is how Vault's clients ask for the system's default.
    if text.is_empty() || text == "system" {
        return Ok(0);
    }
    duration::parse_duration(text).map(|duration| duration.as_secs())
}

fn check_visibility(text: &str) -> Result<(), Failure> {
    match text {
        "" | "hidden" | "unauth" => Ok(()),
        other => Err(Failure::invalid(format!("invalid listing_visibility {other}"))),
    }
}

fn token_type(text: &str) -> Result<String, Failure> {
    match text {
        "" | "default-service" => Ok("default-service".into()),
        "default-batch" | "service" | "batch" => Ok(text.to_owned()),
        _ => Err(Failure::invalid("invalid value for 'token_type'")),
    }
}

async fn unmount_secret(system: &System, _: &Call<'_>, params: MountParams) -> Result<Reply, Failure> {
    let path = folder(&params.path);
    if PROTECTED.iter().any(|protected| path.starts_with(protected)) {
        return Err(Failure::invalid(format!("cannot unmount {path:?}")));
    }
    let core = system.core()?;
    let active = core.active()?;
    active.mounts.unmount(&core, &path).await?;
    core.go_on_removing(&active);
    Ok(Reply::empty())
}

async fn unmount_auth(system: &System, _: &Call<'_>, params: MountParams) -> Result<Reply, Failure> {
    if folder(&params.path) == "token/" {
        return Err(Failure::invalid("token credential backend cannot be disabled"));
    }
    let full = full_path(Table::Auth, &params.path);
    let core = system.core()?;
    let active = core.active()?;
    // The mount goes first: nobody can log in any more while the tokens are revoked.
    active.mounts.unmount(&core, &full).await?;
    core.go_on_removing(&active);
    active.tokens.revoke_prefix(&full).await?;
    Ok(Reply::empty())
}

#[derive(Serialize)]
struct ShownTune<'a> {
    #[serde(flatten)]
    config: ShownConfig<'a>,
    description: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    options: Option<&'a BTreeMap<String, String>>,
}

async fn read_secret_tune(system: &System, _: &Call<'_>, params: TuneParams) -> Result<Reply, Failure> {
    read_tune(system, Table::Secret, &params.path)
}

async fn read_auth_tune(system: &System, _: &Call<'_>, params: TuneParams) -> Result<Reply, Failure> {
    read_tune(system, Table::Auth, &params.path)
}

fn read_tune(system: &System, table: Table, path: &str) -> Result<Reply, Failure> {
    let core = system.core()?;
    let full = full_path(table, path);
    let absent = || Failure::invalid(format!("cannot fetch sysview for path {full:?}"));
    let mounted = at(system, table, &full)?.ok_or_else(absent)?;
    let entry = &mounted.entry;
    let shown = Shown::new(entry);
    let or = |ttl: u64, default: u64| if ttl == 0 { default } else { ttl };
    let config = ShownConfig {
        default_lease_ttl: or(entry.config.default_lease_ttl, core.settings.default_lease_ttl),
        max_lease_ttl: or(entry.config.max_lease_ttl, core.settings.max_lease_ttl),
        ..shown.config
    };
    let options = Some(&entry.options).filter(|options| !options.is_empty());
    Reply::mirrored(&ShownTune { config, description: &entry.description, options })
}

async fn write_secret_tune(system: &System, _: &Call<'_>, params: TuneParams) -> Result<Reply, Failure> {
    if params.token_type.is_some() {
        return Err(Failure::invalid("'token_type' can only be modified on auth mounts"));
    }
    write_tune(system, Table::Secret, params).await
}

async fn write_auth_tune(system: &System, _: &Call<'_>, params: TuneParams) -> Result<Reply, Failure> {
    write_tune(system, Table::Auth, params).await
}

async fn write_tune(system: &System, table: Table, params: TuneParams) -> Result<Reply, Failure> {
    let core = system.core()?;
    let active = core.active()?;
    let full = full_path(table, &params.path);
    if at(system, table, &full)?.is_none() {
        return Err(Failure::invalid(format!("tune of path {full:?} failed: no mount entry found")));
    }
    let mut warning = None;
    let settings = &core.settings;
    let change = |entry: &mut MountEntry| -> Result<(), Failure> {
        let config = &mut entry.config;
        for (given, target) in
            [(&params.default_lease_ttl, &mut config.default_lease_ttl), (&params.max_lease_ttl, &mut config.max_lease_ttl)]
        {
            // Clients send the TTLs that they do not mean to change as empty texts.
            if let Some(text) = given.as_deref().filter(|text| !text.is_empty()) {
                *target = seconds(text).map_err(|error| Failure::invalid(format!("unable to parse TTL of {text}: {error}")))?;
            }
        }
        if config.max_lease_ttl != 0 && config.default_lease_ttl > config.max_lease_ttl {
            return Err(Failure::invalid(format!(
                "backend max lease TTL of {} would be less than backend default lease TTL of {}",
                config.max_lease_ttl, config.default_lease_ttl
            )));
        }
        if config.max_lease_ttl == 0 && config.default_lease_ttl > settings.max_lease_ttl {
            return Err(Failure::invalid(format!(
                "backend default lease TTL of {} would be greater than system max lease TTL of {}",
                config.default_lease_ttl, settings.max_lease_ttl
            )));
        }
        if let Some(visibility) = &params.listing_visibility {
            check_visibility(visibility)?;
            config.listing_visibility.clone_from(visibility);
        }
        if let Some(kind) = &params.token_type {
            config.token_type = token_type(kind)?;
        }
        for (given, target) in [
            (&params.audit_non_hmac_request_keys, &mut config.audit_non_hmac_request_keys),
            (&params.audit_non_hmac_response_keys, &mut config.audit_non_hmac_response_keys),
            (&params.passthrough_request_headers, &mut config.passthrough_request_headers),
            (&params.allowed_response_headers, &mut config.allowed_response_headers),
        ] {
            if let Some(list) = given {
                target.clone_from(list);
            }
        }
        if let Some(description) = &params.description {
            entry.description.clone_from(description);
        }
        if let Some(options) = &params.options {
            warning = change_options(entry, &options.0)?;
        }
        Ok(())
    };
    active.mounts.tune(&core, &full, change).await?;
    Ok(match warning {
        Some(text) => Reply::empty().with_warning(text),
        None => Reply::empty(),
    })
}

/// Takes new options over; the version of a KV mount can only grow.
fn change_options(entry: &mut MountEntry, options: &BTreeMap<String, String>) -> Result<Option<String>, Failure> {
    let mut changed = entry.options.clone();
    changed.extend(options.iter().map(|(name, value)| (name.clone(), value.clone())));
    let upgrades = entry.kind == "kv" && engines::kv::check_version_change(&entry.options, &changed)?;
    entry.options = changed;
    Ok(upgrades.then(|| {
        "Upgrading mount from version 1 to version 2. This mount will be unavailable for a brief period and will resume \
         service shortly."
            .to_owned()
    }))
}
