//! Damage to the files at random places: detected, named, or served?

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use sos::storage::{Kind, Storage, StorageError, Txn};

use crate::{
    Outcome, Plan, name,
    steps::{key, now, open, value},
    table::{Figures, Table},
};

const RECORDS: u64 = 5000;
const ROUNDS: u64 = 60;

pub(crate) fn measure(plan: &Plan, place: &Path) -> Outcome<Table> {
    let title =
        format!("{ROUNDS} damaged copies of a store of {RECORDS} secrets: 8 bytes changed (3 of 4) or cut short (1 of 4)");
    let mut table = Table::new(&title, &plan.engines);
    for &kind in &plan.engines {
        eprintln!("... {} damage", name(kind));
        let good = place.join(format!("good-{}", name(kind)));
        let store = open(kind, &good)?;
        for first in (0..RECORDS).step_by(50) {
            let txn = (first..first + 50).fold(Txn::new(), |txn, n| txn.put(key(n), value(n, 0)));
            now(store.commit(txn))??;
        }
        drop(store);
        let file = if kind == Kind::Sled { "db" } else { "sos.redb" };
        let mut tally: BTreeMap<&str, u64> = BTreeMap::new();
        for round in 0..ROUNDS {
            *tally.entry(one(kind, &good, &place.join("damaged"), file, round)?).or_default() += 1;
        }
        let printed: String = OUTCOMES.iter().map(|name| format!("{name}\t{}\n", tally.get(name).unwrap_or(&0))).collect();
        table.add(kind, Figures::read(&printed));
    }
    Ok(table)
}

const REFUSED: &str = "refused at the opening";
const NAMED: &str = "errors that name the damaged keys";
const STOPPED: &str = "found by the check in the background, then refused";
const UNTOUCHED: &str = "no record touched";
const SERVED: &str = "a wrong or missing record served for good";
const OUTCOMES: [&str; 5] = [REFUSED, NAMED, STOPPED, UNTOUCHED, SERVED];

fn one(kind: Kind, good: &Path, damaged: &Path, file: &str, round: u64) -> Outcome<&'static str> {
    let _ = fs::remove_dir_all(damaged);
    fs::create_dir_all(damaged.join("blobs"))?;
    for entry in fs::read_dir(good)? {
        let entry = entry?;
        if entry.path().is_file() {
            fs::copy(entry.path(), damaged.join(entry.file_name()))?;
        }
    }
    let mut bytes = fs::read(good.join(file))?;
    let at = usize::try_from(u64::from_be_bytes(sos::secret::random_array()) % bytes.len() as u64)?;
    if round % 4 == 3 {
        bytes.truncate(at);
    } else {
        bytes.iter_mut().skip(at).take(8).for_each(|byte| *byte ^= 0xa5);
    }
    fs::write(damaged.join(file), bytes)?;
    let Ok(store) = open(kind, damaged) else { return Ok(REFUSED) };
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let (mut wrong, mut named, mut refused) = (false, false, false);
        for n in 0..RECORDS {
            match store.get(&key(n)) {
                Ok(Some(record)) => wrong |= record.value != value(n, 0),
                Ok(None) => wrong = true,
                Err(StorageError::Corrupt { key, .. }) if !key.is_empty() => named = true,
                Err(_) => refused = true,
            }
        }
        match (wrong, refused, named) {
            (false, true, _) => return Ok(STOPPED),
            (false, false, true) => return Ok(NAMED),
            (false, false, false) => return Ok(UNTOUCHED),
            (true, ..) if Instant::now() > until => return Ok(SERVED),
            (true, ..) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
