//! Removing an HSM, as long as another one opens the root key and holds what is needed.

use std::sync::Arc;

use super::refusals::refusal;
use crate::barrier::{Entry, Txn};
use crate::crashpoint::reach;
use crate::hsm::{KeyId, Member, Members};
use crate::seal::record::{MemberRecord, SealIntent, SealRecord, Wrapper, member_path};
use crate::seal::{Seal, SealError};
use crate::zones::{MasterKey, Zones};

/// What removing an HSM did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// `hsm-only` keys that are lost with it, by name; only when forced.
    pub lost: Vec<String>,
    /// Zone master keys that no other HSM was seen to hold, as `zone/vN`; only when forced. They are not destroyed.
    pub stranded: Vec<String>,
    /// Whether objects on it wait to be destroyed until it is there again.
    pub pending: bool,
}

impl Seal {
    /// Takes an HSM out of the list. Refused while no other HSM opens the root key, and, unless `force`, while it alone
    /// holds keys. `hsm_only` are the cluster's `hsm-only` keys: name and CKA_ID.
    pub async fn remove_hsm(
        &self,
        zones: &Zones,
        name: &str,
        force: bool,
        hsm_only: &[(String, KeyId)],
    ) -> Result<Removed, SealError> {
        let _working = self.working.lock().await;
        self.open_record()?;
        // What cannot be settled on an HSM that is dead is taken over by the removal.
        self.give_up(zones, name).await;
        let (mut record, version) = self.open_record()?;
        let names = record.hsm_names();
        let Some(blob) = record.hsm_blob(name).cloned() else {
            return Err(SealError::Invalid(format!("no HSM {name:?} is enrolled; enrolled are: {}", names.join(", "))));
        };
        let others: Vec<String> = names.into_iter().filter(|other| other != name).collect();
        if others.is_empty() {
            return Err(SealError::Invalid(format!(
                "{name:?} is the last HSM of this cluster: without it nothing would unseal the server or hold its master keys; add \
                 another one before"
            )));
        }
        self.refuse_without_other_wrapper(&record, &others).await?;
        // What was seen earlier may be on a token that was exchanged since.
        zones.distrust();
        zones.spread().await?;
        let lost = self.held_by_none(name, &others, hsm_only).await?;
        let stranded = self.stranded_without(zones, name, &record).await?;
        if !force && (!lost.is_empty() || !stranded.is_empty()) {
            return Err(SealError::Invalid(refusal(name, &lost, &stranded)));
        }
        let stranded: Vec<String> = stranded.into_iter().map(|key| key.name).collect();
        record.wrappers.retain(|wrapper| !matches!(wrapper, Wrapper::Hsm { name: of, .. } if of == name));
        let mut keys = vec![blob.key];
        keys.extend(MemberRecord::load(&self.barrier, name)?.and_then(|record| record.transport).map(|key| key.id));
        let earlier = SealIntent::all(&self.barrier)?.into_iter().find(|(_, intent, _)| intent.member == name);
        let unchanged = Entry::unchanged(earlier.as_ref().map(|(_, _, entry)| entry));
        keys.extend(earlier.into_iter().flat_map(|(_, intent, _)| intent.keys));
        let intent = SealIntent { format: 1, action: "remove".into(), member: name.to_owned(), keys, masters: true };
        let txn = intent.put(Txn::new().check(intent.path(), unchanged))?.delete(member_path(name));
        self.barrier.commit_with(txn, record.write(Some(version))?).await?;
        reach("seal-remove-committed");
        self.enroll(&record);
        tracing::warn!(hsm = name, ?lost, ?stranded, "an HSM was removed");
        self.give_up(zones, name).await;
        zones.forget_holder(name).await?;
        self.try_renewal().await;
        Ok(Removed { lost, stranded, pending: self.has_intent(name)? })
    }

    /// The enrolled HSMs that may stand in for another one: ready, not to be phased out, and not the same token.
    pub(in crate::seal) fn other_holders(&self, name: &str, record: &SealRecord) -> Members {
        let Some(group) = self.group() else { return Members::new() };
        let own = group.member(name);
        let stands_in = |other: &&Arc<Member>| {
            other.name != name
                && !other.disabled
                && other.is_ready()
                && record.hsm_blob(&other.name).is_some()
                && own.as_ref().is_none_or(|own| !own.shares_token_with(other))
        };
        group.members().iter().filter(stands_in).cloned().collect()
    }

    /// The zone master keys that no other HSM proves to hold now.
    async fn stranded_without(&self, zones: &Zones, name: &str, record: &SealRecord) -> Result<Vec<MasterKey>, SealError> {
        let others = self.other_holders(name, record);
        let mut stranded = Vec::new();
        for key in zones.master_keys()? {
            match zones.is_held_now(&key, &others).await {
                Ok(true) => {}
                Ok(false) => stranded.push(key),
                Err(error) => {
                    tracing::warn!(key = %key.name, %error, "no other HSM proves that it holds this master key");
                    stranded.push(key);
                }
            }
        }
        Ok(stranded)
    }
}
