//! `sos status` and `sos operator status`.

use std::time::Duration;

use clap::Args;
use indicatif::{HumanBytes, HumanDuration};
use serde_json::Value;

use super::Failure;
use super::client::{Client, ClientArgs, ClientError};
use super::output::{Format, Rows, json, number, text, texts, truth};
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
    // Only a server of this program knows it, and unsealed only for who may read it.
    let more = match client.get("sys/sos/status") {
        Ok(answer) => Some(answer.get("data").cloned().unwrap_or(answer)),
        Err(error) => {
            if let (ClientError::Refused { code: 403, .. }, true) = (&error, client.has_token()) {
                terminal.complain(
                    "WARNING: no details are shown: the server refuses the token. It is expired or revoked, or its policies do not read \
                     sys/sos/status",
                );
            }
            None
        }
    };
    match format {
        Format::Table => {
            terminal.print(table(&status, ha_enabled))?;
            if let Some(more) = &more {
                let rows = details(more);
                if !rows.is_empty() {
                    terminal.print(format!("\n{}", rows.columns()))?;
                }
                texts(more, "warnings").iter().for_each(|warning| terminal.complain(format!("WARNING: {warning}")));
            }
        }
        Format::Json => {
            if let Some(fields) = status.as_object_mut() {
                fields.insert("ha_enabled".into(), ha_enabled.into());
                if let Some(more) = more {
                    fields.insert("sos".into(), more);
                }
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

/// What `sys/sos/status` adds: HSM by HSM, store, disk, key, backups.
fn details(more: &Value) -> Rows {
    let mut rows = Rows::default();
    for hsm in more.get("hsms").and_then(Value::as_array).into_iter().flatten() {
        let serial = match text(hsm, "serial") {
            serial if serial.is_empty() => String::new(),
            serial => format!(" (token {}, serial {serial})", text(hsm, "token")),
        };
        let missing = if truth(hsm, "seal_key_missing") { ", seal key missing" } else { "" };
        rows.add(format!("HSM {}", text(hsm, "name")), format!("{}{missing}{serial}", text(hsm, "state")));
    }
    if let Some(store) = more.get("store") {
        rows.add_field("Store", store, "path");
        rows.add("Last Commit", number(store, "sequence").to_string());
        if store.get("disk_free").is_some() {
            let (free, size) = (number(store, "disk_free"), number(store, "disk_size"));
            rows.add("Disk Free", format!("{} of {}", HumanBytes(free), HumanBytes(size)));
        }
    }
    if let Some(barrier) = more.get("barrier") {
        let (used, most) = (number(barrier, "encryptions"), number(barrier, "max_operations"));
        rows.add("Store Key", format!("term {}, {used} of {most} encryptions", number(barrier, "term")));
    }
    for key in texts(more, "worn_keys") {
        rows.add("Key Near Limit", key);
    }
    match more.get("backup") {
        Some(backup) => {
            let age = backup.get("age").and_then(Value::as_i64).and_then(|age| u64::try_from(age).ok());
            let last = match age {
                Some(age) => format!("{} ({} ago)", text(backup, "last"), HumanDuration(Duration::from_secs(age))),
                None => "never".to_owned(),
            };
            rows.add("Last Backup", last);
            rows.add_field("Last Failure", backup, "last_failure");
        }
        None if more.get("store").is_some() => rows.add("Last Backup", "none is scheduled: see the backup stanza"),
        None => {}
    }
    if let Some(restored) = more.get("restored") {
        let at = text(restored, "restored");
        rows.add("Restored", format!("from a backup of {}, at {at}", text(restored, "created")));
    }
    rows
}
