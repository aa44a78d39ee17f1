//! The `storage` (or `backend`) stanza.

use std::path::PathBuf;

use super::{Warning, values};
use crate::hcl::{Block, Error, Reader};

/// Where records are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Storage {
    /// An embedded store in a folder; the usual choice.
    Sled {
        /// The folder.
        path: PathBuf,
    },
    /// An embedded store with a small memory footprint.
    Redb {
        /// The folder.
        path: PathBuf,
    },
    /// Memory only: everything is gone when the process ends.
    Inmem,
}

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
        "sled" => Storage::Sled { path: path(block, kind)? },
        "redb" => Storage::Redb { path: path(block, kind)? },
        "inmem" => Storage::Inmem,
        "" => {
            return Err(block
                .body
                .error(at, "the storage stanza has no type: write storage \"sled\" { path = \"/var/lib/sos\" }"));
        }
        other => {
            let message = format!(
                "storage {other:?} is not supported: write storage \"sled\" {{ path = \"/var/lib/sos\" }} (or \"redb\", or \"inmem\"); \
                 records of another storage are brought over by migration, not by this stanza"
            );
            return Err(block.body.error(at, message));
        }
    };
    values::warn_of_others(
        block.body,
        "storage",
        &["path"],
        &["redirect_addr", "api_addr", "cluster_addr", "disable_clustering", "max_parallel"],
        warnings,
    );
    Ok(storage)
}

fn path(block: &Block<'_>, kind: &str) -> Result<PathBuf, Error> {
    let missing = || block.body.error(block.at, format!("storage {kind:?} needs a folder: write path = \"/var/lib/sos\""));
    values::text(block.body, "path")?.map(PathBuf::from).ok_or_else(missing)
}
