//! Keys on the move: raised into the HSM in place, re-wrapped for a new master key while the server is killed, and brought
//! from outside into a mount that requires a level.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::byok;
use crate::support::{Place, Server, request};

const INPUT: &str = "b3BlbiBzZXNhbWU=";
const KINDS: [&str; 2] = ["rsa-2048", "ecdsa-p256"];

/// Files of objects on the token.
fn objects(place: &Place) -> BTreeSet<PathBuf> {
    let tokens = std::fs::read_dir(place.path("hsm/tokens")).unwrap().flatten();
    let files = tokens.flat_map(|token| std::fs::read_dir(token.path()).unwrap().flatten()).map(|file| file.path());
    files.filter(|file| file.extension().is_some_and(|kind| kind == "object")).collect()
}

fn put(server: &Server<'_>, path: &str, body: Value) -> Value {
    server.put(&format!("t/{path}"), body).ok()["data"].clone()
}

/// What a key signed and encrypted before, which it must verify and open later.
struct Before {
    signature: Value,
    ciphertext: Option<Value>,
}

impl Before {
    fn made_by(server: &Server<'_>, name: &str, kind: &str) -> Self {
        let encrypt = || put(server, &format!("encrypt/{name}"), json!({"plaintext": INPUT}))["ciphertext"].clone();
        let ciphertext = kind.starts_with("rsa").then(encrypt);
        Self { signature: put(server, &format!("sign/{name}"), json!({"input": INPUT}))["signature"].clone(), ciphertext }
    }

    fn still_good(&self, server: &Server<'_>, name: &str) {
        let new = put(server, &format!("sign/{name}"), json!({"input": INPUT}))["signature"].clone();
        for signature in [&self.signature, &new] {
            let verified = put(server, &format!("verify/{name}"), json!({"input": INPUT, "signature": signature}));
            assert_eq!(verified["valid"], true, "{name}");
        }
        if let Some(ciphertext) = &self.ciphertext {
            assert_eq!(put(server, &format!("decrypt/{name}"), json!({"ciphertext": ciphertext}))["plaintext"], INPUT, "{name}");
        }
    }
}

/// A zone's progress of re-wrapping; null before it began.
fn progress(server: &Server<'_>, zone: &str) -> Value {
    server.get(&format!("sys/sos/zones/{zone}")).ok()["data"]["rewrap"].clone()
}

/// Waits until the server has ended by itself. When it comes to the end of moving keys before its point, the zone is rotated.
fn ends(mut server: Server<'_>, zone: &str) {
    let began = std::time::Instant::now();
    let mut rotated = false;
    while server.alive() {
        assert!(began.elapsed() < Duration::from_secs(40), "the server was to be killed at its point:\n{}", server.log());
        let path = format!("/v1/sys/sos/zones/{zone}");
        let shown = request(server.url(), "GET", &path, server.token.as_deref(), None);
        if !rotated && shown.is_ok_and(|shown| shown.body["data"]["rewrap"]["finished"] == true) {
            server.send("PUT", &format!("sys/sos/zones/{zone}/rotate"), &json!({}));
            rotated = true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Private keys of RSA and EC, raised and restored into the HSM, follow their zone's master key to its next version. The
/// server is killed at any moment of that and twice in the middle of a step; afterwards the old master key is taken off the
/// token, and nothing misses it.
#[test]
fn killed_while_keys_are_wrapped_under_a_new_master_key() {
    const COPIES: usize = 140;
    let Some(mut place) = Place::hsm() else { return };
    let mut server = place.start();
    let root = server.init(1, 1).root;
    let before = objects(&place);
    server.put("sys/sos/zones/z", json!({})).ok();
    let old_master: Vec<PathBuf> = objects(&place).difference(&before).cloned().collect();
    assert_eq!(old_master.len(), 1, "{old_master:?}");
    server.put("sys/mounts/t", json!({"type": "transit", "options": {"zone": "z"}})).ok();
    let mut good = Vec::new();
    for kind in KINDS {
        let allowed = json!({"type": kind, "protection_level": "software", "exportable": true, "allow_plaintext_backup": true});
        put(&server, &format!("keys/{kind}"), allowed);
        good.push(Before::made_by(&server, kind, kind));
        let backup = server.get(&format!("t/backup/{kind}")).ok()["data"]["backup"].clone();
        std::thread::scope(|scope| {
            for part in 0..4 {
                let (server, backup) = (&server, &backup);
                scope.spawn(move || {
                    for copy in (part..COPIES).step_by(4) {
                        let body = json!({"backup": backup, "protection_level": "hsm"});
                        server.put(&format!("t/restore/{kind}-{copy}"), body).ok();
                    }
                });
            }
        });
        let raised = put(&server, &format!("keys/{kind}/config"), json!({"protection_level": "hsm"}));
        assert!(raised["moved_into_hsm"]["1"].is_string(), "{raised}");
    }
    server.put("sys/sos/zones/z/rotate", json!({})).ok();
    // The periodic work that re-wraps runs every two seconds.
    std::thread::sleep(Duration::from_millis(2100));
    server.kill();
    for point in ["zone-rewrapped:1", "zone-rewrapped:2"] {
        place.environment = vec![("SOS_CRASH_AT".into(), point.into())];
        let mut server = place.start();
        server.token = Some(root.clone());
        ends(server, "z");
    }
    place.environment.clear();
    let mut server = place.start();
    server.token = Some(root.clone());
    server.wait_unsealed();
    crate::support::eventually("everything is under the new master key", || progress(&server, "z")["finished"] == true);
    let records = u64::try_from(KINDS.len() * (COPIES + 1)).unwrap();
    assert!(progress(&server, "z")["seen"].as_u64().unwrap() >= records, "{}", progress(&server, "z"));
    server.terminate();

    std::fs::remove_file(&old_master[0]).unwrap();
    let mut server = place.start();
    server.token = Some(root);
    server.wait_unsealed();
    for (kind, good) in KINDS.into_iter().zip(&good) {
        good.still_good(&server, kind);
        for copy in (0..COPIES).step_by(7) {
            good.still_good(&server, &format!("{kind}-{copy}"));
        }
        let shown = server.get(&format!("t/keys/{kind}")).ok();
        assert_eq!(shown["data"]["protection_level"], "hsm");
    }
}

#[test]
fn what_comes_into_a_mount_that_requires_a_level() {
    let Some(place) = Place::hsm() else { return };
    let mut server = place.start();
    server.init(1, 1);
    server.put("sys/mounts/open", json!({"type": "transit"})).ok();
    server.put("sys/mounts/t", json!({"type": "transit", "options": {"protection_required": "hsm"}})).ok();
    let refused = |path: &str, body: Value, reason: &str| {
        let reply = server.put(&format!("t/{path}"), body);
        assert!(reply.status == 400 && reply.errors().contains(reason), "{path}: {} {}", reply.status, reply.text);
    };
    let allowed = |kind: &str, derived: bool| json!({"type": kind, "protection_level": "software", "exportable": true, "allow_plaintext_backup": true, "derived": derived});
    let backup_of = |name: &str| server.get(&format!("open/backup/{name}")).ok()["data"]["backup"].clone();
    for (name, kind, derived) in [("ec", "ecdsa-p384", false), ("derived", "aes256-gcm96", true), ("ed", "ed25519", false)] {
        server.put(&format!("open/keys/{name}"), allowed(kind, derived)).ok();
    }
    server.put("t/restore/ec", json!({"backup": backup_of("ec")})).ok();
    assert_eq!(server.get("t/keys/ec").ok()["data"]["protection_level"], "hsm");
    let requires = "requires protection_level \"hsm\"";
    refused("restore/other", json!({"backup": backup_of("ec"), "protection_level": "software"}), requires);
    refused("restore/other", json!({"backup": backup_of("derived")}), "derivation needs the key material outside the HSM");
    refused("restore/other", json!({"backup": backup_of("ed")}), "on this HSM: ");
    refused("keys/ec/config", json!({"protection_level": "software"}), requires);
    refused("keys/other", json!({"protection_level": "hsm-only"}), requires);
    let material = byok::wrap(&byok::wrapping_key(&server, "t"), &[7; 32]).0;
    refused("keys/other/import", json!({"ciphertext": material, "protection_level": "software"}), requires);
    refused("keys/other/import", json!({"ciphertext": material, "protection_level": "hsm-only"}), "has been outside the HSM");
    refused("keys/other/import", json!({"ciphertext": material, "type": "chacha20-poly1305"}), "HSMs cannot do all");
    assert_eq!(server.get("t/keys/other").status, 404, "nothing was left by the refusals");
    server.put("t/keys/other/import", json!({"ciphertext": material})).ok();
    let shown = server.get("t/keys/other").ok();
    assert_eq!(shown["data"]["protection_level"], "hsm");
    assert!(shown["data"]["moved_into_hsm"]["1"].is_string(), "{shown}");

    // What is not exportable goes into the HSM and does not come back.
    server.put("open/keys/once", json!({"type": "ecdsa-p256", "protection_level": "software"})).ok();
    server.put("open/keys/once/config", json!({"protection_level": "hsm"})).ok();
    let back = server.put("open/keys/once/config", json!({"protection_level": "software"}));
    assert!(back.status == 400 && back.errors().contains("only exportable keys"), "{}", back.text);
}
