//! An initialised and unsealed core without an HSM, for what runs a server in its own process: unit tests, fuzz targets, benches.
//!
//! Benches are crates of their own, which see no test code of the library: they include this file (`benches/stages/made.rs`).

use std::sync::Arc;

use sos::{
    barrier::Barrier,
    core::{Core, Settings, clock::Clock},
    engines::Services,
    seal::{
        Seal, SealSettings,
        wire::{InitRequest, InitResponse, UnsealRequest},
    },
    storage::Storage,
    zones::Zones,
};

/// The core over a store, and what init gave out. `settings` are taken as they are: audit files may lie where they say.
#[allow(clippy::expect_used)] // a server that does not start is no finding but a defect of the harness
pub async fn unsealed_core_over(store: Arc<dyn Storage>, clock: Clock, settings: Settings) -> (Arc<Core>, InitResponse) {
    let barrier = Arc::new(Barrier::new(store));
    let services = services(&barrier);
    let seal = Arc::new(Seal::new(barrier, None, SealSettings::default()));
    let core = Core::new(seal, clock, settings, services);
    let request = InitRequest { secret_shares: 1, secret_threshold: 1, ..InitRequest::default() };
    let made = core.seal.init(request, core.clock.now()).await.expect("init");
    // After init the barrier may be open already.
    if core.seal.is_sealed() {
        let key = made.keys_base64.first().cloned().unwrap_or_default().into();
        core.seal.unseal(UnsealRequest { key, ..UnsealRequest::default() }).await.expect("unseal");
    }
    (core, made)
}

/// Services without an HSM.
pub fn services(barrier: &Arc<Barrier>) -> Arc<Services> {
    let zones = Arc::new(Zones::new(Arc::clone(barrier), None, "test"));
    Arc::new(Services { hsm: None, zones, default_protection: None, transit: Arc::default() })
}
