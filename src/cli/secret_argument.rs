//! A secret that came over the command line.
//!
//! No command needs one there (there is the prompt and the standard input), but Vault's allow it. It is kept out of
//! every Debug print and overwritten at the end.

use std::convert::Infallible;
use std::sync::Arc;

use crate::secret::SecretString;

/// A key, one-time password or token given as an argument. Shared, because clap wants to copy what it parses.
#[derive(Clone, Debug)]
pub struct SecretArgument(Arc<SecretString>);

impl SecretArgument {
    /// Takes over `text`.
    pub fn new(text: String) -> Self {
        Self(Arc::new(SecretString::new(text)))
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }
}

/// For clap.
pub(super) fn parse(text: &str) -> Result<SecretArgument, Infallible> {
    Ok(SecretArgument::new(text.to_string()))
}
