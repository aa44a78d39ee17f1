//! The rules of recorded conversations as tables, and the matcher against a model that looks at every rule.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::core::policy::{
    parse::parse,
    template::{TemplateAlias, TemplateGroup},
};

fn acl(documents: &[&str]) -> Acl {
    Acl::new(&policies(documents))
}

fn policies(documents: &[&str]) -> Vec<Arc<Policy>> {
    documents.iter().enumerate().map(|(index, text)| Arc::new(parse(&format!("p{index}"), text).unwrap())).collect()
}

fn ask(acl: &Acl, operation: Operation, path: &str, body: Value, wrap: Option<u64>) -> Access {
    let parameters = body.as_object().cloned().unwrap_or_default();
    let wrap_ttl = wrap.map(Duration::from_secs);
    acl.check(&AccessRequest { path, operation, parameters: &parameters, wrap_ttl })
}

fn may(acl: &Acl, operation: Operation, path: &str) -> bool {
    ask(acl, operation, path, Value::Null, None).allowed
}

fn capabilities(acl: &Acl, expected: &[(&str, &[&str])]) {
    for (path, names) in expected {
        assert_eq!(acl.capabilities(path), *names, "{path}");
    }
}

const ALL: &[&str] = &["create", "delete", "list", "read", "update"];

#[test]
fn an_exact_path_beats_prefixes() {
    let acl = acl(&[r#"
        path "kv/*" { policy = "write" }
        path "kv/team/*" { policy = "read" }
        path "kv/team/secret" { capabilities = ["list"] }
        path "kv/team/x*" { capabilities = ["read"] }"#]);
    capabilities(
        &acl,
        &[
            ("kv/a", ALL),
            ("kv/team/a", &["list", "read"]),
            ("kv/team/secret", &["list"]),
            ("kv/team/secrets", &["list", "read"]),
            ("kv/team/secret/x", &["list", "read"]),
            ("kv/team/xa", &["read"]),
            ("kv/team/x", &["read"]),
            ("kv/team", ALL),
            ("other", &["deny"]),
        ],
    );
    assert!(!may(&acl, Operation::Read, "kv/team/secret"));
    assert!(!may(&acl, Operation::Update, "kv/team/a"));
    assert!(may(&acl, Operation::Update, "kv/a"));
}

#[test]
fn deny_takes_away_only_where_it_stands() {
    let acl = acl(&[r#"
        path "kv/*" { policy = "write" }
        path "kv/no/*" { capabilities = ["deny"] }
        path "kv/no/but/*" { capabilities = ["read"] }"#]);
    capabilities(
        &acl,
        &[("kv/yes", ALL), ("kv/no/a", &["deny"]), ("kv/no", ALL), ("kv/no/but/this", &["read"]), ("kv/nothing", ALL)],
    );
    assert!(may(&acl, Operation::Update, "kv/no"));
    assert!(!may(&acl, Operation::List, "kv/no/"));
    assert!(may(&acl, Operation::List, "kv/"));
}

#[test]
fn the_same_path_in_several_places_adds_up() {
    capabilities(
        &acl(&[r#"
            path "kv/x" { capabilities = ["read"] }
            path "kv/x" { capabilities = ["update"] }
            path "kv/d" { capabilities = ["deny", "read"] }
            path "kv/e*" { capabilities = ["read"] }
            path "kv/e*" { capabilities = ["list"] }"#]),
        &[("kv/x", &["read", "update"]), ("kv/d", &["deny"]), ("kv/ee", &["list", "read"])],
    );
    capabilities(
        &acl(&[
            r#"path "x" { capabilities = ["read"] } path "y" { capabilities = ["read"] } path "z/*" { capabilities = ["list"] }"#,
            r#"path "x" { capabilities = ["update", "sudo"] } path "y" { policy = "deny" } path "z/*" { capabilities = ["read"] }"#,
            r#"path "y" { capabilities = ["read"] }"#,
        ]),
        &[("x", &["read", "sudo", "update"]), ("y", &["deny"]), ("z/q", &["list", "read"])],
    );
}

#[test]
fn lists_cover_the_path_with_and_without_slash() {
    for (document, list, read) in [
        (r#"path "kv/d/" { capabilities = ["list"] }"#, true, false),
        (r#"path "kv/d" { capabilities = ["list"] }"#, true, false),
        (r#"path "kv/d/*" { capabilities = ["read"] }"#, false, true),
        (r#"path "kv/d*" { capabilities = ["list"] }"#, true, false),
    ] {
        let acl = acl(&[document]);
        assert_eq!(may(&acl, Operation::List, "kv/d/"), list, "{document}");
        assert_eq!(may(&acl, Operation::Read, "kv/d/a"), read, "{document}");
    }
    for (document, allowed) in [
        (r#"path "kv/+/" { capabilities = ["list"] }"#, ["kv/a/"].as_slice()),
        (r#"path "kv/+" { capabilities = ["list", "read"] }"#, &["kv/a/", "kv/"]),
        (r#"path "kv/+/+/" { capabilities = ["list"] }"#, &["kv/a/c/"]),
    ] {
        let acl = acl(&[document]);
        for path in ["kv/", "kv/a/", "kv/a/c/"] {
            assert_eq!(may(&acl, Operation::List, path), allowed.contains(&path), "{document} {path}");
        }
    }
}

#[test]
fn leading_slashes_are_dropped() {
    capabilities(
        &acl(&[r#"
            path "/kv/a" { capabilities = ["read"] }
            path "kv/b/" { capabilities = ["read"] }
            path "*" { capabilities = ["list"] }"#]),
        &[("kv/a", &["read"]), ("/kv/a", &["read"]), ("kv/b", &["list"]), ("kv/b/", &["read"]), ("elsewhere", &["list"])],
    );
}

#[test]
fn the_more_specific_wildcard_decides() {
    capabilities(
        &acl(&[r#"
            path "kv/*" { capabilities = ["list"] }
            path "kv/+/b/c" { capabilities = ["read"] }
            path "kv/a/+/c" { capabilities = ["update"] }
            path "kv/a/b/*" { capabilities = ["delete"] }
            path "kv/+/+/d" { capabilities = ["create"] }
            path "kv/x/+/*" { capabilities = ["patch"] }
            path "kv/x/+/y" { capabilities = ["sudo"] }
            path "kv/x/z/y" { capabilities = ["deny"] }"#]),
        &[
            ("kv/a/b/c", &["delete"]),
            ("kv/q/b/c", &["read"]),
            ("kv/a/q/c", &["update"]),
            ("kv/a/b/d", &["delete"]),
            ("kv/q/q/d", &["create"]),
            ("kv/q", &["list"]),
            ("kv/x/q/q", &["patch"]),
            ("kv/x/q/y", &["sudo"]),
            ("kv/x/z/y", &["deny"]),
            ("kv/x/z/q", &["patch"]),
        ],
    );
    let team = r#"path "kv/team/*" { policy = "write" }"#;
    let secret = r#"path "kv/+/secret" { policy = "deny" } path "kv/team/pub/*" { capabilities = ["read"] }"#;
    capabilities(&acl(&[secret]), &[("kv/team/secret", &["deny"]), ("kv/team/pub/x", &["read"]), ("kv/team/other", &["deny"])]);
    capabilities(
        &acl(&[team, secret]),
        &[("kv/team/secret", ALL), ("kv/team/pub/x", &["read"]), ("kv/team/other", ALL), ("kv/else/secret", &["deny"])],
    );
}

#[test]
fn parameters_are_limited() {
    let acl = acl(&[r#"
        path "allow" { policy = "write" allowed_parameters = { any = [] env = ["dev", "prod-*", "*-test"] n = [1] } }
        path "star" { policy = "write" allowed_parameters = { "*" = [] env = ["dev"] } }
        path "deny" { policy = "write" denied_parameters = { secret = [] env = ["prod*"] } }
        path "none" { policy = "write" denied_parameters = { "*" = [] } }
        path "both" { policy = "write" allowed_parameters = { env = ["prod", "dev"] } denied_parameters = { env = ["prod"] } }
        path "need" { policy = "write" required_parameters = ["Owner", "team"] }"#]);
    for (path, body, allowed) in [
        ("allow", json!({"any": "thing"}), true),
        ("allow", json!({"ANY": 9}), true),
        ("allow", json!({"env": "dev"}), true),
        ("allow", json!({"env": "prod-eu"}), true),
        ("allow", json!({"env": "my-test"}), true),
        ("allow", json!({"env": "staging"}), false),
        ("allow", json!({"env": ["dev"]}), false),
        ("allow", json!({"other": "x"}), false),
        ("allow", json!({"any": "x", "other": "x"}), false),
        ("allow", json!({"n": 1}), false),
        ("allow", json!({}), true),
        ("star", json!({"whatever": "x", "env": "dev"}), true),
        ("star", json!({"env": "prod"}), false),
        ("deny", json!({"x": "y"}), true),
        ("deny", json!({"SECRET": "y"}), false),
        ("deny", json!({"env": "dev"}), true),
        ("deny", json!({"env": "production"}), false),
        ("none", json!({"x": "y"}), false),
        ("none", json!({}), true),
        ("both", json!({"env": "dev"}), true),
        ("both", json!({"env": "prod"}), false),
        ("need", json!({"owner": "x"}), false),
        ("need", json!({"owner": "x", "team": "y"}), true),
        ("need", json!({"owner": "x", "team": "y", "more": "z"}), true),
        ("need", json!({}), false),
    ] {
        assert_eq!(ask(&acl, Operation::Create, path, body.clone(), None).allowed, allowed, "{path} {body}");
    }
    assert!(!may(&acl, Operation::Read, "need"), "reads are held to required parameters too");
    assert!(may(&acl, Operation::Delete, "need"));
    assert!(may(&acl, Operation::List, "need"));
}

#[test]
fn parameters_of_several_policies_are_joined_and_not_lifted() {
    let dev = r#"path "kv/*" { policy = "write" allowed_parameters = { env = ["dev"] } }"#;
    let prod = r#"path "kv/*" { policy = "write" allowed_parameters = { env = ["prod"] x = [] } }"#;
    let free = r#"path "kv/*" { policy = "write" }"#;
    let joined = acl(&[dev, prod]);
    let held = acl(&[dev, free]);
    for (acl, body, allowed) in [
        (&joined, json!({"env": "dev"}), true),
        (&joined, json!({"env": "prod", "x": "y"}), true),
        (&joined, json!({"env": "else"}), false),
        (&joined, json!({"y": "z"}), false),
        (&held, json!({"y": "z"}), false),
    ] {
        assert_eq!(ask(acl, Operation::Update, "kv/a", body.clone(), None).allowed, allowed, "{body}");
    }
}

struct Broken;

impl RequestParameters for Broken {
    fn parameters(&self) -> Result<Option<&Map<String, Value>>, UnreadableParameters> {
        Err(UnreadableParameters)
    }
}

#[test]
fn parameters_are_read_only_when_a_rule_limits_them() {
    let acl = acl(&[r#"
        path "free" { capabilities = ["update"] }
        path "bound" { capabilities = ["update"] denied_parameters = { x = [] } }"#]);
    let ask = |path| acl.check(&AccessRequest { path, operation: Operation::Update, parameters: &Broken, wrap_ttl: None });
    assert!(ask("free").allowed);
    assert_eq!(ask("bound").reason, Some(Refusal::ParametersUnreadable));
}

#[test]
fn wrapping_is_demanded_within_limits() {
    let acl = acl(&[r#"
        path "min" { capabilities = ["read"] min_wrapping_ttl = "1m" }
        path "max" { capabilities = ["read"] max_wrapping_ttl = "90s" }
        path "both" { capabilities = ["read"] min_wrapping_ttl = "1m" max_wrapping_ttl = "90s" }
        path "never" { capabilities = ["read"] min_wrapping_ttl = "1h" }
        path "never" { capabilities = ["read"] max_wrapping_ttl = "1m" }"#]);
    for (path, wrap, allowed) in [
        ("min", None, false),
        ("min", Some(0), false),
        ("min", Some(59), false),
        ("min", Some(60), true),
        ("min", Some(7200), true),
        ("max", None, false),
        ("max", Some(0), false),
        ("max", Some(1), true),
        ("max", Some(90), true),
        ("max", Some(91), false),
        ("both", Some(30), false),
        ("both", Some(75), true),
        ("both", Some(100), false),
        ("never", Some(60), false),
        ("never", Some(3600), false),
    ] {
        let access = ask(&acl, Operation::Read, path, Value::Null, wrap);
        assert_eq!(access.allowed, allowed, "{path} {wrap:?}");
        assert_eq!(access.reason, if allowed { None } else { Some(Refusal::Wrapping) }, "{path} {wrap:?}");
    }
}

#[test]
fn sudo_is_told_apart_from_the_operation() {
    let acl = acl(&[r#"
        path "n" { capabilities = ["read"] }
        path "s" { capabilities = ["read", "sudo"] }
        path "o" { capabilities = ["sudo"] }"#]);
    for (path, allowed, sudo) in [("n", true, false), ("s", true, true), ("o", false, true)] {
        let access = ask(&acl, Operation::Read, path, Value::Null, None);
        assert_eq!((access.allowed, access.sudo), (allowed, sudo), "{path}");
    }
}

#[test]
fn operations_need_their_capability() {
    use Operation::*;
    for (operation, capability) in [
        (Create, "create"),
        (Read, "read"),
        (Update, "update"),
        (Delete, "delete"),
        (List, "list"),
        (Scan, "scan"),
        (Patch, "patch"),
    ] {
        for granted in ["create", "read", "update", "delete", "list", "scan", "patch", "sudo", "deny"] {
            let acl = acl(&[&format!("path \"a\" {{ capabilities = [\"{granted}\"] }}")]);
            assert_eq!(may(&acl, operation, "a"), granted == capability, "{operation:?} {granted}");
        }
    }
    assert!(may(&acl(&[]), Help, "anything"));
}

#[test]
fn root_counts_only_alone() {
    let root = Arc::new(Policy::root());
    let alone = Acl::new(std::slice::from_ref(&root));
    assert!(alone.is_root() && may(&alone, Operation::Delete, "sys/mounts/x"));
    assert_eq!(alone.capabilities("any/thing"), ["root"]);
    assert!(alone.sees_inside("kv/"));

    let mut together = policies(&[r#"path "a" { policy = "read" }"#]);
    together.push(root);
    let together = Acl::new(&together);
    assert!(!together.is_root() && !may(&together, Operation::Read, "b"));
}

#[test]
fn mounts_are_seen_when_something_inside_is_granted() {
    for (document, sees) in [
        (r#"path "kv/data/a" { capabilities = ["read"] }"#, true),
        (r#"path "kv/data/*" { capabilities = ["sudo"] }"#, true),
        (r#"path "k*" { capabilities = ["read"] }"#, true),
        (r#"path "+/data/a" { capabilities = ["read"] }"#, true),
        (r#"path "kv" { capabilities = ["list"] }"#, true),
        (r#"path "kv/data/a" { capabilities = ["deny"] }"#, false),
        (r#"path "kv/data/a" { capabilities = [] }"#, false),
        (r#"path "kvx/*" { capabilities = ["read"] }"#, false),
        (r#"path "*" { capabilities = ["read"] } path "kv/*" { policy = "deny" }"#, false),
        (r#"path "kv/*" { policy = "deny" } path "kv/a/*" { policy = "read" }"#, true),
        ("", false),
    ] {
        assert_eq!(acl(&[document]).sees_inside("kv/"), sees, "{document}");
    }
}

#[test]
fn templated_paths_follow_the_identity() {
    let document = r#"
        path "kv/name/{{identity.entity.name}}/*" { capabilities = ["read"] }
        path "kv/alias/{{identity.entity.aliases.acc.name}}" { capabilities = ["delete"] }
        path "kv/g/{{identity.groups.names.ops.id}}" { capabilities = ["update"] }
        path "kv/none/{{identity.entity.metadata.nothing}}/x" { capabilities = ["read"] }
        path "kv/plain" { capabilities = ["read"] }"#;
    let identity = TemplateIdentity {
        name: "ann".into(),
        aliases: [("acc".into(), TemplateAlias { name: "ann-up".into(), ..Default::default() })].into(),
        groups: vec![TemplateGroup { id: "g1".into(), name: "ops".into(), ..Default::default() }],
        ..Default::default()
    };
    let known = Acl::for_identity(&policies(&[document]), Some(&identity));
    capabilities(
        &known,
        &[
            ("kv/name/ann/x", &["read"]),
            ("kv/name/bob/x", &["deny"]),
            ("kv/alias/ann-up", &["delete"]),
            ("kv/g/g1", &["update"]),
            ("kv/none//x", &["deny"]),
            ("kv/plain", &["read"]),
        ],
    );
    let unknown = acl(&[document]);
    capabilities(&unknown, &[("kv/plain", &["read"]), ("kv/name//x", &["deny"]), ("kv/name/ann/x", &["deny"])]);
    capabilities(&unknown, &[("kv/name/{{identity.entity.name}}/x", &["deny"])]);
}

/// Looks at every rule, as the documentation describes the choice: exact first, else the highest priority.
fn model(rules: &[(String, u8)], path: &str, lists: bool) -> Option<Capabilities> {
    let mut merged = BTreeMap::<&str, Capabilities>::new();
    for (path, which) in rules {
        let granted = Capabilities::NONE.with(ONE_OF[usize::from(*which) % ONE_OF.len()]);
        merged.entry(path).and_modify(|known| *known = known.union(granted)).or_insert(granted);
    }
    let folder = path.strip_suffix('/').filter(|_| lists);
    let exact = |wanted: &str| merged.get(wanted).filter(|_| !wanted.contains(['+', '*'])).copied();
    let best = |wanted: &str| {
        let matching = merged.iter().filter(|(rule, _)| (rule.contains('+') || rule.ends_with('*')) && covers_path(rule, wanted));
        matching
            .max_by_key(|(rule, _)| {
                let first = rule.find(['+', '*']).unwrap_or(rule.len());
                let segments = rule.split('/').filter(|segment| *segment == "+").count();
                (first, !rule.ends_with('*'), std::cmp::Reverse(segments), rule.len(), rule.to_string())
            })
            .map(|(_, capabilities)| *capabilities)
    };
    exact(path).or_else(|| folder.and_then(exact)).or_else(|| best(path)).or_else(|| folder.and_then(best))
}

const ONE_OF: [Capability; 5] = [Capability::Read, Capability::List, Capability::Update, Capability::Sudo, Capability::Deny];

/// Character by character: `+` eats up to the next slash, a `*` at the end eats everything.
fn covers_path(rule: &str, path: &str) -> bool {
    match rule.chars().next() {
        None => path.is_empty(),
        Some('*') if rule.len() == 1 => true,
        Some('+') => covers_path(&rule[1..], &path[path.find('/').unwrap_or(path.len())..]),
        Some(first) => path.strip_prefix(first).is_some_and(|rest| covers_path(&rule[first.len_utf8()..], rest)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_model(
        rules in prop::collection::vec(("(a|b|ab|\\+)(/(a|b|ab|\\+)){0,3}(/|/\\*)?", 0u8..5), 0..10),
        more in prop::collection::vec(("(a|b|ab)(/(a|b|ab)){0,3}\\*?", 0u8..5), 0..6),
        path in "(a|b|ab)(/(a|b|ab)){0,3}/?",
    ) {
        let rules: Vec<(String, u8)> = rules.into_iter().chain(more).collect();
        let document: String = rules
            .iter()
            .map(|(path, which)| {
                let name = Capabilities::NONE.with(ONE_OF[usize::from(*which)]).names()[0];
                format!("path \"{path}\" {{ capabilities = [\"{name}\"] }}\n")
            })
            .collect();
        let acl = acl(&[&document]);
        for lists in [false, true] {
            let found = acl.deciding(&path, lists).map(|rule| rule.capabilities);
            prop_assert_eq!(found, model(&rules, &path, lists), "{}\n{} {}", document, path, lists);
        }
    }

    #[test]
    fn parsing_never_panics(document in "(path|name|\"|\\{|\\}|=|\\[|\\]|,|a|/|\\+|\\*|1|\n| |deny|capabilities){0,40}") {
        let _ = parse("p", &document);
    }
}
