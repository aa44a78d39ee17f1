//! Moving what old master key versions wrapped under the current one, in the background.
//!
//! A record that cannot be moved does not keep the others: it is counted, and looked at again in a later pass. What would
//! fail for every record (the HSM is away, the store takes no writes) stops the pass, which then goes on where it was.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::record::{progress_path, to_json};
use super::{MasterKeyRef, ZoneError, Zones};
use crate::barrier::Txn;
use crate::crashpoint::reach;

/// Records that one step may touch before the progress is stored.
const STEP: usize = 256;
/// How long records that could not be moved are left alone before the next pass.
const RETRY: Duration = Duration::from_secs(10 * 60);

/// Whoever stores wrapped keys (Transit) re-wraps them through this.
#[async_trait]
pub trait Rewrap: Send + Sync {
    /// Goes over at most `limit` of the zone's records that sort after `after` and re-wraps those that are not under
    /// `current`. Each record is committed before the step ends; a repeated step must be harmless. Records that cannot be
    /// moved are passed over and counted; the error is for what keeps all of them.
    async fn step(&self, current: &MasterKeyRef, after: Option<&str>, limit: usize) -> Result<RewrapStep, String>;
}

/// What a step did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RewrapStep {
    /// Records that were re-wrapped.
    pub rewrapped: u64,
    /// Records that were looked at.
    pub seen: u64,
    /// Records that could not be moved.
    pub failed: u64,
    /// Which was the first of them, and why.
    pub reason: Option<String>,
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
    /// Records that could not be moved in this pass; they stay under their old master keys, and usable as far as these are.
    #[serde(default)]
    pub failed: u64,
    /// Why records could not be moved, or what stopped the pass.
    #[serde(default)]
    pub reason: Option<String>,
    /// Where it goes on after an interruption.
    pub cursor: Option<String>,
    /// Whether all records are under the target version.
    pub finished: bool,
}

impl RewrapProgress {
    fn new(target_version: u32) -> Self {
        Self { target_version, rewrapped: 0, seen: 0, failed: 0, reason: None, cursor: None, finished: false }
    }

    /// Whether a pass came to its end and left records behind.
    fn left_some(&self) -> bool {
        self.cursor.is_none() && self.failed > 0
    }

    fn add(&mut self, step: RewrapStep) {
        self.rewrapped += step.rewrapped;
        self.seen += step.seen;
        self.failed += step.failed;
        if step.reason.is_some() || self.failed == 0 {
            self.reason = step.reason;
        }
        self.finished = step.next.is_none() && self.failed == 0;
        self.cursor = step.next;
    }
}

impl Zones {
    /// Re-wraps what is under old versions of the zone's master key, going on where an interrupted run stopped. Answers at
    /// once when the last run for the current version finished, and for a while after one that left records behind.
    pub async fn rewrap(&self, zone: &str, records: &dyn Rewrap) -> Result<RewrapProgress, ZoneError> {
        let current = self.current(zone)?;
        let mut progress = match self.progress(zone)? {
            Some(stored) if stored.target_version == current.version => stored,
            _ => RewrapProgress::new(current.version),
        };
        if progress.finished {
            return Ok(progress);
        }
        if progress.left_some() {
            if self.passed.lock().get(zone).is_some_and(|at| at.elapsed() < RETRY) {
                return Ok(progress);
            }
            progress = RewrapProgress { rewrapped: progress.rewrapped, ..RewrapProgress::new(current.version) };
        }
        loop {
            let step = match records.step(&current, progress.cursor.as_deref(), STEP).await {
                Ok(step) => step,
                Err(reason) => return Err(self.stopped(zone, progress, reason).await),
            };
            reach("zone-rewrapped");
            progress.add(step);
            self.keep_progress(zone, &progress).await?;
            if progress.cursor.is_none() {
                break;
            }
        }
        if progress.left_some() {
            let (failed, reason) = (progress.failed, progress.reason.as_deref());
            tracing::error!(%zone, failed, reason, "keys could not be moved to the zone's newest master key; all others were");
            self.passed.lock().insert(zone.to_owned(), Instant::now());
        }
        Ok(progress)
    }

    /// Notes why a pass stopped, once: it is tried again every few seconds.
    async fn stopped(&self, zone: &str, mut progress: RewrapProgress, reason: String) -> ZoneError {
        if progress.reason.as_ref() != Some(&reason) {
            tracing::warn!(%zone, %reason, "keys could not be moved to the zone's newest master key; it goes on later");
            progress.reason = Some(reason.clone());
            if let Err(error) = self.keep_progress(zone, &progress).await {
                return error;
            }
        }
        ZoneError::Rewrap(reason)
    }

    async fn keep_progress(&self, zone: &str, progress: &RewrapProgress) -> Result<(), ZoneError> {
        let path = progress_path(zone);
        self.barrier.commit(Txn::new().put(&path, to_json(&path, progress)?)).await?;
        Ok(())
    }
}
