//! The copy that a compaction makes of redb's file, until it takes over.
//!
//! Before it does, it is closed and opened again, with redb's own check of every page's checksum. The page cache forgets the file before that, so
//! that what is checked, and read back afterwards (see [`super::super::compact`]), is what the disk has.

use std::{
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
};

use ::redb::Database;

use super::{Engine, FILE, create, fault, is_of_redb, table_of, write};
use crate::{
    crashpoint::reach,
    storage::{
        backend::{Copied, Fault, Records, Write, guarded},
        folder::Folder,
        generation,
    },
};

pub(super) enum Copy {
    /// Being written.
    Filling(u64, Database),
    /// Being closed and opened again, with redb's own check of every page.
    Settling(JoinHandle<Result<(u64, Database), Fault>>),
    /// Opened again.
    Settled(u64, Arc<Database>),
}

impl Engine {
    pub(super) fn begin(&self, bytes: u64) -> Result<(), Fault> {
        generation::refuse_without_room(self.folder.path(), bytes)?;
        let generation = *self.generation.lock() + 1;
        let place = generation::make(self.folder.path(), generation)?;
        let database = self.create(&place.join(FILE))?;
        write(&database, Vec::new())?;
        *self.copy.lock() = Some(Copy::Filling(generation, database));
        Ok(())
    }

    pub(super) fn write_to_copy(&self, batch: Vec<Write>) -> Result<(), Fault> {
        match &*self.copy.lock() {
            Some(Copy::Filling(_, database)) => write(database, batch),
            Some(Copy::Settled(_, database)) => write(database, batch),
            _ => Err(no_copy()),
        }
    }

    pub(super) fn settle(&self) -> Result<bool, Fault> {
        let mut copy = self.copy.lock();
        let (settled, ready) = match copy.take().ok_or_else(no_copy)? {
            Copy::Filling(generation, database) => {
                let (folder, cache_bytes) = (self.folder.path().to_owned(), self.cache_bytes);
                let settle = move || settle(database, &folder, generation, cache_bytes);
                (Copy::Settling(thread::Builder::new().name("storage-settle".into()).spawn(settle)?), false)
            }
            Copy::Settling(thread) if thread.is_finished() => {
                let opened = thread.join().unwrap_or_else(|_panic| Err(Fault::Io("the copy could not be opened again".into())));
                let (generation, database) = opened?;
                (Copy::Settled(generation, Arc::new(database)), true)
            }
            Copy::Settling(thread) => (Copy::Settling(thread), false),
            Copy::Settled(generation, database) => (Copy::Settled(generation, database), true),
        };
        *copy = Some(settled);
        Ok(ready)
    }

    pub(super) fn settled(&self) -> Result<Box<dyn Copied>, Fault> {
        match &*self.copy.lock() {
            Some(Copy::Settled(_, database)) => Ok(Box::new(Settled(Arc::clone(database)))),
            _ => Err(no_copy()),
        }
    }

    pub(super) fn take_over(&self) -> Result<(), Fault> {
        // Each of its batches was synced.
        let Some(Copy::Settled(generation, database)) = self.copy.lock().take() else { return Err(no_copy()) };
        let database = Arc::into_inner(database).ok_or_else(|| Fault::Io("the copy is still read".into()))?;
        reach("compaction-copied");
        generation::make_current(self.folder.path(), generation)?;
        reach("compaction-current");
        self.publish(&database)?;
        *self.generation.lock() = generation;
        // Readers that still hold the old table keep its open file.
        *self.database.lock() = Some(database);
        generation::clear_others(self.folder.path(), generation, is_of_redb);
        Ok(())
    }

    pub(super) fn drop_copy(&self) {
        let copy = self.copy.lock().take();
        if let Some(Copy::Settling(thread)) = copy {
            drop(thread.join());
        }
    }

    pub(super) fn abandon(&self) {
        self.drop_copy();
        // What is current is told by the folder: a failed taking over may have changed it.
        if let Ok(current) = generation::current(self.folder.path(), is_of_redb)
            && current == *self.generation.lock()
        {
            generation::clear_others(self.folder.path(), current, is_of_redb);
        }
    }
}

fn no_copy() -> Fault {
    Fault::Io("no copy was begun".into())
}

/// Closes a copy, has the page cache forget it and opens it again: from then on it is what the disk has.
fn settle(database: Database, folder: &Path, generation: u64, cache_bytes: usize) -> Result<(u64, Database), Fault> {
    guarded(|| {
        drop(database);
        Ok(())
    })?;
    let place = generation::place(folder, generation);
    #[cfg(test)]
    crate::storage::compact::spoil::spoil(folder, &place);
    // redb has synced it.
    Folder::forget_cached(&place);
    Ok((generation, create(&place.join(FILE), cache_bytes, true)?))
}

/// The copy as it was opened again.
struct Settled(Arc<Database>);

impl Copied for Settled {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        guarded(|| Ok(table_of(&self.0)?.get(key).map_err(fault)?.map(|value| value.value().to_vec())))
    }

    fn page(&self, from: &[u8], limit: usize, bytes: usize) -> Result<Records, Fault> {
        guarded(|| {
            let mut page = Records::new();
            let mut size = 0;
            for record in table_of(&self.0)?.range(from..).map_err(fault)? {
                let (key, value) = record.map_err(fault)?;
                size += key.value().len() + value.value().len();
                page.push((key.value().to_vec(), value.value().to_vec()));
                if page.len() >= limit || size >= bytes {
                    break;
                }
            }
            Ok(page)
        })
    }
}
