//! `sos status` and `sos operator status`.

use clap::Args;
use serde_json::Value;

use super::Failure;
use super::client::{Client, ClientArgs};
use super::output::{Format, Rows, json, number, text, truth};
use super::terminal::Terminal;

/// Flags of `status`.
#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Print only this field
    #[arg(long)]
    field: Option<String>,
}

/// 0 unsealed, 2 sealed, 1 error, as scripts around Vault expect.
pub(super) fn run(args: &StatusArgs, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let format = args.client.format(terminal)?;
    let client = args.client.client(terminal)?;
    let status = client.get("sys/seal-status").map_err(|error| Failure::usage(format!("Error checking seal status: {error}")))?;
    match &args.field {
        Some(field) if status.get(field).is_none() => {
            return Err(Failure::usage(format!("Field {field:?} not present in the answer")));
        }
        Some(field) => terminal.print(text(&status, field))?,
        None => print(&client, status.clone(), format, terminal)?,
    }
    Ok(if truth(&status, "sealed") { 2 } else { 0 })
}

/// Prints a seal status with what `sys/leader` knows beside it.
pub(super) fn print(client: &Client, mut status: Value, format: Format, terminal: &mut Terminal<'_>) -> Result<(), Failure> {
    // A sealed server may refuse this request; then there is nothing to add.
    let ha_enabled = client.get("sys/leader").is_ok_and(|leader| truth(&leader, "ha_enabled"));
    match format {
        Format::Table => terminal.print(table(&status, ha_enabled))?,
        Format::Json => {
            if let Some(fields) = status.as_object_mut() {
                fields.insert("ha_enabled".into(), ha_enabled.into());
            }
            terminal.print(json(&status)?)?;
        }
    }
    Ok(())
}

pub(super) fn table(status: &Value, ha_enabled: bool) -> String {
    let mut rows = Rows::default();
    rows.add("Seal Type", text(status, "type"));
    let recovery = if truth(status, "recovery_seal") { "Recovery " } else { "" };
    rows.add_field("Recovery Seal Type", status, "recovery_seal_type");
    rows.add("Initialized", truth(status, "initialized").to_string());
    rows.add("Sealed", truth(status, "sealed").to_string());
    rows.add_field("Sealed Reason", status, "sealed_reason");
    rows.add(format!("Total {recovery}Shares"), number(status, "n").to_string());
    rows.add("Threshold", number(status, "t").to_string());
    if truth(status, "sealed") {
        rows.add("Unseal Progress", format!("{}/{}", number(status, "progress"), number(status, "t")));
        rows.add("Unseal Nonce", text(status, "nonce"));
    }
    rows.add_field("Version", status, "version");
    rows.add_field("SOS Version", status, "sos_version");
    rows.add_field("Build Date", status, "build_date");
    rows.add_field("Storage Type", status, "storage_type");
    rows.add_field("Cluster Name", status, "cluster_name");
    rows.add_field("Cluster ID", status, "cluster_id");
    rows.add("HA Enabled", ha_enabled.to_string());
    rows.table()
}
