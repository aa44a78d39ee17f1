//! Typed reading of a [`Body`]: what a key must hold, and a sentence that says what to write when it does not.

use super::{Body, Entry, Error, Key, Kind, Position, Value};

/// A body with the file name its errors need. Keys match without regard to case, and the last of several attributes
/// with the same key wins, as in Vault.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    /// Name of the document.
    pub file: &'a str,
    /// What is read.
    pub body: &'a Body,
}

/// One `key "label" ... { ... }`.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// The first label with its place.
    pub label: Option<&'a Key>,
    /// The labels after the first.
    pub more_labels: &'a [Key],
    /// What stands between the braces.
    pub body: Reader<'a>,
    /// Where the block's key stands.
    pub at: Position,
}

impl<'a> Block<'a> {
    /// The first label.
    pub fn label(&self) -> Option<&'a str> {
        self.label.map(|label| label.name.as_str())
    }
}

impl<'a> Reader<'a> {
    /// An error at `at`.
    pub fn error(&self, at: Position, message: impl Into<String>) -> Error {
        Error { file: self.file.to_string(), at, message: message.into() }
    }

    /// All entries named `key`, in order.
    pub fn entries(&self, key: &'a str) -> impl Iterator<Item = &'a Entry> + use<'a> {
        self.body.entries.iter().filter(move |entry| entry.key.name.eq_ignore_ascii_case(key))
    }

    /// Entries whose key is not among `known`, in order.
    pub fn unknown(&self, known: &[&str]) -> Vec<&'a Entry> {
        let is_known = |entry: &&Entry| !known.iter().any(|name| entry.key.name.eq_ignore_ascii_case(name));
        self.body.entries.iter().filter(is_known).collect()
    }

    /// The last entry named `key`; an error when it is a block with a label.
    pub fn value(&self, key: &'a str) -> Result<Option<&'a Value>, Error> {
        let Some(entry) = self.entries(key).last() else { return Ok(None) };
        match entry.labels.first() {
            None => Ok(Some(&entry.value)),
            Some(label) => Err(self.error(label.at, format!("{key} takes no label: write {key} = ..."))),
        }
    }

    /// A text. A number is taken as its text, as HCL does.
    pub fn string(&self, key: &'a str) -> Result<Option<String>, Error> {
        self.value(key)?.map(|value| self.text_of(key, value)).transpose()
    }

    /// A boolean: `true`, `1`, or one of these as a text.
    pub fn bool(&self, key: &'a str) -> Result<Option<bool>, Error> {
        let Some(value) = self.value(key)? else { return Ok(None) };
        let found = match &value.kind {
            Kind::Bool(value) => Some(*value),
            Kind::Int(value) => Some(*value != 0),
            Kind::Text(text) => match text.trim() {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
                "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
                _ => None,
            },
            _ => None,
        };
        let wrong = || self.error(value.at, format!("{key} must be true or false, not {}: write {key} = true", describe(value)));
        found.map(Some).ok_or_else(wrong)
    }

    /// A whole number; a text that holds one is taken too.
    pub fn int(&self, key: &'a str) -> Result<Option<i64>, Error> {
        let Some(value) = self.value(key)? else { return Ok(None) };
        let found = match &value.kind {
            Kind::Int(value) => Some(*value),
            Kind::Text(text) => match super::scan::number(text.trim()) {
                Some(super::scan::Token::Int(value)) if !text.trim().is_empty() => Some(value),
                _ => None,
            },
            _ => None,
        };
        let wrong = || self.error(value.at, format!("{key} must be a whole number, not {}: write {key} = 10", describe(value)));
        found.map(Some).ok_or_else(wrong)
    }

    /// A list of texts; a single text counts as a list of one.
    pub fn strings(&self, key: &'a str) -> Result<Option<Vec<String>>, Error> {
        let Some(value) = self.value(key)? else { return Ok(None) };
        match &value.kind {
            Kind::List(values) => values.iter().map(|item| self.text_of(key, item)).collect::<Result<_, _>>().map(Some),
            Kind::Text(_) => Ok(Some(vec![self.text_of(key, value)?])),
            _ => Err(self.error(
                value.at,
                format!("{key} must be a list of strings, not {}: write {key} = [\"...\", \"...\"]", describe(value)),
            )),
        }
    }

    /// All blocks named `key`. `key "label" {}`, `key = { label = {} }`, JSON's `"key": {"label": {}}` and
    /// `"key": [{"label": {}}]` read the same. A block without a label has none.
    pub fn blocks(&self, key: &'a str) -> Result<Vec<Block<'a>>, Error> {
        let mut blocks = Vec::new();
        for entry in self.entries(key) {
            let at = entry.key.at;
            match (entry.labels.split_first(), &entry.value.kind) {
                (Some((label, more_labels)), Kind::Object(body)) => {
                    blocks.push(Block { label: Some(label), more_labels, body: Reader { file: self.file, body }, at });
                }
                (None, Kind::Object(body)) => self.unlabelled(body, at, &mut blocks),
                (None, Kind::List(values)) => {
                    for value in values {
                        let Kind::Object(body) = &value.kind else { return Err(self.no_block(key, value)) };
                        self.unlabelled(body, value.at, &mut blocks);
                    }
                }
                _ => return Err(self.no_block(key, &entry.value)),
            }
        }
        Ok(blocks)
    }

    /// A body whose members are all objects (or lists of objects) is a set of labels; any other body is the block itself.
    fn unlabelled(&self, body: &'a Body, at: Position, blocks: &mut Vec<Block<'a>>) {
        let bodies = |entry: &'a Entry| -> Option<Vec<&'a Body>> {
            match &entry.value.kind {
                Kind::Object(body) => Some(vec![body]),
                Kind::List(values) if !values.is_empty() => values.iter().map(object_of).collect(),
                _ => None,
            }
        };
        let labels: Option<Vec<_>> = body.entries.iter().map(|entry| bodies(entry).map(|found| (entry, found))).collect();
        match labels {
            Some(labels) if !labels.is_empty() => {
                for (entry, found) in labels {
                    blocks.extend(found.into_iter().map(|body| Block {
                        label: Some(&entry.key),
                        more_labels: &entry.labels,
                        body: Reader { file: self.file, body },
                        at: entry.key.at,
                    }));
                }
            }
            _ => blocks.push(Block { label: None, more_labels: &[], body: Reader { file: self.file, body }, at }),
        }
    }

    fn no_block(&self, key: &str, value: &Value) -> Error {
        self.error(value.at, format!("{key} must be a block, not {}: write {key} \"name\" {{ ... }}", describe(value)))
    }

    fn text_of(&self, key: &str, value: &Value) -> Result<String, Error> {
        match &value.kind {
            Kind::Text(text) => Ok(text.clone()),
            Kind::Int(number) => Ok(number.to_string()),
            Kind::Float(number) => Ok(number.to_string()),
            _ => Err(self.error(value.at, format!("{key} must be a string, not {}: write {key} = \"...\"", describe(value)))),
        }
    }
}

fn object_of(value: &Value) -> Option<&Body> {
    match &value.kind {
        Kind::Object(body) => Some(body),
        _ => None,
    }
}

/// The kind of a value. The value itself stays out: it may be a PIN in the wrong place.
fn describe(value: &Value) -> &'static str {
    match &value.kind {
        Kind::Bool(true) => "true",
        Kind::Bool(false) => "false",
        other => other.name(),
    }
}
