//! What every request passes: the pipeline, the router and mount table, tokens, policies, leases, wrapping, `sys`.

pub mod auth_failures;
pub mod clock;
pub mod cors;
#[cfg(test)]
mod coverage_tests;
#[cfg(test)]
mod damaged_keys_tests;
#[cfg(test)]
mod doubt_tests;
pub mod engine;
pub mod envelope;
pub mod failure;
#[cfg(test)]
mod flood_tests;
pub mod help;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod in_process;
#[cfg(test)]
mod mount_changes_tests;
pub mod mount_table;
pub mod mounts;
mod pipeline;
#[cfg(test)]
mod pipeline_tests;
pub mod policy;
pub mod reply;
pub mod request;
mod restored;
pub mod route;
pub mod sys;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tick_tests;
pub mod tokens;
pub mod told;
pub mod tools;
pub mod wanted;
pub mod wrapping;

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use parking_lot::Mutex;

use crate::{
    audit::Broker,
    backup::Backups,
    barrier::{Barrier, View},
    engines::Services,
    seal::{Host, Seal},
    secret::SecretString,
    stack,
};
use auth_failures::{AddressCounts, AuthFailureLimit, Counted};
use clock::Clock;
use cors::Cors;
use failure::Failure;
use mount_table::MountTable;
use mounts::Router;
use policy::{Acl, PolicyStore};
use tokens::{TokenEntry, TokenStore};

/// What the configuration tells the core.
#[derive(Clone, Debug)]
pub struct Settings {
    /// TTL of leases and tokens where nothing else says one, in seconds.
    pub default_lease_ttl: u64,
    /// Upper bound of TTLs, in seconds.
    pub max_lease_ttl: u64,
    /// The Vault version that clients gate on.
    pub vault_version: String,
    /// `storage_type` of `sys/seal-status`.
    pub storage_type: String,
    /// Address that clients are told.
    pub api_addr: String,
    /// Folders under which audit files may be enabled over the API.
    pub audit_paths: Vec<String>,
    /// Whether `sys/raw` may be used.
    pub raw_storage_endpoint: bool,
    /// Zones of the configuration with their rotation periods.
    pub zones: Vec<(String, time::Duration)>,
    /// How many failed authentications, and recorded requests without a token, an address has; `None` for any number.
    pub auth_failure_limit: Option<AuthFailureLimit>,
    /// The configuration as `sys/config/state/sanitized` shows it.
    pub sanitized: serde_json::Value,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            default_lease_ttl: 2_764_800,
            max_lease_ttl: 2_764_800,
            vault_version: "1.14.0".into(),
            storage_type: "inmem".into(),
            api_addr: String::new(),
            audit_paths: Vec::new(),
            raw_storage_endpoint: false,
            zones: Vec::new(),
            auth_failure_limit: Some(AuthFailureLimit::default()),
            sanitized: serde_json::Value::Null,
        }
    }
}

/// Expired tokens removed at a time, and how often in one tick: more than can be made between two ticks.
const SWEEP: usize = 1000;
const SWEEPS: usize = 50;
/// How long the periodic work of mounts may take in one tick.
const MOUNTS_BUDGET: Duration = Duration::from_secs(5);

/// The server without its front: what requests are answered from.
pub struct Core {
    /// The encrypting layer over the store.
    pub barrier: Arc<Barrier>,
    /// Who opens and closes the barrier.
    pub seal: Arc<Seal>,
    /// What is there while unsealed.
    active: ArcSwapOption<Active>,
    /// Audit devices.
    pub audit: Broker,
    /// Failed authentications by address.
    pub auth_failures: AddressCounts,
    /// Requests without a good token that leave audit records, by address.
    pub strangers: AddressCounts,
    /// Who may send cross-origin requests.
    pub cors: Cors,
    /// The time.
    pub clock: Clock,
    /// From the configuration.
    pub settings: Settings,
    /// Shared by all engines.
    pub services: Arc<Services>,
    /// Moves of mounts.
    pub migrations: sys::remount::Migrations,
    /// Backups of the store.
    pub backups: Arc<Backups>,
    /// The full path of the mount whose periodic work was done last.
    last_ticked: Mutex<String>,
}

/// Everything that exists only while the server is unsealed.
pub struct Active {
    /// Paths to engines.
    pub router: Arc<Router>,
    /// Changes of mounts.
    pub mounts: MountTable,
    /// Tokens.
    pub tokens: Arc<TokenStore>,
    /// Policies.
    pub policies: Arc<PolicyStore>,
}

impl Active {
    /// The compiled policies of a token.
    pub fn acl_of(&self, token: &TokenEntry) -> Result<Arc<Acl>, Failure> {
        Ok(self.policies.acl_for(&token.policies, None)?)
    }
}

impl Core {
    /// A sealed core behind a seal, which it attaches itself to.
    pub fn new(seal: Arc<Seal>, clock: Clock, settings: Settings, services: Arc<Services>) -> Arc<Self> {
        let core = Arc::new(Self {
            barrier: Arc::clone(seal.barrier()),
            seal: Arc::clone(&seal),
            active: ArcSwapOption::empty(),
            audit: Broker::new(clock.clone(), settings.audit_paths.clone()),
            auth_failures: AddressCounts::new(Counted::Failures, settings.auth_failure_limit),
            strangers: AddressCounts::new(Counted::Strangers, settings.auth_failure_limit),
            cors: Cors::default(),
            clock,
            settings,
            services,
            migrations: sys::remount::Migrations::default(),
            backups: Arc::default(),
            last_ticked: Mutex::default(),
        });
        seal.attach(Arc::new(SealHost(Arc::downgrade(&core))));
        core
    }

    /// What is there while unsealed, or the 503 of a sealed server.
    pub fn active(&self) -> Result<Arc<Active>, Failure> {
        self.active.load_full().ok_or_else(|| Failure::unavailable("Vault is sealed"))
    }

    /// Whether the server was not sealed since `active` was asked for.
    fn is_still(&self, active: &Arc<Active>) -> bool {
        self.active.load().as_ref().is_some_and(|now| Arc::ptr_eq(now, active))
    }

    /// Builds everything behind an unlocked barrier and starts to answer.
    pub async fn activate(self: &Arc<Self>) -> Result<(), Failure> {
        let restored = restored::admit(self).await?;
        let view = |prefix: &str| View::new(Arc::clone(&self.barrier), prefix);
        let cubbyhole = view("logical/cubbyhole/")?;
        let tokens = TokenStore::open(view(tokens::FOLDER)?, cubbyhole.clone(), self.clock.clone()).await?;
        let policies = PolicyStore::new(view("sys/policy/")?);
        policies.install_builtin(self.clock.now()).await?;
        let policies = Arc::new(policies);
        let router = Arc::new(Router::default());
        let mounts = MountTable::new(view("core/")?, Arc::clone(&self.barrier), Arc::clone(&router));
        let active = Arc::new(Active { router, mounts, tokens, policies });
        self.services.zones.unsealed(&self.settings.zones, self.clock.now()).await?;
        active.mounts.load(self, &active, &cubbyhole).await?;
        self.audit.load(view("core/")?)?;
        self.cors.load(view("core/")?)?;
        restored::burn(self, &active, restored.as_ref()).await?;
        for mounted in active.router.all() {
            if let Err(failure) = mounted.engine.start().await {
                tracing::error!(mount = %mounted.entry.full_path(), error = ?failure, "the engine did not start; its requests may fail");
            }
        }
        restored::settle(self, &active, restored).await?;
        crate::crashpoint::reach("start-mounted");
        tracing::info!(mounts = active.router.all().len(), "unsealed and serving");
        self.active.store(Some(active));
        Ok(())
    }

    /// Stops answering; the seal locks the barrier.
    fn deactivate(&self) {
        self.active.store(None);
        self.audit.unload();
        self.services.zones.forget();
    }

    /// Periodic work: expirations, rotations, resumed clean-ups. Errors are logged and tried again next time.
    pub async fn tick(self: &Arc<Self>) {
        let Ok(active) = self.active() else { return };
        for mounted in active.router.all() {
            mounted.engine.forget_older();
        }
        if let Err(error) = self.barrier.rotate_if_due(self.clock.now()).await {
            tracing::error!(%error, "the barrier's key was due for rotation and could not be rotated");
        }
        for _ in 0..SWEEPS {
            match active.tokens.sweep(SWEEP).await {
                Ok(SWEEP..) => {}
                Ok(_) => break,
                Err(failure) => {
                    tracing::error!(error = ?failure, "expired tokens could not be removed");
                    break;
                }
            }
        }
        let settled = [
            active.policies.settle().await.map_err(Failure::from),
            self.audit.settle().await,
            self.cors.settle().await,
            active.mounts.settle_changes(self).await,
        ];
        for failure in settled.into_iter().filter_map(Result::err) {
            tracing::error!(error = ?failure, "what became of a change that failed is not known yet");
        }
        self.go_on_removing(&active);
        self.seal.tick(&self.services.zones).await;
        if let Err(error) = self.services.zones.tick(self.clock.now()).await {
            tracing::error!(%error, "zone master keys could not be looked after");
        }
        self.services.transit.follow_rotations(&self.services.zones);
        self.tick_mounts(&active, MOUNTS_BUDGET).await;
    }

    /// Goes on with what is left of removed mounts, on a task of its own: an HSM may take long to destroy what they held.
    fn go_on_removing(self: &Arc<Self>, active: &Arc<Active>) {
        let (core, active) = (Arc::clone(self), Arc::clone(active));
        tokio::spawn(stack::overwriting(async move {
            if let Err(failure) = active.mounts.finish_removals(&core, || core.is_still(&active)).await
                && core.is_still(&active)
            {
                tracing::error!(error = ?failure, "what is left of removed mounts could not be looked at; it is tried again every few seconds");
            }
        }));
    }

    /// The periodic work of mounts, one after the other until so much time is over; the next tick goes on with the mount behind the
    /// last one, so that none holds up the others for long.
    async fn tick_mounts(&self, active: &Active, budget: Duration) {
        let began = Instant::now();
        let mut mounts: Vec<_> = active.router.all().into_iter().map(|mounted| (mounted.entry.full_path(), mounted)).collect();
        let last = self.last_ticked.lock().clone();
        let behind = mounts.partition_point(|(path, _)| *path <= last);
        mounts.rotate_left(behind);
        for (path, mounted) in mounts {
            if let Err(failure) = mounted.engine.tick().await {
                tracing::error!(mount = %path, error = ?failure, "periodic work failed");
            }
            *self.last_ticked.lock() = path;
            if began.elapsed() >= budget {
                break;
            }
        }
    }
}

/// What the seal sees of the core.
struct SealHost(Weak<Core>);

impl SealHost {
    fn core(&self) -> Result<Arc<Core>, String> {
        self.0.upgrade().ok_or_else(|| "the server is shutting down".to_owned())
    }
}

#[async_trait]
impl Host for SealHost {
    async fn unsealed(&self) -> Result<(), String> {
        self.core()?.activate().await.map_err(|failure| failure.explained())
    }

    async fn sealing(&self) {
        if let Ok(core) = self.core() {
            core.deactivate();
        }
    }

    fn serving(&self) -> bool {
        self.core().is_ok_and(|core| core.active().is_ok())
    }

    async fn make_root_token(&self) -> Result<SecretString, String> {
        let active = self.core()?.active().map_err(|failure| failure.to_string())?;
        active.tokens.create_root(None).await.map_err(|failure| failure.explained())
    }

    async fn revoke_root_token(&self, token: &SecretString) {
        let Ok(active) = self.core().and_then(|core| core.active().map_err(|failure| failure.to_string())) else { return };
        if let Err(failure) = active.tokens.revoke_tree(&active.tokens.hash(token)).await {
            tracing::error!(error = ?failure, "a root token that could not be handed over could not be revoked");
        }
    }
}
