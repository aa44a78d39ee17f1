//! Numbers of versions that were given after a backup was taken, after it was restored.

use serde_json::json;

use super::{created, path_text, restore_offline, restored_over, started};
use crate::support::{Place, Server};

#[test]
fn version_numbers_that_were_given_after_the_backup_are_not_given_again() {
    for storage in ["sled", "redb"] {
        let place = Place::shamir_on(storage);
        let (mut server, made) = started(&place);
        server.put("kv/data/s", json!({"data": {"n": 0}})).ok();
        server.put("kv/data/s", json!({"data": {"n": 0}})).ok();
        server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
        server.put("transit/keys/kek", json!({})).ok();
        let old = server.put("transit/encrypt/kek", json!({"plaintext": "YQ=="})).ok()["data"]["ciphertext"].clone();
        let file = path_text(&created(&server, "versions.backup"));
        let lost = lose(&server);

        // Over the running server, and then over a stopped one: what stands there tells.
        for round in 0..2 {
            server = restored_over(&place, server, &made, &file, round == 0);
            let read = server.get("kv/data/s").ok();
            assert_eq!(read["data"]["metadata"]["version"], 2, "{read}");
            assert_eq!(server.get("kv/data/s?version=4").status, 404);
            // A writer who saw a lost version is told that it is not the current one.
            let stale = json!({"options": {"cas": 6}, "data": {"n": 7}});
            assert_eq!(server.put("kv/data/s", stale).status, 400);
            let cas = json!({"options": {"cas": 2}, "data": {"n": 7}});
            assert_eq!(server.put("kv/data/s", cas).ok()["data"]["version"], 7 + round, "{storage}");
            assert_eq!((write(&server, "kv/data/later"), write(&server, "kv/data/new")), (2 + round, 1 + round));
            assert_eq!(rotated(&server), 4 + round);
            let refused = server.put("transit/decrypt/kek", json!({"ciphertext": lost}));
            assert_eq!((refused.status, refused.errors().as_str()), (400, "no such key version"));
            assert_eq!(server.put("transit/decrypt/kek", json!({"ciphertext": old})).ok()["data"]["plaintext"], "YQ==");
            let keys = server.get("transit/keys/kek").ok()["data"]["keys"].as_object().unwrap().len();
            assert_eq!(keys, 2);
        }

        // Where nobody can tell, numbers are left out, as many as the operator says.
        for (flags, next, key) in [(&["-skip-versions=20"][..], 23, 22), (&[][..], 1003, 1002)] {
            let other = Place::shamir_on(storage);
            let arguments: Vec<&str> = flags.iter().copied().chain([file.as_str()]).collect();
            let (done, out) = restore_offline(&other, &arguments);
            assert!(done, "{out}");
            let mut server = other.start();
            server.token = Some(made.root.clone());
            server.unseal(&made.shares);
            assert_eq!((write(&server, "kv/data/s"), rotated(&server)), (next, key));
            assert_eq!(server.get("kv/data/s?version=1").ok()["data"]["data"]["n"], 0, "no version was pushed out");
            server.put("transit/decrypt/kek", json!({"ciphertext": old})).ok();
            // Only once: numbers go on one by one from there, also after a restart.
            server.terminate();
            let mut server = other.start();
            server.token = Some(made.root.clone());
            server.unseal(&made.shares);
            assert_eq!((write(&server, "kv/data/s"), rotated(&server)), (next + 1, key + 1));
        }
    }
}

/// What a restore loses, and what is made of it: a secret with so many versions, and one that the backup does not know.
fn lose(server: &Server<'_>) -> String {
    for number in 1..=4 {
        server.put("kv/data/s", json!({"data": {"n": number}})).ok();
    }
    server.put("kv/destroy/s", json!({"versions": [5, 6]})).ok();
    server.put("kv/data/later", json!({"data": {"n": 1}})).ok();
    server.put("transit/keys/kek/rotate", json!({})).ok();
    let lost = server.put("transit/encrypt/kek", json!({"plaintext": "YQ=="})).ok();
    server.put("transit/keys/kek/rotate", json!({})).ok();
    lost["data"]["ciphertext"].as_str().unwrap().to_owned()
}

fn write(server: &Server<'_>, path: &str) -> u64 {
    server.put(path, json!({"data": {"n": "again"}})).ok()["data"]["version"].as_u64().unwrap()
}

#[track_caller]
fn rotated(server: &Server<'_>) -> u64 {
    server.put("transit/keys/kek/rotate", json!({})).ok();
    server.get("transit/keys/kek").ok()["data"]["latest_version"].as_u64().unwrap()
}
