//! The escrow drill where no HSM is needed: what it opens and what it says of it.

use serde_json::{Value, json};

use crate::support::{Place, Server};

fn drill(server: &Server<'_>, share: &str, more: &[&str]) -> (Option<i32>, String, String) {
    server.operator(&[&["recovery", "drill", "-all"], more, &["-"]].concat(), share)
}

#[test]
fn a_drill_opens_versions_that_will_be_deleted_and_says_what_it_could_not_compare() {
    let place = Place::shamir();
    let mut server = place.start();
    let made = server.init_shamir(1, 1);
    server.mount_kv("kv");
    server.put("kv/config", json!({"delete_version_after": "720h"})).ok();
    server.put("kv/data/lives", json!({"data": {"x": 1}})).ok();
    server.put("kv/data/lives", json!({"data": {"x": 2}})).ok();
    server.put("kv/data/gone", json!({"data": {"x": 3}})).ok();
    server.call("DELETE", "kv/data/gone", None).ok();
    server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
    server.put("transit/keys/k", json!({})).ok();
    let count = |tried: u32, same: u32, not_compared: u32| json!({"tried": tried, "opened": tried, "same": same, "changed_since": 0, "not_compared": not_compared});

    let (code, out, err) = drill(&server, &made.shares[0], &["-format=json"]);
    assert_eq!(code, Some(0), "{out}{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&report["secrets"], &report["key_versions"]), (&count(2, 2, 0), &count(1, 1, 0)), "{report}");

    // A token that may take backups and nothing else: nothing is the same, and nothing has changed.
    let policy = "path \"sys/storage/raft/snapshot\" { capabilities = [\"read\"] }";
    server.put("sys/policies/acl/backups", json!({"policy": policy})).ok();
    let token = server.put("auth/token/create", json!({"policies": ["backups"]})).ok();
    server.token = Some(token["auth"]["client_token"].as_str().unwrap().to_owned());
    let (code, out, err) = drill(&server, &made.shares[0], &["-format=json"]);
    assert_eq!(code, Some(0), "{out}{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&report["secrets"], &report["key_versions"]), (&count(2, 0, 2), &count(1, 0, 1)), "{report}");
    assert_eq!(report["not_compared_because"], "permission denied");
    let (_, out, _) = drill(&server, &made.shares[0], &[]);
    assert!(out.contains("0 the same on the running server, 2 not compared: permission denied"), "{out}");
    assert!(!out.contains("changed there since"), "{out}");

    // One that reads keys and may not use them is no sign of another key.
    server.token = Some(made.root.clone());
    let policy = format!("{policy} path \"transit/keys/*\" {{ capabilities = [\"read\"] }}");
    server.put("sys/policies/acl/backups", json!({"policy": policy})).ok();
    server.token = Some(token["auth"]["client_token"].as_str().unwrap().to_owned());
    let (code, out, err) = drill(&server, &made.shares[0], &["-format=json"]);
    assert_eq!(code, Some(0), "{out}{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&report["key_versions"], &report["failed"]), (&count(1, 0, 1), &json!(0)), "{report}");
}
