//! Vault's habits on the wire as types: lenient parameters, durations, times, raw JSON.

pub mod duration;
pub mod field;
pub mod json;
pub mod time;
