//! The systemd unit and the container file: what they promise is checked where the tools are there.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::process::{Command, Stdio};

const UNIT: &str = include_str!("../packaging/systemd/sos.service");

fn left_out(why: &str) {
    let name = std::thread::current().name().unwrap_or("a test").to_string();
    let _ = writeln!(std::io::stderr(), "\n*** PACKAGING TEST LEFT OUT: {name}: {why} ***");
}

/// `systemd-analyze` over the unit, its program replaced by the one that was built.
fn analyze(arguments: &[&str]) -> Option<(bool, String)> {
    if Command::new("systemd-analyze").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        left_out("systemd-analyze is not installed");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sos.service");
    std::fs::write(&path, UNIT.replace("/usr/bin/sos ", &format!("{} ", env!("CARGO_BIN_EXE_sos")))).unwrap();
    let done = Command::new("systemd-analyze").args(arguments).arg(&path).output().unwrap();
    Some((done.status.success(), String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned()))
}

#[test]
fn systemd_understands_every_line_of_the_unit() {
    let Some((good, text)) = analyze(&["verify"]) else { return };
    // What it says of the machine's other units is not ours.
    let ours: Vec<_> = text.lines().filter(|line| line.contains("sos.service")).collect();
    assert!(good && ours.is_empty(), "{text}");
}

#[test]
fn the_unit_exposes_little() {
    let Some((good, text)) = analyze(&["security", "--offline=true", "--threshold=20", "--no-pager"]) else { return };
    assert!(good, "more exposed than 2.0:\n{text}");
}

#[test]
fn the_unit_says_what_it_must() {
    for line in [
        "Type=notify",
        "WatchdogSec=60",
        "LimitCORE=0",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "PrivateTmp=yes",
        "MemoryDenyWriteExecute=yes",
        "LoadCredential=pin:/etc/sos/pin",
        "CapabilityBoundingSet=",
        "User=sos",
    ] {
        assert!(UNIT.lines().any(|found| found == line), "{line} is missing");
    }
}

#[test]
fn the_container_does_not_run_as_root() {
    let file = include_str!("../packaging/container/Containerfile");
    let user = file.lines().rev().find_map(|line| line.strip_prefix("USER ")).unwrap();
    assert_eq!(user, "8200:8200");
}
