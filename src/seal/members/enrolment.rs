//! Enrolling an HSM: a seal key, a transport key and the zone master keys are put onto it.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use super::Proven;
use super::intents::intent_path;
use crate::barrier::Txn;
use crate::crashpoint::reach;
use crate::hsm::{HsmError, KeyId, Member};
use crate::seal::escrow::{EscrowKeyPair, recover_master_key};
use crate::seal::init::make_escrow;
use crate::seal::record::{MemberRecord, SealRecord, TransportKey, Wrapper};
use crate::seal::{ClusterFacts, Seal, SealError, SealType, root_key_binding};
use crate::secret::{SecretBytes, SecretString};
use crate::storage::Version;
use crate::zones::{Brought, EscrowCopy, Zones};

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
    pub(in crate::seal) async fn complete(
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
}

type Opener<'a> = Box<dyn Fn(&EscrowCopy) -> Result<SecretBytes, String> + Send + Sync + 'a>;

/// Opens escrow copies with the Shamir secret.
fn opener<'a>(secret: &'a SecretBytes, cluster_id: &'a str, pair: &'a EscrowKeyPair) -> Opener<'a> {
    Box::new(move |copy| {
        recover_master_key(secret, cluster_id, pair, copy.mechanism, &copy.blob).map_err(|error| error.to_string())
    })
}
