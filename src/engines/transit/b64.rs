//! Base64 as the API takes it: the standard alphabet with padding, CR and LF ignored, non-zero trailing bits accepted,
//! neither spaces nor the URL-safe alphabet.

use std::borrow::Cow;

use base64::{
    DecodeError, Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use thiserror::Error;

const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// A text that is not base64.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("illegal base64 data at input byte {0}")]
pub struct NotBase64(pub usize);

/// Decodes `text`.
pub fn decode(text: &str) -> Result<Vec<u8>, NotBase64> {
    let text: Cow<'_, str> = if text.bytes().any(|byte| matches!(byte, b'\r' | b'\n')) {
        Cow::Owned(text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect())
    } else {
        Cow::Borrowed(text)
    };
    LENIENT.decode(text.as_bytes()).map_err(|error| {
        NotBase64(match error {
            DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol { offset: at, .. } => at,
            DecodeError::InvalidLength(len) => len,
            _ => text.len(),
        })
    })
}

/// Appends the encoding of `bytes` to a JSON text under construction.
pub fn push(bytes: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let written = match out.get_mut(start..) {
        Some(room) => LENIENT.encode_slice(bytes, room).unwrap_or(0),
        None => 0,
    };
    out.truncate(start + written);
}

/// The encoding of `bytes`.
pub fn encode(bytes: &[u8]) -> String {
    LENIENT.encode(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn line_breaks_and_trailing_bits_pass() {
        for text in ["aGVsbG8=", "aGVs\nbG8=", "aGVs\r\nbG8=\r\n", "aGVsbG9="] {
            assert_eq!(decode(text).unwrap(), b"hello", "{text:?}");
        }
        assert_eq!(decode("").unwrap(), b"");
        assert_eq!(decode("//79").unwrap(), [0xff, 0xfe, 0xfd]);
    }

    #[test]
    fn everything_else_is_refused() {
        for text in ["not base64!", "aGVsbG8", "aGVsbG8==", "_-_-", "====", " aGVsbG8=", "AAA", "?"] {
            let error = decode(text).unwrap_err().to_string();
            assert!(error.starts_with("illegal base64 data at input byte "), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut out = b"\"".to_vec();
            push(&bytes, &mut out);
            prop_assert_eq!(std::str::from_utf8(&out[1..]).unwrap(), encode(&bytes));
            prop_assert_eq!(decode(&encode(&bytes)).unwrap(), bytes);
        }
    }
}
