//! What is made good from time to time: transport keys that HSMs lack, work that was interrupted, a root key to be renewed.

use std::sync::Arc;

use super::intents::intent_path;
use crate::barrier::Txn;
use crate::crashpoint::reach;
use crate::hsm::{KeyId, Member, Members, TokenFacts};
use crate::seal::record::{MemberRecord, TransportKey};
use crate::seal::{Seal, SealError};
use crate::zones::Zones;

impl Seal {
    /// Finishes what waited for an HSM; to be called from time to time while unsealed. Does nothing while other work on
    /// the seal is under way.
    pub async fn tick(&self, zones: &Zones) {
        let Ok(_working) = self.working.try_lock() else { return };
        if self.is_sealed() || self.hsm.is_none() {
            return;
        }
        if let Err(error) = self.adopt().await {
            tracing::warn!(%error, "which HSM is which could not be found out");
        }
        if let Err(error) = self.settle(zones).await {
            tracing::warn!(%error, "half-done work on an HSM is not finished yet");
        }
        self.ensure_transports().await;
        self.try_renewal().await;
    }

    pub(in crate::seal) async fn try_renewal(&self) {
        if let Err(error) = self.finish_renewal().await {
            tracing::warn!(%error, "the root key is not renewed yet");
        }
    }

    /// Makes the transport keys that enrolled HSMs lack; with one HSM there is nobody to send anything to.
    pub(in crate::seal) async fn ensure_transports(&self) {
        let Some(group) = &self.hsm else { return };
        let ready: Members = group.ready().into_iter().filter(|member| !member.disabled).collect();
        if group.enrolled().len() < 2 {
            return;
        }
        for member in ready.into_iter().filter(|member| self.opens(member).is_some()) {
            if let Err(error) = self.ensure_transport(&member).await {
                tracing::warn!(hsm = %member.name, %error, "the HSM has no transport key yet");
            }
        }
    }

    pub(in crate::seal) async fn ensure_transport(&self, member: &Member) -> Result<(), SealError> {
        self.forget_lost_transport(member).await?;
        let known = MemberRecord::load(&self.barrier, &member.name)?;
        if known.is_some_and(|known| known.transport.is_some()) || self.has_intent(&member.name)? {
            return Ok(());
        }
        let id = KeyId::random();
        self.begin("transport", member, vec![id], false).await?;
        let public_key = member.hsm.create_transport_key(&self.label(member, "seal/transport", 1), id).await?;
        reach("seal-transport-key");
        let record = MemberRecord { format: 1, name: member.name.clone(), transport: Some(TransportKey { id, public_key }) };
        self.barrier.commit(record.put(Txn::new())?.delete(intent_path(&member.name))).await?;
        tracing::info!(hsm = %member.name, "the HSM has a transport key");
        Ok(())
    }

    /// A transport key that is recorded and gone (the token was made anew) is forgotten, so that a new one is made. Looked
    /// for once in each stay of the HSM.
    pub(in crate::seal) async fn forget_lost_transport(&self, member: &Member) -> Result<(), SealError> {
        let Some(mut record) = MemberRecord::load(&self.barrier, &member.name)? else { return Ok(()) };
        let (Some(transport), Some(facts)) = (&record.transport, member.facts()) else { return Ok(()) };
        // The record is that of another HSM while a stanza has the wrong one's name.
        self.refuse_misnamed(member)?;
        let seen = (Arc::clone(&facts), transport.id);
        let known = |(of, id): &(Arc<TokenFacts>, KeyId)| Arc::ptr_eq(of, &facts) && *id == transport.id;
        if self.transports.lock().get(&member.name).is_some_and(known) {
            return Ok(());
        }
        let found = member.hsm.find(&format!("sos/{}/seal/transport/", self.label_of(member))).await?;
        if found.iter().any(|object| object.id == Some(transport.id)) {
            self.transports.lock().insert(member.name.clone(), seen);
            return Ok(());
        }
        record.transport = None;
        self.barrier.commit(record.put(Txn::new())?).await?;
        Ok(())
    }
}
