//! The memory of refused PINs, kept in the store so that it outlives restarts and moves with the data.
//!
//! ```text
//! core/hsm-pin/key             32 random bytes that key the fingerprints
//! core/hsm-pin/refused/<hex>   empty: the PIN with this fingerprint was refused
//! ```
//! Readable while sealed, because that is when a PIN is tried. A fingerprint is a keyed hash; whoever reads key and
//! fingerprint can test guesses of a refused PIN, which is a wrong one.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::hsm::PinMemory;
use crate::secret::SecretBytes;
use crate::storage::{Expect, Storage, StorageError, Txn};

const KEY_PATH: &str = "core/hsm-pin/key";
const REFUSED: &str = "core/hsm-pin/refused/";
/// Far more wrong PINs than anyone configures; bounds what is read at start.
const MOST: usize = 10_000;

/// Refused PINs in the store.
pub struct StoredPinMemory {
    storage: Arc<dyn Storage>,
    key: SecretBytes,
    refused: Mutex<HashSet<String>>,
}

impl StoredPinMemory {
    /// Reads the memory, and makes its key the first time.
    pub async fn open(storage: Arc<dyn Storage>) -> Result<Self, StorageError> {
        let key = match storage.get(KEY_PATH)? {
            Some(record) => SecretBytes::new(record.value),
            None => {
                let key = SecretBytes::random(32);
                let txn = Txn::new().check(KEY_PATH, Expect::Absent).put(KEY_PATH, key.expose().to_vec());
                storage.commit(txn).await?;
                key
            }
        };
        let known = storage.scan(REFUSED, None, MOST)?;
        let refused = known.iter().filter_map(|(path, _)| path.strip_prefix(REFUSED)).map(str::to_owned).collect();
        Ok(Self { storage, key, refused: Mutex::new(refused) })
    }
}

impl PinMemory for StoredPinMemory {
    fn local_key(&self) -> SecretBytes {
        self.key.duplicate()
    }

    fn is_refused(&self, fingerprint: &[u8; 32]) -> bool {
        self.refused.lock().contains(&hex::encode(fingerprint))
    }

    fn remember(&self, fingerprint: &[u8; 32]) {
        let name = hex::encode(fingerprint);
        if self.refused.lock().insert(name.clone()) {
            // The commit goes on when its future is dropped; this process remembers in any case.
            drop(self.storage.commit(Txn::new().put(format!("{REFUSED}{name}"), Vec::new())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::barrier::teststore::Store;

    #[tokio::test]
    async fn a_refused_pin_is_remembered_across_restarts() {
        let store = Arc::new(Store::default());
        let memory = StoredPinMemory::open(store.clone()).await.unwrap();
        assert!(!memory.is_refused(&[1; 32]));
        memory.remember(&[1; 32]);
        let again = StoredPinMemory::open(store).await.unwrap();
        assert!(again.is_refused(&[1; 32]) && !again.is_refused(&[2; 32]));
        assert!(again.local_key().same_as(memory.local_key().expose()));
    }
}
