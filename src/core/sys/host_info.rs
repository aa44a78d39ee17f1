//! `sys/host-info`: the machine that the server runs on.
//!
//! <https://developer.hashicorp.com/vault/api-docs/system/host-info>

use std::collections::BTreeMap;

use serde::Serialize;

use super::System;
use crate::{
    core::{
        engine::Call,
        failure::Failure,
        reply::Reply,
        route::{Access, Route},
    },
    op,
    wire::{field::NoParams, time::rfc3339},
};

/// Endpoints of this file.
pub const ROUTES: &[Route<System>] = &[Route {
    patterns: &["host-info"],
    access: Access::Token,
    help: "Describes the machine that the server runs on.",
    exists: None,
    operations: &[op!(Read, "Describe the machine", read, NoParams)],
}];

#[derive(Serialize)]
struct HostInfo {
    timestamp: String,
    cpu: Vec<Cpu>,
    cpu_times: Vec<CpuTimes>,
    disk: Vec<Disk>,
    host: Host,
    memory: Memory,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cpu {
    cpu: u64,
    vendor_id: String,
    family: String,
    model: String,
    stepping: u64,
    physical_id: String,
    core_id: String,
    cores: u64,
    model_name: String,
    mhz: f64,
    cache_size: u64,
    flags: Vec<String>,
    microcode: String,
}

/// Seconds since the start, by kind of work.
#[derive(Serialize)]
struct CpuTimes {
    cpu: String,
    #[serde(flatten)]
    seconds: BTreeMap<&'static str, f64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Disk {
    path: &'static str,
    fstype: String,
    total: u64,
    free: u64,
    used: u64,
    used_percent: f64,
    inodes_total: u64,
    inodes_used: u64,
    inodes_free: u64,
    inodes_used_percent: f64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Host {
    hostname: String,
    uptime: u64,
    boot_time: u64,
    procs: u64,
    os: &'static str,
    platform: String,
    platform_family: String,
    platform_version: String,
    kernel_version: String,
    kernel_arch: String,
    virtualization_system: String,
    virtualization_role: String,
    host_id: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Memory {
    total: u64,
    available: u64,
    used: u64,
    used_percent: f64,
    free: u64,
    active: u64,
    inactive: u64,
    buffers: u64,
    cached: u64,
    swap_total: u64,
    swap_free: u64,
}

async fn read(_: &System, call: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    Reply::data(&HostInfo {
        timestamp: rfc3339(call.now),
        cpu: cpus(),
        cpu_times: cpu_times(),
        disk: disk().into_iter().collect(),
        host: host(call.now.unix_timestamp()),
        memory: memory(),
    })
}

/// A file of the kernel; what is not there on this system is empty.
fn text(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn number(text: &str) -> u64 {
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

#[allow(clippy::as_conversions, clippy::cast_precision_loss)] // a percentage for people
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

fn cpus() -> Vec<Cpu> {
    let info = text("/proc/cpuinfo");
    let blocks = info.split("\n\n").filter(|block| block.contains("processor"));
    blocks
        .map(|block| {
            let mut cpu = Cpu::default();
            for (name, value) in block.lines().filter_map(|line| line.split_once(':')) {
                let value = value.trim();
                match name.trim() {
                    "processor" => cpu.cpu = number(value),
                    "vendor_id" => cpu.vendor_id = value.into(),
                    "cpu family" => cpu.family = value.into(),
                    "model" => cpu.model = value.into(),
                    "stepping" => cpu.stepping = number(value),
                    "physical id" => cpu.physical_id = value.into(),
                    "core id" => cpu.core_id = value.into(),
                    "cpu cores" => cpu.cores = number(value),
                    "model name" => cpu.model_name = value.into(),
                    "cpu MHz" => cpu.mhz = value.parse().unwrap_or(0.0),
                    "cache size" => cpu.cache_size = number(value),
                    "flags" => cpu.flags = value.split_whitespace().map(str::to_owned).collect(),
                    "microcode" => cpu.microcode = value.into(),
                    _ => {}
                }
            }
            cpu
        })
        .collect()
}

fn cpu_times() -> Vec<CpuTimes> {
    const KINDS: [&str; 10] = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guestNice"];
    let stat = text("/proc/stat");
    let lines = stat.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "));
    lines
        .map(|line| {
            let mut words = line.split_whitespace();
            let cpu = words.next().unwrap_or("cpu").to_owned();
            // The kernel counts in hundredths of a second.
            let seconds = words.map(|word| word.parse::<f64>().unwrap_or(0.0) / 100.0);
            CpuTimes { cpu, seconds: KINDS.into_iter().zip(seconds).collect() }
        })
        .collect()
}

fn disk() -> Option<Disk> {
    let found = rustix::fs::statvfs("/").ok()?;
    let total = found.f_blocks.saturating_mul(found.f_frsize);
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let used = found.f_blocks.saturating_sub(found.f_bfree).saturating_mul(found.f_frsize);
    let inodes_used = found.f_files.saturating_sub(found.f_ffree);
    let mounts = text("/proc/self/mounts");
    let mut fstype = mounts.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let fstype = fstype.rfind(|words| words.get(1) == Some(&"/"));
    Some(Disk {
        path: "/",
        fstype: fstype.and_then(|words| words.get(2).map(|word| (*word).to_owned())).unwrap_or_default(),
        total,
        free,
        used,
        used_percent: percent(used, used.saturating_add(free)),
        inodes_total: found.f_files,
        inodes_used,
        inodes_free: found.f_ffree,
        inodes_used_percent: percent(inodes_used, found.f_files),
    })
}

fn host(now: i64) -> Host {
    let uname = rustix::system::uname();
    let word = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let release = text("/etc/os-release");
    let named = |name: &str| {
        let value = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or("").trim_matches('"').to_owned()
    };
    let uptime = text("/proc/uptime").split('.').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0);
    let procs = std::fs::read_dir("/proc").map_or(0, |entries| {
        let numbers = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok());
        u64::try_from(numbers.count()).unwrap_or(0)
    });
    Host {
        hostname: word(uname.nodename()),
        uptime,
        boot_time: u64::try_from(now).unwrap_or(0).saturating_sub(uptime),
        procs,
        os: std::env::consts::OS,
        platform: named("ID"),
        platform_family: named("ID_LIKE"),
        platform_version: named("VERSION_ID"),
        kernel_version: word(uname.release()),
        kernel_arch: word(uname.machine()),
        virtualization_system: String::new(),
        virtualization_role: String::new(),
        // The machine id is meant to stay on the machine.
        host_id: String::new(),
    }
}

fn memory() -> Memory {
    let info = text("/proc/meminfo");
    let bytes = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map_or(0, |line| number(line).saturating_mul(1024))
    };
    let (total, available) = (bytes("MemTotal"), bytes("MemAvailable"));
    let used = total.saturating_sub(available);
    Memory {
        total,
        available,
        used,
        used_percent: percent(used, total),
        free: bytes("MemFree"),
        active: bytes("Active"),
        inactive: bytes("Inactive"),
        buffers: bytes("Buffers"),
        cached: bytes("Cached"),
        swap_total: bytes("SwapTotal"),
        swap_free: bytes("SwapFree"),
    }
}
