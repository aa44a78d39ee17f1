//! What a Transit mount stores. All records are JSON with a `format` number; a new layout gets a new number.
//!
//! ```text
//! key/<name>                 KeyRecord: policy and bounds of a key, and a line per version
//! material/<uid>/<version>   VersionRecord: one version's protected material
//! usage/<uid>/<version>      UsageRecord: encryptions reserved so far
//! given/<uid>                GivenRecord: the highest version given before a restore
//! auto/<name>                empty: the key rotates by itself
//! token/<cka id>             TokenRecord: an HSM object that is being made or must be destroyed
//! config/keys, config/cache  settings of the mount
//! ```

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use thiserror::Error;

use super::{
    alg::{KeyType, kdf::Kdf},
    protect::Level,
};
use crate::{
    core::failure::Failure,
    hsm::{self, WrappedKey},
    secret::{SecretBytes, random_array},
    wire::json::without_values,
    zones::WrappedMaterial,
};

/// The layout written today.
pub const FORMAT: u16 = 1;

/// Names one life of a key: a key deleted and made again under its old name is another key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyUid(u128);

impl KeyUid {
    /// A fresh random identity.
    pub fn random() -> Self {
        Self(u128::from_be_bytes(random_array()))
    }

    /// Reads the text form.
    pub fn parse(text: &str) -> Option<Self> {
        u128::from_str_radix(text, 16).ok().map(Self)
    }
}

impl fmt::Display for KeyUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for KeyUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyUid({self})")
    }
}

impl Serialize for KeyUid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyUid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        u128::from_str_radix(&text, 16).map(Self).map_err(serde::de::Error::custom)
    }
}

/// A line per version in the key's record: what reading the key shows, without opening any material.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionLine {
    /// The version, from 1.
    pub version: u32,
    /// When it was made, Unix nanoseconds.
    pub created: i64,
    /// How its material is protected.
    pub level: Level,
    /// Counts rewrites of the material at another level, so that caches see them.
    #[serde(default)]
    pub revision: u32,
    /// When material that had been outside was put into the HSM, Unix nanoseconds; absent for what was made there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_into_hsm: Option<i64>,
    /// The public half of an asymmetric key: PEM, or base64 for Ed25519.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// Only the public half is known (imported so).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub public_only: bool,
    /// Certificates of the key, leaf first, DER in base64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificate_chain: Vec<String>,
}

/// Time and latest version at a backup or restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passage {
    /// Unix nanoseconds.
    pub time: i64,
    /// The latest version then.
    pub version: u32,
}

/// A key without its material.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// [`FORMAT`].
    pub format: u16,
    /// This life of the key.
    pub uid: KeyUid,
    /// Its type.
    pub kind: KeyType,
    /// Bytes of an HMAC key to come; 0 for other types.
    #[serde(default)]
    pub key_size: u32,
    /// How a context makes the keys in use; absent for keys that are used as they are.
    pub kdf: Option<Kdf>,
    /// Whether equal plaintexts and contexts give equal ciphertexts.
    #[serde(default)]
    pub convergent: bool,
    /// Shown only; -1 leaves it to each version.
    #[serde(default)]
    pub convergent_version: i32,
    /// Whether the material may be exported.
    #[serde(default)]
    pub exportable: bool,
    /// Whether backups with plain material may be taken.
    #[serde(default)]
    pub allow_plaintext_backup: bool,
    /// Whether the key may be deleted.
    #[serde(default)]
    pub deletion_allowed: bool,
    /// Kept, but refuses every use.
    #[serde(default)]
    pub soft_deleted: bool,
    /// Oldest version that still decrypts.
    pub min_decryption_version: u32,
    /// Oldest version that a client may name for encryption; 0 is no bound.
    #[serde(default)]
    pub min_encryption_version: u32,
    /// Oldest version whose material still exists; 0 before the first trim.
    #[serde(default)]
    pub min_available_version: u32,
    /// Newest version; never goes back.
    pub latest_version: u32,
    /// Seconds between automatic rotations; 0 is off.
    #[serde(default)]
    pub auto_rotate_period: i64,
    /// Whether a version came from outside.
    #[serde(default)]
    pub imported: bool,
    /// Whether an imported key may be rotated here.
    #[serde(default)]
    pub allow_imported_key_rotation: bool,
    /// Level of versions to come.
    pub level: Level,
    /// Last backup.
    #[serde(default)]
    pub backup: Option<Passage>,
    /// The restore that made it.
    #[serde(default)]
    pub restore: Option<Passage>,
    /// All versions whose material exists, ascending.
    pub versions: Vec<VersionLine>,
}

/// What may still be read of a [`KeyRecord`] that is not one.
#[derive(Debug, Deserialize)]
pub struct UidRecord {
    /// This life of the key.
    pub uid: KeyUid,
}

impl KeyRecord {
    /// The line of a version.
    pub fn line(&self, version: u32) -> Option<&VersionLine> {
        let at = self.versions.binary_search_by_key(&version, |line| line.version).ok()?;
        self.versions.get(at)
    }

    /// Whether its encryptions are counted: those with random nonces that may collide.
    pub fn is_counted(&self) -> bool {
        !self.convergent && self.kind.nonces_are_short()
    }

    /// Whether a context is needed for every use.
    pub fn derived(&self) -> bool {
        self.kdf.is_some()
    }
}

/// The secret parts of a version that this process may see.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Secrets {
    /// Behind the barrier alone: the server has no zones.
    Barrier(#[serde(with = "secret_base64")] SecretBytes),
    /// Under the zone's master key.
    Zone(WrappedMaterial),
}

/// Where the key of a version is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoredKey {
    /// `software`: the material is among the [`Secrets`].
    Software,
    /// `hsm`: wrapped by the zone's master key, used inside the HSM.
    Hsm(WrappedKey),
    /// `hsm-only`: an object on the token.
    Token(hsm::KeyId),
}

/// One version of a key.
#[derive(Debug, Serialize, Deserialize)]
pub struct VersionRecord {
    /// [`FORMAT`].
    pub format: u16,
    /// The version.
    pub version: u32,
    /// Unix nanoseconds.
    pub created: i64,
    /// The key.
    pub key: StoredKey,
    /// The HMAC key and, at level `software`, the key.
    pub secrets: Secrets,
    /// How nonces of a convergent key are made: 1, 2 or 3; 0 for other keys.
    #[serde(default)]
    pub convergent_version: u8,
}

/// Encryptions of a version that may have happened: reserved in blocks before they are used.
#[derive(Debug, Serialize, Deserialize)]
pub struct UsageRecord {
    /// [`FORMAT`].
    pub format: u16,
    /// End of the last block.
    pub reserved: u64,
}

/// The highest version of a key that was given before a restore, also when it is lost.
#[derive(Debug, Serialize, Deserialize)]
pub struct GivenRecord {
    /// [`FORMAT`].
    pub format: u16,
    /// The version.
    pub version: u32,
}

/// What is to become of an object on the HSM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// Being made; without a commit that takes this record away it is an orphan.
    Creating,
    /// No longer referred to.
    Destroying,
}

/// An HSM object between store and token.
#[derive(Debug, Serialize, Deserialize)]
pub struct TokenRecord {
    /// [`FORMAT`].
    pub format: u16,
    /// Why the record exists.
    pub fate: Fate,
    /// The key's name, for people.
    pub name: String,
}

/// `config/keys`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct KeysConfig {
    /// Whether encrypting makes no keys.
    #[serde(default)]
    pub disable_upsert: bool,
}

/// `config/cache`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct CacheConfig {
    /// Keys held in memory; 0 is the server's own bound.
    #[serde(default)]
    pub size: i64,
}

/// Below this lie the keys' records.
pub const KEY_FOLDER: &str = "key/";

/// Path of a key's record.
pub fn key_path(name: &str) -> String {
    format!("{KEY_FOLDER}{name}")
}

/// Below this lie the versions' records.
pub const MATERIAL_FOLDER: &str = "material/";

/// Path of the highest version that was given to a key before a restore; `uid` in its text form.
pub fn given_path(uid: &str) -> String {
    format!("given/{uid}")
}

/// Path of a version's record.
pub fn material_path(uid: KeyUid, version: u32) -> String {
    format!("material/{uid}/{version}")
}

/// Below this lie the usage records.
pub const USAGE_FOLDER: &str = "usage/";

/// Path of a version's usage record.
pub fn usage_path(uid: KeyUid, version: u32) -> String {
    format!("{USAGE_FOLDER}{uid}/{version}")
}

/// Path that marks a key as rotating by itself.
pub fn auto_path(name: &str) -> String {
    format!("auto/{name}")
}

/// Below this lie the records of HSM objects.
pub const TOKEN_FOLDER: &str = "token/";

/// Path of an HSM object's record.
pub fn token_path(id: hsm::KeyId) -> String {
    format!("{TOKEN_FOLDER}{id}")
}

/// Serialises a record; the buffer is overwritten when it is no longer needed.
pub fn encode(record: &impl Serialize) -> Result<SecretBytes, Failure> {
    // Room enough that the buffer does not move while it grows: no copies of material are left behind.
    let mut out = Vec::with_capacity(4096);
    serde_json::to_writer(&mut out, record).map_err(Failure::internal)?;
    Ok(SecretBytes::new(out))
}

/// A record is not what it should be.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct Unreadable(String);

/// Reads a record back.
///
/// # Errors
/// [`Unreadable`] as the cause, which says nothing of what the record holds.
pub fn decode<T: DeserializeOwned>(bytes: &SecretBytes) -> Result<T, Failure> {
    serde_json::from_slice(bytes.expose()).map_err(|error| Failure::internal(Unreadable(without_values(&error))))
}

/// Secret bytes as base64, without unprotected copies in between.
mod secret_base64 {
    use std::fmt;

    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde::{Deserializer, Serializer, de::Visitor};
    use zeroize::Zeroizing;

    use crate::secret::SecretBytes;

    pub fn serialize<S: Serializer>(bytes: &SecretBytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(STANDARD.encode(bytes.expose())))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SecretBytes, D::Error> {
        struct Base64;
        impl Visitor<'_> for Base64 {
            type Value = SecretBytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("base64")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<SecretBytes, E> {
                STANDARD.decode(text).map(SecretBytes::new).map_err(|_| E::custom("not base64"))
            }
        }
        deserializer.deserialize_str(Base64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_records_come_back_as_stored() {
        let record = VersionRecord {
            format: FORMAT,
            version: 3,
            created: 17,
            key: StoredKey::Software,
            secrets: Secrets::Barrier(SecretBytes::new(vec![1; 64])),
            convergent_version: 3,
        };
        let stored = encode(&record).unwrap();
        let back: VersionRecord = decode(&stored).unwrap();
        assert!(matches!(&back.secrets, Secrets::Barrier(secret) if secret.same_as(&[1; 64])));
        assert_eq!((back.version, back.created, back.convergent_version), (3, 17, 3));
    }

    #[test]
    fn uids_are_hex_and_paths_are_readable() {
        let uid = KeyUid(0x1f);
        assert_eq!(material_path(uid, 4), "material/0000000000000000000000000000001f/4");
        assert_eq!(serde_json::from_str::<KeyUid>(&serde_json::to_string(&uid).unwrap()).unwrap(), uid);
    }
}
