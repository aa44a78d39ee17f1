//! The key of a device's HMACs: the same text has the same HMAC in all records of one device, and in no other's.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::secret::{SecretString, random_array};

/// One device's salt.
#[derive(Debug)]
pub struct Salt(SecretString);

impl Salt {
    /// A new random salt.
    pub fn random() -> Self {
        Self(SecretString::new(hex::encode(random_array::<32>())))
    }

    /// The salt as it was stored.
    pub fn from_text(text: String) -> Self {
        Self(SecretString::new(text))
    }

    /// The text to store.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }

    /// `hmac-sha256:` and the HMAC in hex.
    pub fn identify(&self, value: &[u8]) -> String {
        // A key of any length is taken, so there is nothing to fail.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(self.0.expose().as_bytes()) else { return String::new() };
        mac.update(value);
        format!("hmac-sha256:{}", hex::encode(mac.finalize().into_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_plain_hmac_under_the_salt() {
        let salt = Salt::from_text("key".into());
        let text = salt.identify(b"The quick brown fox jumps over the lazy dog");
        assert_eq!(text, "hmac-sha256:f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8");
    }

    #[test]
    fn salts_differ() {
        assert_ne!(Salt::random().identify(b"x"), Salt::random().identify(b"x"));
    }
}
