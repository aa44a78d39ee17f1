//! `sos hsm doctor` and `sos hsm bench`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::Failure;
use super::terminal::Terminal;
use crate::config::Config;
use crate::hsm::{VolatilePinMemory, bench, doctor};
use crate::startup;

/// What the command line says about the HSM to be checked.
#[derive(Args, Debug, Default, Clone)]
pub struct DoctorArgs {
    /// Configuration file or folder with the seal stanza; may be given several times
    #[arg(long, value_name = "PATH", required = true)]
    pub config: Vec<PathBuf>,
}

/// What the command line says about a measurement.
#[derive(Args, Debug, Clone)]
pub struct BenchArgs {
    /// Configuration file or folder with the seal stanza; may be given several times
    #[arg(long, value_name = "PATH", required = true)]
    config: Vec<PathBuf>,
    /// Calls under way at any time
    #[arg(long, default_value_t = 32)]
    waiting: usize,
    /// Items of a batch
    #[arg(long, default_value_t = 100)]
    batch: usize,
    /// Milliseconds that each rate is measured
    #[arg(long, default_value_t = 1000)]
    millis: u64,
}

fn load(paths: &[PathBuf], terminal: &mut Terminal<'_>) -> Result<Config, Failure> {
    let environment = |name: &str| terminal.variable(name);
    let (config, warnings) =
        crate::config::load(paths, &environment).map_err(|error| Failure::usage(super::server::chain(&error)))?;
    for warning in warnings {
        terminal.complain(warning);
    }
    if config.seals.is_empty() {
        return Err(Failure::usage("the configuration names no HSM: write seal \"pkcs11\" { ... }"));
    }
    Ok(config)
}

pub(super) fn bench(args: BenchArgs, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let config = load(&args.config, terminal)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let load = bench::Load { waiting: args.waiting, batch: args.batch, time: Duration::from_millis(args.millis) };
    for seal in &config.seals {
        let run = bench::run(startup::hsm::config(seal), Arc::new(VolatilePinMemory::default()), load);
        terminal.print(runtime.block_on(run).map_err(|error| Failure::request("measuring the HSM", error))?)?;
    }
    Ok(0)
}

pub(super) fn doctor(args: DoctorArgs, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let config = load(&args.config, terminal)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut usable = true;
    for seal in &config.seals {
        terminal.print(format!("seal \"pkcs11\" {} ({})", seal.name, seal.lib.display()))?;
        let report = runtime.block_on(doctor::run(startup::hsm::config(seal), Arc::new(VolatilePinMemory::default())));
        terminal.print(&report)?;
        usable &= report.usable();
    }
    Ok(if usable { 0 } else { 2 })
}
