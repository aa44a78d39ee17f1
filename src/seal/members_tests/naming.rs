//! Stanzas that are renamed, swapped, or lead to another token than before.

use super::*;

/// Two stanzas in place of the one without a name, as the documentation says.
#[tokio::test]
async fn a_stanza_that_gets_another_name_keeps_its_hsm() {
    let w = World::new();
    let first = w.start_with(Some(Group::of_one(w.a.clone())), true);
    let request = InitRequest { recovery_shares: 1, recovery_threshold: 1, ..InitRequest::default() };
    let made = first.seal.init(request, NOW).await.unwrap();
    first.zones.unsealed(&[], NOW).await.unwrap();
    let shares = [SecretString::new(made.recovery_keys[0].clone())];
    let material = first.wrapped().await;

    let run = w.start().unsealed().await;
    assert!(run.opens(&material).await);
    let listed = run.seal.list_hsms(&run.zones).await.unwrap().seals;
    let names: Vec<_> = listed.iter().map(|seal| (seal.name.as_str(), seal.enrolled, seal.state)).collect();
    assert_eq!(names, [("a", true, "ready"), ("b", false, "ready")]);
    run.add("b", &shares).await.unwrap();
    run.tick().await;
    assert!(run.pending("a").await.is_empty() && run.pending("b").await.is_empty());
    // The record of who holds what followed.
    run.zones.rotate("default", NOW).await.unwrap();
    run.tick().await;
    assert!(run.pending("a").await.is_empty() && run.pending("b").await.is_empty());
    run.seal.remove_hsm(&run.zones, "b", false, &[]).await.unwrap();
    assert!(run.opens(&material).await);
}

#[tokio::test]
async fn swapped_stanzas_are_told_apart_by_their_seal_keys() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    run.add("b", &shares).await.unwrap();
    let key_of = |run: &Run, name: &str| run.seal.seal_record().unwrap().unwrap().seal_key_of(name);
    let (of_a, of_b) = (key_of(&run, "a"), key_of(&run, "b"));
    w.b.go_down(DownReason::DeviceError);
    run.zones.rotate("default", NOW).await.unwrap();
    run.tick().await;
    let material = run.wrapped().await;
    assert_eq!(run.pending("b").await, [("default/v2".to_owned(), "by-itself")]);

    // Now `a` leads to the second token and `b` to the first one. While one of them is away nothing can be told, and all works.
    let swapped = || Group::new(vec![World::member("a", &w.b), World::member("b", &w.a)]);
    let run = w.start_with(Some(swapped()), true).unsealed().await;
    run.tick().await;
    assert!(run.opens(&material).await);
    assert_eq!(key_of(&run, "a"), of_a);
    w.b.come_back();
    run.tick().await;
    run.tick().await;
    assert_eq!((key_of(&run, "a"), key_of(&run, "b")), (of_b, of_a));
    assert!(run.pending("a").await.is_empty() && run.pending("b").await.is_empty());
    w.a.go_down(DownReason::DeviceError);
    assert!(run.opens(&material).await);
    let run = w.start_with(Some(swapped()), true).unsealed().await;
    assert!(run.opens(&material).await);
}

#[tokio::test]
async fn an_intent_and_the_token_of_an_hsm_follow_its_new_name() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    run.add("b", &shares).await.unwrap();
    // Killed in the middle of a new seal key for `b`.
    w.b.die_at(2, true);
    run.seal.rewrap_hsm(&run.zones, "b").await.unwrap_err();
    w.b.come_back();
    let renamed = Group::new(vec![World::member("a", &w.a), World::member("rack-b", &w.b)]);
    let run = w.start_with(Some(renamed), true).unsealed().await;
    run.tick().await;
    assert_eq!(run.unfinished("rack-b").await, "");
    let seals = w.b.labels().iter().filter(|label| label.contains("/seal/root/")).count();
    assert_eq!(seals, 1, "{:?}", w.b.labels());
    // Another stanza for the token of an enrolled HSM gets nothing, and nobody is told to delete that HSM's seal key.
    let twice = Group::new(vec![World::member("a", &w.a), World::member("rack-b", &w.b), World::member("c", &w.b)]);
    let run = w.start_with(Some(twice), true).unsealed().await;
    run.tick().await;
    let refused = text(run.add("c", &shares).await);
    assert!(refused.contains("same token"), "{refused}");
    let gone = FakeHsm::new();
    gone.go_down(DownReason::TokenMissing);
    let moved = Group::new(vec![World::member("a", &w.a), World::member("rack-b", &gone), World::member("c", &w.b)]);
    let run = w.start_with(Some(moved), true).unsealed().await;
    run.tick().await;
    let refused = text(run.add("c", &shares).await);
    assert!(refused.contains("Delete nothing on that token") && refused.contains("\"rack-b\""), "{refused}");
}

#[tokio::test]
async fn the_only_hsm_may_be_replaced_under_another_name() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    let material = run.wrapped().await;
    let new = FakeHsm::new();
    let run = w.start_with(Some(Group::new(vec![World::member("new", &new)])), true);
    for share in &shares {
        run.seal.unseal(UnsealRequest { key: share.duplicate(), ..UnsealRequest::default() }).await.unwrap();
    }
    run.zones.unsealed(&[], NOW).await.unwrap();
    run.seal.recover_hsm(&run.zones, &shares).await.unwrap();
    assert!(run.opens(&material).await);
    let run = w.start_with(Some(Group::new(vec![World::member("new", &new)])), true).unsealed().await;
    assert_eq!(run.seal.seal_record().unwrap().unwrap().hsm_names(), ["new"]);
}
