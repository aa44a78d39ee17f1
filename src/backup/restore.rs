//! A store from a backup: what is checked before anything is touched, and how the new store is filled.

use std::{
    cell::Cell,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{BackupError, Contents, Header, Reader, Seal, given, place};
use crate::{
    seal::{SEAL_PATH, SealRecord},
    storage::{self, CommitFuture, Folder, Kind, Record, Storage, StorageConfig, StorageError, Txn, Version},
    wire::time::rfc3339,
};

/// Where a restored store says what it was made from, readable while sealed.
pub const RESTORED_PATH: &str = "core/restored";

/// Versions left out behind the newest one known. What ran after the backup may have given versions that nobody here
/// has seen; this many commits take longer than any of it can have run.
const GAP: Version = 1 << 40;

/// Version numbers of secrets and Transit keys that are left out where nobody can tell which ones were given after the
/// backup.
pub(super) const SKIPPED: u64 = 1000;

/// What a restored store remembers of its origin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// Layout of this record, 1.
    pub format: u32,
    /// When the backup was taken: from when the data is. RFC 3339.
    pub created: String,
    /// The last commit in the backup.
    pub sequence: Version,
    /// When it was restored, RFC 3339.
    pub restored: String,
    /// The last commit of the store that it replaced, where there was one of the same cluster.
    pub replaced: Option<Version>,
    /// What the backup is authentic by; checked at the first unseal.
    pub seal: Seal,
    /// Whether the first unseal has made good what a restored store owes (`core/restored.rs`).
    pub settled: bool,
    /// Version numbers that every secret and Transit key leaves out.
    #[serde(default)]
    pub skip_versions: u64,
    /// Whether the replaced store told how often each Transit key version had encrypted by then.
    #[serde(default)]
    pub counts_carried: bool,
}

impl Restored {
    /// `noted` is the version of this record and `last` the store's last commit.
    fn fork(&self, noted: Version, last: Version) -> Fork {
        Fork {
            left: self.sequence,
            joined: self.sequence.max(self.replaced.unwrap_or(0)).saturating_add(GAP),
            // The record is written last of all that the restore and the first unseal write; before that nobody else writes.
            own: if self.settled { last.saturating_sub(noted) } else { 0 },
        }
    }

    /// The record, where the store was restored.
    pub fn load(storage: &dyn Storage) -> Result<Option<(Self, Version)>, StorageError> {
        let Some(record) = storage.get(RESTORED_PATH)? else { return Ok(None) };
        let corrupt = |reason: String| StorageError::Corrupt { key: RESTORED_PATH.into(), reason };
        let restored: Self = serde_json::from_slice(&record.value).map_err(|error| corrupt(error.to_string()))?;
        match restored.format {
            1 => Ok(Some((restored, record.version))),
            other => Err(corrupt(format!("its format {other} is unknown"))),
        }
    }
}

/// A restored store: its commits up to `left` are its cluster's, those from `joined` on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fork {
    /// The last commit of the backup.
    pub left: Version,
    /// Its own first commit comes behind this one.
    pub joined: Version,
    /// How many commits were made in it since, without those of the restore itself.
    pub own: Version,
}

impl Fork {
    /// Whether a commit belongs to what the cluster went on with elsewhere: this store has not had it.
    fn is_beside(self, commit: Version) -> bool {
        commit > self.left && commit <= self.joined
    }
}

/// What a restore would replace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Nothing.
    Empty,
    /// A cluster's store.
    Cluster {
        /// Its identity.
        id: String,
        /// Its name.
        name: String,
        /// Its last commit.
        sequence: Version,
        /// Where it goes back to a backup itself: where it left the line of its cluster.
        fork: Option<Fork>,
    },
    /// A store that cannot be read, and why.
    Unreadable(String),
}

impl Target {
    /// What is in an open store whose last commit is `sequence`.
    pub fn of(storage: &dyn Storage, sequence: Version) -> Result<Self, StorageError> {
        let Some(record) = storage.get(SEAL_PATH)? else { return Ok(Self::Empty) };
        match serde_json::from_slice::<SealRecord>(&record.value) {
            Ok(seal) => {
                let fork = Restored::load(storage)?.map(|(restored, noted)| restored.fork(noted, sequence));
                Ok(Self::Cluster { id: seal.cluster_id, name: seal.cluster_name, sequence, fork })
            }
            Err(error) => Ok(Self::Unreadable(format!("its record {SEAL_PATH:?} cannot be read: {error}"))),
        }
    }

    /// What lies in a folder that no server uses.
    pub fn in_folder(config: &StorageConfig, wait: Wait<'_>) -> Result<Self, BackupError> {
        let Some(folder) = config.path.as_deref().filter(|folder| place::holds_store(folder)) else {
            return Ok(Self::Empty);
        };
        let other = match config.kind {
            Kind::Sled => folder.join("sos.redb"),
            _ => folder.join("db"),
        };
        if other.exists() {
            return Ok(Self::Unreadable(format!("{} is the store of another engine than the configured one", other.display())));
        }
        let opened = match storage::open(config) {
            Ok(store) => store,
            // Not the store's fault, and nothing that force would change.
            Err(error) if error.to_string().contains("in use by another process") => return Err(error.into()),
            Err(error) => return Ok(Self::Unreadable(error.to_string())),
        };
        let version = wait.snapshot(&*opened)?.version();
        Ok(Self::of(&*opened, version)?)
    }

    /// Refuses a backup that does not belong over this target, unless it is forced.
    pub fn admit(&self, header: &Header, force: bool) -> Result<(), BackupError> {
        let refusal = match self {
            Self::Empty => return Ok(()),
            Self::Unreadable(why) => format!(
                "the store here cannot be compared with the backup ({why}); restoring with force replaces it all the same"
            ),
            Self::Cluster { id, name, .. } if *id != header.cluster_id => format!(
                "the backup is of another cluster: {:?} ({}), while here is {name:?} ({id}); restoring with force replaces this one",
                header.cluster_name, header.cluster_id
            ),
            Self::Cluster { sequence, fork, .. } => match made_since(*sequence, *fork, header.sequence) {
                0 => return Ok(()),
                lost if fork.is_some_and(|fork| fork.is_beside(header.sequence)) => format!(
                    "the backup of {} is newer than the one that was restored here, but {lost} commit(s) made here since would be lost; \
                     restoring with force gives them up",
                    header.created
                ),
                lost => format!(
                    "the backup of {} is older than what is here: {lost} commit(s) made since would be lost; restoring with force gives \
                     them up",
                    header.created
                ),
            },
        };
        match force {
            false => Err(BackupError::Refused(refusal)),
            true => {
                tracing::warn!("restoring with force: {refusal}");
                Ok(())
            }
        }
    }

    /// Whether this store went on from the backup's moment, so that it knows what was given since. One that was restored
    /// from an older backup knows nothing of what its cluster did elsewhere.
    fn goes_on_from(&self, header: &Header) -> bool {
        match self {
            Self::Cluster { id, sequence, fork, .. } if *id == header.cluster_id => {
                *sequence >= header.sequence && !fork.is_some_and(|fork| fork.is_beside(header.sequence))
            }
            _ => false,
        }
    }

    pub(super) fn is_of(&self, header: &Header) -> bool {
        self.sequence_of(&header.cluster_id).is_some()
    }

    fn sequence_of(&self, cluster: &str) -> Option<Version> {
        match self {
            Self::Cluster { id, sequence, .. } if id == cluster => Some(*sequence),
            _ => None,
        }
    }
}

/// Commits that `backup` does not have, without the numbers that restores left out.
fn made_since(sequence: Version, fork: Option<Fork>, backup: Version) -> Version {
    match fork {
        // The remainder leaves out what earlier restores left out.
        Some(fork) if backup <= fork.joined => (fork.left.saturating_sub(backup) % GAP).saturating_add(fork.own),
        _ => sequence.saturating_sub(backup) % GAP,
    }
}

/// How the blocking side of a restore waits for the store's own thread.
#[derive(Clone, Copy)]
pub struct Wait<'a>(pub &'a tokio::runtime::Handle);

impl Wait<'_> {
    pub(super) fn commit(self, commit: CommitFuture) -> Result<Version, StorageError> {
        self.0.block_on(commit)
    }

    pub(super) fn snapshot(self, storage: &dyn Storage) -> Result<storage::Snapshot, StorageError> {
        self.0.block_on(storage.snapshot())
    }
}

/// Where a backup comes from and what is to be done with it.
pub struct Origin<'a, R: std::io::Read> {
    /// The archive.
    pub archive: R,
    /// What it would replace.
    pub target: &'a Target,
    /// Whether it goes over another cluster or a newer store.
    pub force: bool,
    /// Version numbers that every secret and Transit key leaves out; `None` for what fits the target.
    pub skip_versions: Option<u64>,
    /// The time.
    pub now: OffsetDateTime,
    /// Told the head once, before anything is written; may refuse.
    pub begin: &'a mut dyn FnMut(&Header) -> Result<(), BackupError>,
    /// Told the number of records so far.
    pub progress: &'a mut dyn FnMut(u64),
}

impl<R: std::io::Read> Origin<'_, R> {
    /// Fills an empty store. Not to be used when it fails: only at the end is it known that the archive is whole.
    pub fn fill(self, store: &dyn Storage, wait: Wait<'_>) -> Result<Contents, BackupError> {
        let Self { archive, target, force, skip_versions, now, begin, progress } = self;
        let mut under_way: Option<CommitFuture> = None;
        let above = Cell::new(0);
        let mut count = 0;
        let contents = Reader::new(archive).read(
            |header| {
                both(target.admit(header, force), begin(header))?;
                above.set(header.sequence.max(target.sequence_of(&header.cluster_id).unwrap_or(0)).saturating_add(GAP));
                Ok(())
            },
            |records| {
                count += u64::try_from(records.len()).unwrap_or(0);
                // The next chunk is read while this one is synced.
                if let Some(commit) = under_way.take() {
                    wait.commit(commit)?;
                }
                under_way = Some(store.commit(puts(records).above(above.get())));
                progress(count);
                Ok(())
            },
        )?;
        if let Some(commit) = under_way {
            wait.commit(commit)?;
        }
        let goes_on = target.goes_on_from(&contents.header);
        let restored = Restored {
            format: 1,
            created: contents.header.created.clone(),
            sequence: contents.header.sequence,
            restored: rfc3339(now),
            replaced: target.sequence_of(&contents.header.cluster_id),
            seal: contents.seal.clone(),
            settled: false,
            skip_versions: skip_versions.unwrap_or(if goes_on { 0 } else { SKIPPED }),
            counts_carried: goes_on,
        };
        let json = serde_json::to_vec(&restored).map_err(|error| BackupError::Damaged(error.to_string()))?;
        wait.commit(store.commit(Txn::new().put(RESTORED_PATH, json).above(above.get())))?;
        Ok(contents)
    }

    /// Replaces the store in `config`'s folder, which no server uses. Killed anywhere, the next start finds the old
    /// store or the new one, never a mixture. Answers what was restored, and where the old store is kept.
    pub fn into_folder(
        self,
        config: &StorageConfig,
        wait: Wait<'_>,
    ) -> Result<(Contents, Option<std::path::PathBuf>), BackupError> {
        let folder = config.path.as_deref().ok_or_else(|| BackupError::Refused("the configured store has no folder".into()))?;
        let replaces = place::holds_store(folder);
        let target = self.target;
        let lock = Folder::open(folder)?;
        let contents = self.beside(config, folder, wait)?;
        if target.is_of(&contents.header) {
            // Opening the old store takes the lock.
            drop(lock);
            let carried = storage::open(config).map_err(BackupError::from);
            let carried = carried.and_then(|old| carry_beside(&*old, config, folder, wait));
            let carried = carried.and_then(|()| Ok(storage::wait_until_closed(config)?));
            if let Err(error) = carried {
                place::drop_new(folder);
                return Err(error);
            }
        } else {
            drop(lock);
        }
        let _lock = Folder::open(folder)?;
        let old = place::exchange(folder)?;
        Ok((contents, replaces.then_some(old)))
    }

    /// Builds the new store beside the one in `folder`; on failure nothing of it is left.
    pub(super) fn beside(self, config: &StorageConfig, folder: &Path, wait: Wait<'_>) -> Result<Contents, BackupError> {
        let beside = beside(config, place::make_new(folder)?);
        let filled = storage::open(&beside).map_err(BackupError::from).and_then(|store| self.fill(&*store, wait));
        let filled = filled.and_then(|contents| {
            storage::wait_until_closed(&beside)?;
            Ok(contents)
        });
        if filled.is_err() {
            place::drop_new(folder);
        }
        filled
    }
}

/// Says everything at once: who forces a restore is to know all that it costs.
fn both(one: Result<(), BackupError>, other: Result<(), BackupError>) -> Result<(), BackupError> {
    match (one, other) {
        (Err(BackupError::Refused(one)), Err(BackupError::Refused(other))) => {
            Err(BackupError::Refused(format!("{one}. Moreover, {other}")))
        }
        (one, other) => one.and(other),
    }
}

/// The new store beside the one in `config`'s folder.
fn beside(config: &StorageConfig, new: PathBuf) -> StorageConfig {
    let mut beside = config.clone();
    beside.path = Some(new);
    // The reserve belongs to the folder, and is there already.
    beside.options.reserve_bytes = 0;
    beside
}

/// Carries over to the new store beside `old`, which is complete and closed, what `old` knows of versions that were given
/// and of encryptions under them.
pub(super) fn carry_beside(old: &dyn Storage, config: &StorageConfig, folder: &Path, wait: Wait<'_>) -> Result<(), BackupError> {
    let beside = beside(config, place::new_folder(folder));
    let new = storage::open(&beside)?;
    given::carry(old, &*new, wait)?;
    drop(new);
    Ok(storage::wait_until_closed(&beside)?)
}

fn puts(records: Vec<(String, Record)>) -> Txn {
    records.into_iter().fold(Txn::new(), |txn, (key, record)| txn.put(key, record.value))
}
