//! Chains of certificates beside a key version: reading them, and what Vault's API asks of them.
//!
//! The first certificate is the key's own and no authority, all others are authorities. As in Vault neither the signatures
//! of the chain nor its dates are judged: whoever verifies with the key's certificates does that, with a time of their own.

use base64::{Engine, engine::general_purpose::STANDARD};
use openssl::{pkey::Id, x509::X509};

use super::alg::{KeyType, asym::PublicKey, pkcs8::element};

/// DER of the object identifier of basic constraints (RFC 5280, section 4.2.1.9).
const BASIC_CONSTRAINTS: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x13];
/// Certificates of one chain, and their bytes in DER: the record of a key holds those of all its versions, and is written anew
/// with each change. Those of public authorities have three or four of some 2 KiB.
const MOST: usize = 20;
const MOST_BYTES: usize = 256 << 10;
/// DER of the boolean TRUE.
const TRUE: &[u8] = &[0x01, 0x01, 0xff];

/// Certificates, that of the key first.
pub struct Chain {
    /// DER.
    certificates: Vec<Vec<u8>>,
    /// The algorithm of the first one's key.
    algorithm: Id,
    /// The first one's key, as SubjectPublicKeyInfo; nothing where it cannot be read.
    public: Option<Vec<u8>>,
}

impl Chain {
    /// Reads PEM: certificates are taken, other blocks passed over.
    ///
    /// # Errors
    /// The API's texts.
    pub fn parse(text: &str) -> Result<Self, String> {
        let blocks = pem_blocks(text).ok_or("could not decode a PEM block in the certificate chain")?;
        Self::of(
            blocks
                .into_iter()
                .filter(|(label, _)| matches!(*label, "CERTIFICATE" | "X509 CERTIFICATE"))
                .map(|(_, der)| der)
                .collect(),
        )
    }

    /// Reads certificates in DER.
    ///
    /// # Errors
    /// The API's texts.
    pub fn of(certificates: Vec<Vec<u8>>) -> Result<Self, String> {
        let unreadable =
            |error: &dyn std::fmt::Display| format!("could not parse a certificate in the certificate chain: {error}");
        let bytes: usize = certificates.iter().map(Vec::len).sum();
        if certificates.len() > MOST || bytes > MOST_BYTES {
            return Err(format!(
                "the certificate chain has {} certificates in {bytes} bytes of DER; at most {MOST} in {MOST_BYTES} bytes are taken",
                certificates.len()
            ));
        }
        let mut leaf = None;
        for der in &certificates {
            let whole = element(der, 0x30).filter(|(_, rest)| rest.is_empty());
            whole.ok_or_else(|| unreadable(&"the DER is malformed"))?;
            let parsed = X509::from_der(der).map_err(|error| unreadable(&error))?;
            leaf.get_or_insert(parsed);
        }
        let none = || "provided certificate chain did not contain any valid PEM encoded certificate".to_owned();
        let key = leaf.ok_or_else(none)?.public_key();
        let algorithm = key.as_ref().map_or(Id::from_raw(0), |key| key.id());
        let public = key.and_then(|key| key.public_key_to_der()).ok();
        Ok(Self { certificates, algorithm, public })
    }

    /// One certificate that is no authority, then authorities alone.
    ///
    /// # Errors
    /// The API's texts.
    pub fn check_order(&self) -> Result<(), &'static str> {
        let Some((leaf, others)) = self.certificates.split_first() else { return Ok(()) };
        if is_authority(leaf) {
            return Err("certificate in the first element is not a valid leaf certificate");
        }
        let Some((last, between)) = others.split_last() else { return Ok(()) };
        if !is_authority(last) {
            return Err("certificate in the last element is not a valid CA certificate");
        }
        if !between.iter().all(|der| is_authority(der)) {
            return Err("could not validate if there is only one leaf certificate in the provided chain");
        }
        Ok(())
    }

    /// Whether the first certificate's key is of the algorithm of the type.
    ///
    /// # Errors
    /// The API's text.
    pub fn check_algorithm(&self, kind: KeyType) -> Result<(), String> {
        let wanted = match kind {
            KeyType::Ed25519 => Id::ED25519,
            kind if kind.is_ecdsa() => Id::EC,
            _ => Id::RSA,
        };
        if self.algorithm == wanted {
            return Ok(());
        }
        let name = match self.algorithm {
            Id::RSA => "RSA",
            Id::DSA => "DSA",
            Id::EC => "ECDSA",
            Id::ED25519 => "Ed25519",
            // The API's word for what it does not know.
            _ => "0",
        };
        Err(format!(
            "could not validate key match between leaf certificate key and key entry in transit: provided leaf certificate \
             public key algorithm '{name}' does not match the transit key type '{}'",
            kind.name()
        ))
    }

    /// Whether the first certificate is of a key whose public half has this text form.
    pub fn is_of(&self, public: Option<&str>) -> bool {
        let (Some(public), Some(der)) = (public, &self.public) else { return false };
        let fits = |kind: KeyType| PublicKey::from_der(kind, der).and_then(|key| key.to_text()).is_ok_and(|text| text == public);
        KeyType::ALL.into_iter().filter(|kind| kind.is_asymmetric()).any(fits)
    }

    /// As a key's record holds them: DER in base64.
    pub fn stored(&self) -> Vec<String> {
        self.certificates.iter().map(|der| STANDARD.encode(der)).collect()
    }
}

/// The blocks of a PEM text (RFC 7468) with their labels; `None` where anything but a block follows the last one, or a block is
/// malformed.
fn pem_blocks(text: &str) -> Option<Vec<(&str, Vec<u8>)>> {
    let mut blocks = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (_, after) = rest.split_once("-----BEGIN ")?;
        let (label, after) = after.split_once("-----")?;
        let (body, after) = after.split_once(&format!("-----END {label}-----"))?;
        let body: String = body.split_whitespace().collect();
        blocks.push((label, STANDARD.decode(body).ok()?));
        rest = after.trim();
    }
    Some(blocks)
}

/// Whether a certificate's basic constraints say that it may issue others.
fn is_authority(der: &[u8]) -> bool {
    let constraints = || {
        let value = extension(der, BASIC_CONSTRAINTS)?;
        element(value, 0x30).map(|(constraints, _)| constraints.starts_with(TRUE))
    };
    constraints().unwrap_or(false)
}

/// The value of an extension of a certificate (RFC 5280, section 4.1); `id` is the DER of its object identifier.
fn extension<'a>(der: &'a [u8], id: &[u8]) -> Option<&'a [u8]> {
    /// The tag of the extensions among the parts of what is signed.
    const EXTENSIONS: u8 = 0xa3;
    let (certificate, _) = element(der, 0x30)?;
    let (mut parts, _) = element(certificate, 0x30)?;
    while *parts.first()? != EXTENSIONS {
        parts = element(parts, *parts.first()?)?.1;
    }
    let (list, _) = element(parts, EXTENSIONS)?;
    let (mut list, _) = element(list, 0x30)?;
    while !list.is_empty() {
        let (one, rest) = element(list, 0x30)?;
        if let Some(value) = one.strip_prefix(id) {
            // Whether it is critical does not matter here.
            let value = value.strip_prefix(TRUE).unwrap_or(value);
            return element(value, 0x04).map(|(value, _)| value);
        }
        list = rest;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_bounded() {
        let refused = |certificates: Vec<Vec<u8>>| Chain::of(certificates).err().unwrap();
        assert!(refused(vec![vec![0x30, 0]; MOST + 1]).contains("at most 20"));
        assert!(refused(vec![vec![0x30; MOST_BYTES + 1]]).contains("in 262144 bytes are taken"));
        assert!(refused(vec![vec![0x30; 9]; MOST]).contains("DER is malformed"));
    }
}
