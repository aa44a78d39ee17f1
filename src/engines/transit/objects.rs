//! Objects on the HSM that belong to `hsm-only` keys: none without a record, none destroyed that a record needs.
//!
//! Before an object is made a record announces it; the commit that makes a key refer to it takes the announcement
//! away. Before one is destroyed a commit says that nothing refers to it. Whatever crashes in between, the records
//! tell what is left to do.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Transit,
    record::{FORMAT, Fate, TokenRecord, decode, encode, token_path},
    store::{Store, is_lost},
};
use crate::{
    barrier::{Entry, Txn},
    core::failure::Failure,
    crashpoint::reach,
    hsm::KeyId,
    storage::{Expect, Version},
};

/// An object being made. Dropped without a commit, it is destroyed later.
pub struct Making {
    store: Arc<Store>,
    id: KeyId,
    announced: Version,
}

impl Making {
    /// Writes down that an object with a fresh id is going to be made for the key `name`.
    pub async fn announce(engine: &Transit, name: &str) -> Result<Self, Failure> {
        let (store, id) = (Arc::clone(&engine.store), KeyId::random());
        // Before the commit: a mount is removed only when nothing is in the making, and then no commit like this one holds.
        store.making.lock().insert(id);
        let mut making = Self { store, id, announced: 0 };
        let record = TokenRecord { format: FORMAT, fate: Fate::Creating, name: name.to_owned() };
        let path = token_path(id);
        let txn = || Ok(Txn::new().check(path.clone(), Expect::Absent).put_secret(path.clone(), encode(&record)?));
        making.announced = engine.commit_mounted(txn).await?;
        Ok(making)
    }

    /// The object's CKA_ID.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Adds to the commit that refers to the object that it is no longer in the making.
    pub fn settle(&self, txn: Txn) -> Txn {
        let path = token_path(self.id);
        txn.check(path.clone(), Expect::Version(self.announced)).delete(path)
    }

    /// The commit held.
    pub fn committed(&self) {
        reach("token-committed");
        self.store.making.lock().remove(&self.id);
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        // Still in the making: whether the commit held is for the record to say.
        if self.store.making.lock().remove(&self.id) {
            self.store.doomed.lock().insert(self.id);
        }
    }
}

impl Store {
    /// Adds to a commit that nothing refers to an object any more.
    pub fn doom(&self, id: KeyId, name: &str, txn: Txn) -> Result<Txn, Failure> {
        let record = TokenRecord { format: FORMAT, fate: Fate::Destroying, name: name.to_owned() };
        self.doomed.lock().insert(id);
        self.dropped.insert(id, name.to_owned());
        Ok(txn.put_secret(token_path(id), encode(&record)?))
    }
}

impl Transit {
    /// Finds the objects that former runs left behind.
    pub fn find_doomed(&self) -> Result<(), Failure> {
        for name in self.store.view.list("token/", None, usize::MAX)? {
            let mut bytes = [0; 16];
            if hex::decode_to_slice(&name, &mut bytes).is_err() {
                continue;
            }
            let id = KeyId(bytes);
            if !self.store.making.lock().contains(&id) {
                self.store.doomed.lock().insert(id);
            }
        }
        Ok(())
    }

    /// Destroys what is no longer referred to until so much time is over, one object at least; the rest is left for later, and what
    /// fails is tried again later.
    pub async fn destroy_doomed(&self, budget: Duration) {
        let doomed = self.store.doomed.lock().iter().copied().collect();
        self.destroy_within(doomed, Some(budget)).await;
    }

    /// Destroys objects whose records say that nothing refers to them; what fails is tried again later.
    pub async fn destroy(&self, objects: Vec<KeyId>) {
        self.destroy_within(objects, None).await;
    }

    async fn destroy_within(&self, objects: Vec<KeyId>, budget: Option<Duration>) {
        let began = Instant::now();
        for id in objects {
            // Another request may be at it.
            let Some(_one) = Destroying::begin(&self.store, id) else { continue };
            match self.destroy_one(id).await {
                Ok(()) => {
                    self.store.doomed.lock().remove(&id);
                }
                Err(failure) => {
                    if self.store.told.is_news(failure.to_string()) {
                        tracing::warn!(object = %id, %failure, "an HSM object could not be destroyed yet; it and others are tried again every few seconds");
                    }
                    return;
                }
            }
            if budget.is_some_and(|budget| began.elapsed() >= budget) {
                return;
            }
        }
    }

    async fn destroy_one(&self, id: KeyId) -> Result<(), Failure> {
        let path = token_path(id);
        let found = self.store.view.get(&path).map_err(Failure::from);
        let found = found.and_then(|entry| entry.map(|entry| Ok((decode(&entry.value)?, entry))).transpose());
        let (mut record, entry): (TokenRecord, Entry) = match found {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(()),
            Err(failure) if is_lost(&failure) => {
                // Whether it was being made or destroyed: no request is at it, so nothing refers to it.
                tracing::warn!(object = %id, ?failure, "the record of an HSM object is damaged; the object is destroyed");
                self.store.protection.hsm()?.destroy(id).await?;
                self.store.view.commit(Txn::new().delete(path)).await?;
                return Ok(());
            }
            Err(failure) => return Err(failure),
        };
        let mut version = entry.version;
        if record.fate == Fate::Creating {
            // From here on a commit that would refer to the object cannot hold any more.
            record.fate = Fate::Destroying;
            let txn = Txn::new().check(path.clone(), Entry::unchanged(Some(&entry))).put_secret(path.clone(), encode(&record)?);
            version = self.store.view.commit(txn).await?;
        }
        reach("token-doomed");
        self.store.protection.hsm()?.destroy(id).await?;
        reach("token-destroyed");
        self.store.view.commit(Txn::new().check(path.clone(), Expect::Version(version)).delete(path)).await?;
        Ok(())
    }
}

/// The right to destroy an object, until it is dropped.
struct Destroying<'a> {
    store: &'a Store,
    id: KeyId,
}

impl<'a> Destroying<'a> {
    fn begin(store: &'a Store, id: KeyId) -> Option<Self> {
        // In two steps: made without the right it would be dropped here, take the right of who has it, and lock what is locked.
        let is_free = store.destroying.lock().insert(id);
        is_free.then(|| Self { store, id })
    }
}

impl Drop for Destroying<'_> {
    fn drop(&mut self) {
        self.store.destroying.lock().remove(&self.id);
    }
}
