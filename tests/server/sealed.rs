//! What is in memory while the server is sealed: nothing that opens anything.

use std::path::Path;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use base64::{Engine, prelude::BASE64_STANDARD};
use hkdf::Hkdf;
use serde_json::{Value, json};
use sha2::Sha256;
use sos::barrier::KEYRING_PATH;
use sos::storage::{Options, Storage};

use crate::canary::Canaries;
use crate::memory::{assert_gone, may_look, traces};
use crate::support::{Place, Server};

/// Opens nonce, ciphertext and tag.
fn open(key: &[u8], aad: &str, sealed: &[u8]) -> Vec<u8> {
    let (nonce, msg) = sealed.split_at(12);
    let payload = Payload { msg, aad: aad.as_bytes() };
    Aes256Gcm::new_from_slice(key).unwrap().decrypt(&Nonce::try_from(nonce).unwrap(), payload).unwrap()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// The root key and the keys of the barrier's terms, as the only share opens them in a copy of the store
/// (`seal/escrow.rs`, `barrier/record.rs`, `barrier/keyring.rs`).
fn keys_of_the_barrier(place: &Place, share: &str) -> (Vec<u8>, Vec<Vec<u8>>) {
    let folder = tempfile::tempdir().unwrap();
    copy(&place.path("store"), folder.path());
    let store = sos::storage::Sled::open(folder.path(), Options { free_watermark: 0, ..Options::default() }).unwrap();
    let seal: Value = serde_json::from_slice(&store.get("core/seal").unwrap().unwrap().value).unwrap();
    let cluster = seal["cluster_id"].as_str().unwrap();
    let wrappers = seal["wrappers"].as_array().unwrap();
    let blob = wrappers.iter().find(|wrapper| wrapper["kind"] == "shares").unwrap()["blob"].as_str().unwrap();
    let secret = BASE64_STANDARD.decode(share).unwrap();
    let purpose = "sos/escrow/root-key/v1";
    let mut key = [0; 32];
    Hkdf::<Sha256>::new(Some(cluster.as_bytes()), &secret).expand(purpose.as_bytes(), &mut key).unwrap();
    let root = open(&key, &format!("{purpose}/{cluster}"), &BASE64_STANDARD.decode(blob).unwrap());
    let keyring = store.get(KEYRING_PATH).unwrap().unwrap().value;
    let keyring = open(&root, KEYRING_PATH, &keyring[5..]);
    let terms = keyring[22..].chunks_exact(52).map(|term| term[20..].to_vec()).collect();
    (root, terms)
}

fn plant(server: &Server<'_>, canaries: &mut Canaries, place: &Place, share: &str) {
    server.put("sys/rotate", json!({})).ok();
    server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
    let exportable = json!({"type": "aes256-gcm96", "protection_level": "software", "exportable": true});
    server.put("transit/keys/used", exportable).ok();
    let shown = server.get("transit/export/encryption-key/used").ok();
    canaries.bytes("a software key", &BASE64_STANDARD.decode(shown["data"]["keys"]["1"].as_str().unwrap()).unwrap());
    server.put("transit/encrypt/used", json!({"plaintext": "YQ=="})).ok();
    let (root, terms) = keys_of_the_barrier(place, share);
    assert_eq!(terms.len(), 2, "one term and one after the rotation");
    canaries.bytes("the root key", &root);
    terms.iter().enumerate().for_each(|(at, key)| canaries.bytes(&format!("the barrier's key {at}"), key));
    // While the server is unsealed they are there, or the search proves nothing.
    let now = traces(server, canaries);
    for name in ["the barrier's key 1", "a software key"] {
        assert!(now.iter().any(|trace| trace.canary == name), "the search does not find {name}: {now:#?}");
    }
}

#[test]
fn a_sealed_server_holds_no_key() {
    for hsm in [false, true] {
        let Some(place) = (if hsm { Place::hsm() } else { Some(Place::shamir()) }) else { return };
        let mut server = place.start();
        let made = server.init(1, 1);
        if !may_look(&server) {
            return;
        }
        if !hsm {
            server.unseal(&made.shares);
        }
        let mut canaries = Canaries::default();
        plant(&server, &mut canaries, &place, &made.shares[0]);
        server.put("sys/seal", json!({})).ok();
        assert_eq!(server.status()["sealed"], true);
        assert_gone(&server, &canaries, "after the server was sealed");
        // The share opens it again, and leaves no trace of itself when it is sealed once more.
        canaries.text("the share", &made.shares[0]);
        canaries.bytes("the share's secret", &BASE64_STANDARD.decode(&made.shares[0]).unwrap());
        server.unseal(&made.shares);
        server.put("sys/seal", json!({})).ok();
        assert_gone(&server, &canaries, "after the server was unsealed and sealed again");
    }
}
