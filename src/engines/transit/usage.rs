//! Counting encryptions per key version, so that random 12-byte nonces never come near their bound (NIST SP 800-38D,
//! section 8.3: 2^32 under one key).
//!
//! Counts are reserved in durable blocks before they are used: whatever crashes, a count is never too low.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    pages::Pages,
    record::{FORMAT, KEY_FOLDER, KeyRecord, KeyUid, USAGE_FOLDER, UsageRecord, decode, encode, material_path, usage_path},
    store::Vanished,
};
use crate::{
    backup::Given,
    barrier::{BarrierError, Entry, Txn, View},
    core::failure::Failure,
    storage::StorageError,
};

/// Encryptions reserved at once; a crash burns what is left of a block.
pub const BLOCK: u64 = 1 << 16;

/// Encryptions after which a key version is used up.
pub const LIMIT: u64 = 1 << 32;

/// From here on clients and the log are warned, and keys that rotate by themselves do so.
pub const WARN: u64 = LIMIT - (1 << 28);

/// Versions that a warning names at most.
const NAMED: usize = 20;

/// How long an answer of [`worn`] is repeated.
const LOOKED: Duration = Duration::from_secs(300);

/// Raises the counts of a mount whose store was restored to what they were in the store that was replaced. Answers for how many
/// versions that is not known.
pub async fn take_up(view: &View, given: &Given<'_>) -> Result<usize, Failure> {
    let mut unknown = 0_usize;
    let mut versions = Versions::new();
    for page in given.counts(USAGE_FOLDER) {
        let mut txn = Txn::new();
        for (path, found) in page? {
            let Some(Ok(found)) = found.map(|record| decode::<UsageRecord>(&record)) else {
                unknown += 1;
                note(&mut versions, &path);
                continue;
            };
            let entry = match view.get(&path) {
                // A version whose count is damaged refuses to encrypt.
                Err(error) if error.damaged().is_some() => continue,
                entry => entry?,
            };
            let Ok(known) = entry.as_ref().map(|entry| decode::<UsageRecord>(&entry.value)).transpose() else { continue };
            if known.is_none_or(|known| known.reserved < found.reserved) {
                let record = encode(&UsageRecord { format: FORMAT, reserved: found.reserved })?;
                txn = txn.check(path.clone(), Entry::unchanged(entry.as_ref())).put_secret(path, record);
            }
        }
        view.commit(txn).await?;
    }
    if unknown > 0 {
        let mut keys = names_of(view, versions)?;
        keys.truncate(NAMED);
        tracing::warn!(
            mount = given.path,
            versions = unknown,
            ?keys,
            "how often some key versions encrypted after the backup is not known: they were deleted since, or their counts in the \
             replaced store cannot be opened, as they are damaged or its root key was changed; rotate keys that may have come near \
             2^32 encryptions"
        );
    }
    Ok(unknown)
}

/// Adds a block to every count of a mount whose store was restored: a copy of the store that went on elsewhere may have
/// encrypted under the same versions. To be called before anything is encrypted.
pub async fn burn(view: &View) -> Result<(), Failure> {
    for page in Pages::of(view, USAGE_FOLDER) {
        let page = page?;
        let mut txn = Txn::new();
        for (path, entry) in &page.records {
            // A version whose count is damaged refuses to encrypt.
            let Ok(UsageRecord { reserved, .. }) = decode(&entry.value) else { continue };
            let record = encode(&UsageRecord { format: FORMAT, reserved: reserved.saturating_add(BLOCK) })?;
            txn = txn.check(path.clone(), Entry::unchanged(Some(entry))).put_secret(path.clone(), record);
        }
        view.commit(txn).await?;
    }
    Ok(())
}

/// Versions near the bound of their encryptions, as `name v3`. Reads every count of the mount.
pub fn worn(view: &View) -> Result<Vec<String>, Failure> {
    let mut found = Versions::new();
    let see = |path: &str, usage: UsageRecord| {
        if usage.reserved > WARN {
            note(&mut found, path);
        }
    };
    // Damaged records are told to whoever uses them.
    Pages::of(view, USAGE_FOLDER).each(see, |_, _| ())?;
    names_of(view, found)
}

/// Versions of keys by the key's uid.
type Versions = BTreeMap<String, Vec<String>>;

/// Notes the version whose count is at this path.
fn note(versions: &mut Versions, path: &str) {
    if let Some((uid, version)) = path.strip_prefix(USAGE_FOLDER).and_then(|rest| rest.split_once('/')) {
        versions.entry(uid.to_owned()).or_default().push(version.to_owned());
    }
}

/// The versions as `name v3`, of the keys that there are.
fn names_of(view: &View, mut found: Versions) -> Result<Vec<String>, Failure> {
    let mut names = Vec::new();
    if found.is_empty() {
        return Ok(names);
    }
    let name = |path: &str, key: KeyRecord| {
        let versions = found.remove(&key.uid.to_string());
        let name = path.strip_prefix(KEY_FOLDER).unwrap_or(path);
        names.extend(versions.into_iter().flatten().map(|version| format!("{name} v{version}")));
    };
    Pages::of(view, KEY_FOLDER).each(name, |_, _| ())?;
    Ok(names)
}

/// What is reserved for a version, and the record that says so. Encryptions never go beyond it.
pub fn stored(view: &View, uid: KeyUid, version: u32) -> Result<(u64, Option<Entry>), Failure> {
    let entry = view.get(&usage_path(uid, version))?;
    let reserved = entry.as_ref().map(|entry| decode::<UsageRecord>(&entry.value)).transpose()?;
    Ok((reserved.map_or(0, |record| record.reserved), entry))
}

/// The last answer of [`worn`], which changes slowly and costs a walk over all counts.
#[derive(Default)]
pub struct Worn(Mutex<Option<(Instant, Vec<String>)>>);

impl Worn {
    /// The names, some minutes old at most.
    pub async fn names(
        &self,
        look: impl FnOnce() -> Result<Vec<String>, Failure> + Send + 'static,
    ) -> Result<Vec<String>, Failure> {
        if let Some((at, names)) = &*self.0.lock()
            && at.elapsed() < LOOKED
        {
            return Ok(names.clone());
        }
        let names = tokio::task::spawn_blocking(look).await.map_err(Failure::internal)??;
        *self.0.lock() = Some((Instant::now(), names.clone()));
        Ok(names)
    }
}

/// The count of one version.
#[derive(Debug)]
pub struct Usage {
    uid: KeyUid,
    version: u32,
    used: AtomicU64,
    reserved: AtomicU64,
    /// Held while a block is reserved.
    reserving: tokio::sync::Mutex<()>,
    /// When the log last heard of the version's age, in Unix seconds; 0 for never.
    told: AtomicI64,
}

/// What a reservation says about the version's age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wear {
    /// Far from the bound.
    Fresh,
    /// Near it.
    Worn,
    /// Beyond it.
    Used,
}

impl Usage {
    /// The count of a version that was made together with its first block.
    pub fn new(uid: KeyUid, version: u32) -> Self {
        Self::at(uid, version, 0, BLOCK)
    }

    /// The count as stored; what was reserved before is taken as used.
    pub fn load(view: &View, uid: KeyUid, version: u32) -> Result<Self, Failure> {
        let (reserved, _) = stored(view, uid, version)?;
        // Beyond the limit more makes no difference, and counting on must not begin anew.
        Ok(Self::at(uid, version, reserved.min(LIMIT), reserved))
    }

    fn at(uid: KeyUid, version: u32, used: u64, reserved: u64) -> Self {
        Self {
            uid,
            version,
            used: used.into(),
            reserved: reserved.into(),
            reserving: tokio::sync::Mutex::new(()),
            told: AtomicI64::new(0),
        }
    }

    /// The write that belongs into the transaction that makes a version (see [`Usage::new`]), which was used `before` times
    /// elsewhere.
    pub fn first_block(txn: Txn, uid: KeyUid, version: u32, before: u64) -> Result<Txn, Failure> {
        let record = UsageRecord { format: FORMAT, reserved: before.clamp(BLOCK, LIMIT) };
        Ok(txn.put_secret(usage_path(uid, version), encode(&record)?))
    }

    /// Counts `count` encryptions under a version of the key `name` before they happen; reserves a new block where needed.
    ///
    /// # Errors
    /// [`Vanished`] as the cause where the version was deleted meanwhile.
    pub async fn take(&self, view: &View, name: &str, count: u64) -> Result<Wear, Failure> {
        let end = self.used.fetch_add(count, Ordering::Relaxed) + count;
        if end > self.reserved.load(Ordering::Acquire) {
            self.reserve(view, name, end).await?;
        }
        Ok(match end {
            _ if end > LIMIT => Wear::Used,
            _ if end > WARN => Wear::Worn,
            _ => Wear::Fresh,
        })
    }

    /// Whether the log is to hear of the version's age at this time: one request in an hour is told so.
    pub fn is_to_be_told(&self, now: i64) -> bool {
        const HOUR: i64 = 3600;
        let told = self.told.load(Ordering::Relaxed);
        (told == 0 || now - told >= HOUR)
            && self.told.compare_exchange(told, now.max(1), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    async fn reserve(&self, view: &View, name: &str, end: u64) -> Result<(), Failure> {
        let _turn = self.reserving.lock().await;
        let path = usage_path(self.uid, self.version);
        let material = material_path(self.uid, self.version);
        // Whoever waited for the turn may find that the other's block is enough.
        while end > self.reserved.load(Ordering::Acquire) {
            // A count that outlived its version would stay for ever.
            let Some(version) = view.get(&material)? else {
                return Err(Failure::internal(Vanished { name: name.to_owned(), path: material }));
            };
            let entry = view.get(&path)?;
            let stored = match &entry {
                Some(entry) => decode::<UsageRecord>(&entry.value)?.reserved,
                None => 0,
            };
            let reserved = stored.max(end).saturating_add(BLOCK);
            let record = encode(&UsageRecord { format: FORMAT, reserved })?;
            let txn = Txn::new().check(material.clone(), Entry::unchanged(Some(&version)));
            let txn = txn.check(path.clone(), Entry::unchanged(entry.as_ref())).put_secret(path.clone(), record);
            match view.commit(txn).await {
                Ok(_) => self.reserved.store(reserved, Ordering::Release),
                Err(BarrierError::Storage(StorageError::Conflict { .. })) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Counts a version as if it had been used so often, for tests of the bound.
    #[cfg(test)]
    pub fn wear(&self, used: u64) {
        self.used.store(used, Ordering::Relaxed);
        self.reserved.store(used + BLOCK, Ordering::Relaxed);
    }
}
