//! Everything the HSM layer must be told: which module, which token, which PIN, how patient to be.

use std::path::PathBuf;
use std::time::Duration;

use super::{Mechanism, pin::PinSource};

/// How to reach one token. Built from the `seal "pkcs11"` stanza.
#[derive(Debug)]
pub struct HsmConfig {
    /// The module's shared library (`lib`).
    pub lib: PathBuf,
    /// Slot number (`slot`); slot numbers move on many tokens, so a label is the better choice.
    pub slot: Option<u64>,
    /// Token label (`token_label`).
    pub token_label: Option<String>,
    /// Token serial number.
    pub token_serial: Option<String>,
    /// Where the PIN comes from.
    pub pin: PinSource,
    /// Sessions for operations (`max_sessions`); `None` takes what suits the module.
    pub max_sessions: Option<usize>,
    /// Mechanism of new seal keys (`mechanism`); `None` takes the best that works.
    pub seal_mechanism: Option<Mechanism>,
    /// How long one operation may take, waiting included.
    pub deadline: Duration,
    /// How long the generation of an RSA key may take, waiting included: finding primes takes seconds on some tokens.
    pub generate_deadline: Duration,
    /// How long loading the module, logging in and the self-test may take.
    pub start_deadline: Duration,
    /// Longest pause between two tries to bring the HSM back.
    pub max_backoff: Duration,
    /// How often a quiet worker is asked whether the token is still there.
    pub health_interval: Duration,
    /// The string that NSS wants in C_Initialize.
    pub reserved: Option<String>,
    /// How many wrapped keys stay loaded.
    pub key_cache: usize,
    /// How many calls may wait; more are refused at once.
    pub queue: usize,
    /// The program that runs as worker; `None` is this executable.
    pub worker: Option<PathBuf>,
    /// Environment variables for the worker, in which some modules look for their configuration.
    pub environment: Vec<(String, String)>,
}

impl HsmConfig {
    /// A configuration with the usual limits.
    pub fn new(lib: impl Into<PathBuf>, pin: PinSource) -> Self {
        Self {
            lib: lib.into(),
            slot: None,
            token_label: None,
            token_serial: None,
            pin,
            max_sessions: None,
            seal_mechanism: None,
            deadline: Duration::from_secs(10),
            generate_deadline: Duration::from_secs(120),
            start_deadline: Duration::from_secs(30),
            max_backoff: Duration::from_secs(30),
            health_interval: Duration::from_secs(5),
            reserved: None,
            key_cache: 2048,
            queue: 4096,
            worker: None,
            environment: Vec::new(),
        }
    }
}
