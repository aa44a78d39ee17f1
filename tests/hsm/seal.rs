//! Init, unseal, zones and the way back from escrow, on real tokens.

use std::sync::Arc;

use sos::barrier::Barrier;
use sos::hsm::{AeadItem, Hsm, KeyKind, KeySource};
use sos::seal::wire::{InitRequest, UnsealRequest};
use sos::seal::{AutoUnseal, Recovered, Seal, SealError, SealSettings};
use sos::secret::{SecretBytes, SecretString};
use sos::storage::Storage;
use sos::zones::{Place, Zones};
use time::OffsetDateTime;

use crate::support::{Token, back, item};

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

fn start(store: &Arc<dyn Storage>, hsm: Option<Arc<dyn Hsm>>) -> (Seal, Zones) {
    let barrier = Arc::new(Barrier::new(store.clone()));
    let settings = SealSettings { key_label: "prod".into(), escrow: true, ..SealSettings::default() };
    let zones = Zones::new(barrier.clone(), hsm.clone(), "prod");
    (Seal::new(barrier, hsm, settings), zones)
}

fn request() -> InitRequest {
    InitRequest { recovery_shares: 3, recovery_threshold: 2, ..InitRequest::default() }
}

#[tokio::test]
async fn a_cluster_lives_on_a_token_and_comes_back_from_escrow_on_another() {
    let (Some(token), Some(spare)) = (Token::softhsm(), Token::softhsm()) else { return };
    let store: Arc<dyn Storage> = Arc::new(sos::storage::InMem::open().unwrap());
    let (shares, wrapped, material, key, sealed, iv) = {
        let hsm = token.client().await;
        let (seal, zones) = start(&store, Some(hsm.clone()));
        let made = seal.init(request(), NOW).await.unwrap();
        zones.unsealed(&[("tk1a".into(), time::Duration::DAY)], NOW).await.unwrap();
        let master = zones.current("tk1a").unwrap();
        assert_eq!(master.place, Place::Hsm);
        let material = SecretBytes::random(100);
        let wrapped = zones.wrap(&master, b"place", &material).await.unwrap();
        let key = zones.generate_wrapped(&master, KeyKind::Aes256).await.unwrap().wrapped.unwrap();
        let one: AeadItem = item(b"plain", b"aad");
        let iv = one.iv;
        let sealed = hsm.encrypt(KeySource::Wrapped(&key), vec![one]).await.unwrap().remove(0);
        assert_eq!(hsm.find("sos/prod/").await.unwrap().len(), 3);
        (made.recovery_keys.clone(), wrapped, material, key, sealed, iv)
    };

    let hsm = token.client().await;
    let (seal, zones) = start(&store, Some(hsm.clone()));
    assert_eq!(seal.auto_unseal().await, AutoUnseal::Unsealed);
    assert!(zones.unwrap("tk1a", &wrapped, b"place").await.unwrap().same_as(material.expose()));
    assert_eq!(zones.rotate("tk1a", NOW).await.unwrap(), 2);
    let new = zones.current("tk1a").unwrap();
    let moved = zones.rewrap_material(&new, &wrapped).await.unwrap();
    zones.forget();
    assert!(zones.unwrap("tk1a", &moved, b"place").await.unwrap().same_as(material.expose()));

    let empty: Arc<dyn Storage> = Arc::new(sos::storage::InMem::open().unwrap());
    let refused = start(&empty, Some(hsm)).0.init(request(), NOW).await;
    assert!(matches!(refused, Err(SealError::HsmInUse { count: 4, .. })));

    // The token is lost: the shares open the store, and the master keys go onto the spare token.
    let spare = spare.client().await;
    let (seal, zones) = start(&store, Some(spare.clone()));
    assert!(matches!(seal.auto_unseal().await, AutoUnseal::Waiting(_)));
    for share in &shares[1..] {
        let key = SecretString::new(share.clone());
        seal.unseal(UnsealRequest { key, ..UnsealRequest::default() }).await.unwrap();
    }
    let given: Vec<_> = [&shares[2], &shares[0]].map(|share| SecretString::new(share.clone())).into();
    let recovered = seal.recover_hsm(&zones, &given).await.unwrap();
    assert_eq!((recovered.seal_key, recovered.lost.len()), (true, 0));
    assert_eq!(recovered.master_keys, ["default/v1", "tk1a/v1", "tk1a/v2"]);
    assert_eq!(seal.recover_hsm(&zones, &given).await.unwrap(), Recovered::default(), "a second run changes nothing");
    assert!(zones.unwrap("tk1a", &wrapped, b"place").await.unwrap().same_as(material.expose()));
    let opened = spare.decrypt(KeySource::Wrapped(&key), vec![back(&sealed, iv, b"aad")]).await.unwrap().remove(0).unwrap();
    assert_eq!(opened.expose(), b"plain");

    let (seal, zones) = start(&store, Some(spare.clone()));
    assert_eq!(seal.auto_unseal().await, AutoUnseal::Unsealed);
    assert!(zones.unwrap("tk1a", &moved, b"place").await.unwrap().same_as(material.expose()));
}
