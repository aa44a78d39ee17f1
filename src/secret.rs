//! Newtypes for everything that must not be printed or left in memory.
//!
//! A secret has a private field, no `Serialize`, and a `Debug` that prints only its type. Reading one is the
//! visible call [`SecretBytes::expose`]; memory is overwritten on drop.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

/// Key material, a plaintext or any other bytes that must not outlive their use.
#[derive(Default)]
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// Takes over `bytes`; they are overwritten when the value is dropped.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// `len` bytes from the operating system's random source.
    ///
    /// # Panics
    /// When the operating system has no random source: nothing secure can go on from there.
    pub fn random(len: usize) -> Self {
        let mut bytes = vec![0; len];
        fill_random(&mut bytes);
        Self::new(bytes)
    }

    /// The bytes themselves.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Keeps only the bytes of `range`, in place.
    pub fn narrow(&mut self, range: std::ops::Range<usize>) {
        self.0.truncate(range.end);
        self.0.drain(..range.start.min(range.end));
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A second copy, for the few places that need one (a visible call on purpose: there is no `Clone`).
    pub fn duplicate(&self) -> Self {
        Self::new(self.0.to_vec())
    }

    /// Whether both hold the same bytes, compared in constant time.
    pub fn same_as(&self, other: &[u8]) -> bool {
        self.0.ct_eq(other).into()
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBytes")
    }
}

/// A text that must not be printed: a PIN, a token, a password.
#[derive(Default)]
pub struct SecretString(Zeroizing<String>);

impl SecretString {
    /// Takes over `text`; it is overwritten when the value is dropped.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether the text is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A second copy (see [`SecretBytes::duplicate`]).
    pub fn duplicate(&self) -> Self {
        Self::new(self.0.to_string())
    }

    /// Whether both are the same text, compared in constant time.
    pub fn same_as(&self, other: &str) -> bool {
        self.0.as_bytes().ct_eq(other.as_bytes()).into()
    }
}

impl fmt::Debug for SecretString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretString")
    }
}

impl From<String> for SecretString {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

/// The bits of a secret file's mode that let others read or change it. systemd hands a credential over under an access
/// list that names the service's user, which the group's bits of the mode reflect; nobody else can enter its folder.
pub fn exposing_bits(path: &std::path::Path, mode: u32) -> u32 {
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY").map(std::path::PathBuf::from);
    exposing_bits_under(folder.as_deref(), path, mode)
}

fn exposing_bits_under(credentials: Option<&std::path::Path>, path: &std::path::Path, mode: u32) -> u32 {
    let credential = credentials.is_some_and(|folder| folder.is_absolute() && path.parent() == Some(folder));
    mode & if credential { 0o037 } else { 0o077 }
}

/// Fills `buffer` from the operating system's random source.
///
/// # Panics
/// When the operating system has no random source.
#[allow(clippy::expect_used)] // without randomness no nonce and no key is safe: stopping is the only right answer
pub fn fill_random(buffer: &mut [u8]) {
    getrandom::fill(buffer).expect("the operating system's random source failed");
}

/// `N` random bytes (see [`fill_random`]).
pub fn random_array<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill_random(&mut bytes);
    bytes
}

/// Overwrites a buffer that once held a secret.
pub fn wipe(buffer: &mut [u8]) {
    buffer.zeroize();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_secret() {
        assert_eq!(format!("{:?}", SecretBytes::new(vec![1, 2, 3])), "SecretBytes");
        assert_eq!(format!("{:?}", SecretString::new("1234".into())), "SecretString");
    }

    #[test]
    fn a_credential_of_systemd_may_show_its_access_list() {
        let exposing = |path: &str, mode| {
            exposing_bits_under(Some(std::path::Path::new("/run/credentials/sos.service")), std::path::Path::new(path), mode)
        };
        assert_eq!(exposing("/run/credentials/sos.service/pin", 0o440), 0);
        assert_eq!(exposing("/run/credentials/sos.service/pin", 0o444), 0o004);
        assert_eq!(exposing("/run/credentials/sos.service/../x/pin", 0o440), 0o040);
        assert_eq!(exposing("/etc/sos/pin", 0o440), 0o040);
        assert_eq!(exposing_bits_under(None, std::path::Path::new("/etc/sos/pin"), 0o600), 0);
    }

    #[test]
    fn comparison_sees_every_byte() {
        let secret = SecretBytes::new(vec![1, 2, 3]);
        assert!(secret.same_as(&[1, 2, 3]));
        assert!(!secret.same_as(&[1, 2, 4]));
        assert!(!secret.same_as(&[1, 2]));
    }
}
