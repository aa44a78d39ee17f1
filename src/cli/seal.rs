//! `sos seal`: the HSMs of the cluster as a list.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Failure;
use super::client::{Client, ClientArgs};
use super::output::{self, Format};
use super::shares;
use super::terminal::Terminal;

/// Commands of `seal`.
#[derive(Subcommand, Debug)]
pub(super) enum SealCommand {
    /// Show the HSMs that wrap the root key, and those that are configured and could
    List(ListArgs),
    /// Enrol the HSM of a seal stanza, or put onto it what it lacks
    Add(AddArgs),
    /// Take an HSM out of the list
    Remove(RemoveArgs),
    /// Give one HSM (or all) a new seal key and wrap the root key by it
    Rewrap(RewrapArgs),
}

/// Flags of `seal list`.
#[derive(Args, Debug)]
pub(super) struct ListArgs {
    #[command(flatten)]
    client: ClientArgs,
}

/// Flags of `seal add`.
#[derive(Args, Debug)]
pub(super) struct AddArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Name of the seal stanza
    name: String,
    /// `-` reads the shares from the standard input, one a line; without it you are asked for them where they are needed
    #[arg(value_parser = ["-"])]
    keys: Option<String>,
}

/// Flags of `seal remove`.
#[derive(Args, Debug)]
pub(super) struct RemoveArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Remove it even when keys that it alone holds are lost
    #[arg(long)]
    force: bool,
    /// Name of the HSM
    name: String,
}

/// Flags of `seal rewrap`.
#[derive(Args, Debug)]
pub(super) struct RewrapArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Name of the HSM; without it every enrolled one that is ready
    name: Option<String>,
}

pub(super) fn run(command: &SealCommand, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    match command {
        SealCommand::List(args) => list(args, terminal),
        SealCommand::Add(args) => add(args, terminal),
        SealCommand::Remove(args) => remove(args, terminal),
        SealCommand::Rewrap(args) => rewrap(args, terminal),
    }
}

fn list(args: &ListArgs, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let format = args.client.format(terminal)?;
    let answer = seals(&args.client.client(terminal)?)?;
    match format {
        Format::Json => terminal.print(output::json(&answer)?)?,
        Format::Table => terminal.print(table(&answer))?,
    }
    Ok(0)
}

fn add(args: &AddArgs, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let format = args.client.format(terminal)?;
    let client = args.client.client(terminal)?;
    let known = seals(&client)?;
    let shares = match &args.keys {
        Some(_) => shares::from_input(terminal)?,
        None if known.get("shares_needed").and_then(Value::as_bool).unwrap_or(false) => {
            shares::asked(known.get("threshold").and_then(Value::as_u64).unwrap_or(0), terminal)?
        }
        None => Vec::new(),
    };
    let path = format!("sys/sos/seals/{}", args.name);
    let answer = client.put(&path, &shares::body(&shares)).map_err(|error| Failure::request("adding the seal", error))?;
    let fields = answer.get("data").unwrap_or(&answer);
    match format {
        Format::Json => terminal.print(output::json(fields)?)?,
        Format::Table => {
            if flag(fields, "converted") {
                terminal.print(
                    "The cluster is under an HSM seal now; its unseal keys are escrow shares from here on. Zone master keys move into \
                     the HSM in the background.",
                )?;
            }
            terminal.print(format!("HSM {}: enrolled", args.name))?;
            terminal.print(format!("Zone master keys put onto it: {}", names(fields, "master_keys")))?;
            if names(fields, "missing") != "none" {
                terminal.print(format!("Without a copy for it: {}", names(fields, "missing")))?;
            }
        }
    }
    Ok(0)
}

fn remove(args: &RemoveArgs, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let format = args.client.format(terminal)?;
    let client = args.client.client(terminal)?;
    let query = if args.force { "?force=true" } else { "" };
    let path = format!("sys/sos/seals/{}{query}", args.name);
    let answer = client.delete(&path).map_err(|error| Failure::request("removing the seal", error))?;
    let fields = answer.get("data").unwrap_or(&answer);
    match format {
        Format::Json => terminal.print(output::json(fields)?)?,
        Format::Table => {
            terminal.print(format!("HSM {}: removed", args.name))?;
            if names(fields, "lost") != "none" {
                terminal.print(format!("Lost with it: {}", names(fields, "lost")))?;
            }
            if names(fields, "stranded") != "none" {
                terminal.print(format!("No other HSM holds these zone master keys: {}", names(fields, "stranded")))?;
            }
            if flag(fields, "pending") {
                terminal.print("Its objects are destroyed when it is there again.")?;
            }
        }
    }
    Ok(0)
}

fn rewrap(args: &RewrapArgs, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let client = args.client.client(terminal)?;
    let text = |seal: &Value, field: &str| seal.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut code = 0;
    let wanted: Vec<String> = match &args.name {
        Some(name) => vec![name.clone()],
        None => {
            let mut ready = Vec::new();
            for seal in list_of(&seals(&client)?).iter().filter(|seal| flag(seal, "enrolled")) {
                if text(seal, "state") == "ready" && !flag(seal, "disabled") {
                    ready.push(text(seal, "name"));
                } else {
                    code = 2;
                    terminal.complain(format!("HSM {}: left out, {}", text(seal, "name"), text(seal, "state")));
                }
            }
            ready
        }
    };
    for name in wanted {
        let path = format!("sys/sos/seals/{name}/rewrap");
        client.put(&path, &json!({})).map_err(|error| Failure::request("renewing the seal key", error))?;
        terminal.print(format!("HSM {name}: new seal key"))?;
    }
    Ok(code)
}

fn seals(client: &Client) -> Result<Value, Failure> {
    let answer = client.get("sys/sos/seals").map_err(|error| Failure::request("reading the seals", error))?;
    Ok(answer.get("data").unwrap_or(&answer).clone())
}

fn list_of(answer: &Value) -> Vec<Value> {
    answer.get("seals").and_then(Value::as_array).cloned().unwrap_or_default()
}

fn flag(fields: &Value, field: &str) -> bool {
    fields.get(field).and_then(Value::as_bool).unwrap_or(false)
}

/// A list of names in one line.
pub(super) fn names(fields: &Value, field: &str) -> String {
    let list: Vec<&str> = fields.get(field).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    if list.is_empty() { "none".to_owned() } else { list.join(", ") }
}

fn table(answer: &Value) -> String {
    let mut rows = vec![["Name", "Enrolled", "State", "Token", "Pending"].map(str::to_owned)];
    for seal in list_of(answer) {
        let text = |field: &str| seal.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let pending = seal.get("pending").and_then(Value::as_array).cloned().unwrap_or_default();
        let pending: Vec<String> = pending
            .iter()
            .map(|key| {
                let part = |field: &str| key.get(field).and_then(Value::as_str).unwrap_or_default();
                format!("{} ({})", part("key"), part("way"))
            })
            .chain(Some(text("unfinished")).filter(|action| !action.is_empty()).map(|action| format!("unfinished: {action}")))
            .collect();
        let state = if flag(&seal, "disabled") { format!("{}, disabled", text("state")) } else { text("state") };
        let enrolled = if flag(&seal, "enrolled") { "yes" } else { "no" };
        rows.push([text("name"), enrolled.to_owned(), state, text("token_label"), pending.join(", ")]);
    }
    let number = |field: &str| answer.get(field).and_then(Value::as_u64).unwrap_or(0);
    let covers =
        if flag(answer, "escrow") { "they also bring the zone master keys back" } else { "they do not cover keys in HSMs" };
    let awaited = answer.get("root_key_renewal_awaits").and_then(Value::as_array);
    let renewal = match awaited {
        None => "",
        Some(_) => {
            "\nThe root key is still the one of the shares before: they open the store with an old copy of it until the new root key is there."
        }
    };
    format!("{}\nShares: {} of {} open the root key; {covers}.{renewal}", aligned(&rows), number("threshold"), number("shares"))
}

/// Columns side by side.
fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let line = |row: &[String; N]| {
        let cells = row.iter().enumerate().map(|(column, cell)| format!("{cell:<wide$}", wide = width(column)));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
