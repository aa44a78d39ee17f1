//! The HSM layer against real PKCS#11 modules. Tests whose module is not installed say so loudly and pass.

// Helpers outside #[test] functions stop the test in the same way as tests do.
#![allow(clippy::unwrap_used)]

#[path = "hsm/support.rs"]
mod support;

#[path = "hsm/basic.rs"]
mod basic;

#[path = "hsm/faults.rs"]
mod faults;

#[path = "hsm/modules.rs"]
mod modules;

#[path = "hsm/seal.rs"]
mod seal;
#[path = "hsm/transit.rs"]
mod transit;
#[path = "hsm/vendors.rs"]
mod vendors;
