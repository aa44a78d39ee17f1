//! Rotation without anybody asking: by age, and before a version is used up.

use std::sync::Arc;

use super::{Transit, store::Key};
use crate::core::failure::Failure;

/// Keys looked at in one tick.
const AT_ONCE: usize = 100;

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

    /// A version is near its bound: the log hears of it, and a key that rotates by itself does so at the next tick.
    pub fn note_worn(&self, key: &Key, version: u32) {
        if version != key.record.latest_version {
            return;
        }
        tracing::warn!(key = %key.name, version, "a transit key version is near its limit of 2^32 encryptions");
        if key.record.auto_rotate_period > 0 {
            self.store.schedule.lock().insert(key.name.clone(), i64::MIN);
        }
    }

    /// Rotates what is due. A failure of one key is logged and tried again later; the others go on.
    pub async fn rotate_due(&self) -> Result<(), Failure> {
        let now = self.clock.now().unix_timestamp();
        let due: Vec<(String, i64)> = {
            let schedule = self.store.schedule.lock();
            let due = schedule.iter().filter(|(_, due)| **due <= now);
            due.take(AT_ONCE).map(|(name, due)| (name.clone(), *due)).collect()
        };
        for (name, noted) in due {
            let worn = noted == i64::MIN;
            if let Err(failure) = self.rotate_one(&name, now, worn).await {
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
        if due_at(&key).is_none_or(|due| due > now && !worn) || key.record.soft_deleted {
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

/// When a key is due, in Unix seconds; `None` when it does not rotate by itself.
fn due_at(key: &Key) -> Option<i64> {
    let record = &key.record;
    let newest = record.versions.last()?.created.div_euclid(1_000_000_000);
    let rotatable = !record.imported || record.allow_imported_key_rotation;
    (record.auto_rotate_period > 0 && rotatable).then(|| newest.saturating_add(record.auto_rotate_period))
}
