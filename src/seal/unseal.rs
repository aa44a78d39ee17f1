//! Opening the barrier: by the HSM without a human, or by shares.

use std::sync::Arc;
use std::time::Duration;

use super::progress::Collected;
use super::record::{CLUSTER_PATH, InitIntent, SealRecord};
use super::wire::{SealStatusResponse, UnsealRequest};
use super::{ClusterFacts, Seal, SealError, SealType, SealedReason, root_key_binding, shamir};
use crate::barrier::BarrierError;
use crate::crashpoint::reach;
use crate::hsm::{Hsm, HsmError, Status};
use crate::secret::SecretBytes;

/// Longest pause between two attempts to unseal by the HSM.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// How an attempt to unseal by the HSM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoUnseal {
    /// The barrier was opened.
    Unsealed,
    /// It was open already.
    Open,
    /// There is no cluster yet.
    NotInitialized,
    /// Only shares open this cluster, or `sys/seal` holds it.
    ByHand,
    /// It stays sealed for this reason; to be tried again.
    Waiting(SealedReason),
}

impl Seal {
    /// Tries to open the barrier by the HSM, and cleans up an init that was interrupted. Never fails: the reason is kept for
    /// `sys/seal-status` and the details go to the log.
    pub async fn auto_unseal(&self) -> AutoUnseal {
        let _working = self.working.lock().await;
        if !self.is_sealed() {
            return AutoUnseal::Open;
        }
        let (outcome, detail) = match self.attempt().await {
            Ok(outcome) => return outcome,
            Err(failed) => failed,
        };
        if self.state.lock().reason.replace(outcome) != Some(outcome) {
            match outcome {
                // Seen at every start; nothing is wrong yet.
                SealedReason::HsmStarting => tracing::info!("waiting for the HSM"),
                _ => tracing::warn!(reason = outcome.word(), detail, "the server stays sealed"),
            }
        }
        AutoUnseal::Waiting(outcome)
    }

    /// Goes on trying [`Seal::auto_unseal`]: when the HSM's state changes and, with growing pauses, in between. Ends never;
    /// to be spawned at start.
    pub async fn keep_unsealed(self: Arc<Self>) {
        let Some(hsm) = &self.hsm else { return };
        let mut changes = hsm.subscribe();
        let mut pause = FIRST_PAUSE;
        loop {
            changes.borrow_and_update();
            match self.auto_unseal().await {
                AutoUnseal::Waiting(_) => pause = (pause * 2).min(LONGEST_PAUSE),
                _ => pause = FIRST_PAUSE * 4,
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// `PUT sys/unseal`.
    pub async fn unseal(&self, request: UnsealRequest) -> Result<SealStatusResponse, SealError> {
        let _working = self.working.lock().await;
        if request.reset {
            if !self.is_sealed() {
                return Err(SealError::invalid("vault is unsealed"));
            }
            self.state.lock().unseal = None;
            return self.status();
        }
        if request.key.is_empty() {
            return Err(SealError::invalid("'key' must be specified in request body as JSON, or 'reset' set to true"));
        }
        let share = shamir::decode(&request.key)?;
        if request.migrate {
            return Err(SealError::invalid("can't perform a seal migration, no migration seal found"));
        }
        let (record, _) = self.record()?.ok_or(SealError::NotInitialized)?;
        if !self.is_sealed() {
            return self.status();
        }
        if let Some(shares) = self.collect(share, record.threshold) {
            let secret = shamir::combine(&shares).map_err(|_shares| SealError::InvalidKey)?;
            let root = record.root_by_secret(&secret)?;
            self.open(&record, &root).await?;
            tracing::info!("unsealed by shares");
        }
        self.status()
    }

    /// Adds a share (one entered twice counts once); the shares when there are enough.
    fn collect(&self, share: SecretBytes, threshold: u8) -> Option<Vec<SecretBytes>> {
        let mut state = self.state.lock();
        let collected = state.unseal.get_or_insert_with(Collected::new);
        collected.add(share);
        let enough = collected.take_if(threshold);
        if enough.is_some() {
            state.unseal = None;
        }
        enough
    }

    async fn attempt(&self) -> Result<AutoUnseal, (SealedReason, String)> {
        let record = match self.record() {
            Ok(record) => record.map(|(record, _)| record),
            Err(error) => return Err((reason_of(&error), error.to_string())),
        };
        let Some(record) = record else {
            if let Err(error) = self.finish_interrupted_init().await {
                tracing::warn!(%error, "an interrupted init could not be cleaned up yet");
            }
            return Ok(AutoUnseal::NotInitialized);
        };
        if record.seal_type == SealType::Shamir || self.state.lock().held {
            return Ok(AutoUnseal::ByHand);
        }
        let root = self.unwrap_by_hsm(&record).await?;
        match self.open(&record, &root).await {
            Ok(()) => {
                tracing::info!("unsealed by the HSM");
                Ok(AutoUnseal::Unsealed)
            }
            Err(error) => Err((reason_of(&error), error.to_string())),
        }
    }

    /// The root key by the first HSM that opens a copy. An HSM is known by its seal key: where it is not that of its stanza's
    /// name (stanzas were renamed or swapped), the other copies are tried.
    pub(super) async fn unwrap_by_hsm(&self, record: &SealRecord) -> Result<SecretBytes, (SealedReason, String)> {
        let group = self.group().ok_or((SealedReason::HsmNotConfigured, String::new()))?;
        let binding = root_key_binding(&record.cluster_id);
        let mut failed: Option<(SealedReason, String)> = None;
        for member in group.members().iter() {
            let own = record.hsm_blob(&member.name).map(|blob| (member.name.as_str(), blob));
            let others = record.hsm_wrappers().filter(|(name, _)| *name != member.name);
            for (name, blob) in own.into_iter().chain(others) {
                let reason = match member.hsm.status() {
                    Status::Ready(_) => match member.hsm.unseal(blob, &binding).await {
                        Ok(root) => return Ok(root),
                        Err(error) => (reason_of_hsm(&error), format!("{}: {error}", member.name)),
                    },
                    Status::Starting => (SealedReason::HsmStarting, String::new()),
                    Status::Down { reason, detail } => (SealedReason::Hsm(reason), format!("{}: {detail}", member.name)),
                };
                // What one HSM makes of the copy of another that is configured is nobody's state.
                let counts = name == member.name || group.member(name).is_none();
                // An HSM that is just starting says nothing yet; otherwise the first one in the order has the word.
                if counts && failed.as_ref().is_none_or(|(earlier, _)| *earlier == SealedReason::HsmStarting) {
                    failed = Some(reason);
                }
            }
        }
        Err(failed.unwrap_or((SealedReason::HsmNotConfigured, "no configured HSM is enrolled".to_owned())))
    }

    /// Opens the barrier with the root key, compares the readable record with what the barrier vouches for, and starts
    /// the rest of the server. On any failure the barrier is closed again.
    pub(super) async fn open(&self, record: &SealRecord, root: &SecretBytes) -> Result<(), SealError> {
        self.barrier.unlock(root).await?;
        reach("start-unlocked");
        let started = match self.check_facts(record) {
            Ok(()) => {
                self.enroll(record);
                if let Err(error) = self.adopt_renamed(record).await {
                    tracing::warn!(%error, "an HSM whose stanza was renamed is not called by its new name yet");
                }
                self.start_host().await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = started {
            self.close().await;
            self.state.lock().reason = Some(reason_of(&error));
            return Err(error);
        }
        let mut state = self.state.lock();
        *state = super::State::default();
        Ok(())
    }

    /// Finds out whose copy it is where no stanza has its name. All other cases can wait for the next tick.
    async fn adopt_renamed(&self, record: &SealRecord) -> Result<(), SealError> {
        let Some(group) = &self.hsm else { return Ok(()) };
        match record.hsm_wrappers().any(|(name, _)| group.member(name).is_none()) {
            true => self.adopt().await,
            false => Ok(()),
        }
    }

    pub(super) async fn start_host(&self) -> Result<(), SealError> {
        match self.host.get() {
            Some(host) => host.unsealed().await.map_err(SealError::Host),
            None => Ok(()),
        }
    }

    fn check_facts(&self, record: &SealRecord) -> Result<(), SealError> {
        let facts = ClusterFacts::load(&self.barrier)?;
        if facts == ClusterFacts::of(record) {
            return Ok(());
        }
        Err(SealError::Record {
            path: super::SEAL_PATH,
            reason: format!("it does not agree with {CLUSTER_PATH:?} behind the barrier"),
        })
    }

    /// Removes from the HSM what an interrupted init made there.
    pub(super) async fn finish_interrupted_init(&self) -> Result<(), SealError> {
        let storage = self.barrier.raw();
        if InitIntent::load(storage.as_ref())?.is_none() {
            return Ok(());
        }
        // An init whose end the store could not tell may have taken effect.
        self.barrier.confirm(&[super::INTENT_PATH, super::SEAL_PATH, super::KEYRING_PATH]).await?;
        let Some((intent, version)) = InitIntent::load(storage.as_ref())? else { return Ok(()) };
        if !self.is_initialized()? {
            let named = intent.member.as_ref().and_then(|name| self.hsm.as_ref()?.member(name));
            let member = match named {
                Some(member) => member,
                None => self.needed_maker()?,
            };
            for id in &intent.keys {
                member.hsm.destroy(*id).await?;
            }
            tracing::warn!(key_label = %intent.key_label, "an interrupted init was undone");
        }
        let txn = crate::storage::Txn::new()
            .check(super::INTENT_PATH, crate::storage::Expect::Version(version))
            .delete(super::INTENT_PATH);
        storage.commit(txn).await.map_err(BarrierError::from)?;
        Ok(())
    }
}

pub(super) fn reason_of_hsm(error: &HsmError) -> SealedReason {
    match error {
        HsmError::KeyMissing(_) => SealedReason::HsmKeyMissing,
        HsmError::BadInput(_) => SealedReason::HsmKeyMismatch,
        HsmError::Unavailable { reason, .. } => SealedReason::Hsm(*reason),
        HsmError::Unsupported(_) | HsmError::KeyExists(_) | HsmError::Timeout => {
            SealedReason::Hsm(crate::hsm::DownReason::DeviceError)
        }
    }
}

fn reason_of(error: &SealError) -> SealedReason {
    match error {
        SealError::Barrier(BarrierError::Storage(_)) => SealedReason::StorageError,
        SealError::Barrier(_) | SealError::InvalidKey => SealedReason::KeyringCorrupt,
        SealError::Record { .. } => SealedReason::SealRecordCorrupt,
        SealError::NotInitialized => SealedReason::NotInitialized,
        _ => SealedReason::StartFailed,
    }
}
