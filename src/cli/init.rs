//! `sos operator init`.

use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use super::Failure;
use super::client::{Client, ClientArgs};
use super::output::{self, Format, text, texts, truth};
use super::terminal::Terminal;

/// Flags of `operator init`.
#[derive(Args, Debug)]
pub(super) struct InitArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Only say whether the server is initialised (exit code 0 yes, 2 no, 1 error)
    #[arg(long)]
    status: bool,
    /// Number of unseal keys
    #[arg(long, alias = "n", value_name = "N")]
    key_shares: Option<u32>,
    /// Number of unseal keys that are needed to unseal
    #[arg(long, alias = "t", value_name = "T")]
    key_threshold: Option<u32>,
    /// Number of recovery (escrow) keys, where an HSM unseals
    #[arg(long, default_value_t = 5, value_name = "N")]
    recovery_shares: u32,
    /// Number of recovery keys that are needed
    #[arg(long, default_value_t = 3, value_name = "T")]
    recovery_threshold: u32,
}

/// The fields and names that scripts read from `vault operator init -format=json`.
#[derive(Serialize)]
struct MachineInit {
    unseal_keys_b64: Vec<String>,
    unseal_keys_hex: Vec<String>,
    unseal_shares: u32,
    unseal_threshold: u32,
    recovery_keys_b64: Vec<String>,
    recovery_keys_hex: Vec<String>,
    recovery_keys_shares: u32,
    recovery_keys_threshold: u32,
    root_token: String,
}

pub(super) fn run(args: &InitArgs, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let format = args.client.format(terminal)?;
    let client = args.client.client(terminal)?;
    if args.status {
        return status(&client, format, terminal);
    }
    let seal = client.get("sys/seal-status").map_err(|error| Failure { code: 2, message: error.to_string() })?;
    let request = Request::new(args, truth(&seal, "recovery_seal"));
    let reply = client.put("sys/init", &request.body()).map_err(|error| Failure::request("initializing", error))?;
    match format {
        Format::Json => terminal.print(output::json(&request.machine(&reply))?)?,
        Format::Table => terminal.print(request.table(&reply))?,
    }
    Ok(0)
}

fn status(client: &Client, format: Format, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let reply = client.get("sys/init").map_err(|error| Failure::usage(format!("Error checking init status: {error}")))?;
    let initialized = truth(&reply, "initialized");
    match format {
        Format::Json => terminal.print(output::json(&json!({ "initialized": initialized }))?)?,
        Format::Table => terminal.print(if initialized { "Vault is initialized" } else { "Vault is not initialized" })?,
    }
    Ok(if initialized { 0 } else { 2 })
}

struct Request {
    shares: u32,
    threshold: u32,
    recovery_shares: u32,
    recovery_threshold: u32,
}

impl Request {
    /// Vault's defaults: unseal keys without an HSM, recovery keys with one.
    fn new(args: &InitArgs, recovery_seal: bool) -> Self {
        if recovery_seal {
            return Self {
                shares: args.key_shares.unwrap_or(0),
                threshold: args.key_threshold.unwrap_or(0),
                recovery_shares: args.recovery_shares,
                recovery_threshold: args.recovery_threshold,
            };
        }
        let (shares, threshold) = (args.key_shares.unwrap_or(5), args.key_threshold.unwrap_or(3));
        Self { shares, threshold, recovery_shares: 0, recovery_threshold: 0 }
    }

    fn body(&self) -> Value {
        json!({
            "secret_shares": self.shares, "secret_threshold": self.threshold,
            "recovery_shares": self.recovery_shares, "recovery_threshold": self.recovery_threshold,
        })
    }

    fn machine(&self, reply: &Value) -> MachineInit {
        let unseal_keys_hex = texts(reply, "keys");
        // Without unseal keys the HSM holds the one "share".
        let (shares, threshold) = if unseal_keys_hex.is_empty() { (1, 1) } else { (self.shares, self.threshold) };
        MachineInit {
            unseal_keys_b64: texts(reply, "keys_base64"),
            unseal_keys_hex,
            unseal_shares: shares,
            unseal_threshold: threshold,
            recovery_keys_b64: texts(reply, "recovery_keys_base64"),
            recovery_keys_hex: texts(reply, "recovery_keys"),
            recovery_keys_shares: self.recovery_shares,
            recovery_keys_threshold: self.recovery_threshold,
            root_token: text(reply, "root_token"),
        }
    }

    fn table(&self, reply: &Value) -> String {
        let machine = self.machine(reply);
        let mut lines = numbered("Unseal Key", &machine.unseal_keys_b64, &machine.unseal_keys_hex);
        lines.extend(numbered("Recovery Key", &machine.recovery_keys_b64, &machine.recovery_keys_hex));
        lines.push(String::new());
        lines.push(format!("Initial Root Token: {}", machine.root_token));
        lines.push(String::new());
        if machine.unseal_keys_hex.is_empty() {
            lines.push("Success! Vault is initialized".into());
        } else {
            let (n, t) = (self.shares, self.threshold);
            lines.push(format!("Vault initialized with {n} key shares and a key threshold of {t}."));
            lines.push("Give the shares above to different people and keep them offline: they are shown only now.".into());
            lines.push(format!("After every start or seal, {t} of them are needed to unseal."));
        }
        if !machine.recovery_keys_hex.is_empty() {
            let (n, t) = (self.recovery_shares, self.recovery_threshold);
            lines.push(String::new());
            lines.push(format!("Recovery key initialized with {n} key shares and a key threshold of {t}."));
            lines.push("Give the shares above to different people and keep them offline: they are shown only now.".into());
            lines.push(format!("{t} of them unseal this server without its HSM."));
        }
        lines.join("\n")
    }
}

fn numbered(name: &str, base64: &[String], hex: &[String]) -> Vec<String> {
    let keys = if base64.len() == hex.len() { base64 } else { hex };
    keys.iter().enumerate().map(|(index, key)| format!("{name} {}: {key}", index + 1)).collect()
}
