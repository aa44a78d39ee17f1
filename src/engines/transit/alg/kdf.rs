//! Key derivation from a context: what makes one derived Transit key many keys.

use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::aead::hmac_sha256;
use crate::secret::SecretBytes;

/// How a derived key comes from the stored one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kdf {
    /// HKDF-SHA-256 without salt, the context as info (RFC 5869). All new keys.
    HkdfSha256,
    /// The counter mode of NIST SP 800-108 over HMAC-SHA-256, counter from 0, length in bits at the end. Only in keys
    /// that come from very old servers; it yields 32 bytes.
    HmacSha256Counter,
}

impl Kdf {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Kdf::HkdfSha256 => "hkdf_sha256",
            Kdf::HmacSha256Counter => "hmac-sha256-counter",
        }
    }

    /// `len` bytes for a context; `None` when the function cannot give so many.
    pub fn derive(self, key: &[u8], context: &[u8], len: usize) -> Option<SecretBytes> {
        match self {
            Kdf::HkdfSha256 => {
                let mut out = vec![0; len];
                Hkdf::<Sha256>::new(None, key).expand(context, &mut out).ok()?;
                Some(SecretBytes::new(out))
            }
            Kdf::HmacSha256Counter => {
                const BITS: u32 = 256;
                let mut input = Vec::with_capacity(8 + context.len());
                input.extend_from_slice(&0_u32.to_be_bytes());
                input.extend_from_slice(context);
                input.extend_from_slice(&BITS.to_be_bytes());
                let block = SecretBytes::new(hmac_sha256(key, &input).to_vec());
                Some(SecretBytes::new(block.expose().get(..len)?.to_vec()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cases 1 and 2 have a salt, which Vault gives to no derived key: the context is the info, and the salt is empty. The one
    /// user of a salt runs them (`seal/escrow.rs`).
    #[test]
    fn hkdf_agrees_with_rfc_5869_case_3_without_info() {
        let key = [0x0b; 22];
        let out = Kdf::HkdfSha256.derive(&key, b"", 42).unwrap();
        assert_eq!(
            hex::encode(out.expose()),
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
        );
    }

    #[test]
    fn the_counter_function_gives_no_more_than_it_has() {
        assert!(Kdf::HmacSha256Counter.derive(&[1; 32], b"c", 33).is_none());
        assert_eq!(Kdf::HmacSha256Counter.derive(&[1; 32], b"c", 16).unwrap().len(), 16);
    }
}
