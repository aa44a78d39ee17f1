//! Attribute templates. Every usage flag is stated in each of them: modules differ wildly in their defaults.

use cryptoki_sys::*;

use crate::hsm::raw::Attribute;
use crate::hsm::{KeyId, KeyKind};

/// What a key may be used for; all else is refused.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub encrypt: bool,
    pub decrypt: bool,
    pub wrap: bool,
    pub unwrap: bool,
    pub sign: bool,
    pub verify: bool,
}

impl Usage {
    /// Seal keys and Transit AES keys: encrypt and decrypt, never wrap.
    pub const CIPHER: Self = Self { encrypt: true, decrypt: true, wrap: false, unwrap: false, sign: false, verify: false };
    /// Zone master keys: a key with both wrap and decrypt would reveal what it wraps.
    pub const WRAPPER: Self = Self { encrypt: false, decrypt: false, wrap: true, unwrap: true, sign: false, verify: false };
    /// Signature keys and the MAC half of a CBC seal key.
    pub const SIGNER: Self = Self { encrypt: false, decrypt: false, wrap: false, unwrap: false, sign: true, verify: true };
}

/// Where a key lives.
#[derive(Clone, Copy)]
pub enum Place<'a> {
    /// Until the session that made it ends.
    Session,
    /// On the token.
    Token {
        /// CKA_LABEL.
        label: &'a str,
        /// CKA_ID.
        id: KeyId,
    },
}

impl Place<'_> {
    /// CKA_TOKEN, CKA_LABEL and CKA_ID.
    pub fn attributes(&self) -> Vec<Attribute> {
        match self {
            Place::Session => vec![Attribute::flag(CKA_TOKEN, false)],
            Place::Token { label, id } => vec![
                Attribute::flag(CKA_TOKEN, true),
                Attribute::bytes(CKA_LABEL, label.as_bytes()),
                Attribute::bytes(CKA_ID, &id.0),
            ],
        }
    }
}

/// A secret key. `len` belongs to generated keys, `value` to imported ones, neither to unwrapped ones.
pub fn secret(key_type: CK_KEY_TYPE, place: Place<'_>, usage: Usage, extractable: bool) -> Vec<Attribute> {
    let mut template = place.attributes();
    template.extend([
        Attribute::number(CKA_CLASS, CKO_SECRET_KEY),
        Attribute::number(CKA_KEY_TYPE, key_type),
        Attribute::flag(CKA_PRIVATE, true),
        Attribute::flag(CKA_SENSITIVE, true),
        Attribute::flag(CKA_EXTRACTABLE, extractable),
        Attribute::flag(CKA_ENCRYPT, usage.encrypt),
        Attribute::flag(CKA_DECRYPT, usage.decrypt),
        Attribute::flag(CKA_WRAP, usage.wrap),
        Attribute::flag(CKA_UNWRAP, usage.unwrap),
        Attribute::flag(CKA_SIGN, usage.sign),
        Attribute::flag(CKA_VERIFY, usage.verify),
        Attribute::flag(CKA_DERIVE, false),
    ]);
    template
}

/// A secret key to be generated with `len` bytes.
pub fn secret_of_len(key_type: CK_KEY_TYPE, place: Place<'_>, usage: Usage, extractable: bool, len: usize) -> Vec<Attribute> {
    let mut template = secret(key_type, place, usage, extractable);
    template.push(Attribute::number(CKA_VALUE_LEN, len as CK_ULONG));
    template
}

/// A secret key with given material.
pub fn secret_of_value(key_type: CK_KEY_TYPE, place: Place<'_>, usage: Usage, extractable: bool, value: &[u8]) -> Vec<Attribute> {
    let mut template = secret(key_type, place, usage, extractable);
    template.push(Attribute::bytes(CKA_VALUE, value));
    template
}

/// A private key.
pub fn private(key_type: CK_KEY_TYPE, place: Place<'_>, usage: Usage, extractable: bool) -> Vec<Attribute> {
    let mut template = place.attributes();
    template.extend([
        Attribute::number(CKA_CLASS, CKO_PRIVATE_KEY),
        Attribute::number(CKA_KEY_TYPE, key_type),
        Attribute::flag(CKA_PRIVATE, true),
        Attribute::flag(CKA_SENSITIVE, true),
        Attribute::flag(CKA_EXTRACTABLE, extractable),
        Attribute::flag(CKA_DECRYPT, usage.decrypt),
        Attribute::flag(CKA_SIGN, usage.sign),
        Attribute::flag(CKA_UNWRAP, false),
        Attribute::flag(CKA_DERIVE, false),
    ]);
    template
}

/// A public key.
pub fn public(key_type: CK_KEY_TYPE, place: Place<'_>, usage: Usage) -> Vec<Attribute> {
    let mut template = place.attributes();
    template.extend([
        Attribute::number(CKA_CLASS, CKO_PUBLIC_KEY),
        Attribute::number(CKA_KEY_TYPE, key_type),
        Attribute::flag(CKA_PRIVATE, false),
        Attribute::flag(CKA_ENCRYPT, usage.encrypt),
        Attribute::flag(CKA_VERIFY, usage.verify),
        Attribute::flag(CKA_WRAP, usage.wrap),
    ]);
    template
}

/// CKA_KEY_TYPE of a kind.
pub fn key_type(kind: KeyKind) -> CK_KEY_TYPE {
    match kind {
        KeyKind::Aes128 | KeyKind::Aes256 => CKK_AES,
        KeyKind::EcP256 | KeyKind::EcP384 | KeyKind::EcP521 => CKK_EC,
        KeyKind::Ed25519 => CKK_EC_EDWARDS,
        KeyKind::Rsa2048 | KeyKind::Rsa3072 | KeyKind::Rsa4096 => CKK_RSA,
    }
}

/// Length in bits of an RSA kind's modulus.
pub fn rsa_bits(kind: KeyKind) -> Option<CK_ULONG> {
    match kind {
        KeyKind::Rsa2048 => Some(2048),
        KeyKind::Rsa3072 => Some(3072),
        KeyKind::Rsa4096 => Some(4096),
        _ => None,
    }
}

/// Length in bytes of an AES kind's key.
pub fn aes_len(kind: KeyKind) -> Option<usize> {
    match kind {
        KeyKind::Aes128 => Some(16),
        KeyKind::Aes256 => Some(32),
        _ => None,
    }
}
