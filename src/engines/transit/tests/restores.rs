//! Backups from outside: whoever writes one can write anything into it.

use aes_kw::{KeyInit, KwpAes256};
use openssl::{
    asn1::Asn1Time,
    hash::MessageDigest,
    pkey::PKey,
    rsa::Rsa,
    x509::{X509, X509NameBuilder},
};

use super::*;

/// The text of a backup of a fresh key, as JSON.
async fn backup_of(bench: &Bench, body: Value) -> String {
    let mut body = body;
    body["exportable"] = json!(true);
    body["allow_plaintext_backup"] = json!(true);
    bench.post("keys/k", body).await;
    let answer = data(bench.call(Operation::Read, "backup/k", json!({})).await.unwrap());
    String::from_utf8(b64::decode(answer["backup"].as_str().unwrap()).unwrap()).unwrap()
}

async fn restore(bench: &Bench, backup: &str) -> Result<Reply, Failure> {
    let body = json!({ "backup": b64::encode(backup.as_bytes()) });
    bench.call(Operation::Update, "restore/restored", body).await
}

/// A certificate of a key that signed it itself.
fn certificate(pkcs8: &[u8]) -> String {
    let key = PKey::private_key_from_pkcs8(pkcs8).unwrap();
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_text("CN", "leaf").unwrap();
    let name = name.build();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    builder.set_subject_name(&name).unwrap();
    builder.set_issuer_name(&name).unwrap();
    builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
    builder.set_pubkey(&key).unwrap();
    builder.sign(&key, MessageDigest::sha256()).unwrap();
    b64::encode(&builder.build().to_der().unwrap())
}

/// What is handed in to an import: material under a key of AES, which is under the mount's.
fn wrapped_by(wrapping: &PKey<openssl::pkey::Public>, material: &[u8]) -> String {
    let (mut room, ephemeral) = (vec![0; material.len() + 16], [7; 32]);
    let wrapped = KwpAes256::new_from_slice(&ephemeral).unwrap().wrap_key(material, &mut room).unwrap().to_vec();
    let hash = alg::hash::HashAlgorithm::Sha2_256;
    let sealed = alg::rsa::encrypt_oaep(wrapping, &ephemeral, hash).unwrap();
    b64::encode(&[sealed, wrapped].concat())
}

#[tokio::test]
async fn versions_from_outside_are_refused_where_the_mount_requires_another_level() {
    let mut bench = Bench::with(Some(FakeHsm::new()), &[]).await;
    let wrapping = data(bench.call(Operation::Read, "wrapping_key", json!({})).await.unwrap());
    let wrapping = PKey::public_key_from_pem(wrapping["public_key"].as_str().unwrap().as_bytes()).unwrap();
    let key =
        PKey::from_ec_key(openssl::ec::EcKey::generate(&alg::asym::group(alg::KeyType::EcdsaP256).unwrap()).unwrap()).unwrap();
    let public = String::from_utf8(key.public_key_to_pem().unwrap()).unwrap();
    let private = wrapped_by(&wrapping, &key.private_key_to_pkcs8().unwrap());
    let import = json!({ "type": "ecdsa-p256", "public_key": public, "protection_level": "software" });
    bench.call(Operation::Update, "keys/k/import", import).await.unwrap();
    let versions =
        [json!({ "public_key": public }), json!({ "ciphertext": private }), json!({ "ciphertext": private, "version": 1 })];
    bench.options.insert("protection_required".to_owned(), "hsm".to_owned());
    let free = std::mem::replace(
        &mut bench.transit,
        Arc::new(Transit::new(&mounted(&bench.barrier, &bench.clock, &bench.services, &bench.options)).unwrap()),
    );
    for body in &versions {
        let said = bench.refused("keys/k/import_version", body.clone()).await;
        assert!(said.contains("this mount requires protection_level \"hsm\", and the key has \"software\""), "{said}");
    }
    let record = bench.transit.store.key("k").unwrap().unwrap();
    assert!(record.record.versions.len() == 1 && record.record.versions[0].public_only);
    // They are taken where nothing is required.
    bench.options.clear();
    mounted(&bench.barrier, &bench.clock, &bench.services, &bench.options);
    bench.transit = free;
    bench.call(Operation::Update, "keys/k/import_version", versions[2].clone()).await.unwrap();
}

#[tokio::test]
async fn what_an_import_refuses_a_restore_refuses() {
    let foreign = alg::asym::PrivateKey::generate(alg::KeyType::EcdsaP256).unwrap().to_pkcs8().unwrap();
    let foreign = format!("\"certificate_chain\":[\"{}\"]", certificate(foreign.expose()));
    let weak = format!("\"hmac_key\":\"{}\"", b64::encode(&[1; 16]));
    let no_chain = "\"certificate_chain\":null";
    for (body, from, to, reason) in [
        (json!({ "type": "rsa-2048" }), "\"E\":65537", "\"E\":1", "public exponent too small"),
        (json!({ "type": "rsa-2048" }), "\"E\":65537", "\"E\":4", "public exponent too small or even"),
        (json!({ "type": "rsa-2048" }), "\"E\":65537", "\"E\":65539", "do not fit together"),
        (json!({ "type": "rsa-2048" }), "\"D\":", "\"D\":1", "do not fit together"),
        (json!({ "type": "hmac", "key_size": 64 }), "\"key_size\":64", "\"key_size\":1000000", "between 32 and 512"),
        (json!({ "type": "hmac", "key_size": 64 }), "\"key\":\"", "\"key\":\"AAAA\",\"rest\":\"", "3 bytes are no hmac key"),
        (json!({}), "\"hmac_key\":\"", &format!("{weak},\"rest\":\""), "16 bytes are no HMAC key"),
        (json!({ "type": "ecdsa-p256" }), no_chain, "\"certificate_chain\":[\"AAAA\"]", "DER is malformed"),
        (json!({ "type": "ecdsa-p256" }), no_chain, &foreign, "not of this key"),
        (json!({}), no_chain, &foreign, "does not match the transit key type"),
        (json!({ "type": "ed25519", "derived": true }), "\"key\":\"", "\"key\":null,\"rest\":\"", "secret to derive from"),
        (
            json!({ "type": "ed25519", "derived": true }),
            "\"convergent_encryption\":false",
            "\"convergent_encryption\":true",
            "convergent encryption not supported",
        ),
    ] {
        let bench = Bench::new().await;
        let backup = backup_of(&bench, body).await;
        let failure = match restore(&bench, &backup.replace(from, to)).await {
            Err(failure) => failure,
            Ok(_) => panic!("{to} was taken"),
        };
        assert!(failure.text().contains(reason), "{to}: {failure:?}");
        assert!(bench.transit.store.key("restored").unwrap().is_none());
        restore(&bench, &backup).await.unwrap();
    }
}

#[tokio::test]
async fn a_public_half_alone_must_be_sound_too() {
    let key = Rsa::generate(2048).unwrap();
    let entry = |e: u32| format!("{{\"rsa_public_key\":{{\"N\":{},\"E\":{e}}}}}", key.n().to_dec_str().unwrap());
    for (e, sound) in [(1, false), (2, false), (65537, true)] {
        let text = entry(e);
        let entry: blob::Entry<'_> = serde_json::from_str(&text).unwrap();
        assert_eq!(entry.given(alg::KeyType::Rsa2048, false, 0, 0).is_ok(), sound, "{e}");
    }
}

/// An RSA key of 2041 bits has the bytes of one of 2048.
#[tokio::test]
async fn an_rsa_key_of_fewer_bits_than_its_type_is_refused_wherever_it_comes_in() {
    let bench = Bench::new().await;
    let wrapping = data(bench.call(Operation::Read, "wrapping_key", json!({})).await.unwrap());
    let wrapping = PKey::public_key_from_pem(wrapping["public_key"].as_str().unwrap().as_bytes()).unwrap();
    let whole = backup_of(&bench, json!({ "type": "rsa-2048" })).await;
    for (bits, taken) in [(2041, false), (2047, false), (2048, true)] {
        let key = Rsa::generate(bits).unwrap();
        let (private, public) = (PKey::from_rsa(key.clone()).unwrap(), key.public_key_to_pem().unwrap());
        let ciphertext = wrapped_by(&wrapping, &private.private_key_to_pkcs8().unwrap());
        // A backup of the same layout with the numbers of this key.
        let number = |number: &openssl::bn::BigNumRef| number.to_dec_str().unwrap().to_string();
        let (p, q) = (number(key.p().unwrap()), number(key.q().unwrap()));
        let numbers = format!(
            "\"rsa_key\":{{\"N\":{},\"E\":{},\"D\":{},\"Primes\":[{p},{q}]}},\"rest\":{{",
            number(key.n()),
            number(key.e()),
            number(key.d())
        );
        let backup = whole.replace("\"rsa_key\":{", &numbers);
        let public = String::from_utf8(public).unwrap();
        let of_public = format!("{{\"rsa_public_key\":{{\"N\":{},\"E\":{}}}}}", number(key.n()), number(key.e()));
        let of_public: blob::Entry<'_> = serde_json::from_str(&of_public).unwrap();
        let answers = [
            bench.call(Operation::Update, "keys/private/import", json!({ "type": "rsa-2048", "ciphertext": ciphertext })).await,
            bench.call(Operation::Update, "keys/public/import", json!({ "type": "rsa-2048", "public_key": public })).await,
            restore(&bench, &backup).await,
            of_public
                .given(alg::KeyType::Rsa2048, false, 0, 0)
                .map(|_| Reply::empty())
                .map_err(|error| Failure::invalid(error.to_string())),
        ];
        for (place, answer) in answers.into_iter().enumerate() {
            match answer {
                Ok(_) => assert!(taken, "{bits} bits were taken at {place}"),
                Err(failure) => {
                    let said = format!("expected 2048 bits, got {bits} bits");
                    assert!(!taken && failure.text().contains(&said), "{bits} bits at {place}: {failure:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn certificates_of_the_key_itself_come_back() {
    let bench = Bench::new().await;
    let backup = backup_of(&bench, json!({ "type": "ecdsa-p256" })).await;
    let key = bench.transit.store.key("k").unwrap().unwrap();
    let material =
        bench.transit.bring_all_out(&key, &[&key.record.versions[0]], &Default::default()).await.unwrap().remove(0).material;
    let own = certificate(material.key.expose());
    let backup = backup.replace("\"certificate_chain\":null", &format!("\"certificate_chain\":[\"{own}\"]"));
    restore(&bench, &backup).await.unwrap();
    let restored = bench.transit.store.key("restored").unwrap().unwrap();
    assert_eq!(restored.record.versions[0].certificate_chain, [own]);
}

#[tokio::test]
async fn a_backup_of_many_versions_holds_nobody_up_and_one_of_too_many_is_refused() {
    const VERSIONS: u32 = 300;
    let bench = Bench::new().await;
    let one = backup_of(&bench, json!({ "type": "ecdsa-p521" })).await;
    // As text: the numbers of a key have more digits than a JSON value keeps.
    let (before, rest) = one.split_once("\"keys\":{\"1\":").unwrap();
    let (entry, after) = rest.split_once("},").unwrap();
    let keys: Vec<String> = (1..=VERSIONS).map(|version| format!("\"{version}\":{entry}")).collect();
    let of = |latest: u32| {
        format!("{before}\"keys\":{{{}}},{after}", keys.join(","))
            .replace("\"latest_version\":1", &format!("\"latest_version\":{latest}"))
    };
    // Reading the keys takes half a second; others have this one thread for that time.
    let (text, mut turns) = (of(VERSIONS), 0);
    {
        let mut restored = std::pin::pin!(restore(&bench, &text));
        while futures_util::poll!(&mut restored).map(|done| done.unwrap()).is_pending() {
            tokio::time::sleep(Duration::from_millis(1)).await;
            turns += 1;
        }
    }
    assert!(turns > 20, "others had {turns} turns");
    let key = bench.transit.store.key("restored").unwrap().unwrap();
    assert_eq!((key.record.latest_version, key.record.versions.len()), (VERSIONS, 300));
    for (what, path) in [("backup", "backup/restored"), ("export", "export/signing-key/restored")] {
        let answer = data(bench.call(Operation::Read, path, json!({})).await.unwrap());
        let held = match what {
            "export" => answer["keys"].as_object().unwrap().len(),
            _ => {
                let text = b64::decode(answer["backup"].as_str().unwrap()).unwrap();
                serde_json::from_slice::<Value>(&text).unwrap()["policy"]["keys"].as_object().unwrap().len()
            }
        };
        assert_eq!(held, 300, "{what}");
    }
    let refused = restore(&bench, &of(50_001)).await.unwrap_err();
    assert!(refused.text().contains("latest version of 50001 is out of range"), "{}", refused.text());
}

/// What is reserved for the first version of a key.
fn reserved(bench: &Bench, name: &str) -> u64 {
    let key = bench.transit.store.key(name).unwrap().unwrap();
    usage::stored(&bench.transit.store.view, key.record.uid, 1).unwrap().0
}

async fn force(bench: &Bench, name: &str, backup: &str) {
    let body = json!({ "backup": b64::encode(backup.as_bytes()), "force": true });
    bench.call(Operation::Update, &format!("restore/{name}"), body).await.unwrap();
}

#[tokio::test]
async fn the_count_of_encryptions_goes_with_a_backup_and_is_never_less_after_a_restore() {
    const USED: u64 = usage::WARN + 5;
    for level in ["software", "hsm"] {
        let bench = Bench::with(Some(FakeHsm::new()), &[]).await;
        let fresh = backup_of(&bench, json!({ "protection_level": level })).await;
        assert!(fresh.contains("\"sos_encryptions\":65536"), "what is reserved may have been used");
        let uid = bench.transit.store.key("k").unwrap().unwrap().record.uid;
        let record = record::UsageRecord { format: record::FORMAT, reserved: USED };
        let txn = Txn::new().put_secret(record::usage_path(uid, 1), record::encode(&record).unwrap());
        bench.transit.store.view.commit(txn).await.unwrap();
        let answer = data(bench.call(Operation::Read, "backup/k", json!({})).await.unwrap());
        let backup = String::from_utf8(b64::decode(answer["backup"].as_str().unwrap()).unwrap()).unwrap();
        // As another server writes it.
        let foreign = backup.replace(&format!(",\"sos_encryptions\":{USED}"), "");
        assert!(!foreign.contains("sos_"));
        let restore = async |name: &str, backup: &str| {
            let body = json!({ "backup": b64::encode(backup.as_bytes()), "protection_level": level });
            bench.call(Operation::Update, &format!("restore/{name}"), body).await.unwrap();
        };
        restore("copy", &backup).await;
        assert_eq!(reserved(&bench, "copy"), USED, "{level}");
        let reply = bench.call(Operation::Update, "encrypt/copy", json!({ "plaintext": "" })).await.unwrap();
        assert!(reply.warnings[0].contains("near its limit"), "{:?}", reply.warnings);
        restore("foreign", &foreign).await;
        assert_eq!(reserved(&bench, "foreign"), usage::BLOCK);
        // Over the key itself, older backups and those without a count take nothing away.
        for older in [&foreign, &fresh] {
            force(&bench, "k", older).await;
            assert_eq!(reserved(&bench, "k"), USED, "{level}");
        }
        // Over another key its count is nobody's.
        bench.post("keys/k2", json!({ "protection_level": level, "exportable": true, "allow_plaintext_backup": true })).await;
        let answer = data(bench.call(Operation::Read, "backup/k2", json!({})).await.unwrap());
        let other = String::from_utf8(b64::decode(answer["backup"].as_str().unwrap()).unwrap()).unwrap();
        force(&bench, "k", &other).await;
        assert_eq!(reserved(&bench, "k"), usage::BLOCK);
    }
}

#[tokio::test]
async fn versions_are_wrapped_two_at_a_time_beside_what_others_make() {
    const VERSIONS: usize = 20;
    let hsm = FakeHsm::new();
    let bench = Arc::new(Bench::with(Some(Arc::clone(&hsm)), &[]).await);
    backup_of(&bench, json!({ "protection_level": "software" })).await;
    for _ in 1..VERSIONS {
        bench.post("keys/k/rotate", json!({})).await;
    }
    let answer = data(bench.call(Operation::Read, "backup/k", json!({})).await.unwrap());
    let restore = ("restore/restored", json!({ "backup": answer["backup"], "protection_level": "hsm" }));
    let raise = ("keys/k/config", json!({ "protection_level": "hsm" }));
    for (path, body) in [restore, raise] {
        let (barrier, before) = (hsm.hold_next(), hsm.calls());
        let request = tokio::spawn({
            let bench = Arc::clone(&bench);
            async move { bench.call(Operation::Update, path, body).await.map(|_| ()) }
        });
        barrier.wait().await;
        // One of them is not answered, and yet the HSM is asked about another; who makes a key waits for neither.
        let another = async {
            while hsm.calls() - before < 3 {
                tokio::task::yield_now().await;
            }
            bench.post(&format!("keys/beside-{before}"), json!({ "protection_level": "hsm" })).await;
        };
        tokio::time::timeout(Duration::from_secs(20), another).await.unwrap();
        assert!(hsm.calls() - before < VERSIONS, "no more than two");
        barrier.wait().await;
        request.await.unwrap().unwrap();
    }
    for name in ["restored", "k"] {
        let key = bench.transit.store.key(name).unwrap().unwrap();
        let versions: Vec<u32> = key.record.versions.iter().map(|line| line.version).collect();
        assert_eq!(versions, (1..=20).collect::<Vec<_>>());
        assert!(key.record.versions.iter().all(|line| line.level == Level::Hsm && line.moved_into_hsm.is_some()));
        let text = bench.encrypt(name, "x").await;
        assert_eq!(bench.decrypt(if name == "k" { "restored" } else { "k" }, &text).await.unwrap(), "x");
    }
}

#[tokio::test]
async fn a_count_of_encryptions_beyond_all_bounds_is_a_version_that_is_used_up() {
    let bench = Bench::with(Some(FakeHsm::new()), &[]).await;
    let backup = backup_of(&bench, json!({ "protection_level": "software" })).await;
    for count in [u64::MAX, usage::LIMIT] {
        let used_up = backup.replace("\"sos_encryptions\":65536", &format!("\"sos_encryptions\":{count}"));
        restore(&bench, &used_up).await.unwrap();
        for _ in 0..3 {
            let failure = bench.call(Operation::Update, "encrypt/restored", json!({ "plaintext": "" })).await.unwrap_err();
            assert!(failure.text().contains("rotate"), "{failure}");
        }
        bench.post("keys/restored/config", json!({ "deletion_allowed": true })).await;
        bench.call(Operation::Delete, "keys/restored", json!({})).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_backup_is_told_without_what_it_holds() {
    const SECRET: &str = "7In6P8aIMXzQ";
    let bench = Bench::with(Some(FakeHsm::new()), &[]).await;
    let backup = backup_of(&bench, json!({ "protection_level": "software" })).await;
    let misplaced = backup.replacen("\"type\":0", &format!("\"type\":\"{SECRET}\""), 1);
    assert_ne!(misplaced, backup);
    for broken in [misplaced, format!("\"{SECRET}\""), format!("{{\"{SECRET}\""), backup[..backup.len() / 2].to_owned()] {
        let failure = restore(&bench, &broken).await.unwrap_err();
        assert!(failure.text().contains("column") && !failure.explained().contains(SECRET), "{}", failure.explained());
    }
}
