//! The HSM client from a `seal "pkcs11"` stanza, and the throw-away token of the development server.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use crate::{
    config::{OaepHash, Pkcs11Seal, SealMechanism},
    hsm::{Client, FilePinMemory, Group, Hsm, HsmConfig, Mechanism, Member, PinMemory, PinSource, VolatilePinMemory},
    secret::SecretString,
};

/// File beside the store that remembers refused PINs.
const PIN_MEMORY: &str = "refused-pins";

/// How to reach the token that a stanza names.
pub fn config(seal: &Pkcs11Seal) -> HsmConfig {
    let pin = match (&seal.pin, &seal.pin_file) {
        (Some(pin), _) => PinSource::Value(pin.duplicate()),
        (None, Some(path)) => PinSource::File(path.clone()),
        (None, None) => PinSource::Missing,
    };
    let mechanism = seal.mechanism.map(|mechanism| match (mechanism, seal.rsa_oaep_hash) {
        (SealMechanism::AesGcm, _) => Mechanism::AesGcm,
        (SealMechanism::AesCbcHmac, _) => Mechanism::AesCbcHmac,
        (SealMechanism::RsaOaep, Some(OaepHash::Sha256)) => Mechanism::RsaOaepSha256,
        (SealMechanism::RsaOaep, _) => Mechanism::RsaOaepSha1,
    });
    HsmConfig {
        slot: seal.slot,
        token_label: seal.token_label.clone(),
        max_sessions: seal.max_sessions,
        seal_mechanism: mechanism,
        ..HsmConfig::new(seal.lib.clone(), pin)
    }
}

/// Starts one client; the worker comes up in the background. `folder` is where refused PINs are remembered.
pub fn start(config: HsmConfig, folder: Option<&Path>) -> io::Result<Arc<Client>> {
    Ok(Client::start(config, pin_memory(folder)?))
}

/// Starts a client for every stanza, in their order; nothing when all of them are disabled.
pub fn start_all(stanzas: &[Pkcs11Seal], folder: Option<&Path>) -> io::Result<Option<Arc<dyn Hsm>>> {
    if stanzas.iter().all(|stanza| stanza.disabled) {
        return Ok(None);
    }
    let memory = pin_memory(folder)?;
    let members = stanzas.iter().map(|stanza| Member {
        name: stanza.name.clone(),
        key_label: Some(stanza.key_label.clone()),
        disabled: stanza.disabled,
        hsm: Client::start(config(stanza), Arc::clone(&memory)),
    });
    Ok(Some(Group::new(members.collect())))
}

fn pin_memory(folder: Option<&Path>) -> io::Result<Arc<dyn PinMemory>> {
    match folder {
        Some(folder) => {
            fs::DirBuilder::new().mode(0o700).recursive(true).create(folder)?;
            Ok(Arc::new(FilePinMemory::open(folder.join(PIN_MEMORY))?))
        }
        None => Ok(Arc::new(VolatilePinMemory::default())),
    }
}

/// Where Debian and its kin put SoftHSM 2.
const SOFTHSM_PATHS: [&str; 4] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
];

/// A SoftHSM token in a temporary folder that goes with the server.
pub struct ThrowAwayToken {
    folder: PathBuf,
    module: PathBuf,
    pin: SecretString,
}

/// Label of the throw-away token.
const DEV_LABEL: &str = "sos-dev";

impl ThrowAwayToken {
    /// Makes the token, or says why there is none: the module or its tool is not installed.
    pub fn make() -> Result<Self, String> {
        let module = SOFTHSM_PATHS.iter().map(PathBuf::from).find(|path| path.exists());
        let module = module.ok_or("the SoftHSM 2 module is not installed (Debian: apt-get install softhsm2)")?;
        let folder = std::env::temp_dir().join(format!("sos-dev-{}", hex::encode(crate::secret::random_array::<8>())));
        let token = Self { folder, module, pin: SecretString::new(hex::encode(crate::secret::random_array::<8>())) };
        token.initialize().map_err(|error| format!("no throw-away token could be made: {error}"))?;
        Ok(token)
    }

    fn configuration(&self) -> PathBuf {
        self.folder.join("softhsm2.conf")
    }

    fn initialize(&self) -> io::Result<()> {
        let tokens = self.folder.join("tokens");
        fs::DirBuilder::new().mode(0o700).recursive(true).create(&tokens)?;
        let text = format!("directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n", tokens.display());
        fs::write(self.configuration(), text)?;
        // The tool takes PINs on its command line only; this one guards nothing that outlives the server.
        let done = Command::new("softhsm2-util")
            .env("SOFTHSM2_CONF", self.configuration())
            .args(["--init-token", "--free", "--label", DEV_LABEL])
            .args(["--so-pin", self.pin.expose(), "--pin", self.pin.expose()])
            .stdout(Stdio::null())
            .status()?;
        if done.success() { Ok(()) } else { Err(io::Error::other("softhsm2-util failed")) }
    }

    /// How to reach it.
    pub fn config(&self) -> HsmConfig {
        HsmConfig {
            token_label: Some(DEV_LABEL.into()),
            environment: vec![("SOFTHSM2_CONF".into(), self.configuration().display().to_string())],
            ..HsmConfig::new(self.module.clone(), PinSource::Value(self.pin.duplicate()))
        }
    }
}

impl Drop for ThrowAwayToken {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "the throw-away token could not be removed");
        }
    }
}
