//! How tokens look, and the salted hash that stands for them in the store.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::jwt::is_jwt;
use crate::secret::{SecretBytes, SecretString, fill_random};

const SERVICE_PREFIX: &str = "hvs.";
pub(super) const BATCH_PREFIX: &str = "hvb.";
const LENGTH: usize = 24;
const HEX: &[u8; 16] = b"0123456789abcdef";
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Whether the text has the form of a batch token.
pub fn is_batch(token: &str) -> bool {
    token.starts_with(BATCH_PREFIX)
}

/// Whether the token can only be one that a server made, with 128 random bits or more: chosen ones hold no dot. JWTs are
/// not meant: they cost more to look at than a hash.
pub fn is_unguessable(token: &SecretString) -> bool {
    let token = token.expose();
    token.len() >= LENGTH && token.contains('.') && !is_jwt(token)
}

/// A fresh service token: 24 characters of 62, 142 bits.
pub(super) fn service_token() -> SecretString {
    SecretString::new(format!("{SERVICE_PREFIX}{}", random_base62()))
}

/// A fresh accessor.
pub(super) fn accessor() -> String {
    random_base62()
}

/// Characters without bias: random bytes outside the largest multiple of 62 are thrown away.
fn random_base62() -> String {
    let mut text = String::with_capacity(LENGTH);
    let mut bytes = [0_u8; 32];
    while text.len() < LENGTH {
        fill_random(&mut bytes);
        let chars = bytes.iter().filter(|&&byte| byte < 248).filter_map(|&byte| ALPHABET.get(usize::from(byte % 62)));
        for &char in chars.take(LENGTH - text.len()) {
            text.push(char::from(char));
        }
    }
    crate::secret::wipe(&mut bytes);
    text
}

/// HMAC-SHA256 of tokens under the store's salt; the key schedule is made once.
pub(super) struct Hasher(Hmac<Sha256>);

impl Hasher {
    /// A hasher; `None` for a salt that HMAC does not take.
    pub(super) fn new(salt: &SecretBytes) -> Option<Self> {
        <Hmac<Sha256> as KeyInit>::new_from_slice(salt.expose()).ok().map(Self)
    }

    /// `h` and 64 hexadecimal digits.
    pub(super) fn hash(&self, token: &str) -> String {
        let mut mac = self.0.clone();
        mac.update(token.as_bytes());
        let digest = mac.finalize().into_bytes();
        let mut text = String::with_capacity(65);
        text.push('h');
        for byte in digest {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from(HEX[usize::from(digit)]));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_look_like_vaults_and_never_repeat() {
        let (one, two) = (service_token(), service_token());
        assert!(one.expose().starts_with("hvs."));
        assert_eq!(one.expose().len(), 28);
        assert!(one.expose()[4..].bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert!(!one.same_as(two.expose()));
    }

    #[test]
    fn hashes_depend_on_salt_and_token() {
        let hasher = |byte| Hasher::new(&SecretBytes::new(vec![byte; 32])).unwrap();
        assert_eq!(hasher(1).hash("a"), hasher(1).hash("a"));
        assert_ne!(hasher(1).hash("a"), hasher(1).hash("b"));
        assert_ne!(hasher(1).hash("a"), hasher(2).hash("a"));
        assert_eq!(hasher(1).hash("a").len(), 65);
    }
}
