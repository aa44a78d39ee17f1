//! What the fuzz target of stored records calls: the seal's record.

use super::record::{InitIntent, SEAL_PATH, SealRecord, parse};
use crate::secret::SecretBytes;

/// Reads bytes as the seal's record and tries to open what it holds. What is taken must be written again the same.
pub fn record(bytes: &[u8]) {
    let _ = parse::<InitIntent>(SEAL_PATH, bytes);
    let Ok(record) = parse::<SealRecord>(SEAL_PATH, bytes) else { return };
    assert!(record.root_by_secret(&SecretBytes::new(vec![7; 32])).is_err(), "a root key was forged");
    let _ = record.hsm_wrappers().count();
    let written = serde_json::to_vec(&record).ok().and_then(|json| parse::<SealRecord>(SEAL_PATH, &json).ok());
    assert_eq!(written, Some(record), "the seal's record changes when it is written");
}
