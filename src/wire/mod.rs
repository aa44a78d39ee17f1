//! Vault's habits on the wire as types: lenient parameters, base64, durations, times, raw JSON.

pub mod b64;
pub mod duration;
pub mod field;
pub mod json;
pub mod query;
pub mod time;
