//! What the fuzz target of imports calls: the readers of unwrapped material and of public keys.

use super::{
    alg::{KeyType, asym::PrivateKey},
    certificates::{parse_chain, template},
    import::{private_half, public_half},
};
use crate::secret::SecretBytes;

fn kind_of(choice: usize) -> KeyType {
    KeyType::ALL.get(choice % KeyType::ALL.len()).copied().unwrap_or(KeyType::Hmac)
}

/// Reads bytes as the material of a type. What is taken must read again as it is stored, with the same public half.
pub fn material(choice: usize, bytes: &[u8]) {
    let kind = kind_of(choice);
    let Ok((stored, public)) = private_half(kind, &SecretBytes::new(bytes.to_vec())) else { return };
    if kind.is_asymmetric() {
        let again = PrivateKey::from_stored(kind, stored.expose());
        let again = again.and_then(|key| key.public()).and_then(|key| key.to_text()).ok();
        assert_eq!(again, public, "an imported {} key changes when it is stored", kind.name());
    }
}

/// Reads a text as the public key of a type. What is taken must read again from its text form.
pub fn public_key(choice: usize, text: &str) {
    let kind = kind_of(choice);
    if !kind.is_asymmetric() {
        return;
    }
    if let Ok(stored) = public_half(kind, text) {
        let again = super::alg::asym::PublicKey::from_text(kind, &stored).and_then(|key| key.to_text()).ok();
        assert_eq!(again.as_deref(), Some(stored.as_str()), "an imported {} key changes when it is stored", kind.name());
    }
}

/// Reads a text as a request for a certificate and as a chain of certificates.
pub fn certificates(text: &str) {
    let _ = template(text);
    let _ = parse_chain(text);
    let _ = super::import::pem_contents(text);
}

/// DER in base64 as a certificate in PEM.
pub fn pem_of(base64: &str) -> String {
    super::keys::pem("CERTIFICATE", base64)
}
