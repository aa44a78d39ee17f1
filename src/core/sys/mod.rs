//! The `sys/` mount: one file per family of endpoints, each with its own slice of the route table.

pub mod absent;
pub mod audit;
pub mod backups;
pub mod capabilities;
pub mod catalog;
pub mod config;
pub mod health;
pub mod host_info;
pub mod hsm;
pub mod leases;
pub mod metrics;
pub mod mounts;
pub mod openapi;
pub mod policies;
pub mod raw;
pub mod remount;
pub mod seal;
pub mod seals;
pub mod snapshot;
pub mod status;
pub mod tools;
pub mod ui_mounts;
pub mod wrapping;
pub mod zones;

use std::sync::{Arc, LazyLock, Weak};

use super::{
    Active, Core,
    failure::Failure,
    mount_table,
    mounts::{MountEntry, Table},
    route::{RouteTable, Routed},
};

/// What answers below `sys/`. The one engine that sees the core, as its endpoints change the core.
pub struct System {
    core: Weak<Core>,
}

impl System {
    /// The system engine of a core.
    pub fn new(core: &Arc<Core>) -> Self {
        Self { core: Arc::downgrade(core) }
    }

    /// The core.
    pub fn core(&self) -> Result<Arc<Core>, Failure> {
        self.core.upgrade().ok_or_else(|| Failure::unavailable("the server is shutting down"))
    }

    /// What is there while unsealed.
    pub fn active(&self) -> Result<Arc<Active>, Failure> {
        self.core()?.active()
    }
}

static ROUTES: LazyLock<RouteTable<System>> = LazyLock::new(|| {
    RouteTable::joined(&[
        audit::ROUTES,
        backups::ROUTES,
        capabilities::ROUTES,
        catalog::ROUTES,
        config::ROUTES,
        host_info::ROUTES,
        hsm::ROUTES,
        leases::ROUTES,
        metrics::ROUTES,
        mounts::ROUTES,
        openapi::ROUTES,
        policies::ROUTES,
        raw::ROUTES,
        remount::ROUTES,
        seal::ROUTES,
        seals::ROUTES,
        snapshot::ROUTES,
        status::ROUTES,
        tools::ROUTES,
        ui_mounts::ROUTES,
        wrapping::ROUTES,
        zones::ROUTES,
        // Last: its patterns take what the others leave.
        absent::ROUTES,
    ])
});

/// Endpoints that answer while sealed, without token and envelope.
static DIRECT: LazyLock<RouteTable<System>> = LazyLock::new(|| RouteTable::joined(&[health::DIRECT, seal::DIRECT]));

impl Routed for System {
    fn table() -> &'static RouteTable<Self> {
        &ROUTES
    }
}

/// The routes that answer while sealed.
pub fn direct_table() -> &'static RouteTable<System> {
    &DIRECT
}

/// Restores into a server that holds no cluster.
static EMPTY: LazyLock<RouteTable<System>> = LazyLock::new(|| RouteTable::joined(&[snapshot::EMPTY]));

/// The routes that anyone may call as long as there is no cluster.
pub fn empty_table() -> &'static RouteTable<System> {
    &EMPTY
}

/// Metrics on listeners that show them to anyone.
static METRICS: LazyLock<RouteTable<System>> = LazyLock::new(|| RouteTable::joined(&[metrics::ROUTES]));

/// The state of a sealed server.
static SEALED: LazyLock<RouteTable<System>> = LazyLock::new(|| RouteTable::joined(&[status::SEALED]));

/// The routes of metrics, for listeners that show them to anyone.
pub fn metrics_table() -> &'static RouteTable<System> {
    &METRICS
}

/// The routes that anyone may call while the server is sealed.
pub fn sealed_table() -> &'static RouteTable<System> {
    &SEALED
}

/// Stands for the `sys/` mount on endpoints that answer before any mount is loaded.
pub fn mount_entry() -> &'static MountEntry {
    static ENTRY: LazyLock<MountEntry> = LazyLock::new(|| mount_table::new_entry(Table::Secret, "sys/", "system"));
    &ENTRY
}

#[cfg(test)]
mod policy_tests;
