//! What the fuzz target of stored records calls: a token's entry.

use super::store::{decode, encode};

/// Reads bytes as a token's record. What is taken must be written again the same.
pub fn entry(bytes: &[u8]) {
    let Ok(entry) = decode("h0", bytes) else { return };
    let again = encode(&entry).and_then(|written| decode("h0", &written));
    assert!(again.is_ok_and(|again| format!("{again:?}") == format!("{entry:?}")), "a token changes when it is written");
}
