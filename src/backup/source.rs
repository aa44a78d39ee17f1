//! A backup of the running store: one commit's records, head and key, ready to be written anywhere.

use std::io::Write;

use time::OffsetDateTime;

use super::{BackupError, BackupKey, Header, Seal, Summary, Writer};
use crate::{
    barrier::BarrierError,
    hsm::KeyId,
    seal::{Seal as ClusterSeal, SealError},
    storage::Snapshot,
    zones::Zones,
};

/// Records and bytes of one page of the snapshot.
const PAGE_RECORDS: usize = 4096;
const PAGE_BYTES: usize = 1 << 20;

/// A snapshot with everything that an archive needs beside it.
pub struct Source {
    header: Header,
    key: BackupKey,
    snapshot: Snapshot,
}

impl Source {
    /// Takes the snapshot. The server must be unsealed. `hsm_only` names the keys of that level; it is asked off the async
    /// workers.
    pub async fn take(
        seal: &ClusterSeal,
        zones: &Zones,
        hsm_only: impl FnOnce() -> Result<Vec<(String, KeyId)>, String> + Send + 'static,
        storage_type: &str,
        now: OffsetDateTime,
    ) -> Result<Self, BackupError> {
        let barrier = seal.barrier();
        // Made before the snapshot, so that it is in it.
        let key = BackupKey::open(barrier).await?;
        let snapshot = barrier.raw().snapshot().await?;
        let record = seal.seal_record().map_err(of_seal)?.ok_or(BarrierError::NotInitialized)?;
        let names = zones.list().map_err(refused)?;
        let zones: Vec<_> =
            names.iter().map(|name| zones.read(name).map(|info| info.zone)).collect::<Result<_, _>>().map_err(refused)?;
        let hsm_only = tokio::task::spawn_blocking(hsm_only).await.map_err(refused)?.map_err(refused)?;
        let header = Header::new(&record, &zones, hsm_only, snapshot.version(), storage_type, now);
        Ok(Self { header, key, snapshot })
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
