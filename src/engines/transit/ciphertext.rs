//! The text form of a ciphertext: `vault:v<version>:<base64>`.

use thiserror::Error;

use super::b64;

const PREFIX: &str = "vault:v";

/// Why a text is no ciphertext. The words are those of the API.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum CiphertextError {
    /// It does not begin with `vault:v`.
    #[error("invalid ciphertext: no prefix")]
    NoPrefix,
    /// There is no `:` behind the version.
    #[error("invalid ciphertext: wrong number of fields")]
    Fields,
    /// The version is no number.
    #[error("invalid ciphertext: version number could not be decoded")]
    Version,
}

/// A ciphertext taken apart; the payload is still base64, because the version is judged first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ciphertext<'a> {
    /// The key version as written, except that 0 of the very first servers means 1. May be out of any range.
    pub version: i64,
    /// The payload in base64.
    pub payload: &'a str,
}

impl<'a> Ciphertext<'a> {
    /// Takes `text` apart.
    pub fn parse(text: &'a str) -> Result<Self, CiphertextError> {
        let rest = text.strip_prefix(PREFIX).ok_or(CiphertextError::NoPrefix)?;
        let (version, payload) = rest.split_once(':').ok_or(CiphertextError::Fields)?;
        let version: i64 = version.parse().map_err(|_| CiphertextError::Version)?;
        Ok(Self { version: if version == 0 { 1 } else { version }, payload })
    }
}

/// Appends the text form to a JSON text under construction.
pub fn push(version: u32, payload: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(PREFIX.as_bytes());
    out.extend_from_slice(version.to_string().as_bytes());
    out.push(b':');
    b64::push(payload, out);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_malformed_text_has_its_error() {
        let cases = [
            ("hello", CiphertextError::NoPrefix),
            ("vault:", CiphertextError::NoPrefix),
            ("VAULT:v1:AAAA", CiphertextError::NoPrefix),
            ("vault:v", CiphertextError::Fields),
            ("vault:v1", CiphertextError::Fields),
            ("vault:vx:AAAA", CiphertextError::Version),
            ("vault:v:AAAA", CiphertextError::Version),
            ("vault:v1.0:AAAA", CiphertextError::Version),
            ("vault:v99999999999999999999:AAAA", CiphertextError::Version),
        ];
        for (text, error) in cases {
            assert_eq!(Ciphertext::parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn versions_are_read_as_numbers() {
        for (text, version) in [("vault:v0:A", 1), ("vault:v01:A", 1), ("vault:v+2:A", 2), ("vault:v-1:A", -1)] {
            assert_eq!(Ciphertext::parse(text).unwrap().version, version, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_parses(version in 1..u32::MAX, payload in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut out = Vec::new();
            push(version, &payload, &mut out);
            let text = String::from_utf8(out).unwrap();
            let parsed = Ciphertext::parse(&text).unwrap();
            prop_assert_eq!(parsed.version, i64::from(version));
            prop_assert_eq!(b64::decode(parsed.payload).unwrap(), payload);
        }

        #[test]
        fn no_text_panics(text in ".{0,60}") {
            let _ = Ciphertext::parse(&text);
        }
    }
}
