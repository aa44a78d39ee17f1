//! Making, rotating, configuring, trimming and deleting keys. Every change is one checked commit.

use std::sync::Arc;

use time::OffsetDateTime;

use super::{
    Transit,
    alg::{HMAC_KEY_BYTES, KeyType, asym::PublicKey, kdf::Kdf},
    gate::{Going, Way},
    import::HIDDEN,
    in_order::InOrder,
    objects::Making,
    protect::{Demands, Level, Material, Vault, VersionId},
    record::{KeyRecord, KeyUid, StoredKey, VersionLine, VersionRecord, auto_path, given_path, material_path, usage_path},
    store::{Change, Decision, Key, is_lost},
    usage::Usage,
};
use crate::{
    barrier::{Entry, Txn},
    core::failure::{Failure, Kind},
    crashpoint::reach,
    hsm,
    storage::Expect,
};

/// The text for every use of a key that is soft-deleted.
pub const SOFT_DELETED: &str = "refusing to use soft-deleted key";

/// What a new key shall be.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Type.
    pub kind: KeyType,
    /// Whether contexts derive the keys in use.
    pub derived: bool,
    /// Whether encryption is deterministic.
    pub convergent: bool,
    /// Whether the material may be exported.
    pub exportable: bool,
    /// Whether plaintext backups may be taken.
    pub allow_plaintext_backup: bool,
    /// Seconds between rotations, 0 for none.
    pub auto_rotate_period: i64,
    /// Level that the request names.
    pub level: Option<Level>,
    /// Bytes of an HMAC key; 0 for other types.
    pub key_size: u32,
}

impl NewKey {
    /// A key of a type with nothing allowed.
    pub fn plain(kind: KeyType) -> Self {
        Self {
            kind,
            derived: false,
            convergent: false,
            exportable: false,
            allow_plaintext_backup: false,
            auto_rotate_period: 0,
            level: None,
            key_size: 0,
        }
    }

    /// What it demands of its protection.
    pub fn demands(&self) -> Demands {
        Demands { kind: self.kind, derived: self.derived, exportable: self.exportable, backup: self.allow_plaintext_backup }
    }

    /// Refuses what the type cannot be; the texts and the status are the API's.
    fn check(&self) -> Result<(), Failure> {
        let kind = self.kind;
        let refuse = |text: String| Err(Failure::listed(Kind::Internal, text));
        if (self.derived && !kind.supports_derivation()) || (self.convergent && !kind.is_cipher() && kind != KeyType::Ed25519) {
            return refuse(format!("key derivation and convergent encryption not supported for keys of type {}", kind.name()));
        }
        if self.convergent && !kind.is_cipher() {
            return refuse(format!("convergent encryption not supported for keys of type {}", kind.name()));
        }
        let (least, most) = (HMAC_KEY_BYTES.start(), HMAC_KEY_BYTES.end());
        if kind == KeyType::Hmac && !usize::try_from(self.key_size).is_ok_and(|size| HMAC_KEY_BYTES.contains(&size)) {
            return refuse(format!("invalid key size for HMAC key, must be between {least} and {most} bytes"));
        }
        Ok(())
    }
}

/// A version that was made but not yet committed.
struct NewVersion {
    record: VersionRecord,
    level: Level,
    /// The object on the HSM, for `hsm-only`.
    making: Option<Making>,
    public_key: Option<String>,
}

/// Unix nanoseconds.
pub fn nanos(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos()).unwrap_or(i64::MAX)
}

impl Transit {
    /// The protection a key of this shape would get.
    pub fn demands(record: &KeyRecord) -> Demands {
        Demands {
            kind: record.kind,
            derived: record.derived(),
            exportable: record.exportable,
            backup: record.allow_plaintext_backup,
        }
    }

    /// Makes a key; an existing one is left as it is. Tells whether it was made.
    pub async fn create(&self, name: &str, new: &NewKey) -> Result<(Arc<Key>, bool), Failure> {
        if let Some(key) = self.store.key(name)? {
            return Ok((key, false));
        }
        new.check()?;
        let level = self.store.protection.choose(new.level, &self.mount, new.demands())?;
        self.create_at(name, new, level).await
    }

    /// Makes a key at a level that was judged already.
    pub async fn create_at(&self, name: &str, new: &NewKey, level: Level) -> Result<(Arc<Key>, bool), Failure> {
        let (key, created) = self
            .change(name, move |existing| {
                Box::pin(async move {
                    match existing {
                        Some(_) => Ok(Decision::Keep(None)),
                        None => self.first_version(name, new, level).await,
                    }
                })
            })
            .await?;
        let key = key.ok_or_else(|| Failure::unavailable("the key was deleted meanwhile"))?;
        if let Some(making) = &created {
            making.committed();
            self.reschedule(&key);
        }
        Ok((key, created.is_some()))
    }

    async fn first_version(&self, name: &str, new: &NewKey, level: Level) -> Result<Decision<Option<Committing>>, Failure> {
        let record = KeyRecord {
            key_size: new.key_size,
            kdf: new.derived.then_some(Kdf::HkdfSha256),
            convergent: new.convergent,
            convergent_version: if new.convergent { -1 } else { 0 },
            exportable: new.exportable,
            allow_plaintext_backup: new.allow_plaintext_backup,
            auto_rotate_period: new.auto_rotate_period,
            ..KeyRecord::empty(new.kind, level)
        };
        let (record, txn, committing) = self.add_version(name, record).await?;
        let txn = if new.auto_rotate_period > 0 { txn.put(auto_path(name), Vec::new()) } else { txn };
        Ok(Decision::Write(Change { record: Some(record), txn, outcome: Some(committing) }))
    }

    /// Adds a version to a key.
    pub async fn rotate(&self, name: &str) -> Result<Arc<Key>, Failure> {
        self.rotate_if(name, |_| true).await?.ok_or_else(|| Failure::invalid("key not found"))
    }

    /// Adds a version to a key when `due` says so at the moment of the commit; `None` when there is no such key.
    pub async fn rotate_if(
        &self,
        name: &str,
        due: impl Fn(&KeyRecord) -> bool + Send + Sync,
    ) -> Result<Option<Arc<Key>>, Failure> {
        let due = &due;
        let (key, committing) = self
            .change(name, move |key| {
                Box::pin(async move {
                    let Some(key) = key.filter(|key| due(&key.record)) else { return Ok(Decision::Keep(None)) };
                    if key.record.soft_deleted {
                        return Err(Failure::listed(Kind::Internal, SOFT_DELETED));
                    }
                    let mut record = key.record.clone();
                    if record.imported && !record.allow_imported_key_rotation {
                        let text = format!("imported key {name} does not allow rotation within Vault");
                        return Err(Failure::listed(Kind::Internal, text));
                    }
                    record.imported = false;
                    let (record, txn, committing) = self.add_version(name, record).await?;
                    Ok(Decision::Write(Change { record: Some(record), txn, outcome: Some(committing) }))
                })
            })
            .await?;
        if let (Some(key), Some(committing)) = (&key, &committing) {
            committing.committed();
            self.reschedule(key);
        }
        Ok(key)
    }

    /// Refuses a further version, or the private half of one, for a key at another level than the mount requires.
    pub fn check_required(&self, name: &str, record: &KeyRecord) -> Result<(), Failure> {
        // What the mount requires is for keys that clients use, and not for the one that wraps imports.
        let required = self.mount.required.filter(|_| !name.starts_with(HIDDEN));
        if let Some(required) = required.filter(|required| *required != record.level) {
            return Err(Failure::invalid(format!(
                "this mount requires protection_level {:?}, and the key has {:?}: change it with keys/{name}/config first, or make a new key",
                required.word(),
                record.level.word()
            )));
        }
        Ok(())
    }

    async fn add_version(&self, name: &str, mut record: KeyRecord) -> Result<(KeyRecord, Txn, Committing), Failure> {
        self.check_required(name, &record)?;
        let version = self.store.next_version(&record)?;
        let made = self.make_version(name, &record, version).await?;
        record.latest_version = version;
        record.versions.push(VersionLine {
            version,
            created: made.record.created,
            level: made.level,
            revision: 0,
            moved_into_hsm: None,
            public_key: made.public_key,
            public_only: false,
            certificate_chain: Vec::new(),
        });
        let id = VersionId { uid: record.uid, version };
        let txn = self.vault().put(id, made.record, Expect::Absent, Txn::new()).await?;
        let txn = Usage::first_block(txn, record.uid, version, 0)?;
        self.store.start_usage(record.uid, version);
        let txn = match &made.making {
            Some(making) => making.settle(txn),
            None => txn,
        };
        Ok((record, txn, Committing(made.making)))
    }

    async fn make_version(&self, name: &str, key: &KeyRecord, version: u32) -> Result<NewVersion, Failure> {
        let id = VersionId { uid: key.uid, version };
        let created = nanos(self.clock.now());
        let vault = self.vault();
        let level = key.level;
        let in_hsm = || key.kind.in_hsm().ok_or_else(|| Failure::internal("this key type cannot be in the HSM"));
        let public_of = |made: &hsm::NewKey| public_text(key.kind, made.public_key.as_deref());
        let (stored, making, material, public_key) = match level {
            Level::Software => {
                let (material, public_key) = Material::fresh(key.kind, key.key_size).await?;
                (StoredKey::Software, None, material, public_key)
            }
            Level::Hsm => {
                let made = vault.generate(in_hsm()?).await?;
                let public_key = public_of(&made)?;
                let missing = || Failure::internal("the HSM made a wrapped key without a wrapped key");
                (StoredKey::Hsm(made.wrapped.ok_or_else(missing)?), None, Material::hmac_only(), public_key)
            }
            Level::HsmOnly => {
                let kind = in_hsm()?;
                let making = Making::announce(self, name).await?;
                reach("token-announced");
                let public_key = public_of(&self.generate_on_token(&making, name, version, kind).await?)?;
                reach("token-key-made");
                (StoredKey::Token(making.id()), Some(making), Material::hmac_only(), public_key)
            }
        };
        let convergent_version = match (key.convergent, key.convergent_version) {
            (false, _) => 0,
            // Its callers choose the nonces, and go on doing so.
            (true, 1) => 1,
            (true, _) => 3,
        };
        let record = vault.store(id, created, stored, material, convergent_version).await?;
        Ok(NewVersion { record, level, making, public_key })
    }

    async fn generate_on_token(
        &self,
        making: &Making,
        name: &str,
        version: u32,
        kind: hsm::KeyKind,
    ) -> Result<hsm::NewKey, Failure> {
        let label = self.object_label(name, version);
        Ok(self.store.protection.hsm()?.generate_on_token(&label, making.id(), kind).await?)
    }

    /// The part that wraps and opens material, for this mount's zone.
    pub fn vault(&self) -> Vault<'_> {
        Vault { protection: &self.store.protection, zone: &self.mount.zone }
    }

    /// Deletes a key for good; the error is the reason alone.
    pub async fn delete(&self, name: &str) -> Result<Result<(), &'static str>, Failure> {
        let (_, outcome) = self
            .change(name, move |key| {
                Box::pin(async move {
                    let Some(key) = key else { return Ok(Decision::Keep(Err("could not delete key; not found"))) };
                    if !key.record.deletion_allowed {
                        return Ok(Decision::Keep(Err("deletion is not allowed for this key")));
                    }
                    let given = given_path(&key.record.uid.to_string());
                    let (mut txn, mut objects) = (Txn::new().delete(auto_path(name)).delete(given), Vec::new());
                    for line in &key.record.versions {
                        txn = self.drop_version(name, key.record.uid, line, txn, &mut objects)?;
                    }
                    Ok(Decision::Write(Change { record: None, txn, outcome: Ok(objects) }))
                })
            })
            .await?;
        let objects = match outcome {
            Ok(objects) => objects,
            Err(reason) => return Ok(Err(reason)),
        };
        self.store.schedule.lock().remove(name);
        self.destroy(objects);
        Ok(Ok(()))
    }

    /// Deletes all versions below `min_available`.
    pub async fn trim(&self, name: &str, min_available: i64) -> Result<Option<Arc<Key>>, Failure> {
        let (key, objects) = self
            .change(name, move |key| {
                Box::pin(async move {
                    let Some(key) = key else { return Ok(Decision::Keep(Vec::new())) };
                    let mut record = key.record.clone();
                    let bound = checked_trim(&record, min_available)?;
                    let (mut txn, mut objects) = (Txn::new(), Vec::new());
                    for line in record.versions.iter().filter(|line| line.version < bound) {
                        txn = self.drop_version(name, record.uid, line, txn, &mut objects)?;
                    }
                    record.versions.retain(|line| line.version >= bound);
                    record.min_available_version = bound;
                    Ok(Decision::Write(Change { record: Some(record), txn, outcome: objects }))
                })
            })
            .await?;
        self.destroy(objects);
        Ok(key)
    }

    /// Adds to `txn` what takes a version's material away. An object on the HSM is added to `objects`, which the caller
    /// has [destroyed](Transit::destroy) after the commit. A record that is damaged or lost does not keep its key from going away.
    pub fn drop_version(
        &self,
        name: &str,
        uid: KeyUid,
        line: &VersionLine,
        txn: Txn,
        objects: &mut Vec<hsm::KeyId>,
    ) -> Result<Txn, Failure> {
        let version = line.version;
        let txn = txn.delete(material_path(uid, version)).delete(usage_path(uid, version));
        match self.store.version_record(name, uid, version) {
            Ok((VersionRecord { key: StoredKey::Token(id), .. }, _)) => {
                objects.push(id);
                self.store.doom(id, name, txn)
            }
            Ok(_) => Ok(txn),
            Err(failure) if is_lost(&failure) => {
                tracing::warn!(key = name, version, ?failure, "a key version is deleted whose record is damaged or lost");
                if line.level == Level::HsmOnly {
                    let label = self.object_label(name, version);
                    tracing::warn!(%label, "an object on the HSM cannot be told any more and stays; see sos hsm orphans");
                }
                Ok(txn)
            }
            Err(failure) => Err(failure),
        }
    }

    fn object_label(&self, name: &str, version: u32) -> String {
        let cluster = self.store.protection.zones.as_ref().map(|zones| zones.key_label()).unwrap_or_default();
        format!("sos/{cluster}/transit/{name}/v{version}")
    }

    /// Adds to `txn` the rewriting of every version of `record` at another level. Ends between two versions when nobody waits for it
    /// any longer, or when it cannot end in time.
    pub async fn change_level(
        &self,
        name: &str,
        record: &mut KeyRecord,
        to: Level,
        mut txn: Txn,
        going: &Going,
    ) -> Result<Txn, Failure> {
        self.check_level_change(record, to)?;
        let now = nanos(self.clock.now());
        // No secret to move; its level says what a private half would get.
        record.versions.iter_mut().filter(|line| line.public_only).for_each(|line| line.level = to);
        let before = record.clone();
        let of = &before;
        let lines: Vec<&VersionLine> = of.versions.iter().filter(|line| line.level != to).collect();
        let mut moving = self.stores.gate.move_versions(lines.len(), Way::In, going);
        let mut under_way = InOrder::of(lines, |line| async move {
            let _turn = self.stores.gate.wrap(going).await?;
            self.at_level(name, of, line, to).await
        });
        while let Some(moved) = under_way.next().await {
            let (id, changed, entry) = moved?;
            moving.moved()?;
            txn = self.vault().put(id, changed, Entry::unchanged(Some(&entry)), txn).await?;
            if let Some(line) = record.versions.iter_mut().find(|line| line.version == id.version) {
                line.level = to;
                line.revision += 1;
                line.moved_into_hsm = (to == Level::Hsm).then_some(now);
            }
        }
        record.level = to;
        Ok(txn)
    }

    /// A version at another level, and its record as it is.
    async fn at_level(
        &self,
        name: &str,
        record: &KeyRecord,
        line: &VersionLine,
        to: Level,
    ) -> Result<(VersionId, VersionRecord, Entry), Failure> {
        let (vault, id) = (self.vault(), VersionId { uid: record.uid, version: line.version });
        let (stored, entry) = self.store.version_record(name, record.uid, line.version)?;
        let mut material = vault.bring_out(id, &stored).await?;
        let key = match (to, record.kind.in_hsm()) {
            (Level::Hsm, Some(kind)) => {
                let key = std::mem::take(&mut material.key);
                StoredKey::Hsm(vault.wrap_into_hsm(kind, &key).await?)
            }
            _ => StoredKey::Software,
        };
        let changed = vault.store(id, line.created, key, material, stored.convergent_version).await?;
        Ok((id, changed, entry))
    }

    fn check_level_change(&self, record: &KeyRecord, to: Level) -> Result<(), Failure> {
        if let Some(required) = self.mount.required
            && to != required
        {
            return Err(Failure::invalid(format!("this mount requires protection_level {:?}", required.word())));
        }
        let holds = |level: Level| record.versions.iter().any(|line| line.level == level);
        match to {
            Level::HsmOnly => {
                return Err(Failure::invalid(
                    "only new keys can have protection_level \"hsm-only\": this key's material has been outside the HSM",
                ));
            }
            _ if record.level == Level::HsmOnly || holds(Level::HsmOnly) => {
                return Err(Failure::invalid("the key has protection_level \"hsm-only\" and never leaves its HSM"));
            }
            Level::Software if holds(Level::Hsm) && !record.exportable => {
                return Err(Failure::invalid(
                    "only exportable keys can be lowered from protection_level \"hsm\" to \"software\"",
                ));
            }
            Level::Hsm | Level::Software => {}
        }
        match self.store.protection.objection(to, &self.mount.zone, Self::demands(record))? {
            Some(reason) => Err(Failure::invalid(reason)),
            None => Ok(()),
        }
    }
}

/// The text form of a public key that the HSM gave.
fn public_text(kind: KeyType, der: Option<&[u8]>) -> Result<Option<String>, Failure> {
    match der {
        Some(der) if kind.is_asymmetric() => {
            let text = PublicKey::from_der(kind, der).and_then(|key| key.to_text());
            text.map(Some).map_err(Failure::internal)
        }
        None if kind.is_asymmetric() => Err(Failure::internal("the HSM made a key without its public half")),
        _ => Ok(None),
    }
}

/// What is still to be said about an object on the HSM once its commit held.
pub struct Committing(Option<Making>);

impl Committing {
    fn committed(&self) {
        if let Some(making) = &self.0 {
            making.committed();
        }
    }
}

fn checked_trim(record: &KeyRecord, bound: i64) -> Result<u32, Failure> {
    let refuse = |text: &str| Err(Failure::invalid(text));
    if bound < i64::from(record.min_available_version) {
        return refuse("minimum available version cannot be decremented");
    }
    if record.min_encryption_version == 0 {
        return refuse("minimum available version cannot be set when minimum encryption version is not set");
    }
    if bound > i64::from(record.min_encryption_version) {
        return refuse("minimum available version cannot be greater than minmum encryption version");
    }
    if bound > i64::from(record.min_decryption_version) {
        return refuse("minimum available version cannot be greater than minimum decryption version");
    }
    match u32::try_from(bound) {
        Ok(bound) if bound > 0 => Ok(bound),
        _ => refuse("minimum available version should be positive"),
    }
}
