//! Which HSM opens which wrapped copy of the root key: asked of the HSMs, not taken from the names of their stanzas.
//!
//! An HSM is known by the seal key on its token. A stanza that was given another name, or two that were swapped, lead to the
//! tokens that they led to before: their copies get the names of the stanzas, and so does all else that names an HSM.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::record::{MemberRecord, SealIntent, SealRecord, member_path};
use super::{Seal, SealError, SealedReason, root_key_binding};
use crate::barrier::Txn;
use crate::hsm::{HsmError, Member, TokenFacts};
use crate::storage::Version;
use crate::zones;

/// How long what was seen is taken for true while neither the HSM nor the seal record changes.
const TRUSTED: Duration = Duration::from_secs(60);

/// What an HSM does with the wrapped copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Opens {
    /// It opens the copy of this name.
    Copy(String),
    /// Its token has no seal key of this cluster, or one that does not open its copy.
    Nothing(SealedReason),
}

/// What was seen of an HSM.
pub(super) struct Look {
    facts: Arc<TokenFacts>,
    record: Version,
    at: Instant,
    opens: Opens,
}

impl Seal {
    /// Looks at every HSM that is ready. What was seen in its present stay, of the same record and not long ago, is kept,
    /// unless `anew`.
    pub(super) async fn look_around(&self, record: &SealRecord, version: Version, anew: bool) {
        let Some(group) = &self.hsm else { return };
        let members = group.members();
        let mut open = Vec::new();
        for member in members.iter() {
            let Some(facts) = member.facts() else { continue };
            let known = |look: &Look| Arc::ptr_eq(&look.facts, &facts) && look.record == version && look.at.elapsed() < TRUSTED;
            if anew || !self.looks.lock().get(&member.name).is_some_and(known) {
                open.push(async move { (member, facts, self.what_opens(member, record).await) });
            }
        }
        for (member, facts, opens) in join_all(open).await {
            let mut looks = self.looks.lock();
            match opens {
                Some(opens) => {
                    looks.insert(member.name.clone(), Look { facts, record: version, at: Instant::now(), opens });
                }
                // It does not say.
                None => {
                    looks.remove(&member.name);
                }
            }
        }
    }

    /// What a ready HSM was last seen to open; `None` while that is not known.
    pub(super) fn opens(&self, member: &Member) -> Option<Opens> {
        let now = member.facts()?;
        let looks = self.looks.lock();
        looks.get(&member.name).filter(|look| Arc::ptr_eq(&look.facts, &now)).map(|look| look.opens.clone())
    }

    async fn what_opens(&self, member: &Member, record: &SealRecord) -> Option<Opens> {
        let binding = root_key_binding(&record.cluster_id);
        let mut verdict = SealedReason::HsmKeyMissing;
        let others = record.hsm_wrappers().filter(|(name, _)| *name != member.name);
        let own = record.hsm_blob(&member.name).map(|blob| (member.name.as_str(), blob));
        for (name, blob) in own.into_iter().chain(others) {
            match member.hsm.unseal(blob, &binding).await {
                Ok(root) if self.barrier.verify_root(&root).is_ok() => return Some(Opens::Copy(name.to_owned())),
                Ok(_) | Err(HsmError::BadInput(_)) => verdict = SealedReason::HsmKeyMismatch,
                Err(HsmError::KeyMissing(_)) => {}
                Err(_) => return None,
            }
        }
        Some(Opens::Nothing(verdict))
    }

    /// Gives wrapped copies the names of the stanzas whose HSMs open them, and enrols these.
    pub(super) async fn adopt(&self) -> Result<(), SealError> {
        // Each round puts one HSM right for good.
        let rounds = self.hsm.as_ref().map_or(0, |group| group.members().len());
        for _ in 0..=rounds {
            let (record, version) = self.open_record()?;
            self.look_around(&record, version, false).await;
            self.enroll(&record);
            match self.misnamed() {
                Some((from, to)) => self.rename(record, version, &from, &to).await?,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// A copy, and the stanza whose HSM opens it. While another stanza has the copy's name, its HSM must have been seen not
    /// to open it: two stanzas may lead to one token, and an HSM that is away may be the right one.
    fn misnamed(&self) -> Option<(String, String)> {
        let group = self.hsm.as_ref()?;
        group.members().iter().find_map(|member| {
            let Some(Opens::Copy(copy)) = self.opens(member) else { return None };
            let free = match group.member(&copy) {
                None => true,
                Some(namesake) => self.opens(&namesake).is_some_and(|opens| opens != Opens::Copy(copy.clone())),
            };
            (copy != member.name && free).then(|| (copy, member.name.clone()))
        })
    }

    /// Swaps two names everywhere; an HSM of the second one need not exist.
    pub(super) async fn rename(&self, mut record: SealRecord, version: Version, from: &str, to: &str) -> Result<(), SealError> {
        record.swap_names(from, to);
        let mut txn = Txn::new();
        for (old, new) in [(from, to), (to, from)] {
            txn = match MemberRecord::load(&self.barrier, old)? {
                Some(member) => MemberRecord { name: new.to_owned(), ..member }.put(txn)?,
                None => txn.delete(member_path(new)),
            };
        }
        let intents = SealIntent::all(&self.barrier)?;
        for (old, new) in [(from, to), (to, from)] {
            txn = match intents.iter().find(|(_, intent, _)| intent.member == old) {
                Some((_, intent, _)) => SealIntent { member: new.to_owned(), ..intent.clone() }.put(txn)?,
                None => txn.delete(SealIntent::path_of(new)),
            };
        }
        txn = zones::rename_holder(&self.barrier, txn, from, to)?;
        self.barrier.commit_with(txn, record.write(Some(version))?).await?;
        tracing::warn!(from, to, "an HSM was found under another name of its stanza: the cluster calls it by that name now");
        self.enroll(&record);
        Ok(())
    }
}
