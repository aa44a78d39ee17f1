//! kill -9 while a key encrypts: what was reserved never falls behind what was acknowledged, so that no version encrypts
//! more often than random nonces allow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use sos::barrier::{Barrier, Txn};
use sos::seal::wire::UnsealRequest;
use sos::seal::{Seal, SealSettings};
use sos::secret::{SecretBytes, SecretString};
use sos::storage::{self, Kind, Options, StorageConfig};

use crate::support::{Place, Server, request};

/// Encryptions that are reserved at once, and how often a version may encrypt.
const BLOCK: u64 = 1 << 16;
const LIMIT: u64 = 1 << 32;
/// Items of a batch.
const ITEMS: u64 = 3000;

/// The one usage record of the store, which no server uses; replaced where `change` gives a value.
fn reserved(place: &Place, kind: Kind, share: &str, change: Option<u64>) -> u64 {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let config = StorageConfig { kind, path: Some(place.path("store")), options: Options::default() };
    let found = runtime.block_on(async {
        let barrier = Arc::new(Barrier::new(storage::open(&config).unwrap()));
        let seal = Seal::new(barrier.clone(), None, SealSettings::default());
        let key = SecretString::new(share.to_owned());
        seal.unseal(UnsealRequest { key, ..UnsealRequest::default() }).await.unwrap();
        assert!(!seal.is_sealed());
        let records = barrier.scan("logical/", None, usize::MAX).unwrap();
        let mut usage: Vec<_> = records.into_iter().filter(|(path, _)| path.contains("/usage/")).collect();
        assert_eq!(usage.len(), 1, "one key has one version");
        let (path, entry) = usage.remove(0);
        let mut record: Value = serde_json::from_slice(entry.value.expose()).unwrap();
        let found = record["reserved"].as_u64().unwrap();
        if let Some(change) = change {
            record["reserved"] = change.into();
            let written = SecretBytes::new(record.to_string().into_bytes());
            barrier.commit(Txn::new().put_secret(path, written)).await.unwrap();
        }
        seal.shut_down().await;
        found
    });
    drop(runtime);
    storage::wait_until_closed(&config).unwrap();
    found
}

fn batch() -> String {
    json!({"batch_input": vec![json!({"plaintext": "YQ=="}); ITEMS as usize]}).to_string()
}

/// Encrypts batches from three sides until the server is killed; answers how many items were acknowledged and sent.
fn encrypt_until_killed(server: Server<'_>, root: &str, after: Duration) -> (u64, u64) {
    let url = server.url().to_owned();
    let (acknowledged, sent) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let body = batch();
                loop {
                    sent.fetch_add(ITEMS, Ordering::SeqCst);
                    match request(&url, "PUT", "/v1/transit/encrypt/k", Some(root), Some(&body)) {
                        Ok(reply) if reply.status == 200 => drop(acknowledged.fetch_add(ITEMS, Ordering::SeqCst)),
                        _ => return,
                    }
                }
            });
        }
        // At least one batch of this life is acknowledged.
        while acknowledged.load(Ordering::SeqCst) == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(after);
        server.kill();
    });
    (acknowledged.into_inner(), sent.into_inner())
}

#[test]
fn reservations_outlive_kill_9() {
    for (storage, kind) in [("sled", Kind::Sled), ("redb", Kind::Redb)] {
        let place = Place::shamir_on(storage);
        let mut server = place.start();
        let made = server.init_shamir(1, 1);
        server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
        server.put("transit/keys/k", json!({"type": "aes256-gcm96"})).ok();
        server.terminate();
        let mut before = reserved(&place, kind, &made.shares[0], None);
        assert_eq!(before, BLOCK, "the first block is made with the version");
        let mut all = 0;
        for round in 0..4 {
            let server = place.start();
            server.unseal(&made.shares[..1]);
            let (acknowledged, sent) = encrypt_until_killed(server, &made.root, Duration::from_millis(150 * round));
            let now = reserved(&place, kind, &made.shares[0], None);
            assert!(now >= before, "{storage}: {now} after {before}: the count went back");
            // What an earlier process had reserved is taken as used.
            assert!(now >= before + acknowledged, "{storage}: {now} is behind {before} + {acknowledged} acknowledged");
            assert!(now <= before + sent + BLOCK, "{storage}: {now} is ahead of {before} by more than {sent} and a block");
            all += acknowledged;
            before = now;
        }
        crate::support::measured(&format!("{storage}: {all} encryptions acknowledged over 4 kills, {before} reserved"));

        // At the bound: however often the process dies, no more are given out than are left.
        let left = BLOCK / 2;
        reserved(&place, kind, &made.shares[0], Some(LIMIT - left));
        let mut given = 0;
        for life in 0..3 {
            let mut server = place.start();
            server.token = Some(made.root.clone());
            server.unseal(&made.shares[..1]);
            let reply = server.put("transit/encrypt/k", serde_json::from_str(&batch()).unwrap());
            if life == 0 {
                assert!(reply.text.contains("2^32"), "near the bound clients are warned: {:.200}", reply.text);
            }
            if reply.status == 200 {
                given += ITEMS;
            } else {
                let results = reply.body["data"]["batch_results"].as_array().unwrap_or_else(|| panic!("{:.300}", reply.text));
                let used_up = |item: &Value| item["error"].as_str().unwrap_or_default().contains("its limit of 2^32 encryptions");
                assert!(results.len() == ITEMS as usize && results.iter().all(used_up), "{:.300}", reply.text);
            }
            if life == 2 {
                // A used-up version fails what asks for it, and nothing else.
                server.put("transit/keys/k/rotate", json!({})).ok();
                let mixed = json!({"batch_input": [{"plaintext": "YQ==", "key_version": 1}, {"plaintext": "YQ=="}]});
                let reply = server.put("transit/encrypt/k", mixed);
                let results = &reply.body["data"]["batch_results"];
                assert_eq!(reply.status, 400, "{}", reply.text);
                assert!(results[0]["error"].as_str().unwrap().contains("its limit of 2^32 encryptions"), "{}", reply.text);
                assert!(results[1]["ciphertext"].as_str().unwrap().starts_with("vault:v2:"), "{}", reply.text);
                let single = server.put("transit/encrypt/k", json!({"plaintext": "YQ==", "key_version": 1}));
                assert_eq!(single.status, 400);
                assert!(single.errors().contains("reached its limit of 2^32 encryptions"), "{}", single.text);
            }
            server.kill();
        }
        assert!(given == ITEMS, "{storage}: the first life reserved all that was left, and its end burnt it: {given}");
    }
}
