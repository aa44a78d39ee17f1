//! Objects on the tokens that no record names.
//!
//! Work that is cut off leaves none: its intent says what to undo. But after a restore the records are those of an earlier
//! day, and what was under way then may have been finished since: an object that this store calls half-made can be a key
//! that a newer backup needs. So intents of a backup are forgotten and never carried out, and what has no record is only shown
//! here, to be destroyed by name when the operator knows that no store needs it.

use std::collections::HashSet;

use super::record::{MemberRecord, SealIntent};
use super::{Seal, SealError};
use crate::barrier::Txn;
use crate::hsm::{KeyId, Member};
use crate::zones::Zones;

/// An object on a token that no record names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// The HSM.
    pub hsm: String,
    /// CKA_ID.
    pub id: KeyId,
    /// CKA_LABEL.
    pub label: String,
}

impl Seal {
    /// Forgets what was under way on HSMs when the backup was taken that this store was restored from.
    pub async fn forget_intents(&self) -> Result<(), SealError> {
        for (path, intent, _) in SealIntent::all(&self.barrier)? {
            tracing::warn!(
                hsm = %intent.member, action = %intent.action, keys = ?intent.keys,
                "this was under way when the backup was taken, and may have been finished since: nothing is destroyed; see sos hsm orphans"
            );
            self.barrier.commit(Txn::new().delete(&path)).await?;
        }
        Ok(())
    }

    /// Objects under this cluster's label on HSMs that are ready, which no record names. `own` names further objects of the
    /// cluster; it is asked after the tokens, so that what is being made meanwhile is known to it.
    pub async fn orphans(
        &self,
        zones: &Zones,
        own: impl FnOnce() -> Result<HashSet<KeyId>, SealError>,
    ) -> Result<Vec<Orphan>, SealError> {
        let _working = self.working.lock().await;
        self.find_orphans(zones, own).await
    }

    /// Destroys an object that is an orphan now.
    pub async fn destroy_orphan(
        &self,
        zones: &Zones,
        id: KeyId,
        own: impl FnOnce() -> Result<HashSet<KeyId>, SealError>,
    ) -> Result<Orphan, SealError> {
        let _working = self.working.lock().await;
        let found = self.find_orphans(zones, own).await?.into_iter().find(|orphan| orphan.id == id);
        let orphan = found.ok_or_else(|| SealError::Invalid(format!("no orphan on a ready HSM has the CKA_ID {id}")))?;
        let member = self.group().and_then(|group| group.member(&orphan.hsm));
        let member = member.ok_or(SealError::HsmUnavailable { reason: super::SealedReason::HsmNotConfigured.word() })?;
        // On an HSM that was removed a master key is an orphan, and yet it may be the last copy.
        if let Some(key) = zones.master_keys()?.into_iter().find(|key| key.id == id) {
            let (record, _) = self.open_record()?;
            if !zones.is_held_now(&key, &self.other_holders(&orphan.hsm, &record)).await? {
                return Err(SealError::Invalid(format!(
                    "no enrolled HSM holds the zone master key {}: this may be the last copy, and it stays",
                    key.name
                )));
            }
        }
        member.hsm.destroy(id).await?;
        tracing::warn!(hsm = %orphan.hsm, %id, label = %orphan.label, "an object that no record names was destroyed");
        Ok(orphan)
    }

    async fn find_orphans(
        &self,
        zones: &Zones,
        own: impl FnOnce() -> Result<HashSet<KeyId>, SealError>,
    ) -> Result<Vec<Orphan>, SealError> {
        let Some(group) = self.group() else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        let members = group.members();
        for member in members.iter().filter(|member| member.is_ready()) {
            let prefix = format!("sos/{}/", self.label_of(member));
            found.extend(member.hsm.find(&prefix).await?.into_iter().map(|object| (member, object)));
        }
        // Intents before records: what is committed in between is in the records.
        let mut known = zones.intended()?;
        known.extend(SealIntent::all(&self.barrier)?.into_iter().flat_map(|(_, intent, _)| intent.keys));
        known.extend(own()?);
        let (record, _) = self.open_record()?;
        known.extend(record.hsm_wrappers().map(|(_, blob)| blob.key));
        known.extend(MemberRecord::all(&self.barrier)?.into_iter().filter_map(|record| Some(record.transport?.id)));
        let masters: HashSet<KeyId> = zones.master_keys()?.into_iter().map(|key| key.id).collect();
        let enrolled: HashSet<String> = group.enrolled().iter().map(|member| member.name.clone()).collect();
        let needed =
            |member: &Member, id: &KeyId| known.contains(id) || (masters.contains(id) && enrolled.contains(member.name.as_str()));
        let mut orphans: Vec<Orphan> = Vec::new();
        for (member, object) in found {
            let Some(id) = object.id.filter(|id| !needed(member, id)) else { continue };
            let orphan = Orphan { hsm: member.name.clone(), id, label: object.label };
            // The two halves of a pair are one object here.
            if !orphans.contains(&orphan) {
                orphans.push(orphan);
            }
        }
        Ok(orphans)
    }
}
