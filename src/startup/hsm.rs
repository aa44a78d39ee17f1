//! The HSM client from a `seal "pkcs11"` stanza, and the throw-away token of the development server.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use parking_lot::Mutex;

use crate::{
    config::{OaepHash, Pkcs11Seal, SealMechanism},
    hsm::{Client, FilePinMemory, Group, Hsm, HsmConfig, Mechanism, Member, Members, PinMemory, PinSource, VolatilePinMemory},
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

/// The HSMs of the configuration, which a reload can exchange for others.
pub struct Stanzas {
    group: Arc<Group>,
    memory: Arc<dyn PinMemory>,
    /// What each member was started by.
    started: Mutex<Vec<Pkcs11Seal>>,
}

impl Stanzas {
    /// Starts a client for every stanza, in their order. `folder` is where refused PINs are remembered.
    pub fn start(stanzas: &[Pkcs11Seal], folder: Option<&Path>) -> io::Result<Self> {
        let memory = pin_memory(folder)?;
        let members = stanzas.iter().map(|stanza| member(stanza, Client::start(config(stanza), Arc::clone(&memory))));
        Ok(Self { group: Group::new(members.collect()), memory, started: Mutex::new(copies(stanzas)) })
    }

    /// All of them as one.
    pub fn group(&self) -> Arc<Group> {
        Arc::clone(&self.group)
    }

    /// Takes the stanzas of a configuration that was read again. New HSMs are started; known ones go on, with the order and the
    /// `disabled` of the new stanza. One whose stanza is gone is stopped, unless it is enrolled. How a known HSM is reached
    /// changes with a restart only.
    pub fn reload(&self, stanzas: &[Pkcs11Seal]) {
        let mut started = self.started.lock();
        let known = self.group.members();
        let enrolled = self.group.enrolled();
        let mut members: Members = Vec::new();
        let mut now: Vec<Pkcs11Seal> = Vec::new();
        for stanza in stanzas {
            let name = &stanza.name;
            let before = started.iter().find(|earlier| earlier.name == *name);
            let hsm = match (before, known.iter().find(|member| member.name == *name)) {
                (Some(before), Some(member)) => {
                    if !stanza.reaches_the_same(before) {
                        tracing::warn!(hsm = %name, "its seal stanza leads elsewhere now: restart the server for that; until then it stays as it is");
                        members.push(Arc::new(Member { disabled: stanza.disabled, ..member.duplicate() }));
                        now.push(before.duplicate());
                        continue;
                    }
                    Arc::clone(&member.hsm)
                }
                _ => {
                    tracing::info!(hsm = %name, "a new seal stanza: the HSM is started");
                    Client::start(config(stanza), Arc::clone(&self.memory))
                }
            };
            members.push(Arc::new(member(stanza, hsm)));
            now.push(stanza.duplicate());
        }
        for gone in known.iter().filter(|member| stanzas.iter().all(|stanza| stanza.name != member.name)) {
            if enrolled.iter().any(|member| member.name == gone.name) {
                tracing::warn!(hsm = %gone.name, "its seal stanza is gone, but it is enrolled: it is used until it is removed (sos seal remove) and the configuration reloaded");
                members.push(Arc::clone(gone));
                now.extend(started.iter().find(|stanza| stanza.name == gone.name).map(Pkcs11Seal::duplicate));
            } else {
                tracing::info!(hsm = %gone.name, "its seal stanza is gone: the HSM is not used any more");
            }
        }
        *started = now;
        self.group.replace(members);
    }
}

fn member(stanza: &Pkcs11Seal, hsm: Arc<dyn Hsm>) -> Member {
    Member { name: stanza.name.clone(), key_label: Some(stanza.key_label.clone()), disabled: stanza.disabled, hsm }
}

fn copies(stanzas: &[Pkcs11Seal]) -> Vec<Pkcs11Seal> {
    stanzas.iter().map(Pkcs11Seal::duplicate).collect()
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
