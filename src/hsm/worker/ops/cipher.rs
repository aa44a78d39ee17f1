//! AES-GCM with Transit keys.

use std::sync::Arc;
use std::time::Instant;

use cryptoki_sys::*;
use zeroize::Zeroizing;

use super::Call;
use crate::hsm::ck_error::{CkError, Kind};
use crate::hsm::proto::{Bytes, Failure, Frame, Item, Key, Reply, SLICE};
use crate::hsm::raw::{Mechanism, Object};
use crate::hsm::worker::Trouble;
use crate::hsm::worker::device::Loaded;

/// Tag length in bytes.
const TAG: usize = 16;

/// A key's handle; a loaded key stays alive as long as this does.
pub enum Handle {
    Token(Object),
    Loaded(Arc<Loaded>),
}

impl Handle {
    pub fn object(&self) -> Object {
        match self {
            Handle::Token(object) => *object,
            Handle::Loaded(loaded) => loaded.object,
        }
    }
}

fn handle(call: &Call<'_>, key: &Key<'_>) -> Result<Handle, Trouble> {
    match key {
        Key::Token(id) => call.device.token_key(call.current, (*id).into(), CKO_SECRET_KEY, CKK_AES).map(Handle::Token),
        Key::Wrapped(wrapped) => call.device.load(call.current, wrapped).map(Handle::Loaded),
    }
}

pub fn encrypt(call: &Call<'_>, key: &Key<'_>, items: &[Item<'_>]) -> Result<Frame, Trouble> {
    let handle = handle(call, key)?;
    let (outputs, micros) = in_time(items, |item| {
        let mechanism = Mechanism::Gcm { iv: &item.iv, aad: item.aad.0 };
        Ok(call.device.module.encrypt(call.session, mechanism, handle.object(), item.input.0, TAG)?)
    })?;
    call.reply(&Reply::Many { outputs: outputs.iter().map(|output| Bytes(output)).collect(), micros })
}

pub fn decrypt(call: &Call<'_>, key: &Key<'_>, items: &[Item<'_>]) -> Result<Frame, Trouble> {
    let handle = handle(call, key)?;
    let (outputs, micros) = in_time(items, |item| decrypt_one(call, handle.object(), item))?;
    let each = outputs.iter().map(|output| match output {
        Ok(bytes) => Ok(Bytes(bytes)),
        Err(failure) => Err(failure.clone()),
    });
    call.reply(&Reply::Each { outputs: each.collect(), micros })
}

/// Does the items one after the other until the call's time is up, at least one; tells the microseconds that it took.
fn in_time<'a, T>(items: &[Item<'a>], one: impl Fn(&Item<'a>) -> Result<T, Trouble>) -> Result<(Vec<T>, u64), Trouble> {
    let began = Instant::now();
    let mut outputs = Vec::with_capacity(items.len());
    for item in items {
        outputs.push(one(item)?);
        if began.elapsed() >= SLICE {
            break;
        }
    }
    Ok((outputs, u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)))
}

type OneResult = Result<Zeroizing<Vec<u8>>, Failure>;

/// A bad item is the item's own failure; only what concerns the key, the session or the device fails the batch.
fn decrypt_one(call: &Call<'_>, key: Object, item: &Item<'_>) -> Result<OneResult, Trouble> {
    if item.input.0.len() < TAG {
        return Ok(Err(Failure::BadInput("the ciphertext is shorter than its tag".into())));
    }
    let mechanism = Mechanism::Gcm { iv: &item.iv, aad: item.aad.0 };
    match call.device.module.decrypt(call.session, mechanism, key, item.input.0) {
        Ok(plaintext) => Ok(Ok(plaintext)),
        Err(error) if is_bad_data(call, &error)? => Ok(Err(Failure::BadInput(error.to_string()))),
        Err(error) => Err(error.into()),
    }
}

/// Whether a failed decryption was the data's fault. GENERAL_ERROR may also mean that the token is gone: the probe
/// decides, and only a failed probe concerns anyone else.
pub fn is_bad_data(call: &Call<'_>, error: &CkError) -> Result<bool, Trouble> {
    match error.kind() {
        Kind::BadInput => Ok(true),
        Kind::Ambiguous if error.rv == CKR_GENERAL_ERROR && error.function == "C_Decrypt" => {
            if call.device.healthy(call.current, call.session) { Ok(true) } else { Err(Trouble::Lost) }
        }
        _ => Ok(false),
    }
}
