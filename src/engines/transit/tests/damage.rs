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
    Engine::retire(bench.transit.as_ref()).await.unwrap();
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
    bench.transit.destroy(objects).await;
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
    assert_eq!(hsm.calls() - before, names.len(), "each object is destroyed once");
    assert_eq!(objects(&hsm), [""; 0]);
    assert!(bench.transit.store.doomed.lock().is_empty() && bench.transit.store.destroying.lock().is_empty());
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
