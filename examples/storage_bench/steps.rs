//! The steps that are measured, each in its own process: `step NAME ENGINE FOLDER COUNT`.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use sos::storage::{Kind, Redb, Sled, Storage, Store, Txn};

use crate::{Outcome, growth, kind, options};

/// How long a rate is measured.
const WHILE: Duration = Duration::from_secs(5);

const VALUE: usize = 300;

pub(crate) fn run(arguments: &[String]) -> Outcome<()> {
    let [step, engine, folder, count] = arguments else { return Err("step NAME ENGINE FOLDER COUNT".into()) };
    let (kind, folder, count) = (kind(engine)?, PathBuf::from(folder), count.parse::<u64>()?);
    match step.as_str() {
        "fill" => fill(kind, &folder, count),
        "open" => opened(kind, &folder, count).map(drop),
        "list" => list(kind, &folder, count),
        "reads" => reads(kind, &folder, count),
        "writes" => writes(kind, &folder, count),
        "killed" => killed(kind, &folder, count),
        "recovered" => recovered(kind, &folder, count),
        "large-commits" | "single-commits" | "deletes" => growth::step(step, kind, &folder, count),
        other => Err(format!("no step {other:?}").into()),
    }
}

pub(crate) fn open(kind: Kind, folder: &Path) -> Outcome<Store> {
    Ok(match kind {
        Kind::Sled => Sled::open(folder, options())?,
        Kind::Redb => Redb::open(folder, options())?,
        Kind::InMem => return Err("inmem keeps nothing".into()),
    })
}

pub(crate) fn figure(name: &str, value: impl std::fmt::Display) {
    println!("{name}\t{value}");
    let _ = std::io::stdout().flush();
}

/// Spread over the key space, as hashed and random names are.
pub(crate) fn key(n: u64) -> String {
    format!("logical/{:016x}", mixed(n + 1))
}

fn mixed(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

pub(crate) fn put(n: u64, round: u64) -> Txn {
    Txn::new().put(key(n), value(n, round))
}

pub(crate) fn value(n: u64, round: u64) -> Vec<u8> {
    // Like ciphertext: nothing in it repeats.
    let words = (0..VALUE / 8 + 1).scan(mixed(n) ^ round, |state, _| {
        *state = mixed(*state ^ (*state >> 29)).wrapping_add(1);
        Some(state.to_le_bytes())
    });
    words.flatten().take(VALUE).collect()
}

pub(crate) fn now<T>(future: impl Future<Output = T>) -> Outcome<T> {
    Ok(tokio::runtime::Builder::new_current_thread().build()?.block_on(future))
}

pub(crate) fn bytes_in(folder: &Path) -> Outcome<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        bytes += if entry.path().is_dir() { bytes_in(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}

/// Resident size now and at its highest, in MiB.
fn resident() -> Outcome<(u64, u64)> {
    let status = fs::read_to_string("/proc/self/status")?;
    let of = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
    };
    Ok((of("VmRSS:"), of("VmHWM:")))
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

fn per_second(count: u64, since: Instant) -> String {
    format!("{:.0}/s", count as f64 / since.elapsed().as_secs_f64())
}

fn fill(kind: Kind, folder: &Path, count: u64) -> Outcome<()> {
    let store = open(kind, folder)?;
    let begun = Instant::now();
    let mut next = 0;
    while next < count {
        let mut txn = Txn::new();
        for n in next..count.min(next + 1000) {
            txn = txn.put(key(n), value(n, 0));
        }
        now(store.commit(txn))??;
        next += 1000;
        if next % 100_000 == 0 {
            eprintln!("    {next} of {count}");
        }
    }
    figure("filled in commits of 1000", per_second(count, begun));
    figure("resident at the end of filling", mib(resident()?.0 << 20));
    drop(store);
    figure("files", mib(bytes_in(folder)?));
    Ok(())
}

fn opened(kind: Kind, folder: &Path, count: u64) -> Outcome<Store> {
    let begun = Instant::now();
    let store = open(kind, folder)?;
    store.get(&key(count / 2))?.ok_or("a record is missing")?;
    figure("open to first read", format!("{:.3} s", begun.elapsed().as_secs_f64()));
    Ok(store)
}

fn list(kind: Kind, folder: &Path, count: u64) -> Outcome<()> {
    let store = opened(kind, folder, count)?;
    figure("resident after opening", mib(resident()?.0 << 20));
    let (begun, mut names, mut after) = (Instant::now(), 0, None::<String>);
    loop {
        let page = store.list("logical/", after.as_deref(), 1000)?;
        names += page.len() as u64;
        match page.last() {
            Some(last) => after = Some(last.clone()),
            None => break,
        }
    }
    if names != count {
        return Err(format!("{names} names of {count}").into());
    }
    figure("listed in pages of 1000", per_second(names, begun));
    Ok(())
}

fn reads(kind: Kind, folder: &Path, count: u64) -> Outcome<()> {
    let store = Arc::new(open(kind, folder)?);
    for threads in [1, 2, 4] {
        let done = AtomicU64::new(0);
        let missing = AtomicU64::new(0);
        let begun = Instant::now();
        thread::scope(|scope| {
            for seed in 0..threads {
                let (store, done, missing) = (&store, &done, &missing);
                scope.spawn(move || {
                    let mut at = seed + 1;
                    while begun.elapsed() < WHILE {
                        for _ in 0..64 {
                            at = mixed(at ^ (at >> 31)).wrapping_add(seed + 1);
                            if !matches!(store.get(&key(at % count)), Ok(Some(_))) {
                                missing.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                        done.fetch_add(64, Ordering::Relaxed);
                    }
                });
            }
        });
        if missing.load(Ordering::Relaxed) > 0 {
            return Err(format!("{} reads found nothing", missing.load(Ordering::Relaxed)).into());
        }
        figure(&format!("random reads, {threads} thread(s)"), per_second(done.load(Ordering::Relaxed), begun));
    }
    let (at_the_end, highest) = resident()?;
    figure("resident after random reads", format!("{at_the_end} MiB (highest {highest})"));
    Ok(())
}

/// Durable commits of one secret each, by so many writers that wait for each answer.
fn commit_for(store: &Store, writers: u64, count: u64, end: &AtomicBool, acknowledged: impl Fn(u64, u64) + Sync) -> Outcome<u64> {
    let done = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    thread::scope(|scope| {
        for writer in 0..writers {
            let (done, failed, acknowledged) = (&done, &failed, &acknowledged);
            scope.spawn(move || {
                for round in 1_u64.. {
                    if end.load(Ordering::Relaxed) {
                        return;
                    }
                    // Each writer has keys of its own.
                    let n = (mixed(round) % (count / writers)) * writers + writer;
                    match now(store.commit(put(n, round))) {
                        Ok(Ok(_)) => acknowledged(n, round),
                        _ => failed.store(true, Ordering::Relaxed),
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| {
            thread::sleep(WHILE);
            end.store(true, Ordering::Relaxed);
        });
    });
    if failed.load(Ordering::Relaxed) {
        return Err("a commit failed".into());
    }
    Ok(done.load(Ordering::Relaxed))
}

fn writes(kind: Kind, folder: &Path, count: u64) -> Outcome<()> {
    let store = open(kind, folder)?;
    for writers in [1, 32] {
        let (begun, syncs) = (Instant::now(), store.syncs());
        let done = commit_for(&store, writers, count, &AtomicBool::new(false), |_, _| {})?;
        let rate = per_second(done, begun);
        figure(
            &format!("durable commits, {writers} writer(s)"),
            format!("{rate} ({:.1} to a sync)", done as f64 / (store.syncs() - syncs).max(1) as f64),
        );
    }
    figure("resident after writing", mib(resident()?.0 << 20));
    drop(store);
    figure("files after writing", mib(bytes_in(folder)?));
    Ok(())
}

/// Writes, notes every acknowledged write, and kills itself in the middle of it.
fn killed(kind: Kind, folder: &Path, count: u64) -> Outcome<()> {
    let store = open(kind, folder)?;
    let noted = fs::File::create(folder.with_extension("acknowledged"))?;
    thread::spawn(|| {
        thread::sleep(WHILE / 2);
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    });
    commit_for(&store, 32, count, &AtomicBool::new(false), |n, round| {
        let _ = (&noted).write_all(format!("{n} {round}\n").as_bytes());
    })?;
    Err("was not killed".into())
}

fn recovered(kind: Kind, folder: &Path, count: u64) -> Outcome<()> {
    let begun = Instant::now();
    let store = opened(kind, folder, count)?;
    figure("opened after kill -9, page cache dropped", format!("{:.3} s", begun.elapsed().as_secs_f64()));
    let noted = fs::read_to_string(folder.with_extension("acknowledged"))?;
    let mut last = std::collections::BTreeMap::new();
    for (n, round) in noted.lines().filter_map(|line| line.split_once(' ')) {
        let (n, round) = (n.parse::<u64>()?, round.parse::<u64>()?);
        last.entry(n).and_modify(|last: &mut u64| *last = round.max(*last)).or_insert(round);
    }
    let mut lost = 0_u64;
    for (n, round) in &last {
        let found = store.get(&key(*n))?.map(|record| record.value);
        // One more may have been written and not acknowledged.
        let later = || (round + 1..round + 200_000).any(|later| found.as_ref() == Some(&value(*n, later)));
        if found != Some(value(*n, *round)) && !later() {
            lost += 1;
        }
    }
    figure("acknowledged before kill -9", noted.lines().count());
    figure("of these lost", lost);
    Ok(())
}
