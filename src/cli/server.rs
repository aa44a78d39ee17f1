//! `sos server`.

use std::path::PathBuf;

use clap::Args;

use super::Failure;
use super::secret_argument::{self, SecretArgument};
use super::terminal::Terminal;

/// What the command line says about the server.
#[derive(Args, Debug, Default, Clone)]
pub struct ServerArgs {
    /// Configuration file or folder; may be given several times
    #[arg(long, value_name = "PATH")]
    pub config: Vec<PathBuf>,
    /// Development server: in memory, initialised and unsealed; nothing survives it
    #[arg(long)]
    pub dev: bool,
    /// Root token of the development server; made up when absent
    #[arg(long, value_name = "TOKEN", value_parser = secret_argument::parse)]
    pub dev_root_token_id: Option<SecretArgument>,
    /// Address of the development server (127.0.0.1:8200)
    #[arg(long, value_name = "HOST:PORT")]
    pub dev_listen_address: Option<String>,
    /// Do not write the development server's root token to ~/.vault-token
    #[arg(long)]
    pub dev_no_store_token: bool,
    /// Development server with TLS and a certificate made for the run
    #[arg(long)]
    pub dev_tls: bool,
    /// How much is logged: trace, debug, info, warn, error
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Shape of the log lines: standard, json
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

pub(super) fn run(mut args: ServerArgs, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    // As in Vault, -dev-tls alone means -dev.
    args.dev |= args.dev_tls;
    args.dev_root_token_id =
        args.dev_root_token_id.or_else(|| terminal.variable("VAULT_DEV_ROOT_TOKEN_ID").map(SecretArgument::new));
    args.dev_listen_address = args.dev_listen_address.or_else(|| terminal.variable("VAULT_DEV_LISTEN_ADDRESS"));
    if !args.dev && args.config.is_empty() {
        return Err(Failure::usage("Must specify at least one config path using -config"));
    }
    match crate::startup::run(args) {
        Ok(()) => Ok(0),
        Err(error) => Err(Failure::usage(chain(&error))),
    }
}

/// The error and its causes, one sentence. Many errors repeat their cause in their own text; it is said once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Outer {
        text: &'static str,
        source: io::Error,
    }

    #[test]
    fn a_cause_is_said_once() {
        let cause = || io::Error::other("no space");
        assert_eq!(chain(&Outer { text: "cannot write", source: cause() }), "cannot write: no space");
        assert_eq!(chain(&Outer { text: "cannot write: no space", source: cause() }), "cannot write: no space");
    }
}
