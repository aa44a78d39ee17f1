//! The `backup` stanza: `backup { folder = "/var/backups/sos" interval = "6h" keep = 28 }`.

use std::path::PathBuf;
use std::time::Duration;

use super::{Warning, values};
use crate::hcl::{Error, Reader};

const INTERVAL: Duration = Duration::from_secs(24 * 3600);
const SHORTEST: Duration = Duration::from_secs(1);
const KEEP: u64 = 14;

/// Backups that the server makes by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// The folder they are written to; made when it is missing.
    pub folder: PathBuf,
    /// Time between two.
    pub interval: Duration,
    /// How many are kept.
    pub keep: usize,
    /// Age of the last good one from which on health warns; twice the interval unless it is said.
    pub warn_after: Duration,
}

pub(super) fn read(top: Reader<'_>, warnings: &mut Vec<Warning>) -> Result<Option<Backup>, Error> {
    let blocks = top.blocks("backup")?;
    if let [_, second, ..] = blocks[..] {
        return Err(top.error(second.at, "only one backup stanza is possible: keep one and remove the other"));
    }
    let Some(block) = blocks.first() else { return Ok(None) };
    values::warn_of_others(block.body, "backup", &["folder", "interval", "keep", "warn_after"], &[], warnings);
    let missing = || block.body.error(block.at, "the backup stanza needs a folder: write folder = \"/var/backups/sos\"");
    let folder = values::text(block.body, "folder")?.map(PathBuf::from).ok_or_else(missing)?;
    let interval = values::duration(block.body, "interval")?.unwrap_or(INTERVAL);
    let at = |key| Ok::<_, Error>(block.body.value(key)?.map_or(block.at, |value| value.at));
    if interval < SHORTEST {
        return Err(block.body.error(at("interval")?, "interval must be at least a second: write interval = \"24h\""));
    }
    let keep = match block.body.int("keep")? {
        None => KEEP,
        Some(keep) => match u64::try_from(keep) {
            Ok(keep) if keep > 0 => keep,
            _ => return Err(block.body.error(at("keep")?, "keep must be at least 1: write keep = 14")),
        },
    };
    let warn_after = values::duration(block.body, "warn_after")?.unwrap_or(interval * 2);
    Ok(Some(Backup { folder, interval, keep: usize::try_from(keep).unwrap_or(usize::MAX), warn_after }))
}
