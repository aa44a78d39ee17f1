//! Backups of a running server: streamed to a client, written into a folder by schedule, and restored over it.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::Mutex;
use time::OffsetDateTime;

use super::{
    BackupError, BackupKey, Contents, Download, Exchange, Header, Origin, Restored, Source, Target, Wait, files, given, place,
    restore::carry_beside,
    retention,
    stream::{Streams, UploadReader},
};
use crate::{
    crashpoint::reach,
    seal::Seal as ClusterSeal,
    storage::{self, Folder, InMem, Kind, Storage, StorageConfig},
    wire::time::rfc3339,
};

/// How long an exchange of the store waits for a backup that is being written.
const LONGEST_WRITING: Duration = Duration::from_secs(300);

/// How far ahead the date of a backup may be without a warning: clocks are set back a little now and then.
const SKEW: time::Duration = time::Duration::MINUTE;

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
    /// Held while a backup is written into the folder, and while a restore exchanges the store.
    writing: Arc<tokio::sync::Mutex<()>>,
    /// Held as long as a restore takes, which its client decides.
    restoring: tokio::sync::Mutex<()>,
    streams: Streams,
    state: Mutex<State>,
    /// Set while unsealed, on a store that was restored.
    restored: Mutex<Option<Restored>>,
    /// What lies in the folder and is left alone.
    named: retention::Named,
}

impl Backups {
    /// Names the store that restores replace.
    pub fn attach(&self, exchange: Arc<Exchange>) {
        let _ = self.exchange.set(exchange);
    }

    /// Says when backups are made by themselves, and looks for those that are there of this cluster.
    pub fn plan(&self, schedule: Schedule, cluster_id: Option<&str>) -> Result<(), BackupError> {
        files::prepare(&schedule.folder)?;
        if let Some(cluster_id) = cluster_id {
            let (mut found, strange) = retention::of_cluster(&schedule.folder, cluster_id)?;
            self.named.name(strange);
            self.state.lock().last = found.pop().map(|newest| {
                let created = newest.header.created().unwrap_or(OffsetDateTime::UNIX_EPOCH);
                Made { file: newest.file, created, sequence: newest.header.sequence, records: None }
            });
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

    /// Waits until a restore has left no store that could be served; see [`Exchange::lost`].
    pub async fn store_lost(&self) {
        match self.exchange.get() {
            Some(exchange) => exchange.lost().await,
            None => std::future::pending().await,
        }
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
        let since = match state.last.as_ref().map(|made| (made.created, now - made.created)) {
            None => "there is no good backup yet".to_owned(),
            Some((created, age)) if age < -SKEW => format!(
                "the last good backup has the date {}, which is yet to come: a clock is or was wrong, and its age is unknown",
                rfc3339(created)
            ),
            Some((_, age)) if age > schedule.warn_after => format!("the last good backup is {} hours old", age.whole_hours()),
            Some(_) => return None,
        };
        Some(match &state.failure {
            Some(failure) => format!("{since}; the last attempt failed: {failure}"),
            None => since,
        })
    }

    /// Whether a scheduled backup is due. One whose date is yet to come, as a clock was wrong, says nothing.
    pub fn is_due(&self, now: OffsetDateTime) -> bool {
        let Some(schedule) = self.schedule.get() else { return false };
        let age = self.state.lock().last.as_ref().map(|made| now - made.created);
        age.is_none_or(|age| age >= schedule.interval || age < time::Duration::ZERO)
    }

    /// Streams a backup to a client, who holds up nobody else however slow.
    pub async fn stream(&self, source: impl Future<Output = Result<Source, BackupError>>) -> Result<Download, BackupError> {
        let (place, end) = self.streams.begin()?;
        let source = source.await?;
        let (writer, download) = Download::new(end);
        tokio::task::spawn_blocking(move || {
            let _place = place;
            let end = writer.break_off();
            let header = source.header().clone();
            match source.write(writer, |_| {}) {
                Ok((_, summary, _)) => {
                    tracing::info!(records = summary.records, sequence = header.sequence, "a backup was handed to a client");
                }
                Err(error) => {
                    tracing::warn!(%error, "a backup that was being handed to a client broke off");
                    end.because(&error);
                }
            }
        });
        Ok(download)
    }

    /// Writes a backup into the scheduled folder.
    pub async fn write(&self, source: impl Future<Output = Result<Source, BackupError>>) -> Result<Made, BackupError> {
        let none = || BackupError::Refused("no folder for backups is configured: write backup { folder = \"...\" }".into());
        let schedule = self.schedule.get().ok_or_else(none)?.clone();
        let done = async {
            let turn = Arc::clone(&self.writing).try_lock_owned().map_err(|_locked| being_written())?;
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
            Ok(((file, Contents { header, summary, .. }), strange)) => {
                self.named.name(strange);
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
        asked: Asked,
        now: OffsetDateTime,
        admit: impl FnMut(&Header) -> Result<(), BackupError> + Send + 'static,
        closed: impl FnOnce(),
    ) -> Result<Header, BackupError> {
        let done = self.exchange(seal, archive, asked, now, admit, closed).await;
        if let Err(error) = &done {
            tracing::warn!(%error, "no backup was restored");
        }
        done
    }

    async fn exchange(
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
        let another = || BackupError::Busy("another restore is under way; try again when it is done".into());
        let _restoring = self.restoring.try_lock().map_err(|_locked| another())?;
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
            // A backup that is being written reads from the store that is to go.
            let writing = tokio::time::timeout(LONGEST_WRITING, self.writing.lock()).await.map_err(|_late| being_written())?;
            // From here on nothing is acknowledged that the exchange would lose.
            let frozen = exchange.freeze();
            let sequence = exchange.snapshot().await?.version();
            Target::of(&*exchange, sequence)?.admit(&contents.header, force)?;
            let (old, new) = (Arc::clone(&exchange), new.clone());
            if target.is_of(&contents.header) {
                blocking(move || carry(&old, new.as_deref(), &tokio::runtime::Handle::current())).await?;
            }
            Ok::<_, BackupError>((writing, frozen))
        };
        let held = match admitted.await {
            Ok(held) => held,
            Err(error) => {
                if let Some(folder) = &folder {
                    place::drop_new(folder);
                }
                return Err(error);
            }
        };
        let swap = async {
            closed();
            // Nobody can begin another while the server is sealed.
            self.streams.end_all();
            self.set_restored(None);
            let exchange = Arc::clone(&exchange);
            blocking(move || exchange.replace(|| swapped(&exchange, new))).await
        };
        let done = seal.while_closed(swap).await;
        drop(held);
        done?;
        reach("restore-exchanged");
        if !target.is_of(&contents.header) {
            // Backups of what was here are none of the new one.
            self.state.lock().last = None;
        }
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

fn being_written() -> BackupError {
    BackupError::Busy("a backup is being written into the folder; try again when it is done".into())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn backups(last: Option<OffsetDateTime>) -> (Backups, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let (interval, warn_after) = (Duration::from_secs(3600), Duration::from_secs(7200));
        let backups = Backups::default();
        let schedule = Schedule { folder: folder.path().to_owned(), interval, keep: 3, warn_after };
        backups.plan(schedule, Some("c")).unwrap();
        let made = |created| Made { file: PathBuf::new(), created, sequence: 1, records: None };
        backups.state.lock().last = last.map(made);
        (backups, folder)
    }

    #[test]
    fn a_backup_is_due_after_its_interval_and_when_its_date_is_yet_to_come() {
        let now = OffsetDateTime::UNIX_EPOCH + time::Duration::days(9000);
        let ago = |seconds| Some(now - time::Duration::seconds(seconds));
        for (last, due, warning) in [
            (None, true, Some("no good backup yet")),
            (ago(0), false, None),
            (ago(3599), false, None),
            (ago(3600), true, None),
            (ago(7201), true, Some("is 2 hours old")),
            (ago(-2), true, None),
            (ago(-86_400), true, Some("which is yet to come: a clock is or was wrong")),
        ] {
            let (backups, _folder) = backups(last);
            assert_eq!(backups.is_due(now), due, "{last:?}");
            let found = backups.warning(now);
            assert_eq!(found.is_some(), warning.is_some(), "{last:?}: {found:?}");
            assert!(found.is_none_or(|text| text.contains(warning.unwrap_or_default())), "{last:?}");
        }
    }

    #[tokio::test]
    async fn an_attempt_that_meets_another_is_counted_and_named() {
        let (backups, _folder) = backups(None);
        let _writing = backups.writing.lock().await;
        let error = backups.write(async { panic!("no snapshot is taken") }).await.unwrap_err();
        assert!(error.to_string().contains("is being written into the folder"), "{error}");
        let state = backups.state();
        assert_eq!((state.failures, state.failure), (1, Some(error.to_string())));
    }
}
