//! A whole core in memory, without HSM, for unit tests.

use std::sync::Arc;

use super::{Core, Settings, clock::Clock};
use crate::{
    barrier::Barrier,
    engines::Services,
    seal::{
        Seal, SealSettings,
        wire::{InitRequest, InitResponse, UnsealRequest},
    },
    storage::{InMem, Storage},
    zones::Zones,
};

/// An initialised and unsealed core over an in-memory store.
pub async fn unsealed_core() -> Arc<Core> {
    unsealed_core_with(Clock::system(), Settings::default()).await
}

/// The same with a clock and settings; audit files may lie in the temporary folder.
pub async fn unsealed_core_with(clock: Clock, settings: Settings) -> Arc<Core> {
    unsealed_core_and_share(clock, settings).await.0
}

/// The same with the one share that opens it, in base64.
pub async fn unsealed_core_and_share(clock: Clock, settings: Settings) -> (Arc<Core>, String) {
    let (core, made) = unsealed_core_over(Arc::new(InMem::open().unwrap()), clock, settings).await;
    (core, made.keys_base64[0].to_string())
}

/// The same over a store, with what init gave out.
pub async fn unsealed_core_over(store: Arc<dyn Storage>, clock: Clock, settings: Settings) -> (Arc<Core>, InitResponse) {
    let barrier = Arc::new(Barrier::new(store));
    let services = services(&barrier);
    let seal = Arc::new(Seal::new(barrier, None, SealSettings::default()));
    let audit_paths = vec![std::env::temp_dir().display().to_string()];
    let settings = Settings { audit_paths, ..settings };
    let core = Core::new(seal, clock, settings, services);
    let request = InitRequest { secret_shares: 1, secret_threshold: 1, ..InitRequest::default() };
    let made = core.seal.init(request, core.clock.now()).await.unwrap();
    if core.seal.is_sealed() {
        let share = made.keys_base64[0].clone().into();
        core.seal.unseal(UnsealRequest { key: share, ..UnsealRequest::default() }).await.unwrap();
    }
    (core, made)
}

/// Services without an HSM.
pub fn services(barrier: &Arc<Barrier>) -> Arc<Services> {
    let zones = Arc::new(Zones::new(Arc::clone(barrier), None, "test"));
    Arc::new(Services { hsm: None, zones, default_protection: None, transit: Arc::default() })
}
