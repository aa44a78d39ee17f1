//! The thread that gives an engine what its journal has, and what writers wait for.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use tracing::error;

use super::{
    APPENDED, APPENDED_AT_MOST, AT_MOST, CALM, KEPT, KEPT_CALM, Map, OLD, PAGES, PART, SPARE, Shared, TIGHT, TOGETHER, Value,
};
use crate::{
    crashpoint::reach,
    storage::{
        backend::{Backend, Before, Fault, Write},
        group::SEQUENCE,
        journal::Journal,
    },
};

impl<E: Backend> Shared<E> {
    /// The mover's thread.
    pub(super) fn run(&self) {
        let mut seen = 0;
        loop {
            let mut state = self.state.lock();
            if !state.wanted && !state.stopping {
                self.changed.wait_for(&mut state, CALM);
            }
            if let Some(fault) = &state.failed {
                // What is frozen has its journal.
                if state.stopping {
                    return;
                }
                let full = matches!(fault, Fault::Full(_));
                let waited = self.changed.wait_for(&mut state, CALM).timed_out();
                if full && waited {
                    (state.failed, state.wanted) = (None, true);
                }
                continue;
            }
            let (wanted, stopping) = (std::mem::take(&mut state.wanted), state.stopping);
            let calm = state.batches == seen;
            seen = state.batches;
            drop(state);
            // Who appends may be waiting for this thread.
            if !wanted
                && (calm || stopping)
                && let Some(mut journal) = self.journal.try_lock()
                && !self.freeze(&mut journal)
                && self.recent.read().is_empty()
            {
                journal.cut(self.kept(KEPT_CALM));
            }
            let moved = self.move_frozen();
            if stopping && !(moved && self.recent.read().is_active()) {
                return;
            }
        }
    }

    /// Sends what was written since on its way, unless something is on it. The journal goes on in its other file.
    pub(super) fn freeze(&self, journal: &mut Journal) -> bool {
        let mut recent = self.recent.write();
        if recent.frozen().is_some() || !recent.is_active() {
            return false;
        }
        recent.freeze();
        journal.switch();
        reach("journal-switched");
        true
    }

    /// Gives what is frozen to the engine; false when it failed.
    pub(super) fn move_frozen(&self) -> bool {
        let changing = self.changing.lock();
        let Some(frozen) = self.recent.read().frozen() else { return true };
        let applied = match self.has_room(frozen.iter()) {
            true => self.give(frozen.iter()),
            false => self.give_in_parts(&frozen),
        };
        reach("engine-applied");
        let moved = applied.is_ok();
        match applied {
            Ok(()) => {
                // As long as it is frozen nobody goes on in that file.
                self.files.cut_left(self.kept(KEPT));
                reach("journal-cut");
                self.recent.write().moved();
                self.state.lock().told = false;
            }
            Err(fault) => {
                let mut state = self.state.lock();
                if !std::mem::replace(&mut state.told, true) {
                    let text = "the store's engine does not take what was written: it is kept in the journal and tried again; look at the disk and its free space";
                    error!(?fault, "{text}");
                }
                state.failed = Some(fault);
            }
        }
        drop(changing);
        self.changed.notify_all();
        moved
    }

    /// How much of a file is kept for its next use, at most.
    pub(super) fn kept(&self, most: u64) -> u64 {
        if (self.free)() < TIGHT { 0 } else { most }
    }

    fn give<'m>(&self, entries: impl Iterator<Item = (&'m Vec<u8>, &'m Value)>) -> Result<(), Fault> {
        let not_known = |fault| match fault {
            // Others have filled the disk meanwhile. The engine is not to be used before it was opened again.
            Fault::Full(why) => Fault::Io(why),
            other => other,
        };
        let batch = entries.map(|(key, value)| (key.clone(), value.as_deref().map(<[u8]>::to_vec))).collect();
        // Readers find all of these keys in memory: the engine need not remember what they held.
        catch_unwind(AssertUnwindSafe(|| self.engine.apply_over(batch, Before::new())))
            .unwrap_or_else(|_panic| Err(Fault::Io("the engine panicked".into())))
            .map_err(not_known)
    }

    /// Whether the disk has room for what an engine may write for these entries: a page for each, and the pages above.
    fn has_room<'m>(&self, entries: impl Iterator<Item = (&'m Vec<u8>, &'m Value)>) -> bool {
        let needed =
            entries.map(|(key, value)| PAGES + 2 * (key.len() + value.as_ref().map_or(0, |value| value.len()))).sum::<usize>();
        (self.free)() >= u64::try_from(needed).unwrap_or(u64::MAX).saturating_add(SPARE)
    }

    /// On a full disk: what makes room first, and so little at once that the room of the last part serves the next. The sequence
    /// sorts behind all other keys and so comes last; until it is there the journal is what counts.
    fn give_in_parts(&self, frozen: &Map) -> Result<(), Fault> {
        let (deleted, written): (Vec<_>, Vec<_>) = frozen.iter().partition(|(_, value)| value.is_none());
        let mut parts = deleted.chunks(PART).chain(written.chunks(PART));
        parts.try_for_each(|part| match self.has_room(part.iter().copied()) {
            true => self.give(part.iter().copied()),
            false => Err(Fault::Full("the disk has no room for what was written; it is kept in the journal".into())),
        })
    }

    /// Gives all that was written to the engine.
    pub(super) fn move_all(&self, journal: &mut Journal) -> Result<(), Fault> {
        while !self.recent.read().is_empty() {
            self.freeze(journal);
            if !self.move_frozen() {
                return Err(self.state.lock().failed.clone().unwrap_or_else(|| Fault::Io("the engine takes nothing".into())));
            }
        }
        Ok(())
    }

    /// Before a batch: freezes when enough has gathered, and waits while there is too much.
    pub(super) fn gathered(&self, journal: &mut Journal, batch: &[Write]) -> Result<(), Fault> {
        let only_deletes = batch.iter().all(|(key, value)| value.is_none() || key == SEQUENCE);
        let (at_most, appended_at_most) =
            if only_deletes { (AT_MOST * 2, APPENDED_AT_MOST * 2) } else { (AT_MOST, APPENDED_AT_MOST) };
        let mut state = self.state.lock();
        state.batches += 1;
        loop {
            let (bytes, is_active) = {
                let recent = self.recent.read();
                (recent.bytes(), recent.is_active())
            };
            if !is_active {
                state.since = Some(Instant::now());
                return Ok(());
            }
            let is_old = state.since.is_some_and(|since| since.elapsed() >= OLD);
            if bytes < TOGETHER && journal.at() < APPENDED && !is_old {
                return Ok(());
            }
            if self.freeze(journal) {
                state.wanted = true;
                state.since = Some(Instant::now());
                self.changed.notify_all();
                return Ok(());
            }
            if bytes < at_most && journal.at() < appended_at_most {
                return Ok(());
            }
            if let Some(fault) = &state.failed {
                return Err(fault.clone());
            }
            self.changed.wait_for(&mut state, CALM);
        }
    }
}
