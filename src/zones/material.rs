//! Key material under a master key: keys that stay in the HSM, and material that is used in software.
//!
//! Software material is encrypted (AES-256-GCM) under a data key of its own, and only the data key is wrapped by the
//! master key. So re-wrapping moves 32 bytes, whatever the material is. Data keys are not kept: how long material may be in
//! memory is for its owner to say, and a data key opens what is stored.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::record::key_path;
use super::{MasterKeyRef, Place, ZoneError, Zones};
use crate::barrier::{open_bytes, seal_bytes};
use crate::hsm::group::passes_on;
use crate::hsm::{Hsm, HsmError, KeyId, KeyKind, Mechanism, Member, NewKey, Status, WrappedKey, base64_bytes};
use crate::secret::SecretBytes;

/// Does something with the first HSM whose copy of the master key is proven; when that one is lost on the way, with the next.
macro_rules! on_proven {
    ($zones:expr, $master:expr, |$hsm:ident| $call:expr) => {{
        let mut tried = Tried::default();
        loop {
            let $hsm = $zones.next_proven($master, &mut tried).await?;
            match $call.await {
                Err(error) if passes_on(&error) => {
                    $zones.doubt($master, &tried, &error);
                    tried.failed(error.into());
                }
                other => break Ok(other?),
            }
        }
    }};
}

/// Software material as it is stored by its owner (Transit).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedMaterial {
    /// The data key, wrapped by the master key that it names.
    pub data_key: WrappedKey,
    /// Nonce, ciphertext and tag of the material under the data key.
    #[serde(with = "base64_bytes")]
    pub blob: Vec<u8>,
}

impl Zones {
    /// Wraps software material under a master key. `aad` binds it to its place (mount, key, version, purpose): the same
    /// bytes are needed to open it.
    pub async fn wrap(&self, master: &MasterKeyRef, aad: &[u8], material: &SecretBytes) -> Result<WrappedMaterial, ZoneError> {
        let data_key = SecretBytes::random(32);
        let wrapped = self.wrap_data_key(master, &data_key).await?;
        let blob = seal_bytes(&data_key, &binding(aad), material.expose()).ok_or(ZoneError::Material)?;
        Ok(WrappedMaterial { data_key: wrapped, blob })
    }

    /// Opens software material; one HSM call where the master key is in the HSM.
    pub async fn unwrap(&self, zone: &str, material: &WrappedMaterial, aad: &[u8]) -> Result<SecretBytes, ZoneError> {
        let data_key = self.unwrap_data_key(zone, &material.data_key).await?;
        open_bytes(&data_key, &binding(aad), &material.blob).ok_or(ZoneError::Material)
    }

    /// The same material with its data key under another master key (the current one, after a rotation).
    pub async fn rewrap_material(&self, master: &MasterKeyRef, material: &WrappedMaterial) -> Result<WrappedMaterial, ZoneError> {
        let old = self.by_id(&master.zone, material.data_key.wrapped_by)?;
        let data_key = match (old.place, master.place) {
            (Place::Hsm, Place::Hsm) => self.rewrap_key(master, &material.data_key).await?,
            _ => {
                let key = self.unwrap_data_key(&master.zone, &material.data_key).await?;
                self.wrap_data_key(master, &key).await?
            }
        };
        Ok(WrappedMaterial { data_key, blob: material.blob.clone() })
    }

    /// Makes a key of protection level `hsm`: generated in the HSM, wrapped by the master key.
    pub async fn generate_wrapped(&self, master: &MasterKeyRef, kind: KeyKind) -> Result<NewKey, ZoneError> {
        on_proven!(self, master, |hsm| hsm.generate_wrapped(master.id, kind))
    }

    /// Wraps given key material (import, restore) as a key of protection level `hsm`.
    pub async fn wrap_key(&self, master: &MasterKeyRef, kind: KeyKind, material: &SecretBytes) -> Result<WrappedKey, ZoneError> {
        on_proven!(self, master, |hsm| hsm.wrap_material(master.id, kind, material))
    }

    /// A key of protection level `hsm` under another master key; the material stays in the HSM.
    pub async fn rewrap_key(&self, master: &MasterKeyRef, key: &WrappedKey) -> Result<WrappedKey, ZoneError> {
        on_proven!(self, master, |hsm| hsm.rewrap(key, master.id))
    }

    async fn wrap_data_key(&self, master: &MasterKeyRef, data_key: &SecretBytes) -> Result<WrappedKey, ZoneError> {
        match master.place {
            Place::Hsm => self.wrap_key(master, KeyKind::Aes256, data_key).await,
            Place::Software => {
                let id = KeyId::random();
                let key = self.software_master(master.id)?;
                let blob = seal_bytes(&key, &data_key_binding(id), data_key.expose()).ok_or(ZoneError::Material)?;
                let mechanism = Mechanism::AesGcm;
                Ok(WrappedKey { id, kind: KeyKind::Aes256, mechanism, wrapped_by: master.id, blob })
            }
        }
    }

    async fn unwrap_data_key(&self, zone: &str, wrapped: &WrappedKey) -> Result<SecretBytes, ZoneError> {
        let master = self.by_id(zone, wrapped.wrapped_by)?;
        match master.place {
            Place::Hsm => {
                on_proven!(self, &master, |hsm| hsm.unwrap_material(wrapped))
            }
            Place::Software => {
                let key = self.software_master(master.id)?;
                open_bytes(&key, &data_key_binding(wrapped.id), &wrapped.blob).ok_or(ZoneError::Material)
            }
        }
    }

    fn software_master(&self, id: KeyId) -> Result<SecretBytes, ZoneError> {
        let path = key_path(id);
        let entry = self.barrier.get(&path)?.ok_or_else(|| super::damaged(path, "the software master key is missing"))?;
        Ok(entry.value)
    }

    /// The next ready HSM that holds this very master key; the last error when there is none left.
    async fn next_proven(&self, master: &MasterKeyRef, tried: &mut Tried) -> Result<Arc<dyn Hsm>, ZoneError> {
        if master.place == Place::Software {
            return Err(ZoneError::SoftwareZone(master.zone.clone()));
        }
        let group = self.group()?;
        for member in group.ready() {
            if tried.names.contains(&member.name) {
                continue;
            }
            tried.names.push(member.name.clone());
            match self.verify(&member, master).await {
                Ok(()) => return Ok(Arc::clone(&member.hsm)),
                Err(error) => tried.failed(error),
            }
        }
        match tried.last.take() {
            Some(ZoneError::WrongKey { .. }) if group.enrolled().iter().any(|member| !member.is_ready()) => {
                // An HSM that is away may hold it.
                let away = group.enrolled().into_iter().find(|member| !member.is_ready());
                Err(super::unavailable(&away.map_or(Status::Starting, |member| member.hsm.status())))
            }
            Some(error) => Err(error),
            None => Err(super::unavailable(&group.status())),
        }
    }

    /// A master key that was missed on the HSM that was just tried is not proven any more.
    fn doubt(&self, master: &MasterKeyRef, tried: &Tried, error: &HsmError) {
        if let (HsmError::KeyMissing(_), Some(name)) = (error, tried.names.last()) {
            self.verified.remove(name, master.id);
        }
    }

    /// Compares the check value of a master key on an HSM with the stored one, once after each unseal and each return
    /// of the HSM.
    async fn verify(&self, member: &Member, master: &MasterKeyRef) -> Result<(), ZoneError> {
        if self.verified.contains(member, master.id) {
            return Ok(());
        }
        let before = member.facts();
        let (record, _) = self.stored(&master.zone)?;
        let wrong = |found| ZoneError::WrongKey { zone: master.zone.clone(), version: master.version, found };
        let stored = record.versions.iter().find(|version| version.id == master.id).ok_or(ZoneError::Material)?;
        let found = match member.hsm.master_key_check_value(master.id).await {
            Ok(found) => found,
            Err(HsmError::KeyMissing(_)) => return Err(wrong("the object is missing")),
            Err(error) => return Err(error.into()),
        };
        if hex::encode(found) != stored.check_value {
            return Err(wrong("another key has its CKA_ID"));
        }
        self.verified.insert(member, before, master.id);
        Ok(())
    }
}

/// The HSMs that one operation has been tried on.
#[derive(Default)]
struct Tried {
    names: Vec<String>,
    last: Option<ZoneError>,
}

impl Tried {
    /// Keeps the error that says more than that a key is not there.
    fn failed(&mut self, error: ZoneError) {
        if !matches!(self.last, Some(ref last) if !matches!(last, ZoneError::WrongKey { .. })) {
            self.last = Some(error);
        }
    }
}

fn binding(aad: &[u8]) -> Vec<u8> {
    [b"sos/material/v1/".as_slice(), aad].concat()
}

fn data_key_binding(id: KeyId) -> Vec<u8> {
    [b"sos/data-key/v1/".as_slice(), &id.0].concat()
}
