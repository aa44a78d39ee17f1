//! Reading keys and versions, and the one way to change them.
//!
//! Reads take no lock: one get for the key's record, one for the version's.
//!
//! Changes of one key that arrive while another is being committed wait together; then one task takes them all,
//! applies them in their order to the key as it is stored, and commits the result as one checked transaction. So
//! writers of one key share a sync instead of fighting over it, and every change sees those before it. The task is its
//! own: a client that goes away leaves its change neither half done nor the key blocked.

use std::{
    collections::{HashMap, VecDeque, hash_map},
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{
    change::{Change, State},
    record::{
        self, CONFIG_PATH, GIVEN_FOLDER, KeyRecord, MountRecord, Nanos, VersionEntry, given_path, key_path, nanos, version_path,
    },
};
use crate::{
    barrier::{BarrierError, Entry, Txn, View, note_commit},
    core::{
        clock::Clock,
        failure::{Failure, Kind},
        mounts,
        reply::Reply,
    },
    secret::SecretBytes,
    storage::StorageError,
};

/// How often a transaction is tried again when another node changed the key in between, and how often a reader
/// looks again when a version went away between its two gets.
const ATTEMPTS: usize = 16;

/// Changes and bytes that one transaction takes at most.
const BATCH_CHANGES: usize = 256;
const BATCH_BYTES: usize = 8 << 20;

type Answer = Result<Reply, Failure>;

struct Waiting {
    change: Change,
    answer: oneshot::Sender<Answer>,
}

/// The keys of one mount.
pub struct Keys {
    /// The mount's records.
    pub view: View,
    /// The mount itself: nothing is written once it is gone, as nobody would ever delete it.
    mount: mounts::MountRecord,
    /// The time.
    pub clock: Clock,
    /// Whether any number given before a restore is noted; looked up once.
    any_given: OnceLock<bool>,
    /// A key is here while a task works on it.
    waiting: Mutex<HashMap<String, VecDeque<Waiting>>>,
}

/// A version found by [`Keys::version`].
pub struct Found {
    /// The key.
    pub key: KeyRecord,
    /// The version.
    pub version: VersionEntry,
    /// Its record; `None` for a version that is deleted or destroyed.
    pub record: Option<SecretBytes>,
}

impl Found {
    /// The data as JSON.
    pub fn json(&self, path: &str) -> Result<Option<&[u8]>, Failure> {
        match &self.record {
            Some(found) => record::decode_version(path, found.expose()).map(|(_, json)| Some(json)),
            None => Ok(None),
        }
    }
}

impl Keys {
    /// The keys below a view.
    pub fn new(view: View, mount: mounts::MountRecord, clock: Clock) -> Arc<Self> {
        Arc::new(Self { view, mount, clock, any_given: OnceLock::new(), waiting: Mutex::default() })
    }

    /// The current time as it is stored.
    pub fn now(&self) -> Nanos {
        nanos(self.clock.now())
    }

    /// The record of a key.
    pub fn key(&self, key: &str) -> Result<Option<KeyRecord>, Failure> {
        Ok(self.entry(key)?.map(|(_, key)| key))
    }

    /// The record of a key with what a transaction checks.
    pub fn entry(&self, key: &str) -> Result<Option<(Entry, KeyRecord)>, Failure> {
        let path = key_path(key);
        let Some(entry) = self.view.get(&path)? else { return Ok(None) };
        let key = KeyRecord::decode(&path, entry.value.expose())?;
        Ok(Some((entry, key)))
    }

    /// The highest number that was given to a key before a restore; 0 where nothing is noted.
    pub fn given(&self, key: &str) -> Result<u64, Failure> {
        let any = match self.any_given.get() {
            Some(any) => *any,
            None => {
                let any = !self.view.list(GIVEN_FOLDER, None, 1)?.is_empty();
                *self.any_given.get_or_init(|| any)
            }
        };
        if !any {
            return Ok(0);
        }
        let path = given_path(key);
        let Some(entry) = self.view.get(&path)? else { return Ok(0) };
        let number = <[u8; 8]>::try_from(entry.value.expose());
        number.map(u64::from_be_bytes).map_err(|_length| record::corrupt(&path, "it is no number".into()))
    }

    /// The mount's settings.
    pub fn config(&self) -> Result<MountRecord, Failure> {
        match self.view.get(CONFIG_PATH)? {
            Some(entry) => MountRecord::decode(entry.value.expose()),
            None => Ok(MountRecord::default()),
        }
    }

    /// A version of a key: the numbered one, or the latest for 0 and less.
    pub async fn version(&self, key: &str, number: i64) -> Result<Option<Found>, Failure> {
        let mut seen = None;
        for _ in 0..ATTEMPTS {
            let Some((entry, record)) = self.entry(key)? else { return Ok(None) };
            let number = u64::try_from(number).ok().filter(|number| *number > 0).unwrap_or(record.current);
            let Some(version) = record.version(number).cloned() else { return Ok(None) };
            if version.is_gone(self.now()) {
                return Ok(Some(Found { key: record, version, record: None }));
            }
            let path = version_path(key, number);
            if let Some(data) = self.view.get_long(&path).await?
                && record::decode_version(&path, data.value.expose())?.0 == version.created
            {
                return Ok(Some(Found { key: record, version, record: Some(data.value) }));
            }
            // The key's record was changed between the two gets, or the store has lost the version.
            if seen.replace(entry.version) == Some(entry.version) {
                return Err(record::corrupt(&path, "the version's data is missing".into()));
            }
        }
        Err(Failure::unavailable("the key is being changed again and again; try again"))
    }

    /// Makes a change and waits until it is durable.
    pub async fn change(self: &Arc<Self>, key: &str, change: Change) -> Answer {
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { change, answer };
        let idle = match self.waiting.lock().entry(key.to_owned()) {
            hash_map::Entry::Occupied(mut queue) => {
                queue.get_mut().push_back(waiting);
                false
            }
            hash_map::Entry::Vacant(queue) => {
                queue.insert(VecDeque::from([waiting]));
                true
            }
        };
        if idle {
            tokio::spawn(Arc::clone(self).work(key.to_owned()));
        }
        let answer = answered
            .await
            .unwrap_or_else(|_| Err(Failure::unavailable("the change was interrupted; it may or may not have been made")));
        // By another task.
        answer.inspect(|_| note_commit())
    }

    async fn work(self: Arc<Self>, key: String) {
        let mut abandoned = Abandoned { keys: &self, key: &key, armed: true };
        while let Some(batch) = self.take(&key) {
            self.settle(&key, batch).await;
        }
        abandoned.armed = false;
    }

    /// The next changes of a key; when there are none, the key is nobody's any more.
    fn take(&self, key: &str) -> Option<Vec<Waiting>> {
        let mut all = self.waiting.lock();
        let queue = all.get_mut(key)?;
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < BATCH_CHANGES
            && let Some(next) = queue.pop_front()
        {
            bytes += next.change.size();
            batch.push(next);
            if bytes > BATCH_BYTES {
                break;
            }
        }
        if batch.is_empty() {
            all.remove(key);
            return None;
        }
        Some(batch)
    }

    async fn settle(&self, key: &str, batch: Vec<Waiting>) {
        let mut attempt = self.attempt(key, &batch).await;
        for _ in 1..ATTEMPTS {
            if !matches!(attempt, Err(Attempt::Conflict(_))) {
                break;
            }
            attempt = self.attempt(key, &batch).await;
        }
        // Whoever does not listen any more has gone away.
        match attempt {
            Ok(answers) => {
                for (waiting, answer) in batch.into_iter().zip(answers) {
                    let _ = waiting.answer.send(answer);
                }
            }
            Err(Attempt::Conflict(failure) | Attempt::Failed(failure)) => {
                for waiting in batch {
                    let _ = waiting.answer.send(Err(again(&failure)));
                }
            }
        }
    }

    async fn attempt(&self, key: &str, batch: &[Waiting]) -> Result<Vec<Answer>, Attempt> {
        let config = self.config()?;
        let mut state = State::read(self, key)?;
        let answers = batch.iter().map(|waiting| state.apply(&waiting.change, &config)).collect();
        self.commit(state.into_txn()?).await?;
        Ok(answers)
    }

    /// Commits while the mount is there.
    pub async fn commit(&self, txn: Txn) -> Result<(), Attempt> {
        match self.view.commit(txn.while_as(self.mount.there())).await {
            Ok(_) => Ok(()),
            Err(error) if self.mount.is_gone(&error) => Err(Attempt::Failed(mounts::MountRecord::removed())),
            Err(error) => Err(error.into()),
        }
    }
}

/// Why a transaction was not committed.
pub enum Attempt {
    /// Others changed what it depends on.
    Conflict(Failure),
    /// Something else.
    Failed(Failure),
}

impl From<Failure> for Attempt {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<BarrierError> for Attempt {
    fn from(error: BarrierError) -> Self {
        match error {
            BarrierError::Storage(StorageError::Conflict { .. }) => Self::Conflict(error.into()),
            other => Self::Failed(other.into()),
        }
    }
}

/// The same failure for another caller of the batch.
fn again(failure: &Failure) -> Failure {
    let copy = match failure.kind() {
        Kind::Internal => Failure::listed(Kind::Internal, failure.text()),
        kind => Failure::plain(kind, failure.text()),
    };
    match failure.cause() {
        Some(cause) => copy.caused_by(cause.to_string()),
        None => copy,
    }
}

/// Frees the key when its task ends without having answered all (it panicked, or the runtime shuts down).
struct Abandoned<'a> {
    keys: &'a Keys,
    key: &'a str,
    armed: bool,
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.keys.waiting.lock().remove(self.key);
        }
    }
}
