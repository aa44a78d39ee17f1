//! Decrypting the texts of a request: which version a ciphertext names, and whether it may still be used.

use std::borrow::Cow;

use super::{
    ItemError, NO_CONTEXT, Opened, Results, TOO_OLD, check_associated, finish,
    in_hsm::{hsm_decrypt_item, join},
    in_process::open,
    set,
};
use crate::{
    core::failure::Failure,
    engines::transit::{
        Transit,
        alg::{rsa::Encryption, rsa_padding::BadPadding},
        b64,
        ciphertext::Ciphertext,
        gate::Place,
        lifecycle::SOFT_DELETED,
        protect::Level,
        rsa_in_hsm::RsaItem,
        store::{Key, LoadedKey},
        turn::Turn,
    },
    secret::SecretBytes,
};

/// A text to decrypt.
pub struct ToDecrypt<'a> {
    /// The text form.
    pub ciphertext: Cow<'a, str>,
    /// As in [`ToEncrypt`](super::ToEncrypt).
    pub context: Cow<'a, [u8]>,
    /// As in [`ToEncrypt`](super::ToEncrypt).
    pub nonce: Vec<u8>,
    /// As in [`ToEncrypt`](super::ToEncrypt).
    pub associated_data: Cow<'a, str>,
    /// As in [`ToEncrypt`](super::ToEncrypt).
    pub padding: Encryption,
}

impl Transit {
    /// Decrypts texts that are not in error already. `from` is the first one's place in the request.
    pub async fn decrypt_all(
        &self,
        key: &Key,
        from: usize,
        texts: Vec<Result<ToDecrypt<'_>, ItemError>>,
    ) -> Result<Vec<Result<SecretBytes, ItemError>>, Failure> {
        let mut opened = Opened::default();
        let mut results: Results<SecretBytes> = Vec::with_capacity(texts.len());
        let (mut batches, mut rsa_items) = (Vec::new(), Vec::new());
        let mut turn = Turn::begin();
        for (place, text) in texts.into_iter().enumerate() {
            match &text {
                Ok(text) if key.record.kind.is_cipher() => turn.give_way_for(text.ciphertext.len()).await,
                _ => turn.give_way().await,
            }
            let checked =
                text.and_then(|text| check_decrypt(key, from + place, &text).map(|(version, sealed)| (text, version, sealed)));
            let (text, version, sealed) = match checked {
                Ok(checked) => checked,
                Err(error) => {
                    results.push(Some(Err(error)));
                    continue;
                }
            };
            let result = match opened.version(self, key, version).await? {
                None => Some(Err(ItemError::user("no such key version"))),
                Some(loaded) => match &loaded.key {
                    LoadedKey::Wrapped(_) | LoadedKey::Token(_) if key.record.kind.rsa_bits().is_some() => {
                        rsa_items.push(RsaItem { place, loaded, sealed, padding: text.padding });
                        None
                    }
                    LoadedKey::Wrapped(_) | LoadedKey::Token(_) => match hsm_decrypt_item(&text, &sealed) {
                        Err(error) => Some(Err(error)),
                        Ok(item) => {
                            join(&mut batches, version, &loaded, place, item);
                            None
                        }
                    },
                    _ => Some(open(key, &loaded, &text, &sealed)),
                },
            };
            results.push(result);
        }
        for batch in batches {
            self.decrypt_in_hsm(batch, &mut results).await?;
        }
        for (place, opened) in self.decrypt_rsa_in_hsm(rsa_items).await? {
            set(&mut results, place, opened.map_err(|error| not_decrypted(&error)));
        }
        Ok(finish(results))
    }

    /// Where a batch is decrypted, whose items may be of any version.
    pub fn private_of(key: &Key) -> Place {
        match key.record.versions.iter().any(|line| line.level != Level::Software) {
            true => Place::Hsm,
            false => Place::Here,
        }
    }
}

/// The version that a ciphertext names, and its payload.
fn check_decrypt(key: &Key, place: usize, text: &ToDecrypt<'_>) -> Result<(u32, Vec<u8>), ItemError> {
    let record = &key.record;
    if record.soft_deleted {
        return Err(ItemError::user(SOFT_DELETED));
    }
    check_associated(record.kind, place, &text.associated_data)?;
    if !record.kind.supports_encryption() {
        return Err(ItemError::user(format!("message decryption not supported for key type {}", record.kind.name())));
    }
    let parsed = Ciphertext::parse(&text.ciphertext).map_err(|error| ItemError::user(error.to_string()))?;
    if parsed.version > i64::from(record.latest_version) {
        return Err(ItemError::user("invalid ciphertext: version is too new"));
    }
    let version = u32::try_from(parsed.version).unwrap_or(0);
    if version < record.min_decryption_version {
        return Err(ItemError::user(TOO_OLD));
    }
    let sealed = b64::decode(parsed.payload).map_err(|_| ItemError::user("invalid ciphertext: could not decode base64"))?;
    if record.derived() && text.context.is_empty() {
        return Err(ItemError::user(NO_CONTEXT));
    }
    Ok((version, sealed))
}

/// An RSA ciphertext that does not decrypt, whatever is wrong with it.
pub(super) fn not_decrypted(error: &BadPadding) -> ItemError {
    ItemError::internal(format!("failed to RSA decrypt the ciphertext: {error}"))
}
