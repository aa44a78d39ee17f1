//! `PUT sys/init`: makes a cluster.
//!
//! With an HSM an intent with the CKA_IDs comes first, durably; then the objects are made; then one transaction writes
//! the keyring, the seal, the default zone and the end of the intent. Killed anywhere in between, the next start or init
//! removes from the token what the intent names.

use std::sync::{Arc, atomic::Ordering};

use base64::{Engine, engine::general_purpose::STANDARD};
use time::OffsetDateTime;
use uuid::Uuid;

use super::escrow::{EscrowKeyPair, wrap_root};
use super::record::{InitIntent, SealRecord};
use super::wire::{InitRequest, InitResponse};
use super::{ClusterFacts, INTENT_PATH, Seal, SealError, SealType, SealedReason, Wrapper, root_key_binding, shamir};
use crate::barrier::{BarrierError, ROOT_KEY_LEN};
use crate::crashpoint::reach;
use crate::hsm::{HsmError, KeyId, Member, Status};
use crate::secret::SecretBytes;
use crate::storage::Expect;
use crate::zones::FirstZone;

/// Everything of a new cluster that has been decided and not been written.
struct Draft {
    record: SealRecord,
    root: SecretBytes,
    now: OffsetDateTime,
}

impl Seal {
    /// `PUT sys/init`. The shares and the token of the answer exist nowhere else.
    pub async fn init(&self, request: InitRequest, now: OffsetDateTime) -> Result<InitResponse, SealError> {
        let _working = self.working.lock().await;
        if self.is_initialized()? {
            return Err(SealError::AlreadyInitialized);
        }
        let (shares, threshold) = self.init_counts(&request)?;
        let secret = SecretBytes::random(ROOT_KEY_LEN);
        let parts = shamir::split(&secret, shares, threshold)?;
        let draft = self.draft(&secret, shares, threshold, now).await?;
        match self.group() {
            Some(_) => self.init_with_hsm(draft).await?,
            None => self.commit_init(draft, FirstZone::software(now), None).await?,
        }
        tracing::info!(shares, threshold, seal = self.configured_type().word(), "initialized");
        reach("init-committed");
        let root_token = self.first_token().await;
        Ok(self.init_response(&parts, root_token))
    }

    fn init_counts(&self, request: &InitRequest) -> Result<(u8, u8), SealError> {
        let secret = [
            (request.secret_shares != 0, "secret_shares"),
            (request.secret_threshold != 0, "secret_threshold"),
            (!request.pgp_keys.is_empty(), "pgp_keys"),
        ];
        let recovery = [
            (request.recovery_shares != 0, "recovery_shares"),
            (request.recovery_threshold != 0, "recovery_threshold"),
            (!request.recovery_pgp_keys.is_empty(), "recovery_pgp_keys"),
        ];
        let seal_type = self.configured_type();
        let foreign = if seal_type == SealType::Pkcs11 { secret } else { recovery };
        let foreign: Vec<_> = foreign.iter().filter(|(given, _)| *given).map(|(_, name)| *name).collect();
        if !foreign.is_empty() {
            let (names, seal) = (foreign.join(","), seal_type.word());
            return Err(SealError::Invalid(format!("parameters {names} not applicable to seal type {seal}")));
        }
        let pgp = [&request.pgp_keys, &request.recovery_pgp_keys].iter().any(|keys| !keys.is_empty());
        if pgp || !request.root_token_pgp_key.is_empty() {
            return Err(SealError::invalid("PGP keys are not supported"));
        }
        let (kind, shares, threshold) = match seal_type {
            SealType::Pkcs11 => ("recovery", request.recovery_shares, request.recovery_threshold),
            SealType::Shamir => ("seal", request.secret_shares, request.secret_threshold),
        };
        shamir::check_counts(shares, threshold)
            .map_err(|text| SealError::Invalid(format!("invalid {kind} configuration: {text}")))
    }

    async fn draft(&self, secret: &SecretBytes, shares: u8, threshold: u8, now: OffsetDateTime) -> Result<Draft, SealError> {
        let seal_type = self.configured_type();
        let cluster_id = Uuid::new_v4().to_string();
        let root = SecretBytes::random(ROOT_KEY_LEN);
        let escrow = match (seal_type, self.escrow.load(Ordering::Relaxed)) {
            (SealType::Shamir, _) => None,
            (SealType::Pkcs11, true) => Some(make_escrow(secret.duplicate(), cluster_id.clone()).await?),
            (SealType::Pkcs11, false) => {
                tracing::warn!(
                    "escrow = false: zone master keys never leave the HSM. When the HSM is lost, every Transit key and all that \
                     it encrypted is lost with it, whatever backups and shares there are"
                );
                None
            }
        };
        let blob = wrap_root(secret, &cluster_id, &root)?;
        let cluster_name = match self.settings.cluster_name.as_str() {
            "" => format!("sos-cluster-{}", cluster_id.get(..8).unwrap_or_default()),
            name => name.to_owned(),
        };
        let wrappers = vec![Wrapper::Shares { blob, through: None }];
        let record = SealRecord { format: 1, seal_type, cluster_id, cluster_name, shares, threshold, wrappers, escrow };
        Ok(Draft { record, root, now })
    }

    async fn init_with_hsm(&self, draft: Draft) -> Result<(), SealError> {
        self.first_hsm().await?;
        self.finish_interrupted_init().await?;
        let member = self.first_hsm().await?;
        self.refuse_used_hsm(&member).await?;
        let (seal_key, master_key) = (KeyId::random(), KeyId::random());
        let key_label = self.label_of(&member).to_owned();
        let name = Some(member.name.clone());
        let intent = InitIntent { format: 1, key_label, member: name, keys: vec![seal_key, master_key] };
        let intent = self.barrier.raw().commit(intent.write()?).await.map_err(BarrierError::from)?;
        reach("init-intent");
        let made = self.make_on_hsm(&member, seal_key, master_key, draft, intent).await;
        let Err(error) = made else { return Ok(()) };
        // A timeout may still take effect later, and a failed commit may have been written: then the intent decides at
        // the next start or init.
        let uncertain = match &error {
            SealError::Hsm(error) => matches!(error, HsmError::Timeout),
            SealError::Barrier(error) => error.may_have_landed(),
            _ => false,
        };
        if !uncertain && let Err(later) = self.finish_interrupted_init().await {
            tracing::warn!(error = %later, "what the failed init made on the HSM is removed later");
        }
        Err(error)
    }

    async fn make_on_hsm(
        &self,
        member: &Member,
        seal_key: KeyId,
        master_key: KeyId,
        mut draft: Draft,
        intent: u64,
    ) -> Result<(), SealError> {
        let (hsm, key_label) = (&member.hsm, self.label_of(member).to_owned());
        hsm.create_seal_key(&format!("sos/{key_label}/seal/root/v1"), seal_key).await?;
        reach("init-seal-key");
        let sealed = hsm.seal(seal_key, &draft.root, &root_key_binding(&draft.record.cluster_id)).await?;
        let recipients = ClusterFacts::of(&draft.record).recipients();
        let zone = FirstZone::in_hsm(member, &key_label, master_key, &recipients, draft.now).await?;
        reach("init-master-key");
        draft.record.wrappers.insert(0, Wrapper::Hsm { name: member.name.clone(), key_label, sealed });
        self.commit_init(draft, zone, Some(intent)).await
    }

    async fn commit_init(&self, draft: Draft, zone: FirstZone, intent: Option<u64>) -> Result<(), SealError> {
        let mut raw = draft.record.write(None)?;
        if let Some(version) = intent {
            raw = raw.check(INTENT_PATH, Expect::Version(version)).delete(INTENT_PATH);
        }
        let sealed = ClusterFacts::of(&draft.record).into_txn()?.merge(zone.into_txn()?);
        let record = draft.record;
        match self.barrier.initialize(&draft.root, raw, sealed, draft.now).await {
            Err(BarrierError::AlreadyInitialized) => Err(SealError::AlreadyInitialized),
            Ok(()) => {
                self.enroll(&record);
                Ok(())
            }
            Err(error) => {
                if error.may_have_landed() {
                    tracing::error!(
                        "whether the cluster was made is not known: look at sys/init when the store is well again. A cluster whose \
                         shares nobody has holds nothing, and is made anew in an empty store"
                    );
                }
                Err(error.into())
            }
        }
    }

    /// A new cluster is made on the first HSM of the list, not on the one that happens to be up first.
    async fn first_hsm(&self) -> Result<Arc<Member>, SealError> {
        let members = self.group().map(|group| group.members()).unwrap_or_default();
        let unavailable = |reason: SealedReason| SealError::HsmUnavailable { reason: reason.word() };
        let first = members.iter().find(|member| !member.disabled).ok_or(unavailable(SealedReason::HsmNotConfigured))?;
        match first.started().await {
            Status::Ready(_) => Ok(Arc::clone(first)),
            Status::Starting => Err(unavailable(SealedReason::HsmStarting)),
            Status::Down { reason, .. } => Err(unavailable(SealedReason::Hsm(reason))),
        }
    }

    async fn refuse_used_hsm(&self, member: &Member) -> Result<(), SealError> {
        let key_label = self.label_of(member);
        let found = member.hsm.find(&format!("sos/{key_label}/")).await?;
        match found.first() {
            None => Ok(()),
            Some(first) => {
                Err(SealError::HsmInUse { key_label: key_label.to_owned(), count: found.len(), first: first.label.clone() })
            }
        }
    }

    /// Starts the server and makes the root token. From here on the cluster exists and the shares must reach the
    /// operator, so a failure leaves the token empty (`generate-root` makes one) instead of losing the shares.
    async fn first_token(&self) -> String {
        let made = match (self.start_host().await, self.host.get()) {
            (Ok(()), Some(host)) => host.make_root_token().await,
            (Ok(()), None) => Ok(crate::secret::SecretString::default()),
            (Err(error), _) => Err(error.to_string()),
        };
        if made.is_err() || self.configured_type() == SealType::Shamir {
            self.close().await;
        }
        match made {
            Ok(token) => token.expose().to_owned(),
            Err(error) => {
                tracing::error!(error, "initialized, but there is no root token: make one with generate-root");
                String::new()
            }
        }
    }

    fn init_response(&self, parts: &[SecretBytes], root_token: String) -> InitResponse {
        let in_hex: Vec<_> = parts.iter().map(|part| hex::encode(part.expose())).collect();
        let in_base64: Vec<_> = parts.iter().map(|part| STANDARD.encode(part.expose())).collect();
        let (keys, recovery) = match self.configured_type() {
            SealType::Shamir => ((in_hex, in_base64), (vec![], vec![])),
            SealType::Pkcs11 => ((vec![], vec![]), (in_hex, in_base64)),
        };
        InitResponse {
            keys: keys.0,
            keys_base64: keys.1,
            recovery_keys: recovery.0,
            recovery_keys_base64: recovery.1,
            root_token,
        }
    }
}

pub(super) async fn make_escrow(secret: SecretBytes, cluster_id: String) -> Result<EscrowKeyPair, SealError> {
    tokio::task::spawn_blocking(move || EscrowKeyPair::generate(&secret, &cluster_id))
        .await
        .map_err(|_panicked| SealError::Internal("making the escrow key pair failed".into()))?
}
