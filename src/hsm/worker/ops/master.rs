//! Zone master keys.

use cryptoki_sys::*;
use sha2::{Digest, Sha256};

use super::Call;
use crate::hsm::der;
use crate::hsm::proto::{Bytes, Failure, Frame, Reply};
use crate::hsm::raw::{Attribute, Mechanism, Object, Session};
use crate::hsm::worker::Trouble;
use crate::hsm::worker::device::Device;
use crate::hsm::worker::template::{self, Place, Usage};
use crate::hsm::{KeyId, Mechanism as BlobMechanism};

/// The known key that a check value wraps.
const KNOWN_KEY: [u8; 32] = *b"sos master key check value\0\0\0\0\0\x01";

/// The longest RSA output.
const MAX_RSA: usize = 1024;

type Exported = Vec<(BlobMechanism, Vec<u8>)>;

/// Makes a master key and wraps it to the recipients.
pub fn create(call: &Call<'_>, label: &str, id: KeyId, recipients: &[Bytes<'_>]) -> Result<Frame, Trouble> {
    let device = call.device;
    let guard = device.objects(call.current);
    call.refuse_taken(id)?;
    let place = Place::Token { label, id };
    let (key, exported) = if recipients.is_empty() {
        let template = template::secret_of_len(CKK_AES, place, Usage::WRAPPER, false, 32);
        (device.module.generate_key(call.session, CKM_AES_KEY_GEN, &template)?, Vec::new())
    } else {
        exportable(device, call.session, place, recipients)?
    };
    let check_value = check_value(device, call.session, key);
    if check_value.is_err() {
        // A master key that cannot wrap is of no use; nothing depends on it yet.
        let _ = device.module.destroy(call.session, key);
    }
    drop(guard);
    call.reply(&Reply::Master { check_value: check_value?, exported })
}

/// Generates an extractable session key, wraps it to the recipients, copies it to a non-extractable token object and
/// destroys it.
fn exportable(
    device: &Device,
    session: Session,
    place: Place<'_>,
    recipients: &[Bytes<'_>],
) -> Result<(Object, Exported), Trouble> {
    let template = template::secret_of_len(CKK_AES, Place::Session, Usage::WRAPPER, true, 32);
    let passing = device.module.generate_key(session, CKM_AES_KEY_GEN, &template)?;
    let mut exported = Vec::new();
    let result = recipients
        .iter()
        .try_for_each(|recipient| {
            exported.push((BlobMechanism::RsaOaepSha1, wrap_to(device, session, passing, recipient.0)?));
            Ok(())
        })
        .and_then(|()| {
            let mut changes = place.attributes();
            changes.push(Attribute::flag(CKA_EXTRACTABLE, false));
            match device.module.copy(session, passing, &changes) {
                // Modules differ in what a copy may change.
                Err(error) if COPY_REFUSED.contains(&error.rv) => rewrapped(device, session, passing, place),
                copied => Ok::<_, Trouble>(copied?),
            }
        });
    let destroyed = device.module.destroy(session, passing);
    let key = result?;
    destroyed?;
    Ok((key, exported))
}

/// What modules answer that do not let a copy be a non-extractable token object.
const COPY_REFUSED: [CK_RV; 4] =
    [CKR_ATTRIBUTE_READ_ONLY, CKR_TEMPLATE_INCONSISTENT, CKR_FUNCTION_NOT_SUPPORTED, CKR_ACTION_PROHIBITED];

/// The same key as non-extractable token object, by wrapping and unwrapping it inside the HSM under a key that exists for
/// this moment only.
fn rewrapped(device: &Device, session: Session, passing: Object, place: Place<'_>) -> Result<Object, Trouble> {
    let template = template::secret_of_len(CKK_AES, Place::Session, Usage::WRAPPER, false, 32);
    let between = device.module.generate_key(session, CKM_AES_KEY_GEN, &template)?;
    let mechanism = || Mechanism::Plain(CKM_AES_KEY_WRAP);
    let template = template::secret(CKK_AES, place, Usage::WRAPPER, false);
    let key = device
        .module
        .wrap(session, mechanism(), between, passing, KNOWN_KEY.len() + 8)
        .and_then(|blob| device.module.unwrap(session, mechanism(), between, &blob, &template));
    let _ = device.module.destroy(session, between);
    Ok(key?)
}

/// Wraps a key to an RSA public key. SHA-1 because it is what every module can do; OAEP does not need collision
/// resistance.
fn wrap_to(device: &Device, session: Session, key: Object, recipient: &[u8]) -> Result<Vec<u8>, Trouble> {
    let public = der::parse_rsa(recipient)
        .ok_or_else(|| Trouble::Failed(Failure::BadInput("a recipient is no RSA public key (SubjectPublicKeyInfo)".into())))?;
    let mut template = template::public(CKK_RSA, Place::Session, Usage { wrap: true, ..Usage::default() });
    template.push(Attribute::bytes(CKA_MODULUS, public.modulus));
    template.push(Attribute::bytes(CKA_PUBLIC_EXPONENT, public.exponent));
    let wrapper = device.module.create(session, &template)?;
    let wrapped = device.module.wrap(session, Mechanism::OaepSha1, wrapper, key, MAX_RSA);
    let _ = device.module.destroy(session, wrapper);
    Ok(wrapped?)
}

/// Puts recovered material onto the token.
pub fn import(call: &Call<'_>, label: &str, id: KeyId, material: &[u8]) -> Result<Frame, Trouble> {
    if material.len() != 32 {
        return Err(Trouble::Failed(Failure::BadInput("a master key has 32 bytes".into())));
    }
    let device = call.device;
    let guard = device.objects(call.current);
    call.refuse_taken(id)?;
    let place = Place::Token { label, id };
    let template = template::secret_of_value(CKK_AES, place, Usage::WRAPPER, false, material);
    let key = device.module.create(call.session, &template)?;
    let check_value = check_value(device, call.session, key);
    if check_value.is_err() {
        let _ = device.module.destroy(call.session, key);
    }
    drop(guard);
    call.reply(&Reply::CheckValue(check_value?))
}

/// The check value of a key on the token.
pub fn check_value_of(call: &Call<'_>, id: KeyId) -> Result<Frame, Trouble> {
    let key = call.device.master_key(call.current, id)?;
    let _guard = call.device.objects(call.current);
    call.reply(&Reply::CheckValue(check_value(call.device, call.session, key)?))
}

/// SHA-256 over the known key wrapped under `key`; to be called under the object lock.
pub fn check_value(device: &Device, session: Session, key: Object) -> Result<[u8; 32], Trouble> {
    let usage = Usage::CIPHER;
    let template = template::secret_of_value(CKK_AES, Place::Session, usage, true, &KNOWN_KEY);
    let known = device.module.create(session, &template)?;
    let wrapped = device.module.wrap(session, Mechanism::Plain(CKM_AES_KEY_WRAP), key, known, KNOWN_KEY.len() + 8);
    let _ = device.module.destroy(session, known);
    Ok(Sha256::digest(wrapped?).into())
}
