//! `cargo bench --bench instructions`: instructions of each stage, counted by valgrind, beside its budget.
//!
//! Runs itself once under callgrind, which counts all threads of the process between the beginning and the end of each stage. What
//! the kernel does is not counted, nor is the HSM worker, and vector instructions that valgrind's processor does not have are done
//! otherwise. Fails when a stage takes more than its budget and the margin. With `-- --write` it writes the table into
//! `docs/benchmarks/budget.md`. Needs valgrind and binutils (Debian packages of these names).

#![allow(missing_docs, clippy::expect_used)] // a bench that cannot be set up is to stop

mod stages;

use std::{
    error::Error,
    fs,
    path::Path,
    process::{Command, ExitCode},
};

use stages::Stage;

/// Runs of each stage that are counted.
const TIMES: u64 = 40;
/// Per cent above the budget that are no failure: compilers and C libraries differ, and threads meet in different ways.
const MARGIN: u64 = 10;
/// The table in the page stands between these.
const MARKS: [&str; 2] = ["<!-- stages -->", "<!-- end of stages -->"];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.iter().any(|argument| argument == "run") {
        let mut stages = stages::all();
        // What the store's threads do with what was written before counts as the first part, which is nobody's.
        std::thread::sleep(std::time::Duration::from_secs(3));
        counted_stage(&mut (Box::new(|| ()) as Box<dyn FnMut()>));
        for stage in &mut stages {
            // What only the first times cost (caches, lazily made tables) is not counted.
            (0..3).for_each(|_| (stage.run)());
            counted_stage(&mut stage.run);
        }
        return ExitCode::SUCCESS;
    }
    match count() {
        Ok(counts) => judge(&stages::all(), &counts, arguments.iter().any(|argument| argument == "--write")),
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::FAILURE
        }
    }
}

#[inline(never)]
fn counted_stage(run: &mut Box<dyn FnMut()>) {
    for _ in 0..TIMES {
        run();
    }
}

/// Instructions of each stage, in order.
fn count() -> Result<Vec<u64>, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("stages");
    fs::copy(std::env::current_exe()?, &program)?;
    // Names stay; without lines valgrind starts in seconds and not in minutes.
    Command::new("strip").arg("--strip-debug").arg(&program).status().map_err(|error| format!("strip: {error}"))?;
    let out = folder.path().join("counts");
    let done = Command::new("valgrind")
        .args(["--tool=callgrind", "--zero-before=instructions::counted_stage", "--dump-after=instructions::counted_stage"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(&program)
        .arg("run")
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    if !done.status.success() {
        return Err(format!("the stages failed under valgrind: {}", String::from_utf8_lossy(&done.stderr)).into());
    }
    let mut counts = Vec::new();
    while let Ok(part) = fs::read_to_string(out.with_extension((counts.len() + 1).to_string())) {
        let total = part.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
        counts.push(total.ok_or("a part without a total")?.trim().parse::<u64>()? / TIMES);
    }
    // The part before the first stage.
    Ok(counts.split_off(counts.len().min(1)))
}

fn judge(stages: &[Stage], counts: &[u64], write: bool) -> ExitCode {
    let mut table = String::from("| stage | budget, ns | budget, instructions | counted |\n|---|---|---|---|\n");
    let mut over = Vec::new();
    for (stage, counted) in stages.iter().zip(counts) {
        table += &format!("| {} | {} | {} | {counted} |\n", stage.name, stage.budget, stage.instructions);
        if *counted > stage.instructions + stage.instructions * MARGIN / 100 {
            over.push(stage.name);
        }
    }
    print!("{table}");
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/benchmarks/budget.md");
    if write && let Err(error) = rewrite(&page, &table) {
        eprintln!("{}: {error}", page.display());
        return ExitCode::FAILURE;
    }
    if stages.len() != counts.len() {
        eprintln!("{} of {} stages were counted", counts.len(), stages.len());
        return ExitCode::FAILURE;
    }
    if !stages.iter().any(|stage| stage.name.contains("HSM")) {
        println!("LEFT OUT: the call to an HSM; SoftHSM is not installed");
    }
    if over.is_empty() {
        println!("{} stages within their budgets (and {MARGIN} %)", counts.len());
        return ExitCode::SUCCESS;
    }
    eprintln!("over the budget by more than {MARGIN} %: {}", over.join("; "));
    ExitCode::FAILURE
}

fn rewrite(page: &Path, table: &str) -> Result<(), Box<dyn Error>> {
    let text = fs::read_to_string(page)?;
    let (before, rest) = text.split_once(MARKS[0]).ok_or("the mark of the table is missing")?;
    let (_, after) = rest.split_once(MARKS[1]).ok_or("the mark of the table's end is missing")?;
    fs::write(page, format!("{before}{}\n{table}{}{after}", MARKS[0], MARKS[1]))?;
    Ok(())
}
