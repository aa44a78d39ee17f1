//! Counts of encryptions that a replaced store kept.

use super::*;
use crate::{
    backup::{Counts, Wait, carry},
    storage::{self, Storage},
};

const MANY: u64 = 3_000_000;

/// A copy of a store, as a backup makes it.
async fn copy(barrier: &Barrier) -> Arc<dyn Storage> {
    let copy: Arc<dyn Storage> = Arc::new(InMem::open().unwrap());
    let records = barrier.raw().scan("", None, usize::MAX).unwrap();
    let txn = records.into_iter().fold(storage::Txn::new(), |txn, (path, record)| txn.put(path, record.value));
    copy.commit(txn).await.unwrap();
    copy
}

async fn carried(old: &Barrier, new: &Arc<dyn Storage>) {
    let (old, new, runtime) = (Arc::clone(old.raw()), Arc::clone(new), tokio::runtime::Handle::current());
    tokio::task::spawn_blocking(move || carry(old.as_ref(), new.as_ref(), Wait(&runtime)).unwrap()).await.unwrap();
}

/// What the first unseal of a restored store does about counts; answers those of the versions, and for how many
/// it is not known.
async fn unsealed(new: Arc<dyn Storage>, root: &SecretBytes, uid: record::KeyUid) -> ([u64; 3], usize) {
    let barrier = Arc::new(Barrier::new(new));
    barrier.unlock(root).await.unwrap();
    barrier.rotate(Clock::system().now()).await.unwrap();
    let view = View::new(Arc::clone(&barrier), "logical/uuid").unwrap();
    let counts = Counts::of(&barrier).await.unwrap();
    let given = Given::of(barrier.raw().as_ref(), ("uuid", "t/"), 0, &counts);
    let unknown = usage::take_up(&view, &given).await.unwrap();
    Given::forget_all(barrier.raw().as_ref()).await.unwrap();
    assert!(barrier.raw().scan("core/given", None, 1).unwrap().is_empty());
    ([1, 2, 3].map(|version| usage::stored(&view, uid, version).unwrap().0), unknown)
}

/// A store with three versions of a key.
async fn store() -> (SecretBytes, Arc<Barrier>, View, record::KeyUid) {
    let root = SecretBytes::random(32);
    let old = Arc::new(Barrier::new(Arc::new(InMem::open().unwrap())));
    old.initialize(&root, storage::Txn::new(), Txn::new(), Clock::system().now()).await.unwrap();
    let view = View::new(Arc::clone(&old), "logical/uuid").unwrap();
    let uid = record::KeyUid::random();
    let mut txn = Txn::new();
    for version in [1, 2, 3] {
        txn = txn.put(record::material_path(uid, version), Vec::new());
        txn = usage::Usage::first_block(txn, uid, version, 0).unwrap();
    }
    view.commit(txn).await.unwrap();
    (root, old, view, uid)
}

#[tokio::test]
async fn counts_are_read_by_the_replaced_stores_keyring_and_passed_on_by_who_was_never_unsealed() {
    let (root, old, view, uid) = store().await;
    let (new, third) = (copy(&old).await, copy(&old).await);

    let use_up = async |version| {
        usage::Usage::load(&view, uid, version).unwrap().take(&view, "k", MANY).await.unwrap();
    };
    use_up(1).await;
    old.rotate(Clock::system().now()).await.unwrap();
    use_up(2).await;
    let expected = [1, 2, 3].map(|version| usage::stored(&view, uid, version).unwrap().0);
    assert!(expected[0] > MANY && expected[1] > MANY && expected[2] == usage::BLOCK);

    carried(&old, &new).await;
    // Another restore over it, before anybody had the keys.
    carried(&Barrier::new(Arc::clone(&new)), &third).await;
    for store in [new, third] {
        assert_eq!(unsealed(store, &root, uid).await, (expected, 0));
    }
}

#[tokio::test]
async fn what_was_written_before_the_keyring_changed_is_read_also_when_the_root_key_was_replaced() {
    let (root, old, view, uid) = store().await;
    let new = copy(&old).await;
    usage::Usage::load(&view, uid, 1).unwrap().take(&view, "k", MANY).await.unwrap();
    old.rekey(&SecretBytes::random(32), storage::Txn::new()).await.unwrap();
    old.rotate(Clock::system().now()).await.unwrap();
    usage::Usage::load(&view, uid, 2).unwrap().take(&view, "k", MANY).await.unwrap();
    carried(&old, &new).await;
    let ([first, second, third], unknown) = unsealed(new, &root, uid).await;
    assert!(first > MANY);
    // Nobody can tell, and the log says so.
    assert_eq!(([second, third], unknown), ([usage::BLOCK; 2], 1));
}

#[tokio::test]
async fn of_versions_that_were_deleted_after_the_backup_it_is_said_that_nobody_knows() {
    let (root, old, view, uid) = store().await;
    let (new, third) = (copy(&old).await, copy(&old).await);
    usage::Usage::load(&view, uid, 1).unwrap().take(&view, "k", MANY).await.unwrap();
    let gone = Txn::new().delete(record::material_path(uid, 2)).delete(record::usage_path(uid, 2));
    view.commit(gone).await.unwrap();
    carried(&old, &new).await;
    carried(&Barrier::new(Arc::clone(&new)), &third).await;
    for store in [new, third] {
        let (counts, unknown) = unsealed(store, &root, uid).await;
        assert!(counts[0] > MANY && counts[1..] == [usage::BLOCK; 2]);
        assert_eq!(unknown, 1);
    }
}
