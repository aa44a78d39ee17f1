//! Request and response bodies of the seal's paths, with Vault's field names in Vault's order.

use serde::{Deserialize, Deserializer, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::secret::SecretString;

/// A field whose `null` means its default, as in Vault.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// A share or pad, which must not stay in memory.
fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SecretString, D::Error> {
    nullable(deserializer).map(SecretString::new)
}

/// `GET sys/init`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct InitStatusResponse {
    /// Whether there is a cluster in the store.
    pub initialized: bool,
}

/// `PUT sys/init`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct InitRequest {
    /// Number of unseal keys (`shamir`).
    #[serde(deserialize_with = "nullable")]
    pub secret_shares: i64,
    /// Unseal keys needed (`shamir`).
    #[serde(deserialize_with = "nullable")]
    pub secret_threshold: i64,
    /// Not supported.
    #[serde(deserialize_with = "nullable")]
    pub pgp_keys: Vec<String>,
    /// Number of escrow shares (`pkcs11`).
    #[serde(deserialize_with = "nullable")]
    pub recovery_shares: i64,
    /// Escrow shares needed (`pkcs11`).
    #[serde(deserialize_with = "nullable")]
    pub recovery_threshold: i64,
    /// Not supported.
    #[serde(deserialize_with = "nullable")]
    pub recovery_pgp_keys: Vec<String>,
    /// Not supported.
    #[serde(deserialize_with = "nullable")]
    pub root_token_pgp_key: String,
}

/// The answer to `PUT sys/init`: shown once, kept nowhere.
#[derive(Serialize, Zeroize, ZeroizeOnDrop)]
pub struct InitResponse {
    /// Unseal keys in hexadecimal; empty with an HSM.
    pub keys: Vec<String>,
    /// Unseal keys in base64; empty with an HSM.
    pub keys_base64: Vec<String>,
    /// Escrow shares in hexadecimal.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub recovery_keys: Vec<String>,
    /// Escrow shares in base64.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub recovery_keys_base64: Vec<String>,
    /// The initial root token.
    pub root_token: String,
}

/// `GET sys/seal-status`, and the answer to `PUT sys/unseal`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SealStatusResponse {
    /// `pkcs11` or `shamir`.
    #[serde(rename = "type")]
    pub seal_type: &'static str,
    /// Whether there is a cluster in the store.
    pub initialized: bool,
    /// Whether the barrier is closed.
    pub sealed: bool,
    /// Shares needed.
    pub t: u8,
    /// Shares given out.
    pub n: u8,
    /// Shares entered so far.
    pub progress: usize,
    /// Identity of the unsealing under way.
    pub nonce: String,
    /// Version of Vault's API.
    pub version: String,
    /// When the program was built.
    pub build_date: String,
    /// Always false: there is no seal migration.
    pub migration: bool,
    /// Only while unsealed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_name: Option<String>,
    /// Only while unsealed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Whether the shares are recovery keys (an HSM unseals).
    pub recovery_seal: bool,
    /// Kind of the recovery shares.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_seal_type: Option<&'static str>,
    /// Kind of store.
    pub storage_type: String,
    /// Why it is sealed, one of a fixed set of words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sealed_reason: Option<&'static str>,
    /// Version of this program.
    pub sos_version: String,
}

/// `PUT sys/unseal`.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct UnsealRequest {
    /// A share, hexadecimal or base64.
    #[serde(deserialize_with = "secret")]
    pub key: SecretString,
    /// Forget the shares entered so far.
    #[serde(deserialize_with = "nullable")]
    pub reset: bool,
    /// Refused: there is no seal migration.
    #[serde(deserialize_with = "nullable")]
    pub migrate: bool,
}

/// `PUT sys/rekey/init` and `PUT sys/rekey-recovery-key/init`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RekeyRequest {
    /// Number of new shares.
    #[serde(deserialize_with = "nullable")]
    pub secret_shares: i64,
    /// New shares needed.
    #[serde(deserialize_with = "nullable")]
    pub secret_threshold: i64,
    /// Not supported.
    #[serde(deserialize_with = "nullable")]
    pub pgp_keys: Vec<String>,
    /// Refused without PGP keys, as in Vault.
    #[serde(deserialize_with = "nullable")]
    pub backup: bool,
    /// New shares must be entered once before they replace the old ones.
    #[serde(deserialize_with = "nullable")]
    pub require_verification: bool,
}

/// `GET sys/rekey/init`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RekeyStatusResponse {
    /// Identity of the operation; empty when there is none.
    pub nonce: String,
    /// Whether one is under way.
    pub started: bool,
    /// New shares needed.
    pub t: u8,
    /// Number of new shares.
    pub n: u8,
    /// Old shares entered so far.
    pub progress: usize,
    /// Old shares needed.
    pub required: u8,
    /// Always null.
    pub pgp_fingerprints: Option<Vec<String>>,
    /// Always false.
    pub backup: bool,
    /// Whether new shares must be entered before they count.
    pub verification_required: bool,
    /// Identity of the verification, once it has begun.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub verification_nonce: String,
}

/// `PUT …/update` and `PUT …/verify` of rekey and generate-root.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct ShareRequest {
    /// Identity of the operation.
    #[serde(deserialize_with = "nullable")]
    pub nonce: String,
    /// A share, hexadecimal or base64.
    #[serde(deserialize_with = "secret")]
    pub key: SecretString,
}

/// The answer to the last `PUT sys/rekey/update`.
#[derive(Serialize, Zeroize, ZeroizeOnDrop)]
pub struct RekeyUpdateResponse {
    /// Identity of the operation.
    pub nonce: String,
    /// True.
    pub complete: bool,
    /// New shares in hexadecimal.
    pub keys: Vec<String>,
    /// New shares in base64.
    pub keys_base64: Vec<String>,
    /// Always null.
    pub pgp_fingerprints: Option<Vec<String>>,
    /// Always false.
    pub backup: bool,
    /// Whether the new shares must be entered before they count.
    pub verification_required: bool,
    /// Identity of the verification.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub verification_nonce: String,
    /// That the old shares are not without use yet; Vault has no such member.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Either answer to `PUT sys/rekey/update`.
#[derive(Serialize)]
#[serde(untagged)]
pub enum RekeyUpdate {
    /// More shares are needed.
    Progress(RekeyStatusResponse),
    /// The new shares.
    Complete(RekeyUpdateResponse),
}

/// `GET sys/rekey/verify`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifyStatusResponse {
    /// Identity of the verification.
    pub nonce: String,
    /// Whether one is under way.
    pub started: bool,
    /// New shares needed.
    pub t: u8,
    /// Number of new shares.
    pub n: u8,
    /// New shares entered so far.
    pub progress: usize,
}

/// The answer to the last `PUT sys/rekey/verify`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifyUpdateResponse {
    /// Identity of the verification.
    pub nonce: String,
    /// True.
    pub complete: bool,
    /// That the old shares are not without use yet; Vault has no such member.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Either answer to `PUT sys/rekey/verify`.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum VerifyUpdate {
    /// More shares are needed.
    Progress(VerifyStatusResponse),
    /// The new shares count from now on.
    Complete(VerifyUpdateResponse),
}

/// `PUT sys/generate-root/attempt`.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct GenerateRootRequest {
    /// A one-time pad as long as the token; made by the server when absent.
    #[serde(deserialize_with = "secret")]
    pub otp: SecretString,
    /// Not supported.
    #[serde(deserialize_with = "nullable")]
    pub pgp_key: String,
}

/// `sys/generate-root/attempt` and `…/update`.
#[derive(Serialize, Zeroize, ZeroizeOnDrop)]
pub struct GenerateRootResponse {
    /// Identity of the operation; empty when there is none.
    pub nonce: String,
    /// Whether one is under way.
    pub started: bool,
    /// Shares entered so far.
    pub progress: usize,
    /// Shares needed.
    pub required: u8,
    /// Whether the token has been made.
    pub complete: bool,
    /// The token, XORed with the one-time pad, in base64 without padding.
    pub encoded_token: String,
    /// The same.
    pub encoded_root_token: String,
    /// Always empty.
    pub pgp_fingerprint: String,
    /// The one-time pad, when the server made it, once.
    pub otp: String,
    /// Length a one-time pad must have.
    pub otp_length: usize,
}

/// `GET sys/key-status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyStatusResponse {
    /// Number of the active term.
    pub term: u32,
    /// When it was made, RFC 3339.
    pub install_time: String,
    /// How many encryptions it has made.
    pub encryptions: u64,
}

/// `GET sys/rotate/config`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RotateConfigResponse {
    /// Whether the keyring rotates by itself.
    pub enabled: bool,
    /// Encryptions after which it does.
    pub max_operations: u64,
    /// Age after which it does: `"240h0m0s"`, or the number 0 for never.
    pub interval: RotateInterval,
}

/// An age as Vault shows it here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum RotateInterval {
    /// Zero.
    Never(i64),
    /// Hours, minutes and seconds.
    Every(String),
}

impl From<crate::barrier::RotateConfig> for RotateConfigResponse {
    fn from(config: crate::barrier::RotateConfig) -> Self {
        let seconds = config.interval;
        let interval = if seconds == 0 {
            RotateInterval::Never(0)
        } else {
            RotateInterval::Every(format!("{}h{}m{}s", seconds / 3600, seconds / 60 % 60, seconds % 60))
        };
        Self { enabled: config.enabled, max_operations: config.max_operations, interval }
    }
}

impl From<crate::barrier::KeyStatus> for KeyStatusResponse {
    fn from(status: crate::barrier::KeyStatus) -> Self {
        let install_time = status.install_time.format(&time::format_description::well_known::Rfc3339);
        Self { term: status.term, install_time: install_time.unwrap_or_default(), encryptions: status.encryptions }
    }
}
