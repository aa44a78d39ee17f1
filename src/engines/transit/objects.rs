//! Objects on the HSM that belong to `hsm-only` keys: none without a record, none destroyed that a record needs.
//!
//! Before an object is made a record announces it; the commit that makes a key refer to it takes the announcement
//! away. Before one is destroyed a commit says that nothing refers to it. Whatever crashes in between, the records
//! tell what is left to do.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::OwnedMutexGuard;

use super::{
    Transit,
    gate::{Gate, Going},
    record::{FORMAT, Fate, TokenRecord, decode, encode, token_path},
    store::{Store, is_lost},
};
use crate::{
    barrier::{Entry, Txn},
    core::failure::Failure,
    crashpoint::reach,
    hsm::KeyId,
    stack,
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

    /// Destroys objects of which a commit says that nothing refers to them, on a task of its own: an HSM may take long for many, and
    /// nobody needs to wait for that.
    pub fn destroy(&self, objects: Vec<KeyId>) {
        // Once more: who looked at them before the commit found nothing to do.
        self.store.doomed.lock().extend(objects);
        self.destroy_doomed();
    }

    /// Goes on with what is no longer referred to, on a task of its own, unless one is at it. What fails is tried again at the next tick; what
    /// is left when the server ends or is sealed is [found](Transit::find_doomed) when it serves again.
    pub fn destroy_doomed(&self) {
        let (store, stores) = (Arc::clone(&self.store), Arc::clone(&self.stores));
        let Some(mut alone) = store.begin_destroying() else { return };
        tokio::spawn(stack::overwriting(async move {
            while store.destroy_within(&stores.gate, None).await {
                drop(alone);
                // What was added behind its last look was left to this task.
                match store.begin_destroying() {
                    Some(again) => alone = again,
                    None => return,
                }
            }
        }));
    }
}

impl Store {
    /// The right to destroy objects, if there are any and nobody has it.
    fn begin_destroying(&self) -> Option<OwnedMutexGuard<()>> {
        match self.doomed.lock().is_empty() {
            true => None,
            false => Arc::clone(&self.destroying).try_lock_owned().ok(),
        }
    }

    /// Destroys what is no longer referred to, until so much time is over and one object at least; the caller has the right to. Tells
    /// whether it went well; what fails is tried again later.
    pub async fn destroy_within(&self, gate: &Gate, budget: Option<Duration>) -> bool {
        let (began, going) = (Instant::now(), Going::at(&self.view));
        loop {
            let next = self.doomed.lock().iter().next().copied();
            let Some(id) = next else { return true };
            // Before the look at it, so that it is looked at again where the commit that dooms it comes in between.
            self.doomed.lock().remove(&id);
            let destroyed = async {
                let _turn = gate.wrap(&going).await?;
                self.destroy_one(id).await
            };
            if let Err(failure) = destroyed.await {
                if self.told.is_news(failure.to_string()) {
                    tracing::warn!(object = %id, %failure, "an HSM object could not be destroyed yet; it and others are tried again every few seconds");
                }
                self.doomed.lock().insert(id);
                return false;
            }
            if budget.is_some_and(|budget| began.elapsed() >= budget) {
                return true;
            }
        }
    }

    async fn destroy_one(&self, id: KeyId) -> Result<(), Failure> {
        let path = token_path(id);
        let found = self.view.get(&path).map_err(Failure::from);
        let found = found.and_then(|entry| entry.map(|entry| Ok((decode(&entry.value)?, entry))).transpose());
        let (mut record, entry): (TokenRecord, Entry) = match found {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(()),
            Err(failure) if is_lost(&failure) => {
                // Whether it was being made or destroyed: no request is at it, so nothing refers to it.
                tracing::warn!(object = %id, ?failure, "the record of an HSM object is damaged; the object is destroyed");
                self.protection.hsm()?.destroy(id).await?;
                self.view.commit(Txn::new().delete(path)).await?;
                return Ok(());
            }
            Err(failure) => return Err(failure),
        };
        let mut version = entry.version;
        if record.fate == Fate::Creating {
            // From here on a commit that would refer to the object cannot hold any more.
            record.fate = Fate::Destroying;
            let txn = Txn::new().check(path.clone(), Entry::unchanged(Some(&entry))).put_secret(path.clone(), encode(&record)?);
            version = self.view.commit(txn).await?;
        }
        reach("token-doomed");
        self.protection.hsm()?.destroy(id).await?;
        reach("token-destroyed");
        self.view.commit(Txn::new().check(path.clone(), Expect::Version(version)).delete(path)).await?;
        Ok(())
    }
}
