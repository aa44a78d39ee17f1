//! Several files become one configuration, and what nobody said gets its default.

use super::{
    Config, DEFAULT_LEASE_TTL, DEFAULT_REQUEST_DURATION, DEFAULT_VAULT_VERSION, Environment, Listener, LogFormat, LogLevel,
    Storage, TcpListener,
};

impl Config {
    /// The `-dev` server's settings: memory only, plain HTTP on `address`.
    pub fn dev(address: &str) -> Self {
        Self {
            listeners: vec![Listener::Tcp(TcpListener::plain(address))],
            storage: Some(Storage::Inmem),
            disable_mlock: true,
            raw_storage_endpoint: true,
            ..Self::default()
        }
    }

    /// `later` over `self` by Vault's rules: lists grow, switches stay on, the longer lease wins, other values are replaced.
    pub(super) fn merge(mut self, later: Self) -> Self {
        self.listeners.extend(later.listeners);
        self.seals.extend(later.seals);
        self.zones.extend(later.zones);
        self.audit_paths.extend(later.audit_paths);
        self.storage = later.storage.or(self.storage);
        self.backup = later.backup.or(self.backup);
        self.failed_auth_limit = later.failed_auth_limit.or(self.failed_auth_limit);
        self.api_addr = later.api_addr.or(self.api_addr);
        self.cluster_addr = later.cluster_addr.or(self.cluster_addr);
        self.cluster_name = later.cluster_name.or(self.cluster_name);
        self.log_file = later.log_file.or(self.log_file);
        self.pid_file = later.pid_file.or(self.pid_file);
        self.default_protection = later.default_protection.or(self.default_protection);
        self.default_lease_ttl = self.default_lease_ttl.max(later.default_lease_ttl);
        self.max_lease_ttl = self.max_lease_ttl.max(later.max_lease_ttl);
        self.default_max_request_duration = self.default_max_request_duration.max(later.default_max_request_duration);
        self.ui |= later.ui;
        self.disable_mlock |= later.disable_mlock;
        self.raw_storage_endpoint |= later.raw_storage_endpoint;
        self.log_level = later.log_level.or(self.log_level);
        self.log_format = later.log_format.or(self.log_format);
        if !later.vault_version.is_empty() {
            self.vault_version = later.vault_version;
        }
        self
    }

    /// Vault's environment variables and defaults; zero counts as "not said" as in Vault.
    pub(super) fn fill_defaults(&mut self, environment: Environment<'_>) {
        if let Some(address) = environment("VAULT_API_ADDR") {
            self.api_addr = Some(address);
        }
        if let Some(level) = environment("VAULT_LOG_LEVEL").and_then(|text| LogLevel::parse(&text)) {
            self.log_level = Some(level);
        }
        if let Some(format) = environment("VAULT_LOG_FORMAT").and_then(|text| LogFormat::parse(&text)) {
            self.log_format = Some(format);
        }
        if self.max_lease_ttl.is_zero() {
            self.max_lease_ttl = DEFAULT_LEASE_TTL;
        }
        if self.default_lease_ttl.is_zero() {
            self.default_lease_ttl = DEFAULT_LEASE_TTL.min(self.max_lease_ttl);
        }
        if self.default_max_request_duration.is_zero() {
            self.default_max_request_duration = DEFAULT_REQUEST_DURATION;
        }
        if self.vault_version.is_empty() {
            self.vault_version = DEFAULT_VAULT_VERSION.into();
        }
        if self.audit_paths.is_empty() {
            let temporary = std::env::temp_dir().display().to_string();
            self.audit_paths = vec!["/var/log".into(), temporary, "/dev/null".into(), "stdout".into()];
        }
        self.seals.sort_by_key(|seal| seal.priority);
    }
}
