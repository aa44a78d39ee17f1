//! What the fuzz target of stored records calls: the frame around every record.

use super::frame;

/// Takes a record out of its frame. What is taken must come back byte by byte.
pub fn frame(bytes: &[u8]) {
    let key = b"logical/x";
    if let Ok(record) = frame::decode(key, bytes) {
        assert_eq!(frame::encode(key, record.version, &record.value), bytes);
        assert_eq!(frame::decode_version(key, bytes), Ok(record.version));
        assert!(frame::decode(b"logical/y", bytes).is_err(), "the record is taken under another key too");
    }
    // The same with a frame that is right around any value.
    let whole = frame::encode(key, 7, bytes);
    assert!(frame::decode(key, &whole).is_ok_and(|record| record.version == 7 && record.value == bytes));
}
