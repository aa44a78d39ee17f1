//! The escrow: what the Shamir secret alone opens.
//!
//! From the secret (32 random bytes, split into shares at init) two keys are derived with HKDF-SHA-256, salt =
//! cluster id: one wraps the root key, the other encrypts the private half of an RSA key pair (PKCS#8). To the public half
//! every zone master key version is wrapped inside the HSM (RSA-OAEP, SHA-1, which is what every module can do).
//! The private half is never under the root key: a thief of PIN and store does not get the master keys by it.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeySize, OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::SealError;
use crate::barrier::{open_bytes, seal_bytes};
use crate::hsm::{Mechanism, base64_bytes};
use crate::secret::SecretBytes;

const ROOT_KEY_PURPOSE: &str = "sos/escrow/root-key/v1";
const PRIVATE_KEY_PURPOSE: &str = "sos/escrow/private-key/v1";
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
        let failed = |_unspecified| SealError::Internal("making the escrow key pair failed".into());
        let key = PrivateDecryptingKey::generate(KEY_SIZE).map_err(failed)?;
        let public: PublicKeyX509Der<'_> = key.public_key().as_der().map_err(failed)?;
        let private: Pkcs8V1Der<'_> = key.as_der().map_err(failed)?;
        let private = SecretBytes::new(private.as_ref().to_vec());
        let private_key = encrypt(secret, PRIVATE_KEY_PURPOSE, cluster_id, &private)?;
        Ok(Self { public_key: public.as_ref().to_vec(), private_key })
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
    let key = PrivateDecryptingKey::from_pkcs8(private.expose()).map_err(|_rejected| damaged())?;
    let key = OaepPrivateDecryptingKey::new(key).map_err(|_unspecified| damaged())?;
    let mut buffer = zeroize::Zeroizing::new(vec![0; key.min_output_size()]);
    let opened = key.decrypt(algorithm, exported, &mut buffer, None).map_err(|_unspecified| damaged())?;
    Ok(SecretBytes::new(opened.to_vec()))
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
    let mut key = vec![0; 32];
    let expanded = Hkdf::<Sha256>::new(Some(cluster_id.as_bytes()), secret.expose()).expand(purpose.as_bytes(), &mut key);
    let key = SecretBytes::new(key);
    expanded.is_ok().then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::rsa::{OaepPublicEncryptingKey, PublicEncryptingKey};

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
