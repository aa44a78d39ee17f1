//! Objects on the HSM that belong to `hsm-only` keys: none without a record, none destroyed that a record needs.
//!
//! Before an object is made a record announces it; the commit that makes a key refer to it takes the announcement
//! away. Before one is destroyed a commit says that nothing refers to it. Whatever crashes in between, the records
//! tell what is left to do.

use std::sync::Arc;

use super::{
    Transit,
    record::{FORMAT, Fate, TokenRecord, decode, encode, token_path},
    store::Store,
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

    /// Destroys what is no longer referred to; what fails is tried again later.
    pub async fn destroy_doomed(&self) {
        let doomed: Vec<KeyId> = self.store.doomed.lock().iter().copied().collect();
        for id in doomed {
            match self.destroy_one(id).await {
                Ok(()) => {
                    self.store.doomed.lock().remove(&id);
                }
                Err(failure) => {
                    tracing::warn!(object = %id, %failure, "an HSM object could not be destroyed yet");
                    return;
                }
            }
        }
    }

    async fn destroy_one(&self, id: KeyId) -> Result<(), Failure> {
        let path = token_path(id);
        let Some(entry) = self.store.view.get(&path)? else { return Ok(()) };
        let mut record: TokenRecord = decode(&entry.value)?;
        // From here on a commit that would refer to the object cannot hold any more. Where one said already that nothing does, it is
        // written again: a store that failed and could not be opened afresh yet may show what will not last.
        record.fate = Fate::Destroying;
        let txn = Txn::new().check(path.clone(), Entry::unchanged(Some(&entry))).put_secret(path.clone(), encode(&record)?);
        let version = self.store.view.commit(txn).await?;
        reach("token-doomed");
        self.store.protection.hsm()?.destroy(id).await?;
        reach("token-destroyed");
        self.store.view.commit(Txn::new().check(path.clone(), Expect::Version(version)).delete(path)).await?;
        Ok(())
    }
}
