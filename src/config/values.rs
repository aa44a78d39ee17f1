//! Readers for the values that occur in several stanzas.

use std::time::Duration;

use crate::config::Warning;
use crate::hcl::{Entry, Error, Kind, Reader};
use crate::wire::duration::parse_duration;

/// A duration such as `"768h"`, or a number of seconds.
pub(super) fn duration<'a>(reader: Reader<'a>, key: &'a str) -> Result<Option<Duration>, Error> {
    let Some(value) = reader.value(key)? else { return Ok(None) };
    let found = match &value.kind {
        Kind::Int(seconds) => u64::try_from(*seconds).ok().map(Duration::from_secs),
        Kind::Float(seconds) => Duration::try_from_secs_f64(seconds.trunc()).ok(),
        Kind::Text(text) => parse_duration(text).ok(),
        _ => None,
    };
    let wrong = || reader.error(value.at, format!("{key} must be a duration: write {key} = \"768h\" (h, m, s, d) or seconds"));
    found.map(Some).ok_or_else(wrong)
}

/// A size in bytes, or a text such as `"32MiB"`. A negative number means no limit.
pub(super) fn size<'a>(reader: Reader<'a>, key: &'a str) -> Result<Option<u64>, Error> {
    let Some(value) = reader.value(key)? else { return Ok(None) };
    let found = match &value.kind {
        Kind::Int(bytes) => Some(u64::try_from(*bytes).unwrap_or(u64::MAX)),
        Kind::Text(text) => capacity(text),
        _ => None,
    };
    let wrong = || reader.error(value.at, format!("{key} must be a size: write {key} = \"32MiB\" or a number of bytes"));
    found.map(Some).ok_or_else(wrong)
}

/// `10`, `5gib`, `10 MB`: kb, mb, gb, tb count in thousands, kib, mib, gib, tib in 1024.
fn capacity(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let (base, prefix) = match unit.strip_suffix("ib") {
        Some(prefix) => (1024_u64, prefix),
        None => (1000, unit.strip_suffix('b').unwrap_or(&unit)),
    };
    let power = match prefix {
        "" if unit.is_empty() => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(base.pow(power))
}

/// A text out of a closed set.
pub(super) fn one_of<'a, T>(
    reader: Reader<'a>,
    key: &'a str,
    parse: impl Fn(&str) -> Option<T>,
    allowed: &str,
) -> Result<Option<T>, Error> {
    let Some(text) = reader.string(key)? else { return Ok(None) };
    let at = reader.value(key)?.map(|value| value.at).unwrap_or_default();
    let wrong = || reader.error(at, format!("{key} cannot be {text:?}: write one of {allowed}"));
    parse(&text).map(Some).ok_or_else(wrong)
}

/// A text that is not empty.
pub(super) fn text<'a>(reader: Reader<'a>, key: &'a str) -> Result<Option<String>, Error> {
    Ok(reader.string(key)?.filter(|text| !text.is_empty()))
}

/// Warns of every key that is neither in `used` nor in `accepted`, and of those in `accepted` that have no effect.
pub(super) fn warn_of_others(reader: Reader<'_>, place: &str, used: &[&str], accepted: &[&str], warnings: &mut Vec<Warning>) {
    let mut warn = |entry: &Entry, message: String| {
        warnings.push(Warning { file: reader.file.to_string(), at: entry.key.at, message });
    };
    for entry in reader.unknown(used) {
        let name = &entry.key.name;
        if accepted.iter().any(|known| name.eq_ignore_ascii_case(known)) {
            warn(entry, format!("{name} in {place} has no effect here and is ignored"));
        } else {
            warn(entry, format!("unknown key {name} in {place}: it is ignored; check its spelling"));
        }
    }
}
