//! The seal: a key that only encrypts and decrypts, by the best mechanism that the module has.
//!
//! Blob layouts: AES-GCM `IV(12) ciphertext tag(16)`; RSA-OAEP `length(2) OAEP(data key) IV(12) ciphertext tag(16)`, where the data
//! key is fresh for each blob and used in software, because OAEP takes only some 200 bytes and has no associated data;
//! AES-CBC `IV(16) ciphertext HMAC(32)`, the HMAC being over the associated data's length, the associated data, IV and
//! ciphertext, PKCS#7 padding.

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use cryptoki_sys::*;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::Call;
use super::cipher::is_bad_data;
use crate::hsm::proto::{Bytes, Failure, Frame, Reply};
use crate::hsm::raw::{Attribute, Mechanism, Object};
use crate::hsm::worker::Trouble;
use crate::hsm::worker::template::{self, Place, Usage};
use crate::hsm::{KeyId, Mechanism as BlobMechanism};
use crate::secret::{SecretBytes, random_array};

const RSA_BITS: u64 = 3072;
const HMAC_LEN: usize = 32;

/// Makes the seal key that the chosen mechanism needs.
pub fn create(call: &Call<'_>, label: &str, id: KeyId) -> Result<Frame, Trouble> {
    let (module, session) = (&call.device.module, call.session);
    let place = Place::Token { label, id };
    let _guard = call.device.objects(call.current);
    call.refuse_taken(id)?;
    match call.seal_mechanism {
        BlobMechanism::AesGcm => {
            let template = template::secret_of_len(CKK_AES, place, Usage::CIPHER, false, 32);
            module.generate_key(session, CKM_AES_KEY_GEN, &template)?;
        }
        BlobMechanism::RsaOaepSha1 | BlobMechanism::RsaOaepSha256 => {
            let mut public = template::public(CKK_RSA, place, Usage { encrypt: true, ..Usage::default() });
            public.push(Attribute::number(CKA_MODULUS_BITS, RSA_BITS));
            public.push(Attribute::bytes(CKA_PUBLIC_EXPONENT, &[1, 0, 1]));
            let private = template::private(CKK_RSA, place, Usage { decrypt: true, ..Usage::default() }, false);
            module.generate_pair(session, CKM_RSA_PKCS_KEY_PAIR_GEN, &public, &private)?;
        }
        BlobMechanism::AesCbcHmac => {
            let cipher = template::secret_of_len(CKK_AES, place, Usage::CIPHER, false, 32);
            let cipher = module.generate_key(session, CKM_AES_KEY_GEN, &cipher)?;
            let mac = template::secret_of_len(CKK_GENERIC_SECRET, place, Usage::SIGNER, false, HMAC_LEN);
            if let Err(error) = module.generate_key(session, CKM_GENERIC_SECRET_KEY_GEN, &mac) {
                // Half a seal key is none.
                let _ = module.destroy(session, cipher);
                return Err(error.into());
            }
        }
        BlobMechanism::AesKw | BlobMechanism::AesKwp => return Err(no_seal()),
    }
    call.reply(&Reply::Done)
}

/// Encrypts under a seal key, by the mechanism that the key on the token is for.
pub fn seal(call: &Call<'_>, id: KeyId, plaintext: &[u8], aad: &[u8]) -> Result<Frame, Trouble> {
    let mechanism = mechanism_of(call, id)?;
    let bytes = match mechanism {
        BlobMechanism::AesGcm => {
            let key = call.device.token_key(call.current, id, CKO_SECRET_KEY, CKK_AES)?;
            seal_gcm(call, key, plaintext, aad)?
        }
        BlobMechanism::RsaOaepSha1 | BlobMechanism::RsaOaepSha256 => {
            let key = call.device.token_key(call.current, id, CKO_PUBLIC_KEY, CKK_RSA)?;
            seal_oaep(call, key, mechanism, plaintext, aad)?
        }
        BlobMechanism::AesCbcHmac => {
            let key = call.device.token_key(call.current, id, CKO_SECRET_KEY, CKK_AES)?;
            let mac = call.device.token_key(call.current, id, CKO_SECRET_KEY, CKK_GENERIC_SECRET)?;
            seal_cbc(call, key, mac, plaintext, aad)?
        }
        BlobMechanism::AesKw | BlobMechanism::AesKwp => return Err(no_seal()),
    };
    call.reply(&Reply::Blob { mechanism, bytes: Bytes(&bytes) })
}

/// The mechanism that a seal key was made for: the configured one is only for new keys. Sealing is rare, so looking
/// costs little.
fn mechanism_of(call: &Call<'_>, id: KeyId) -> Result<BlobMechanism, Trouble> {
    let exists = |class, key_type| match call.device.token_key(call.current, id, class, key_type) {
        Ok(_) => Ok(true),
        Err(Trouble::Missing(_)) => Ok(false),
        Err(trouble) => Err(trouble),
    };
    if exists(CKO_SECRET_KEY, CKK_AES)? {
        let mac = exists(CKO_SECRET_KEY, CKK_GENERIC_SECRET)?;
        return Ok(if mac { BlobMechanism::AesCbcHmac } else { BlobMechanism::AesGcm });
    }
    if exists(CKO_PUBLIC_KEY, CKK_RSA)? {
        let sha256 = call.seal_mechanism == BlobMechanism::RsaOaepSha256;
        return Ok(if sha256 { BlobMechanism::RsaOaepSha256 } else { BlobMechanism::RsaOaepSha1 });
    }
    Err(Trouble::Missing(id))
}

/// Opens a blob by the mechanism that it names, whatever new seal keys use.
pub fn unseal(call: &Call<'_>, id: KeyId, mechanism: BlobMechanism, blob: &[u8], aad: &[u8]) -> Result<Frame, Trouble> {
    let plaintext = match mechanism {
        BlobMechanism::AesGcm => {
            let key = call.device.token_key(call.current, id, CKO_SECRET_KEY, CKK_AES)?;
            unseal_gcm(call, key, blob, aad)?
        }
        BlobMechanism::RsaOaepSha1 | BlobMechanism::RsaOaepSha256 => {
            let key = call.device.token_key(call.current, id, CKO_PRIVATE_KEY, CKK_RSA)?;
            unseal_oaep(call, key, mechanism, blob, aad)?
        }
        BlobMechanism::AesCbcHmac => {
            let key = call.device.token_key(call.current, id, CKO_SECRET_KEY, CKK_AES)?;
            let mac = call.device.token_key(call.current, id, CKO_SECRET_KEY, CKK_GENERIC_SECRET)?;
            unseal_cbc(call, key, mac, blob, aad)?
        }
        BlobMechanism::AesKw | BlobMechanism::AesKwp => return Err(no_seal()),
    };
    call.reply(&Reply::Bytes(Bytes(&plaintext)))
}

fn seal_gcm(call: &Call<'_>, key: Object, plaintext: &[u8], aad: &[u8]) -> Result<Vec<u8>, Trouble> {
    let iv = random_array::<12>();
    let output = call.device.module.encrypt(call.session, Mechanism::Gcm { iv: &iv, aad }, key, plaintext, 16)?;
    Ok([&iv[..], &output].concat())
}

fn unseal_gcm(call: &Call<'_>, key: Object, blob: &[u8], aad: &[u8]) -> Result<Zeroizing<Vec<u8>>, Trouble> {
    let (iv, ciphertext) = blob.split_first_chunk::<12>().filter(|(_, rest)| rest.len() >= 16).ok_or_else(cut)?;
    judged(call, call.device.module.decrypt(call.session, Mechanism::Gcm { iv, aad }, key, ciphertext))
}

fn seal_oaep(call: &Call<'_>, key: Object, mechanism: BlobMechanism, plaintext: &[u8], aad: &[u8]) -> Result<Vec<u8>, Trouble> {
    let data_key = SecretBytes::random(32);
    let wrapped = call.device.module.encrypt(call.session, oaep(mechanism), key, data_key.expose(), MAX_RSA)?;
    let iv = random_array::<12>();
    let cipher = Aes256Gcm::new_from_slice(data_key.expose()).map_err(|_| no_seal())?;
    let sealed = cipher.encrypt(&Nonce::from(iv), Payload { msg: plaintext, aad }).map_err(|_| no_seal())?;
    Ok([&(wrapped.len() as u16).to_be_bytes()[..], &wrapped, &iv, &sealed].concat())
}

fn unseal_oaep(
    call: &Call<'_>,
    key: Object,
    mechanism: BlobMechanism,
    blob: &[u8],
    aad: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Trouble> {
    let (len, rest) = blob.split_first_chunk::<2>().ok_or_else(cut)?;
    let (wrapped, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len))).ok_or_else(cut)?;
    let (iv, ciphertext) = rest.split_first_chunk::<12>().ok_or_else(cut)?;
    let data_key = judged(call, call.device.module.decrypt(call.session, oaep(mechanism), key, wrapped))?;
    let cipher = Aes256Gcm::new_from_slice(&data_key).map_err(|_| bad("the sealed data key has a wrong length"))?;
    let opened = cipher.decrypt(&Nonce::from(*iv), Payload { msg: ciphertext, aad });
    opened.map(Zeroizing::new).map_err(|_| bad("the sealed blob does not authenticate"))
}

fn seal_cbc(call: &Call<'_>, key: Object, mac: Object, plaintext: &[u8], aad: &[u8]) -> Result<Vec<u8>, Trouble> {
    let pad = 16 - plaintext.len() % 16;
    let mut padded = Zeroizing::new(Vec::with_capacity(plaintext.len() + pad));
    padded.extend_from_slice(plaintext);
    padded.resize(plaintext.len() + pad, pad as u8);
    let iv = random_array::<16>();
    let ciphertext = call.device.module.encrypt(call.session, Mechanism::Cbc(&iv), key, &padded, 0)?;
    let body = [&iv[..], &ciphertext].concat();
    let tag = call.device.module.sign(call.session, CKM_SHA256_HMAC, mac, &mac_input(&body, aad), HMAC_LEN)?;
    Ok([body, tag].concat())
}

fn unseal_cbc(call: &Call<'_>, key: Object, mac: Object, blob: &[u8], aad: &[u8]) -> Result<Zeroizing<Vec<u8>>, Trouble> {
    let split = blob.len().checked_sub(HMAC_LEN).ok_or_else(cut)?;
    let (body, tag) = blob.split_at(split);
    let (iv, ciphertext) = body.split_first_chunk::<16>().ok_or_else(cut)?;
    let wanted = call.device.module.sign(call.session, CKM_SHA256_HMAC, mac, &mac_input(body, aad), HMAC_LEN)?;
    if !bool::from(wanted.as_slice().ct_eq(tag)) {
        return Err(bad("the sealed blob does not authenticate"));
    }
    let mut padded = judged(call, call.device.module.decrypt(call.session, Mechanism::Cbc(iv), key, ciphertext))?;
    let pad = usize::from(padded.last().copied().unwrap_or_default());
    let len = padded.len().checked_sub(pad).filter(|_| (1..=16).contains(&pad)).ok_or_else(cut)?;
    padded.truncate(len);
    Ok(padded)
}

/// The longest RSA output.
const MAX_RSA: usize = 1024;

fn oaep(mechanism: BlobMechanism) -> Mechanism<'static> {
    match mechanism {
        BlobMechanism::RsaOaepSha256 => Mechanism::OaepSha256,
        _ => Mechanism::OaepSha1,
    }
}

fn mac_input(body: &[u8], aad: &[u8]) -> Vec<u8> {
    [&(aad.len() as u64).to_be_bytes()[..], aad, body].concat()
}

/// Tells a bad blob from a lost device.
fn judged<T>(call: &Call<'_>, result: Result<T, crate::hsm::ck_error::CkError>) -> Result<T, Trouble> {
    match result {
        Err(error) if is_bad_data(call, &error)? => Err(bad(&error.to_string())),
        other => Ok(other?),
    }
}

fn cut() -> Trouble {
    bad("the sealed blob is cut short")
}

fn bad(text: &str) -> Trouble {
    Trouble::Failed(Failure::BadInput(text.into()))
}

fn no_seal() -> Trouble {
    Trouble::Failed(Failure::Unsupported("no mechanism for a seal key".into()))
}
