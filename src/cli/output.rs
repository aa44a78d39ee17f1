//! Tables and JSON as `vault` prints them.

use serde::Serialize;
use serde_json::Value;

use super::Failure;

/// Shape of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Table,
    Json,
}

/// Rows of a two-column table.
#[derive(Default)]
pub(super) struct Rows(Vec<(String, String)>);

impl Rows {
    pub(super) fn add(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.0.push((key.into(), value.into()));
    }

    /// Adds a row when the field is there and not empty.
    pub(super) fn add_field(&mut self, key: &str, fields: &Value, name: &str) {
        let value = text(fields, name);
        if !value.is_empty() {
            self.add(key, value);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// With the heading `Key Value` and a line of dashes below it.
    pub(super) fn table(mut self) -> String {
        self.0.insert(0, ("Key".into(), "Value".into()));
        self.0.insert(1, ("---".into(), "-----".into()));
        self.columns()
    }

    /// Without a heading.
    pub(super) fn columns(&self) -> String {
        let width = self.0.iter().map(|(key, _)| key.chars().count()).max().unwrap_or(0);
        let line = |(key, value): &(String, String)| {
            let value = if value.is_empty() { "n/a" } else { value };
            format!("{key:width$}    {value}")
        };
        self.0.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// A field as text; empty when it is missing or null.
pub(super) fn text(fields: &Value, name: &str) -> String {
    match fields.get(name) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// A field as a number; zero when it is missing.
pub(super) fn number(fields: &Value, name: &str) -> u64 {
    fields.get(name).and_then(Value::as_u64).unwrap_or(0)
}

/// A field as a truth value; false when it is missing.
pub(super) fn truth(fields: &Value, name: &str) -> bool {
    fields.get(name).and_then(Value::as_bool).unwrap_or(false)
}

/// A field as a list of texts.
pub(super) fn texts(fields: &Value, name: &str) -> Vec<String> {
    let list = fields.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(Value::as_str).map(String::from).collect()
}

/// Two-space indented JSON.
pub(super) fn json(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(value).map_err(|error| Failure::usage(format!("cannot print the answer as JSON: {error}")))
}
