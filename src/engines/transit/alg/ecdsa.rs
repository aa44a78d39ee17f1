//! ECDSA over given digests (FIPS 186-5), and the two forms of its signatures: ASN.1 DER and JWS (RFC 7518, section 3.4).

use openssl::{
    bn::{BigNum, BigNumRef},
    ec::{EcGroupRef, EcKeyRef},
    ecdsa::EcdsaSig,
    pkey::{Private, Public},
};

use super::{asym::AsymError, pkcs8::element};

/// How signatures are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Marshaling {
    /// DER, in standard base64.
    #[default]
    Asn1,
    /// r and s one after the other, in URL-safe base64 without padding.
    Jws,
}

impl Marshaling {
    /// Reads `marshaling_algorithm`.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "asn1" => Some(Self::Asn1),
            "jws" => Some(Self::Jws),
            _ => None,
        }
    }
}

/// The bytes of a number below the group's order.
fn width(group: &EcGroupRef) -> usize {
    usize::try_from(group.degree()).unwrap_or(0).div_ceil(8)
}

/// Signs a digest.
pub fn sign(key: &EcKeyRef<Private>, digest: &[u8], form: Marshaling) -> Result<Vec<u8>, AsymError> {
    write(&EcdsaSig::sign(digest, key)?, width(key.group()), form)
}

/// A signature that an HSM made: r and s one after the other, in another form.
pub fn from_raw(raw: &[u8], form: Marshaling) -> Result<Vec<u8>, AsymError> {
    let width = raw.len() / 2;
    let (r, s) = raw.split_at(width);
    write(&EcdsaSig::from_private_components(BigNum::from_slice(r)?, BigNum::from_slice(s)?)?, width, form)
}

fn write(signature: &EcdsaSig, width: usize, form: Marshaling) -> Result<Vec<u8>, AsymError> {
    let padded = |number: &BigNumRef| number.to_vec_padded(i32::try_from(width).unwrap_or(0));
    match form {
        Marshaling::Asn1 => Ok(signature.to_der()?),
        Marshaling::Jws => {
            let mut out = padded(signature.r())?;
            out.extend_from_slice(&padded(signature.s())?);
            Ok(out)
        }
    }
}

/// Whether a signature of a digest is right; one that cannot be read is an error.
pub fn verify(key: &EcKeyRef<Public>, digest: &[u8], signature: &[u8], form: Marshaling) -> Result<bool, AsymError> {
    let numbers = match form {
        Marshaling::Asn1 => parse(signature)?,
        Marshaling::Jws => {
            let (r, s) = signature.split_at(signature.len() / 2);
            Some((BigNum::from_slice(r)?, BigNum::from_slice(s)?))
        }
    };
    let Some((r, s)) = numbers else { return Ok(false) };
    let signature = EcdsaSig::from_private_components(r, s)?;
    // Numbers out of range are errors of the library, and no signature.
    Ok(signature.verify(digest, key).unwrap_or(false))
}

/// r and s of a DER signature; `None` when one is negative, which no signature has.
fn parse(der: &[u8]) -> Result<Option<(BigNum, BigNum)>, AsymError> {
    let invalid = || AsymError::Input("supplied signature is invalid".into());
    let (body, rest) = element(der, 0x30).ok_or_else(invalid)?;
    let (r, body) = element(body, 0x02).ok_or_else(invalid)?;
    // What follows inside the sequence is ignored, as the API does.
    let (s, _) = element(body, 0x02).ok_or_else(invalid)?;
    let minimal = |number: &[u8]| match number {
        [] => false,
        [0, next, ..] => next & 0x80 != 0,
        [0xff, next, ..] => next & 0x80 == 0,
        _ => true,
    };
    if !minimal(r) || !minimal(s) {
        return Err(invalid());
    }
    if !rest.is_empty() {
        return Err(AsymError::Input("supplied signature contains extra data".into()));
    }
    let negative = |number: &[u8]| number.first().is_some_and(|byte| byte & 0x80 != 0);
    if negative(r) || negative(s) {
        return Ok(None);
    }
    Ok(Some((BigNum::from_slice(r)?, BigNum::from_slice(s)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::transit::alg::{
        KeyType,
        asym::{PrivateKey, PublicKey},
        hash::HashAlgorithm,
    };

    fn pair(kind: KeyType) -> (openssl::ec::EcKey<Private>, openssl::ec::EcKey<Public>) {
        let key = PrivateKey::generate(kind).unwrap();
        match (key.public().unwrap(), key) {
            (PublicKey::Ec(public), PrivateKey::Ec(private)) => (private, public),
            _ => panic!(),
        }
    }

    #[test]
    fn signatures_verify_in_both_forms() {
        for (kind, width) in [(KeyType::EcdsaP256, 32), (KeyType::EcdsaP384, 48), (KeyType::EcdsaP521, 66)] {
            let (private, public) = pair(kind);
            for hash in HashAlgorithm::ALL.into_iter().skip(1) {
                let digest = hash.digest(b"hello").unwrap();
                for form in [Marshaling::Asn1, Marshaling::Jws] {
                    let signature = sign(&private, &digest, form).unwrap();
                    assert!(verify(&public, &digest, &signature, form).unwrap());
                    assert!(!verify(&public, b"other", &signature, form).unwrap());
                    if form == Marshaling::Jws {
                        assert_eq!(signature.len(), 2 * width);
                        let der = from_raw(&signature, Marshaling::Asn1).unwrap();
                        assert!(verify(&public, &digest, &der, Marshaling::Asn1).unwrap());
                    }
                }
            }
        }
    }

    #[test]
    fn malformed_signatures_are_told_from_wrong_ones() {
        let (_, public) = pair(KeyType::EcdsaP256);
        let check = |der: &[u8]| verify(&public, b"digest", der, Marshaling::Asn1);
        assert!(!check(&[0x30, 6, 2, 1, 1, 2, 1, 1]).unwrap());
        assert!(!check(&[0x30, 6, 2, 1, 0, 2, 1, 0]).unwrap());
        assert!(!check(&[0x30, 6, 2, 1, 0x80, 2, 1, 1]).unwrap());
        for junk in [&[][..], &[0x30], &[0x30, 3, 2, 1, 1], &[0x30, 7, 2, 2, 0, 1, 2, 1, 1], &[0x30, 0x81, 6, 2, 1, 1, 2, 1, 1]] {
            assert_eq!(check(junk).unwrap_err().to_string(), "supplied signature is invalid", "{junk:?}");
        }
        let extra = check(&[0x30, 6, 2, 1, 1, 2, 1, 1, 0]).unwrap_err().to_string();
        assert_eq!(extra, "supplied signature contains extra data");
        assert!(!verify(&public, b"digest", b"", Marshaling::Jws).unwrap());
        assert!(!verify(&public, b"digest", b"abc", Marshaling::Jws).unwrap());
    }

    /// RFC 6979, appendix A.2.5: P-256, SHA-256, message "sample".
    #[test]
    fn a_published_signature_verifies() {
        let key = |hex_number: &str| BigNum::from_hex_str(hex_number).unwrap();
        let group = crate::engines::transit::alg::asym::group(KeyType::EcdsaP256).unwrap();
        let public = openssl::ec::EcKey::from_public_key_affine_coordinates(
            &group,
            &key("60FED4BA255A9D31C961EB74C6356D68C049B8923B61FA6CE669622E60F29FB6"),
            &key("7903FE1008B8BC99A41AE9E95628BC64F2F1B20C2D7E9F5177A3C294D4462299"),
        )
        .unwrap();
        let r = "EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716";
        let s = "F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8";
        let signature = hex::decode(format!("{r}{s}")).unwrap();
        let digest = HashAlgorithm::Sha2_256.digest(b"sample").unwrap();
        assert!(verify(&public, &digest, &signature, Marshaling::Jws).unwrap());
    }
}
