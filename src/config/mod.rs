//! The server's configuration: Vault's stanzas, read from HCL 1 or JSON into types.
//!
//! Real users' files must load as they are. So a key that is not known is a [`Warning`] with its place, a key that
//! Vault has and SOS does not need is one too, and only what cannot be obeyed is an error that says what to write.
//! `-config` may name several files and folders; later ones are merged over earlier ones as in Vault.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeroize::Zeroizing;

use crate::hcl::{self, Position};

mod auth_limit;
mod backup;
mod listener;
mod merge;
mod seal;
mod storage;
#[cfg(test)]
mod tests;
mod top;
mod values;

pub use auth_limit::FailedAuthLimit;
pub use backup::Backup;
pub use listener::{Listener, TcpListener, Tls, TlsVersion, UnixListener};
pub use seal::{OaepHash, PinError, Pkcs11Seal, SealMechanism};
pub use storage::{Limits as StorageLimits, Storage};

/// The Vault version that clients are told unless the configuration says otherwise.
pub const DEFAULT_VAULT_VERSION: &str = "1.14.0";

/// Vault's default for `default_lease_ttl` and `max_lease_ttl`: 32 days.
pub const DEFAULT_LEASE_TTL: Duration = Duration::from_secs(768 * 3600);

/// Vault's default for the longest time one request may take.
pub const DEFAULT_REQUEST_DURATION: Duration = Duration::from_secs(90);

/// Everything the configuration says.
#[derive(Debug, Default)]
pub struct Config {
    /// Where clients connect; at least one.
    pub listeners: Vec<Listener>,
    /// Where records are kept; present after [`load`].
    pub storage: Option<Storage>,
    /// The HSMs in the order they are tried. None means plain Shamir unsealing.
    pub seals: Vec<Pkcs11Seal>,
    /// Backups that the server makes by itself.
    pub backup: Option<Backup>,
    /// Zones to be made at start.
    pub zones: Vec<Zone>,
    /// Address that clients are told.
    pub api_addr: Option<String>,
    /// Accepted for Vault's sake; one node has no cluster port.
    pub cluster_addr: Option<String>,
    /// Name shown in seal-status; made up at init when absent.
    pub cluster_name: Option<String>,
    /// Lease and token life when nothing else is said.
    pub default_lease_ttl: Duration,
    /// Longest lease and token life.
    pub max_lease_ttl: Duration,
    /// Longest time one request may take.
    pub default_max_request_duration: Duration,
    /// How much is logged; [`LogLevel::Info`] when absent.
    pub log_level: Option<LogLevel>,
    /// Shape of the log lines; [`LogFormat::Standard`] when absent.
    pub log_format: Option<LogFormat>,
    /// File for the log; standard output and error when absent.
    pub log_file: Option<PathBuf>,
    /// File that holds the process id while the server runs.
    pub pid_file: Option<PathBuf>,
    /// Whether the web interface is wanted (SOS has none; kept so that it can say so).
    pub ui: bool,
    /// Do not lock memory.
    pub disable_mlock: bool,
    /// Whether `sys/raw` exists.
    pub raw_storage_endpoint: bool,
    /// Folders (and `stdout`, `/dev/null`) that file audit devices may write to.
    pub audit_paths: Vec<String>,
    /// Protection level of new Transit keys; what the HSM's self-test allows when absent.
    pub default_protection: Option<Protection>,
    /// How many failed authentications an address has; the server's defaults when absent.
    pub failed_auth_limit: Option<FailedAuthLimit>,
    /// The Vault version that clients are told.
    pub vault_version: String,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogLevel {
    /// Everything.
    Trace,
    /// What helps to find a fault.
    Debug,
    /// What an operator wants to know; the default.
    #[default]
    Info,
    /// Trouble that does not stop anything.
    Warn,
    /// Failures.
    Error,
}

impl LogLevel {
    /// Reads Vault's names: trace, debug, info, notice, warn, warning, error, err.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text.trim().to_ascii_lowercase().as_str() {
            "trace" => Self::Trace,
            "debug" => Self::Debug,
            "info" | "notice" | "" => Self::Info,
            "warn" | "warning" => Self::Warn,
            "error" | "err" => Self::Error,
            _ => return None,
        })
    }

    /// The name as `tracing` filters spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// Shape of the log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// One line of text per event; the default.
    #[default]
    Standard,
    /// One JSON object per event.
    Json,
}

impl LogFormat {
    /// Reads Vault's names: standard, json.
    pub fn parse(text: &str) -> Option<Self> {
        match text.trim().to_ascii_lowercase().as_str() {
            "standard" | "" => Some(Self::Standard),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// Where the material of a Transit key lives and works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// Wrapped by the zone master key, used inside the HSM only.
    Hsm,
    /// A token object that never leaves its HSM.
    HsmOnly,
    /// Wrapped at rest, used in the process.
    Software,
}

impl Protection {
    /// Reads `hsm`, `hsm-only` or `software`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "hsm" => Some(Self::Hsm),
            "hsm-only" => Some(Self::HsmOnly),
            "software" => Some(Self::Software),
            _ => None,
        }
    }
}

/// `zone "name" { rotation_period = "8760h" }`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    /// The zone's name.
    pub name: String,
    /// Age at which its master key is rotated; never when absent.
    pub rotation_period: Option<Duration>,
}

/// Something that loads but deserves a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The file.
    pub file: String,
    /// The place in it.
    pub at: Position,
    /// The sentence.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.at, self.message)
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file says something that cannot be obeyed; the text has file, line and fix.
    #[error(transparent)]
    Content(#[from] hcl::Error),
    /// A file cannot be read.
    #[error("cannot read the configuration {path}: check the path and that this user may read it")]
    Read {
        /// The file or folder.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A folder without configuration files.
    #[error("the folder {0} holds no *.hcl and no *.json file: put the configuration there, or name a file with -config")]
    EmptyFolder(String),
    /// No `storage` stanza.
    #[error("{0}: no storage is configured: write storage \"redb\" {{ path = \"/var/lib/sos\" }}")]
    NoStorage(String),
    /// No `listener` stanza.
    #[error(
        "{0}: no listener is configured: write listener \"tcp\" {{ address = \"127.0.0.1:8200\" tls_cert_file = \"...\" tls_key_file = \"...\" }}"
    )]
    NoListener(String),
}

/// Where a stanza was written, for errors that only show when it is used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place(Option<(String, Position)>);

impl Place {
    fn of(block: &hcl::Block<'_>) -> Self {
        Self(Some((block.body.file.to_owned(), block.at)))
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Some((file, at)) => write!(f, "{file}:{}:{}", at.line, at.column),
            None => f.write_str("command line or environment"),
        }
    }
}

/// The files of a configuration, for errors about what none of them says.
fn files(documents: &[hcl::Document]) -> String {
    documents.iter().map(|document| document.reader().file).collect::<Vec<_>>().join(", ")
}

/// Looks up an environment variable; a parameter so that tests need not touch the process.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The process's environment.
pub fn process_environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Reads and merges what `-config` names, with the environment's overrides.
pub fn load(paths: &[PathBuf], environment: Environment<'_>) -> Result<(Config, Vec<Warning>), ConfigError> {
    load_over(Config::default(), paths, environment)
}

/// Like [`load`], merged over `base` (the `-dev` server's own settings).
pub fn load_over(base: Config, paths: &[PathBuf], environment: Environment<'_>) -> Result<(Config, Vec<Warning>), ConfigError> {
    let mut documents = Vec::new();
    for path in paths {
        for file in config_files(path)? {
            documents.push(read_document(&file)?);
        }
    }
    let result = from_documents(base, &documents, environment);
    documents.iter_mut().for_each(|document| wipe_pins(&mut document.body));
    result
}

fn from_documents(
    base: Config,
    documents: &[hcl::Document],
    environment: Environment<'_>,
) -> Result<(Config, Vec<Warning>), ConfigError> {
    let mut warnings = Vec::new();
    let mut config = base;
    let overrides = seal::Overrides::new(environment, documents)?;
    for document in documents {
        config = config.merge(top::read(document.reader(), &overrides, &mut warnings)?);
    }
    if let Some(seal) = overrides.seal_without_stanza()? {
        config.seals.push(seal);
    }
    config.fill_defaults(environment);
    if config.storage.is_none() {
        return Err(ConfigError::NoStorage(files(documents)));
    }
    if config.listeners.is_empty() {
        return Err(ConfigError::NoListener(files(documents)));
    }
    Ok((config, warnings))
}

/// Reads a configuration from a text, as fuzzing does.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn from_text(text: &str) -> Result<(Config, Vec<Warning>), ConfigError> {
    let mut document = hcl::parse("fuzzed", text)?;
    let result = from_documents(Config::default(), std::slice::from_ref(&document), &|_| None);
    wipe_pins(&mut document.body);
    result
}

/// The file itself, or a folder's `*.hcl` and `*.json` files in the order of their names.
fn config_files(path: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.display().to_string(), source };
    if !std::fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let hidden = file.file_name().is_none_or(|name| name.to_string_lossy().starts_with(['.', '#']));
        if !hidden && file.is_file() && file.extension().is_some_and(|ending| ending == "hcl" || ending == "json") {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(ConfigError::EmptyFolder(path.display().to_string()));
    }
    files.sort();
    Ok(files)
}

fn read_document(path: &Path) -> Result<hcl::Document, ConfigError> {
    let name = path.display().to_string();
    // The text may hold a PIN: it is overwritten when it is no longer needed.
    let bytes = Zeroizing::new(std::fs::read(path).map_err(|source| ConfigError::Read { path: name.clone(), source })?);
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let at = Position { line: u32::try_from(line).unwrap_or(u32::MAX), column: 1 };
        hcl::Error { file: name.clone(), at, message: "this line is not UTF-8 text: save the file as UTF-8".into() }
    })?;
    Ok(hcl::parse(&name, text)?)
}

/// Overwrites every `pin` in the parsed document; the typed configuration holds its own copy.
fn wipe_pins(body: &mut hcl::Body) {
    use zeroize::Zeroize;
    for entry in &mut body.entries {
        match &mut entry.value.kind {
            hcl::Kind::Text(text) if entry.key.name.eq_ignore_ascii_case("pin") => text.zeroize(),
            hcl::Kind::Object(body) => wipe_pins(body),
            hcl::Kind::List(values) => {
                for value in values {
                    if let hcl::Kind::Object(body) = &mut value.kind {
                        wipe_pins(body);
                    }
                }
            }
            _ => {}
        }
    }
}
