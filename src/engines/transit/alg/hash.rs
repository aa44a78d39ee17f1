//! Hash algorithms by their names in the API, and HMACs over them.

use openssl::{
    error::ErrorStack,
    hash::{MessageDigest, hash},
    pkey::PKey,
    sign::Signer,
};

/// A hash algorithm (Vault API: `hash_algorithm` of `transit/sign`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashAlgorithm {
    /// The input is signed as it is.
    None,
    /// SHA-1, for signatures that others ask for.
    Sha1,
    /// SHA-224.
    Sha2_224,
    /// SHA-256.
    Sha2_256,
    /// SHA-384.
    Sha2_384,
    /// SHA-512.
    Sha2_512,
    /// SHA3-224.
    Sha3_224,
    /// SHA3-256.
    Sha3_256,
    /// SHA3-384.
    Sha3_384,
    /// SHA3-512.
    Sha3_512,
}

impl HashAlgorithm {
    /// All algorithms.
    pub const ALL: [Self; 10] = [
        Self::None,
        Self::Sha1,
        Self::Sha2_224,
        Self::Sha2_256,
        Self::Sha2_384,
        Self::Sha2_512,
        Self::Sha3_224,
        Self::Sha3_256,
        Self::Sha3_384,
        Self::Sha3_512,
    ];

    /// The algorithm that a client names.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hash| hash.name() == name)
    }

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Sha1 => "sha1",
            Self::Sha2_224 => "sha2-224",
            Self::Sha2_256 => "sha2-256",
            Self::Sha2_384 => "sha2-384",
            Self::Sha2_512 => "sha2-512",
            Self::Sha3_224 => "sha3-224",
            Self::Sha3_256 => "sha3-256",
            Self::Sha3_384 => "sha3-384",
            Self::Sha3_512 => "sha3-512",
        }
    }

    /// The hash function; absent for [`HashAlgorithm::None`].
    pub fn function(self) -> Option<MessageDigest> {
        Some(match self {
            Self::None => return None,
            Self::Sha1 => MessageDigest::sha1(),
            Self::Sha2_224 => MessageDigest::sha224(),
            Self::Sha2_256 => MessageDigest::sha256(),
            Self::Sha2_384 => MessageDigest::sha384(),
            Self::Sha2_512 => MessageDigest::sha512(),
            Self::Sha3_224 => MessageDigest::sha3_224(),
            Self::Sha3_256 => MessageDigest::sha3_256(),
            Self::Sha3_384 => MessageDigest::sha3_384(),
            Self::Sha3_512 => MessageDigest::sha3_512(),
        })
    }

    /// The hash of `input`; the input itself for [`HashAlgorithm::None`].
    pub fn digest(self, input: &[u8]) -> Result<Vec<u8>, ErrorStack> {
        match self.function() {
            None => Ok(input.to_vec()),
            Some(function) => Ok(hash(function, input)?.to_vec()),
        }
    }

    /// HMAC (RFC 2104); `None` without a hash function.
    pub fn hmac(self, key: &[u8], input: &[u8]) -> Result<Option<Vec<u8>>, ErrorStack> {
        let Some(function) = self.function() else { return Ok(None) };
        let key = PKey::hmac(key)?;
        let mut signer = Signer::new(function, &key)?;
        signer.update(input)?;
        signer.sign_to_vec().map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_algorithms() {
        for hash in HashAlgorithm::ALL {
            assert_eq!(HashAlgorithm::named(hash.name()), Some(hash));
        }
        assert_eq!(HashAlgorithm::named("md5"), None);
        assert_eq!(HashAlgorithm::named("SHA2-256"), None);
    }

    /// NIST's example of "abc" for SHA-1 and SHA3-256 (FIPS 180-4 and FIPS 202 example values).
    #[test]
    fn abc_as_nist_hashes_it() {
        let sha1 = HashAlgorithm::Sha1.digest(b"abc").unwrap();
        assert_eq!(hex::encode(sha1), "a9993e364706816aba3e25717850c26c9cd0d89d");
        let sha3 = HashAlgorithm::Sha3_256.digest(b"abc").unwrap();
        assert_eq!(hex::encode(sha3), "3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532");
    }

    /// RFC 4231, test case 2 ("Jefe").
    #[test]
    fn hmacs_of_rfc_4231() {
        let mac = |hash: HashAlgorithm| hex::encode(hash.hmac(b"Jefe", b"what do ya want for nothing?").unwrap().unwrap());
        assert_eq!(mac(HashAlgorithm::Sha2_224), "a30e01098bc6dbbf45690f3a7e9e6d0f8bbea2a39e6148008fd05e44");
        assert_eq!(mac(HashAlgorithm::Sha2_256), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }
}
