//! One document's top level.

use std::{path::PathBuf, time::Duration};

use super::{Config, LogFormat, LogLevel, Protection, Warning, Zone, auth_limit, backup, listener, seal, storage, values};
use crate::hcl::{Error, Reader};

const USED: [&str; 25] = [
    "failed_auth_limit",
    "backup",
    "listener",
    "storage",
    "backend",
    "seal",
    "zone",
    "api_addr",
    "cluster_addr",
    "cluster_name",
    "default_lease_ttl",
    "max_lease_ttl",
    "default_max_request_duration",
    "log_level",
    "log_format",
    "log_file",
    "pid_file",
    "ui",
    "disable_mlock",
    "raw_storage_endpoint",
    "audit_paths",
    "default_protection_level",
    "vault_version",
    "hsm",
    "audit",
];

/// What Vault and OpenBao know at the top level and SOS does not need.
const ACCEPTED: [&str; 46] = [
    "telemetry",
    "plugin_directory",
    "plugin_file_uid",
    "plugin_file_permissions",
    "plugin_tmpdir",
    "plugin",
    "plugin_download_behavior",
    "plugin_auto_download",
    "plugin_auto_register",
    "plugin_download_max_size",
    "disable_cache",
    "cache_size",
    "disable_printable_check",
    "introspection_endpoint",
    "disable_clustering",
    "cluster_cipher_suites",
    "disable_performance_standby",
    "disable_sealwrap",
    "disable_indexing",
    "disable_sentinel_trace",
    "enable_response_header_hostname",
    "enable_response_header_raft_node_id",
    "log_requests_level",
    "log_rotate_bytes",
    "log_rotate_duration",
    "log_rotate_max_files",
    "detect_deadlocks",
    "imprecise_lease_role_tracking",
    "license_path",
    "entropy",
    "ha_storage",
    "ha_backend",
    "service_registration",
    "user_lockout",
    "experiments",
    "administrative_namespace_path",
    "enable_post_unseal_trace",
    "post_unseal_trace_directory",
    "sentinel",
    "reporting",
    "request_limiter",
    "adaptive_overload_protection",
    "unsafe_cross_namespace_identity",
    "unsafe_allow_api_audit_creation",
    "allow_audit_log_prefixing",
    "initialize",
];

pub(super) fn read(top: Reader<'_>, overrides: &seal::Overrides<'_>, warnings: &mut Vec<Warning>) -> Result<Config, Error> {
    for stanza in ["hsm", "audit"] {
        if let Some(entry) = top.entries(stanza).next() {
            let instead =
                if stanza == "hsm" { "write seal \"pkcs11\" { ... }" } else { "remove it and enable the device with sys/audit" };
            return Err(top.error(entry.key.at, format!("the {stanza} stanza is not supported: {instead}")));
        }
    }
    values::warn_of_others(top, "the configuration", &USED, &ACCEPTED, warnings);
    if let Some(entry) = top.entries("cluster_addr").last() {
        let message = "cluster_addr is accepted, but one node has no cluster port".to_string();
        warnings.push(Warning { file: top.file.to_string(), at: entry.key.at, message });
    }
    let path = |key| Ok::<_, Error>(values::text(top, key)?.map(PathBuf::from));
    Ok(Config {
        listeners: listener::read(top, warnings)?,
        storage: storage::read(top, warnings)?,
        backup: backup::read(top, warnings)?,
        seals: seal::read(top, overrides, warnings)?,
        zones: zones(top, warnings)?,
        api_addr: values::text(top, "api_addr")?,
        cluster_addr: values::text(top, "cluster_addr")?,
        cluster_name: values::text(top, "cluster_name")?,
        default_lease_ttl: values::duration(top, "default_lease_ttl")?.unwrap_or_default(),
        max_lease_ttl: values::duration(top, "max_lease_ttl")?.unwrap_or_default(),
        default_max_request_duration: values::duration(top, "default_max_request_duration")?.unwrap_or_default(),
        log_level: values::one_of(top, "log_level", LogLevel::parse, "\"trace\", \"debug\", \"info\", \"warn\", \"error\"")?,
        log_format: values::one_of(top, "log_format", LogFormat::parse, "\"standard\", \"json\"")?,
        log_file: path("log_file")?,
        pid_file: path("pid_file")?,
        ui: top.bool("ui")?.unwrap_or(false),
        disable_mlock: top.bool("disable_mlock")?.unwrap_or(false),
        raw_storage_endpoint: top.bool("raw_storage_endpoint")?.unwrap_or(false),
        audit_paths: top.strings("audit_paths")?.unwrap_or_default(),
        default_protection: values::one_of(
            top,
            "default_protection_level",
            Protection::parse,
            "\"hsm\", \"hsm-only\", \"software\"",
        )?,
        failed_auth_limit: auth_limit::read(top, warnings)?,
        vault_version: values::one_of(top, "vault_version", version, "the form \"1.14.0\"")?.unwrap_or_default(),
    })
}

fn zones(top: Reader<'_>, warnings: &mut Vec<Warning>) -> Result<Vec<Zone>, Error> {
    let mut zones = Vec::new();
    for block in top.blocks("zone")? {
        let valid = |name: &&str| {
            (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        let wrong =
            || top.error(block.at, "a zone needs a name of letters, digits, '-', '_' and '.': write zone \"tk1a\" { ... }");
        let name = block.label().filter(valid).ok_or_else(wrong)?.to_string();
        values::warn_of_others(block.body, "zone", &["rotation_period"], &[], warnings);
        let rotation_period = values::duration(block.body, "rotation_period")?.filter(|period| !period.is_zero());
        if rotation_period.is_some_and(|period| period < Duration::from_secs(3600)) {
            let text =
                "rotation_period must be an hour or more: old master keys stay on the HSM. Write rotation_period = \"768h\"";
            return Err(top.error(block.at, text));
        }
        zones.push(Zone { name, rotation_period });
    }
    Ok(zones)
}

/// `1.14.0`, or with a suffix such as `1.14.0+ent`.
fn version(text: &str) -> Option<String> {
    let numbers = text.split(['-', '+']).next().unwrap_or_default();
    let parts: Vec<_> = numbers.split('.').collect();
    let valid = parts.len() == 3 && parts.iter().all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'+'));
    (valid && plain).then(|| text.to_string())
}
