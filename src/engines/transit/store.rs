//! A mount's keys in memory and in the store.
//!
//! Reading a key costs one look-up in a sharded cache. The cache is coherent because this node makes every write:
//! whoever commits refreshes the cached key from the store before answering, and a miss fills it under the same
//! lock. A commit and its refresh run on a task of their own, so that a caller who goes away cannot separate them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use quick_cache::{
    DefaultHashBuilder, OptionsBuilder, Weighter,
    sync::{Cache, DefaultLifecycle},
};
use thiserror::Error;
use tokio::sync::OnceCell;

pub use super::opened::{Loaded, LoadedKey, MAX_AGE};
use super::{
    alg::{
        KeyType,
        aead::Cipher,
        asym::{PrivateKey, PublicKey},
    },
    damaged::{Damaged, is_damaged},
    gate::Gate,
    opened::OpenedVersions,
    protect::{Protection, Vault, VersionId},
    record::{
        GivenRecord, KeyRecord, KeyUid, StoredKey, Unreadable, VersionLine, VersionRecord, decode, encode, given_path, key_path,
        material_path,
    },
    usage::Usage,
};
use crate::{
    barrier::{BarrierError, Entry, Stamp, Txn, View, on_own_task},
    core::{failure::Failure, route::BoxFuture, told::Told},
    hsm::{self, HsmError},
    secret::SecretBytes,
    stack,
    storage::{Expect, StorageError, Version},
};

/// Keys (without material) held in memory per mount.
const KEYS: u64 = 50_000;
/// Their bytes: what certificates and thousands of versions take.
const KEYS_BYTES: u64 = 128 << 20;
/// Parts of the cache, each with its share of the bytes: a key that is larger than that is read from the store each time.
const KEYS_SHARDS: usize = 4;
/// Names of keys that are remembered for objects taken from them.
const DROPPED: usize = 10_000;
/// How often a change is tried again when others change the same key.
const TRIES: usize = 16;

/// A key as read: its record and the commit that wrote it.
#[derive(Debug)]
pub struct Key {
    /// Its name.
    pub name: String,
    /// What is stored.
    pub record: KeyRecord,
    /// The commit that wrote the record.
    pub version: Version,
}

/// Bytes, and no fewer than a key's share when there are as many as there may be: so one bound is both.
#[derive(Clone)]
struct KeyWeight {
    least: u64,
}

impl Weighter<String, Arc<Key>> for KeyWeight {
    fn weight(&self, name: &String, key: &Arc<Key>) -> u64 {
        let line = |line: &VersionLine| {
            let texts = line.certificate_chain.iter().map(|der| size_of::<String>() + der.len()).sum::<usize>();
            size_of::<VersionLine>() + line.public_key.as_ref().map_or(0, String::len) + texts
        };
        let bytes = size_of::<Key>() + 2 * name.len() + key.record.versions.iter().map(line).sum::<usize>();
        u64::try_from(bytes).unwrap_or(u64::MAX).max(self.least)
    }
}

fn keys_bounded(most: u64, bytes: u64) -> Cache<String, Arc<Key>, KeyWeight> {
    let weight = KeyWeight { least: bytes.div_ceil(most.max(1)) };
    let items = usize::try_from(most).unwrap_or(usize::MAX);
    let options = OptionsBuilder::new().estimated_items_capacity(items).weight_capacity(bytes).shards(KEYS_SHARDS).build();
    match options {
        Ok(options) => Cache::with_options(options, weight, DefaultHashBuilder::default(), DefaultLifecycle::default()),
        // Only for want of one of the two bounds.
        Err(_) => Cache::with_weighter(items, bytes, weight),
    }
}

/// The state of one mount, kept while the mount is tuned or moved.
pub struct Store {
    /// The mount's records.
    pub view: View,
    /// What protects material.
    pub protection: Protection,
    /// HSM objects that requests under way are making.
    pub making: Mutex<HashSet<hsm::KeyId>>,
    /// HSM objects of former runs and deleted keys that are still to be destroyed.
    pub doomed: Mutex<HashSet<hsm::KeyId>>,
    /// Held by who destroys them.
    pub destroying: Arc<tokio::sync::Mutex<()>>,
    /// Of objects that cannot be destroyed now.
    pub told: Told,
    /// The keys that HSM objects were taken from lately: a request that uses one finds it missing.
    pub dropped: Cache<hsm::KeyId, String>,
    /// Keys that rotate by themselves, with the time of the next look in Unix seconds.
    pub schedule: Mutex<BTreeMap<String, i64>>,
    /// Read while a key is committed; see [`Still`](super::Still).
    pub fence: Arc<tokio::sync::RwLock<()>>,
    keys: Cache<String, Arc<Key>, KeyWeight>,
    fill: Mutex<()>,
    /// One lock per key that is being changed.
    changing: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    loaded: OpenedVersions,
    usages: Mutex<HashMap<(KeyUid, u32), Arc<Usage>>>,
}

/// The stores of all Transit mounts, so that an engine made anew for the same mount finds caches and counts as they
/// are.
#[derive(Default)]
pub struct Stores {
    /// By uuid: the store and its zone.
    mounts: Mutex<BTreeMap<String, (Weak<Store>, String)>>,
    /// Held while material moves to newer master keys.
    pub(super) rewrapping: tokio::sync::Mutex<()>,
    /// What batches may take at once.
    pub(super) gate: Gate,
}

impl Stores {
    /// The store of a mount, in `zone` when it is not there yet. Where a mount is tuned its engine is made before the change
    /// is durable, so the zone of a store that is there stays until [`Stores::set_zone`].
    pub fn of(&self, uuid: &str, view: &View, zone: &str, protection: &Protection) -> Arc<Store> {
        let mut stores = self.mounts.lock();
        stores.retain(|_, (store, _)| store.strong_count() > 0);
        if let Some(store) = stores.get(uuid).and_then(|(store, _)| store.upgrade()) {
            return store;
        }
        let store = Arc::new(Store::new(view.clone(), protection.clone()));
        stores.insert(uuid.to_owned(), (Arc::downgrade(&store), zone.to_owned()));
        store
    }

    /// The store of a mount that is served.
    pub fn of_mount(&self, uuid: &str) -> Option<Arc<Store>> {
        self.mounts.lock().get(uuid).and_then(|(store, _)| store.upgrade())
    }

    /// Notes the zone that a mount is in from now on.
    pub fn set_zone(&self, uuid: &str, zone: &str) {
        if let Some((_, noted)) = self.mounts.lock().get_mut(uuid) {
            zone.clone_into(noted);
        }
    }

    /// Forgets all mounts, whose records were exchanged for others: engines that are made from now on read them anew.
    pub fn forget(&self) {
        self.mounts.lock().clear();
    }

    /// The first mount of a zone whose uuid is not before `from`, with its uuid.
    pub fn next_in_zone(&self, zone: &str, from: &str) -> Option<(String, Arc<Store>)> {
        let stores = self.mounts.lock();
        stores.range(from.to_owned()..).find_map(|(uuid, (store, of))| {
            let store = store.upgrade().filter(|_| of == zone)?;
            Some((uuid.clone(), store))
        })
    }
}

/// What a change of a key decides after looking at it.
pub struct Change<T> {
    /// The key's new record, `None` where the key goes away; its own check and write are added to `txn`.
    pub record: Option<KeyRecord>,
    /// Further checks and writes of the same commit.
    pub txn: Txn,
    /// What the caller gets when the commit held.
    pub outcome: T,
}

impl Store {
    fn new(view: View, protection: Protection) -> Self {
        Self {
            view,
            protection,
            making: Mutex::default(),
            doomed: Mutex::default(),
            destroying: Arc::default(),
            told: Told::default(),
            dropped: Cache::new(DROPPED),
            schedule: Mutex::default(),
            fence: Arc::default(),
            keys: keys_bounded(KEYS, KEYS_BYTES),
            fill: Mutex::default(),
            changing: Mutex::default(),
            loaded: OpenedVersions::default(),
            usages: Mutex::default(),
        }
    }

    /// The key of a name, or `None`.
    ///
    /// # Errors
    /// [`Damaged`] as the cause where its record cannot be read any more.
    pub fn key(&self, name: &str) -> Result<Option<Arc<Key>>, Failure> {
        match self.keys.get(name) {
            Some(key) => Ok(Some(key)),
            None => self.refresh(name),
        }
    }

    /// Reads a key again and puts it into the cache.
    pub fn refresh(&self, name: &str) -> Result<Option<Arc<Key>>, Failure> {
        let _turn = self.fill.lock();
        self.keys.remove(name);
        let read = self.view.get(&key_path(name)).map_err(Failure::from);
        let read = read.and_then(|entry| entry.map(|entry| Ok((decode(&entry.value)?, entry.version))).transpose());
        let read = read.map_err(|failure| if is_lost(&failure) { Damaged::failure(name, &failure) } else { failure });
        let Some((record, version)) = read? else { return Ok(None) };
        let key = Arc::new(Key { name: name.to_owned(), record, version });
        self.keys.insert(name.to_owned(), Arc::clone(&key));
        Ok(Some(key))
    }

    /// Commits a transaction that changes the key `before`, refreshes it, and forgets what the change took away, also when the
    /// caller goes away meanwhile.
    async fn commit(self: &Arc<Self>, name: &str, before: Option<Arc<Key>>, txn: Txn) -> Result<Option<Arc<Key>>, Conflicted> {
        let store = Arc::clone(self);
        let name = name.to_owned();
        let task = on_own_task(stack::overwriting(async move {
            let _moves = store.fence.read().await;
            let committed = store.view.commit(txn).await;
            let refreshed = store.refresh(&name);
            if let (Some(before), true) = (before, committed.is_ok()) {
                store.forget_gone(before.record.uid, &before.record.versions, refreshed.as_ref().ok().and_then(Option::as_deref));
            }
            match committed {
                Ok(_) => refreshed.map_err(Conflicted::No),
                Err(BarrierError::Storage(StorageError::Conflict { .. })) => Err(Conflicted::Yes),
                // Read before it was damaged: it is looked at again as what it is by now.
                Err(error) if error.damaged().is_some() && refreshed.as_ref().is_err_and(is_damaged) => Err(Conflicted::Yes),
                Err(error) => Err(Conflicted::No(error.into())),
            }
        }));
        task.await.unwrap_or_else(|error| Err(Conflicted::No(Failure::internal(error))))
    }

    /// Changes a key: `decide` looks at it and says what to write. Changes of one key follow each other, so that none makes
    /// material in vain; where a re-wrap in the background was faster, `decide` is asked again. What is committed depends on
    /// what `mounted` gives. Answers the key as it is afterwards.
    ///
    /// Where the key's record is damaged `decide` is given the failure of reading it, and what it writes takes the record's place.
    pub async fn change<'a, T: Send>(
        self: &Arc<Self>,
        name: &str,
        mounted: &(dyn Fn() -> Result<Stamp, Failure> + Send + Sync),
        mut decide: impl FnMut(Found) -> BoxFuture<'a, Result<Decision<T>, Failure>> + Send,
    ) -> Result<(Option<Arc<Key>>, T), Failure> {
        let _alone = Changing::begin(self, name).await;
        let mut missing = None;
        for _ in 0..TRIES {
            let mounted = mounted()?;
            let (key, damaged) = match self.key(name) {
                Ok(key) => (key, None),
                Err(failure) if is_damaged(&failure) => (None, Some(failure)),
                Err(failure) => return Err(failure),
            };
            let path = key_path(name);
            let expect = key.as_ref().map_or(Expect::Absent, |key| Expect::Version(key.version));
            // Of a damaged record no version can be demanded; whoever changes it otherwise waits for this one's turn to end.
            let unchanged = if damaged.is_some() { Txn::new() } else { Txn::new().check(path.clone(), expect) };
            let change = match decide(damaged.map_or_else(|| Ok(key.clone()), Err)).await {
                Ok(Decision::Keep(outcome)) => return Ok((key, outcome)),
                Ok(Decision::Write(change)) => change,
                Err(failure) if self.is_stale(&failure) => {
                    missing = Some(failure);
                    continue;
                }
                Err(failure) => return Err(failure),
            };
            let txn = change.txn.while_as(mounted).merge(unchanged);
            let txn = match &change.record {
                Some(record) => txn.put_secret(path, encode(record)?),
                None => txn.delete(path),
            };
            match self.commit(name, key, txn).await {
                Ok(key) => return Ok((key, change.outcome)),
                Err(Conflicted::Yes) => {}
                Err(Conflicted::No(failure)) => return Err(failure),
            }
        }
        let changed = || Failure::unavailable(format!("the key {name} was changed by others again and again; try again"));
        Err(missing.unwrap_or_else(changed))
    }

    /// A version ready for use.
    pub async fn load(&self, zone: &str, key: &Key, version: u32) -> Result<Option<Arc<Loaded>>, Failure> {
        let Some(line) = key.record.line(version) else { return Ok(None) };
        let id = (key.record.uid, version, line.revision);
        if let Some(loaded) = self.loaded.get(&id) {
            return Ok(Some(loaded));
        }
        let loaded = Arc::new(self.open(zone, key, version).await?);
        self.loaded.insert(id, Arc::clone(&loaded));
        // What was deleted or replaced meanwhile may have been forgotten before it was put in.
        let now = self.key(&key.name);
        self.forget_gone(key.record.uid, std::slice::from_ref(line), now.as_ref().ok().and_then(Option::as_deref));
        Ok(Some(loaded))
    }

    async fn open(&self, zone: &str, key: &Key, version: u32) -> Result<Loaded, Failure> {
        let uid = key.record.uid;
        let (record, _) = self.version_record(&key.name, uid, version)?;
        let convergent_version = record.convergent_version;
        let usage = self.usage(uid, version)?;
        let line = key.record.line(version);
        let public = line.and_then(|line| line.public_key.as_deref()).map(|text| PublicKey::from_text(key.record.kind, text));
        let public = public.transpose().map_err(Failure::internal)?;
        let mut hmac_key = OnceCell::new();
        let vault = Vault { protection: &self.protection, zone };
        let loaded = match record.key {
            StoredKey::Hsm(wrapped) => LoadedKey::Wrapped(Box::new(wrapped)),
            StoredKey::Token(id) => LoadedKey::Token(id),
            StoredKey::Software => {
                let material = vault.open(VersionId { uid, version }, &record).await?;
                hmac_key = OnceCell::new_with(Some(material.hmac_key));
                software(&key.record, material.key)?
            }
        };
        Ok(Loaded::new(loaded, convergent_version, usage, public, hmac_key))
    }

    /// The HMAC key of an opened version; empty where an old server made none.
    pub async fn hmac_key<'a>(
        &self,
        zone: &str,
        key: &Key,
        version: u32,
        loaded: &'a Loaded,
    ) -> Result<&'a SecretBytes, Failure> {
        let open = || async {
            let uid = key.record.uid;
            let (record, _) = self.version_record(&key.name, uid, version)?;
            let vault = Vault { protection: &self.protection, zone };
            Ok(vault.open(VersionId { uid, version }, &record).await?.hmac_key)
        };
        loaded.hmac_key.get_or_try_init(open).await
    }

    /// The record of a version, which must exist while its key does.
    ///
    /// # Errors
    /// [`Vanished`] as the cause where it does not: the key was deleted or trimmed after it was looked up, or the store lost it.
    pub fn version_record(&self, name: &str, uid: KeyUid, version: u32) -> Result<(VersionRecord, Entry), Failure> {
        let path = material_path(uid, version);
        let entry = self.view.get(&path)?;
        let entry = entry.ok_or_else(|| Failure::internal(Vanished { name: name.to_owned(), path }))?;
        Ok((decode(&entry.value)?, entry))
    }

    /// Whether a failure comes of a key that was changed after it was looked up: its record is gone, or its object on the HSM
    /// that this node destroyed. The key is read anew, so that what is done again sees it as it is.
    pub fn is_stale(&self, failure: &Failure) -> bool {
        let Some(cause) = failure.cause() else { return false };
        let name = match (cause.downcast_ref(), cause.downcast_ref()) {
            (Some(Vanished { name, .. }), _) => Some(name.clone()),
            (_, Some(HsmError::KeyMissing(id))) => self.dropped.get(id),
            _ => None,
        };
        name.is_some_and(|name| self.refresh(&name).is_ok())
    }

    /// The number of the key's next version: above every one that was ever given, also before a restore.
    pub fn next_version(&self, record: &KeyRecord) -> Result<u32, Failure> {
        let given = match self.view.get(&given_path(&record.uid.to_string()))? {
            Some(entry) => decode::<GivenRecord>(&entry.value)?.version,
            None => 0,
        };
        record.latest_version.max(given).checked_add(1).ok_or_else(|| Failure::internal("the key's version numbers are used up"))
    }

    /// The count of a version; one object per version, however often it is opened.
    fn usage(&self, uid: KeyUid, version: u32) -> Result<Arc<Usage>, Failure> {
        /// Beyond this many counts those not in use are forgotten, which burns what is left of their blocks.
        const COUNTS: usize = 200_000;
        let mut usages = self.usages.lock();
        if let Some(usage) = usages.get(&(uid, version)) {
            return Ok(Arc::clone(usage));
        }
        if usages.len() >= COUNTS {
            usages.retain(|_, usage| Arc::strong_count(usage) > 1);
        }
        let usage = Arc::new(Usage::load(&self.view, uid, version)?);
        usages.insert((uid, version), Arc::clone(&usage));
        Ok(usage)
    }

    /// Notes the count of a version that is being made, whose first block is in the commit that makes it. To be called before
    /// that commit: once others see the version they take their counts from here, and two counts of one version would each
    /// miss what the other one took.
    pub fn start_usage(&self, uid: KeyUid, version: u32) {
        self.usages.lock().entry((uid, version)).or_insert_with(|| Arc::new(Usage::new(uid, version)));
    }

    /// Forgets the versions that were opened `age` ago or earlier; requests under way finish with theirs.
    pub fn forget_older(&self, age: Duration) {
        self.loaded.forget_older(age);
    }

    /// Forgets everything of a key that is gone, whatever versions it had.
    pub fn forget_key(&self, uid: KeyUid) {
        self.loaded.forget_key(uid);
        self.usages.lock().retain(|(of, _), _| *of != uid);
    }

    /// How many opened versions are in memory.
    #[cfg(test)]
    pub fn opened(&self) -> usize {
        self.loaded.len()
    }

    /// How many keys are being changed.
    #[cfg(test)]
    pub fn changing(&self) -> usize {
        self.changing.lock().len()
    }

    /// Forgets what was opened of a key and is not in it any more: versions deleted or trimmed away, and material that was
    /// replaced by the same at another level.
    fn forget_gone(&self, uid: KeyUid, before: &[VersionLine], now: Option<&Key>) {
        let now = now.map(|key| &key.record).filter(|record| record.uid == uid);
        for line in before {
            let kept = now.and_then(|record| record.line(line.version));
            if kept.is_none_or(|kept| kept.revision != line.revision) {
                self.loaded.remove(&(uid, line.version, line.revision));
            }
            if kept.is_none() {
                self.usages.lock().remove(&(uid, line.version));
            }
        }
    }
}

/// The right to change a key, until it is dropped.
struct Changing<'a> {
    store: &'a Store,
    name: &'a str,
    held: Option<tokio::sync::OwnedMutexGuard<()>>,
}

impl<'a> Changing<'a> {
    async fn begin(store: &'a Store, name: &'a str) -> Self {
        let lock = Arc::clone(store.changing.lock().entry(name.to_owned()).or_default());
        // Whoever goes away while waiting leaves the map's entry to those behind.
        let mut changing = Self { store, name, held: None };
        changing.held = Some(lock.lock_owned().await);
        changing
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.held = None;
        let mut changing = self.store.changing.lock();
        if changing.get(self.name).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            changing.remove(self.name);
        }
    }
}

/// Material that is used in this process.
fn software(record: &KeyRecord, material: SecretBytes) -> Result<LoadedKey, Failure> {
    let kind = record.kind;
    if material.is_empty() || kind == KeyType::Hmac {
        return Ok(LoadedKey::Nothing);
    }
    if let Some(kdf) = record.kdf {
        return Ok(LoadedKey::Derived(kdf, material));
    }
    if kind.is_asymmetric() {
        return PrivateKey::from_stored(kind, material.expose()).map(LoadedKey::Private).map_err(Failure::internal);
    }
    let cipher = Cipher::new(kind, material.expose());
    cipher.map(LoadedKey::Cipher).ok_or_else(|| Failure::internal("a stored key has the wrong length"))
}

/// A key as a look at it found it; an error is that its record is damaged.
pub type Found = Result<Option<Arc<Key>>, Failure>;

/// What a look at a key leads to.
#[allow(clippy::large_enum_variant, reason = "made and taken apart once in a change of a key")]
pub enum Decision<T> {
    /// Nothing is written.
    Keep(T),
    /// A commit.
    Write(Change<T>),
}

/// A version's record is not there any more.
#[derive(Debug, Error)]
#[error("the record {path:?} of the key {name:?} is missing")]
pub struct Vanished {
    /// The key.
    pub name: String,
    /// The record.
    pub path: String,
}

/// Whether a failure to read a record says that it is damaged or lost, and not that the store cannot be read now.
pub fn is_lost(failure: &Failure) -> bool {
    let Some(cause) = failure.cause() else { return false };
    cause.is::<Vanished>() || cause.is::<Unreadable>() || failure.is_damage()
}

/// Whether a failed commit may be tried again.
pub enum Conflicted {
    /// Somebody else changed the key first.
    Yes,
    /// It failed for another reason.
    No(Failure),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::transit::protect::Level;

    #[test]
    fn keys_in_memory_are_bounded_by_their_bytes() {
        let key = |name: String, certificates: usize| {
            let mut record = KeyRecord::empty(KeyType::Ed25519, Level::Software);
            record.versions.push(VersionLine {
                version: 1,
                created: 0,
                level: Level::Software,
                revision: 0,
                moved_into_hsm: None,
                public_key: None,
                public_only: false,
                certificate_chain: vec!["x".repeat(1000); certificates],
            });
            Arc::new(Key { name, record, version: Version::default() })
        };
        let (most, bytes) = (1000, 1 << 20);
        for (certificates, held) in [(0, 1000), (100, 10)] {
            let keys = keys_bounded(most, bytes);
            for number in 0..3000 {
                keys.insert(format!("k{number}"), key(format!("k{number}"), certificates));
            }
            assert!(keys.weight() <= bytes && (1..=held).contains(&keys.len()), "{} keys of {certificates}", keys.len());
        }
    }
}
