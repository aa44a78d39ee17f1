//! What is stored of a zone, behind the barrier.
//!
//! ```text
//! sos/zones/<name>          ZoneRecord, JSON
//! sos/zone-keys/<id>        32 bytes: a software master key
//! sos/zone-intents/<name>~<id>   Intent, JSON: a master key that is being made on the token
//! sos/zone-progress/<name>  RewrapProgress, JSON
//! ```

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use time::{Duration, OffsetDateTime};

use super::{MasterKeyRef, ZoneError};
use crate::barrier::Txn;
use crate::hsm::{HsmError, KeyId, Mechanism, Member, NewMasterKey, base64_bytes};
use crate::secret::SecretBytes;

pub(super) const ZONES: &str = "sos/zones/";
pub(super) const INTENTS: &str = "sos/zone-intents/";

pub(super) fn zone_path(zone: &str) -> String {
    format!("{ZONES}{zone}")
}

pub(super) fn key_path(id: KeyId) -> String {
    format!("sos/zone-keys/{id}")
}

pub(super) fn intent_path(zone: &str, id: KeyId) -> String {
    format!("{INTENTS}{zone}~{id}")
}

pub(super) fn progress_path(zone: &str) -> String {
    format!("sos/zone-progress/{zone}")
}

/// The label of a master key on the token, for people.
pub(crate) fn master_key_label(key_label: &str, zone: &str, version: u32) -> String {
    format!("sos/{key_label}/zone/{zone}/v{version}")
}

/// Where a master key lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// A token object that only wraps and unwraps.
    Hsm,
    /// 32 bytes behind the barrier.
    Software,
}

/// A master key wrapped to the escrow key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EscrowCopy {
    /// How it was wrapped.
    pub mechanism: Mechanism,
    /// The wrapped key.
    #[serde(with = "base64_bytes")]
    pub blob: Vec<u8>,
}

/// A master key wrapped to the transport key of an HSM that did not make it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportCopy {
    /// The HSM it is for.
    pub member: String,
    /// CKA_ID of the transport key that it was wrapped to.
    pub transport: KeyId,
    /// How it was wrapped.
    pub mechanism: Mechanism,
    /// The wrapped key.
    #[serde(with = "base64_bytes")]
    pub blob: Vec<u8>,
}

/// Where a new master key is made and for whom it is wrapped.
pub(crate) struct Making<'a> {
    /// Name of the HSM that makes it.
    pub(crate) member: &'a str,
    /// Whether the first recipient is the escrow.
    pub(crate) escrow: bool,
    /// The other recipients, in order: the HSM's name and its transport key.
    pub(crate) others: Vec<(String, KeyId)>,
}

/// One version of a master key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasterVersion {
    /// Counted from 1.
    pub version: u32,
    /// CKA_ID, or the identity of a software key.
    pub id: KeyId,
    /// When it was made, seconds since 1970.
    pub created: i64,
    /// Where it lives.
    pub place: Place,
    /// The label on the token; empty for a software key.
    pub label: String,
    /// [`NewMasterKey::check_value`] in hexadecimal; empty for a software key.
    pub check_value: String,
    /// The copy for the escrow; `None` for software keys and where the configuration says `escrow = false`.
    pub escrow: Option<EscrowCopy>,
    /// The copies for other HSMs, as they were enrolled when it was made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<TransportCopy>,
    /// Names of the HSMs on which the key was seen with the right check value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held_by: Vec<String>,
}

impl MasterVersion {
    pub(super) fn software(version: u32, id: KeyId, now: OffsetDateTime) -> Self {
        let created = now.unix_timestamp();
        let (label, check_value) = (String::new(), String::new());
        Self { version, id, created, place: Place::Software, label, check_value, escrow: None, copies: vec![], held_by: vec![] }
    }

    pub(super) fn in_hsm(
        version: u32,
        id: KeyId,
        now: OffsetDateTime,
        label: String,
        made: NewMasterKey,
        making: &Making<'_>,
    ) -> Self {
        let mut exported = made.exported.into_iter();
        let escrow = making.escrow.then(|| exported.next()).flatten();
        let copy = |((member, transport), (mechanism, blob)): (&(String, KeyId), _)| TransportCopy {
            member: member.clone(),
            transport: *transport,
            mechanism,
            blob,
        };
        Self {
            version,
            id,
            created: now.unix_timestamp(),
            place: Place::Hsm,
            label,
            check_value: hex::encode(made.check_value),
            escrow: escrow.map(|(mechanism, blob)| EscrowCopy { mechanism, blob }),
            copies: making.others.iter().zip(exported).map(copy).collect(),
            held_by: vec![making.member.to_owned()],
        }
    }

    pub(super) fn reference(&self, zone: &str) -> MasterKeyRef {
        MasterKeyRef { zone: zone.to_owned(), version: self.version, id: self.id, place: self.place }
    }
}

/// A zone as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneRecord {
    /// Layout of this record, 1.
    pub format: u32,
    /// The zone.
    pub name: String,
    /// Age in seconds after which the master key is rotated; 0 for never.
    pub rotation_period: i64,
    /// Every version, oldest first; the last one is current.
    pub versions: Vec<MasterVersion>,
}

impl ZoneRecord {
    pub(super) fn new(name: &str, rotation_period: Duration) -> Self {
        let rotation_period = rotation_period.whole_seconds().max(0);
        Self { format: 1, name: name.to_owned(), rotation_period, versions: Vec::new() }
    }

    /// The version that wraps new material.
    pub fn current(&self) -> Option<&MasterVersion> {
        self.versions.last()
    }

    /// The age after which the master key is rotated; zero for never.
    pub fn rotation_period(&self) -> Duration {
        Duration::seconds(self.rotation_period)
    }

    pub(super) fn set_rotation_period(&mut self, period: Duration) {
        self.rotation_period = period.whole_seconds().max(0);
    }

    pub(super) fn next_version(&self) -> u32 {
        self.current().map_or(1, |version| version.version.saturating_add(1))
    }

    /// Whether new material is wrapped by a software key.
    pub(super) fn is_in_software(&self) -> bool {
        self.current().is_some_and(|version| version.place == Place::Software)
    }

    pub(super) fn rotation_due(&self, now: OffsetDateTime) -> bool {
        let age = |version: &MasterVersion| now.unix_timestamp().saturating_sub(version.created);
        self.rotation_period > 0 && self.current().is_some_and(|version| age(version) >= self.rotation_period)
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, ZoneError> {
        to_json(&zone_path(&self.name), self)
    }

    pub(super) fn decode(path: &str, json: &[u8]) -> Result<Self, ZoneError> {
        let record: Self = from_json(path, json)?;
        if record.format != 1 {
            return Err(super::damaged(path.to_owned(), "its format is unknown"));
        }
        Ok(record)
    }
}

/// A master key that is being made on the token.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Intent {
    pub(super) format: u32,
    pub(super) zone: String,
    pub(super) version: u32,
    pub(super) id: KeyId,
    /// The HSM that makes it; `None` in intents of the time when there was only one.
    #[serde(default)]
    pub(super) member: Option<String>,
}

impl Intent {
    pub(super) fn encode(&self) -> Result<Vec<u8>, ZoneError> {
        to_json(&intent_path(&self.zone, self.id), self)
    }

    pub(super) fn decode(path: &str, json: &[u8]) -> Result<Self, ZoneError> {
        from_json(path, json)
    }
}

/// The default zone, made during init before there is a barrier to write through.
pub(crate) struct FirstZone {
    record: ZoneRecord,
    software_key: Option<(KeyId, SecretBytes)>,
}

impl FirstZone {
    /// With its master key in software.
    pub(crate) fn software(now: OffsetDateTime) -> Self {
        let id = KeyId::random();
        let mut record = ZoneRecord::new(super::DEFAULT_ZONE, Duration::ZERO);
        record.versions.push(MasterVersion::software(1, id, now));
        Self { record, software_key: Some((id, SecretBytes::random(32))) }
    }

    /// With its master key made on the token under `id`, which the caller's intent names.
    pub(crate) async fn in_hsm(
        member: &Member,
        key_label: &str,
        id: KeyId,
        recipients: &[Vec<u8>],
        now: OffsetDateTime,
    ) -> Result<Self, HsmError> {
        let label = master_key_label(key_label, super::DEFAULT_ZONE, 1);
        let made = member.hsm.create_master_key(&label, id, recipients).await?;
        let making = Making { member: &member.name, escrow: !recipients.is_empty(), others: vec![] };
        let mut record = ZoneRecord::new(super::DEFAULT_ZONE, Duration::ZERO);
        record.versions.push(MasterVersion::in_hsm(1, id, now, label, made, &making));
        Ok(Self { record, software_key: None })
    }

    /// The writes that make the zone.
    pub(crate) fn into_txn(self) -> Result<Txn, ZoneError> {
        let txn = Txn::new().put(zone_path(&self.record.name), self.record.encode()?);
        Ok(match self.software_key {
            Some((id, key)) => txn.put_secret(key_path(id), key),
            None => txn,
        })
    }
}

pub(super) fn to_json<T: Serialize>(path: &str, value: &T) -> Result<Vec<u8>, ZoneError> {
    serde_json::to_vec(value).map_err(|error| super::damaged(path.to_owned(), &error.to_string()))
}

pub(super) fn from_json<T: DeserializeOwned>(path: &str, json: &[u8]) -> Result<T, ZoneError> {
    serde_json::from_slice(json).map_err(|error| super::damaged(path.to_owned(), &error.to_string()))
}
