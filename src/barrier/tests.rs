use super::teststore::Store;
use super::*;

const DAY: time::Duration = time::Duration::DAY;
const START: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

fn root(byte: u8) -> SecretBytes {
    SecretBytes::new(vec![byte; 32])
}

async fn fresh() -> (Arc<Store>, Arc<Barrier>) {
    let store = Arc::new(Store::default());
    let barrier = Arc::new(Barrier::new(store.clone()));
    barrier.initialize(&root(1), storage::Txn::new(), Txn::new(), START).await.unwrap();
    (store, barrier)
}

#[tokio::test]
async fn nothing_is_readable_while_sealed() {
    let (store, barrier) = fresh().await;
    barrier.commit(Txn::new().put("a/b", b"value".to_vec())).await.unwrap();
    barrier.lock().await;
    assert!(matches!(barrier.get("a/b"), Err(BarrierError::Sealed)));
    assert!(matches!(barrier.list("", None, 9), Err(BarrierError::Sealed)));
    assert!(matches!(barrier.scan("", None, 9), Err(BarrierError::Sealed)));
    assert!(matches!(barrier.commit(Txn::new().put("x", vec![])).await, Err(BarrierError::Sealed)));
    assert!(matches!(barrier.unlock(&root(2)).await, Err(BarrierError::RootKey)));
    assert!(barrier.is_sealed());
    barrier.unlock(&root(1)).await.unwrap();
    assert_eq!(barrier.get("a/b").unwrap().unwrap().value.expose(), b"value");
    let stored = store.get("a/b").unwrap().unwrap().value;
    assert!(!stored.windows(5).any(|w| w == b"value"));
}

#[tokio::test]
async fn a_moved_cut_or_changed_record_is_corrupt_and_named() {
    let (store, barrier) = fresh().await;
    barrier.commit(Txn::new().put("a", b"one".to_vec())).await.unwrap();
    let good = store.get("a").unwrap().unwrap().value;
    let flip = |at: usize| {
        let mut bad = good.clone();
        bad[at] ^= 1;
        bad
    };
    let cases = [vec![], good[..good.len() - 1].to_vec(), flip(0), flip(4), flip(6), flip(17), flip(good.len() - 1)];
    for bad in cases {
        store.commit(storage::Txn::new().put("a", bad)).await.unwrap();
        assert!(matches!(barrier.get("a"), Err(BarrierError::Corrupt { path, .. }) if path == "a"));
        assert!(barrier.scan("a", None, 1).is_err());
    }
    store.commit(storage::Txn::new().put("b", good)).await.unwrap();
    assert!(matches!(barrier.get("b"), Err(BarrierError::Corrupt { path, .. }) if path == "b"));
}

#[tokio::test]
async fn old_terms_stay_readable_after_rotation_and_restart() {
    let (store, barrier) = fresh().await;
    barrier.commit(Txn::new().put("a", b"1".to_vec())).await.unwrap();
    assert_eq!(barrier.rotate(START + DAY).await.unwrap(), 2);
    barrier.commit(Txn::new().put("b", b"2".to_vec())).await.unwrap();
    let again = Barrier::new(store);
    again.unlock(&root(1)).await.unwrap();
    assert_eq!(again.get("a").unwrap().unwrap().value.expose(), b"1");
    assert_eq!(again.get("b").unwrap().unwrap().value.expose(), b"2");
    let status = again.key_status().unwrap();
    assert_eq!((status.term, status.install_time), (2, START + DAY));
    assert_eq!(status.encryptions, 1 << 16, "a restart counts the whole reservation as used");
}

#[tokio::test]
async fn encryptions_are_counted_before_they_are_made() {
    let (_, barrier) = fresh().await;
    for _ in 0..3 {
        barrier.commit(Txn::new().put("a", vec![]).put("b", vec![]).delete("c")).await.unwrap();
    }
    assert_eq!(barrier.key_status().unwrap().encryptions, 6);
    let mut image = Image::first(START);
    while image.reserve(1 << 20).is_ok() {}
    assert_eq!(image.reserved(), 1 << 32);
}

#[tokio::test]
async fn rotation_by_age_and_by_count() {
    let (_, barrier) = fresh().await;
    assert_eq!(barrier.rotate_if_due(START + 900 * DAY).await.unwrap(), None);
    let config = RotateConfig { enabled: true, max_operations: MIN_MAX_OPERATIONS, interval: 10 * MIN_INTERVAL };
    barrier.set_rotate_config(config).await.unwrap();
    assert_eq!(barrier.rotate_config().unwrap(), config);
    assert_eq!(barrier.rotate_if_due(START + 9 * DAY).await.unwrap(), None);
    assert_eq!(barrier.rotate_if_due(START + 10 * DAY).await.unwrap(), Some(2));
    assert!(barrier.set_rotate_config(RotateConfig { max_operations: 1, ..config }).await.is_err());
    assert!(barrier.set_rotate_config(RotateConfig { interval: 5, ..config }).await.is_err());
}

#[tokio::test]
async fn a_new_root_key_replaces_the_old_one_in_one_transaction() {
    let (store, barrier) = fresh().await;
    barrier.commit(Txn::new().put("a", b"1".to_vec())).await.unwrap();
    barrier.rekey(&root(9), storage::Txn::new().put("core/wrapped", vec![7])).await.unwrap();
    barrier.rotate(START).await.unwrap();
    let again = Barrier::new(store.clone());
    assert!(matches!(again.unlock(&root(1)).await, Err(BarrierError::RootKey)));
    again.unlock(&root(9)).await.unwrap();
    assert_eq!(again.get("a").unwrap().unwrap().value.expose(), b"1");
    assert_eq!(store.get("core/wrapped").unwrap().unwrap().value, [7]);
    let failing = storage::Txn::new().check("core/wrapped", Expect::Absent);
    assert!(barrier.rekey(&root(5), failing).await.is_err());
    assert!(again.verify_root(&root(9)).is_ok());
}

#[tokio::test]
async fn initialize_happens_once_and_writes_all_or_nothing() {
    let store = Arc::new(Store::default());
    let barrier = Barrier::new(store.clone());
    let impossible = storage::Txn::new().check("x", Expect::Version(3));
    assert!(barrier.initialize(&root(1), impossible, Txn::new(), START).await.is_err());
    assert!(barrier.is_sealed() && !barrier.is_initialized().unwrap());
    let sealed = Txn::new().put("zone", b"z".to_vec());
    barrier.initialize(&root(1), storage::Txn::new().put("raw", vec![1]), sealed, START).await.unwrap();
    assert_eq!(barrier.get("zone").unwrap().unwrap().value.expose(), b"z");
    assert_eq!(store.get("raw").unwrap().unwrap().value, [1]);
    let again = barrier.initialize(&root(1), storage::Txn::new(), Txn::new(), START).await;
    assert!(matches!(again, Err(BarrierError::AlreadyInitialized)));
}

#[tokio::test]
async fn a_view_stays_below_its_prefix() {
    let (store, barrier) = fresh().await;
    let view = View::new(barrier.clone(), "logical/abc").unwrap();
    let sub = view.sub("keys/").unwrap();
    sub.commit(Txn::new().check("k", Expect::Absent).put("k", b"v".to_vec())).await.unwrap();
    assert!(store.get("logical/abc/keys/k").unwrap().is_some());
    assert_eq!(view.get("keys/k").unwrap().unwrap().value.expose(), b"v");
    assert_eq!(view.scan("", None, 10).unwrap()[0].0, "keys/k");
    assert_eq!(sub.list("", None, 10).unwrap(), ["k"]);
    assert!(view.scan("", Some("keys/k"), 10).unwrap().is_empty());
    for path in ["../x", "a/../b", "..", "a/.."] {
        assert!(matches!(view.get(path), Err(BarrierError::Path(_))), "{path}");
        assert!(view.commit(Txn::new().put(path, vec![])).await.is_err());
        assert!(view.sub(path).is_err());
    }
    assert!(view.sub("").is_err() && view.sub("/x").is_err());
    assert!(View::new(barrier, "").is_err());
}

#[tokio::test]
async fn check_and_set_through_the_barrier() {
    let (_, barrier) = fresh().await;
    let version = barrier.commit(Txn::new().put("a", vec![1])).await.unwrap();
    let read = barrier.get("a").unwrap();
    assert_eq!(read.as_ref().unwrap().version, version);
    barrier.commit(Txn::new().put("a", vec![2])).await.unwrap();
    let stale = Txn::new().check("a", Entry::unchanged(read.as_ref())).put("a", vec![3]);
    assert!(matches!(barrier.commit(stale).await, Err(BarrierError::Storage(StorageError::Conflict { .. }))));
}

#[tokio::test]
async fn concurrent_writers_share_reservations_and_none_is_lost() {
    let (store, barrier) = fresh().await;
    let many = |writer: u32| (0..9_000).fold(Txn::new(), |txn, n| txn.put(format!("{writer}/{n}"), vec![]));
    let commits = (0..20).map(|writer| barrier.commit(many(writer)));
    for done in futures_util::future::join_all(commits).await {
        done.unwrap();
    }
    let used = barrier.key_status().unwrap().encryptions;
    assert!((180_000..180_000 + 9_000 * 3).contains(&used), "{used}");
    let again = Barrier::new(store);
    again.unlock(&root(1)).await.unwrap();
    assert!(again.key_status().unwrap().encryptions >= used);
    assert!(again.get("19/8999").unwrap().is_some());
}

#[tokio::test]
async fn a_long_list_is_read_off_the_workers_and_a_short_one_at_once() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let (_, barrier) = fresh().await;
    let view = View::new(barrier, "logical/abc").unwrap();
    let put = |folder: &str, count: u32| (0..count).fold(Txn::new(), |txn, n| txn.put(format!("{folder}/{n:05}"), vec![]));
    view.commit(put("short", 1000)).await.unwrap();
    view.commit(put("long", 9000)).await.unwrap();
    for (folder, limit, count, elsewhere) in [
        ("short/", usize::MAX, 1000, false),
        ("long/", 1000, 1000, false),
        ("long/", 5000, 5000, true),
        ("long/", usize::MAX, 9000, true),
    ] {
        // One thread runs everything here: another task gets its turn only when the list gives it up. It does not when the
        // other thread was faster than this one's first look, but that is not so every time.
        let (mut gave_way, mut names) = (false, Names::default());
        for _ in 0..if elsewhere { 100 } else { 3 } {
            let other = Arc::new(AtomicBool::new(false));
            let turn = other.clone();
            tokio::spawn(async move { turn.store(true, Ordering::SeqCst) });
            names = view.list_long(folder, None, limit).await.unwrap();
            gave_way |= other.load(Ordering::SeqCst);
            tokio::task::yield_now().await;
            if gave_way {
                break;
            }
        }
        assert_eq!(gave_way, elsewhere, "{folder} {limit}");
        assert!(names.len() == count && names.iter().eq(view.list(folder, None, count).unwrap()), "{folder} {limit}");
    }
    assert_eq!(view.list_long("long/", Some("04999"), usize::MAX).await.unwrap().len(), 4000);
}

/// Each way in which a store can fail once: whether the commit landed, and how many further commits fail.
fn failures(closed_for: usize) -> [(bool, usize); 4] {
    [(false, 0), (true, 0), (false, closed_for), (true, closed_for)]
}

/// More commits than anybody's patience.
const FOR_LONG: usize = 1000;

#[tokio::test]
async fn after_a_failed_commit_the_store_is_read_again_and_what_it_holds_is_the_answer() {
    for (landed, closed_for) in failures(3) {
        let (store, barrier) = fresh().await;
        let before = barrier.commit(Txn::new().put("a", b"1".to_vec())).await.unwrap();
        store.fail_at(0, landed, closed_for);
        let txn = Txn::new().check("a", Expect::Version(before)).put("a", b"2".to_vec()).delete("b");
        let answer = barrier.commit_with(txn, storage::Txn::new().put("raw", b"x".to_vec())).await;
        assert!(store.has_recovered());
        let found = barrier.get("a").unwrap().unwrap();
        if landed {
            assert_eq!((answer.unwrap(), found.value.expose()), (found.version, b"2".as_slice()));
            assert_eq!(store.get("raw").unwrap().unwrap().value, b"x");
        } else {
            assert!(matches!(answer, Err(BarrierError::NotWritten(_))), "{answer:?}");
            assert_eq!((found.value.expose(), store.get("raw").unwrap()), (b"1".as_slice(), None));
        }
    }
}

#[tokio::test]
async fn where_nobody_can_tell_a_commit_says_so() {
    let (store, barrier) = fresh().await;
    let before = barrier.commit(Txn::new().put("a", b"1".to_vec())).await.unwrap();
    store.fail_at(0, true, FOR_LONG);
    let answer = barrier.commit_surely(Txn::new().check("a", Expect::Version(before)).put("a", b"2".to_vec())).await;
    assert!(answer.unwrap_err().may_have_landed());
    // Nothing is there by which a lost write without a check could be told from one that somebody overwrote.
    let (store, barrier) = fresh().await;
    barrier.commit(Txn::new().put("a", b"1".to_vec())).await.unwrap();
    store.fail_at(0, false, 0);
    assert!(barrier.commit_surely(Txn::new().put("a", b"2".to_vec())).await.unwrap_err().may_have_landed());
    // And what everybody writes is not waited for.
    store.fail_at(0, true, 0);
    assert!(barrier.commit(Txn::new().put("a", b"3".to_vec())).await.unwrap_err().may_have_landed());
    assert!(!store.has_recovered());
}

#[tokio::test]
async fn a_deletion_that_landed_is_told_from_one_that_did_not() {
    for landed in [false, true] {
        let (store, barrier) = fresh().await;
        let before = barrier.commit(Txn::new().put("a", b"1".to_vec())).await.unwrap();
        store.fail_at(0, landed, 0);
        let answer = barrier.commit_surely(Txn::new().check("a", Expect::Version(before)).delete("a")).await;
        assert_eq!((answer.is_ok(), barrier.get("a").unwrap().is_none()), (landed, landed));
    }
}

#[tokio::test]
async fn a_rotation_and_its_settings_are_there_or_not_as_answered() {
    for (landed, closed_for) in [(false, 0), (true, 0), (true, FOR_LONG)] {
        let (store, barrier) = fresh().await;
        store.fail_at(0, landed, closed_for);
        let answer = barrier.rotate(START + DAY).await;
        assert_eq!(answer.is_ok(), landed && closed_for == 0, "{answer:?}");
        store.come_back();
        let config = RotateConfig { interval: MIN_INTERVAL, ..barrier.rotate_config().unwrap() };
        barrier.set_rotate_config(config).await.unwrap();
        // What took effect without anybody knowing is taken over with the next change.
        assert_eq!(barrier.key_status().unwrap().term, if landed { 2 } else { 1 });
        barrier.commit(Txn::new().put("a", b"1".to_vec())).await.unwrap();
        let again = Barrier::new(store);
        again.unlock(&root(1)).await.unwrap();
        assert_eq!(again.get("a").unwrap().unwrap().value.expose(), b"1");
        assert_eq!(again.rotate_config().unwrap(), config);
    }
}

#[tokio::test]
async fn a_cluster_is_there_or_not_as_answered() {
    for (landed, closed_for) in failures(3) {
        let store = Arc::new(Store::default());
        let barrier = Barrier::new(store.clone());
        store.fail_at(0, landed, closed_for);
        let sealed = Txn::new().put("a", b"1".to_vec());
        let answer = barrier.initialize(&root(1), storage::Txn::new().put("raw", b"x".to_vec()), sealed, START).await;
        assert_eq!((answer.is_ok(), barrier.is_initialized().unwrap(), barrier.is_sealed()), (landed, landed, !landed));
        if landed {
            assert_eq!(barrier.get("a").unwrap().unwrap().value.expose(), b"1");
        } else {
            barrier.initialize(&root(2), storage::Txn::new(), Txn::new(), START).await.unwrap();
        }
    }
}

#[tokio::test]
async fn the_root_key_that_opens_the_keyring_is_the_one_in_use_whatever_became_of_a_rekey() {
    for (landed, closed_for) in [(false, 0), (true, 0), (false, 3), (true, 3), (false, FOR_LONG), (true, FOR_LONG)] {
        let (store, barrier) = fresh().await;
        store.fail_at(0, landed, closed_for);
        let answer = barrier.rekey(&root(2), storage::Txn::new().put("wrapped", b"x".to_vec())).await;
        if closed_for == FOR_LONG {
            assert!(answer.unwrap_err().may_have_landed());
            store.come_back();
        } else if landed {
            answer.unwrap();
        } else {
            assert!(matches!(answer, Err(BarrierError::NotWritten(_))), "{answer:?}");
        }
        let (good, bad) = if landed { (root(2), root(1)) } else { (root(1), root(2)) };
        assert!(barrier.verify_root(&good).is_ok() && barrier.verify_root(&bad).is_err());
        assert_eq!(store.get("wrapped").unwrap().is_some(), landed);
        // All that needs the root key goes on: new terms, more encryptions than were reserved, another rekey.
        barrier.rotate(START + DAY).await.unwrap();
        let mut many = Txn::new();
        for n in 0..(1 << 16) {
            many = many.put(format!("k/{n}"), Vec::new());
        }
        barrier.commit(many).await.unwrap();
        barrier.rekey(&root(3), storage::Txn::new()).await.unwrap();
        let again = Barrier::new(store);
        again.unlock(&root(3)).await.unwrap();
        assert!(again.get("k/9").unwrap().is_some());
    }
}
