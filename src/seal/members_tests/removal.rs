//! Removing an HSM, and what counts as a copy elsewhere.

use super::*;

#[tokio::test]
async fn the_last_working_wrapper_stays() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    assert!(text(run.seal.remove_hsm(&run.zones, "a", true, &[]).await).contains("the last HSM"));
    assert!(text(run.seal.remove_hsm(&run.zones, "x", true, &[]).await).contains("enrolled are: a"));
    run.add("b", &shares).await.unwrap();
    w.b.go_down(DownReason::DeviceError);
    assert!(text(run.seal.remove_hsm(&run.zones, "a", true, &[]).await).contains("no other HSM opens the root key"));
    w.b.come_back();
    let material = run.wrapped().await;
    // A key that only `a` holds.
    let id = crate::hsm::KeyId::random();
    w.a.generate_on_token("sos/test/transit/x/v1", id, KeyKind::Aes256).await.unwrap();
    let keys = [("transit/x v1".to_owned(), id)];
    assert!(text(run.seal.remove_hsm(&run.zones, "a", false, &keys).await).contains("transit/x v1"));
    let removed = run.seal.remove_hsm(&run.zones, "a", true, &keys).await.unwrap();
    assert_eq!((removed.lost, removed.pending), (vec!["transit/x v1".to_owned()], false));
    assert_eq!(w.a.labels(), ["sos/test/transit/x/v1"], "an hsm-only key is not destroyed");
    assert!(run.opens(&material).await);
    w.a.go_down(DownReason::DeviceError);
    let run = w.start().unsealed().await;
    assert!(run.opens(&material).await);
    // The key that it still holds is no obstacle to coming back.
    w.a.come_back();
    let own = HashSet::from([id]);
    run.seal.add_hsm(&run.zones, "a", &shares, &own).await.unwrap();
}

#[tokio::test]
async fn a_dead_hsm_is_removed_and_cleaned_when_it_shows_up_again() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    run.add("b", &shares).await.unwrap();
    w.a.go_down(DownReason::DeviceError);
    let removed = run.seal.remove_hsm(&run.zones, "a", false, &[]).await.unwrap();
    assert!(removed.pending);
    assert_eq!(run.unfinished("a").await, "remove");
    run.tick().await;
    w.a.come_back();
    run.tick().await;
    assert_eq!(run.unfinished("a").await, "");
    assert!(w.a.labels().is_empty(), "{:?}", w.a.labels());
}

/// The token of `b` is made anew and its worker restarted between two ticks: nobody saw it away.
#[tokio::test]
async fn what_was_seen_on_a_token_does_not_count_for_the_next_one() {
    for escrow in [true, false] {
        let w = World::new();
        let (run, shares) = w.initialised(escrow).await;
        run.add("b", &shares).await.unwrap();
        run.zones.rotate("default", NOW).await.unwrap();
        let material = run.wrapped().await;
        run.tick().await;
        assert!(run.opens(&material).await);
        w.b.wipe();
        w.b.restart_worker();
        run.seal.rewrap_hsm(&run.zones, "b").await.unwrap();
        let way = if escrow { "with-shares" } else { "never" };
        assert_eq!(run.pending("b").await, [("default/v1".to_owned(), way), ("default/v2".to_owned(), way)]);

        let refused = text(run.seal.remove_hsm(&run.zones, "a", false, &[]).await);
        assert!(refused.contains("default/v1, default/v2"), "{refused}");
        assert_eq!(refused.contains("the shares bring them back"), escrow, "{refused}");
        let removed = run.seal.remove_hsm(&run.zones, "a", true, &[]).await.unwrap();
        assert_eq!(removed.stranded, ["default/v1", "default/v2"]);
        run.tick().await;
        let left = w.a.labels();
        assert!(left.iter().any(|label| label.ends_with("default/v2")), "the only copies stay: {left:?}");
        let none = || Ok(HashSet::new());
        let orphans = run.seal.orphans(&run.zones, none).await.unwrap();
        let orphan = orphans.iter().find(|orphan| orphan.label.ends_with("default/v2")).unwrap();
        let refused = run.seal.destroy_orphan(&run.zones, orphan.id, none).await;
        assert!(text(refused).contains("default/v2: this may be the last copy"), "{orphans:?}");
        // The removed one still holds them and is taken back.
        run.add("a", &shares).await.unwrap();
        assert!(run.opens(&material).await);
    }
}

/// The token loses its objects while its worker goes on: only asking tells.
#[tokio::test]
async fn before_an_hsm_goes_the_others_are_asked() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    run.add("b", &shares).await.unwrap();
    let material = run.wrapped().await;
    run.tick().await;
    let master = run.zones.current("default").unwrap().id;
    w.b.destroy(master).await.unwrap();
    run.tick().await;
    assert!(text(run.seal.remove_hsm(&run.zones, "a", false, &[]).await).contains("default/v1"));
    assert_eq!(run.pending("b").await, [("default/v1".to_owned(), "with-shares")]);
    run.add("b", &shares).await.unwrap();
    run.seal.remove_hsm(&run.zones, "a", false, &[]).await.unwrap();
    assert!(w.a.labels().is_empty());
    assert!(run.opens(&material).await);
}

/// A removed HSM shows up while the others are away, then with one that lost the key: its copy is the last one.
#[tokio::test]
async fn a_master_key_is_destroyed_only_when_another_hsm_proves_it_at_that_moment() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    run.add("b", &shares).await.unwrap();
    let material = run.wrapped().await;
    w.a.go_down(DownReason::DeviceError);
    run.seal.remove_hsm(&run.zones, "a", false, &[]).await.unwrap();
    w.b.go_down(DownReason::DeviceError);
    w.a.come_back();
    run.tick().await;
    assert_eq!(run.unfinished("a").await, "remove");
    assert!(w.a.labels().iter().any(|label| label.ends_with("default/v1")), "{:?}", w.a.labels());
    w.b.destroy(run.zones.current("default").unwrap().id).await.unwrap_err();
    w.b.come_back();
    w.b.destroy(run.zones.current("default").unwrap().id).await.unwrap();
    run.tick().await;
    assert_eq!(run.unfinished("a").await, "");
    assert_eq!(w.a.labels(), ["sos/test/zone/default/v1"]);
    run.add("a", &shares).await.unwrap();
    assert!(run.opens(&material).await);
}

#[tokio::test]
async fn a_stanza_that_leads_to_the_same_token_is_no_second_copy() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    run.add("b", &shares).await.unwrap();
    let c = FakeHsm::new();
    let group = |b: &Arc<FakeHsm>| Group::new(vec![World::member("a", &w.a), World::member("b", b), World::member("c", &c)]);
    let run = w.start_with(Some(group(&w.b)), true).unsealed().await;
    run.add("c", &shares).await.unwrap();
    w.b.go_down(DownReason::DeviceError);
    c.destroy(run.zones.current("default").unwrap().id).await.unwrap();
    // The stanza of `b` was changed to the token of `a`; `c` opens the root key and lacks the master key.
    let run = w.start_with(Some(group(&w.a)), true).unsealed().await;
    assert!(text(run.seal.remove_hsm(&run.zones, "a", false, &[]).await).contains("default/v1"));
}
