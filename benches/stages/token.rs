//! A call to an HSM: a SoftHSM token of its own behind the product's own worker process.

use std::{path::Path, process::Command, sync::Arc, time::Duration};

use sos::{
    hsm::{AeadItem, Client, Hsm, HsmConfig, KeyId, KeyKind, KeySource, PinSource, VolatilePinMemory, WrappedKey},
    secret::SecretBytes,
};
use tokio::runtime::Runtime;

const MODULES: [&str; 4] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
];

/// Encrypts 32 bytes under a wrapped key, the call and its answer; `None` where SoftHSM is not installed. The worker is another process:
/// its time is in the nanoseconds, and its instructions are not counted.
pub fn encryption() -> Option<Box<dyn FnMut()>> {
    let module = MODULES.iter().find(|path| Path::new(path).exists())?;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let made = Command::new(root.join("softhsm/make-token")).arg(folder.path()).arg("stages").output().ok()?;
    if !made.status.success() {
        return None;
    }
    let mut config = HsmConfig::new(*module, PinSource::File(folder.path().join("pin")));
    config.token_label = Some("stages".into());
    config.worker = Some(env!("CARGO_BIN_EXE_sos").into());
    config.environment = vec![("SOFTHSM2_CONF".into(), folder.path().join("softhsm2.conf").display().to_string())];
    // No look at the token falls into what is measured.
    config.health_interval = Duration::from_secs(3600);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (client, key) = runtime.block_on(ready(config));
    Some(Box::new(move || {
        let _kept = &folder;
        encrypt(&runtime, &client, &key);
    }))
}

async fn ready(config: HsmConfig) -> (Arc<Client>, WrappedKey) {
    let client = Client::start(config, Arc::new(VolatilePinMemory::default()));
    client.ready().await.expect("the token is ready");
    let master = KeyId::random();
    client.create_master_key("sos/stages", master, &[]).await.expect("a master key");
    let made = client.generate_wrapped(master, KeyKind::Aes256).await.expect("a key");
    (client, made.wrapped.expect("SoftHSM wraps AES keys"))
}

fn encrypt(runtime: &Runtime, client: &Client, key: &WrappedKey) {
    let item = AeadItem { iv: [7; 12], aad: Vec::new(), input: SecretBytes::new(vec![0; 32]) };
    let done = runtime.block_on(client.encrypt(KeySource::Wrapped(key), vec![item]));
    drop(std::hint::black_box(done.expect("encrypted")));
}
