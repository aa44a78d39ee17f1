//! HSMs that are called by another name from now on.

use super::ZoneError;
use super::record::{INTENTS, Intent, ZONES, ZoneRecord, to_json};
use crate::barrier::{Barrier, Entry, Txn};

/// More zones than any cluster has.
const MOST: usize = 1_000_000;

/// Adds to `txn` what swaps two names of HSMs in every zone.
pub(crate) fn rename_holder(barrier: &Barrier, mut txn: Txn, from: &str, to: &str) -> Result<Txn, ZoneError> {
    let swap = |name: &mut String| {
        if name == from {
            to.clone_into(name);
        } else if name == to {
            from.clone_into(name);
        }
    };
    for (path, entry) in barrier.scan(ZONES, None, MOST)? {
        let old = ZoneRecord::decode(&path, entry.value.expose())?;
        let mut record = old.clone();
        for version in &mut record.versions {
            version.held_by.iter_mut().for_each(swap);
            version.copies.iter_mut().for_each(|copy| swap(&mut copy.member));
        }
        if record != old {
            txn = txn.check(&path, Entry::unchanged(Some(&entry))).put(&path, record.encode()?);
        }
    }
    for (path, entry) in barrier.scan(INTENTS, None, MOST)? {
        let mut intent = Intent::decode(&path, entry.value.expose())?;
        let before = intent.member.clone();
        intent.member.iter_mut().for_each(swap);
        if intent.member != before {
            txn = txn.check(&path, Entry::unchanged(Some(&entry))).put(&path, to_json(&path, &intent)?);
        }
    }
    Ok(txn)
}
