//! The HSMs of a cluster as a list: enrolling one, removing one, giving one a new seal key.
//!
//! Each works while the server serves, and in this order: a durable intent names the CKA_IDs; the objects are made and tried;
//! one transaction makes them count. Killed anywhere in between, [`Seal::settle`] destroys what no record refers to.
//! No step takes a wrapped copy of the root key away before another one has been opened.

mod enrolment;
mod intents;
mod refusals;
mod removal;
mod upkeep;

use std::sync::Arc;

pub use enrolment::Added;
pub use removal::Removed;

use super::record::SealRecord;
use super::{Seal, SealError, combine_shares, root_key_binding};
use crate::barrier::Txn;
use crate::crashpoint::reach;
use crate::hsm::{Group, KeyId, Member, SealedBlob, Status};
use crate::secret::{SecretBytes, SecretString};
use crate::zones::Zones;

/// The Shamir secret with the root key that it was proven by.
pub(super) struct Proven {
    secret: SecretBytes,
    root: SecretBytes,
}

impl Seal {
    /// Gives an enrolled HSM a new seal key under which the root key is wrapped anew; the old one is destroyed.
    pub async fn rewrap_hsm(&self, zones: &Zones, name: &str) -> Result<(), SealError> {
        let _working = self.working.lock().await;
        let member = &*self.ready_member(name).await?;
        self.settle_member(zones, name).await?;
        let (mut record, version) = self.open_record()?;
        let Some(old) = record.hsm_blob(name).map(|blob| blob.key) else {
            return Err(SealError::Invalid(format!("the HSM {name:?} is not enrolled: add it first")));
        };
        let root = self.root_by_hsm(&record).await?;
        let new = KeyId::random();
        self.begin("rewrap", member, vec![new, old], false).await?;
        reach("seal-rewrap-intent");
        let made = async {
            let sealed = self.make_seal_key(member, new, &record, &root).await?;
            reach("seal-rewrap-key");
            record.set_hsm_blob(name, sealed);
            self.barrier.commit_with(Txn::new(), record.write(Some(version))?).await?;
            reach("seal-rewrap-committed");
            Ok::<_, SealError>(())
        };
        let made = made.await;
        self.give_up(zones, name).await;
        made?;
        tracing::warn!(hsm = name, "an HSM has a new seal key");
        // A token that was made anew lacks more than the seal key.
        self.ensure_transports().await;
        self.try_renewal().await;
        zones.spread().await?;
        Ok(())
    }

    /// A seal key on the HSM, and the root key wrapped by it and opened again.
    async fn make_seal_key(
        &self,
        member: &Member,
        id: KeyId,
        record: &SealRecord,
        root: &SecretBytes,
    ) -> Result<SealedBlob, SealError> {
        let binding = root_key_binding(&record.cluster_id);
        let prefix = format!("sos/{}/seal/root/v", self.label_of(member));
        let found = member.hsm.find(&prefix).await?;
        let newest = found.iter().filter_map(|object| object.label.strip_prefix(&prefix)?.parse::<u32>().ok()).max();
        let label = self.label(member, "seal/root", newest.unwrap_or(0) + 1);
        member.hsm.create_seal_key(&label, id).await?;
        let sealed = member.hsm.seal(id, root, &binding).await?;
        match member.hsm.unseal(&sealed, &binding).await?.same_as(root.expose()) {
            true => Ok(sealed),
            false => Err(SealError::Internal(format!("the HSM {:?} does not give the root key back", member.name))),
        }
    }

    /// The root key by an HSM, compared with the keyring.
    pub(super) async fn root_by_hsm(&self, record: &SealRecord) -> Result<SecretBytes, SealError> {
        let unavailable = |(reason, detail): (super::SealedReason, String)| {
            tracing::warn!(reason = reason.word(), detail, "no HSM opens the root key");
            SealError::HsmUnavailable { reason: reason.word() }
        };
        let root = self.unwrap_by_hsm(record).await.map_err(unavailable)?;
        self.barrier.verify_root(&root)?;
        Ok(root)
    }

    pub(super) fn proven(&self, record: &SealRecord, shares: &[SecretString]) -> Result<Option<Proven>, SealError> {
        if shares.is_empty() {
            return Ok(None);
        }
        if shares.len() < usize::from(record.threshold) {
            let (given, needed) = (shares.len(), record.threshold);
            return Err(SealError::Invalid(format!("{given} share(s) were given, and {needed} are needed")));
        }
        let secret = combine_shares(shares)?;
        let root = self.prove_secret(record, &secret).map_err(|_wrong| {
            SealError::invalid("the shares do not open this cluster's root key: wrong shares, or those of another cluster")
        })?;
        Ok(Some(Proven { secret, root }))
    }

    /// A configured member that can be used now; one that is starting is waited for.
    async fn ready_member(&self, name: &str) -> Result<Arc<Member>, SealError> {
        let members = self.hsm.as_ref().map(|group| group.members()).unwrap_or_default();
        let Some(member) = members.iter().find(|member| member.name == name) else {
            let known: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
            return Err(SealError::Invalid(format!(
                "no seal \"pkcs11\" stanza is named {name:?} (there are: {}); write name = {name:?} into one and reload the server (SIGHUP)",
                if known.is_empty() { "none".to_owned() } else { known.join(", ") }
            )));
        };
        if member.disabled {
            return Err(SealError::Invalid(format!("the seal stanza {name:?} says disabled = true: nothing new is put onto it")));
        }
        match member.started().await {
            Status::Ready(_) => {
                self.adopt().await?;
                self.refuse_misnamed(member)?;
                Ok(Arc::clone(member))
            }
            Status::Starting => Err(SealError::HsmUnavailable { reason: super::SealedReason::HsmStarting.word() }),
            Status::Down { reason, .. } => Err(SealError::HsmUnavailable { reason: reason.word() }),
        }
    }

    /// What names this cluster's objects on an HSM.
    pub(super) fn label_of<'a>(&'a self, member: &'a Member) -> &'a str {
        member.key_label.as_deref().unwrap_or(&self.settings.key_label)
    }

    fn label(&self, member: &Member, purpose: &str, version: u32) -> String {
        format!("sos/{}/{purpose}/v{version}", self.label_of(member))
    }

    /// The group, where the configuration has an HSM on which something could be made.
    pub(super) fn group(&self) -> Option<&Group> {
        self.hsm.as_deref().filter(|group| group.is_configured())
    }
}
