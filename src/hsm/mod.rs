//! The HSM, reached through PKCS#11 in a supervised worker process.
//!
//! Everything above this module sees the [`Hsm`] trait; only what is below it knows `cryptoki`. The server process
//! never loads a vendor's library: `client` talks over a socket to `sos hsm-worker`, which does.
//!
//! Objects on the token carry the label `sos/<cluster>/<purpose>/<name>/v<N>` for people and a random CKA_ID for
//! programs: keys are found, bound and destroyed by CKA_ID, never by label alone.

pub mod bench;
mod ck_error;
pub mod client;
mod config;
pub(crate) mod der;
pub mod doctor;
#[cfg(test)]
pub mod fake;
pub mod group;
mod overwriting;
mod pin;
pub(crate) mod proto;
mod quirks;
mod raw;
pub mod worker;

use std::fmt;
use std::sync::Arc;

pub use self::client::Client;
pub use self::config::HsmConfig;
pub use self::group::{Group, Member, Members};
pub use self::pin::{FilePinMemory, PinError, PinMemory, PinSource, VolatilePinMemory};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::watch;

use crate::secret::SecretBytes;

/// The CKA_ID of a token object, or the identity of a wrapped key (PKCS#11 3.0, section 4.6).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KeyId(#[serde(with = "hex_bytes")] pub [u8; 16]);

impl KeyId {
    /// A fresh random identity.
    pub fn random() -> Self {
        Self(crate::secret::random_array())
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl std::str::FromStr for KeyId {
    type Err = hex::FromHexError;

    /// From its hexadecimal form.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// Kinds of key that can live in an HSM for Transit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyKind {
    /// CKK_AES, 16 bytes, used with CKM_AES_GCM.
    Aes128,
    /// CKK_AES, 32 bytes, used with CKM_AES_GCM.
    Aes256,
    /// CKK_EC on secp256r1, raw CKM_ECDSA.
    EcP256,
    /// CKK_EC on secp384r1, raw CKM_ECDSA.
    EcP384,
    /// CKK_EC on secp521r1, raw CKM_ECDSA.
    EcP521,
    /// CKK_EC_EDWARDS, CKM_EDDSA.
    Ed25519,
    /// CKK_RSA, 2048 bits.
    Rsa2048,
    /// CKK_RSA, 3072 bits.
    Rsa3072,
    /// CKK_RSA, 4096 bits.
    Rsa4096,
}

impl KeyKind {
    /// Whether it is an RSA kind, whose generation takes long.
    pub fn is_rsa(self) -> bool {
        matches!(self, KeyKind::Rsa2048 | KeyKind::Rsa3072 | KeyKind::Rsa4096)
    }
}

/// How a blob was made, so that it can be opened years later by another module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mechanism {
    /// CKM_AES_GCM: 12-byte IV in front, 16-byte tag at the end.
    AesGcm,
    /// CKM_AES_KEY_WRAP (RFC 3394).
    AesKw,
    /// RFC 5649 padding (CKM_AES_KEY_WRAP_KWP, or the same algorithm behind 0x210A).
    AesKwp,
    /// CKM_RSA_PKCS_OAEP with SHA-1 and MGF1-SHA-1 (what every module can do).
    RsaOaepSha1,
    /// CKM_RSA_PKCS_OAEP with SHA-256 and MGF1-SHA-256.
    RsaOaepSha256,
    /// CKM_AES_CBC with 16-byte IV in front, then HMAC-SHA-256 (CKM_SHA256_HMAC) over IV and ciphertext at the end.
    AesCbcHmac,
}

/// A key or a secret, wrapped by a key in the HSM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedKey {
    /// The identity of the wrapped key: under it the worker caches the loaded handle.
    pub id: KeyId,
    /// What kind of key is inside.
    pub kind: KeyKind,
    /// How it was wrapped.
    pub mechanism: Mechanism,
    /// The CKA_ID of the wrapping key.
    pub wrapped_by: KeyId,
    /// The wrapped bytes, with IV and tag placed as the mechanism says.
    #[serde(with = "base64_bytes")]
    pub blob: Vec<u8>,
}

/// A secret encrypted by a seal key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedBlob {
    /// The CKA_ID of the seal key.
    pub key: KeyId,
    /// How it was encrypted.
    pub mechanism: Mechanism,
    /// The encrypted bytes, with IV and tag placed as the mechanism says.
    #[serde(with = "base64_bytes")]
    pub blob: Vec<u8>,
}

/// The key that a Transit operation uses.
#[derive(Clone, Copy, Debug)]
pub enum KeySource<'a> {
    /// A non-extractable token object (`hsm-only`).
    Token(KeyId),
    /// A wrapped key (`hsm`): loaded non-extractable into a bounded cache of session objects on first use.
    Wrapped(&'a WrappedKey),
}

/// A newly made Transit key.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// The wrapped key; absent for `hsm-only` keys, which are never wrapped.
    pub wrapped: Option<WrappedKey>,
    /// SubjectPublicKeyInfo (DER) of an asymmetric key.
    pub public_key: Option<Vec<u8>>,
}

/// A newly made zone master key.
#[derive(Clone, Debug)]
pub struct NewMasterKey {
    /// SHA-256 over a fixed known AES key wrapped under the master key: proves later that an object is this key.
    pub check_value: [u8; 32],
    /// The master key wrapped (RSA-OAEP) to each recipient, in the order given.
    pub exported: Vec<(Mechanism, Vec<u8>)>,
}

/// An object found on the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// CKA_ID; `None` when it is not one of ours (another length).
    pub id: Option<KeyId>,
    /// CKA_LABEL.
    pub label: String,
}

/// One AEAD operation of a batch; the IV is always 12 bytes and made by the caller's random source.
#[derive(Debug)]
pub struct AeadItem {
    /// 12-byte IV.
    pub iv: [u8; 12],
    /// Associated data, may be empty.
    pub aad: Vec<u8>,
    /// Plaintext to encrypt, or ciphertext followed by the 16-byte tag to decrypt.
    pub input: SecretBytes,
}

/// What the start-up self-test found out about one kind of key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Support {
    /// The kind of key.
    pub kind: KeyKind,
    /// Whether generate, wrap, unwrap and every Vault operation of the kind work (`protection_level` `hsm`).
    pub wrapped: bool,
    /// Whether the same holds for non-extractable token objects (`hsm-only`).
    pub token: bool,
    /// What failed, in words for an operator; empty when all works.
    pub reason: String,
}

/// The token and module in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenFacts {
    /// Library manufacturer and description (CK_INFO).
    pub module: String,
    /// CKA token label.
    pub label: String,
    /// Token serial number.
    pub serial: String,
    /// Mechanism chosen for the seal.
    pub seal_mechanism: Mechanism,
    /// Result of the self-test per kind.
    pub support: Vec<Support>,
    /// Longest plaintext of one AEAD operation, in bytes.
    pub max_plaintext: usize,
}

/// Whether the HSM can be used, in a fixed set of words (`sys/seal-status` shows them).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// The worker is starting, logging in or testing the module.
    Starting,
    /// In use. A new `Arc` each time it becomes ready, so that its users see even a short break.
    Ready(Arc<TokenFacts>),
    /// Not usable now; tried again with back-off unless the reason is final.
    Down {
        /// One of the fixed words.
        reason: DownReason,
        /// Details for the log: function and CKR name, what to do. Never a PIN.
        detail: String,
    },
}

/// Why the HSM cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DownReason {
    /// The module's file is missing or cannot be loaded.
    ModuleMissing,
    /// No slot holds the configured token.
    TokenMissing,
    /// The token refused the PIN; not tried again until it changes.
    PinRefused,
    /// The PIN is locked, or the token says that the next try is the last.
    PinLocked,
    /// No PIN is configured or its file cannot be read (or is readable by others).
    PinMissing,
    /// The token failed the posture self-test and must not hold keys.
    PostureRefused,
    /// The device or the module does not answer or crashes.
    DeviceError,
}

impl DownReason {
    /// The word that `sys/seal-status` shows.
    pub fn word(self) -> &'static str {
        match self {
            DownReason::ModuleMissing => "hsm-module-missing",
            DownReason::TokenMissing => "hsm-token-missing",
            DownReason::PinRefused => "hsm-pin-refused",
            DownReason::PinLocked => "hsm-pin-locked",
            DownReason::PinMissing => "hsm-pin-missing",
            DownReason::PostureRefused => "hsm-posture-refused",
            DownReason::DeviceError => "hsm-device-error",
        }
    }
}

/// Why an HSM operation failed. Kinds, not texts, decide what happens next.
#[derive(Clone, Debug, Error)]
pub enum HsmError {
    /// Ciphertext, tag, associated data or wrapped blob do not fit the key: the caller's input is bad.
    #[error("the HSM refuses the input: {0}")]
    BadInput(String),
    /// The operation or key kind cannot be done by this module.
    #[error("the HSM cannot do this: {0}")]
    Unsupported(String),
    /// The key is not on the token.
    #[error("the HSM holds no key {0}")]
    KeyMissing(KeyId),
    /// An object with this CKA_ID exists already.
    #[error("the HSM already holds an object {0}")]
    KeyExists(KeyId),
    /// The HSM cannot be used now (gone, hung, crashed, logged out); later it may.
    #[error("the HSM is not available ({reason}): {detail}", reason = .reason.word())]
    Unavailable {
        /// A fixed word.
        reason: DownReason,
        /// PKCS#11 function and CKR name, and what to do.
        detail: String,
    },
    /// The deadline passed, or too many calls wait; the worker may have been restarted.
    #[error("the HSM did not answer in time")]
    Timeout,
}

/// Operations on the HSM. All are cancel-safe for the caller (the operation may still happen), never block the
/// calling thread, and end by a deadline.
#[async_trait]
pub trait Hsm: Send + Sync + 'static {
    /// Whether the HSM can be used now.
    fn status(&self) -> Status;

    /// Changes of [`Hsm::status`].
    fn subscribe(&self) -> watch::Receiver<Status>;

    /// Whether keys of this cluster may live here: false for HSMs that are configured and not enrolled.
    fn in_use(&self) -> bool {
        true
    }

    /// The members of a group of HSMs; one HSM is a group of its own.
    fn into_group(self: Arc<Self>) -> Arc<Group>;

    /// Lets go of the HSM for good and waits until its worker has ended: it finishes the call under way. One that hangs is
    /// killed after five seconds. To be called before the process ends, and before a token's files are removed.
    async fn close(&self) {}

    /// Token objects whose label starts with `label_prefix`.
    async fn find(&self, label_prefix: &str) -> Result<Vec<ObjectInfo>, HsmError>;

    /// Destroys the token object; an absent one is no error.
    async fn destroy(&self, id: KeyId) -> Result<(), HsmError>;

    /// Makes a seal key on the token: Encrypt and Decrypt only, sensitive, never extractable (or what the seal
    /// mechanism's ladder needs). Fails with [`HsmError::KeyExists`] when the id is taken.
    async fn create_seal_key(&self, label: &str, id: KeyId) -> Result<(), HsmError>;

    /// Encrypts up to 4 KiB under a seal key.
    async fn seal(&self, id: KeyId, plaintext: &SecretBytes, aad: &[u8]) -> Result<SealedBlob, HsmError>;

    /// Opens what [`Hsm::seal`] made.
    async fn unseal(&self, blob: &SealedBlob, aad: &[u8]) -> Result<SecretBytes, HsmError>;

    /// Makes an AES-256 zone master key: generated as an extractable session object, wrapped (RSA-OAEP) to each of
    /// `recipients` (SubjectPublicKeyInfo DER, RSA), copied to a non-extractable token object with Wrap and Unwrap
    /// only, the session object destroyed. With no recipients the key is generated non-extractable from the start.
    async fn create_master_key(&self, label: &str, id: KeyId, recipients: &[Vec<u8>]) -> Result<NewMasterKey, HsmError>;

    /// Puts a master key that was recovered from escrow onto the token, non-extractable; answers its check value.
    async fn import_master_key(&self, label: &str, id: KeyId, material: &SecretBytes) -> Result<[u8; 32], HsmError>;

    /// Makes a transport key: an RSA pair whose private half unwraps, never leaves, and does nothing else. Answers the
    /// public half (SubjectPublicKeyInfo DER), a recipient for [`Hsm::create_master_key`] on other HSMs.
    async fn create_transport_key(&self, label: &str, id: KeyId) -> Result<Vec<u8>, HsmError>;

    /// Unwraps a master key that another HSM wrapped (RSA-OAEP) to this one's transport key, as non-extractable token
    /// object; answers its check value.
    async fn accept_master_key(
        &self,
        transport: KeyId,
        label: &str,
        id: KeyId,
        mechanism: Mechanism,
        blob: &[u8],
    ) -> Result<[u8; 32], HsmError>;

    /// The check value of a master key on the token (see [`NewMasterKey::check_value`]).
    async fn master_key_check_value(&self, id: KeyId) -> Result<[u8; 32], HsmError>;

    /// Makes a Transit key as an extractable session object, wraps it by the master key, destroys it (`hsm`).
    async fn generate_wrapped(&self, master: KeyId, kind: KeyKind) -> Result<NewKey, HsmError>;

    /// Makes a non-extractable token object (`hsm-only`).
    async fn generate_on_token(&self, label: &str, id: KeyId, kind: KeyKind) -> Result<NewKey, HsmError>;

    /// Wraps given material by the master key: raw bytes for AES kinds, PKCS#8 DER for the others.
    async fn wrap_material(&self, master: KeyId, kind: KeyKind, material: &SecretBytes) -> Result<WrappedKey, HsmError>;

    /// Brings a wrapped key's material out (export, backup, `software` keys at load): the one function that does.
    async fn unwrap_material(&self, wrapped: &WrappedKey) -> Result<SecretBytes, HsmError>;

    /// Wraps a wrapped key under another master key without showing it to the server process.
    async fn rewrap(&self, wrapped: &WrappedKey, new_master: KeyId) -> Result<WrappedKey, HsmError>;

    /// AES-GCM encryption of every item with one key; each answer is ciphertext followed by the 16-byte tag. A
    /// batch goes to the worker in calls of bounded time, so that it may be of any length.
    async fn encrypt(&self, key: KeySource<'_>, items: Vec<AeadItem>) -> Result<Vec<Vec<u8>>, HsmError>;

    /// AES-GCM decryption of every item with one key; an item that does not authenticate is `BadInput` by itself.
    async fn decrypt(&self, key: KeySource<'_>, items: Vec<AeadItem>) -> Result<Vec<Result<SecretBytes, HsmError>>, HsmError>;

    /// Raw signature over `input` (a digest for ECDSA and RSA, the message for Ed25519).
    async fn sign(&self, key: KeySource<'_>, scheme: SignScheme, input: &[u8]) -> Result<Vec<u8>, HsmError>;

    /// The raw private operation of an RSA key on a ciphertext (RSADP, RFC 8017, section 5.1.2; CKM_RSA_X_509), which must
    /// be as long as the modulus and below it. Answers the whole block: the caller takes the padding off, in constant time.
    async fn rsa_decrypt(&self, key: KeySource<'_>, ciphertext: &[u8]) -> Result<SecretBytes, HsmError>;
}

/// How [`Hsm::sign`] signs; hashing and encoding happen outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SignScheme {
    /// CKM_ECDSA: input is the digest, output is r || s.
    Ecdsa,
    /// CKM_EDDSA: input is the message.
    Eddsa,
    /// CKM_RSA_X_509: input is the fully encoded, padded block.
    RsaRaw,
}

/// Bytes as lower-case hex in serde formats.
mod hex_bytes {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8; 16], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 16], D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes).map_err(D::Error::custom)?;
        Ok(bytes)
    }
}

/// Bytes as base64 in serde formats.
pub(crate) mod base64_bytes {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
