//! Whether the files stay bounded: overwrites of a small set, and deletes.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use sos::storage::{Kind, Storage, Txn};

use crate::{
    Outcome, Plan, name, step_process,
    steps::{bytes_in, figure, key, now, open, put, value},
    table::Table,
};

/// Secrets in the small set.
const SET: u64 = 1000;

/// Overwrites in one large commit.
const LARGE: u64 = 1000;

const SINGLE_FOR: Duration = Duration::from_secs(20);

pub(crate) fn measure(plan: &Plan, place: &Path) -> Outcome<Table> {
    let mut table = Table::new(&format!("{} overwrites of {SET} secrets; deletes", plan.overwrites), &plan.engines);
    for step in ["large-commits", "single-commits", "deletes"] {
        for &kind in &plan.engines {
            let folder = place.join(format!("growth-{}", name(kind)));
            if step == "deletes" {
                std::fs::remove_dir_all(&folder)?;
            }
            let count = if step == "deletes" { plan.records.min(500_000) } else { plan.overwrites };
            table.add(kind, step_process(kind, step, &folder, count)?);
        }
    }
    Ok(table)
}

fn kib(bytes: u64) -> String {
    format!("{} KiB", bytes >> 10)
}

pub(crate) fn step(step: &str, kind: Kind, folder: &Path, count: u64) -> Outcome<()> {
    match step {
        "large-commits" => large_commits(kind, folder, count),
        "single-commits" => single_commits(kind, folder),
        _ => deletes(kind, folder, count),
    }
}

fn large_commits(kind: Kind, folder: &Path, count: u64) -> Outcome<()> {
    let store = open(kind, folder)?;
    let begun = Instant::now();
    let (mut done, mut highest, mut seen) = (0, 0, Vec::new());
    while done < count {
        let round = done / SET;
        let txn = (0..LARGE).fold(Txn::new(), |txn, n| txn.put(key(n % SET), value(n % SET, round)));
        now(store.commit(txn))??;
        done += LARGE;
        if done % (count / 100).next_multiple_of(LARGE).max(LARGE) == 0 || done >= count {
            let size = bytes_in(folder)?;
            highest = highest.max(size);
            if done % (count / 10).max(1) == 0 {
                seen.push(kib(size));
                eprintln!("    {done} overwrites: {} ({:.0}/s)", kib(size), done as f64 / begun.elapsed().as_secs_f64());
            }
        }
    }
    figure("files at each tenth", seen.join(", "));
    figure("files at most", kib(highest));
    figure("overwrites in commits of 1000", format!("{:.0}/s", count as f64 / begun.elapsed().as_secs_f64()));
    Ok(())
}

fn single_commits(kind: Kind, folder: &Path) -> Outcome<()> {
    let store = open(kind, folder)?;
    let (begun, mut done, mut highest) = (Instant::now(), 0, 0);
    while begun.elapsed() < SINGLE_FOR {
        for _ in 0..100 {
            now(store.commit(put(done % SET, done)))??;
            done += 1;
        }
        highest = highest.max(bytes_in(folder)?);
    }
    figure("overwrites in single commits", done);
    figure("files at most, then", kib(highest));
    drop(store);
    let begun = Instant::now();
    let store = open(kind, folder)?;
    store.get(&key(1))?.ok_or("a record is missing")?;
    figure("open to first read after all of them", format!("{:.3} s", begun.elapsed().as_secs_f64()));
    figure("files then", kib(bytes_in(folder)?));
    Ok(())
}

fn deletes(kind: Kind, folder: &Path, count: u64) -> Outcome<()> {
    let store = open(kind, folder)?;
    let each = |from: u64, until: u64, change: fn(Txn, u64) -> Txn| -> Outcome<()> {
        let mut next = from;
        while next < until {
            let txn = (next..until.min(next + 100)).fold(Txn::new(), change);
            now(store.commit(txn))??;
            next += 100;
        }
        Ok(())
    };
    each(0, count, |txn, n| txn.put(key(n), value(n, 0)))?;
    figure(&format!("files with {count} secrets"), kib(bytes_in(folder)?));
    each(0, count * 9 / 10, |txn, n| txn.delete(key(n)))?;
    figure("with nine in ten deleted", kib(bytes_in(folder)?));
    std::thread::sleep(Duration::from_secs(15));
    figure("15 s later", kib(bytes_in(folder)?));
    drop(store);
    let store = open(kind, folder)?;
    store.get(&key(count - 1))?.ok_or("a record is missing")?;
    figure("opened again", kib(bytes_in(folder)?));
    Ok(())
}
