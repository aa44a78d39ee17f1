//! One text and a key that is open in this process: the cipher of its version or one derived from a context, or RSA.

use super::{
    BAD_LENGTH, Encrypted, ItemError, ToDecrypt, ToEncrypt, associated, decrypt::not_decrypted, nonces::Nonces, not_authentic,
};
use crate::{
    engines::transit::{
        alg::{
            KeyType,
            aead::{Cipher, hmac_sha256},
            asym::{PrivateKey, PublicKey},
            rsa,
            rsa_padding::BadPadding,
        },
        store::{Key, Loaded, LoadedKey},
    },
    secret::SecretBytes,
};

pub(super) fn seal(
    key: &Key,
    loaded: &Loaded,
    version: u32,
    text: &ToEncrypt<'_>,
    nonces: &mut Nonces,
) -> Result<Encrypted, ItemError> {
    let kind = key.record.kind;
    if let Some(PublicKey::Rsa(public)) = &loaded.public {
        let sealed = rsa::encrypt(public, text.plaintext.expose(), text.padding);
        let failed = |error| ItemError::internal(format!("failed to RSA encrypt the plaintext: {error}"));
        return Ok(Encrypted { version, payload: sealed.map_err(failed)? });
    }
    if loaded.convergent_version != 1 && !text.nonce.is_empty() {
        return Err(ItemError::user("nonce provided when not allowed"));
    }
    let (cipher, mac) = cipher_for(kind, loaded, &text.context)?;
    let aad = associated(&text.associated_data)?;
    let plaintext = text.plaintext.expose();
    let mut room = [0; 24];
    let nonce = room.get_mut(..kind.nonce_len()).unwrap_or_default();
    match loaded.convergent_version {
        0 => nonces.take(nonce),
        1 => {
            if text.nonce.len() != nonce.len() {
                return Err(ItemError::user(format!(
                    "base64-decoded nonce must be {} bytes long when using convergent encryption with this key",
                    nonce.len()
                )));
            }
            nonce.copy_from_slice(&text.nonce);
        }
        convergent => {
            let mac_key = if convergent == 2 { &text.context } else { mac.expose() };
            let sum = hmac_sha256(mac_key, plaintext);
            nonce.iter_mut().zip(sum).for_each(|(to, from)| *to = from);
        }
    }
    let sealed = cipher.cipher().seal(nonce, &aad, plaintext);
    let mut payload = sealed.ok_or_else(|| ItemError::user("the plaintext is too long"))?;
    if loaded.convergent_version == 1 {
        // The caller keeps the nonce.
        payload.drain(..nonce.len());
    }
    Ok(Encrypted { version, payload })
}

pub(super) fn open(key: &Key, loaded: &Loaded, text: &ToDecrypt<'_>, sealed: &[u8]) -> Result<SecretBytes, ItemError> {
    let kind = key.record.kind;
    if kind.rsa_bits().is_some() {
        let LoadedKey::Private(PrivateKey::Rsa(private)) = &loaded.key else {
            return Err(ItemError::internal("cannot decrypt ciphertext, key version does not have a private counterpart"));
        };
        // The library's reason would tell which part of the padding is wrong.
        return rsa::decrypt(private, sealed, text.padding).map_err(|_| not_decrypted(&BadPadding));
    }
    let (cipher, _) = cipher_for(kind, loaded, &text.context)?;
    let aad = associated(&text.associated_data)?;
    let bad_length = || ItemError::user(BAD_LENGTH);
    if loaded.convergent_version == 1 && text.nonce.is_empty() {
        return Err(ItemError::user("invalid convergent nonce supplied"));
    }
    let (nonce, rest) = sealed.split_at_checked(kind.nonce_len()).ok_or_else(bad_length)?;
    // A caller who chose the nonce keeps it; it is not in the ciphertext.
    let (nonce, sealed) = if loaded.convergent_version == 1 { (text.nonce.as_slice(), sealed) } else { (nonce, rest) };
    if nonce.len() != kind.nonce_len() {
        return Err(ItemError::user("invalid nonce: a convergent key of version 1 needs the nonce of the encryption"));
    }
    cipher.cipher().open(nonce, &aad, sealed).ok_or_else(|| not_authentic(kind))
}

/// A cipher for one use: that of the version, or one derived from the context.
enum InUse<'a> {
    Shared(&'a Cipher),
    Own(Cipher),
}

impl InUse<'_> {
    fn cipher(&self) -> &Cipher {
        match self {
            InUse::Shared(cipher) => cipher,
            InUse::Own(cipher) => cipher,
        }
    }
}

/// The cipher of a version for a context, and the key that convergent nonces come from.
fn cipher_for<'a>(kind: KeyType, loaded: &'a Loaded, context: &[u8]) -> Result<(InUse<'a>, SecretBytes), ItemError> {
    let underivable = || ItemError::internal("could not derive key, length too small");
    match &loaded.key {
        LoadedKey::Cipher(cipher) => Ok((InUse::Shared(cipher), SecretBytes::default())),
        LoadedKey::Derived(kdf, secret) => {
            let mac_len = if loaded.convergent_version > 2 { 32 } else { 0 };
            let derived = kdf.derive(secret.expose(), context, kind.key_len() + mac_len).ok_or_else(underivable)?;
            let (key, mac) = derived.expose().split_at_checked(kind.key_len()).ok_or_else(underivable)?;
            let cipher = Cipher::new(kind, key).ok_or_else(underivable)?;
            Ok((InUse::Own(cipher), SecretBytes::new(mac.to_vec())))
        }
        _ => Err(ItemError::internal("the key is not a cipher in software")),
    }
}
