//! Batch tokens: everything about the token is encrypted into the token, nothing is stored.
//!
//! `hvb.` and base64url of: format byte 1, nonce (12 bytes), AES-256-GCM ciphertext of [`Claims`] in postcard, tag.
//! The associated data is the prefix, so that the key serves nothing else.

use std::collections::BTreeMap;

use aes_gcm::{
    Aes256Gcm, Key, Nonce, Tag,
    aead::{AeadInOut, KeyInit},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use super::{TokenEntry, TokenKind, id::BATCH_PREFIX};
use crate::secret::{SecretBytes, SecretString, fill_random};

const FORMAT: u8 = 1;
const NONCE_LEN: usize = 12;
const TAG_LEN: usize = 16;

#[derive(Serialize, Deserialize)]
struct Claims {
    parent: String,
    policies: Vec<String>,
    path: String,
    display_name: String,
    meta: BTreeMap<String, String>,
    issued_at: i64,
    ttl: u64,
    expires_at: Option<i64>,
    role: String,
    bound_cidrs: Vec<String>,
    entity_id: String,
    no_identity_policies: bool,
}

/// Seals and opens batch tokens under the store's key.
pub(super) struct BatchCipher(Aes256Gcm);

impl BatchCipher {
    /// `None` unless the key has 32 bytes.
    pub(super) fn new(key: &SecretBytes) -> Option<Self> {
        let key: &[u8; 32] = key.expose().try_into().ok()?;
        let key: &Key<Aes256Gcm> = key.into();
        Some(Self(Aes256Gcm::new(key)))
    }

    /// The token that carries `entry`.
    pub(super) fn seal(&self, entry: &TokenEntry) -> Option<SecretString> {
        let claims = Claims {
            parent: entry.parent.clone(),
            policies: entry.policies.clone(),
            path: entry.path.clone(),
            display_name: entry.display_name.clone(),
            meta: entry.meta.clone(),
            issued_at: entry.issued_at,
            ttl: entry.creation_ttl,
            expires_at: entry.expires_at,
            role: entry.role.clone(),
            bound_cidrs: entry.bound_cidrs.clone(),
            entity_id: entry.entity_id.clone(),
            no_identity_policies: entry.no_identity_policies,
        };
        let mut nonce = Nonce::default();
        fill_random(&mut nonce);
        let mut bytes = vec![FORMAT];
        bytes.extend_from_slice(&nonce);
        let mut bytes = postcard::to_extend(&claims, bytes).ok()?;
        let text = bytes.get_mut(1 + NONCE_LEN..)?;
        let tag = self.0.encrypt_inout_detached(&nonce, BATCH_PREFIX.as_bytes(), text.into()).ok()?;
        bytes.extend_from_slice(&tag);
        Some(SecretString::new(format!("{BATCH_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))))
    }

    /// What a token carries; `None` for what this store did not make. `hash` becomes the entry's hash.
    pub(super) fn open(&self, token: &str, hash: String) -> Option<TokenEntry> {
        let bytes = URL_SAFE_NO_PAD.decode(token.strip_prefix(BATCH_PREFIX)?).ok()?;
        let sealed = bytes.strip_prefix(&[FORMAT])?;
        let (nonce, rest) = sealed.split_at_checked(NONCE_LEN)?;
        let (text, tag) = rest.split_at_checked(rest.len().checked_sub(TAG_LEN)?)?;
        let (nonce, tag) = (Nonce::try_from(nonce).ok()?, Tag::try_from(tag).ok()?);
        let mut text = text.to_vec();
        self.0.decrypt_inout_detached(&nonce, BATCH_PREFIX.as_bytes(), text.as_mut_slice().into(), &tag).ok()?;
        let claims: Claims = postcard::from_bytes(&text).ok()?;
        Some(TokenEntry {
            hash,
            parent: claims.parent,
            policies: claims.policies,
            path: claims.path,
            display_name: claims.display_name,
            meta: claims.meta,
            kind: TokenKind::Batch,
            creation_time: claims.issued_at.div_euclid(1_000_000_000),
            issued_at: claims.issued_at,
            creation_ttl: claims.ttl,
            ttl: claims.ttl,
            expires_at: claims.expires_at,
            role: claims.role,
            bound_cidrs: claims.bound_cidrs,
            entity_id: claims.entity_id,
            no_identity_policies: claims.no_identity_policies,
            ..TokenEntry::default()
        })
    }
}
