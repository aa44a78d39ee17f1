//! Making and re-wrapping Transit keys.

use cryptoki_sys::*;

use super::Call;
use crate::hsm::ck_error::Kind;
use crate::hsm::der::{self, RsaPublic};
use crate::hsm::proto::{Bytes, Failure, Frame, Reply, Wrapped};
use crate::hsm::raw::{Attribute, Object, Session};
use crate::hsm::worker::Trouble;
use crate::hsm::worker::device::{Device, private_usage};
use crate::hsm::worker::template::{self, Place, Usage};
use crate::hsm::{KeyId, KeyKind, Mechanism as BlobMechanism};

/// Longest wrapped key: the PKCS#8 form of an RSA-4096 key has some 2.4 KiB.
pub const MAX_WRAPPED: usize = 8192;

/// A new key: what is secret, and the public half of a pair.
pub struct Made {
    pub key: Object,
    pub public: Option<(Object, Vec<u8>)>,
}

/// Generates; to be called under the object lock, but see [`make`].
pub fn generate(device: &Device, session: Session, kind: KeyKind, place: Place<'_>, extractable: bool) -> Result<Made, Trouble> {
    let key_type = template::key_type(kind);
    if let Some(len) = template::aes_len(kind) {
        let template = template::secret_of_len(key_type, place, Usage::CIPHER, extractable, len);
        return Ok(Made { key: device.module.generate_key(session, CKM_AES_KEY_GEN, &template)?, public: None });
    }
    let usage = private_usage(kind);
    let public_usage = Usage { verify: true, encrypt: usage.decrypt, ..Usage::default() };
    let mut public = template::public(key_type, place, public_usage);
    let private = template::private(key_type, place, usage, extractable);
    let mechanism = match der::curve(kind) {
        Some(curve) => {
            public.push(Attribute::bytes(CKA_EC_PARAMS, curve));
            if kind == KeyKind::Ed25519 { CKM_EC_EDWARDS_KEY_PAIR_GEN } else { CKM_EC_KEY_PAIR_GEN }
        }
        None => {
            public.push(Attribute::number(CKA_MODULUS_BITS, template::rsa_bits(kind).unwrap_or(2048)));
            public.push(Attribute::bytes(CKA_PUBLIC_EXPONENT, &[1, 0, 1]));
            CKM_RSA_PKCS_KEY_PAIR_GEN
        }
    };
    let (public, key) = device.module.generate_pair(session, mechanism, &public, &private)?;
    match public_key(device, session, kind, public) {
        Ok(spki) => Ok(Made { key, public: Some((public, spki)) }),
        Err(trouble) => {
            let _ = device.module.destroy(session, key);
            let _ = device.module.destroy(session, public);
            Err(trouble)
        }
    }
}

/// Generates, with the object lock where that is short. The primes of an RSA key are looked for without the lock, which
/// every load of a key and every search would have to wait for; the modules that want it (SoftHSM fails a generation in a
/// few percent when another session searches at its end) get it at the last try.
fn make(call: &Call<'_>, kind: KeyKind, place: Place<'_>, extractable: bool) -> Result<Made, Trouble> {
    let device = call.device;
    if kind.is_rsa() {
        for _ in 0..2 {
            match generate(device, call.session, kind, place, extractable) {
                Err(Trouble::Ck(error)) if matches!(error.kind(), Kind::Ambiguous | Kind::Unsupported | Kind::Handle) => {
                    tracing::debug!(%error, "an RSA generation without the object lock failed");
                }
                other => return other,
            }
            if let Place::Token { id, .. } = place {
                // Half a pair may be left of it.
                let _guard = device.objects(call.current);
                call.destroy_all(id)?;
            }
        }
    }
    let _guard = device.objects(call.current);
    generate(device, call.session, kind, place, extractable)
}

/// SubjectPublicKeyInfo of a public key object.
fn public_key(device: &Device, session: Session, kind: KeyKind, public: Object) -> Result<Vec<u8>, Trouble> {
    let read = |attribute| -> Result<_, Trouble> { Ok(device.module.attribute(session, public, attribute)?.unwrap_or_default()) };
    if template::key_type(kind) == CKK_RSA {
        let (modulus, exponent) = (read(CKA_MODULUS)?, read(CKA_PUBLIC_EXPONENT)?);
        return Ok(der::rsa(RsaPublic { modulus: &modulus, exponent: &exponent }));
    }
    der::elliptic(kind, &read(CKA_EC_POINT)?)
        .ok_or_else(|| Trouble::Failed(Failure::Unsupported("the module shows no public point that fits the curve".into())))
}

/// The wrapping mechanism for a kind: plain RFC 3394 for AES keys, RFC 5649 for the rest, whose length is no multiple of 8.
pub fn wrapping_of(kind: KeyKind) -> BlobMechanism {
    if template::aes_len(kind).is_some() { BlobMechanism::AesKw } else { BlobMechanism::AesKwp }
}

/// Wraps a key object under a master key.
pub fn wrap(device: &Device, session: Session, kind: KeyKind, master: Object, key: Object) -> Result<Vec<u8>, Trouble> {
    let room = template::aes_len(kind).map_or(MAX_WRAPPED, |len| len + 8);
    Ok(device.module.wrap(session, device.wrapping(wrapping_of(kind))?, master, key, room)?)
}

/// Generate, wrap, destroy.
pub fn generate_wrapped(call: &Call<'_>, master: KeyId, kind: KeyKind) -> Result<Frame, Trouble> {
    let device = call.device;
    let master_key = device.master_key(call.current, master)?;
    let made = make(call, kind, Place::Session, true)?;
    let guard = device.objects(call.current);
    let blob = wrap(device, call.session, kind, master_key, made.key);
    let _ = device.module.destroy(call.session, made.key);
    if let Some((public, _)) = &made.public {
        let _ = device.module.destroy(call.session, *public);
    }
    drop(guard);
    let blob = blob?;
    let wrapped =
        Wrapped { id: KeyId::random().into(), kind, mechanism: wrapping_of(kind), wrapped_by: master.into(), blob: Bytes(&blob) };
    call.reply(&Reply::NewKey { wrapped: Some(wrapped), public_key: made.public.map(|(_, spki)| spki) })
}

/// Makes a key that never leaves the token.
pub fn generate_on_token(call: &Call<'_>, label: &str, id: KeyId, kind: KeyKind) -> Result<Frame, Trouble> {
    let guard = call.device.objects(call.current);
    call.refuse_taken(id)?;
    drop(guard);
    let made = make(call, kind, Place::Token { label, id }, false)?;
    call.reply(&Reply::NewKey { wrapped: None, public_key: made.public.map(|(_, spki)| spki) })
}

/// Unwraps into an extractable session object, wraps under the other master key, destroys.
pub fn rewrap(call: &Call<'_>, wrapped: &Wrapped<'_>, new_master: KeyId) -> Result<Frame, Trouble> {
    let device = call.device;
    let old = device.master_key(call.current, wrapped.wrapped_by.into())?;
    let new = device.master_key(call.current, new_master)?;
    let guard = device.objects(call.current);
    let key = device.unwrap(call.session, old, wrapped, true)?;
    let blob = wrap(device, call.session, wrapped.kind, new, key);
    let _ = device.module.destroy(call.session, key);
    drop(guard);
    let blob = blob?;
    let rewrapped =
        Wrapped { mechanism: wrapping_of(wrapped.kind), wrapped_by: new_master.into(), blob: Bytes(&blob), ..*wrapped };
    call.reply(&Reply::Wrapped(rewrapped))
}
