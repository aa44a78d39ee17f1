//! Archives and restores over real stores, with every kind of damage.

use std::sync::Arc;

use time::OffsetDateTime;

use super::*;
use crate::{
    barrier::{Barrier, Txn},
    secret::SecretBytes,
    storage::{self, InMem, Kind, Options, Record, Storage, StorageConfig},
    wire::time::rfc3339,
};

const ROOT: [u8; 32] = [7; 32];

pub(super) fn header(sequence: u64, cluster: &str) -> Header {
    Header {
        format: 1,
        created: rfc3339(OffsetDateTime::UNIX_EPOCH),
        sequence,
        sos_version: "0".into(),
        storage_type: "inmem".into(),
        cluster_id: cluster.into(),
        cluster_name: "name".into(),
        needs: Needs::default(),
    }
}

async fn barrier(storage: Arc<dyn Storage>) -> Barrier {
    let barrier = Barrier::new(storage);
    let root = SecretBytes::new(ROOT.to_vec());
    barrier.initialize(&root, storage::Txn::new(), Txn::new(), OffsetDateTime::UNIX_EPOCH).await.unwrap();
    barrier
}

/// An archive of `count` records under a fresh key.
async fn archive(count: u64) -> (Vec<u8>, BackupKey) {
    let barrier = barrier(Arc::new(InMem::open().unwrap())).await;
    let key = BackupKey::open(&barrier).await.unwrap();
    let mut writer = Writer::new(Vec::new(), &header(count, "c")).unwrap();
    for number in 1..=count {
        let value = format!("value {number} ").repeat(20).into_bytes();
        writer.add(&format!("k/{number:09}"), &Record { version: number, value }).unwrap();
    }
    let (bytes, summary, seal) = writer.finish(&key).unwrap();
    assert_eq!(summary.records, count);
    seal.check(&key).unwrap();
    (bytes, key)
}

fn read(bytes: &[u8]) -> Result<Contents, BackupError> {
    Reader::new(bytes).read(|_| Ok(()), |_| Ok(()))
}

#[tokio::test]
async fn what_is_written_is_read_and_authentic_by_its_key_alone() {
    let (bytes, key) = archive(20_000).await;
    let mut records = Vec::new();
    let contents = Reader::new(bytes.as_slice())
        .read(
            |header| {
                assert_eq!(header.cluster_id, "c");
                Ok(())
            },
            |chunk| {
                records.extend(chunk);
                Ok(())
            },
        )
        .unwrap();
    assert_eq!((records.len(), contents.summary.records), (20_000, 20_000));
    assert!(contents.summary.chunks > 3, "{:?}", contents.summary);
    assert_eq!(records[4].0, "k/000000005");
    assert_eq!(records[4].1, Record { version: 5, value: "value 5 ".repeat(20).into_bytes() });
    contents.seal.check(&key).unwrap();
    let (_, other) = archive(1).await;
    assert!(matches!(contents.seal.check(&other), Err(BackupError::NotAuthentic)));
}

#[tokio::test]
async fn standard_tools_check_it_without_keys() {
    let (bytes, _) = archive(9000).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("b.tar.gz"), bytes).unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let done = std::process::Command::new(program).args(arguments).current_dir(folder.path()).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    };
    run("tar", &["xzf", "b.tar.gz"]);
    let checked = run("sha256sum", &["--check", "--strict", "SHA256SUMS"]);
    assert!(checked.lines().count() > 3 && checked.lines().all(|line| line.ends_with(": OK")), "{checked}");
}

#[tokio::test]
async fn every_cut_is_seen() {
    let (bytes, _) = archive(9000).await;
    for cut in (0..bytes.len()).step_by(bytes.len() / 150).chain(bytes.len() - 2000..bytes.len()) {
        let error = read(&bytes[..cut]).unwrap_err();
        assert!(matches!(error, BackupError::Damaged(_)), "cut at {cut}: {error}");
    }
    read(&bytes).unwrap();
    let longer = [bytes.as_slice(), b"x"].concat();
    assert!(read(&longer).unwrap_err().to_string().contains("behind its end"));
}

#[tokio::test]
async fn every_changed_byte_is_seen_or_changes_nothing() {
    let (bytes, _) = archive(40).await;
    let whole = read(&bytes).unwrap();
    let mut unseen = 0;
    for at in (0..bytes.len()).step_by(7) {
        let mut changed = bytes.clone();
        changed[at] ^= 0x20;
        // The compression has bits without a meaning: the time in its header, what fills up a byte before a block.
        if let Ok(contents) = read(&changed) {
            unseen += 1;
            assert_eq!((contents.summary, contents.seal), (whole.summary, whole.seal.clone()), "changed at {at}");
        }
    }
    assert!(unseen < 5, "{unseen}");
}

/// Somebody who can write checksums, but has no key.
#[tokio::test]
async fn a_consistent_alteration_is_told_by_the_code() {
    let (bytes, key) = archive(50).await;
    let (_, other) = archive(1).await;
    let mut forged = Writer::new(Vec::new(), &header(50, "c")).unwrap();
    let contents = Reader::new(bytes.as_slice())
        .read(|_| Ok(()), |chunk| chunk.iter().skip(1).try_for_each(|(key, record)| forged.add(key, record)))
        .unwrap();
    let (forged, _, _) = forged.finish(&other).unwrap();
    let found = read(&forged).unwrap();
    assert_ne!(found.seal.digest, contents.seal.digest);
    assert!(matches!(found.seal.check(&key), Err(BackupError::NotAuthentic)));
}

#[tokio::test]
async fn a_later_format_and_other_files_are_named() {
    let mut later = header(1, "c");
    later.format = 2;
    let barrier = barrier(Arc::new(InMem::open().unwrap())).await;
    let key = BackupKey::open(&barrier).await.unwrap();
    let (bytes, ..) = Writer::new(Vec::new(), &later).unwrap().finish(&key).unwrap();
    assert!(matches!(read(&bytes), Err(BackupError::Format(2))));
    for other in [b"".as_slice(), b"hello", &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3]] {
        assert!(matches!(read(other), Err(BackupError::Damaged(_))));
    }
}

#[tokio::test]
async fn a_last_commit_without_room_behind_it_is_damage() {
    let barrier = barrier(Arc::new(InMem::open().unwrap())).await;
    let key = BackupKey::open(&barrier).await.unwrap();
    for sequence in [u64::MAX, (1 << 62) + 1] {
        let (bytes, ..) = Writer::new(Vec::new(), &header(sequence, "c")).unwrap().finish(&key).unwrap();
        assert!(matches!(read(&bytes), Err(BackupError::Damaged(why)) if why.contains("no store gives")));
    }
    let (bytes, ..) = Writer::new(Vec::new(), &header(1 << 62, "c")).unwrap().finish(&key).unwrap();
    assert_eq!(read(&bytes).unwrap().header.sequence, 1 << 62);
}

fn config(kind: Kind, folder: &std::path::Path) -> StorageConfig {
    let options = Options { free_watermark: 0, reserve_bytes: 0, ..Options::default() };
    StorageConfig { kind, path: Some(folder.to_owned()), options }
}

struct Bench {
    runtime: tokio::runtime::Runtime,
    folder: tempfile::TempDir,
    kind: Kind,
}

impl Bench {
    fn new(kind: Kind) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        Self { runtime, folder: tempfile::tempdir().unwrap(), kind }
    }

    fn config(&self) -> StorageConfig {
        config(self.kind, &self.folder.path().join("store"))
    }

    fn archive(&self, count: u64) -> Vec<u8> {
        self.runtime.block_on(archive(count)).0
    }

    /// Restores over what is in the folder, which counts as this cluster's at this commit.
    fn restore(
        &self,
        archive: &[u8],
        target: &Target,
        force: bool,
    ) -> Result<(Contents, Option<std::path::PathBuf>), BackupError> {
        let origin = Origin {
            archive,
            target,
            force,
            skip_versions: None,
            now: OffsetDateTime::UNIX_EPOCH,
            begin: &mut |_| Ok(()),
            progress: &mut |_| {},
        };
        origin.into_folder(&self.config(), Wait(self.runtime.handle()))
    }

    fn open(&self) -> Arc<dyn Storage> {
        settle_folder(&self.folder.path().join("store")).unwrap();
        storage::open(&self.config()).unwrap()
    }

    fn put(&self, store: &dyn Storage, key: &str, value: &str) -> u64 {
        self.runtime.block_on(store.commit(storage::Txn::new().put(key, value.into()))).unwrap()
    }

    /// What each kind of damage must leave alone.
    fn old_store(&self) {
        let store = self.open();
        self.put(&*store, "mine", "old");
    }

    fn assert_old(&self) {
        assert_eq!(self.open().get("mine").unwrap().unwrap().value, b"old");
        let left: Vec<_> =
            std::fs::read_dir(self.folder.path().join("store")).unwrap().flatten().map(|e| e.file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("restore")), "{left:?}");
    }
}

fn into_an_empty_folder_and_over_a_store(kind: Kind) {
    let bench = Bench::new(kind);
    let bytes = bench.archive(5000);
    let (_, old) = bench.restore(&bytes, &Target::Empty, false).unwrap();
    assert_eq!(old, None);
    let store = bench.open();
    assert_eq!(store.scan("k/", None, usize::MAX).unwrap().len(), 5000);
    let (restored, _) = Restored::load(&*store).unwrap().unwrap();
    assert_eq!((restored.sequence, restored.settled, restored.replaced), (5000, false, None));
    // Versions go on far behind every one that the backup or what ran after it can have given.
    let first = bench.put(&*store, "new", "x");
    assert!(first > 5000 + (1 << 40), "{first}");
    drop(store);
    let here = Target::Cluster { id: "c".into(), name: "n".into(), sequence: first, fork: None };
    let (_, old) = bench.restore(&bytes, &here, true).unwrap();
    assert!(old.unwrap().exists());
    let store = bench.open();
    assert_eq!(store.get("new").unwrap(), None);
    let again = bench.put(&*store, "new", "y");
    assert!(again > first + (1 << 40), "{again}");
    assert_eq!(Restored::load(&*store).unwrap().unwrap().0.replaced, Some(first));
}

#[test]
fn sled_takes_a_backup_into_an_empty_folder_and_over_a_store() {
    into_an_empty_folder_and_over_a_store(Kind::Sled);
}

#[test]
fn redb_takes_a_backup_into_an_empty_folder_and_over_a_store() {
    into_an_empty_folder_and_over_a_store(Kind::Redb);
}

fn damage_leaves_the_old_store(kind: Kind) {
    let bench = Bench::new(kind);
    bench.old_store();
    let bytes = bench.archive(30_000);
    let mut altered = bytes.clone();
    altered[bytes.len() / 2] ^= 1;
    for (what, archive) in [("cut", &bytes[..bytes.len() * 3 / 4]), ("altered", &altered), ("empty", &[])] {
        let error = bench.restore(archive, &Target::Empty, true).unwrap_err();
        assert!(matches!(error, BackupError::Damaged(_)), "{what}: {error}");
        bench.assert_old();
    }
}

#[test]
fn sled_keeps_its_store_when_the_backup_is_damaged() {
    damage_leaves_the_old_store(Kind::Sled);
}

#[test]
fn redb_keeps_its_store_when_the_backup_is_damaged() {
    damage_leaves_the_old_store(Kind::Redb);
}

#[test]
fn another_cluster_a_newer_store_and_an_unreadable_one_need_force() {
    let bench = Bench::new(Kind::Redb);
    bench.old_store();
    let bytes = bench.archive(10);
    let cluster = |id: &str, sequence| Target::Cluster { id: id.into(), name: "here".into(), sequence, fork: None };
    for (target, text) in [
        (cluster("other", 1), "of another cluster"),
        (cluster("c", 13), "3 commit(s) made since would be lost"),
        (Target::Unreadable("broken".into()), "cannot be compared"),
    ] {
        let error = bench.restore(&bytes, &target, false).unwrap_err();
        assert!(matches!(&error, BackupError::Refused(why) if why.contains(text)), "{error}");
        bench.assert_old();
    }
    bench.restore(&bytes, &cluster("c", 10), false).unwrap();
    bench.restore(&bytes, &cluster("other", 99), true).unwrap();
    // Another cluster's commits say nothing about ours.
    assert_eq!(Restored::load(&*bench.open()).unwrap().unwrap().0.replaced, None);
}

/// Writes the record again as the first unseal does at its end.
fn settled(bench: &Bench, store: &dyn Storage) {
    let (mut restored, _) = Restored::load(store).unwrap().unwrap();
    restored.settled = true;
    bench.put(store, RESTORED_PATH, &serde_json::to_string(&restored).unwrap());
}

#[test]
fn a_restored_store_counts_its_own_commits_and_none_that_were_left_out() {
    let bench = Bench::new(Kind::Redb);
    // A store of this cluster, as a backup makes it.
    let seal = r#"{"format":1,"type":"shamir","cluster_id":"c","cluster_name":"n","shares":1,"threshold":1,"wrappers":[],"escrow":null}"#;
    let archive = |sequence: u64| {
        let barrier = bench.runtime.block_on(barrier(Arc::new(InMem::open().unwrap())));
        let key = bench.runtime.block_on(BackupKey::open(&barrier)).unwrap();
        let mut writer = Writer::new(Vec::new(), &header(sequence, "c")).unwrap();
        writer.add(crate::seal::SEAL_PATH, &Record { version: 1, value: seal.into() }).unwrap();
        writer.finish(&key).unwrap().0
    };
    let over = |sequence: u64| {
        let target = Target::in_folder(&bench.config(), Wait(bench.runtime.handle())).unwrap();
        bench.restore(&archive(sequence), &target, false).map(|_| ()).map_err(|error| error.to_string())
    };
    over(10).unwrap();
    // Not even unsealed, or with nothing written since: the right backup may follow.
    over(10).unwrap();
    over(15).unwrap();
    settled(&bench, &*bench.open());
    over(20).unwrap();
    let store = bench.open();
    settled(&bench, &*store);
    for _ in 0..3 {
        bench.put(&*store, "k", "v");
    }
    drop(store);
    for (backup, text) in [
        (20, "is older than what is here: 3 commit(s) made since would be lost"),
        (4, "is older than what is here: 19 commit(s)"),
        (25, "is newer than the one that was restored here, but 3 commit(s) made here since would be lost"),
    ] {
        let error = over(backup).unwrap_err();
        assert!(error.contains(text), "{error}");
    }
    // A backup taken of the restored store is on its own line.
    let last = bench.put(&*bench.open(), "k", "v");
    let error = over(last - 2).unwrap_err();
    assert!(error.contains("is older than what is here: 2 commit(s)"), "{error}");
    over(last).unwrap();
}

#[test]
fn a_store_in_use_is_not_replaced() {
    for kind in [Kind::Sled, Kind::Redb] {
        let bench = Bench::new(kind);
        let store = bench.open();
        let bytes = bench.archive(10);
        let error = bench.restore(&bytes, &Target::Empty, true).unwrap_err().to_string();
        assert!(error.contains("in use by another process"), "{error}");
        let error = Target::in_folder(&bench.config(), Wait(bench.runtime.handle())).unwrap_err().to_string();
        assert!(error.contains("in use by another process"), "{error}");
        drop(store);
    }
}

#[test]
fn a_full_disk_leaves_the_old_store() {
    for kind in [Kind::Sled, Kind::Redb] {
        let bench = Bench::new(kind);
        bench.old_store();
        let bytes = bench.archive(10);
        let mut config = bench.config();
        config.options.free_watermark = u64::MAX;
        let origin = Origin {
            archive: bytes.as_slice(),
            target: &Target::Empty,
            force: false,
            skip_versions: None,
            now: OffsetDateTime::UNIX_EPOCH,
            begin: &mut |_| Ok(()),
            progress: &mut |_| {},
        };
        let error = origin.into_folder(&config, Wait(bench.runtime.handle())).unwrap_err().to_string();
        assert!(error.contains("the disk is full"), "{error}");
        bench.assert_old();
    }
}

/// Every commit writes the same number at both ends of the key space: a view between commits would show two.
fn writes_go_on_and_a_backup_shows_one_commit(kind: Kind) {
    let bench = Bench::new(kind);
    let store = bench.open();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let barrier = Arc::new(runtime.block_on(barrier(Arc::clone(&store))));
    let ends = ["a/first", "z/last"];
    let both = |n: u64| ends.iter().fold(Txn::new(), |txn, key| txn.put(*key, n.to_be_bytes().to_vec()));
    let filler = (0..3000).fold(both(0), |txn, n| txn.put(format!("k/{n:05}"), vec![0; 900]));
    runtime.block_on(barrier.commit(filler)).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut seen = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                n += 1;
                runtime.block_on(barrier.commit(both(n))).unwrap();
            }
        });
        for _ in 0..4 {
            let key = runtime.block_on(BackupKey::open(&barrier)).unwrap();
            let snapshot = runtime.block_on(store.snapshot()).unwrap();
            let source = Source::of(header(snapshot.version(), "c"), key, snapshot);
            let (bytes, summary, _) = source.write(Vec::new(), |_| {}).unwrap();
            assert!(summary.records >= 3000);
            let restored = InMem::open().unwrap();
            let origin = Origin {
                archive: bytes.as_slice(),
                target: &Target::Empty,
                force: false,
                skip_versions: None,
                now: OffsetDateTime::UNIX_EPOCH,
                begin: &mut |_| Ok(()),
                progress: &mut |_| {},
            };
            origin.fill(&restored, Wait(runtime.handle())).unwrap();
            let again = Barrier::new(Arc::new(restored));
            runtime.block_on(again.unlock(&SecretBytes::new(ROOT.to_vec()))).unwrap();
            let numbers = ends.map(|key| again.get(key).unwrap().unwrap().value.expose().to_vec());
            assert_eq!(numbers[0], numbers[1]);
            seen.push(numbers[0].clone());
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    seen.dedup();
    assert!(seen.len() > 1, "nothing was written meanwhile");
}

#[test]
fn sled_is_backed_up_at_one_commit_while_writes_go_on() {
    writes_go_on_and_a_backup_shows_one_commit(Kind::Sled);
}

#[test]
fn redb_is_backed_up_at_one_commit_while_writes_go_on() {
    writes_go_on_and_a_backup_shows_one_commit(Kind::Redb);
}
