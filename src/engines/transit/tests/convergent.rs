//! Convergent keys of every version, as backups of old servers bring them in, against answers computed here by OpenSSL:
//! HKDF-SHA-256 and the counter function over HMAC-SHA-256, AES-GCM and ChaCha20-Poly1305.
//!
//! | version | nonce | ciphertext |
//! |---|---|---|
//! | 1 | the caller's, given again to decrypt | without the nonce |
//! | 2 | HMAC-SHA-256(context, plaintext), cut | nonce first |
//! | 3 | HMAC-SHA-256(a second derived key, plaintext), cut | nonce first |

use alg::KeyType;
use openssl::{
    hash::MessageDigest,
    pkey::PKey,
    sign::Signer,
    symm::{Cipher, encrypt_aead},
};

use super::*;

const CONTEXT: &[u8] = b"tenant-1";
const NONCE: &[u8; 12] = b"twelve bytes";
const PLAIN: &[u8] = b"the same text";
const KINDS: [KeyType; 3] = [KeyType::Aes128Gcm96, KeyType::Aes256Gcm96, KeyType::ChaCha20Poly1305];

fn mac(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let key = PKey::hmac(key).unwrap();
    let mut signer = Signer::new(MessageDigest::sha256(), &key).unwrap();
    parts.iter().for_each(|part| signer.update(part).unwrap());
    signer.sign_to_vec().unwrap()
}

/// RFC 5869 without salt.
fn hkdf(secret: &[u8], info: &[u8], len: usize) -> Vec<u8> {
    let key = mac(&[0; 32], &[secret]);
    let (mut out, mut last) = (Vec::new(), Vec::new());
    for count in 1_u8.. {
        if out.len() >= len {
            break;
        }
        last = mac(&key, &[&last, info, &[count]]);
        out.extend_from_slice(&last);
    }
    out.truncate(len);
    out
}

/// NIST SP 800-108, counter mode; the first servers began to count at 0 and always asked for 256 bits.
fn counter(secret: &[u8], context: &[u8]) -> Vec<u8> {
    mac(secret, &[&[0; 4], context, &[0, 0, 1, 0]])
}

fn key_len(kind: KeyType) -> usize {
    if kind == KeyType::Aes128Gcm96 { 16 } else { 32 }
}

fn seal(kind: KeyType, key: &[u8], nonce: &[u8]) -> Vec<u8> {
    let cipher = match kind {
        KeyType::Aes128Gcm96 => Cipher::aes_128_gcm(),
        KeyType::Aes256Gcm96 => Cipher::aes_256_gcm(),
        _ => Cipher::chacha20_poly1305(),
    };
    let mut tag = [0; 16];
    let mut sealed = encrypt_aead(cipher, &key[..key_len(kind)], Some(nonce), b"", PLAIN, &mut tag).unwrap();
    sealed.extend_from_slice(&tag);
    sealed
}

/// What a version of a convergent key must answer.
fn answer(kind: KeyType, convergent: i64, kdf: i64, secret: &[u8], version: u32) -> String {
    let len = key_len(kind) + if convergent == 3 { 32 } else { 0 };
    let derived = if kdf == 1 { hkdf(secret, CONTEXT, len) } else { counter(secret, CONTEXT) };
    let sealed = match convergent {
        1 => seal(kind, &derived, NONCE),
        2 | 3 => {
            let of = if convergent == 2 { CONTEXT } else { &derived[key_len(kind)..] };
            let nonce = &mac(of, &[PLAIN])[..12];
            [nonce, &seal(kind, &derived, nonce)].concat()
        }
        other => panic!("{other}"),
    };
    format!("vault:v{version}:{}", b64::encode(&sealed))
}

/// A backup of a key with one version.
fn backup(kind: KeyType, secret: &[u8], kdf: i64, convergent: Option<(i64, i64)>) -> Value {
    let (of_key, of_version) = convergent.unwrap_or_default();
    let policy = json!({
        "name": "k",
        "type": super::super::blob::number_of(kind),
        "keys": {"1": {"key": b64::encode(secret), "hmac_key": b64::encode(&[9; 32]), "convergent_version": of_version}},
        "derived": true,
        "kdf": kdf,
        "convergent_encryption": convergent.is_some(),
        "convergent_version": of_key,
        "exportable": true,
        "allow_plaintext_backup": true,
        "min_decryption_version": 1,
        "latest_version": 1,
        "archive_version": 1,
    });
    json!(b64::encode(json!({"policy": policy}).to_string().as_bytes()))
}

struct Old {
    bench: Bench,
    name: &'static str,
}

impl Old {
    async fn restored(kind: KeyType, secret: &[u8], kdf: i64, convergent: Option<(i64, i64)>) -> Self {
        let old = Self { bench: Bench::new().await, name: "k" };
        let body = json!({"backup": backup(kind, secret, kdf, convergent)});
        old.bench.call(Operation::Update, "restore/k", body).await.unwrap();
        old
    }

    /// A body with context and, where one is given, a nonce.
    fn body(rest: Value, nonce: Option<&[u8]>) -> Value {
        let mut body = rest;
        body["context"] = json!(b64::encode(CONTEXT));
        if let Some(nonce) = nonce {
            body["nonce"] = json!(b64::encode(nonce));
        }
        body
    }

    async fn encrypt(&self, nonce: Option<&[u8]>) -> Result<String, Failure> {
        let body = Self::body(json!({"plaintext": b64::encode(PLAIN)}), nonce);
        let reply = self.bench.call(Operation::Update, &format!("encrypt/{}", self.name), body).await?;
        Ok(data(reply)["ciphertext"].as_str().unwrap().to_owned())
    }

    async fn decrypt(&self, ciphertext: &str, nonce: Option<&[u8]>) -> Result<Vec<u8>, Failure> {
        let body = Self::body(json!({"ciphertext": ciphertext}), nonce);
        let reply = self.bench.call(Operation::Update, &format!("decrypt/{}", self.name), body).await?;
        Ok(b64::decode(data(reply)["plaintext"].as_str().unwrap()).unwrap())
    }

    async fn rewrap(&self, ciphertext: &str, nonce: Option<&[u8]>) -> String {
        let body = Self::body(json!({"ciphertext": ciphertext}), nonce);
        self.bench.post(&format!("rewrap/{}", self.name), body).await["ciphertext"].as_str().unwrap().to_owned()
    }

    async fn rotated(&self) -> Value {
        self.bench.post(&format!("keys/{}/rotate", self.name), json!({})).await
    }

    /// The secret of a version.
    async fn secret(&self, version: u32) -> Vec<u8> {
        let path = format!("export/encryption-key/{}", self.name);
        let keys = data(self.bench.call(Operation::Read, &path, json!({})).await.unwrap())["keys"].clone();
        b64::decode(keys[version.to_string()].as_str().unwrap()).unwrap()
    }
}

fn text(result: Result<impl std::fmt::Debug, Failure>) -> String {
    let failure = result.unwrap_err();
    assert_eq!(failure.kind(), Kind::Invalid, "{failure:?}");
    failure.text().to_owned()
}

#[tokio::test]
async fn version_1_takes_the_callers_nonce_and_stays_version_1() {
    for kind in KINDS {
        for (of_key, kdf) in [(0, 1), (1, 1), (1, 0)] {
            let secret = &[kind.key_len() as u8; 32][..kind.key_len()];
            let old = Old::restored(kind, secret, kdf, Some((of_key, 0))).await;
            let shown = data(old.bench.call(Operation::Read, "keys/k", json!({})).await.unwrap());
            assert_eq!(shown["convergent_encryption_version"], 1, "{shown}");
            let sealed = old.encrypt(Some(NONCE)).await.unwrap();
            assert_eq!(sealed, answer(kind, 1, kdf, secret, 1), "{kind:?} {of_key} {kdf}");
            assert_eq!(old.encrypt(Some(NONCE)).await.unwrap(), sealed);
            assert_ne!(old.encrypt(Some(b"another one!")).await.unwrap(), sealed);
            assert_eq!(old.decrypt(&sealed, Some(NONCE)).await.unwrap(), PLAIN);

            let wanted = "base64-decoded nonce must be 12 bytes long when using convergent encryption with this key";
            assert_eq!(text(old.encrypt(None).await), wanted);
            assert_eq!(text(old.encrypt(Some(b"short")).await), wanted);
            assert_eq!(text(old.decrypt(&sealed, None).await), "invalid convergent nonce supplied");
            assert!(text(old.decrypt(&sealed, Some(b"short")).await).contains("nonce"));
            let not_authentic = match kind {
                KeyType::ChaCha20Poly1305 => "chacha20poly1305: message authentication failed",
                _ => "cipher: message authentication failed",
            };
            assert_eq!(text(old.decrypt(&sealed, Some(b"another one!")).await), not_authentic);
            // Nothing of a nonce and too short for a tag.
            assert_eq!(text(old.decrypt("vault:v1:AAAA", Some(NONCE)).await), "invalid ciphertext length");

            // Clients that send a nonce go on after a rotation.
            assert_eq!(old.rotated().await["convergent_encryption_version"], 1);
            let second = old.encrypt(Some(NONCE)).await.unwrap();
            assert_eq!(second, answer(kind, 1, kdf, &old.secret(2).await, 2), "{kind:?}");
            assert_eq!(old.rewrap(&sealed, Some(NONCE)).await, second);
        }
    }
}

#[tokio::test]
async fn versions_2_and_3_make_their_own_nonce_and_take_none() {
    for kind in KINDS {
        // 2 by the key alone, 3 by the version, 3 by a key that leaves it to its versions.
        for (of_key, of_version, convergent, kdf) in
            [(2, 0, 2, 1), (2, 0, 2, 0), (2, 2, 2, 1), (2, 3, 3, 1), (-1, 3, 3, 1), (-1, 0, 3, 1)]
        {
            let secret = &[0x5a; 32][..kind.key_len()];
            let old = Old::restored(kind, secret, kdf, Some((of_key, of_version))).await;
            let sealed = old.encrypt(None).await.unwrap();
            assert_eq!(sealed, answer(kind, convergent, kdf, secret, 1), "{kind:?} {of_key} {of_version} {kdf}");
            assert_eq!(old.encrypt(None).await.unwrap(), sealed);
            assert_eq!(old.decrypt(&sealed, None).await.unwrap(), PLAIN);
            assert_eq!(text(old.encrypt(Some(NONCE)).await), "nonce provided when not allowed");
            if kdf == 0 {
                continue;
            }
            // New versions are of the third kind.
            old.rotated().await;
            let second = old.encrypt(None).await.unwrap();
            assert_eq!(second, answer(kind, 3, 1, &old.secret(2).await, 2), "{kind:?}");
            assert_eq!(old.rewrap(&sealed, None).await, second);
        }
    }
}

#[tokio::test]
async fn the_counter_function_derives_keys_but_no_nonces_of_the_third_kind() {
    for kind in KINDS {
        let secret = &[0x77; 32][..kind.key_len()];
        let old = Old::restored(kind, secret, 0, None).await;
        let sealed = [&NONCE[..], &seal(kind, &counter(secret, CONTEXT), NONCE)].concat();
        let sealed = format!("vault:v1:{}", b64::encode(&sealed));
        assert_eq!(old.decrypt(&sealed, None).await.unwrap(), PLAIN, "{kind:?}");
        let again = old.encrypt(None).await.unwrap();
        assert_ne!(old.encrypt(None).await.unwrap(), again, "a random nonce each time");
        assert_eq!(old.decrypt(&again, None).await.unwrap(), PLAIN);

        // It yields 32 bytes, a cipher key; the third kind needs another 32.
        let old = Old::restored(kind, secret, 0, Some((3, 3))).await;
        let failure = old.encrypt(None).await.unwrap_err();
        assert_eq!((failure.kind(), failure.text()), (Kind::Internal, "could not derive key, length too small"));
    }
}

#[tokio::test]
async fn old_convergent_keys_keep_their_answers_over_a_backup_and_in_batches() {
    for (of_key, convergent) in [(1, 1), (2, 2), (-1, 3)] {
        let (kind, secret) = (KeyType::Aes256Gcm96, [3; 32]);
        let old = Old::restored(kind, &secret, 1, Some((of_key, 0))).await;
        let taken = data(old.bench.call(Operation::Read, "backup/k", json!({})).await.unwrap());
        old.bench.call(Operation::Update, "restore/copy", json!({"backup": taken["backup"]})).await.unwrap();
        let nonce = (convergent == 1).then_some(&NONCE[..]);
        let copy = Old { name: "copy", ..old };
        let wanted = answer(kind, convergent, 1, &secret, 1);
        assert_eq!(copy.encrypt(nonce).await.unwrap(), wanted);
        let item = Old::body(json!({"plaintext": b64::encode(PLAIN)}), nonce);
        let sealed = copy.bench.post("encrypt/copy", json!({"batch_input": [item, item]})).await;
        assert_eq!([0_usize, 1].map(|at| sealed["batch_results"][at]["ciphertext"].clone()), [json!(wanted), json!(wanted)]);
        let item = Old::body(json!({"ciphertext": wanted}), nonce);
        let opened = copy.bench.post("decrypt/copy", json!({"batch_input": [item]})).await;
        assert_eq!(opened["batch_results"][0]["plaintext"], json!(b64::encode(PLAIN)));
        let made = copy.bench.post("datakey/plaintext/copy", Old::body(json!({}), nonce)).await;
        let opened = copy.decrypt(made["ciphertext"].as_str().unwrap(), nonce).await.unwrap();
        assert_eq!(json!(b64::encode(&opened)), made["plaintext"]);
    }
}
