//! Backups: one archive holds every record as of one commit, still encrypted by the barrier.
//!
//! An archive is written from a snapshot while writes go on, and never held in memory (`archive.rs`). Its head says what
//! it needs to be opened again (`header.rs`). Whoever restores one builds a complete store beside the present one and
//! only then exchanges the two, by renames that the next start finishes or undoes (`restore.rs`, `place.rs`).
//! What a restored store must make good at its first unseal is in `settle.rs`.
//!
//! Backups are authentic by a key behind the barrier (`key.rs`): whoever has the file alone can check that nothing of it
//! is damaged or missing; that nobody altered it shows as soon as the store it belongs to is unsealed.

mod archive;
mod counts;
mod exchange;
pub mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod given;
mod header;
mod key;
mod place;
mod restore;
mod retention;
mod server;
mod source;
mod stream;

pub use archive::{Contents, Reader, Seal, Summary, Writer};
pub use counts::Counts;
pub use exchange::Exchange;
pub use given::Given;
#[cfg(test)]
pub(crate) use given::carry;
pub use header::{Header, HsmNeed, HsmOnlyNeed, Needs, ZoneNeed, some_of};
pub use key::{BackupKey, KEY_PATH};
pub use place::{Settled, settle_folder};
pub use restore::{Fork, Origin, RESTORED_PATH, Restored, Target, Wait};
pub use server::{Asked, Backups, Made, Schedule, State};
pub use source::Source;
pub use stream::{Download, DownloadWriter, Upload, UploadReader};

use std::io;

use thiserror::Error;

use crate::{barrier::BarrierError, storage::StorageError};

/// Why a backup was not made, read or restored.
#[derive(Debug, Error)]
pub enum BackupError {
    /// The archive is cut short, altered, or no archive of ours.
    #[error("the backup is damaged: {0}")]
    Damaged(String),
    /// The archive is of a later version of the program.
    #[error(
        "the backup has format {0}, which this version does not know; restore it with the version that made it or a later one"
    )]
    Format(u32),
    /// The restore is refused unless it is forced; the text says why and what would be lost.
    #[error("{0}")]
    Refused(String),
    /// The archive's code is not that of this cluster's key: somebody altered it.
    #[error("the backup is not authentic: it was altered after it was made, or was made under another cluster's keys")]
    NotAuthentic,
    /// Reading or writing the archive failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was tried.
        doing: String,
        /// Why not.
        source: io::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The barrier refused.
    #[error(transparent)]
    Barrier(#[from] BarrierError),
    /// Something is under way that excludes this.
    #[error("{0}")]
    Busy(String),
}

impl BackupError {
    /// Gives an I/O error the words of what was tried.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

#[cfg(test)]
mod measure;
#[cfg(test)]
mod tests;
