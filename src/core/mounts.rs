//! The mount table: what is mounted where, with which configuration. One record per mount behind the barrier.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

use super::{
    engine::Engine,
    failure::{Failure, Kind},
};
use crate::{
    barrier::{BarrierError, Stamp, View},
    storage::StorageError,
};

/// Secrets engine or auth method: they have tables and path spaces of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Table {
    /// `sys/mounts`.
    Secret,
    /// `sys/auth`.
    Auth,
}

/// Tunable part of a mount. Times in seconds, 0 means the system's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountConfig {
    /// Default TTL of leases and tokens.
    pub default_lease_ttl: u64,
    /// Upper bound of TTLs.
    pub max_lease_ttl: u64,
    /// Shown only.
    pub force_no_cache: bool,
    /// `""`, `hidden` or `unauth`: whether `sys/internal/ui/mounts` shows it to anyone.
    pub listing_visibility: String,
    /// Request fields that audit records show in clear.
    pub audit_non_hmac_request_keys: Vec<String>,
    /// Response fields that audit records show in clear.
    pub audit_non_hmac_response_keys: Vec<String>,
    /// Request headers that the engine may see.
    pub passthrough_request_headers: Vec<String>,
    /// Response headers that the engine may set.
    pub allowed_response_headers: Vec<String>,
    /// Auth mounts: `default-service`, `default-batch`, `service` or `batch`; empty for secrets engines.
    pub token_type: String,
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountEntry {
    /// Which table.
    pub table: Table,
    /// Path below the table's root, with a trailing slash: `secret/`, `team/kv/`; for auth mounts `userpass/`.
    pub path: String,
    /// `kv`, `transit`, `cubbyhole`, `system`, `identity`, `token`, `approle` …
    pub kind: String,
    /// Names the mount's storage; never reused.
    pub uuid: String,
    /// `kv_1a2b3c4d`.
    pub accessor: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Engine options (`version`, `zone`, `protection` …).
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Tunables.
    #[serde(default)]
    pub config: MountConfig,
    /// Shown only.
    #[serde(default)]
    pub local: bool,
    /// Shown only: everything is encrypted under the barrier anyway.
    #[serde(default)]
    pub seal_wrap: bool,
    /// Shown only.
    #[serde(default)]
    pub external_entropy_access: bool,
}

impl MountEntry {
    /// The full path as requests and policies name it: `secret/` or `auth/userpass/`.
    pub fn full_path(&self) -> String {
        match self.table {
            Table::Secret => self.path.clone(),
            Table::Auth => format!("auth/{}", self.path),
        }
    }
}

/// Folder of the mounts' records below `core/`.
pub const MOUNTS: &str = "mounts/";

/// A mount's record as it is stored. An engine whose work takes long has its commits depend on it, so that none is made once
/// the mount was removed or changed.
#[derive(Clone, Debug)]
pub struct MountRecord {
    table: View,
    path: String,
}

impl MountRecord {
    /// The record of a mount in the table, which is the view of `core/`.
    pub fn new(table: &View, uuid: &str) -> Self {
        Self { table: table.clone(), path: format!("{MOUNTS}{uuid}") }
    }

    /// The mount as it is now, and what a commit depends on that shall be made only while it is so. `None` once it was removed.
    pub fn read(&self) -> Result<Option<(MountEntry, Stamp)>, Failure> {
        let Some(entry) = self.table.get(&self.path)? else { return Ok(None) };
        let mount = serde_json::from_slice(entry.value.expose()).map_err(Failure::internal)?;
        Ok(Some((mount, Stamp::new(self.absolute(), &entry))))
    }

    /// What a commit depends on that shall be made only while the mount is there, whatever is said about it. Nothing is read for it:
    /// the store looks when it commits.
    pub fn there(&self) -> Stamp {
        Stamp::present(self.absolute())
    }

    /// Whether a commit was refused because the mount is not there any more.
    pub fn is_gone(&self, error: &BarrierError) -> bool {
        matches!(error, BarrierError::Storage(StorageError::Conflict { key }) if *key == self.absolute())
    }

    /// What a request is told whose mount went away before it committed.
    pub fn removed() -> Failure {
        Failure::plain(Kind::UnsupportedPath, "the mount was removed while the request was under way; nothing was stored")
    }

    /// Its path from the root of the store.
    fn absolute(&self) -> String {
        format!("{}{}", self.table.prefix(), self.path)
    }
}

/// A mount with its running engine.
pub struct Mounted {
    /// What is mounted.
    pub entry: MountEntry,
    /// What answers.
    pub engine: Arc<dyn Engine>,
}

/// All mounts by full path. Readers take a snapshot without a lock; changes replace the whole map.
#[derive(Default)]
pub struct Router {
    mounts: ArcSwap<BTreeMap<String, Arc<Mounted>>>,
}

impl Router {
    /// The mount that a path lies under, and the rest of the path. `kv` finds the mount `kv/` with an empty rest.
    pub fn find<'p>(&self, path: &'p str) -> Option<(Arc<Mounted>, &'p str)> {
        let mounts = self.mounts.load();
        // No mount's path is a prefix of another's, so only the greatest path not after this one can match.
        let (prefix, mounted) =
            mounts.range::<str, _>((std::ops::Bound::Unbounded, std::ops::Bound::Included(path))).next_back()?;
        if let Some(rest) = path.strip_prefix(prefix.as_str()) {
            return Some((Arc::clone(mounted), rest));
        }
        None
    }

    /// The mount whose path without the trailing slash is `path`.
    pub fn find_bare(&self, path: &str) -> Option<Arc<Mounted>> {
        self.mounts.load().get(&format!("{path}/")).cloned()
    }

    /// All mounts, sorted by full path.
    pub fn all(&self) -> Vec<Arc<Mounted>> {
        self.mounts.load().values().cloned().collect()
    }

    /// The mount at exactly this full path (with trailing slash).
    pub fn at(&self, full_path: &str) -> Option<Arc<Mounted>> {
        self.mounts.load().get(full_path).cloned()
    }

    /// The mount with this accessor.
    pub fn by_accessor(&self, accessor: &str) -> Option<Arc<Mounted>> {
        self.mounts.load().values().find(|mounted| mounted.entry.accessor == accessor).cloned()
    }

    /// Replaces the map.
    pub fn set(&self, mounts: BTreeMap<String, Arc<Mounted>>) {
        self.mounts.store(Arc::new(mounts));
    }

    /// Puts one mount in or replaces it.
    pub fn put(&self, mounted: Arc<Mounted>) {
        self.mounts.rcu(|mounts| {
            let mut mounts = BTreeMap::clone(mounts);
            mounts.insert(mounted.entry.full_path(), Arc::clone(&mounted));
            mounts
        });
    }

    /// Takes one mount out.
    pub fn take(&self, full_path: &str) {
        self.mounts.rcu(|mounts| {
            let mut mounts = BTreeMap::clone(mounts);
            mounts.remove(full_path);
            mounts
        });
    }
}
