//! The whole server: the real binary on free ports, with folders and SoftHSM tokens of its own, killed and restarted.
//!
//! Tests that need SoftHSM say loudly when it is not installed, and pass.

// Helpers outside #[test] functions stop the test in the same way as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "server/support.rs"]
mod support;

#[path = "server/backup/mod.rs"]
mod backup;
#[path = "server/bad_days.rs"]
mod bad_days;
#[path = "server/batches.rs"]
mod batches;
#[path = "server/byok.rs"]
mod byok;
#[path = "server/canary.rs"]
mod canary;
#[path = "server/certificates.rs"]
mod certificates;
#[path = "server/config.rs"]
mod config;
#[path = "server/connections.rs"]
mod connections;
#[path = "server/crash.rs"]
mod crash;
#[path = "server/disk.rs"]
mod disk;
#[path = "server/faults.rs"]
mod faults;
#[path = "server/faults_slow.rs"]
mod faults_slow;
#[path = "server/growth.rs"]
mod growth;
#[path = "server/hsm.rs"]
mod hsm;
#[path = "server/http.rs"]
mod http;
#[path = "server/levels.rs"]
mod levels;
#[path = "server/life.rs"]
mod life;
#[path = "server/listeners.rs"]
mod listeners;
#[path = "server/memory.rs"]
mod memory;
#[path = "server/memory_derived.rs"]
mod memory_derived;
#[path = "server/memory_refused.rs"]
mod memory_refused;
#[path = "server/moving.rs"]
mod moving;
#[path = "server/overload/mod.rs"]
mod overload;
#[path = "server/private.rs"]
mod private;
#[path = "server/rehearsal.rs"]
mod rehearsal;
#[path = "server/seal_changes.rs"]
mod seal_changes;
#[path = "server/seal_crashes.rs"]
mod seal_crashes;
#[path = "server/sealed.rs"]
mod sealed;
#[path = "server/seals.rs"]
mod seals;
#[path = "server/secrecy.rs"]
mod secrecy;
#[path = "server/shares.rs"]
mod shares;
#[path = "server/status.rs"]
mod status;
#[path = "server/stuck.rs"]
mod stuck;
#[path = "server/usage.rs"]
mod usage;
#[path = "server/worker.rs"]
mod worker;
#[path = "server/zones.rs"]
mod zones;
