//! Keys whose records are damaged or lost, keys whose objects are gone, and many that go at once.

use super::*;
use crate::{core::failure::Failure, storage};

use record::{KeyUid, material_path, token_path};

/// Damages or loses records: one is not JSON, one is not opened by the barrier, one is gone.
async fn damage(bench: &Bench, paths: [String; 3]) {
    let view = &bench.transit.store.view;
    let [wrong, rotten, lost] = paths;
    view.commit(Txn::new().put(wrong, b"{".to_vec()).delete(lost)).await.unwrap();
    let raw = storage::Txn::new().put(format!("logical/uuid/{rotten}"), b"rotten".to_vec());
    bench.barrier.raw().commit(raw).await.unwrap();
}

/// A key of four versions, three of them unusable.
async fn damaged_key(hsm: &Arc<FakeHsm>, level: &str) -> (Bench, KeyUid) {
    let bench = Bench::with(Some(Arc::clone(hsm)), &[]).await;
    bench.post("keys/k", json!({ "protection_level": level })).await;
    bench.post("keys/k/config", json!({ "deletion_allowed": true })).await;
    for _ in 0..3 {
        bench.post("keys/k/rotate", json!({})).await;
    }
    let uid = bench.transit.store.key("k").unwrap().unwrap().record.uid;
    damage(&bench, [1, 2, 3].map(|version| material_path(uid, version))).await;
    (bench, uid)
}

fn objects(hsm: &FakeHsm) -> Vec<String> {
    hsm.labels().into_iter().filter(|label| label.contains("/transit/")).collect()
}

#[tokio::test]
async fn damaged_and_lost_versions_do_not_keep_a_key_from_being_deleted() {
    for level in ["software", "hsm", "hsm-only"] {
        let hsm = FakeHsm::new();
        let (bench, _) = damaged_key(&hsm, level).await;
        let bounds = json!({ "min_decryption_version": 3, "min_encryption_version": 3 });
        bench.post("keys/k/config", bounds).await;
        bench.post("keys/k/trim", json!({ "min_available_version": 3 })).await;
        bench.call(Operation::Delete, "keys/k", json!({})).await.unwrap();
        assert!(bench.transit.store.key("k").unwrap().is_none());
        bench.destroyed().await;
        assert!(bench.transit.store.view.scan("", None, 100).unwrap().is_empty(), "{level}");
        // Those that no record names any more are left, and only those.
        let left: &[&str] = if level == "hsm-only" { &["v1", "v2", "v3"] } else { &[] };
        assert_eq!(objects(&hsm), left.iter().map(|v| format!("sos/test/transit/k/{v}")).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn damaged_and_lost_versions_do_not_keep_a_key_from_being_replaced() {
    let hsm = FakeHsm::new();
    let (bench, _) = damaged_key(&hsm, "software").await;
    bench.post("keys/new", json!({ "exportable": true, "allow_plaintext_backup": true })).await;
    let backup = data(bench.call(Operation::Read, "backup/new", json!({})).await.unwrap());
    let body = json!({ "backup": backup["backup"], "force": true });
    bench.call(Operation::Update, "restore/k", body).await.unwrap();
    let text = bench.encrypt("k", "x").await;
    assert_eq!(bench.decrypt("k", &text).await.unwrap(), "x");
}

#[tokio::test]
async fn damaged_records_do_not_keep_a_mount_from_being_removed() {
    let hsm = FakeHsm::new();
    let (bench, _) = damaged_key(&hsm, "hsm-only").await;
    // Records of objects that are to be destroyed, damaged as well.
    let (doomed, rotten) = (crate::hsm::KeyId::random(), crate::hsm::KeyId::random());
    hsm.generate_on_token("sos/test/transit/gone/v1", doomed, crate::hsm::KeyKind::Aes256).await.unwrap();
    hsm.generate_on_token("sos/test/transit/gone/v2", rotten, crate::hsm::KeyKind::Aes256).await.unwrap();
    damage(&bench, [token_path(doomed), token_path(rotten), "none".to_owned()]).await;
    bench.remove_wholly().await;
    assert_eq!(objects(&hsm), ["v1", "v2", "v3"].map(|version| format!("sos/test/transit/k/{version}")));
    assert!(bench.transit.store.view.list("token/", None, 10).unwrap().is_empty());
}

#[tokio::test]
async fn who_loses_an_object_to_a_deletion_looks_again() {
    let hsm = FakeHsm::new();
    let bench = Bench::with(Some(Arc::clone(&hsm)), &[]).await;
    for name in ["k", "lost"] {
        bench.post(&format!("keys/{name}"), json!({ "protection_level": "hsm-only" })).await;
    }
    let texts = [bench.encrypt("k", "x").await, bench.encrypt("lost", "x").await];
    // Deleted as another request does it, between this one's look at the key and its use.
    let store = &bench.transit.store;
    let key = store.key("k").unwrap().unwrap();
    let mut objects = Vec::new();
    let txn = Txn::new().delete(record::key_path("k"));
    let txn = bench.transit.drop_version("k", key.record.uid, &key.record.versions[0], txn, &mut objects).unwrap();
    store.view.commit(txn).await.unwrap();
    bench.transit.destroy(objects);
    bench.destroyed().await;
    let failure = bench.decrypt("k", &texts[0]).await.unwrap_err();
    assert!(failure.cause().is_none() && failure.text().contains("not found"), "{failure:?}");
    // What the HSM lost is still said to be lost.
    hsm.wipe();
    let failure: Failure = bench.decrypt("lost", &texts[1]).await.unwrap_err();
    assert!(failure.text().contains("the HSM does not hold this key"), "{failure:?}");
}

#[tokio::test]
async fn deletions_at_once_destroy_each_its_own_objects() {
    let hsm = FakeHsm::new();
    let bench = Bench::with(Some(Arc::clone(&hsm)), &[]).await;
    let names: Vec<String> = (0..16).map(|number| format!("keys/k{number}")).collect();
    for name in &names {
        bench.post(name, json!({ "protection_level": "hsm-only" })).await;
        bench.post(&format!("{name}/config"), json!({ "deletion_allowed": true })).await;
    }
    let before = hsm.calls();
    let deletions = names.iter().map(|name| bench.call(Operation::Delete, name, json!({})));
    for deleted in futures_util::future::join_all(deletions).await {
        deleted.unwrap();
    }
    bench.destroyed().await;
    assert_eq!(hsm.calls() - before, names.len(), "each object is destroyed once");
    assert_eq!(objects(&hsm), [""; 0]);
    assert!(bench.transit.store.doomed.lock().is_empty());
}

#[tokio::test]
async fn imports_work_whatever_the_mount_requires() {
    for required in ["software", "hsm", "hsm-only"] {
        let bench = Bench::with(Some(FakeHsm::new()), &[("protection_required", required)]).await;
        let answer = data(bench.call(Operation::Read, "wrapping_key", json!({})).await.unwrap());
        assert!(answer["public_key"].as_str().unwrap().contains("BEGIN PUBLIC KEY"), "{required}");
        // At whatever level the HSM can hold it.
        let new = lifecycle::NewKey::plain(alg::KeyType::Aes256Gcm96);
        bench.transit.create_at("import/other", &new, Level::Hsm).await.unwrap();
        let failure = bench.transit.create_at("k", &new, if required == "hsm" { Level::Software } else { Level::Hsm }).await;
        assert!(failure.err().unwrap().text().contains("this mount requires"), "{required}");
    }
}

/// The ways in which the record of a key is damaged.
const WAYS: [&str; 3] = ["not opened by the barrier", "no JSON", "JSON of another kind"];

async fn damage_key(bench: &Bench, name: &str, way: &str) {
    let path = record::key_path(name);
    let view = &bench.transit.store.view;
    let txn = match way {
        "no JSON" => Txn::new().put(path, b"{".to_vec()),
        "JSON of another kind" => {
            let uid = bench.transit.store.key(name).unwrap().unwrap().record.uid;
            Txn::new().put(path, format!("{{\"format\":9,\"uid\":\"{uid}\"}}").into_bytes())
        }
        _ => {
            let raw = storage::Txn::new().put(format!("logical/uuid/{path}"), b"rotten".to_vec());
            bench.barrier.raw().commit(raw).await.unwrap();
            return;
        }
    };
    view.commit(txn).await.unwrap();
}

/// A mount at a level with the keys `k` and `other`, of two versions each.
async fn two_keys(hsm: &Arc<FakeHsm>, level: &str) -> Bench {
    let bench = Bench::with(Some(Arc::clone(hsm)), &[]).await;
    for name in ["k", "other"] {
        bench.post(&format!("keys/{name}"), json!({ "protection_level": level, "auto_rotate_period": "1h" })).await;
        bench.post(&format!("keys/{name}/rotate"), json!({})).await;
    }
    bench
}

#[tokio::test]
async fn a_key_whose_own_record_is_damaged_is_named_and_can_be_deleted() {
    for (level, way) in ["software", "hsm", "hsm-only"].into_iter().flat_map(|level| WAYS.map(|way| (level, way))) {
        let hsm = FakeHsm::new();
        let mut bench = two_keys(&hsm, level).await;
        let text = bench.encrypt("other", "x").await;
        damage_key(&bench, "k", way).await;
        bench.restart();
        let reads = [
            bench.call(Operation::Read, "keys/k", json!({})).await,
            bench.call(Operation::Update, "encrypt/k", json!({ "plaintext": "YQ==" })).await,
            bench.call(Operation::Update, "keys/k/rotate", json!({})).await,
            bench.call(Operation::Update, "keys/k", json!({})).await,
        ];
        for answer in reads {
            let failure = answer.unwrap_err();
            assert_eq!(failure.kind(), Kind::Internal);
            assert!(failure.text().contains("\"k\" is damaged") && failure.text().contains("DELETE keys/k"), "{failure:?}");
        }
        let listed = data(bench.call(Operation::List, "keys/", json!({})).await.unwrap());
        assert_eq!(listed["keys"], json!(["k", "other"]), "it is listed, so that it is found");
        assert!(survey::hsm_only(&bench.transit.store.view).unwrap().len() == if level == "hsm-only" { 4 } else { 0 });
        let told = bench.transit.delete_damaged("k").await.unwrap().unwrap();
        assert!(told.contains("2 versions"), "{told}");
        bench.destroyed().await;
        assert_eq!(bench.decrypt("other", &text).await.unwrap(), "x", "{level} {way}");
        let uid = bench.transit.store.key("other").unwrap().unwrap().record.uid.to_string();
        let left = bench.transit.store.view.scan("", None, 100).unwrap();
        let left: Vec<String> = left.into_iter().map(|(path, _)| path).collect();
        let of_other = |path: &String| path.contains(&uid) || path.ends_with("/other");
        assert!(left.len() == 6 && left.iter().all(of_other), "{level} {way}: {left:?}");
        let objects = objects(&hsm);
        assert!(
            objects.len() == if level == "hsm-only" { 2 } else { 0 } && objects.iter().all(|label| label.contains("/other/"))
        );
        assert!(bench.transit.delete_damaged("k").await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_key_damaged_after_it_was_read_is_damaged_at_its_next_change() {
    for way in WAYS {
        let bench = two_keys(&FakeHsm::new(), "software").await;
        bench.post("keys/k/config", json!({ "deletion_allowed": true })).await;
        damage_key(&bench, "k", way).await;
        let failure = bench.call(Operation::Update, "keys/k/rotate", json!({})).await.unwrap_err();
        assert!(failure.text().contains("is damaged"), "{way}: {failure:?}");
    }
}

#[tokio::test]
async fn versions_that_could_be_of_another_damaged_key_go_with_the_last_one() {
    let hsm = FakeHsm::new();
    let mut bench = two_keys(&hsm, "hsm-only").await;
    damage_key(&bench, "k", "no JSON").await;
    damage_key(&bench, "other", "no JSON").await;
    bench.restart();
    let told = bench.transit.delete_damaged("k").await.unwrap().unwrap();
    assert!(told.contains("(other)"), "{told}");
    assert_eq!((objects(&hsm).len(), bench.transit.store.view.list("material/", None, 9).unwrap().len()), (4, 2));
    let told = bench.transit.delete_damaged("other").await.unwrap().unwrap();
    assert!(told.contains("4 versions"), "{told}");
    bench.destroyed().await;
    assert!(bench.transit.store.view.scan("", None, 100).unwrap().is_empty());
    assert_eq!(objects(&hsm), [""; 0]);
}

#[tokio::test]
async fn a_damaged_key_is_replaced_by_a_forced_restore_alone() {
    for way in WAYS {
        let mut bench = two_keys(&FakeHsm::new(), "software").await;
        bench.post("keys/new", json!({ "exportable": true, "allow_plaintext_backup": true })).await;
        let backup = data(bench.call(Operation::Read, "backup/new", json!({})).await.unwrap());
        let text = bench.encrypt("new", "x").await;
        damage_key(&bench, "k", way).await;
        bench.restart();
        let body = |force: bool| json!({ "backup": backup["backup"], "force": force });
        let failure = bench.call(Operation::Update, "restore/k", body(false)).await.unwrap_err();
        assert!(failure.text().contains("is damaged"), "{failure:?}");
        let reply = bench.call(Operation::Update, "restore/k", body(true)).await.unwrap();
        assert!(reply.warnings[0].contains("2 versions"), "{:?}", reply.warnings);
        assert_eq!(bench.decrypt("k", &text).await.unwrap(), "x");
        // Those of `other`, and one each of `new` and `k`.
        assert_eq!(bench.transit.store.view.scan("material/", None, 9).unwrap().len(), 4, "{way}");
    }
}

#[tokio::test]
async fn a_damaged_key_keeps_no_other_from_rotating() {
    let mut bench = two_keys(&FakeHsm::new(), "software").await;
    damage_key(&bench, "k", "no JSON").await;
    bench.restart();
    Engine::start(bench.transit.as_ref()).await.unwrap();
    bench.clock.advance(Duration::from_secs(2 * 60 * 60));
    Engine::tick(bench.transit.as_ref()).await.unwrap();
    assert_eq!(bench.transit.store.key("other").unwrap().unwrap().record.latest_version, 3);
    let scheduled: Vec<String> = bench.transit.store.schedule.lock().keys().cloned().collect();
    assert_eq!(scheduled, ["other"], "it is told once and not tried again");
    assert_eq!(Engine::worn(bench.transit.as_ref()).await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn a_damaged_wrapping_key_is_replaced() {
    let mut bench = Bench::new().await;
    let before = data(bench.call(Operation::Read, "wrapping_key", json!({})).await.unwrap());
    damage_key(&bench, "import/wrapping-key", "no JSON").await;
    bench.restart();
    let after = data(bench.call(Operation::Read, "wrapping_key", json!({})).await.unwrap());
    assert!(before["public_key"] != after["public_key"] && after["public_key"].as_str().unwrap().contains("BEGIN"));
    assert_eq!(bench.transit.store.view.scan("material/", None, 9).unwrap().len(), 1);
}
