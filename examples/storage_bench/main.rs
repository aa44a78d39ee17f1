//! Measures the embedded engines side by side, behind the storage trait: `scripts/storage-bench --help`.
//!
//! Every step runs in a process of its own, so that resident size is the step's own and a kill is a kill. The engines
//! take turns within each step.

mod damage;
mod growth;
mod steps;
mod table;

use std::{
    env,
    error::Error,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use sos::storage::{Kind, Options};

use crate::table::{Figures, Table};

type Outcome<T> = Result<T, Box<dyn Error>>;

const USAGE: &str = "\
storage-bench [--records N] [--overwrites N] [--quick] [--only PART]... [--engine sled|redb]... [--dir FOLDER] [--markdown FILE]

  --records N      secrets in the large store (1000000)
  --overwrites N   overwrites of a small set in the growth part (10000000)
  --quick          20000 records, 200000 overwrites: a look that takes a minute
  --only PART      rates, start, damage, growth (all of them, in this order)
  --dir FOLDER     where the stores are made; on the disk that is to be measured (the system's temporary folder)
  --markdown FILE  writes the tables there as well";

/// What the command line asked for.
pub(crate) struct Plan {
    records: u64,
    overwrites: u64,
    parts: Vec<String>,
    engines: Vec<Kind>,
    folder: PathBuf,
    markdown: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let done = match arguments.split_first() {
        Some((first, rest)) if first == "step" => steps::run(rest),
        _ => plan(&arguments).and_then(|plan| plan.run()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("storage-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn plan(arguments: &[String]) -> Outcome<Plan> {
    let mut plan = Plan {
        records: 1_000_000,
        overwrites: 10_000_000,
        parts: Vec::new(),
        engines: Vec::new(),
        folder: env::temp_dir(),
        markdown: None,
    };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut value = || rest.next().ok_or_else(|| format!("{argument} needs a value\n{USAGE}"));
        match argument.as_str() {
            "--records" => plan.records = value()?.parse()?,
            "--overwrites" => plan.overwrites = value()?.parse()?,
            "--quick" => (plan.records, plan.overwrites) = (20_000, 200_000),
            "--only" => plan.parts.push(value()?.clone()),
            "--engine" => plan.engines.push(kind(value()?)?),
            "--dir" => plan.folder = value()?.into(),
            "--markdown" => plan.markdown = Some(value()?.into()),
            _ => return Err(USAGE.into()),
        }
    }
    if plan.engines.is_empty() {
        plan.engines = vec![Kind::Sled, Kind::Redb];
    }
    Ok(plan)
}

impl Plan {
    fn run(&self) -> Outcome<()> {
        let place = tempfile::tempdir_in(&self.folder)?;
        let mut page = String::new();
        for (part, measure) in [
            ("rates", rates as fn(&Plan, &Path) -> Outcome<Table>),
            ("start", start),
            ("damage", damage::measure),
            ("growth", growth::measure),
        ] {
            if self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part) {
                let table = measure(self, place.path())?.text();
                println!("{table}");
                page += &table;
                page.push('\n');
            }
        }
        if let Some(file) = &self.markdown {
            std::fs::write(file, page)?;
        }
        Ok(())
    }
}

/// Rates, sizes and recovery at the full number of records.
fn rates(plan: &Plan, place: &Path) -> Outcome<Table> {
    let mut table = Table::new(&format!("{} secrets of 300 bytes", plan.records), &plan.engines);
    for step in ["fill", "list", "reads", "writes", "killed", "recovered"] {
        for &kind in &plan.engines {
            let folder = place.join(format!("rates-{}", name(kind)));
            if step == "recovered" {
                forget_cached(&folder);
            }
            table.add(kind, step_process(kind, step, &folder, plan.records)?);
        }
    }
    for &kind in &plan.engines {
        std::fs::remove_dir_all(place.join(format!("rates-{}", name(kind))))?;
    }
    Ok(table)
}

/// Time from the start of a process to its first answered read, for stores of growing size.
fn start(plan: &Plan, place: &Path) -> Outcome<Table> {
    let mut table = Table::new("start to the first read", &plan.engines);
    for records in [10_000, 100_000, 1_000_000].into_iter().filter(|records| *records <= plan.records) {
        for &kind in &plan.engines {
            let folder = place.join(format!("start-{}", name(kind)));
            step_process(kind, "fill", &folder, records)?;
            for (cold, label) in [(false, ""), (true, ", page cache dropped")] {
                if cold {
                    forget_cached(&folder);
                }
                let found = step_process(kind, "open", &folder, records)?;
                table.add(kind, found.under(&format!("{records} records{label}: ")));
            }
            let killed = step_process(kind, "killed", &folder, records)?;
            drop(killed);
            let found = step_process(kind, "open", &folder, records)?;
            table.add(kind, found.under(&format!("{records} records, after kill -9: ")));
            std::fs::remove_dir_all(&folder)?;
        }
    }
    Ok(table)
}

/// Runs one step in a process of its own and reads its figures.
pub(crate) fn step_process(kind: Kind, step: &str, folder: &Path, count: u64) -> Outcome<Figures> {
    eprintln!("... {} {step} {count}", name(kind));
    let mut command = Command::new(env::current_exe()?);
    command.args(["step", step, name(kind)]).arg(folder).arg(count.to_string()).stdout(Stdio::piped());
    let output = command.spawn()?.wait_with_output()?;
    let text = String::from_utf8(output.stdout)?;
    // The killed step ends by its own hand.
    if !output.status.success() && step != "killed" {
        return Err(format!("the step {step} of {} failed: {}\n{text}", name(kind), output.status).into());
    }
    text.lines().for_each(|line| eprintln!("    {line}"));
    Ok(Figures::read(&text))
}

/// Makes the next opening read from the disk.
fn forget_cached(folder: &Path) {
    for folder in [folder.to_owned(), folder.join("blobs")] {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if let Ok(file) = std::fs::File::open(entry.path()) {
                let _ = file.sync_all();
                let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
            }
        }
    }
}

pub(crate) fn options() -> Options {
    Options { cache_bytes: 32 << 20, free_watermark: 0, reserve_bytes: 0, ..Options::default() }
}

pub(crate) fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::InMem => "inmem",
        Kind::Sled => "sled",
        Kind::Redb => "redb",
    }
}

pub(crate) fn kind(name: &str) -> Outcome<Kind> {
    match name {
        "inmem" => Ok(Kind::InMem),
        "sled" => Ok(Kind::Sled),
        "redb" => Ok(Kind::Redb),
        other => Err(format!("no engine {other:?}").into()),
    }
}
