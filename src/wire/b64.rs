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
    let plain: Cow<'_, str> = if text.bytes().any(|byte| matches!(byte, b'\r' | b'\n')) {
        Cow::Owned(text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect())
    } else {
        Cow::Borrowed(text)
    };
    LENIENT.decode(plain.as_bytes()).map_err(|_: DecodeError| NotBase64(fault(text.as_bytes())))
}

/// Where Go's decoder, whose words clients know, sees the mistake: line breaks count, and a text that ends within a group of
/// four is wrong from that group on.
fn fault(text: &[u8]) -> usize {
    let is_break = |byte: &u8| matches!(byte, b'\r' | b'\n');
    let next = |from: usize| (from..text.len()).find(|at| text.get(*at).is_some_and(|byte| !is_break(byte)));
    let mut place = 0;
    for (at, byte) in text.iter().enumerate().filter(|(_, byte)| !is_break(byte)) {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/') {
            place = (place + 1) % 4;
            continue;
        }
        if *byte != b'=' || place < 2 {
            return at;
        }
        let last = match next(at + 1) {
            _ if place == 3 => at,
            Some(second) if text.get(second) == Some(&b'=') => second,
            Some(other) => return other - 1,
            None => return text.len(),
        };
        return next(last + 1).unwrap_or(text.len());
    }
    text.len() - place
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

    #[test]
    fn the_mistake_is_where_go_sees_it() {
        for (text, at) in [
            ("hello", 4),
            ("a", 0),
            ("aGVsbG8", 4),
            ("aGVsbG8=x", 8),
            ("aGVs=", 4),
            ("a===", 1),
            ("aG=x", 2),
            ("aG=", 3),
            ("aG=\nx", 3),
            ("aGVs\nb", 5),
            ("aGV\nsb!", 6),
            ("YQ== ", 4),
            ("\u{e4}", 0),
        ] {
            assert_eq!(decode(text), Err(NotBase64(at)), "{text:?}");
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
