//! Versions whose material comes from outside: imports and restores; and bringing material out, for exports and backups.

use super::{
    Transit,
    alg::KeyType,
    gate::{Going, Way},
    in_order::InOrder,
    lifecycle::nanos,
    protect::{Level, Material, VersionId},
    record::{FORMAT, KeyRecord, KeyUid, StoredKey, VersionLine, VersionRecord, usage_path},
    store::{Key, is_lost},
    usage::{self, Usage},
};
use crate::{
    barrier::{Entry, Txn},
    core::failure::Failure,
    secret::SecretBytes,
    storage::Expect,
};

/// A version from outside.
pub struct Given {
    /// Unix nanoseconds.
    pub created: i64,
    /// Its secrets; the key is empty where only the public half is known.
    pub material: Material,
    /// The public half in text form.
    pub public_key: Option<String>,
    /// How nonces of a convergent key are made; 0 for other keys.
    pub convergent_version: u8,
    /// Certificates, DER in base64.
    pub certificate_chain: Vec<String>,
    /// How often it may have encrypted before, as far as that is known.
    pub encryptions: u64,
}

/// A version that is given out.
pub struct Brought {
    /// Its number.
    pub version: u32,
    /// How nonces of a convergent key are made; 0 for other keys.
    pub convergent_version: u8,
    /// Its secrets.
    pub material: Material,
}

impl KeyRecord {
    /// A key without versions, to which nothing is allowed.
    pub fn empty(kind: KeyType, level: Level) -> Self {
        Self {
            format: FORMAT,
            uid: KeyUid::random(),
            kind,
            key_size: 0,
            kdf: None,
            convergent: false,
            convergent_version: 0,
            exportable: false,
            allow_plaintext_backup: false,
            deletion_allowed: false,
            soft_deleted: false,
            min_decryption_version: 1,
            min_encryption_version: 0,
            min_available_version: 0,
            latest_version: 0,
            auto_rotate_period: 0,
            imported: false,
            allow_imported_key_rotation: false,
            level,
            backup: None,
            restore: None,
            versions: Vec::new(),
        }
    }
}

impl Transit {
    /// The level of a key from outside.
    pub fn level_of_given(&self, asked: Option<Level>, record: &KeyRecord) -> Result<Level, Failure> {
        self.store.protection.choose_for_given(asked, &self.mount, Self::demands(record))
    }

    /// Adds a version to a key; versions must come in ascending order.
    pub async fn add_given(&self, record: &mut KeyRecord, version: u32, given: &Given, txn: Txn) -> Result<Txn, Failure> {
        let (stored, level) = self.store_given(record, version, given).await?;
        self.place_given(record, given, stored, level, given.encryptions, txn).await
    }

    /// Adds the versions of a restored key, in their order. `old` is the key that it takes the place of.
    pub async fn add_all_given(
        &self,
        record: &mut KeyRecord,
        versions: &[(u32, Given)],
        old: Option<&Key>,
        mut txn: Txn,
        going: &Going,
    ) -> Result<Txn, Failure> {
        let template = record.clone();
        let template = &template;
        let mut moving = self.stores.gate.move_versions(versions.len(), Way::In, going);
        let mut wrapping = InOrder::of(versions, |(version, given)| async move {
            let _turn = self.stores.gate.wrap(going).await?;
            let before = self.used_before(old, *version, given).await?;
            let (stored, level) = self.store_given(template, *version, given).await?;
            Ok::<_, Failure>((given, stored, level, before))
        });
        while let Some(wrapped) = wrapping.next().await {
            let (given, stored, level, (encryptions, count)) = wrapped?;
            moving.moved()?;
            if let Some((path, expect)) = count {
                txn = txn.check(path, expect);
            }
            txn = self.place_given(record, given, stored, level, encryptions, txn).await?;
        }
        Ok(txn)
    }

    /// How often the material of a version may have encrypted before it is restored: as often as its backup says, or as the version
    /// that it replaces was used, where that is of the same material and was used more. The count of the replaced version must then
    /// still be as it was read.
    async fn used_before(
        &self,
        old: Option<&Key>,
        version: u32,
        given: &Given,
    ) -> Result<(u64, Option<(String, Expect)>), Failure> {
        let Some(old) = old.filter(|old| old.record.is_counted() && old.record.line(version).is_some()) else {
            return Ok((given.encryptions, None));
        };
        let uid = old.record.uid;
        let (used, expect) = match usage::stored(&self.store.view, uid, version) {
            Ok((used, entry)) => (used, Some((usage_path(uid, version), Entry::unchanged(entry.as_ref())))),
            Err(failure) if is_lost(&failure) => {
                tracing::warn!(key = %old.name, version, ?failure, "the count of a version is damaged: the restored one counts as used up");
                (usage::LIMIT, None)
            }
            Err(failure) => return Err(failure),
        };
        match used > given.encryptions && self.is_of_same_material(old, version, given).await {
            true => Ok((used, expect)),
            false => Ok((given.encryptions, expect)),
        }
    }

    /// Whether a version from outside is the same as one that is here; yes where that cannot be found out.
    ///
    /// Each version has an HMAC key of its own, random and outside the HSM at every level: it tells without bringing the key out.
    async fn is_of_same_material(&self, old: &Key, version: u32, given: &Given) -> bool {
        let id = VersionId { uid: old.record.uid, version };
        let Ok((stored, _)) = self.store.version_record(&old.name, id.uid, version) else { return true };
        let Ok(material) = self.vault().open(id, &stored).await else { return true };
        let same = |ours: &SecretBytes, theirs: &SecretBytes| (!ours.is_empty()).then(|| ours.same_as(theirs.expose()));
        match (same(&material.hmac_key, &given.material.hmac_key), same(&material.key, &given.material.key)) {
            (None, None) => true,
            (hmac_key, key) => hmac_key == Some(true) || key == Some(true),
        }
    }

    async fn place_given(
        &self,
        record: &mut KeyRecord,
        given: &Given,
        stored: VersionRecord,
        level: Level,
        encryptions: u64,
        txn: Txn,
    ) -> Result<Txn, Failure> {
        let version = stored.version;
        record.versions.push(VersionLine {
            version,
            created: given.created,
            level,
            revision: 0,
            moved_into_hsm: self.moved(level, given),
            public_key: given.public_key.clone(),
            public_only: record.kind.is_asymmetric() && given.material.key.is_empty(),
            certificate_chain: given.certificate_chain.clone(),
        });
        let id = VersionId { uid: record.uid, version };
        let txn = self.vault().put(id, stored, Expect::Absent, txn).await?;
        Usage::first_block(txn, record.uid, version, encryptions)
    }

    /// When the material of a version from outside came into the HSM, if it did.
    pub fn moved(&self, level: Level, given: &Given) -> Option<i64> {
        (level == Level::Hsm && !given.material.key.is_empty()).then(|| nanos(self.clock.now()))
    }

    /// The record of a version, and its level.
    pub async fn store_given(&self, record: &KeyRecord, version: u32, given: &Given) -> Result<(VersionRecord, Level), Failure> {
        let id = VersionId { uid: record.uid, version };
        let vault = self.vault();
        let mut material = given.material.duplicate();
        let (key, level) = match (record.level, record.kind.in_hsm()) {
            (Level::Hsm, Some(kind)) if !material.key.is_empty() => {
                let key = std::mem::take(&mut material.key);
                (StoredKey::Hsm(vault.wrap_into_hsm(kind, &key).await?), Level::Hsm)
            }
            // A public half alone is no secret: wherever it lies, its level says what its private half would get.
            (Level::Hsm, Some(_)) => (StoredKey::Software, Level::Hsm),
            _ => (StoredKey::Software, Level::Software),
        };
        let stored = vault.store(id, given.created, key, material, given.convergent_version).await?;
        Ok((stored, level))
    }

    /// Refuses to give out what never leaves its HSM, before it is asked what the key allows: `exportable` cannot be had
    /// for such a key.
    pub fn check_leaves(record: &KeyRecord) -> Result<(), Failure> {
        let stays = record.level == Level::HsmOnly || record.versions.iter().any(|line| line.level == Level::HsmOnly);
        if stays {
            return Err(Failure::invalid(
                "the key has protection_level \"hsm-only\": it never leaves its HSM, so it cannot be exported or backed up",
            ));
        }
        Ok(())
    }

    /// All material of some versions of a key, whatever its level, in their order: for exports and backups alone. Ends between two
    /// versions when nobody waits for it any longer, or when it cannot end in time.
    pub async fn bring_all_out(&self, key: &Key, lines: &[&VersionLine], going: &Going) -> Result<Vec<Brought>, Failure> {
        let mut moving = self.stores.gate.move_versions(lines.len(), Way::Out, going);
        let mut under_way = InOrder::of(lines, |line| async move {
            let (uid, version) = (key.record.uid, line.version);
            let _turn = self.stores.gate.wrap(going).await?;
            let (record, _) = self.store.version_record(&key.name, uid, version)?;
            let material = self.vault().bring_out(VersionId { uid, version }, &record).await?;
            Ok::<_, Failure>(Brought { version, convergent_version: record.convergent_version, material })
        });
        let mut all = Vec::with_capacity(lines.len());
        while let Some(brought) = under_way.next().await {
            all.push(brought?);
            moving.moved()?;
        }
        Ok(all)
    }
}
