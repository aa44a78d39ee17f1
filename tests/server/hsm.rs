//! The HSM is missing, refuses the PIN, comes back.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::json;

use crate::support::{Place, left_out};

#[test]
fn a_missing_token_keeps_it_sealed_until_it_comes_back() {
    let Some(place) = Place::hsm() else { return };
    let mut server = place.start();
    server.init(3, 2);
    server.terminate();
    fs::rename(place.path("hsm/tokens"), place.path("hsm/away")).unwrap();
    fs::create_dir(place.path("hsm/tokens")).unwrap();

    let server = place.start();
    let status = server.wait_reason("hsm-token-missing");
    assert_eq!((&status["initialized"], &status["sealed"]), (&json!(true), &json!(true)));
    assert_eq!(server.get("sys/health").status, 503);
    let (code, out, _) = server.operator(&["operator", "status"], "");
    assert_eq!(code, Some(2));
    assert!(out.contains("hsm-token-missing"), "{out}");
    assert!(server.log().contains("hsm-token-missing"), "{}", server.log());

    fs::remove_dir(place.path("hsm/tokens")).unwrap();
    fs::rename(place.path("hsm/away"), place.path("hsm/tokens")).unwrap();
    server.wait_unsealed();
}

#[test]
fn a_missing_module_keeps_it_sealed_until_it_comes_back() {
    let Some(place) = Place::hsm() else { return };
    let mut server = place.start();
    server.init(3, 2);
    server.terminate();
    fs::rename(place.path("module.so"), place.path("gone.so")).unwrap();
    let server = place.start();
    server.wait_reason("hsm-module-missing");
    fs::rename(place.path("gone.so"), place.path("module.so")).unwrap();
    server.wait_unsealed();
}

/// Changes the token's user PIN; false where the tool is not installed.
fn change_pin(place: &Place, old: &str, new: &str) -> bool {
    let mut command = Command::new("pkcs11-tool");
    command.env("SOFTHSM2_CONF", place.path("hsm/softhsm2.conf")).arg("--module").arg(place.path("module.so"));
    command.args(["--token-label", "sos-test", "--login", "--pin", old, "--change-pin", "--new-pin", new]);
    match command.output() {
        Ok(done) => {
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            true
        }
        Err(_) => {
            left_out("pkcs11-tool is not installed (opensc)");
            false
        }
    }
}

fn write_pin(place: &Place, pin: &str) {
    fs::write(place.path("hsm/pin"), pin).unwrap();
    fs::set_permissions(place.path("hsm/pin"), fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn a_refused_pin_is_not_tried_again() {
    let Some(place) = Place::hsm() else { return };
    let right = fs::read_to_string(place.path("hsm/pin")).unwrap().trim().to_string();
    let mut server = place.start();
    server.init(3, 2);
    server.terminate();

    write_pin(&place, "11112222");
    let server = place.start();
    server.wait_reason("hsm-pin-refused");
    server.kill();

    // Were it tried again, it would be accepted now.
    if !change_pin(&place, &right, "11112222") {
        return;
    }
    let server = place.start();
    server.wait_reason("hsm-pin-refused");
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(server.status()["sealed_reason"], "hsm-pin-refused");
    server.terminate();

    // A new PIN is tried.
    assert!(change_pin(&place, "11112222", "33334444"));
    write_pin(&place, "33334444");
    let server = place.start();
    server.wait_unsealed();
    for pin in [right.as_str(), "11112222", "33334444"] {
        assert!(!server.log().contains(pin));
    }
}

#[test]
fn a_pin_file_that_others_can_read_is_refused_with_the_fix() {
    let Some(place) = Place::hsm() else { return };
    fs::set_permissions(place.path("hsm/pin"), fs::Permissions::from_mode(0o644)).unwrap();
    let server = place.start();
    server.wait("log tells the fix", |_| server.log().contains("chmod 600"));
    let refused = server.put("sys/init", json!({"recovery_shares": 1, "recovery_threshold": 1}));
    assert_eq!(refused.status, 503, "{}", refused.text);
    assert!(refused.errors().contains("hsm-pin-missing"), "{}", refused.text);
}

#[test]
fn escrow_shares_unseal_without_the_hsm() {
    let Some(place) = Place::hsm() else { return };
    let mut server = place.start();
    let made = server.init(3, 2);
    server.mount_kv("kv");
    server.put("kv/data/a", json!({"data": {"x": 1}})).ok();
    server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
    server.put("transit/keys/held", json!({"protection_level": "hsm"})).ok();
    let plaintext = BASE64_STANDARD.encode("a disk's key");
    let sealed = server.put("transit/encrypt/held", json!({"plaintext": plaintext})).ok();
    server.terminate();

    fs::rename(place.path("hsm/tokens"), place.path("hsm/away")).unwrap();
    fs::create_dir(place.path("hsm/tokens")).unwrap();
    let mut server = place.start();
    server.wait_reason("hsm-token-missing");
    let half = server.put("sys/unseal", json!({"key": made.shares[2]})).ok();
    assert_eq!((&half["sealed"], &half["progress"]), (&json!(true), &json!(1)));
    let whole = server.put("sys/unseal", json!({"key": made.shares[0]})).ok();
    assert_eq!(whole["sealed"], false, "{whole}");

    server.token = Some(made.root);
    assert_eq!(server.get("kv/data/a").ok()["data"]["data"]["x"], 1);
    server.put("kv/data/b", json!({"data": {"x": 2}})).ok();
    let ciphertext = json!({"ciphertext": sealed["data"]["ciphertext"]});
    let refused = server.put("transit/decrypt/held", ciphertext.clone());
    assert_eq!(refused.status, 503, "{}", refused.text);
    assert!(refused.errors().to_lowercase().contains("hsm"), "{}", refused.text);

    // The HSM is back: its keys work again without a restart.
    fs::remove_dir(place.path("hsm/tokens")).unwrap();
    fs::rename(place.path("hsm/away"), place.path("hsm/tokens")).unwrap();
    server.wait("decrypts again", |_| server.put("transit/decrypt/held", ciphertext.clone()).status == 200);
    let opened = server.put("transit/decrypt/held", ciphertext).ok();
    assert_eq!(opened["data"]["plaintext"], plaintext.as_str());
}

#[test]
fn the_worker_dies_in_the_middle_and_nobody_notices_for_long() {
    let Some(place) = Place::hsm() else { return };
    let mut server = place.start();
    server.init(1, 1);
    server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
    server.put("transit/keys/held", json!({"protection_level": "hsm"})).ok();
    for _ in 0..2 {
        let workers: Vec<u32> = server.pids().into_iter().skip(1).collect();
        assert!(!workers.is_empty(), "no worker process runs");
        for worker in workers {
            let pid = rustix::process::Pid::from_raw(worker.try_into().unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
        server.wait("encrypts again", |_| {
            let reply = server.put("transit/encrypt/held", json!({"plaintext": "YQ=="}));
            assert!(matches!(reply.status, 200 | 503), "{} {}", reply.status, reply.text);
            reply.status == 200
        });
    }
    assert_eq!(server.status()["sealed"], false);
}

/// The HSM is lost for good. The shares open the store and put its keys onto an empty token; nobody needs them again.
#[test]
fn a_lost_hsm_is_replaced_with_the_shares() {
    let Some(place) = Place::hsm() else { return };
    let mut server = place.start();
    let made = server.init(3, 2);
    server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
    let mut sealed = Vec::new();
    for level in ["hsm", "software"] {
        server.put(&format!("transit/keys/{level}"), json!({"protection_level": level})).ok();
        let reply = server.put(&format!("transit/encrypt/{level}"), json!({"plaintext": "YQ=="})).ok();
        sealed.push((format!("transit/decrypt/{level}"), json!({"ciphertext": reply["data"]["ciphertext"]})));
    }
    server.terminate();

    fs::rename(place.path("hsm"), place.path("lost")).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("softhsm/make-token");
    let done = Command::new(script).arg(place.path("hsm")).arg("sos-test").output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let mut server = place.start();
    server.token = Some(made.root);
    server.wait_reason("hsm-key-missing");
    for share in &made.shares[..2] {
        server.put("sys/unseal", json!({"key": share})).ok();
    }
    for (path, body) in &sealed {
        let refused = server.put(path, body.clone());
        assert_eq!(refused.status, 503, "{}", refused.text);
        assert!(refused.errors().contains("the HSM does not hold"), "{}", refused.text);
    }
    assert_eq!(server.put("sys/sos/hsm/recover", json!({"keys": [made.shares[0]]})).status, 400);
    let (code, out, errors) = server.operator(&["operator", "recover-hsm", "-"], &made.shares[1..].join("\n"));
    assert_eq!(code, Some(0), "{errors}");
    assert!(out.contains("Seal key: made anew") && out.contains("default/v1"), "{out}");
    for (path, body) in &sealed {
        assert_eq!(server.put(path, body.clone()).ok()["data"]["plaintext"], "YQ==");
    }
    server.terminate();
    place.start().wait_unsealed();
}

/// A terminal's Ctrl-C and a service manager's stop reach every process; the worker must outlive the requests in flight.
#[test]
fn the_worker_does_not_stop_before_its_server() {
    let Some(place) = Place::hsm() else { return };
    let mut server = place.start();
    server.init(1, 1);
    let before = server.pids();
    for worker in &before[1..] {
        let pid = rustix::process::Pid::from_raw((*worker).try_into().unwrap()).unwrap();
        for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT, rustix::process::Signal::HUP] {
            rustix::process::kill_process(pid, signal).unwrap();
        }
    }
    server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
    server.put("transit/keys/held", json!({"protection_level": "hsm"})).ok();
    assert_eq!(server.pids(), before);
}

#[test]
fn a_level_that_the_module_cannot_do_is_refused_with_the_missing_mechanism() {
    let Some(mut place) = Place::behind_proxy() else { return };
    // CKM_RSA_X_509 and CKM_AES_GCM.
    place.environment.push(("SOS_PROXY_HIDE".into(), "0x3,0x1087".into()));
    let mut server = place.start();
    server.init(1, 1);
    server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
    for (kind, mechanism) in [("rsa-2048", "CKM_RSA_X_509"), ("aes256-gcm96", "CKM_AES_GCM")] {
        for level in ["hsm", "hsm-only"] {
            let refused = server.put("transit/keys/k", json!({"type": kind, "protection_level": level}));
            assert_eq!(refused.status, 400, "{}", refused.text);
            let reason = format!("{kind} keys cannot have protection_level {level:?} on this HSM: the module has no {mechanism}");
            assert!(refused.errors().starts_with(&reason), "{}", refused.text);
            assert_eq!(server.get("transit/keys/k").status, 404, "nothing was made");
        }
        let name = format!("transit/keys/{kind}");
        server.put(&name, json!({"type": kind})).ok();
        assert_eq!(server.get(&name).ok()["data"]["protection_level"], "software");
    }
    let made = server.put("transit/keys/ec", json!({"type": "ecdsa-p256", "protection_level": "hsm"}));
    assert_eq!(made.ok()["data"]["protection_level"], "hsm");
}
