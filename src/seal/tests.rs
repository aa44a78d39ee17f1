use std::sync::atomic::{AtomicUsize, Ordering};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use time::OffsetDateTime;

use super::wire::*;
use super::*;
use crate::barrier::Txn;
use crate::barrier::teststore::Store;
use crate::hsm::fake::FakeHsm;
use crate::zones::Zones;

const TOKEN: &str = "hvs.0123456789abcdefghijABCD";
const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

#[derive(Default)]
struct Counting {
    unsealed: AtomicUsize,
    sealing: AtomicUsize,
}

#[async_trait]
impl Host for Counting {
    async fn unsealed(&self) -> Result<(), String> {
        self.unsealed.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn sealing(&self) {
        self.sealing.fetch_add(1, Ordering::SeqCst);
    }

    async fn make_root_token(&self) -> Result<SecretString, String> {
        Ok(SecretString::new(TOKEN.into()))
    }

    async fn revoke_root_token(&self, _token: &SecretString) {}
}

struct World {
    store: Arc<Store>,
    hsm: Option<Arc<FakeHsm>>,
    escrow: bool,
}

impl World {
    fn new(hsm: bool) -> Self {
        Self { store: Arc::default(), hsm: hsm.then(FakeHsm::new), escrow: true }
    }

    /// A fresh process over the same store and token.
    fn start(&self) -> Seal {
        self.store.come_back();
        let barrier = Arc::new(Barrier::new(self.store.clone()));
        let hsm = self.hsm.clone().map(|hsm| hsm as Arc<dyn Hsm>);
        let settings = SealSettings {
            key_label: "test".into(),
            escrow: self.escrow,
            storage_type: "inmem".into(),
            version: "1.2.3".into(),
            ..SealSettings::default()
        };
        let seal = Seal::new(barrier, hsm, settings);
        seal.attach(Arc::<Counting>::default());
        seal
    }

    fn labels(&self) -> Vec<String> {
        self.hsm.as_ref().unwrap().labels()
    }
}

fn shamir_init(n: i64, t: i64) -> InitRequest {
    InitRequest { secret_shares: n, secret_threshold: t, ..InitRequest::default() }
}

fn hsm_init(n: i64, t: i64) -> InitRequest {
    InitRequest { recovery_shares: n, recovery_threshold: t, ..InitRequest::default() }
}

fn share(key: &str) -> UnsealRequest {
    UnsealRequest { key: SecretString::new(key.to_owned()), ..UnsealRequest::default() }
}

fn part(nonce: &str, key: &str) -> ShareRequest {
    ShareRequest { nonce: nonce.to_owned(), key: SecretString::new(key.to_owned()) }
}

async fn unseal(seal: &Seal, keys: &[String]) -> Result<SealStatusResponse, SealError> {
    let mut status = seal.status()?;
    for key in keys {
        status = seal.unseal(share(key)).await?;
    }
    Ok(status)
}

fn text<T>(result: Result<T, SealError>) -> String {
    result.err().map(|error| error.to_string()).unwrap_or_default()
}

#[tokio::test]
async fn shamir_alone_works_as_in_vault() {
    let world = World::new(false);
    let seal = world.start();
    assert_eq!(seal.status().unwrap().sealed_reason, Some("not-initialized"));
    assert!(matches!(seal.unseal(share(&hex::encode([1; 33]))).await, Err(SealError::NotInitialized)));
    let made = seal.init(shamir_init(5, 3), NOW).await.unwrap();
    assert_eq!((made.keys.len(), made.keys_base64.len(), made.recovery_keys.len()), (5, 5, 0));
    assert_eq!(made.root_token, TOKEN);
    let status = seal.status().unwrap();
    assert!(status.sealed && status.initialized && !status.recovery_seal);
    assert_eq!((status.seal_type, status.t, status.n, status.sealed_reason), ("shamir", 3, 5, Some("waiting-for-shares")));
    assert_eq!(status.cluster_id, None);

    let status = unseal(&seal, &[made.keys[0].clone(), made.keys[0].clone(), made.keys_base64[1].clone()]).await.unwrap();
    assert_eq!(status.progress, 2, "the same share twice counts once");
    assert!(!status.nonce.is_empty());
    let reset = UnsealRequest { reset: true, ..UnsealRequest::default() };
    assert_eq!(seal.unseal(reset).await.unwrap().progress, 0);
    let status = unseal(&seal, &made.keys[2..5]).await.unwrap();
    assert!(!status.sealed && status.cluster_id.is_some() && status.sealed_reason.is_none());
    assert_eq!((status.progress, status.nonce.as_str()), (0, ""));
    assert_eq!(seal.auto_unseal().await, AutoUnseal::Open);

    seal.seal().await.unwrap();
    assert_eq!(seal.status().unwrap().sealed_reason, Some("sealed-by-operator"));
    assert_eq!(seal.auto_unseal().await, AutoUnseal::ByHand);
    let wrong: Vec<String> = (1..=3).map(|x| hex::encode([vec![9; 32], vec![x]].concat())).collect();
    assert_eq!(text(unseal(&seal, &wrong).await), "Unseal failed, invalid key");
    assert_eq!(seal.status().unwrap().progress, 0);
    unseal(&seal, &made.keys[0..3]).await.unwrap();
    assert!(!seal.is_sealed());
}

#[tokio::test]
async fn a_single_key_is_the_secret_itself() {
    let world = World::new(false);
    let seal = world.start();
    let made = seal.init(shamir_init(1, 1), NOW).await.unwrap();
    assert_eq!(hex::decode(&made.keys[0]).unwrap().len(), 32);
    assert!(!unseal(&seal, &made.keys).await.unwrap().sealed);
}

#[tokio::test]
async fn parameters_are_checked_as_in_vault() {
    let (plain, hsm) = (World::new(false).start(), World::new(true).start());
    let mut both = shamir_init(1, 1);
    both.recovery_shares = 1;
    assert_eq!(text(plain.init(both, NOW).await), "parameters recovery_shares not applicable to seal type shamir");
    assert_eq!(
        text(hsm.init(shamir_init(1, 1), NOW).await),
        "parameters secret_shares,secret_threshold not applicable to seal type pkcs11"
    );
    assert_eq!(
        text(plain.init(shamir_init(3, 1), NOW).await),
        "invalid seal configuration: threshold must be greater than one for multiple shares"
    );
    assert!(text(hsm.init(hsm_init(0, 0), NOW).await).starts_with("invalid recovery configuration: "));
    let pgp = InitRequest { pgp_keys: vec!["x".into()], ..shamir_init(1, 1) };
    assert_eq!(text(plain.init(pgp, NOW).await), "PGP keys are not supported");
    assert_eq!(
        text(plain.unseal(UnsealRequest::default()).await),
        "'key' must be specified in request body as JSON, or 'reset' set to true"
    );
    plain.init(shamir_init(1, 1), NOW).await.unwrap();
    assert_eq!(text(plain.init(shamir_init(1, 1), NOW).await), "Vault is already initialized");
}

#[tokio::test]
async fn an_hsm_unseals_without_a_human_and_the_escrow_without_the_hsm() {
    let world = World::new(true);
    let seal = world.start();
    assert_eq!(seal.auto_unseal().await, AutoUnseal::NotInitialized);
    let made = seal.init(hsm_init(3, 2), NOW).await.unwrap();
    assert!(made.keys.is_empty() && made.keys_base64.is_empty());
    assert_eq!(made.recovery_keys.len(), 3);
    assert!(!seal.is_sealed(), "an HSM-sealed server is ready after init");
    assert_eq!(world.labels(), ["sos/test/seal/root/v1", "sos/test/zone/default/v1"]);
    seal.barrier().commit(Txn::new().put("a", b"1".to_vec())).await.unwrap();

    let seal = world.start();
    assert_eq!(seal.auto_unseal().await, AutoUnseal::Unsealed);
    assert_eq!(seal.barrier().get("a").unwrap().unwrap().value.expose(), b"1");
    let status = seal.status().unwrap();
    assert!(status.recovery_seal && status.seal_type == "pkcs11" && (status.t, status.n) == (2, 3));
    seal.seal().await.unwrap();
    assert_eq!(seal.auto_unseal().await, AutoUnseal::ByHand, "an explicit seal holds");

    let hsm = world.hsm.as_ref().unwrap();
    hsm.go_down(DownReason::TokenMissing);
    let seal = world.start();
    let waiting = AutoUnseal::Waiting(SealedReason::Hsm(DownReason::TokenMissing));
    assert_eq!(seal.auto_unseal().await, waiting);
    assert_eq!(seal.status().unwrap().sealed_reason, Some("hsm-token-missing"));
    assert!(!unseal(&seal, &made.recovery_keys[1..3]).await.unwrap().sealed);
    assert_eq!(seal.barrier().get("a").unwrap().unwrap().value.expose(), b"1");

    let bare = World { store: world.store.clone(), hsm: None, escrow: true };
    let seal = bare.start();
    assert_eq!(seal.auto_unseal().await, AutoUnseal::Waiting(SealedReason::HsmNotConfigured));
    assert!(!unseal(&seal, &made.recovery_keys_base64[0..2]).await.unwrap().sealed);

    hsm.come_back();
    hsm.wipe();
    let seal = world.start();
    assert_eq!(seal.auto_unseal().await, AutoUnseal::Waiting(SealedReason::HsmKeyMissing));
    assert_eq!(seal.status().unwrap().sealed_reason, Some("hsm-key-missing"));
}

#[tokio::test]
async fn it_unseals_when_the_hsm_comes_back() {
    let world = World::new(true);
    world.start().init(hsm_init(1, 1), NOW).await.unwrap();
    world.hsm.as_ref().unwrap().go_down(DownReason::DeviceError);
    let seal = Arc::new(world.start());
    let task = tokio::spawn(seal.clone().keep_unsealed());
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert!(seal.is_sealed());
    world.hsm.as_ref().unwrap().come_back();
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert!(!seal.is_sealed());
    task.abort();
}

#[tokio::test]
async fn a_used_hsm_beside_an_empty_store_is_not_a_new_cluster() {
    let world = World::new(true);
    world.start().init(hsm_init(1, 1), NOW).await.unwrap();
    let empty = World { store: Arc::default(), hsm: world.hsm.clone(), escrow: true };
    let refused = empty.start().init(hsm_init(1, 1), NOW).await;
    assert!(matches!(refused, Err(SealError::HsmInUse { count: 2, .. })));
    assert!(empty.store.keys().is_empty());
    assert_eq!(world.labels().len(), 2);
}

/// Init, killed at every commit and at every call of the HSM, before and after its effect: afterwards either the cluster
/// exists whole, or nothing is left of it and the next init works.
#[tokio::test]
async fn init_can_be_killed_anywhere() {
    for effect in [false, true] {
        for (what, points) in [("commit", 4), ("hsm", 8)] {
            for nth in 0..points {
                let world = World { escrow: false, ..World::new(true) };
                let hsm = world.hsm.clone().unwrap();
                match what {
                    "commit" => world.store.die_at(nth, effect),
                    _ => hsm.die_at(nth, effect),
                }
                let first = killed_init(&world).await;
                let place = format!("{what} {nth} effect {effect}");
                hsm.come_back();
                let seal = world.start();
                match seal.auto_unseal().await {
                    AutoUnseal::Unsealed => {}
                    AutoUnseal::NotInitialized => {
                        assert!(first.is_err(), "{place}");
                        assert!(world.labels().is_empty(), "{place}: {:?}", world.labels());
                        assert!(world.store.keys().is_empty(), "{place}: {:?}", world.store.keys());
                        seal.init(hsm_init(3, 2), NOW).await.unwrap();
                    }
                    other => panic!("{place}: {other:?}"),
                }
                assert_eq!(world.labels().len(), 2, "{place}");
                assert!(Zones::new(seal.barrier().clone(), Some(hsm), "test").current("default").is_ok(), "{place}");
            }
        }
    }
}

async fn killed_init(world: &World) -> Result<InitResponse, SealError> {
    let barrier = Arc::new(Barrier::new(world.store.clone()));
    let hsm = world.hsm.clone().map(|hsm| hsm as Arc<dyn Hsm>);
    // Without escrow, because a key pair for each of the kill points takes long.
    let settings = SealSettings { key_label: "test".into(), escrow: false, ..SealSettings::default() };
    Seal::new(barrier, hsm, settings).init(hsm_init(3, 2), NOW).await
}

#[tokio::test]
async fn a_foreign_escrow_key_in_the_readable_record_is_noticed() {
    let world = World::new(true);
    world.start().init(hsm_init(1, 1), NOW).await.unwrap();
    let (mut record, version) = SealRecord::load(world.store.as_ref()).unwrap().unwrap();
    record.escrow.as_mut().unwrap().public_key[40] ^= 1;
    crate::storage::Storage::commit(world.store.as_ref(), record.write(Some(version)).unwrap()).await.unwrap();
    let seal = world.start();
    assert_eq!(seal.auto_unseal().await, AutoUnseal::Waiting(SealedReason::SealRecordCorrupt));
    assert!(seal.is_sealed());
}

#[tokio::test]
async fn the_escrow_opens_the_zone_master_key() {
    let world = World::new(true);
    let seal = world.start();
    let made = seal.init(hsm_init(3, 2), NOW).await.unwrap();
    let (record, _) = seal.record().unwrap().unwrap();
    let zones = Zones::new(seal.barrier().clone(), None, "test");
    let zone = zones.read("default").unwrap().zone;
    let version = zone.current().unwrap();
    let copy = version.escrow.as_ref().unwrap();
    let shares: Vec<_> =
        made.recovery_keys[..2].iter().map(|key| shamir::decode(&SecretString::new(key.clone())).unwrap()).collect();
    let secret = shamir::combine(&shares).unwrap();
    let pair = record.escrow.as_ref().unwrap();
    let master = recover_master_key(&secret, &record.cluster_id, pair, copy.mechanism, &copy.blob).unwrap();
    let other = FakeHsm::new();
    let check = other.import_master_key(&version.label, version.id, &master).await.unwrap();
    assert_eq!(hex::encode(check), version.check_value, "the recovered key is the key");
}

#[tokio::test]
async fn without_escrow_master_keys_have_no_copy() {
    let world = World { escrow: false, ..World::new(true) };
    let seal = world.start();
    let made = seal.init(hsm_init(1, 1), NOW).await.unwrap();
    let zones = Zones::new(seal.barrier().clone(), None, "test");
    assert_eq!(zones.read("default").unwrap().zone.versions[0].escrow, None);
    world.hsm.as_ref().unwrap().wipe();
    let seal = world.start();
    assert!(!unseal(&seal, &made.recovery_keys).await.unwrap().sealed, "the shares still open the barrier");
}

#[tokio::test]
async fn rekey_replaces_the_shares() {
    for (hsm, kind) in [(false, RekeyKind::Barrier), (true, RekeyKind::Barrier), (true, RekeyKind::Recovery)] {
        let world = World { escrow: false, ..World::new(hsm) };
        let seal = world.start();
        let old = if hsm {
            seal.init(hsm_init(3, 2), NOW).await.unwrap().recovery_keys.clone()
        } else {
            let keys = seal.init(shamir_init(3, 2), NOW).await.unwrap().keys.clone();
            unseal(&seal, &keys[..2]).await.unwrap();
            keys
        };
        let request = RekeyRequest { secret_shares: 5, secret_threshold: 3, ..RekeyRequest::default() };
        let started = seal.rekey_init(kind, &request).unwrap();
        assert_eq!((started.started, started.t, started.n, started.required), (true, 3, 5, 2));
        assert_eq!(text(seal.rekey_init(kind, &request)), "rekey already in progress");
        let nonce = started.nonce.clone();
        assert!(
            text(seal.rekey_update(kind, part("x", &old[0])).await).starts_with("incorrect nonce supplied; nonce for this rekey")
        );
        let RekeyUpdate::Progress(progress) = seal.rekey_update(kind, part(&nonce, &old[0])).await.unwrap() else { panic!() };
        assert_eq!(progress.progress, 1);
        assert!(text(seal.rekey_update(kind, part(&nonce, &old[0])).await).starts_with("given key has already been provided"));
        let RekeyUpdate::Complete(done) = seal.rekey_update(kind, part(&nonce, &old[2])).await.unwrap() else { panic!() };
        assert_eq!((done.keys.len(), done.complete, done.nonce.clone()), (5, true, nonce.clone()));
        assert!(!seal.rekey_status(kind).unwrap().started);

        let seal = World { store: world.store.clone(), hsm: None, escrow: false }.start();
        assert_eq!((seal.status().unwrap().t, seal.status().unwrap().n), (3, 5));
        assert!(text(unseal(&seal, &[old[0].clone(), old[1].clone(), old[2].clone()]).await).contains("invalid key"));
        assert!(!unseal(&seal, &done.keys[1..4]).await.unwrap().sealed);
        if hsm {
            assert_eq!(world.start().auto_unseal().await, AutoUnseal::Unsealed);
        }
    }
}

#[tokio::test]
async fn rekey_with_verification_counts_only_after_it() {
    let world = World::new(false);
    let seal = world.start();
    let old = seal.init(shamir_init(1, 1), NOW).await.unwrap().keys.clone();
    unseal(&seal, &old).await.unwrap();
    let kind = RekeyKind::Barrier;
    assert_eq!(text(seal.rekey_status(RekeyKind::Recovery)), "recovery rekeying not supported");
    assert_eq!(text(seal.verify_status(kind)), "no rekey configuration found");
    assert_eq!(text(seal.rekey_verify(kind, part("", &old[0])).await), "no rekey in progress");
    let request = RekeyRequest { secret_shares: 2, secret_threshold: 2, require_verification: true, ..RekeyRequest::default() };
    let nonce = seal.rekey_init(kind, &request).unwrap().nonce;
    assert_eq!(text(seal.rekey_verify(kind, part("", &old[0])).await), "no rekey verification in progress");
    let RekeyUpdate::Complete(done) = seal.rekey_update(kind, part(&nonce, &old[0])).await.unwrap() else { panic!() };
    assert!(done.verification_required && !done.verification_nonce.is_empty());
    assert!(text(seal.rekey_update(kind, part(&nonce, &old[0])).await).contains("verification must be performed"));
    assert_eq!(seal.status().unwrap().n, 1, "the old key still counts");

    let wrong = hex::encode([7; 33]);
    let first = done.verification_nonce.clone();
    seal.rekey_verify(kind, part(&first, &done.keys[0])).await.unwrap();
    assert_eq!(
        text(seal.rekey_verify(kind, part(&first, &wrong)).await),
        "rekey verification failed; incorrect key shares supplied"
    );
    let status = seal.verify_status(kind).unwrap();
    assert!(status.progress == 0 && status.started && status.nonce != first);
    let second = seal.verify_restart(kind).unwrap().nonce;
    let VerifyUpdate::Progress(progress) = seal.rekey_verify(kind, part(&second, &done.keys[0])).await.unwrap() else { panic!() };
    assert_eq!(progress.progress, 1);
    let VerifyUpdate::Complete(complete) = seal.rekey_verify(kind, part(&second, &done.keys[1])).await.unwrap() else { panic!() };
    assert!(complete.complete);
    seal.seal().await.unwrap();
    assert!(unseal(&seal, &old).await.unwrap().sealed);
    let reset = UnsealRequest { reset: true, ..UnsealRequest::default() };
    seal.unseal(reset).await.unwrap();
    assert!(!unseal(&seal, &done.keys).await.unwrap().sealed);
}

#[tokio::test]
async fn rekey_refuses_what_vault_refuses() {
    let world = World::new(false);
    let seal = world.start();
    let keys = seal.init(shamir_init(1, 1), NOW).await.unwrap().keys.clone();
    assert!(matches!(seal.rekey_status(RekeyKind::Barrier), Err(SealError::Sealed)));
    unseal(&seal, &keys).await.unwrap();
    let kind = RekeyKind::Barrier;
    for (n, t) in [(1, 3), (3, 1), (0, 0)] {
        let request = RekeyRequest { secret_shares: n, secret_threshold: t, ..RekeyRequest::default() };
        assert!(matches!(seal.rekey_init(kind, &request), Err(SealError::Counts(_))));
    }
    let backup = RekeyRequest { secret_shares: 1, secret_threshold: 1, backup: true, ..RekeyRequest::default() };
    assert!(text(seal.rekey_init(kind, &backup)).starts_with("cannot request a backup"));
    assert_eq!(text(seal.rekey_update(kind, part("", "zz")).await), "'key' must be a valid hex or base64 string");
    assert_eq!(text(seal.rekey_update(kind, part("", "")).await), "'key' must be specified in request body as JSON");
    assert_eq!(text(seal.rekey_update(kind, part("", &keys[0])).await), "no barrier rekey in progress");
    let request = RekeyRequest { secret_shares: 1, secret_threshold: 1, ..RekeyRequest::default() };
    let nonce = seal.rekey_init(kind, &request).unwrap().nonce;
    let wrong = seal.rekey_update(kind, part(&nonce, &hex::encode([1; 32]))).await;
    assert!(text(wrong).contains("verification failed"));
    seal.rekey_cancel(kind).unwrap();
    assert!(!seal.rekey_status(kind).unwrap().started);
}

#[tokio::test]
async fn rekey_without_the_hsm_keeps_the_root_key_and_the_hsm_still_opens() {
    let world = World::new(true);
    let seal = world.start();
    let old = seal.init(hsm_init(1, 1), NOW).await.unwrap().recovery_keys.clone();
    world.hsm.as_ref().unwrap().go_down(DownReason::DeviceError);
    let request = RekeyRequest { secret_shares: 1, secret_threshold: 1, ..RekeyRequest::default() };
    let nonce = seal.rekey_init(RekeyKind::Recovery, &request).unwrap().nonce;
    let done = seal.rekey_update(RekeyKind::Recovery, part(&nonce, &old[0])).await.unwrap();
    let RekeyUpdate::Complete(done) = done else { panic!() };
    world.hsm.as_ref().unwrap().come_back();
    assert_eq!(world.start().auto_unseal().await, AutoUnseal::Unsealed);
    let bare = World { store: world.store.clone(), hsm: None, escrow: true }.start();
    assert!(unseal(&bare, &old).await.is_err());
    assert!(!unseal(&bare, &done.keys).await.unwrap().sealed);
}

#[tokio::test]
async fn generate_root_hides_the_token_under_the_pad() {
    let world = World::new(false);
    let seal = world.start();
    let keys = seal.init(shamir_init(3, 2), NOW).await.unwrap().keys.clone();
    assert!(matches!(seal.generate_root_status(), Err(SealError::Sealed)));
    unseal(&seal, &keys[..2]).await.unwrap();
    let status = seal.generate_root_status().unwrap();
    assert_eq!((status.started, status.required, status.otp_length, status.nonce.as_str()), (false, 2, 28, ""));
    assert_eq!(text(seal.generate_root_update(part("", &keys[0])).await), "no root generation in progress");
    let short = GenerateRootRequest { otp: SecretString::new("short".into()), ..GenerateRootRequest::default() };
    assert_eq!(text(seal.generate_root_start(&short)), "OTP string has incorrect length");

    let started = seal.generate_root_start(&GenerateRootRequest::default()).unwrap();
    assert!(started.started && started.otp.len() == OTP_LENGTH);
    assert_eq!(text(seal.generate_root_start(&GenerateRootRequest::default())), "root generation already in progress");
    let nonce = started.nonce.clone();
    let one = seal.generate_root_update(part(&nonce, &keys[0])).await.unwrap();
    assert_eq!((one.progress, one.complete, one.encoded_token.as_str()), (1, false, ""));
    let two = seal.generate_root_update(part(&nonce, &keys[1])).await.unwrap();
    assert_eq!((two.progress, two.complete), (2, true));
    let mixed = STANDARD_NO_PAD.decode(&two.encoded_token).unwrap();
    let token: Vec<u8> = mixed.iter().zip(started.otp.bytes()).map(|(mixed, pad)| mixed ^ pad).collect();
    assert_eq!(token, TOKEN.as_bytes());
    assert_eq!(two.encoded_root_token, two.encoded_token);
    assert!(!seal.generate_root_status().unwrap().started);

    let given = GenerateRootRequest { otp: SecretString::new("x".repeat(OTP_LENGTH)), ..GenerateRootRequest::default() };
    let started = seal.generate_root_start(&given).unwrap();
    assert_eq!(started.otp, "", "a pad that the caller knows is not repeated");
    seal.generate_root_update(part(&started.nonce, &hex::encode([3; 33]))).await.unwrap();
    let wrong = seal.generate_root_update(part(&started.nonce, &hex::encode([4; 33]))).await;
    assert!(text(wrong).len() > 10);
    seal.generate_root_cancel().unwrap();
}

#[test]
fn bodies_have_the_names_and_order_of_vault() {
    let world = World::new(true);
    let json = serde_json::to_string(&world.start().status().unwrap()).unwrap();
    assert_eq!(
        json,
        concat!(
            r#"{"type":"pkcs11","initialized":false,"sealed":true,"t":0,"n":0,"progress":0,"nonce":"","version":"1.2.3","#,
            r#""build_date":"","migration":false,"recovery_seal":true,"recovery_seal_type":"shamir","storage_type":"inmem","#,
            r#""sealed_reason":"not-initialized","sos_version":""}"#
        )
    );
    let empty: InitRequest = serde_json::from_str(r#"{"secret_shares":null,"other":1}"#).unwrap();
    assert_eq!(empty.secret_shares, 0);
    let config = crate::barrier::RotateConfig { enabled: true, max_operations: 5_000_000, interval: 864_000 };
    let json = serde_json::to_string(&RotateConfigResponse::from(config)).unwrap();
    assert_eq!(json, r#"{"enabled":true,"max_operations":5000000,"interval":"240h0m0s"}"#);
}

/// The token is lost; recovery onto a new one is killed at every call and every commit, and repeated.
#[tokio::test]
async fn a_lost_token_is_replaced_from_escrow() {
    let mut world = World::new(true);
    let seal = world.start();
    let made = seal.init(hsm_init(3, 2), NOW).await.unwrap();
    let zones = Zones::new(seal.barrier().clone(), world.hsm.clone().map(|hsm| hsm as Arc<dyn Hsm>), "test");
    let material = SecretBytes::random(32);
    let wrapped = zones.wrap(&zones.current("default").unwrap(), b"", &material).await.unwrap();
    zones.rotate("default", NOW).await.unwrap();
    let shares: Vec<_> = made.recovery_keys[1..].iter().map(|key| SecretString::new(key.clone())).collect();
    world.hsm = Some(FakeHsm::new());
    for effect in [false, true] {
        for nth in 0..9 {
            world.hsm.as_ref().unwrap().wipe();
            recover(&world, &made.recovery_keys[1..], &shares, |world| world.hsm.as_ref().unwrap().die_at(nth, effect)).await;
            let last = recover(&world, &made.recovery_keys[1..], &shares, |_| {}).await.unwrap();
            assert!(last.lost.is_empty());
            let seal = world.start();
            assert_eq!(seal.auto_unseal().await, AutoUnseal::Unsealed, "{nth} {effect}");
            let zones = Zones::new(seal.barrier().clone(), world.hsm.clone().map(|hsm| hsm as Arc<dyn Hsm>), "test");
            assert!(zones.unwrap("default", &wrapped, b"").await.unwrap().same_as(material.expose()));
            assert_eq!(world.labels().len(), 3);
        }
    }
    let wrong = [SecretString::new(hex::encode([1; 33])), SecretString::new(hex::encode([2; 33]))];
    assert!(recover(&world, &made.recovery_keys[1..], &wrong, |_| {}).await.is_none());
}

async fn recover(world: &World, unseal_by: &[String], shares: &[SecretString], before: impl Fn(&World)) -> Option<Recovered> {
    let seal = world.start();
    unseal(&seal, unseal_by).await.unwrap();
    let hsm = world.hsm.clone().unwrap();
    let zones = Zones::new(seal.barrier().clone(), Some(hsm.clone()), "test");
    before(world);
    let outcome = seal.recover_hsm(&zones, shares).await.ok();
    hsm.come_back();
    outcome
}
