//! Requests that come to nothing, for the search of memory: imports and restores that are refused, broken bodies, and
//! bodies whose senders leave in the middle.

use std::io::{Read, Write};
use std::net::TcpStream;

use base64::{Engine, prelude::BASE64_STANDARD};
use openssl::{bn::BigNum, pkey::PKey};
use serde_json::{Value, json};
use sos::secret::random_array;

use crate::byok;
use crate::canary::{Canaries, Trace};
use crate::memory::delete_key;
use crate::support::{Server, request};

/// A name that no key may have after a refusal.
const NAME: &str = "refused";

#[track_caller]
fn refused(server: &Server<'_>, path: &str, body: Value) {
    let reply = server.put(path, body);
    // Vault answers some of a caller's mistakes by 500.
    assert!((400..=500).contains(&reply.status), "{path}: {} {}", reply.status, reply.text);
    assert_eq!(server.get(&format!("transit/keys/{NAME}")).status, 404, "{path} left a key behind");
}

/// Imports of material that does not fit, that is damaged, for a name that is taken, and with a mistake beside it.
fn imports(server: &Server<'_>, canaries: &mut Canaries, taken: &str) {
    let wrapping = byok::wrapping_key(server, "transit");
    let secret = |canaries: &mut Canaries, what: &str| {
        let material: [u8; 32] = random_array();
        canaries.bytes(&format!("import refused: {what}"), &material);
        material
    };
    let wrap = |canaries: &mut Canaries, what: &str, material: &[u8]| {
        let (blob, ephemeral) = byok::wrap(&wrapping, material);
        canaries.bytes(&format!("ephemeral key of the import refused: {what}"), &ephemeral);
        blob
    };
    for (what, kind, name, level) in [
        ("no RSA key", "rsa-2048", NAME, "software"),
        ("too long a key", "aes128-gcm96", NAME, "software"),
        ("no such level", "aes256-gcm96", NAME, "nowhere"),
        ("name taken", "aes256-gcm96", taken, "software"),
    ] {
        let material = secret(canaries, what);
        let body = json!({"type": kind, "ciphertext": wrap(canaries, what, &material), "protection_level": level});
        refused(server, &format!("transit/keys/{name}/import"), body);
    }
    let material = secret(canaries, "a version of another kind");
    let body = json!({"ciphertext": wrap(canaries, "a version of another kind", &material)});
    refused(server, &format!("transit/keys/{taken}/import_version"), body);
    let seed = secret(canaries, "Ed25519 for ECDSA");
    let pkcs8 = PKey::private_key_from_raw_bytes(&seed, openssl::pkey::Id::ED25519).unwrap().private_key_to_pkcs8().unwrap();
    let body = json!({"type": "ecdsa-p256", "ciphertext": wrap(canaries, "Ed25519 for ECDSA", &pkcs8)});
    refused(server, &format!("transit/keys/{NAME}/import"), body);
    // The last eight bytes do not unwrap; the rest of the work is done before that shows.
    let material = secret(canaries, "damaged");
    let mut damaged = BASE64_STANDARD.decode(wrap(canaries, "damaged", &material)).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    let body = json!({"type": "aes256-gcm96", "ciphertext": BASE64_STANDARD.encode(damaged)});
    refused(server, &format!("transit/keys/{NAME}/import"), body);
}

/// A backup of a key with one version, as Vault writes them; `kind` is Vault's number of the type.
fn backup(kind: u8, latest: u8, entry: &str) -> String {
    let json = format!(
        r#"{{"policy":{{"name":"k","type":{kind},"keys":{{"1":{entry}}},"exportable":true,"allow_plaintext_backup":true,
        "deletion_allowed":true,"min_decryption_version":1,"latest_version":{latest},"archive_version":{latest}}},
        "archived_keys":{{"keys":[{{"key":null,"hmac_key":null}},{entry}]}}}}"#
    );
    BASE64_STANDARD.encode(json)
}

/// An entry of a backup with a symmetric key, which is planted.
fn entry(canaries: &mut Canaries, what: &str) -> String {
    let (key, hmac): ([u8; 32], [u8; 32]) = (random_array(), random_array());
    canaries.bytes(&format!("restore {what}"), &key);
    canaries.bytes(&format!("HMAC key of the restore {what}"), &hmac);
    let (key, hmac) = (BASE64_STANDARD.encode(key), BASE64_STANDARD.encode(hmac));
    format!(r#"{{"key":"{key}","hmac_key":"{hmac}","creation_time":1700000000,"time":"2024-01-01T00:00:00Z"}}"#)
}

/// Restores of another type, of a name that is taken, with a mistake beside it, without a version, and cut off.
fn restores(server: &Server<'_>, canaries: &mut Canaries, taken: &str) {
    const AES: u8 = 0;
    const P256: u8 = 1;
    const RSA: u8 = 3;
    for (what, kind, latest, name, level) in [
        ("refused: no RSA key", RSA, 1, NAME, "software"),
        ("refused: a version is missing", AES, 2, NAME, "software"),
        ("refused: no such level", AES, 1, NAME, "nowhere"),
        ("refused: name taken", AES, 1, taken, "software"),
    ] {
        let text = backup(kind, latest, &entry(canaries, what));
        refused(server, &format!("transit/restore/{name}"), json!({"backup": text, "protection_level": level}));
    }
    let text = backup(AES, 1, &entry(canaries, "refused: cut off"));
    refused(server, &format!("transit/restore/{NAME}"), json!({"backup": text[..text.len() - 8]}));
    let private: [u8; 32] = random_array();
    canaries.number("restore refused: a public half of another key", &private);
    let number = BigNum::from_slice(&private).unwrap().to_dec_str().unwrap();
    let wrong = format!(r#"{{"ec_x":5,"ec_y":6,"ec_d":{number},"hmac_key":"{}"}}"#, BASE64_STANDARD.encode([1; 32]));
    refused(server, &format!("transit/restore/{NAME}"), json!({"backup": backup(P256, 1, &wrong)}));
    // Without a mistake it is taken: the others were refused for what they are named after.
    let text = backup(AES, 1, &entry(canaries, "that was taken"));
    server.put("transit/restore/taken-whole", json!({"backup": text, "protection_level": "software"})).ok();
    delete_key(server, "taken-whole");
}

/// Texts in requests that name no key, give no context, are no JSON, or go wrong at one item of a batch.
fn texts(server: &Server<'_>, canaries: &mut Canaries, derived: &str) {
    let mut plain = |what: &str| {
        let text: [u8; 48] = random_array();
        canaries.bytes(&format!("text of a refused request: {what}"), &text);
        BASE64_STANDARD.encode(text)
    };
    refused(server, &format!("transit/sign/{NAME}"), json!({"input": plain("no such key")}));
    refused(server, &format!("transit/encrypt/{derived}"), json!({"plaintext": plain("no context")}));
    let batch = json!({"batch_input": [{"plaintext": plain("beside another"), "context": "eA=="}, {"plaintext": "?"}]});
    refused(server, &format!("transit/encrypt/{derived}"), batch);
    let broken = format!(r#"{{"plaintext":"{}""#, plain("no JSON"));
    let path = format!("/v1/transit/encrypt/{derived}");
    let reply = request(server.url(), "PUT", &path, server.token.as_deref(), Some(&broken)).unwrap();
    assert_eq!(reply.status, 400, "{}", reply.text);
}

fn connect(server: &Server<'_>) -> (TcpStream, String) {
    let host = server.url().trim_start_matches("http://").to_owned();
    (TcpStream::connect(&host).unwrap(), host)
}

/// Requests of which only half has come, as long as the connections are open.
pub struct HalfSent(#[expect(dead_code, reason = "held open")] Vec<TcpStream>);

/// Sends half a text to encrypt and half a backup to restore.
pub fn half_sent(server: &Server<'_>, canaries: &mut Canaries) -> HalfSent {
    let text: [u8; 48] = random_array();
    canaries.bytes("half a text", &text);
    let entry = entry(canaries, "of half a backup");
    let bodies = [
        ("encrypt", format!(r#"{{"plaintext":"{}"#, BASE64_STANDARD.encode(text))),
        ("restore", format!(r#"{{"backup":"{}"#, backup(0, 1, &entry))),
    ];
    let token = server.token.as_deref().unwrap();
    let send = |(what, body): (&str, String)| {
        let (mut stream, host) = connect(server);
        let path = format!("/v1/transit/{what}/{NAME}");
        let head = format!("PUT {path} HTTP/1.1\r\nHost: {host}\r\nX-Vault-Token: {token}\r\nContent-Length: 100000\r\n\r\n");
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        stream
    };
    HalfSent(bodies.into_iter().map(send).collect())
}

/// What has come of the half-sent bodies is found while their connections are open.
#[track_caller]
pub fn assert_half_sent_is_found(traces: &[Trace]) {
    for (canary, form) in [("half a text", "base64"), ("restore of half a backup", "base64 of base64")] {
        let found = traces.iter().any(|trace| trace.canary == canary && trace.form == form && trace.place.starts_with("server"));
        assert!(found, "the search does not find {canary} as {form}: {traces:#?}");
    }
}

/// What is no HTTP at all.
fn no_http(server: &Server<'_>, canaries: &mut Canaries) {
    let text: [u8; 48] = random_array();
    canaries.bytes("text in what is no HTTP", &text);
    let (mut stream, _) = connect(server);
    stream.write_all(format!("GARBAGE {}\r\n\r\n", BASE64_STANDARD.encode(text)).as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 400"), "{:?}", String::from_utf8_lossy(&answer));
}

/// Everything that is refused. `taken` is a public key of type RSA, `derived` a derived key.
pub fn refuse(server: &Server<'_>, canaries: &mut Canaries, taken: &str, derived: &str) {
    imports(server, canaries, taken);
    restores(server, canaries, taken);
    texts(server, canaries, derived);
    no_http(server, canaries);
}
