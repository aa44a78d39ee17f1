//! `sos hsm doctor`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::Failure;
use super::terminal::Terminal;
use crate::hsm::{VolatilePinMemory, doctor};
use crate::startup;

/// What the command line says about the HSM to be checked.
#[derive(Args, Debug, Default, Clone)]
pub struct DoctorArgs {
    /// Configuration file or folder with the seal stanza; may be given several times
    #[arg(long, value_name = "PATH", required = true)]
    pub config: Vec<PathBuf>,
}

pub(super) fn doctor(args: DoctorArgs, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let environment = |name: &str| terminal.variable(name);
    let (config, warnings) =
        crate::config::load(&args.config, &environment).map_err(|error| Failure::usage(super::server::chain(&error)))?;
    for warning in warnings {
        terminal.complain(warning);
    }
    if config.seals.is_empty() {
        return Err(Failure::usage("the configuration names no HSM: write seal \"pkcs11\" { ... }"));
    }
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
