//! A new token for an existing cluster: what the lost one held is put onto it from escrow.
//!
//! Every step can be repeated. The objects keep the CKA_IDs that the store names, so an interrupted run leaves nothing
//! behind that the next one would not find and use.

use super::escrow::recover_master_key;
use super::record::SealRecord;
use super::{Seal, SealError, Wrapper, combine_shares, root_key_binding};
use crate::barrier::BarrierError;
use crate::hsm::{Hsm, HsmError, SealedBlob};
use crate::secret::{SecretBytes, SecretString};
use crate::zones::{MasterVersion, Place, Zones};

/// What was put onto the token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Whether a seal key was made, so that the server unseals itself again.
    pub seal_key: bool,
    /// Zone master keys that were imported, as `zone/vN`.
    pub master_keys: Vec<String>,
    /// Those that have no escrow copy and are lost, as `zone/vN`.
    pub lost: Vec<String>,
}

impl Seal {
    /// Puts the seal key and the zone master keys that the HSM lacks onto it, with the escrow shares. To be called while
    /// unsealed (by shares); keys that are there already stay as they are.
    pub async fn recover_hsm(&self, zones: &Zones, shares: &[SecretString]) -> Result<Recovered, SealError> {
        let _working = self.working.lock().await;
        let (record, version) = self.open_record()?;
        let hsm = self.hsm_status().map_err(|reason| SealError::HsmUnavailable { reason: reason.word() })?;
        let secret = combine_shares(shares)?;
        let root = self.prove_secret(&record, &secret).map_err(|_wrong| SealError::InvalidKey)?;
        let mut recovered = Recovered::default();
        for zone in zones.list()? {
            for version in zones.read(&zone)?.zone.versions.iter().filter(|version| version.place == Place::Hsm) {
                let name = format!("{zone}/v{}", version.version);
                match import_missing(hsm.as_ref(), &record, &secret, version).await? {
                    Import::Present => {}
                    Import::Imported => recovered.master_keys.push(name),
                    Import::NoCopy => recovered.lost.push(name),
                }
            }
        }
        recovered.seal_key = self.renew_seal_key(hsm.as_ref(), record, version, &root).await?;
        tracing::warn!(?recovered, "keys were put onto the HSM from escrow");
        Ok(recovered)
    }

    async fn renew_seal_key(
        &self,
        hsm: &dyn Hsm,
        mut record: SealRecord,
        version: u64,
        root: &SecretBytes,
    ) -> Result<bool, SealError> {
        let Some(blob) = record.hsm_blob().cloned() else { return Ok(false) };
        let binding = root_key_binding(&record.cluster_id);
        match hsm.unseal(&blob, &binding).await {
            Ok(opened) if opened.same_as(root.expose()) => return Ok(false),
            // The key is there, but the stored blob is another key's: an earlier run was interrupted.
            Ok(_) | Err(HsmError::BadInput(_)) => {}
            Err(HsmError::KeyMissing(_)) => {
                hsm.create_seal_key(&format!("sos/{}/seal/root/v1", self.settings.key_label), blob.key).await?;
            }
            Err(error) => return Err(error.into()),
        }
        let renewed: SealedBlob = hsm.seal(blob.key, root, &binding).await?;
        for wrapper in &mut record.wrappers {
            if let Wrapper::Hsm { sealed, .. } = wrapper {
                *sealed = renewed.clone();
            }
        }
        self.barrier.raw().commit(record.write(Some(version))?).await.map_err(BarrierError::from)?;
        Ok(true)
    }
}

enum Import {
    Present,
    Imported,
    NoCopy,
}

async fn import_missing(
    hsm: &dyn Hsm,
    record: &SealRecord,
    secret: &SecretBytes,
    version: &MasterVersion,
) -> Result<Import, SealError> {
    match hsm.master_key_check_value(version.id).await {
        Ok(found) if hex::encode(found) == version.check_value => return Ok(Import::Present),
        Ok(_) => {
            return Err(SealError::Internal(format!("the HSM holds another key under the CKA_ID {}", version.id)));
        }
        Err(HsmError::KeyMissing(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let (Some(pair), Some(copy)) = (&record.escrow, &version.escrow) else { return Ok(Import::NoCopy) };
    let master = recover_master_key(secret, &record.cluster_id, pair, copy.mechanism, &copy.blob)?;
    let check = hsm.import_master_key(&version.label, version.id, &master).await?;
    if hex::encode(check) == version.check_value {
        return Ok(Import::Imported);
    }
    hsm.destroy(version.id).await?;
    Err(SealError::Internal(format!("the escrow copy of {} is not the key that the zone names", version.label)))
}
