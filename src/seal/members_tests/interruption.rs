//! A new seal key, and work that is killed on the way or was under way when a backup was taken.

use super::*;

#[tokio::test]
async fn a_new_seal_key_replaces_the_old_one_and_survives_new_shares() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    run.add("b", &shares).await.unwrap();
    let before = run.seal.list_hsms(&run.zones).await.unwrap().seals[0].seal_key.clone();
    run.seal.rewrap_hsm(&run.zones, "a").await.unwrap();
    assert_ne!(run.seal.list_hsms(&run.zones).await.unwrap().seals[0].seal_key, before);
    let labels = w.a.labels();
    assert!(labels.contains(&"sos/test/seal/root/v2".to_owned()) && !labels.contains(&"sos/test/seal/root/v1".to_owned()));
    for away in [&w.b, &w.a] {
        away.go_down(DownReason::DeviceError);
        w.start().unsealed().await;
        away.come_back();
    }
}

/// Adding, removing and renewing, killed at every commit and at every call of the HSM, before and after its effect. The
/// cluster always opens, and the same command then ends well.
#[tokio::test]
async fn work_on_the_list_can_be_killed_anywhere() {
    for action in ["add", "rewrap", "remove"] {
        for effect in [false, true] {
            for (what, points) in [("commit", 6), ("b", 10)] {
                for nth in 0..points {
                    let place = format!("{action}, {what} {nth} effect {effect}");
                    let w = World::new();
                    let (run, _) = w.initialised(false).await;
                    if action != "add" {
                        run.add("b", &[]).await.unwrap();
                    }
                    let material = run.wrapped().await;
                    let run = w.start().unsealed().await;
                    match what {
                        "commit" => w.store.die_at(nth, effect),
                        _ => w.b.die_at(nth, effect),
                    }
                    let first = act(&run, action).await;
                    w.b.come_back();
                    let run = w.start().unsealed().await;
                    assert!(run.opens(&material).await, "{place}");
                    run.tick().await;
                    assert_eq!(run.unfinished_or_none("b").await, "", "{place}");
                    let enrolled = run.seal.seal_record().unwrap().unwrap().hsm_names().contains(&"b".to_owned());
                    if !enrolled {
                        assert!(w.b.labels().is_empty(), "{place}: {:?}", w.b.labels());
                    }
                    let again = match (action, enrolled) {
                        ("add", _) | ("rewrap", _) | ("remove", true) => act(&run, action).await,
                        _ => Ok(()),
                    };
                    assert!(again.is_ok(), "{place}: first {first:?}, then {again:?}");
                    if action == "rewrap" {
                        let seals = w.b.labels().iter().filter(|label| label.contains("/seal/root/")).count();
                        assert_eq!(seals, 1, "{place}: {:?}", w.b.labels());
                    }
                    if action == "add" {
                        w.a.go_down(DownReason::DeviceError);
                        w.start().unsealed().await;
                    }
                }
            }
        }
    }
}

impl Run {
    async fn unfinished_or_none(&self, name: &str) -> String {
        let all = self.seal.list_hsms(&self.zones).await.unwrap().seals;
        all.into_iter().find(|seal| seal.name == name).map(|seal| seal.unfinished).unwrap_or_default()
    }
}

async fn act(run: &Run, action: &str) -> Result<(), SealError> {
    match action {
        "add" => run.add("b", &[]).await.map(|_| ()),
        "rewrap" => run.seal.rewrap_hsm(&run.zones, "b").await,
        _ => run.seal.remove_hsm(&run.zones, "b", true, &[]).await.map(|_| ()),
    }
}

#[tokio::test]
async fn what_was_under_way_when_a_backup_was_taken_is_forgotten_and_its_objects_stay() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    run.add("b", &shares).await.unwrap();
    let key = KeyId::random();
    w.b.create_seal_key("sos/test/seal/root/v9", key).await.unwrap();
    let intent = record::SealIntent { format: 1, action: "rewrap".into(), member: "b".into(), keys: vec![key], masters: false };
    run.seal.barrier().commit(intent.put(crate::barrier::Txn::new()).unwrap()).await.unwrap();
    let labels = w.b.labels();
    run.seal.forget_intents().await.unwrap();
    run.tick().await;
    assert_eq!(w.b.labels(), labels);
    let orphans = run.seal.orphans(&run.zones, || Ok(HashSet::new())).await.unwrap();
    assert_eq!(orphans.iter().map(|orphan| (orphan.hsm.as_str(), orphan.id)).collect::<Vec<_>>(), [("b", key)]);
    let needed = run.zones.current("default").unwrap().id;
    assert!(text(run.seal.destroy_orphan(&run.zones, needed, || Ok(HashSet::new())).await).contains("no orphan"));
    run.seal.destroy_orphan(&run.zones, key, || Ok(HashSet::new())).await.unwrap();
    assert_eq!(w.b.labels().len(), labels.len() - 1);
}
