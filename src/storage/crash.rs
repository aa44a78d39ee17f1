//! What was acknowledged is there after kill -9, and after the engine failed to write: on real engines.
//!
//! Both tests run this test binary once more as a child process, told by an environment variable what to do.
//! `SOS_CRASH_ROUNDS` sets how often each engine is killed.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::{conformance::*, *};
use crate::secret::random_array;

const TASK: &str = "SOS_CRASH_TASK";
const WRITERS: u64 = 4;
/// Each writer goes round over so many keys.
const SLOTS: u64 = 17;

/// What a writer does in its `step`: every fifth deletes.
fn content(writer: u64, step: u64) -> Option<Vec<u8>> {
    let len = usize::try_from((step * 7919 + writer * 104_729) % 6000).unwrap();
    // Now and then one that sled puts into a file of its own.
    let len = if step % 50 == 7 { len + 200_000 } else { len };
    (step % 5 != 3).then(|| format!("{writer} {step} ").into_bytes().into_iter().chain(vec![b'x'; len]).collect())
}

fn keys(writer: u64, step: u64) -> [String; 2] {
    let slot = step % SLOTS;
    [format!("w/{writer}/{slot}"), format!("twin/{slot}/{writer}")]
}

fn transaction(writer: u64, step: u64) -> Txn {
    let [key, twin] = keys(writer, step);
    let value = content(writer, step);
    Txn { writes: vec![(key, value.clone()), (twin, value)], ..Txn::new() }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes()).unwrap();
    out.flush().unwrap();
}

/// Not a test of its own: the child's work, nothing when there is no task.
#[test]
fn child() {
    let Ok(task) = std::env::var(TASK) else { return };
    let mut words = task.splitn(4, ' ');
    let mut word = || words.next().unwrap().to_owned();
    let (job, kind, first, path) = (word(), word(), word().parse().unwrap(), word());
    let config = StorageConfig {
        kind: if kind == "Sled" { Kind::Sled } else { Kind::Redb },
        path: Some(path.into()),
        options: Options { free_watermark: 0, reserve_bytes: 0, ..Options::default() },
    };
    let store = open(&config).unwrap();
    match job.as_str() {
        "write" => write_for_ever(&store, first),
        "meet-limit" => meet_the_file_size_limit(&*store, config.path.as_deref().unwrap()),
        other => panic!("no job {other}"),
    }
}

fn write_for_ever(store: &Arc<dyn Storage>, first: u64) {
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = store.clone();
            std::thread::spawn(move || {
                for step in first.. {
                    let version = now(store.commit(transaction(writer, step))).unwrap();
                    say(&format!("\nack {writer} {step} {version}\n"));
                }
            })
        })
        .collect();
    writers.into_iter().for_each(|writer| writer.join().unwrap());
}

fn spawn(job: &str, kind: Kind, first: u64, path: &Path, shell: &str) -> Child {
    // A shell sets what a process hands on to the program it becomes.
    Command::new("/bin/sh")
        .args(["-c", &format!("{shell} exec \"$0\" --exact storage::crash::child --nocapture --test-threads=1")])
        .arg(std::env::current_exe().unwrap())
        .env(TASK, format!("{job} {kind:?} {first} {}", path.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs the child for a while and kills it; the acknowledged (writer, step, version).
fn run_and_kill(kind: Kind, first: u64, path: &Path) -> Vec<(u64, u64, Version)> {
    let mut child = spawn("write", kind, first, path, "");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let parse = |line: String| {
        let mut words = line.strip_prefix("ack ")?.split(' ').map(|word| word.parse::<u64>().ok());
        Some((words.next()??, words.next()??, words.next()??))
    };
    // The clock starts when it writes, so that every round kills it in the middle.
    let begun = lines.by_ref().find_map(|line| parse(line.unwrap()));
    let [low, high] = random_array::<2>();
    std::thread::sleep(Duration::from_micros(u64::from(u16::from_be_bytes([low, high])) * 3));
    child.kill().unwrap();
    let acks = begun.into_iter().chain(lines.map_while(Result::ok).filter_map(parse)).collect();
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    let status = child.wait().unwrap();
    assert!(status.code().is_none(), "the child failed by itself: {errors}");
    acks
}

/// What a slot may hold: the last acknowledged step, or the one that was under way when the process died.
#[derive(Default)]
struct Model {
    slots: HashMap<(u64, u64), u64>,
    newest: Version,
    next: u64,
}

impl Model {
    fn check(&mut self, store: &Store, acks: &[(u64, u64, Version)], first: u64) {
        let floor = self.newest;
        for writer in 0..WRITERS {
            let mut last = first;
            for (_, step, version) in acks.iter().filter(|ack| ack.0 == writer) {
                assert!(*version > floor, "version {version} was given before");
                self.newest = self.newest.max(*version);
                self.slots.insert((writer, step % SLOTS), *step);
                last = step + 1;
            }
            self.next = self.next.max(last + 1);
            self.settle(store, writer, last);
            for slot in 0..SLOTS {
                if let Some(step) = self.slots.get(&(writer, slot)) {
                    assert!(holds(store, writer, *step), "writer {writer} lost step {step}");
                }
            }
        }
        for (_, record) in store.scan("", None, usize::MAX).unwrap() {
            self.newest = self.newest.max(record.version);
        }
    }

    /// The step under way either took effect as a whole or not at all.
    fn settle(&mut self, store: &Store, writer: u64, step: u64) {
        let slot = (writer, step % SLOTS);
        if holds(store, writer, step) && !self.slots.get(&slot).is_some_and(|old| holds(store, writer, *old)) {
            self.slots.insert(slot, step);
        }
    }
}

fn holds(store: &Store, writer: u64, step: u64) -> bool {
    let value = |key: &String| store.get(key).unwrap().map(|record| record.value);
    let [key, twin] = keys(writer, step);
    assert!(value(&key) == value(&twin), "a transaction was torn: {key} and {twin}");
    value(&key) == content(writer, step)
}

fn survives_kill(kind: Kind) {
    let rounds: u32 = std::env::var("SOS_CRASH_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(4);
    let bench = Bench::new(kind);
    let mut model = Model::default();
    let mut total = 0;
    for _ in 0..rounds {
        let first = model.next;
        let acks = run_and_kill(kind, first, bench.folder.path());
        total += acks.len();
        let store = bench.try_open().unwrap();
        model.check(&store, &acks, first);
    }
    assert!(total > 0, "the child never wrote");
    eprintln!("{kind:?}: {rounds} kills, {total} acknowledged transactions, none lost");
}

#[test]
fn sled_keeps_what_it_acknowledged_over_kills() {
    survives_kill(Kind::Sled);
}

#[test]
fn redb_keeps_what_it_acknowledged_over_kills() {
    survives_kill(Kind::Redb);
}

/// The child's part: writes until the file may not grow any more, then with more room again.
fn meet_the_file_size_limit(store: &dyn Storage, path: &Path) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let value = |n: u32| format!("{n} ").repeat(2000).into_bytes();
    let before = getrlimit(Resource::Fsize);
    let largest = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).max().unwrap();
    setrlimit(Resource::Fsize, Rlimit { current: Some(largest + (3 << 20)), ..before }).unwrap();
    let mut kept = Vec::new();
    let failure = loop {
        let n = u32::try_from(kept.len()).unwrap();
        match now(store.commit(Txn::new().put(format!("k/{n:06}"), value(n)))) {
            Ok(version) => kept.push((n, version)),
            Err(failure) => break failure,
        }
        assert!(n < 100_000, "the limit was never met");
    };
    assert!(matches!(failure, StorageError::Io(_) | StorageError::Full { .. }), "{failure}");
    let check = || {
        for (n, version) in &kept {
            let record = store.get(&format!("k/{n:06}")).unwrap().unwrap();
            assert!(record.value == value(*n) && record.version == *version, "{n}");
        }
    };
    setrlimit(Resource::Fsize, before).unwrap();
    // Bounded, because the first commit may find the engine still closed.
    let again = (0..100).find_map(|_| now(store.commit(Txn::new().put("more", Vec::new()))).ok());
    // Whether the commit that failed was given a version depends on where the limit was met.
    assert!(again.unwrap() > kept.last().unwrap().1, "a version was given twice");
    check();
    say(&format!("\nkept {} then: {failure}\n", kept.len()));
}

fn goes_on_after_a_failed_write(kind: Kind) {
    let bench = Bench::new(kind);
    // With the signal ignored, a write past the limit is an error and not the end of the process.
    let child = spawn("meet-limit", kind, 0, bench.folder.path(), "trap '' XFSZ;");
    let output = child.wait_with_output().unwrap();
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{errors}");
    let kept = out.lines().find(|line| line.starts_with("kept ")).unwrap();
    eprintln!("{kind:?}: {kept}");
    let store = bench.try_open().unwrap();
    let found = store.scan("k/", None, usize::MAX).unwrap().len();
    let wanted: usize = kept.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(found == wanted || found == wanted + 1, "{found} of {wanted}");
}

#[test]
fn sled_goes_on_after_a_failed_write() {
    goes_on_after_a_failed_write(Kind::Sled);
}

#[test]
fn redb_goes_on_after_a_failed_write() {
    goes_on_after_a_failed_write(Kind::Redb);
}

/// Fills a small file system, named by `SOS_SMALL_DISK` because making one needs root.
fn lives_on_a_full_disk(kind: Kind) {
    let Ok(disk) = std::env::var("SOS_SMALL_DISK") else {
        eprintln!("LEFT OUT: {kind:?} on a full disk, because SOS_SMALL_DISK names no small file system");
        return;
    };
    let folder = tempfile::tempdir_in(disk).unwrap();
    let options = Options { free_watermark: 0, ..Options::default() };
    let config = StorageConfig { kind, path: Some(folder.path().into()), options };
    let store = open(&config).unwrap();
    let mut kept = Vec::new();
    let failure = loop {
        let key = format!("k/{:06}", kept.len());
        match now(store.commit(Txn::new().put(&key, key.repeat(500).into()))) {
            Ok(_) => kept.push(key),
            Err(failure) => break failure,
        }
    };
    eprintln!("{kind:?}: {} records, then: {failure}", kept.len());
    assert!(matches!(failure, StorageError::Io(_) | StorageError::Full { .. }), "{failure}");
    let holds = |store: &Arc<dyn Storage>, key: &str| store.get(key).unwrap().unwrap().value == key.repeat(500).as_bytes();
    assert!(kept.iter().all(|key| holds(&store, key)));
    let gone = kept.split_off(kept.len() / 2);
    for key in &gone {
        now(store.commit(Txn::new().delete(key))).unwrap();
    }
    assert!(kept.iter().all(|key| holds(&store, key)));
    drop(store);
    let store = open(&config).unwrap();
    assert!(kept.iter().all(|key| holds(&store, key)));
    assert!(gone.iter().all(|key| store.get(key).unwrap().is_none()));
    now(store.commit(Txn::new().put("room/again", Vec::new()))).unwrap();
}

#[test]
fn sled_lives_on_a_full_disk() {
    lives_on_a_full_disk(Kind::Sled);
}

#[test]
fn redb_lives_on_a_full_disk() {
    lives_on_a_full_disk(Kind::Redb);
}
