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

    /// `==` leaves at the first byte that differs, and a clone is a copy that nobody sees.
    #[test]
    fn secrets_have_neither_equality_nor_clone_nor_display() {
        struct Has<T>(std::marker::PhantomData<T>);
        // What a type has hides what every type has.
        trait Lacks {
            const EQUALITY: bool = false;
            const CLONE: bool = false;
            const DISPLAY: bool = false;
        }
        impl<T> Lacks for Has<T> {}
        impl<T: PartialEq> Has<T> {
            const EQUALITY: bool = true;
        }
        impl<T: Clone> Has<T> {
            const CLONE: bool = true;
        }
        impl<T: fmt::Display> Has<T> {
            const DISPLAY: bool = true;
        }
        assert_eq!((Has::<String>::EQUALITY, Has::<String>::CLONE, Has::<String>::DISPLAY), (true, true, true));
        assert_eq!((Has::<SecretBytes>::EQUALITY, Has::<SecretBytes>::CLONE, Has::<SecretBytes>::DISPLAY), (false, false, false));
        assert_eq!(
            (Has::<SecretString>::EQUALITY, Has::<SecretString>::CLONE, Has::<SecretString>::DISPLAY),
            (false, false, false)
        );
    }

    /// An exposed secret beside `==` in the sources is a comparison whose time tells how much of it was right.
    #[test]
    fn no_source_compares_an_exposed_secret_by_equality() {
        // Compared with a constant of the format: whether metadata is the JSON null, whether an argument is a dash.
        let public = ["== b\"null\"", "== \"-\""];
        let mut folders = vec![std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src")];
        let (mut files, mut found) = (0, Vec::new());
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                if path.is_dir() {
                    folders.push(path);
                } else if name.ends_with(".rs") {
                    files += 1;
                    let text = std::fs::read_to_string(&path).unwrap();
                    // Unit tests stand at the end of their file and may compare as they like.
                    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
                    let compared = |line: &&str| {
                        let Some((before, after)) = line.split("//").next().and_then(|line| line.split_once(".expose()")) else {
                            return false;
                        };
                        let receiver = |letter: char| letter.is_alphanumeric() || "_.()&*".contains(letter);
                        let before = before.trim_end_matches(receiver).trim_end();
                        ["==", "!="].iter().any(|sign| after.trim_start().starts_with(sign) || before.ends_with(sign))
                    };
                    let lines = code.lines().filter(compared).filter(|line| !public.iter().any(|text| line.contains(text)));
                    if !name.ends_with("tests.rs") && !path.to_string_lossy().contains("/tests/") {
                        found.extend(lines.map(|line| format!("{}: {}", path.display(), line.trim())));
                    }
                }
            }
        }
        assert!(files > 200, "{files}");
        assert!(found.is_empty(), "compare with same_as: {found:#?}");
    }

    #[test]
    fn comparison_sees_every_byte() {
        let secret = SecretBytes::new(vec![1, 2, 3]);
        assert!(secret.same_as(&[1, 2, 3]));
        assert!(!secret.same_as(&[1, 2, 4]));
        assert!(!secret.same_as(&[1, 2]));
    }
}
