//! `sos hsm doctor`, `sos hsm orphans` and `sos hsm bench`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::client::ClientArgs;
use super::output::Format;
use super::terminal::Terminal;
use super::{Failure, output};
use crate::config::Config;
use crate::engines::transit::holdings::{self, Holdings};
use crate::engines::transit::{Level, Protection};
use crate::hsm::{TokenFacts, VolatilePinMemory, bench, doctor};
use crate::startup;

/// What the command line says about the HSM to be checked.
#[derive(Args, Debug, Default, Clone)]
pub struct DoctorArgs {
    /// Configuration file or folder with the seal stanza; may be given several times
    #[arg(long, value_name = "PATH", required = true)]
    pub config: Vec<PathBuf>,
    /// Shape of the output: table, json (or VAULT_FORMAT), or markdown: which Transit keys it can hold
    #[arg(long)]
    pub format: Option<String>,
}

/// What the doctor found, for programs.
#[derive(Serialize)]
struct Found<'a> {
    seal: &'a str,
    lib: &'a Path,
    usable: bool,
    problems: &'a [doctor::Problem],
    #[serde(skip_serializing_if = "Option::is_none")]
    facts: Option<&'a TokenFacts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transit: Option<Holdings>,
}

/// Flags of `hsm orphans`.
#[derive(Args, Debug)]
pub struct OrphansArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// CKA_ID of an orphan to destroy; what a newer backup needs of it is lost
    #[arg(long, value_name = "CKA_ID")]
    destroy: Option<String>,
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

pub(super) fn orphans(args: &OrphansArgs, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let format = args.client.format(terminal)?;
    let client = args.client.client(terminal)?;
    let line = |orphan: &Value| ["hsm", "id", "label"].map(|name| output::text(orphan, name)).join("  ");
    if let Some(id) = &args.destroy {
        let answer = client.delete(&format!("sys/sos/hsm/orphans/{id}"));
        let answer = answer.map_err(|error| Failure::request("destroying the object", error))?;
        terminal.print(format!("Destroyed: {}", line(answer.get("data").unwrap_or(&answer))))?;
        return Ok(0);
    }
    let answer = client.get("sys/sos/hsm/orphans").map_err(|error| Failure::request("looking for orphans", error))?;
    let fields = answer.get("data").unwrap_or(&answer);
    match format {
        Format::Json => terminal.print(output::json(fields)?)?,
        Format::Table => {
            let found = fields.get("orphans").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            if found.is_empty() {
                terminal.print("None: every object of this cluster on the HSMs that are ready has a record.")?;
            }
            found.iter().try_for_each(|orphan| terminal.print(line(orphan)))?;
        }
    }
    Ok(0)
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

enum Shape {
    Table,
    Json,
    Markdown,
}

impl Shape {
    fn named(asked: Option<&str>, terminal: &Terminal<'_>) -> Result<Self, Failure> {
        let name = asked.map(String::from).or_else(|| terminal.variable("VAULT_FORMAT")).unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "" | "table" => Ok(Self::Table),
            "json" => Ok(Self::Json),
            "markdown" => Ok(Self::Markdown),
            _ => Err(Failure::usage(format!(
                "Invalid output format: {name}; write -format=table, -format=json or -format=markdown"
            ))),
        }
    }
}

pub(super) fn doctor(args: DoctorArgs, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let shape = Shape::named(args.format.as_deref(), terminal)?;
    let config = load(&args.config, terminal)?;
    let default_level = config.default_protection.map_or(Level::default(), Level::from);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut usable = true;
    let mut found = Vec::new();
    for seal in &config.seals {
        let report = runtime.block_on(doctor::run(startup::hsm::config(seal), Arc::new(VolatilePinMemory::default())));
        usable &= report.usable();
        match shape {
            Shape::Table => {
                terminal.print(format!("seal \"pkcs11\" {} ({})", seal.name, seal.lib.display()))?;
                terminal.print(&report)?;
            }
            Shape::Markdown => {
                let page = holdings::page(&report, default_level);
                terminal.print(format!("## {}\n\n{page}", report.vendor().unwrap_or(&seal.name)))?;
            }
            Shape::Json => {
                let protection = Protection { hsm: report.hsm(), default_level, ..Protection::default() };
                let one = Found {
                    seal: &seal.name,
                    lib: &seal.lib,
                    usable: report.usable(),
                    problems: &report.problems,
                    facts: report.facts(),
                    transit: report.hsm().and_then(|_| Holdings::of(&protection).ok()),
                };
                found.push(serde_json::to_value(one).map_err(|error| Failure::usage(error.to_string()))?);
            }
        }
        runtime.block_on(report.close());
    }
    if matches!(shape, Shape::Json) {
        terminal.print(output::json(&found)?)?;
    }
    Ok(if usable { 0 } else { 2 })
}
