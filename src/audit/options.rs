//! The options of a file device, checked when it is enabled and again when it is loaded.

use std::{collections::BTreeMap, path::PathBuf};

use thiserror::Error;

/// Mode of audit files unless the options say otherwise.
const DEFAULT_MODE: u32 = 0o600;

/// What is wrong with a device's options.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum OptionError {
    /// There is nowhere to write.
    #[error("file_path is required")]
    NoPath,
    /// Not one of Vault's formats.
    #[error("unknown format type {0:?}")]
    Format(String),
    /// A format of Vault's that is not there.
    #[error("format \"jsonx\" is not supported by this server: use \"json\"")]
    Jsonx,
    /// A prefix would let lines look like anything.
    #[error("line prefixes (option \"prefix\") are not supported by this server")]
    Prefix,
    /// Not a boolean.
    #[error("option {name:?}: cannot parse {value:?} as a boolean: write true or false")]
    Boolean {
        /// The option.
        name: &'static str,
        /// What came.
        value: String,
    },
    /// Not a mode, or one that makes the file executable.
    #[error("option \"mode\": {0:?} is no file mode such as 0600, without rights to execute")]
    Mode(String),
}

/// Where records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sink {
    /// A file.
    File(PathBuf),
    /// Standard output.
    Stdout,
}

/// A device's options in types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileOptions {
    /// Where records go.
    pub sink: Sink,
    /// Mode of the file; `None` leaves an existing file's mode alone.
    pub mode: Option<u32>,
    /// Values are recorded in clear.
    pub log_raw: bool,
    /// Accessors are recorded as HMACs.
    pub hmac_accessor: bool,
    /// The answers of lists are recorded as counts.
    pub elide_list_responses: bool,
}

impl FileOptions {
    /// Reads the options as they came over the API. Unknown ones are ignored, as in Vault.
    pub fn parse(options: &BTreeMap<String, String>) -> Result<Self, OptionError> {
        let text = |name: &str| options.get(name).map(|value| value.trim()).filter(|value| !value.is_empty());
        match text("format") {
            None | Some("json") => {}
            Some("jsonx") => return Err(OptionError::Jsonx),
            Some(other) => return Err(OptionError::Format(other.to_owned())),
        }
        if options.get("prefix").is_some_and(|prefix| !prefix.is_empty()) {
            return Err(OptionError::Prefix);
        }
        // `path` is the older name.
        let sink = match text("file_path").or_else(|| text("path")).ok_or(OptionError::NoPath)? {
            "stdout" => Sink::Stdout,
            "discard" => Sink::File("/dev/null".into()),
            path => Sink::File(path.into()),
        };
        Ok(Self {
            sink,
            mode: text("mode").map_or(Ok(Some(DEFAULT_MODE)), mode)?,
            log_raw: boolean("log_raw", text("log_raw"), false)?,
            hmac_accessor: boolean("hmac_accessor", text("hmac_accessor"), true)?,
            elide_list_responses: boolean("elide_list_responses", text("elide_list_responses"), false)?,
        })
    }
}

fn boolean(name: &'static str, value: Option<&str>, default: bool) -> Result<bool, OptionError> {
    match value {
        None => Ok(default),
        Some("1" | "t" | "T" | "TRUE" | "true" | "True") => Ok(true),
        Some("0" | "f" | "F" | "FALSE" | "false" | "False") => Ok(false),
        Some(value) => Err(OptionError::Boolean { name, value: value.to_owned() }),
    }
}

/// `0600`; `0000` leaves the mode of an existing file alone.
fn mode(text: &str) -> Result<Option<u32>, OptionError> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| mode & !0o666 == 0);
    let mode = mode.ok_or_else(|| OptionError::Mode(text.to_owned()))?;
    Ok((mode != 0).then_some(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[(&str, &str)]) -> Result<FileOptions, OptionError> {
        let pairs = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        FileOptions::parse(&pairs.collect())
    }

    #[test]
    fn defaults_are_vaults_with_a_private_file() {
        let options = parse(&[("file_path", "/var/log/a.log")]).unwrap();
        assert_eq!(options.mode, Some(0o600));
        assert!(options.hmac_accessor && !options.log_raw && !options.elide_list_responses);
    }

    #[test]
    fn wrong_options_are_refused() {
        let path = ("file_path", "/dev/null");
        assert_eq!(parse(&[]), Err(OptionError::NoPath));
        assert_eq!(parse(&[path, ("format", "jsonx")]), Err(OptionError::Jsonx));
        assert_eq!(parse(&[path, ("prefix", "@cee: ")]), Err(OptionError::Prefix));
        for mode in ["rw", "0700", "0601", "4600", "99"] {
            assert_eq!(parse(&[path, ("mode", mode)]), Err(OptionError::Mode(mode.into())));
        }
        assert!(parse(&[path, ("log_raw", "maybe")]).is_err());
    }
}
