//! Encrypting and decrypting with a key: which version, which bytes, in this process or in the HSM.
//!
//! Errors of one text are values ([`ItemError`]): a batch goes on without it. Errors of the server (store, HSM) stop
//! the whole request.

mod decrypt;
mod encrypt;
mod in_hsm;
mod in_process;
mod nonces;

use std::{borrow::Cow, sync::Arc};

pub use self::{
    decrypt::ToDecrypt,
    encrypt::{Encrypted, ToEncrypt},
};
use super::{
    Transit,
    alg::KeyType,
    b64,
    store::{Key, Loaded, LoadedKey},
};
use crate::{
    core::failure::{Failure, Kind},
    hsm::KeySource,
};

/// The text for uses of a derived key without a context.
pub const NO_CONTEXT: &str = "missing 'context' for key derivation; the key was created using a derived key, which means \
                          additional, per-request information must be included in order to perform operations with the key";
/// The text for versions below the oldest that decrypts.
pub const TOO_OLD: &str = "ciphertext or signature version is disallowed by policy (too old)";
const NOT_AUTHENTIC: &str = "cipher: message authentication failed";
/// The same of the two ChaCha20 ciphers.
const NOT_AUTHENTIC_CHACHA: &str = "chacha20poly1305: message authentication failed";
const BAD_LENGTH: &str = "invalid ciphertext length";

/// Why one text could not be processed.
#[derive(Debug)]
pub struct ItemError {
    /// What the client reads.
    pub text: Cow<'static, str>,
    /// Whether the API counts it as a fault of the server (500).
    pub internal: bool,
    /// Whether it leaves the status of a batch alone.
    pub silent: bool,
}

impl ItemError {
    /// The caller's mistake.
    pub fn user(text: impl Into<Cow<'static, str>>) -> Self {
        Self { text: text.into(), internal: false, silent: false }
    }

    /// What the API answers with 500, although it is the caller's mistake.
    pub fn internal(text: impl Into<Cow<'static, str>>) -> Self {
        Self { text: text.into(), internal: true, silent: false }
    }

    /// The caller's mistake that, in a batch, leaves the status at 200.
    pub fn silent(text: impl Into<Cow<'static, str>>) -> Self {
        Self { text: text.into(), internal: false, silent: true }
    }

    /// The error as the answer to a request of one text.
    pub fn into_failure(self) -> Failure {
        if self.internal { Failure::listed(Kind::Internal, self.text) } else { Failure::invalid(self.text) }
    }
}

/// Versions opened for one request, so that each is looked up once.
#[derive(Default)]
pub struct Opened(Vec<(u32, Arc<Loaded>)>);

impl Opened {
    /// A version of the key, opened at most once.
    pub async fn version(&mut self, transit: &Transit, key: &Key, version: u32) -> Result<Option<Arc<Loaded>>, Failure> {
        if let Some((_, loaded)) = self.0.iter().find(|(opened, _)| *opened == version) {
            return Ok(Some(Arc::clone(loaded)));
        }
        let loaded = transit.store.load(&transit.mount.zone, key, version).await?;
        if let Some(loaded) = &loaded {
            self.0.push((version, Arc::clone(loaded)));
        }
        Ok(loaded)
    }
}

/// The error for a ciphertext that was changed, or made with other keys or data; clients know the words of each cipher.
fn not_authentic(kind: KeyType) -> ItemError {
    ItemError::user(match kind {
        KeyType::ChaCha20Poly1305 | KeyType::XChaCha20Poly1305 => NOT_AUTHENTIC_CHACHA,
        _ => NOT_AUTHENTIC,
    })
}

/// Where the HSM finds the key of a version.
pub fn source(loaded: &Loaded) -> Result<KeySource<'_>, Failure> {
    match &loaded.key {
        LoadedKey::Wrapped(wrapped) => Ok(KeySource::Wrapped(wrapped)),
        LoadedKey::Token(id) => Ok(KeySource::Token(*id)),
        _ => Err(Failure::internal("the key is not in the HSM")),
    }
}

/// The result for each text in its place; `None` while it is under way.
type Results<T> = Vec<Option<Result<T, ItemError>>>;

fn set<T>(results: &mut Results<T>, place: usize, result: Result<T, ItemError>) {
    if let Some(slot) = results.get_mut(place) {
        *slot = Some(result);
    }
}

fn finish<T>(results: Results<T>) -> Vec<Result<T, ItemError>> {
    let missing = || Err(ItemError::internal("the text was not processed"));
    results.into_iter().map(|result| result.unwrap_or_else(missing)).collect()
}

/// Only ciphers have associated data.
fn check_associated(kind: KeyType, place: usize, data: &str) -> Result<(), ItemError> {
    if data.is_empty() || kind.is_cipher() {
        return Ok(());
    }
    let name = kind.name();
    Err(ItemError::silent(format!("'[{place}].associated_data' provided for non-AEAD cipher suite {name}")))
}

fn associated(data: &str) -> Result<Vec<u8>, ItemError> {
    b64::decode(data)
        .map_err(|error| ItemError::internal(format!("unable to get associated_data/additional_data from factory[0]: {error}")))
}
