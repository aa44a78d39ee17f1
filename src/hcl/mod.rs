//! HCL 1, the language of Vault's configuration files and policies, and its JSON form.
//!
//! HCL 2 parsers refuse documents that Vault accepts (several attributes on one line, optional commas, bare or quoted
//! block names), so this is a small parser of its own. It only reads: there is no evaluation, `${...}` stays text.
//! A document that begins with `{` is JSON. JSON objects become blocks and arrays of objects become repeated blocks.
//!
//! Input may be hostile (a policy comes from any client that may write one): size and nesting are bounded, and
//! every malformed document is an [`Error`] with its line and column.
//!
//! ```
//! let document = sos::hcl::parse("demo.hcl", r#"path "secret/*" { capabilities = ["read", "list"] }"#)?;
//! for block in document.reader().blocks("path")? {
//!     assert_eq!(block.label(), Some("secret/*"));
//!     assert_eq!(block.body.strings("capabilities")?, Some(vec!["read".to_string(), "list".to_string()]));
//! }
//! # Ok::<(), sos::hcl::Error>(())
//! ```

use std::fmt;

mod json;
mod parse;
mod read;
mod scan;
#[cfg(test)]
mod tests;

pub use read::{Block, Reader};

/// Longest document that is read, in bytes. Vault's own documents are a few kilobytes.
pub const MAX_DOCUMENT: usize = 4 << 20;

/// Deepest nesting of objects and lists. Every level costs a stack frame, so this also bounds the stack.
pub const MAX_DEPTH: usize = 64;

/// Reads `text`, HCL 1 or (when its first character is `{`) JSON. `file` is the name shown in errors.
pub fn parse(file: &str, text: &str) -> Result<Document, Error> {
    let fail = |problem: Problem| Error { file: file.to_string(), at: problem.at, message: problem.message };
    if text.len() > MAX_DOCUMENT {
        let message = format!("the document has {} bytes, more than the limit of {MAX_DOCUMENT}", text.len());
        return Err(fail(Problem { at: Position::START, message }));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let body = if text.trim_start().starts_with('{') { json::document(text) } else { parse::document(text) };
    Ok(Document { file: file.to_string(), body: body.map_err(fail)? })
}

/// A parsed document and the name of the file it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Name shown in errors.
    pub file: String,
    /// What stands at the top level.
    pub body: Body,
}

impl Document {
    /// Typed access to the top level.
    pub fn reader(&self) -> Reader<'_> {
        Reader { file: &self.file, body: &self.body }
    }
}

/// Attributes and blocks in the order they were written; a key may occur more than once.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Body {
    /// The entries.
    pub entries: Vec<Entry>,
    /// Where the body begins.
    pub at: Position,
}

/// `key = value`, `key { ... }` or `key "label" "label" { ... }`.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The first word.
    pub key: Key,
    /// The words between the key and `{`; empty for an attribute.
    pub labels: Vec<Key>,
    /// What stands behind `=`, or the block's body as [`Kind::Object`].
    pub value: Value,
}

/// A name with its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// The name, unquoted.
    pub name: String,
    /// Where it stands.
    pub at: Position,
}

/// A value with its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// The value itself.
    pub kind: Kind,
    /// Where it begins.
    pub at: Position,
}

/// What a value can be.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// A quoted text or heredoc.
    Text(String),
    /// A whole number.
    Int(i64),
    /// A number with a fraction or an exponent.
    Float(f64),
    /// `true` or `false`.
    Bool(bool),
    /// `[ ... ]`.
    List(Vec<Value>),
    /// `{ ... }`.
    Object(Body),
}

impl Kind {
    /// The kind in words, for error messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Int(_) | Self::Float(_) => "a number",
            Self::Bool(_) => "a boolean",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }
}

/// Line and column, both counted from 1; a column is a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

impl Position {
    /// The first character of a document.
    pub const START: Self = Self { line: 1, column: 1 };
}

impl Default for Position {
    fn default() -> Self {
        Self::START
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// What is wrong in a document, where, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{at}: {message}")]
pub struct Error {
    /// Name of the document.
    pub file: String,
    /// The place.
    pub at: Position,
    /// The sentence.
    pub message: String,
}

/// An error before the file name is known.
#[derive(Debug)]
struct Problem {
    at: Position,
    message: String,
}

impl Problem {
    fn new(at: Position, message: impl Into<String>) -> Self {
        Self { at, message: message.into() }
    }
}
