//! A version of a backup as it is stored here: its parts must belong together and be such as an import takes.

use openssl::{
    bn::BigNumContext,
    ec::{EcKey, EcPoint},
};

use super::{
    layout::{Entry, parse_time},
    numbers::{number, present},
    wrong,
};
use crate::{
    engines::transit::{
        alg::{
            HMAC_KEY_BYTES, KeyType,
            asym::{AsymError, PrivateKey, PublicKey, group},
        },
        b64,
        chain::Chain,
        given::Given,
        protect::Material,
    },
    secret::SecretBytes,
};

impl Entry<'_> {
    /// The version as it is stored here. `fallback` is the key's convergent version, 0 for other keys.
    pub fn given(&self, kind: KeyType, convergent: bool, fallback: i64, now: i64) -> Result<Given, AsymError> {
        let (key, public_key) = self.halves(kind)?;
        let seconds = self.creation_time.filter(|seconds| *seconds > 0).and_then(|seconds| seconds.checked_mul(1_000_000_000));
        let convergent_version = match (convergent, self.convergent_version.unwrap_or(0), fallback) {
            (false, ..) => 0,
            (true, 0, -1) => 3,
            (true, 0, 0) => 1,
            (true, 0, version) | (true, version, _) => u8::try_from(version)
                .ok()
                .filter(|version| (1..=3).contains(version))
                .ok_or_else(|| wrong(format!("convergent version {version} is unknown")))?,
        };
        let hmac_key = bytes(self.hmac_key.as_deref())?;
        let hmac_key = if kind == KeyType::Hmac { key.duplicate() } else { hmac_key };
        // Old servers made none.
        if !hmac_key.is_empty() && !HMAC_KEY_BYTES.contains(&hmac_key.len()) {
            return Err(wrong(format!("{} bytes are no HMAC key", hmac_key.len())));
        }
        let certificate_chain = self.certificates(kind, public_key.as_deref())?;
        Ok(Given {
            created: self.time.as_deref().and_then(parse_time).or(seconds).unwrap_or(now),
            material: Material { key, hmac_key },
            public_key,
            convergent_version,
            certificate_chain,
            encryptions: self.sos_encryptions.unwrap_or(0),
        })
    }

    /// The certificates, which must be such as `set-certificate` takes for the key with this public half.
    fn certificates(&self, kind: KeyType, public_key: Option<&str>) -> Result<Vec<String>, AsymError> {
        let chain = self.certificate_chain.iter().flatten();
        let chain: Vec<Vec<u8>> =
            chain.map(|der| b64::decode(der)).collect::<Result<_, _>>().map_err(|error| wrong(error.to_string()))?;
        if chain.is_empty() {
            return Ok(Vec::new());
        }
        let chain = Chain::of(chain).map_err(wrong)?;
        chain.check_order().map_err(wrong)?;
        chain.check_algorithm(kind).map_err(wrong)?;
        if !chain.is_of(public_key) {
            return Err(wrong("the first certificate is not of this key"));
        }
        Ok(chain.stored())
    }

    /// Private material (empty where there is none) and public half.
    fn halves(&self, kind: KeyType) -> Result<(SecretBytes, Option<String>), AsymError> {
        let private = if kind.rsa_bits().is_some() {
            match (&self.rsa_key, &self.rsa_public_key) {
                (Some(numbers), _) => numbers.private()?,
                (None, Some(numbers)) => {
                    let public = PublicKey::from_der(kind, &numbers.public()?.public_key_to_der()?)?.sound()?;
                    return Ok((SecretBytes::default(), Some(public.to_text()?)));
                }
                (None, None) => return Err(wrong("an RSA key is missing")),
            }
        } else if kind.is_ecdsa() {
            let group = group(kind)?;
            let (x, y) = (number(self.ec_x)?, number(self.ec_y)?);
            let public = EcKey::from_public_key_affine_coordinates(&group, &x, &y)?;
            if !present(self.ec_d) {
                return Ok((SecretBytes::default(), Some(PublicKey::Ec(public).to_text()?)));
            }
            let d = number(self.ec_d)?;
            let mut context = BigNumContext::new_secure()?;
            let mut expected = EcPoint::new(&group)?;
            expected.mul_generator2(&group, &d, &mut context)?;
            if !expected.eq(&group, public.public_key(), &mut context)? {
                return Err(wrong("the halves of an EC key do not belong together"));
            }
            PrivateKey::Ec(EcKey::from_private_components(&group, &d, public.public_key())?)
        } else {
            let key = bytes(self.key.as_deref())?;
            return match kind {
                KeyType::Ed25519 if key.is_empty() => {
                    let text = self.public_key.as_deref().unwrap_or_default();
                    Ok((key, Some(PublicKey::from_text(kind, text)?.to_text()?)))
                }
                KeyType::Ed25519 if key.len() == 64 => {
                    let public = PrivateKey::from_stored(kind, key.expose())?.public()?.to_text()?;
                    Ok((key, Some(public)))
                }
                KeyType::Hmac if HMAC_KEY_BYTES.contains(&key.len()) => Ok((key, None)),
                _ if kind.is_cipher() && key.len() == kind.key_len() => Ok((key, None)),
                _ => Err(wrong(format!("{} bytes are no {} key", key.len(), kind.name()))),
            };
        };
        // Through the checks of an import: curve and size, and whether the numbers make a key at all.
        let stored = private.to_pkcs8()?;
        let private = PrivateKey::from_pkcs8(kind, stored.expose())?.sound()?;
        Ok((private.to_stored()?, Some(private.public()?.to_text()?)))
    }
}

fn bytes(text: Option<&str>) -> Result<SecretBytes, AsymError> {
    let decoded = b64::decode(text.unwrap_or_default()).map_err(|error| wrong(error.to_string()))?;
    Ok(SecretBytes::new(decoded))
}
