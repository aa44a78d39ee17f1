//! The engine started afresh after a failure, and what it holds taken over.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tracing::{error, info};

use super::{committer::Committer, failed_at, records::read_sequence};
use crate::storage::{
    StorageError, Version,
    backend::{Fault, Trust, guarded},
    mark::Mark,
    space::Space,
};

/// Whether the engine failed and could not be opened afresh yet, shown to others as [`Storage::doubts`](crate::storage::Storage::doubts).
pub(super) struct Broken {
    now: bool,
    doubts: Arc<AtomicU64>,
}

impl Broken {
    pub(super) fn new(doubts: Arc<AtomicU64>) -> Self {
        Self { now: false, doubts }
    }

    pub(super) fn is(&self) -> bool {
        self.now
    }

    pub(super) fn set(&mut self, broken: bool) {
        if self.now != broken {
            self.now = broken;
            self.doubts.fetch_add(1, Ordering::Release);
        }
    }
}

impl Committer {
    /// After a failed batch: starts the engine afresh and finds the error to tell.
    pub(super) fn recover(&mut self, fault: Fault) -> StorageError {
        error!(?fault, "writing to the store failed; the engine is reopened");
        let given = self.sequence;
        self.broken.set(true);
        let full = match (&fault, &mut self.space) {
            (Fault::Full(_), Some(space)) => Some(space.met_full_disk()),
            _ => None,
        };
        let found = self.reopen();
        let why = match fault {
            Fault::Full(why) | Fault::Corrupt(why) | Fault::Io(why) => why,
        };
        match (full, found) {
            // `Full` promises that nothing was written; the sequence is part of the batch and tells.
            (Some(full), Ok(found)) if found < given => full,
            _ => StorageError::Io(format!("{why}; whether the write took effect is not known")),
        }
    }

    /// Reopens the engine; the last sequence that it holds.
    pub(super) fn reopen(&mut self) -> Result<Version, StorageError> {
        self.listings.begin_all();
        self.compaction.abandon(&*self.backend, &Fault::Io("the engine is reopened".into()));
        // Engines write when they open. As long as the disk takes nothing the old instance goes on serving reads.
        if let Some(Err(error)) = self.space.as_mut().map(Space::probe) {
            let _ = guarded(|| {
                self.backend.keep_reading();
                Ok(())
            });
            return Err(error);
        }
        let found = catch_unwind(AssertUnwindSafe(|| {
            self.backend.reopen().map_err(|fault| failed_at(b"", fault))?;
            self.examine()
        }))
        .unwrap_or_else(|_panic| Err(StorageError::Io("the engine panicked".into())));
        match found {
            Ok(found) => {
                self.listings.end_all();
                self.broken.set(false);
                info!(sequence = found, "the store is open again");
                Ok(found)
            }
            Err(error) => {
                error!(%error, "the store cannot be reopened yet");
                if let StorageError::Corrupt { reason, .. } = &error {
                    let _ = self.lost.set(reason.clone());
                }
                Err(error)
            }
        }
    }

    /// Takes over the sequence and the census of what the engine holds, and answers that sequence. Refuses a store that
    /// lost something; counting versions from 0 again would give them twice.
    pub(super) fn examine(&mut self) -> Result<Version, StorageError> {
        let (found, written) = read_sequence(&*self.backend)?;
        self.mark.as_ref().map_or(Ok(()), |mark| mark.check(found))?;
        self.census = written;
        if self.backend.trust() != Trust::Proven {
            let snapshot = self.snapshots.open(&self.backend, &self.lost, found);
            // Without the note the operator takes the store as it is.
            let as_it_is = self.mark.as_ref().is_some_and(Mark::is_blank);
            self.census = self.check.begin(snapshot, written, self.looks_up(), as_it_is)?;
        }
        // Versions given to a failed batch are burnt: nothing may get them again.
        self.sequence = self.sequence.max(found);
        self.remains = true;
        self.clear_remains();
        Ok(found)
    }

    pub(super) fn looks_up(&self) -> bool {
        matches!(self.backend.trust(), Trust::Counted { look_up: true, .. })
    }
}
