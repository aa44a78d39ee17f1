//! The `seal` stanzas and their overrides in the environment.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::{Environment, Place, Warning, values};
use crate::hcl::{Block, Document, Error, Kind, Position, Reader};
use crate::secret::{SecretString, exposing_bits};

const USED: [&str; 15] = [
    "lib",
    "slot",
    "token_label",
    "pin",
    "pin_file",
    "key_label",
    "mechanism",
    "rsa_oaep_hash",
    "max_parallel",
    // Sessions are read-write in any case.
    "force_rw_session",
    "max_sessions",
    "disabled",
    "name",
    "priority",
    "escrow",
];
const ACCEPTED: [&str; 10] = [
    "default_key_label",
    "key_id",
    "hmac_key_label",
    "disable_software_encryption",
    "generate_key",
    "hmac_mechanism",
    "default_hmac_key_label",
    "rsa_encrypt_local",
    "key_params",
    "recover",
];

/// `seal "pkcs11" { ... }`: one HSM that holds the seal key and the zone master keys.
#[derive(Debug)]
pub struct Pkcs11Seal {
    /// Where the stanza was written.
    pub place: Place,
    /// Under this name the HSM is enrolled and shown; `pkcs11` unless the stanza names itself.
    pub name: String,
    /// Order among several, smallest first.
    pub priority: i64,
    /// Kept for opening what it once sealed (while another stanza is not disabled), not used for anything new.
    pub disabled: bool,
    /// The vendor's PKCS#11 library.
    pub lib: PathBuf,
    /// The slot's number; a label is the better choice, slot numbers move.
    pub slot: Option<u64>,
    /// The token's label.
    pub token_label: Option<String>,
    /// The PIN itself.
    pub pin: Option<SecretString>,
    /// The file that holds the PIN.
    pub pin_file: Option<PathBuf>,
    /// Under this name the cluster's keys are found in the HSM.
    pub key_label: String,
    /// An older name, tried when opening.
    pub default_key_label: Option<String>,
    /// The seal key's CKA_ID in hexadecimal, for a key that was made by hand.
    pub key_id: Option<String>,
    /// The key that authenticates where the mechanism itself does not.
    pub hmac_key_label: Option<String>,
    /// How the root key is wrapped; the best that the HSM has when absent.
    pub mechanism: Option<SealMechanism>,
    /// The hash inside RSA-OAEP.
    pub rsa_oaep_hash: Option<OaepHash>,
    /// Open every session read-write.
    pub force_rw_session: bool,
    /// Most sessions opened at a time; the HSM's own limit when absent.
    pub max_sessions: Option<usize>,
    /// Never encrypt with a public key outside the HSM.
    pub disable_software_encryption: bool,
    /// Make the seal key at init when it is missing (the default). With `false` it must be there already.
    pub generate_key: bool,
    /// Whether escrow shares can open what this HSM holds (the default). With `false` its loss is the loss of everything.
    pub escrow: bool,
}

impl Pkcs11Seal {
    /// The same stanza once more, PIN and all.
    pub fn duplicate(&self) -> Self {
        Self {
            place: self.place.clone(),
            name: self.name.clone(),
            lib: self.lib.clone(),
            token_label: self.token_label.clone(),
            pin: self.pin.as_ref().map(SecretString::duplicate),
            pin_file: self.pin_file.clone(),
            key_label: self.key_label.clone(),
            default_key_label: self.default_key_label.clone(),
            key_id: self.key_id.clone(),
            hmac_key_label: self.hmac_key_label.clone(),
            ..*self
        }
    }

    /// Whether two stanzas lead to the same keys in the same way; order and `disabled` aside.
    pub fn reaches_the_same(&self, other: &Self) -> bool {
        let pin = |seal: &Self| seal.pin.as_ref().map(SecretString::duplicate);
        let same_pin = match (pin(self), pin(other)) {
            (Some(one), Some(other)) => one.same_as(other.expose()),
            (None, None) => true,
            _ => false,
        };
        same_pin
            && (&self.lib, self.slot, &self.token_label, &self.pin_file, &self.key_label)
                == (&other.lib, other.slot, &other.token_label, &other.pin_file, &other.key_label)
            && (self.mechanism, self.rsa_oaep_hash, self.max_sessions)
                == (other.mechanism, other.rsa_oaep_hash, other.max_sessions)
    }
}

/// How the root key is wrapped in the HSM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealMechanism {
    /// CKM_AES_GCM.
    AesGcm,
    /// CKM_AES_CBC or CKM_AES_CBC_PAD, authenticated by CKM_SHA256_HMAC.
    AesCbcHmac,
    /// CKM_RSA_PKCS_OAEP.
    RsaOaep,
}

impl SealMechanism {
    /// Reads a mechanism's name, with or without `CKM_`, or its number (`0x1087`, `4231`).
    pub fn parse(text: &str) -> Option<Self> {
        let upper = text.trim().to_ascii_uppercase();
        let number = match upper.strip_prefix("0X") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => upper.parse().ok(),
        };
        match (number, upper.strip_prefix("CKM_").unwrap_or(&upper)) {
            (Some(0x1087), _) | (None, "AES_GCM") => Some(Self::AesGcm),
            (Some(0x1082 | 0x1085), _) | (None, "AES_CBC" | "AES_CBC_PAD") => Some(Self::AesCbcHmac),
            (Some(0x9), _) | (None, "RSA_PKCS_OAEP") => Some(Self::RsaOaep),
            _ => None,
        }
    }
}

/// The hash inside RSA-OAEP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OaepHash {
    /// SHA-1, the only one some modules know.
    Sha1,
    /// SHA-256.
    Sha256,
}

/// Why there is no PIN.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The file cannot be read.
    #[error("cannot read the PIN file {path}: check pin_file and that this user may read it")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Others may read or write the file.
    #[error("the PIN file {path} is open to others (mode {mode:04o}): run chmod 600 {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The file is empty.
    #[error("the PIN file {0} is empty: write the HSM user's PIN into it")]
    Empty(PathBuf),
}

impl Pkcs11Seal {
    /// The PIN from the stanza or its file; nothing when the operator must be asked.
    pub fn read_pin(&self) -> Result<Option<SecretString>, PinError> {
        match (&self.pin, &self.pin_file) {
            (Some(pin), _) => Ok(Some(pin.duplicate())),
            (None, Some(path)) => pin_from(path).map(Some),
            (None, None) => Ok(None),
        }
    }
}

fn pin_from(path: &Path) -> Result<SecretString, PinError> {
    let failed = |source| PinError::Read { path: path.to_path_buf(), source };
    let mode = std::fs::metadata(path).map_err(failed)?.permissions().mode() & 0o7777;
    if exposing_bits(path, mode) != 0 {
        return Err(PinError::Open { path: path.to_path_buf(), mode });
    }
    let text = Zeroizing::new(std::fs::read_to_string(path).map_err(failed)?);
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(PinError::Empty(path.to_path_buf())),
        pin => Ok(SecretString::new(pin.to_string())),
    }
}

/// `VAULT_HSM_*` and `BAO_HSM_*`, which win over the stanza as in Vault. With several pkcs11 stanzas they would be
/// ambiguous and are not used.
pub(super) struct Overrides<'a> {
    environment: Environment<'a>,
    stanzas: usize,
}

impl<'a> Overrides<'a> {
    pub(super) fn new(environment: Environment<'a>, documents: &[Document]) -> Result<Self, Error> {
        let mut stanzas = 0;
        for document in documents {
            stanzas += document.reader().blocks("seal")?.iter().filter(|block| block.label() == Some("pkcs11")).count();
        }
        Ok(Self { environment, stanzas })
    }

    fn get(&self, key: &str) -> Option<String> {
        if self.stanzas > 1 {
            return None;
        }
        let key = key.to_ascii_uppercase();
        (self.environment)(&format!("VAULT_HSM_{key}")).or_else(|| (self.environment)(&format!("BAO_HSM_{key}")))
    }

    /// A seal that only the environment describes (`VAULT_SEAL_TYPE=pkcs11`).
    pub(super) fn seal_without_stanza(&self) -> Result<Option<Pkcs11Seal>, Error> {
        let kind = (self.environment)("VAULT_SEAL_TYPE").or_else(|| (self.environment)("BAO_SEAL_TYPE"));
        if self.stanzas > 0 || kind.as_deref() != Some("pkcs11") {
            return Ok(None);
        }
        let body = crate::hcl::Body::default();
        let reader = Reader { file: "environment", body: &body };
        Source { reader, overrides: self, at: Position::START, place: Place::default() }.seal().map(Some)
    }
}

pub(super) fn read(top: Reader<'_>, overrides: &Overrides<'_>, warnings: &mut Vec<Warning>) -> Result<Vec<Pkcs11Seal>, Error> {
    let mut seals = Vec::new();
    let mut shamir = None;
    for block in top.blocks("seal")? {
        let at = block.label.map_or(block.at, |label| label.at);
        match block.label() {
            Some("pkcs11") => {
                values::warn_of_others(block.body, "seal \"pkcs11\"", &USED, &ACCEPTED, warnings);
                seals.push(Source { reader: block.body, overrides, at: block.at, place: Place::of(&block) }.seal()?);
            }
            Some("shamir") if block.body.bool("disabled")?.unwrap_or(false) => {}
            Some("shamir") => shamir = Some(at),
            kind => return Err(unknown(&block, at, kind)),
        }
    }
    refuse_doubles(&seals, top)?;
    match shamir {
        Some(at) if seals.iter().any(|seal| !seal.disabled) => {
            Err(top
                .error(at, "seal \"shamir\" beside seal \"pkcs11\": remove it; escrow shares are given out at init in any case"))
        }
        _ => Ok(seals),
    }
}

/// Names tell HSMs apart, and two stanzas for one token under one label would destroy each other's objects.
fn refuse_doubles(seals: &[Pkcs11Seal], top: Reader<'_>) -> Result<(), Error> {
    let blocks = top.blocks("seal")?;
    let error = |seal: &Pkcs11Seal, text: String| match blocks.iter().find(|block| Place::of(block) == seal.place) {
        Some(block) => Err(block.body.error(block.at, text)),
        None => Err(top.error(Position::START, text)),
    };
    for (number, seal) in seals.iter().enumerate() {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if seal.name.is_empty() || seal.name.len() > 64 || !seal.name.chars().all(good) || seal.name.starts_with('.') {
            return error(
                seal,
                format!("the name {:?} of this seal stanza: use 1 to 64 letters, digits, '-', '_' or '.'", seal.name),
            );
        }
        let mut earlier = seals.iter().take(number);
        if earlier.clone().any(|other| other.name == seal.name) {
            return error(
                seal,
                format!(
                    "a second seal \"pkcs11\" stanza is named {:?}: give each HSM a name of its own, name = \"...\"",
                    seal.name
                ),
            );
        }
        let token = |seal: &Pkcs11Seal| (seal.lib.clone(), seal.slot, seal.token_label.clone(), seal.key_label.clone());
        if let Some(other) = earlier.find(|other| token(other) == token(seal)) {
            return error(
                seal,
                format!(
                    "the seal stanzas {:?} and {:?} name the same token and key_label: remove one of them",
                    other.name, seal.name
                ),
            );
        }
    }
    Ok(())
}

fn unknown(block: &Block<'_>, at: Position, kind: Option<&str>) -> Error {
    let what = match kind {
        Some(kind) => format!("seal {kind:?} is not supported"),
        None => "the seal stanza has no type".into(),
    };
    let message = format!(
        "{what}: write seal \"pkcs11\" {{ lib = \"...\" token_label = \"...\" pin_file = \"...\" }}, or no seal stanza for unseal keys"
    );
    block.body.error(at, message)
}

/// One stanza with the environment in front of it.
struct Source<'a> {
    reader: Reader<'a>,
    overrides: &'a Overrides<'a>,
    at: Position,
    place: Place,
}

impl<'a> Source<'a> {
    fn seal(&self) -> Result<Pkcs11Seal, Error> {
        let lib = self
            .text("lib")?
            .ok_or_else(|| self.error("lib", "names no PKCS#11 library: write lib = \"/usr/lib/softhsm/libsofthsm2.so\""))?;
        let slot = self.number("slot")?;
        let token_label = self.text("token_label")?;
        if slot.is_none() && token_label.is_none() {
            return Err(self.error("token_label", "says not which token: write token_label = \"...\" (or slot = 0)"));
        }
        let (pin, pin_file) = (self.pin()?, self.text("pin_file")?.map(PathBuf::from));
        if pin.is_some() && pin_file.is_some() && self.overrides.get("pin").is_none() {
            return Err(self.error("pin_file", "has both pin and pin_file: keep one (pin_file is the better one)"));
        }
        let max_sessions = match self.number("max_sessions")? {
            Some(limit) => Some(limit),
            None => self.number("max_parallel")?,
        };
        Ok(Pkcs11Seal {
            place: self.place.clone(),
            name: values::text(self.reader, "name")?.unwrap_or_else(|| "pkcs11".into()),
            priority: self.reader.int("priority")?.unwrap_or(0),
            disabled: self.reader.bool("disabled")?.unwrap_or(false),
            lib: PathBuf::from(lib),
            slot,
            token_label,
            pin,
            pin_file,
            key_label: self.text("key_label")?.unwrap_or_else(|| "sos".into()),
            default_key_label: self.text("default_key_label")?,
            key_id: self.text("key_id")?,
            hmac_key_label: self.text("hmac_key_label")?,
            mechanism: self.choice(
                "mechanism",
                SealMechanism::parse,
                "\"CKM_AES_GCM\", \"CKM_AES_CBC_PAD\", \"CKM_RSA_PKCS_OAEP\" or their numbers",
            )?,
            rsa_oaep_hash: self.choice("rsa_oaep_hash", oaep_hash, "\"sha256\", \"sha1\"")?,
            force_rw_session: self.flag("force_rw_session", false)?,
            max_sessions: max_sessions.filter(|limit| *limit > 0).map(|limit| usize::try_from(limit).unwrap_or(usize::MAX)),
            disable_software_encryption: self.flag("disable_software_encryption", false)?,
            generate_key: self.flag("generate_key", true)?,
            escrow: self.reader.bool("escrow")?.unwrap_or(true),
        })
    }

    /// An error that is about `key`: at its place when it is there, else at the stanza's.
    fn error(&self, key: &'a str, message: &str) -> Error {
        let at = self.reader.value(key).ok().flatten().map_or(self.at, |value| value.at);
        self.reader.error(at, format!("seal \"pkcs11\" {message}"))
    }

    fn text(&self, key: &'a str) -> Result<Option<String>, Error> {
        let stanza = values::text(self.reader, key)?;
        Ok(self.overrides.get(key).or(stanza))
    }

    fn pin(&self) -> Result<Option<SecretString>, Error> {
        if let Some(pin) = self.overrides.get("pin") {
            return Ok(Some(SecretString::new(pin)));
        }
        match self.reader.value("pin")?.map(|value| &value.kind) {
            None => Ok(None),
            Some(Kind::Text(pin)) => Ok(Some(SecretString::new(pin.clone())).filter(|pin| !pin.is_empty())),
            // As a number it would lose its leading zeros.
            Some(_) => Err(self.error("pin", "needs its pin in double quotes: write pin = \"...\"")),
        }
    }

    fn number(&self, key: &'a str) -> Result<Option<u64>, Error> {
        let wrong = || self.error(key, &format!("needs a number that is not negative: write {key} = 1"));
        match self.overrides.get(key) {
            Some(text) => {
                let parsed = text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u64::from_str_radix(hex, 16));
                parsed.map(Some).map_err(|_| wrong())
            }
            None => self.reader.int(key)?.map(|value| u64::try_from(value).map_err(|_| wrong())).transpose(),
        }
    }

    fn flag(&self, key: &'a str, default: bool) -> Result<bool, Error> {
        match self.overrides.get(key).as_deref() {
            Some("1" | "true" | "TRUE" | "True" | "t" | "T") => Ok(true),
            Some("0" | "false" | "FALSE" | "False" | "f" | "F") => Ok(false),
            Some(_) => Err(self.error(key, &format!("got a wrong {key} from the environment: set it to true or false"))),
            None => Ok(self.reader.bool(key)?.unwrap_or(default)),
        }
    }

    fn choice<T>(&self, key: &'a str, parse: impl Fn(&str) -> Option<T>, allowed: &str) -> Result<Option<T>, Error> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        let wrong = || self.error(key, &format!("cannot use {key} {text:?}: write one of {allowed}"));
        parse(&text).map(Some).ok_or_else(wrong)
    }
}

fn oaep_hash(text: &str) -> Option<OaepHash> {
    match text.to_ascii_lowercase().replace('-', "").as_str() {
        "sha1" => Some(OaepHash::Sha1),
        "sha256" => Some(OaepHash::Sha256),
        _ => None,
    }
}
