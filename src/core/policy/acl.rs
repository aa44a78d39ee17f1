//! The access list of a token: its policies compiled once, asked at every request.
//!
//! Rules for the same path are merged over all policies. For a request exactly one merged rule decides: the exact path
//! if there is one, else the most specific of the prefixes and `+` patterns that match. Nothing else is looked at, so
//! an exact rule that grants less still beats a prefix that grants more.
//!
//! A check allocates nothing unless the deciding rule limits parameters.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
    time::Duration,
};

use serde_json::{Map, Value};
use thiserror::Error;

use super::{
    capability::{Capabilities, Capability},
    pattern::{Pattern, SegmentPattern},
    prefix::PrefixTable,
    rule::{Permissions, Policy, covers},
    template::{self, TemplateIdentity},
};
use crate::core::request::Operation;

/// The capability an operation needs; help is open to every valid token.
fn needed(operation: Operation) -> Option<Capability> {
    Some(match operation {
        Operation::Create => Capability::Create,
        Operation::Read => Capability::Read,
        Operation::Update => Capability::Update,
        Operation::Delete => Capability::Delete,
        Operation::List => Capability::List,
        Operation::Scan => Capability::Scan,
        Operation::Patch => Capability::Patch,
        Operation::Help => return None,
    })
}

fn lists(operation: Operation) -> bool {
    matches!(operation, Operation::List | Operation::Scan)
}

/// Whether parameter rules hold for it. Reads are bound too: their parameters are those of the query.
fn has_parameters(operation: Operation) -> bool {
    operation.is_write() || operation == Operation::Read
}

/// The parameters of a request, read only when a rule limits them.
pub trait RequestParameters {
    /// The members of the body or query, `None` when there are none.
    fn parameters(&self) -> Result<Option<&Map<String, Value>>, UnreadableParameters>;
}

impl RequestParameters for Map<String, Value> {
    fn parameters(&self) -> Result<Option<&Map<String, Value>>, UnreadableParameters> {
        Ok(Some(self))
    }
}

/// A request without parameters.
impl RequestParameters for () {
    fn parameters(&self) -> Result<Option<&Map<String, Value>>, UnreadableParameters> {
        Ok(None)
    }
}

/// The body is not what its content type promises, so limits on it cannot be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnreadableParameters;

/// What is asked of an [`Acl`].
#[derive(Clone, Copy)]
pub struct AccessRequest<'a> {
    /// The path below `/v1/`, such as `kv/data/a`. The path of a list may end in `/`.
    pub path: &'a str,
    /// What is to be done there.
    pub operation: Operation,
    /// What was sent along.
    pub parameters: &'a dyn RequestParameters,
    /// For how long the caller wants the reply wrapped; zero counts as not at all.
    pub wrap_ttl: Option<Duration>,
}

impl fmt::Debug for AccessRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, operation, wrap_ttl, .. } = self; // parameters may hold secrets
        write!(f, "AccessRequest({operation:?} {path:?}, wrap {wrap_ttl:?})")
    }
}

/// The answer to an [`AccessRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Whether the operation is allowed. A path that needs `sudo` must look at that too.
    pub allowed: bool,
    /// Whether the caller has `sudo` here, whatever came of the operation.
    pub sudo: bool,
    /// Why it is not allowed. For logs: clients are told only that permission is denied.
    pub reason: Option<Refusal>,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// No rule covers the path.
    #[error("no policy covers this path")]
    NoRule,
    /// The deciding rule does not grant what the operation needs.
    #[error("the deciding rule does not grant this operation")]
    Capability,
    /// The rule demands a wrapped reply, for another time than was asked for.
    #[error("the deciding rule demands response wrapping within its limits")]
    Wrapping,
    /// A required parameter is missing.
    #[error("a required parameter is missing")]
    ParameterMissing,
    /// A parameter or its value is not allowed.
    #[error("a parameter or its value is not allowed")]
    ParameterForbidden,
    /// The rule limits parameters, which cannot be read.
    #[error("the parameters cannot be read")]
    ParametersUnreadable,
}

/// The compiled rules of a set of policies for one identity.
#[derive(Debug)]
pub struct Acl {
    root: bool,
    exact: HashMap<Box<str>, Permissions>,
    prefixes: PrefixTable,
    /// The most specific pattern first, so that the first match decides.
    segments: Vec<(SegmentPattern, Permissions)>,
}

impl Acl {
    /// Compiles policies for a caller without an identity: templated paths are void.
    pub fn new(policies: &[Arc<Policy>]) -> Self {
        Self::for_identity(policies, None)
    }

    /// Compiles policies for a caller. The policy `root` counts only when it is alone.
    pub fn for_identity(policies: &[Arc<Policy>], identity: Option<&TemplateIdentity>) -> Self {
        let mut exact = HashMap::<Box<str>, Permissions>::new();
        let mut prefixes = BTreeMap::<Box<str>, Permissions>::new();
        let mut segments = BTreeMap::<Box<str>, Permissions>::new();
        for rule in policies.iter().flat_map(|policy| &policy.rules) {
            let path = if rule.templated { template::fill(&rule.path, identity) } else { Some(rule.path.as_str().into()) };
            let Some(path) = path.filter(|path| Pattern::is_valid(path)) else { continue };
            let merge = |known: &mut Permissions| known.merge(&rule.permissions);
            let fresh = || rule.permissions.clone();
            match Pattern::of(&path) {
                Pattern::Exact(path) => exact.entry(path.into()).and_modify(merge).or_insert_with(fresh),
                Pattern::Prefix(path) => prefixes.entry(path.into()).and_modify(merge).or_insert_with(fresh),
                Pattern::Segments(path) => segments.entry(path.into()).and_modify(merge).or_insert_with(fresh),
            };
        }
        let mut segments: Vec<_> = segments.into_iter().map(|(path, rule)| (SegmentPattern::new(&path), rule)).collect();
        segments.sort_by(|(a, _), (b, _)| b.rank().cmp(a.rank()));
        let root = matches!(policies, [only] if only.name == "root");
        Self { root, exact, prefixes: PrefixTable::new(prefixes), segments }
    }

    /// Whether this is the list of a root token.
    pub fn is_root(&self) -> bool {
        self.root
    }

    /// Judges one request.
    pub fn check(&self, request: &AccessRequest<'_>) -> Access {
        if self.root {
            return Access { allowed: true, sudo: true, reason: None };
        }
        let Some(capability) = needed(request.operation) else {
            return Access { allowed: true, sudo: false, reason: None };
        };
        let Some(rule) = self.deciding(request.path, lists(request.operation)) else {
            return Access { allowed: false, sudo: false, reason: Some(Refusal::NoRule) };
        };
        let reason = if !rule.capabilities.has(capability) {
            Some(Refusal::Capability)
        } else if rule.is_conditional() {
            check_conditions(rule, request).err()
        } else {
            None
        };
        Access { allowed: reason.is_none(), sudo: rule.capabilities.has(Capability::Sudo), reason }
    }

    /// The names of the rights on a path, sorted: `["root"]` for a root token, `["deny"]` when there are none.
    pub fn capabilities(&self, path: &str) -> Vec<&'static str> {
        if self.root {
            return vec!["root"];
        }
        self.deciding(path, true).map_or(Capabilities::NONE, |rule| rule.capabilities).names()
    }

    /// Whether the token may do anything inside a mount, whose path ends in `/`: then it may know that the mount exists.
    pub fn sees_inside(&self, mount: &str) -> bool {
        let grants = |rule: &Permissions| rule.capabilities.grants_anything();
        self.root
            || self.deciding(mount, true).is_some_and(grants)
            || self.exact.iter().any(|(path, rule)| path.starts_with(mount) && grants(rule))
            || self.prefixes.iter().any(|(prefix, rule)| prefix.starts_with(mount) && grants(rule))
            || self.segments.iter().any(|(pattern, rule)| grants(rule) && pattern.reaches_into(mount))
    }

    /// The merged rules for exact paths.
    pub fn exact_rules(&self) -> impl Iterator<Item = (&str, &Permissions)> {
        self.exact.iter().map(|(path, rule)| (&**path, rule))
    }

    /// The merged rules for prefixes (paths without their `*`).
    pub fn prefix_rules(&self) -> impl Iterator<Item = (&str, &Permissions)> {
        self.prefixes.iter()
    }

    /// The one rule that decides about a path. A list covers `x` and `x/`, the path as asked for first.
    fn deciding(&self, path: &str, lists: bool) -> Option<&Permissions> {
        let path = path.trim_start_matches('/');
        if let Some(rule) = self.exact.get(path) {
            return Some(rule);
        }
        let folder = if lists { path.strip_suffix('/') } else { None };
        folder
            .and_then(|folder| self.exact.get(folder))
            .or_else(|| self.inexact(path))
            .or_else(|| folder.and_then(|folder| self.inexact(folder)))
    }

    fn inexact(&self, path: &str) -> Option<&Permissions> {
        let prefix = self.prefixes.longest(path);
        let Some((pattern, rule)) = self.segments.iter().find(|(pattern, _)| pattern.matches(path)) else {
            return prefix.map(|(_, rule)| rule);
        };
        match prefix {
            Some((text, prefix_rule)) if !pattern.rank().beats_prefix(text) => Some(prefix_rule),
            _ => Some(rule),
        }
    }
}

fn check_conditions(rule: &Permissions, request: &AccessRequest<'_>) -> Result<(), Refusal> {
    check_wrapping(rule, request.wrap_ttl.filter(|ttl| !ttl.is_zero()))?;
    if !has_parameters(request.operation) {
        return Ok(());
    }
    if rule.required_parameters.is_empty() && rule.denied_parameters.is_empty() && rule.allowed_parameters.is_empty() {
        return Ok(());
    }
    let sent = request.parameters.parameters().map_err(|UnreadableParameters| Refusal::ParametersUnreadable)?;
    check_parameters(rule, sent)
}

/// Either limit alone already demands wrapping. Limits that contradict each other after merging let nothing through.
fn check_wrapping(rule: &Permissions, asked: Option<Duration>) -> Result<(), Refusal> {
    let (min, max) = (rule.min_wrapping_ttl, rule.max_wrapping_ttl);
    if min.is_none() && max.is_none() {
        return Ok(());
    }
    let asked = asked.ok_or(Refusal::Wrapping)?;
    let within = min.is_none_or(|min| asked >= min) && max.is_none_or(|max| asked <= max);
    if within { Ok(()) } else { Err(Refusal::Wrapping) }
}

fn check_parameters(rule: &Permissions, sent: Option<&Map<String, Value>>) -> Result<(), Refusal> {
    let has = |name: &String| sent.is_some_and(|sent| sent.contains_key(&name.to_lowercase()));
    if !rule.required_parameters.iter().all(has) {
        return Err(Refusal::ParameterMissing);
    }
    let Some(sent) = sent.filter(|sent| !sent.is_empty()) else { return Ok(()) };
    if rule.denied_parameters.contains_key("*") {
        return Err(Refusal::ParameterForbidden);
    }
    let any_name = rule.allowed_parameters.is_empty() || rule.allowed_parameters.contains_key("*");
    for (name, value) in sent {
        let name = name.to_lowercase();
        let denied = rule.denied_parameters.get(&name).is_some_and(|values| covers(values, value));
        let allowed = rule.allowed_parameters.get(&name).map_or(any_name, |values| covers(values, value));
        if denied || !allowed {
            return Err(Refusal::ParameterForbidden);
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "acl_tests.rs"]
mod tests;
