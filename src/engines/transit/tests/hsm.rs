//! Protection levels with an HSM: where keys live, what crashes leave behind, what an absent HSM means.

use super::*;
use crate::{
    engines::transit::{
        alg::KeyType,
        holdings::{Answer, Holdings, Row, Use},
    },
    hsm::KeyKind,
};

#[tokio::test]
async fn keys_are_in_the_hsm_by_default_where_it_can() {
    let hsm = FakeHsm::new();
    let mut bench = Bench::with(Some(Arc::clone(&hsm)), &[]).await;
    for (name, body, level) in [
        ("a", json!({ "type": "aes128-gcm96" }), "hsm"),
        ("b", json!({}), "hsm"),
        ("c", json!({ "type": "chacha20-poly1305" }), "software"),
        ("d", json!({ "derived": true }), "software"),
        ("e", json!({ "protection_level": "software" }), "software"),
        ("f", json!({ "protection_level": "hsm-only" }), "hsm-only"),
    ] {
        let key = bench.post(&format!("keys/{name}"), body).await;
        assert_eq!((&key["protection_level"], &key["zone"]), (&json!(level), &json!("default")), "{name}");
    }
    for name in ["a", "b", "c", "e", "f"] {
        let first = bench.encrypt(name, "one").await;
        bench.post(&format!("keys/{name}/rotate"), json!({})).await;
        let second = bench.encrypt(name, "two").await;
        bench.restart();
        assert_eq!(bench.decrypt(name, &first).await.unwrap(), "one", "{name}");
        assert_eq!(bench.decrypt(name, &second).await.unwrap(), "two", "{name}");
        let broken = format!("{}AAAA", &first[..first.len() - 4]);
        let failure = bench.decrypt(name, &broken).await.unwrap_err();
        assert!(failure.text().ends_with("message authentication failed"), "{failure}");
    }
    assert_eq!(hsm.labels().iter().filter(|label| label.contains("/transit/f/")).count(), 2, "{:?}", hsm.labels());
}

#[tokio::test]
async fn a_batch_is_one_call_to_the_hsm() {
    let hsm = FakeHsm::new();
    let bench = Bench::with(Some(Arc::clone(&hsm)), &[]).await;
    bench.post("keys/k", json!({})).await;
    bench.encrypt("k", "warm").await;
    let before = hsm.calls();
    let items: Vec<Value> = (0..1000).map(|_| json!({ "plaintext": "YQ==" })).collect();
    let answer = bench.post("encrypt/k", json!({ "batch_input": items })).await;
    assert_eq!(hsm.calls() - before, 1);
    let items: Vec<Value> = answer["batch_results"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
        .map(|(at, item)| json!({ "ciphertext": if at == 3 { json!("vault:v1:MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMA==") } else { item["ciphertext"].clone() } }))
        .collect();
    let reply = bench.call(Operation::Update, "decrypt/k", json!({ "batch_input": items })).await.unwrap();
    assert_eq!((hsm.calls() - before, reply.status), (2, Some(400)));
    let answer = data(reply);
    assert_eq!(answer["batch_results"][2]["plaintext"], "YQ==");
    assert!(answer["batch_results"][3]["error"].as_str().unwrap().contains("authentication failed"));
}

#[tokio::test]
async fn without_its_hsm_a_key_answers_503_with_the_reason() {
    let hsm = FakeHsm::new();
    let bench = Bench::with(Some(Arc::clone(&hsm)), &[]).await;
    bench.post("keys/k", json!({})).await;
    let text = bench.encrypt("k", "x").await;
    hsm.go_down(crate::hsm::DownReason::TokenMissing);
    let failure = bench.decrypt("k", &text).await.unwrap_err();
    assert_eq!(failure.kind(), Kind::Unavailable);
    assert!(failure.text().contains("hsm-token-missing"), "{failure}");
    let failure = bench.call(Operation::Update, "keys/new", json!({})).await.unwrap_err();
    assert_eq!(failure.kind(), Kind::Unavailable, "never software in silence: {failure}");
    hsm.come_back();
    assert_eq!(bench.decrypt("k", &text).await.unwrap(), "x");
}

#[tokio::test]
async fn a_plaintext_beyond_the_hsm_is_refused_with_the_limit() {
    let bench = Bench::with(Some(FakeHsm::new()), &[]).await;
    bench.post("keys/k", json!({})).await;
    let big = b64::encode(&vec![0; (1 << 20) + 1]);
    assert!(bench.refused("encrypt/k", json!({ "plaintext": big })).await.contains("at most 1048576 bytes"));
}

#[tokio::test]
async fn levels_rise_in_place_and_fall_only_where_exportable() {
    let bench = Bench::with(Some(FakeHsm::new()), &[]).await;
    bench.post("keys/k", json!({ "protection_level": "software" })).await;
    let first = bench.encrypt("k", "one").await;
    bench.post("keys/k/rotate", json!({})).await;
    let second = bench.encrypt("k", "two").await;
    let key = bench.post("keys/k/config", json!({ "protection_level": "hsm" })).await;
    assert_eq!(key["protection_level"], "hsm");
    assert_eq!(bench.decrypt("k", &first).await.unwrap(), "one");
    assert_eq!(bench.decrypt("k", &second).await.unwrap(), "two");
    let third = bench.encrypt("k", "three").await;
    let lower = json!({ "protection_level": "software" });
    assert!(bench.refused("keys/k/config", lower.clone()).await.contains("exportable"));
    assert!(bench.refused("keys/k/config", json!({ "protection_level": "hsm-only" })).await.contains("only new keys"));
    bench.post("keys/k/config", json!({ "exportable": true })).await;
    assert_eq!(bench.post("keys/k/config", lower).await["protection_level"], "software");
    for (text, plain) in [(first, "one"), (second, "two"), (third, "three")] {
        assert_eq!(bench.decrypt("k", &text).await.unwrap(), plain);
    }
}

#[tokio::test]
async fn a_change_of_level_ends_between_two_versions_and_without_effect_when_nobody_waits_for_it() {
    let hsm = FakeHsm::new();
    let bench = Bench::with(Some(Arc::clone(&hsm)), &[]).await;
    bench.post("keys/k", json!({ "protection_level": "software" })).await;
    for _ in 0..100 {
        bench.post("keys/k/rotate", json!({})).await;
    }
    let before = bench.transit.store.key("k").unwrap().unwrap().record.clone();
    let held = hsm.hold_next();
    let (wanted, waiting) = Wanted::within(Duration::from_secs(3600));
    let raise = json!({ "protection_level": "hsm" });
    let raised = bench.call_while(wanted, Operation::Update, "keys/k/config", raise.clone());
    let gone = async {
        held.wait().await;
        drop(waiting);
        let calls = hsm.calls();
        held.wait().await;
        calls
    };
    let (ended, calls) = futures_util::future::join(raised, gone).await;
    assert_eq!(ended.unwrap_err().kind(), Kind::Unavailable);
    assert!(hsm.calls() - calls < 60, "it did not go on with the rest");
    assert_eq!(bench.transit.store.key("k").unwrap().unwrap().record, before);
    // The key is free again, and its change can be made by who waits for it.
    assert_eq!(bench.post("keys/k/config", raise).await["protection_level"], "hsm");
}

#[tokio::test]
async fn hsm_only_refuses_what_needs_the_material() {
    let bench = Bench::with(Some(FakeHsm::new()), &[]).await;
    for (extra, word) in [("derived", "derived"), ("exportable", "exportable"), ("allow_plaintext_backup", "backups")] {
        let text = bench.refused("keys/k", json!({ "protection_level": "hsm-only", extra: true })).await;
        assert!(text.contains(word), "{text}");
    }
    bench.post("keys/k", json!({ "protection_level": "hsm-only" })).await;
    for extra in ["exportable", "allow_plaintext_backup"] {
        assert!(bench.refused("keys/k/config", json!({ extra: true })).await.contains("never leaves"));
    }
}

#[tokio::test]
async fn what_a_mount_requires_holds_for_new_versions_too() {
    let mut bench = Bench::with(Some(FakeHsm::new()), &[]).await;
    bench.post("keys/k", json!({ "protection_level": "software" })).await;
    bench.options.insert("protection_required".into(), "hsm".into());
    bench.restart();
    let said = bench.refused("keys/k/rotate", json!({})).await;
    assert!(said.contains("requires protection_level \"hsm\", and the key has \"software\""), "{said}");
    bench.post("keys/k/config", json!({ "protection_level": "hsm" })).await;
    bench.post("keys/k/rotate", json!({})).await;
}

#[tokio::test]
async fn a_mount_can_require_a_level() {
    let bench = Bench::with(Some(FakeHsm::new()), &[("protection_required", "hsm-only")]).await;
    assert_eq!(bench.post("keys/k", json!({})).await["protection_level"], "hsm-only");
    assert!(bench.refused("keys/s", json!({ "protection_level": "software" })).await.contains("requires"));
    assert!(bench.refused("keys/d", json!({ "derived": true })).await.contains("derived"));
    let bench = Bench::with(Some(FakeHsm::new()), &[("protection", "software")]).await;
    assert_eq!(bench.post("keys/k", json!({})).await["protection_level"], "software");
    assert_eq!(bench.post("keys/h", json!({ "protection_level": "hsm" })).await["protection_level"], "hsm");
}

#[tokio::test]
async fn objects_of_deleted_keys_leave_the_hsm() {
    let hsm = FakeHsm::new();
    let bench = Bench::with(Some(Arc::clone(&hsm)), &[]).await;
    let before = hsm.labels();
    bench.post("keys/k", json!({ "protection_level": "hsm-only" })).await;
    bench.post("keys/k/rotate", json!({})).await;
    assert_eq!(hsm.labels().len(), before.len() + 2);
    bench.post("keys/k/config", json!({ "deletion_allowed": true })).await;
    bench.call(Operation::Delete, "keys/k", json!({})).await.unwrap();
    bench.destroyed().await;
    assert_eq!(hsm.labels(), before);
    assert!(bench.transit.store.view.list("token/", None, usize::MAX).unwrap().is_empty());
    bench.post("keys/k", json!({ "protection_level": "hsm-only" })).await;
    bench.remove_wholly().await;
    assert_eq!(hsm.labels(), before);
}

#[tokio::test]
async fn a_removal_destroys_turn_by_turn_and_goes_on_where_it_was() {
    let hsm = FakeHsm::new();
    let mut bench = Bench::with(Some(Arc::clone(&hsm)), &[]).await;
    let before = hsm.labels().len();
    bench.post("keys/soft", json!({ "protection_level": "software" })).await;
    for number in 0..4 {
        bench.post(&format!("keys/k{number}"), json!({ "protection_level": "hsm-only" })).await;
    }
    // Not removed, or not any more since an older store was restored.
    assert!(bench.retire().await.is_err());
    assert_eq!(hsm.labels().len(), before + 4);
    bench.encrypt("k0", "x").await;
    bench.remove().await;
    let calls = hsm.calls();
    let mut left = Vec::new();
    while bench.retire().await.unwrap() == Left::Something {
        left.push(hsm.labels().len() - before);
        bench.restart();
    }
    assert_eq!(hsm.labels().len(), before);
    left.dedup();
    assert_eq!(left, if left[0] == 4 { vec![4, 3, 2, 1, 0] } else { vec![3, 2, 1, 0] }, "one a turn");
    assert_eq!(hsm.calls() - calls, 4, "nothing is looked for twice");
    // Where the HSM is away it waits, and nothing is forgotten.
    let hsm = FakeHsm::new();
    let bench = Bench::with(Some(Arc::clone(&hsm)), &[]).await;
    let before = hsm.labels().len();
    bench.post("keys/k", json!({ "protection_level": "hsm-only" })).await;
    bench.remove().await;
    hsm.die_at(0, false);
    assert!(bench.retire().await.is_err());
    hsm.come_back();
    bench.remove_wholly().await;
    assert_eq!(hsm.labels().len(), before);
}

#[tokio::test]
async fn objects_of_keys_that_go_keep_neither_requests_nor_ticks_waiting() {
    let hsm = FakeHsm::new();
    let bench = Bench::with(Some(Arc::clone(&hsm)), &[]).await;
    let before = hsm.labels().len();
    let backup = {
        bench.post("keys/new", json!({ "exportable": true, "allow_plaintext_backup": true })).await;
        data(bench.call(Operation::Read, "backup/new", json!({})).await.unwrap())["backup"].clone()
    };
    for name in ["deleted", "trimmed", "replaced"] {
        bench.post(&format!("keys/{name}"), json!({ "protection_level": "hsm-only" })).await;
        bench.post(&format!("keys/{name}/rotate"), json!({})).await;
        let config = json!({ "deletion_allowed": true, "min_decryption_version": 2, "min_encryption_version": 2 });
        bench.post(&format!("keys/{name}/config"), config).await;
    }
    assert_eq!(hsm.labels().len(), before + 6);
    // The HSM is at the first one until it is let go.
    let held = hsm.hold_next_destroyed();
    bench.call(Operation::Delete, "keys/deleted", json!({})).await.unwrap();
    held.wait().await;
    bench.post("keys/trimmed/trim", json!({ "min_available_version": 2 })).await;
    bench.call(Operation::Update, "restore/replaced", json!({ "backup": backup, "force": true })).await.unwrap();
    Engine::tick(bench.transit.as_ref()).await.unwrap();
    assert_eq!(hsm.labels().len(), before + 5);
    assert!(bench.transit.store.key("deleted").unwrap().is_none());
    held.wait().await;
    bench.destroyed().await;
    assert_eq!(hsm.labels().len(), before + 1);
    assert!(bench.transit.store.view.list("token/", None, usize::MAX).unwrap().is_empty());
}

#[tokio::test]
async fn objects_that_could_not_be_destroyed_go_at_a_later_tick() {
    let hsm = FakeHsm::new();
    let mut bench = Bench::with(Some(Arc::clone(&hsm)), &[]).await;
    let before = hsm.labels().len();
    for number in 0..3 {
        bench.post(&format!("keys/k{number}"), json!({ "protection_level": "hsm-only" })).await;
        bench.post(&format!("keys/k{number}/config"), json!({ "deletion_allowed": true })).await;
    }
    hsm.die_at(0, false);
    for number in 0..3 {
        bench.call(Operation::Delete, &format!("keys/k{number}"), json!({})).await.unwrap();
    }
    bench.destroyed().await;
    hsm.come_back();
    assert_eq!(hsm.labels().len(), before + 3);
    bench.restart();
    Engine::tick(bench.transit.as_ref()).await.unwrap();
    bench.destroyed().await;
    assert_eq!(hsm.labels().len(), before);
}

#[tokio::test]
async fn a_crash_while_an_object_is_made_leaves_no_orphan_and_no_gap() {
    for effect in [false, true] {
        for nth in 0..4 {
            let hsm = FakeHsm::new();
            let mut bench = Bench::with(Some(Arc::clone(&hsm)), &[]).await;
            let before = hsm.labels();
            bench.post("keys/k", json!({ "protection_level": "hsm-only" })).await;
            hsm.die_at(nth, effect);
            let rotated = bench.call(Operation::Update, "keys/k/rotate", json!({})).await;
            hsm.come_back();
            bench.restart();
            Engine::start(bench.transit.as_ref()).await.unwrap();
            Engine::tick(bench.transit.as_ref()).await.unwrap();
            bench.destroyed().await;
            let key = bench.transit.store.key("k").unwrap().unwrap();
            let versions = usize::try_from(key.record.latest_version).unwrap();
            assert_eq!(versions, if rotated.is_ok() { 2 } else { 1 }, "{nth} {effect}");
            assert_eq!(hsm.labels().len(), before.len() + versions, "{nth} {effect}: {:?}", hsm.labels());
            assert!(bench.encrypt("k", "x").await.starts_with(&format!("vault:v{versions}:")));
        }
    }
}

#[tokio::test]
async fn a_mount_is_in_another_zone_once_that_is_durable() {
    let mut bench = Bench::with(None, &[]).await;
    bench.services.zones.create("z1", time::Duration::ZERO, bench.clock.now()).await.unwrap();
    bench.options.insert("zone".into(), "z1".into());
    let tuned = Transit::new(&context(&bench.barrier, &bench.clock, &bench.services, &bench.options)).unwrap();
    let stores = &bench.services.transit;
    assert!(stores.next_in_zone("default", "").is_some() && stores.next_in_zone("z1", "").is_none(), "not committed yet");
    Engine::start(&tuned).await.unwrap();
    assert!(stores.next_in_zone("default", "").is_none() && stores.next_in_zone("z1", "").is_some());
}

#[tokio::test]
async fn what_another_zone_wrapped_is_used_and_moved() {
    for hsm in [None, Some(FakeHsm::new())] {
        let mut bench = Bench::with(hsm, &[]).await;
        bench.services.zones.create("z1", time::Duration::ZERO, bench.clock.now()).await.unwrap();
        bench.post("keys/k", json!({ "protection_level": "software" })).await;
        let first = bench.encrypt("k", "one").await;
        bench.options.insert("zone".into(), "z1".into());
        bench.restart();
        bench.post("keys/k/rotate", json!({})).await;
        let second = bench.encrypt("k", "two").await;
        for (zone, moves) in [("default", 0), ("z1", 2)] {
            bench.options.insert("zone".into(), "z1".into());
            bench.restart();
            assert_eq!(bench.decrypt("k", &first).await.unwrap(), "one");
            assert_eq!(bench.decrypt("k", &second).await.unwrap(), "two");
            let zones = Arc::clone(&bench.services.zones);
            zones.rotate(zone, bench.clock.now()).await.unwrap();
            assert_eq!(zones.rewrap(zone, bench.services.transit.as_ref()).await.unwrap().rewrapped, moves);
        }
        bench.restart();
        assert_eq!(bench.decrypt("k", &first).await.unwrap(), "one");
    }
}

#[tokio::test]
async fn material_follows_the_zones_master_key() {
    for hsm in [None, Some(FakeHsm::new())] {
        let mut bench = Bench::with(hsm.clone(), &[]).await;
        let mut texts = Vec::new();
        let only = if hsm.is_some() { "hsm-only" } else { "software" };
        let mut signatures = Vec::new();
        for (name, body) in [
            ("rsa", json!({ "type": "rsa-2048" })),
            ("ec", json!({ "type": "ecdsa-p256" })),
            ("raised", json!({ "type": "ecdsa-p256", "protection_level": "software" })),
            ("only", json!({ "type": "rsa-2048", "protection_level": only })),
        ] {
            bench.post(&format!("keys/{name}"), body).await;
            let signed = bench.post(&format!("sign/{name}"), json!({ "input": "YQ==" })).await;
            signatures.push((name, signed["signature"].clone()));
        }
        if hsm.is_some() {
            let raised = bench.post("keys/raised/config", json!({ "protection_level": "hsm" })).await;
            assert!(raised["moved_into_hsm"]["1"].is_string(), "{raised}");
        }
        bench.post("keys/rsa/rotate", json!({})).await;
        for (name, body) in
            [("a", json!({})), ("b", json!({ "protection_level": "software" })), ("c", json!({ "derived": true }))]
        {
            bench.post(&format!("keys/{name}"), body).await;
            let answer = bench.post(&format!("encrypt/{name}"), json!({ "plaintext": "YQ==", "context": "YQ==" })).await;
            texts.push((name, answer["ciphertext"].clone()));
        }
        let zones = Arc::clone(&bench.services.zones);
        zones.rotate("default", bench.clock.now()).await.unwrap();
        let progress = zones.rewrap("default", bench.services.transit.as_ref()).await.unwrap();
        assert!(progress.finished);
        assert_eq!((progress.seen, progress.rewrapped), (8, 8));
        let current = zones.current("default").unwrap().id;
        for (path, entry) in bench.transit.store.view.scan("material/", None, usize::MAX).unwrap() {
            let record: record::VersionRecord = record::decode(&entry.value).unwrap();
            if let record::Secrets::Zone(material) = &record.secrets {
                assert_eq!(material.data_key.wrapped_by, current, "{path}");
            }
            if let record::StoredKey::Hsm(wrapped) = &record.key {
                assert_eq!(wrapped.wrapped_by, current, "{path}");
            }
        }
        bench.restart();
        for (name, text) in texts {
            let body = json!({ "ciphertext": text, "context": "YQ==" });
            assert_eq!(bench.post(&format!("decrypt/{name}"), body).await["plaintext"], "YQ==");
        }
        for (name, signature) in signatures {
            let body = json!({ "input": "YQ==", "signature": signature });
            assert_eq!(bench.post(&format!("verify/{name}"), body).await["valid"], true, "{name}");
            assert!(bench.post(&format!("sign/{name}"), json!({ "input": "YQ==" })).await["signature"].is_string(), "{name}");
        }
    }
}

/// What a request of a row's use gets: the refusal, if there is one.
async fn tried(bench: &Bench, row: &Row, asked: Use) -> Option<String> {
    let (kind, level) = (row.kind.name(), row.level.word());
    let name = format!("{kind}-{level}-{asked:?}");
    let mut body = json!({ "type": kind, "protection_level": level });
    if row.kind == KeyType::Hmac {
        body["key_size"] = json!(32);
    }
    if asked == Use::Import {
        let mut source = body.clone();
        source["protection_level"] = json!("software");
        source["exportable"] = json!(true);
        source["allow_plaintext_backup"] = json!(true);
        bench.post(&format!("keys/{name}-source"), source).await;
        let backup = data(bench.call(Operation::Read, &format!("backup/{name}-source"), json!({})).await.unwrap());
        let body = json!({ "backup": backup["backup"], "protection_level": level });
        return bench
            .call(Operation::Update, &format!("restore/{name}"), body)
            .await
            .err()
            .map(|failure| failure.text().to_owned());
    }
    let context = "Y29udGV4dA==";
    match asked {
        Use::Derive => body["derived"] = json!(true),
        Use::Export => {
            body["exportable"] = json!(true);
            body["allow_plaintext_backup"] = json!(true);
        }
        _ => {}
    }
    let made = match bench.call(Operation::Update, &format!("keys/{name}"), body).await {
        Err(failure) => return Some(failure.text().to_owned()),
        Ok(made) => data(made),
    };
    assert_eq!(made["protection_level"], level, "{name}");
    let post = async |path: &str, body: Value| bench.post(&format!("{path}/{name}"), body).await;
    match asked {
        Use::Make => drop(bench.post(&format!("keys/{name}/rotate"), json!({})).await),
        Use::Encrypt => {
            let sealed = post("encrypt", json!({ "plaintext": "YQ==" })).await;
            assert_eq!(post("decrypt", json!({ "ciphertext": sealed["ciphertext"] })).await["plaintext"], "YQ==", "{name}");
        }
        Use::Sign => {
            let signed = post("sign", json!({ "input": "YQ==" })).await;
            assert_eq!(
                post("verify", json!({ "input": "YQ==", "signature": signed["signature"] })).await["valid"],
                true,
                "{name}"
            );
        }
        Use::Hmac => assert!(post("hmac", json!({ "input": "YQ==" })).await["hmac"].is_string(), "{name}"),
        Use::Derive if row.kind.supports_encryption() => {
            drop(post("encrypt", json!({ "plaintext": "YQ==", "context": context })).await)
        }
        Use::Derive => drop(post("sign", json!({ "input": "YQ==", "context": context })).await),
        Use::Export => {
            let what = if row.kind.supports_encryption() { "encryption-key" } else { "signing-key" };
            let what = if row.kind == KeyType::Hmac { "hmac-key" } else { what };
            for path in [format!("export/{what}/{name}"), format!("backup/{name}")] {
                bench.call(Operation::Read, &path, json!({})).await.unwrap();
            }
        }
        Use::Import => {}
    }
    None
}

#[tokio::test]
async fn the_table_of_holdings_is_what_requests_get() {
    let hsm = FakeHsm::new();
    let absent = "the module has no CKM_ECDSA";
    hsm.set_support(KeyKind::EcP384, Some(absent));
    let bench = Bench::with(Some(hsm), &[]).await;
    let table = Holdings::of(&bench.transit.store.protection).unwrap();
    assert_eq!(table.rows.len(), KeyType::ALL.len() * 3);
    for row in &table.rows {
        for (asked, answer) in Use::ALL.into_iter().zip(&row.uses) {
            // Their primes would take the test's time; their refusals are looked at like the others'.
            let slow = matches!(row.kind, KeyType::Rsa3072 | KeyType::Rsa4096);
            if *answer == Answer::Unsuited || slow && (*answer == Answer::Yes || asked == Use::Import) {
                continue;
            }
            let refused = tried(&bench, row, asked).await;
            match answer {
                Answer::No(reason) => assert_eq!(refused.as_ref(), Some(reason), "{row:?}"),
                Answer::Yes | Answer::Unsuited => assert_eq!(refused, None, "{row:?} {asked:?}"),
            }
        }
        if row.default && row.kind != KeyType::Rsa3072 && row.kind != KeyType::Rsa4096 {
            let name = row.kind.name();
            let size = if row.kind == KeyType::Hmac { 32 } else { 0 };
            let made = bench.post(&format!("keys/{name}"), json!({ "type": name, "key_size": size })).await;
            assert_eq!(made["protection_level"], row.level.word(), "{name}");
        }
    }
    let reasons = table.to_string();
    assert!(reasons.contains(absent), "{reasons}");
}

#[tokio::test]
async fn without_raw_rsa_no_key_of_the_type_gets_into_the_hsm() {
    let hsm = FakeHsm::new();
    let reason = "the module has no CKM_RSA_X_509";
    for kind in [KeyKind::Rsa2048, KeyKind::Rsa4096] {
        hsm.set_support(kind, Some(reason));
    }
    let bench = Bench::with(Some(hsm), &[]).await;
    for level in ["hsm", "hsm-only"] {
        let refused = bench.refused("keys/r", json!({ "type": "rsa-2048", "protection_level": level })).await;
        assert_eq!(refused, format!("rsa-2048 keys cannot have protection_level {level:?} on this HSM: {reason}"));
    }
    assert_eq!(bench.post("keys/r", json!({ "type": "rsa-2048" })).await["protection_level"], "software");
    assert!(bench.refused("keys/r/config", json!({ "protection_level": "hsm" })).await.contains(reason), "nor is it raised");
}
