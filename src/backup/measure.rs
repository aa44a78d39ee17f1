//! Figures, to be read and not judged: `cargo test --lib backup::measure -- --ignored --nocapture`.
//! `SOS_MEASURE_RECORDS` sets how many secrets there are (100,000).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use time::OffsetDateTime;

use super::*;
use crate::{
    barrier::{Barrier, Txn},
    secret::SecretBytes,
    storage::{self, Kind, Options, Storage, StorageConfig},
};

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// Runs `work` and answers how long it took, and how far memory rose above what it was.
fn watched<T>(work: impl FnOnce() -> T) -> (T, f64, u64) {
    let (before, stop, most) = (resident(), AtomicBool::new(false), AtomicU64::new(0));
    let begun = Instant::now();
    let done = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                most.fetch_max(resident(), Ordering::Relaxed);
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        });
        let done = work();
        stop.store(true, Ordering::Relaxed);
        done
    });
    (done, begun.elapsed().as_secs_f64(), most.into_inner().saturating_sub(before))
}

fn back_and_forth(kind: Kind) {
    let count: u64 = std::env::var("SOS_MEASURE_RECORDS").ok().and_then(|count| count.parse().ok()).unwrap_or(100_000);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = |name: &str| StorageConfig { kind, path: Some(folder.path().join(name)), options: Options::default() };
    let store: Arc<dyn Storage> = storage::open(&config("store")).unwrap();
    let barrier = Arc::new(Barrier::new(Arc::clone(&store)));
    let root = SecretBytes::random(32);
    let now = OffsetDateTime::UNIX_EPOCH;
    runtime.block_on(barrier.initialize(&root, storage::Txn::new(), Txn::new(), now)).unwrap();
    // A KV version 2 secret is two records.
    for start in (0..count).step_by(1000) {
        let txn = (start..(start + 1000).min(count)).fold(Txn::new(), |txn, n| {
            let txn = txn.put(format!("logical/uuid/m/disk-{n:09}"), vec![1; 60]);
            txn.put(format!("logical/uuid/v/disk-{n:09}/1"), vec![2; 300])
        });
        runtime.block_on(barrier.commit(txn)).unwrap();
    }
    let key = runtime.block_on(BackupKey::open(&barrier)).unwrap();
    let snapshot = runtime.block_on(store.snapshot()).unwrap();
    let header = super::tests::header(snapshot.version(), "c");
    let path = folder.path().join("measured.backup");
    let (stop, writes) = (AtomicBool::new(false), AtomicU64::new(0));
    let (contents, seconds, more) = std::thread::scope(|scope| {
        let handle = runtime.handle();
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let n = writes.fetch_add(1, Ordering::Relaxed) * 7919 % count;
                let txn = Txn::new().put(format!("logical/uuid/m/disk-{n:09}"), vec![3; 60]);
                handle.block_on(barrier.commit(txn)).unwrap();
            }
        });
        let done = watched(|| {
            let (out, unfinished) = files::Unfinished::create(&path).unwrap();
            let (out, ..) = Source::of(header, key, snapshot).write(out, |_| {}).unwrap();
            unfinished.finish(out).unwrap()
        });
        stop.store(true, Ordering::Relaxed);
        done
    });
    let size = path.metadata().unwrap().len() >> 20;
    println!(
        "measured: {kind:?}: {} records backed up into {size} MiB and verified in {seconds:.1} s with {} commits meanwhile, {more} MiB of memory more",
        contents.summary.records,
        writes.into_inner()
    );
    assert!(contents.summary.records > count * 2);
    let (contents, seconds, more) = watched(|| {
        let origin = Origin {
            archive: files::open(&path).unwrap(),
            target: &Target::Empty,
            force: false,
            skip_versions: None,
            now,
            begin: &mut |_| Ok(()),
            progress: &mut |_| {},
        };
        origin.into_folder(&config("restored"), Wait(runtime.handle())).unwrap().0
    });
    println!("measured: {kind:?}: {} records restored in {seconds:.1} s, {more} MiB of memory more", contents.summary.records);
    let restored = storage::open(&config("restored")).unwrap();
    let last = restored.scan("logical/", Some(&format!("logical/uuid/v/disk-{:09}/0", count - 1)), 10).unwrap();
    assert_eq!(last.len(), 1);
}

#[test]
#[ignore = "figures, not a check"]
fn sled() {
    back_and_forth(Kind::Sled);
}

#[test]
#[ignore = "figures, not a check"]
fn redb() {
    back_and_forth(Kind::Redb);
}
