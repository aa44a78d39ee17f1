//! Versions whose material comes from outside: imports and restores; and bringing material out, for exports and backups.

use super::{
    Transit,
    alg::KeyType,
    lifecycle::nanos,
    protect::{Level, Material, VersionId},
    record::{FORMAT, KeyRecord, KeyUid, StoredKey, VersionLine},
    store::Key,
    usage::Usage,
};
use crate::{barrier::Txn, core::failure::Failure, storage::Expect};

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
        Usage::first_block(txn, record.uid, version)
    }

    /// When the material of a version from outside came into the HSM, if it did.
    pub fn moved(&self, level: Level, given: &Given) -> Option<i64> {
        (level == Level::Hsm && !given.material.key.is_empty()).then(|| nanos(self.clock.now()))
    }

    /// The record of a version, and its level.
    pub async fn store_given(
        &self,
        record: &KeyRecord,
        version: u32,
        given: &Given,
    ) -> Result<(super::record::VersionRecord, Level), Failure> {
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

    /// All material of a version, whatever its level: for exports and backups alone.
    pub async fn material_of(&self, key: &Key, version: u32) -> Result<Material, Failure> {
        let uid = key.record.uid;
        let (record, _) = self.store.version_record(&key.name, uid, version)?;
        self.vault().bring_out(VersionId { uid, version }, &record).await
    }
}
