//! What is pending, and the warnings that say so.

use super::*;

#[tokio::test]
async fn what_an_absent_hsm_misses_is_pending_and_finished_when_it_is_back() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    run.add("b", &shares).await.unwrap();
    w.b.go_down(DownReason::TokenMissing);
    assert_eq!(run.zones.rotate("default", NOW).await.unwrap(), 2);
    let material = run.wrapped().await;
    run.tick().await;
    assert_eq!(run.pending("b").await, [("default/v2".to_owned(), "by-itself")]);
    assert!(run.pending("a").await.is_empty());
    w.b.come_back();
    run.tick().await;
    assert!(run.pending("b").await.is_empty());
    w.a.go_down(DownReason::TokenMissing);
    assert!(run.opens(&material).await);
    // The second HSM makes keys for the first just as well.
    run.zones.rotate("default", NOW).await.unwrap();
    let material = run.wrapped().await;
    run.tick().await;
    assert_eq!(run.pending("a").await, [("default/v3".to_owned(), "by-itself")]);
    w.a.come_back();
    run.tick().await;
    w.b.go_down(DownReason::TokenMissing);
    assert!(run.opens(&material).await);
}

/// `sys/health` asks for warnings with every request: what cannot have changed is not read, and a change is seen at once.
#[tokio::test]
async fn warnings_are_kept_until_something_changes() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    let warnings = || {
        let before = w.store.reads();
        (run.seal.warnings(&run.zones).unwrap(), w.store.reads() - before)
    };
    let (none, first) = warnings();
    assert!(none.is_empty() && first > 1);
    assert_eq!(warnings(), (vec![], 1), "the seal record alone is looked at");
    run.zones.wrap(&run.zones.current("default").unwrap(), b"here", &SecretBytes::new(vec![7; 32])).await.unwrap();
    run.seal.barrier().commit(crate::barrier::Txn::new().put("logical/x", vec![1])).await.unwrap();
    assert_eq!(warnings().1, 1, "what engines write changes nothing");

    run.add("b", &shares).await.unwrap();
    run.tick().await;
    assert_eq!(warnings().0, Vec::<String>::new());
    // No tick comes between a change and the next look.
    w.b.go_down(DownReason::TokenMissing);
    run.zones.rotate("default", NOW).await.unwrap();
    let expected = "the HSM \"b\" does not hold 1 zone master key(s) yet: see sos seal list";
    assert_eq!(warnings().0, [expected]);
    assert_eq!(warnings(), (vec![expected.to_owned()], 1));
    run.zones.rotate("default", NOW).await.unwrap();
    assert!(warnings().0[0].contains("2 zone master key(s)"));

    // A record that is written beneath the barrier is seen as well.
    let mut record = run.seal.seal_record().unwrap().unwrap();
    record.wrappers.retain(|wrapper| !matches!(wrapper, Wrapper::Hsm { name, .. } if name == "b"));
    let json = serde_json::to_vec(&record).unwrap();
    run.seal.barrier().raw().commit(crate::storage::Txn::new().put(SEAL_PATH, json)).await.unwrap();
    assert_eq!(warnings().0, Vec::<String>::new());
    assert_eq!(warnings().1, 1);

    // Closed and opened again nothing is taken from before.
    run.seal.barrier().lock().await;
    assert!(matches!(run.seal.warnings(&run.zones), Err(SealError::Sealed)));
}

#[tokio::test]
async fn a_missing_seal_key_is_shown() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    let material = run.wrapped().await;
    assert!(run.pending("a").await.is_empty());
    assert!(run.seal.warnings(&run.zones).unwrap().is_empty());
    w.a.wipe();
    w.a.restart_worker();
    run.tick().await;
    let all = [("seal key".to_owned(), "with-shares"), ("default/v1".to_owned(), "with-shares")];
    assert_eq!(run.pending("a").await, all);
    let warnings = run.seal.warnings(&run.zones).unwrap();
    assert!(warnings.len() == 2 && warnings[0].contains("lacks this cluster's seal key"), "{warnings:?}");
    assert!(!run.opens(&material).await);
    run.seal.recover_hsm(&run.zones, &shares).await.unwrap();
    run.tick().await;
    assert!(run.pending("a").await.is_empty());
    assert!(run.opens(&material).await);

    run.add("b", &shares).await.unwrap();
    w.b.wipe();
    w.b.restart_worker();
    run.tick().await;
    assert_eq!(run.pending("b").await[0], ("seal key".to_owned(), "with-rewrap"));
    run.seal.rewrap_hsm(&run.zones, "b").await.unwrap();
    assert_eq!(run.pending("b").await, [("default/v1".to_owned(), "with-shares")]);
    run.add("b", &shares).await.unwrap();
    run.tick().await;
    assert!(run.pending("b").await.is_empty());
}
