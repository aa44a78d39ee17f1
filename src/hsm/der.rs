//! The little DER that PKCS#11 needs: SubjectPublicKeyInfo in and out (RFC 5280, 3279, 5480, 8410).

use super::KeyKind;

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;

/// Algorithm identifier of RSA keys: rsaEncryption and NULL, as one SEQUENCE.
const RSA: &[u8] = &[0x30, 0x0D, 0x06, 0x09, 0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x01, 0x05, 0x00];
/// OBJECT IDENTIFIER id-ecPublicKey.
const EC: &[u8] = &[0x06, 0x07, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x02, 0x01];
/// Algorithm identifier of Ed25519 as one SEQUENCE.
const ED25519: &[u8] = &[0x30, 0x05, 0x06, 0x03, 0x2B, 0x65, 0x70];

/// An RSA public key's modulus and exponent, big-endian without leading zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RsaPublic<'a> {
    /// n.
    pub modulus: &'a [u8],
    /// e.
    pub exponent: &'a [u8],
}

/// CKA_EC_PARAMS of a kind: the curve's OBJECT IDENTIFIER.
pub fn curve(kind: KeyKind) -> Option<&'static [u8]> {
    match kind {
        KeyKind::EcP256 => Some(&[0x06, 0x08, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07]),
        KeyKind::EcP384 => Some(&[0x06, 0x05, 0x2B, 0x81, 0x04, 0x00, 0x22]),
        KeyKind::EcP521 => Some(&[0x06, 0x05, 0x2B, 0x81, 0x04, 0x00, 0x23]),
        KeyKind::Ed25519 => Some(&[0x06, 0x03, 0x2B, 0x65, 0x70]),
        _ => None,
    }
}

/// Reads an RSA SubjectPublicKeyInfo; `None` when it is something else.
pub fn parse_rsa(spki: &[u8]) -> Option<RsaPublic<'_>> {
    let (whole, rest) = element(spki, SEQUENCE)?;
    let key = whole.strip_prefix(RSA).filter(|_| rest.is_empty())?;
    let (bits, rest) = element(key, BIT_STRING)?;
    let bits = bits.strip_prefix(&[0]).filter(|_| rest.is_empty())?;
    let (key, rest) = element(bits, SEQUENCE)?;
    let (modulus, tail) = element(key, INTEGER).filter(|_| rest.is_empty())?;
    let (exponent, rest) = element(tail, INTEGER)?;
    rest.is_empty().then_some(RsaPublic { modulus: unsigned(modulus), exponent: unsigned(exponent) })
}

/// Writes an RSA SubjectPublicKeyInfo.
pub fn rsa(key: RsaPublic<'_>) -> Vec<u8> {
    let numbers = [number(key.modulus), number(key.exponent)].concat();
    spki(RSA, &tagged(SEQUENCE, &numbers))
}

/// Writes the SubjectPublicKeyInfo of an elliptic curve key from CKA_EC_POINT, which modules give as OCTET STRING or
/// as the bare point.
pub fn elliptic(kind: KeyKind, point: &[u8]) -> Option<Vec<u8>> {
    let bare = match element(point, OCTET_STRING) {
        Some((inner, [])) => inner,
        _ => point,
    };
    let len = match kind {
        KeyKind::EcP256 => 65,
        KeyKind::EcP384 => 97,
        KeyKind::EcP521 => 133,
        KeyKind::Ed25519 => 32,
        _ => return None,
    };
    if bare.len() != len {
        return None;
    }
    match kind {
        KeyKind::Ed25519 => Some(spki(ED25519, bare)),
        _ => Some(spki(&tagged(SEQUENCE, &[EC, curve(kind)?].concat()), bare)),
    }
}

fn spki(algorithm: &[u8], key: &[u8]) -> Vec<u8> {
    let bits = tagged(BIT_STRING, &[&[0], key].concat());
    tagged(SEQUENCE, &[algorithm, &bits].concat())
}

fn number(value: &[u8]) -> Vec<u8> {
    let value = unsigned(value);
    match value.first() {
        Some(first) if *first < 0x80 => tagged(INTEGER, value),
        _ => tagged(INTEGER, &[&[0], value].concat()),
    }
}

fn unsigned(value: &[u8]) -> &[u8] {
    let zeroes = value.iter().take_while(|byte| **byte == 0).count();
    value.get(zeroes..).unwrap_or_default()
}

fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let len = (content.len() as u32).to_be_bytes();
    match content.len() {
        0..=0x7F => out.push(len[3]),
        0x80..=0xFF => out.extend_from_slice(&[0x81, len[3]]),
        _ => out.extend_from_slice(&[0x82, len[2], len[3]]),
    }
    out.extend_from_slice(content);
    out
}

/// The content of the first element and what follows it, when the tag is the wanted one.
fn element(input: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, rest) = input.split_first()?;
    let (first, rest) = rest.split_first().filter(|_| *found == tag)?;
    let (len, rest) = match first {
        0..=0x7F => (usize::from(*first), rest),
        0x81 => rest.split_first().map(|(len, rest)| (usize::from(*len), rest))?,
        0x82 => rest.split_first_chunk::<2>().map(|(len, rest)| (usize::from(u16::from_be_bytes(*len)), rest))?,
        _ => return None,
    };
    rest.split_at_checked(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_rsa_key_comes_back_as_it_was_written() {
        for modulus in [vec![0x91; 256], vec![0x11; 256], vec![0xFF; 512]] {
            let key = RsaPublic { modulus: &modulus, exponent: &[1, 0, 1] };
            assert_eq!(parse_rsa(&rsa(key)), Some(key));
        }
    }

    #[test]
    fn other_keys_and_cut_ones_are_no_rsa_keys() {
        let key = rsa(RsaPublic { modulus: &[0x91; 256], exponent: &[1, 0, 1] });
        for end in 0..key.len() {
            assert_eq!(parse_rsa(&key[..end]), None);
        }
        assert_eq!(parse_rsa(&[&key[..], &[0]].concat()), None);
        assert_eq!(parse_rsa(&elliptic(KeyKind::EcP256, &[4; 65]).unwrap()), None);
    }

    #[test]
    fn a_point_may_be_wrapped_or_bare() {
        let bare = [4; 65];
        let wrapped = [&[4, 65][..], &bare].concat();
        assert_eq!(elliptic(KeyKind::EcP256, &bare), elliptic(KeyKind::EcP256, &wrapped));
        assert_eq!(elliptic(KeyKind::EcP384, &bare), None);
    }
}
