//! Zones and their master keys, the second level of Transit's hierarchy.
//!
//! A zone has a versioned AES-256 master key. With an HSM it is a token object that only wraps and unwraps, made with a
//! copy wrapped to the escrow key; without one it is 32 bytes behind the barrier. New material is wrapped by the
//! current version; old versions are kept for ever, because old backups need them.
//!
//! Making a master key touches the token and the store, so a durable intent comes first; [`Zones::settle`] undoes
//! what a crash left half done. A key is recognised by CKA_ID and check value, never by its label.

mod material;
mod record;
mod rename;
mod rewrap;
mod spread;
mod verified;
pub mod wire;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use thiserror::Error;
use time::{Duration, OffsetDateTime};

use crate::barrier::{Barrier, BarrierError, Entry, Stamp, Txn};
use crate::crashpoint::reach;
use crate::hsm::{Group, Hsm, HsmError, KeyId, Member, Status};
use crate::seal::{ClusterFacts, MemberRecord};
use crate::secret::SecretBytes;

pub use material::WrappedMaterial;
pub use record::{EscrowCopy, MasterVersion, Place, TransportCopy, ZoneRecord};
pub use rewrap::{Rewrap, RewrapProgress, RewrapStep};
pub use spread::{Brought, MasterKey, PendingKey, Way};

pub(crate) use record::{FirstZone, master_key_label};
pub(crate) use rename::rename_holder;

use record::{Intent, Making, intent_path, key_path, progress_path, zone_path};
use verified::Verified;

/// The zone that exists from init on.
pub const DEFAULT_ZONE: &str = "default";

/// How many zones one listing reads at a time.
const PAGE: usize = 1000;
/// The longest zone name.
const MAX_NAME_LEN: usize = 64;

/// Why a zone did not do what was asked.
#[derive(Debug, Error)]
pub enum ZoneError {
    /// There is no zone of this name.
    #[error("unknown zone {0:?}")]
    Unknown(String),
    /// There is a zone of this name already.
    #[error("the zone {0:?} exists already")]
    Exists(String),
    /// Not a name for a zone.
    #[error("{0:?} is not a zone name: 1 to 64 letters, digits, '-', '_' or '.', beginning with a letter or digit")]
    Name(String),
    /// The master key is in the HSM, which cannot be used now; other requests go on.
    #[error("the HSM that holds the keys of this zone is not available ({reason})")]
    HsmUnavailable {
        /// One of the fixed words of `sys/seal-status`.
        reason: &'static str,
    },
    /// The zone's master key is not in an HSM, so there are no HSM keys under it.
    #[error("the zone {0:?} has its master key in software: keys of protection level hsm need an HSM")]
    SoftwareZone(String),
    /// The token holds another key under the CKA_ID, or lost it.
    #[error("the HSM does not hold master key version {version} of zone {zone:?}: {found}")]
    WrongKey {
        /// The zone.
        zone: String,
        /// The version of its master key.
        version: u32,
        /// What is there instead.
        found: &'static str,
    },
    /// Wrapped material does not open: damaged, or bound to another place.
    #[error("the wrapped key material does not open")]
    Material,
    /// A stored zone record cannot be read.
    #[error("the record {path:?} is corrupt: {reason}")]
    Record {
        /// The damaged record.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// An escrow copy does not open.
    #[error("the escrow copy of a master key does not open: {0}")]
    Escrow(String),
    /// Re-wrapping stopped.
    #[error("re-wrapping stopped: {0}")]
    Rewrap(String),
    /// The HSM refused.
    #[error(transparent)]
    Hsm(#[from] HsmError),
    /// The barrier or the store refused.
    #[error(transparent)]
    Barrier(#[from] BarrierError),
}

/// A master key version that wraps and unwraps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MasterKeyRef {
    /// The zone.
    pub zone: String,
    /// The version, counted from 1.
    pub version: u32,
    /// CKA_ID, or the identity of a software key.
    pub id: KeyId,
    /// Where it lives.
    pub place: Place,
}

/// A zone as `sys/sos/zones/<name>` shows it.
#[derive(Clone, Debug)]
pub struct ZoneInfo {
    /// The stored zone.
    pub zone: ZoneRecord,
    /// How far re-wrapping under the current version is; absent when it never ran.
    pub rewrap: Option<RewrapProgress>,
}

/// All zones of a cluster.
pub struct Zones {
    barrier: Arc<Barrier>,
    hsm: Option<Arc<Group>>,
    key_label: String,
    /// Master keys whose check value was compared.
    verified: Verified,
    /// Zones whose last pass of re-wrapping left records behind, and when.
    passed: Mutex<HashMap<String, Instant>>,
    changing: tokio::sync::Mutex<()>,
}

impl Zones {
    /// Zones behind `barrier`; `key_label` names this cluster's objects on the token.
    pub fn new(barrier: Arc<Barrier>, hsm: Option<Arc<dyn Hsm>>, key_label: &str) -> Self {
        Self {
            barrier,
            hsm: hsm.map(Hsm::into_group),
            key_label: key_label.to_owned(),
            verified: Verified::default(),
            passed: Mutex::default(),
            changing: tokio::sync::Mutex::new(()),
        }
    }

    /// What names this cluster's objects on the token where new ones are made.
    pub fn key_label(&self) -> String {
        let members = self.hsm.as_ref().map(|group| group.members()).unwrap_or_default();
        let first = members.iter().find(|member| !member.disabled).and_then(|member| member.key_label.clone());
        first.unwrap_or_else(|| self.key_label.clone())
    }

    /// To be called after every unseal: undoes half-done work and makes the zones that the configuration names, with
    /// their rotation period. What needs an absent HSM waits for a later [`Zones::tick`].
    pub async fn unsealed(&self, configured: &[(String, Duration)], now: OffsetDateTime) -> Result<(), ZoneError> {
        self.forget();
        if !ClusterFacts::load(&self.barrier)?.hsm {
            tracing::warn!("no HSM protects this cluster: zone master keys are software keys behind the barrier");
        }
        self.settle().await?;
        for (name, period) in configured {
            match self.ensure(name, *period, now).await {
                Err(ZoneError::HsmUnavailable { reason }) => {
                    tracing::warn!(zone = %name, reason, "a configured zone waits for the HSM");
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Forgets what is known of the HSMs; to be called when the server is sealed. No key is kept in memory.
    pub fn forget(&self) {
        self.verified.clear();
        self.passed.lock().clear();
    }

    /// The version that wraps new material.
    pub fn current(&self, zone: &str) -> Result<MasterKeyRef, ZoneError> {
        Ok(self.current_stamped(zone)?.0)
    }

    /// The version that wraps new material, and the zone's record: a commit that depends on it holds only while no other version
    /// was made.
    pub fn current_stamped(&self, zone: &str) -> Result<(MasterKeyRef, Stamp), ZoneError> {
        let (record, entry) = self.stored(zone)?;
        let path = zone_path(zone);
        let current = record.current().map(|version| version.reference(zone));
        let current = current.ok_or_else(|| damaged(path.clone(), "it has no version"))?;
        Ok((current, Stamp::new(path, &entry)))
    }

    /// One version by the identity that a wrapped key names, of whatever zone it is; it is looked for in `zone` first.
    pub fn by_id(&self, zone: &str, id: KeyId) -> Result<MasterKeyRef, ZoneError> {
        let of = |zone: &str| -> Result<Option<MasterKeyRef>, ZoneError> {
            let (record, _) = self.stored(zone)?;
            let found = record.versions.iter().find(|version| version.id == id);
            Ok(found.map(|version| version.reference(zone)))
        };
        if let Some(found) = of(zone)? {
            return Ok(found);
        }
        for other in self.list()? {
            if other != zone
                && let Some(found) = of(&other)?
            {
                return Ok(found);
            }
        }
        Err(ZoneError::Material)
    }

    /// Whether the zone exists.
    pub fn exists(&self, zone: &str) -> Result<bool, ZoneError> {
        check_name(zone)?;
        Ok(self.barrier.get(&zone_path(zone))?.is_some())
    }

    /// Names of all zones, sorted.
    pub fn list(&self) -> Result<Vec<String>, ZoneError> {
        let mut names: Vec<String> = Vec::new();
        loop {
            let page = self.barrier.list(record::ZONES, names.last().map(String::as_str), PAGE)?;
            let last = page.len() < PAGE;
            names.extend(page);
            if last {
                return Ok(names);
            }
        }
    }

    /// One zone, with its progress.
    pub fn read(&self, zone: &str) -> Result<ZoneInfo, ZoneError> {
        let (record, _) = self.stored(zone)?;
        Ok(ZoneInfo { zone: record, rewrap: self.progress(zone)? })
    }

    /// Makes a zone with the first version of its master key. A `rotation_period` of zero means never by itself.
    pub async fn create(&self, zone: &str, rotation_period: Duration, now: OffsetDateTime) -> Result<(), ZoneError> {
        let _changing = self.changing.lock().await;
        if self.exists(zone)? {
            return Err(ZoneError::Exists(zone.to_owned()));
        }
        self.add_version(ZoneRecord::new(zone, rotation_period), None, now).await.map(|_| ())
    }

    /// Makes a new version of the zone's master key, which becomes current; answers its number. Material stays
    /// readable, and is re-wrapped by [`Zones::rewrap`].
    pub async fn rotate(&self, zone: &str, now: OffsetDateTime) -> Result<u32, ZoneError> {
        let _changing = self.changing.lock().await;
        let (record, entry) = self.stored(zone)?;
        self.add_version(record, Some(entry), now).await
    }

    /// Changes after which time the zone's master key is rotated by itself.
    pub async fn set_rotation_period(&self, zone: &str, period: Duration) -> Result<(), ZoneError> {
        let _changing = self.changing.lock().await;
        let (mut record, entry) = self.stored(zone)?;
        record.set_rotation_period(period);
        let path = zone_path(zone);
        let txn = Txn::new().check(&path, Entry::unchanged(Some(&entry))).put(&path, record.encode()?);
        self.barrier.commit(txn).await?;
        Ok(())
    }

    /// Finishes what waited for an HSM and rotates the zones that are due; a software master key is due as soon as the
    /// cluster has an HSM; to be called from time to time. Answers
    /// the zones that were rotated. A failure with one zone is logged and does not stop the others.
    pub async fn tick(&self, now: OffsetDateTime) -> Result<Vec<String>, ZoneError> {
        self.settle().await?;
        self.spread().await?;
        let into_hsm = ClusterFacts::load(&self.barrier)?.hsm && self.maker().is_ok();
        let mut rotated = Vec::new();
        for name in self.list()? {
            let due = match self.stored(&name) {
                Ok((record, _)) => record.rotation_due(now) || (into_hsm && record.is_in_software()),
                Err(error) => {
                    tracing::error!(zone = %name, %error, "the zone cannot be read");
                    false
                }
            };
            if !due {
                continue;
            }
            match self.rotate(&name, now).await {
                Ok(version) => {
                    tracing::info!(zone = %name, version, "the zone's master key was rotated by age");
                    rotated.push(name);
                }
                Err(error) => tracing::warn!(zone = %name, %error, "the zone's master key is due but was not rotated"),
            }
        }
        Ok(rotated)
    }

    /// The HSMs of this cluster.
    fn group(&self) -> Result<&Arc<Group>, ZoneError> {
        let group = self.hsm.as_ref().filter(|group| group.is_configured());
        group.ok_or(ZoneError::HsmUnavailable { reason: "hsm-not-configured" })
    }

    /// Where new master keys are made: the first enrolled HSM that is ready.
    fn maker(&self) -> Result<Arc<Member>, ZoneError> {
        let group = self.group()?;
        group.maker().map_err(|_away| unavailable(&group.status()))
    }

    /// Undoes master keys that were begun and not committed. Intents that need an absent HSM stay for later.
    pub async fn settle(&self) -> Result<(), ZoneError> {
        let _changing = self.changing.lock().await;
        self.settle_all("").await
    }

    /// Forgets the master keys that were half-made when the backup was taken that this store was restored from: they may have
    /// been finished since, and a newer backup may need them.
    pub async fn forget_intents(&self) -> Result<(), ZoneError> {
        let _changing = self.changing.lock().await;
        for (path, entry) in self.barrier.scan(record::INTENTS, None, PAGE)? {
            let intent = Intent::decode(&path, entry.value.expose())?;
            tracing::warn!(
                zone = %intent.zone, key = %intent.id,
                "this master key was being made when the backup was taken: if it is on the HSM it stays there; see sos hsm orphans"
            );
            self.barrier.commit(Txn::new().delete(&path)).await?;
        }
        Ok(())
    }

    /// Objects that are being made.
    pub fn intended(&self) -> Result<HashSet<KeyId>, ZoneError> {
        let all = self.barrier.scan(record::INTENTS, None, PAGE)?.into_iter();
        all.map(|(path, entry)| Ok(Intent::decode(&path, entry.value.expose())?.id)).collect()
    }

    /// Undoes what was begun in zones whose name starts with `zone`; an exact name is followed by `~`.
    async fn settle_all(&self, zone: &str) -> Result<(), ZoneError> {
        for (path, entry) in self.barrier.scan(&format!("{}{zone}", record::INTENTS), None, PAGE)? {
            let intent = Intent::decode(&path, entry.value.expose())?;
            match self.undo(&path, &intent).await {
                Err(ZoneError::HsmUnavailable { reason }) => {
                    tracing::warn!(zone = %intent.zone, reason, "half-done work on a zone waits for the HSM");
                }
                other => other?,
            }
        }
        Ok(())
    }

    async fn undo(&self, path: &str, intent: &Intent) -> Result<(), ZoneError> {
        // What a commit of unknown outcome may have left must be certain before anything is destroyed by it.
        self.barrier.confirm(&[path, &zone_path(&intent.zone)]).await?;
        let Some(entry) = self.barrier.get(path)? else { return Ok(()) };
        let committed = match self.stored(&intent.zone) {
            Ok((record, _)) => record.versions.iter().any(|version| version.id == intent.id),
            Err(ZoneError::Unknown(_)) => false,
            Err(error) => return Err(error),
        };
        if !committed {
            let group = self.group()?;
            let member = match &intent.member {
                Some(name) => group.member(name),
                None => group.members().first().cloned(),
            };
            match member {
                Some(member) => {
                    if !member.is_ready() {
                        return Err(unavailable(&member.hsm.status()));
                    }
                    member.hsm.destroy(intent.id).await?;
                    tracing::warn!(zone = %intent.zone, key = %intent.id, "a half-made master key was removed from the HSM");
                }
                None => tracing::warn!(
                    zone = %intent.zone, key = %intent.id, hsm = intent.member,
                    "a half-made master key may be left on an HSM that is not configured any more"
                ),
            }
        }
        self.barrier.commit(Txn::new().check(path, Entry::unchanged(Some(&entry))).delete(path)).await?;
        Ok(())
    }

    async fn ensure(&self, zone: &str, period: Duration, now: OffsetDateTime) -> Result<(), ZoneError> {
        if !self.exists(zone)? {
            return self.create(zone, period, now).await;
        }
        if self.stored(zone)?.0.rotation_period() != period {
            self.set_rotation_period(zone, period).await?;
        }
        Ok(())
    }

    async fn add_version(&self, mut record: ZoneRecord, read: Option<Entry>, now: OffsetDateTime) -> Result<u32, ZoneError> {
        let facts = ClusterFacts::load(&self.barrier)?;
        let version = record.next_version();
        let id = KeyId::random();
        let path = zone_path(&record.name);
        let check = Entry::unchanged(read.as_ref());
        if !facts.hsm {
            record.versions.push(MasterVersion::software(version, id, now));
            let txn = Txn::new().check(&path, check).put(&path, record.encode()?);
            self.barrier.commit_surely(txn.put_secret(key_path(id), SecretBytes::random(32))).await?;
            return Ok(version);
        }
        let (member, intent_path) = self.begin(&record.name, version, id).await?;
        reach("zone-intent");
        let mut recipients = facts.recipients();
        let mut making = Making { member: &member.name, escrow: !recipients.is_empty(), others: vec![] };
        for other in MemberRecord::all(&self.barrier)?.into_iter().filter(|other| other.name != member.name) {
            if let Some(transport) = other.transport {
                making.others.push((other.name, transport.id));
                recipients.push(transport.public_key);
            }
        }
        let label = master_key_label(member.key_label.as_deref().unwrap_or(&self.key_label), &record.name, version);
        let before = member.facts();
        let made = member.hsm.create_master_key(&label, id, &recipients).await;
        let made = match made {
            Ok(made) => made,
            Err(error) => {
                self.give_up(&intent_path).await;
                return Err(error.into());
            }
        };
        reach("zone-key-made");
        record.versions.push(MasterVersion::in_hsm(version, id, now, label, made, &making));
        let txn = Txn::new().check(&path, check).put(&path, record.encode()?).delete(&intent_path);
        if let Err(error) = self.barrier.commit_surely(txn).await {
            // Where nobody knows whether it was written, a later `settle` looks again.
            if !error.may_have_landed() {
                self.give_up(&intent_path).await;
            }
            return Err(error.into());
        }
        reach("zone-committed");
        self.verified.insert(&member, before, id);
        Ok(version)
    }

    /// Writes the intent to make a master key, after undoing older ones of the same zone; answers where it is to be made.
    async fn begin(&self, zone: &str, version: u32, id: KeyId) -> Result<(Arc<Member>, String), ZoneError> {
        let member = self.maker()?;
        self.settle_all(&format!("{zone}~")).await?;
        let path = intent_path(zone, id);
        let intent = Intent { format: 1, zone: zone.to_owned(), version, id, member: Some(member.name.clone()) };
        let txn = Txn::new().check(&path, crate::storage::Expect::Absent).put(&path, intent.encode()?);
        self.barrier.commit(txn).await?;
        Ok((member, path))
    }

    /// Tries to undo at once what failed; what cannot be undone now is left to a later `settle`.
    async fn give_up(&self, path: &str) {
        let undone = async {
            let Some(entry) = self.barrier.get(path)? else { return Ok(()) };
            let intent = Intent::decode(path, entry.value.expose())?;
            self.undo(path, &intent).await
        };
        if let Err(error) = undone.await {
            tracing::warn!(%error, "a half-made master key is left on the HSM for now and removed later");
        }
    }

    fn stored(&self, zone: &str) -> Result<(ZoneRecord, Entry), ZoneError> {
        check_name(zone)?;
        let path = zone_path(zone);
        let entry = self.barrier.get(&path)?.ok_or_else(|| ZoneError::Unknown(zone.to_owned()))?;
        Ok((ZoneRecord::decode(&path, entry.value.expose())?, entry))
    }

    fn progress(&self, zone: &str) -> Result<Option<RewrapProgress>, ZoneError> {
        let path = progress_path(zone);
        self.barrier.get(&path)?.map(|entry| record::from_json(&path, entry.value.expose())).transpose()
    }
}

impl std::fmt::Debug for Zones {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Zones").field("key_label", &self.key_label).finish_non_exhaustive()
    }
}

/// Whether `name` can name a zone.
pub fn check_name(name: &str) -> Result<(), ZoneError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let good = name.len() <= MAX_NAME_LEN && name.chars().all(allowed) && name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if good { Ok(()) } else { Err(ZoneError::Name(name.to_owned())) }
}

/// Why the HSM cannot be used, in the words of `sys/seal-status`.
fn unavailable(status: &Status) -> ZoneError {
    let reason = match status {
        Status::Down { reason, .. } => reason.word(),
        Status::Starting | Status::Ready(_) => "hsm-starting",
    };
    ZoneError::HsmUnavailable { reason }
}

fn damaged(path: String, reason: &str) -> ZoneError {
    ZoneError::Record { path, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests;
