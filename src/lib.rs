//! SOS: a secrets gateway that speaks HashiCorp Vault's HTTP API and keeps its root of trust in an HSM.
//!
//! Modules stand in reading order: the leaves first, then what is built on them.
//! Dependencies point one way: `cli -> startup -> http -> core -> auth, engines, audit -> barrier -> storage`
//! and `seal -> hsm`; `wire`, `secret` and `heavy` are leaves.

// The two exceptions (raw PKCS#11 calls, and locked and overwritten memory) carry a reasoned `allow` of their own.
#![deny(unsafe_code)]
#![warn(missing_docs)]

// `core::in_process` names this crate as benches do, which include the file.
#[cfg(any(test, feature = "fuzzing"))]
extern crate self as sos;

pub mod config;
mod crashpoint;
pub mod hcl;
mod heavy;
mod relay;
pub mod secret;
mod stack;
pub mod wire;

pub mod hsm;
pub mod storage;

pub mod barrier;

pub mod seal;
pub mod zones;

pub mod backup;

pub mod audit;
pub mod auth;
pub mod core;
pub mod engines;
pub mod http;

pub mod startup;

pub mod cli;

#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
