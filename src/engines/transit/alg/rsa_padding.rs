//! What goes round the raw RSA operation (RFC 8017): an HSM raises a block to the private exponent, this file makes the
//! block of a signature and takes the padding off a decrypted one.
//!
//! Written here because no maintained library offers these encodings without a private key of its own; hashing is
//! OpenSSL's. Removing a padding takes the same time whatever is wrong with it, and everything that can be wrong is the
//! same [`BadPadding`]: a difference would be an oracle (RFC 8017, sections 7.1.2 and 7.2.2; Bleichenbacher 1998, Manger
//! 2001). Only the length of a well padded text shows, as it does in the answer to its owner.

use openssl::{error::ErrorStack, hash::Hasher};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use thiserror::Error;
use zeroize::Zeroizing;

use super::{
    asym::AsymError,
    hash::HashAlgorithm,
    rsa::{Salt, Scheme},
};
use crate::secret::{SecretBytes, fill_random};

/// A decrypted block that holds no text. It says no more than that, in the words of Vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("crypto/rsa: decryption error")]
pub struct BadPadding;

/// Where the object identifier of a hash differs from its relatives (arc 2.16.840.1.101.3.4.2, NIST's hash algorithms).
fn arc(hash: HashAlgorithm) -> Option<u8> {
    Some(match hash {
        HashAlgorithm::None | HashAlgorithm::Sha1 => return None,
        HashAlgorithm::Sha2_256 => 1,
        HashAlgorithm::Sha2_384 => 2,
        HashAlgorithm::Sha2_512 => 3,
        HashAlgorithm::Sha2_224 => 4,
        HashAlgorithm::Sha3_224 => 7,
        HashAlgorithm::Sha3_256 => 8,
        HashAlgorithm::Sha3_384 => 9,
        HashAlgorithm::Sha3_512 => 10,
    })
}

/// DigestInfo up to the digest (RFC 8017, section 9.2, note 1); nothing for [`HashAlgorithm::None`].
fn digest_info(hash: HashAlgorithm, len: u8) -> Vec<u8> {
    match (hash, arc(hash)) {
        (HashAlgorithm::Sha1, _) => {
            vec![0x30, 13 + len, 0x30, 9, 6, 5, 0x2b, 0x0e, 3, 2, 0x1a, 5, 0, 4, len]
        }
        (_, Some(arc)) => {
            vec![0x30, 17 + len, 0x30, 13, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, arc, 5, 0, 4, len]
        }
        (_, None) => Vec::new(),
    }
}

/// The block that a signature of `digest` is the private operation of; `bits` is the length of the modulus. The caller
/// has checked that the digest is one of `hash`.
pub fn encode_signature(bits: usize, digest: &[u8], hash: HashAlgorithm, scheme: Scheme) -> Result<Vec<u8>, AsymError> {
    match scheme {
        Scheme::Pkcs1v15 => encode_pkcs1v15(bits.div_ceil(8), digest, hash),
        Scheme::Pss(salt) => encode_pss(bits, digest, hash, salt),
    }
}

/// EMSA-PKCS1-v1_5 (RFC 8017, section 9.2): `00 01 FF..FF 00 DigestInfo`.
fn encode_pkcs1v15(block: usize, digest: &[u8], hash: HashAlgorithm) -> Result<Vec<u8>, AsymError> {
    let too_long = || AsymError::Input("crypto/rsa: message too long for RSA key size".into());
    // Digests have at most 64 bytes; the length counts for them alone.
    let info = digest_info(hash, u8::try_from(digest.len().min(64)).unwrap_or(0));
    let filling = block.checked_sub(info.len() + digest.len() + 3).filter(|filling| *filling >= 8).ok_or_else(too_long)?;
    Ok([&[0, 1][..], &vec![0xff; filling], &[0], &info, digest].concat())
}

/// EMSA-PSS (RFC 8017, section 9.1.1), with MGF1 over the same hash, at the full width of the modulus.
fn encode_pss(bits: usize, digest: &[u8], hash: HashAlgorithm, salt: Salt) -> Result<Vec<u8>, AsymError> {
    let unsupported = || AsymError::Input("unsupported hash algorithm".into());
    let hash_len = hash.function().ok_or_else(unsupported)?.size();
    let em_bits = bits.saturating_sub(1);
    let em_len = em_bits.div_ceil(8);
    let longest = em_len.checked_sub(hash_len + 2).ok_or_else(|| AsymError::Input("crypto/rsa: key size too small".into()))?;
    let salt_len = match salt {
        Salt::Auto => longest,
        Salt::Hash => hash_len,
        Salt::Bytes(length) => usize::try_from(length).unwrap_or(usize::MAX),
    };
    if salt_len > longest {
        return Err(AsymError::Input(format!("requested salt length {salt_len} is invalid")));
    }
    let mut salt = vec![0; salt_len];
    fill_random(&mut salt);
    let mut hasher = Hasher::new(hash.function().ok_or_else(unsupported)?)?;
    hasher.update(&[0; 8])?;
    hasher.update(digest)?;
    hasher.update(&salt)?;
    let h = hasher.finish()?;
    let mut db = vec![0; longest - salt_len];
    db.push(1);
    db.extend_from_slice(&salt);
    mask(&mut db, &h, hash)?;
    if let Some(first) = db.first_mut() {
        // The leftmost 8 * emLen - emBits bits are zero.
        *first &= 0xff >> (8 * em_len - em_bits);
    }
    // Where the modulus has one bit more than whole bytes, the block begins with a byte of zero.
    let mut block = vec![0; bits.div_ceil(8) - em_len];
    block.extend_from_slice(&db);
    block.extend_from_slice(&h);
    block.push(0xbc);
    Ok(block)
}

/// XORs MGF1 (RFC 8017, appendix B.2.1) of `seed` into `out`.
fn mask(out: &mut [u8], seed: &[u8], hash: HashAlgorithm) -> Result<(), AsymError> {
    let function = hash.function().ok_or_else(|| AsymError::Input("unsupported hash algorithm".into()))?;
    let masked = |out: &mut [u8]| -> Result<(), ErrorStack> {
        for (counter, part) in (0_u32..).zip(out.chunks_mut(function.size())) {
            let mut hasher = Hasher::new(function)?;
            hasher.update(seed)?;
            hasher.update(&counter.to_be_bytes())?;
            let mut stream = hasher.finish()?;
            part.iter_mut().zip(stream.iter()).for_each(|(byte, mask)| *byte ^= mask);
            crate::secret::wipe(&mut stream);
        }
        Ok(())
    };
    Ok(masked(out)?)
}

/// EME-OAEP decoding with an empty label and MGF1 over the same hash (RFC 8017, section 7.1.2, step 3).
pub fn decode_oaep(block: &SecretBytes, hash: HashAlgorithm) -> Result<SecretBytes, BadPadding> {
    let hash_len = hash.function().ok_or(BadPadding)?.size();
    let label_hash = hash.digest(b"").map_err(|_| BadPadding)?;
    let (first, rest) = block.expose().split_first().ok_or(BadPadding)?;
    // Lengths are public: they follow from the key and the hash.
    let (masked_seed, masked_db) = rest.split_at_checked(hash_len).filter(|(_, db)| db.len() > hash_len).ok_or(BadPadding)?;
    let mut seed = Zeroizing::new(masked_seed.to_vec());
    mask(&mut seed, masked_db, hash).map_err(|_| BadPadding)?;
    let mut db = Zeroizing::new(masked_db.to_vec());
    mask(&mut db, &seed, hash).map_err(|_| BadPadding)?;
    let (found_hash, text) = db.split_at_checked(hash_len).ok_or(BadPadding)?;
    let good = first.ct_eq(&0) & found_hash.ct_eq(&label_hash);
    // Zeroes, then a one; anything else before the one is wrong.
    let (found, at) = first_other(text, 0);
    let good = good & found & byte_at(text, at).ct_eq(&1);
    text_after(text, at, good)
}

/// EME-PKCS1-v1_5 decoding (RFC 8017, section 7.2.2, step 3): `00 02 PS 00 M`, PS at least 8 bytes, none of them zero.
pub fn decode_pkcs1v15(block: &SecretBytes) -> Result<SecretBytes, BadPadding> {
    let (head, rest) = block.expose().split_first_chunk::<2>().ok_or(BadPadding)?;
    let (filling, rest) = rest.split_first_chunk::<8>().ok_or(BadPadding)?;
    let mut good = head.ct_eq(&[0, 2]);
    for byte in filling {
        good &= !byte.ct_eq(&0);
    }
    let (found, at) = first_zero(rest);
    text_after(rest, at, good & found)
}

/// The text behind the separator at `at`, if all was good. The one branch of a decoding.
fn text_after(bytes: &[u8], at: u32, good: Choice) -> Result<SecretBytes, BadPadding> {
    let start = usize::try_from(at).ok().and_then(|at| at.checked_add(1)).ok_or(BadPadding)?;
    if bool::from(good) {
        bytes.get(start..).map(|text| SecretBytes::new(text.to_vec())).ok_or(BadPadding)
    } else {
        Err(BadPadding)
    }
}

/// The first byte that is not `skipped`: whether there is one, and where. Looks at every byte.
fn first_other(bytes: &[u8], skipped: u8) -> (Choice, u32) {
    first(bytes, |byte| !byte.ct_eq(&skipped))
}

/// The first zero: whether there is one, and where. Looks at every byte.
fn first_zero(bytes: &[u8]) -> (Choice, u32) {
    first(bytes, |byte| byte.ct_eq(&0))
}

fn first(bytes: &[u8], wanted: impl Fn(&u8) -> Choice) -> (Choice, u32) {
    let mut found = Choice::from(0);
    let mut place = 0_u32;
    for (at, byte) in (0_u32..).zip(bytes) {
        let hit = wanted(byte) & !found;
        place.conditional_assign(&at, hit);
        found |= hit;
    }
    (found, place)
}

/// The byte at a secret place. Looks at every byte.
fn byte_at(bytes: &[u8], place: u32) -> u8 {
    let mut value = 0;
    for (at, byte) in (0_u32..).zip(bytes) {
        value.conditional_assign(byte, at.ct_eq(&place));
    }
    value
}

/// Whether a ciphertext is a number below the modulus, at the modulus' full width: what the raw operation takes
/// (RFC 8017, sections 5.1.2 and 7.1.2, step 1). Both are public.
pub fn fits(ciphertext: &[u8], modulus: &[u8]) -> bool {
    ciphertext.len() == modulus.len() && ciphertext < modulus
}

#[cfg(test)]
mod tests {
    use openssl::{pkey::PKey, rsa::Padding, rsa::Rsa};

    use super::*;
    use crate::engines::transit::alg::rsa::{self, Encryption};

    /// The raw operations of a key, as an HSM does them.
    struct Raw(Rsa<openssl::pkey::Private>);

    impl Raw {
        fn new(bits: u32) -> Self {
            Self(Rsa::generate(bits).unwrap())
        }

        fn bits(&self) -> usize {
            usize::try_from(self.0.n().num_bits()).unwrap()
        }

        fn sign(&self, block: &[u8]) -> Vec<u8> {
            let mut out = vec![0; self.bits().div_ceil(8)];
            self.0.private_encrypt(block, &mut out, Padding::NONE).unwrap();
            out
        }

        fn decrypt(&self, block: &[u8]) -> SecretBytes {
            let mut out = vec![0; self.bits().div_ceil(8)];
            self.0.private_decrypt(block, &mut out, Padding::NONE).unwrap();
            SecretBytes::new(out)
        }

        fn encrypt(&self, block: &[u8]) -> Vec<u8> {
            let mut out = vec![0; self.bits().div_ceil(8)];
            self.0.public_encrypt(block, &mut out, Padding::NONE).unwrap();
            out
        }

        fn public(&self) -> PKey<openssl::pkey::Public> {
            let public = Rsa::from_public_components(self.0.n().to_owned().unwrap(), self.0.e().to_owned().unwrap()).unwrap();
            PKey::from_rsa(public).unwrap()
        }
    }

    /// Odd lengths of the modulus move the bits of PSS about: 2047 and 2041 are sizes that imported keys can have.
    #[test]
    fn openssl_verifies_every_signature() {
        for bits in [2048, 2047, 2041] {
            let raw = Raw::new(bits);
            let public = raw.public();
            let salts = [Salt::Auto, Salt::Hash, Salt::Bytes(1), Salt::Bytes(33)];
            let schemes: Vec<Scheme> = salts.into_iter().map(Scheme::Pss).chain([Scheme::Pkcs1v15]).collect();
            for hash in HashAlgorithm::ALL.into_iter().skip(1) {
                let digest = hash.digest(b"hello").unwrap();
                for scheme in &schemes {
                    let signature = raw.sign(&encode_signature(raw.bits(), &digest, hash, *scheme).unwrap());
                    assert!(rsa::verify(&public, &digest, &signature, hash, *scheme).unwrap(), "{bits} {hash:?} {scheme:?}");
                    let other = hash.digest(b"other").unwrap();
                    assert!(!rsa::verify(&public, &other, &signature, hash, *scheme).unwrap());
                }
            }
            let plain = encode_signature(raw.bits(), b"as it is", HashAlgorithm::None, Scheme::Pkcs1v15).unwrap();
            assert!(
                rsa::verify(&public, b"as it is", &raw.sign(&plain), HashAlgorithm::None, Scheme::Pkcs1v15).unwrap(),
                "{bits}"
            );
        }
    }

    /// PKCS#1 v1.5 has no salt, so OpenSSL's signature is the same one.
    #[test]
    fn pkcs1v15_is_what_openssl_makes() {
        let raw = Raw::new(2048);
        let key = PKey::from_rsa(raw.0.clone()).unwrap();
        for hash in HashAlgorithm::ALL {
            let digest = hash.digest(b"hello").unwrap();
            let block = encode_signature(2048, &digest, hash, Scheme::Pkcs1v15).unwrap();
            assert_eq!(raw.sign(&block), rsa::sign(&key, &digest, hash, Scheme::Pkcs1v15).unwrap(), "{hash:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = |digest: &[u8], hash, scheme| encode_signature(2048, digest, hash, scheme).unwrap_err().to_string();
        let long = refused(&[1; 32], HashAlgorithm::Sha2_256, Scheme::Pss(Salt::Bytes(223)));
        assert_eq!(long, "requested salt length 223 is invalid");
        encode_signature(2048, &[1; 32], HashAlgorithm::Sha2_256, Scheme::Pss(Salt::Bytes(222))).unwrap();
        assert_eq!(refused(&[1; 8], HashAlgorithm::None, Scheme::Pss(Salt::Auto)), "unsupported hash algorithm");
        encode_signature(2048, &[1; 245], HashAlgorithm::None, Scheme::Pkcs1v15).unwrap();
        assert!(refused(&[1; 246], HashAlgorithm::None, Scheme::Pkcs1v15).contains("too long"));
        assert!(fits(&[1, 2], &[1, 3]) && !fits(&[1, 3], &[1, 3]) && !fits(&[2], &[1, 3]) && !fits(&[0, 1, 2], &[1, 3]));
    }

    #[test]
    fn openssl_encrypts_and_this_decodes() {
        let raw = Raw::new(2048);
        let public = raw.public();
        for text in [&b""[..], b"hello", &[0; 20], &[7; 190], &[1; 100]] {
            let sealed = rsa::encrypt(&public, text, Encryption::Pkcs1v15).unwrap();
            assert_eq!(decode_pkcs1v15(&raw.decrypt(&sealed)).unwrap().expose(), text);
            for hash in HashAlgorithm::ALL.into_iter().skip(1) {
                let Ok(sealed) = rsa::encrypt_oaep(&public, text, hash) else { continue };
                assert_eq!(decode_oaep(&raw.decrypt(&sealed), hash).unwrap().expose(), text, "{hash:?}");
            }
        }
        let longest = [3; 245];
        let sealed = rsa::encrypt(&public, &longest, Encryption::Pkcs1v15).unwrap();
        assert_eq!(decode_pkcs1v15(&raw.decrypt(&sealed)).unwrap().expose(), longest);
    }

    /// A block of OAEP made by hand, so that each of its parts can be wrong by itself.
    fn oaep(first: u8, label: &[u8], filling: &[u8], separator: u8, text: &[u8]) -> SecretBytes {
        let hash = HashAlgorithm::Sha2_256;
        let mut db = [&hash.digest(label).unwrap()[..], filling, &[separator], text].concat();
        db.resize(256 - 33, 9);
        let mut seed = vec![5; 32];
        mask(&mut db, &seed, hash).unwrap();
        mask(&mut seed, &db, hash).unwrap();
        SecretBytes::new([&[first][..], &seed, &db].concat())
    }

    #[test]
    fn every_wrong_oaep_is_the_same_error() {
        let hash = HashAlgorithm::Sha2_256;
        assert!(decode_oaep(&oaep(0, b"", &[0; 50], 1, b"text"), hash).unwrap().expose().starts_with(b"text"));
        for block in [
            oaep(1, b"", &[0; 50], 1, b"text"),
            oaep(0, b"label", &[0; 50], 1, b"text"),
            oaep(0, b"", &[0; 50], 2, b"text"),
            oaep(0, b"", &[2, 1], 1, b"text"),
            oaep(0, b"", &[0; 256 - 66], 0, b""),
            SecretBytes::new(vec![0; 256]),
            SecretBytes::new(vec![0; 65]),
            SecretBytes::new(vec![]),
        ] {
            assert_eq!(decode_oaep(&block, hash).err(), Some(BadPadding));
        }
    }

    #[test]
    fn every_wrong_pkcs1v15_is_the_same_error() {
        let block = |head: [u8; 2], filling: &[u8], rest: &[u8]| {
            let mut bytes = [&head[..], filling, rest].concat();
            bytes.resize(256, 9);
            SecretBytes::new(bytes)
        };
        assert!(decode_pkcs1v15(&block([0, 2], &[1; 8], b"\0text")).unwrap().expose().starts_with(b"text"));
        let empty = SecretBytes::new([&[0, 2][..], &[1; 253], &[0]].concat());
        assert!(decode_pkcs1v15(&empty).unwrap().is_empty());
        for wrong in [
            block([1, 2], &[1; 8], b"\0text"),
            block([0, 1], &[1; 8], b"\0text"),
            block([0, 2], &[1; 7], b"\0text"),
            block([0, 2], b"\x01\x01\0", b"text"),
            block([0, 2], &[1; 254], b""),
            SecretBytes::new(vec![0; 256]),
            SecretBytes::new(vec![0, 2]),
        ] {
            assert_eq!(decode_pkcs1v15(&wrong).err(), Some(BadPadding));
        }
        // The words carry nothing either.
        assert_eq!(BadPadding.to_string(), "crypto/rsa: decryption error");
        let raw = Raw::new(2048);
        assert!(decode_pkcs1v15(&raw.decrypt(&raw.encrypt(&[0; 256]))).is_err());
    }
}
