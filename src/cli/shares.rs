//! Escrow shares for commands that need all of them at once.

use serde_json::{Value, json};

use super::secret_argument::SecretArgument;
use super::terminal::Terminal;
use crate::secret::SecretString;

/// From the standard input, separated by white space.
pub(super) fn from_input(terminal: &mut Terminal<'_>) -> std::io::Result<Vec<SecretString>> {
    let text = terminal.key(Some(&SecretArgument::new("-".into())), "")?;
    Ok(text.expose().split_whitespace().map(|share| SecretString::new(share.to_owned())).collect())
}

/// One after the other at the prompt.
pub(super) fn asked(threshold: u64, terminal: &mut Terminal<'_>) -> std::io::Result<Vec<SecretString>> {
    (1..=threshold)
        .map(|number| terminal.key(None, &format!("Escrow share {number} of {threshold} (will be hidden): ")))
        .collect()
}

/// The body of a request with shares.
pub(super) fn body(shares: &[SecretString]) -> Value {
    json!({ "keys": shares.iter().map(SecretString::expose).collect::<Vec<_>>() })
}
