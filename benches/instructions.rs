//! `cargo bench --bench instructions`: instructions of each stage, counted by valgrind. They repeat where times do not.
//!
//! Runs itself under callgrind once for every stage, which counts inside `measured` alone. The count leaves out what the kernel does, and the vector instructions that valgrind's processor does not have. Needs
//! valgrind (Debian package of that name).

#![allow(missing_docs, clippy::expect_used)] // a bench that cannot be set up is to stop

mod stages;

use std::process::Command;

const TIMES: u64 = 50;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, word, stage] = arguments.as_slice()
        && word == "run"
    {
        let mut stages = stages::all();
        let run = &mut stages[stage.parse::<usize>().expect("a number")].run;
        // What only the first time costs (caches, lazily made tables) is not counted.
        run();
        measured(run);
        return;
    }
    println!("{:<32} {:>12} {:>12}", "stage", "instructions", "budget in ns");
    for (at, stage) in stages::all().iter().enumerate() {
        match count(at) {
            Some(all) => println!("{:<32} {:>12} {:>12}", stage.name, all / TIMES, stage.budget),
            None => println!("{:<32} {:>12} {:>12}", stage.name, "no valgrind", stage.budget),
        }
    }
}

#[inline(never)]
fn measured(run: &mut Box<dyn FnMut()>) {
    (0..TIMES).for_each(|_| run());
}

fn count(stage: usize) -> Option<u64> {
    let done = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            "--collect-atstart=no",
            "--toggle-collect=*instructions*measured*",
        ])
        .arg(std::env::current_exe().ok()?)
        .args(["run", &stage.to_string()])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&done.stderr);
    text.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok())
}
