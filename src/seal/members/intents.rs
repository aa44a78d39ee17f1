//! Intents: what is about to be made on an HSM, noted before it is, and settled after an interruption.

use std::collections::HashSet;

use crate::barrier::{Entry, Txn};
use crate::crashpoint::reach;
use crate::hsm::{KeyId, Member};
use crate::seal::record::{MemberRecord, SealIntent, member_path};
use crate::seal::{SEAL_PATH, Seal, SealError};
use crate::storage::Expect;
use crate::zones::Zones;

impl Seal {
    /// Destroys what interrupted work left on HSMs that are there; intents of absent ones stay.
    pub(in crate::seal) async fn settle(&self, zones: &Zones) -> Result<(), SealError> {
        let Some(group) = &self.hsm else { return Ok(()) };
        for (path, intent, _) in SealIntent::all(&self.barrier)? {
            let member = group.member(&intent.member);
            if member.as_ref().is_some_and(|member| !member.is_ready()) {
                continue;
            }
            // What a commit of unknown outcome may have left must be certain before anything is destroyed by it.
            self.barrier.confirm(&[SEAL_PATH, &path, &member_path(&intent.member)]).await?;
            let Some(entry) = self.barrier.get(&path)? else { continue };
            match member {
                Some(member) => {
                    if !self.destroy_unreferenced(zones, &member, &intent).await? {
                        continue;
                    }
                }
                None => tracing::warn!(
                    hsm = %intent.member, action = %intent.action, keys = ?intent.keys,
                    "this HSM is not configured any more: objects of the cluster may be left on it"
                ),
            }
            reach("seal-settle-destroyed");
            self.settled(&path, &intent, &entry).await?;
        }
        Ok(())
    }

    pub(in crate::seal) async fn settled(&self, path: &str, intent: &SealIntent, entry: &Entry) -> Result<(), SealError> {
        self.barrier.commit(Txn::new().check(path, Entry::unchanged(Some(entry))).delete(path)).await?;
        tracing::info!(hsm = %intent.member, action = %intent.action, "work on an HSM is settled");
        Ok(())
    }

    /// False when master keys must stay for now, because an HSM that may hold them is away.
    pub(in crate::seal) async fn destroy_unreferenced(
        &self,
        zones: &Zones,
        member: &Member,
        intent: &SealIntent,
    ) -> Result<bool, SealError> {
        let (record, _) = self.open_record()?;
        let mut referenced: HashSet<KeyId> = record.hsm_wrappers().map(|(_, blob)| blob.key).collect();
        referenced.extend(MemberRecord::all(&self.barrier)?.into_iter().filter_map(|record| Some(record.transport?.id)));
        for id in intent.keys.iter().filter(|id| !referenced.contains(id)) {
            member.hsm.destroy(*id).await?;
        }
        if !intent.masters || record.hsm_blob(&member.name).is_some() {
            return Ok(true);
        }
        // A master key leaves a token only when another HSM proves at this moment that it holds it.
        let others = self.other_holders(&member.name, &record);
        let (mut left, mut unknown) = (Vec::new(), false);
        for key in zones.master_keys()? {
            match zones.is_held_now(&key, &others).await {
                Ok(true) => member.hsm.destroy(key.id).await?,
                Ok(false) => left.push(key.name),
                Err(error) => {
                    tracing::warn!(key = %key.name, %error, "whether another HSM holds this master key is not known");
                    unknown = true;
                }
            }
        }
        if left.is_empty() && !unknown {
            return Ok(true);
        }
        if unknown || self.group().is_some_and(|group| group.enrolled().iter().any(|other| !other.is_ready())) {
            return Ok(false);
        }
        tracing::warn!(hsm = %member.name, keys = ?left, "master keys that no other HSM holds stay on the removed one");
        Ok(true)
    }

    pub(in crate::seal) async fn begin(
        &self,
        action: &str,
        member: &Member,
        keys: Vec<KeyId>,
        masters: bool,
    ) -> Result<(), SealError> {
        let intent = SealIntent { format: 1, action: action.into(), member: member.name.clone(), keys, masters };
        let txn = intent.put(Txn::new().check(intent.path(), Expect::Absent))?;
        self.barrier.commit(txn).await?;
        Ok(())
    }

    /// Settles at once; what cannot be settled now is left to a later tick.
    pub(in crate::seal) async fn give_up(&self, zones: &Zones, name: &str) {
        if let Err(error) = self.settle(zones).await {
            tracing::warn!(hsm = name, %error, "objects left on the HSM are removed later");
        }
        // A commit that was reported as failed may have been written.
        if let Ok((record, _)) = self.open_record() {
            self.enroll(&record);
        }
    }

    /// Settles older work, which must be out of the way before new work on the same HSM begins. Master keys that could not
    /// leave it yet are no obstacle: it may keep them when it is enrolled again.
    pub(in crate::seal) async fn settle_member(&self, zones: &Zones, name: &str) -> Result<(), SealError> {
        self.settle(zones).await?;
        let Some((path, intent, entry)) =
            SealIntent::all(&self.barrier)?.into_iter().find(|(_, intent, _)| intent.member == name)
        else {
            return Ok(());
        };
        match self.group().and_then(|group| group.member(name)).is_some_and(|member| member.is_ready()) {
            // All but the master keys was destroyed just now.
            true => self.settled(&path, &intent, &entry).await,
            false => Err(SealError::Invalid(format!("earlier work on {name:?} is not finished; bring that HSM back first"))),
        }
    }

    pub(in crate::seal) fn has_intent(&self, name: &str) -> Result<bool, SealError> {
        Ok(self.barrier.get(&intent_path(name))?.is_some())
    }
}

pub(super) fn intent_path(name: &str) -> String {
    SealIntent { format: 1, action: String::new(), member: name.to_owned(), keys: vec![], masters: false }.path()
}
