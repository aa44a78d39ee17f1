//! Raw operations of private keys; hashing, encoding and padding happen in the server.

use std::sync::Arc;

use cryptoki_sys::*;

use super::Call;
use super::cipher::is_bad_data;
use crate::hsm::SignScheme;
use crate::hsm::proto::{Bytes, Failure, Frame, Key, Reply};
use crate::hsm::raw::{Mechanism, Object};
use crate::hsm::worker::Trouble;
use crate::hsm::worker::device::Loaded;

/// The longest signature: RSA-4096.
const MAX_SIGNATURE: usize = 512;

pub fn sign(call: &Call<'_>, key: &Key<'_>, scheme: SignScheme, input: &[u8]) -> Result<Frame, Trouble> {
    let (mechanism, key_type) = match scheme {
        SignScheme::Ecdsa => (CKM_ECDSA, CKK_EC),
        SignScheme::Eddsa => (CKM_EDDSA, CKK_EC_EDWARDS),
        SignScheme::RsaRaw => (CKM_RSA_X_509, CKK_RSA),
    };
    let (object, _loaded) = private_key(call, key, key_type)?;
    let signature = call.device.module.sign(call.session, mechanism, object, input, MAX_SIGNATURE)?;
    call.reply(&Reply::Bytes(Bytes(&signature)))
}

/// RSADP. The server has checked length and range of the ciphertext, so what the module refuses all the same gets one
/// answer whatever its code.
pub fn rsa_decrypt(call: &Call<'_>, key: &Key<'_>, ciphertext: &[u8]) -> Result<Frame, Trouble> {
    let (object, _loaded) = private_key(call, key, CKK_RSA)?;
    match call.device.module.decrypt(call.session, Mechanism::Plain(CKM_RSA_X_509), object, ciphertext) {
        Ok(block) if block.len() == ciphertext.len() => call.reply(&Reply::Bytes(Bytes(&block))),
        Ok(_) => Err(bad()),
        Err(error) if is_bad_data(call, &error)? => Err(bad()),
        Err(error) => Err(error.into()),
    }
}

fn bad() -> Trouble {
    Trouble::Failed(Failure::BadInput("the ciphertext does not decrypt".into()))
}

/// The key's handle; a loaded key stays alive as long as its second part does.
fn private_key(call: &Call<'_>, key: &Key<'_>, key_type: CK_KEY_TYPE) -> Result<(Object, Option<Arc<Loaded>>), Trouble> {
    match key {
        Key::Token(id) => Ok((call.device.token_key(call.current, (*id).into(), CKO_PRIVATE_KEY, key_type)?, None)),
        Key::Wrapped(wrapped) => {
            let loaded = call.device.load(call.current, wrapped)?;
            Ok((loaded.object, Some(loaded)))
        }
    }
}
