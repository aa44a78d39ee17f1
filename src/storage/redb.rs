//! The embedded engine for a small memory footprint: redb, one file in a folder, one commit per batch.
//!
//! A commit of redb copies pages up to the root and syncs twice; so it stands behind a journal (see [`super::journaled`]).
//! Readers share a read transaction of the last durable commit: a look-up takes no lock and needs no new transaction.
//! Like every engine after an I/O error, redb stays broken until it is opened again, for reads too where its cache does not hold what is
//! read; and it writes when it opens. So once it has failed, readers are given the file as it stands, opened so that what redb
//! writes stays in memory ([`super::standin`]), until it could be opened again. What the journal has beyond it they find in memory.

mod copy;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ::redb::{Builder, Database, DatabaseError, Durability, ReadOnlyTable, ReadableDatabase, TableDefinition};
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tracing::warn;

use super::{
    Options, StorageError,
    backend::{Backend, Copied, Fault, Step, Trust, Write, guarded},
    folder::Folder,
    generation,
    group::{Store, failed_at},
    journaled::Journaled,
    mark::Mark,
    space::Space,
    standin::{Ended, StandIn},
};
use crate::crashpoint::sync_is_skipped;
use copy::Copy;

const RECORDS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("records");

/// The file's name in its generation's place.
const FILE: &str = "sos.redb";

/// How long a reopening waits for readers to let go of the old instance.
const LET_GO: Duration = Duration::from_secs(10);

/// Bytes that redb's own check reads in a millisecond, on a slow machine.
const CHECKED_IN_A_MILLISECOND: u128 = 200_000;

/// The redb engine.
pub struct Redb;

impl Redb {
    /// Opens or makes the store in the folder `path`.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Store, StorageError> {
        let folder = Folder::open(path.as_ref())?;
        let space = Space::new(folder.path(), &options);
        let mark = Mark::open(folder.path())?;
        let engine = Engine::open(folder, options).map_err(|fault| match fault {
            Fault::Full(why) | Fault::Corrupt(why) | Fault::Io(why) => {
                StorageError::Io(format!("opening the redb store in {}: {why}", path.as_ref().display()))
            }
        })?;
        let backend = Journaled::start(engine, path.as_ref(), mark.is_damaged()).map_err(|fault| failed_at(b"", fault))?;
        Store::start(backend, Some(space), Some(mark), options.compact_above)
    }
}

type Table = ReadOnlyTable<&'static [u8], &'static [u8]>;

struct Engine {
    folder: Folder,
    cache_bytes: usize,
    /// How long an opening waits for the check of all records.
    patience: Duration,
    /// As of the last durable commit; nothing while the engine is reopened.
    records: ArcSwapOption<Table>,
    /// A write has failed: the database takes nothing more.
    failed: AtomicBool,
    // These are used by one thread at a time, the committer's or the journal's.
    /// What `records` belongs to while the database cannot be used.
    stand_in: Mutex<Option<(Database, Ended)>>,
    database: Mutex<Option<Database>>,
    generation: Mutex<u64>,
    copy: Mutex<Option<Copy>>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Nothing may be at work in the folder when the next store takes it.
        self.drop_copy();
    }
}

impl From<::redb::Error> for Fault {
    fn from(error: ::redb::Error) -> Self {
        match error {
            ::redb::Error::Io(error) => error.into(),
            ::redb::Error::Corrupted(why) => Fault::Corrupt(why),
            other => Fault::Io(other.to_string()),
        }
    }
}

fn fault(error: impl Into<::redb::Error>) -> Fault {
    error.into().into()
}

impl Engine {
    fn open(folder: Folder, options: Options) -> Result<Self, Fault> {
        let engine = Self {
            folder,
            cache_bytes: usize::try_from(options.cache_bytes).unwrap_or(usize::MAX),
            patience: options.check_at_start,
            records: ArcSwapOption::empty(),
            failed: AtomicBool::new(false),
            stand_in: Mutex::new(None),
            database: Mutex::new(None),
            generation: Mutex::new(0),
            copy: Mutex::new(None),
        };
        engine.start()?;
        engine.folder.sync_names()?;
        Ok(engine)
    }

    fn start(&self) -> Result<(), Fault> {
        let folder = self.folder.path();
        let current = generation::current(folder, is_of_redb)?;
        let file = generation::place(folder, current).join(FILE);
        if current > 0 && !file.exists() {
            return Err(Fault::Corrupt(format!("{} is current and missing", file.display())));
        }
        let database = self.create(&file)?;
        guarded(|| write(&database, Vec::new()))?;
        guarded(|| self.publish(&database))?;
        *self.database.lock() = Some(database);
        *self.generation.lock() = current;
        Ok(())
    }

    fn create(&self, file: &Path) -> Result<Database, Fault> {
        create(file, self.cache_bytes, self.reads_all_in_time(file))
    }

    /// redb's own check reads all of the file.
    fn reads_all_in_time(&self, file: &Path) -> bool {
        let bytes = std::fs::metadata(file).map_or(0, |file| file.len());
        u128::from(bytes) <= self.patience.as_millis().saturating_mul(CHECKED_IN_A_MILLISECOND)
    }

    fn publish(&self, database: &Database) -> Result<(), Fault> {
        self.records.store(Some(Arc::new(table_of(database)?)));
        Ok(())
    }

    /// Has readers read the file as it stands. The caller sees to it that nothing writes the file.
    /// Answers what readers read before.
    fn stand_aside(&self) -> Result<Option<Arc<Table>>, Fault> {
        let file = generation::place(self.folder.path(), *self.generation.lock()).join(FILE);
        let stand_in = StandIn::open(&file)?;
        let ended = stand_in.ended();
        let mut builder = Builder::new();
        builder.set_cache_size(self.cache_bytes).set_check_integrity_on_open(false);
        let database = guarded(|| builder.create_with_backend(stand_in).map_err(fault))?;
        let table = guarded(|| table_of(&database))?;
        let old = self.records.swap(Some(Arc::new(table)));
        *self.stand_in.lock() = Some((database, ended));
        Ok(old)
    }
}

/// Opens or makes a database; `checked` has redb read all of it and compare its checksums.
fn create(file: &Path, cache_bytes: usize, checked: bool) -> Result<Database, Fault> {
    let mut builder = Builder::new();
    builder.set_cache_size(cache_bytes).set_check_integrity_on_open(checked);
    match guarded(|| Ok(builder.create(file)))? {
        Err(DatabaseError::DatabaseAlreadyOpen) => Err(Fault::Io(format!("{} is in use by another process", file.display()))),
        other => other.map_err(fault),
    }
}

/// Waits until nobody but the caller holds a table; some time at most.
fn let_go(table: Option<Arc<Table>>) {
    let deadline = Instant::now() + LET_GO;
    while table.as_ref().is_some_and(|table| Arc::strong_count(table) > 1) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
}

fn table_of(database: &Database) -> Result<Table, Fault> {
    database.begin_read().map_err(fault)?.open_table(RECORDS).map_err(fault)
}

impl Backend for Engine {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        loop {
            let table = self.records.load();
            let found = table.as_ref().ok_or_else(being_reopened)?;
            let found = guarded(|| Ok(found.get(key).map_err(fault)?.map(|value| value.value().to_vec())));
            let is_same = |now: &Option<Arc<Table>>| match (&*table, now) {
                (Some(then), Some(now)) => Arc::ptr_eq(then, now),
                _ => false,
            };
            // What was read may have ended under it.
            if found.is_ok() || is_same(&self.records.load()) {
                return found;
            }
        }
    }

    fn visit(&self, from: &[u8], visitor: &mut dyn FnMut(&[u8], &[u8]) -> Step) -> Result<(), Fault> {
        let mut from = from.to_vec();
        loop {
            let table = self.records.load_full().ok_or_else(being_reopened)?;
            let visited = guarded(|| {
                'seek: loop {
                    for item in table.range_owned(from.as_slice()..).map_err(fault)? {
                        let (key, value) = item.map_err(fault)?;
                        match visitor(key.value(), value.value()) {
                            Step::Next => {
                                from.clear();
                                from.extend_from_slice(key.value());
                                from.push(0);
                            }
                            Step::Stop => return Ok(()),
                            Step::SkipTo(key) => {
                                from = key;
                                continue 'seek;
                            }
                        }
                    }
                    return Ok(());
                }
            });
            // What was visited may have ended under it: it goes on behind what was shown.
            if visited.is_ok() || self.records.load().as_ref().is_some_and(|now| Arc::ptr_eq(now, &table)) {
                return visited;
            }
        }
    }

    fn apply(&self, batch: Vec<Write>) -> Result<(), Fault> {
        let database = self.database.lock();
        let database = database.as_ref().ok_or_else(being_reopened)?;
        let applied = write(database, batch).and_then(|()| self.publish(database));
        if applied.is_err() {
            self.failed.store(true, Ordering::Release);
        }
        applied
    }

    fn keep_reading(&self) {
        if self.failed.load(Ordering::Acquire) && self.stand_in.lock().is_none() {
            match self.stand_aside() {
                Ok(old) => {
                    let_go(old);
                    *self.database.lock() = None;
                }
                Err(fault) => warn!(?fault, "the store's file cannot be opened for reading alone"),
            }
        }
    }

    /// A damaged page above the records' own may send a look-up past a record that is there.
    fn trust(&self) -> Trust {
        Trust::Counted { patience: self.patience, look_up: true }
    }

    fn bytes_on_disk(&self) -> u64 {
        generation::bytes(&generation::place(self.folder.path(), *self.generation.lock()), &is_of_redb)
    }

    fn clear_remains(&self) {
        generation::clear_others(self.folder.path(), *self.generation.lock(), is_of_redb);
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
        self.failed.store(true, Ordering::Release);
        let place = generation::place(self.folder.path(), *self.generation.lock());
        Folder::forget_cached(&place);
        self.keep_reading();
        if self.stand_in.lock().is_none() {
            let_go(self.records.swap(None));
            *self.database.lock() = None;
        }
        Folder::forget_cached(&place);
        let stood_in = self.stand_in.lock().take();
        // Readers wait while it may change under them.
        let mut ended = stood_in.as_ref().map(|(_, ended)| ended.write());
        let started = self.start();
        if started.is_ok() {
            self.failed.store(false, Ordering::Release);
        } else if let Err(fault) = self.stand_aside() {
            warn!(?fault, "the store's file cannot be opened for reading alone");
            self.records.store(None);
        }
        ended.iter_mut().for_each(|ended| **ended = true);
        started
    }
}

/// Whether a name in the folder belongs to redb.
pub(super) fn is_of_redb(name: &str) -> bool {
    name == FILE
}

/// One durable commit. The table is made when it is missing.
fn write(database: &Database, batch: Vec<Write>) -> Result<(), Fault> {
    let mut txn = database.begin_write().map_err(fault)?;
    let durability = if sync_is_skipped() { Durability::None } else { Durability::Immediate };
    txn.set_durability(durability).map_err(fault)?;
    // After a crash the file is usable at once, instead of after a walk over all of it.
    txn.set_quick_repair(true);
    {
        let mut table = txn.open_table(RECORDS).map_err(fault)?;
        for (key, value) in batch {
            match value {
                Some(value) => table.insert(key.as_slice(), value.as_slice()).map_err(fault)?,
                None => table.remove(key.as_slice()).map_err(fault)?,
            };
        }
    }
    txn.commit().map_err(fault)
}

fn being_reopened() -> Fault {
    Fault::Io("the store is being reopened after a failure".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_it_cannot_be_opened_again_everything_is_read_from_the_file() {
        let place = tempfile::tempdir().unwrap();
        let options = Options { cache_bytes: 64 << 10, ..Options::default() };
        let engine = Engine::open(Folder::open(place.path()).unwrap(), options).unwrap();
        let key = |n: u16| n.to_be_bytes().to_vec();
        let value = |n: u16| vec![n as u8; 2000];
        engine.apply((0..1000).map(|n| (key(n), Some(value(n)))).collect()).unwrap();
        let all_there = |when: &str| {
            for n in 0..1000 {
                assert!(engine.get(&key(n)).unwrap() == Some(value(n)), "{when}: {n}");
            }
            let mut seen = 0;
            let visited = engine.visit(&[], &mut |_, _| {
                seen += 1;
                Step::Next
            });
            visited.unwrap();
            assert_eq!(seen, 1000, "{when}");
        };
        std::fs::write(place.path().join("current"), "no generation").unwrap();
        for time in 0..3 {
            assert!(engine.reopen().is_err());
            all_there(&format!("after {time} failed openings"));
            assert!(engine.apply(vec![(key(1), None)]).is_err());
            engine.keep_reading();
        }
        std::thread::scope(|scope| {
            let reading =
                scope.spawn(|| (0..5000).for_each(|n| assert!(engine.get(&key(n % 1000)).unwrap() == Some(value(n % 1000)))));
            while !reading.is_finished() {
                assert!(engine.reopen().is_err());
            }
        });
        std::fs::remove_file(place.path().join("current")).unwrap();
        engine.reopen().unwrap();
        all_there("opened again");
        engine.apply(vec![(key(1), None)]).unwrap();
        assert_eq!(engine.get(&key(1)).unwrap(), None);
        engine.reopen().unwrap();
        assert_eq!(engine.get(&key(1)).unwrap(), None);
    }
}
