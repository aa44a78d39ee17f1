//! The layout of an encrypted record.
//!
//! ```text
//! offset  length  content
//! 0       1       format, 1
//! 1       4       key term, big endian; 0 means the root key (the keyring record only)
//! 5       12      nonce, random
//! 17      n       ciphertext (AES-256-GCM)
//! 17+n    16      tag
//! ```
//! The associated data is the storage path; the header needs none, because another term means another key and the
//! nonce is an input of the cipher.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Key, Nonce, Tag};

use super::BarrierError;
use crate::secret::{SecretBytes, fill_random};
use crate::stack;
use crate::storage::StorageError;

const FORMAT: u8 = 1;
const NONCE_LEN: usize = 12;
const TAG_LEN: usize = 16;
/// Up to the end of the nonce.
pub(super) const HEADER_LEN: usize = 1 + 4 + NONCE_LEN;

/// AES-256-GCM with the key schedule already made; the key is overwritten on drop.
pub(crate) struct Aead(Aes256Gcm);

impl Aead {
    /// Answers `None` unless `key` has 32 bytes.
    pub(crate) fn new(key: &[u8]) -> Option<Self> {
        key.try_into().ok().map(Self::from_array)
    }

    /// The cipher under `key`.
    pub(crate) fn from_array(key: &[u8; 32]) -> Self {
        let key: &Key<Aes256Gcm> = key.into();
        stack::clean(|| Self(Aes256Gcm::new(key)))
    }

    /// Encrypts under a fresh random nonce; answers nonce, ciphertext and tag behind `header`.
    fn seal(&self, header: &[u8], aad: &[u8], plaintext: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(header.len() + NONCE_LEN + plaintext.len() + TAG_LEN);
        out.extend_from_slice(header);
        let mut nonce = Nonce::default();
        fill_random(&mut nonce);
        out.extend_from_slice(&nonce);
        let start = out.len();
        out.extend_from_slice(plaintext);
        let text = out.get_mut(start..)?;
        let tag = stack::clean(|| self.0.encrypt_inout_detached(&nonce, aad, text.into())).ok()?;
        out.extend_from_slice(&tag);
        Some(out)
    }

    /// Opens nonce, ciphertext and tag behind `header` bytes, in place.
    fn open(&self, header: usize, aad: &[u8], mut sealed: Vec<u8>) -> Option<SecretBytes> {
        let end = sealed.len().checked_sub(TAG_LEN)?;
        let start = header + NONCE_LEN;
        let nonce = Nonce::try_from(sealed.get(header..start)?).ok()?;
        let tag = Tag::try_from(sealed.get(end..)?).ok()?;
        let text = sealed.get_mut(start..end)?;
        let opened = stack::clean(|| self.0.decrypt_inout_detached(&nonce, aad, text.into(), &tag));
        // The tag is compared before anything is decrypted: only now are the bytes a secret.
        let mut opened = opened.map(|()| SecretBytes::new(sealed)).ok()?;
        opened.narrow(start..end);
        Some(opened)
    }
}

/// Encrypts a record for `path`.
pub(super) fn seal(aead: &Aead, term: u32, path: &str, plaintext: &[u8]) -> Result<Vec<u8>, BarrierError> {
    let mut header = [FORMAT; 5];
    header[1..].copy_from_slice(&term.to_be_bytes());
    // The cipher fails only for inputs beyond 64 GiB.
    aead.seal(&header, path.as_bytes(), plaintext)
        .ok_or_else(|| StorageError::Invalid(format!("the value of {path:?} is too long")).into())
}

/// The term that a record names, when its outer form is right.
pub(super) fn term_of(path: &str, record: &[u8]) -> Result<u32, BarrierError> {
    let corrupt = |reason| BarrierError::Corrupt { path: path.to_owned(), reason };
    if record.len() < HEADER_LEN + TAG_LEN {
        return Err(corrupt("it is too short"));
    }
    match record {
        [FORMAT, a, b, c, d, ..] => Ok(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => Err(corrupt("its format is unknown")),
    }
}

/// Decrypts a record of `path` whose term has been looked up.
pub(super) fn open(aead: &Aead, path: &str, record: Vec<u8>) -> Result<SecretBytes, BarrierError> {
    aead.open(HEADER_LEN - NONCE_LEN, path.as_bytes(), record)
        .ok_or_else(|| BarrierError::Corrupt { path: path.to_owned(), reason: "it does not authenticate" })
}

/// Encrypts a small secret under a 32-byte key, bound to `aad`: nonce, ciphertext, tag. `None` for a key of another length.
pub(crate) fn seal_bytes(key: &SecretBytes, aad: &[u8], plaintext: &[u8]) -> Option<Vec<u8>> {
    Aead::new(key.expose())?.seal(&[], aad, plaintext)
}

/// Opens what [`seal_bytes`] made; `None` when key, binding or bytes are not the same.
pub(crate) fn open_bytes(key: &SecretBytes, aad: &[u8], sealed: &[u8]) -> Option<SecretBytes> {
    Aead::new(key.expose())?.open(0, aad, sealed.to_vec())
}
