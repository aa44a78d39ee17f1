//! The key that makes backups authentic: random, behind the barrier, the same for the life of the cluster.
//!
//! It is in every backup, as readable as everything else: only for whoever opens the barrier. So each backup can be
//! checked by the store that it becomes, however often root key and keyring were rotated in between.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::BackupError;
use crate::{
    barrier::{Barrier, BarrierError, Txn},
    secret::SecretBytes,
    storage::{Expect, StorageError},
};

/// Where the key lies behind the barrier: 32 bytes.
pub const KEY_PATH: &str = "core/backup-key";
const KEY_LEN: usize = 32;
const PURPOSE: &[u8] = b"sos/backup/v1\0";

/// The key of one cluster's backups.
pub struct BackupKey(SecretBytes);

impl std::fmt::Debug for BackupKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BackupKey")
    }
}

impl BackupKey {
    /// Reads the key through the open barrier; makes it the first time.
    pub async fn open(barrier: &Barrier) -> Result<Self, BarrierError> {
        loop {
            if let Some(key) = Self::read(barrier)? {
                return Ok(key);
            }
            let key = SecretBytes::random(KEY_LEN);
            let txn = Txn::new().check(KEY_PATH, Expect::Absent).put_secret(KEY_PATH, key.duplicate());
            match barrier.commit(txn).await {
                Ok(_) => return Ok(Self(key)),
                Err(BarrierError::Storage(StorageError::Conflict { .. })) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// A key of these bytes.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn of(key: SecretBytes) -> Self {
        Self(key)
    }

    /// The key, where there is one.
    pub fn read(barrier: &Barrier) -> Result<Option<Self>, BarrierError> {
        let Some(entry) = barrier.get(KEY_PATH)? else { return Ok(None) };
        match entry.value.len() {
            KEY_LEN => Ok(Some(Self(entry.value))),
            _ => Err(BarrierError::Corrupt { path: KEY_PATH.into(), reason: "it has another length than a key" }),
        }
    }

    /// The code over the digest of an archive's list of checksums.
    pub fn code(&self, digest: &[u8; 32]) -> [u8; 32] {
        self.mac(digest).finalize().into_bytes().into()
    }

    /// Whether a code is that of this key, compared in constant time.
    pub fn check(&self, digest: &[u8; 32], code: &[u8]) -> Result<(), BackupError> {
        self.mac(digest).verify_slice(code).map_err(|_differs| BackupError::NotAuthentic)
    }

    #[allow(clippy::expect_used)] // HMAC takes keys of any length
    fn mac(&self, digest: &[u8; 32]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.expose()).expect("a key of any length");
        mac.update(PURPOSE);
        mac.update(digest);
        mac
    }
}
