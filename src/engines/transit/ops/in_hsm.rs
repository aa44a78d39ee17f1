//! The texts of a request whose key is in the HSM: those of one version go there together.

use std::sync::Arc;

use super::{
    BAD_LENGTH, Encrypted, ItemError, NOT_AUTHENTIC, Results, ToDecrypt, ToEncrypt, associated, nonces::Nonces, set, source,
};
use crate::{
    core::failure::Failure,
    engines::transit::{Transit, alg::aead::TAG_LEN, store::Loaded},
    hsm::{AeadItem, HsmError},
    secret::SecretBytes,
};

/// Texts that go to the HSM together: places in the request, and what to do.
pub(super) struct HsmBatch {
    version: u32,
    loaded: Arc<Loaded>,
    places: Vec<usize>,
    items: Vec<AeadItem>,
}

pub(super) fn join(batches: &mut Vec<HsmBatch>, version: u32, loaded: &Arc<Loaded>, place: usize, item: AeadItem) {
    match batches.iter_mut().find(|batch| batch.version == version) {
        Some(batch) => {
            batch.places.push(place);
            batch.items.push(item);
        }
        None => batches.push(HsmBatch { version, loaded: Arc::clone(loaded), places: vec![place], items: vec![item] }),
    }
}

impl Transit {
    pub(super) async fn encrypt_in_hsm(&self, batch: HsmBatch, results: &mut Results<Encrypted>) -> Result<(), Failure> {
        let limit = self.store.protection.facts()?.map_or(usize::MAX, |facts| facts.max_plaintext);
        let mut places = Vec::with_capacity(batch.places.len());
        let mut items = Vec::with_capacity(batch.items.len());
        for (place, item) in batch.places.into_iter().zip(batch.items) {
            if item.input.len() > limit {
                set(results, place, Err(over_limit(item.input.len(), limit)));
            } else {
                places.push(place);
                items.push(item);
            }
        }
        if items.is_empty() {
            return Ok(());
        }
        let ivs: Vec<[u8; 12]> = items.iter().map(|item| item.iv).collect();
        let sealed = self.store.protection.hsm()?.encrypt(source(&batch.loaded)?, items).await?;
        if sealed.len() != ivs.len() {
            return Err(Failure::internal("the HSM answered another number of texts than it was given"));
        }
        for ((place, iv), sealed) in places.into_iter().zip(ivs).zip(sealed) {
            let mut payload = Vec::with_capacity(iv.len() + sealed.len());
            payload.extend_from_slice(&iv);
            payload.extend_from_slice(&sealed);
            set(results, place, Ok(Encrypted { version: batch.version, payload }));
        }
        Ok(())
    }

    pub(super) async fn decrypt_in_hsm(&self, batch: HsmBatch, results: &mut Results<SecretBytes>) -> Result<(), Failure> {
        let opened = self.store.protection.hsm()?.decrypt(source(&batch.loaded)?, batch.items).await?;
        if opened.len() != batch.places.len() {
            return Err(Failure::internal("the HSM answered another number of texts than it was given"));
        }
        for (place, opened) in batch.places.into_iter().zip(opened) {
            match opened {
                Ok(plaintext) => set(results, place, Ok(plaintext)),
                Err(HsmError::BadInput(_)) => set(results, place, Err(ItemError::user(NOT_AUTHENTIC))),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

pub(super) fn hsm_encrypt_item(text: ToEncrypt<'_>, nonces: &mut Nonces) -> Result<AeadItem, ItemError> {
    let mut iv = [0; 12];
    nonces.take(&mut iv);
    Ok(AeadItem { iv, aad: associated(&text.associated_data)?, input: text.plaintext })
}

pub(super) fn hsm_decrypt_item(text: &ToDecrypt<'_>, sealed: &[u8]) -> Result<AeadItem, ItemError> {
    let aad = associated(&text.associated_data)?;
    let Some((iv, rest)) = sealed.split_first_chunk::<12>() else { return Err(ItemError::user(BAD_LENGTH)) };
    if rest.len() < TAG_LEN {
        return Err(ItemError::user(NOT_AUTHENTIC));
    }
    Ok(AeadItem { iv: *iv, aad, input: SecretBytes::new(rest.to_vec()) })
}

fn over_limit(len: usize, limit: usize) -> ItemError {
    ItemError::user(format!("the plaintext has {len} bytes; the HSM takes at most {limit} bytes in one operation"))
}
