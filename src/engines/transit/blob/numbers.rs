//! The decimal numbers of EC and RSA keys in a backup, read and written.

use openssl::{
    bn::{BigNum, BigNumContext, BigNumRef},
    pkey::{PKey, Public},
    rsa::{Rsa, RsaPrivateKeyBuilder},
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::wrong;
use crate::engines::transit::{
    alg::{
        KeyType,
        asym::{AsymError, PrivateKey, PublicKey},
    },
    protect::Material,
    record::VersionLine,
};

#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct RsaNumbers<'a> {
    #[serde(borrow)]
    n: Option<&'a RawValue>,
    #[serde(borrow)]
    e: Option<&'a RawValue>,
    #[serde(borrow)]
    d: Option<&'a RawValue>,
    #[serde(borrow)]
    primes: Option<Vec<&'a RawValue>>,
}

impl RsaNumbers<'_> {
    pub(super) fn public(&self) -> Result<Rsa<Public>, AsymError> {
        Ok(Rsa::from_public_components(number(self.n)?, number(self.e)?)?)
    }

    pub(super) fn private(&self) -> Result<PrivateKey, AsymError> {
        let (n, e, d) = (number(self.n)?, number(self.e)?, number(self.d)?);
        let primes = self.primes.as_deref().unwrap_or_default();
        let [p, q] = primes else { return Err(wrong("an RSA key must have two primes")) };
        let (p, q) = (number(Some(p))?, number(Some(q))?);
        let mut context = BigNumContext::new_secure()?;
        let mut product = BigNum::new_secure()?;
        product.checked_mul(&p, &q, &mut context)?;
        let one = BigNum::from_u32(1)?;
        if product != n || p <= one || q <= one {
            return Err(wrong("the primes of an RSA key do not make its modulus"));
        }
        // The factors of the Chinese remainder theorem are computed anew: a wrong one would give the key away.
        let mut less = |prime: &BigNumRef| -> Result<BigNum, AsymError> {
            let (mut minus, mut rest) = (BigNum::new_secure()?, BigNum::new_secure()?);
            minus.checked_sub(prime, &one)?;
            rest.nnmod(&d, &minus, &mut context)?;
            Ok(rest)
        };
        let (dp, dq) = (less(&p)?, less(&q)?);
        let mut inverse = BigNum::new_secure()?;
        inverse.mod_inverse(&q, &p, &mut context)?;
        let key = RsaPrivateKeyBuilder::new(n, e, d)?.set_factors(p, q)?.set_crt_params(dp, dq, inverse)?.build();
        Ok(PrivateKey::Rsa(PKey::from_rsa(key)?))
    }
}

/// A decimal number, which may have thousands of digits.
pub(super) fn number(raw: Option<&RawValue>) -> Result<BigNum, AsymError> {
    let text = raw.map(RawValue::get).unwrap_or_default();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) || text.len() > 5000 {
        return Err(wrong("a number of the key is missing or malformed"));
    }
    Ok(BigNum::from_dec_str(text)?)
}

pub(super) fn present(raw: Option<&RawValue>) -> bool {
    raw.is_some_and(|raw| raw.get() != "null")
}

pub(super) fn push_ec(kind: KeyType, line: &VersionLine, material: &Material, out: &mut Vec<u8>) -> Result<(), AsymError> {
    let mut numbers = (None, None, None);
    if kind.is_ecdsa() {
        let text = line.public_key.as_deref().unwrap_or_default();
        if let PublicKey::Ec(public) = PublicKey::from_text(kind, text)? {
            let (mut x, mut y, mut context) = (BigNum::new()?, BigNum::new()?, BigNumContext::new()?);
            public.public_key().affine_coordinates(public.group(), &mut x, &mut y, &mut context)?;
            numbers.0 = Some(x);
            numbers.1 = Some(y);
        }
        if !material.key.is_empty()
            && let PrivateKey::Ec(private) = PrivateKey::from_stored(kind, material.key.expose())?
        {
            let mut d = BigNum::new_secure()?;
            d.copy_from_slice(&zeroize::Zeroizing::new(private.private_key().to_vec()))?;
            numbers.2 = Some(d);
        }
    }
    push_number(",\"ec_x\":", numbers.0.as_deref(), out)?;
    push_number(",\"ec_y\":", numbers.1.as_deref(), out)?;
    push_number(",\"ec_d\":", numbers.2.as_deref(), out)
}

pub(super) fn push_rsa(kind: KeyType, line: &VersionLine, material: &Material, out: &mut Vec<u8>) -> Result<(), AsymError> {
    if kind.rsa_bits().is_none() {
        out.extend_from_slice(b",\"rsa_key\":null,\"rsa_public_key\":null");
        return Ok(());
    }
    if !material.key.is_empty()
        && let PrivateKey::Rsa(key) = PrivateKey::from_stored(kind, material.key.expose())?
    {
        let key = key.rsa()?;
        push_number(",\"rsa_key\":{\"N\":", Some(key.n()), out)?;
        push_number(",\"E\":", Some(key.e()), out)?;
        push_number(",\"D\":", Some(key.d()), out)?;
        push_number(",\"Primes\":[", key.p(), out)?;
        push_number(",", key.q(), out)?;
        push_number("],\"Precomputed\":{\"Dp\":", key.dmp1(), out)?;
        push_number(",\"Dq\":", key.dmq1(), out)?;
        push_number(",\"Qinv\":", key.iqmp(), out)?;
        out.extend_from_slice(b",\"CRTValues\":[]}}");
    } else {
        out.extend_from_slice(b",\"rsa_key\":null");
    }
    let text = line.public_key.as_deref().unwrap_or_default();
    if let PublicKey::Rsa(key) = PublicKey::from_text(kind, text)? {
        let key = key.rsa()?;
        push_number(",\"rsa_public_key\":{\"N\":", Some(key.n()), out)?;
        push_number(",\"E\":", Some(key.e()), out)?;
        out.push(b'}');
    }
    Ok(())
}

fn push_number(name: &str, number: Option<&BigNumRef>, out: &mut Vec<u8>) -> Result<(), AsymError> {
    out.extend_from_slice(name.as_bytes());
    match number {
        Some(number) => out.extend_from_slice(number.to_dec_str()?.as_bytes()),
        None => out.extend_from_slice(b"null"),
    }
    Ok(())
}
