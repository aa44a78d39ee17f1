//! The kinds of Transit keys and their algorithms, without storage, versions or policies.

pub mod aead;
pub mod kdf;

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
}

/// What a name of a key type stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// A type that keys can be made of.
    Known(KeyType),
    /// A type of the API that this server does not make yet.
    NotYet(&'static str),
    /// No type at all.
    Unknown,
}

const NOT_YET: [&str; 8] = ["ecdsa-p256", "ecdsa-p384", "ecdsa-p521", "ed25519", "rsa-2048", "rsa-3072", "rsa-4096", "hmac"];

impl KeyType {
    /// All types.
    pub const ALL: [Self; 4] = [Self::Aes128Gcm96, Self::Aes256Gcm96, Self::ChaCha20Poly1305, Self::XChaCha20Poly1305];

    /// The type that a client names.
    pub fn named(name: &str) -> Named {
        match Self::ALL.into_iter().find(|kind| kind.name() == name) {
            Some(kind) => Named::Known(kind),
            None => NOT_YET.into_iter().find(|known| *known == name).map_or(Named::Unknown, Named::NotYet),
        }
    }

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            KeyType::Aes128Gcm96 => "aes128-gcm96",
            KeyType::Aes256Gcm96 => "aes256-gcm96",
            KeyType::ChaCha20Poly1305 => "chacha20-poly1305",
            KeyType::XChaCha20Poly1305 => "xchacha20-poly1305",
        }
    }

    /// Bytes of key material.
    pub fn key_len(self) -> usize {
        match self {
            KeyType::Aes128Gcm96 => 16,
            KeyType::Aes256Gcm96 | KeyType::ChaCha20Poly1305 | KeyType::XChaCha20Poly1305 => 32,
        }
    }

    /// Bytes of nonce in front of a ciphertext.
    pub fn nonce_len(self) -> usize {
        match self {
            KeyType::XChaCha20Poly1305 => 24,
            KeyType::Aes128Gcm96 | KeyType::Aes256Gcm96 | KeyType::ChaCha20Poly1305 => 12,
        }
    }

    /// Whether random nonces may collide after about 2^32 encryptions under one key (NIST SP 800-38D, section 8.3).
    pub fn nonces_are_short(self) -> bool {
        self.nonce_len() < 24
    }

    /// The kind of HSM key that can do the same, where there is one.
    pub fn in_hsm(self) -> Option<hsm::KeyKind> {
        match self {
            KeyType::Aes128Gcm96 => Some(hsm::KeyKind::Aes128),
            KeyType::Aes256Gcm96 => Some(hsm::KeyKind::Aes256),
            KeyType::ChaCha20Poly1305 | KeyType::XChaCha20Poly1305 => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_types() {
        for kind in KeyType::ALL {
            assert_eq!(KeyType::named(kind.name()), Named::Known(kind));
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("{:?}", kind.name()));
        }
        assert_eq!(KeyType::named("rsa-2048"), Named::NotYet("rsa-2048"));
        for name in ["", "AES256-GCM96", "rsa-1024"] {
            assert_eq!(KeyType::named(name), Named::Unknown, "{name:?}");
        }
    }
}
