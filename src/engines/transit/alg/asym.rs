//! RSA, ECDSA and Ed25519 keys, through OpenSSL: it has every hash, salt length and padding of the API, and its private
//! operations take constant time.
//!
//! Stored form of private keys: PKCS#8 DER for RSA and EC, seed and public key (64 bytes) for Ed25519. Text form of
//! public keys: PEM (SubjectPublicKeyInfo) for RSA and EC, base64 of 32 bytes for Ed25519.

use base64::{Engine, engine::general_purpose::STANDARD};
use openssl::{
    bn::{BigNum, BigNumContext, BigNumRef},
    ec::{EcGroup, EcKey, EcPoint, PointConversionForm},
    error::ErrorStack,
    nid::Nid,
    pkey::{HasPublic, Id, PKey, PKeyRef, Private, Public},
    rsa::Rsa,
    sign::{Signer, Verifier},
};
use thiserror::Error;
use zeroize::Zeroizing;

use super::KeyType;
use crate::{hsm, secret::SecretBytes};

/// Why an operation with an asymmetric key fails.
#[derive(Debug, Error)]
pub enum AsymError {
    /// The bytes are no key of the type.
    #[error("{0}")]
    Key(String),
    /// The algorithm does not take the input.
    #[error("{0}")]
    Input(String),
    /// The library refuses.
    #[error("{}", reason(.0))]
    Library(#[from] ErrorStack),
}

/// Why the library refuses, without the places in its source that its own text names.
fn reason(stack: &ErrorStack) -> String {
    let first = stack.errors().iter().find_map(|error| error.reason());
    first.unwrap_or("the cryptographic library refuses").to_owned()
}

/// A private key ready for use; the library overwrites it when it is dropped.
pub enum PrivateKey {
    /// RSA.
    Rsa(PKey<Private>),
    /// EC.
    Ec(EcKey<Private>),
    /// Ed25519.
    Ed(PKey<Private>),
}

/// A public key ready for use.
pub enum PublicKey {
    /// RSA.
    Rsa(PKey<Public>),
    /// EC.
    Ec(EcKey<Public>),
    /// Ed25519.
    Ed(PKey<Public>),
}

/// The curve of an EC type.
pub fn curve(kind: KeyType) -> Option<Nid> {
    match kind {
        KeyType::EcdsaP256 => Some(Nid::X9_62_PRIME256V1),
        KeyType::EcdsaP384 => Some(Nid::SECP384R1),
        KeyType::EcdsaP521 => Some(Nid::SECP521R1),
        _ => None,
    }
}

/// The group of an EC type.
pub fn group(kind: KeyType) -> Result<EcGroup, AsymError> {
    let curve = curve(kind).ok_or_else(|| AsymError::Key(format!("{} is no EC key type", kind.name())))?;
    Ok(EcGroup::from_curve_name(curve)?)
}

/// What a parsed key is, in the words of the API's errors.
fn described<T>(key: &PKeyRef<T>, private: bool) -> String {
    let name = match key.id() {
        Id::RSA | Id::RSA_PSS => "rsa",
        Id::EC => "ecdsa",
        Id::ED25519 => return if private { "ed25519.PrivateKey".into() } else { "ed25519.PublicKey".into() },
        _ => return "another key".into(),
    };
    format!("*{name}.{}Key", if private { "Private" } else { "Public" })
}

/// Whether a key is of a type: algorithm, curve, size.
fn check<T: HasPublic>(kind: KeyType, key: &PKeyRef<T>, private: bool) -> Result<(), AsymError> {
    let mismatch = || Err(AsymError::Key(format!("invalid key type: expected {}, got {}", kind.name(), described(key, private))));
    match key.id() {
        Id::RSA | Id::RSA_PSS => match kind.rsa_bits() {
            None => mismatch(),
            Some(bits) => {
                let (expected, got) = (usize::try_from(bits / 8).unwrap_or(0), key.size());
                if expected == got {
                    return Ok(());
                }
                Err(AsymError::Key(format!("invalid key size: expected {expected} bytes, got {got} bytes")))
            }
        },
        Id::EC => match curve(kind) {
            None => mismatch(),
            Some(expected) => {
                let got = key.ec_key()?.group().curve_name();
                if got == Some(expected) {
                    return Ok(());
                }
                let name = |curve: Option<Nid>| match curve {
                    Some(Nid::X9_62_PRIME256V1) => "P-256",
                    Some(Nid::SECP384R1) => "P-384",
                    Some(Nid::SECP521R1) => "P-521",
                    Some(Nid::SECP224R1) => "P-224",
                    _ => "another curve",
                };
                Err(AsymError::Key(format!("invalid curve: expected {}, got {}", name(Some(expected)), name(got))))
            }
        },
        Id::ED25519 if kind == KeyType::Ed25519 => Ok(()),
        _ => mismatch(),
    }
}

impl PrivateKey {
    /// A fresh key. Takes long for RSA: not for the threads that serve requests.
    pub fn generate(kind: KeyType) -> Result<Self, AsymError> {
        Ok(match kind.rsa_bits() {
            Some(bits) => Self::Rsa(PKey::from_rsa(Rsa::generate(bits)?)?),
            None if kind == KeyType::Ed25519 => Self::from_seed(SecretBytes::random(32).expose())?,
            None => Self::Ec({
                let group = group(kind)?;
                EcKey::generate(&group)?
            }),
        })
    }

    /// The Ed25519 key of a 32-byte seed (RFC 8032).
    pub fn from_seed(seed: &[u8]) -> Result<Self, AsymError> {
        Ok(Self::Ed(PKey::private_key_from_raw_bytes(seed, Id::ED25519)?))
    }

    /// From the stored form.
    pub fn from_stored(kind: KeyType, bytes: &[u8]) -> Result<Self, AsymError> {
        if kind == KeyType::Ed25519 {
            let seed = bytes.get(..32).ok_or_else(|| AsymError::Key("an Ed25519 key has 64 bytes".into()))?;
            return Self::from_seed(seed);
        }
        Self::from_pkcs8(kind, bytes)
    }

    /// From PKCS#8 DER, which must hold a key of the type.
    pub fn from_pkcs8(kind: KeyType, der: &[u8]) -> Result<Self, AsymError> {
        let changed = super::pkcs8::usual(der);
        let parsed = PKey::private_key_from_pkcs8(changed.as_ref().map_or(der, |changed| &changed.der));
        let key = parsed.map_err(|error| {
            let why = super::pkcs8::other_private(der).map_or_else(|| reason(&error), str::to_owned);
            AsymError::Key(format!("error parsing asymmetric key: {why}"))
        })?;
        check(kind, &key, true)?;
        let key = match key.id() {
            Id::EC => Self::Ec(key.ec_key()?),
            Id::ED25519 => Self::Ed(key),
            _ => Self::Rsa(key),
        };
        match changed.and_then(|changed| changed.public) {
            Some(public) if !key.has_public(&public)? => {
                Err(AsymError::Key("the public key beside the private key is not its own".into()))
            }
            _ => Ok(key),
        }
    }

    /// Whether this is its public half, as the bits of SubjectPublicKeyInfo are laid out.
    fn has_public(&self, bits: &[u8]) -> Result<bool, AsymError> {
        Ok(match self {
            Self::Ed(key) => key.raw_public_key()? == bits,
            Self::Rsa(key) => key.rsa()?.public_key_to_der_pkcs1()? == bits,
            Self::Ec(key) => {
                let mut context = BigNumContext::new()?;
                let Ok(point) = EcPoint::from_bytes(key.group(), bits, &mut context) else { return Ok(false) };
                let mut expected = EcPoint::new(key.group())?;
                let mut secure = BigNumContext::new_secure()?;
                expected.mul_generator2(key.group(), key.private_key(), &mut secure)?;
                expected.eq(key.group(), &point, &mut context)?
            }
        })
    }

    /// A key from outside once its parts are found to fit together: what is wrong in one would give it away with the first
    /// signature, or fail long after it was taken. The point of an EC key is computed anew, whatever came with it. Takes
    /// long for RSA: not for the threads that serve requests.
    pub fn sound(self) -> Result<Self, AsymError> {
        let refuse = |text: &str| Err(AsymError::Key(text.to_owned()));
        match self {
            Self::Ed(_) => Ok(self),
            Self::Rsa(key) => {
                let rsa = key.rsa()?;
                sound_rsa_public(rsa.n(), rsa.e())?;
                match rsa.check_key() {
                    Ok(true) => Ok(Self::Rsa(key)),
                    Ok(false) | Err(_) => refuse("the numbers of the RSA key do not fit together"),
                }
            }
            Self::Ec(key) => {
                let (group, number) = (key.group(), key.private_key());
                let mut order = BigNum::new()?;
                let mut context = BigNumContext::new_secure()?;
                group.order(&mut order, &mut context)?;
                if number.is_negative() || number.num_bits() == 0 || number >= &*order {
                    return refuse("invalid elliptic curve private key value");
                }
                let mut point = EcPoint::new(group)?;
                point.mul_generator2(group, number, &mut context)?;
                Ok(Self::Ec(EcKey::from_private_components(group, number, &point)?))
            }
        }
    }

    /// The stored form.
    pub fn to_stored(&self) -> Result<SecretBytes, AsymError> {
        match self {
            Self::Ed(key) => {
                let seed = Zeroizing::new(key.raw_private_key()?);
                let mut bytes = Vec::with_capacity(64);
                bytes.extend_from_slice(&seed);
                bytes.extend_from_slice(&key.raw_public_key()?);
                Ok(SecretBytes::new(bytes))
            }
            Self::Rsa(_) | Self::Ec(_) => self.to_pkcs8(),
        }
    }

    /// PKCS#8 DER.
    pub fn to_pkcs8(&self) -> Result<SecretBytes, AsymError> {
        Ok(SecretBytes::new(match self {
            Self::Rsa(key) | Self::Ed(key) => key.private_key_to_pkcs8()?,
            Self::Ec(key) => {
                let EcParts { kind, number, point } = ec_parts(key)?;
                let der = super::pkcs8::of_ec(kind, &number, &point);
                der.ok_or_else(|| AsymError::Key("the curve is unknown".into()))?.to_vec()
            }
        }))
    }

    /// The older layouts: PKCS#1 DER for RSA, SEC 1 DER for EC; `None` for Ed25519, which has none.
    pub fn to_traditional(&self) -> Result<Option<SecretBytes>, AsymError> {
        Ok(match self {
            Self::Rsa(key) => Some(SecretBytes::new(key.rsa()?.private_key_to_der()?)),
            Self::Ec(key) => {
                let EcParts { kind, number, point } = ec_parts(key)?;
                super::pkcs8::sec1_of_ec(kind, &number, &point).map(|der| SecretBytes::new(der.to_vec()))
            }
            Self::Ed(_) => None,
        })
    }

    /// Its public half.
    pub fn public(&self) -> Result<PublicKey, AsymError> {
        Ok(match self {
            Self::Rsa(key) => PublicKey::Rsa(PKey::public_key_from_der(&key.public_key_to_der()?)?),
            Self::Ec(key) => PublicKey::Ec(EcKey::from_public_key(key.group(), key.public_key())?),
            Self::Ed(key) => PublicKey::Ed(PKey::public_key_from_raw_bytes(&key.raw_public_key()?, Id::ED25519)?),
        })
    }

    /// Ed25519 signature (RFC 8032) of a message.
    pub fn sign_message(&self, message: &[u8]) -> Result<Vec<u8>, AsymError> {
        match self {
            Self::Ed(key) => Ok(Signer::new_without_digest(key)?.sign_oneshot_to_vec(message)?),
            Self::Rsa(_) | Self::Ec(_) => Err(AsymError::Key("the key is not an Ed25519 key".into())),
        }
    }
}

impl PublicKey {
    /// From the text form.
    pub fn from_text(kind: KeyType, text: &str) -> Result<Self, AsymError> {
        if kind == KeyType::Ed25519 {
            let bytes = STANDARD.decode(text).map_err(|error| AsymError::Key(error.to_string()))?;
            return Ok(Self::Ed(PKey::public_key_from_raw_bytes(&bytes, Id::ED25519)?));
        }
        let key = PKey::public_key_from_pem(text.as_bytes())?;
        Self::checked(kind, key)
    }

    /// From SubjectPublicKeyInfo in DER, which must hold a key of the type.
    pub fn from_der(kind: KeyType, der: &[u8]) -> Result<Self, AsymError> {
        let key = PKey::public_key_from_der(der);
        let key = key.map_err(|error| {
            let why = super::pkcs8::other_public(der).map_or_else(|| reason(&error), str::to_owned);
            AsymError::Key(format!("error parsing public key: {why}"))
        })?;
        Self::checked(kind, key)
    }

    fn checked(kind: KeyType, key: PKey<Public>) -> Result<Self, AsymError> {
        check(kind, &key, false)?;
        Ok(match key.id() {
            Id::EC => Self::Ec(key.ec_key()?),
            Id::ED25519 => Self::Ed(key),
            _ => Self::Rsa(key),
        })
    }

    /// A key from outside once its numbers are found to be those of its type. The library sees to points itself.
    pub fn sound(self) -> Result<Self, AsymError> {
        if let Self::Rsa(key) = &self {
            let rsa = key.rsa()?;
            sound_rsa_public(rsa.n(), rsa.e())?;
        }
        Ok(self)
    }

    /// The text form.
    pub fn to_text(&self) -> Result<String, AsymError> {
        let pem = match self {
            Self::Ed(key) => return Ok(STANDARD.encode(key.raw_public_key()?)),
            Self::Rsa(key) => key.public_key_to_pem()?,
            Self::Ec(key) => PKey::from_ec_key(key.clone())?.public_key_to_pem()?,
        };
        String::from_utf8(pem).map_err(|error| AsymError::Key(error.to_string()))
    }

    /// SubjectPublicKeyInfo in DER.
    pub fn to_der(&self) -> Result<Vec<u8>, AsymError> {
        Ok(match self {
            Self::Rsa(key) | Self::Ed(key) => key.public_key_to_der()?,
            Self::Ec(key) => PKey::from_ec_key(key.clone())?.public_key_to_der()?,
        })
    }

    /// Whether an Ed25519 signature of a message is right.
    pub fn verify_message(&self, message: &[u8], signature: &[u8]) -> Result<bool, AsymError> {
        match self {
            // The library counts a signature of another length as an error.
            Self::Ed(key) => Ok(Verifier::new_without_digest(key)?.verify_oneshot(signature, message).unwrap_or(false)),
            Self::Rsa(_) | Self::Ec(_) => Err(AsymError::Key("the key is not an Ed25519 key".into())),
        }
    }
}

/// What every RSA key must have: an odd modulus of as many bits as its type says, and an odd exponent from 3 to 2^31-1 (as Go's
/// crypto/rsa, which Vault's clients know). With an exponent of 1 a ciphertext is its plaintext.
///
/// Vault and OpenBao look at the bytes of a modulus alone, which [`check`] has done: they take 2041 bits for an `rsa-2048` key.
/// Such a key is weaker than its name says, and paddings that count in bits (PSS) would differ between levels.
fn sound_rsa_public(modulus: &BigNumRef, exponent: &BigNumRef) -> Result<(), AsymError> {
    let refuse = |text: &str| Err(AsymError::Key(text.to_owned()));
    let (bits, whole) = (modulus.num_bits(), 8 * modulus.num_bytes());
    if bits != whole {
        return refuse(&format!("invalid key size: expected {whole} bits, got {bits} bits"));
    }
    if !modulus.is_bit_set(0) {
        return refuse("crypto/rsa: public modulus is even");
    }
    if exponent.num_bits() < 2 || !exponent.is_bit_set(0) {
        return refuse("crypto/rsa: public exponent too small or even");
    }
    if exponent.num_bits() > 31 {
        return refuse("crypto/rsa: public exponent too large");
    }
    Ok(())
}

/// What the layouts of an EC key are made of.
struct EcParts {
    kind: KeyType,
    /// The private number at its full width.
    number: Zeroizing<Vec<u8>>,
    /// The uncompressed point (SEC 1, section 2.3.3).
    point: Vec<u8>,
}

fn ec_parts(key: &EcKey<Private>) -> Result<EcParts, AsymError> {
    let name = key.group().curve_name();
    let kind = KeyType::ALL.into_iter().find(|kind| name.is_some() && curve(*kind) == name);
    let kind = kind.ok_or_else(|| AsymError::Key("the curve is unknown".into()))?;
    let width = i32::try_from(key.group().degree().div_ceil(8)).unwrap_or(0);
    let number = Zeroizing::new(key.private_key().to_vec_padded(width)?);
    let mut context = BigNumContext::new()?;
    let point = key.public_key().to_bytes(key.group(), PointConversionForm::UNCOMPRESSED, &mut context)?;
    Ok(EcParts { kind, number, point })
}

/// The type of an HSM's key.
pub fn of_hsm(kind: hsm::KeyKind) -> Option<KeyType> {
    KeyType::ALL.into_iter().find(|known| known.in_hsm() == Some(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: [KeyType; 5] = [KeyType::EcdsaP256, KeyType::EcdsaP384, KeyType::EcdsaP521, KeyType::Ed25519, KeyType::Rsa2048];

    #[test]
    fn keys_come_back_as_stored() {
        for kind in QUICK {
            let key = PrivateKey::generate(kind).unwrap();
            let text = key.public().unwrap().to_text().unwrap();
            let back = PrivateKey::from_stored(kind, key.to_stored().unwrap().expose()).unwrap();
            assert_eq!(back.public().unwrap().to_text().unwrap(), text, "{}", kind.name());
            let back = PrivateKey::from_pkcs8(kind, key.to_pkcs8().unwrap().expose()).unwrap();
            assert_eq!(back.public().unwrap().to_text().unwrap(), text, "{}", kind.name());
            let public = PublicKey::from_text(kind, &text).unwrap();
            let der = public.to_der().unwrap();
            assert_eq!(PublicKey::from_der(kind, &der).unwrap().to_text().unwrap(), text);
        }
    }

    #[test]
    fn keys_of_other_types_are_told_apart() {
        let p256 = PrivateKey::generate(KeyType::EcdsaP256).unwrap().to_pkcs8().unwrap();
        let refused = |kind| PrivateKey::from_pkcs8(kind, p256.expose()).err().unwrap().to_string();
        assert_eq!(refused(KeyType::EcdsaP384), "invalid curve: expected P-384, got P-256");
        assert_eq!(refused(KeyType::Rsa2048), "invalid key type: expected rsa-2048, got *ecdsa.PrivateKey");
        assert_eq!(refused(KeyType::Ed25519), "invalid key type: expected ed25519, got *ecdsa.PrivateKey");
        assert!(PrivateKey::from_pkcs8(KeyType::EcdsaP256, b"junk").is_err());
    }

    #[test]
    fn keys_in_other_layouts_are_named() {
        for (kind, layout) in [(KeyType::Rsa2048, "PKCS1"), (KeyType::EcdsaP256, "EC")] {
            let der = PrivateKey::generate(kind).unwrap().to_traditional().unwrap().unwrap();
            let words = format!("x509: failed to parse private key (use Parse{layout}PrivateKey instead for this key format)");
            let refused = PrivateKey::from_pkcs8(kind, der.expose()).err().unwrap().to_string();
            assert_eq!(refused, format!("error parsing asymmetric key: {words}"));
        }
        let der = Rsa::generate(2048).unwrap().public_key_to_der_pkcs1().unwrap();
        let refused = PublicKey::from_der(KeyType::Rsa2048, &der).err().unwrap().to_string();
        let words = "x509: failed to parse public key (use ParsePKCS1PublicKey instead for this key format)";
        assert_eq!(refused, format!("error parsing public key: {words}"));
        let junk = PublicKey::from_der(KeyType::Rsa2048, b"junk").err().unwrap().to_string();
        assert!(junk.starts_with("error parsing public key: ") && !junk.contains("asn1_"), "{junk}");
    }

    #[test]
    fn keys_from_outside_must_fit_together() {
        let rsa = Rsa::generate(2048).unwrap();
        let part = |number: &BigNumRef| number.to_owned().unwrap();
        let plus = |number: &BigNumRef, more: u32| {
            let mut sum = number.to_owned().unwrap();
            sum.add_word(more).unwrap();
            sum
        };
        let build = |n: BigNum, e: BigNum, d: BigNum, dp: BigNum, q_inverse: BigNum| {
            let builder = openssl::rsa::RsaPrivateKeyBuilder::new(n, e, d).unwrap();
            let builder = builder.set_factors(part(rsa.p().unwrap()), part(rsa.q().unwrap())).unwrap();
            let key = builder.set_crt_params(dp, part(rsa.dmq1().unwrap()), q_inverse).unwrap().build();
            PrivateKey::Rsa(PKey::from_rsa(key).unwrap()).sound()
        };
        let (n, e, d) = (|| part(rsa.n()), || part(rsa.e()), || part(rsa.d()));
        let (dp, inverse) = (|| part(rsa.dmp1().unwrap()), || part(rsa.iqmp().unwrap()));
        assert!(build(n(), e(), d(), dp(), inverse()).is_ok());
        assert!(build(plus(rsa.n(), 1), e(), d(), dp(), inverse()).is_err());
        assert!(build(n(), e(), plus(rsa.d(), 2), dp(), inverse()).is_err());
        assert!(build(n(), e(), d(), plus(rsa.dmp1().unwrap(), 2), inverse()).is_err());
        assert!(build(n(), e(), d(), dp(), plus(rsa.iqmp().unwrap(), 1)).is_err());
        let exponent = |value: u32| BigNum::from_u32(value).unwrap();
        assert!(build(n(), exponent(1), exponent(1), dp(), inverse()).is_err());
        let public = |n: BigNum, e: BigNum| {
            let key = Rsa::from_public_components(n, e).unwrap();
            PublicKey::Rsa(PKey::from_rsa(key).unwrap()).sound()
        };
        assert!(public(n(), e()).is_ok());
        // As many bytes, and yet not as many bits.
        for bits in [2041, 2047] {
            let short = Rsa::generate(bits).unwrap();
            let said = public(part(short.n()), part(short.e())).err().unwrap().to_string();
            assert_eq!(said, format!("invalid key size: expected 2048 bits, got {bits} bits"));
        }
        for (n, e) in [(n(), exponent(1)), (n(), exponent(4)), (n(), part(rsa.n())), (plus(rsa.n(), 1), e())] {
            assert!(public(n, e).is_err());
        }
        let group = group(KeyType::EcdsaP256).unwrap();
        let (ours, other) = (EcKey::generate(&group).unwrap(), EcKey::generate(&group).unwrap());
        let mixed = EcKey::from_private_components(&group, ours.private_key(), other.public_key()).unwrap();
        let mended = PrivateKey::Ec(mixed).sound().unwrap().public().unwrap().to_text().unwrap();
        assert_eq!(mended, PrivateKey::Ec(ours.clone()).public().unwrap().to_text().unwrap());
        let mut order = BigNum::new().unwrap();
        group.order(&mut order, &mut BigNumContext::new().unwrap()).unwrap();
        for number in [exponent(0), part(&order), plus(&order, 5)] {
            if let Ok(key) = EcKey::from_private_components(&group, &number, ours.public_key()) {
                assert!(PrivateKey::Ec(key).sound().is_err());
            }
        }
    }

    /// RFC 8032, section 7.1, tests 1 and 2.
    #[test]
    fn ed25519_as_in_rfc_8032() {
        for (seed, public, message, signature) in [
            (
                "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
                "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
                "",
                "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
            ),
            (
                "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
                "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
                "72",
                "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
            ),
        ] {
            let key = PrivateKey::from_seed(&hex::decode(seed).unwrap()).unwrap();
            let text = key.public().unwrap().to_text().unwrap();
            assert_eq!(text, STANDARD.encode(hex::decode(public).unwrap()));
            let message = hex::decode(message).unwrap();
            let made = key.sign_message(&message).unwrap();
            assert_eq!(hex::encode(&made), signature);
            assert!(key.public().unwrap().verify_message(&message, &made).unwrap());
            assert!(!key.public().unwrap().verify_message(b"other", &made).unwrap());
            assert!(!key.public().unwrap().verify_message(&message, &made[..63]).unwrap());
        }
    }
}
