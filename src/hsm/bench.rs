//! `sos hsm bench`: what the HSM gives without a server in front of it, for `scripts/bench` to compare with.
//!
//! Two rates: a loop of C_EncryptInit and C_Encrypt in one session inside the worker, and calls through this process's
//! own client, socket and session pool with a fixed number waiting. It makes one master key on the token and destroys
//! it at the end.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::task::JoinSet;

use super::client::Client;
use super::config::HsmConfig;
use super::pin::PinMemory;
use super::{AeadItem, Hsm, HsmError, KeyId, KeyKind, KeySource, WrappedKey};
use crate::secret::{SecretBytes, random_array};

/// Plaintext length, that of a data encryption key.
const BYTES: usize = 32;

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Calls under way at any time.
    pub waiting: usize,
    /// Items of a batch.
    pub batch: usize,
    /// How long each rate is measured.
    pub time: Duration,
}

/// Encryptions of 32 bytes per second.
#[derive(Clone, Debug, Serialize)]
pub struct Rates {
    /// C_EncryptInit and C_Encrypt in one session, nothing else; absent without CKM_AES_GCM.
    pub raw: Option<u64>,
    /// Calls of one item each through the worker.
    pub single: u64,
    /// Items in calls of a batch each through the worker.
    pub batch: u64,
    /// Sessions of the pool.
    pub sessions: usize,
    /// Calls under way.
    pub waiting: usize,
}

impl fmt::Display for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

/// Measures one token.
pub async fn run(config: HsmConfig, memory: Arc<dyn PinMemory>, load: Load) -> Result<Rates, HsmError> {
    let client = Client::start(config, memory);
    let measured = measure_with_own_key(&client, load).await;
    client.close().await;
    measured
}

async fn measure_with_own_key(client: &Arc<Client>, load: Load) -> Result<Rates, HsmError> {
    client.ready().await?;
    let master = KeyId::random();
    client.create_master_key("sos/bench", master, &[]).await?;
    let measured = measure(client, master, load).await;
    client.destroy(master).await?;
    measured
}

async fn measure(client: &Arc<Client>, master: KeyId, load: Load) -> Result<Rates, HsmError> {
    let missing = || HsmError::Unsupported("the module wraps no AES keys".into());
    let key = Arc::new(client.generate_wrapped(master, KeyKind::Aes256).await?.wrapped.ok_or_else(missing)?);
    // The first call loads the key.
    encrypt(client, &key, 1).await?;
    let single = rate(client, &key, load, 1).await?;
    let batch = rate(client, &key, load, load.batch).await?;
    let inspection = client.inspect().await?;
    Ok(Rates { raw: inspection.small_per_second, single, batch, sessions: inspection.sessions - 1, waiting: load.waiting })
}

async fn rate(client: &Arc<Client>, key: &Arc<WrappedKey>, load: Load, items: usize) -> Result<u64, HsmError> {
    let began = Instant::now();
    let mut tasks = JoinSet::<Result<usize, HsmError>>::new();
    for _ in 0..load.waiting {
        let (client, key) = (Arc::clone(client), Arc::clone(key));
        tasks.spawn(async move {
            let mut done = 0;
            while began.elapsed() < load.time {
                encrypt(&client, &key, items).await?;
                done += items;
            }
            Ok(done)
        });
    }
    let mut done = 0;
    while let Some(one) = tasks.join_next().await {
        done += one.unwrap_or(Err(HsmError::Timeout))?;
    }
    let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
    Ok(u64::try_from(done).unwrap_or(u64::MAX).saturating_mul(1_000_000) / micros)
}

async fn encrypt(client: &Client, key: &WrappedKey, items: usize) -> Result<(), HsmError> {
    let item = || AeadItem { iv: random_array(), aad: Vec::new(), input: SecretBytes::new(vec![0; BYTES]) };
    client.encrypt(KeySource::Wrapped(key), (0..items).map(|_| item()).collect()).await.map(drop)
}
