//! `sys/rekey` and `sys/rekey-recovery-key`: new shares for old ones.
//!
//! A new Shamir secret is made and split. It wraps the root key (a new one too; where an HSM that must wrap it is away, later:
//! `renewal.rs`) and encrypts the escrow's private key. Under an HSM seal both paths re-split the escrow.

use base64::{Engine, engine::general_purpose::STANDARD};

use super::escrow::wrap_root;
use super::progress::Collected;
use super::record::SealRecord;
use super::renewal::{RENEWAL_PATH, RootRenewal, make_pair, notice};
use super::wire::{
    RekeyRequest, RekeyStatusResponse, RekeyUpdate, RekeyUpdateResponse, ShareRequest, VerifyStatusResponse, VerifyUpdate,
    VerifyUpdateResponse,
};
use super::{Seal, SealError, SealType, State, Wrapper, shamir};
use crate::barrier::{BarrierError, ROOT_KEY_LEN};
use crate::secret::SecretBytes;

/// Said when the store failed and does not come back.
const UNKNOWN: &str = "the store failed while the new shares were written, and whether they count is not known: keep the old shares \
and the new ones. When the store is well again, another rekey accepts those that count";

/// Which of the two paths was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RekeyKind {
    /// `sys/rekey`.
    Barrier,
    /// `sys/rekey-recovery-key`.
    Recovery,
}

/// A rekey under way.
pub(super) struct Rekey {
    shares: u8,
    threshold: u8,
    verify: bool,
    old: Collected,
    pending: Option<Pending>,
}

/// New shares that have been handed out and must be entered before they count.
struct Pending {
    old_secret: SecretBytes,
    new_secret: SecretBytes,
    entered: Collected,
}

impl State {
    fn rekey_of(&mut self, kind: RekeyKind) -> &mut Option<Rekey> {
        match kind {
            RekeyKind::Barrier => &mut self.rekey,
            RekeyKind::Recovery => &mut self.rekey_recovery,
        }
    }
}

impl Seal {
    /// `GET …/init`.
    pub fn rekey_status(&self, kind: RekeyKind) -> Result<RekeyStatusResponse, SealError> {
        let record = self.rekey_record(kind)?;
        let mut state = self.state.lock();
        let rekey = state.rekey_of(kind).as_ref();
        let pending = rekey.and_then(|rekey| rekey.pending.as_ref());
        Ok(RekeyStatusResponse {
            nonce: rekey.map(|rekey| rekey.old.nonce().to_owned()).unwrap_or_default(),
            started: rekey.is_some(),
            t: rekey.map_or(0, |rekey| rekey.threshold),
            n: rekey.map_or(0, |rekey| rekey.shares),
            progress: rekey.map_or(0, |rekey| rekey.old.len()),
            required: record.threshold,
            pgp_fingerprints: None,
            backup: false,
            verification_required: rekey.is_some_and(|rekey| rekey.verify),
            verification_nonce: pending.map(|pending| pending.entered.nonce().to_owned()).unwrap_or_default(),
        })
    }

    /// `PUT …/init`.
    pub fn rekey_init(&self, kind: RekeyKind, request: &RekeyRequest) -> Result<RekeyStatusResponse, SealError> {
        self.rekey_record(kind)?;
        if !request.pgp_keys.is_empty() {
            return Err(SealError::invalid("PGP keys are not supported"));
        }
        if request.backup {
            return Err(SealError::invalid("cannot request a backup of the new keys without providing PGP keys for encryption"));
        }
        let (shares, threshold) =
            shamir::check_counts(request.secret_shares, request.secret_threshold).map_err(|text| match kind {
                RekeyKind::Barrier => SealError::Counts(format!("invalid rekey seal configuration: {text}")),
                RekeyKind::Recovery => SealError::Counts(format!("invalid recovery configuration: {text}")),
            })?;
        let fresh = Rekey { shares, threshold, verify: request.require_verification, old: Collected::new(), pending: None };
        {
            let mut state = self.state.lock();
            let slot = state.rekey_of(kind);
            if slot.is_some() {
                return Err(SealError::invalid("rekey already in progress"));
            }
            *slot = Some(fresh);
        }
        self.rekey_status(kind)
    }

    /// `DELETE …/init`.
    pub fn rekey_cancel(&self, kind: RekeyKind) -> Result<(), SealError> {
        self.rekey_record(kind)?;
        *self.state.lock().rekey_of(kind) = None;
        Ok(())
    }

    /// `PUT …/update`: one old share; the new shares when it was the last one needed.
    pub async fn rekey_update(&self, kind: RekeyKind, request: ShareRequest) -> Result<RekeyUpdate, SealError> {
        let _working = self.working.lock().await;
        let share = shamir::decode(&request.key)?;
        let record = self.rekey_record(kind)?;
        let Some((old, shares, threshold, verify)) = self.enter_old(kind, &request.nonce, share, record.threshold)? else {
            return Ok(RekeyUpdate::Progress(self.rekey_status(kind)?));
        };
        let old_secret =
            shamir::combine(&old).map_err(|text| SealError::Counts(format!("failed to compute root key: {text}")))?;
        self.prove_secret(&record, &old_secret).map_err(|_wrong| match record.seal_type {
            SealType::Pkcs11 => SealError::invalid("recovery key verification failed: invalid key"),
            SealType::Shamir => SealError::invalid("root key verification failed: invalid key"),
        })?;
        let new_secret = SecretBytes::random(ROOT_KEY_LEN);
        let parts = shamir::split(&new_secret, shares, threshold)?;
        let (mut verification_nonce, mut warning) = (String::new(), None);
        if verify {
            let pending = Pending { old_secret, new_secret, entered: Collected::new() };
            pending.entered.nonce().clone_into(&mut verification_nonce);
            if let Some(rekey) = self.state.lock().rekey_of(kind) {
                rekey.pending = Some(pending);
            }
        } else {
            warning = self.replace_shares(&old_secret, &new_secret, shares, threshold).await?;
        }
        Ok(RekeyUpdate::Complete(RekeyUpdateResponse {
            nonce: request.nonce,
            complete: true,
            keys: parts.iter().map(|part| hex::encode(part.expose())).collect(),
            keys_base64: parts.iter().map(|part| STANDARD.encode(part.expose())).collect(),
            pgp_fingerprints: None,
            backup: false,
            verification_required: verify,
            verification_nonce,
            warnings: warning.into_iter().collect(),
        }))
    }

    /// `GET …/verify`.
    pub fn verify_status(&self, kind: RekeyKind) -> Result<VerifyStatusResponse, SealError> {
        self.rekey_record(kind)?;
        let mut state = self.state.lock();
        let rekey = state.rekey_of(kind).as_ref().ok_or_else(|| SealError::invalid("no rekey configuration found"))?;
        let entered = rekey.pending.as_ref().map(|pending| &pending.entered);
        Ok(VerifyStatusResponse {
            nonce: entered.map(|entered| entered.nonce().to_owned()).unwrap_or_default(),
            started: entered.is_some(),
            t: rekey.threshold,
            n: rekey.shares,
            progress: entered.map_or(0, Collected::len),
        })
    }

    /// `DELETE …/verify`: begins the verification anew.
    pub fn verify_restart(&self, kind: RekeyKind) -> Result<VerifyStatusResponse, SealError> {
        self.rekey_record(kind)?;
        if let Some(pending) = self.state.lock().rekey_of(kind).as_mut().and_then(|rekey| rekey.pending.as_mut()) {
            pending.entered.restart();
        }
        self.verify_status(kind)
    }

    /// `PUT …/verify`: one new share; the new shares count once enough of them were entered.
    pub async fn rekey_verify(&self, kind: RekeyKind, request: ShareRequest) -> Result<VerifyUpdate, SealError> {
        let _working = self.working.lock().await;
        let share = shamir::decode(&request.key)?;
        self.rekey_record(kind)?;
        let Some(proved) = self.enter_new(kind, &request.nonce, share)? else {
            return Ok(VerifyUpdate::Progress(self.verify_status(kind)?));
        };
        let (old_secret, new_secret, shares, threshold) = proved;
        let warning = self.replace_shares(&old_secret, &new_secret, shares, threshold).await?;
        let warnings = warning.into_iter().collect();
        Ok(VerifyUpdate::Complete(VerifyUpdateResponse { nonce: request.nonce, complete: true, warnings }))
    }

    fn rekey_record(&self, kind: RekeyKind) -> Result<SealRecord, SealError> {
        let (record, _) = self.open_record()?;
        if kind == RekeyKind::Recovery && record.seal_type == SealType::Shamir {
            return Err(SealError::invalid("recovery rekeying not supported"));
        }
        Ok(record)
    }

    #[allow(clippy::type_complexity)] // shares, and the counts of the new ones; used once
    fn enter_old(
        &self,
        kind: RekeyKind,
        nonce: &str,
        share: SecretBytes,
        required: u8,
    ) -> Result<Option<(Vec<SecretBytes>, u8, u8, bool)>, SealError> {
        let mut state = self.state.lock();
        let rekey = state.rekey_of(kind).as_mut().ok_or_else(|| {
            SealError::invalid(match kind {
                RekeyKind::Barrier => "no barrier rekey in progress",
                RekeyKind::Recovery => "no recovery rekey in progress",
            })
        })?;
        if let Some(pending) = &rekey.pending {
            let nonce = pending.entered.nonce();
            return Err(SealError::Invalid(format!(
                "rekey operation already finished; verification must be performed; nonce for the verification operation is {nonce:?}"
            )));
        }
        check_nonce(nonce, rekey.old.nonce(), "rekey")?;
        if !rekey.old.add(share) {
            let operation = if kind == RekeyKind::Barrier { "generation" } else { "rekey" };
            return Err(already_provided(operation));
        }
        let (shares, threshold, verify) = (rekey.shares, rekey.threshold, rekey.verify);
        Ok(rekey.old.take_if(required).map(|old| (old, shares, threshold, verify)))
    }

    #[allow(clippy::type_complexity)] // the two secrets and the counts; used once
    fn enter_new(
        &self,
        kind: RekeyKind,
        nonce: &str,
        share: SecretBytes,
    ) -> Result<Option<(SecretBytes, SecretBytes, u8, u8)>, SealError> {
        let mut state = self.state.lock();
        let rekey = state.rekey_of(kind).as_mut().ok_or_else(|| SealError::invalid("no rekey in progress"))?;
        let (shares, threshold) = (rekey.shares, rekey.threshold);
        let pending = rekey.pending.as_mut().ok_or_else(|| SealError::invalid("no rekey verification in progress"))?;
        check_nonce(nonce, pending.entered.nonce(), "verify")?;
        if !pending.entered.add(share) {
            return Err(already_provided("verify"));
        }
        let Some(entered) = pending.entered.take_if(threshold) else { return Ok(None) };
        let right = shamir::combine(&entered).is_ok_and(|secret| secret.same_as(pending.new_secret.expose()));
        if !right {
            pending.entered.restart();
            return Err(SealError::invalid("rekey verification failed; incorrect key shares supplied"));
        }
        let proved = (pending.old_secret.duplicate(), pending.new_secret.duplicate(), shares, threshold);
        Ok(Some(proved))
    }

    /// Whether the combined shares are this cluster's Shamir secret; answers the root key.
    pub(super) fn prove_secret(&self, record: &SealRecord, secret: &SecretBytes) -> Result<SecretBytes, SealError> {
        let root = record.root_by_secret(secret)?;
        self.barrier.verify_root(&root)?;
        Ok(root)
    }

    /// Makes the new shares count. Answers a warning when the root key could not be renewed with them, or nobody knows whether they
    /// count.
    async fn replace_shares(
        &self,
        old_secret: &SecretBytes,
        new_secret: &SecretBytes,
        shares: u8,
        threshold: u8,
    ) -> Result<Option<String>, SealError> {
        let (mut record, version) = self.open_record()?;
        let cluster_id = record.cluster_id.clone();
        let old_root = self.prove_secret(&record, old_secret)?;
        let new_root = SecretBytes::random(ROOT_KEY_LEN);
        let sealed = self.wrap_by_hsms(&record, version, &new_root).await;
        record.shares = shares;
        record.threshold = threshold;
        record.escrow = record.escrow.map(|pair| pair.reencrypt(old_secret, new_secret, &cluster_id)).transpose()?;
        let warning = match sealed {
            Ok(sealed) => {
                for (name, blob) in sealed {
                    record.set_hsm_blob(&name, blob);
                }
                record.set_shares(Wrapper::Shares { blob: wrap_root(new_secret, &cluster_id, &new_root)?, through: None });
                let written = self.barrier.rekey(&new_root, record.write(Some(version))?.delete(RENEWAL_PATH)).await;
                not_lost(written)?
            }
            // An HSM that is away must go on opening the root key, so that stays as it is until all can wrap a new one.
            Err(awaited) => {
                record.set_shares(Wrapper::Shares { blob: wrap_root(new_secret, &cluster_id, &old_root)?, through: None });
                let renewal = RootRenewal { format: 1, shares: make_pair(new_secret.duplicate(), cluster_id).await? };
                let written = self.postpone_renewal(renewal.into_txn()?, record.write(Some(version))?).await;
                Some(not_lost(written)?.unwrap_or_else(|| notice(&awaited)))
            }
        };
        if let Some(warning) = &warning {
            tracing::warn!("new shares: {warning}");
        }
        let mut state = self.state.lock();
        (state.rekey, state.rekey_recovery, state.root) = (None, None, None);
        tracing::info!(shares, threshold, "new shares were made for the old ones");
        Ok(warning)
    }
}

/// New shares that may count must reach the operator: they exist nowhere else.
fn not_lost(written: Result<(), BarrierError>) -> Result<Option<String>, SealError> {
    match written {
        Ok(()) => Ok(None),
        Err(error) if error.may_have_landed() => {
            tracing::error!(%error, "the store failed while new shares were written");
            Ok(Some(UNKNOWN.to_owned()))
        }
        Err(error) => Err(error.into()),
    }
}

pub(super) fn check_nonce(given: &str, expected: &str, operation: &str) -> Result<(), SealError> {
    if given == expected {
        return Ok(());
    }
    Err(SealError::Invalid(format!("incorrect nonce supplied; nonce for this {operation} operation is {expected:?}")))
}

pub(super) fn already_provided(operation: &str) -> SealError {
    SealError::Invalid(format!("given key has already been provided during this {operation} operation"))
}
