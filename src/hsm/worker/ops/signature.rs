//! Checking a signature in software, for the self-test.

use aws_lc_rs::digest::{SHA256, SHA384, SHA512, digest};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519, UnparsedPublicKey, VerificationAlgorithm,
};
use cryptoki_sys::*;

use crate::hsm::KeyKind;
use crate::hsm::raw::{Object, Session};
use crate::hsm::worker::device::Device;

/// Signs in the module and verifies in software; `spki` is the public key.
pub fn check(device: &Device, session: Session, kind: KeyKind, key: Object, spki: &[u8], message: &[u8]) -> Result<(), String> {
    let (mechanism, input, algorithm, point): (_, Vec<u8>, &'static dyn VerificationAlgorithm, usize) = match kind {
        KeyKind::EcP256 => (CKM_ECDSA, digest(&SHA256, message).as_ref().into(), &ECDSA_P256_SHA256_FIXED, 65),
        KeyKind::EcP384 => (CKM_ECDSA, digest(&SHA384, message).as_ref().into(), &ECDSA_P384_SHA384_FIXED, 97),
        KeyKind::EcP521 => (CKM_ECDSA, digest(&SHA512, message).as_ref().into(), &ECDSA_P521_SHA512_FIXED, 133),
        KeyKind::Ed25519 => (CKM_EDDSA, message.into(), &ED25519, 32),
        _ => return Err("there is no signature test for this kind".into()),
    };
    let signature = device.module.sign(session, mechanism, key, &input, 512).map_err(|error| error.to_string())?;
    // The point is what a SubjectPublicKeyInfo of these kinds ends with.
    let point = spki.len().checked_sub(point).and_then(|start| spki.get(start..)).unwrap_or_default();
    UnparsedPublicKey::new(algorithm, point)
        .verify(message, &signature)
        .map_err(|_| "the module's signature does not verify".to_string())
}
