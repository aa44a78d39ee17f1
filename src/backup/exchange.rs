//! A store that can be exchanged for another while everything above goes on holding it.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use parking_lot::RwLock;
use tokio::sync::watch;

use super::{BackupError, settle_folder};
use crate::storage::{self, CommitFuture, Folder, Names, Record, SnapshotFuture, Storage, StorageConfig, StorageError, Txn};

/// How long readers get to let go of the old store.
const LET_GO: Duration = Duration::from_secs(10);

/// The store that the configuration names, or the one that took its place.
pub struct Exchange {
    config: StorageConfig,
    /// Nothing while it is exchanged.
    current: ArcSwapOption<Arc<dyn Storage>>,
    /// Writes are refused from the moment on when it is decided whether the store may be replaced.
    frozen: RwLock<bool>,
    /// Set when neither the new store nor the old one could be opened.
    lost: watch::Sender<bool>,
}

/// Writes are refused as long as it lives.
pub(super) struct Frozen<'a>(&'a Exchange);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        *self.0.frozen.write() = false;
    }
}

impl Exchange {
    /// Opens the configured store.
    pub fn open(config: StorageConfig) -> Result<Self, StorageError> {
        let store = storage::open(&config)?;
        Ok(Self {
            config,
            current: ArcSwapOption::from_pointee(store),
            frozen: RwLock::new(false),
            lost: watch::Sender::new(false),
        })
    }

    /// How it was opened.
    pub fn config(&self) -> &StorageConfig {
        &self.config
    }

    pub(super) fn freeze(&self) -> Frozen<'_> {
        *self.frozen.write() = true;
        Frozen(self)
    }

    /// Closes the store, lets `work` replace its files, and goes on with the store that `work` opens. When `work` fails,
    /// the old one is opened again. Blocks.
    pub(super) fn replace(&self, work: impl FnOnce() -> Result<Arc<dyn Storage>, BackupError>) -> Result<(), BackupError> {
        let old = self.current.swap(None);
        let deadline = Instant::now() + LET_GO;
        while old.as_ref().is_some_and(|old| Arc::strong_count(old) > 1) {
            if Instant::now() > deadline {
                self.current.store(old);
                return Err(BackupError::Busy("the store is in use and cannot be replaced now; try again".into()));
            }
            thread::sleep(Duration::from_millis(2));
        }
        // A store in memory is nowhere else.
        let kept = old.filter(|_| self.config.path.is_none());
        let done = self.wait_until_closed().and_then(|()| work());
        match done {
            Ok(new) => {
                self.current.store(Some(Arc::new(new)));
                Ok(())
            }
            Err(error) => {
                match kept {
                    Some(old) => self.current.store(Some(old)),
                    None => match self
                        .wait_until_closed()
                        .and_then(|()| self.settled())
                        .and_then(|()| Ok(storage::open(&self.config)?))
                    {
                        Ok(old) => self.current.store(Some(Arc::new(old))),
                        Err(again) => {
                            tracing::error!(error = %again, "the store cannot be opened again after a restore that failed: the server ends");
                            self.lost.send_replace(true);
                        }
                    },
                }
                Err(error)
            }
        }
    }

    /// Waits until the old store has let go of its folder: backups that clients were reading hold it until they notice that
    /// they are ended.
    fn wait_until_closed(&self) -> Result<(), BackupError> {
        storage::wait_until_closed(&self.config)?;
        let Some(folder) = &self.config.path else { return Ok(()) };
        let deadline = Instant::now() + LET_GO;
        loop {
            match Folder::open(folder) {
                Ok(_free) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Waits until there is no store any more that could be served: only a new start can look for one.
    pub async fn lost(&self) {
        // The sender lives as long as this does.
        let _ = self.lost.subscribe().wait_for(|lost| *lost).await;
    }

    fn settled(&self) -> Result<(), BackupError> {
        match &self.config.path {
            Some(folder) => settle_folder(folder).map(|_| ()),
            None => Ok(()),
        }
    }

    fn read<T>(&self, read: impl FnOnce(&dyn Storage) -> Result<T, StorageError>) -> Result<T, StorageError> {
        match &*self.current.load() {
            Some(store) => read(store.as_ref().as_ref()),
            None => Err(StorageError::Closed),
        }
    }
}

impl Storage for Exchange {
    fn get(&self, key: &str) -> Result<Option<Record>, StorageError> {
        self.read(|store| store.get(key))
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, StorageError> {
        self.read(|store| store.list(prefix, after, limit))
    }

    fn names(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Names, StorageError> {
        self.read(|store| store.names(prefix, after, limit))
    }

    fn scan(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<(String, Record)>, StorageError> {
        self.read(|store| store.scan(prefix, after, limit))
    }

    fn commit(&self, txn: Txn) -> CommitFuture {
        // Held until the commit is handed in: what is not refused here comes before the snapshot that decides.
        let frozen = self.frozen.read();
        match (&*self.current.load(), *frozen) {
            (Some(store), false) => store.commit(txn),
            _ => Box::pin(async { Err(StorageError::Closed) }),
        }
    }

    fn doubts(&self) -> u64 {
        self.current.load().as_ref().map_or(0, |store| store.doubts())
    }

    fn snapshot(&self) -> SnapshotFuture {
        match &*self.current.load() {
            Some(store) => store.snapshot(),
            None => Box::pin(async { Err(StorageError::Closed) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Kind, Options};

    fn exchange(place: &std::path::Path) -> Exchange {
        let options = Options { free_watermark: 0, reserve_bytes: 0, ..Options::default() };
        Exchange::open(StorageConfig { kind: Kind::Redb, path: Some(place.join("store")), options }).unwrap()
    }

    fn is_lost(exchange: &Exchange) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(Duration::from_millis(20), exchange.lost()).await.is_ok() })
    }

    #[test]
    fn a_store_that_cannot_be_opened_again_is_told() {
        let place = tempfile::tempdir().unwrap();
        let exchange = exchange(place.path());
        let failed = || BackupError::Busy("no".into());
        exchange.replace(|| Err(failed())).unwrap_err();
        assert!(exchange.get("k").unwrap().is_none() && !is_lost(&exchange));
        let broken = exchange.replace(|| {
            std::fs::rename(place.path().join("store"), place.path().join("elsewhere")).unwrap();
            std::fs::write(place.path().join("store"), "").unwrap();
            Err(failed())
        });
        assert!(broken.is_err() && is_lost(&exchange));
        assert!(matches!(exchange.get("k"), Err(StorageError::Closed)));
    }
}
