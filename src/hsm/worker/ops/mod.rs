//! The operations, one function each. They work with one session of their own and answer an encoded reply.

mod cipher;
pub mod export;
mod inspect;
pub mod keys;
mod master;
pub mod seal;
mod sign;
pub mod signature;
mod transport;

use std::io;

use cryptoki_sys::*;

use super::Trouble;
use super::device::{Current, Device};
use crate::hsm::KeyId;
use crate::hsm::proto::{self, Failure, Frame, Id, Op, Reply};
use crate::hsm::raw::{Attribute, Session};

/// What an operation works with.
pub struct Call<'a> {
    /// The token.
    pub device: &'a Device,
    /// Its current generation.
    pub current: &'a Current,
    /// The calling thread's session.
    pub session: Session,
    /// Sessions of the pool.
    pub sessions: usize,
    /// Mechanism of new seal keys.
    pub seal_mechanism: crate::hsm::Mechanism,
    /// The call's number, for the reply.
    pub id: u64,
}

impl Call<'_> {
    /// Encodes the answer to this call.
    pub fn reply(&self, reply: &Reply<'_>) -> Result<Frame, Trouble> {
        proto::message(self.id, reply)
            .map_err(|_| Trouble::Failed(Failure::Unsupported("the answer does not fit into a frame".into())))
    }

    /// Fails when the token holds any object with this CKA_ID.
    pub fn refuse_taken(&self, id: KeyId) -> Result<(), Trouble> {
        let template = [Attribute::flag(CKA_TOKEN, true), Attribute::bytes(CKA_ID, &id.0)];
        let found = self.device.module.find(self.session, &template, 1)?;
        if found.is_empty() { Ok(()) } else { Err(Trouble::Failed(Failure::KeyExists(id))) }
    }

    /// Destroys every object with this CKA_ID, both halves of a key pair, and tells how many there were; to be called under
    /// the object lock.
    pub fn destroy_all(&self, id: KeyId) -> Result<usize, Trouble> {
        let template = [Attribute::flag(CKA_TOKEN, true), Attribute::bytes(CKA_ID, &id.0)];
        let found = self.device.module.find(self.session, &template, usize::MAX)?;
        for object in &found {
            self.device.module.destroy(self.session, *object)?;
        }
        Ok(found.len())
    }
}

/// Does what is asked.
pub fn run(call: &Call<'_>, op: &Op<'_>) -> Result<Frame, Trouble> {
    match op {
        Op::Running { .. } => Err(Trouble::Failed(Failure::Unsupported("not a call for a session".into()))),
        Op::Probe => {
            if call.device.healthy(call.current, call.session) {
                call.reply(&Reply::Done)
            } else {
                Err(Trouble::Lost)
            }
        }
        Op::Inspect => inspect::inspect(call),
        Op::Find { label_prefix } => find(call, label_prefix),
        Op::Destroy { id } => destroy(call, (*id).into()),
        Op::CreateSealKey { label, id } => seal::create(call, label, (*id).into()),
        Op::Seal { id, plaintext, aad } => seal::seal(call, (*id).into(), plaintext.0, aad.0),
        Op::Unseal { key, mechanism, blob, aad } => seal::unseal(call, (*key).into(), *mechanism, blob.0, aad.0),
        Op::CreateMasterKey { label, id, recipients } => master::create(call, label, (*id).into(), recipients),
        Op::ImportMasterKey { label, id, material } => master::import(call, label, (*id).into(), material.0),
        Op::CreateTransportKey { label, id } => transport::create(call, label, (*id).into()),
        Op::AcceptMasterKey { transport, label, id, mechanism, blob } => {
            transport::accept(call, (*transport).into(), label, (*id).into(), *mechanism, blob.0)
        }
        Op::CheckValue { id } => master::check_value_of(call, (*id).into()),
        Op::GenerateWrapped { master, kind } => keys::generate_wrapped(call, (*master).into(), *kind),
        Op::GenerateOnToken { label, id, kind } => keys::generate_on_token(call, label, (*id).into(), *kind),
        Op::WrapMaterial { master, kind, material } => export::wrap_material(call, (*master).into(), *kind, material.0),
        Op::UnwrapMaterial { wrapped } => export::unwrap_material(call, wrapped),
        Op::Rewrap { wrapped, new_master } => keys::rewrap(call, wrapped, (*new_master).into()),
        Op::Encrypt { key, items } => cipher::encrypt(call, key, items),
        Op::Decrypt { key, items } => cipher::decrypt(call, key, items),
        Op::Sign { key, scheme, input } => sign::sign(call, key, *scheme, input.0),
        Op::RsaDecrypt { key, ciphertext } => sign::rsa_decrypt(call, key, ciphertext.0),
    }
}

/// Secret and private keys whose label starts with the prefix, one entry per CKA_ID.
fn find(call: &Call<'_>, prefix: &str) -> Result<Frame, Trouble> {
    let (module, session) = (&call.device.module, call.session);
    let _guard = call.device.objects(call.current);
    let mut objects: Vec<(Option<Id>, String)> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for class in [CKO_SECRET_KEY, CKO_PRIVATE_KEY] {
        let template = [Attribute::flag(CKA_TOKEN, true), Attribute::number(CKA_CLASS, class)];
        for object in module.find(session, &template, usize::MAX)? {
            let label = module.attribute(session, object, CKA_LABEL)?.unwrap_or_default();
            let Ok(label) = std::str::from_utf8(&label) else { continue };
            if !label.starts_with(prefix) {
                continue;
            }
            let id = module.attribute(session, object, CKA_ID)?.unwrap_or_default();
            let id = <[u8; 16]>::try_from(id.as_slice()).ok().map(KeyId);
            if id.is_none_or(|id| seen.insert(id)) {
                objects.push((id.map(Id::from), label.to_string()));
            }
        }
    }
    if objects.is_empty() && !call.device.healthy(call.current, session) {
        // SoftHSM finds nothing, without an error, when its token is gone.
        return Err(Trouble::Lost);
    }
    call.reply(&Reply::Objects(objects))
}

fn destroy(call: &Call<'_>, id: KeyId) -> Result<Frame, Trouble> {
    let guard = call.device.objects(call.current);
    let found = call.destroy_all(id)?;
    drop(guard);
    call.device.forget(call.current, id);
    if found == 0 && !call.device.healthy(call.current, call.session) {
        return Err(Trouble::Lost);
    }
    call.reply(&Reply::Done)
}

/// A body that does not decode.
pub fn undecodable(error: &io::Error) -> Failure {
    Failure::BadInput(format!("the request to the worker is broken: {error}"))
}
