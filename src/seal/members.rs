//! The HSMs of a cluster as a list: enrolling one, removing one, giving one a new seal key.
//!
//! Each works while the server serves, and in this order: a durable intent names the CKA_IDs; the objects are made and tried;
//! one transaction makes them count. Killed anywhere in between, [`Seal::settle`] destroys what no record refers to.
//! No step takes a wrapped copy of the root key away before another one has been opened.

mod intents;
mod refusals;
mod upkeep;

use std::collections::HashSet;
use std::sync::{Arc, atomic::Ordering};

use intents::intent_path;
use refusals::refusal;

use super::escrow::{EscrowKeyPair, recover_master_key};
use super::init::make_escrow;
use super::record::{MemberRecord, SealIntent, SealRecord, TransportKey, Wrapper, member_path};
use super::{ClusterFacts, Seal, SealError, SealType, combine_shares, root_key_binding};
use crate::barrier::{Entry, Txn};
use crate::crashpoint::reach;
use crate::hsm::{Group, HsmError, KeyId, Member, Members, SealedBlob, Status};
use crate::secret::{SecretBytes, SecretString};
use crate::storage::Version;
use crate::zones::{Brought, EscrowCopy, MasterKey, Zones};

/// What enrolling an HSM did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Added {
    /// Whether the cluster was under plain shares before and is under an HSM seal now.
    pub converted: bool,
    /// Whether a seal key was made.
    pub seal_key: bool,
    /// Zone master keys that were put onto the HSM, as `zone/vN`.
    pub master_keys: Vec<String>,
    /// Those that have no copy for this HSM; they stay on the others alone.
    pub missing: Vec<String>,
}

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

/// The Shamir secret with the root key that it was proven by.
pub(super) struct Proven {
    secret: SecretBytes,
    root: SecretBytes,
}

impl Seal {
    /// Enrols a configured HSM: a seal key that wraps the root key, a transport key, and the zone master keys from escrow.
    /// A cluster under plain shares becomes one under an HSM seal. For an HSM that is enrolled already, what it lacks is
    /// put onto it. `own` are CKA_IDs of further objects of this cluster that may be on the token.
    pub async fn add_hsm(
        &self,
        zones: &Zones,
        name: &str,
        shares: &[SecretString],
        own: &HashSet<KeyId>,
    ) -> Result<Added, SealError> {
        let _working = self.working.lock().await;
        let member = &*self.ready_member(name).await?;
        let (record, version) = self.open_record()?;
        let proven = self.proven(&record, shares)?;
        if record.hsm_blob(name).is_some() {
            let added = self.complete(zones, member, record, version, proven.as_ref()).await?;
            zones.spread().await?;
            return Ok(added);
        }
        self.refuse_shared_token(member, &record)?;
        let root = match (&proven, record.seal_type) {
            (Some(proven), _) => proven.root.duplicate(),
            (None, SealType::Pkcs11) if !zones.in_escrow()? => self.root_by_hsm(&record).await?,
            (None, SealType::Pkcs11) => {
                return Err(SealError::invalid(
                    "the zone master keys reach a new HSM from escrow: give the escrow shares as 'keys'",
                ));
            }
            (None, SealType::Shamir) => {
                return Err(SealError::invalid("the root key is under the unseal keys: give them as 'keys'"));
            }
        };
        self.settle_member(zones, name).await?;
        let (record, version) = self.open_record()?;
        self.refuse_foreign_objects(zones, member, own).await?;
        let (seal_key, transport) = (KeyId::random(), KeyId::random());
        self.begin("add", member, vec![seal_key, transport], true).await?;
        reach("seal-add-intent");
        let made = self.enrol(zones, member, seal_key, transport, (record, version), &root, proven.as_ref()).await;
        let added = match made {
            Ok(added) => added,
            Err(error) => {
                self.give_up(zones, name).await;
                return Err(error);
            }
        };
        tracing::warn!(hsm = name, ?added, "an HSM was enrolled");
        self.ensure_transports().await;
        zones.spread().await?;
        Ok(added)
    }

    #[allow(clippy::too_many_arguments)] // all of what one enrolment has gathered; called once
    async fn enrol(
        &self,
        zones: &Zones,
        member: &Member,
        seal_key: KeyId,
        transport: KeyId,
        (mut record, version): (SealRecord, Version),
        root: &SecretBytes,
        proven: Option<&Proven>,
    ) -> Result<Added, SealError> {
        let sealed = self.make_seal_key(member, seal_key, &record, root).await?;
        reach("seal-add-key");
        let public_key = member.hsm.create_transport_key(&self.label(member, "seal/transport", 1), transport).await?;
        reach("seal-add-transport");
        let brought = self.bring(zones, member, &record, proven).await?;
        reach("seal-add-masters");
        let mut txn = Txn::new();
        let converted = record.seal_type == SealType::Shamir;
        if let (true, Some(proven)) = (converted, proven) {
            record.seal_type = SealType::Pkcs11;
            record.escrow = match self.escrow.load(Ordering::Relaxed) {
                true => Some(make_escrow(proven.secret.duplicate(), record.cluster_id.clone()).await?),
                false => {
                    tracing::warn!("escrow = false: zone master keys never leave the HSM and are lost with it");
                    None
                }
            };
            txn = txn.merge(ClusterFacts::of(&record).into_txn()?);
        }
        let at = record.hsm_wrappers().count();
        let wrapper = Wrapper::Hsm { name: member.name.clone(), key_label: self.label_of(member).to_owned(), sealed };
        record.wrappers.insert(at, wrapper);
        let member_record =
            MemberRecord { format: 1, name: member.name.clone(), transport: Some(TransportKey { id: transport, public_key }) };
        txn = member_record.put(txn)?.delete(intent_path(&member.name));
        self.barrier.commit_with(txn, record.write(Some(version))?).await?;
        reach("seal-add-committed");
        self.enroll(&record);
        Ok(Added { converted, seal_key: true, master_keys: brought.imported, missing: brought.missing })
    }

    /// Puts onto an enrolled HSM what it lacks, after its token was lost and made anew, or when copies were missing.
    pub(super) async fn complete(
        &self,
        zones: &Zones,
        member: &Member,
        mut record: SealRecord,
        version: Version,
        proven: Option<&Proven>,
    ) -> Result<Added, SealError> {
        let brought = self.bring(zones, member, &record, proven).await?;
        let mut added = Added { master_keys: brought.imported, missing: brought.missing, ..Added::default() };
        let Some(blob) = record.hsm_blob(&member.name).cloned() else { return Ok(added) };
        let root = match proven {
            Some(proven) => proven.root.duplicate(),
            None => self.root_by_hsm(&record).await?,
        };
        let binding = root_key_binding(&record.cluster_id);
        match member.hsm.unseal(&blob, &binding).await {
            Ok(opened) if opened.same_as(root.expose()) => return Ok(added),
            // The key is there, but the stored copy is another key's: an earlier run was interrupted.
            Ok(_) | Err(HsmError::BadInput(_)) => {}
            Err(HsmError::KeyMissing(_)) => {
                member.hsm.create_seal_key(&self.label(member, "seal/root", 1), blob.key).await?;
            }
            Err(error) => return Err(error.into()),
        }
        let renewed = member.hsm.seal(blob.key, &root, &binding).await?;
        record.set_hsm_blob(&member.name, renewed);
        self.barrier.commit_with(Txn::new(), record.write(Some(version))?).await?;
        added.seal_key = true;
        Ok(added)
    }

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

    /// The enrolled HSMs that may stand in for another one: ready, not to be phased out, and not the same token.
    pub(super) fn other_holders(&self, name: &str, record: &SealRecord) -> Members {
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

    /// Puts the master keys onto an HSM, from transport copies and, with the secret, from escrow.
    async fn bring(
        &self,
        zones: &Zones,
        member: &Member,
        record: &SealRecord,
        proven: Option<&Proven>,
    ) -> Result<Brought, SealError> {
        self.forget_lost_transport(member).await?;
        let open = match (proven, &record.escrow) {
            (Some(proven), Some(pair)) => Some(opener(&proven.secret, &record.cluster_id, pair)),
            _ => None,
        };
        Ok(zones.bring(member, open.as_deref()).await?)
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

type Opener<'a> = Box<dyn Fn(&EscrowCopy) -> Result<SecretBytes, String> + Send + Sync + 'a>;

/// Opens escrow copies with the Shamir secret.
fn opener<'a>(secret: &'a SecretBytes, cluster_id: &'a str, pair: &'a EscrowKeyPair) -> Opener<'a> {
    Box::new(move |copy| {
        recover_master_key(secret, cluster_id, pair, copy.mechanism, &copy.blob).map_err(|error| error.to_string())
    })
}
