//! The seal: who protects the root key, and how the barrier is opened and closed.
//!
//! The root key is stored only wrapped (`record.rs`): by a seal key in an HSM, and by the Shamir secret that was split at
//! init. Any one wrapper opens it. With an HSM the shares are the escrow, which really unseals and also opens the
//! private key to which every zone master key is wrapped (`escrow.rs`).
//!
//! [`Seal`] is a state machine without HTTP: each API path is one method with a request and a response type
//! (`wire.rs`). What has to happen in the rest of the server when the barrier opens or closes is behind [`Host`].

mod escrow;
mod exchange;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod init;
mod known;
mod listing;
mod look;
mod members;
mod orphans;
mod pin_memory;
mod progress;
mod record;
mod recover;
mod rekey;
mod renewal;
mod root;
mod shamir;
mod unseal;
pub mod wire;

use std::collections::HashMap;
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use parking_lot::Mutex;
use thiserror::Error;

use crate::barrier::{Barrier, BarrierError, KEYRING_PATH};
use crate::hsm::{DownReason, Group, Hsm, HsmError, KeyId, Member, Status, TokenFacts};
use crate::secret::{SecretBytes, SecretString};
use crate::zones::ZoneError;

pub use escrow::{EscrowKeyPair, recover_master_key};
pub use listing::{PendingListing, SealListing, SealsResponse};
pub use members::{Added, Removed};
pub use orphans::Orphan;
pub use pin_memory::StoredPinMemory;
pub use record::{CLUSTER_PATH, ClusterFacts, INTENT_PATH, MemberRecord, SEAL_PATH, SealRecord, SealType, TransportKey, Wrapper};
pub use recover::Recovered;
pub use rekey::RekeyKind;
pub use renewal::AwaitedHsm;
pub use root::OTP_LENGTH;
pub use unseal::AutoUnseal;

use look::{Look, Opens};
use progress::Collected;
use rekey::Rekey;
use root::RootGeneration;
use wire::SealStatusResponse;

/// Why the seal did not do what was asked.
#[derive(Debug, Error)]
pub enum SealError {
    /// The operation needs an open barrier.
    #[error("Vault is sealed")]
    Sealed,
    /// The operation needs a cluster.
    #[error("Vault is not initialized")]
    NotInitialized,
    /// There is a cluster in the store.
    #[error("Vault is already initialized")]
    AlreadyInitialized,
    /// The request is wrong; the text is for the caller.
    #[error("{0}")]
    Invalid(String),
    /// The asked-for shares and threshold cannot be; Vault calls this an internal error.
    #[error("{0}")]
    Counts(String),
    /// The shares given do not open what they should.
    #[error("Unseal failed, invalid key")]
    InvalidKey,
    /// The HSM holds keys under this label, but the store is empty: this is not a new cluster.
    #[error(
        "the HSM already holds {count} object(s) of a cluster under key_label {key_label:?} (first: {first:?}), but the store is \
         empty; point this server at that cluster's store or backup, or choose another key_label for a new cluster"
    )]
    HsmInUse {
        /// The configured label.
        key_label: String,
        /// Objects found.
        count: usize,
        /// Label of the first of them.
        first: String,
    },
    /// The token holds objects under the cluster's label that its store does not know.
    #[error(
        "the HSM {member:?} already holds {count} object(s) under key_label {key_label:?} that this cluster's store does not know (first: {first:?}): it is another cluster's, or newer than this store; choose another key_label or token, or delete them there"
    )]
    TokenInUse {
        /// The HSM.
        member: String,
        /// The configured label.
        key_label: String,
        /// Objects found.
        count: usize,
        /// Label of the first of them.
        first: String,
    },
    /// The HSM cannot be used now.
    #[error("the HSM is not available ({reason})")]
    HsmUnavailable {
        /// One of the fixed words of `sys/seal-status`.
        reason: &'static str,
    },
    /// The HSM refused.
    #[error(transparent)]
    Hsm(#[from] HsmError),
    /// The barrier or the store refused.
    #[error(transparent)]
    Barrier(#[from] BarrierError),
    /// The default zone could not be made.
    #[error(transparent)]
    Zone(#[from] ZoneError),
    /// A stored seal record cannot be read, or does not fit the cluster.
    #[error("the record {path:?} is corrupt: {reason}")]
    Record {
        /// The damaged record.
        path: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The rest of the server could not start or make a token.
    #[error("{0}")]
    Host(String),
    /// Something that should not happen.
    #[error("{0}")]
    Internal(String),
}

impl SealError {
    fn invalid(text: &str) -> Self {
        SealError::Invalid(text.to_owned())
    }
}

/// Why the server is sealed: the fixed words of `sealed_reason` in `sys/seal-status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealedReason {
    /// There is no cluster yet.
    NotInitialized,
    /// Shares must be entered (`shamir`).
    WaitingForShares,
    /// `sys/seal` was called; it stays sealed until a restart or an unseal.
    Operator,
    /// The HSM is being started or tested.
    HsmStarting,
    /// The HSM cannot be used.
    Hsm(DownReason),
    /// The cluster was made with an HSM, and none is configured.
    HsmNotConfigured,
    /// The seal key is not on the token.
    HsmKeyMissing,
    /// The token's seal key does not open the stored root key.
    HsmKeyMismatch,
    /// The root key does not open the keyring.
    KeyringCorrupt,
    /// A seal record is damaged or belongs to another cluster.
    SealRecordCorrupt,
    /// The store does not answer.
    StorageError,
    /// The barrier opened, but the rest of the server did not start.
    StartFailed,
}

impl SealedReason {
    /// The word that `sys/seal-status` shows.
    pub fn word(self) -> &'static str {
        match self {
            SealedReason::NotInitialized => "not-initialized",
            SealedReason::WaitingForShares => "waiting-for-shares",
            SealedReason::Operator => "sealed-by-operator",
            SealedReason::HsmStarting => "hsm-starting",
            SealedReason::Hsm(reason) => reason.word(),
            SealedReason::HsmNotConfigured => "hsm-not-configured",
            SealedReason::HsmKeyMissing => "hsm-key-missing",
            SealedReason::HsmKeyMismatch => "hsm-key-mismatch",
            SealedReason::KeyringCorrupt => "keyring-corrupt",
            SealedReason::SealRecordCorrupt => "seal-record-corrupt",
            SealedReason::StorageError => "storage-error",
            SealedReason::StartFailed => "start-failed",
        }
    }
}

/// What the rest of the server does for the seal. Its methods are called while a seal operation is under way and
/// must not call one.
#[async_trait]
pub trait Host: Send + Sync + 'static {
    /// The barrier was opened: load everything that lives behind it. On an error it is closed again.
    async fn unsealed(&self) -> Result<(), String>;

    /// The barrier is about to be closed: forget everything that came from behind it.
    async fn sealing(&self);

    /// Whether requests are served: between the barrier's opening and the end of [`Host::unsealed`] they are not.
    fn serving(&self) -> bool {
        true
    }

    /// Makes a root token that never expires.
    async fn make_root_token(&self) -> Result<SecretString, String>;

    /// Takes back a root token that could not be handed over.
    async fn revoke_root_token(&self, token: &SecretString);
}

/// What the seal is told by configuration and build.
#[derive(Clone, Debug, Default)]
pub struct SealSettings {
    /// Objects on the token carry `sos/<key_label>/…`; one label per cluster.
    pub key_label: String,
    /// Name of a new cluster; made up when empty.
    pub cluster_name: String,
    /// Whether zone master keys are wrapped to the escrow. Without it they die with the HSM.
    pub escrow: bool,
    /// Kind of store, for `sys/seal-status`.
    pub storage_type: String,
    /// Version of Vault's API, for `sys/seal-status`.
    pub version: String,
    /// When the program was built, for `sys/seal-status`.
    pub build_date: String,
    /// Version of this program, for `sys/seal-status`.
    pub sos_version: String,
}

/// What is under way, in memory only.
#[derive(Default)]
struct State {
    unseal: Option<Collected>,
    rekey: Option<Rekey>,
    rekey_recovery: Option<Rekey>,
    root: Option<RootGeneration>,
    /// `sys/seal` was called.
    held: bool,
    /// Why the last attempt left it sealed.
    reason: Option<SealedReason>,
}

/// What was decoded of the store; see `known.rs`.
#[derive(Default)]
struct Known {
    record: ArcSwapOption<known::KnownRecord>,
    state: ArcSwapOption<known::KnownState>,
}

/// The seal of one cluster.
pub struct Seal {
    barrier: Arc<Barrier>,
    hsm: Option<Arc<Group>>,
    settings: SealSettings,
    /// [`SealSettings::escrow`], which a reload of the configuration may change.
    escrow: AtomicBool,
    host: OnceLock<Arc<dyn Host>>,
    state: Mutex<State>,
    /// Transport keys that were seen on their HSM in its present stay.
    transports: Mutex<HashMap<String, (Arc<TokenFacts>, KeyId)>>,
    /// What each HSM was last seen to open.
    looks: Mutex<HashMap<String, Look>>,
    /// Stored records as they were last decoded.
    known: Known,
    /// One operation that changes the seal at a time; `sys/seal-status` never waits for it.
    working: tokio::sync::Mutex<()>,
}

impl Seal {
    /// A seal over `barrier`, by the HSM (or group of HSMs) if there is one and by shares alone otherwise.
    pub fn new(barrier: Arc<Barrier>, hsm: Option<Arc<dyn Hsm>>, settings: SealSettings) -> Self {
        let escrow = AtomicBool::new(settings.escrow);
        Self {
            barrier,
            hsm: hsm.map(Hsm::into_group),
            settings,
            escrow,
            host: OnceLock::new(),
            state: Mutex::default(),
            transports: Mutex::default(),
            looks: Mutex::default(),
            known: Known::default(),
            working: tokio::sync::Mutex::new(()),
        }
    }

    /// Names the rest of the server; once, before anything is unsealed.
    pub fn attach(&self, host: Arc<dyn Host>) {
        if self.host.set(host).is_err() {
            tracing::error!("the seal was attached twice; the first host stays");
        }
    }

    /// The barrier.
    pub fn barrier(&self) -> &Arc<Barrier> {
        &self.barrier
    }

    /// Whether the barrier is closed.
    pub fn is_sealed(&self) -> bool {
        self.barrier.is_sealed()
    }

    /// Whether there is a cluster in the store (`GET sys/init`).
    pub fn is_initialized(&self) -> Result<bool, SealError> {
        let storage = self.barrier.raw();
        let seal = storage.get(SEAL_PATH).map_err(BarrierError::from)?;
        Ok(seal.is_some() || storage.get(KEYRING_PATH).map_err(BarrierError::from)?.is_some())
    }

    /// `GET sys/seal-status`.
    pub fn status(&self) -> Result<SealStatusResponse, SealError> {
        let record = self.known_record()?.map(|(record, _)| record);
        let seal_type = record.as_ref().map_or(self.configured_type(), |record| record.seal_type);
        // Who waits for "unsealed" wants to send requests next.
        let sealed = self.is_sealed() || self.host.get().is_some_and(|host| !host.serving());
        let recovery_seal = seal_type == SealType::Pkcs11;
        let state = self.state.lock();
        let collected = state.unseal.as_ref();
        Ok(SealStatusResponse {
            seal_type: seal_type.word(),
            initialized: record.is_some(),
            sealed,
            t: record.as_ref().map_or(0, |record| record.threshold),
            n: record.as_ref().map_or(0, |record| record.shares),
            progress: collected.map_or(0, Collected::len),
            nonce: collected.map(|collected| collected.nonce().to_owned()).unwrap_or_default(),
            version: self.settings.version.clone(),
            build_date: self.settings.build_date.clone(),
            migration: false,
            cluster_name: record.as_ref().filter(|_| !sealed).map(|record| record.cluster_name.clone()),
            cluster_id: record.as_ref().filter(|_| !sealed).map(|record| record.cluster_id.clone()),
            recovery_seal,
            recovery_seal_type: recovery_seal.then_some(SealType::Shamir.word()),
            storage_type: self.settings.storage_type.clone(),
            sealed_reason: sealed.then(|| self.reason(&state, record.as_deref()).word()),
            sos_version: self.settings.sos_version.clone(),
        })
    }

    /// `PUT sys/seal`: closes the barrier until a restart or an unseal by hand.
    pub async fn seal(&self) -> Result<(), SealError> {
        let _working = self.working.lock().await;
        if self.is_sealed() {
            return Err(SealError::Sealed);
        }
        self.close().await;
        let mut state = self.state.lock();
        *state = State { held: true, reason: Some(SealedReason::Operator), ..State::default() };
        Ok(())
    }

    /// Closes the barrier because the process ends.
    pub async fn shut_down(&self) {
        let _working = self.working.lock().await;
        if !self.is_sealed() {
            self.close().await;
        }
    }

    /// The stored seal record, as restore and diagnosis need it; nothing in it is secret.
    pub fn seal_record(&self) -> Result<Option<SealRecord>, SealError> {
        Ok(self.record()?.map(|(record, _)| record))
    }

    async fn close(&self) {
        if let Some(host) = self.host.get() {
            host.sealing().await;
        }
        self.barrier.lock().await;
        if let Some(group) = &self.hsm {
            group.forget();
        }
        self.looks.lock().clear();
    }

    fn configured_type(&self) -> SealType {
        if self.group().is_some() { SealType::Pkcs11 } else { SealType::Shamir }
    }

    fn record(&self) -> Result<Option<(SealRecord, u64)>, SealError> {
        SealRecord::load(self.barrier.raw().as_ref())
    }

    /// The record of an initialised and unsealed cluster.
    fn open_record(&self) -> Result<(SealRecord, u64), SealError> {
        if self.is_sealed() {
            return Err(SealError::Sealed);
        }
        self.record()?.ok_or(SealError::NotInitialized)
    }

    fn reason(&self, state: &State, record: Option<&SealRecord>) -> SealedReason {
        match (record, state.reason) {
            (None, _) => SealedReason::NotInitialized,
            (Some(_), Some(reason)) => reason,
            (Some(record), None) => match (record.seal_type, self.maker()) {
                (SealType::Shamir, _) => SealedReason::WaitingForShares,
                (SealType::Pkcs11, Err(reason)) => reason,
                (SealType::Pkcs11, Ok(_)) => SealedReason::HsmStarting,
            },
        }
    }

    /// The HSM on which new objects are made, when one can be used now, or the word for why not.
    fn maker(&self) -> Result<Arc<Member>, SealedReason> {
        let group = self.group().ok_or(SealedReason::HsmNotConfigured)?;
        group.maker().map_err(|_away| match group.status() {
            Status::Down { reason, .. } => SealedReason::Hsm(reason),
            Status::Starting | Status::Ready(_) => SealedReason::HsmStarting,
        })
    }

    /// The maker for an operation that cannot go on without it.
    fn needed_maker(&self) -> Result<Arc<Member>, SealError> {
        self.maker().map_err(|reason| SealError::HsmUnavailable { reason: reason.word() })
    }

    /// After the HSMs of the configuration were exchanged for others: who is enrolled, and, as long as the cluster is under plain
    /// shares, whether there is to be an escrow.
    pub async fn hsms_replaced(&self, escrow: bool) -> Result<(), SealError> {
        let _working = self.working.lock().await;
        self.escrow.store(escrow, Ordering::Relaxed);
        if let (false, Some((record, _))) = (self.is_sealed(), self.record()?) {
            self.enroll(&record);
        }
        Ok(())
    }

    /// Tells the group which of its members hold this cluster's keys.
    fn enroll(&self, record: &SealRecord) {
        let Some(group) = &self.hsm else { return };
        let names = record.hsm_names();
        match (names.as_slice(), group.members().as_slice()) {
            // One stanza and one enrolled HSM are the same, even when the stanza was given another name.
            ([_], [only]) => group.enroll([only.name.clone()]),
            _ => {
                // An HSM whose stanza was given the name of one that is away cannot be called by it yet.
                let members = group.members();
                let opening = members.iter().filter(|member| matches!(self.opens(member), Some(Opens::Copy(_))));
                group.enroll(names.into_iter().chain(opening.map(|member| member.name.clone())));
            }
        }
    }
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seal").field("sealed", &self.is_sealed()).finish_non_exhaustive()
    }
}

/// Combines escrow shares (hexadecimal or base64, any order) to the secret that [`recover_master_key`] takes.
pub fn combine_shares(shares: &[SecretString]) -> Result<SecretBytes, SealError> {
    let shares = shares.iter().map(shamir::decode).collect::<Result<Vec<_>, _>>()?;
    shamir::combine(&shares).map_err(SealError::invalid)
}

/// What binds a root key that the HSM encrypts to its purpose and cluster.
fn root_key_binding(cluster_id: &str) -> Vec<u8> {
    format!("sos/root-key/v1/{cluster_id}").into_bytes()
}

#[cfg(test)]
mod members_tests;
#[cfg(test)]
mod outcome_tests;
#[cfg(test)]
mod renewal_tests;
#[cfg(test)]
mod tests;
