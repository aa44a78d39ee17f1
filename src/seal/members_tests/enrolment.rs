//! The first HSM of a cluster, and enrolling another one.

use super::*;

#[tokio::test]
async fn either_of_two_hsms_is_enough() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    let before = run.wrapped().await;
    assert!(text(run.add("b", &[]).await).contains("escrow shares"));
    let added = run.add("b", &shares).await.unwrap();
    assert_eq!((added.converted, added.seal_key, added.master_keys), (false, true, vec!["default/v1".to_owned()]));
    assert!(run.pending("a").await.is_empty() && run.pending("b").await.is_empty());

    for (away, there) in [(&w.a, &w.b), (&w.b, &w.a)] {
        away.go_down(DownReason::DeviceError);
        assert!(run.opens(&before).await);
        let key = run.zones.generate_wrapped(&run.zones.current("default").unwrap(), KeyKind::Aes256).await.unwrap();
        assert!(key.wrapped.is_some());
        run.seal.barrier().rotate(NOW).await.unwrap();
        let other = w.start().unsealed().await;
        assert!(other.opens(&before).await);
        there.come_back();
        away.come_back();
    }
}

#[tokio::test]
async fn a_new_cluster_is_made_on_the_first_hsm_and_waits_for_it() {
    let w = World::new();
    w.a.go_down(DownReason::TokenMissing);
    let run = w.start();
    let request = || InitRequest { recovery_shares: 1, recovery_threshold: 1, ..InitRequest::default() };
    assert!(text(run.seal.init(request(), NOW).await).contains("hsm-token-missing"));
    assert!(w.b.labels().is_empty());
    w.a.come_back();
    run.seal.init(request(), NOW).await.unwrap();
    assert_eq!((w.a.labels().len(), w.b.labels().len()), (2, 0));
}

#[tokio::test]
async fn init_waits_for_an_hsm_that_is_starting() {
    let w = World::new();
    w.a.begin_starting();
    let run = w.start();
    let request = InitRequest { recovery_shares: 1, recovery_threshold: 1, ..InitRequest::default() };
    let soon = async {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        w.a.come_back();
    };
    let (made, ()) = tokio::join!(run.seal.init(request, NOW), soon);
    made.unwrap();
}

#[tokio::test]
async fn without_an_escrow_old_master_keys_cannot_follow_and_new_ones_do() {
    let w = World::new();
    let (run, _) = w.initialised(false).await;
    let added = run.add("b", &[]).await.unwrap();
    assert_eq!(added.missing, ["default/v1"]);
    assert_eq!(run.pending("b").await, [("default/v1".to_owned(), "never")]);
    let refused = run.seal.remove_hsm(&run.zones, "a", false, &[]).await;
    assert!(text(refused).contains("default/v1"));
    run.zones.rotate("default", NOW).await.unwrap();
    run.tick().await;
    assert_eq!(run.pending("b").await, [("default/v1".to_owned(), "never")]);
    let material = run.wrapped().await;
    w.a.go_down(DownReason::TokenMissing);
    assert!(run.opens(&material).await);
}

#[tokio::test]
async fn bad_shares_and_bad_names_change_nothing() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    let other = World::new();
    let (_, foreign) = other.initialised(true).await;
    assert!(text(run.add("b", &shares[..1]).await).contains("1 share(s) were given, and 2 are needed"));
    assert!(text(run.add("b", &foreign).await).contains("another cluster"));
    assert!(text(run.add("c", &shares).await).contains("no seal \"pkcs11\" stanza is named \"c\""));
    w.b.go_down(DownReason::PinRefused);
    assert!(text(run.add("b", &shares).await).contains("hsm-pin-refused"));
    w.b.come_back();
    assert!(w.b.labels().is_empty());
    // A token that another cluster uses under the same label.
    w.b.create_seal_key("sos/test/seal/root/v1", crate::hsm::KeyId::random()).await.unwrap();
    assert!(matches!(run.add("b", &shares).await, Err(SealError::TokenInUse { count: 1, .. })));
    assert_eq!(w.b.labels().len(), 1);
    assert_eq!(run.unfinished("b").await, "");
}

#[tokio::test]
async fn two_stanzas_must_not_lead_to_one_token() {
    let w = World::new();
    let group = Group::new(vec![World::member("a", &w.a), World::member("b", &w.a)]);
    let run = w.start_with(Some(group), true);
    let request = InitRequest { recovery_shares: 1, recovery_threshold: 1, ..InitRequest::default() };
    let made = run.seal.init(request, NOW).await.unwrap();
    let refused = run.add("b", &[SecretString::new(made.recovery_keys[0].clone())]).await;
    assert!(text(refused).contains("same token"));
}

#[tokio::test]
async fn plain_shares_become_the_escrow_of_an_hsm() {
    let w = World::new();
    let plain = w.start_with(None, true);
    let request = InitRequest { secret_shares: 3, secret_threshold: 2, ..InitRequest::default() };
    let made = plain.seal.init(request, NOW).await.unwrap();
    let shares: Vec<_> = made.keys.iter().take(2).map(|key| SecretString::new(key.clone())).collect();
    let unseal = async |run: &Run| {
        for share in &shares {
            run.seal.unseal(UnsealRequest { key: share.duplicate(), ..UnsealRequest::default() }).await.unwrap();
        }
        run.zones.unsealed(&[], NOW).await.unwrap();
    };
    let run = w.start();
    unseal(&run).await;
    assert!(!run.seal.group().unwrap().in_use(), "a stanza alone enrols nothing");
    let material = run.wrapped().await;
    assert!(text(run.add("b", &[]).await).contains("unseal keys"));
    let added = run.add("b", &shares).await.unwrap();
    assert!(added.converted);
    assert_eq!(run.seal.status().unwrap().seal_type, "pkcs11");
    assert_eq!(run.zones.current("default").unwrap().place, crate::zones::Place::Software);
    run.tick().await;
    let current = run.zones.current("default").unwrap();
    assert_eq!((current.version, current.place), (2, crate::zones::Place::Hsm));
    let moved = run.zones.rewrap_material(&current, &material).await.unwrap();
    // From here on nobody is needed, and the shares still open everything.
    let run = w.start().unsealed().await;
    assert!(run.opens(&moved).await && run.opens(&material).await);
    run.add("a", &shares).await.unwrap();
    run.seal.remove_hsm(&run.zones, "b", false, &[]).await.unwrap();
    assert!(run.opens(&moved).await);
}

#[tokio::test]
async fn a_damaged_escrow_copy_is_missing_and_no_error() {
    let w = World::new();
    let (run, _) = w.initialised(true).await;
    let b = World::member("b", &w.b);
    let brought = run.zones.bring(&b, Some(&|_| Err("damaged".to_owned()))).await.unwrap();
    assert_eq!((brought.missing, brought.imported), (vec!["default/v1".to_owned()], vec![]));
    assert!(w.b.labels().is_empty());
}
