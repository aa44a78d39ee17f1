//! Derived and convergent keys for the search of memory: the stored secret, and what each context makes of it.
//!
//! The keys of the contexts are computed here, and each is shown to be the one that the server used: it opens the server's
//! ciphertext, makes its nonce or its signature.

use aes_gcm::aead::{Aead, KeyInit, Nonce};
use aes_gcm::{Aes128Gcm, Aes256Gcm};
use base64::{Engine, prelude::BASE64_STANDARD};
use chacha20poly1305::{ChaCha20Poly1305, XChaCha20Poly1305};
use hkdf::Hkdf;
use openssl::pkey::{Id, PKey};
use openssl::{hash::MessageDigest, sign::Signer};
use serde_json::json;
use sha2::Sha256;
use sos::secret::random_array;

use crate::canary::Canaries;
use crate::memory::{delete_key, text};
use crate::support::Server;

/// Ciphers with the length of their keys and nonces.
const CIPHERS: [(&str, usize, usize); 4] =
    [("aes128-gcm96", 16, 12), ("aes256-gcm96", 32, 12), ("chacha20-poly1305", 32, 12), ("xchacha20-poly1305", 32, 24)];

/// A key and something made under it, with the context.
pub struct Derived {
    pub name: String,
    context: String,
    made: String,
    input: String,
}

/// HKDF-SHA-256 without salt, the context as info.
fn hkdf(secret: &[u8], context: &[u8], len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    Hkdf::<Sha256>::new(None, secret).expand(context, &mut out).unwrap();
    out
}

fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let key = PKey::hmac(key).unwrap();
    let mut signer = Signer::new(MessageDigest::sha256(), &key).unwrap();
    signer.update(message).unwrap();
    signer.sign_to_vec().unwrap()
}

fn open<C: Aead + KeyInit>(key: &[u8], nonce: &[u8], sealed: &[u8]) -> Vec<u8> {
    let nonce = Nonce::<C>::try_from(nonce).unwrap_or_else(|_| panic!("a nonce of {} bytes", nonce.len()));
    C::new_from_slice(key).unwrap().decrypt(&nonce, sealed).unwrap()
}

/// The bytes of `vault:v1:…`.
fn payload(made: &str) -> Vec<u8> {
    BASE64_STANDARD.decode(made.strip_prefix("vault:v1:").unwrap()).unwrap()
}

/// Makes a derived key and plants its secret, which it answers.
fn make(server: &Server<'_>, canaries: &mut Canaries, name: &str, kind: &str, convergent: bool) -> Vec<u8> {
    let settings = json!({"type": kind, "protection_level": "software", "derived": true,
        "convergent_encryption": convergent, "exportable": true, "allow_plaintext_backup": true});
    server.put(&format!("transit/keys/{name}"), settings).ok();
    let export = if kind == "ed25519" { "signing-key" } else { "encryption-key" };
    let shown = server.get(&format!("transit/export/{export}/{name}")).ok();
    let root = BASE64_STANDARD.decode(shown["data"]["keys"]["1"].as_str().unwrap()).unwrap();
    // An Ed25519 key ends with its public half.
    canaries.bytes(&format!("root of {name}"), &root[..root.len().min(32)]);
    root
}

fn use_cipher(server: &Server<'_>, canaries: &mut Canaries, name: &str, kind: &str, context: &str, input: &str) -> String {
    let body = json!({"plaintext": input, "context": context});
    let made = text(&server.put(&format!("transit/encrypt/{name}"), body.clone()).ok(), "ciphertext");
    server.put(&format!("transit/encrypt/{name}"), json!({"batch_input": vec![body; 3]})).ok();
    let body = json!({"ciphertext": made, "context": context});
    let opened = server.put(&format!("transit/decrypt/{name}"), body.clone()).ok();
    assert_eq!(text(&opened, "plaintext"), input);
    server.put(&format!("transit/rewrap/{name}"), body).ok();
    let data = server.put(&format!("transit/datakey/plaintext/{name}"), json!({"bits": 512, "context": context})).ok();
    canaries.bytes(&format!("data key of {name} ({kind})"), &BASE64_STANDARD.decode(text(&data, "plaintext")).unwrap());
    made
}

/// Makes derived keys of all types, convergent ones too, and uses them with two contexts each.
pub fn make_keys(server: &Server<'_>, canaries: &mut Canaries) -> Vec<Derived> {
    let mut keys = Vec::new();
    let kinds = CIPHERS.iter().flat_map(|(kind, len, nonce)| [(*kind, *len, *nonce, false), (*kind, *len, *nonce, true)]);
    for (kind, key_len, nonce_len, convergent) in kinds.chain([("ed25519", 32, 0, false)]) {
        let name = format!("{}-{kind}", if convergent { "convergent" } else { "derived" });
        let root = make(server, canaries, &name, kind, convergent);
        let mut last = None;
        for at in 1..=2 {
            let (context, plain) = (random_array::<16>(), random_array::<48>());
            canaries.bytes(&format!("text {at} for {name}"), &plain);
            let derived = hkdf(&root, &context, key_len + if convergent { 32 } else { 0 });
            let (key, mac) = derived.split_at(key_len);
            canaries.bytes(&format!("key {at} derived from {name}"), key);
            let (context, input) = (BASE64_STANDARD.encode(context), BASE64_STANDARD.encode(plain));
            let made = if kind == "ed25519" {
                let body = json!({"input": input, "context": context});
                let made = text(&server.put(&format!("transit/sign/{name}"), body).ok(), "signature");
                let body = json!({"input": input, "context": context, "signature": made});
                assert_eq!(server.put(&format!("transit/verify/{name}"), body).ok()["data"]["valid"], true);
                let key = PKey::private_key_from_raw_bytes(key, Id::ED25519).unwrap();
                assert_eq!(Signer::new_without_digest(&key).unwrap().sign_oneshot_to_vec(&plain).unwrap(), payload(&made));
                made
            } else {
                let made = use_cipher(server, canaries, &name, kind, &context, &input);
                let sealed = payload(&made);
                let (nonce, sealed) = sealed.split_at(nonce_len);
                let opened = match kind {
                    "aes128-gcm96" => open::<Aes128Gcm>(key, nonce, sealed),
                    "aes256-gcm96" => open::<Aes256Gcm>(key, nonce, sealed),
                    "chacha20-poly1305" => open::<ChaCha20Poly1305>(key, nonce, sealed),
                    _ => open::<XChaCha20Poly1305>(key, nonce, sealed),
                };
                assert_eq!(opened, plain, "{name}");
                made
            };
            if convergent {
                canaries.bytes(&format!("MAC key {at} of {name}"), mac);
                assert_eq!(payload(&made)[..nonce_len], hmac(mac, &plain)[..nonce_len], "the nonce of {name}");
            }
            last = Some(Derived { name: name.clone(), context, made, input });
        }
        keys.extend(last);
    }
    keys
}

/// Backs the keys up, deletes them, restores them, uses them again and deletes what was restored.
pub fn restore_keys(server: &Server<'_>, canaries: &mut Canaries, keys: &[Derived]) {
    for Derived { name, context, made, input } in keys {
        let backup = text(&server.get(&format!("transit/backup/{name}")).ok(), "backup");
        canaries.text(&format!("backup of {name}"), &backup);
        delete_key(server, name);
        let restored = format!("{name}-restored");
        server.put(&format!("transit/restore/{restored}"), json!({"backup": backup})).ok();
        if name.ends_with("ed25519") {
            let body = json!({"input": input, "context": context, "signature": made});
            assert_eq!(server.put(&format!("transit/verify/{restored}"), body).ok()["data"]["valid"], true);
        } else {
            let body = json!({"ciphertext": made, "context": context});
            assert_eq!(&text(&server.put(&format!("transit/decrypt/{restored}"), body).ok(), "plaintext"), input);
        }
        delete_key(server, &restored);
    }
}
