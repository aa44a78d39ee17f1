//! What others do between two steps of a request: a zone that is rotated, a key that is deleted or trimmed; and records that
//! cannot be read while all are re-wrapped.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use tokio::{runtime::Handle, sync::Notify, task::block_in_place};

use super::*;
use crate::{
    barrier::Stamp,
    hsm::{DownReason, KeyId, KeyKind, NewKey, WrappedKey},
    storage,
    zones::WrappedMaterial,
};

use record::{Secrets, StoredKey, VersionRecord, decode, encode, key_path, material_path};

/// The zones of a bench, with others at work in between.
struct Meddled {
    zones: Arc<Zones>,
    stores: Arc<Stores>,
    /// Counts down with everything that is wrapped: at 0 the zone is rotated right after it.
    wraps: AtomicUsize,
    /// The same for looks at which master key is the newest.
    looks: AtomicUsize,
    /// Whether the next opening waits for `go`.
    hold: AtomicBool,
    held: AtomicBool,
    go: Notify,
}

const NEVER: usize = usize::MAX;

impl Meddled {
    /// Puts it under the mount of a bench, whose memory is empty afterwards.
    fn under(bench: &mut Bench) -> Arc<Self> {
        let (hsm, zones) = (bench.services.hsm.clone(), Arc::clone(&bench.services.zones));
        bench.services = Arc::new(Services { hsm, zones, default_protection: None, transit: Arc::default() });
        let meddled = Arc::new(Self {
            zones: Arc::clone(&bench.services.zones),
            stores: Arc::clone(&bench.services.transit),
            wraps: NEVER.into(),
            looks: NEVER.into(),
            hold: false.into(),
            held: false.into(),
            go: Notify::new(),
        });
        let zones = Some(Arc::clone(&meddled) as Arc<dyn ZoneKeys>);
        let protection = Protection { zones, ..Protection::from(bench.services.as_ref()) };
        let context = context(&bench.barrier, &bench.clock, &bench.services, &bench.options);
        let store = bench.services.transit.of("uuid", &context.view, "default", &protection);
        bench.transit = Arc::new(Transit::new(&context).unwrap());
        assert!(Arc::ptr_eq(&store, &bench.transit.store));
        meddled
    }

    /// Rotates the zone and moves all that is committed, to the end.
    async fn rotate(&self) {
        self.zones.rotate("default", Clock::system().now()).await.unwrap();
        assert!(self.zones.rewrap("default", self.stores.as_ref()).await.unwrap().finished);
    }

    fn is_due(count: &AtomicUsize) -> bool {
        count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| Some(if n == NEVER { n } else { n.wrapping_sub(1) })) == Ok(0)
    }

    async fn wrapped(&self) {
        if Self::is_due(&self.wraps) {
            self.rotate().await;
        }
    }
}

#[async_trait]
impl ZoneKeys for Meddled {
    fn key_label(&self) -> String {
        self.zones.key_label()
    }

    fn exists(&self, zone: &str) -> Result<bool, Failure> {
        ZoneKeys::exists(self.zones.as_ref(), zone)
    }

    fn in_hsm(&self, zone: &str) -> Result<bool, Failure> {
        self.zones.in_hsm(zone)
    }

    fn newest(&self, zone: &str) -> Result<(KeyId, Stamp), Failure> {
        let newest = self.zones.newest(zone);
        if Self::is_due(&self.looks) {
            block_in_place(|| Handle::current().block_on(self.rotate()));
        }
        newest
    }

    async fn wrap(&self, zone: &str, aad: &[u8], material: &SecretBytes) -> Result<WrappedMaterial, Failure> {
        let wrapped = ZoneKeys::wrap(self.zones.as_ref(), zone, aad, material).await;
        self.wrapped().await;
        wrapped
    }

    async fn unwrap(&self, zone: &str, aad: &[u8], material: &WrappedMaterial) -> Result<SecretBytes, Failure> {
        if self.hold.swap(false, Ordering::SeqCst) {
            self.held.store(true, Ordering::SeqCst);
            self.go.notified().await;
        }
        ZoneKeys::unwrap(self.zones.as_ref(), zone, aad, material).await
    }

    async fn rewrap(&self, zone: &str, material: &WrappedMaterial) -> Result<WrappedMaterial, Failure> {
        ZoneKeys::rewrap(self.zones.as_ref(), zone, material).await
    }

    async fn generate(&self, zone: &str, kind: KeyKind) -> Result<NewKey, Failure> {
        let made = self.zones.generate(zone, kind).await;
        self.wrapped().await;
        made
    }

    async fn wrap_key(&self, zone: &str, kind: KeyKind, material: &SecretBytes) -> Result<WrappedKey, Failure> {
        let wrapped = ZoneKeys::wrap_key(self.zones.as_ref(), zone, kind, material).await;
        self.wrapped().await;
        wrapped
    }

    async fn rewrap_key(&self, zone: &str, key: &WrappedKey) -> Result<WrappedKey, Failure> {
        ZoneKeys::rewrap_key(self.zones.as_ref(), zone, key).await
    }
}

/// The versions that are under another master key than the newest.
fn left_behind(bench: &Bench) -> Vec<String> {
    let newest = bench.services.zones.current("default").unwrap().id;
    let mut left = Vec::new();
    for (path, entry) in bench.transit.store.view.scan("material/", None, usize::MAX).unwrap() {
        let record: VersionRecord = decode(&entry.value).unwrap();
        let old_key = matches!(&record.key, StoredKey::Hsm(wrapped) if wrapped.wrapped_by != newest);
        if old_key || matches!(&record.secrets, Secrets::Zone(material) if material.data_key.wrapped_by != newest) {
            left.push(path);
        }
    }
    left
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_committed_under_a_master_key_that_was_replaced_meanwhile() {
    for with_hsm in [false, true] {
        for nth in 0..2 {
            for looks in [false, true] {
                let mut bench = Bench::with(with_hsm.then(FakeHsm::new), &[]).await;
                let meddled = Meddled::under(&mut bench);
                let due = || if looks { &meddled.looks } else { &meddled.wraps }.store(nth, Ordering::SeqCst);
                due();
                bench.post("keys/made", json!({})).await;
                bench.post("keys/made/rotate", json!({})).await;
                meddled.looks.store(NEVER, Ordering::SeqCst);
                meddled.wraps.store(NEVER, Ordering::SeqCst);
                bench.post("keys/raised", json!({ "protection_level": "software" })).await;
                let text = bench.encrypt("raised", "x").await;
                if with_hsm {
                    due();
                    bench.post("keys/raised/config", json!({ "protection_level": "hsm" })).await;
                }
                let version = bench.services.zones.current("default").unwrap().version;
                assert!(version > 1, "it was rotated");
                assert_eq!(left_behind(&bench), [""; 0], "{nth} {looks} {with_hsm}");
                bench.restart();
                assert_eq!(bench.decrypt("raised", &text).await.unwrap(), "x");
                let text = bench.encrypt("made", "y").await;
                assert_eq!(bench.decrypt("made", &text).await.unwrap(), "y");
            }
        }
    }
}

#[tokio::test]
async fn what_is_trimmed_or_raised_leaves_memory_at_once() {
    let bench = Bench::with(Some(FakeHsm::new()), &[]).await;
    bench.post("keys/k", json!({ "protection_level": "software" })).await;
    let first = bench.encrypt("k", "one").await;
    bench.post("keys/k/rotate", json!({})).await;
    bench.encrypt("k", "two").await;
    assert_eq!(bench.transit.store.opened(), 2);
    bench.post("keys/k/config", json!({ "min_decryption_version": 2, "min_encryption_version": 2 })).await;
    assert_eq!(bench.transit.store.opened(), 2, "the same keys as before");
    bench.post("keys/k/trim", json!({ "min_available_version": 2 })).await;
    assert_eq!(bench.transit.store.opened(), 1);
    bench.decrypt("k", &first).await.unwrap_err();
    bench.post("keys/k/config", json!({ "protection_level": "hsm" })).await;
    assert_eq!(bench.transit.store.opened(), 0);
}

#[tokio::test]
async fn what_goes_away_while_it_is_opened_does_not_stay_in_memory() {
    let change = |operation, path: &'static str, body: Value| (operation, path, body);
    for (operation, path, body) in [
        change(Operation::Delete, "keys/k", json!({})),
        change(Operation::Update, "keys/k/trim", json!({ "min_available_version": 2 })),
        change(Operation::Update, "keys/k/config", json!({ "protection_level": "hsm" })),
    ] {
        let mut bench = Bench::with(Some(FakeHsm::new()), &[]).await;
        bench.post("keys/k", json!({ "protection_level": "software" })).await;
        let text = bench.encrypt("k", "one").await;
        bench.post("keys/k/rotate", json!({})).await;
        bench.post("keys/k/config", json!({ "deletion_allowed": true })).await;
        let bounds = json!({ "min_decryption_version": 2, "min_encryption_version": 2 });
        let meddled = Meddled::under(&mut bench);
        meddled.hold.store(true, Ordering::SeqCst);
        let using = bench.decrypt("k", &text);
        let changing = async {
            while !meddled.held.load(Ordering::SeqCst) {
                tokio::task::yield_now().await;
            }
            if path.ends_with("trim") {
                bench.post("keys/k/config", bounds).await;
            }
            bench.call(operation, path, body).await.unwrap();
            meddled.go.notify_one();
        };
        let (used, ()) = tokio::join!(using, changing);
        assert_eq!(used.unwrap(), "one", "it had been let in before");
        assert_eq!(bench.transit.store.opened(), 0, "{path}");
    }
}

/// Takes a key away, or its first version, as others do: committed, and not seen by the cache yet.
async fn take_away(bench: &Bench, name: &str, whole: bool) {
    let store = &bench.transit.store;
    let key = store.key(name).unwrap().unwrap();
    let mut record = key.record.clone();
    let txn = Txn::new().delete(material_path(record.uid, 1));
    record.versions.retain(|line| line.version > 1);
    record.min_available_version = 2;
    record.min_decryption_version = 2;
    let txn = match whole {
        true => txn.delete(material_path(record.uid, 2)).delete(key_path(name)),
        false => txn.put_secret(key_path(name), encode(&record).unwrap()),
    };
    store.view.commit(txn).await.unwrap();
}

#[tokio::test]
async fn a_request_that_lost_its_key_looks_again() {
    let read = |path: &'static str| (Operation::Read, path, json!({}));
    let write = |path: &'static str, body: Value| (Operation::Update, path, body);
    for (operation, path, body) in [
        write("hmac/k", json!({ "input": "YQ==", "key_version": 1 })),
        read("export/encryption-key/k"),
        read("backup/k"),
        write("encrypt/k", json!({ "plaintext": "YQ==", "key_version": 1 })),
        write("keys/k/config", json!({ "protection_level": "hsm" })),
        (Operation::Delete, "keys/k", json!({})),
    ] {
        for whole in [true, false] {
            let bench = Bench::with(Some(FakeHsm::new()), &[]).await;
            let body_of_key = json!({ "protection_level": "software", "exportable": true, "allow_plaintext_backup": true });
            bench.post("keys/k", body_of_key).await;
            bench.post("keys/k/config", json!({ "deletion_allowed": true })).await;
            bench.post("keys/k/rotate", json!({})).await;
            take_away(&bench, "k", whole).await;
            let upserted = whole && path == "encrypt/k";
            match bench.call(operation, path, body.clone()).await {
                Ok(_) => assert!(!whole || upserted, "{path}"),
                Err(failure) => assert!(failure.cause().is_none() && failure.text() != "internal error", "{path}: {failure:?}"),
            }
        }
    }
    // What the store lost is still said to be lost.
    let bench = Bench::new().await;
    bench.post("keys/k", json!({})).await;
    let uid = bench.transit.store.key("k").unwrap().unwrap().record.uid;
    bench.transit.store.view.commit(Txn::new().delete(material_path(uid, 1))).await.unwrap();
    for path in ["hmac/k", "encrypt/k"] {
        let failure = bench.call(Operation::Update, path, json!({ "input": "YQ==", "plaintext": "YQ==" })).await.unwrap_err();
        assert!(failure.cause().unwrap().to_string().contains("is missing"), "{failure:?}");
    }
}

#[tokio::test]
async fn no_key_is_committed_between_the_look_at_a_mounts_keys_and_its_change() {
    for changed in [true, false] {
        let bench = Bench::new().await;
        bench.services.zones.create("zz", time::Duration::ZERO, bench.clock.now()).await.unwrap();
        let before = context(&bench.barrier, &bench.clock, &bench.services, &bench.options).entry;
        let options = BTreeMap::from([("zone".to_owned(), "zz".to_owned())]);
        let after = context(&bench.barrier, &bench.clock, &bench.services, &options);
        let still = check_tuned(&before, &after).await.unwrap();
        let transit = Arc::clone(&bench.transit);
        let creating = tokio::spawn(async move {
            let new = lifecycle::NewKey::plain(alg::KeyType::Aes256Gcm96);
            transit.create("k", &new).await.map(|_| ())
        });
        // Many more turns than it takes.
        for _ in 0..1000 {
            next_turn().await;
        }
        assert!(!creating.is_finished() && bench.transit.store.refresh("k").unwrap().is_none(), "it waits");
        if changed {
            mounted(&bench.barrier, &bench.clock, &bench.services, &options);
        }
        drop(still);
        let created = creating.await.unwrap();
        assert_eq!(created.is_ok(), !changed, "{created:?}");
        assert_eq!(bench.transit.store.view.list("key/", None, 10).unwrap().is_empty(), changed);
        if !changed {
            let failure = check_tuned(&before, &after).await.err().unwrap();
            assert!(failure.text().contains("its zone cannot be changed"), "{failure:?}");
        }
    }
}

#[tokio::test]
async fn counts_do_not_outlive_their_versions() {
    let bench = Bench::new().await;
    bench.post("keys/k", json!({})).await;
    bench.post("keys/k/config", json!({ "deletion_allowed": true })).await;
    let store = &bench.transit.store;
    let key = store.key("k").unwrap().unwrap();
    let loaded = store.load("default", &key, 1).await.unwrap().unwrap();
    bench.call(Operation::Delete, "keys/k", json!({})).await.unwrap();
    let failure = loaded.usage.take(&store.view, "k", 2 * usage::BLOCK).await.unwrap_err();
    assert!(store.is_stale(&failure), "{failure:?}");
    assert!(store.view.scan("", None, 10).unwrap().is_empty());
}

/// Lets other tasks go on, and comes before what they wake: [`tokio::task::yield_now`] comes after it.
async fn next_turn() {
    let mut waited = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut waited, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

#[tokio::test]
async fn who_uses_a_version_first_counts_together_with_all_others() {
    let bench = Bench::new().await;
    bench.post("keys/k", json!({})).await;
    for version in 2..20 {
        // On a task of its own, which is asked between the commit and whatever the rotation does after it.
        let store = Arc::clone(&bench.transit.store);
        let using = tokio::spawn(async move {
            loop {
                let key = store.key("k").unwrap().unwrap();
                match store.load("default", &key, version).await.unwrap() {
                    Some(loaded) => return (key.record.uid, loaded),
                    None => next_turn().await,
                }
            }
        });
        bench.transit.rotate("k").await.unwrap();
        let (uid, first) = using.await.unwrap();
        let store = &bench.transit.store;
        first.usage.take(&store.view, "k", 3 * usage::BLOCK).await.unwrap();
        store.forget_older(Duration::ZERO);
        let key = store.key("k").unwrap().unwrap();
        let again = store.load("default", &key, version).await.unwrap().unwrap();
        assert!(Arc::ptr_eq(&first.usage, &again.usage), "version {version} has two counts");
        again.usage.take(&store.view, "k", usage::BLOCK).await.unwrap();
        let entry = store.view.get(&record::usage_path(uid, version)).unwrap().unwrap();
        let reserved = decode::<record::UsageRecord>(&entry.value).unwrap().reserved;
        assert!(reserved >= 4 * usage::BLOCK, "{reserved} of version {version}");
    }
}

#[tokio::test]
async fn records_that_cannot_be_moved_do_not_keep_the_others() {
    let mut bench = Bench::new().await;
    let mut behind = context(&bench.barrier, &bench.clock, &bench.services, &bench.options);
    behind.entry.uuid = "uuid-2".into();
    behind.view = View::new(Arc::clone(&bench.barrier), "logical/uuid-2").unwrap();
    let second = Transit::new(&behind).unwrap();
    second.create("k", &lifecycle::NewKey::plain(alg::KeyType::Aes256Gcm96)).await.unwrap();
    for name in ["a", "b", "c", "d", "e", "f"] {
        bench.post(&format!("keys/{name}"), json!({})).await;
    }
    let view = bench.transit.store.view.clone();
    let found = view.scan("material/", None, usize::MAX).unwrap();
    // One that is not JSON, one under a master key that is nowhere, one that the barrier does not open.
    view.commit(Txn::new().put(found[0].0.clone(), b"{".to_vec())).await.unwrap();
    let mut record: VersionRecord = decode(&found[2].1.value).unwrap();
    if let Secrets::Zone(material) = &mut record.secrets {
        material.data_key.wrapped_by = KeyId::random();
    }
    view.commit(Txn::new().put_secret(found[2].0.clone(), encode(&record).unwrap())).await.unwrap();
    let raw = storage::Txn::new().put(format!("logical/uuid/{}", found[4].0), b"rotten".to_vec());
    bench.barrier.raw().commit(raw).await.unwrap();

    let zones = Arc::clone(&bench.services.zones);
    zones.rotate("default", bench.clock.now()).await.unwrap();
    let stores = Arc::clone(&bench.services.transit);
    let progress = zones.rewrap("default", stores.as_ref()).await.unwrap();
    assert_eq!((progress.seen, progress.rewrapped, progress.failed, progress.finished), (7, 4, 3, false), "{progress:?}");
    assert!(progress.reason.as_ref().unwrap().starts_with("material/"), "{progress:?}");
    assert_eq!(zones.read("default").unwrap().rewrap, Some(progress.clone()), "it is shown");
    assert_eq!(zones.rewrap("default", stores.as_ref()).await.unwrap(), progress, "not again at once");

    // Once they are gone or mended the next pass comes to its end.
    let txn = [0, 2, 4].iter().fold(Txn::new(), |txn, at| txn.delete(found[*at].0.clone()));
    view.commit(txn).await.unwrap();
    bench.restart();
    let zones = Arc::clone(&bench.services.zones);
    let progress = zones.rewrap("default", bench.services.transit.as_ref()).await.unwrap();
    assert_eq!((progress.failed, progress.finished, progress.reason), (0, true, None));
}

#[tokio::test]
async fn without_the_hsm_rewrapping_waits_and_says_why() {
    let hsm = FakeHsm::new();
    let bench = Bench::with(Some(Arc::clone(&hsm)), &[]).await;
    for name in ["a", "b"] {
        bench.post(&format!("keys/{name}"), json!({})).await;
    }
    let zones = Arc::clone(&bench.services.zones);
    zones.rotate("default", bench.clock.now()).await.unwrap();
    hsm.go_down(DownReason::TokenMissing);
    zones.rewrap("default", bench.services.transit.as_ref()).await.unwrap_err();
    let progress = zones.read("default").unwrap().rewrap.unwrap();
    assert_eq!((progress.failed, progress.finished), (0, false));
    assert!(progress.reason.unwrap().contains("hsm-token-missing"));
    hsm.come_back();
    let progress = zones.rewrap("default", bench.services.transit.as_ref()).await.unwrap();
    assert_eq!((progress.rewrapped, progress.finished, progress.reason), (2, true, None));
}

#[tokio::test]
async fn a_removal_leaves_the_objects_that_a_deletion_is_destroying_to_it() {
    let hsm = FakeHsm::new();
    let bench = Bench::with(Some(Arc::clone(&hsm)), &[]).await;
    let before = hsm.labels().len();
    bench.post("keys/k", json!({ "protection_level": "hsm-only" })).await;
    bench.post("keys/k/config", json!({ "deletion_allowed": true })).await;
    let held = hsm.hold_next_destroyed();
    bench.call(Operation::Delete, "keys/k", json!({})).await.unwrap();
    held.wait().await;
    bench.remove().await;
    for _ in 0..3 {
        assert_eq!(bench.retire().await.unwrap(), Left::Something);
    }
    held.wait().await;
    bench.destroyed().await;
    assert_eq!(bench.retire().await.unwrap(), Left::Nothing);
    assert_eq!(hsm.labels().len(), before);
}
