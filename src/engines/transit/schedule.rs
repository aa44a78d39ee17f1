//! Rotation without anybody asking: by age, and before a version is used up.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Transit, damaged::is_damaged, store::Key, usage::Usage};
use crate::core::failure::Failure;

/// Keys looked at in one tick.
const AT_ONCE: usize = 100;
/// How long a mount's rotations may take in one tick. An RSA key takes seconds, and other mounts wait.
pub const BUDGET: Duration = Duration::from_secs(1);
/// The shortest period, in seconds.
const SHORTEST_PERIOD: i64 = 60 * 60;

impl Transit {
    /// Reads which keys rotate by themselves; when each is due is found out at the next tick.
    pub fn find_scheduled(&self) -> Result<(), Failure> {
        let names = self.store.view.list("auto/", None, usize::MAX)?;
        let mut schedule = self.store.schedule.lock();
        for name in names {
            schedule.entry(name).or_insert(0);
        }
        Ok(())
    }

    /// Notes when a key is due after it was made, rotated or configured.
    pub fn reschedule(&self, key: &Arc<Key>) {
        let mut schedule = self.store.schedule.lock();
        match due_at(key) {
            Some(due) => drop(schedule.insert(key.name.clone(), due)),
            None => drop(schedule.remove(&key.name)),
        }
    }

    /// A version is near its bound: the log hears of it, once an hour, and a key that rotates by itself does so at the next
    /// tick.
    pub fn note_worn(&self, key: &Key, version: u32, usage: &Usage) {
        if version != key.record.latest_version {
            return;
        }
        if usage.is_to_be_told(self.clock.now().unix_timestamp()) {
            tracing::warn!(key = %key.name, version, "a transit key version is near its limit of 2^32 encryptions");
        }
        self.hasten(key);
    }

    /// As [`Transit::note_worn`] for a version that encrypts no more: as restored keys may come.
    pub fn note_used_up(&self, key: &Key, version: u32, usage: &Usage) {
        if version != key.record.latest_version {
            return;
        }
        if usage.is_to_be_told(self.clock.now().unix_timestamp()) {
            tracing::error!(key = %key.name, version, "a transit key version has reached its limit of 2^32 encryptions: it encrypts no more until the key is rotated");
        }
        self.hasten(key);
    }

    fn hasten(&self, key: &Key) {
        if key.record.auto_rotate_period > 0 {
            self.store.schedule.lock().insert(key.name.clone(), i64::MIN);
        }
    }

    /// Rotates what is due until so much time is over, one key at least; the rest is left for the next tick. A failure of one key
    /// is logged and tried again later; the others go on.
    pub async fn rotate_due(&self, budget: Duration) -> Result<(), Failure> {
        let began = Instant::now();
        let now = self.clock.now().unix_timestamp();
        let due: Vec<(String, i64)> = {
            let schedule = self.store.schedule.lock();
            let mut due: Vec<_> = schedule.iter().filter(|(_, due)| **due <= now).map(|(name, due)| (*due, name)).collect();
            // Who has waited longest comes first, so that none is passed over again and again.
            due.sort_unstable();
            due.into_iter().take(AT_ONCE).map(|(due, name)| (name.clone(), due)).collect()
        };
        for (at, (name, noted)) in due.into_iter().enumerate() {
            if at > 0 && began.elapsed() >= budget {
                break;
            }
            let worn = noted == i64::MIN;
            if let Err(failure) = self.rotate_one(&name, now, worn).await {
                if is_damaged(&failure) {
                    // Trying again would not help. A restore puts the key back in here, and so does the next unseal.
                    tracing::error!(key = %name, %failure, cause = ?failure.cause(), "a transit key will not be rotated by itself any more");
                    self.store.schedule.lock().remove(&name);
                    continue;
                }
                tracing::warn!(key = %name, %failure, "a transit key could not be rotated by itself; it is tried again");
                self.store.schedule.lock().insert(name, now + 60);
            }
        }
        Ok(())
    }

    async fn rotate_one(&self, name: &str, now: i64, worn: bool) -> Result<(), Failure> {
        let Some(key) = self.store.key(name)? else {
            self.store.schedule.lock().remove(name);
            return Ok(());
        };
        let seen = key.record.latest_version;
        if due_at(&key).is_none_or(|due| due > now && !worn) {
            self.reschedule(&key);
            return Ok(());
        }
        // Whoever rotated the key in the meantime did what was needed.
        if let Some(key) = self.rotate_if(name, |record| record.latest_version == seen).await? {
            tracing::info!(key = %name, version = key.record.latest_version, "a transit key was rotated by itself");
            self.reschedule(&key);
        }
        Ok(())
    }
}

/// When a key is due, in Unix seconds; `None` when it does not rotate by itself, as while it is soft-deleted.
///
/// Imported and restored keys may ask for less than the hour that a configuration must ask for; no server looks more often.
fn due_at(key: &Key) -> Option<i64> {
    let record = &key.record;
    let newest = record.versions.last()?.created.div_euclid(1_000_000_000);
    let rotatable = !record.imported || record.allow_imported_key_rotation;
    let by_itself = record.auto_rotate_period > 0 && rotatable && !record.soft_deleted;
    by_itself.then(|| newest.saturating_add(record.auto_rotate_period.max(SHORTEST_PERIOD)))
}
