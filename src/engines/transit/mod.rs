//! Transit: encryption as a service. Keys are named, versioned, and used without ever being shown.
//!
//! The engine keeps Vault's API and formats. What is its own: every version has a [protection level](protect::Level),
//! a mount belongs to a zone, and each version is one record. `ops` is the only place where texts are processed,
//! `protect` the only one where material is wrapped or opened, `lifecycle` the only one that changes keys.

pub mod alg;
mod backup;
mod batch;
mod blob;
mod byok_export;
mod certificates;
mod chain;
mod ciphertext;
mod config;
mod damaged;
mod datakey;
mod decrypt;
mod encrypt;
mod export;
mod fence;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod gate;
mod given;
mod hash;
mod hmac;
pub mod holdings;
mod import;
mod in_order;
mod keys;
mod later;
mod lifecycle;
mod objects;
mod opened;
mod ops;
mod pages;
pub mod protect;
mod random;
mod record;
mod restored;
mod retiring;
mod rewrap;
mod rewrapping;
mod routes;
mod rsa_in_hsm;
mod schedule;
mod sign;
mod signing;
mod store;
pub mod survey;
mod turn;
mod usage;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;

pub use self::{
    fence::Still,
    protect::{Level, Protection, ZoneKeys},
    store::Stores,
};
use self::{
    protect::MountProtection,
    store::{Key, Store},
};
use super::MountContext;
use crate::{
    backup::Given,
    core::{
        clock::Clock,
        failure::Failure,
        mount_table::{Left, Removal},
        mounts::{MountEntry, MountRecord},
        route::{RouteTable, Routed},
    },
    wire::b64,
};

/// Refuses to take a mount with keys to another zone: its keys are wrapped by the master key of the one it is in. As long as
/// the answer is held, no key is committed.
pub async fn check_tuned(before: &MountEntry, after: &MountContext) -> Result<Option<Still>, Failure> {
    let (from, to) = (protect::zone_of(&before.options), protect::zone_of(&after.entry.options));
    if from == to {
        return Ok(None);
    }
    let still = after.services.transit.hold_still(&after.entry.uuid).await;
    if after.view.list(record::KEY_FOLDER, None, 1)?.is_empty() {
        return Ok(still);
    }
    Err(Failure::invalid(format!(
        "this mount has keys in zone {from:?}, so its zone cannot be changed; make a new mount with the option zone={to:?} and \
         bring the keys there by backup and restore"
    )))
}

/// One Transit mount.
pub struct Transit {
    store: Arc<Store>,
    mount: MountProtection,
    /// What the mount says, as this engine was made for it.
    options: BTreeMap<String, String>,
    /// What it says by now.
    record: MountRecord,
    /// The mount's uuid.
    uuid: String,
    /// All Transit mounts.
    stores: Arc<Stores>,
    clock: Clock,
    worn: usage::Worn,
}

impl Transit {
    /// The engine of a mount.
    ///
    /// # Errors
    /// 400 for options that name an unknown zone or level.
    pub fn new(context: &MountContext) -> Result<Self, Failure> {
        let protection = Protection::from(context.services.as_ref());
        let mount = MountProtection::from_options(&context.entry.options, &protection)?;
        let uuid = context.entry.uuid.clone();
        let stores = Arc::clone(&context.services.transit);
        let store = stores.of(&uuid, &context.view, &mount.zone, &protection);
        Ok(Self {
            store,
            mount,
            options: context.entry.options.clone(),
            record: context.record.clone(),
            uuid,
            stores,
            clock: context.clock.clone(),
            worn: usage::Worn::default(),
        })
    }

    /// The key of a name; `missing` is the API's text where there is none.
    fn existing(&self, name: &str, missing: &'static str) -> Result<Arc<Key>, Failure> {
        self.store.key(name)?.ok_or_else(|| Failure::invalid(missing))
    }
}

#[async_trait]
impl Routed for Transit {
    fn table() -> &'static RouteTable<Self> {
        routes::table()
    }

    fn is_stale(&self, failure: &Failure) -> bool {
        self.store.is_stale(failure)
    }

    async fn start(&self) -> Result<(), Failure> {
        // Only now, that the mount's record with it is durable.
        self.stores.set_zone(&self.uuid, &self.mount.zone);
        self.find_scheduled()?;
        self.find_doomed()
    }

    fn forget_older(&self) {
        self.store.forget_older(store::MAX_AGE);
    }

    async fn tick(&self) -> Result<(), Failure> {
        self.find_doomed()?;
        self.destroy_doomed();
        self.rotate_due(schedule::BUDGET).await
    }

    async fn worn(&self) -> Result<Vec<String>, Failure> {
        let view = self.store.view.clone();
        self.worn.names(move || usage::worn(&view)).await
    }

    async fn restored(&self, given: &Given<'_>) -> Result<(), Failure> {
        restored::forget_making(&self.store.view).await?;
        restored::take_up(&self.store.view, given).await?;
        usage::take_up(&self.store.view, given).await?;
        usage::burn(&self.store.view).await
    }

    async fn retire(&self, removal: &Removal) -> Result<Left, Failure> {
        self.destroy_all_objects(removal).await
    }
}
