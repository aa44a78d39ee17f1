//! A parsed policy: paths, the rights on them, and the conditions tied to those rights.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use serde_json::Value;

use super::capability::Capabilities;

/// A policy document after parsing. Immutable; shared between the access lists compiled from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// The name in lower case.
    pub name: String,
    /// The blocks in the order of the document.
    pub rules: Vec<PathRule>,
}

impl Policy {
    /// The policy `root`: it has no document and its holder may do everything.
    pub fn root() -> Self {
        Self { name: "root".into(), rules: Vec::new() }
    }

    /// Whether a path depends on the identity of the caller.
    pub fn is_templated(&self) -> bool {
        self.rules.iter().any(|rule| rule.templated)
    }
}

/// One `path` block.
#[derive(Clone, Debug, PartialEq)]
pub struct PathRule {
    /// The path as written.
    pub path: String,
    /// Whether the path holds `{{directives}}`; they are filled in when an access list is compiled.
    pub templated: bool,
    /// What the block grants and under which conditions.
    pub permissions: Permissions,
}

/// The rights on a path and their conditions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Permissions {
    /// The rights.
    pub capabilities: Capabilities,
    /// The reply must be wrapped for at least this long.
    pub min_wrapping_ttl: Option<Duration>,
    /// The reply must be wrapped, and for at most this long.
    pub max_wrapping_ttl: Option<Duration>,
    /// When not empty, only these parameters may be sent.
    pub allowed_parameters: ParameterRules,
    /// These parameters, or values of them, may not be sent.
    pub denied_parameters: ParameterRules,
    /// These parameters must be sent.
    pub required_parameters: Vec<String>,
}

impl Permissions {
    /// Whether there is anything to check besides the capability.
    pub fn is_conditional(&self) -> bool {
        self.min_wrapping_ttl.is_some()
            || self.max_wrapping_ttl.is_some()
            || !self.required_parameters.is_empty()
            || !self.allowed_parameters.is_empty()
            || !self.denied_parameters.is_empty()
    }

    /// Adds another rule for the same path: rights add up, `deny` wins, the shorter time wins, parameter lists are
    /// joined. A rule without parameter lists does not lift those of another.
    pub fn merge(&mut self, other: &Permissions) {
        self.capabilities = self.capabilities.union(other.capabilities);
        if self.capabilities.denies() {
            *self = Self { capabilities: Capabilities::DENY, ..Self::default() };
            return;
        }
        self.min_wrapping_ttl = shorter(self.min_wrapping_ttl, other.min_wrapping_ttl);
        self.max_wrapping_ttl = shorter(self.max_wrapping_ttl, other.max_wrapping_ttl);
        merge_parameters(&mut self.allowed_parameters, &other.allowed_parameters);
        merge_parameters(&mut self.denied_parameters, &other.denied_parameters);
        for name in &other.required_parameters {
            if !self.required_parameters.contains(name) {
                self.required_parameters.push(name.clone());
            }
        }
    }
}

fn shorter(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}

/// Parameter names in lower case (`*` is any name) with their values; no values means any value.
pub type ParameterRules = BTreeMap<String, Vec<ParameterValue>>;

/// An empty list means "any value", so it swallows a list of values.
fn merge_parameters(into: &mut ParameterRules, from: &ParameterRules) {
    for (name, values) in from {
        match into.get_mut(name) {
            None => {
                into.insert(name.clone(), values.clone());
            }
            Some(known) if known.is_empty() || values.is_empty() => known.clear(),
            Some(known) => known.extend(values.iter().cloned()),
        }
    }
}

/// A value in a parameter list.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ParameterValue {
    /// A text, with `*` at the start, at the end or at both standing for anything.
    Text(String),
    /// A truth value.
    Bool(bool),
    /// A number. It matches nothing: Vault compares it with another type than the one that JSON numbers arrive in,
    /// and policies must not grant here what they did not grant there.
    Number(serde_json::Number),
    /// A list that must be equal to the one sent, element by element, without `*`.
    List(Vec<ParameterValue>),
    /// An object. It matches nothing, for the reason given at `Number`.
    Object(BTreeMap<String, ParameterValue>),
}

impl ParameterValue {
    /// Whether a value of a request is covered by this one.
    pub fn matches(&self, sent: &Value) -> bool {
        match (self, sent) {
            (Self::Text(pattern), Value::String(text)) => glob_matches(pattern, text),
            _ => self.equals(sent),
        }
    }

    fn equals(&self, sent: &Value) -> bool {
        match (self, sent) {
            (Self::Text(text), Value::String(sent)) => text == sent,
            (Self::Bool(value), Value::Bool(sent)) => value == sent,
            (Self::List(items), Value::Array(sent)) => {
                items.len() == sent.len() && items.iter().zip(sent).all(|(item, sent)| item.equals(sent))
            }
            _ => false,
        }
    }
}

/// Whether the list covers the value; an empty list covers every value.
pub fn covers(values: &[ParameterValue], sent: &Value) -> bool {
    values.is_empty() || values.iter().any(|value| value.matches(sent))
}

/// `*` at the start or the end of a pattern stands for anything; a pattern that is only `*` is that character.
fn glob_matches(pattern: &str, text: &str) -> bool {
    if pattern.len() < 2 {
        return pattern == text;
    }
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(rest), Some(_)) => text.contains(rest.strip_suffix('*').unwrap_or(rest)),
        (Some(end), None) => text.ends_with(end),
        (None, Some(start)) => text.starts_with(start),
        (None, None) => pattern == text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::core::policy::capability::Capability;

    fn text(value: &str) -> ParameterValue {
        ParameterValue::Text(value.into())
    }

    #[test]
    fn globs_stand_at_the_ends_only() {
        for (pattern, value, matches) in [
            ("dev", "dev", true),
            ("dev", "devil", false),
            ("prod-*", "prod-eu", true),
            ("prod-*", "my-prod-eu", false),
            ("*-test", "my-test", true),
            ("*-test", "my-test-2", false),
            ("*mid*", "a mid b", true),
            ("*mid*", "a b", false),
            ("a*b", "axb", false),
            ("a*b", "a*b", true),
            ("*", "*", true),
            ("*", "anything", false),
            ("**", "anything", true),
            ("", "", true),
        ] {
            assert_eq!(text(pattern).matches(&json!(value)), matches, "{pattern:?} {value:?}");
        }
    }

    #[test]
    fn numbers_and_objects_match_nothing_lists_are_compared_whole() {
        assert!(!ParameterValue::Number(1.into()).matches(&json!(1)));
        assert!(!text("1").matches(&json!(1)));
        assert!(ParameterValue::Bool(true).matches(&json!(true)));
        assert!(!ParameterValue::Bool(true).matches(&json!("true")));
        assert!(!text("dev").matches(&json!(["dev"])));
        assert!(ParameterValue::List(vec![text("a"), text("b")]).matches(&json!(["a", "b"])));
        assert!(!ParameterValue::List(vec![text("a*")]).matches(&json!(["ab"])));
        assert!(!text("a").matches(&Value::Null));
        assert!(covers(&[], &Value::Null));
    }

    #[test]
    fn merging_takes_the_shorter_time_and_joins_the_lists() {
        let seconds = |n| Some(Duration::from_secs(n));
        let mut first = Permissions {
            capabilities: Capabilities::NONE.with(Capability::Read),
            min_wrapping_ttl: seconds(20),
            max_wrapping_ttl: None,
            allowed_parameters: [("env".into(), vec![text("dev")]), ("any".into(), vec![])].into(),
            required_parameters: vec!["a".into()],
            ..Permissions::default()
        };
        first.merge(&Permissions {
            capabilities: Capabilities::NONE.with(Capability::Update),
            min_wrapping_ttl: seconds(10),
            max_wrapping_ttl: seconds(60),
            allowed_parameters: [("env".into(), vec![text("prod")]), ("any".into(), vec![text("x")])].into(),
            required_parameters: vec!["b".into(), "a".into()],
            ..Permissions::default()
        });
        assert_eq!(first.capabilities.names(), ["read", "update"]);
        assert_eq!((first.min_wrapping_ttl, first.max_wrapping_ttl), (seconds(10), seconds(60)));
        assert_eq!(first.allowed_parameters["env"], [text("dev"), text("prod")]);
        assert!(first.allowed_parameters["any"].is_empty());
        assert_eq!(first.required_parameters, ["a", "b"]);

        first.merge(&Permissions { capabilities: Capabilities::DENY, ..Permissions::default() });
        assert_eq!(first, Permissions { capabilities: Capabilities::DENY, ..Permissions::default() });
    }
}
