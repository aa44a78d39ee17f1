//! Files that have grown far beyond what they hold are written anew, while the store serves.
//!
//! Neither engine gives much space back by itself: sled's log and redb's file keep the room that overwritten and
//! deleted records had. The committer copies the records, in steps between its batches, into a new generation of the
//! engine's files (see [`super::generation`]) and repeats there what the batches change behind the copy. The copy is then closed, opened
//! from the disk and read back whole ([`read_back`]); when it has what the store has it takes over, and otherwise the
//! old files go on. Readers notice nothing.

mod read_back;
#[cfg(test)]
pub(super) mod spoil;

use std::{
    thread,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::{
    StorageError,
    backend::{Backend, Fault, Step, Write, guarded},
    census::{Census, Weight, weight},
    group::{SEQUENCE, failed_at, just_behind},
};
use read_back::ReadBack;

/// How often the files are looked at while they change.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// The files are written anew when they are larger than this many times the records, and `compact_above` more. While much
/// is written sled's log is about three times its records, and a copy would soon be so too.
const TIMES: u64 = 4;

/// The same while little is written.
const TIMES_CALM: u64 = 2;

/// See [`super::Options::compact_above`].
pub(super) const SLACK: u64 = 8 << 20;

/// A store is calm when less than so many bytes were written in so much time. It is made tidier then: less room is left
/// in its files, and a start has less to read.
const CALM: (u64, Duration) = (1 << 20, Duration::from_secs(30));

/// How long a failed attempt rests.
const REST: Duration = Duration::from_secs(60);

/// Records, and bytes of them, that are copied in one step.
const STEP: (usize, usize) = (2048, 1 << 20);

/// Bytes of changes that are kept in memory while the copy is opened again; beyond that writers wait for it.
const CHANGES_AT_MOST: usize = 64 << 20;

/// How long is waited for what other threads do with the copy, before it is looked at again.
const WAIT: Duration = Duration::from_millis(2);

/// The answer to a compaction that was asked for.
pub(super) type Answer = oneshot::Sender<Result<(), StorageError>>;

/// The committer's care for the size of the files.
pub(super) struct Compaction {
    copying: Option<Copying>,
    /// When the files are looked at next; `None` while nothing has changed.
    look_at: Option<Instant>,
    rest_until: Option<Instant>,
    /// Since when `written` counts the bytes of batches.
    since: Instant,
    written: u64,
    calm: bool,
    /// Bytes of the files after the last compaction, and of the records that it copied.
    settled: Option<(u64, u64)>,
    /// See [`super::Options::compact_above`].
    slack: u64,
}

/// A copy under way.
struct Copying {
    /// Keys before this one are in the copy.
    next: Vec<u8>,
    /// Changes to them that are not yet there, and their bytes.
    changes: Vec<Change>,
    changed: usize,
    /// The number of the last commit that was written to the copy.
    sequence: Option<Vec<u8>>,
    /// What was given to the copy, the changes included.
    census: Census,
    begun: Instant,
    /// Bytes of the files, and of their records, when it began.
    bytes: u64,
    records: u64,
    said: Instant,
    /// All records are there; the copy is made ready to take over.
    settling: bool,
    /// What it really holds, once it was opened again.
    read_back: Option<ReadBack>,
    answer: Option<Answer>,
}

/// A write to the copy, and the weight of what stood there before.
type Change = (Write, Option<Weight>);

/// What a batch changes behind the copy.
#[derive(Default)]
pub(super) struct Behind(Vec<Change>);

/// How a step ended.
pub(super) enum Progress {
    /// There is nothing to do, or more to do.
    Goes,
    /// The new files took over or may have: the engine must be opened again from what is there.
    Unsure,
}

impl Compaction {
    /// `slack`: see [`super::Options::compact_above`]. What an earlier process left is looked at when the first requests
    /// after a start are answered.
    pub(super) fn new(slack: u64) -> Self {
        let look_at = Some(Instant::now() + REST);
        Self { copying: None, look_at, rest_until: None, since: Instant::now(), written: 0, calm: false, settled: None, slack }
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.copying.is_some()
    }

    /// How long the committer may wait for work before it goes on with a compaction; `None` when that has work itself.
    pub(super) fn pause(&self) -> Option<Duration> {
        self.copying.as_ref().filter(|copying| copying.settling).map(|_| WAIT)
    }

    /// How long the committer may sleep.
    pub(super) fn sleep(&self) -> Option<Duration> {
        self.look_at.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// What a batch that is about to be written must repeat in the copy.
    pub(super) fn behind(&self, key: &[u8], before: Option<Weight>, framed: Option<&Vec<u8>>, behind: &mut Behind) {
        if self.copying.as_ref().is_some_and(|copying| key < copying.next.as_slice()) {
            behind.0.push(((key.to_vec(), framed.cloned()), before));
        }
    }

    /// Takes note of a batch that is durable.
    pub(super) fn wrote(&mut self, bytes: u64, behind: Behind) {
        self.written += bytes;
        let soon = Instant::now() + LOOK;
        self.look_at = Some(self.look_at.map_or(soon, |at| at.min(soon)));
        let Some(copying) = &mut self.copying else { return };
        for ((key, framed), before) in behind.0 {
            before.into_iter().for_each(|weight| copying.census.subtract(weight));
            framed.iter().for_each(|framed| copying.census.add(weight(&key, framed)));
            copying.changed += key.len() + framed.as_ref().map_or(0, Vec::len);
            copying.changes.push(((key, framed), before));
        }
    }

    /// Begins a compaction when the files have grown too large.
    pub(super) fn look(&mut self, backend: &dyn Backend, census: Census) {
        let now = Instant::now();
        if self.copying.is_some() || self.look_at.is_none_or(|at| now < at) {
            return;
        }
        self.look_at = None;
        if self.rest_until.is_some_and(|until| now < until) {
            self.look_at = self.rest_until;
            return;
        }
        let bytes = backend.bytes_on_disk();
        if now >= self.since + CALM.1 {
            self.calm = self.written < CALM.0;
            (self.since, self.written) = (now, 0);
        }
        if is_worth_it(bytes, census.bytes(), self.slack, self.settled, self.calm) {
            self.begin(backend, census, None);
        } else if !self.calm || self.written > 0 {
            self.look_at = Some(self.since + CALM.1);
        }
    }

    /// Begins a compaction.
    pub(super) fn begin(&mut self, backend: &dyn Backend, census: Census, answer: Option<Answer>) {
        if self.copying.is_some() {
            self.abandon(backend, &Fault::Io("another compaction was asked for".into()));
        }
        let bytes = backend.bytes_on_disk();
        let begun = Instant::now();
        self.copying = Some(Copying {
            next: Vec::new(),
            changes: Vec::new(),
            changed: 0,
            sequence: None,
            census: Census::default(),
            begun,
            bytes,
            records: census.bytes(),
            said: begun,
            settling: false,
            read_back: None,
            answer,
        });
        match guarded(|| backend.begin_copy(census.bytes())) {
            Ok(()) => info!(bytes, records = census.count(), of = census.bytes(), "the store's files are written anew"),
            Err(fault) => self.abandon(backend, &fault),
        }
    }

    /// Copies some more, and lets the copy take over at the end.
    pub(super) fn step(&mut self, backend: &dyn Backend, census: Census) -> Progress {
        let Some(copying) = &mut self.copying else { return Progress::Goes };
        match guarded(|| copying.advance(backend)) {
            Ok(false) if copying.settling => return Progress::Goes,
            Ok(false) => {
                if copying.said.elapsed() > Duration::from_secs(5) {
                    copying.said = Instant::now();
                    info!(copied = copying.census.count(), of = census.count(), "the store's files are being written anew");
                }
                return Progress::Goes;
            }
            Ok(true) => {}
            Err(fault) => {
                self.abandon(backend, &fault);
                return Progress::Goes;
            }
        }
        let given = copying.census.differs(census);
        // It is let go of here: nobody may read the copy while it takes over.
        let held = copying.read_back.take().map(ReadBack::into_counted).unwrap_or_default();
        if let Some(why) = given.or_else(|| held.differs(census).map(|why| format!("read back from the disk, {why}"))) {
            self.abandon(backend, &Fault::Corrupt(why));
            return Progress::Goes;
        }
        if let Err(fault) = guarded(|| backend.let_copy_take_over()) {
            self.abandon(backend, &fault);
            return Progress::Unsure;
        }
        let after = backend.bytes_on_disk();
        if let Some(copying) = self.copying.take() {
            self.settled = Some((after, census.bytes().max(copying.records)));
            let seconds = copying.begun.elapsed().as_secs_f64();
            info!(before = copying.bytes, after, seconds, "the store's files are written anew and in use");
            let _ = copying.answer.map(|answer| answer.send(Ok(())));
        }
        Progress::Goes
    }

    /// Ends a compaction that cannot be finished; the old files go on.
    pub(super) fn abandon(&mut self, backend: &dyn Backend, fault: &Fault) {
        let Some(mut copying) = self.copying.take() else { return };
        match fault {
            Fault::Corrupt(why) => {
                error!(%why, "the copy of the store's files does not hold what the store holds, and is given up; the old files stay in use, and it is tried again later. The disk gave back something else than was written: look at it");
            }
            _ => warn!(?fault, "the store's files cannot be written anew now; the old ones stay in use"),
        }
        copying.read_back = None;
        let _ = guarded(|| {
            backend.abandon_copy();
            Ok(())
        });
        let until = Instant::now() + REST;
        self.rest_until = Some(until);
        self.look_at = Some(until);
        let _ = copying.answer.map(|answer| answer.send(Err(failed_at(b"", fault.clone()))));
    }
}

/// Whether files of so many bytes are too large for their records, by the measure above, and a copy of the records is
/// worth its cost. After one it is again when as much was written as there is to copy (a quarter of that in a calm
/// store), or when most of the records are gone: so that one that gains nothing is not repeated for ever.
fn is_worth_it(bytes: u64, records: u64, slack: u64, settled: Option<(u64, u64)>, calm: bool) -> bool {
    let times = if calm { TIMES_CALM } else { TIMES };
    let too_large = bytes > records.saturating_mul(times).saturating_add(slack);
    let written = if calm { records / 4 } else { records };
    let gains = |(then, held): (u64, u64)| bytes > then.saturating_add(written) || records.saturating_mul(2) < held;
    too_large && settled.is_none_or(gains)
}

impl Copying {
    /// True when the copy holds all records and is ready to take over.
    fn advance(&mut self, backend: &dyn Backend) -> Result<bool, Fault> {
        if !self.settling {
            self.settling = self.copy_some(backend)?;
        }
        if !self.settling {
            return Ok(false);
        }
        while !backend.settle_copy()? {
            if self.changed < CHANGES_AT_MOST {
                return Ok(false);
            }
            thread::sleep(WAIT);
        }
        let read_back = match &mut self.read_back {
            Some(read_back) => read_back,
            // The number stands behind all records, so that a copy without its end is seen.
            none => none.insert(ReadBack::start(backend.copied()?, self.sequence.is_some())?),
        };
        let over = read_back.is_over()?;
        if !over && self.changes.len() < STEP.0 && self.changed < STEP.1 {
            return Ok(false);
        }
        // What changed meanwhile; when that was much, there is more by now.
        let changes = self.changes.len();
        let caught_up = self.copy_some(backend)? && changes < STEP.0;
        Ok(caught_up && over)
    }

    /// Copies what has changed behind the copy, and some more. True when there was no more.
    fn copy_some(&mut self, backend: &dyn Backend) -> Result<bool, Fault> {
        let mut batch = std::mem::take(&mut self.changes);
        self.changed = 0;
        let from = batch.len();
        let mut size = 0;
        let mut more = false;
        backend.visit(&self.next, &mut |key, framed| {
            if key == SEQUENCE {
                return Step::Stop;
            }
            more = batch.len() - from >= STEP.0 || size >= STEP.1;
            if more {
                return Step::Stop;
            }
            size += key.len() + framed.len();
            batch.push(((key.to_vec(), Some(framed.to_vec())), None));
            Step::Next
        })?;
        for ((key, framed), _) in batch.iter().skip(from) {
            framed.iter().for_each(|framed| self.census.add(weight(key, framed)));
            self.next = just_behind(key);
        }
        if !more {
            let sequence = backend.get(SEQUENCE)?;
            if sequence != self.sequence {
                batch.push(((SEQUENCE.to_vec(), sequence.clone()), None));
                self.sequence = sequence;
            }
        }
        match &self.read_back {
            Some(read_back) => read_back.write(backend, batch)?,
            None if batch.is_empty() => {}
            None => backend.write_copy(batch.into_iter().map(|(write, _)| write).collect())?,
        }
        Ok(!more)
    }
}

#[cfg(test)]
mod tests;
