//! What `sos hsm doctor` wants to know about the token.

use std::time::{Duration, Instant};

use cryptoki_sys::*;

use super::Call;
use crate::hsm::ck_error::CkError;
use crate::hsm::proto::{Frame, Inspection, Reply};
use crate::hsm::raw::{Mechanism, Object};
use crate::hsm::worker::Trouble;
use crate::hsm::worker::template::{self, Place, Usage};

/// How long each speed is measured.
const MEASURE: Duration = Duration::from_millis(150);

pub fn inspect(call: &Call<'_>) -> Result<Frame, Trouble> {
    let device = call.device;
    let info = device.module.token_info(device.slot)?;
    let (mut small, mut large) = (None, None);
    if device.has(CKM_AES_GCM) {
        let guard = device.objects(call.current);
        let template = template::secret_of_len(CKK_AES, Place::Session, Usage::CIPHER, false, 32);
        let key = device.module.generate_key(call.session, CKM_AES_KEY_GEN, &template)?;
        drop(guard);
        small = speed(call, key, 32).ok();
        large = speed(call, key, 1 << 16).ok().map(|rate| rate << 16);
        let _guard = device.objects(call.current);
        let _ = device.module.destroy(call.session, key);
    }
    call.reply(&Reply::Inspection(Inspection {
        slot: device.slot,
        model: format!("{} {}", info.manufacturer, info.model),
        vendor: device.quirks.vendor.into(),
        session_limit: info.max_sessions,
        // The keeper holds one more.
        sessions: call.sessions + 1,
        pin_count_low: info.flags & CKF_USER_PIN_COUNT_LOW != 0,
        pin_to_be_changed: info.flags & CKF_USER_PIN_TO_BE_CHANGED != 0,
        mechanisms: device.mechanisms.clone(),
        small_per_second: small,
        bytes_per_second: large,
    }))
}

/// Encryptions per second.
fn speed(call: &Call<'_>, key: Object, len: usize) -> Result<u64, CkError> {
    let input = vec![0; len];
    let started = Instant::now();
    let mut count = 0_u64;
    while started.elapsed() < MEASURE {
        let mechanism = Mechanism::Gcm { iv: &crate::secret::random_array(), aad: &[] };
        call.device.module.encrypt(call.session, mechanism, key, &input, 16)?;
        count += 1;
    }
    Ok(count * 1000 / u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX).max(1))
}
