//! What is asked with every `sys/health` and `sys/seal-status`, decoded once.
//!
//! The seal record is compared with what is stored each time, so whoever writes it and however, the next look sees it. What
//! warnings need of the records behind the barrier is kept as long as the barrier counts no commit of such records
//! ([`Barrier::changes`](crate::barrier::Barrier::changes)), and never for long: a store that failed and was opened again may tell
//! another story of what failed with it, without any commit. The state of the HSMs is in neither: it is looked at each time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::record::SealRecord;
use super::renewal::{RootRenewal, notice};
use super::{SEAL_PATH, Seal, SealError};
use crate::barrier::BarrierError;
use crate::storage::Version;
use crate::zones::Zones;

/// How long the records behind the barrier are not read again though nothing is known to have changed.
const TRUSTED: Duration = Duration::from_secs(10);

/// The seal record with the bytes that it was decoded from.
pub(super) struct KnownRecord {
    stored: crate::storage::Record,
    record: Arc<SealRecord>,
}

/// What the records behind the barrier say about each enrolled HSM.
pub(super) struct KnownState {
    record: Version,
    changes: u64,
    at: Instant,
    /// HSM, and how many zone master keys it does not hold.
    pending: Vec<(String, usize)>,
    /// Whether the root key is still the one of the shares before.
    renewal: bool,
}

impl Seal {
    /// The stored seal record and its version, decoded only when it is another than last time.
    pub fn known_record(&self) -> Result<Option<(Arc<SealRecord>, Version)>, SealError> {
        let Some(stored) = self.barrier.raw().get(SEAL_PATH).map_err(BarrierError::from)? else { return Ok(None) };
        let version = stored.version;
        if let Some(known) = self.known.record.load().as_ref().filter(|known| known.stored == stored) {
            return Ok(Some((Arc::clone(&known.record), version)));
        }
        let record = Arc::new(SealRecord::decode(&stored.value)?);
        self.known.record.store(Some(Arc::new(KnownRecord { stored, record: Arc::clone(&record) })));
        Ok(Some((record, version)))
    }

    /// What an operator should look after, from what was seen at the last tick.
    pub fn warnings(&self, zones: &Zones) -> Result<Vec<String>, SealError> {
        if self.is_sealed() {
            return Err(SealError::Sealed);
        }
        let (record, version) = self.known_record()?.ok_or(SealError::NotInitialized)?;
        let state = self.known_state(zones, &record, version)?;
        let mut warnings = Vec::new();
        for (name, pending) in &state.pending {
            if self.misses_seal_key(name) {
                warnings.push(format!(
                    "the HSM {name:?} lacks this cluster's seal key and does not unseal the server: see sos seal list"
                ));
            }
            if *pending > 0 {
                warnings.push(format!("the HSM {name:?} does not hold {pending} zone master key(s) yet: see sos seal list"));
            }
        }
        if state.renewal {
            warnings.push(notice(&self.awaited_of(&record)));
        }
        Ok(warnings)
    }

    fn known_state(&self, zones: &Zones, record: &SealRecord, version: Version) -> Result<Arc<KnownState>, SealError> {
        // Before the records are read, so that a commit in between is seen by the next look.
        let changes = self.barrier.changes();
        let holds = |known: &Arc<KnownState>| known.record == version && known.changes == changes && known.at.elapsed() < TRUSTED;
        if let Some(known) = self.known.state.load_full().filter(holds) {
            return Ok(known);
        }
        let at = Instant::now();
        let one = |(name, _): (&str, _)| Ok((name.to_owned(), zones.pending(name)?.len()));
        let pending = record.hsm_wrappers().map(one).collect::<Result<_, SealError>>()?;
        let renewal = RootRenewal::load(&self.barrier)?.is_some();
        let state = Arc::new(KnownState { record: version, changes, at, pending, renewal });
        self.known.state.store(Some(Arc::clone(&state)));
        Ok(state)
    }
}
