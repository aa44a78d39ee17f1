//! A whole core in memory, without HSM, for unit tests.

use std::{sync::Arc, time::Duration};

pub use super::in_process::services;
use super::{Core, Settings, clock::Clock, in_process};
use crate::{
    seal::wire::InitResponse,
    storage::{InMem, Storage},
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
    let audit_paths = vec![std::env::temp_dir().display().to_string()];
    in_process::unsealed_core_over(store, clock, Settings { audit_paths, ..settings }).await
}

/// Ticks until nothing is left of removed mounts.
pub async fn finish_removals(core: &Arc<Core>) {
    for _ in 0..2000 {
        core.tick().await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        if core.barrier.scan("core/removed/", None, 1).unwrap().is_empty() {
            return;
        }
    }
    panic!("something of removed mounts stays");
}
