//! What a command sees of the world: two outputs, an input, a hidden prompt and the environment.

use std::fmt::Display;
use std::io::{self, Read, Write};

use super::SecretArgument;
use crate::secret::SecretString;

/// Asks for a text that is not shown while it is typed.
type Prompt<'a> = Box<dyn FnMut(&str) -> io::Result<SecretString> + 'a>;

/// Looks up an environment variable.
type Lookup<'a> = Box<dyn Fn(&str) -> Option<String> + 'a>;

/// The terminal of one command; tests put their own buffers in.
pub struct Terminal<'a> {
    pub(super) out: Box<dyn Write + 'a>,
    pub(super) err: Box<dyn Write + 'a>,
    pub(super) input: Box<dyn Read + 'a>,
    pub(super) prompt: Prompt<'a>,
    pub(super) environment: Lookup<'a>,
}

impl Terminal<'static> {
    /// The process's own.
    pub fn process() -> Self {
        Self {
            out: Box::new(io::stdout()),
            err: Box::new(io::stderr()),
            input: Box::new(io::stdin()),
            prompt: Box::new(|question| rpassword::prompt_password(question).map(SecretString::new)),
            environment: Box::new(crate::config::process_environment),
        }
    }
}

impl Terminal<'_> {
    /// Prints one line (or several) on the standard output.
    pub(super) fn print(&mut self, text: impl Display) -> io::Result<()> {
        let text = zeroize::Zeroizing::new(text.to_string());
        self.out.write_all(text.trim_end_matches('\n').as_bytes())?;
        self.out.write_all(b"\n")
    }

    /// Prints on the error output. When even that is closed nobody is left to tell.
    pub(super) fn complain(&mut self, text: impl Display) {
        let text = text.to_string();
        let _ = writeln!(self.err, "{}", text.trim_end_matches('\n'));
    }

    /// An environment variable that is set and not empty.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        (self.environment)(name)
    }

    /// A share or key: from the standard input for `-`, from the argument if there is one, else by asking.
    pub(super) fn key(&mut self, argument: Option<&SecretArgument>, question: &str) -> io::Result<SecretString> {
        let text = match argument {
            Some(argument) if argument.expose() == "-" => self.everything()?,
            Some(argument) => SecretString::new(argument.expose().to_string()),
            None => (self.prompt)(question).map_err(|error| {
                let hint = "cannot ask for the key without a terminal; pass - as the argument and the key on the standard input";
                io::Error::new(error.kind(), format!("{hint} ({error})"))
            })?,
        };
        Ok(SecretString::new(text.expose().trim().to_string()))
    }

    /// The whole standard input.
    pub(super) fn everything(&mut self) -> io::Result<SecretString> {
        let mut text = zeroize::Zeroizing::new(String::new());
        self.input.read_to_string(&mut text)?;
        Ok(SecretString::new(text.to_string()))
    }
}
