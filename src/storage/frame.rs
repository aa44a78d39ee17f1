//! The bytes of a stored record, the same in every engine.
//!
//! ```text
//! format (1 byte, 0x01) | version (8 bytes, big endian) | CRC-32 of key, version and value (4 bytes, big endian) | value
//! ```
//!
//! The checksum covers the key, so that a record found under another key is seen. It guards against damage, not
//! against an attacker: that is the barrier's work.

use super::{Record, Version};

const FORMAT: u8 = 1;
const HEADER: usize = 13;

/// Puts a value into its frame.
pub(crate) fn encode(key: &[u8], version: Version, value: &[u8]) -> Vec<u8> {
    let version = version.to_be_bytes();
    let mut framed = Vec::with_capacity(HEADER + value.len());
    framed.push(FORMAT);
    framed.extend_from_slice(&version);
    framed.extend_from_slice(&checksum(key, &version, value).to_be_bytes());
    framed.extend_from_slice(value);
    framed
}

/// Takes a record out of its frame, or says what is wrong with it.
pub(crate) fn decode(key: &[u8], framed: &[u8]) -> Result<Record, String> {
    let (version, value) = open(key, framed)?;
    Ok(Record { version, value: value.to_vec() })
}

/// The same without a copy of the value.
pub(crate) fn decode_owned(key: &[u8], mut framed: Vec<u8>) -> Result<Record, String> {
    let (version, _) = open(key, &framed)?;
    framed.drain(..HEADER);
    Ok(Record { version, value: framed })
}

/// The version alone, after the same checks as [`decode`].
pub(crate) fn decode_version(key: &[u8], framed: &[u8]) -> Result<Version, String> {
    open(key, framed).map(|(version, _)| version)
}

fn open<'a>(key: &[u8], framed: &'a [u8]) -> Result<(Version, &'a [u8]), String> {
    let Some((format, rest)) = framed.split_first() else { return Err("it is empty".into()) };
    if *format != FORMAT {
        return Err(format!("its format {format} is unknown"));
    }
    let Some((version, rest)) = rest.split_first_chunk::<8>() else { return Err(truncated(framed)) };
    let Some((sum, value)) = rest.split_first_chunk::<4>() else { return Err(truncated(framed)) };
    if u32::from_be_bytes(*sum) != checksum(key, version, value) {
        return Err("its checksum is wrong".into());
    }
    match u64::from_be_bytes(*version) {
        0 => Err("its version is 0".into()),
        version => Ok((version, value)),
    }
}

fn truncated(framed: &[u8]) -> String {
    format!("it is cut short to {} bytes", framed.len())
}

fn checksum(key: &[u8], version: &[u8; 8], value: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(version);
    hasher.update(value);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_framed_comes_back(key: Vec<u8>, version in 1u64.., value: Vec<u8>) {
            let framed = encode(&key, version, &value);
            let record = Record { version, value };
            prop_assert_eq!(decode(&key, &framed), Ok(record.clone()));
            prop_assert_eq!(decode_owned(&key, framed), Ok(record));
        }

        #[test]
        fn every_changed_byte_is_seen(value: Vec<u8>, at: prop::sample::Index, mask in 1u8..) {
            let mut framed = encode(b"a/key", 7, &value);
            let at = at.index(framed.len());
            framed[at] ^= mask;
            prop_assert!(decode(b"a/key", &framed).is_err());
        }

        #[test]
        fn every_cut_is_seen(value: Vec<u8>, at: prop::sample::Index) {
            let framed = encode(b"a/key", 7, &value);
            prop_assert!(decode(b"a/key", &framed[..at.index(framed.len())]).is_err());
        }
    }

    #[test]
    fn a_record_under_another_key_is_seen() {
        assert!(decode(b"b", &encode(b"a", 1, b"value")).is_err());
    }

    #[test]
    fn the_layout_on_disk_does_not_change() {
        assert_eq!(hex::encode(encode(b"k", 1, b"v")), "0100000000000000016af072b976");
    }
}
