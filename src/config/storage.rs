//! The `storage` (or `backend`) stanza.

use std::{path::PathBuf, time::Duration};

use super::{Warning, values};
use crate::hcl::{Block, Error, Reader};

/// Where records are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Storage {
    /// An embedded store in a folder; the usual choice.
    Sled {
        /// The folder.
        path: PathBuf,
        /// What bounds it.
        limits: Limits,
    },
    /// An embedded store with a small memory footprint.
    Redb {
        /// The folder.
        path: PathBuf,
        /// What bounds it.
        limits: Limits,
    },
    /// Memory only: everything is gone when the process ends.
    Inmem,
}

/// What bounds an embedded store; without a value the store's own default holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory that the engine may cache records in.
    pub cache_size: Option<u64>,
    /// How long a start waits for the check that no record is missing; the rest goes on in the background.
    pub check_at_start: Option<Duration>,
    /// The files are written anew once they are so many bytes larger than a multiple of the records.
    pub compact_above: Option<u64>,
}

/// Less than this would have the engines read every page again and again.
const LEAST_CACHE: u64 = 1 << 20;

/// The engines' smallest files.
const LEAST_SLACK: u64 = 64 << 10;

impl Storage {
    /// The name shown as `storage_type`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Sled { .. } => "sled",
            Self::Redb { .. } => "redb",
            Self::Inmem => "inmem",
        }
    }
}

pub(super) fn read(top: Reader<'_>, warnings: &mut Vec<Warning>) -> Result<Option<Storage>, Error> {
    let mut blocks = top.blocks("storage")?;
    blocks.extend(top.blocks("backend")?);
    if let [_, second, ..] = blocks[..] {
        return Err(top.error(second.at, "only one storage stanza is possible: keep one and remove the other"));
    }
    blocks.first().map(|block| one(block, warnings)).transpose()
}

fn one(block: &Block<'_>, warnings: &mut Vec<Warning>) -> Result<Storage, Error> {
    let at = block.label.map_or(block.at, |label| label.at);
    let kind = block.label().unwrap_or_default();
    let storage = match kind {
        "sled" => Storage::Sled { path: path(block, kind)?, limits: limits(block)? },
        "redb" => Storage::Redb { path: path(block, kind)?, limits: limits(block)? },
        "inmem" => Storage::Inmem,
        "" => {
            return Err(block
                .body
                .error(at, "the storage stanza has no type: write storage \"redb\" { path = \"/var/lib/sos\" }"));
        }
        other => {
            let message = format!(
                "storage {other:?} is not supported: write storage \"redb\" {{ path = \"/var/lib/sos\" }} (or \"sled\", or \"inmem\"); \
                 records of another storage are brought over by migration, not by this stanza"
            );
            return Err(block.body.error(at, message));
        }
    };
    values::warn_of_others(
        block.body,
        "storage",
        if storage == Storage::Inmem { &["path"] } else { &["path", "cache_size", "check_at_start", "compact_above"] },
        &["redirect_addr", "api_addr", "cluster_addr", "disable_clustering", "max_parallel"],
        warnings,
    );
    Ok(storage)
}

fn path(block: &Block<'_>, kind: &str) -> Result<PathBuf, Error> {
    let missing = || block.body.error(block.at, format!("storage {kind:?} needs a folder: write path = \"/var/lib/sos\""));
    values::text(block.body, "path")?.map(PathBuf::from).ok_or_else(missing)
}

fn limits(block: &Block<'_>) -> Result<Limits, Error> {
    let cache_size = values::size(block.body, "cache_size")?;
    if let Some(small) = cache_size.filter(|size| *size < LEAST_CACHE) {
        let message =
            format!("cache_size is {small} bytes, too small to work with: write cache_size = \"32MiB\", at least \"1MiB\"");
        return Err(block.body.error(block.at, message));
    }
    let compact_above = values::size(block.body, "compact_above")?;
    if let Some(small) = compact_above.filter(|size| *size < LEAST_SLACK) {
        let message = format!(
            "compact_above is {small} bytes, and the files would be written anew all the time: write compact_above = \"8MiB\", at least \"64KiB\""
        );
        return Err(block.body.error(block.at, message));
    }
    Ok(Limits { cache_size, check_at_start: values::duration(block.body, "check_at_start")?, compact_above })
}
