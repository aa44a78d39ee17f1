//! Where key material lives: levels, zones, and making, wrapping and opening a version's material.
//!
//! This file is the only one of the engine in which material is wrapped or unwrapped. The zone's master key protects
//! what is stored; in tests without zones the barrier alone does.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{
    alg::{
        KeyType,
        asym::{self, PrivateKey},
    },
    record::{FORMAT, KeyUid, Secrets, StoredKey, VersionRecord, encode, material_path},
};
use crate::{
    barrier::{Stamp, Txn},
    config,
    core::failure::Failure,
    engines::Services,
    hsm::{self, Hsm, HsmError, KeyId, KeyKind, Status, TokenFacts, WrappedKey},
    secret::SecretBytes,
    stack,
    storage::Expect,
    zones::{DEFAULT_ZONE, Place, WrappedMaterial, Zones},
};

/// How a key's material is protected (`protection_level`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// In this process while in use, wrapped by the zone's master key while stored.
    Software,
    /// Wrapped by the zone's master key, used only inside the HSM.
    #[default]
    Hsm,
    /// A non-extractable object on the HSM that is never wrapped.
    HsmOnly,
}

impl Level {
    /// All levels, the best kept first.
    pub const ALL: [Self; 3] = [Self::HsmOnly, Self::Hsm, Self::Software];

    /// The level that a client or a configuration names.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.word() == name)
    }

    /// The word on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Level::Software => "software",
            Level::Hsm => "hsm",
            Level::HsmOnly => "hsm-only",
        }
    }
}

/// What Transit needs of zones. Every operation is under the zone's newest master key unless the record says otherwise.
#[async_trait]
pub trait ZoneKeys: Send + Sync + 'static {
    /// Whether a zone of this name exists.
    fn exists(&self, zone: &str) -> Result<bool, Failure>;

    /// What names this cluster's objects on the HSM where new ones are made.
    fn key_label(&self) -> String;

    /// Whether the zone's newest master key is in the HSM.
    fn in_hsm(&self, zone: &str) -> Result<bool, Failure>;

    /// The newest version of the zone's master key; a commit with the stamp holds only while it is the newest.
    fn newest(&self, zone: &str) -> Result<(KeyId, Stamp), Failure>;

    /// Wraps software material; the same `aad` is needed to open it.
    async fn wrap(&self, zone: &str, aad: &[u8], material: &SecretBytes) -> Result<WrappedMaterial, Failure>;

    /// Opens software material.
    async fn unwrap(&self, zone: &str, aad: &[u8], material: &WrappedMaterial) -> Result<SecretBytes, Failure>;

    /// The same material under the newest master key.
    async fn rewrap(&self, zone: &str, material: &WrappedMaterial) -> Result<WrappedMaterial, Failure>;

    /// Makes a key inside the HSM that leaves it only wrapped.
    async fn generate(&self, zone: &str, kind: KeyKind) -> Result<hsm::NewKey, Failure>;

    /// Wraps material so that it is used inside the HSM.
    async fn wrap_key(&self, zone: &str, kind: KeyKind, material: &SecretBytes) -> Result<WrappedKey, Failure>;

    /// The same HSM key under the newest master key.
    async fn rewrap_key(&self, zone: &str, key: &WrappedKey) -> Result<WrappedKey, Failure>;
}

#[async_trait]
impl ZoneKeys for Zones {
    fn exists(&self, zone: &str) -> Result<bool, Failure> {
        Ok(Zones::exists(self, zone)?)
    }

    fn key_label(&self) -> String {
        Zones::key_label(self)
    }

    fn in_hsm(&self, zone: &str) -> Result<bool, Failure> {
        Ok(self.current(zone)?.place == Place::Hsm)
    }

    fn newest(&self, zone: &str) -> Result<(KeyId, Stamp), Failure> {
        let (master, stamp) = self.current_stamped(zone)?;
        Ok((master.id, stamp))
    }

    async fn wrap(&self, zone: &str, aad: &[u8], material: &SecretBytes) -> Result<WrappedMaterial, Failure> {
        Ok(Zones::wrap(self, &self.current(zone)?, aad, material).await?)
    }

    async fn unwrap(&self, zone: &str, aad: &[u8], material: &WrappedMaterial) -> Result<SecretBytes, Failure> {
        Ok(Zones::unwrap(self, zone, material, aad).await?)
    }

    async fn rewrap(&self, zone: &str, material: &WrappedMaterial) -> Result<WrappedMaterial, Failure> {
        Ok(self.rewrap_material(&self.current(zone)?, material).await?)
    }

    async fn generate(&self, zone: &str, kind: KeyKind) -> Result<hsm::NewKey, Failure> {
        Ok(self.generate_wrapped(&self.current(zone)?, kind).await?)
    }

    async fn wrap_key(&self, zone: &str, kind: KeyKind, material: &SecretBytes) -> Result<WrappedKey, Failure> {
        Ok(Zones::wrap_key(self, &self.current(zone)?, kind, material).await?)
    }

    async fn rewrap_key(&self, zone: &str, key: &WrappedKey) -> Result<WrappedKey, Failure> {
        Ok(Zones::rewrap_key(self, &self.current(zone)?, key).await?)
    }
}

/// What protects keys on this server. The default is a server without an HSM.
#[derive(Clone, Default)]
pub struct Protection {
    /// The HSM, where one is configured.
    pub hsm: Option<Arc<dyn Hsm>>,
    /// Its zones; present together with `hsm`.
    pub zones: Option<Arc<dyn ZoneKeys>>,
    /// Level of keys whose request and mount name none.
    pub default_level: Level,
}

impl From<config::Protection> for Level {
    fn from(named: config::Protection) -> Self {
        match named {
            config::Protection::Hsm => Level::Hsm,
            config::Protection::HsmOnly => Level::HsmOnly,
            config::Protection::Software => Level::Software,
        }
    }
}

impl From<&Services> for Protection {
    fn from(services: &Services) -> Self {
        Self {
            hsm: services.hsm.clone(),
            zones: Some(Arc::clone(&services.zones) as Arc<dyn ZoneKeys>),
            default_level: services.default_protection.map_or(Level::default(), Level::from),
        }
    }
}

/// What a mount says about zone and levels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountProtection {
    /// The zone.
    pub zone: String,
    /// Level of keys whose request names none.
    pub default_level: Level,
    /// Level that every new key must have.
    pub required: Option<Level>,
}

/// The zone that a mount's options name.
pub fn zone_of(options: &BTreeMap<String, String>) -> &str {
    options.get("zone").map_or(DEFAULT_ZONE, String::as_str)
}

impl MountProtection {
    /// Reads the mount's options `zone`, `protection` and `protection_required`.
    pub fn from_options(options: &BTreeMap<String, String>, protection: &Protection) -> Result<Self, Failure> {
        let zone = zone_of(options);
        let known = match &protection.zones {
            Some(zones) => zones.exists(zone)?,
            None => zone == DEFAULT_ZONE,
        };
        if !known {
            return Err(Failure::invalid(format!("there is no zone {zone:?}")));
        }
        let level =
            |name: &str| options.get(name).filter(|text| !text.is_empty()).map(|text| parse_level(name, text)).transpose();
        let default_level = level("protection")?;
        let required = match options.get("protection_required").map(String::as_str) {
            None | Some("" | "false" | "0") => None,
            Some("true" | "1") => Some(default_level.unwrap_or(protection.default_level)),
            Some(text) => Some(parse_level("protection_required", text)?),
        };
        let default_level = required.or(default_level).unwrap_or(protection.default_level);
        Ok(Self { zone: zone.to_owned(), default_level, required })
    }
}

/// Reads a level; the error names where it was given.
pub fn parse_level(field: &str, text: &str) -> Result<Level, Failure> {
    Level::named(text)
        .ok_or_else(|| Failure::invalid(format!("unknown {field} {text:?}; use \"hsm\", \"hsm-only\" or \"software\"")))
}

/// What a key to be made demands of its protection.
#[derive(Clone, Copy, Debug)]
pub struct Demands {
    /// Its type.
    pub kind: KeyType,
    /// Whether contexts derive the keys in use.
    pub derived: bool,
    /// Whether its material may be exported.
    pub exportable: bool,
    /// Whether plaintext backups may be taken.
    pub backup: bool,
}

impl Protection {
    /// The HSM for one operation, or why there is none.
    pub fn hsm(&self) -> Result<&Arc<dyn Hsm>, Failure> {
        let used = self.hsm.as_ref().filter(|hsm| hsm.in_use());
        used.ok_or_else(|| Failure::unavailable("this key needs an HSM, and the server runs without one"))
    }

    /// The token's facts: `None` without an HSM, an error while the HSM cannot be used.
    pub fn facts(&self) -> Result<Option<Arc<TokenFacts>>, Failure> {
        let Some(hsm) = self.hsm.as_ref().filter(|hsm| hsm.in_use()) else { return Ok(None) };
        match hsm.status() {
            Status::Ready(facts) => Ok(Some(facts)),
            Status::Starting => Err(Failure::unavailable("the HSM is not available: it is starting")),
            Status::Down { reason, detail } => Err(HsmError::Unavailable { reason, detail }.into()),
        }
    }

    /// The level of a new key: what the request names, else the mount's, else the configuration's, as far as HSM and
    /// type allow. What was asked for by name is never replaced by less.
    pub fn choose(&self, asked: Option<Level>, mount: &MountProtection, demands: Demands) -> Result<Level, Failure> {
        if let (Some(asked), Some(required)) = (asked, mount.required)
            && asked != required
        {
            return Err(Failure::invalid(format!(
                "this mount requires protection_level {:?}, not {:?}",
                required.word(),
                asked.word()
            )));
        }
        let named = asked.or(mount.required);
        if !self.hsm.as_ref().is_some_and(|hsm| hsm.in_use()) {
            return match named {
                None | Some(Level::Software) => Ok(Level::Software),
                Some(level) => Err(Failure::invalid(format!(
                    "protection_level {:?} needs an HSM, and the server runs without one",
                    level.word()
                ))),
            };
        }
        let level = named.unwrap_or(mount.default_level);
        match self.objection(level, &mount.zone, demands)? {
            None => Ok(level),
            Some(_) if named.is_none() && level == Level::Hsm => Ok(Level::Software),
            Some(reason) => Err(Failure::invalid(reason)),
        }
    }

    /// The level of a key whose material comes from outside.
    pub fn choose_for_given(&self, asked: Option<Level>, mount: &MountProtection, demands: Demands) -> Result<Level, Failure> {
        let outside = || {
            Failure::invalid(
                "a key from outside cannot have protection_level \"hsm-only\": its material has been outside the HSM",
            )
        };
        // Said before what else would keep a key from this level, which could be changed in vain.
        if asked == Some(Level::HsmOnly) {
            return Err(outside());
        }
        match self.choose(asked, mount, demands)? {
            Level::HsmOnly => Err(outside()),
            level => Ok(level),
        }
    }

    /// Why a key cannot have a level, if it cannot.
    pub fn objection(&self, level: Level, zone: &str, demands: Demands) -> Result<Option<String>, Failure> {
        let name = demands.kind.name();
        let word = level.word();
        if level == Level::Software {
            return Ok(None);
        }
        if demands.derived {
            return Ok(Some(format!(
                "derived keys cannot have protection_level {word:?}: derivation needs the key material outside the HSM"
            )));
        }
        if level == Level::HsmOnly && demands.exportable {
            return Ok(Some("hsm-only keys cannot be exportable: the key never leaves the HSM".to_owned()));
        }
        if level == Level::HsmOnly && demands.backup {
            return Ok(Some("hsm-only keys cannot allow plaintext backups: the key never leaves the HSM".to_owned()));
        }
        let Some(kind) = demands.kind.in_hsm() else {
            return Ok(Some(format!("{name} keys cannot have protection_level {word:?}: HSMs cannot do all of its operations")));
        };
        let Some(facts) = self.facts()? else {
            return Ok(Some(format!("protection_level {word:?} needs an HSM, and the server runs without one")));
        };
        if level == Level::Hsm
            && let Some(zones) = &self.zones
            && !zones.in_hsm(zone)?
        {
            return Ok(Some(format!("protection_level \"hsm\" needs the master key of zone {zone:?} in the HSM")));
        }
        let support = facts.support.iter().find(|support| support.kind == kind);
        let works = support.is_some_and(|support| match level {
            Level::HsmOnly => support.token,
            _ => support.wrapped,
        });
        if works {
            return Ok(None);
        }
        let reason = support.map_or("it is not supported", |support| support.reason.as_str());
        Ok(Some(format!("{name} keys cannot have protection_level {word:?} on this HSM: {reason}")))
    }
}

/// The secrets of a version in the open.
pub struct Material {
    /// The key; empty where it is in the HSM.
    pub key: SecretBytes,
    /// The HMAC key.
    pub hmac_key: SecretBytes,
}

impl Material {
    /// Fresh material for a type, with the text of the public half where there is one.
    pub async fn fresh(kind: KeyType, key_size: u32) -> Result<(Self, Option<String>), Failure> {
        if kind == KeyType::Hmac {
            let key = SecretBytes::random(usize::try_from(key_size).map_err(Failure::internal)?);
            return Ok((Self { hmac_key: key.duplicate(), key }, None));
        }
        let hmac_key = SecretBytes::random(32);
        if kind.is_cipher() {
            return Ok((Self { key: SecretBytes::random(kind.key_len()), hmac_key }, None));
        }
        // Finding primes takes up to seconds: not on the threads that serve requests.
        let made = tokio::task::spawn_blocking(move || {
            let made = PrivateKey::generate(kind).and_then(|key| Ok((key.to_stored()?, key.public()?.to_text()?)));
            stack::overwrite();
            made
        });
        let (key, public) = made.await.map_err(Failure::internal)?.map_err(Failure::internal)?;
        Ok((Self { key, hmac_key }, Some(public)))
    }

    /// A second copy (a visible call on purpose: there is no `Clone`).
    pub fn duplicate(&self) -> Self {
        Self { key: self.key.duplicate(), hmac_key: self.hmac_key.duplicate() }
    }

    /// Fresh material of a version whose key is in the HSM.
    pub fn hmac_only() -> Self {
        Self { key: SecretBytes::default(), hmac_key: SecretBytes::random(32) }
    }

    /// Length of the key (two bytes, big endian), key, HMAC key.
    fn join(&self) -> Result<SecretBytes, Failure> {
        let len = u16::try_from(self.key.len()).map_err(Failure::internal)?;
        let mut bytes = Vec::with_capacity(2 + self.key.len() + self.hmac_key.len());
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(self.key.expose());
        bytes.extend_from_slice(self.hmac_key.expose());
        Ok(SecretBytes::new(bytes))
    }

    fn split(joined: &SecretBytes) -> Option<Self> {
        let (len, rest) = joined.expose().split_first_chunk::<2>()?;
        let (key, hmac_key) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
        Some(Self { key: SecretBytes::new(key.to_vec()), hmac_key: SecretBytes::new(hmac_key.to_vec()) })
    }
}

/// The stored form of a private key as the HSM takes it: PKCS#8 for all but AES keys.
fn to_hsm_form(kind: KeyKind, material: &SecretBytes) -> Result<SecretBytes, Failure> {
    match asym::of_hsm(kind).filter(|kind| kind.is_asymmetric()) {
        Some(kind) => PrivateKey::from_stored(kind, material.expose()).and_then(|key| key.to_pkcs8()).map_err(Failure::internal),
        None => Ok(material.duplicate()),
    }
}

/// The opposite of [`to_hsm_form`].
fn from_hsm_form(kind: KeyKind, material: SecretBytes) -> Result<SecretBytes, Failure> {
    match asym::of_hsm(kind).filter(|kind| kind.is_asymmetric()) {
        Some(kind) => PrivateKey::from_pkcs8(kind, material.expose()).and_then(|key| key.to_stored()).map_err(Failure::internal),
        None => Ok(material),
    }
}

/// Names of a version, bound into what is stored.
#[derive(Clone, Copy, Debug)]
pub struct VersionId {
    /// The key.
    pub uid: KeyUid,
    /// The version.
    pub version: u32,
}

impl VersionId {
    fn aad(self) -> Vec<u8> {
        format!("transit/{}/{}", self.uid, self.version).into_bytes()
    }
}

/// Makes records of versions and opens them.
pub struct Vault<'a> {
    /// The server's protection.
    pub protection: &'a Protection,
    /// The mount's zone.
    pub zone: &'a str,
}

impl Vault<'_> {
    /// The record of a version whose key is where `key` says and whose other secrets are `material`.
    pub async fn store(
        &self,
        id: VersionId,
        created: i64,
        key: StoredKey,
        material: Material,
        convergent_version: u8,
    ) -> Result<VersionRecord, Failure> {
        let joined = material.join()?;
        let secrets = match &self.protection.zones {
            None => Secrets::Barrier(joined),
            Some(zones) => Secrets::Zone(zones.wrap(self.zone, &id.aad(), &joined).await?),
        };
        Ok(VersionRecord { format: FORMAT, version: id.version, created, key, secrets, convergent_version })
    }

    /// Adds to `txn` the writing of a version's record, which must be as `expect` says. What is in it was wrapped some time
    /// ago, in the queue of an HSM perhaps, and the zone's master key may have been rotated since: it is moved to the newest one,
    /// and the commit conflicts when there is a newer one by then. So whatever is committed after a rotation is under the new
    /// master key, and the pass that re-wraps sees all the rest.
    pub async fn put(&self, id: VersionId, mut record: VersionRecord, expect: Expect, txn: Txn) -> Result<Txn, Failure> {
        let txn = match &self.protection.zones {
            Some(zones) => {
                let (newest, stamp) = zones.newest(self.zone)?;
                self.move_under(newest, &mut record).await?;
                txn.while_as(stamp)
            }
            None => txn,
        };
        let path = material_path(id.uid, id.version);
        Ok(txn.check(path.clone(), expect).put_secret(path, encode(&record)?))
    }

    /// Moves what is wrapped by other master keys than `newest`, the zone's newest; tells whether there was anything.
    pub async fn move_under(&self, newest: KeyId, record: &mut VersionRecord) -> Result<bool, Failure> {
        let mut moved = false;
        if let StoredKey::Hsm(wrapped) = &record.key
            && wrapped.wrapped_by != newest
        {
            record.key = StoredKey::Hsm(self.zones()?.rewrap_key(self.zone, wrapped).await?);
            moved = true;
        }
        if let Secrets::Zone(material) = &record.secrets
            && material.data_key.wrapped_by != newest
        {
            record.secrets = Secrets::Zone(self.zones()?.rewrap(self.zone, material).await?);
            moved = true;
        }
        Ok(moved)
    }

    /// The secrets of a version that may be in this process.
    pub async fn open(&self, id: VersionId, record: &VersionRecord) -> Result<Material, Failure> {
        let corrupt = || Failure::internal(format!("the material of version {} is corrupt", id.version));
        match &record.secrets {
            Secrets::Barrier(joined) => Material::split(joined).ok_or_else(corrupt),
            Secrets::Zone(wrapped) => {
                let joined = self.zones()?.unwrap(self.zone, &id.aad(), wrapped).await?;
                Material::split(&joined).ok_or_else(corrupt)
            }
        }
    }

    /// All material of a version, whatever its level: for export, backup and change of level, which alone bring a key
    /// out of the HSM.
    pub async fn bring_out(&self, id: VersionId, record: &VersionRecord) -> Result<Material, Failure> {
        let mut material = self.open(id, record).await?;
        match &record.key {
            StoredKey::Software => {}
            StoredKey::Hsm(wrapped) => {
                let brought = self.protection.hsm()?.unwrap_material(wrapped).await?;
                material.key = from_hsm_form(wrapped.kind, brought)?;
            }
            StoredKey::Token(_) => {
                return Err(Failure::invalid("the key has protection_level \"hsm-only\" and never leaves its HSM"));
            }
        }
        Ok(material)
    }

    /// Makes a key inside the HSM that leaves it only wrapped.
    pub async fn generate(&self, kind: KeyKind) -> Result<hsm::NewKey, Failure> {
        self.zones()?.generate(self.zone, kind).await
    }

    /// Wraps material that was in software so that it is used inside the HSM from now on.
    pub async fn wrap_into_hsm(&self, kind: KeyKind, material: &SecretBytes) -> Result<WrappedKey, Failure> {
        self.zones()?.wrap_key(self.zone, kind, &to_hsm_form(kind, material)?).await
    }

    fn zones(&self) -> Result<&Arc<dyn ZoneKeys>, Failure> {
        let none = || Failure::unavailable("this key belongs to a zone, and the server runs without zones");
        self.protection.zones.as_ref().ok_or_else(none)
    }
}
