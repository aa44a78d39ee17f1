//! RSA: signatures (RSASSA-PSS and RSASSA-PKCS1-v1_5 over given digests) and encryption (RSAES-OAEP and
//! RSAES-PKCS1-v1_5), RFC 8017.

use std::ffi::c_int;

use openssl::{
    hash::MessageDigest,
    md::{Md, MdRef},
    pkey::{HasPublic, PKeyRef, Private, Public},
    pkey_ctx::PkeyCtx,
    rsa::Padding,
    sign::RsaPssSaltlen,
};

use super::{asym::AsymError, hash::HashAlgorithm, rsa_padding::decode_pkcs1v15};
use crate::secret::SecretBytes;

/// How an RSA signature is padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// RSASSA-PSS with a salt of so many bytes.
    Pss(Salt),
    /// RSASSA-PKCS1-v1_5.
    Pkcs1v15,
}

/// The salt of RSASSA-PSS (`salt_length`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Salt {
    /// As long as possible when signing, any length when verifying.
    Auto,
    /// As long as the hash.
    Hash,
    /// So many bytes.
    Bytes(i64),
}

impl Salt {
    /// Reads `salt_length`; the error is the API's.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lower = text.to_lowercase();
        match lower.as_str() {
            "auto" => Ok(Self::Auto),
            "hash" => Ok(Self::Hash),
            _ => match lower.parse::<i64>() {
                Err(_) => Err(format!("salt length neither 'auto', 'hash', nor an int: {text}")),
                // The API's numbers for "auto" and "hash".
                Ok(0) => Ok(Self::Auto),
                Ok(-1) => Ok(Self::Hash),
                Ok(length) if length < 0 => Err(format!("salt length is invalid: {length}")),
                Ok(length) => Ok(Self::Bytes(length)),
            },
        }
    }
}

/// How a text is padded for encryption.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encryption {
    /// RSAES-OAEP with SHA-256 and an empty label.
    #[default]
    Oaep,
    /// RSAES-PKCS1-v1_5.
    Pkcs1v15,
}

impl Encryption {
    /// Reads `padding_scheme`; nothing means OAEP.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "oaep" => Some(Self::Oaep),
            "pkcs1v15" => Some(Self::Pkcs1v15),
            _ => None,
        }
    }
}

/// The library's digest of a hash algorithm.
fn digest_of(hash: HashAlgorithm) -> Option<&'static MdRef> {
    Some(match hash {
        HashAlgorithm::None => return None,
        HashAlgorithm::Sha1 => Md::sha1(),
        HashAlgorithm::Sha2_224 => Md::sha224(),
        HashAlgorithm::Sha2_256 => Md::sha256(),
        HashAlgorithm::Sha2_384 => Md::sha384(),
        HashAlgorithm::Sha2_512 => Md::sha512(),
        HashAlgorithm::Sha3_224 => Md::sha3_224(),
        HashAlgorithm::Sha3_256 => Md::sha3_256(),
        HashAlgorithm::Sha3_384 => Md::sha3_384(),
        HashAlgorithm::Sha3_512 => Md::sha3_512(),
    })
}

/// The longest salt for a key of `bytes` bytes (RFC 8017, section 9.1.1; keys that come in must have whole bytes).
fn longest_salt(bytes: usize, hash: HashAlgorithm) -> i64 {
    let hash = hash.function().map_or(0, |function| MessageDigest::size(&function));
    i64::try_from(bytes).unwrap_or(0) - 2 - i64::try_from(hash).unwrap_or(0)
}

/// Sets padding, hash and salt.
fn configure<T: HasPublic>(
    context: &mut PkeyCtx<T>,
    bytes: usize,
    hash: HashAlgorithm,
    scheme: Scheme,
    signing: bool,
) -> Result<(), AsymError> {
    match scheme {
        Scheme::Pkcs1v15 => {
            context.set_rsa_padding(Padding::PKCS1)?;
            if let Some(digest) = digest_of(hash) {
                context.set_signature_md(digest)?;
            }
        }
        Scheme::Pss(salt) => {
            /// What tells the library to find the salt's length out (RSA_PSS_SALTLEN_AUTO).
            const ANY: c_int = -2;
            let digest = digest_of(hash).ok_or_else(|| AsymError::Input("unsupported hash algorithm".into()))?;
            let longest = longest_salt(bytes, hash);
            let number = |length: i64| c_int::try_from(length).unwrap_or(c_int::MAX);
            let length = match salt {
                Salt::Bytes(length) if length > longest => {
                    return Err(AsymError::Input(format!("requested salt length {length} is invalid")));
                }
                Salt::Bytes(length) => RsaPssSaltlen::custom(number(length)),
                Salt::Hash => RsaPssSaltlen::DIGEST_LENGTH,
                Salt::Auto if signing => RsaPssSaltlen::custom(number(longest)),
                Salt::Auto => RsaPssSaltlen::custom(ANY),
            };
            context.set_rsa_padding(Padding::PKCS1_PSS)?;
            context.set_signature_md(digest)?;
            context.set_rsa_mgf1_md(digest)?;
            context.set_rsa_pss_saltlen(length)?;
        }
    }
    Ok(())
}

/// Signs a digest.
pub fn sign(key: &PKeyRef<Private>, digest: &[u8], hash: HashAlgorithm, scheme: Scheme) -> Result<Vec<u8>, AsymError> {
    check_length(digest, hash)?;
    // RFC 8017, section 9.2: only what stands there without a hash's name can be too long.
    if hash == HashAlgorithm::None && digest.len() > key.size().saturating_sub(11) {
        return Err(too_long());
    }
    let mut context = PkeyCtx::new(key)?;
    context.sign_init()?;
    configure(&mut context, key.size(), hash, scheme, true)?;
    let mut out = Vec::with_capacity(key.size());
    context.sign_to_vec(digest, &mut out)?;
    Ok(out)
}

/// Whether a signature of a digest is right. Only a salt that no signature can have is an error.
pub fn verify(
    key: &PKeyRef<Public>,
    digest: &[u8],
    signature: &[u8],
    hash: HashAlgorithm,
    scheme: Scheme,
) -> Result<bool, AsymError> {
    let mut context = PkeyCtx::new(key)?;
    context.verify_init()?;
    configure(&mut context, key.size(), hash, scheme, false)?;
    // The library takes a signature without its leading zeros for the same number; it is not the same signature.
    if check_length(digest, hash).is_err() || signature.len() != key.size() {
        return Ok(false);
    }
    if hash == HashAlgorithm::None && matches!(scheme, Scheme::Pkcs1v15) {
        // The library knows no signature of an empty text; the block that a signature encloses tells.
        let mut block = vec![0; key.size()];
        let recovered = key.rsa()?.public_decrypt(signature, &mut block, Padding::PKCS1);
        return Ok(recovered.is_ok_and(|len| block.get(..len) == Some(digest)));
    }
    // One that decodes to nothing is not right either.
    Ok(context.verify(digest, signature).unwrap_or(false))
}

/// Whether a digest is one of `hash`; the error is the API's.
pub fn check_length(digest: &[u8], hash: HashAlgorithm) -> Result<(), AsymError> {
    match hash.function() {
        Some(function) if function.size() != digest.len() => {
            Err(AsymError::Input("crypto/rsa: input must be hashed message".into()))
        }
        _ => Ok(()),
    }
}

fn too_long() -> AsymError {
    AsymError::Input("crypto/rsa: message too long for RSA key size".into())
}

/// Encrypts a text.
pub fn encrypt(key: &PKeyRef<Public>, plaintext: &[u8], padding: Encryption) -> Result<Vec<u8>, AsymError> {
    let taken = match padding {
        // RFC 8017, sections 7.1.1 and 7.2.1.
        Encryption::Oaep => 2 * 32 + 2,
        Encryption::Pkcs1v15 => 11,
    };
    if plaintext.len() > key.size().saturating_sub(taken) {
        return Err(too_long());
    }
    let mut context = PkeyCtx::new(key)?;
    context.encrypt_init()?;
    pad(&mut context, padding, HashAlgorithm::Sha2_256)?;
    let mut out = Vec::with_capacity(key.size());
    context.encrypt_to_vec(plaintext, &mut out)?;
    Ok(out)
}

/// Decrypts a text.
pub fn decrypt(key: &PKeyRef<Private>, ciphertext: &[u8], padding: Encryption) -> Result<SecretBytes, AsymError> {
    decrypt_with(key, ciphertext, padding, HashAlgorithm::Sha2_256)
}

/// Decrypts RSAES-OAEP with any hash (`hash_function` of imports).
pub fn decrypt_oaep(key: &PKeyRef<Private>, ciphertext: &[u8], hash: HashAlgorithm) -> Result<SecretBytes, AsymError> {
    decrypt_with(key, ciphertext, Encryption::Oaep, hash)
}

/// Encrypts by RSAES-OAEP with any hash.
pub fn encrypt_oaep(key: &PKeyRef<Public>, plaintext: &[u8], hash: HashAlgorithm) -> Result<Vec<u8>, AsymError> {
    let mut context = PkeyCtx::new(key)?;
    context.encrypt_init()?;
    pad(&mut context, Encryption::Oaep, hash)?;
    let mut out = Vec::with_capacity(key.size());
    context.encrypt_to_vec(plaintext, &mut out)?;
    Ok(out)
}

fn decrypt_with(
    key: &PKeyRef<Private>,
    ciphertext: &[u8],
    padding: Encryption,
    hash: HashAlgorithm,
) -> Result<SecretBytes, AsymError> {
    let mut context = PkeyCtx::new(key)?;
    context.decrypt_init()?;
    match padding {
        // The padding of PKCS #1 v1.5 is taken off here, as for keys in the HSM: whether the library answers a bad one with an
        // error or, to hide it, with a random text (implicit rejection, from OpenSSL 3.2 on) depends on its version.
        Encryption::Pkcs1v15 => context.set_rsa_padding(Padding::NONE)?,
        Encryption::Oaep => pad(&mut context, padding, hash)?,
    }
    // Room for the library's own upper bound, so that the text is never moved and left behind.
    let mut out = zeroize::Zeroizing::new(vec![0; key.size()]);
    let length = context.decrypt(ciphertext, Some(&mut out))?;
    let opened = SecretBytes::new(out.get(..length).unwrap_or_default().to_vec());
    match padding {
        Encryption::Pkcs1v15 => decode_pkcs1v15(&opened).map_err(|error| AsymError::Input(error.to_string())),
        Encryption::Oaep => Ok(opened),
    }
}

fn pad<T>(context: &mut PkeyCtx<T>, padding: Encryption, hash: HashAlgorithm) -> Result<(), AsymError> {
    match padding {
        Encryption::Pkcs1v15 => context.set_rsa_padding(Padding::PKCS1)?,
        Encryption::Oaep => {
            let digest = digest_of(hash).ok_or_else(|| AsymError::Input("unsupported hash algorithm".into()))?;
            context.set_rsa_padding(Padding::PKCS1_OAEP)?;
            context.set_rsa_oaep_md(digest)?;
            context.set_rsa_mgf1_md(digest)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::transit::alg::{
        KeyType,
        asym::{PrivateKey, PublicKey},
    };

    #[test]
    fn a_signature_of_nothing_at_all_verifies() {
        let key = openssl::pkey::PKey::from_rsa(openssl::rsa::Rsa::generate(2048).unwrap()).unwrap();
        let public = openssl::pkey::PKey::public_key_from_der(&key.public_key_to_der().unwrap()).unwrap();
        for digest in [&b""[..], b"any text"] {
            let signature = sign(&key, digest, HashAlgorithm::None, Scheme::Pkcs1v15).unwrap();
            assert!(verify(&public, digest, &signature, HashAlgorithm::None, Scheme::Pkcs1v15).unwrap());
            assert!(!verify(&public, b"another", &signature, HashAlgorithm::None, Scheme::Pkcs1v15).unwrap());
        }
    }

    #[test]
    fn too_long_a_text_is_refused_in_the_words_of_the_api() {
        let key = openssl::pkey::PKey::from_rsa(openssl::rsa::Rsa::generate(2048).unwrap()).unwrap();
        let public = openssl::pkey::PKey::public_key_from_der(&key.public_key_to_der().unwrap()).unwrap();
        for (padding, most) in [(Encryption::Oaep, 190), (Encryption::Pkcs1v15, 245)] {
            assert!(encrypt(&public, &vec![1; most], padding).is_ok());
            let said = encrypt(&public, &vec![1; most + 1], padding).unwrap_err().to_string();
            assert_eq!(said, "crypto/rsa: message too long for RSA key size");
        }
    }

    #[test]
    fn every_hash_signs_with_every_scheme() {
        let PrivateKey::Rsa(key) = PrivateKey::generate(KeyType::Rsa2048).unwrap() else { panic!() };
        let PublicKey::Rsa(public) = PrivateKey::Rsa(key.clone()).public().unwrap() else { panic!() };
        let salts = [Salt::Auto, Salt::Hash, Salt::Bytes(5)];
        let schemes: Vec<Scheme> = salts.into_iter().map(Scheme::Pss).chain([Scheme::Pkcs1v15]).collect();
        for hash in HashAlgorithm::ALL.into_iter().skip(1) {
            let digest = hash.digest(b"hello").unwrap();
            let other = hash.digest(b"other").unwrap();
            for scheme in &schemes {
                let signature = sign(&key, &digest, hash, *scheme).unwrap();
                assert!(verify(&public, &digest, &signature, hash, *scheme).unwrap(), "{hash:?} {scheme:?}");
                assert!(!verify(&public, &other, &signature, hash, *scheme).unwrap());
                assert!(!verify(&public, &digest, &signature[1..], hash, *scheme).unwrap());
            }
            let long = sign(&key, &digest, hash, Scheme::Pss(Salt::Bytes(longest_salt(256, hash)))).unwrap();
            assert!(verify(&public, &digest, &long, hash, Scheme::Pss(Salt::Auto)).unwrap());
            assert!(!verify(&public, &digest, &long, hash, Scheme::Pss(Salt::Hash)).unwrap());
            let too_long = Scheme::Pss(Salt::Bytes(longest_salt(256, hash) + 1));
            assert!(sign(&key, &digest, hash, too_long).unwrap_err().to_string().starts_with("requested salt length "));
        }
        let plain = sign(&key, b"as it is", HashAlgorithm::None, Scheme::Pkcs1v15).unwrap();
        assert!(verify(&public, b"as it is", &plain, HashAlgorithm::None, Scheme::Pkcs1v15).unwrap());
        assert!(sign(&key, b"short", HashAlgorithm::Sha2_256, Scheme::Pkcs1v15).is_err());
        assert!(sign(&key, &[7; 245], HashAlgorithm::None, Scheme::Pkcs1v15).is_ok());
        let said = sign(&key, &[7; 246], HashAlgorithm::None, Scheme::Pkcs1v15).unwrap_err().to_string();
        assert_eq!(said, "crypto/rsa: message too long for RSA key size");
    }

    #[test]
    fn texts_come_back() {
        let PrivateKey::Rsa(key) = PrivateKey::generate(KeyType::Rsa2048).unwrap() else { panic!() };
        let PublicKey::Rsa(public) = PrivateKey::Rsa(key.clone()).public().unwrap() else { panic!() };
        for padding in [Encryption::Oaep, Encryption::Pkcs1v15] {
            for text in [&b""[..], b"hello", &[7; 190]] {
                let sealed = encrypt(&public, text, padding).unwrap();
                assert_eq!(decrypt(&key, &sealed, padding).unwrap().expose(), text);
            }
        }
        assert!(encrypt(&public, &[7; 191], Encryption::Oaep).is_err());
        // Bad padding is an error in every version of the library, and never a random text.
        let mut raw = vec![0; 256];
        for block in [[7; 256], [0; 256]] {
            let block: Vec<u8> = [&[0], &block[1..]].concat();
            public.rsa().unwrap().public_encrypt(&block, &mut raw, Padding::NONE).unwrap();
            assert!(decrypt(&key, &raw, Encryption::Pkcs1v15).is_err());
        }
        assert!(decrypt(&key, &[1; 256], Encryption::Oaep).is_err());
        assert!(decrypt(&key, b"", Encryption::Oaep).is_err());
        for hash in [HashAlgorithm::Sha1, HashAlgorithm::Sha2_224, HashAlgorithm::Sha2_512] {
            let sealed = encrypt_oaep(&public, b"key", hash).unwrap();
            assert_eq!(decrypt_oaep(&key, &sealed, hash).unwrap().expose(), b"key");
        }
    }

    #[test]
    fn salt_lengths_are_read_as_the_api_reads_them() {
        assert_eq!(Salt::parse("AUTO"), Ok(Salt::Auto));
        assert_eq!(Salt::parse("hash"), Ok(Salt::Hash));
        assert_eq!(Salt::parse("0"), Ok(Salt::Auto));
        assert_eq!(Salt::parse("-1"), Ok(Salt::Hash));
        assert_eq!(Salt::parse("20"), Ok(Salt::Bytes(20)));
        assert_eq!(Salt::parse("-2"), Err("salt length is invalid: -2".into()));
        assert_eq!(Salt::parse("long"), Err("salt length neither 'auto', 'hash', nor an int: long".into()));
    }
}
