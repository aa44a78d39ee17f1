//! Keys of every type through the engine's table: signatures, HMACs, backups, exports and certificates.

use openssl::x509::X509Req;

use super::*;

const SIGNING: [&str; 5] = ["ecdsa-p256", "ecdsa-p384", "ecdsa-p521", "ed25519", "rsa-2048"];

impl Bench {
    async fn valid(&self, name: &str, body: Value) -> bool {
        self.post(&format!("verify/{name}"), body).await["valid"] == json!(true)
    }

    async fn exported(&self, name: &str) -> Value {
        let path = format!("export/signing-key/{name}");
        data(self.call(Operation::Read, &path, json!({})).await.unwrap())["keys"].clone()
    }
}

#[tokio::test]
async fn signatures_verify_after_rotation_and_under_no_other_input() {
    let bench = Bench::new().await;
    for kind in SIGNING {
        bench.post(&format!("keys/{kind}"), json!({ "type": kind })).await;
        let first = bench.post(&format!("sign/{kind}"), json!({ "input": "aGVsbG8=" })).await;
        bench.post(&format!("keys/{kind}/rotate"), json!({})).await;
        let second = bench.post(&format!("sign/{kind}"), json!({ "input": "aGVsbG8=" })).await;
        assert_eq!((&first["key_version"], &second["key_version"]), (&json!(1), &json!(2)));
        for signature in [&first["signature"], &second["signature"]] {
            assert!(bench.valid(kind, json!({ "input": "aGVsbG8=", "signature": signature })).await, "{kind}");
            assert!(!bench.valid(kind, json!({ "input": "b3RoZXI=", "signature": signature })).await, "{kind}");
        }
        let mac = bench.post(&format!("hmac/{kind}"), json!({ "input": "aGVsbG8=" })).await;
        assert!(bench.valid(kind, json!({ "input": "aGVsbG8=", "hmac": mac["hmac"] })).await, "{kind}");
    }
}

#[tokio::test]
async fn backups_hold_everything_and_restore_under_a_new_name() {
    let bench = Bench::new().await;
    for kind in SIGNING {
        let body = json!({ "type": kind, "exportable": true, "allow_plaintext_backup": true });
        bench.post(&format!("keys/{kind}"), body).await;
        bench.post(&format!("keys/{kind}/rotate"), json!({})).await;
        let signed = bench.post(&format!("sign/{kind}"), json!({ "input": "aGVsbG8=", "key_version": 1 })).await;
        let backup = data(bench.call(Operation::Read, &format!("backup/{kind}"), json!({})).await.unwrap());
        let copy = format!("{kind}-copy");
        bench.call(Operation::Update, &format!("restore/{copy}"), json!({ "backup": backup["backup"] })).await.unwrap();
        assert!(bench.valid(&copy, json!({ "input": "aGVsbG8=", "signature": signed["signature"] })).await, "{kind}");
        let (one, other) = (bench.exported(kind).await, bench.exported(&copy).await);
        assert_eq!(one, other, "{kind}");
        let again = bench.call(Operation::Update, &format!("restore/{copy}"), json!({ "backup": backup["backup"] })).await;
        assert_eq!(again.unwrap_err().text(), format!("key {copy:?} already exists"));
        let forced = json!({ "backup": backup["backup"], "force": true });
        bench.call(Operation::Update, &format!("restore/{copy}"), forced).await.unwrap();
    }
}

#[tokio::test]
async fn requests_for_certificates_carry_the_key_and_the_subject() {
    let bench = Bench::new().await;
    for kind in SIGNING {
        bench.post(&format!("keys/{kind}"), json!({ "type": kind })).await;
        let made = bench.post(&format!("keys/{kind}/csr"), json!({})).await;
        let request = X509Req::from_pem(made["csr"].as_str().unwrap().as_bytes()).unwrap();
        assert!(request.verify(&request.public_key().unwrap()).unwrap(), "{kind}");
        // A request made elsewhere gives its subject; the key is replaced.
        let mut name = openssl::x509::X509Name::builder().unwrap();
        name.append_entry_by_text("CN", "disks").unwrap();
        let name = name.build();
        let key = openssl::pkey::PKey::generate_ed25519().unwrap();
        let mut other = X509Req::builder().unwrap();
        other.set_subject_name(&name).unwrap();
        other.set_pubkey(&key).unwrap();
        other.sign(&key, openssl::hash::MessageDigest::null()).unwrap();
        let text = String::from_utf8(other.build().to_pem().unwrap()).unwrap();
        let made = bench.post(&format!("keys/{kind}/csr"), json!({ "csr": text })).await;
        let made = X509Req::from_pem(made["csr"].as_str().unwrap().as_bytes()).unwrap();
        assert!(made.verify(&request.public_key().unwrap()).unwrap(), "{kind}");
        assert_eq!(made.subject_name().entries().next().unwrap().data().as_slice(), b"disks");
        // The least version for encryption is no bound for requests, as it is for signatures.
        bench.post(&format!("keys/{kind}/rotate"), json!({})).await;
        bench.post(&format!("keys/{kind}/config"), json!({ "min_encryption_version": 2 })).await;
        let made = bench.post(&format!("keys/{kind}/csr"), json!({ "version": 1 })).await;
        let made = X509Req::from_pem(made["csr"].as_str().unwrap().as_bytes()).unwrap();
        assert!(made.verify(&request.public_key().unwrap()).unwrap(), "{kind}");
        let signed = bench.refused(&format!("sign/{kind}"), json!({ "input": "", "key_version": 1 })).await;
        assert!(signed.contains("less than the minimum encryption key version"), "{signed}");
    }
}
