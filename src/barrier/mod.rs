//! The barrier: everything stored is encrypted under a term of the keyring, and nothing is readable until the root
//! key opens that keyring.
//!
//! A record is bound to its storage path (associated data), so records cannot be swapped. Path names are readable
//! in the store, values never. Reading takes no lock: the keyring is one atomically replaced pointer. Encryptions
//! are counted per term by durable reservations, so that a term is never used near 2^32 times with random nonces,
//! whatever crashes. Engines never see this type: they get a [`View`], which is a prefix they cannot leave.
//!
//! The keyring itself is stored at [`KEYRING_PATH`], encrypted by the root key. Who protects the root key is the
//! business of the seal, not of this module.

mod doubt;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod keyring;
mod large;
mod outcome;
mod record;
mod sure;
mod txn;
mod view;

use std::future::Future;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use thiserror::Error;
use time::OffsetDateTime;
use tokio::sync::Mutex;

use crate::crashpoint::reach;
use crate::heavy;
use crate::secret::SecretBytes;
use crate::storage::{self, Expect, Names, Storage, StorageError, Version};

pub use doubt::InDoubt;
pub use keyring::{DEFAULT_MAX_OPERATIONS, KeyStatus, MIN_INTERVAL, MIN_MAX_OPERATIONS, RotateConfig};
pub use sure::{note_commit, on_own_task};
pub use txn::{Entry, Stamp, Txn};
pub use view::View;

pub(crate) use record::{open_bytes, seal_bytes};

use outcome::{Footprint, Outcome, PATIENCE};
use record::Aead;

use keyring::{Image, Keyring};
use large::Large;

/// Where the keyring is stored, encrypted by the root key.
pub const KEYRING_PATH: &str = "core/keyring";

/// Folders of what the server itself keeps: mounts, zones, HSMs. Engines, tokens and policies are elsewhere.
const OWN: [&str; 2] = ["core/", "sos/"];

/// Names that a list reads at once; some milliseconds.
const SHORT: usize = 4096;

/// Length of a root key in bytes.
pub const ROOT_KEY_LEN: usize = 32;

/// Why the barrier did not do what was asked.
#[derive(Debug, Error)]
pub enum BarrierError {
    /// No root key has been given since the start or the last [`Barrier::lock`].
    #[error("the barrier is sealed")]
    Sealed,
    /// A stored record does not authenticate under the key and path it claims. Never reported as "not found".
    #[error("the record {path:?} is corrupt: {reason}")]
    Corrupt {
        /// The damaged record.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The root key does not open the keyring: it is another cluster's key, or the keyring is damaged.
    #[error("the root key does not open the keyring {KEYRING_PATH:?}: wrong key, or the record is corrupt")]
    RootKey,
    /// A root key of another length than [`ROOT_KEY_LEN`].
    #[error("a root key has {ROOT_KEY_LEN} bytes")]
    RootKeyLength,
    /// There is no keyring in the store.
    #[error("the barrier is not initialized")]
    NotInitialized,
    /// There is a keyring in the store already.
    #[error("the barrier is already initialized")]
    AlreadyInitialized,
    /// The active term has reached its last encryption; `rotate` makes a new one.
    #[error("the encryption key of term {term} has reached its limit of encryptions; rotate the keyring")]
    Exhausted {
        /// The term in use.
        term: u32,
    },
    /// A relative or otherwise unacceptable path.
    #[error("the path {0:?} is not accepted")]
    Path(String),
    /// A rotation setting out of range.
    #[error("{0}")]
    Config(&'static str),
    /// The store failed while it wrote, and was read again since.
    #[error("the store failed; looking again shows that nothing was written")]
    NotWritten(#[source] StorageError),
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl BarrierError {
    /// Of a failed commit: whether it may have taken effect all the same.
    pub fn may_have_landed(&self) -> bool {
        matches!(self, Self::Storage(StorageError::Io(_) | StorageError::Closed | StorageError::Corrupt { .. }))
    }
}

impl BarrierError {
    /// The record that a read failed at because it is damaged, by its path from the root of the store.
    pub fn damaged(&self) -> Option<&str> {
        match self {
            Self::Corrupt { path, .. } | Self::Storage(StorageError::Corrupt { key: path, .. }) => Some(path),
            _ => None,
        }
    }
}

/// Keys that open what another store of this cluster wrote.
pub struct OtherKeys(Arc<Keyring>);

impl OtherKeys {
    /// The value of a record that lay at `path` in the other store.
    pub fn open(&self, path: &str, record: Vec<u8>) -> Result<SecretBytes, BarrierError> {
        self.0.decrypt(path, record)
    }
}

/// What must be at hand to rewrite the keyring; present only while unsealed.
struct Unlocked {
    aead: Aead,
    /// A new root key that was to replace the other one when the store failed for long: either may open the keyring.
    other: Option<Aead>,
}

impl Unlocked {
    fn new(root: &SecretBytes) -> Result<Self, BarrierError> {
        let aead = Aead::new(root.expose()).ok_or(BarrierError::RootKeyLength)?;
        Ok(Self { aead, other: None })
    }
}

/// The encrypting layer over a store.
pub struct Barrier {
    storage: Arc<dyn Storage>,
    keyring: ArcSwapOption<Keyring>,
    /// Serialises changes of the keyring; readers never take it.
    unlocked: Mutex<Option<Unlocked>>,
    changes: Arc<AtomicU64>,
    large: Large,
}

impl Barrier {
    /// A sealed barrier over `storage`.
    pub fn new(storage: Arc<dyn Storage>) -> Self {
        Self {
            storage,
            keyring: ArcSwapOption::empty(),
            unlocked: Mutex::new(None),
            changes: Arc::default(),
            large: Large::default(),
        }
    }

    /// Grows with every commit of this process that writes what the server itself keeps (`core/`, `sos/`), before the commit is
    /// answered, and with every opening and closing. What was read of these records after a look at this number holds as long
    /// as the number does.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// The store beneath, for records that must be readable while sealed.
    pub fn raw(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Whether the keyring is not at hand.
    pub fn is_sealed(&self) -> bool {
        self.keyring.load().is_none()
    }

    /// Whether a keyring exists in the store.
    pub fn is_initialized(&self) -> Result<bool, BarrierError> {
        Ok(self.storage.get(KEYRING_PATH)?.is_some())
    }

    /// Makes the first term and commits it together with `raw` (written as it is) and `sealed` (encrypted by the new
    /// term); all of it or nothing. The barrier is unsealed afterwards.
    pub async fn initialize(
        &self,
        root: &SecretBytes,
        raw: storage::Txn,
        sealed: Txn,
        now: OffsetDateTime,
    ) -> Result<(), BarrierError> {
        let fresh = Unlocked::new(root)?;
        let mut unlocked = self.unlocked.lock().await;
        if self.is_initialized()? {
            return Err(BarrierError::AlreadyInitialized);
        }
        let mut image = Image::first(now);
        let first = image.reserve(sealed.puts())?;
        let keyring = Keyring::from_image(&image, None);
        keyring.active().grant(first, image.reserved());
        let mut txn = raw.check(KEYRING_PATH, Expect::Absent).put(KEYRING_PATH, image.encrypt(&fresh.aead)?);
        keyring.active().take(sealed.puts());
        // All but the keyring.
        let raw = txn.writes.len() - 1;
        keyring.encrypt_into(sealed, &mut txn)?;
        self.settle(txn, raw, PATIENCE).await?;
        self.keyring.store(Some(Arc::new(keyring)));
        *unlocked = Some(fresh);
        Ok(())
    }

    /// Opens the keyring with the root key.
    pub async fn unlock(&self, root: &SecretBytes) -> Result<(), BarrierError> {
        let fresh = Unlocked::new(root)?;
        let mut unlocked = self.unlocked.lock().await;
        let (image, _) = self.image_by(&fresh.aead)?;
        let previous = self.keyring.load_full();
        self.keyring.store(Some(Arc::new(Keyring::from_image(&image, previous.as_deref()))));
        *unlocked = Some(fresh);
        self.changes.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Whether this is the root key of the stored keyring; changes nothing.
    pub fn verify_root(&self, root: &SecretBytes) -> Result<(), BarrierError> {
        self.image_by(&Unlocked::new(root)?.aead).map(|_| ())
    }

    /// Forgets every key. Reads that hold the keyring already finish; later ones fail.
    pub async fn lock(&self) {
        self.keyring.store(None);
        let mut unlocked = self.unlocked.lock().await;
        *unlocked = None;
        // A rotation that was under way may have put a keyring back before it let the lock go.
        self.keyring.store(None);
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// The decrypted record at `path`.
    pub fn get(&self, path: &str) -> Result<Option<Entry>, BarrierError> {
        let keyring = self.keyring.load();
        let keyring = keyring.as_ref().ok_or(BarrierError::Sealed)?;
        match self.storage.get(path)? {
            None => Ok(None),
            Some(record) => {
                let value = keyring.decrypt(path, record.value)?;
                Ok(Some(Entry { version: record.version, value }))
            }
        }
    }

    /// Names one level below `prefix` (see [`Storage::list`]).
    pub fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, BarrierError> {
        if self.is_sealed() {
            return Err(BarrierError::Sealed);
        }
        Ok(self.storage.list(prefix, after, limit)?)
    }

    /// The same in one piece of memory (see [`Storage::names`]).
    fn names(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Names, BarrierError> {
        if self.is_sealed() {
            return Err(BarrierError::Sealed);
        }
        Ok(self.storage.names(prefix, after, limit)?)
    }

    /// As [`Barrier::list`], for lists that may be long: what goes beyond the first thousands of names is read off the async
    /// workers, some thousand at a time.
    pub async fn list_long(self: &Arc<Self>, prefix: &str, after: Option<&str>, limit: usize) -> Result<Names, BarrierError> {
        let mut names = self.names(prefix, after, limit.min(SHORT))?;
        if names.len() < SHORT || names.len() == limit {
            return Ok(names);
        }
        // So is what is made of them.
        heavy::aside().await;
        let (barrier, prefix) = (self.clone(), prefix.to_owned());
        let all = tokio::task::spawn_blocking(move || {
            while names.len() < limit {
                let page = barrier.names(&prefix, names.last(), SHORT.min(limit - names.len()))?;
                if page.is_empty() {
                    break;
                }
                page.iter().for_each(|name| names.push(name));
            }
            Ok(names)
        });
        // It is not cancelled, and it panics no more than the list itself.
        all.await.unwrap_or(Err(BarrierError::Storage(StorageError::Closed)))
    }

    /// Decrypted records whose path starts with `prefix` (see [`Storage::scan`]).
    pub fn scan(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<(String, Entry)>, BarrierError> {
        let keyring = self.keyring.load();
        let keyring = keyring.as_ref().ok_or(BarrierError::Sealed)?;
        self.storage
            .scan(prefix, after, limit)?
            .into_iter()
            .map(|(path, record)| {
                let value = keyring.decrypt(&path, record.value)?;
                Ok((path, Entry { version: record.version, value }))
            })
            .collect()
    }

    /// Encrypts and commits. Durable when it answers; once the store has the transaction, it goes on even when the future
    /// is dropped.
    pub async fn commit(&self, txn: Txn) -> Result<Version, BarrierError> {
        let keyring = self.admit(txn.puts()).await?;
        let mut encrypted = storage::Txn::new();
        keyring.encrypt_into(txn, &mut encrypted)?;
        Ok(self.write(encrypted).await?)
    }

    /// As [`Barrier::commit`], for what objects outside of the store depend on: a store that fails is waited for, and what became of
    /// the transaction is found out ([`BarrierError::NotWritten`]).
    pub async fn commit_surely(&self, txn: Txn) -> Result<Version, BarrierError> {
        self.commit_with(txn, storage::Txn::new()).await
    }

    /// As [`Barrier::commit`], together with `raw`, which is written as it is; all of it or nothing. A store that fails is
    /// waited for, and what became of the transaction is found out ([`BarrierError::NotWritten`]).
    pub async fn commit_with(&self, txn: Txn, raw: storage::Txn) -> Result<Version, BarrierError> {
        let keyring = self.admit(txn.puts()).await?;
        let mut both = raw;
        let raw = both.writes.len();
        keyring.encrypt_into(txn, &mut both)?;
        self.settle(both, raw, PATIENCE).await
    }

    /// Makes what is stored at these paths durable, as it is read from then on. To be called before anything is destroyed because of
    /// what the store says: after a failure it may tell, for as long as it cannot be opened afresh, what will not last.
    pub async fn confirm(&self, paths: &[&str]) -> Result<(), BarrierError> {
        outcome::confirm(self.storage.as_ref(), paths.iter().copied()).await?;
        note_commit();
        Ok(())
    }

    /// Runs work that is to change something, and tells whether its success is sure: it committed something, or it committed nothing and
    /// the store was certain of what it holds all the time.
    pub async fn surely<F: Future>(&self, work: F) -> (F::Output, bool) {
        let before = self.storage.doubts();
        let (done, committed) = sure::watched(work).await;
        let certain = before.is_multiple_of(2) && self.storage.doubts() == before;
        (done, committed || certain)
    }

    /// Commits, and finds out what became of it when the store could not tell. The first `raw` writes are not encrypted.
    async fn settle(&self, txn: storage::Txn, raw: usize, patience: Duration) -> Result<Version, BarrierError> {
        let footprint = Footprint::of(&txn, raw);
        let error = match self.write(txn).await {
            Err(error @ StorageError::Io(_)) => error,
            certain => return Ok(certain?),
        };
        let outcome = footprint.outcome(self.storage.as_ref(), patience).await;
        // The store was opened afresh meanwhile.
        self.changes.fetch_add(1, Ordering::Release);
        match outcome {
            Outcome::Landed(version) => {
                tracing::warn!(%error, "a write took effect although the store had failed");
                note_commit();
                Ok(version)
            }
            Outcome::NotWritten => Err(BarrierError::NotWritten(error)),
            Outcome::Unknown => Err(error.into()),
        }
    }

    /// Makes a new term the active one; old terms stay readable. Answers the new term.
    pub async fn rotate(&self, now: OffsetDateTime) -> Result<u32, BarrierError> {
        self.update(|image| image.add_term(now)).await
    }

    /// Rotates when the configured age or number of encryptions is reached; to be called from time to time. Answers
    /// the new term, if one was made.
    pub async fn rotate_if_due(&self, now: OffsetDateTime) -> Result<Option<u32>, BarrierError> {
        let due = self.loaded()?.rotation_due(now);
        if due { self.rotate(now).await.map(Some) } else { Ok(None) }
    }

    /// Facts of the active term, for `sys/key-status`.
    pub fn key_status(&self) -> Result<KeyStatus, BarrierError> {
        Ok(self.loaded()?.status())
    }

    /// When the keyring rotates by itself.
    pub fn rotate_config(&self) -> Result<RotateConfig, BarrierError> {
        Ok(self.loaded()?.config())
    }

    /// Changes when the keyring rotates by itself.
    pub async fn set_rotate_config(&self, config: RotateConfig) -> Result<(), BarrierError> {
        config.check()?;
        self.update(|image| {
            image.config = config;
            Ok(())
        })
        .await
    }

    /// The keys of a keyring that another store of this cluster kept, `stored` as it lies there. Where the root key does not open
    /// it, those of this store's own keyring: all terms from before the two went apart are the same.
    pub async fn keys_of(&self, stored: Option<&[u8]>) -> Result<OtherKeys, BarrierError> {
        let unlocked = self.unlocked.lock().await;
        let unlocked = unlocked.as_ref().ok_or(BarrierError::Sealed)?;
        match stored.map(|stored| Image::decrypt(&unlocked.aead, stored)) {
            Some(Ok(image)) => Ok(OtherKeys(Arc::new(Keyring::from_image(&image, None)))),
            Some(Err(_)) | None => Ok(OtherKeys(self.loaded()?)),
        }
    }

    /// Replaces the root key: re-encrypts the keyring and commits it together with `raw` (the new wrapped copies of the
    /// root key), all or nothing. Terms and records stay as they are. A store that fails is waited for; where even then nobody knows
    /// ([`BarrierError::may_have_landed`]), both root keys are kept and whichever opens the keyring is used.
    pub async fn rekey(&self, new_root: &SecretBytes, raw: storage::Txn) -> Result<(), BarrierError> {
        let fresh = Unlocked::new(new_root)?;
        let mut unlocked = self.unlocked.lock().await;
        let current = unlocked.as_mut().ok_or(BarrierError::Sealed)?;
        let (image, version) = self.stored_image(current)?;
        let raw_writes = raw.writes.len();
        let txn = raw.check(KEYRING_PATH, Expect::Version(version)).put(KEYRING_PATH, image.encrypt(&fresh.aead)?);
        match self.settle(txn, raw_writes, PATIENCE).await {
            Ok(_) => *current = fresh,
            Err(error) if error.may_have_landed() => {
                current.other = Some(fresh.aead);
                return Err(error);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Commits, and counts it in [`Barrier::changes`] where it belongs there.
    async fn write(&self, txn: storage::Txn) -> Result<Version, StorageError> {
        let own = txn.writes.iter().any(|(path, _)| OWN.iter().any(|folder| path.starts_with(folder)));
        let commit = self.storage.commit(txn);
        if !own {
            return commit.await.inspect(|_| note_commit());
        }
        let changes = Arc::clone(&self.changes);
        let counted = async move {
            let done = commit.await;
            // After an error too: what became of it is not known.
            changes.fetch_add(1, Ordering::Release);
            done
        };
        // The store goes on with it when nobody waits for it any more, and then too it is to be counted.
        let done = match tokio::runtime::Handle::try_current() {
            Ok(runtime) => runtime.spawn(counted).await.unwrap_or(Err(StorageError::Closed)),
            Err(_none) => counted.await,
        };
        done.inspect(|_| note_commit())
    }

    fn loaded(&self) -> Result<Arc<Keyring>, BarrierError> {
        self.keyring.load_full().ok_or(BarrierError::Sealed)
    }

    /// A keyring whose active term has room for `puts` encryptions, which are thereby counted.
    async fn admit(&self, puts: u64) -> Result<Arc<Keyring>, BarrierError> {
        loop {
            let keyring = self.loaded()?;
            if keyring.active().take(puts) {
                return Ok(keyring);
            }
            self.reserve(&keyring, puts).await?;
        }
    }

    /// Reserves another block of encryptions durably, unless someone else has done it since `seen` was loaded.
    async fn reserve(&self, seen: &Arc<Keyring>, puts: u64) -> Result<(), BarrierError> {
        let mut unlocked = self.unlocked.lock().await;
        let now_loaded = self.loaded()?;
        if !Arc::ptr_eq(seen, &now_loaded) {
            return Ok(());
        }
        self.rewrite(unlocked.as_mut(), |image| image.reserve(puts).map(|first| ((), Some(first)))).await
    }

    async fn update<T>(&self, change: impl Fn(&mut Image) -> Result<T, BarrierError>) -> Result<T, BarrierError> {
        let mut unlocked = self.unlocked.lock().await;
        self.rewrite(unlocked.as_mut(), |image| change(image).map(|answer| (answer, None))).await
    }

    /// Reads, changes and commits the keyring, then installs it; again when another node changed it meanwhile. What is
    /// stored is read each time, so that an abandoned earlier change cannot leave this process behind.
    async fn rewrite<T>(
        &self,
        unlocked: Option<&mut Unlocked>,
        change: impl Fn(&mut Image) -> Result<(T, Option<u64>), BarrierError>,
    ) -> Result<T, BarrierError> {
        let unlocked = unlocked.ok_or(BarrierError::Sealed)?;
        loop {
            let (mut image, version) = self.stored_image(unlocked)?;
            let (answer, first_free) = change(&mut image)?;
            let record = image.encrypt(&unlocked.aead)?;
            let txn = storage::Txn::new().check(KEYRING_PATH, Expect::Version(version)).put(KEYRING_PATH, record);
            reach("keyring-changed");
            match self.settle(txn, 0, Duration::ZERO).await {
                Ok(_) => reach("keyring-committed"),
                Err(BarrierError::Storage(StorageError::Conflict { .. })) => continue,
                Err(error) => return Err(error),
            }
            let previous = self.loaded()?;
            let keyring = Keyring::from_image(&image, Some(&previous));
            if let Some(first) = first_free {
                keyring.active().grant(first, image.reserved());
            }
            self.keyring.store(Some(Arc::new(keyring)));
            return Ok(answer);
        }
    }

    /// The stored keyring. A root key that took effect after all takes the place of the one before.
    fn stored_image(&self, unlocked: &mut Unlocked) -> Result<(Image, Version), BarrierError> {
        match (self.image_by(&unlocked.aead), unlocked.other.take()) {
            (Err(BarrierError::RootKey), Some(other)) => {
                let found = self.image_by(&other);
                match found {
                    Ok(_) => unlocked.aead = other,
                    Err(_) => unlocked.other = Some(other),
                }
                found
            }
            (found, other) => {
                unlocked.other = other;
                found
            }
        }
    }

    fn image_by(&self, root: &Aead) -> Result<(Image, Version), BarrierError> {
        let record = self.storage.get(KEYRING_PATH)?.ok_or(BarrierError::NotInitialized)?;
        Ok((Image::decrypt(root, &record.value)?, record.version))
    }
}

impl std::fmt::Debug for Barrier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Barrier").field("sealed", &self.is_sealed()).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod teststore;

#[cfg(test)]
mod tests;
