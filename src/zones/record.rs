//! What is stored of a zone, behind the barrier.
//!
//! ```text
//! sos/zones/<name>          ZoneRecord, JSON
//! sos/zone-keys/<id>        32 bytes: a software master key
//! sos/zone-intents/<name>   Intent, JSON: a master key that is being made on the token
//! sos/zone-progress/<name>  RewrapProgress, JSON
//! ```

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use time::{Duration, OffsetDateTime};

use super::{MasterKeyRef, ZoneError};
use crate::barrier::Txn;
use crate::hsm::{Hsm, HsmError, KeyId, Mechanism, NewMasterKey, base64_bytes};
use crate::secret::SecretBytes;

pub(super) const ZONES: &str = "sos/zones/";
pub(super) const INTENTS: &str = "sos/zone-intents/";

pub(super) fn zone_path(zone: &str) -> String {
    format!("{ZONES}{zone}")
}

pub(super) fn key_path(id: KeyId) -> String {
    format!("sos/zone-keys/{id}")
}

pub(super) fn intent_path(zone: &str) -> String {
    format!("{INTENTS}{zone}")
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
}

impl MasterVersion {
    pub(super) fn software(version: u32, id: KeyId, now: OffsetDateTime) -> Self {
        let created = now.unix_timestamp();
        let (label, check_value) = (String::new(), String::new());
        Self { version, id, created, place: Place::Software, label, check_value, escrow: None }
    }

    pub(super) fn in_hsm(version: u32, id: KeyId, now: OffsetDateTime, label: String, made: NewMasterKey) -> Self {
        Self {
            version,
            id,
            created: now.unix_timestamp(),
            place: Place::Hsm,
            label,
            check_value: hex::encode(made.check_value),
            escrow: made.exported.into_iter().next().map(|(mechanism, blob)| EscrowCopy { mechanism, blob }),
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
}

impl Intent {
    pub(super) fn encode(&self) -> Result<Vec<u8>, ZoneError> {
        to_json(&intent_path(&self.zone), self)
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
        hsm: &dyn Hsm,
        key_label: &str,
        id: KeyId,
        recipients: &[Vec<u8>],
        now: OffsetDateTime,
    ) -> Result<Self, HsmError> {
        let label = master_key_label(key_label, super::DEFAULT_ZONE, 1);
        let made = hsm.create_master_key(&label, id, recipients).await?;
        let mut record = ZoneRecord::new(super::DEFAULT_ZONE, Duration::ZERO);
        record.versions.push(MasterVersion::in_hsm(1, id, now, label, made));
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
