//! A backup of the running store: one commit's records, head and key, ready to be written anywhere.

use std::{collections::HashSet, io::Write};

use time::OffsetDateTime;

use super::{BackupError, BackupKey, Header, Seal, Summary, Writer};
use crate::{
    barrier::BarrierError,
    hsm::KeyId,
    seal::{Seal as ClusterSeal, SealError, SealRecord},
    storage::Snapshot,
    zones::{ZoneRecord, Zones},
};

/// Records and bytes of one page of the snapshot.
const PAGE_RECORDS: usize = 4096;
const PAGE_BYTES: usize = 1 << 20;

/// How often a snapshot is taken anew because the seal or a zone changed under it.
const ATTEMPTS: usize = 10;

/// What the head says of a cluster, beside its records.
#[derive(PartialEq)]
struct Facts {
    seal: SealRecord,
    zones: Vec<ZoneRecord>,
}

impl Facts {
    fn read(seal: &ClusterSeal, zones: &Zones) -> Result<Self, BackupError> {
        let seal = seal.seal_record().map_err(of_seal)?.ok_or(BarrierError::NotInitialized)?;
        let names = zones.list().map_err(refused)?;
        let zones = names.iter().map(|name| zones.read(name).map(|info| info.zone)).collect::<Result<_, _>>().map_err(refused)?;
        Ok(Self { seal, zones })
    }
}

async fn off_workers<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, BackupError> {
    tokio::task::spawn_blocking(work).await.map_err(refused)?.map_err(refused)
}

/// A snapshot with everything that an archive needs beside it.
pub struct Source {
    header: Header,
    key: BackupKey,
    snapshot: Snapshot,
}

impl Source {
    /// Takes the snapshot. The server must be unsealed. `hsm_only` names the keys of that level; it is asked off the async
    /// workers, before and after the snapshot, and the head names what either knows.
    pub async fn take(
        seal: &ClusterSeal,
        zones: &Zones,
        hsm_only: impl Fn() -> Result<Vec<(String, KeyId)>, String> + Clone + Send + 'static,
        storage_type: &str,
        now: OffsetDateTime,
    ) -> Result<Self, BackupError> {
        let barrier = seal.barrier();
        // Made before the snapshot, so that it is in it.
        let key = BackupKey::open(barrier).await?;
        for _ in 0..ATTEMPTS {
            let (before, keys_before) = (Facts::read(seal, zones)?, off_workers(hsm_only.clone()).await?);
            let snapshot = barrier.raw().snapshot().await?;
            let (after, mut keys) = (Facts::read(seal, zones)?, off_workers(hsm_only.clone()).await?);
            // A head that names other shares or keys than the records have would mislead whoever needs it.
            if before == after {
                let seen: HashSet<_> = keys.iter().map(|(_, id)| *id).collect();
                keys.extend(keys_before.into_iter().filter(|(_, id)| !seen.contains(id)));
                let header = Header::new(&after.seal, &after.zones, keys, snapshot.version(), storage_type, now);
                return Ok(Self { header, key, snapshot });
            }
        }
        Err(BackupError::Busy("seals, shares or zone master keys change all the while; try again when that is done".into()))
    }

    /// Parts that were taken one by one.
    #[cfg(test)]
    pub(super) fn of(header: Header, key: BackupKey, snapshot: Snapshot) -> Self {
        Self { header, key, snapshot }
    }

    /// The head of the archive.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Writes the archive; `progress` is told the number of records so far. Blocks.
    pub fn write<W: Write>(mut self, out: W, mut progress: impl FnMut(u64)) -> Result<(W, Summary, Seal), BackupError> {
        let mut writer = Writer::new(out, &self.header)?;
        let mut count = 0;
        loop {
            let page = self.snapshot.page(PAGE_RECORDS, PAGE_BYTES)?;
            if page.is_empty() {
                return writer.finish(&self.key);
            }
            for (key, record) in &page {
                writer.add(key, record)?;
                count += 1;
            }
            progress(count);
        }
    }
}

fn of_seal(error: SealError) -> BackupError {
    match error {
        SealError::Barrier(error) => error.into(),
        other => refused(other),
    }
}

fn refused(error: impl std::fmt::Display) -> BackupError {
    BackupError::Refused(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        barrier::Barrier,
        seal::{
            SEAL_PATH, SealSettings,
            wire::{InitRequest, UnsealRequest},
        },
        secret::SecretString,
        storage::{CommitFuture, InMem, Record, SnapshotFuture, Storage, StorageError, Txn},
    };
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    /// A store in which the seal record gets a further share right behind so many snapshots.
    struct Changing {
        store: Arc<dyn Storage>,
        changes: AtomicUsize,
    }

    impl Storage for Changing {
        fn get(&self, key: &str) -> Result<Option<Record>, StorageError> {
            self.store.get(key)
        }

        fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, StorageError> {
            self.store.list(prefix, after, limit)
        }

        fn scan(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<(String, Record)>, StorageError> {
            self.store.scan(prefix, after, limit)
        }

        fn commit(&self, txn: Txn) -> CommitFuture {
            self.store.commit(txn)
        }

        fn snapshot(&self) -> SnapshotFuture {
            let snapshot = self.store.snapshot();
            let left = self.changes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            if left.is_err() {
                return snapshot;
            }
            let mut record: SealRecord = serde_json::from_slice(&self.store.get(SEAL_PATH).unwrap().unwrap().value).unwrap();
            record.shares += 1;
            let changed = self.store.commit(Txn::new().put(SEAL_PATH, serde_json::to_vec(&record).unwrap()));
            Box::pin(async move {
                let snapshot = snapshot.await;
                changed.await.unwrap();
                snapshot
            })
        }
    }

    async fn taken(changes: usize) -> Result<Source, BackupError> {
        let store = Arc::new(Changing { store: Arc::new(InMem::open().unwrap()), changes: AtomicUsize::new(0) });
        let barrier = Arc::new(Barrier::new(Arc::clone(&store) as Arc<dyn Storage>));
        let seal = ClusterSeal::new(Arc::clone(&barrier), None, SealSettings::default());
        let request = InitRequest { secret_shares: 1, secret_threshold: 1, ..InitRequest::default() };
        let made = seal.init(request, OffsetDateTime::UNIX_EPOCH).await;
        let key = SecretString::new(made.unwrap().keys[0].clone());
        seal.unseal(UnsealRequest { key, ..UnsealRequest::default() }).await.unwrap();
        store.changes.store(changes, Ordering::SeqCst);
        let zones = Zones::new(barrier, None, "test");
        Source::take(&seal, &zones, || Ok(Vec::new()), "inmem", OffsetDateTime::UNIX_EPOCH).await
    }

    #[tokio::test]
    async fn the_head_says_what_the_records_say_also_when_shares_change_meanwhile() {
        for changes in [0, 1, 3] {
            let mut source = taken(changes).await.unwrap();
            let records = source.snapshot.page(PAGE_RECORDS, PAGE_BYTES).unwrap();
            let (_, record) = records.iter().find(|(path, _)| path == SEAL_PATH).unwrap();
            let record: SealRecord = serde_json::from_slice(&record.value).unwrap();
            assert_eq!(source.header.needs.shares, record.shares);
            assert_eq!(usize::from(record.shares), 1 + changes);
        }
        assert!(matches!(taken(usize::MAX).await, Err(BackupError::Busy(_))));
    }
}
