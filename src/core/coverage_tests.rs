//! Every route of the route tables, asked without a token, with a token of no rights, while sealed, and audited.
//!
//! The tables name the routes, so that a route that is added later is asked too, and a failure names it.

use std::sync::Arc;

use super::{
    Core,
    mount_table::new_entry,
    mounts::Table,
    request::{Operation, Request},
    route::{Access, RouteInfo, Verb},
    testing::unsealed_core,
    tokens::TokenSpec,
};
use crate::{audit::DeviceRecord, secret::SecretString};

/// One operation of one route on a path that leads to it.
struct Probe {
    path: String,
    operation: Operation,
    access: Access,
}

impl Probe {
    fn request(&self, token: Option<&SecretString>) -> Request {
        let mut request = Request::internal(self.operation, &self.path, "");
        request.token = token.map(SecretString::duplicate);
        request
    }
}

fn sample(pattern: &str) -> String {
    let mut path = String::new();
    let mut rest = pattern.strip_suffix("/?").unwrap_or(pattern);
    while let Some((text, after)) = rest.split_once('{') {
        let (_, after) = after.split_once('}').unwrap();
        path.push_str(text);
        path.push('x');
        rest = after;
    }
    path + rest
}

fn operation(verb: Verb) -> Operation {
    match verb {
        Verb::Read => Operation::Read,
        Verb::Write => Operation::Update,
        Verb::Patch => Operation::Patch,
        Verb::Delete => Operation::Delete,
        Verb::List => Operation::List,
        Verb::Scan => Operation::Scan,
    }
}

fn probes_of(prefix: &str, routes: Vec<RouteInfo>) -> Vec<Probe> {
    let mut probes = Vec::new();
    for route in routes {
        for pattern in route.patterns {
            for (verb, _, _) in &route.operations {
                let operation = operation(*verb);
                let mut path = format!("{prefix}{}", sample(pattern));
                if matches!(operation, Operation::List | Operation::Scan) && !path.ends_with('/') {
                    path.push('/');
                }
                // Writes to folders are refused before anything else is looked at.
                if !(operation.is_write() && path.ends_with('/')) {
                    probes.push(Probe { path, operation, access: route.access });
                }
            }
        }
    }
    probes
}

/// A core with one mount of every kind, and all that can be asked of it.
async fn everything() -> (Arc<Core>, Vec<Probe>) {
    let core = unsealed_core().await;
    let active = core.active().unwrap();
    for (path, kind, version) in [("kv1/", "kv", "1"), ("kv2/", "kv", "2"), ("transit/", "transit", "")] {
        let mut entry = new_entry(Table::Secret, path, kind);
        if !version.is_empty() {
            entry.options.insert("version".into(), version.into());
        }
        active.mounts.mount(&core, entry).await.unwrap();
    }
    let mut probes = Vec::new();
    for mounted in active.router.all() {
        probes.extend(probes_of(&mounted.entry.full_path(), mounted.engine.describe()));
    }
    assert!(probes.len() > 150, "only {} operations were found", probes.len());
    // A pattern can stand behind an earlier one that takes its sample: who may call is decided by the route that answers.
    for probe in &mut probes {
        if let Some((mounted, rest)) = active.router.find(&probe.path)
            && let Some(found) = mounted.engine.resolve(rest)
        {
            probe.access = mounted.engine.access(found.route);
        }
    }
    (core, probes)
}

fn is_direct(probe: &Probe) -> bool {
    probe.path.strip_prefix("sys/").is_some_and(|path| super::sys::direct_table().resolve(path).is_some())
}

fn answers_while_sealed(probe: &Probe) -> bool {
    probe.path.strip_prefix("sys/").is_some_and(|path| super::sys::sealed_table().resolve(path).is_some())
}

/// Whether a token that may do nothing is refused there with a 403. On these three the token in question is the wrapping
/// token, from the body or the header, and what is no wrapping token is a 400.
fn is_guarded(probe: &Probe) -> bool {
    let wrapping = ["sys/wrapping/lookup", "sys/wrapping/unwrap", "sys/wrapping/rewrap"].contains(&probe.path.as_str());
    probe.access != Access::Anyone && !is_direct(probe) && !wrapping
}

async fn powerless(core: &Core) -> SecretString {
    let spec = TokenSpec {
        policies: vec!["of-no-rights".into()],
        path: "auth/token/create".into(),
        ttl: std::time::Duration::from_secs(3600),
        ..TokenSpec::default()
    };
    core.active().unwrap().tokens.issue(spec).await.unwrap().client_token
}

#[tokio::test]
async fn no_route_answers_without_a_token_unless_its_table_says_so() {
    let (core, probes) = everything().await;
    for probe in probes.iter().filter(|probe| is_guarded(probe)) {
        let answer = core.handle(probe.request(None)).await;
        assert_eq!(answer.status, 403, "{:?} {}", probe.operation, probe.path);
        assert_eq!(answer.body, br#"{"errors":["permission denied"]}"#, "{:?} {}", probe.operation, probe.path);
    }
}

#[tokio::test]
async fn no_route_answers_a_token_of_no_rights_unless_its_table_says_so() {
    let (core, probes) = everything().await;
    let token = powerless(&core).await;
    for probe in probes.iter().filter(|probe| is_guarded(probe)) {
        let answer = core.handle(probe.request(Some(&token))).await;
        let body = String::from_utf8(answer.body).unwrap();
        assert_eq!(answer.status, 403, "{:?} {}: {body}", probe.operation, probe.path);
        assert!(body.contains("permission denied") || body.contains("preflight"), "{:?} {}: {body}", probe.operation, probe.path);
    }
}

#[tokio::test]
async fn sealed_every_route_says_so() {
    let (core, probes) = everything().await;
    let token = powerless(&core).await;
    core.seal.seal().await.unwrap();
    for probe in probes.iter().filter(|probe| !is_direct(probe) && !answers_while_sealed(probe)) {
        let answer = core.handle(probe.request(Some(&token))).await;
        assert_eq!(answer.status, 503, "{:?} {}", probe.operation, probe.path);
        assert_eq!(answer.body, br#"{"errors":["Vault is sealed"]}"#, "{:?} {}", probe.operation, probe.path);
    }
}

#[tokio::test]
async fn every_route_leaves_an_audit_record_also_when_it_is_refused() {
    let (core, probes) = everything().await;
    let token = powerless(&core).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.log");
    let device = DeviceRecord {
        uuid: "one".into(),
        path: "one/".into(),
        kind: "file".into(),
        description: String::new(),
        options: [("file_path".to_owned(), file.display().to_string())].into(),
        local: false,
    };
    core.audit.enable(device).await.unwrap();
    for probe in probes.iter().filter(|probe| is_guarded(probe)) {
        let request = probe.request(Some(&token));
        let id = request.id.clone();
        core.handle(request).await;
        let log = std::fs::read_to_string(&file).unwrap();
        let record = log.lines().rev().find(|line| line.contains(&id));
        let record = record.unwrap_or_else(|| panic!("{:?} {} left no record", probe.operation, probe.path));
        assert!(record.contains("permission denied"), "{record}");
        assert!(!record.contains(token.expose()), "the record shows the token");
    }
}
