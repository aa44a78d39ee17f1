//! What keeps an HSM from being enrolled or removed.

use std::collections::HashSet;
use std::sync::Arc;

use crate::hsm::{KeyId, Member, Status};
use crate::seal::record::SealRecord;
use crate::seal::{Opens, Seal, SealError, root_key_binding};
use crate::zones::{MasterKey, Zones};

/// Keys named in a refusal before the rest is only counted.
const NAMED: usize = 20;

impl Seal {
    /// A stanza that leads to the token of another enrolled HSM gets nothing there.
    pub(in crate::seal) fn refuse_misnamed(&self, member: &Member) -> Result<(), SealError> {
        match self.opens(member) {
            Some(Opens::Copy(other)) if other != member.name => Err(SealError::Invalid(format!(
                "the token of {:?} holds the seal key of {other:?}, which is enrolled: either both stanzas lead to the same token, or \
                 they were renamed, and {other:?} must be there once to tell. Delete nothing on that token",
                member.name
            ))),
            _ => Ok(()),
        }
    }

    /// Two stanzas that lead to one token under one label would destroy each other's objects.
    pub(in crate::seal) fn refuse_shared_token(&self, member: &Member, record: &SealRecord) -> Result<(), SealError> {
        let serial = |member: &Member| match member.hsm.status() {
            Status::Ready(facts) => Some((facts.serial.clone(), facts.label.clone())),
            _ => None,
        };
        let Some(group) = &self.hsm else { return Ok(()) };
        let own = serial(member);
        let same = |other: &&Arc<Member>| {
            other.name != member.name
                && record.hsm_blob(&other.name).is_some()
                && serial(other) == own
                && self.label_of(other) == self.label_of(member)
        };
        match group.members().iter().find(same) {
            None => Ok(()),
            Some(other) => Err(SealError::Invalid(format!(
                "the stanzas {:?} and {:?} lead to the same token under the same key_label {:?}; name another token",
                other.name,
                member.name,
                self.label_of(member)
            ))),
        }
    }

    /// Objects under the cluster's label that the store does not know make it another cluster's token, or this one's
    /// after a restore.
    pub(in crate::seal) async fn refuse_foreign_objects(
        &self,
        zones: &Zones,
        member: &Member,
        own: &HashSet<KeyId>,
    ) -> Result<(), SealError> {
        let masters: HashSet<KeyId> = zones.master_keys()?.into_iter().map(|key| key.id).collect();
        let found = member.hsm.find(&format!("sos/{}/", self.label_of(member))).await?;
        let known = |id: &Option<KeyId>| id.is_some_and(|id| masters.contains(&id) || own.contains(&id));
        let foreign: Vec<_> = found.iter().filter(|object| !known(&object.id)).collect();
        match foreign.first() {
            None => Ok(()),
            Some(first) => Err(SealError::TokenInUse {
                member: member.name.clone(),
                key_label: self.label_of(member).to_owned(),
                count: foreign.len(),
                first: first.label.clone(),
            }),
        }
    }

    pub(in crate::seal) async fn refuse_without_other_wrapper(
        &self,
        record: &SealRecord,
        others: &[String],
    ) -> Result<(), SealError> {
        let binding = root_key_binding(&record.cluster_id);
        let mut failures = Vec::new();
        for name in others {
            let member = self.hsm.as_ref().and_then(|group| group.member(name)).filter(|member| !member.disabled);
            let (Some(member), Some(blob)) = (member, record.hsm_blob(name)) else {
                failures.push(format!("{name} is not configured"));
                continue;
            };
            match member.hsm.unseal(blob, &binding).await {
                Ok(root) if self.barrier.verify_root(&root).is_ok() => return Ok(()),
                Ok(_) => failures.push(format!("{name} opens another key")),
                Err(error) => failures.push(format!("{name}: {error}")),
            }
        }
        Err(SealError::Invalid(format!("no other HSM opens the root key now, so this one stays: {}", failures.join("; "))))
    }

    /// The `hsm-only` keys that none of the others is seen to hold, as far as this HSM may hold them.
    pub(in crate::seal) async fn held_by_none(
        &self,
        name: &str,
        others: &[String],
        keys: &[(String, KeyId)],
    ) -> Result<Vec<String>, SealError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let Some(group) = &self.hsm else { return Ok(Vec::new()) };
        let mut elsewhere: HashSet<KeyId> = HashSet::new();
        for member in others.iter().filter_map(|name| group.member(name)).filter(|member| member.is_ready()) {
            elsewhere.extend(member.hsm.find("sos/").await?.into_iter().filter_map(|object| object.id));
        }
        let here: Option<HashSet<KeyId>> = match group.member(name).filter(|member| member.is_ready()) {
            Some(member) => Some(member.hsm.find("sos/").await?.into_iter().filter_map(|object| object.id).collect()),
            None => None,
        };
        let lost = |id: &KeyId| !elsewhere.contains(id) && here.as_ref().is_none_or(|here| here.contains(id));
        Ok(keys.iter().filter(|(_, id)| lost(id)).map(|(key, _)| key.clone()).collect())
    }
}

pub(super) fn refusal(name: &str, lost: &[String], stranded: &[MasterKey]) -> String {
    let list = |keys: &[String]| {
        let named = keys.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        match keys.len().saturating_sub(NAMED) {
            0 => named,
            more => format!("{named} and {more} more"),
        }
    };
    let mut text = format!("the HSM {name:?} alone holds keys that would be lost:");
    if !lost.is_empty() {
        text.push_str(&format!(" hsm-only keys {};", list(lost)));
    }
    if !stranded.is_empty() {
        let names: Vec<String> = stranded.iter().map(|key| key.name.clone()).collect();
        text.push_str(&format!(" zone master keys {}", list(&names)));
        text.push_str(match stranded.iter().all(|key| key.in_escrow) {
            true => " (the shares bring them back: add the other HSM once more, with them);",
            false => ", not all of them with an escrow copy;",
        });
    }
    text.push_str(" move what matters first, or remove it with force");
    text
}
