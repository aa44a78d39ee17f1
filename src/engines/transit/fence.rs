//! Commits of requests in flight against changes of their mount. A request may make a key for seconds; meanwhile its mount may be
//! removed, or tuned to another zone.
//!
//! Every commit of a key depends on the mount's record as it was read when the request began, so none is made for a mount
//! that is gone or that is in another zone by now. The other way round, keys [stand still](Still) while a mount without keys
//! is taken to another zone: from the look at its keys to the commit of its record.

use std::sync::Arc;

use tokio::sync::OwnedRwLockWriteGuard;

use super::{
    Stores, Transit,
    store::{Decision, Found, Key},
};
use crate::{
    barrier::{BarrierError, Stamp, Txn},
    core::{failure::Failure, mounts::MountRecord, route::BoxFuture},
    storage::{StorageError, Version},
};

/// While it is held no key of the mount is committed.
pub type Still = OwnedRwLockWriteGuard<()>;

/// The options that say where keys of a mount are and how they are protected.
const FENCED: [&str; 3] = ["zone", "protection", "protection_required"];

impl Stores {
    /// Waits for commits under way and keeps others from beginning. `None` where no engine serves the mount.
    pub async fn hold_still(&self, uuid: &str) -> Option<Still> {
        let store = self.of_mount(uuid)?;
        Some(Arc::clone(&store.fence).write_owned().await)
    }
}

impl Transit {
    /// What a commit of a key depends on: that the mount is there, with the zone and the protection that this engine has.
    ///
    /// # Errors
    /// 404 once the mount was removed, 503 once it was tuned to others.
    pub fn mounted(&self) -> Result<Stamp, Failure> {
        let (mount, stamp) = self.record.read()?.ok_or_else(MountRecord::removed)?;
        if FENCED.iter().any(|name| mount.options.get(*name) != self.options.get(*name)) {
            return Err(Failure::unavailable(
                "the mount's zone or protection was changed while the request was under way, and nothing was stored; try again",
            ));
        }
        Ok(stamp)
    }

    /// Changes a key of this mount as long as it is [mounted](Transit::mounted); see [`Store::change`](super::store::Store).
    pub async fn change<'a, T: Send>(
        &self,
        name: &str,
        mut decide: impl FnMut(Option<Arc<Key>>) -> BoxFuture<'a, Result<Decision<T>, Failure>> + Send,
    ) -> Result<(Option<Arc<Key>>, T), Failure> {
        self.change_even_damaged(name, move |found| match found {
            Ok(key) => decide(key),
            Err(failure) => Box::pin(std::future::ready(Err(failure))),
        })
        .await
    }

    /// As [`Transit::change`], for what a key whose record is damaged can be replaced by.
    pub async fn change_even_damaged<'a, T: Send>(
        &self,
        name: &str,
        decide: impl FnMut(Found) -> BoxFuture<'a, Result<Decision<T>, Failure>> + Send,
    ) -> Result<(Option<Arc<Key>>, T), Failure> {
        self.store.change(name, &|| self.mounted(), decide).await
    }

    /// Commits what belongs to no key as long as this is mounted.
    pub async fn commit_mounted(&self, txn: impl Fn() -> Result<Txn, Failure>) -> Result<Version, Failure> {
        loop {
            match self.store.view.commit(txn()?.while_as(self.mounted()?)).await {
                // The mount's description was changed, or what the transaction itself is about: it is put together anew.
                Err(BarrierError::Storage(StorageError::Conflict { .. })) => {}
                done => return Ok(done?),
            }
        }
    }
}
