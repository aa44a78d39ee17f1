//! The symmetric ciphers of Transit. Layout of a sealed text: nonce, ciphertext, 16-byte tag.

use aes_gcm::{
    Aes128Gcm, Aes256Gcm,
    aead::{AeadInOut, KeyInit, Nonce, Tag},
};
use chacha20poly1305::{ChaCha20Poly1305, XChaCha20Poly1305};
use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::KeyType;
use crate::{secret::SecretBytes, stack};

/// Bytes of authentication tag behind a ciphertext.
pub const TAG_LEN: usize = 16;

/// A cipher with its key schedule made; the key is overwritten on drop.
pub enum Cipher {
    /// AES-128-GCM.
    Aes128(Box<Aes128Gcm>),
    /// AES-256-GCM.
    Aes256(Box<Aes256Gcm>),
    /// ChaCha20-Poly1305.
    ChaCha(ChaCha20Poly1305),
    /// XChaCha20-Poly1305.
    XChaCha(XChaCha20Poly1305),
}

impl Cipher {
    /// The cipher of a key type; `None` when `key` has another length than the type needs.
    pub fn new(kind: KeyType, key: &[u8]) -> Option<Self> {
        Some(match kind {
            KeyType::Aes128Gcm96 => Cipher::Aes128(Box::new(Aes128Gcm::new_from_slice(key).ok()?)),
            KeyType::Aes256Gcm96 => Cipher::Aes256(Box::new(Aes256Gcm::new_from_slice(key).ok()?)),
            KeyType::ChaCha20Poly1305 => Cipher::ChaCha(ChaCha20Poly1305::new_from_slice(key).ok()?),
            KeyType::XChaCha20Poly1305 => Cipher::XChaCha(XChaCha20Poly1305::new_from_slice(key).ok()?),
            _ => return None,
        })
    }

    /// Encrypts under `nonce`; answers nonce, ciphertext and tag. `None` for texts beyond the cipher's limit or a
    /// nonce of another length.
    pub fn seal(&self, nonce: &[u8], aad: &[u8], plaintext: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(nonce.len() + plaintext.len() + TAG_LEN);
        out.extend_from_slice(nonce);
        out.extend_from_slice(plaintext);
        let text = out.get_mut(nonce.len()..)?;
        match self {
            Cipher::Aes128(cipher) => seal_with(cipher.as_ref(), nonce, aad, text)?,
            Cipher::Aes256(cipher) => seal_with(cipher.as_ref(), nonce, aad, text)?,
            Cipher::ChaCha(cipher) => seal_with(cipher, nonce, aad, text)?,
            Cipher::XChaCha(cipher) => seal_with(cipher, nonce, aad, text)?,
        }
        .into_iter()
        .for_each(|byte| out.push(byte));
        Some(out)
    }

    /// Decrypts ciphertext and tag; `None` when they do not authenticate.
    pub fn open(&self, nonce: &[u8], aad: &[u8], sealed: &[u8]) -> Option<SecretBytes> {
        let (ciphertext, tag) = sealed.split_at_checked(sealed.len().checked_sub(TAG_LEN)?)?;
        match self {
            Cipher::Aes128(cipher) => open_with(cipher.as_ref(), nonce, aad, ciphertext, tag),
            Cipher::Aes256(cipher) => open_with(cipher.as_ref(), nonce, aad, ciphertext, tag),
            Cipher::ChaCha(cipher) => open_with(cipher, nonce, aad, ciphertext, tag),
            Cipher::XChaCha(cipher) => open_with(cipher, nonce, aad, ciphertext, tag),
        }
    }
}

fn seal_with<C: AeadInOut>(cipher: &C, nonce: &[u8], aad: &[u8], text: &mut [u8]) -> Option<[u8; TAG_LEN]> {
    let nonce: Nonce<C> = nonce.try_into().ok()?;
    let tag = stack::clean(|| cipher.encrypt_inout_detached(&nonce, aad, text.into())).ok()?;
    tag.as_slice().try_into().ok()
}

fn open_with<C: AeadInOut>(cipher: &C, nonce: &[u8], aad: &[u8], ciphertext: &[u8], tag: &[u8]) -> Option<SecretBytes> {
    let nonce: Nonce<C> = nonce.try_into().ok()?;
    let tag: Tag<C> = tag.try_into().ok()?;
    let mut text = ciphertext.to_vec();
    stack::clean(|| cipher.decrypt_inout_detached(&nonce, aad, text.as_mut_slice().into(), &tag)).ok()?;
    Some(SecretBytes::new(text))
}

/// HMAC-SHA-256: the source of convergent nonces.
pub fn hmac_sha256(key: &[u8], text: &[u8]) -> [u8; 32] {
    // HMAC takes keys of every length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return [0; 32] };
    mac.update(text);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_sealed_opens_and_nothing_else(
            text in proptest::collection::vec(any::<u8>(), 0..300),
            aad in proptest::collection::vec(any::<u8>(), 0..40),
            flip in any::<prop::sample::Index>(),
        ) {
            for kind in KeyType::CIPHERS {
                let cipher = Cipher::new(kind, &vec![7; kind.key_len()]).unwrap();
                let nonce = vec![9; kind.nonce_len()];
                let mut sealed = cipher.seal(&nonce, &aad, &text).unwrap();
                prop_assert_eq!(sealed.len(), kind.nonce_len() + text.len() + TAG_LEN);
                let opened = cipher.open(&nonce, &aad, &sealed[nonce.len()..]).unwrap();
                prop_assert_eq!(opened.expose(), text.as_slice());
                let at = nonce.len() + flip.index(sealed.len() - nonce.len());
                sealed[at] ^= 1;
                prop_assert!(cipher.open(&nonce, &aad, &sealed[nonce.len()..]).is_none());
            }
        }
    }

    #[test]
    fn wrong_lengths_are_refused() {
        for kind in KeyType::CIPHERS {
            assert!(Cipher::new(kind, &[1; 8]).is_none());
            let cipher = Cipher::new(kind, &vec![1; kind.key_len()]).unwrap();
            assert!(cipher.seal(&[0; 5], b"", b"x").is_none());
            assert!(cipher.open(&vec![0; kind.nonce_len()], b"", &[0; 15]).is_none());
        }
    }
}
