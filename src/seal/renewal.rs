//! A root key that must be renewed as soon as every enrolled HSM can wrap the new one.
//!
//! New shares come with a new root key, so that the old shares and an old copy of the store do not open the store as it is
//! today. An HSM that is away must go on opening the root key, so the old one stays until it is back. By then the new shares
//! are out of reach. Therefore a key pair is made while they are there: the private half is encrypted by their secret, the
//! public half waits behind the barrier, and to it the new root key is wrapped. The pair lives until the next new shares.
//!
//! ```text
//! core/root-renewal  RootRenewal, JSON, behind the barrier: the root key is still the one of the shares before
//! ```

use serde::{Deserialize, Serialize};

use super::escrow::SharesKeyPair;
use super::look::Opens;
use super::record::{SealRecord, Wrapper, parse};
use super::{Seal, SealError, root_key_binding};
use crate::barrier::{Barrier, BarrierError, Entry, ROOT_KEY_LEN, Txn};
use crate::crashpoint::reach;
use crate::hsm::{SealedBlob, Status};
use crate::secret::SecretBytes;
use crate::storage::{self, Version};

/// Where a renewal that waits is noted, behind the barrier.
pub(super) const RENEWAL_PATH: &str = "core/root-renewal";

/// The root key is still the one of the shares before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RootRenewal {
    /// Layout of this record, 1.
    pub(super) format: u32,
    /// What the new root key is wrapped to for the shares.
    pub(super) shares: SharesKeyPair,
}

impl RootRenewal {
    pub(super) fn load(barrier: &Barrier) -> Result<Option<(Self, Entry)>, SealError> {
        let Some(entry) = barrier.get(RENEWAL_PATH)? else { return Ok(None) };
        Ok(Some((parse(RENEWAL_PATH, entry.value.expose())?, entry)))
    }

    pub(super) fn into_txn(self) -> Result<Txn, SealError> {
        let json = serde_json::to_vec(&self);
        let json = json.map_err(|error| SealError::Record { path: RENEWAL_PATH, reason: error.to_string() })?;
        Ok(Txn::new().put(RENEWAL_PATH, json))
    }
}

/// An HSM for which the root key's renewal waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AwaitedHsm {
    /// Its name.
    pub name: String,
    /// Why it cannot wrap a new root key: a word of `sys/seal-status`.
    pub reason: &'static str,
}

impl Seal {
    /// The HSMs for which the root key's renewal waits; `None` when the root key is the one of the present shares. An empty
    /// list: it is about to be renewed.
    pub(super) fn awaited_for_renewal(&self) -> Result<Option<Vec<AwaitedHsm>>, SealError> {
        if RootRenewal::load(&self.barrier)?.is_none() {
            return Ok(None);
        }
        let (record, _) = self.open_record()?;
        Ok(Some(self.awaited_of(&record)))
    }

    /// The enrolled HSMs that cannot wrap a new root key now.
    pub(super) fn awaited_of(&self, record: &SealRecord) -> Vec<AwaitedHsm> {
        record.hsm_wrappers().filter_map(|(name, _)| self.why_not_wrapping(name)).collect()
    }

    fn why_not_wrapping(&self, name: &str) -> Option<AwaitedHsm> {
        let reason = match self.hsm.as_ref().and_then(|group| group.member(name)) {
            None => "not-configured",
            Some(member) => match member.hsm.status() {
                Status::Starting => "starting",
                Status::Down { reason, .. } => reason.word(),
                Status::Ready(_) => match self.opens(&member) {
                    Some(Opens::Nothing(reason)) => reason.word(),
                    Some(Opens::Copy(_)) | None => return None,
                },
            },
        };
        Some(AwaitedHsm { name: name.to_owned(), reason })
    }

    /// Renews the root key where that waits and every enrolled HSM is there now; to be called with the seal's lock held.
    /// Whether nothing waits any more.
    pub(super) async fn finish_renewal(&self) -> Result<bool, SealError> {
        let Some((renewal, entry)) = RootRenewal::load(&self.barrier)? else { return Ok(true) };
        let (mut record, version) = self.open_record()?;
        let root = SecretBytes::random(ROOT_KEY_LEN);
        let Ok(sealed) = self.wrap_by_hsms(&record, version, &root).await else { return Ok(false) };
        let blob = renewal.shares.wrap(&root)?;
        for (name, sealed) in sealed {
            record.set_hsm_blob(&name, sealed);
        }
        record.set_shares(Wrapper::Shares { blob, through: Some(renewal.shares.private_key) });
        reach("root-renewal-wrapped");
        let txn = record.write(Some(version))?;
        let txn = txn.check(RENEWAL_PATH, Entry::unchanged(Some(&entry))).delete(RENEWAL_PATH);
        self.barrier.rekey(&root, txn).await?;
        reach("root-renewal-committed");
        tracing::warn!("the root key was renewed: the shares of before do not open the store any more");
        Ok(true)
    }

    /// The root key wrapped by every enrolled HSM, and opened again. The HSMs that cannot do it now are the error. It puts
    /// no object onto them, so those whose stanza is `disabled` do it as well.
    pub(super) async fn wrap_by_hsms(
        &self,
        record: &SealRecord,
        version: Version,
        root: &SecretBytes,
    ) -> Result<Vec<(String, SealedBlob)>, Vec<AwaitedHsm>> {
        self.look_around(record, version, false).await;
        let away: Vec<_> = record.hsm_wrappers().filter_map(|(name, _)| self.why_not_wrapping(name)).collect();
        if !away.is_empty() {
            return Err(away);
        }
        let binding = root_key_binding(&record.cluster_id);
        let mut all = Vec::new();
        for (name, blob) in record.hsm_wrappers() {
            let failed = |reason| vec![AwaitedHsm { name: name.to_owned(), reason }];
            let Some(member) = self.hsm.as_ref().and_then(|group| group.member(name)) else {
                return Err(failed("not-configured"));
            };
            let sealed = async {
                let sealed = member.hsm.seal(blob.key, root, &binding).await?;
                let opened = member.hsm.unseal(&sealed, &binding).await?;
                Ok((sealed, opened))
            };
            match sealed.await {
                Ok((sealed, opened)) if opened.same_as(root.expose()) => all.push((name.to_owned(), sealed)),
                Ok(_) => return Err(failed("hsm-key-mismatch")),
                Err(error) => {
                    tracing::warn!(hsm = name, %error, "the HSM did not wrap the new root key");
                    return Err(failed(super::unseal::reason_of_hsm(&error).word()));
                }
            }
        }
        Ok(all)
    }

    /// Writes a seal record with new shares under the root key of before, which is to be renewed.
    pub(super) async fn postpone_renewal(&self, renewal: Txn, record: storage::Txn) -> Result<(), BarrierError> {
        self.barrier.commit_with(renewal, record).await.map(|_version| ())
    }
}

/// Makes the pair that the root key will be wrapped to. Takes a moment of computing.
pub(super) async fn make_pair(secret: SecretBytes, cluster_id: String) -> Result<SharesKeyPair, SealError> {
    tokio::task::spawn_blocking(move || SharesKeyPair::generate(&secret, &cluster_id))
        .await
        .map_err(|_panicked| SealError::Internal("making the key pair of the shares failed".into()))?
}

/// What is said to whoever made new shares, and in warnings.
pub(super) fn notice(awaited: &[AwaitedHsm]) -> String {
    let names: Vec<_> = awaited.iter().map(|hsm| format!("{} ({})", hsm.name, hsm.reason)).collect();
    let until = match names.is_empty() {
        true => "it is renewed in a moment".to_owned(),
        false => format!("it is renewed by itself when this HSM is there or removed: {}", names.join(", ")),
    };
    format!(
        "the root key is still the one of the shares before: whoever has those and a copy of the store from their time opens the \
         store as it is today; {until}"
    )
}
