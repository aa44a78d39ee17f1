//! What each module can hold: docs/hsm/modules.md against what the self-test says now, and modules that lack mechanisms.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sos::engines::transit::alg::KeyType;
use sos::engines::transit::holdings::{Answer, Holdings, Row, Use, page};
use sos::engines::transit::{Level, Protection};
use sos::hsm::HsmConfig;

use crate::faults::Faulty;
use crate::support::{Token, memory};
use crate::vendors::{Kryoptic, nss};

/// The page begins so; a part for each module follows.
const HEAD: &str = "\
# What each HSM module can hold

Written by `scripts/hsm-table` from the modules' self-tests, not by hand: `sos hsm doctor -config=FILE -format=markdown`
prints the same for the HSM of a configuration. Each cell is what a request gets, and each reason is the text of its
refusal. \"default\" marks the level of a key whose request, mount and configuration name none. An empty cell is a use that
the type does not have. [transit-protection.md](../transit-protection.md) says what the levels mean.

HMACs are computed in the server at every level, under an HMAC key that is never an HSM object; what needs a public key alone
(encrypting and verifying with RSA, verifying EC signatures) runs in the server as well.
";

const NSS: &str = "NSS softoken";

/// What `sos hsm doctor` prints for a configuration with one seal.
fn doctor(folder: &Path, module: &Path, environment: (&str, PathBuf)) -> String {
    let stanza = format!(
        "storage \"inmem\" {{}}\nlistener \"tcp\" {{ address = \"127.0.0.1:0\" tls_disable = true }}\nseal \"pkcs11\" {{ \
         lib = \"{}\" token_label = \"sos-test\" pin_file = \"{}\" key_label = \"test\" }}\n",
        module.display(),
        folder.join("pin").display()
    );
    let file = folder.join("sos.hcl");
    fs::write(&file, stanza).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sos"));
    command.env(environment.0, environment.1).args(["hsm", "doctor", "-format=markdown"]);
    let done = command.arg(format!("-config={}", file.display())).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// The parts of the modules that are installed, by title.
async fn parts() -> Vec<(&'static str, String)> {
    let mut parts = Vec::new();
    if let Some(token) = Token::softhsm() {
        let conf = token.folder.path().join("softhsm2.conf");
        parts.push(("SoftHSM", doctor(token.folder.path(), &token.module, ("SOFTHSM2_CONF", conf))));
    }
    if let Some(token) = Kryoptic::new("") {
        let conf = token.folder.path().join("token.conf");
        parts.push(("Kryoptic", doctor(token.folder.path(), &token.module, ("KRYOPTIC_CONF", conf))));
    }
    // It wants a string at C_Initialize that a seal stanza cannot give, and so is no HSM of any configuration.
    if let Some((_folder, config)) = nss() {
        let report = sos::hsm::doctor::run(config, memory()).await;
        parts.push((NSS, format!("## {NSS}\n\n{}", page(&report, Level::default()))));
    }
    parts
}

#[tokio::test]
async fn the_page_says_what_the_self_test_says() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/hsm/modules.md");
    let parts = parts().await;
    if std::env::var_os("SOS_WRITE_MODULES").is_some() {
        assert_eq!(parts.len(), 3, "to write the page, all modules must be there");
        let parts: Vec<_> = parts.iter().map(|(_, part)| part.trim_end()).collect();
        fs::write(&file, format!("{HEAD}\n{}\n", parts.join("\n\n"))).unwrap();
        return;
    }
    let written = fs::read_to_string(&file).unwrap();
    let fix = "run scripts/hsm-table and look at what changed";
    assert!(written.starts_with(HEAD), "the head of docs/hsm/modules.md differs: {fix}");
    for (title, part) in parts {
        let begin = written.find(&format!("## {title}\n")).unwrap_or_else(|| panic!("{title} is missing: {fix}"));
        let end = written[begin + 3..].find("\n## ").map_or(written.len(), |end| begin + 3 + end);
        assert_eq!(written[begin..end].trim_end(), part.trim_end(), "{title} in docs/hsm/modules.md: {fix}");
    }
}

/// The table of a module, asked as the doctor does.
async fn holdings(config: HsmConfig) -> Holdings {
    let report = sos::hsm::doctor::run(config, memory()).await;
    let protection = Protection { hsm: Some(report.hsm().unwrap()), ..Protection::default() };
    Holdings::of(&protection).unwrap()
}

fn row(holdings: &Holdings, kind: KeyType, level: Level) -> &Row {
    holdings.rows.iter().find(|row| row.kind == kind && row.level == level).unwrap()
}

/// Checks a row: allowed, or refused for a reason with these words in every use that the type has.
#[track_caller]
fn expect(holdings: &Holdings, kind: KeyType, level: Level, refused: Option<&str>) {
    let row = row(holdings, kind, level);
    match refused {
        None => assert_eq!(row.uses[0], Answer::Yes, "{row:?}"),
        Some(word) => {
            for at in [Use::Make, Use::Encrypt, Use::Sign, Use::Hmac].map(|asked| asked as usize) {
                match &row.uses[at] {
                    Answer::No(reason) => assert!(reason.contains(word), "{reason} does not say {word}"),
                    Answer::Unsuited => {}
                    Answer::Yes => panic!("{row:?}"),
                }
            }
        }
    }
}

/// A SoftHSM that lacks mechanisms.
async fn without(mechanisms: &str) -> Option<Holdings> {
    let faulty = Faulty::new()?;
    let mut config = faulty.config();
    config.environment.push(("SOS_PROXY_HIDE".into(), mechanisms.into()));
    Some(holdings(config).await)
}

#[tokio::test]
async fn without_raw_rsa_no_rsa_key_is_in_the_hsm() {
    let Some(table) = without("0x3").await else { return };
    for kind in [KeyType::Rsa2048, KeyType::Rsa3072, KeyType::Rsa4096] {
        for level in [Level::Hsm, Level::HsmOnly] {
            expect(&table, kind, level, Some("the module has no CKM_RSA_X_509"));
        }
        expect(&table, kind, Level::Software, None);
        assert!(row(&table, kind, Level::Software).default, "the default falls to software");
    }
    for kind in [KeyType::Aes256Gcm96, KeyType::EcdsaP256] {
        expect(&table, kind, Level::Hsm, None);
        assert!(row(&table, kind, Level::Hsm).default);
    }
}

#[tokio::test]
async fn what_is_missing_is_named_type_by_type() {
    // GCM, and the padded key wrap that private keys leave by: SoftHSM's number is 0x210A.
    let Some(table) = without("0x1087,0x210A").await else { return };
    for kind in [KeyType::Aes128Gcm96, KeyType::Aes256Gcm96] {
        for level in [Level::Hsm, Level::HsmOnly] {
            expect(&table, kind, level, Some("the module has no CKM_AES_GCM"));
        }
    }
    for kind in [KeyType::EcdsaP256, KeyType::EcdsaP384, KeyType::EcdsaP521, KeyType::Rsa2048, KeyType::Rsa4096] {
        expect(&table, kind, Level::Hsm, Some("no AES key wrap with padding"));
        expect(&table, kind, Level::HsmOnly, None);
    }
    // ECDSA, EdDSA, and the key wrap that AES keys leave by.
    let Some(table) = without("0x1041,0x1057,0x2109").await else { return };
    for level in [Level::Hsm, Level::HsmOnly] {
        expect(&table, KeyType::EcdsaP384, level, Some("the module has no CKM_ECDSA"));
        expect(&table, KeyType::Ed25519, level, Some("the module has no CKM_EDDSA"));
    }
    expect(&table, KeyType::Aes256Gcm96, Level::Hsm, Some("the module has no CKM_AES_KEY_WRAP"));
    expect(&table, KeyType::Aes256Gcm96, Level::HsmOnly, None);
    expect(&table, KeyType::Rsa2048, Level::Hsm, None);
}

#[tokio::test]
async fn kryoptic_without_gcm_holds_no_aes_key() {
    let Some(token) = Kryoptic::new("\"CKM_AES_GCM\"") else { return };
    let table = holdings(token.config()).await;
    expect(&table, KeyType::Aes256Gcm96, Level::Hsm, Some("the module has no CKM_AES_GCM"));
    expect(&table, KeyType::EcdsaP256, Level::Hsm, None);
}

#[tokio::test]
async fn a_module_that_is_not_there_has_no_table() {
    let Some(token) = Token::softhsm() else { return };
    let mut config = token.config();
    config.lib = "/nonexistent/module.so".into();
    let report = sos::hsm::doctor::run(config, memory()).await;
    let text = page(&report, Level::default());
    assert!(text.starts_with("The HSM cannot be used") && text.contains("hsm-module-missing"), "{text}");
}
