//! RSA keys in the HSM: the private operation runs inside, hashing, encoding and padding outside (RFC 8017). Encrypting
//! and verifying need the public half alone and run here.

use futures_util::{StreamExt, stream};
use openssl::{
    pkey::{PKeyRef, Public},
    rsa::Padding,
};

use super::{
    Transit,
    alg::{
        asym::{AsymError, PublicKey},
        hash::HashAlgorithm,
        rsa::{self, Encryption, Scheme},
        rsa_padding::{BadPadding, decode_oaep, decode_pkcs1v15, encode_signature, fits},
    },
    ops::source,
    store::Loaded,
};
use crate::{
    core::failure::Failure,
    hsm::{HsmError, SignScheme},
    secret::SecretBytes,
};

/// Private operations of one request that are under way in the HSM at once: enough for the sessions of a large pool, and
/// few enough that none waits past its deadline.
pub const AT_ONCE: usize = 32;

/// A text to decrypt, and its place in the request.
pub struct RsaItem {
    /// The place.
    pub place: usize,
    /// The key version.
    pub loaded: std::sync::Arc<Loaded>,
    /// The ciphertext.
    pub sealed: Vec<u8>,
    /// How it was padded.
    pub padding: Encryption,
}

fn public_half(loaded: &Loaded) -> Result<&PKeyRef<Public>, Failure> {
    match &loaded.public {
        Some(PublicKey::Rsa(public)) => Ok(public),
        _ => Err(Failure::internal("the public half of an RSA key is missing")),
    }
}

impl Transit {
    /// Signs a digest. The outer error is the server's, the inner one the caller's.
    pub async fn sign_rsa_in_hsm(
        &self,
        loaded: &Loaded,
        digest: &[u8],
        hash: HashAlgorithm,
        scheme: Scheme,
    ) -> Result<Result<Vec<u8>, AsymError>, Failure> {
        let public = public_half(loaded)?.rsa().map_err(Failure::internal)?;
        let bits = usize::try_from(public.n().num_bits()).map_err(Failure::internal)?;
        let block = match rsa::check_length(digest, hash).and_then(|()| encode_signature(bits, digest, hash, scheme)) {
            Ok(block) => block,
            Err(error) => return Ok(Err(error)),
        };
        let signature = self.store.protection.hsm()?.sign(source(loaded)?, SignScheme::RsaRaw, &block).await?;
        // A signature with one fault in it gives the key away (Boneh, DeMillo and Lipton 1997), so each is checked before it
        // leaves; with the public exponent that costs little.
        let mut back = vec![0; block.len()];
        let verified = public.public_decrypt(&signature, &mut back, Padding::NONE);
        if verified.is_err() || back != block {
            return Err(Failure::internal("the HSM made an RSA signature that does not verify; it was withheld"));
        }
        Ok(Ok(signature))
    }

    /// Decrypts texts, several at a time; the answers carry the texts' places.
    pub async fn decrypt_rsa_in_hsm(
        &self,
        items: Vec<RsaItem>,
    ) -> Result<Vec<(usize, Result<SecretBytes, BadPadding>)>, Failure> {
        let many = items.len() > 1;
        let mut under_way = stream::iter(items)
            .map(|item| async move {
                let hash = HashAlgorithm::Sha2_256;
                let turn = if many { Some(self.stores.gate.private().await?) } else { None };
                let opened = self.decrypt_one_in_hsm(&item.loaded, &item.sealed, item.padding, hash).await;
                drop(turn);
                opened.map(|opened| (item.place, opened))
            })
            .buffer_unordered(AT_ONCE);
        let mut opened = Vec::new();
        while let Some(result) = under_way.next().await {
            opened.push(result?);
        }
        Ok(opened)
    }

    /// Decrypts one text; `hash` is that of OAEP. Whatever is wrong with the text is the same error.
    pub async fn decrypt_one_in_hsm(
        &self,
        loaded: &Loaded,
        sealed: &[u8],
        padding: Encryption,
        hash: HashAlgorithm,
    ) -> Result<Result<SecretBytes, BadPadding>, Failure> {
        let public = public_half(loaded)?.rsa().map_err(Failure::internal)?;
        if !fits(sealed, &public.n().to_vec()) {
            return Ok(Err(BadPadding));
        }
        let block = match self.store.protection.hsm()?.rsa_decrypt(source(loaded)?, sealed).await {
            Ok(block) => block,
            Err(HsmError::BadInput(_)) => return Ok(Err(BadPadding)),
            Err(error) => return Err(error.into()),
        };
        Ok(match padding {
            Encryption::Oaep => decode_oaep(&block, hash),
            Encryption::Pkcs1v15 => decode_pkcs1v15(&block),
        })
    }
}
