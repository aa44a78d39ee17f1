//! Figures per engine, to be read and not judged: `cargo test --release --lib storage::measure -- --ignored --nocapture`.
//! `SOS_MEASURE_RECORDS` sets how many records are stored.

use std::{collections::VecDeque, path::Path, time::Instant};

use super::{conformance::*, *};

fn records() -> usize {
    std::env::var("SOS_MEASURE_RECORDS").ok().and_then(|records| records.parse().ok()).unwrap_or(100_000)
}

fn key(n: usize) -> String {
    // Spread over the key space, as hashed and random names are.
    format!("logical/{:016x}", (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn bytes_in(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries.map(|entry| if entry.path().is_dir() { bytes_in(&entry.path()) } else { entry.metadata().unwrap().len() }).sum()
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// Commits with so many under way at a time; transactions per second.
fn commit_rate(store: &Store, txns: usize, under_way: usize, value: usize) -> f64 {
    let begun = Instant::now();
    let mut waiting = VecDeque::new();
    for n in 0..txns {
        waiting.push_back(store.commit(Txn::new().put(key(n), vec![n as u8; value])));
        if waiting.len() >= under_way {
            now(waiting.pop_front().unwrap()).unwrap();
        }
    }
    for commit in waiting {
        now(commit).unwrap();
    }
    txns as f64 / begun.elapsed().as_secs_f64()
}

fn measure(kind: Kind) {
    let bench = Bench::new(kind);
    let before = resident();
    let store = bench.try_open().unwrap();
    let fill = commit_rate(&store, records(), 512, 300);
    println!("{kind:?}: {} records at {fill:.0}/s, {} syncs", records(), store.syncs());
    println!("{kind:?}: {} MiB on disk, {} MiB of memory more", bytes_in(bench.folder.path()) >> 20, resident() - before);
    println!("{kind:?}: one after the other {:.0}/s", commit_rate(&store, 300, 1, 300));
    for under_way in [8, 64] {
        println!("{kind:?}: {under_way} under way {:.0}/s", commit_rate(&store, 3000, under_way, 300));
    }
    let begun = Instant::now();
    for n in 0..records() {
        assert!(store.get(&key(n)).unwrap().is_some());
    }
    println!("{kind:?}: {:.0} gets/s on one thread", records() as f64 / begun.elapsed().as_secs_f64());
    let begun = Instant::now();
    let listed = store.list("logical/", None, usize::MAX).unwrap().len();
    println!("{kind:?}: a list of {listed} in {:?}", begun.elapsed());
    drop(store);
    if kind != Kind::InMem {
        let (begun, before) = (Instant::now(), resident());
        let store = bench.try_open().unwrap();
        let open = begun.elapsed();
        store.get(&key(1)).unwrap().unwrap();
        println!("{kind:?}: opened in {open:?}, {} MiB of memory more", resident().saturating_sub(before));
    }
}

#[test]
#[ignore = "figures, not a check"]
fn inmem() {
    measure(Kind::InMem);
}

#[test]
#[ignore = "figures, not a check"]
fn sled() {
    measure(Kind::Sled);
}

#[test]
#[ignore = "figures, not a check"]
fn redb() {
    measure(Kind::Redb);
}
