//! What an engine must be able to do: hold bytes under byte keys, in order, and make one batch durable.
//!
//! Checks, versions, framing and answers are the work of [`super::group`]; an engine knows nothing of them. An
//! engine shows only durable state: what a batch writes becomes visible to readers after its sync, never before.

use std::{
    collections::BTreeMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

/// A write of a batch: the key and its bytes, `None` deletes.
pub(crate) type Write = (Vec<u8>, Option<Vec<u8>>);

/// What keys held before a batch.
pub(crate) type Before = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Keys and the bytes at them.
pub(crate) type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// How a visit goes on.
pub(crate) enum Step {
    /// With the next record.
    Next,
    /// With the first record at or after this key.
    SkipTo(Vec<u8>),
    /// Not at all.
    Stop,
}

/// How far an engine is believed to have all records that were given to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Opening finds out when records are missing.
    Proven,
    /// They are counted after opening.
    Counted {
        /// How long an opening waits for that.
        patience: Duration,
        /// Whether a record that a visit meets may still be missed by a look-up.
        look_up: bool,
    },
}

/// Why an engine did not do what was asked.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The file system has no room.
    Full(String),
    /// The engine's own structures are damaged.
    Corrupt(String),
    /// Anything else that went wrong below.
    Io(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Fault::Full(error.to_string()),
            _ => Fault::Io(error.to_string()),
        }
    }
}

/// Runs an engine's code. The engines panic where they find their own structures damaged; that must fail the one
/// request that met the damage, by name, and nothing else.
pub(crate) fn guarded<T>(work: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_panic| Err(Fault::Corrupt("the engine gave up on its own files".into())))
}

/// What a copy's files hold. Nothing is written to the copy during a call.
pub(crate) trait Copied: Send {
    /// The bytes at `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Fault>;

    /// The records at and after `from`, in order, up to so many and about so many bytes; empty at the end only.
    fn page(&self, from: &[u8], limit: usize, bytes: usize) -> Result<Records, Fault>;
}

/// An ordered map on disk (or in memory). All methods block for as long as the disk takes.
pub(crate) trait Backend: Send + Sync + 'static {
    /// The bytes at `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Fault>;

    /// Calls `visitor` for the records at and after `from`, in order, as long as it wants to go on.
    fn visit(&self, from: &[u8], visitor: &mut dyn FnMut(&[u8], &[u8]) -> Step) -> Result<(), Fault>;

    /// As [`Backend::visit`], for a visitor who stops at the first key that does not start with `prefix`.
    fn visit_within(&self, _prefix: &[u8], from: &[u8], visitor: &mut dyn FnMut(&[u8], &[u8]) -> Step) -> Result<(), Fault> {
        self.visit(from, visitor)
    }

    /// Writes all of the batch or nothing, and syncs. After an error nothing is known about the batch, and the engine
    /// is not used for writing again before [`Backend::reopen`].
    fn apply(&self, batch: Vec<Write>) -> Result<(), Fault>;

    /// As [`Backend::apply`], for a caller who knows what all of the keys hold, so that it is not read once more.
    fn apply_over(&self, batch: Vec<Write>, _before: Before) -> Result<(), Fault> {
        self.apply(batch)
    }

    /// Whether opening finds out when records are missing.
    fn trust(&self) -> Trust {
        Trust::Proven
    }

    /// Whether it takes no writes before [`Backend::reopen`], although none has failed.
    fn is_failing(&self) -> bool {
        false
    }

    /// Bytes of the files that hold the records; 0 where there are none.
    fn bytes_on_disk(&self) -> u64 {
        0
    }

    /// The store is what it should be: what lies beside its files of an interrupted compaction may go.
    fn clear_remains(&self) {}

    /// Begins an empty copy beside the engine's files, which will take about so many bytes of records. The methods of
    /// the copy are called by one thread, the one that calls [`Backend::apply`].
    fn begin_copy(&self, _bytes: u64) -> Result<(), Fault> {
        Err(Fault::Io("this engine keeps no files".into()))
    }

    /// Writes to the copy; it need not be durable.
    fn write_copy(&self, _batch: Vec<Write>) -> Result<(), Fault> {
        Err(Fault::Io("no copy was begun".into()))
    }

    /// Prepares the full copy for being read back and taking over, off this thread: what it reads from then on comes from
    /// the disk. True when it is ready and may be written again.
    fn settle_copy(&self) -> Result<bool, Fault> {
        Ok(true)
    }

    /// The settled copy, to be read back. It is let go of before anything but writing is done with the copy.
    fn copied(&self) -> Result<Box<dyn Copied>, Fault> {
        Err(Fault::Io("no copy was begun".into()))
    }

    /// Makes the copy durable and uses it from now on instead of the old files, which are removed. After an error
    /// either may be in place, and the engine must be reopened.
    fn let_copy_take_over(&self) -> Result<(), Fault> {
        Err(Fault::Io("no copy was begun".into()))
    }

    /// Removes the copy.
    fn abandon_copy(&self) {}

    /// Reads go on from what is on the disk, although nothing can be written: called after a failure for as long as an opening would
    /// fail.
    fn keep_reading(&self) {}

    /// Starts afresh from what is on the disk.
    fn reopen(&self) -> Result<(), Fault>;
}
