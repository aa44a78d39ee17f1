use std::{sync::Arc, time::Duration};

use super::{
    ttl::{TtlLimits, TtlTerms},
    *,
};
use crate::{
    barrier::{Barrier, Txn, View},
    core::{clock::Clock, failure::Kind},
    secret::SecretBytes,
    storage::{self, InMem},
};

const HOUR: Duration = Duration::from_secs(3600);
const LIMITS: TtlLimits = TtlLimits { default: HOUR, max: Duration::from_secs(10 * 3600) };

struct Fixture {
    view: View,
    cubbyhole: View,
    clock: Clock,
    store: Arc<TokenStore>,
}

async fn fixture() -> Fixture {
    let clock = Clock::movable();
    let barrier = Arc::new(Barrier::new(Arc::new(InMem::open().unwrap())));
    let root = SecretBytes::new(vec![1; 32]);
    barrier.initialize(&root, storage::Txn::new(), Txn::new(), clock.now()).await.unwrap();
    let view = View::new(barrier.clone(), "sys/token").unwrap();
    let cubbyhole = View::new(barrier, "cubbyhole").unwrap();
    let store = TokenStore::open(view.clone(), cubbyhole.clone(), clock.clone()).await.unwrap();
    Fixture { view, cubbyhole, clock, store }
}

impl Fixture {
    async fn make(&self, parent: Option<&SecretString>, ttl: Duration) -> SecretString {
        let parent = parent.map(|token| self.store.hash(token)).unwrap_or_default();
        self.store.issue(TokenSpec { parent, ttl, ..plain() }).await.unwrap().client_token
    }

    fn lives(&self, token: &SecretString) -> bool {
        self.store.lookup(token).unwrap().is_some()
    }

    /// Everything that is stored, but salt and key.
    fn records(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.view.scan("", None, 1000).unwrap().into_iter().map(|(key, _)| key).collect();
        keys.retain(|key| !["salt", "batch-key", "wrapping-key"].contains(&key.as_str()));
        keys.extend(self.cubbyhole.scan("", None, 1000).unwrap().into_iter().map(|(key, _)| key));
        keys
    }
}

fn plain() -> TokenSpec {
    TokenSpec {
        policies: vec!["default".into()],
        path: "auth/token/create".into(),
        ttl: HOUR,
        renewable: true,
        ..Default::default()
    }
}

#[tokio::test]
async fn tokens_are_known_until_revoked_and_leave_nothing() {
    let f = fixture().await;
    let token = f.make(None, HOUR).await;
    let entry = f.store.authenticate(&token, None).await.unwrap();
    assert_eq!(entry.policies, ["default"]);
    assert_eq!(f.store.lookup_accessor(&entry.accessor).unwrap().unwrap().hash, entry.hash);
    assert!(f.store.accessors(None, 10).await.unwrap().iter().eq([entry.accessor.as_str()]));
    f.cubbyhole.commit(Txn::new().put(format!("{}/a/b", entry.hash), vec![1])).await.unwrap();
    assert!(f.store.revoke_tree(&entry.hash).await.unwrap());
    assert!(!f.store.revoke_tree(&entry.hash).await.unwrap());
    assert_eq!(f.store.authenticate(&token, None).await.unwrap_err().kind(), Kind::Denied);
    assert_eq!(f.records(), Vec::<String>::new());
}

#[tokio::test]
async fn tokens_survive_a_restart() {
    let f = fixture().await;
    let token = f.store.create_root(None).await.unwrap();
    let again = TokenStore::open(f.view.clone(), f.cubbyhole.clone(), f.clock.clone()).await.unwrap();
    assert!(again.lookup(&token).unwrap().unwrap().is_root());
}

#[tokio::test]
async fn expiry_is_seen_at_once_and_swept_later() {
    let f = fixture().await;
    let parent = f.make(None, Duration::from_millis(1500)).await;
    let child = f.make(Some(&parent), HOUR).await;
    let other = f.make(None, HOUR).await;
    f.clock.advance(Duration::from_millis(1400));
    assert!(f.lives(&parent) && f.lives(&child));
    f.clock.advance(Duration::from_millis(200));
    assert!(!f.lives(&parent) && !f.lives(&child));
    assert_eq!(f.store.sweep(100).await.unwrap(), 1);
    assert_eq!(f.store.sweep(100).await.unwrap(), 0);
    assert!(f.lives(&other));
    assert_eq!(f.store.accessors(None, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_damaged_record_does_not_keep_other_expired_tokens() {
    let f = fixture().await;
    let damaged = f.make(None, Duration::from_secs(1)).await;
    let other = f.make(None, Duration::from_secs(2)).await;
    let damaged = f.store.hash(&damaged);
    let record = f.records().into_iter().find(|key| key.ends_with(&damaged) && !key.starts_with("expiry/")).unwrap();
    f.view.commit(Txn::new().put(&record, b"damaged".to_vec())).await.unwrap();
    f.clock.advance(Duration::from_secs(5));
    // A store opened anew does not know the record from its cache.
    let store = TokenStore::open(f.view.clone(), f.cubbyhole.clone(), f.clock.clone()).await.unwrap();
    assert_eq!(store.sweep(10).await.unwrap(), 1);
    assert!(!f.records().iter().any(|key| key.contains(&store.hash(&other))), "{:?}", f.records());
    assert!(store.sweep(10).await.is_err());
}

#[tokio::test]
async fn trees_end_with_every_descendant() {
    let f = fixture().await;
    let top = f.make(None, HOUR).await;
    let mut tokens = Vec::new();
    for _ in 0..70 {
        tokens.push(f.make(Some(&top), HOUR).await);
    }
    let deep = f.make(Some(&tokens[3]), HOUR).await;
    let hash = f.store.hash(&deep);
    for n in 0..100 {
        f.cubbyhole.commit(Txn::new().put(format!("{hash}/{n}"), vec![1])).await.unwrap();
    }
    f.store.revoke_tree(&f.store.hash(&top)).await.unwrap();
    assert!(tokens.iter().chain([&deep]).all(|token| !f.lives(token)));
    assert_eq!(f.records(), Vec::<String>::new());
}

#[tokio::test]
async fn a_crash_after_the_first_commit_leaves_no_child_alive() {
    let f = fixture().await;
    let top = f.make(None, HOUR).await;
    let child = f.make(Some(&top), HOUR).await;
    // What the first commit of a revocation does.
    let hash = f.store.hash(&top);
    f.view.commit(Txn::new().delete(format!("id/{hash}")).put(format!("dying/{hash}"), vec![])).await.unwrap();
    let store = TokenStore::open(f.view.clone(), f.cubbyhole.clone(), f.clock.clone()).await.unwrap();
    assert!(store.lookup(&child).unwrap().is_none());
    store.sweep(10).await.unwrap();
    assert!(f.view.list("dying/", None, 10).unwrap().is_empty());
    assert!(f.view.list("parent/", None, 10).unwrap().is_empty());
}

#[tokio::test]
async fn orphans_outlive_their_parent() {
    let f = fixture().await;
    let top = f.make(None, HOUR).await;
    let child = f.make(Some(&top), HOUR).await;
    let grandchild = f.make(Some(&child), HOUR).await;
    assert!(f.store.revoke_orphan(&f.store.hash(&top)).await.unwrap());
    assert!(!f.lives(&top) && f.lives(&child) && f.lives(&grandchild));
    assert_eq!(f.store.lookup(&child).unwrap().unwrap().parent, "");
    f.store.revoke_tree(&f.store.hash(&child)).await.unwrap();
    assert!(!f.lives(&grandchild));
    assert_eq!(f.records(), Vec::<String>::new());
}

#[tokio::test]
async fn every_use_counts_once_also_in_parallel() {
    let f = fixture().await;
    let token = f.store.issue(TokenSpec { num_uses: 10, ..plain() }).await.unwrap().client_token;
    let entry = f.store.authenticate(&token, None).await.unwrap();
    let uses = futures_util::future::join_all((0..20).map(|_| f.store.count_use(&entry))).await;
    assert_eq!(uses.iter().filter(|use_| use_.is_ok()).count(), 10);
    assert!(!f.lives(&token));
    assert!(f.store.lookup_accessor(&entry.accessor).unwrap().is_none());
    f.store.finish_use(&entry).await.unwrap();
    assert_eq!(f.records(), Vec::<String>::new());
}

#[tokio::test]
async fn used_up_tokens_are_swept_when_nobody_finishes_them() {
    let f = fixture().await;
    let spec = TokenSpec { num_uses: 1, ttl: Duration::ZERO, policies: vec!["root".into()], ..plain() };
    let token = f.store.issue(spec).await.unwrap().client_token;
    let entry = f.store.authenticate(&token, None).await.unwrap();
    f.store.count_use(&entry).await.unwrap();
    assert_eq!(f.store.sweep(10).await.unwrap(), 0);
    f.clock.advance(Duration::from_secs(61));
    assert_eq!(f.store.sweep(10).await.unwrap(), 1);
    assert_eq!(f.records(), Vec::<String>::new());
}

#[tokio::test]
async fn batch_tokens_store_nothing_and_die_with_parent_or_ttl() {
    let f = fixture().await;
    let parent = f.make(None, HOUR * 5).await;
    let before = f.records().len();
    let spec = TokenSpec { kind: TokenKind::Batch, parent: f.store.hash(&parent), ..plain() };
    let batch = f.store.issue(spec).await.unwrap();
    assert!(batch.client_token.expose().starts_with("hvb.") && batch.accessor.is_empty() && !batch.renewable);
    assert_eq!(f.records().len(), before);
    let entry = f.store.authenticate(&batch.client_token, None).await.unwrap();
    assert_eq!((entry.kind, entry.creation_ttl), (TokenKind::Batch, 3600));
    let orphan = f.store.issue(TokenSpec { kind: TokenKind::Batch, ..plain() }).await.unwrap().client_token;
    f.store.revoke_tree(&f.store.hash(&parent)).await.unwrap();
    assert!(!f.lives(&batch.client_token) && f.lives(&orphan));
    f.clock.advance(HOUR);
    assert!(!f.lives(&orphan));
    let mut forged = orphan.expose().to_owned();
    forged.replace_range(20..21, if &forged[20..21] == "A" { "B" } else { "A" });
    assert!(!f.lives(&SecretString::new(forged)));
}

#[tokio::test]
async fn renewals_move_the_expiry_within_the_bounds() {
    let f = fixture().await;
    let token = f.make(None, Duration::from_secs(3)).await;
    let hash = f.store.hash(&token);
    for _ in 0..3 {
        f.clock.advance(Duration::from_secs(2));
        let terms = TtlTerms { ttl: Duration::from_secs(3), ..Default::default() };
        assert_eq!(f.store.renew(&hash, terms, LIMITS).await.unwrap().ttl, Duration::from_secs(3));
        f.store.sweep(10).await.unwrap();
    }
    assert_eq!(f.view.list("expiry/", None, 10).unwrap().len(), 1);
    let renewed = f.store.renew(&hash, TtlTerms { increment: HOUR * 20, ..Default::default() }, LIMITS).await.unwrap();
    assert_eq!(renewed.ttl.as_secs(), 36_000 - 6);
    assert_eq!(renewed.warnings.len(), 1);
    assert_eq!(renewed.entry.ttl, 36_000 - 6);
}

#[tokio::test]
async fn chosen_ids_are_unique_until_revoked() {
    let f = fixture().await;
    let chosen = |id: &str| TokenSpec { id: Some(SecretString::new(id.into())), ..plain() };
    f.store.issue(chosen("mine")).await.unwrap();
    let text = f.store.issue(chosen("mine")).await.unwrap_err().text().to_owned();
    assert_eq!(text, "cannot create a token with a duplicate ID");
    f.store.revoke_tree(&f.store.hash(&SecretString::new("mine".into()))).await.unwrap();
    f.store.issue(chosen("mine")).await.unwrap();
    for id in ["a.b", "hvs.x", "s.x"] {
        assert_eq!(f.store.issue(chosen(id)).await.unwrap_err().kind(), Kind::Invalid, "{id}");
    }
}

#[tokio::test]
async fn dead_parents_get_no_children() {
    let f = fixture().await;
    let top = f.make(None, HOUR).await;
    let parent = f.store.hash(&top);
    f.store.revoke_tree(&parent).await.unwrap();
    assert!(f.store.issue(TokenSpec { parent, ..plain() }).await.is_err());
}

#[tokio::test]
async fn leases_are_listed_and_revoked_by_path() {
    let f = fixture().await;
    let login = |name: &str| TokenSpec { path: format!("auth/up/login/{name}"), ..plain() };
    let ann = f.store.issue(login("ann")).await.unwrap().client_token;
    let anna = f.store.issue(login("anna")).await.unwrap().client_token;
    assert_eq!(f.store.lease_names("auth/up/", None, 10).await.unwrap(), ["login/"]);
    assert_eq!(f.store.lease_names("auth/up/login/", None, 10).await.unwrap(), ["ann/", "anna/"]);
    let id = f.store.lookup(&ann).unwrap().unwrap().lease_id();
    assert!(f.store.lease(&id).unwrap().is_some());
    assert!(f.store.lease(&id.replace("ann", "bob")).unwrap().is_none());
    assert_eq!(f.store.count_leases("auth/").unwrap(), 2);
    assert_eq!(f.store.revoke_prefix("auth/up/login/ann").await.unwrap(), 1);
    assert!(!f.lives(&ann) && f.lives(&anna));
    assert_eq!(f.store.revoke_prefix("auth/up/").await.unwrap(), 1);
    assert_eq!(f.records(), Vec::<String>::new());
}

#[test]
fn networks_are_shown_in_their_short_form() {
    let list = |texts: &[&str]| normal_cidrs(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
    assert_eq!(
        list(&["127.0.0.1/32", "10.0.0.0/8", "::1/128", "1.2.3.4"]).unwrap(),
        ["127.0.0.1", "10.0.0.0/8", "::1", "1.2.3.4"]
    );
    assert_eq!(list(&["nonsense"]).unwrap_err(), "nonsense");
    let cidrs = list(&["127.0.0.1/32", "10.0.0.0/8"]).unwrap();
    for (address, within) in
        [("127.0.0.1", true), ("127.0.0.2", false), ("10.9.8.7", true), ("::ffff:10.1.1.1", true), ("::1", false)]
    {
        assert_eq!(within_cidrs(&cidrs, Some(address.parse().unwrap())), within, "{address}");
    }
    assert!(!within_cidrs(&cidrs, None) && within_cidrs(&[], None));
}
