//! An HSM behind a network: every call with its objects or keys takes its time. What takes many of them keeps nobody else waiting,
//! and ends also after kill -9.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::json;

use crate::support::{Place, Server, eventually, measured};

/// The objects of Transit keys in the HSM.
fn objects(place: &Place) -> usize {
    place.objects().iter().filter(|label| label.contains("/transit/")).count()
}

/// Kills a server at its work and starts it with an HSM that is quick again, until of the keys' objects one is left.
fn started_again<'a>(place: &'a Place, server: Server<'a>, root: String) -> Server<'a> {
    server.kill();
    place.mend("all_ms");
    let mut server = place.start();
    server.wait_unsealed();
    server.token = Some(root);
    eventually("what was left is gone", || objects(place) == 1);
    server
}

fn make_keys(server: &Server<'_>, mount: &str, count: usize) {
    for number in 0..count {
        server.put(&format!("{mount}/keys/k{number}"), json!({"protection_level": "hsm-only"})).ok();
    }
}

/// Restores a key that rotates by itself and is due.
fn restore_due(server: &Server<'_>, name: &str) {
    let key = BASE64_STANDARD.encode([7; 32]);
    let version = json!({"key": key, "hmac_key": key, "time": "2026-01-01T00:00:00Z", "creation_time": 1_767_225_600});
    let policy = json!({
        "name": "due", "type": 0, "keys": {"1": version}, "exportable": true, "min_decryption_version": 1, "latest_version": 1,
        "archive_version": 1, "auto_rotate_period": 3_600_000_000_000_u64,
    });
    let backup = BASE64_STANDARD.encode(json!({"policy": policy}).to_string());
    server.put(&format!("{name}/restore/due"), json!({"backup": backup, "protection_level": "software"})).ok();
}

#[test]
fn a_mount_that_goes_keeps_neither_mounts_nor_keys_nor_secrets_waiting() {
    let Some(place) = Place::behind_proxy() else { return };
    let mut server = place.start();
    let made = server.init(1, 1);
    server.mount_kv("kv");
    for mount in ["going", "stays"] {
        server.put(&format!("sys/mounts/{mount}"), json!({"type": "transit"})).ok();
    }
    make_keys(&server, "going", 80);
    make_keys(&server, "stays", 1);
    place.fault("all_ms", "50");
    let began = Instant::now();
    assert_eq!(server.call("DELETE", "sys/mounts/going", None).status, 204);
    let answered = began.elapsed();
    assert_eq!(server.get("going/keys/k0").status, 404);
    server.put("kv/data/a", json!({"data": {"x": 1}})).ok();
    server.put("sys/mounts/going", json!({"type": "kv"})).ok();
    restore_due(&server, "stays");
    eventually("the due key is rotated", || server.get("stays/keys/due").ok()["data"]["latest_version"].as_u64() > Some(1));
    let rotated = began.elapsed();
    let left = objects(&place) - 1;
    assert!((1..80).contains(&left), "{left}: all that came while the mount's objects were being destroyed\n{}", server.log());
    measured(&format!(
        "a mount of 80 keys in a slow HSM: unmounted after {answered:.2?}, another mount's due key rotated after {rotated:.2?}"
    ));
    let server = started_again(&place, server, made.root);
    server.put("stays/encrypt/k0", json!({"plaintext": "YQ=="})).ok();
    server.put("going/a", json!({"x": 1}));
    assert_eq!(server.get("going/a").ok()["data"]["x"], 1, "the mount made there meanwhile");
}

#[test]
fn a_removal_goes_on_after_a_crash_at_any_step() {
    for (point, left) in [("mount-removed", 3), ("retiring-destroyed:2", 1)] {
        let Some(place) = Place::hsm() else { return };
        let mut server = place.start_to_crash_at(point);
        let made = server.init(1, 1);
        for mount in ["going", "stays"] {
            server.put(&format!("sys/mounts/{mount}"), json!({"type": "transit"})).ok();
        }
        make_keys(&server, "going", 3);
        make_keys(&server, "stays", 1);
        server.send("DELETE", "sys/mounts/going", &json!({}));
        server.wait_crashed();
        assert_eq!(objects(&place), left + 1, "{point}");
        let mut server = place.start();
        server.wait_unsealed();
        server.token = Some(made.root);
        assert_eq!(server.get("going/keys/k0").status, 404);
        eventually("what was left is gone", || objects(&place) == 1);
        server.put("stays/encrypt/k0", json!({"plaintext": "YQ=="})).ok();
    }
}

/// A backup of a key with so many versions that may leave its HSM.
fn backup_of(versions: u32) -> String {
    let key = |version: u32| BASE64_STANDARD.encode([u8::try_from(version).unwrap(); 32]);
    let line = |version: u32| (version.to_string(), json!({"key": key(version), "hmac_key": key(version)}));
    let policy = json!({
        "name": "k", "type": 0, "keys": (1..=versions).map(line).collect::<serde_json::Map<_, _>>(), "exportable": true,
        "allow_plaintext_backup": true, "min_decryption_version": 1, "latest_version": versions, "archive_version": versions,
    });
    BASE64_STANDARD.encode(json!({"policy": policy}).to_string())
}

#[test]
fn keys_of_many_versions_that_go_keep_nobody_waiting() {
    const VERSIONS: usize = 8;
    let Some(place) = Place::behind_proxy() else { return };
    let mut server = place.start();
    let made = server.init(1, 1);
    server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
    make_keys(&server, "transit", 3);
    for number in 0..3 {
        for _ in 1..VERSIONS {
            server.put(&format!("transit/keys/k{number}/rotate"), json!({})).ok();
        }
        let config = json!({"deletion_allowed": true, "min_decryption_version": VERSIONS, "min_encryption_version": VERSIONS});
        server.put(&format!("transit/keys/k{number}/config"), config).ok();
    }
    assert_eq!(objects(&place), 3 * VERSIONS);
    place.fault("all_ms", "400");
    let began = Instant::now();
    assert_eq!(server.call("DELETE", "transit/keys/k0", None).status, 204);
    server.put("transit/keys/k1/trim", json!({"min_available_version": VERSIONS})).ok();
    let body = json!({"backup": backup_of(1), "force": true, "protection_level": "software"});
    server.put("transit/restore/k2", body).ok();
    let answered = began.elapsed();
    assert_eq!(server.get("sys/health").status, 200);
    assert_eq!(server.get("transit/keys/k0").status, 404);
    assert_eq!(server.get("transit/keys/k2").ok()["data"]["latest_version"], 1);
    let left = objects(&place);
    assert!(left > VERSIONS, "{left}: they were answered when their objects were gone");
    measured(&format!(
        "three keys of {VERSIONS} versions in a slow HSM: deleted, trimmed and replaced after {answered:.2?}, with {left} of {} objects left",
        3 * VERSIONS
    ));
    let server = started_again(&place, server, made.root);
    server.put("transit/encrypt/k1", json!({"plaintext": "YQ=="})).ok();
    server.put("transit/keys/k1/config", json!({"deletion_allowed": true})).ok();
    server.call("DELETE", "transit/keys/k1", None).ok();
    eventually("the last one is gone", || objects(&place) == 0);
}

#[test]
fn keys_that_come_into_a_slow_hsm_after_quick_signatures_keep_nobody_waiting() {
    const VERSIONS: u32 = 6;
    let Some(place) = Place::behind_proxy() else { return };
    let mut server = place.start();
    let made = server.init(1, 1);
    for mount in ["transit", "other"] {
        server.put(&format!("sys/mounts/{mount}"), json!({"type": "transit"})).ok();
    }
    server.put("transit/restore/raised", json!({"backup": backup_of(VERSIONS), "protection_level": "software"})).ok();
    server.put("other/keys/signs", json!({"type": "ecdsa-p256", "protection_level": "hsm-only"})).ok();
    let texts: Vec<String> = (0..40)
        .map(|number| {
            server.put(&format!("other/keys/cold{number}"), json!({"protection_level": "software"})).ok();
            let sealed = server.put(&format!("other/encrypt/cold{number}"), json!({"plaintext": "YQ=="})).ok();
            sealed["data"]["ciphertext"].as_str().unwrap().to_owned()
        })
        .collect();
    server.terminate();
    // Nothing of a key is in memory now.
    let mut server = place.start();
    server.wait_unsealed();
    server.token = Some(made.root);
    // What it learns of these is nothing that holds for the rest.
    let signatures: Vec<_> = (0..200).map(|_| json!({"input": "YWJj"})).collect();
    server.put("other/sign/signs", json!({"batch_input": signatures})).ok();
    place.fault("all_ms", "40");
    let under_way = AtomicUsize::new(2);
    let (server, began) = (&server, Instant::now());
    let move_in = |path: &str, body: serde_json::Value| {
        server.put(path, body).ok();
        under_way.fetch_sub(1, Ordering::Relaxed);
        began.elapsed()
    };
    let (moved, others) = std::thread::scope(|scope| {
        let raise = scope.spawn(|| move_in("transit/keys/raised/config", json!({"protection_level": "hsm"})));
        let body = json!({"backup": backup_of(VERSIONS), "protection_level": "hsm"});
        let restore = scope.spawn(|| move_in("transit/restore/restored", body));
        std::thread::sleep(Duration::from_millis(200));
        let mut others = 0;
        for (number, text) in texts.iter().enumerate() {
            server.put(&format!("other/decrypt/cold{number}"), json!({"ciphertext": text})).ok();
            server.put(&format!("other/keys/new{number}"), json!({"protection_level": "hsm"})).ok();
            if under_way.load(Ordering::Relaxed) < 2 {
                break;
            }
            others += 1;
        }
        ([raise, restore].map(|one| one.join().unwrap()), others)
    });
    measured(&format!(
        "raising and restoring {VERSIONS} versions in a slow HSM took {moved:.2?}; before one of them had ended {others} keys were opened and as many made"
    ));
    // Each waits for two operations of those beside it at most: were it for all that could be under way, there would be none yet.
    assert!(others >= 2, "{others}: they waited for too many");
    place.mend("all_ms");
    for name in ["raised", "restored"] {
        let key = server.get(&format!("transit/keys/{name}")).ok();
        assert_eq!((&key["data"]["protection_level"], &key["data"]["latest_version"]), (&json!("hsm"), &json!(VERSIONS)));
        server.put(&format!("transit/encrypt/{name}"), json!({"plaintext": "YQ=="})).ok();
    }
}

#[test]
fn what_a_slow_hsm_cannot_give_out_in_time_is_refused_at_once() {
    const VERSIONS: u32 = 100;
    let Some(place) = Place::behind_proxy() else { return };
    let config = std::fs::read_to_string(place.path("sos.hcl")).unwrap();
    place.configure(&format!("default_max_request_duration = \"10s\"\n{config}"));
    let mut server = place.start();
    server.init(1, 1);
    server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
    server.put("transit/restore/k", json!({"backup": backup_of(VERSIONS), "protection_level": "hsm"})).ok();
    server.put("transit/keys/elsewhere", json!({"type": "rsa-2048", "protection_level": "software"})).ok();
    place.fault("all_ms", "60");
    for path in ["transit/backup/k", "transit/export/encryption-key/k", "transit/byok-export/elsewhere/k"] {
        let refused = server.get(path);
        assert_eq!(refused.status, 400, "{path}: {}", refused.text);
        let told = "the key has 100 versions to unwrap, of which about ";
        assert!(refused.errors().contains(told) && refused.errors().contains("trim"), "{path}: {}", refused.text);
    }
    place.mend("all_ms");
    assert_eq!(server.get("transit/export/encryption-key/k").ok()["data"]["keys"].as_object().unwrap().len(), 100);
}
