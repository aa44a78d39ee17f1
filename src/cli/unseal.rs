//! `sos operator unseal` and `sos operator seal`.

use clap::Args;
use serde_json::json;

use super::Failure;
use super::client::ClientArgs;
use super::secret_argument::{self, SecretArgument};
use super::status;
use super::terminal::Terminal;

/// Flags of `operator unseal`.
#[derive(Args, Debug)]
pub(super) struct UnsealArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Forget the keys that were given so far
    #[arg(long)]
    reset: bool,
    /// The key is meant for a change of the seal
    #[arg(long)]
    migrate: bool,
    /// The unseal key; `-` reads it from the standard input, without it you are asked
    #[arg(value_parser = secret_argument::parse)]
    key: Option<SecretArgument>,
}

/// Flags of `operator seal`.
#[derive(Args, Debug)]
pub(super) struct SealArgs {
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) fn run(args: UnsealArgs, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let format = args.client.format(terminal)?;
    let client = args.client.client(terminal)?;
    let status = if args.reset {
        client
            .put("sys/unseal", &json!({ "reset": true }))
            .map_err(|error| Failure::request("resetting unseal process", error))?
    } else {
        let key = terminal.key(args.key.as_ref(), "Unseal Key (will be hidden): ")?;
        let body = json!({ "key": key.expose(), "migrate": args.migrate });
        client.put("sys/unseal", &body).map_err(|error| Failure::request("unsealing", error))?
    };
    status::print(&client, status, format, terminal)?;
    Ok(0)
}

pub(super) fn seal(args: &SealArgs, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let client = args.client.client(terminal)?;
    client.put("sys/seal", &json!({})).map_err(|error| Failure::request("sealing", error))?;
    terminal.print("Success! Vault is sealed.")?;
    Ok(0)
}
