//! A whole core in memory, without HSM, for unit tests.

use std::sync::Arc;

use super::{Core, Settings, clock::Clock};
use crate::{
    barrier::Barrier,
    engines::Services,
    seal::{Seal, SealSettings, wire::InitRequest},
    storage::InMem,
    zones::Zones,
};

/// An initialised and unsealed core over an in-memory store.
pub async fn unsealed_core() -> Arc<Core> {
    let barrier = Arc::new(Barrier::new(Arc::new(InMem::open().unwrap())));
    let services = services(&barrier);
    let seal = Arc::new(Seal::new(barrier, None, SealSettings::default()));
    let core = Core::new(seal, Clock::system(), Settings::default(), services);
    let request = InitRequest { secret_shares: 1, secret_threshold: 1, ..InitRequest::default() };
    core.seal.init(request, core.clock.now()).await.unwrap();
    core
}

/// Services without an HSM.
pub fn services(barrier: &Arc<Barrier>) -> Arc<Services> {
    let zones = Arc::new(Zones::new(Arc::clone(barrier), None, "test"));
    Arc::new(Services { hsm: None, zones, default_protection: None, transit: Arc::default() })
}
