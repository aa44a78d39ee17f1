//! Raw signatures; hashing and encoding happen in the server.

use cryptoki_sys::*;

use super::Call;
use crate::hsm::SignScheme;
use crate::hsm::proto::{Bytes, Frame, Key, Reply};
use crate::hsm::worker::Trouble;

/// The longest signature: RSA-4096.
const MAX_SIGNATURE: usize = 512;

pub fn sign(call: &Call<'_>, key: &Key<'_>, scheme: SignScheme, input: &[u8]) -> Result<Frame, Trouble> {
    let (mechanism, key_type) = match scheme {
        SignScheme::Ecdsa => (CKM_ECDSA, CKK_EC),
        SignScheme::Eddsa => (CKM_EDDSA, CKK_EC_EDWARDS),
        SignScheme::RsaRaw => (CKM_RSA_X_509, CKK_RSA),
    };
    let (object, _loaded) = match key {
        Key::Token(id) => (call.device.token_key(call.current, (*id).into(), CKO_PRIVATE_KEY, key_type)?, None),
        Key::Wrapped(wrapped) => {
            let loaded = call.device.load(call.current, wrapped)?;
            (loaded.object, Some(loaded))
        }
    };
    let signature = call.device.module.sign(call.session, mechanism, object, input, MAX_SIGNATURE)?;
    call.reply(&Reply::Bytes(Bytes(&signature)))
}
