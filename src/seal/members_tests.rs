//! Several HSMs: enrolled, lost, removed, and killed in between.

mod enrolment;
mod interruption;
mod naming;
mod removal;
mod upkeep;

use std::collections::HashSet;

use time::OffsetDateTime;

use super::wire::*;
use super::*;
use crate::barrier::teststore::Store;
use crate::hsm::fake::FakeHsm;
use crate::hsm::{KeyId, KeyKind};
use crate::zones::{WrappedMaterial, Zones};

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

pub(super) struct World {
    pub(super) store: Arc<Store>,
    pub(super) a: Arc<FakeHsm>,
    pub(super) b: Arc<FakeHsm>,
}

/// A process.
pub(super) struct Run {
    pub(super) seal: Seal,
    pub(super) zones: Zones,
}

impl World {
    pub(super) fn new() -> Self {
        Self { store: Arc::default(), a: FakeHsm::new(), b: FakeHsm::new() }
    }

    pub(super) fn member(name: &str, hsm: &Arc<FakeHsm>) -> Member {
        Member { name: name.into(), key_label: Some("test".into()), disabled: false, hsm: hsm.clone() }
    }

    /// A fresh process with both stanzas, HSMs as they are.
    pub(super) fn start(&self) -> Run {
        self.start_with(Some(Group::new(vec![Self::member("a", &self.a), Self::member("b", &self.b)])), true)
    }

    pub(super) fn start_with(&self, group: Option<Arc<Group>>, escrow: bool) -> Run {
        self.store.come_back();
        let barrier = Arc::new(Barrier::new(self.store.clone()));
        let hsm = group.map(|group| group as Arc<dyn Hsm>);
        let zones = Zones::new(barrier.clone(), hsm.clone(), "test");
        let settings = SealSettings { key_label: "test".into(), escrow, ..SealSettings::default() };
        Run { seal: Seal::new(barrier, hsm, settings), zones }
    }

    /// With the HSM `a` alone enrolled: the process, and two of three shares.
    pub(super) async fn initialised(&self, escrow: bool) -> (Run, Vec<SecretString>) {
        let run = self.start_with(Some(Group::new(vec![Self::member("a", &self.a), Self::member("b", &self.b)])), escrow);
        let request = InitRequest { recovery_shares: 3, recovery_threshold: 2, ..InitRequest::default() };
        let made = run.seal.init(request, NOW).await.unwrap();
        run.zones.unsealed(&[], NOW).await.unwrap();
        let shares = made.recovery_keys.iter().skip(1).cloned().map(SecretString::new).collect();
        (run, shares)
    }
}

impl Run {
    pub(super) async fn add(&self, name: &str, shares: &[SecretString]) -> Result<Added, SealError> {
        self.seal.add_hsm(&self.zones, name, shares, &HashSet::new()).await
    }

    pub(super) async fn unsealed(self) -> Self {
        assert_eq!(self.seal.auto_unseal().await, AutoUnseal::Unsealed);
        self.zones.unsealed(&[], NOW).await.unwrap();
        self
    }

    pub(super) async fn tick(&self) {
        self.seal.tick(&self.zones).await;
        self.zones.tick(NOW).await.unwrap();
    }

    pub(super) async fn wrapped(&self) -> WrappedMaterial {
        let master = self.zones.current("default").unwrap();
        self.zones.wrap(&master, b"here", &SecretBytes::new(vec![7; 32])).await.unwrap()
    }

    /// Whether it opens in an HSM now: nothing is taken from the cache.
    pub(super) async fn opens(&self, material: &WrappedMaterial) -> bool {
        self.zones.forget();
        self.zones.unwrap("default", material, b"here").await.is_ok_and(|opened| opened.same_as(&[7; 32]))
    }

    pub(super) async fn pending(&self, name: &str) -> Vec<(String, &'static str)> {
        let all = self.seal.list_hsms(&self.zones).await.unwrap().seals;
        let seal = all.into_iter().find(|seal| seal.name == name).unwrap();
        seal.pending.into_iter().map(|key| (key.key, key.way)).collect()
    }

    async fn unfinished(&self, name: &str) -> String {
        let all = self.seal.list_hsms(&self.zones).await.unwrap().seals;
        all.into_iter().find(|seal| seal.name == name).unwrap().unfinished
    }
}

fn text<T>(result: Result<T, SealError>) -> String {
    result.err().map(|error| error.to_string()).unwrap_or_default()
}
