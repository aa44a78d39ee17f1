//! Secrets engines. Each is a folder with its routes, parameters and records; this file knows their names.

pub mod cubbyhole;
pub mod identity;
pub mod kv;
pub mod kv1;
pub mod kv2;
pub mod transit;

#[cfg(test)]
mod kv_testing;

use std::sync::Arc;

use crate::{
    barrier::View,
    config::Protection,
    core::{
        clock::Clock,
        engine::Engine,
        failure::Failure,
        mounts::{MountEntry, MountRecord},
    },
    hsm::Hsm,
    zones::Zones,
};

/// What an engine is given when it is mounted: its own storage, the time, and nothing of the core.
#[derive(Clone)]
pub struct MountContext {
    /// The mount as it is now; a tuned mount gets a new engine.
    pub entry: MountEntry,
    /// The same as it is stored, for commits that must not be made any more once it changed.
    pub record: MountRecord,
    /// The mount's own records: `logical/<uuid>/` or `auth/<uuid>/`.
    pub view: View,
    /// The time.
    pub clock: Clock,
    /// TTLs that apply where the mount has none of its own, in seconds.
    pub system_default_ttl: u64,
    /// Upper bound of TTLs, in seconds.
    pub system_max_ttl: u64,
    /// What all engines of the server share.
    pub services: Arc<Services>,
}

impl MountContext {
    /// The mount's default TTL in seconds, with the system's filled in.
    pub fn default_ttl(&self) -> u64 {
        match self.entry.config.default_lease_ttl {
            0 => self.system_default_ttl,
            ttl => ttl,
        }
    }

    /// The mount's maximal TTL in seconds, with the system's filled in.
    pub fn max_ttl(&self) -> u64 {
        match self.entry.config.max_lease_ttl {
            0 => self.system_max_ttl,
            ttl => ttl,
        }
    }
}

/// What all engines of the server share.
pub struct Services {
    /// The HSM, where one is configured.
    pub hsm: Option<Arc<dyn Hsm>>,
    /// Zones and their master keys.
    pub zones: Arc<Zones>,
    /// Protection level of new Transit keys where neither request nor mount names one.
    pub default_protection: Option<Protection>,
    /// The Transit mounts' keys in memory.
    pub transit: Arc<transit::Stores>,
}

/// Whether a secrets engine of this name can be mounted by clients.
pub fn is_mountable(kind: &str) -> bool {
    matches!(kind, "kv" | "transit")
}

/// Refuses a change of a mount's options that does not suit what the mount holds. As long as the answer is held, what the
/// mount holds stays as it was found: until the change is committed.
pub async fn check_tuned(before: &MountEntry, after: &MountContext) -> Result<Option<transit::Still>, Failure> {
    match after.entry.kind.as_str() {
        "transit" => transit::check_tuned(before, after).await,
        _ => Ok(None),
    }
}

/// Makes the engine for a mount. Refuses options that it does not take.
pub fn build(context: MountContext) -> Result<Arc<dyn Engine>, Failure> {
    match context.entry.kind.as_str() {
        "kv" => kv::build(context),
        "transit" => Ok(Arc::new(transit::Transit::new(&context)?)),
        kind => Err(Failure::invalid(format!("plugin not found in the catalog: {kind}"))),
    }
}
