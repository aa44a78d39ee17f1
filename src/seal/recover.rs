//! A new token for an existing cluster: what the lost one held is put onto it from escrow.
//!
//! Every step can be repeated. The objects keep the CKA_IDs that the store names, so an interrupted run leaves nothing
//! behind that the next one would not find and use.

use super::{Seal, SealError};
use crate::secret::SecretString;
use crate::zones::Zones;

/// What was put onto the tokens.
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
    /// Puts the seal key and the zone master keys that enrolled HSMs lack onto them, with the escrow shares. To be called
    /// while unsealed (by shares); keys that are there already stay as they are.
    pub async fn recover_hsm(&self, zones: &Zones, shares: &[SecretString]) -> Result<Recovered, SealError> {
        let _working = self.working.lock().await;
        let (record, version) = self.open_record()?;
        self.needed_maker()?;
        let proven = self.proven(&record, shares)?;
        let members = self.group().map(|group| group.members()).unwrap_or_default();
        if let ([name], [only]) = (record.hsm_names().as_slice(), members.as_slice())
            && *name != only.name
            && proven.is_some()
        {
            // The only HSM, lost and replaced under another name.
            self.rename(record, version, name, &only.name).await?;
        }
        let mut recovered = Recovered::default();
        let ready = self.group().map(|group| group.ready()).unwrap_or_default();
        for member in ready.into_iter().filter(|member| !member.disabled) {
            let (record, version) = self.open_record()?;
            let added = self.complete(zones, &member, record, version, proven.as_ref()).await?;
            recovered.seal_key |= added.seal_key;
            recovered.master_keys.extend(added.master_keys);
            recovered.lost.extend(added.missing);
        }
        tracing::warn!(?recovered, "keys were put onto the HSM from escrow");
        Ok(recovered)
    }
}
