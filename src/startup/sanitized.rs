//! The configuration as `sys/config/state/sanitized` shows it: Vault's names, nothing secret, no paths of key files.

use serde_json::{Value, json};

use crate::config::{Config, Listener, Storage};

/// What may be shown of a configuration.
pub fn sanitized(config: &Config) -> Value {
    let listeners: Vec<Value> = config
        .listeners
        .iter()
        .map(|listener| match listener {
            Listener::Tcp(tcp) => json!({
                "type": "tcp",
                "config": {
                    "address": tcp.address,
                    "tls_disable": tcp.tls.is_none(),
                    "max_request_size": tcp.max_request_size,
                    "require_request_header": tcp.require_request_header,
                },
            }),
            Listener::Unix(unix) => json!({
                "type": "unix",
                "config": {"address": unix.address.display().to_string(), "max_request_size": unix.max_request_size},
            }),
        })
        .collect();
    let seals: Vec<Value> =
        config.seals.iter().map(|seal| json!({"type": "pkcs11", "name": seal.name, "disabled": seal.disabled})).collect();
    json!({
        "api_addr": config.api_addr.as_deref().unwrap_or(""),
        "cluster_addr": config.cluster_addr.as_deref().unwrap_or(""),
        "cluster_name": config.cluster_name.as_deref().unwrap_or(""),
        "cache_size": 0,
        "default_lease_ttl": config.default_lease_ttl.as_secs(),
        "max_lease_ttl": config.max_lease_ttl.as_secs(),
        "default_max_request_duration": config.default_max_request_duration.as_secs(),
        "disable_mlock": config.disable_mlock,
        "enable_ui": config.ui,
        "listeners": listeners,
        "log_level": config.log_level.unwrap_or_default().as_str(),
        "pid_file": config.pid_file.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        "raw_storage_endpoint": config.raw_storage_endpoint,
        "seals": seals,
        "storage": {"type": config.storage.as_ref().map_or("inmem", Storage::kind)},
    })
}
