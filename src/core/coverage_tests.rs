//! Every route of the route tables, asked without a token, with a token of no rights, while sealed, and audited.
//!
//! The tables name the routes, so that a route that is added later is asked too, and a failure names it. Who answers anyone is
//! written down here once more: a route that joins them makes a test fail until it is meant.

use std::sync::Arc;

use super::{
    Core, Settings,
    clock::Clock,
    flood_tests::audited,
    mount_table::new_entry,
    mounts::Table,
    request::{Operation, Request},
    route::{Access, RouteInfo, Verb},
    testing::{unsealed_core, unsealed_core_over},
    tokens::TokenSpec,
};
use crate::{
    secret::SecretString,
    storage::faults::{Faulty, Plan, io},
};

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
    let probes = everything_of(&core).await;
    (core, probes)
}

async fn everything_of(core: &Arc<Core>) -> Vec<Probe> {
    let active = core.active().unwrap();
    for (path, kind, version) in [("kv1/", "kv", "1"), ("kv2/", "kv", "2"), ("transit/", "transit", "")] {
        let mut entry = new_entry(Table::Secret, path, kind);
        if !version.is_empty() {
            entry.options.insert("version".into(), version.into());
        }
        active.mounts.mount(core, entry).await.unwrap();
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
    probes
}

/// What the tables hold that answer before any mount is looked at.
fn direct_probes() -> Vec<Probe> {
    probes_of("sys/", super::sys::direct_table().describe())
}

fn is_direct(probe: &Probe) -> bool {
    probe.path.strip_prefix("sys/").is_some_and(|path| super::sys::direct_table().resolve(path).is_some())
}

fn answers_while_sealed(probe: &Probe) -> bool {
    probe.path.strip_prefix("sys/").is_some_and(|path| super::sys::sealed_table().resolve(path).is_some())
}

/// On these three the token in question is the wrapping token, from the body or the header.
fn asks_for_a_wrapping_token(probe: &Probe) -> bool {
    ["sys/wrapping/lookup", "sys/wrapping/unwrap", "sys/wrapping/rewrap"].contains(&probe.path.as_str())
}

/// Whether a token that may do nothing is refused there with a 403.
fn is_guarded(probe: &Probe) -> bool {
    probe.access != Access::Anyone && !is_direct(probe) && !asks_for_a_wrapping_token(probe)
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

/// The records of one request.
fn records(file: &std::path::Path, id: &str) -> Vec<String> {
    std::fs::read_to_string(file).unwrap().lines().filter(|line| line.contains(id)).map(str::to_owned).collect()
}

#[tokio::test]
async fn every_route_leaves_an_audit_record_also_when_it_is_refused() {
    let (core, probes) = everything().await;
    let token = powerless(&core).await;
    let folder = tempfile::tempdir().unwrap();
    let file = audited(&core, &folder, &[]).await;
    for probe in probes.iter().filter(|probe| !is_direct(probe)) {
        let request = probe.request(Some(&token));
        let id = request.id.clone();
        let answer = core.handle(request).await;
        let found = records(&file, &id);
        assert!(!found.is_empty(), "{:?} {} left no record", probe.operation, probe.path);
        if is_guarded(probe) {
            assert!(found.iter().any(|record| record.contains("permission denied")), "{found:?}");
        }
        if asks_for_a_wrapping_token(probe) {
            assert!(found.iter().any(|record| record.contains("wrapping token is not valid")), "{found:?}");
        }
        if probe.access == Access::Anyone && !asks_for_a_wrapping_token(probe) {
            let types = ["\"type\":\"request\"", "\"type\":\"response\""];
            assert!(types.iter().all(|kind| found.iter().any(|record| record.contains(kind))), "{} {found:?}", answer.status);
        }
        assert!(!found.iter().any(|record| record.contains(token.expose())), "the record shows the token");
    }
}

/// What is carried out leaves a record of its request and one of its answer, of a caller who may do everything.
#[tokio::test]
async fn every_route_leaves_both_records_when_it_is_carried_out() {
    let (core, mut probes) = everything().await;
    let folder = tempfile::tempdir().unwrap();
    let file = audited(&core, &folder, &[]).await;
    let active = core.active().unwrap();
    let ask = async |mut request: Request| {
        // Some routes end the token that calls them.
        let token = active.tokens.create_root(None).await.unwrap();
        request.token = Some(token.duplicate());
        let (id, path) = (request.id.clone(), request.path.clone());
        let status = core.handle(request).await.status;
        let found = records(&file, &id);
        let of = |kind: &str| found.iter().filter(|record| record.contains(&format!("\"type\":\"{kind}\""))).count();
        assert_eq!((of("request"), of("response")), (1, 1), "{path} {status} {found:?}");
        assert!(found.iter().all(|record| record.contains("\"allowed\":true")), "{path} {found:?}");
        assert!(!found.iter().any(|record| record.contains(token.expose())), "the record shows the token");
        status
    };
    for (path, body) in [("transit/keys/x", "{}"), ("kv1/x", r#"{"a": "b"}"#), ("kv2/data/x", r#"{"data": {"a": "b"}}"#)] {
        assert!(ask(Request::internal(Operation::Update, path, body)).await < 300, "{path}");
    }
    // Whoever seals the server is not asked for more.
    probes.sort_by_key(|probe| (probe.path == "sys/seal", probe.operation == Operation::Delete));
    let mut succeeded = 0;
    for probe in probes.iter().filter(|probe| is_guarded(probe)) {
        succeeded += usize::from(ask(probe.request(None)).await < 300);
    }
    assert!(core.active().is_err(), "sealed by the last");
    assert!(succeeded > 80, "only {succeeded} succeeded");
}

/// What is refused for its form is recorded like any other refusal, with the caller as far as they are known.
#[tokio::test]
async fn what_is_wrong_in_form_leaves_a_record() {
    let (core, _) = everything().await;
    let folder = tempfile::tempdir().unwrap();
    let file = audited(&core, &folder, &[]).await;
    let root = core.active().unwrap().tokens.create_root(None).await.unwrap();
    let accessor = core.active().unwrap().tokens.lookup(&root).unwrap().unwrap().accessor.clone();
    let shown = core.audit.hash("one/", &accessor).unwrap();
    let flawed = || {
        let write = |path, body| Request::internal(Operation::Update, path, body);
        let mut namespaced = Request::internal(Operation::Read, "kv1/x", "");
        namespaced.flaw = Some(super::failure::Failure::invalid("namespaces are not supported by this server"));
        [
            (write("kv1/x", r#"{"a": "planted"#), 400, "failed to parse JSON"),
            (write("kv1/x", r#"["planted"]"#), 400, "failed to parse JSON"),
            (write("kv1/x/", r#"{"a": "planted"}"#), 400, "cannot write to a path ending in '/'"),
            (write("sys/unseal", r#"{"key": planted}"#), 400, "failed to parse JSON"),
            (Request::internal(Operation::Delete, "sys/unseal", ""), 405, "unsupported operation"),
            (namespaced, 400, "namespaces are not supported"),
        ]
    };
    for token in [Some(&root), None] {
        for (mut request, status, reason) in flawed() {
            let (id, path) = (request.id.clone(), request.path.clone());
            request.token = token.map(SecretString::duplicate);
            assert_eq!(core.handle(request).await.status, status, "{path}");
            let found = records(&file, &id);
            assert_eq!(found.len(), 1, "{path} {found:?}");
            let record: serde_json::Value = serde_json::from_str(&found[0]).unwrap();
            assert_eq!((&record["type"], &record["request"]["path"]), (&"request".into(), &path.as_str().into()));
            assert!(record["error"].as_str().unwrap().contains(reason), "{path} {record}");
            assert_eq!(record["auth"]["policy_results"]["allowed"], false);
            assert_eq!(record["auth"]["accessor"] == shown.as_str(), token.is_some(), "{path} {record}");
            assert!(!found[0].contains("planted"), "{record}");
        }
    }
}

/// Such operations run while the record of the request is still being written.
#[tokio::test]
async fn what_is_taken_for_reading_changes_nothing() {
    let (core, probes) = everything().await;
    let spec = TokenSpec { policies: vec!["root".into()], path: "auth/token/root".into(), ..TokenSpec::default() };
    let active = core.active().unwrap();
    let root = active.tokens.issue(spec).await.unwrap().client_token;
    for (path, body) in [("transit/keys/x", "{}"), ("kv1/x", r#"{"a": "b"}"#), ("kv2/data/x", r#"{"data": {"a": "b"}}"#)] {
        let mut request = Request::internal(Operation::Update, path, body);
        request.token = Some(root.duplicate());
        let answer = core.handle(request).await;
        assert!(answer.status < 300, "{path}: {}", answer.status);
    }
    let stored = || core.barrier.raw().scan("", None, usize::MAX).unwrap();
    let (mut read, mut made) = (0, Vec::new());
    for probe in probes.iter().filter(|probe| Verb::of(probe.operation).is_some_and(Verb::only_reads)) {
        let Some((mounted, rest)) = active.router.find(&probe.path) else { continue };
        let Some(found) = mounted.engine.resolve(rest) else { continue };
        // An earlier route that takes the path may not know the verb.
        if !mounted.engine.describe()[found.route].operations.iter().any(|(verb, _, _)| operation(*verb) == probe.operation) {
            continue;
        }
        if !mounted.engine.only_reads(found.route, Verb::of(probe.operation).unwrap()) {
            made.push(probe.path.as_str());
            continue;
        }
        let before = stored();
        core.handle(probe.request(Some(&root))).await;
        let after = stored();
        let changed: Vec<_> = after.iter().filter(|record| !before.contains(record)).map(|(key, _)| key).collect();
        assert!(changed.is_empty() && before.len() == after.len(), "{:?} {} changed {changed:?}", probe.operation, probe.path);
        read += 1;
    }
    assert!(read > 60, "{read}");
    made.sort_unstable();
    assert_eq!(made, ["sys/storage/raft/snapshot", "transit/wrapping_key"]);
}

/// A device that takes no record keeps reads from being answered as well as writes from being carried out.
#[tokio::test]
async fn what_cannot_be_recorded_is_not_answered_and_changes_nothing() {
    let (core, _) = everything().await;
    let spec = TokenSpec { policies: vec!["root".into()], path: "auth/token/root".into(), ..TokenSpec::default() };
    let root = core.active().unwrap().tokens.issue(spec).await.unwrap().client_token;
    let ask = async |operation, body: &'static str| {
        let mut request = Request::internal(operation, "kv1/x", body);
        request.token = Some(root.duplicate());
        core.handle(request).await
    };
    assert_eq!(ask(Operation::Update, r#"{"a": "first"}"#).await.status, 204);
    let folder = tempfile::tempdir().unwrap();
    let file = audited(&core, &folder, &[]).await;
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    core.audit.reopen();
    for (operation, body) in [(Operation::Read, ""), (Operation::List, ""), (Operation::Update, r#"{"a": "second"}"#)] {
        let answer = ask(operation, body).await;
        let text = String::from_utf8(answer.body).unwrap();
        assert_eq!(answer.status, 500, "{operation:?}: {text}");
        assert!(text.contains("no audit device could record") && !text.contains("first"), "{text}");
    }
    std::fs::remove_dir(&file).unwrap();
    let answer = ask(Operation::Read, "").await;
    assert!(String::from_utf8(answer.body).unwrap().contains("first"));
    let lines = std::fs::read_to_string(&file).unwrap();
    assert_eq!(lines.lines().count(), 2, "{lines}");
}

#[tokio::test]
async fn direct_routes_that_write_are_audited() {
    let (core, _) = everything().await;
    let folder = tempfile::tempdir().unwrap();
    let file = audited(&core, &folder, &[]).await;
    let mut written = 0;
    for probe in direct_probes() {
        let request = probe.request(None);
        let id = request.id.clone();
        let without = core.handle(request).await;
        // Vault answers a rekey without shares 500; what fails inside says "internal error".
        let body = String::from_utf8(without.body).unwrap();
        assert!(!body.contains("internal error"), "{:?} {}: {body}", probe.operation, probe.path);
        assert!(body.is_empty() || serde_json::from_str::<serde_json::Value>(&body).is_ok(), "{body}");
        if probe.operation != Operation::Read {
            written += 1;
            assert_eq!(records(&file, &id).len(), 2, "{:?} {}: request and response", probe.operation, probe.path);
        }
    }
    assert!(written > 10, "{written}");
}

#[tokio::test]
async fn direct_routes_answer_while_sealed_without_a_fault() {
    let (core, _) = everything().await;
    core.seal.seal().await.unwrap();
    for probe in direct_probes() {
        let answer = core.handle(probe.request(None)).await;
        let body = String::from_utf8(answer.body).unwrap();
        // 503 is what health says of a sealed server, and what changes of the seal say that need an open one.
        assert!(answer.status < 500 || answer.status == 503, "{:?} {}: {} {body}", probe.operation, probe.path, answer.status);
        assert!(!body.contains("internal error"), "{:?} {}: {body}", probe.operation, probe.path);
        let value: serde_json::Value = serde_json::from_str(if body.is_empty() { "{}" } else { &body }).unwrap();
        assert!(value.is_object(), "{body}");
    }
}

#[tokio::test]
async fn these_routes_answer_anyone_and_no_others() {
    let (_, probes) = everything().await;
    let mut open: Vec<String> =
        probes.iter().filter(|probe| probe.access == Access::Anyone).map(|probe| probe.path.clone()).collect();
    open.sort();
    open.dedup();
    assert_eq!(
        open,
        [
            "sys/decode-token",
            "sys/internal/specs/openapi",
            "sys/internal/ui/mounts",
            "sys/internal/ui/mounts/x",
            "sys/replication/status",
            "sys/wrapping/lookup"
        ]
    );
    let mut direct: Vec<String> = direct_probes().into_iter().map(|probe| probe.path).collect();
    direct.sort();
    direct.dedup();
    assert_eq!(
        direct,
        [
            "sys/generate-root",
            "sys/generate-root/attempt",
            "sys/generate-root/update",
            "sys/health",
            "sys/init",
            "sys/leader",
            "sys/rekey-recovery-key/init",
            "sys/rekey-recovery-key/update",
            "sys/rekey-recovery-key/verify",
            "sys/rekey/init",
            "sys/rekey/update",
            "sys/rekey/verify",
            "sys/seal-status",
            "sys/unseal",
        ]
    );
}

#[tokio::test]
async fn wrapping_routes_want_a_wrapping_token_and_say_nothing_of_others() {
    let (core, probes) = everything().await;
    let token = powerless(&core).await;
    let mut asked = 0;
    for probe in probes.iter().filter(|probe| asks_for_a_wrapping_token(probe)) {
        asked += 1;
        for (token, status, text) in [
            (None, 403, "error validating wrapping token: token is empty"),
            (Some(&token), 400, "wrapping token is not valid or does not exist"),
        ] {
            let answer = core.handle(probe.request(token)).await;
            let body = String::from_utf8(answer.body).unwrap();
            assert_eq!((answer.status, body.contains(text)), (status, true), "{:?} {}: {body}", probe.operation, probe.path);
        }
    }
    assert_eq!(asked, 4, "lookup by two verbs, unwrap, rewrap");
}

/// Whoever has a token may read the help texts, as in Vault.
#[tokio::test]
async fn help_is_for_those_with_a_token() {
    let (core, probes) = everything().await;
    for probe in probes.iter().filter(|probe| is_guarded(probe)) {
        let mut request = probe.request(None);
        request.operation = Operation::Help;
        assert_eq!(core.handle(request).await.status, 403, "help of {}", probe.path);
    }
}

#[tokio::test]
async fn what_opens_only_sometimes_is_closed_otherwise() {
    let (core, _) = everything().await;
    let ask = |operation, path: &str, open_metrics| {
        let mut request = Request::internal(operation, path, "");
        request.open_metrics = open_metrics;
        core.handle(request)
    };
    // Metrics on a listener that does not show them, the state of a server that is not sealed, a restore over a cluster.
    assert_eq!(ask(Operation::Read, "sys/metrics", false).await.status, 403);
    assert_eq!(ask(Operation::Read, "sys/sos/status", false).await.status, 403);
    for path in ["sys/storage/raft/snapshot", "sys/storage/raft/snapshot-force"] {
        assert_eq!(ask(Operation::Update, path, false).await.status, 403, "{path}");
    }
    assert_eq!(ask(Operation::Read, "sys/metrics", true).await.status, 200);
    core.seal.seal().await.unwrap();
    assert_eq!(ask(Operation::Read, "sys/metrics", false).await.status, 503);
    assert_eq!(ask(Operation::Read, "sys/sos/status", false).await.status, 200);
    for path in ["sys/storage/raft/snapshot", "sys/storage/raft/snapshot-force"] {
        assert_eq!(ask(Operation::Update, path, false).await.status, 503, "{path}");
    }
}

/// After a write whose end is not known an operation may find nothing to do only because what was written does not show yet.
#[tokio::test]
async fn no_change_is_answered_as_done_before_the_store_is_certain_again() {
    let backend = Faulty::new();
    let (core, made) = unsealed_core_over(Arc::new(backend.start()), Clock::system(), Settings::default()).await;
    let probes = everything_of(&core).await;
    let root = SecretString::new(made.root_token.clone());
    let active = core.active().unwrap();
    let changes = |probe: &Probe| {
        let (mounted, rest) = active.router.find(&probe.path)?;
        Some(mounted.engine.changes(mounted.engine.resolve(rest)?.route, Verb::of(probe.operation)?))
    };
    let ask = async |operation, path: &str, body: &str| {
        let mut request = Request::internal(operation, path, body.to_owned());
        request.token = Some(root.duplicate());
        core.handle(request).await.status
    };
    for (path, body) in [("transit/keys/k", "{}"), ("kv2/data/x", r#"{"data": {}}"#), ("kv2/config", r#"{"max_versions": 3}"#)] {
        assert!(ask(Operation::Update, path, body).await < 300);
    }
    backend.plan(Plan::Hidden(io()));
    backend.stay_closed(u32::MAX);
    assert!(ask(Operation::Update, "kv1/x", r#"{"a": 1}"#).await >= 500);
    let mut asked = 0;
    for probe in probes.iter().filter(|probe| changes(probe) == Some(true) && !is_direct(probe)) {
        for body in ["", r#"{"versions": [7]}"#, r#"{"accessor": "x", "lease_id": "x", "token": "x"}"#] {
            let status = ask(probe.operation, &probe.path, body).await;
            assert!(status >= 400, "{:?} {} {body}: {status}", probe.operation, probe.path);
        }
        asked += 1;
    }
    assert!(asked > 60, "only {asked} changes were found");
    // What only reads or computes goes on.
    for (operation, path, body) in [
        (Operation::Update, "transit/encrypt/k", r#"{"plaintext": "AAAA"}"#),
        (Operation::Update, "auth/token/lookup-self", ""),
        (Operation::Update, "sys/tools/random/4", ""),
        (Operation::Read, "kv2/data/x", ""),
    ] {
        assert_eq!(ask(operation, path, body).await, 200, "{path}");
    }
    backend.stay_closed(0);
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    while ask(Operation::Delete, "kv1/other", "").await != 204 {
        assert!(tokio::time::Instant::now() < until, "the store stays in doubt");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(ask(Operation::Read, "kv1/x", "").await, 200, "it came up");
    assert_eq!(ask(Operation::Delete, "kv1/x", "").await, 204);
    assert_eq!(ask(Operation::Read, "kv1/x", "").await, 404);
}
