//! PKCS#8 in unusual dress: Ed25519 keys in the EC layout and RSA keys under the RSASSA-PSS identifier, as some
//! libraries write them, and keys in version 2 of the layout (RFC 5958), with their public half behind, which ring and others
//! write and OpenSSL does not read; and EC keys as everybody writes them, with their public half, which OpenSSL leaves out once a
//! key without it was read.

use zeroize::Zeroizing;

use super::KeyType;

/// `1.2.840.10045.2.1` (EC), with tag and length.
const EC: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
/// `1.2.840.113549.1.1.10` (RSASSA-PSS).
const PSS: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a];
/// `1.2.840.113549.1.1.1` with NULL parameters (RSA).
const RSA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
/// `1.3.101.112` (Ed25519, RFC 8410) and what older NSS wrote: `1.3.6.1.4.1.11591.15.1`; `1.3.101.110` is written too.
const EDWARDS: [&[u8]; 3] = [
    &[0x06, 0x03, 0x2b, 0x65, 0x70],
    &[0x06, 0x03, 0x2b, 0x65, 0x6e],
    &[0x06, 0x09, 0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x0f, 0x01],
];

/// A key brought into the usual layout.
pub struct Usual {
    /// PKCS#8 DER without a public half.
    pub der: Zeroizing<Vec<u8>>,
    /// The public half that stood behind the private one, in the form that its algorithm has for that.
    pub public: Option<Vec<u8>>,
}

/// The same key in the usual layout; `None` when the given bytes need no change.
pub fn usual(der: &[u8]) -> Option<Usual> {
    let (body, _) = element(der, 0x30)?;
    let (version, body) = element(body, 0x02)?;
    let (algorithm, body) = element(body, 0x30)?;
    let (key, behind) = element(body, 0x04)?;
    let public = if version == [1] { public_behind(behind)? } else { None };
    let der = match usual_key(algorithm, key) {
        Some(der) => der,
        None if version == [1] => wrapped(algorithm, key),
        None => return None,
    };
    Some(Usual { der, public })
}

/// What bytes that are no PKCS#8 private key are instead, in the words that clients know.
pub fn other_private(der: &[u8]) -> Option<&'static str> {
    let (body, _) = element(der, 0x30)?;
    let (_, body) = element(body, 0x02)?;
    if element(body, 0x02).is_some() {
        return Some("x509: failed to parse private key (use ParsePKCS1PrivateKey instead for this key format)");
    }
    element(body, 0x04)?;
    Some("x509: failed to parse private key (use ParseECPrivateKey instead for this key format)")
}

/// What bytes that are no public key with its algorithm are instead, in the words that clients know.
pub fn other_public(der: &[u8]) -> Option<&'static str> {
    let (body, _) = element(der, 0x30)?;
    let (_, body) = element(body, 0x02)?;
    let (_, behind) = element(body, 0x02)?;
    let words = "x509: failed to parse public key (use ParsePKCS1PublicKey instead for this key format)";
    behind.is_empty().then_some(words)
}

/// Attributes (passed over) and public half of version 2. Older versions of ring write the latter's tag around a bit string,
/// in place of its own. `None` when something else stands there.
fn public_behind(rest: &[u8]) -> Option<Option<Vec<u8>>> {
    let rest = element(rest, 0xa0).map_or(rest, |(_, rest)| rest);
    if rest.is_empty() {
        return Some(None);
    }
    let (bits, rest) = match element(rest, 0x81) {
        Some(found) => found,
        None => {
            let (wrapped, rest) = element(rest, 0xa1)?;
            let (bits, inner) = element(wrapped, 0x03)?;
            inner.is_empty().then_some((bits, rest))?
        }
    };
    let (unused, public) = bits.split_first()?;
    (*unused == 0 && rest.is_empty()).then(|| Some(public.to_vec()))
}

/// What is not in the layout of its own algorithm.
fn usual_key(algorithm: &[u8], key: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    if algorithm.starts_with(PSS) {
        return Some(wrapped(RSA, key));
    }
    let parameters = algorithm.strip_prefix(EC)?;
    if !EDWARDS.contains(&parameters) {
        return None;
    }
    // ECPrivateKey (RFC 5915): version, then the seed as the private key.
    let (inner, _) = element(key, 0x30)?;
    let (_, inner) = element(inner, 0x02)?;
    let (seed, _) = element(inner, 0x04)?;
    let seed = Zeroizing::new(encoded(0x04, seed));
    Some(wrapped(EDWARDS[0], &seed))
}

/// The object identifier of an EC type's curve, with tag and length.
fn curve_identifier(kind: KeyType) -> Option<&'static [u8]> {
    match kind {
        KeyType::EcdsaP256 => Some(&[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07]),
        KeyType::EcdsaP384 => Some(&[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22]),
        KeyType::EcdsaP521 => Some(&[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23]),
        _ => None,
    }
}

/// ECPrivateKey (RFC 5915): the private number at its full width, the curve where it is not named around it, and the
/// uncompressed point.
fn ec_private_key(curve: Option<&[u8]>, number: &[u8], point: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut body = Zeroizing::new(Vec::with_capacity(number.len() + point.len() + 64));
    body.extend_from_slice(&[0x02, 0x01, 0x01]);
    body.extend_from_slice(&Zeroizing::new(encoded(0x04, number)));
    if let Some(curve) = curve {
        body.extend_from_slice(&encoded(0xa0, curve));
    }
    body.extend_from_slice(&encoded(0xa1, &encoded(0x03, &[&[0], point].concat())));
    Zeroizing::new(encoded(0x30, &body))
}

/// PKCS#8 DER of an EC key; `None` for other types.
pub fn of_ec(kind: KeyType, number: &[u8], point: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let algorithm = [EC, curve_identifier(kind)?].concat();
    Some(wrapped(&algorithm, &ec_private_key(None, number, point)))
}

/// SEC 1 DER of an EC key (`EC PRIVATE KEY` in PEM); `None` for other types.
pub fn sec1_of_ec(kind: KeyType, number: &[u8], point: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    Some(ec_private_key(Some(curve_identifier(kind)?), number, point))
}

/// PKCS#8 of an algorithm and the contents of its private key.
fn wrapped(algorithm: &[u8], key: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut body = Zeroizing::new(Vec::with_capacity(key.len() + 64));
    body.extend_from_slice(&[0x02, 0x01, 0x00]);
    body.extend_from_slice(&encoded(0x30, algorithm));
    body.extend_from_slice(&Zeroizing::new(encoded(0x04, key)));
    Zeroizing::new(encoded(0x30, &body))
}

/// A DER element.
pub fn encoded(tag: u8, contents: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(contents.len() + 6);
    out.push(tag);
    let len = contents.len();
    match u8::try_from(len) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let bytes = len.to_be_bytes();
            let bytes: Vec<u8> = bytes.into_iter().skip_while(|byte| *byte == 0).collect();
            out.push(0x80 | u8::try_from(bytes.len()).unwrap_or(8));
            out.extend_from_slice(&bytes);
        }
    }
    out.extend_from_slice(contents);
    out
}

/// The contents of the element with `tag` at the beginning, and what follows it. Lengths must be minimal (X.690,
/// section 10.1).
pub fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (first, rest) = der.split_first()?;
    let (len, rest) = rest.split_first()?;
    if *first != tag {
        return None;
    }
    let (len, rest) = match len {
        0..=0x7f => (usize::from(*len), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(len - 0x80))?;
            let value = bytes.iter().fold(0_usize, |value, byte| (value << 8) | usize::from(*byte));
            if value < 0x80 || bytes.first() == Some(&0) {
                return None;
            }
            (value, rest)
        }
        _ => return None,
    };
    rest.split_at_checked(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::transit::alg::{KeyType, asym::PrivateKey};

    #[test]
    fn usual_layouts_stay() {
        let der = PrivateKey::generate(KeyType::EcdsaP256).unwrap().to_pkcs8().unwrap();
        assert!(usual(der.expose()).is_none());
        assert!(usual(b"").is_none());
        assert!(usual(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]).is_none());
    }

    #[test]
    fn ed25519_in_the_ec_layout_is_read() {
        let seed = [7; 32];
        let ec_key = encoded(0x30, &[&[0x02, 0x01, 0x01][..], &encoded(0x04, &seed)].concat());
        let algorithm = [EC, EDWARDS[2]].concat();
        let odd = wrapped(&algorithm, &ec_key);
        let key = PrivateKey::from_pkcs8(KeyType::Ed25519, &odd).unwrap();
        let same = PrivateKey::from_seed(&seed).unwrap();
        assert_eq!(key.public().unwrap().to_text().unwrap(), same.public().unwrap().to_text().unwrap());
    }

    #[test]
    fn rsa_under_the_pss_identifier_is_read() {
        let key = PrivateKey::generate(KeyType::Rsa2048).unwrap();
        let der = key.to_pkcs8().unwrap();
        let (body, _) = element(der.expose(), 0x30).unwrap();
        let (_, body) = element(body, 0x02).unwrap();
        let (_, body) = element(body, 0x30).unwrap();
        let (inner, _) = element(body, 0x04).unwrap();
        let odd = wrapped(PSS, inner);
        let back = PrivateKey::from_pkcs8(KeyType::Rsa2048, &odd).unwrap();
        assert_eq!(back.public().unwrap().to_text().unwrap(), key.public().unwrap().to_text().unwrap());
    }

    /// Version 2 of a key in version 1.
    fn second(first: &[u8], behind: &[u8]) -> Vec<u8> {
        let (body, _) = element(first, 0x30).unwrap();
        let (_, rest) = element(body, 0x02).unwrap();
        encoded(0x30, &[&[0x02, 0x01, 0x01], rest, behind].concat())
    }

    #[test]
    fn the_second_version_of_the_layout_is_read_and_its_halves_must_fit() {
        for kind in [KeyType::Ed25519, KeyType::EcdsaP256, KeyType::EcdsaP521, KeyType::Rsa2048] {
            let (key, other) = (PrivateKey::generate(kind).unwrap(), PrivateKey::generate(kind).unwrap());
            let first = key.to_pkcs8().unwrap();
            // The bits at the end of SubjectPublicKeyInfo.
            let bits = |key: &PrivateKey| {
                let der = key.public().unwrap().to_der().unwrap();
                let (body, _) = element(&der, 0x30).unwrap();
                let (_, rest) = element(body, 0x30).unwrap();
                element(rest, 0x03).unwrap().0.to_vec()
            };
            let text = |key: &PrivateKey| key.public().unwrap().to_text().unwrap();
            let own = encoded(0x81, &bits(&key));
            let attributes = encoded(0xa0, &[]);
            let odd = encoded(0xa1, &encoded(0x03, &bits(&key)));
            for behind in [own.clone(), [attributes.clone(), own.clone()].concat(), odd, attributes, Vec::new()] {
                let back = PrivateKey::from_pkcs8(kind, &second(first.expose(), &behind)).unwrap();
                assert_eq!(text(&back), text(&key), "{}", kind.name());
            }
            for behind in [encoded(0x81, &bits(&other)), encoded(0x81, &[0]), encoded(0x04, &[1]), [own, vec![0]].concat()] {
                assert!(PrivateKey::from_pkcs8(kind, &second(first.expose(), &behind)).is_err(), "{}", kind.name());
            }
        }
    }

    #[test]
    fn lengths_must_be_minimal() {
        assert_eq!(element(&[0x02, 0x01, 5, 9], 0x02), Some((&[5][..], &[9][..])));
        assert_eq!(element(&[0x02, 0x81, 0x01, 5], 0x02), None);
        assert_eq!(element(&[0x02, 0x80], 0x02), None);
        assert_eq!(element(&[0x02], 0x02), None);
    }
}
