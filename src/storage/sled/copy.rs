//! The copy that a compaction makes of sled's files, until it takes over.
//!
//! Before it does, it is closed and opened twice. sled writes the table of its pages only when it opens, and without that the next start would
//! have to read the whole copy; the second opening is from that table, as the next start's will be. Between the openings the page
//! cache forgets the files, so that what is read back afterwards (see [`super::super::compact`]) is what the disk has: an opening is where sled
//! takes what it cannot read for absent.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{Engine, Instance, LET_GO, closing::Flushing, is_of_sled, open, wait_for_own_predecessor};
use crate::{
    crashpoint::reach,
    storage::{
        backend::{Copied, Fault, Records, Write, guarded},
        folder::Folder,
        generation,
    },
};

/// How long the store waits for a copy that is given up; what takes longer is looked after, see [`super::closing`].
const LET_COPY_GO: Duration = Duration::from_secs(1);

pub(super) enum Copy {
    /// Being written.
    Filling(Instance),
    /// Being closed and opened again.
    Settling(JoinHandle<Result<Instance, Fault>>),
    /// Opened again.
    Settled(Instance),
}

impl Copy {
    fn instance(&self) -> Result<&Instance, Fault> {
        match self {
            Self::Filling(instance) | Self::Settled(instance) => Ok(instance),
            Self::Settling(_) => Err(Fault::Io("the copy is being opened again".into())),
        }
    }
}

impl Engine {
    pub(super) fn begin(&self, bytes: u64) -> Result<(), Fault> {
        generation::refuse_without_room(self.folder.path(), bytes)?;
        let generation = *self.generation.lock() + 1;
        let place = generation::make(self.folder.path(), generation)?;
        *self.copy.lock() = Some(Copy::Filling(open(&place, generation, self.cache_bytes, &self.flushing)?));
        Ok(())
    }

    pub(super) fn write_to_copy(&self, batch: Vec<Write>) -> Result<(), Fault> {
        let copy = self.copy.lock();
        let db = &copy.as_ref().ok_or_else(no_copy)?.instance()?.db;
        let ordered: BTreeMap<_, _> = batch.into_iter().collect();
        // sled splits a page of more than 16 records into halves. Written one after the other they would stay half empty, and
        // every page costs memory and time at a start. Two in three first and then the rest leaves pages of 12: fuller
        // ones would all be split by the next writes.
        for second in [false, true] {
            for (_, (key, value)) in ordered.iter().enumerate().filter(|(at, _)| (at % 3 == 2) == second) {
                match value {
                    Some(value) => db.insert(key, value.as_slice())?,
                    None => db.remove(key)?,
                };
            }
        }
        Ok(())
    }

    pub(super) fn settle(&self) -> Result<bool, Fault> {
        let mut copy = self.copy.lock();
        let (settled, ready) = match copy.take().ok_or_else(no_copy)? {
            Copy::Filling(instance) => {
                let (folder, cache_bytes) = (self.folder.path().to_owned(), self.cache_bytes);
                let flushing = Arc::clone(&self.flushing);
                let settle = move || settle(instance, &folder, cache_bytes, &flushing);
                (Copy::Settling(thread::Builder::new().name("storage-settle".into()).spawn(settle)?), false)
            }
            Copy::Settling(thread) if thread.is_finished() => {
                let opened = thread.join().unwrap_or_else(|_panic| Err(Fault::Io("the copy could not be opened again".into())));
                (Copy::Settled(opened?), true)
            }
            Copy::Settling(thread) => (Copy::Settling(thread), false),
            Copy::Settled(instance) => (Copy::Settled(instance), true),
        };
        *copy = Some(settled);
        Ok(ready)
    }

    pub(super) fn settled(&self) -> Result<Box<dyn Copied>, Fault> {
        match &*self.copy.lock() {
            Some(Copy::Settled(instance)) => Ok(Box::new(Settled(instance.db.clone()))),
            _ => Err(no_copy()),
        }
    }

    pub(super) fn take_over(&self) -> Result<(), Fault> {
        let Some(Copy::Settled(mut copy)) = self.copy.lock().take() else { return Err(no_copy()) };
        self.flushing.flush_copy(&copy.db)?;
        copy.durability.sync()?;
        reach("compaction-copied");
        generation::make_current(self.folder.path(), copy.generation)?;
        reach("compaction-current");
        let old = self.publish(Some(copy.db), BTreeMap::new());
        if let Some(db) = old.db.clone() {
            // Nobody waits for it: its files are on their way out.
            drop(self.flushing.close(db, old));
        }
        self.flushing.met_error(false);
        *self.durability.lock() = Some(copy.durability);
        *self.generation.lock() = copy.generation;
        // Readers that still hold the old instance keep its open files.
        generation::clear_others(self.folder.path(), copy.generation, is_of_sled);
        Ok(())
    }

    pub(super) fn abandon(&self) {
        self.drop_copy();
        // What is current is told by the folder: a failed taking over may have changed it.
        if let Ok(current) = generation::current(self.folder.path(), is_of_sled)
            && current == *self.generation.lock()
        {
            generation::clear_others(self.folder.path(), current, is_of_sled);
        }
    }

    pub(super) fn drop_copy(&self) {
        let copy = self.copy.lock().take();
        let instance = match copy {
            Some(Copy::Filling(instance) | Copy::Settled(instance)) => Some(instance),
            Some(Copy::Settling(thread)) => thread.join().ok().and_then(Result::ok),
            None => None,
        };
        if let Some(Instance { db, .. }) = instance
            && !self.flushing.close(db, ()).wait(LET_COPY_GO)
        {
            tracing::warn!("sled does not end the flush of a copy that is not used");
        }
    }
}

fn no_copy() -> Fault {
    Fault::Io("no copy was begun".into())
}

/// Closes a copy and opens it again, twice.
fn settle(mut instance: Instance, folder: &Path, cache_bytes: u64, flushing: &Arc<Flushing>) -> Result<Instance, Fault> {
    let place = generation::place(folder, instance.generation);
    for _ in 0..2 {
        let Instance { db, mut durability, generation } = instance;
        guarded(|| Ok(flushing.flush_copy(&db)?))?;
        durability.sync()?;
        if !flushing.close(db, ()).wait(LET_GO) || !wait_for_own_predecessor(&place)? {
            return Err(Fault::Io("sled does not let go of the copy".into()));
        }
        #[cfg(test)]
        crate::storage::compact::spoil::spoil(folder, &place);
        Folder::forget_cached(&place);
        instance = open(&place, generation, cache_bytes, flushing)?;
    }
    Ok(instance)
}

/// The copy as it was opened again.
struct Settled(::sled::Db);

impl Copied for Settled {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        guarded(|| Ok(self.0.get(key)?.map(|value| value.to_vec())))
    }

    fn page(&self, from: &[u8], limit: usize, bytes: usize) -> Result<Records, Fault> {
        guarded(|| {
            let mut page = Records::new();
            let mut size = 0;
            for record in self.0.range(from..) {
                let (key, value) = record?;
                size += key.len() + value.len();
                page.push((key.to_vec(), value.to_vec()));
                if page.len() >= limit || size >= bytes {
                    break;
                }
            }
            Ok(page)
        })
    }
}
