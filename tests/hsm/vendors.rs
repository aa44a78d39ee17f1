//! The same code on other modules: Kryoptic, a strict one that must work, and NSS, a careless one that must be refused.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use sos::hsm::{
    Client, DownReason, Hsm, HsmConfig, HsmError, KeyId, KeyKind, KeySource, Mechanism, PinSource, SignScheme, Status,
};
use sos::secret::{SecretBytes, SecretString};

use crate::support::{back, item, left_out, memory, module_path, ready, status};

/// A Kryoptic token that lives as long as this.
pub struct Kryoptic {
    pub folder: tempfile::TempDir,
    pub module: PathBuf,
}

impl Kryoptic {
    /// A fresh token labelled `sos-test` that does not do the `denied` mechanisms, as its configuration writes them.
    pub fn new(denied: &str) -> Option<Self> {
        let module = module_path("SOS_TEST_KRYOPTIC", "libsos_kryoptic.so");
        if !module.exists() {
            left_out("Kryoptic is not built (softhsm/build-modules)");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("softhsm/kryoptic/make-token");
        let made = Command::new(script).arg(folder.path()).arg(&module).arg("sos-test").output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        if !denied.is_empty() {
            let conf = folder.path().join("token.conf");
            let text = fs::read_to_string(&conf).unwrap();
            fs::write(&conf, format!("{text}mechanisms = [\"DENY\", {denied}]\n")).unwrap();
        }
        Some(Self { folder, module })
    }

    pub fn config(&self) -> HsmConfig {
        let mut config = HsmConfig::new(&self.module, PinSource::File(self.folder.path().join("pin")));
        config.token_label = Some("sos-test".into());
        config.worker = Some(env!("CARGO_BIN_EXE_sos").into());
        config.environment = vec![("KRYOPTIC_CONF".into(), self.folder.path().join("token.conf").display().to_string())];
        config
    }
}

async fn seal_round_trip(hsm: &Client, mechanism: Mechanism) {
    let id = KeyId::random();
    hsm.create_seal_key("sos/test/seal/root/v1", id).await.unwrap();
    for len in [0, 32, 4096] {
        let secret = SecretBytes::random(len);
        let sealed = hsm.seal(id, &secret, b"aad").await.unwrap();
        assert_eq!(sealed.mechanism, mechanism);
        assert!(hsm.unseal(&sealed, b"aad").await.unwrap().same_as(secret.expose()));
        assert!(matches!(hsm.unseal(&sealed, b"other").await, Err(HsmError::BadInput(_))));
        for place in [0, sealed.blob.len() / 2, sealed.blob.len() - 1] {
            let mut spoilt = sealed.clone();
            spoilt.blob[place] ^= 1;
            let result = hsm.unseal(&spoilt, b"aad").await;
            assert!(matches!(result, Err(HsmError::BadInput(_))), "{mechanism:?} at {place}: {result:?}");
        }
    }
}

#[tokio::test]
async fn kryoptic_holds_every_kind_that_it_claims() {
    let Some(token) = Kryoptic::new("") else { return };
    let hsm = ready(token.config()).await;
    let facts = hsm.ready().await.unwrap();
    for support in &facts.support {
        eprintln!("{support:?}");
    }
    seal_round_trip(&hsm, Mechanism::AesGcm).await;
    let master = KeyId::random();
    hsm.create_master_key("sos/test/zone/default/v0", KeyId::random(), &[]).await.unwrap();
    // With an escrow recipient the key is made extractable first and has to end as one that is not.
    let escrow = openssl::rsa::Rsa::generate(2048).unwrap();
    let made = hsm.create_master_key("sos/test/zone/default/v1", master, &[escrow.public_key_to_der().unwrap()]).await.unwrap();
    assert_eq!(hsm.master_key_check_value(master).await.unwrap(), made.check_value);
    let mut material = vec![0; 256];
    let len = escrow.private_decrypt(&made.exported[0].1, &mut material, openssl::rsa::Padding::PKCS1_OAEP).unwrap();
    assert_eq!(len, 32);
    let listed = Command::new("pkcs11-tool")
        .env("KRYOPTIC_CONF", token.folder.path().join("token.conf"))
        .args(["--module", token.module.to_str().unwrap(), "--login", "--list-objects", "--type", "secrkey", "--pin"])
        .arg(fs::read_to_string(token.folder.path().join("pin")).unwrap().trim())
        .output()
        .unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("zone/default/v1") && !listed.replace("never extractable", "").contains("extractable"), "{listed}");
    for support in facts.support.iter().filter(|support| support.wrapped) {
        let key = hsm.generate_wrapped(master, support.kind).await.unwrap().wrapped.unwrap();
        match support.kind {
            KeyKind::Aes128 | KeyKind::Aes256 => {
                let one = item(b"text", b"aad");
                let iv = one.iv;
                let sealed = hsm.encrypt(KeySource::Wrapped(&key), vec![one]).await.unwrap();
                let both = vec![back(&sealed[0], iv, b"aad"), back(&sealed[0], iv, b"bad")];
                let opened = hsm.decrypt(KeySource::Wrapped(&key), both).await.unwrap();
                assert!(opened[0].as_ref().unwrap().same_as(b"text"));
                assert!(matches!(opened[1], Err(HsmError::BadInput(_))));
            }
            KeyKind::Rsa2048 | KeyKind::Rsa3072 | KeyKind::Rsa4096 => {
                let block = vec![3; [256, 384, 512][support.kind as usize - KeyKind::Rsa2048 as usize]];
                assert_eq!(hsm.sign(KeySource::Wrapped(&key), SignScheme::RsaRaw, &block).await.unwrap().len(), block.len());
                assert_eq!(hsm.rsa_decrypt(KeySource::Wrapped(&key), &block).await.unwrap().len(), block.len());
            }
            _ => {
                hsm.sign(KeySource::Wrapped(&key), SignScheme::Ecdsa, &[3; 32]).await.unwrap();
            }
        }
        let material = hsm.unwrap_material(&key).await.unwrap();
        let again = hsm.wrap_material(master, support.kind, &material).await.unwrap();
        assert!(hsm.unwrap_material(&again).await.unwrap().same_as(material.expose()));
    }
    assert!(facts.support.iter().any(|support| support.kind == KeyKind::Aes256 && support.wrapped));
}

#[tokio::test]
async fn without_gcm_the_seal_falls_back() {
    let Some(token) = Kryoptic::new("\"CKM_AES_GCM\"") else { return };
    let hsm = ready(token.config()).await;
    assert!(!hsm.ready().await.unwrap().support[0].wrapped, "AES Transit keys need GCM");
    seal_round_trip(&hsm, Mechanism::RsaOaepSha1).await;
    drop(hsm);
    let mut config = token.config();
    config.seal_mechanism = Some(Mechanism::AesCbcHmac);
    let hsm = ready(config).await;
    seal_round_trip(&hsm, Mechanism::AesCbcHmac).await;
}

#[tokio::test]
async fn a_pin_that_could_lock_the_token_is_not_tried() {
    let Some(token) = Kryoptic::new("") else { return };
    let pin = token.folder.path().join("pin");
    let right = fs::read_to_string(&pin).unwrap();
    let mut reasons = Vec::new();
    for attempt in 0..12 {
        fs::write(&pin, format!("wrong-pin-{attempt}\n")).unwrap();
        let hsm = Client::start(token.config(), memory());
        if let Status::Down { reason, .. } = status(&hsm, |status| matches!(status, Status::Down { .. })).await {
            reasons.push(reason);
        }
    }
    assert_eq!(reasons[0], DownReason::PinRefused);
    assert_eq!(reasons.last(), Some(&DownReason::PinLocked), "{reasons:?}");
    // The token was left one try before its end: the right PIN, given by hand, still opens it.
    fs::write(&pin, &right).unwrap();
    let tool = Command::new("pkcs11-tool")
        .env("KRYOPTIC_CONF", token.folder.path().join("token.conf"))
        .arg("--module")
        .arg(&token.module)
        .args(["--login", "--pin", right.trim(), "--list-objects"])
        .output()
        .unwrap();
    assert!(tool.status.success(), "{}", String::from_utf8_lossy(&tool.stderr));
    ready(token.config()).await;
}

/// NSS's soft token, with the folder that it lives in.
pub fn nss() -> Option<(tempfile::TempDir, HsmConfig)> {
    let module = PathBuf::from("/usr/lib/x86_64-linux-gnu/libsoftokn3.so");
    if !module.exists() || Command::new("certutil").arg("-H").output().is_err() {
        left_out("NSS softoken or certutil is not installed (libnss3, libnss3-tools)");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let (database, pin) = (folder.path().join("db"), folder.path().join("pin"));
    fs::create_dir(&database).unwrap();
    fs::write(&pin, "123456\n").unwrap();
    fs::set_permissions(&pin, fs::Permissions::from_mode(0o600)).unwrap();
    let place = format!("sql:{}", database.display());
    let made = Command::new("certutil").args(["-N", "-d", &place, "-f"]).arg(&pin).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut config = HsmConfig::new(module, PinSource::Value(SecretString::new("123456".into())));
    config.token_label = Some("NSS Certificate DB".into());
    config.worker = Some(env!("CARGO_BIN_EXE_sos").into());
    config.reserved = Some(format!("configdir='{place}' certPrefix='' keyPrefix='' secmod='secmod.db' flags=''"));
    Some((folder, config))
}

#[tokio::test]
async fn nss_is_refused() {
    let Some((_folder, config)) = nss() else { return };
    let hsm = Client::start(config, memory());
    let down = status(&hsm, |status| matches!(status, Status::Down { .. } | Status::Ready(_))).await;
    let Status::Down { reason, detail } = down else { panic!("NSS was accepted") };
    assert_eq!(reason, DownReason::PostureRefused, "{detail}");
    eprintln!("{detail}");
}
