//! Every operation once, on a healthy token.

use sos::hsm::{Hsm, HsmError, KeyId, KeyKind, KeySource, Mechanism, SignScheme};
use sos::secret::SecretBytes;

use crate::support::{Token, back, item};

#[tokio::test]
async fn a_secret_is_sealed_and_opened_by_another_process() {
    let Some(token) = Token::softhsm() else { return };
    let first = token.client().await;
    let id = KeyId::random();
    first.create_seal_key("sos/test/seal/root/v1", id).await.unwrap();
    assert!(matches!(first.create_seal_key("sos/test/seal/root/v1", id).await, Err(HsmError::KeyExists(_))));
    let root = SecretBytes::random(32);
    let sealed = first.seal(id, &root, b"aad").await.unwrap();
    assert_eq!(sealed.mechanism, Mechanism::AesGcm);
    drop(first);

    let second = token.client().await;
    assert!(second.unseal(&sealed, b"aad").await.unwrap().same_as(root.expose()));
    assert!(matches!(second.unseal(&sealed, b"other").await, Err(HsmError::BadInput(_))));
    let mut spoilt = sealed.clone();
    spoilt.blob[20] ^= 1;
    assert!(matches!(second.unseal(&spoilt, b"aad").await, Err(HsmError::BadInput(_))));
    let mut missing = sealed.clone();
    missing.key = KeyId::random();
    assert!(matches!(second.unseal(&missing, b"aad").await, Err(HsmError::KeyMissing(_))));

    let found = second.find("sos/test/").await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].id, Some(id));
    second.destroy(id).await.unwrap();
    second.destroy(id).await.unwrap();
    assert!(second.find("sos/test/").await.unwrap().is_empty());
}

#[tokio::test]
async fn wrapped_keys_work_move_and_match_their_material() {
    let Some(token) = Token::softhsm() else { return };
    let hsm = token.client().await;
    let (old, new) = (KeyId::random(), KeyId::random());
    let made = hsm.create_master_key("sos/test/zone/default/v1", old, &[]).await.unwrap();
    assert_eq!(hsm.master_key_check_value(old).await.unwrap(), made.check_value);
    hsm.create_master_key("sos/test/zone/default/v2", new, &[]).await.unwrap();
    assert_ne!(hsm.master_key_check_value(new).await.unwrap(), made.check_value);

    for kind in [KeyKind::Aes128, KeyKind::Aes256] {
        let key = hsm.generate_wrapped(old, kind).await.unwrap().wrapped.unwrap();
        let batch = vec![item(b"one", b"a"), item(b"", b""), item(&[7; 100_000], b"c")];
        let ivs: Vec<_> = batch.iter().map(|item| item.iv).collect();
        let sealed = hsm.encrypt(KeySource::Wrapped(&key), batch).await.unwrap();
        let moved = hsm.rewrap(&key, new).await.unwrap();
        assert_eq!(moved.wrapped_by, new);
        let batch = vec![
            back(&sealed[0], ivs[0], b"a"),
            back(&sealed[1], ivs[1], b""),
            back(&sealed[2], ivs[2], b"wrong"),
            back(b"short", ivs[2], b""),
        ];
        let opened = hsm.decrypt(KeySource::Wrapped(&moved), batch).await.unwrap();
        assert!(opened[0].as_ref().unwrap().same_as(b"one"));
        assert!(opened[1].as_ref().unwrap().is_empty());
        assert!(matches!(opened[2], Err(HsmError::BadInput(_))));
        assert!(matches!(opened[3], Err(HsmError::BadInput(_))));

        let material = hsm.unwrap_material(&key).await.unwrap();
        assert!(hsm.unwrap_material(&moved).await.unwrap().same_as(material.expose()));
        let again = hsm.wrap_material(new, kind, &material).await.unwrap();
        let opened = hsm.decrypt(KeySource::Wrapped(&again), vec![back(&sealed[0], ivs[0], b"a")]).await.unwrap();
        assert!(opened[0].as_ref().unwrap().same_as(b"one"));
        let mut spoilt = key.clone();
        spoilt.id = KeyId::random();
        spoilt.blob[3] ^= 1;
        assert!(matches!(hsm.unwrap_material(&spoilt).await, Err(HsmError::BadInput(_))));
        assert!(matches!(hsm.encrypt(KeySource::Wrapped(&spoilt), vec![item(b"x", b"")]).await, Err(HsmError::BadInput(_))));
    }
}

#[tokio::test]
async fn token_keys_encrypt_and_sign() {
    let Some(token) = Token::softhsm() else { return };
    let hsm = token.client().await;
    let id = KeyId::random();
    hsm.generate_on_token("sos/test/transit/disk/v1", id, KeyKind::Aes256).await.unwrap();
    let one = item(b"text", b"aad");
    let iv = one.iv;
    let sealed = hsm.encrypt(KeySource::Token(id), vec![one]).await.unwrap();
    let opened = hsm.decrypt(KeySource::Token(id), vec![back(&sealed[0], iv, b"aad")]).await.unwrap();
    assert!(opened[0].as_ref().unwrap().same_as(b"text"));
    for (kind, scheme, input, len) in [
        (KeyKind::EcP256, SignScheme::Ecdsa, vec![3; 32], 64),
        (KeyKind::EcP384, SignScheme::Ecdsa, vec![3; 48], 96),
        (KeyKind::EcP521, SignScheme::Ecdsa, vec![3; 64], 132),
        (KeyKind::Ed25519, SignScheme::Eddsa, b"message".to_vec(), 64),
    ] {
        let id = KeyId::random();
        let key = hsm.generate_on_token("sos/test/transit/sign/v1", id, kind).await.unwrap();
        assert!(key.public_key.is_some());
        assert_eq!(hsm.sign(KeySource::Token(id), scheme, &input).await.unwrap().len(), len);
    }
}

#[tokio::test]
async fn the_self_test_says_what_the_module_can_do() {
    let Some(token) = Token::softhsm() else { return };
    let hsm = token.client().await;
    let facts = hsm.ready().await.unwrap();
    assert_eq!(facts.label, "sos-test");
    for support in &facts.support {
        eprintln!("{support:?}");
    }
    let can = |kind| facts.support.iter().find(|support| support.kind == kind).unwrap();
    for kind in [KeyKind::Aes128, KeyKind::Aes256, KeyKind::EcP256, KeyKind::EcP384, KeyKind::EcP521] {
        assert!(can(kind).wrapped && can(kind).token, "{:?}", can(kind));
    }
    assert!(can(KeyKind::Ed25519).token && !can(KeyKind::Ed25519).wrapped);
    for kind in [KeyKind::Rsa2048, KeyKind::Rsa3072, KeyKind::Rsa4096] {
        assert!(can(kind).wrapped && can(kind).token, "{:?}", can(kind));
    }
}

#[tokio::test]
async fn a_master_key_opens_what_its_escrowed_copy_was_made_for() {
    let Some(token) = Token::softhsm() else { return };
    let Some(other) = Token::softhsm() else { return };
    let (hsm, elsewhere) = (token.client().await, other.client().await);
    let escrow = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa3072).unwrap();
    let spki = {
        use aws_lc_rs::encoding::AsDer;
        let der: aws_lc_rs::encoding::PublicKeyX509Der<'_> = aws_lc_rs::signature::KeyPair::public_key(&escrow).as_der().unwrap();
        der.as_ref().to_vec()
    };
    let id = KeyId::random();
    let made = hsm.create_master_key("sos/test/zone/tk1a/v1", id, &[spki]).await.unwrap();
    let key = hsm.generate_wrapped(id, KeyKind::Aes256).await.unwrap().wrapped.unwrap();
    let one = item(b"data key", b"");
    let iv = one.iv;
    let sealed = hsm.encrypt(KeySource::Wrapped(&key), vec![one]).await.unwrap();

    use aws_lc_rs::encoding::AsDer;
    let private: aws_lc_rs::encoding::Pkcs8V1Der<'_> = escrow.as_der().unwrap();
    let private = aws_lc_rs::rsa::PrivateDecryptingKey::from_pkcs8(private.as_ref()).unwrap();
    let private = aws_lc_rs::rsa::OaepPrivateDecryptingKey::new(private).unwrap();
    let (mechanism, blob) = &made.exported[0];
    assert_eq!(*mechanism, Mechanism::RsaOaepSha1);
    let mut buffer = vec![0; private.min_output_size()];
    let material = private.decrypt(&aws_lc_rs::rsa::OAEP_SHA1_MGF1SHA1, blob, &mut buffer, None).unwrap();
    let material = SecretBytes::new(material.to_vec());

    let value = elsewhere.import_master_key("sos/test/zone/tk1a/v1", id, &material).await.unwrap();
    assert_eq!(value, made.check_value);
    let opened = elsewhere.decrypt(KeySource::Wrapped(&key), vec![back(&sealed[0], iv, b"")]).await.unwrap();
    assert!(opened[0].as_ref().unwrap().same_as(b"data key"));
}

#[tokio::test]
async fn wrapped_signature_keys_sign_and_verify() {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, UnparsedPublicKey};
    let Some(token) = Token::softhsm() else { return };
    let hsm = token.client().await;
    let master = KeyId::random();
    hsm.create_master_key("sos/test/zone/default/v1", master, &[]).await.unwrap();
    let made = hsm.generate_wrapped(master, KeyKind::EcP256).await.unwrap();
    let (key, spki) = (made.wrapped.unwrap(), made.public_key.unwrap());
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"message");
    let verify = |signature: &[u8]| {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &spki[spki.len() - 65..]).verify(b"message", signature)
    };
    let signature = hsm.sign(KeySource::Wrapped(&key), SignScheme::Ecdsa, digest.as_ref()).await.unwrap();
    verify(&signature).unwrap();
    let material = hsm.unwrap_material(&key).await.unwrap();
    // Modules write PKCS#8 without the public key, which some software wants; the length says that it is PKCS#8.
    if let Err(error) = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, material.expose()) {
        eprintln!("the module's PKCS#8 is not to everyone's taste: {error}");
        assert!(material.len() > 32);
    }
    let again = hsm.wrap_material(master, KeyKind::EcP256, &material).await.unwrap();
    verify(&hsm.sign(KeySource::Wrapped(&again), SignScheme::Ecdsa, digest.as_ref()).await.unwrap()).unwrap();
}

#[tokio::test]
async fn a_small_key_cache_evicts_and_loads_again() {
    let Some(token) = Token::softhsm() else { return };
    let mut config = token.config();
    config.key_cache = 4;
    let hsm = crate::support::ready(config).await;
    let master = KeyId::random();
    hsm.create_master_key("sos/test/zone/default/v1", master, &[]).await.unwrap();
    let mut keys = Vec::new();
    for _ in 0..16 {
        keys.push(hsm.generate_wrapped(master, KeyKind::Aes256).await.unwrap().wrapped.unwrap());
    }
    let tasks: Vec<_> = (0..200)
        .map(|index| {
            let (hsm, key) = (hsm.clone(), keys[index % keys.len()].clone());
            tokio::spawn(async move {
                let one = item(b"text", b"");
                let iv = one.iv;
                let sealed = hsm.encrypt(KeySource::Wrapped(&key), vec![one]).await.unwrap();
                let opened = hsm.decrypt(KeySource::Wrapped(&key), vec![back(&sealed[0], iv, b"")]).await.unwrap();
                assert!(opened[0].as_ref().unwrap().same_as(b"text"));
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn the_doctor_reports_a_healthy_token_and_a_missing_one() {
    let Some(token) = Token::softhsm() else { return };
    let report = sos::hsm::doctor::run(token.config(), crate::support::memory()).await;
    assert!(report.usable(), "{report}");
    let text = report.to_string();
    for word in ["sos-test", "CKM_AES_GCM", "AesGcm", "Aes256", "/s for 32 bytes"] {
        assert!(text.contains(word), "{word} is not in {text}");
    }
    let mut config = token.config();
    config.token_label = Some("another".into());
    let report = sos::hsm::doctor::run(config, crate::support::memory()).await;
    assert!(!report.usable());
    assert!(report.to_string().contains("set token_label"), "{report}");
}

/// Finding primes takes long; loading keys, searching and encrypting go on meanwhile.
#[tokio::test]
async fn the_generation_of_rsa_keys_holds_up_nothing_else() {
    let Some(token) = Token::softhsm() else { return };
    let hsm = token.client().await;
    let master = KeyId::random();
    hsm.create_master_key("sos/test/zone/default/v1", master, &[]).await.unwrap();
    let generations: Vec<_> = (0..4)
        .map(|_| {
            let hsm = hsm.clone();
            tokio::spawn(async move { hsm.generate_wrapped(master, KeyKind::Rsa4096).await.unwrap() })
        })
        .collect();
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
    for _ in 0..5 {
        let key = hsm.generate_wrapped(master, KeyKind::Aes256).await.unwrap().wrapped.unwrap();
        hsm.encrypt(KeySource::Wrapped(&key), vec![item(b"text", b"")]).await.unwrap();
        assert_eq!(hsm.find("sos/test/").await.unwrap().len(), 1);
    }
    assert!(!generations.iter().all(|generation| generation.is_finished()), "the small calls had to wait for the long ones");
    for generation in generations {
        let made = generation.await.unwrap();
        let block = vec![3; 512];
        assert_eq!(hsm.rsa_decrypt(KeySource::Wrapped(&made.wrapped.unwrap()), &block).await.unwrap().len(), 512);
    }
}

/// What finds no primes within its own deadline is given up, not the worker's other calls.
#[tokio::test]
async fn rsa_keys_have_a_deadline_of_their_own() {
    let Some(token) = Token::softhsm() else { return };
    let mut config = token.config();
    config.deadline = std::time::Duration::from_secs(1);
    let hsm = crate::support::ready(config).await;
    let master = KeyId::random();
    hsm.create_master_key("sos/test/zone/default/v1", master, &[]).await.unwrap();
    let generations = (0..3).map(|_| hsm.generate_wrapped(master, KeyKind::Rsa4096));
    for made in futures_util::future::join_all(generations).await {
        made.unwrap();
    }
}
