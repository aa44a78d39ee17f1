//! Key material in and out. Out only where Vault would bring it out too: export, backup, `software` keys at load.
//!
//! Material crosses the module's border wrapped under a fresh passing key that both sides know, never as a readable
//! attribute, so keys stay CKA_SENSITIVE all the time.

use aes_kw::{KeyInit, KwAes256, KwpAes256};
use cryptoki_sys::*;
use zeroize::Zeroizing;

use super::Call;
use super::keys::{MAX_WRAPPED, wrap, wrapping_of};
use crate::hsm::proto::{Bytes, Failure, Frame, Reply, Wrapped};
use crate::hsm::raw::{Object, Session};
use crate::hsm::worker::Trouble;
use crate::hsm::worker::device::Device;
use crate::hsm::worker::template::{self, Place, Usage};
use crate::hsm::{KeyId, KeyKind, Mechanism as BlobMechanism};
use crate::secret::SecretBytes;

/// A key known on both sides of the border, for one crossing.
pub struct Passing {
    object: Object,
    material: SecretBytes,
}

impl Passing {
    /// Makes one; to be called under the object lock.
    pub fn new(device: &Device, session: Session) -> Result<Self, Trouble> {
        let material = SecretBytes::random(32);
        let template = template::secret_of_value(CKK_AES, Place::Session, Usage::WRAPPER, false, material.expose());
        Ok(Self { object: device.module.create(session, &template)?, material })
    }

    /// Brings material into the module as a session object that may be wrapped again.
    pub fn carry_in(&self, device: &Device, session: Session, kind: KeyKind, material: &[u8]) -> Result<Object, Trouble> {
        let mechanism = wrapping_of(kind);
        let blob = self
            .close(mechanism, material)
            .ok_or_else(|| Trouble::Failed(Failure::BadInput("the material cannot be wrapped".into())))?;
        let nobody = KeyId([0; 16]).into();
        let wrapped = Wrapped { id: nobody, kind, mechanism, wrapped_by: nobody, blob: Bytes(&blob) };
        device.unwrap(session, self.object, &wrapped, true)
    }

    fn close(&self, mechanism: BlobMechanism, plain: &[u8]) -> Option<Vec<u8>> {
        let mut buffer = vec![0; plain.len() + 16];
        let len = match mechanism {
            BlobMechanism::AesKw => {
                KwAes256::new_from_slice(self.material.expose()).ok()?.wrap_key(plain, &mut buffer).ok()?.len()
            }
            _ => KwpAes256::new_from_slice(self.material.expose()).ok()?.wrap_key(plain, &mut buffer).ok()?.len(),
        };
        buffer.truncate(len);
        Some(buffer)
    }

    fn open(&self, mechanism: BlobMechanism, blob: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let mut buffer = Zeroizing::new(vec![0; blob.len()]);
        let len = match mechanism {
            BlobMechanism::AesKw => {
                KwAes256::new_from_slice(self.material.expose()).ok()?.unwrap_key(blob, &mut buffer).ok()?.len()
            }
            _ => KwpAes256::new_from_slice(self.material.expose()).ok()?.unwrap_key(blob, &mut buffer).ok()?.len(),
        };
        buffer.truncate(len);
        Some(buffer)
    }
}

/// Wraps given material under a master key.
pub fn wrap_material(call: &Call<'_>, master: KeyId, kind: KeyKind, material: &[u8]) -> Result<Frame, Trouble> {
    if template::aes_len(kind).is_some_and(|len| len != material.len()) {
        return Err(Trouble::Failed(Failure::BadInput("the material's length does not fit the kind of key".into())));
    }
    let device = call.device;
    let master_key = device.master_key(call.current, master)?;
    let guard = device.objects(call.current);
    let passing = Passing::new(device, call.session)?;
    let blob = passing.carry_in(device, call.session, kind, material).and_then(|key| {
        let blob = wrap(device, call.session, kind, master_key, key);
        let _ = device.module.destroy(call.session, key);
        blob
    });
    let _ = device.module.destroy(call.session, passing.object);
    drop(guard);
    let blob = blob?;
    let wrapped =
        Wrapped { id: KeyId::random().into(), kind, mechanism: wrapping_of(kind), wrapped_by: master.into(), blob: Bytes(&blob) };
    call.reply(&Reply::Wrapped(wrapped))
}

/// Brings a wrapped key's material out.
pub fn unwrap_material(call: &Call<'_>, wrapped: &Wrapped<'_>) -> Result<Frame, Trouble> {
    let device = call.device;
    let master = device.master_key(call.current, wrapped.wrapped_by.into())?;
    let guard = device.objects(call.current);
    let key = device.unwrap(call.session, master, wrapped, true)?;
    let material = carry_out(call, wrapped.kind, key);
    let _ = device.module.destroy(call.session, key);
    drop(guard);
    call.reply(&Reply::Bytes(Bytes(&material?)))
}

fn carry_out(call: &Call<'_>, kind: KeyKind, key: Object) -> Result<Zeroizing<Vec<u8>>, Trouble> {
    let passing = Passing::new(call.device, call.session)?;
    let mechanism = wrapping_of(kind);
    let blob = call
        .device
        .wrapping(mechanism)
        .and_then(|mechanism| Ok(call.device.module.wrap(call.session, mechanism, passing.object, key, MAX_WRAPPED)?));
    let _ = call.device.module.destroy(call.session, passing.object);
    passing
        .open(mechanism, &blob?)
        .ok_or_else(|| Trouble::Failed(Failure::Unsupported("the module wraps in a way that is not RFC 3394 or 5649".into())))
}
