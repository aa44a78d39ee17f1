//! Which records are large, as far as reads have shown: a read of one is moved aside before it begins, so that what waits for a
//! thread holds nothing.

use std::sync::atomic::{AtomicBool, Ordering};

use quick_cache::sync::Cache;

use super::{Barrier, BarrierError, Entry};
use crate::heavy::{self, LARGE};

/// Paths that are remembered.
const KNOWN: usize = 4096;

/// Paths of large records.
pub(super) struct Large {
    any: AtomicBool,
    known: Cache<String, ()>,
}

impl Default for Large {
    fn default() -> Self {
        Self { any: AtomicBool::new(false), known: Cache::new(KNOWN) }
    }
}

impl Large {
    fn holds(&self, path: &str) -> bool {
        self.any.load(Ordering::Relaxed) && self.known.get(path).is_some()
    }

    fn note(&self, path: &str) {
        self.known.insert(path.to_owned(), ());
        self.any.store(true, Ordering::Relaxed);
    }
}

impl Barrier {
    /// As [`Barrier::get`], for records that may be large: these are read and decrypted, and what comes after that is done, on threads
    /// that serve no connections (see [`heavy`]).
    pub async fn get_long(&self, path: &str) -> Result<Option<Entry>, BarrierError> {
        if !heavy::is_movable() {
            return self.get(path);
        }
        if self.large.holds(path) {
            heavy::aside().await;
            let found = self.get(path);
            if found.as_ref().is_ok_and(|found| found.as_ref().is_none_or(|entry| entry.value.expose().len() <= LARGE)) {
                self.large.known.remove(path);
            }
            return found;
        }
        {
            let keyring = self.keyring.load();
            let keyring = keyring.as_ref().ok_or(BarrierError::Sealed)?;
            match self.storage.get(path)? {
                Some(record) if record.value.len() > LARGE => self.large.note(path),
                None => return Ok(None),
                Some(record) => {
                    let value = keyring.decrypt(path, record.value)?;
                    return Ok(Some(Entry { version: record.version, value }));
                }
            }
        }
        // What was read is let go, and read again when there is a thread for it.
        heavy::aside().await;
        self.get(path)
    }
}
