//! From a policy document (HCL 1 or JSON) to a [`Policy`].
//!
//! Keys that exist elsewhere but would be ignored here are refused: a rule that demands an approval or ends at a
//! date must not silently become a rule without those limits.

use std::{fmt, time::Duration};

use thiserror::Error;

use super::{
    capability::{Capabilities, Capability},
    pattern::Pattern,
    rule::{ParameterRules, ParameterValue, PathRule, Permissions, Policy},
    template,
};
use crate::{
    hcl::{self, Body, Entry, Kind, Reader, Value},
    wire::duration::parse_duration,
};

/// What a `path` block may hold.
const PATH_KEYS: [&str; 8] = [
    "comment",
    "policy",
    "capabilities",
    "allowed_parameters",
    "denied_parameters",
    "required_parameters",
    "min_wrapping_ttl",
    "max_wrapping_ttl",
];

/// Conditions known elsewhere that this server does not enforce.
const NOT_ENFORCED: [&str; 5] =
    ["control_group", "mfa_methods", "expiration", "pagination_limit", "list_scan_response_keys_filter_path"];

/// Why a document is not a policy. The text is Vault's.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("failed to parse policy: {0}")]
pub struct ParseError(String);

impl ParseError {
    fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl From<hcl::Error> for ParseError {
    fn from(error: hcl::Error) -> Self {
        Self(format!("At {}: {}", error.at, error.message))
    }
}

/// Reads a policy document. `name` is stored as given; a `name` inside the document is ignored, as in Vault.
pub fn parse(name: &str, document: &str) -> Result<Policy, ParseError> {
    let document = hcl::parse(name, document)?;
    check_keys(&document.body, &["name", "path"], "")?;
    let blocks = document.reader().blocks("path")?;
    let rules = blocks.iter().map(|block| rule(block.label().unwrap_or("path"), &block.body));
    Ok(Policy { name: name.to_owned(), rules: rules.collect::<Result<_, _>>()? })
}

fn rule(path: &str, block: &Reader<'_>) -> Result<PathRule, ParseError> {
    let templated = template::is_templated(path)
        .map_err(|error| ParseError::new(format!("failed to validate policy templating: {error}")))?;
    let place = format!("path {path:?}: ");
    if let Some(key) = NOT_ENFORCED.iter().find(|key| block.entries(key).next().is_some()) {
        return Err(ParseError::new(format!("{place}{key:?} is not supported by this server")));
    }
    check_keys(block.body, &PATH_KEYS, &place)?;
    if !Pattern::is_valid(path) {
        return Err(ParseError::new(format!("{place}invalid use of wildcards ('+*' is forbidden)")));
    }
    let permissions = permissions(&place, block)?;
    Ok(PathRule { path: path.to_owned(), templated, permissions })
}

fn permissions(place: &str, block: &Reader<'_>) -> Result<Permissions, ParseError> {
    let at = |message: String| ParseError(format!("{place}{message}"));
    let capabilities = capabilities(block).map_err(at)?;
    if capabilities.denies() {
        return Ok(Permissions { capabilities, ..Permissions::default() });
    }
    let permissions = Permissions {
        capabilities,
        min_wrapping_ttl: wrapping_ttl(block, "min_wrapping_ttl")?,
        max_wrapping_ttl: wrapping_ttl(block, "max_wrapping_ttl")?,
        allowed_parameters: parameters(block, "allowed_parameters").map_err(at)?,
        denied_parameters: parameters(block, "denied_parameters").map_err(at)?,
        required_parameters: texts(block, "required_parameters").map_err(at)?,
    };
    match (permissions.min_wrapping_ttl, permissions.max_wrapping_ttl) {
        (Some(min), Some(max)) if max < min => Err(ParseError::new("max_wrapping_ttl cannot be less than min_wrapping_ttl")),
        _ => Ok(permissions),
    }
}

/// The `capabilities` list together with what the older `policy` key stands for.
fn capabilities(block: &Reader<'_>) -> Result<Capabilities, String> {
    use Capability::{Create, Delete, Deny, List, Read, Sudo, Update};
    let mut found = Capabilities::NONE;
    let legacy = block.entries("policy").last().map(|entry| text("policy", &entry.value)).transpose()?;
    match legacy.as_deref() {
        None | Some("") => {}
        Some("deny") => return Ok(Capabilities::NONE.with(Deny)),
        Some("read") => found = [Read, List].into_iter().collect(),
        Some("write") => found = [Create, Read, Update, Delete, List].into_iter().collect(),
        Some("sudo") => found = [Create, Read, Update, Delete, List, Sudo].into_iter().collect(),
        Some(other) => return Err(format!("invalid policy {other:?}")),
    }
    for name in texts(block, "capabilities")? {
        let capability = Capability::from_name(&name).ok_or_else(|| format!("invalid capability {name:?}"))?;
        found = found.with(capability);
        if capability == Deny {
            break; // what follows a deny is not looked at, as in Vault
        }
    }
    Ok(found)
}

fn wrapping_ttl(block: &Reader<'_>, key: &str) -> Result<Option<Duration>, ParseError> {
    let Some(entry) = block.entries(key).last() else { return Ok(None) };
    let wrong = |problem: &dyn fmt::Display| ParseError::new(format!("error parsing {key}: {problem}"));
    let ttl = match &entry.value.kind {
        Kind::Text(text) if text.is_empty() => Duration::ZERO,
        Kind::Text(text) => parse_duration(text).map_err(|error| wrong(&error))?,
        Kind::Int(seconds) => Duration::from_secs(u64::try_from(*seconds).map_err(|_| wrong(&"a time cannot be negative"))?),
        Kind::Float(seconds) => Duration::try_from_secs_f64(seconds.trunc()).map_err(|_| wrong(&"a time cannot be negative"))?,
        other => return Err(wrong(&format!("a time cannot be {}", other.name()))),
    };
    Ok(Some(ttl).filter(|ttl| !ttl.is_zero()))
}

/// All texts under a key, whether given as one list, as one text or in several places.
fn texts(block: &Reader<'_>, key: &str) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    for entry in block.entries(key) {
        match &entry.value.kind {
            Kind::List(items) => {
                for item in items {
                    found.push(text(key, item)?);
                }
            }
            _ => found.push(text(key, &entry.value)?),
        }
    }
    Ok(found)
}

fn text(key: &str, value: &Value) -> Result<String, String> {
    match &value.kind {
        Kind::Text(text) => Ok(text.clone()),
        Kind::Int(number) => Ok(number.to_string()),
        Kind::Float(number) => Ok(number.to_string()),
        other => Err(format!("{key:?} must be a string, not {} (at {})", other.name(), value.at)),
    }
}

/// `{ "name" = [values] }`, with names folded to lower case. The object may stand in several pieces.
fn parameters(block: &Reader<'_>, key: &str) -> Result<ParameterRules, String> {
    let mut rules = ParameterRules::new();
    for entry in block.entries(key) {
        for body in objects(entry, key)? {
            for Entry { key: name, value, .. } in &body.entries {
                let values: Vec<_> = match &value.kind {
                    Kind::List(items) => items.iter().map(parameter_value).collect(),
                    _ => vec![parameter_value(value)],
                };
                rules.entry(name.name.to_lowercase()).or_default().extend(values);
            }
        }
    }
    Ok(rules)
}

fn objects<'a>(entry: &'a Entry, key: &str) -> Result<Vec<&'a Body>, String> {
    let wrong = |value: &Value| format!("{key:?} must be an object, not {} (at {})", value.kind.name(), value.at);
    let object = |value: &'a Value| match &value.kind {
        Kind::Object(body) => Ok(body),
        _ => Err(wrong(value)),
    };
    match &entry.value.kind {
        Kind::List(items) => items.iter().map(object).collect(),
        _ => Ok(vec![object(&entry.value)?]),
    }
}

fn parameter_value(value: &Value) -> ParameterValue {
    match &value.kind {
        Kind::Text(text) => ParameterValue::Text(text.clone()),
        Kind::Bool(value) => ParameterValue::Bool(*value),
        Kind::Int(number) => ParameterValue::Number((*number).into()),
        Kind::Float(number) => ParameterValue::Number(serde_json::Number::from_f64(*number).unwrap_or_else(|| 0.into())),
        Kind::List(items) => ParameterValue::List(items.iter().map(parameter_value).collect()),
        Kind::Object(body) => ParameterValue::Object(
            body.entries.iter().map(|entry| (entry.key.name.clone(), parameter_value(&entry.value))).collect(),
        ),
    }
}

/// Every key must be known; all unknown ones are named at once.
fn check_keys(body: &Body, known: &[&str], place: &str) -> Result<(), ParseError> {
    let unknown: Vec<_> = body.entries.iter().filter(|entry| !known.contains(&entry.key.name.as_str())).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let count = if unknown.len() == 1 { "1 error".to_owned() } else { format!("{} errors", unknown.len()) };
    let mut message = format!("{count} occurred:\n");
    for entry in unknown {
        message.push_str(&format!("\t* {place}invalid key {:?} on line {}\n", entry.key.name, entry.key.at.line));
    }
    message.push('\n');
    Err(ParseError(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(document: &str) -> PathRule {
        let mut policy = parse("p", document).unwrap();
        assert_eq!(policy.rules.len(), 1, "{document}");
        policy.rules.remove(0)
    }

    fn refused(document: &str) -> String {
        parse("p", document).unwrap_err().to_string()
    }

    #[test]
    fn capabilities_and_the_older_policy_key() {
        for (block, names) in [
            (r#"capabilities = ["read"]"#, &["read"][..]),
            (r#"capabilities = "read""#, &["read"]),
            (r#"capabilities = ["update", "read", "read"]"#, &["read", "update"]),
            (r#"capabilities = ["read"] capabilities = ["list"]"#, &["list", "read"]),
            (r#"capabilities = ["deny", "read"]"#, &["deny"]),
            (r#"capabilities = ["read", "deny"]"#, &["deny"]),
            (r#"capabilities = []"#, &["deny"]),
            ("", &["deny"]),
            (r#"policy = "read""#, &["list", "read"]),
            (r#"policy = "write""#, &["create", "delete", "list", "read", "update"]),
            (r#"policy = "sudo""#, &["create", "delete", "list", "read", "sudo", "update"]),
            (r#"policy = "deny" capabilities = ["read"]"#, &["deny"]),
            (r#"policy = "read" capabilities = ["patch"]"#, &["list", "patch", "read"]),
        ] {
            let rule = one(&format!("path \"a\" {{ {block} }}"));
            assert_eq!(rule.permissions.capabilities.names(), names, "{block}");
        }
    }

    #[test]
    fn parameters_and_times() {
        let rule = one(r#"
            name = "ignored"
            path "a" { # comment
              comment = "why"
              capabilities = ["update"]
              allowed_parameters = { "Any" = [] "env" = ["dev", "prod-*"] single = "x" "n" = [1, true] }
              denied_parameters { secret = [] }
              required_parameters = ["Owner"]
              min_wrapping_ttl = 60
              max_wrapping_ttl = "1h30m"
            }"#);
        let permissions = rule.permissions;
        let text = |value: &str| ParameterValue::Text(value.into());
        assert_eq!(permissions.allowed_parameters["any"], []);
        assert_eq!(permissions.allowed_parameters["env"], [text("dev"), text("prod-*")]);
        assert_eq!(permissions.allowed_parameters["single"], [text("x")]);
        assert_eq!(permissions.allowed_parameters["n"], [ParameterValue::Number(1.into()), ParameterValue::Bool(true)]);
        assert_eq!(permissions.denied_parameters["secret"], []);
        assert_eq!(permissions.required_parameters, ["Owner"]);
        assert_eq!(permissions.min_wrapping_ttl, Some(Duration::from_secs(60)));
        assert_eq!(permissions.max_wrapping_ttl, Some(Duration::from_secs(5400)));
    }

    #[test]
    fn json_documents() {
        let policy = parse(
            "p",
            r#"{"path": {"a/*": {"capabilities": ["read"], "allowed_parameters": {"x": ["1"]}}, "b": {"policy": "write"}}}"#,
        )
        .unwrap();
        let paths: Vec<_> = policy.rules.iter().map(|rule| rule.path.as_str()).collect();
        assert_eq!(paths, ["a/*", "b"]);
        assert_eq!(policy.rules[0].permissions.allowed_parameters["x"], [ParameterValue::Text("1".into())]);
        let listed = parse("p", r#"{"path": [{"a": {"policy": "read"}}, {"b": {"policy": "deny"}}]}"#).unwrap();
        assert_eq!(listed.rules.len(), 2);
    }

    #[test]
    fn empty_documents_are_policies_without_rights() {
        assert!(parse("p", "").unwrap().rules.is_empty());
        assert!(parse("p", "# nothing\n").unwrap().rules.is_empty());
        assert!(parse("p", "{}").unwrap().rules.is_empty());
    }

    #[test]
    fn templates_are_recognised() {
        assert!(one(r#"path "a/{{identity.entity.name}}" { policy = "read" }"#).templated);
        assert!(!one(r#"path "a/{b}" { policy = "read" }"#).templated);
    }

    #[test]
    fn refusals() {
        for (document, part) in [
            (r#"path "a" {"#, "failed to parse policy: "),
            ("not a policy at all", "failed to parse policy: "),
            (r#"path "a" { capabilities = ["fly"] }"#, r#"path "a": invalid capability "fly""#),
            (r#"path "a" { policy = "bogus" }"#, r#"path "a": invalid policy "bogus""#),
            ("path \"a\" {\n  bogus = 1\n}", "* path \"a\": invalid key \"bogus\" on line 2\n"),
            ("bogus = 1", "1 error occurred:\n\t* invalid key \"bogus\" on line 1\n\n"),
            ("a = 1\nb = 2", "2 errors occurred:\n\t* invalid key \"a\" on line 1\n\t* invalid key \"b\" on line 2\n\n"),
            (r#"path "a/+*" { policy = "read" }"#, r#"path "a/+*": invalid use of wildcards ('+*' is forbidden)"#),
            (
                r#"path "a" { policy = "read" min_wrapping_ttl = "10m" max_wrapping_ttl = "5m" }"#,
                "max_wrapping_ttl cannot be less than min_wrapping_ttl",
            ),
            (r#"path "a" { policy = "read" min_wrapping_ttl = "soon" }"#, "error parsing min_wrapping_ttl: "),
            (r#"path "a" { policy = "read" max_wrapping_ttl = -1 }"#, "error parsing max_wrapping_ttl: "),
            (r#"path "a" { capabilities = [{}] }"#, "must be a string, not an object"),
            (r#"path "a" { allowed_parameters = "x" }"#, "must be an object, not a string"),
            (r#"path "a/}}" { policy = "read" }"#, "failed to validate policy templating: unbalanced templating characters"),
            (r#"path "a" { control_group = {} }"#, r#""control_group" is not supported by this server"#),
            ("path = 5", "failed to parse policy: "),
        ] {
            let error = refused(document);
            assert!(error.starts_with("failed to parse policy: ") && error.contains(part), "{document}\n{error}");
        }
    }
}
