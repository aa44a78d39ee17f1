//! How often key versions encrypted after a backup was taken, after it was restored.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{created, path_text, restore_offline, restored_over, started};
use crate::support::{Place, Server};

/// Items of a batch: more than a restore adds whatever was used.
const ITEMS: usize = 100_000;

#[test]
fn counts_go_on_behind_those_of_the_store_that_was_replaced() {
    for storage in ["sled", "redb"] {
        let place = Place::shamir_on(storage);
        let (mut server, made) = started(&place);
        server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
        server.put("transit/keys/k", json!({"exportable": true, "allow_plaintext_backup": true})).ok();
        let file = path_text(&created(&server, "counts.backup"));
        // Over the running server, and then over a stopped one.
        for round in 0..2 {
            encrypt(&server);
            // What is written from here on the restored store has no key for.
            server.put("sys/rotate", json!({})).ok();
            encrypt(&server);
            let before = count(&server);
            assert!(before > 2 * ITEMS as u64, "{before}");
            server = restored_over(&place, server, &made, &file, round == 0);
            assert!(count(&server) >= before, "{storage}: {} after {before}", count(&server));
            server.put("transit/encrypt/k", json!({"plaintext": "YQ=="})).ok();
            assert!(!server.log().contains(UNKNOWN), "{}", server.log());
        }

        // Twice in a row, with nobody who unseals in between.
        let before = count(&server);
        server.terminate();
        for _ in 0..2 {
            let (done, out) = restore_offline(&place, &["-force", &file]);
            assert!(done, "{out}");
        }
        let mut server = place.start();
        server.token = Some(made.root.clone());
        server.unseal(&made.shares);
        assert!(count(&server) >= before && !server.log().contains(UNKNOWN), "{}", server.log());

        // Where no store tells it the log says so.
        let other = Place::shamir_on(storage);
        let (done, out) = restore_offline(&other, &[&file]);
        assert!(done, "{out}");
        let server = other.start();
        server.unseal(&made.shares);
        assert!(server.log().contains(UNKNOWN), "{}", server.log());
    }
}

const UNKNOWN: &str = "how often Transit keys encrypted after the backup is not known";

fn encrypt(server: &Server<'_>) {
    server.put("transit/encrypt/k", json!({"batch_input": vec![json!({"plaintext": ""}); ITEMS]})).ok();
}

/// The count of the key's only version, as a backup of the key has it.
#[track_caller]
fn count(server: &Server<'_>) -> u64 {
    let answer = server.get("transit/backup/k").ok();
    let text = STANDARD.decode(answer["data"]["backup"].as_str().unwrap()).unwrap();
    let backup: Value = serde_json::from_slice(&text).unwrap();
    backup["policy"]["keys"]["1"]["sos_encryptions"].as_u64().unwrap()
}
