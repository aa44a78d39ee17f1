//! The merged rules of a token, as `sys/internal/ui/resultant-acl` shows them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    acl::Acl,
    rule::{ParameterRules, Permissions},
};

/// `{"root":false,"exact_paths":{…},"glob_paths":{…}}`; a root token has no paths. Rules with `+` segments are left
/// out, as in Vault.
#[derive(Debug, Serialize)]
pub struct ResultantAcl<'a> {
    root: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    exact_paths: Option<BTreeMap<&'a str, ResultantRule<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    glob_paths: Option<BTreeMap<&'a str, ResultantRule<'a>>>,
}

/// One merged rule.
#[derive(Debug, Serialize)]
struct ResultantRule<'a> {
    capabilities: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_wrapping_ttl: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_wrapping_ttl: Option<u64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    allowed_parameters: &'a ParameterRules,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    denied_parameters: &'a ParameterRules,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    required_parameters: &'a [String],
}

impl<'a> ResultantAcl<'a> {
    /// The rules of an access list.
    pub fn of(acl: &'a Acl) -> Self {
        if acl.is_root() {
            return Self { root: true, exact_paths: None, glob_paths: None };
        }
        Self {
            root: false,
            exact_paths: Some(acl.exact_rules().map(|(path, rule)| (path, ResultantRule::of(rule))).collect()),
            glob_paths: Some(acl.prefix_rules().map(|(path, rule)| (path, ResultantRule::of(rule))).collect()),
        }
    }
}

impl<'a> ResultantRule<'a> {
    fn of(rule: &'a Permissions) -> Self {
        Self {
            capabilities: rule.capabilities.names(),
            min_wrapping_ttl: rule.min_wrapping_ttl.map(|ttl| ttl.as_secs()),
            max_wrapping_ttl: rule.max_wrapping_ttl.map(|ttl| ttl.as_secs()),
            allowed_parameters: &rule.allowed_parameters,
            denied_parameters: &rule.denied_parameters,
            required_parameters: &rule.required_parameters,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::core::policy::{Policy, parse};

    #[test]
    fn merged_rules_are_shown() {
        let documents = [
            r#"path "one/a" { capabilities = ["read", "update"] } path "one/b/*" { capabilities = ["list"] }
               path "two/*" { policy = "deny" } path "one/+/c" { policy = "read" }"#,
            r#"path "one/a" { capabilities = ["create"] }
               path "w" { capabilities = ["read"] min_wrapping_ttl = "1m" max_wrapping_ttl = "1h"
                 allowed_parameters = { a = [] n = [1, "x", true] } required_parameters = ["a"] }"#,
        ];
        let policies = documents.map(|document| Arc::new(parse("p", document).unwrap()));
        let acl = Acl::new(&policies);
        assert_eq!(
            serde_json::to_value(ResultantAcl::of(&acl)).unwrap(),
            json!({
                "root": false,
                "exact_paths": {
                    "one/a": {"capabilities": ["create", "read", "update"]},
                    "w": {
                        "capabilities": ["read"],
                        "min_wrapping_ttl": 60,
                        "max_wrapping_ttl": 3600,
                        "allowed_parameters": {"a": [], "n": [1, "x", true]},
                        "required_parameters": ["a"],
                    },
                },
                "glob_paths": {"one/b/": {"capabilities": ["list"]}, "two/": {"capabilities": ["deny"]}},
            })
        );
        let root = Acl::new(&[Arc::new(Policy::root())]);
        assert_eq!(serde_json::to_value(ResultantAcl::of(&root)).unwrap(), json!({"root": true}));
    }
}
