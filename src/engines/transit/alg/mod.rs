//! The kinds of Transit keys and their algorithms, without storage, versions or policies.

pub mod aead;
pub mod asym;
pub mod ecdsa;
pub mod hash;
pub mod kdf;
pub mod pkcs8;
pub mod rsa;
pub mod rsa_padding;

use serde::{Deserialize, Serialize};

use crate::hsm;

/// The kind of a Transit key (Vault API: `type` of `transit/keys/:name`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KeyType {
    /// AES-128-GCM.
    #[serde(rename = "aes128-gcm96")]
    Aes128Gcm96,
    /// AES-256-GCM.
    #[serde(rename = "aes256-gcm96")]
    Aes256Gcm96,
    /// ChaCha20-Poly1305 with 12-byte nonces (RFC 8439).
    #[serde(rename = "chacha20-poly1305")]
    ChaCha20Poly1305,
    /// XChaCha20-Poly1305 with 24-byte nonces.
    #[serde(rename = "xchacha20-poly1305")]
    XChaCha20Poly1305,
    /// ECDSA on P-256.
    #[serde(rename = "ecdsa-p256")]
    EcdsaP256,
    /// ECDSA on P-384.
    #[serde(rename = "ecdsa-p384")]
    EcdsaP384,
    /// ECDSA on P-521.
    #[serde(rename = "ecdsa-p521")]
    EcdsaP521,
    /// Ed25519 (RFC 8032).
    #[serde(rename = "ed25519")]
    Ed25519,
    /// RSA with 2048 bits.
    #[serde(rename = "rsa-2048")]
    Rsa2048,
    /// RSA with 3072 bits.
    #[serde(rename = "rsa-3072")]
    Rsa3072,
    /// RSA with 4096 bits.
    #[serde(rename = "rsa-4096")]
    Rsa4096,
    /// HMAC with a key of chosen length.
    #[serde(rename = "hmac")]
    Hmac,
}

/// Fewest and most bytes of an HMAC key.
pub const HMAC_KEY_BYTES: std::ops::RangeInclusive<usize> = 32..=512;

impl KeyType {
    /// All types.
    pub const ALL: [Self; 12] = [
        Self::Aes128Gcm96,
        Self::Aes256Gcm96,
        Self::ChaCha20Poly1305,
        Self::XChaCha20Poly1305,
        Self::EcdsaP256,
        Self::EcdsaP384,
        Self::EcdsaP521,
        Self::Ed25519,
        Self::Rsa2048,
        Self::Rsa3072,
        Self::Rsa4096,
        Self::Hmac,
    ];

    /// The symmetric ciphers.
    pub const CIPHERS: [Self; 4] = [Self::Aes128Gcm96, Self::Aes256Gcm96, Self::ChaCha20Poly1305, Self::XChaCha20Poly1305];

    /// The type that a client names.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            KeyType::Aes128Gcm96 => "aes128-gcm96",
            KeyType::Aes256Gcm96 => "aes256-gcm96",
            KeyType::ChaCha20Poly1305 => "chacha20-poly1305",
            KeyType::XChaCha20Poly1305 => "xchacha20-poly1305",
            KeyType::EcdsaP256 => "ecdsa-p256",
            KeyType::EcdsaP384 => "ecdsa-p384",
            KeyType::EcdsaP521 => "ecdsa-p521",
            KeyType::Ed25519 => "ed25519",
            KeyType::Rsa2048 => "rsa-2048",
            KeyType::Rsa3072 => "rsa-3072",
            KeyType::Rsa4096 => "rsa-4096",
            KeyType::Hmac => "hmac",
        }
    }

    /// What reading a key calls each of its versions.
    pub fn version_name(self) -> &'static str {
        match self {
            KeyType::EcdsaP256 => "P-256",
            KeyType::EcdsaP384 => "P-384",
            KeyType::EcdsaP521 => "P-521",
            other => other.name(),
        }
    }

    /// Bytes of key material of a cipher; 0 for other types.
    pub fn key_len(self) -> usize {
        match self {
            KeyType::Aes128Gcm96 => 16,
            KeyType::Aes256Gcm96 | KeyType::ChaCha20Poly1305 | KeyType::XChaCha20Poly1305 => 32,
            _ => 0,
        }
    }

    /// Bytes of nonce in front of a cipher's text; 0 for other types.
    pub fn nonce_len(self) -> usize {
        match self {
            KeyType::XChaCha20Poly1305 => 24,
            KeyType::Aes128Gcm96 | KeyType::Aes256Gcm96 | KeyType::ChaCha20Poly1305 => 12,
            _ => 0,
        }
    }

    /// Whether random nonces may collide after about 2^32 encryptions under one key (NIST SP 800-38D, section 8.3).
    pub fn nonces_are_short(self) -> bool {
        self.is_cipher() && self.nonce_len() < 24
    }

    /// Whether it is a symmetric cipher with associated data.
    pub fn is_cipher(self) -> bool {
        self.key_len() > 0
    }

    /// Bits of an RSA type.
    pub fn rsa_bits(self) -> Option<u32> {
        match self {
            KeyType::Rsa2048 => Some(2048),
            KeyType::Rsa3072 => Some(3072),
            KeyType::Rsa4096 => Some(4096),
            _ => None,
        }
    }

    /// Whether it is an EC type.
    pub fn is_ecdsa(self) -> bool {
        matches!(self, KeyType::EcdsaP256 | KeyType::EcdsaP384 | KeyType::EcdsaP521)
    }

    /// Whether a version has a public half.
    pub fn is_asymmetric(self) -> bool {
        self.supports_signing()
    }

    /// Whether it encrypts and decrypts.
    pub fn supports_encryption(self) -> bool {
        self.is_cipher() || self.rsa_bits().is_some()
    }

    /// Whether it signs.
    pub fn supports_signing(self) -> bool {
        self.is_ecdsa() || self.rsa_bits().is_some() || self == KeyType::Ed25519
    }

    /// Whether contexts may derive the keys in use.
    pub fn supports_derivation(self) -> bool {
        self.is_cipher() || self == KeyType::Ed25519
    }

    /// Whether the input of a signature is hashed first.
    pub fn hashes_input(self) -> bool {
        self.supports_signing() && self != KeyType::Ed25519
    }

    /// The kind of HSM key that can do the same, where there is one.
    pub fn in_hsm(self) -> Option<hsm::KeyKind> {
        match self {
            KeyType::Aes128Gcm96 => Some(hsm::KeyKind::Aes128),
            KeyType::Aes256Gcm96 => Some(hsm::KeyKind::Aes256),
            KeyType::EcdsaP256 => Some(hsm::KeyKind::EcP256),
            KeyType::EcdsaP384 => Some(hsm::KeyKind::EcP384),
            KeyType::EcdsaP521 => Some(hsm::KeyKind::EcP521),
            KeyType::Ed25519 => Some(hsm::KeyKind::Ed25519),
            KeyType::Rsa2048 => Some(hsm::KeyKind::Rsa2048),
            KeyType::Rsa3072 => Some(hsm::KeyKind::Rsa3072),
            KeyType::Rsa4096 => Some(hsm::KeyKind::Rsa4096),
            KeyType::ChaCha20Poly1305 | KeyType::XChaCha20Poly1305 | KeyType::Hmac => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_types() {
        for kind in KeyType::ALL {
            assert_eq!(KeyType::named(kind.name()), Some(kind));
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("{:?}", kind.name()));
        }
        for name in ["", "AES256-GCM96", "rsa-1024"] {
            assert_eq!(KeyType::named(name), None, "{name:?}");
        }
    }
}
