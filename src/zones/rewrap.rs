//! Moving what old master key versions wrapped under the current one, in the background.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::record::{progress_path, to_json};
use super::{MasterKeyRef, ZoneError, Zones};
use crate::barrier::Txn;
use crate::crashpoint::reach;

/// Records that one step may touch before the progress is stored.
const STEP: usize = 256;

/// Whoever stores wrapped keys (Transit) re-wraps them through this.
#[async_trait]
pub trait Rewrap: Send + Sync {
    /// Goes over at most `limit` of the zone's records that sort after `after` and re-wraps those that are not under
    /// `current`. Each record is committed before the step ends; a repeated step must be harmless.
    async fn step(&self, current: &MasterKeyRef, after: Option<&str>, limit: usize) -> Result<RewrapStep, String>;
}

/// What a step did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RewrapStep {
    /// Records that were re-wrapped.
    pub rewrapped: u64,
    /// Records that were looked at.
    pub seen: u64,
    /// Where the next step goes on; `None` when there is nothing more.
    pub next: Option<String>,
}

/// How far re-wrapping is, as stored and shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewrapProgress {
    /// The master key version that everything is moved under.
    pub target_version: u32,
    /// Records re-wrapped so far.
    pub rewrapped: u64,
    /// Records looked at so far.
    pub seen: u64,
    /// Where it goes on after an interruption.
    pub cursor: Option<String>,
    /// Whether all records have been looked at.
    pub finished: bool,
}

impl Zones {
    /// Re-wraps what is under old versions of the zone's master key, going on where an interrupted run stopped. Answers at
    /// once when the last run for the current version finished.
    pub async fn rewrap(&self, zone: &str, records: &dyn Rewrap) -> Result<RewrapProgress, ZoneError> {
        let current = self.current(zone)?;
        let mut progress = match self.progress(zone)? {
            Some(stored) if stored.target_version == current.version => stored,
            _ => RewrapProgress { target_version: current.version, rewrapped: 0, seen: 0, cursor: None, finished: false },
        };
        while !progress.finished {
            let step = records.step(&current, progress.cursor.as_deref(), STEP).await.map_err(ZoneError::Rewrap)?;
            reach("zone-rewrapped");
            progress.rewrapped += step.rewrapped;
            progress.seen += step.seen;
            progress.finished = step.next.is_none();
            progress.cursor = step.next;
            let path = progress_path(zone);
            self.barrier.commit(Txn::new().put(&path, to_json(&path, &progress)?)).await?;
        }
        Ok(progress)
    }
}
