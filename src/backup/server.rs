//! Backups of a running server: streamed to a client, written into a folder by schedule, and restored over it.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::Mutex;
use time::OffsetDateTime;
use tokio::sync::OwnedMutexGuard;

use super::{
    BackupError, BackupKey, Contents, Download, Exchange, Header, Origin, Restored, Source, Target, Wait, files, given, place,
    restore::carry_beside, stream::UploadReader,
};
use crate::{
    crashpoint::reach,
    seal::Seal as ClusterSeal,
    storage::{self, Folder, InMem, Kind, Storage, StorageConfig},
};

/// When and where backups are made by themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// The folder they are written to.
    pub folder: PathBuf,
    /// Time between two.
    pub interval: Duration,
    /// How many are kept.
    pub keep: usize,
    /// Age of the last good one from which on health warns.
    pub warn_after: Duration,
}

/// What whoever restores asks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    /// Whether the backup goes over another cluster or a newer store.
    pub force: bool,
    /// See [`Origin::skip_versions`].
    pub skip_versions: Option<u64>,
}

/// A backup in the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Its file.
    pub file: PathBuf,
    /// When its snapshot was taken.
    pub created: OffsetDateTime,
    /// The last commit in it.
    pub sequence: u64,
    /// Number of records; unknown of backups of an earlier process.
    pub records: Option<u64>,
}

/// What is known of scheduled backups.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The last good one.
    pub last: Option<Made>,
    /// Why the latest attempt failed, where it did.
    pub failure: Option<String>,
    /// Attempts that failed since the start.
    pub failures: u64,
    /// Good ones since the start.
    pub successes: u64,
}

/// The backups of one server.
#[derive(Default)]
pub struct Backups {
    exchange: OnceLock<Arc<Exchange>>,
    schedule: OnceLock<Schedule>,
    /// A backup and a restore exclude each other, and so do two of a kind.
    busy: Arc<tokio::sync::Mutex<()>>,
    state: Mutex<State>,
    /// Set while unsealed, on a store that was restored.
    restored: Mutex<Option<Restored>>,
}

impl Backups {
    /// Names the store that restores replace.
    pub fn attach(&self, exchange: Arc<Exchange>) {
        let _ = self.exchange.set(exchange);
    }

    /// Says when backups are made by themselves, and looks for those that are there.
    pub fn plan(&self, schedule: Schedule) -> Result<(), BackupError> {
        files::prepare(&schedule.folder)?;
        let newest = files::list(&schedule.folder)?.pop();
        if let Some(file) = newest {
            match files::head(&file) {
                Ok(header) => {
                    let created = header.created().unwrap_or(OffsetDateTime::UNIX_EPOCH);
                    self.state.lock().last = Some(Made { file, created, sequence: header.sequence, records: None });
                }
                Err(error) => tracing::warn!(file = %file.display(), %error, "the newest backup cannot be read"),
            }
        }
        let _ = self.schedule.set(schedule);
        Ok(())
    }

    /// The schedule, where there is one.
    pub fn schedule(&self) -> Option<&Schedule> {
        self.schedule.get()
    }

    /// How the store was opened.
    pub fn storage(&self) -> Option<&StorageConfig> {
        self.exchange.get().map(|exchange| exchange.config())
    }

    /// What is known of scheduled backups.
    pub fn state(&self) -> State {
        self.state.lock().clone()
    }

    /// From which backup the store comes, while unsealed.
    pub fn restored(&self) -> Option<Restored> {
        self.restored.lock().clone()
    }

    /// Notes from which backup the store comes.
    pub fn set_restored(&self, restored: Option<Restored>) {
        *self.restored.lock() = restored;
    }

    /// Why the operator should look after backups; `None` when all is well or none are scheduled.
    pub fn warning(&self, now: OffsetDateTime) -> Option<String> {
        let schedule = self.schedule.get()?;
        let state = self.state.lock();
        let age = state.last.as_ref().map(|made| now - made.created);
        let old = age.is_none_or(|age| age > schedule.warn_after);
        if !old {
            return None;
        }
        let since = match age {
            Some(age) => format!("the last good backup is {} hours old", age.whole_hours()),
            None => "there is no good backup yet".to_owned(),
        };
        Some(match &state.failure {
            Some(failure) => format!("{since}; the last attempt failed: {failure}"),
            None => since,
        })
    }

    /// Whether a scheduled backup is due.
    pub fn is_due(&self, now: OffsetDateTime) -> bool {
        let Some(schedule) = self.schedule.get() else { return false };
        self.state.lock().last.as_ref().is_none_or(|made| now - made.created >= schedule.interval)
    }

    fn begin(&self) -> Result<OwnedMutexGuard<()>, BackupError> {
        let busy = || BackupError::Busy("another backup or restore is under way; try again when it is done".into());
        Arc::clone(&self.busy).try_lock_owned().map_err(|_locked| busy())
    }

    /// Streams a backup to a client.
    pub async fn stream(&self, source: impl Future<Output = Result<Source, BackupError>>) -> Result<Download, BackupError> {
        let turn = self.begin()?;
        let source = source.await?;
        let (writer, download) = Download::new();
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let end = writer.again();
            let header = source.header().clone();
            match source.write(writer, |_| {}) {
                Ok((_, summary, _)) => {
                    tracing::info!(records = summary.records, sequence = header.sequence, "a backup was handed to a client");
                }
                Err(error) => {
                    tracing::warn!(%error, "a backup that was being handed to a client broke off");
                    end.fail(&error);
                }
            }
        });
        Ok(download)
    }

    /// Writes a backup into the scheduled folder.
    pub async fn write(&self, source: impl Future<Output = Result<Source, BackupError>>) -> Result<Made, BackupError> {
        let none = || BackupError::Refused("no folder for backups is configured: write backup { folder = \"...\" }".into());
        let schedule = self.schedule.get().ok_or_else(none)?.clone();
        let turn = self.begin()?;
        let done = async {
            let source = source.await?;
            let work = move || {
                let _turn = turn;
                files::write(source, &schedule.folder, schedule.keep)
            };
            tokio::task::spawn_blocking(work).await.map_err(|error| BackupError::Busy(error.to_string()))?
        };
        let done = done.await;
        let mut state = self.state.lock();
        match done {
            Ok((file, Contents { header, summary, .. })) => {
                let created = header.created().unwrap_or(OffsetDateTime::UNIX_EPOCH);
                let made = Made { file, created, sequence: header.sequence, records: Some(summary.records) };
                tracing::info!(file = %made.file.display(), records = summary.records, "a backup was written and verified");
                (state.last, state.failure) = (Some(made.clone()), None);
                state.successes += 1;
                Ok(made)
            }
            Err(error) => {
                tracing::error!(%error, "no backup was made");
                state.failure = Some(error.to_string());
                state.failures += 1;
                Err(error)
            }
        }
    }

    /// Replaces the running store. `admit` sees the head before anything is written; `closed` is called when the barrier is
    /// closed and before the new store is opened. The server is sealed afterwards.
    pub async fn restore(
        &self,
        seal: &ClusterSeal,
        archive: UploadReader,
        Asked { force, skip_versions }: Asked,
        now: OffsetDateTime,
        mut admit: impl FnMut(&Header) -> Result<(), BackupError> + Send + 'static,
        closed: impl FnOnce(),
    ) -> Result<Header, BackupError> {
        let missing = || BackupError::Refused("this server's store cannot be replaced while it runs".into());
        let exchange = Arc::clone(self.exchange.get().ok_or_else(missing)?);
        let _turn = self.begin()?;
        let sequence = exchange.snapshot().await?.version();
        let target = Target::of(&*exchange, sequence)?;
        let handle = tokio::runtime::Handle::current();
        let build = {
            let (exchange, target) = (Arc::clone(&exchange), target.clone());
            let asked = Asked { force, skip_versions };
            move || build(&exchange, archive, &target, asked, now, &mut admit, &handle)
        };
        let (contents, new) = blocking(build).await?;
        reach("restore-built");
        let folder = exchange.config().path.clone();
        let admitted = async {
            self.check_authentic(seal, &target, &contents)?;
            // From here on nothing is acknowledged that the exchange would lose.
            let frozen = exchange.freeze();
            let sequence = exchange.snapshot().await?.version();
            Target::of(&*exchange, sequence)?.admit(&contents.header, force)?;
            let (old, new) = (Arc::clone(&exchange), new.clone());
            if target.is_of(&contents.header) {
                blocking(move || carry(&old, new.as_deref(), &tokio::runtime::Handle::current())).await?;
            }
            Ok::<_, BackupError>(frozen)
        };
        let frozen = match admitted.await {
            Ok(frozen) => frozen,
            Err(error) => {
                if let Some(folder) = &folder {
                    place::drop_new(folder);
                }
                return Err(error);
            }
        };
        let swap = async {
            closed();
            self.set_restored(None);
            let exchange = Arc::clone(&exchange);
            blocking(move || exchange.replace(|| swapped(&exchange, new))).await
        };
        let done = seal.while_closed(swap).await;
        drop(frozen);
        done?;
        reach("restore-exchanged");
        tracing::warn!(created = %contents.header.created, sequence = contents.header.sequence, records = contents.summary.records,
            "the store was replaced by a backup");
        Ok(contents.header)
    }

    /// A backup of the cluster that runs must be authentic now; one of another is checked when it is unsealed.
    fn check_authentic(&self, seal: &ClusterSeal, target: &Target, contents: &Contents) -> Result<(), BackupError> {
        let same = matches!(target, Target::Cluster { id, .. } if *id == contents.header.cluster_id);
        if !same || seal.is_sealed() {
            return Ok(());
        }
        match BackupKey::read(seal.barrier())? {
            Some(key) => contents.seal.check(&key),
            None => Ok(()),
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, BackupError> + Send + 'static) -> Result<T, BackupError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| BackupError::Busy(error.to_string()))?
}

/// The new store beside the old one; one in memory is answered itself.
fn build(
    exchange: &Exchange,
    archive: UploadReader,
    target: &Target,
    Asked { force, skip_versions }: Asked,
    now: OffsetDateTime,
    admit: &mut dyn FnMut(&Header) -> Result<(), BackupError>,
    handle: &tokio::runtime::Handle,
) -> Result<(Contents, Option<Arc<dyn Storage>>), BackupError> {
    let origin = Origin { archive, target, force, skip_versions, now, begin: admit, progress: &mut |_| {} };
    let config = exchange.config();
    match (config.kind, &config.path) {
        (Kind::Sled | Kind::Redb, Some(folder)) => Ok((origin.beside(config, folder, Wait(handle))?, None)),
        _ => {
            let store = InMem::open()?;
            let contents = origin.fill(&store, Wait(handle))?;
            Ok((contents, Some(Arc::new(store))))
        }
    }
}

/// Carries over to the new store what the old one, which takes no writes any more, knows of versions that were given.
fn carry(old: &Exchange, new: Option<&dyn Storage>, handle: &tokio::runtime::Handle) -> Result<(), BackupError> {
    let config = old.config();
    match (new, &config.path) {
        (Some(new), _) => given::carry(old, new, Wait(handle)),
        (None, Some(folder)) => carry_beside(old, config, folder, Wait(handle)),
        (None, None) => Ok(()),
    }
}

/// With the old store closed: the new one in its place, opened.
fn swapped(exchange: &Exchange, new: Option<Arc<dyn Storage>>) -> Result<Arc<dyn Storage>, BackupError> {
    if let Some(new) = new {
        return Ok(new);
    }
    let config = exchange.config();
    if let Some(folder) = &config.path {
        let _lock = Folder::open(folder)?;
        place::exchange(folder)?;
    }
    Ok(storage::open(config)?)
}
