//! The `failed_auth_limit` stanza: `failed_auth_limit { burst = 200 per_second = 10 }`, or `{ disabled = true }`.

use super::{Warning, values};
use crate::hcl::{Error, Reader};

/// How many failed authentications an address has before it is answered 429.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailedAuthLimit {
    /// As many as it likes.
    None,
    /// So many at once and in the long run; the server's defaults where absent.
    Some {
        /// At once.
        burst: Option<u32>,
        /// In the long run.
        per_second: Option<u32>,
    },
}

pub(super) fn read(top: Reader<'_>, warnings: &mut Vec<Warning>) -> Result<Option<FailedAuthLimit>, Error> {
    let blocks = top.blocks("failed_auth_limit")?;
    if let [_, second, ..] = blocks[..] {
        return Err(top.error(second.at, "only one failed_auth_limit stanza is possible: keep one and remove the other"));
    }
    let Some(block) = blocks.first() else { return Ok(None) };
    values::warn_of_others(block.body, "failed_auth_limit", &["burst", "per_second", "disabled"], &[], warnings);
    if block.body.bool("disabled")?.unwrap_or(false) {
        return Ok(Some(FailedAuthLimit::None));
    }
    let count = |key| {
        let Some(count) = block.body.int(key)? else { return Ok(None) };
        let at = block.body.value(key)?.map_or(block.at, |value| value.at);
        match u32::try_from(count) {
            Ok(count @ 1..=1_000_000) => Ok(Some(count)),
            _ => Err(block.body.error(at, format!("{key} must be from 1 to 1000000; write disabled = true for no limit"))),
        }
    };
    Ok(Some(FailedAuthLimit::Some { burst: count("burst")?, per_second: count("per_second")? }))
}
