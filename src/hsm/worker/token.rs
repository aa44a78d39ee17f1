//! Choosing the token: by slot number, label or serial number, past slots that answer with errors.

use cryptoki_sys::{CK_SLOT_ID, CKF_TOKEN_INITIALIZED};

use super::Fatal;
use crate::hsm::DownReason;
use crate::hsm::proto::Hello;
use crate::hsm::raw::{Module, TokenInfo};

/// Finds the one token that fits everything that is configured.
pub fn choose(module: &Module, hello: &Hello) -> Result<(CK_SLOT_ID, TokenInfo), Fatal> {
    let slots = module.slots().map_err(|error| Fatal::new(DownReason::DeviceError, error.to_string()))?;
    let mut fitting = Vec::new();
    let mut seen = Vec::new();
    for slot in slots {
        match module.token_info(slot) {
            Ok(info) => {
                seen.push(format!("slot {slot} label \"{}\" serial {}", info.label, info.serial));
                if fits(hello, slot, &info) {
                    fitting.push((slot, info));
                }
            }
            Err(error) => seen.push(format!("slot {slot} fails with {error}")),
        }
    }
    let seen = if seen.is_empty() { "no slot holds a token".to_string() } else { seen.join("; ") };
    match fitting.len() {
        1 => fitting.pop().ok_or_else(|| Fatal::new(DownReason::TokenMissing, seen)),
        0 => Err(Fatal::new(DownReason::TokenMissing, format!("no token fits the configuration: {seen}"))),
        _ => Err(Fatal::new(DownReason::TokenMissing, format!("several tokens fit, name one by token_label or slot: {seen}"))),
    }
}

fn fits(hello: &Hello, slot: CK_SLOT_ID, info: &TokenInfo) -> bool {
    let stated = hello.slot.is_some() || hello.token_label.is_some() || hello.token_serial.is_some();
    hello.slot.is_none_or(|wanted| wanted == slot)
        && hello.token_label.as_ref().is_none_or(|wanted| *wanted == info.label)
        && hello.token_serial.as_ref().is_none_or(|wanted| *wanted == info.serial)
        // An empty slot of a soft token is only meant when it is named.
        && (stated || info.flags & CKF_TOKEN_INITIALIZED != 0)
}
