//! The PIN: where it comes from, and the memory of PINs that the token refused.
//!
//! Tokens lock after a few wrong PINs. A refused PIN is therefore remembered (as a keyed hash of PIN and token serial,
//! so the memory reveals nothing without its key) and not tried again until it changes, across restarts too.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use parking_lot::Mutex;
use sha2::Sha256;
use thiserror::Error;

use crate::secret::{SecretBytes, SecretString, exposing_bits};

/// Where the PIN comes from.
#[derive(Debug)]
pub enum PinSource {
    /// Given in the configuration or at a prompt.
    Value(SecretString),
    /// The first line of a file that only its owner can read.
    File(PathBuf),
    /// None is configured.
    Missing,
}

/// Why there is no PIN to try.
#[derive(Debug, Error)]
pub enum PinError {
    /// Nothing is configured.
    #[error("no PIN is configured: set pin_file (or pin) in the seal \"pkcs11\" stanza")]
    Missing,
    /// The file cannot be read.
    #[error("the PIN file {path} cannot be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others can read the file.
    #[error("the PIN file {path} can be read by others (mode {mode:04o}): run chmod 600 {path}", path = .path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds nothing.
    #[error("the PIN file {0} is empty")]
    Empty(PathBuf),
}

impl PinSource {
    /// The PIN as it is now: a file is read at every call, so that a corrected one is seen.
    pub fn read(&self) -> Result<SecretString, PinError> {
        match self {
            PinSource::Missing => Err(PinError::Missing),
            PinSource::Value(pin) if pin.is_empty() => Err(PinError::Missing),
            PinSource::Value(pin) => Ok(pin.duplicate()),
            PinSource::File(path) => read_pin_file(path),
        }
    }
}

fn read_pin_file(path: &Path) -> Result<SecretString, PinError> {
    let unreadable = |source| PinError::Unreadable { path: path.to_path_buf(), source };
    let file = fs::File::open(path).map_err(unreadable)?;
    // The opened file is checked, not the path: nobody can swap it in between.
    let mode = file.metadata().map_err(unreadable)?.mode() & 0o777;
    if exposing_bits(path, mode) != 0 {
        return Err(PinError::Exposed { path: path.to_path_buf(), mode });
    }
    let whole = SecretString::new(io::read_to_string(file).map_err(unreadable)?);
    let pin = whole.expose().lines().next().unwrap_or_default();
    if pin.is_empty() {
        return Err(PinError::Empty(path.to_path_buf()));
    }
    Ok(SecretString::new(pin.to_string()))
}

/// Remembers which PINs a token refused.
pub trait PinMemory: Send + Sync + 'static {
    /// A random key made once on this machine; it keys the fingerprints.
    fn local_key(&self) -> SecretBytes;
    /// Whether this PIN was refused before.
    fn is_refused(&self, fingerprint: &[u8; 32]) -> bool;
    /// Remembers a refused PIN, durably if it can.
    fn remember(&self, fingerprint: &[u8; 32]);
}

/// HMAC-SHA-256 under the local key over the PIN and the token's serial number.
pub fn fingerprint(memory: &dyn PinMemory, pin: &SecretString, serial: &str) -> [u8; 32] {
    let key = memory.local_key();
    #[allow(clippy::expect_used)] // HMAC takes keys of every length
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose()).expect("HMAC takes every key");
    mac.update(&(pin.expose().len() as u64).to_be_bytes());
    mac.update(pin.expose().as_bytes());
    mac.update(serial.as_bytes());
    mac.finalize().into_bytes().into()
}

/// A memory that lasts as long as the process.
pub struct VolatilePinMemory {
    key: SecretBytes,
    refused: Mutex<HashSet<[u8; 32]>>,
}

impl Default for VolatilePinMemory {
    fn default() -> Self {
        Self { key: SecretBytes::random(32), refused: Mutex::default() }
    }
}

impl PinMemory for VolatilePinMemory {
    fn local_key(&self) -> SecretBytes {
        self.key.duplicate()
    }

    fn is_refused(&self, fingerprint: &[u8; 32]) -> bool {
        self.refused.lock().contains(fingerprint)
    }

    fn remember(&self, fingerprint: &[u8; 32]) {
        self.refused.lock().insert(*fingerprint);
    }
}

/// A memory in a file: the local key in the first 32 bytes, then one 32-byte fingerprint after the other.
pub struct FilePinMemory {
    path: PathBuf,
    key: SecretBytes,
    refused: Mutex<HashSet<[u8; 32]>>,
}

impl FilePinMemory {
    /// Opens the file or makes it (0600) with a fresh local key.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let content = match fs::read(&path) {
            Ok(content) if content.len() >= 32 => content,
            Ok(_) => create(&path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(&path)?,
            Err(error) => return Err(error),
        };
        let (key, rest) = content.split_at(32);
        let refused = rest.chunks_exact(32).filter_map(|chunk| chunk.try_into().ok()).collect();
        Ok(Self { path, key: SecretBytes::new(key.to_vec()), refused: Mutex::new(refused) })
    }
}

fn create(path: &Path) -> io::Result<Vec<u8>> {
    let key = crate::secret::random_array::<32>().to_vec();
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(&key)?;
    file.sync_all()?;
    Ok(key)
}

impl PinMemory for FilePinMemory {
    fn local_key(&self) -> SecretBytes {
        self.key.duplicate()
    }

    fn is_refused(&self, fingerprint: &[u8; 32]) -> bool {
        self.refused.lock().contains(fingerprint)
    }

    fn remember(&self, fingerprint: &[u8; 32]) {
        if !self.refused.lock().insert(*fingerprint) {
            return;
        }
        let written = fs::OpenOptions::new().append(true).open(&self.path).and_then(|mut file| {
            file.write_all(fingerprint)?;
            file.sync_all()
        });
        if let Err(error) = written {
            tracing::error!(%error, path = %self.path.display(), "a refused PIN could not be remembered durably");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn pin_file(content: &str, mode: u32) -> (tempfile::TempDir, PinSource) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pin");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (folder, PinSource::File(path))
    }

    #[test]
    fn a_private_file_gives_its_first_line() {
        let (_folder, source) = pin_file("123456\n", 0o600);
        assert!(source.read().unwrap().same_as("123456"));
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        for mode in [0o640, 0o604, 0o644] {
            let (_folder, source) = pin_file("123456\n", mode);
            let text = source.read().unwrap_err().to_string();
            assert!(text.contains("chmod 600"), "{text}");
            assert!(!text.contains("123456"));
        }
    }

    #[test]
    fn an_empty_or_absent_file_is_an_error() {
        let (_folder, source) = pin_file("\n", 0o600);
        assert!(matches!(source.read(), Err(PinError::Empty(_))));
        assert!(matches!(PinSource::File("/nonexistent/pin".into()).read(), Err(PinError::Unreadable { .. })));
    }

    #[test]
    fn a_refused_pin_is_remembered_across_openings_but_another_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory");
        let first = FilePinMemory::open(&path).unwrap();
        let mark = fingerprint(&first, &SecretString::new("wrong".into()), "serial");
        first.remember(&mark);
        let second = FilePinMemory::open(&path).unwrap();
        assert!(second.is_refused(&fingerprint(&second, &SecretString::new("wrong".into()), "serial")));
        assert!(!second.is_refused(&fingerprint(&second, &SecretString::new("right".into()), "serial")));
        assert!(!second.is_refused(&fingerprint(&second, &SecretString::new("wrong".into()), "other")));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
