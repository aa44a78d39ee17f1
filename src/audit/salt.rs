//! The key of a device's HMACs: the same text has the same HMAC in all records of one device, and in no other's.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::secret::{SecretString, random_array};

/// What every HMAC of a record begins with.
const PREFIX: &[u8] = b"hmac-sha256:";

/// One device's salt.
pub struct Salt {
    text: SecretString,
    /// HMAC with the key schedule made; a key of any length is taken.
    keyed: Option<Hmac<Sha256>>,
}

impl std::fmt::Debug for Salt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Salt").finish_non_exhaustive()
    }
}

impl Salt {
    /// A new random salt.
    pub fn random() -> Self {
        Self::from_text(hex::encode(random_array::<32>()))
    }

    /// The salt as it was stored.
    pub fn from_text(text: String) -> Self {
        let keyed = Hmac::new_from_slice(text.as_bytes()).ok();
        Self { text: SecretString::new(text), keyed }
    }

    /// The text to store.
    pub fn expose(&self) -> &str {
        self.text.expose()
    }

    /// `hmac-sha256:` and the HMAC in hex.
    pub fn identify(&self, value: &[u8]) -> String {
        let mut text = Vec::with_capacity(PREFIX.len() + 64);
        self.identify_into(&mut text, value);
        String::from_utf8(text).unwrap_or_default()
    }

    /// The same, at the end of a text that is being written.
    pub fn identify_into(&self, text: &mut Vec<u8>, value: &[u8]) {
        let Some(mut mac) = self.keyed.clone() else { return };
        mac.update(value);
        let mut digits = [0; 64];
        // The buffer has twice the length of a digest.
        let _ = hex::encode_to_slice(mac.finalize().into_bytes(), &mut digits);
        text.extend_from_slice(PREFIX);
        text.extend_from_slice(&digits);
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
