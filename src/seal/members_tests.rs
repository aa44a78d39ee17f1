//! Several HSMs: enrolled, lost, removed, and killed in between.

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

#[tokio::test]
async fn either_of_two_hsms_is_enough() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    let before = run.wrapped().await;
    assert!(text(run.add("b", &[]).await).contains("escrow shares"));
    let added = run.add("b", &shares).await.unwrap();
    assert_eq!((added.converted, added.seal_key, added.master_keys), (false, true, vec!["default/v1".to_owned()]));
    assert!(run.pending("a").await.is_empty() && run.pending("b").await.is_empty());

    for (away, there) in [(&w.a, &w.b), (&w.b, &w.a)] {
        away.go_down(DownReason::DeviceError);
        assert!(run.opens(&before).await);
        let key = run.zones.generate_wrapped(&run.zones.current("default").unwrap(), KeyKind::Aes256).await.unwrap();
        assert!(key.wrapped.is_some());
        run.seal.barrier().rotate(NOW).await.unwrap();
        let other = w.start().unsealed().await;
        assert!(other.opens(&before).await);
        there.come_back();
        away.come_back();
    }
}

#[tokio::test]
async fn a_new_cluster_is_made_on_the_first_hsm_and_waits_for_it() {
    let w = World::new();
    w.a.go_down(DownReason::TokenMissing);
    let run = w.start();
    let request = || InitRequest { recovery_shares: 1, recovery_threshold: 1, ..InitRequest::default() };
    assert!(text(run.seal.init(request(), NOW).await).contains("hsm-token-missing"));
    assert!(w.b.labels().is_empty());
    w.a.come_back();
    run.seal.init(request(), NOW).await.unwrap();
    assert_eq!((w.a.labels().len(), w.b.labels().len()), (2, 0));
}

#[tokio::test]
async fn init_waits_for_an_hsm_that_is_starting() {
    let w = World::new();
    w.a.begin_starting();
    let run = w.start();
    let request = InitRequest { recovery_shares: 1, recovery_threshold: 1, ..InitRequest::default() };
    let soon = async {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        w.a.come_back();
    };
    let (made, ()) = tokio::join!(run.seal.init(request, NOW), soon);
    made.unwrap();
}

#[tokio::test]
async fn what_an_absent_hsm_misses_is_pending_and_finished_when_it_is_back() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    run.add("b", &shares).await.unwrap();
    w.b.go_down(DownReason::TokenMissing);
    assert_eq!(run.zones.rotate("default", NOW).await.unwrap(), 2);
    let material = run.wrapped().await;
    run.tick().await;
    assert_eq!(run.pending("b").await, [("default/v2".to_owned(), "by-itself")]);
    assert!(run.pending("a").await.is_empty());
    w.b.come_back();
    run.tick().await;
    assert!(run.pending("b").await.is_empty());
    w.a.go_down(DownReason::TokenMissing);
    assert!(run.opens(&material).await);
    // The second HSM makes keys for the first just as well.
    run.zones.rotate("default", NOW).await.unwrap();
    let material = run.wrapped().await;
    run.tick().await;
    assert_eq!(run.pending("a").await, [("default/v3".to_owned(), "by-itself")]);
    w.a.come_back();
    run.tick().await;
    w.b.go_down(DownReason::TokenMissing);
    assert!(run.opens(&material).await);
}

#[tokio::test]
async fn without_an_escrow_old_master_keys_cannot_follow_and_new_ones_do() {
    let w = World::new();
    let (run, _) = w.initialised(false).await;
    let added = run.add("b", &[]).await.unwrap();
    assert_eq!(added.missing, ["default/v1"]);
    assert_eq!(run.pending("b").await, [("default/v1".to_owned(), "never")]);
    let refused = run.seal.remove_hsm(&run.zones, "a", false, &[]).await;
    assert!(text(refused).contains("default/v1"));
    run.zones.rotate("default", NOW).await.unwrap();
    run.tick().await;
    assert_eq!(run.pending("b").await, [("default/v1".to_owned(), "never")]);
    let material = run.wrapped().await;
    w.a.go_down(DownReason::TokenMissing);
    assert!(run.opens(&material).await);
}

#[tokio::test]
async fn bad_shares_and_bad_names_change_nothing() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    let other = World::new();
    let (_, foreign) = other.initialised(true).await;
    assert!(text(run.add("b", &shares[..1]).await).contains("1 share(s) were given, and 2 are needed"));
    assert!(text(run.add("b", &foreign).await).contains("another cluster"));
    assert!(text(run.add("c", &shares).await).contains("no seal \"pkcs11\" stanza is named \"c\""));
    w.b.go_down(DownReason::PinRefused);
    assert!(text(run.add("b", &shares).await).contains("hsm-pin-refused"));
    w.b.come_back();
    assert!(w.b.labels().is_empty());
    // A token that another cluster uses under the same label.
    w.b.create_seal_key("sos/test/seal/root/v1", crate::hsm::KeyId::random()).await.unwrap();
    assert!(matches!(run.add("b", &shares).await, Err(SealError::TokenInUse { count: 1, .. })));
    assert_eq!(w.b.labels().len(), 1);
    assert_eq!(run.unfinished("b").await, "");
}

#[tokio::test]
async fn two_stanzas_must_not_lead_to_one_token() {
    let w = World::new();
    let group = Group::new(vec![World::member("a", &w.a), World::member("b", &w.a)]);
    let run = w.start_with(Some(group), true);
    let request = InitRequest { recovery_shares: 1, recovery_threshold: 1, ..InitRequest::default() };
    let made = run.seal.init(request, NOW).await.unwrap();
    let refused = run.add("b", &[SecretString::new(made.recovery_keys[0].clone())]).await;
    assert!(text(refused).contains("same token"));
}

#[tokio::test]
async fn the_last_working_wrapper_stays() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    assert!(text(run.seal.remove_hsm(&run.zones, "a", true, &[]).await).contains("the last HSM"));
    assert!(text(run.seal.remove_hsm(&run.zones, "x", true, &[]).await).contains("enrolled are: a"));
    run.add("b", &shares).await.unwrap();
    w.b.go_down(DownReason::DeviceError);
    assert!(text(run.seal.remove_hsm(&run.zones, "a", true, &[]).await).contains("no other HSM opens the root key"));
    w.b.come_back();
    let material = run.wrapped().await;
    // A key that only `a` holds.
    let id = crate::hsm::KeyId::random();
    w.a.generate_on_token("sos/test/transit/x/v1", id, KeyKind::Aes256).await.unwrap();
    let keys = [("transit/x v1".to_owned(), id)];
    assert!(text(run.seal.remove_hsm(&run.zones, "a", false, &keys).await).contains("transit/x v1"));
    let removed = run.seal.remove_hsm(&run.zones, "a", true, &keys).await.unwrap();
    assert_eq!((removed.lost, removed.pending), (vec!["transit/x v1".to_owned()], false));
    assert_eq!(w.a.labels(), ["sos/test/transit/x/v1"], "an hsm-only key is not destroyed");
    assert!(run.opens(&material).await);
    w.a.go_down(DownReason::DeviceError);
    let run = w.start().unsealed().await;
    assert!(run.opens(&material).await);
    // The key that it still holds is no obstacle to coming back.
    w.a.come_back();
    let own = HashSet::from([id]);
    run.seal.add_hsm(&run.zones, "a", &shares, &own).await.unwrap();
}

#[tokio::test]
async fn a_dead_hsm_is_removed_and_cleaned_when_it_shows_up_again() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    run.add("b", &shares).await.unwrap();
    w.a.go_down(DownReason::DeviceError);
    let removed = run.seal.remove_hsm(&run.zones, "a", false, &[]).await.unwrap();
    assert!(removed.pending);
    assert_eq!(run.unfinished("a").await, "remove");
    run.tick().await;
    w.a.come_back();
    run.tick().await;
    assert_eq!(run.unfinished("a").await, "");
    assert!(w.a.labels().is_empty(), "{:?}", w.a.labels());
}

/// The token of `b` is made anew and its worker restarted between two ticks: nobody saw it away.
#[tokio::test]
async fn what_was_seen_on_a_token_does_not_count_for_the_next_one() {
    for escrow in [true, false] {
        let w = World::new();
        let (run, shares) = w.initialised(escrow).await;
        run.add("b", &shares).await.unwrap();
        run.zones.rotate("default", NOW).await.unwrap();
        let material = run.wrapped().await;
        run.tick().await;
        assert!(run.opens(&material).await);
        w.b.wipe();
        w.b.restart_worker();
        run.seal.rewrap_hsm(&run.zones, "b").await.unwrap();
        let way = if escrow { "with-shares" } else { "never" };
        assert_eq!(run.pending("b").await, [("default/v1".to_owned(), way), ("default/v2".to_owned(), way)]);

        let refused = text(run.seal.remove_hsm(&run.zones, "a", false, &[]).await);
        assert!(refused.contains("default/v1, default/v2"), "{refused}");
        assert_eq!(refused.contains("the shares bring them back"), escrow, "{refused}");
        let removed = run.seal.remove_hsm(&run.zones, "a", true, &[]).await.unwrap();
        assert_eq!(removed.stranded, ["default/v1", "default/v2"]);
        run.tick().await;
        let left = w.a.labels();
        assert!(left.iter().any(|label| label.ends_with("default/v2")), "the only copies stay: {left:?}");
        let none = || Ok(HashSet::new());
        let orphans = run.seal.orphans(&run.zones, none).await.unwrap();
        let orphan = orphans.iter().find(|orphan| orphan.label.ends_with("default/v2")).unwrap();
        let refused = run.seal.destroy_orphan(&run.zones, orphan.id, none).await;
        assert!(text(refused).contains("default/v2: this may be the last copy"), "{orphans:?}");
        // The removed one still holds them and is taken back.
        run.add("a", &shares).await.unwrap();
        assert!(run.opens(&material).await);
    }
}

/// The token loses its objects while its worker goes on: only asking tells.
#[tokio::test]
async fn before_an_hsm_goes_the_others_are_asked() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    run.add("b", &shares).await.unwrap();
    let material = run.wrapped().await;
    run.tick().await;
    let master = run.zones.current("default").unwrap().id;
    w.b.destroy(master).await.unwrap();
    run.tick().await;
    assert!(text(run.seal.remove_hsm(&run.zones, "a", false, &[]).await).contains("default/v1"));
    assert_eq!(run.pending("b").await, [("default/v1".to_owned(), "with-shares")]);
    run.add("b", &shares).await.unwrap();
    run.seal.remove_hsm(&run.zones, "a", false, &[]).await.unwrap();
    assert!(w.a.labels().is_empty());
    assert!(run.opens(&material).await);
}

/// A removed HSM shows up while the others are away, then with one that lost the key: its copy is the last one.
#[tokio::test]
async fn a_master_key_is_destroyed_only_when_another_hsm_proves_it_at_that_moment() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    run.add("b", &shares).await.unwrap();
    let material = run.wrapped().await;
    w.a.go_down(DownReason::DeviceError);
    run.seal.remove_hsm(&run.zones, "a", false, &[]).await.unwrap();
    w.b.go_down(DownReason::DeviceError);
    w.a.come_back();
    run.tick().await;
    assert_eq!(run.unfinished("a").await, "remove");
    assert!(w.a.labels().iter().any(|label| label.ends_with("default/v1")), "{:?}", w.a.labels());
    w.b.destroy(run.zones.current("default").unwrap().id).await.unwrap_err();
    w.b.come_back();
    w.b.destroy(run.zones.current("default").unwrap().id).await.unwrap();
    run.tick().await;
    assert_eq!(run.unfinished("a").await, "");
    assert_eq!(w.a.labels(), ["sos/test/zone/default/v1"]);
    run.add("a", &shares).await.unwrap();
    assert!(run.opens(&material).await);
}

#[tokio::test]
async fn a_stanza_that_leads_to_the_same_token_is_no_second_copy() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    run.add("b", &shares).await.unwrap();
    let c = FakeHsm::new();
    let group = |b: &Arc<FakeHsm>| Group::new(vec![World::member("a", &w.a), World::member("b", b), World::member("c", &c)]);
    let run = w.start_with(Some(group(&w.b)), true).unsealed().await;
    run.add("c", &shares).await.unwrap();
    w.b.go_down(DownReason::DeviceError);
    c.destroy(run.zones.current("default").unwrap().id).await.unwrap();
    // The stanza of `b` was changed to the token of `a`; `c` opens the root key and lacks the master key.
    let run = w.start_with(Some(group(&w.a)), true).unsealed().await;
    assert!(text(run.seal.remove_hsm(&run.zones, "a", false, &[]).await).contains("default/v1"));
}

/// Two stanzas in place of the one without a name, as the documentation says.
#[tokio::test]
async fn a_stanza_that_gets_another_name_keeps_its_hsm() {
    let w = World::new();
    let first = w.start_with(Some(Group::of_one(w.a.clone())), true);
    let request = InitRequest { recovery_shares: 1, recovery_threshold: 1, ..InitRequest::default() };
    let made = first.seal.init(request, NOW).await.unwrap();
    first.zones.unsealed(&[], NOW).await.unwrap();
    let shares = [SecretString::new(made.recovery_keys[0].clone())];
    let material = first.wrapped().await;

    let run = w.start().unsealed().await;
    assert!(run.opens(&material).await);
    let listed = run.seal.list_hsms(&run.zones).await.unwrap().seals;
    let names: Vec<_> = listed.iter().map(|seal| (seal.name.as_str(), seal.enrolled, seal.state)).collect();
    assert_eq!(names, [("a", true, "ready"), ("b", false, "ready")]);
    run.add("b", &shares).await.unwrap();
    run.tick().await;
    assert!(run.pending("a").await.is_empty() && run.pending("b").await.is_empty());
    // The record of who holds what followed.
    run.zones.rotate("default", NOW).await.unwrap();
    run.tick().await;
    assert!(run.pending("a").await.is_empty() && run.pending("b").await.is_empty());
    run.seal.remove_hsm(&run.zones, "b", false, &[]).await.unwrap();
    assert!(run.opens(&material).await);
}

#[tokio::test]
async fn swapped_stanzas_are_told_apart_by_their_seal_keys() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    run.add("b", &shares).await.unwrap();
    let key_of = |run: &Run, name: &str| run.seal.seal_record().unwrap().unwrap().seal_key_of(name);
    let (of_a, of_b) = (key_of(&run, "a"), key_of(&run, "b"));
    w.b.go_down(DownReason::DeviceError);
    run.zones.rotate("default", NOW).await.unwrap();
    run.tick().await;
    let material = run.wrapped().await;
    assert_eq!(run.pending("b").await, [("default/v2".to_owned(), "by-itself")]);

    // Now `a` leads to the second token and `b` to the first one. While one of them is away nothing can be told, and all works.
    let swapped = || Group::new(vec![World::member("a", &w.b), World::member("b", &w.a)]);
    let run = w.start_with(Some(swapped()), true).unsealed().await;
    run.tick().await;
    assert!(run.opens(&material).await);
    assert_eq!(key_of(&run, "a"), of_a);
    w.b.come_back();
    run.tick().await;
    run.tick().await;
    assert_eq!((key_of(&run, "a"), key_of(&run, "b")), (of_b, of_a));
    assert!(run.pending("a").await.is_empty() && run.pending("b").await.is_empty());
    w.a.go_down(DownReason::DeviceError);
    assert!(run.opens(&material).await);
    let run = w.start_with(Some(swapped()), true).unsealed().await;
    assert!(run.opens(&material).await);
}

#[tokio::test]
async fn an_intent_and_the_token_of_an_hsm_follow_its_new_name() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    run.add("b", &shares).await.unwrap();
    // Killed in the middle of a new seal key for `b`.
    w.b.die_at(2, true);
    run.seal.rewrap_hsm(&run.zones, "b").await.unwrap_err();
    w.b.come_back();
    let renamed = Group::new(vec![World::member("a", &w.a), World::member("rack-b", &w.b)]);
    let run = w.start_with(Some(renamed), true).unsealed().await;
    run.tick().await;
    assert_eq!(run.unfinished("rack-b").await, "");
    let seals = w.b.labels().iter().filter(|label| label.contains("/seal/root/")).count();
    assert_eq!(seals, 1, "{:?}", w.b.labels());
    // Another stanza for the token of an enrolled HSM gets nothing, and nobody is told to delete that HSM's seal key.
    let twice = Group::new(vec![World::member("a", &w.a), World::member("rack-b", &w.b), World::member("c", &w.b)]);
    let run = w.start_with(Some(twice), true).unsealed().await;
    run.tick().await;
    let refused = text(run.add("c", &shares).await);
    assert!(refused.contains("same token"), "{refused}");
    let gone = FakeHsm::new();
    gone.go_down(DownReason::TokenMissing);
    let moved = Group::new(vec![World::member("a", &w.a), World::member("rack-b", &gone), World::member("c", &w.b)]);
    let run = w.start_with(Some(moved), true).unsealed().await;
    run.tick().await;
    let refused = text(run.add("c", &shares).await);
    assert!(refused.contains("Delete nothing on that token") && refused.contains("\"rack-b\""), "{refused}");
}

/// `sys/health` asks for warnings with every request: what cannot have changed is not read, and a change is seen at once.
#[tokio::test]
async fn warnings_are_kept_until_something_changes() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    let warnings = || {
        let before = w.store.reads();
        (run.seal.warnings(&run.zones).unwrap(), w.store.reads() - before)
    };
    let (none, first) = warnings();
    assert!(none.is_empty() && first > 1);
    assert_eq!(warnings(), (vec![], 1), "the seal record alone is looked at");
    run.zones.wrap(&run.zones.current("default").unwrap(), b"here", &SecretBytes::new(vec![7; 32])).await.unwrap();
    run.seal.barrier().commit(crate::barrier::Txn::new().put("logical/x", vec![1])).await.unwrap();
    assert_eq!(warnings().1, 1, "what engines write changes nothing");

    run.add("b", &shares).await.unwrap();
    run.tick().await;
    assert_eq!(warnings().0, Vec::<String>::new());
    // No tick comes between a change and the next look.
    w.b.go_down(DownReason::TokenMissing);
    run.zones.rotate("default", NOW).await.unwrap();
    let expected = "the HSM \"b\" does not hold 1 zone master key(s) yet: see sos seal list";
    assert_eq!(warnings().0, [expected]);
    assert_eq!(warnings(), (vec![expected.to_owned()], 1));
    run.zones.rotate("default", NOW).await.unwrap();
    assert!(warnings().0[0].contains("2 zone master key(s)"));

    // A record that is written beneath the barrier is seen as well.
    let mut record = run.seal.seal_record().unwrap().unwrap();
    record.wrappers.retain(|wrapper| !matches!(wrapper, Wrapper::Hsm { name, .. } if name == "b"));
    let json = serde_json::to_vec(&record).unwrap();
    run.seal.barrier().raw().commit(crate::storage::Txn::new().put(SEAL_PATH, json)).await.unwrap();
    assert_eq!(warnings().0, Vec::<String>::new());
    assert_eq!(warnings().1, 1);

    // Closed and opened again nothing is taken from before.
    run.seal.barrier().lock().await;
    assert!(matches!(run.seal.warnings(&run.zones), Err(SealError::Sealed)));
}

#[tokio::test]
async fn a_missing_seal_key_is_shown() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    let material = run.wrapped().await;
    assert!(run.pending("a").await.is_empty());
    assert!(run.seal.warnings(&run.zones).unwrap().is_empty());
    w.a.wipe();
    w.a.restart_worker();
    run.tick().await;
    let all = [("seal key".to_owned(), "with-shares"), ("default/v1".to_owned(), "with-shares")];
    assert_eq!(run.pending("a").await, all);
    let warnings = run.seal.warnings(&run.zones).unwrap();
    assert!(warnings.len() == 2 && warnings[0].contains("lacks this cluster's seal key"), "{warnings:?}");
    assert!(!run.opens(&material).await);
    run.seal.recover_hsm(&run.zones, &shares).await.unwrap();
    run.tick().await;
    assert!(run.pending("a").await.is_empty());
    assert!(run.opens(&material).await);

    run.add("b", &shares).await.unwrap();
    w.b.wipe();
    w.b.restart_worker();
    run.tick().await;
    assert_eq!(run.pending("b").await[0], ("seal key".to_owned(), "with-rewrap"));
    run.seal.rewrap_hsm(&run.zones, "b").await.unwrap();
    assert_eq!(run.pending("b").await, [("default/v1".to_owned(), "with-shares")]);
    run.add("b", &shares).await.unwrap();
    run.tick().await;
    assert!(run.pending("b").await.is_empty());
}

#[tokio::test]
async fn the_only_hsm_may_be_replaced_under_another_name() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    let material = run.wrapped().await;
    let new = FakeHsm::new();
    let run = w.start_with(Some(Group::new(vec![World::member("new", &new)])), true);
    for share in &shares {
        run.seal.unseal(UnsealRequest { key: share.duplicate(), ..UnsealRequest::default() }).await.unwrap();
    }
    run.zones.unsealed(&[], NOW).await.unwrap();
    run.seal.recover_hsm(&run.zones, &shares).await.unwrap();
    assert!(run.opens(&material).await);
    let run = w.start_with(Some(Group::new(vec![World::member("new", &new)])), true).unsealed().await;
    assert_eq!(run.seal.seal_record().unwrap().unwrap().hsm_names(), ["new"]);
}

#[tokio::test]
async fn plain_shares_become_the_escrow_of_an_hsm() {
    let w = World::new();
    let plain = w.start_with(None, true);
    let request = InitRequest { secret_shares: 3, secret_threshold: 2, ..InitRequest::default() };
    let made = plain.seal.init(request, NOW).await.unwrap();
    let shares: Vec<_> = made.keys.iter().take(2).map(|key| SecretString::new(key.clone())).collect();
    let unseal = async |run: &Run| {
        for share in &shares {
            run.seal.unseal(UnsealRequest { key: share.duplicate(), ..UnsealRequest::default() }).await.unwrap();
        }
        run.zones.unsealed(&[], NOW).await.unwrap();
    };
    let run = w.start();
    unseal(&run).await;
    assert!(!run.seal.group().unwrap().in_use(), "a stanza alone enrols nothing");
    let material = run.wrapped().await;
    assert!(text(run.add("b", &[]).await).contains("unseal keys"));
    let added = run.add("b", &shares).await.unwrap();
    assert!(added.converted);
    assert_eq!(run.seal.status().unwrap().seal_type, "pkcs11");
    assert_eq!(run.zones.current("default").unwrap().place, crate::zones::Place::Software);
    run.tick().await;
    let current = run.zones.current("default").unwrap();
    assert_eq!((current.version, current.place), (2, crate::zones::Place::Hsm));
    let moved = run.zones.rewrap_material(&current, &material).await.unwrap();
    // From here on nobody is needed, and the shares still open everything.
    let run = w.start().unsealed().await;
    assert!(run.opens(&moved).await && run.opens(&material).await);
    run.add("a", &shares).await.unwrap();
    run.seal.remove_hsm(&run.zones, "b", false, &[]).await.unwrap();
    assert!(run.opens(&moved).await);
}

#[tokio::test]
async fn a_new_seal_key_replaces_the_old_one_and_survives_new_shares() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    run.add("b", &shares).await.unwrap();
    let before = run.seal.list_hsms(&run.zones).await.unwrap().seals[0].seal_key.clone();
    run.seal.rewrap_hsm(&run.zones, "a").await.unwrap();
    assert_ne!(run.seal.list_hsms(&run.zones).await.unwrap().seals[0].seal_key, before);
    let labels = w.a.labels();
    assert!(labels.contains(&"sos/test/seal/root/v2".to_owned()) && !labels.contains(&"sos/test/seal/root/v1".to_owned()));
    for away in [&w.b, &w.a] {
        away.go_down(DownReason::DeviceError);
        w.start().unsealed().await;
        away.come_back();
    }
}

/// Adding, removing and renewing, killed at every commit and at every call of the HSM, before and after its effect. The
/// cluster always opens, and the same command then ends well.
#[tokio::test]
async fn work_on_the_list_can_be_killed_anywhere() {
    for action in ["add", "rewrap", "remove"] {
        for effect in [false, true] {
            for (what, points) in [("commit", 6), ("b", 10)] {
                for nth in 0..points {
                    let place = format!("{action}, {what} {nth} effect {effect}");
                    let w = World::new();
                    let (run, _) = w.initialised(false).await;
                    if action != "add" {
                        run.add("b", &[]).await.unwrap();
                    }
                    let material = run.wrapped().await;
                    let run = w.start().unsealed().await;
                    match what {
                        "commit" => w.store.die_at(nth, effect),
                        _ => w.b.die_at(nth, effect),
                    }
                    let first = act(&run, action).await;
                    w.b.come_back();
                    let run = w.start().unsealed().await;
                    assert!(run.opens(&material).await, "{place}");
                    run.tick().await;
                    assert_eq!(run.unfinished_or_none("b").await, "", "{place}");
                    let enrolled = run.seal.seal_record().unwrap().unwrap().hsm_names().contains(&"b".to_owned());
                    if !enrolled {
                        assert!(w.b.labels().is_empty(), "{place}: {:?}", w.b.labels());
                    }
                    let again = match (action, enrolled) {
                        ("add", _) | ("rewrap", _) | ("remove", true) => act(&run, action).await,
                        _ => Ok(()),
                    };
                    assert!(again.is_ok(), "{place}: first {first:?}, then {again:?}");
                    if action == "rewrap" {
                        let seals = w.b.labels().iter().filter(|label| label.contains("/seal/root/")).count();
                        assert_eq!(seals, 1, "{place}: {:?}", w.b.labels());
                    }
                    if action == "add" {
                        w.a.go_down(DownReason::DeviceError);
                        w.start().unsealed().await;
                    }
                }
            }
        }
    }
}

impl Run {
    async fn unfinished_or_none(&self, name: &str) -> String {
        let all = self.seal.list_hsms(&self.zones).await.unwrap().seals;
        all.into_iter().find(|seal| seal.name == name).map(|seal| seal.unfinished).unwrap_or_default()
    }
}

async fn act(run: &Run, action: &str) -> Result<(), SealError> {
    match action {
        "add" => run.add("b", &[]).await.map(|_| ()),
        "rewrap" => run.seal.rewrap_hsm(&run.zones, "b").await,
        _ => run.seal.remove_hsm(&run.zones, "b", true, &[]).await.map(|_| ()),
    }
}

#[tokio::test]
async fn a_damaged_escrow_copy_is_missing_and_no_error() {
    let w = World::new();
    let (run, _) = w.initialised(true).await;
    let b = World::member("b", &w.b);
    let brought = run.zones.bring(&b, Some(&|_| Err("damaged".to_owned()))).await.unwrap();
    assert_eq!((brought.missing, brought.imported), (vec!["default/v1".to_owned()], vec![]));
    assert!(w.b.labels().is_empty());
}

#[tokio::test]
async fn what_was_under_way_when_a_backup_was_taken_is_forgotten_and_its_objects_stay() {
    let w = World::new();
    let (run, shares) = w.initialised(true).await;
    run.add("b", &shares).await.unwrap();
    let key = KeyId::random();
    w.b.create_seal_key("sos/test/seal/root/v9", key).await.unwrap();
    let intent = record::SealIntent { format: 1, action: "rewrap".into(), member: "b".into(), keys: vec![key], masters: false };
    run.seal.barrier().commit(intent.put(crate::barrier::Txn::new()).unwrap()).await.unwrap();
    let labels = w.b.labels();
    run.seal.forget_intents().await.unwrap();
    run.tick().await;
    assert_eq!(w.b.labels(), labels);
    let orphans = run.seal.orphans(&run.zones, || Ok(HashSet::new())).await.unwrap();
    assert_eq!(orphans.iter().map(|orphan| (orphan.hsm.as_str(), orphan.id)).collect::<Vec<_>>(), [("b", key)]);
    let needed = run.zones.current("default").unwrap().id;
    assert!(text(run.seal.destroy_orphan(&run.zones, needed, || Ok(HashSet::new())).await).contains("no orphan"));
    run.seal.destroy_orphan(&run.zones, key, || Ok(HashSet::new())).await.unwrap();
    assert_eq!(w.b.labels().len(), labels.len() - 1);
}
