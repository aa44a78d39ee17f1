//! Which master keys are proven to be on which HSM.
//!
//! A proof holds for one stay of the HSM: from the moment it is ready until it is lost, however short the break is. What comes
//! back under the same stanza may be another token.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::hsm::{KeyId, Member, TokenFacts};

/// The facts that an HSM gave when it became ready, and what was proven since.
type Stay = (Arc<TokenFacts>, HashSet<KeyId>);

/// Master keys whose check value was compared, by HSM.
#[derive(Default)]
pub(super) struct Verified(Mutex<HashMap<String, Stay>>);

impl Verified {
    /// Whether the key was proven in the present stay of the HSM.
    pub(super) fn contains(&self, member: &Member, id: KeyId) -> bool {
        let Some(now) = member.facts() else { return false };
        let known = self.0.lock();
        known.get(&member.name).is_some_and(|(facts, keys)| Arc::ptr_eq(facts, &now) && keys.contains(&id))
    }

    /// Notes a proof. `before` are the HSM's facts before it was asked: what another stay answered is not kept.
    pub(super) fn insert(&self, member: &Member, before: Option<Arc<TokenFacts>>, id: KeyId) {
        let (Some(before), Some(now)) = (before, member.facts()) else { return };
        if !Arc::ptr_eq(&before, &now) {
            return;
        }
        let mut known = self.0.lock();
        let stay = known.entry(member.name.clone()).or_insert_with(|| (Arc::clone(&now), HashSet::new()));
        if !Arc::ptr_eq(&stay.0, &now) {
            *stay = (now, HashSet::new());
        }
        stay.1.insert(id);
    }

    /// The key was not there when it was looked for.
    pub(super) fn remove(&self, member: &str, id: KeyId) {
        if let Some((_, keys)) = self.0.lock().get_mut(member) {
            keys.remove(&id);
        }
    }

    /// Nothing is proven for this HSM any more.
    pub(super) fn forget(&self, member: &str) {
        self.0.lock().remove(member);
    }

    /// Nothing is proven any more.
    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }
}
