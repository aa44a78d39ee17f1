//! Throw-away tokens, one folder per test, and clients on them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use sos::hsm::{AeadItem, Client, Hsm, HsmConfig, PinMemory, PinSource, Status, VolatilePinMemory};
use sos::secret::SecretBytes;

/// A SoftHSM token that lives as long as this.
pub struct Token {
    pub folder: tempfile::TempDir,
    pub module: PathBuf,
}

/// The module under test: `SOS_TEST_PKCS11` or the Debian default.
pub fn softhsm() -> Option<PathBuf> {
    let module = std::env::var_os("SOS_TEST_PKCS11").map_or("/usr/lib/softhsm/libsofthsm2.so".into(), PathBuf::from);
    if module.exists() {
        return Some(module);
    }
    left_out(&format!("no SoftHSM at {} (install softhsm2 or set SOS_TEST_PKCS11)", module.display()));
    None
}

/// A module that softhsm/build-modules makes, or the one that the variable names.
pub fn module_path(variable: &str, name: &str) -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("softhsm/target/debug").join(name);
    std::env::var_os(variable).map_or(built, PathBuf::from)
}

/// Says that a test did not run, past the test harness's capture.
pub fn left_out(why: &str) {
    use std::io::Write;
    let name = std::thread::current().name().unwrap_or("a test").to_string();
    let _ = writeln!(std::io::stderr(), "\n*** HSM TEST LEFT OUT: {name}: {why} ***");
}

impl Token {
    /// A fresh token labelled `sos-test`.
    pub fn softhsm() -> Option<Self> {
        let module = softhsm()?;
        let folder = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("softhsm/make-token");
        let made = Command::new(script).arg(folder.path()).arg("sos-test").output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Some(Self { folder, module })
    }

    /// A configuration for it, with limits that suit tests.
    pub fn config(&self) -> HsmConfig {
        let mut config = HsmConfig::new(&self.module, PinSource::File(self.folder.path().join("pin")));
        config.token_label = Some("sos-test".into());
        config.worker = Some(env!("CARGO_BIN_EXE_sos").into());
        config.environment = vec![("SOFTHSM2_CONF".into(), self.folder.path().join("softhsm2.conf").display().to_string())];
        config.max_backoff = Duration::from_millis(400);
        config
    }

    /// A client that is ready.
    pub async fn client(&self) -> Arc<Client> {
        ready(self.config()).await
    }
}

/// Starts a client and waits until it is ready.
pub async fn ready(config: HsmConfig) -> Arc<Client> {
    let client = Client::start(config, memory());
    client.ready().await.unwrap();
    client
}

pub fn memory() -> Arc<dyn PinMemory> {
    Arc::new(VolatilePinMemory::default())
}

/// Waits for a status, ten seconds at most.
pub async fn status(client: &Client, wanted: impl Fn(&Status) -> bool) -> Status {
    let mut changes = client.subscribe();
    let wait = async { changes.wait_for(|status| wanted(status)).await.unwrap().clone() };
    match tokio::time::timeout(Duration::from_secs(10), wait).await {
        Ok(status) => status,
        Err(_) => panic!("still {:?}", client.status()),
    }
}

pub fn item(input: &[u8], aad: &[u8]) -> AeadItem {
    AeadItem { iv: sos::secret::random_array(), aad: aad.to_vec(), input: SecretBytes::new(input.to_vec()) }
}

/// The item that decrypts an answer.
pub fn back(sealed: &[u8], iv: [u8; 12], aad: &[u8]) -> AeadItem {
    AeadItem { iv, aad: aad.to_vec(), input: SecretBytes::new(sealed.to_vec()) }
}
