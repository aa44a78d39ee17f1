//! An engine behind a journal: a commit is one append and one sync, whatever the engine takes to write.
//!
//! A batch is durable when the journal has it ([`super::journal`]) and is kept in memory from then on ([`super::recent`]). When
//! some megabytes have gathered in memory or in the journal (where what is written over and over takes room each time), when the oldest
//! has waited for some seconds, or when nothing was written for a moment, they are frozen and a thread gives them to the engine as one
//! batch of its own, while the other file of the journal takes what is written next. So an engine that needs many writes, two syncs
//! or some milliseconds for a commit does so a few times a second, for thousands of records, and nobody waits for it. As soon as the
//! engine has them durably, the file that held them is cut.
//!
//! Both memory and journal are bounded: while the engine is so far behind that either is full, writers wait until it has taken what
//! is frozen, for as long as that takes, or have its error when it fails.
//!
//! Readers look into memory first. What moves from memory to the engine is the same in both, so a look-up needs no lock over
//! both; a visit that finds that something moved before it began begins again.
//!
//! When the engine fails, nothing is lost: what is frozen stays in memory and in its journal until the engine was opened
//! again, which [`Backend::is_failing`] asks for. On a full disk it is given in small parts, deletions first, and tried again
//! every second.

mod mover;

use std::{
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, RwLock};

use super::{
    Version,
    backend::{Backend, Copied, Fault, Step, Trust, Write},
    frame,
    group::SEQUENCE,
    journal::{Files, Found, Journal, KEPT, Place},
    recent::{Map, Merge, Recent, Value},
    space::free_at,
};

/// So much in memory is frozen and given to the engine at once.
const TOGETHER: usize = 2 << 20;

/// And whatever has gathered in memory when so much was appended to the journal since. What is kept of a file is as much, so
/// that one in steady use does not grow.
const APPENDED: u64 = KEPT;

/// Writers wait for the engine when so much has gathered in memory or in the journal, or twice as much where they only delete.
const AT_MOST: usize = 8 << 20;
const APPENDED_AT_MOST: u64 = 32 << 20;

/// Of each file of the journal so much is kept when there is nothing to do.
const KEPT_CALM: u64 = 1 << 20;

/// Nothing is kept of the journal's files beyond what they hold where less is free.
const TIGHT: u64 = 128 << 20;

/// Entries that the engine is given at once on a full disk.
const PART: usize = 128;

/// Bytes that an engine may write for an entry beside the entry itself, and for a batch of any size.
const PAGES: usize = 8 << 10;
const SPARE: u64 = 1 << 20;

/// What was written goes to the engine when nothing more came for so long.
const CALM: Duration = Duration::from_secs(1);

/// What was written goes to the engine after so long, however little it is and whatever comes behind it.
const OLD: Duration = Duration::from_secs(10);

/// An engine with its journal.
pub(super) struct Journaled<E: Backend> {
    shared: Arc<Shared<E>>,
    mover: Option<JoinHandle<()>>,
}

struct Shared<E> {
    engine: E,
    /// Bytes that are free on the file system.
    free: Box<dyn Fn() -> u64 + Send + Sync>,
    /// Locked before `recent` where both are.
    journal: Mutex<Journal>,
    /// Of the journal.
    files: Arc<Files>,
    recent: RwLock<Recent>,
    /// Held while the engine's files change.
    changing: Mutex<()>,
    state: Mutex<State>,
    /// The mover has something to do, or has done it.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Something was frozen.
    wanted: bool,
    /// Batches since the mover last looked.
    batches: u64,
    /// When the oldest batch was written that is not frozen.
    since: Option<Instant>,
    /// Why the engine takes nothing until it is opened again.
    failed: Option<Fault>,
    /// That it takes nothing stands in the log already.
    told: bool,
    stopping: bool,
}

impl<E: Backend> Journaled<E> {
    /// Takes an open engine whose folder is `store`, and what its journal has beyond it. `unmarked` says that the note of the last
    /// acknowledged version, which would tell what the journal has lost at its end, is damaged: then it must have lost nothing.
    pub(super) fn start(engine: E, store: &Path, unmarked: bool) -> Result<Self, Fault> {
        let folder = store.to_owned();
        Self::with_room(engine, store, unmarked, Box::new(move || free_at(&folder)))
    }

    fn with_room(engine: E, store: &Path, unmarked: bool, free: Box<dyn Fn() -> u64 + Send + Sync>) -> Result<Self, Fault> {
        let mut journal = Journal::open(store)?;
        let (recent, found) = read(&mut journal, version_of(&engine)?, 0)?;
        if unmarked && (found.torn || found.made) {
            let what = if found.torn { "the journal's last record is not whole" } else { "a file of the journal is missing" };
            return Err(Fault::Corrupt(format!(
                "{what}, and the note that would tell whether acknowledged writes were in it is damaged; restore a backup, or remove the file \"acknowledged\" to take the store as it is"
            )));
        }
        let state = State { wanted: recent.frozen().is_some(), batches: 1, since: Some(Instant::now()), ..State::default() };
        let shared = Arc::new(Shared {
            engine,
            free,
            files: journal.files(),
            journal: Mutex::new(journal),
            recent: RwLock::new(recent),
            changing: Mutex::new(()),
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let moving = Arc::clone(&shared);
        let mover = thread::Builder::new().name("storage-mover".into()).spawn(move || moving.run())?;
        Ok(Self { shared, mover: Some(mover) })
    }
}

impl<E: Backend> Drop for Journaled<E> {
    fn drop(&mut self) {
        self.shared.state.lock().stopping = true;
        self.shared.changed.notify_all();
        if let Some(mover) = self.mover.take() {
            let _ = mover.join();
        }
    }
}

/// The version that the engine ends at, 0 when it is empty.
fn version_of(engine: &impl Backend) -> Result<Version, Fault> {
    let framed = engine.get(SEQUENCE)?;
    framed.map_or(Ok(0), |framed| frame::decode_version(SEQUENCE, &framed).map_err(Fault::Corrupt))
}

/// What the journal has that an engine which ends at `version` does not have.
fn read(journal: &mut Journal, version: Version, moves: u64) -> Result<(Recent, Found), Fault> {
    let (mut older, mut newer) = (Recent::default(), Recent::default());
    let found = journal.read(version, &mut |place, batch| match place {
        Place::Older => older.insert(batch),
        Place::Newer => newer.insert(batch),
    })?;
    Ok((Recent::found(older, newer, moves), found))
}

impl<E: Backend> Backend for Journaled<E> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        let recent = self.shared.recent.read().get(key);
        match recent {
            Some(value) => Ok(value.map(|value| value.to_vec())),
            None => self.shared.engine.get(key),
        }
    }

    fn visit(&self, from: &[u8], visitor: &mut dyn FnMut(&[u8], &[u8]) -> Step) -> Result<(), Fault> {
        self.visit_within(b"", from, visitor)
    }

    /// Shows memory as of the beginning, and the engine as it shows itself.
    fn visit_within(&self, prefix: &[u8], from: &[u8], visitor: &mut dyn FnMut(&[u8], &[u8]) -> Step) -> Result<(), Fault> {
        loop {
            let (recent, moves) = {
                let recent = self.shared.recent.read();
                (recent.within(prefix, from), recent.moves())
            };
            // What moved before the engine was looked at would be missed, or seen as it became later.
            let moved = || self.shared.recent.read().moves() != moves;
            let (mut merge, mut begun, mut again) = (Merge::new(recent, from, visitor), false, false);
            self.shared.engine.visit(from, &mut |key, value| {
                if !begun && moved() {
                    again = true;
                    return Step::Stop;
                }
                begun = true;
                merge.meet(key, value)
            })?;
            if !again && (begun || !moved()) {
                merge.finish();
                return Ok(());
            }
        }
    }

    /// A batch without a sequence is none of the committer's: the engine takes it at once.
    fn apply(&self, batch: Vec<Write>) -> Result<(), Fault> {
        let mut journal = self.shared.journal.lock();
        let sequence = batch.iter().rev().find(|(key, _)| key == SEQUENCE).and_then(|(_, value)| value.as_deref());
        let Some(sequence) = sequence else {
            self.shared.move_all(&mut journal)?;
            return self.shared.engine.apply(batch);
        };
        let version = frame::decode_version(SEQUENCE, sequence);
        let version = version.map_err(|why| Fault::Io(format!("the version of a batch: {why}")))?;
        self.shared.gathered(&mut journal, &batch)?;
        journal.append(version, &batch)?;
        self.shared.recent.write().insert(batch);
        Ok(())
    }

    fn trust(&self) -> Trust {
        self.shared.engine.trust()
    }

    fn is_failing(&self) -> bool {
        // A full disk is waited for.
        matches!(&self.shared.state.lock().failed, Some(fault) if !matches!(fault, Fault::Full(_)))
    }

    fn bytes_on_disk(&self) -> u64 {
        self.shared.engine.bytes_on_disk()
    }

    fn clear_remains(&self) {
        self.shared.engine.clear_remains();
    }

    fn begin_copy(&self, bytes: u64) -> Result<(), Fault> {
        self.shared.engine.begin_copy(bytes)
    }

    fn write_copy(&self, batch: Vec<Write>) -> Result<(), Fault> {
        self.shared.engine.write_copy(batch)
    }

    fn settle_copy(&self) -> Result<bool, Fault> {
        self.shared.engine.settle_copy()
    }

    fn copied(&self) -> Result<Box<dyn Copied>, Fault> {
        self.shared.engine.copied()
    }

    /// The copy has all that was written, also what is only in memory. What is frozen must not follow: it would put back what was written
    /// over it since.
    fn let_copy_take_over(&self) -> Result<(), Fault> {
        let shared = &self.shared;
        let _changing = shared.changing.lock();
        shared.engine.let_copy_take_over()?;
        if shared.recent.read().frozen().is_some() {
            shared.files.cut_left(shared.kept(KEPT));
        }
        shared.recent.write().moved();
        Ok(())
    }

    fn abandon_copy(&self) {
        self.shared.engine.abandon_copy();
    }

    fn keep_reading(&self) {
        let _changing = self.shared.changing.lock();
        self.shared.engine.keep_reading();
    }

    fn reopen(&self) -> Result<(), Fault> {
        let shared = &self.shared;
        let mut journal = shared.journal.lock();
        let _changing = shared.changing.lock();
        shared.engine.reopen()?;
        let moves = shared.recent.read().moves();
        let (found, _) = read(&mut journal, version_of(&shared.engine)?, moves)?;
        let mut recent = shared.recent.write();
        *recent = found;
        let mut state = shared.state.lock();
        state.failed = None;
        state.since = Some(Instant::now());
        state.wanted = recent.frozen().is_some();
        shared.changed.notify_all();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
