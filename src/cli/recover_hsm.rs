//! `sos operator recover-hsm`: the keys of a lost HSM onto a new one.

use clap::Args;
use serde_json::Value;

use super::Failure;
use super::client::{Client, ClientArgs};
use super::output::{self, Format};
use super::shares;
use super::terminal::Terminal;
use crate::secret::SecretString;

/// Flags of `operator recover-hsm`.
#[derive(Args, Debug)]
pub(super) struct RecoverArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// `-` reads the shares from the standard input, one a line; without it you are asked for them
    #[arg(value_parser = ["-"])]
    keys: Option<String>,
}

pub(super) fn run(args: &RecoverArgs, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let format = args.client.format(terminal)?;
    let client = args.client.client(terminal)?;
    let shares = match &args.keys {
        Some(_) => shares::from_input(terminal)?,
        None => asked(&client, terminal)?,
    };
    let answer = client
        .put("sys/sos/hsm/recover", &shares::body(&shares))
        .map_err(|error| Failure::request("recovering the HSM", error))?;
    let fields = answer.get("data").unwrap_or(&answer);
    match format {
        Format::Json => terminal.print(output::json(fields)?)?,
        Format::Table => terminal.print(summary(fields))?,
    }
    Ok(0)
}

fn asked(client: &Client, terminal: &mut Terminal<'_>) -> Result<Vec<SecretString>, Failure> {
    let status = client.get("sys/seal-status").map_err(|error| Failure::request("reading the seal status", error))?;
    Ok(shares::asked(status.get("t").and_then(Value::as_u64).unwrap_or(0), terminal)?)
}

fn summary(fields: &Value) -> String {
    let names = |field: &str| -> Vec<String> {
        let list = fields.get(field).and_then(Value::as_array).into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let seal = if fields.get("seal_key").and_then(Value::as_bool).unwrap_or(false) { "made anew" } else { "was there" };
    let mut text = format!("Seal key: {seal}\nZone master keys put onto the HSM: {}", list(&names("master_keys")));
    let lost = names("lost");
    if !lost.is_empty() {
        text.push_str(&format!("\nLost, as they had no escrow copy: {}", list(&lost)));
    }
    text
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
