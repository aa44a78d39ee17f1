//! An HSM behind a network: every call with its objects or keys takes its time. What takes many of them keeps nobody else waiting,
//! and ends also after kill -9.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::json;

use crate::support::{Place, Server, eventually, measured, request};

/// The objects of Transit keys in the HSM.
fn objects(place: &Place) -> usize {
    place.objects().iter().filter(|label| label.contains("/transit/")).count()
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
    server.kill();

    place.mend("all_ms");
    let mut server = place.start();
    server.wait_unsealed();
    server.token = Some(made.root);
    eventually("what was left is gone", || objects(&place) == 1);
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

#[test]
fn a_key_of_many_versions_that_goes_keeps_nobody_waiting() {
    let Some(place) = Place::behind_proxy() else { return };
    let mut server = place.start();
    server.init(1, 1);
    server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
    make_keys(&server, "transit", 1);
    for _ in 1..25 {
        server.put("transit/keys/k0/rotate", json!({})).ok();
    }
    server.put("transit/keys/k0/config", json!({"deletion_allowed": true})).ok();
    assert_eq!(objects(&place), 25);
    // Longer than it is between two rounds of periodic work, which looks for objects to destroy as well.
    place.fault("all_ms", "50");
    let (url, token, done) = (server.url(), server.token.as_deref(), AtomicBool::new(false));
    let (deleted, took, longest) = std::thread::scope(|scope| {
        let health = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            while !done.load(Ordering::Relaxed) {
                let began = Instant::now();
                assert_eq!(request(url, "GET", "/v1/sys/health", None, None).unwrap().status, 200);
                longest = longest.max(began.elapsed());
                std::thread::sleep(Duration::from_millis(5));
            }
            longest
        });
        let began = Instant::now();
        let deleted = request(url, "DELETE", "/v1/transit/keys/k0", token, None);
        let took = began.elapsed();
        done.store(true, Ordering::Relaxed);
        (deleted.unwrap(), took, health.join().unwrap())
    });
    assert_eq!(deleted.status, 204, "{}", deleted.text);
    assert!(took > Duration::from_secs(3), "too fast to tell: {took:?}");
    measured(&format!(
        "a key of 25 versions in a slow HSM: deleted after {took:.2?}, the longest wait for sys/health {longest:.2?}"
    ));
    assert!(longest < took / 2, "sys/health waited {longest:?}");
    place.mend("all_ms");
    assert_eq!(server.get("transit/keys/k0").status, 404);
    assert_eq!(objects(&place), 0);
}
