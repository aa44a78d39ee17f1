//! Forms of requests that clients of Vault get away with, and the words they read when they do not.

use super::*;

#[tokio::test]
async fn optional_parts_of_a_path_are_never_read_from_the_body() {
    let bench = Bench::new().await;
    bench.post("keys/k", json!({ "type": "ed25519", "exportable": true, "allow_plaintext_backup": true })).await;
    bench.post("sign/k", json!({ "input": "YQ==", "urlalgorithm": "no such" })).await;
    bench.post("hash", json!({ "input": "YQ==", "urlalgorithm": "no such" })).await;
    for body in [json!({ "source": "no such" }), json!({ "urlbytes": "no such" }), json!({ "source": "", "bytes": "0x20" })] {
        let answer = bench.post("random", body).await;
        assert_eq!(b64::decode(answer["random_bytes"].as_str().unwrap()).unwrap().len(), 32);
    }
    let reply = bench.call(Operation::Update, "random", json!({ "source": "seal" })).await.unwrap();
    let note = "Endpoint replaced the value of these parameters with the values captured from the endpoint's path: [source]";
    assert_eq!(reply.warnings, [note]);
    assert_eq!(
        bench.refused("random/seal/x", json!({})).await,
        "error parsing url-set byte count: strconv.Atoi: parsing \"x\": invalid syntax"
    );
    assert_eq!(bench.refused("sign/k/sha2-256/x", json!({ "input": "YQ==" })).await, "invalid hash algorithm \"sha2-256/x\"");
    let backup = data(bench.call(Operation::Read, "backup/k", json!({})).await.unwrap())["backup"].clone();
    let refused = bench.refused("restore", json!({ "backup": backup, "name": "other" })).await;
    assert_eq!(refused, "key \"k\" already exists");
    bench.call(Operation::Update, "restore/other", json!({ "backup": backup })).await.unwrap();
}

#[tokio::test]
async fn a_signature_is_verified_whatever_stands_in_hmac() {
    let bench = Bench::new().await;
    bench.post("keys/k", json!({ "type": "ed25519" })).await;
    let signature = bench.post("sign/k", json!({ "input": "YQ==" })).await["signature"].clone();
    for hmac in [json!(""), Value::Null, json!("x")] {
        let answer = bench.post("verify/k", json!({ "input": "YQ==", "signature": signature, "hmac": hmac })).await;
        assert_eq!(answer["valid"], true);
    }
    let refused = bench.refused("verify/k", json!({ "input": "YQ==" })).await;
    assert_eq!(refused, "neither a 'signature' nor an 'hmac' were given to verify");
}

#[tokio::test]
async fn changed_ciphertexts_are_refused_in_the_words_of_their_cipher() {
    let bench = Bench::new().await;
    for kind in alg::KeyType::CIPHERS {
        let name = kind.name();
        bench.post(&format!("keys/{name}"), json!({ "type": name })).await;
        let other = format!("vault:v1:{}", b64::encode(&[7; 64]));
        let words = if name.contains("chacha20") { "chacha20poly1305" } else { "cipher" };
        let refused = bench.decrypt(name, &other).await.unwrap_err().text().to_owned();
        assert_eq!(refused, format!("{words}: message authentication failed"), "{name}");
    }
}

#[tokio::test]
async fn an_hmac_of_a_negative_version_is_refused_as_that() {
    let bench = Bench::new().await;
    bench.post("keys/k", json!({})).await;
    let refused = bench.refused("hmac/k", json!({ "input": "YQ==", "key_version": -1 })).await;
    assert_eq!(refused, "key version does not exist (cannot be negative)");
    bench.post("keys/k/rotate", json!({})).await;
    bench.post("keys/k/config", json!({ "min_encryption_version": 2 })).await;
    let refused = bench.refused("hmac/k", json!({ "input": "YQ==", "key_version": 1 })).await;
    assert_eq!(refused, "cannot generate HMAC: version is too old (disallowed by policy)");
}

#[tokio::test]
async fn items_of_rewraps_and_signatures_may_hold_numbers_for_texts() {
    let bench = Bench::new().await;
    bench.post("keys/k", json!({})).await;
    bench.post("keys/e", json!({ "type": "ed25519" })).await;
    let ciphertext = bench.encrypt("k", "text").await;
    let items = json!([{ "Ciphertext": ciphertext, "reference": 5 }, null, { "ciphertext": 7, "plaintext": null }]);
    let results = bench.post("rewrap/k", json!({ "batch_input": items })).await["batch_results"].clone();
    assert_eq!((&results[0]["key_version"], &results[0]["reference"]), (&json!(1), &json!("5")));
    assert_eq!(results[1], json!({ "error": "missing ciphertext to decrypt", "reference": "" }));
    assert_eq!(results[2]["error"], "invalid ciphertext: no prefix");
    for (path, item) in
        [("sign/e", json!({ "input": "YQ==", "reference": 5 })), ("hmac/e", json!({ "input": "YQ==", "reference": 5 }))]
    {
        let results = bench.post(path, json!({ "batch_input": [item] })).await["batch_results"].clone();
        assert_eq!(results[0]["reference"], "5", "{path}");
    }
    let items = json!([{ "context": true, "reference": [], "key_version": 1.5 }]);
    let refused = bench.refused("encrypt/k", json!({ "batch_input": items })).await;
    let lines: Vec<&str> = refused.lines().collect();
    assert_eq!(lines.len(), 4, "{refused}");
    assert!(lines[1].starts_with("'[0].plaintext' missing") && lines[3].starts_with("'[0].reference' expected"), "{refused}");
    assert_eq!(lines[2], "error decoding json.Number into [0].key_version: strconv.ParseInt: parsing \"1.5\": invalid syntax");
}

#[tokio::test]
async fn a_level_by_name_is_that_of_the_key_or_the_request_is_refused() {
    let bench = Bench::new().await;
    bench.post("keys/k", json!({ "protection_level": Value::Null })).await;
    for (path, body) in [
        ("keys/k", json!({ "protection_level": "hsm-only" })),
        ("keys/k", json!({ "protection_level": "hsm" })),
        ("encrypt/k", json!({ "plaintext": "YQ==", "protection_level": "hsm" })),
        ("encrypt/k", json!({ "batch_input": [{ "plaintext": "YQ==" }], "protection_level": "hsm-only" })),
    ] {
        let refused = bench.refused(path, body.clone()).await;
        assert!(refused.starts_with("the key \"k\" exists and has protection_level \"software\", not \"hsm"), "{refused}");
        let can_change = body["protection_level"] == "hsm";
        assert_eq!(refused.contains("change it with keys/k/config"), can_change, "{refused}");
    }
    for level in [json!("software"), json!(""), Value::Null] {
        assert_eq!(bench.post("keys/k", json!({ "protection_level": level })).await["latest_version"], 1);
        bench.post("encrypt/k", json!({ "plaintext": "YQ==", "protection_level": level })).await;
    }
}

#[tokio::test]
async fn a_derived_ed25519_key_exports_the_public_half_of_what_contexts_derive_from() {
    let bench = Bench::new().await;
    bench.post("keys/k", json!({ "type": "ed25519", "derived": true, "exportable": true })).await;
    let read = async |path: &str| data(bench.call(Operation::Read, path, json!({})).await.unwrap())["keys"]["1"].clone();
    let private = b64::decode(read("export/signing-key/k").await.as_str().unwrap()).unwrap();
    assert_eq!(read("export/public-key/k").await, b64::encode(&private[32..]));
}
