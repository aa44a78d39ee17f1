//! Whole requests against random policies, compared with a model that follows Vault's documentation rule by rule.
//!
//! The model shares no code with the access list: it keeps the rules as they were written, looks at all of them for every
//! request, and knows nothing of tables, ranks or merged rules.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{AccessRequest, Acl, parse::parse};
use crate::core::request::Operation;

const CAPABILITIES: [&str; 9] = ["create", "read", "update", "delete", "list", "scan", "patch", "sudo", "deny"];
const OPERATIONS: [(Operation, &str); 7] = [
    (Operation::Create, "create"),
    (Operation::Read, "read"),
    (Operation::Update, "update"),
    (Operation::Delete, "delete"),
    (Operation::List, "list"),
    (Operation::Scan, "scan"),
    (Operation::Patch, "patch"),
];

/// Parameter names with the values that a rule lists; none means any.
type Limits = Vec<(String, Vec<String>)>;

/// One `path` block as written.
#[derive(Clone, Debug)]
struct Rule {
    path: String,
    capabilities: Vec<&'static str>,
    allowed: Limits,
    denied: Limits,
    required: Vec<String>,
    min_wrap: Option<u64>,
    max_wrap: Option<u64>,
}

impl Rule {
    fn text(&self) -> String {
        let quoted = |items: &[String]| items.iter().map(|item| format!("{item:?}")).collect::<Vec<_>>().join(", ");
        let limits = |name: &str, limits: &Limits| {
            let members: Vec<_> = limits.iter().map(|(name, values)| format!("{name:?} = [{}]", quoted(values))).collect();
            if limits.is_empty() { String::new() } else { format!("  {name} = {{\n {}\n }}\n", members.join("\n ")) }
        };
        let mut text = format!("path {:?} {{\n  capabilities = {:?}\n", self.path, self.capabilities);
        text += &limits("allowed_parameters", &self.allowed);
        text += &limits("denied_parameters", &self.denied);
        if !self.required.is_empty() {
            text += &format!("  required_parameters = [{}]\n", quoted(&self.required));
        }
        for (name, seconds) in [("min_wrapping_ttl", self.min_wrap), ("max_wrapping_ttl", self.max_wrap)] {
            text += &seconds.map_or_else(String::new, |seconds| format!("  {name} = \"{seconds}s\"\n"));
        }
        text + "}\n"
    }
}

#[derive(Clone, Debug)]
struct Asked {
    path: String,
    operation: usize,
    sent: Map<String, Value>,
    wrap: Option<u64>,
}

/// Whether the request is allowed, and whether its path has `sudo`.
fn model(rules: &[Rule], asked: &Asked) -> (bool, bool) {
    let (operation, capability) = OPERATIONS[asked.operation];
    let Some(path) = deciding_path(rules, asked) else { return (false, false) };
    let deciding: Vec<&Rule> = rules.iter().filter(|rule| rule.path == path).collect();
    let granted: BTreeSet<&str> = deciding.iter().flat_map(|rule| rule.capabilities.iter().copied()).collect();
    if granted.contains("deny") {
        return (false, false);
    }
    let reads_or_writes = !matches!(operation, Operation::Delete | Operation::List | Operation::Scan);
    let allowed = granted.contains(capability)
        && wrapping_fits(&deciding, asked.wrap)
        && (!reads_or_writes || parameters_fit(&deciding, &asked.sent));
    (allowed, granted.contains("sudo"))
}

/// The path that decides: the request's own if a rule has it, else the one of highest priority among those that match.
fn deciding_path(rules: &[Rule], asked: &Asked) -> Option<String> {
    let mut forms = vec![asked.path.as_str()];
    if matches!(OPERATIONS[asked.operation].0, Operation::List | Operation::Scan) {
        forms.extend(asked.path.strip_suffix('/'));
    }
    let is_pattern = |path: &str| path.split('/').any(|segment| segment == "+") || path.ends_with('*');
    let exact = forms.iter().find(|form| rules.iter().any(|rule| rule.path == **form && !is_pattern(&rule.path)));
    if let Some(form) = exact {
        return Some((*form).to_owned());
    }
    forms.iter().find_map(|form| {
        let matching = rules.iter().map(|rule| rule.path.as_str()).filter(|rule| is_pattern(rule) && matches(rule, form));
        matching.reduce(|one, other| if lower(one, other) { other } else { one }).map(str::to_owned)
    })
}

/// Vault's list of what makes `P1` of lower priority than `P2`, in its order.
fn lower(p1: &str, p2: &str) -> bool {
    let wildcard = |path: &str| path.find(['+', '*']).unwrap_or(usize::MAX);
    let plus = |path: &str| path.split('/').filter(|segment| *segment == "+").count();
    if wildcard(p1) != wildcard(p2) {
        return wildcard(p1) < wildcard(p2);
    }
    if p1.ends_with('*') != p2.ends_with('*') {
        return p1.ends_with('*');
    }
    if plus(p1) != plus(p2) {
        return plus(p1) > plus(p2);
    }
    if p1.len() != p2.len() {
        return p1.len() < p2.len();
    }
    p1 < p2
}

/// Tries every number of characters that a wildcard could stand for.
fn matches(rule: &str, path: &str) -> bool {
    if rule == "*" {
        return true;
    }
    match (rule.strip_prefix('+'), rule.chars().next()) {
        (Some(rest), _) => (0..=path.len()).any(|count| !path[..count].contains('/') && matches(rest, &path[count..])),
        (None, Some(first)) => path.strip_prefix(first).is_some_and(|path| matches(&rule[first.len_utf8()..], path)),
        (None, None) => path.is_empty(),
    }
}

fn wrapping_fits(rules: &[&Rule], asked: Option<u64>) -> bool {
    let least = rules.iter().filter_map(|rule| rule.min_wrap).min();
    let most = rules.iter().filter_map(|rule| rule.max_wrap).min();
    match asked.filter(|seconds| *seconds > 0) {
        None => least.is_none() && most.is_none(),
        Some(seconds) => least.is_none_or(|least| seconds >= least) && most.is_none_or(|most| seconds <= most),
    }
}

fn parameters_fit(rules: &[&Rule], sent: &Map<String, Value>) -> bool {
    let names: BTreeSet<String> = sent.keys().map(|name| name.to_lowercase()).collect();
    if rules.iter().flat_map(|rule| &rule.required).any(|name| !names.contains(&name.to_lowercase())) {
        return false;
    }
    // All that any rule for the path lists of a name; a list without values stands for every value.
    let listed = |limits: fn(&Rule) -> &Limits, name: &str| -> Option<Vec<String>> {
        let lists: Vec<&Vec<String>> = rules
            .iter()
            .flat_map(|rule| limits(rule))
            .filter(|(known, _)| known.to_lowercase() == name)
            .map(|(_, values)| values)
            .collect();
        if lists.iter().any(|values| values.is_empty()) {
            return Some(Vec::new());
        }
        (!lists.is_empty()).then(|| lists.into_iter().flatten().cloned().collect())
    };
    let limited = rules.iter().any(|rule| !rule.allowed.is_empty());
    let covers =
        |values: &Vec<String>, value: &Value| values.is_empty() || values.iter().any(|listed| value_matches(listed, value));
    sent.iter().all(|(name, value)| {
        let name = name.to_lowercase();
        if listed(|rule| &rule.denied, "*").is_some() {
            return false;
        }
        if listed(|rule| &rule.denied, &name).is_some_and(|values| covers(&values, value)) {
            return false;
        }
        match listed(|rule| &rule.allowed, &name) {
            Some(values) => covers(&values, value),
            None => !limited || listed(|rule| &rule.allowed, "*").is_some(),
        }
    })
}

/// Listed texts have `*` at their ends only and match texts only.
fn value_matches(listed: &str, value: &Value) -> bool {
    let Value::String(text) = value else { return false };
    if listed == "*" {
        return text == "*";
    }
    let (open_start, open_end) = (listed.starts_with('*'), listed.ends_with('*'));
    let inner = &listed[usize::from(open_start)..listed.len() - usize::from(open_end)];
    (0..=text.len()).any(|start| {
        text[start..].starts_with(inner) && (open_start || start == 0) && (open_end || start + inner.len() == text.len())
    })
}

fn paths() -> impl Strategy<Value = String> {
    prop_oneof!["(a|b|ab)(/(a|b|ab)){0,2}(/|\\*|/\\*)?", "(a|b|ab|\\+)(/(a|b|ab|\\+)){0,2}(/|/\\*)?", Just("*".to_owned())]
}

fn limits() -> impl Strategy<Value = Limits> {
    let values =
        prop::collection::vec(prop::sample::select(vec!["x", "xy", "x*", "*y", "*xy*", "*"]).prop_map(str::to_owned), 0..3);
    let names = prop::sample::select(vec!["p", "Q", "r", "*"]).prop_map(str::to_owned);
    prop::collection::btree_map(names, values, 0..3).prop_map(|limits| limits.into_iter().collect())
}

fn rules() -> impl Strategy<Value = Rule> {
    let capabilities = prop::collection::vec(prop::sample::select(CAPABILITIES[..8].to_vec()), 0..5);
    let capabilities = prop_oneof![9 => capabilities, 1 => Just(vec!["deny"])];
    let sometimes = |strategy: BoxedStrategy<Limits>| prop_oneof![2 => Just(Limits::new()), 1 => strategy];
    let required = prop::sample::subsequence(vec!["p".to_owned(), "Q".to_owned()], 0..=2);
    let required = prop_oneof![4 => Just(Vec::new()), 1 => required];
    let wrap = || prop_oneof![6 => Just(None), 1 => (1..5_u64).prop_map(Some)];
    (paths(), capabilities, sometimes(limits().boxed()), sometimes(limits().boxed()), required, wrap(), wrap()).prop_map(
        |(path, capabilities, allowed, denied, required, min_wrap, max_wrap)| {
            // In one block Vault refuses bounds that contradict each other; several blocks may.
            let max_wrap = max_wrap.map(|max| max.max(min_wrap.unwrap_or(0)));
            Rule { path, capabilities, allowed, denied, required, min_wrap, max_wrap }
        },
    )
}

fn requests() -> impl Strategy<Value = Asked> {
    let value = prop::sample::select(vec![
        json!("x"),
        json!("xy"),
        json!("axyb"),
        json!("*"),
        json!(""),
        json!(1),
        json!(true),
        json!(["x"]),
    ]);
    let sent = prop::collection::btree_map(prop::sample::select(vec!["p", "q", "R", "s"]), value, 0..3);
    let wrap = prop_oneof![2 => Just(None), 1 => (0..6_u64).prop_map(Some)];
    ("(a|b|ab)(/(a|b|ab)){0,2}/?", 0..OPERATIONS.len(), sent, wrap).prop_map(|(path, operation, sent, wrap)| {
        let sent = sent.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Asked { path, operation, sent, wrap }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn requests_are_judged_as_the_model_says(
        documents in prop::collection::vec(prop::collection::vec(rules(), 0..5), 1..4),
        requests in prop::collection::vec(requests(), 1..12),
    ) {
        let texts: Vec<String> = documents.iter().map(|rules| rules.iter().map(Rule::text).collect()).collect();
        let policies: Vec<_> = texts.iter().map(|text| Arc::new(parse("p", text).unwrap())).collect();
        let acl = Acl::new(&policies);
        let rules: Vec<Rule> = documents.into_iter().flatten().collect();
        for asked in &requests {
            let found = acl.check(&AccessRequest {
                path: &asked.path,
                operation: OPERATIONS[asked.operation].0,
                parameters: &asked.sent,
                wrap_ttl: asked.wrap.map(Duration::from_secs),
            });
            prop_assert_eq!((found.allowed, found.sudo), model(&rules, asked), "{}\n{:?}", texts.join("---\n"), asked);
        }
    }
}
