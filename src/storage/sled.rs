//! The engine of stores that were made with it: sled 0.34, one folder. Everything that must be known about sled stands in this file.
//!
//! - Left alone it writes every 500 ms; here it writes when told, before every acknowledgement.
//! - It takes its writes for stable after `sync_file_range`, which promises nothing; [`super::whole_sync`] makes it sync.
//! - It never syncs values that went to a file of their own (`blobs/`). They are synced here, and the log once more.
//! - Nor does it sync its settings (`conf`), without which it does not open. They are made apart and moved in.
//! - It shows a batch to readers before the flush. A reader must not see what a crash can take back, so while a batch
//!   is under way the old values of its keys are shown.
//! - Its cache grows to 1 GiB unless bounded.
//! - Its log keeps the room of what was overwritten and deleted; see [`super::compact`] and [`copy`].
//! - A flush can wait for ever for a write that has failed, also the flush of whoever drops the last handle; see [`closing`].
//! - After the first failed write it stays broken until it is opened again.
//! - At an opening it takes what it cannot read for absent and writes over it, and it stumbles over what it left unfinished; see [`recovery`].

mod closing;
mod copy;
mod recovery;

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, TryLockError},
    io,
    ops::Bound,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::{
    Options, StorageError,
    backend::{Backend, Before, Copied, Fault, Step, Trust, Write, guarded},
    folder::{Folder, sync_folder},
    generation,
    group::Store,
    mark::Mark,
    space::Space,
    whole_sync::refuse_sync_file_range,
};
use crate::crashpoint::{reach, sync_is_skipped};
use closing::{Closing, Flushing, give_up, give_up_after};
use copy::Copy;
use recovery::{read_beforehand, remove_unfinished};

/// How long a reopening waits for readers and sled's own threads to let go of the old instance.
const LET_GO: Duration = Duration::from_secs(10);

/// Most records, and about the most bytes, that a visit reads between two looks at what is under way. sled copies the
/// page that an iteration starts on, so that short chunks cost more than what they read.
const MAX_CHUNK: usize = 256;
const MAX_CHUNK_BYTES: usize = 1 << 20;

/// Records of a visit's first look: most visits are short, or skip over a folder at once.
const FIRST_CHUNK: usize = 4;

/// The sled engine.
pub struct Sled;

impl Sled {
    /// Opens or makes the store in the folder `path`.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Store, StorageError> {
        if !sync_is_skipped() {
            refuse_sync_file_range();
        }
        tracing::warn!(
            "storage \"sled\" may lose acknowledged writes when its disk gives errors at reading while it is opened; use \"redb\" for new \
             stores, and back up and restore into one to leave sled"
        );
        let folder = Folder::open(path.as_ref())?;
        let space = Space::new(folder.path(), &options);
        let mark = Mark::open(folder.path())?;
        let backend = Engine::open(folder, options).map_err(|fault| match fault {
            Fault::Full(why) | Fault::Corrupt(why) | Fault::Io(why) => {
                StorageError::Io(format!("opening the sled store in {}: {why}", path.as_ref().display()))
            }
        })?;
        Store::start(backend, Some(space), Some(mark), options.compact_above)
    }
}

struct Engine {
    folder: Folder,
    cache_bytes: u64,
    /// How long an opening waits for the check of all records.
    patience: Duration,
    view: ArcSwap<View>,
    flushing: Arc<Flushing>,
    // These are used by the committer thread alone.
    durability: Mutex<Option<Durability>>,
    generation: Mutex<u64>,
    copy: Mutex<Option<Copy>>,
    /// The instance that failed, until it has let go of its files.
    closing: Mutex<Option<Closing>>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Nothing may be at work in the folder when the next store takes it.
        self.drop_copy();
        let old = self.publish(None, BTreeMap::new());
        if let Some(db) = old.db.clone()
            && !self.flushing.close(db, old).wait(LET_GO)
        {
            tracing::error!(
                "sled does not end its last flush; what was acknowledged is on the disk, and nobody waits for the rest"
            );
        }
    }
}

/// An open sled, and the generation of files that it keeps.
struct Instance {
    db: ::sled::Db,
    durability: Durability,
    generation: u64,
}

/// What readers read. A new one is published at every change, so that a reader sees that something changed under it.
struct View {
    /// Nothing while the engine is reopened.
    db: Option<::sled::Db>,
    /// What the keys of the batch under way held before it.
    before: Before,
}

impl From<::sled::Error> for Fault {
    fn from(error: ::sled::Error) -> Self {
        match error {
            ::sled::Error::Io(error) => error.into(),
            ::sled::Error::Corruption { at, .. } => Fault::Corrupt(format!("sled finds damage at {at:?}")),
            other => Fault::Io(other.to_string()),
        }
    }
}

impl Engine {
    fn open(folder: Folder, options: Options) -> Result<Self, Fault> {
        let Options { cache_bytes, check_at_start: patience, .. } = options;
        let flushing = Flushing::start()?;
        let Instance { db, durability, generation } = start(&folder, cache_bytes, &flushing)?;
        let view = ArcSwap::from_pointee(View { db: Some(db), before: BTreeMap::new() });
        let (durability, generation) = (Mutex::new(Some(durability)), Mutex::new(generation));
        Ok(Self {
            folder,
            cache_bytes,
            patience,
            view,
            flushing,
            durability,
            generation,
            copy: Mutex::new(None),
            closing: Mutex::new(None),
        })
    }

    fn place(&self) -> PathBuf {
        generation::place(self.folder.path(), *self.generation.lock())
    }

    /// Runs a read until no change was published while it ran.
    fn read<T>(&self, read: impl Fn(&::sled::Db, &View) -> Result<T, Fault>) -> Result<T, Fault> {
        loop {
            let view = self.view.load();
            let db = view.db.as_ref().ok_or_else(being_reopened)?;
            let result = guarded(|| read(db, &view));
            if Arc::ptr_eq(&view, &self.view.load()) {
                if result.is_err() {
                    self.flushing.met_error(true);
                }
                return result;
            }
        }
    }

    fn publish(&self, db: Option<::sled::Db>, before: Before) -> Arc<View> {
        self.view.swap(Arc::new(View { db, before }))
    }

    /// Up to `limit` records at and after `from` as of the last durable batch, and where to go on.
    fn chunk(&self, from: &[u8], limit: usize) -> Result<Chunk, Fault> {
        self.read(|db, view| {
            let mut range = db.range::<&[u8], _>((Bound::Included(from), Bound::Unbounded));
            let mut records: Vec<(::sled::IVec, ::sled::IVec)> = Vec::with_capacity(limit);
            let mut bytes = 0;
            while records.len() < limit && bytes < MAX_CHUNK_BYTES {
                let Some(record) = range.next() else { break };
                let record = record?;
                bytes += record.1.len();
                records.push(record);
            }
            let full = records.len() == limit || bytes >= MAX_CHUNK_BYTES;
            let last = if full { records.last().map(|(key, _)| key.clone()) } else { None };
            let within = (Bound::Included(from), last.as_deref().map_or(Bound::Unbounded, Bound::Included));
            let mut before = view.before.range::<[u8], _>(within).peekable();
            if before.peek().is_some() {
                let mut merged: BTreeMap<_, _> = records.into_iter().collect();
                for (key, value) in before {
                    match value {
                        Some(value) => merged.insert(key.as_slice().into(), value.as_slice().into()),
                        None => merged.remove(key.as_slice()),
                    };
                }
                records = merged.into_iter().collect();
            }
            let next = last.map(|last| [&last, b"\0".as_slice()].concat());
            Ok(Chunk { records, next })
        })
    }
}

struct Chunk {
    records: Vec<(::sled::IVec, ::sled::IVec)>,
    /// Where the following records start; `None` at the end of the store.
    next: Option<Vec<u8>>,
}

impl Backend for Engine {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        self.read(|db, view| match view.before.get(key) {
            Some(before) => Ok(before.clone()),
            None => Ok(db.get(key)?.map(|value| value.to_vec())),
        })
    }

    fn visit(&self, from: &[u8], visitor: &mut dyn FnMut(&[u8], &[u8]) -> Step) -> Result<(), Fault> {
        let mut from = from.to_vec();
        let mut limit = FIRST_CHUNK;
        loop {
            let chunk = self.chunk(&from, limit)?;
            limit = MAX_CHUNK.min(limit * 2);
            for (key, value) in &chunk.records {
                // A skip inside the chunk needs no new seek.
                if key.as_ref() < from.as_slice() {
                    continue;
                }
                match visitor(key, value) {
                    Step::Next => {}
                    Step::Stop => return Ok(()),
                    Step::SkipTo(key) => from = key,
                }
            }
            let Some(next) = chunk.next else { return Ok(()) };
            if from > next {
                limit = FIRST_CHUNK;
            } else {
                from = next;
            }
        }
    }

    fn apply(&self, batch: Vec<Write>) -> Result<(), Fault> {
        let before = batch.iter().map(|(key, _)| Ok((key.clone(), self.get(key)?))).collect::<Result<_, Fault>>()?;
        self.apply_over(batch, before)
    }

    fn apply_over(&self, batch: Vec<Write>, before: Before) -> Result<(), Fault> {
        let Some(db) = self.view.load().db.clone() else { return Err(being_reopened()) };
        let mut writes = ::sled::Batch::default();
        for (key, value) in batch {
            match value {
                Some(value) => writes.insert(key, value),
                None => writes.remove(key),
            }
        }
        self.publish(Some(db.clone()), before);
        db.apply_batch(writes)?;
        reach("commit-applied");
        self.flushing.flush(&db)?;
        reach("commit-flushed");
        self.durability.lock().as_mut().ok_or_else(being_reopened)?.sync()?;
        self.publish(Some(db), BTreeMap::new());
        Ok(())
    }

    /// Damage in the middle of its log makes sled leave out the rest of a segment and go on with the next.
    fn trust(&self) -> Trust {
        Trust::Counted { patience: self.patience, look_up: false }
    }

    fn bytes_on_disk(&self) -> u64 {
        generation::bytes(&self.place(), &is_of_sled)
    }

    fn clear_remains(&self) {
        generation::clear_others(self.folder.path(), *self.generation.lock(), is_of_sled);
    }

    fn begin_copy(&self, bytes: u64) -> Result<(), Fault> {
        self.begin(bytes)
    }

    fn write_copy(&self, batch: Vec<Write>) -> Result<(), Fault> {
        self.write_to_copy(batch)
    }

    fn settle_copy(&self) -> Result<bool, Fault> {
        self.settle()
    }

    fn copied(&self) -> Result<Box<dyn Copied>, Fault> {
        self.settled()
    }

    fn let_copy_take_over(&self) -> Result<(), Fault> {
        self.take_over()
    }

    fn abandon_copy(&self) {
        self.abandon();
    }

    fn reopen(&self) -> Result<(), Fault> {
        *self.durability.lock() = None;
        let old = self.publish(None, BTreeMap::new());
        if let Some(db) = old.db.clone() {
            *self.closing.lock() = Some(self.flushing.close(db, old));
        }
        self.wait_for_old_instance()?;
        Folder::forget_cached(&self.place());
        let deadline = Instant::now() + LET_GO;
        loop {
            match start(&self.folder, self.cache_bytes, &self.flushing) {
                Ok(Instance { db, durability, generation }) => {
                    *self.closing.lock() = None;
                    self.flushing.met_error(false);
                    *self.durability.lock() = Some(durability);
                    *self.generation.lock() = generation;
                    self.publish(Some(db), BTreeMap::new());
                    return Ok(());
                }
                // sled's own threads may hold its lock for a moment longer.
                Err(fault) if Instant::now() >= deadline => return Err(fault),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

impl Engine {
    /// Waits until the instance that failed has let go of its files. Ends the process when it never does: nothing that was acknowledged
    /// is lost by that, and a store that neither works nor can be opened again serves nobody.
    fn wait_for_old_instance(&self) -> Result<(), Fault> {
        let closing = self.closing.lock();
        let Some(closing) = &*closing else { return Ok(()) };
        if closing.wait(LET_GO) && wait_for_own_predecessor(&self.place())? {
            return Ok(());
        }
        if closing.since().elapsed() > give_up_after() {
            give_up();
        }
        Err(Fault::Io("sled failed and has not let go of its files yet".into()))
    }
}

fn being_reopened() -> Fault {
    Fault::Io("the store is being reopened after a failure".into())
}

/// Opens the current generation.
fn start(folder: &Folder, cache_bytes: u64, flushing: &Arc<Flushing>) -> Result<Instance, Fault> {
    let current = generation::current(folder.path(), is_of_sled)?;
    let place = generation::place(folder.path(), current);
    if current > 0 && !place.join("db").exists() {
        return Err(Fault::Corrupt(format!("{} is current and has no log", place.display())));
    }
    wait_for_own_predecessor(&place)?;
    let instance = open(&place, current, cache_bytes, flushing)?;
    folder.sync_names()?;
    Ok(instance)
}

fn open(place: &Path, generation: u64, cache_bytes: u64, flushing: &Arc<Flushing>) -> Result<Instance, Fault> {
    make_settings(place, flushing)?;
    remove_unfinished(place)?;
    read_beforehand(place)?;
    let config = ::sled::Config::new().path(place).flush_every_ms(None).cache_capacity(cache_bytes);
    let db = guarded(|| config.open().map_err(|error| not_opened(place, error)))?;
    let mut durability = Durability::open(place)?;
    durability.sync()?;
    Ok(Instance { db, durability, generation })
}

fn not_opened(place: &Path, error: ::sled::Error) -> Fault {
    match error {
        ::sled::Error::Corruption { at, .. } => {
            let at = at.map(|at| format!("{at:?}"));
            let file = recovery::damaged_file(place, at.as_deref());
            let at = at.map_or_else(String::new, |at| format!(" at {at}"));
            Fault::Corrupt(format!("sled finds damage{at} in {}; restore a backup", file.display()))
        }
        other => other.into(),
    }
}

/// Whether a name in the folder belongs to sled.
pub(super) fn is_of_sled(name: &str) -> bool {
    matches!(name, "db" | "conf" | "blobs") || name.starts_with("snap.")
}

/// Makes the file of sled's settings, whole or not at all. sled writes it once, unsynced, and refuses to open a store whose
/// settings are torn: a power cut soon after the first start would make the store unusable. So a new store's settings
/// are made by sled in a folder beside it, synced, and moved to their place.
fn make_settings(folder: &Path, flushing: &Arc<Flushing>) -> Result<(), Fault> {
    let (settings, aside) = (folder.join("conf"), folder.join("new"));
    if aside.exists() {
        fs::remove_dir_all(&aside)?;
    }
    if settings.exists() {
        // Of a store that was made before this was so.
        return Ok(File::open(&settings)?.sync_all()?);
    }
    let made = guarded(|| Ok(::sled::Config::new().path(&aside).flush_every_ms(None).open()?))?;
    flushing.close(made, ()).wait(LET_GO);
    File::open(aside.join("conf"))?.sync_all()?;
    fs::rename(aside.join("conf"), settings)?;
    sync_folder(folder)?;
    // sled's threads may still be at work there; what is left goes at the next start.
    let _ = fs::remove_dir_all(&aside);
    Ok(())
}

/// Waits until an earlier store of this process has let go of the log: sled unlocks it on a thread of its own, some time
/// after the store was dropped. Other processes are kept out by the folder's lock, which is held by now. Tells whether it has.
pub(crate) fn wait_for_own_predecessor(folder: &Path) -> io::Result<bool> {
    let log = match File::open(folder.join("db")) {
        Ok(log) => log,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    let until = Instant::now() + LET_GO;
    while let Err(TryLockError::WouldBlock) = log.try_lock() {
        if Instant::now() >= until {
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(5));
    }
    log.unlock()?;
    Ok(true)
}

/// The syncs that sled leaves out.
struct Durability {
    log: File,
    blobs: std::path::PathBuf,
    /// The newest blob that was synced; sled names them by a growing number.
    newest: Option<u64>,
    /// The folder's change time at the last look, when it was old enough then to tell every later change.
    unchanged: Option<SystemTime>,
}

impl Durability {
    fn open(folder: &Path) -> io::Result<Self> {
        let log = OpenOptions::new().write(true).open(folder.join("db"))?;
        Ok(Self { log, blobs: folder.join("blobs"), newest: None, unchanged: None })
    }

    fn sync(&mut self) -> io::Result<()> {
        if sync_is_skipped() {
            return Ok(());
        }
        self.sync_blobs()?;
        self.log.sync_data()
    }

    fn sync_blobs(&mut self) -> io::Result<()> {
        let changed = fs::metadata(&self.blobs)?.modified()?;
        if self.unchanged == Some(changed) {
            return Ok(());
        }
        let mut newest = self.newest;
        let mut synced = false;
        for entry in fs::read_dir(&self.blobs)? {
            let entry = entry?;
            let number = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok());
            if number.is_some() && number <= self.newest {
                continue;
            }
            match File::open(entry.path()) {
                Ok(blob) => blob.sync_all()?,
                // sled removes blobs that nothing points to any more.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            }
            synced = true;
            newest = newest.max(number);
        }
        if synced {
            sync_folder(&self.blobs)?;
        }
        self.newest = newest;
        // Change times move in ticks of some milliseconds: a young one does not rule out another change within it.
        let settled = SystemTime::now().duration_since(changed).is_ok_and(|age| age > Duration::from_millis(100));
        self.unchanged = settled.then_some(changed);
        Ok(())
    }
}
