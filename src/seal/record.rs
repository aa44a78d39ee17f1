//! What the seal stores.
//!
//! ```text
//! core/seal          SealRecord, JSON, readable while sealed: who wraps the root key
//! core/init-intent   InitIntent, JSON, readable while sealed: an init that has not finished
//! core/cluster       ClusterFacts, JSON, behind the barrier: what must not be taken from a readable record
//! core/hsms/<name>   MemberRecord, JSON, behind the barrier: an enrolled HSM and its transport key
//! core/seal-intents/<name>  SealIntent, JSON, behind the barrier: objects that are being made or removed
//! core/root-renewal  see `renewal.rs`
//! ```
//! `core/seal` is not secret. Every wrapped key in it authenticates itself; the public escrow key and the cluster's
//! identity are compared with `core/cluster` at every unseal, so nobody who can write to the disk can slip another
//! escrow key in.

use serde::{Deserialize, Serialize};

use super::SealError;
use super::escrow::{EscrowKeyPair, SharesKeyPair, unwrap_root};
use crate::barrier::{Barrier, BarrierError, Entry, Txn};
use crate::hsm::group::DEFAULT_NAME;
use crate::hsm::{KeyId, SealedBlob, base64_bytes};
use crate::secret::SecretBytes;
use crate::storage::{self, Expect, Storage, Version};

/// The seal record's path in the store.
pub const SEAL_PATH: &str = "core/seal";
/// The init intent's path in the store.
pub const INTENT_PATH: &str = "core/init-intent";
/// The cluster facts' path behind the barrier.
pub const CLUSTER_PATH: &str = "core/cluster";
/// Records of enrolled HSMs behind the barrier.
const MEMBERS: &str = "core/hsms/";
/// Work under way on HSMs.
const SEAL_INTENTS: &str = "core/seal-intents/";
/// More HSMs than any cluster has.
const MOST_MEMBERS: usize = 1000;

/// Kind of seal, as `sys/seal-status` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SealType {
    /// Unseal keys wrap the root key.
    #[serde(rename = "shamir")]
    Shamir,
    /// An HSM wraps the root key, and the escrow does.
    #[serde(rename = "pkcs11")]
    Pkcs11,
}

impl SealType {
    /// The word of the API.
    pub fn word(self) -> &'static str {
        match self {
            SealType::Shamir => "shamir",
            SealType::Pkcs11 => "pkcs11",
        }
    }
}

/// One wrapped copy of the root key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Wrapper {
    /// By a seal key in an HSM; associated data: `sos/root-key/v1/<cluster id>`.
    Hsm {
        /// The HSM's name, that of its stanza.
        #[serde(default = "default_name")]
        name: String,
        /// The objects of this cluster on the token carry `sos/<key_label>/…`.
        key_label: String,
        /// The wrapped root key.
        sealed: SealedBlob,
    },
    /// By a key derived from the Shamir secret.
    Shares {
        /// Nonce, ciphertext and tag; with `through` an RSA-OAEP ciphertext.
        #[serde(with = "base64_bytes")]
        blob: Vec<u8>,
        /// After a renewal of the root key without the shares: the private half of the pair that `blob` was wrapped to,
        /// encrypted by a key derived from the Shamir secret.
        #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_base64")]
        through: Option<Vec<u8>>,
    },
}

/// The seal of an initialised cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealRecord {
    /// Layout of this record, 1.
    pub format: u32,
    /// Kind of seal.
    #[serde(rename = "type")]
    pub seal_type: SealType,
    /// Identity of the cluster, a UUID.
    pub cluster_id: String,
    /// Name of the cluster.
    pub cluster_name: String,
    /// How many shares there are.
    pub shares: u8,
    /// How many of them give the Shamir secret back.
    pub threshold: u8,
    /// Wrapped copies of the root key; any one opens it.
    pub wrappers: Vec<Wrapper>,
    /// The escrow key pair; `None` for a `shamir` seal and with `escrow = false`.
    pub escrow: Option<EscrowKeyPair>,
}

impl SealRecord {
    /// The record and its version, or `None` before init.
    pub(super) fn load(storage: &dyn Storage) -> Result<Option<(Self, Version)>, SealError> {
        let Some(stored) = storage.get(SEAL_PATH).map_err(BarrierError::from)? else { return Ok(None) };
        Ok(Some((Self::decode(&stored.value)?, stored.version)))
    }

    /// The record from what is stored.
    pub(super) fn decode(stored: &[u8]) -> Result<Self, SealError> {
        let record: Self = parse(SEAL_PATH, stored)?;
        if record.format != 1 {
            return Err(SealError::Record { path: SEAL_PATH, reason: "its format is unknown".into() });
        }
        Ok(record)
    }

    /// A transaction that replaces the record as it was read (`None`: makes it).
    pub(super) fn write(&self, read: Option<Version>) -> Result<storage::Txn, SealError> {
        let expect = read.map_or(Expect::Absent, Expect::Version);
        Ok(storage::Txn::new().check(SEAL_PATH, expect).put(SEAL_PATH, json(SEAL_PATH, self)?))
    }

    /// The root key by the Shamir secret.
    pub(super) fn root_by_secret(&self, secret: &SecretBytes) -> Result<SecretBytes, SealError> {
        let opened = self.wrappers.iter().find_map(|wrapper| match wrapper {
            Wrapper::Shares { blob, through: None } => Some(unwrap_root(secret, &self.cluster_id, blob)),
            Wrapper::Shares { blob, through: Some(key) } => Some(SharesKeyPair::unwrap(secret, &self.cluster_id, key, blob)),
            Wrapper::Hsm { .. } => None,
        });
        opened.unwrap_or(Err(SealError::InvalidKey))
    }

    /// Replaces the copy that the shares open.
    pub(super) fn set_shares(&mut self, new: Wrapper) {
        self.wrappers.retain(|wrapper| matches!(wrapper, Wrapper::Hsm { .. }));
        self.wrappers.push(new);
    }

    /// Calls the HSM of one name by the other, and the other way round.
    pub(super) fn swap_names(&mut self, one: &str, other: &str) {
        for wrapper in &mut self.wrappers {
            let Wrapper::Hsm { name, .. } = wrapper else { continue };
            if name == one {
                other.clone_into(name);
            } else if name == other {
                one.clone_into(name);
            }
        }
    }

    /// The copies that HSMs open: name and wrapped root key, in the order in which they were enrolled.
    pub(super) fn hsm_wrappers(&self) -> impl Iterator<Item = (&str, &SealedBlob)> {
        self.wrappers.iter().filter_map(|wrapper| match wrapper {
            Wrapper::Hsm { name, sealed, .. } => Some((name.as_str(), sealed)),
            Wrapper::Shares { .. } => None,
        })
    }

    /// The copy that one HSM opens.
    pub(super) fn hsm_blob(&self, name: &str) -> Option<&SealedBlob> {
        self.hsm_wrappers().find(|(of, _)| *of == name).map(|(_, sealed)| sealed)
    }

    /// Replaces the copy that one HSM opens.
    pub(super) fn set_hsm_blob(&mut self, of: &str, blob: SealedBlob) {
        for wrapper in &mut self.wrappers {
            if let Wrapper::Hsm { name, sealed, .. } = wrapper
                && name == of
            {
                *sealed = blob;
                return;
            }
        }
    }

    /// CKA_ID of an enrolled HSM's seal key.
    pub fn seal_key_of(&self, name: &str) -> Option<KeyId> {
        self.hsm_blob(name).map(|blob| blob.key)
    }

    /// Labels of the cluster's objects on its HSMs: `sos/<key_label>/…`.
    pub fn key_labels(&self) -> impl Iterator<Item = &str> {
        self.wrappers.iter().filter_map(|wrapper| match wrapper {
            Wrapper::Hsm { key_label, .. } => Some(key_label.as_str()),
            Wrapper::Shares { .. } => None,
        })
    }

    /// Names of the enrolled HSMs.
    pub fn hsm_names(&self) -> Vec<String> {
        self.hsm_wrappers().map(|(name, _)| name.to_owned()).collect()
    }
}

fn default_name() -> String {
    DEFAULT_NAME.to_owned()
}

/// The transport key of an HSM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportKey {
    /// CKA_ID of the pair.
    pub id: KeyId,
    /// SubjectPublicKeyInfo (DER, base64). Behind the barrier, so that nobody who can write to the disk slips another in.
    #[serde(with = "base64_bytes")]
    pub public_key: Vec<u8>,
}

/// An enrolled HSM. Clusters with one HSM have no such record until a second one is added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// Layout of this record, 1.
    pub format: u32,
    /// The HSM's name.
    pub name: String,
    /// Its transport key; `None` while it could not be made.
    pub transport: Option<TransportKey>,
}

impl MemberRecord {
    /// All records, by name.
    pub fn all(barrier: &Barrier) -> Result<Vec<Self>, BarrierError> {
        barrier.scan(MEMBERS, None, MOST_MEMBERS)?.into_iter().map(|(path, entry)| read_behind(&path, &entry)).collect()
    }

    /// One HSM's record.
    pub fn load(barrier: &Barrier, name: &str) -> Result<Option<Self>, BarrierError> {
        let path = member_path(name);
        barrier.get(&path)?.map(|entry| read_behind(&path, &entry)).transpose()
    }

    pub(super) fn put(&self, txn: Txn) -> Result<Txn, SealError> {
        Ok(txn.put(member_path(&self.name), json("core/hsms/", self)?))
    }
}

/// What an enrolment, a removal or a new seal key touches on an HSM. Settled by one rule: what no record refers to is
/// destroyed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SealIntent {
    pub(super) format: u32,
    /// For people: `add`, `remove`, `rewrap`, `transport`.
    pub(super) action: String,
    /// The HSM.
    pub(super) member: String,
    /// CKA_IDs of seal and transport keys.
    pub(super) keys: Vec<KeyId>,
    /// Whether master keys on it go too when it turns out not to be enrolled.
    pub(super) masters: bool,
}

impl SealIntent {
    pub(super) fn all(barrier: &Barrier) -> Result<Vec<(String, Self, Entry)>, BarrierError> {
        let found = barrier.scan(SEAL_INTENTS, None, MOST_MEMBERS)?;
        found.into_iter().map(|(path, entry)| Ok((path.clone(), read_behind(&path, &entry)?, entry))).collect()
    }

    pub(super) fn path(&self) -> String {
        Self::path_of(&self.member)
    }

    /// Where the intent of an HSM is.
    pub(super) fn path_of(member: &str) -> String {
        format!("{SEAL_INTENTS}{member}")
    }

    pub(super) fn put(&self, txn: Txn) -> Result<Txn, SealError> {
        Ok(txn.put(self.path(), json("core/seal-intents/", self)?))
    }
}

fn read_behind<T: for<'de> Deserialize<'de>>(path: &str, entry: &Entry) -> Result<T, BarrierError> {
    let corrupt = |_json| BarrierError::Corrupt { path: path.to_owned(), reason: "it is not the JSON it should be" };
    serde_json::from_slice(entry.value.expose()).map_err(corrupt)
}

/// Where an HSM's record is behind the barrier.
pub(super) fn member_path(name: &str) -> String {
    format!("{MEMBERS}{name}")
}

/// What an init is about to make on the token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InitIntent {
    pub(super) format: u32,
    pub(super) key_label: String,
    /// The HSM; `None` in intents of the time when there was only one.
    #[serde(default)]
    pub(super) member: Option<String>,
    /// CKA_IDs of the seal key and of the default zone's master key.
    pub(super) keys: Vec<KeyId>,
}

impl InitIntent {
    pub(super) fn load(storage: &dyn Storage) -> Result<Option<(Self, Version)>, SealError> {
        let Some(stored) = storage.get(INTENT_PATH).map_err(BarrierError::from)? else { return Ok(None) };
        Ok(Some((parse(INTENT_PATH, &stored.value)?, stored.version)))
    }

    pub(super) fn write(&self) -> Result<storage::Txn, SealError> {
        Ok(storage::Txn::new().check(INTENT_PATH, Expect::Absent).put(INTENT_PATH, json(INTENT_PATH, self)?))
    }
}

/// Facts of the cluster that only the barrier vouches for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFacts {
    /// Layout of this record, 1.
    pub format: u32,
    /// Identity of the cluster, a UUID.
    pub cluster_id: String,
    /// Name of the cluster.
    pub cluster_name: String,
    /// Whether zone master keys are made in an HSM.
    pub hsm: bool,
    /// SubjectPublicKeyInfo (DER, base64) of the escrow key; empty when there is none.
    #[serde(with = "base64_bytes")]
    pub escrow_public_key: Vec<u8>,
}

impl ClusterFacts {
    /// The facts, read through the open barrier.
    pub fn load(barrier: &Barrier) -> Result<Self, BarrierError> {
        let corrupt = |reason| BarrierError::Corrupt { path: CLUSTER_PATH.to_owned(), reason };
        let entry: Option<Entry> = barrier.get(CLUSTER_PATH)?;
        let entry = entry.ok_or_else(|| corrupt("it is missing"))?;
        serde_json::from_slice(entry.value.expose()).map_err(|_json| corrupt("it is not the JSON it should be"))
    }

    /// To whom new zone master keys are wrapped.
    pub fn recipients(&self) -> Vec<Vec<u8>> {
        if self.escrow_public_key.is_empty() { Vec::new() } else { vec![self.escrow_public_key.clone()] }
    }

    pub(super) fn of(record: &SealRecord) -> Self {
        let escrow_public_key = record.escrow.as_ref().map(|pair| pair.public_key.clone()).unwrap_or_default();
        Self {
            format: 1,
            cluster_id: record.cluster_id.clone(),
            cluster_name: record.cluster_name.clone(),
            hsm: record.seal_type == SealType::Pkcs11,
            escrow_public_key,
        }
    }

    pub(super) fn into_txn(self) -> Result<Txn, SealError> {
        Ok(Txn::new().put(CLUSTER_PATH, json(CLUSTER_PATH, &self)?))
    }
}

fn json<T: Serialize>(path: &'static str, value: &T) -> Result<Vec<u8>, SealError> {
    serde_json::to_vec(value).map_err(|error| SealError::Record { path, reason: error.to_string() })
}

pub(super) fn parse<T: for<'de> Deserialize<'de>>(path: &'static str, value: &[u8]) -> Result<T, SealError> {
    serde_json::from_slice(value).map_err(|error| SealError::Record { path, reason: error.to_string() })
}

/// Bytes as base64 in serde formats, where there are any.
mod optional_base64 {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::hsm::base64_bytes;

    #[derive(Serialize, Deserialize)]
    struct Bytes(#[serde(with = "base64_bytes")] Vec<u8>);

    // The signature is serde's.
    #[allow(clippy::ref_option)]
    pub(super) fn serialize<S: Serializer>(bytes: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
        bytes.clone().map(Bytes).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
        Ok(Option::<Bytes>::deserialize(deserializer)?.map(|bytes| bytes.0))
    }
}
