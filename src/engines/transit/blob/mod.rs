//! The text of a backup: base64 over JSON in the layout of Vault's own store, so that backups move between servers.
//!
//! ```text
//! { "policy": { "name", "type": number, "keys": { "<version>": entry, … from min_decryption_version }, bounds, flags },
//!   "archived_keys": { "keys": [ entry, … ] } }      the entry at i is of version i + min_available_version
//! entry: { "key", "hmac_key": base64, "time": RFC 3339, "ec_x", "ec_y", "ec_d": decimal numbers,
//!          "rsa_key": { "N", "E", "D", "Primes": [p, q], "Precomputed": { "Dp", "Dq", "Qinv" } }, "rsa_public_key",
//!          "public_key", "convergent_version", "creation_time": seconds, "certificate_chain": [base64],
//!          "sos_encryptions": number }
//! ```
//!
//! `sos_encryptions` is this server's own: how often a version may have encrypted, where that is counted. Other servers pass over
//! members that they do not know (Go's `encoding/json` does), and what they write has none.

mod layout;
mod numbers;
mod read;
mod write;

pub use self::{
    layout::{Blob, Entry, Info, Policy},
    write::{Written, write},
};
use super::alg::{KeyType, asym::AsymError};

/// A type's number. HMAC is 11 as in Vault, told from XChaCha20 (11 elsewhere) by its `key_size`.
pub fn number_of(kind: KeyType) -> i64 {
    match kind {
        KeyType::Aes256Gcm96 => 0,
        KeyType::EcdsaP256 => 1,
        KeyType::Ed25519 => 2,
        KeyType::Rsa2048 => 3,
        KeyType::Rsa4096 => 4,
        KeyType::ChaCha20Poly1305 => 5,
        KeyType::EcdsaP384 => 6,
        KeyType::EcdsaP521 => 7,
        KeyType::Aes128Gcm96 => 8,
        KeyType::Rsa3072 => 9,
        KeyType::Hmac | KeyType::XChaCha20Poly1305 => 11,
    }
}

/// The type of a number; servers number HMAC keys differently.
pub fn type_of(number: i64, key_size: u32) -> Option<KeyType> {
    match number {
        10 | 11 if key_size > 0 => Some(KeyType::Hmac),
        10 => Some(KeyType::Hmac),
        11 => Some(KeyType::XChaCha20Poly1305),
        _ => KeyType::ALL.into_iter().filter(|kind| number_of(*kind) < 10).find(|kind| number_of(*kind) == number),
    }
}

fn wrong(text: impl Into<String>) -> AsymError {
    AsymError::Key(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::transit::{
        protect::{Level, Material},
        record::{KeyRecord, VersionLine},
    };

    #[tokio::test]
    async fn entries_come_back_as_written() {
        for kind in KeyType::ALL.into_iter().filter(|kind| !matches!(kind, KeyType::Rsa3072 | KeyType::Rsa4096)) {
            let (material, public_key) = Material::fresh(kind, 64).await.unwrap();
            let line = VersionLine {
                version: 1,
                created: 1_700_000_000_123_456_789,
                level: Level::Software,
                revision: 0,
                public_key,
                moved_into_hsm: None,
                public_only: false,
                certificate_chain: vec![],
            };
            let mut record = KeyRecord::empty(kind, Level::Software);
            record.latest_version = 1;
            record.key_size = if kind == KeyType::Hmac { 64 } else { 0 };
            record.versions = vec![line.clone()];
            let written = Written { line: &line, convergent: 0, encryptions: 9 << 16, material: material.duplicate() };
            let blob = write("k", &record, &[written], || Ok(())).unwrap();
            let back: Blob<'_> = serde_json::from_slice(blob.expose()).unwrap();
            let policy = back.policy.unwrap();
            assert_eq!(type_of(policy.kind.unwrap(), record.key_size), Some(kind));
            let given = policy.keys.unwrap()["1"].given(kind, false, 0, 0).unwrap();
            assert!(given.material.key.same_as(material.key.expose()), "{}", kind.name());
            assert!(given.material.hmac_key.same_as(material.hmac_key.expose()));
            assert_eq!((given.created, given.public_key, given.encryptions), (line.created, line.public_key, 9 << 16));
            let archive = back.archived_keys.unwrap().keys.unwrap();
            assert!(archive[0].is_empty() && !archive[1].is_empty());
        }
    }

    #[test]
    fn halves_that_do_not_belong_together_are_refused() {
        let text = r#"{"ec_x":1,"ec_y":2,"ec_d":3}"#;
        let entry: Entry<'_> = serde_json::from_str(text).unwrap();
        assert!(entry.given(KeyType::EcdsaP256, false, 0, 0).is_err());
        let text = r#"{"rsa_key":{"N":15,"E":3,"D":3,"Primes":[3,7]}}"#;
        let entry: Entry<'_> = serde_json::from_str(text).unwrap();
        assert!(entry.given(KeyType::Rsa2048, false, 0, 0).is_err());
        let text = r#"{"key":"AAAA"}"#;
        let entry: Entry<'_> = serde_json::from_str(text).unwrap();
        assert!(entry.given(KeyType::Aes256Gcm96, false, 0, 0).is_err());
    }
}
