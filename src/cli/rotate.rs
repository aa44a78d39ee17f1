//! `sos operator rotate`.

use clap::Args;
use serde_json::{Value, json};

use super::Failure;
use super::client::ClientArgs;
use super::output::{self, Format, Rows, text};
use super::terminal::Terminal;

/// Flags of `operator rotate`.
#[derive(Args, Debug)]
pub(super) struct RotateArgs {
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) fn run(args: &RotateArgs, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let format = args.client.format(terminal)?;
    let client = args.client.client(terminal)?;
    client.put("sys/rotate", &json!({})).map_err(|error| Failure::request("rotating key", error))?;
    let status = client.get("sys/key-status").map_err(|error| Failure::request("reading key status", error))?;
    let fields = status.get("data").unwrap_or(&status);
    match format {
        Format::Json => terminal.print(output::json(fields)?)?,
        Format::Table => terminal.print(format!("Success! Rotated key\n\n{}", key_status(fields)))?,
    }
    Ok(0)
}

fn key_status(fields: &Value) -> String {
    let mut rows = Rows::default();
    rows.add("Key Term", text(fields, "term"));
    rows.add("Install Time", text(fields, "install_time"));
    rows.add("Encryption Count", text(fields, "encryptions"));
    rows.columns()
}
