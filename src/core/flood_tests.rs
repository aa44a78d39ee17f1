//! Floods of failed authentications: what an address gets beyond its limit, who is not meant, and what is recorded.

use std::{net::IpAddr, sync::Arc, time::Duration};

use super::{
    Core, Settings,
    auth_failures::AuthFailureLimit,
    clock::Clock,
    engine::Call,
    envelope::Answer,
    failure::Failure,
    mount_table::new_entry,
    mounts::{Mounted, Table},
    reply::Reply,
    request::{Operation, Request},
    route::{Access, Route, RouteTable, Routed},
    testing::unsealed_core_with,
    tokens::TokenSpec,
};
use crate::{audit::DeviceRecord, op, secret::SecretString};

const BURST: u32 = 5;

async fn core() -> Arc<Core> {
    let limit = AuthFailureLimit { burst: BURST, per_second: 1 };
    unsealed_core_with(Clock::movable(), Settings { auth_failure_limit: Some(limit), ..Settings::default() }).await
}

fn from(address: [u8; 4], operation: Operation, path: &str, body: &str, token: Option<&str>) -> Request {
    let mut request = Request::internal(operation, path, body.to_owned());
    request.remote = Some(IpAddr::from(address));
    request.token = token.map(|token| SecretString::new(token.to_owned()));
    request
}

fn look_up(address: [u8; 4], token: Option<&str>) -> Request {
    from(address, Operation::Read, "auth/token/lookup-self", "", token)
}

fn wait(answer: &Answer) -> Option<u64> {
    answer.headers.iter().find(|(name, _)| name == "Retry-After")?.1.parse().ok()
}

const BAD: [u8; 4] = [10, 0, 0, 1];
const GOOD: [u8; 4] = [10, 0, 0, 2];

async fn token(core: &Core, id: Option<&str>) -> String {
    let spec = TokenSpec {
        id: id.map(|id| SecretString::new(id.to_owned())),
        policies: vec!["root".into()],
        path: "auth/token/create".into(),
        ttl: Duration::from_secs(3600),
        ..TokenSpec::default()
    };
    core.active().unwrap().tokens.issue(spec).await.unwrap().client_token.expose().to_owned()
}

#[tokio::test]
async fn a_flood_is_answered_429_and_harms_neither_other_addresses_nor_good_tokens() {
    let core = core().await;
    let good = token(&core, None).await;
    let unknown = Some("hvs.000000000000000000000000");
    for number in 0..BURST {
        let token = [None, unknown, Some("guessed")][usize::try_from(number % 3).unwrap()];
        assert_eq!(core.handle(look_up(BAD, token)).await.status, 403);
    }
    for request in [
        look_up(BAD, None),
        look_up(BAD, unknown),
        look_up(BAD, Some("guessed")),
        from(BAD, Operation::Update, "sys/wrapping/unwrap", r#"{"token": "hvs.x"}"#, None),
    ] {
        let answer = core.handle(request).await;
        let body = String::from_utf8(answer.body.clone()).unwrap();
        assert_eq!((answer.status, wait(&answer)), (429, Some(1)), "{body}");
        assert!(body.starts_with(r#"{"errors":["too many failed authentications from this address"#), "{body}");
    }
    assert_eq!(core.handle(look_up(BAD, Some(&good))).await.status, 200, "a good token behind the same address");
    assert_eq!(core.handle(look_up(GOOD, Some(&good))).await.status, 200);
    assert_eq!(core.handle(look_up(GOOD, None)).await.status, 403, "others are told what is wrong");
    core.clock.advance(Duration::from_secs(1));
    assert_eq!(core.handle(look_up(BAD, unknown)).await.status, 403, "the wait is over");
    assert_eq!(core.handle(look_up(BAD, unknown)).await.status, 429);
    assert_eq!(core.auth_failures.totals(), (11, 5));
}

#[tokio::test]
async fn rights_that_are_missing_are_no_failed_authentication() {
    let core = core().await;
    let spec = TokenSpec {
        policies: vec!["none".into()],
        path: "auth/token/create".into(),
        ttl: Duration::from_secs(60),
        ..TokenSpec::default()
    };
    let powerless = core.active().unwrap().tokens.issue(spec).await.unwrap().client_token;
    for _ in 0..BURST * 3 {
        let request = from(BAD, Operation::Read, "sys/mounts", "", Some(powerless.expose()));
        assert_eq!(core.handle(request).await.status, 403);
    }
    assert_eq!(core.auth_failures.totals(), (0, 0));
}

#[tokio::test]
async fn chosen_tokens_can_be_guessed_only_as_often_as_an_address_has_tries() {
    let core = core().await;
    let chosen = token(&core, Some("letmein")).await;
    assert_eq!(core.handle(look_up(BAD, Some(&chosen))).await.status, 200);
    for number in 0..BURST {
        assert_eq!(core.handle(look_up(BAD, Some(&format!("guess{number}")))).await.status, 403);
    }
    assert_eq!(core.handle(look_up(BAD, Some(&chosen))).await.status, 429, "the guess that hits is not told from others");
    assert_eq!(core.handle(look_up(GOOD, Some(&chosen))).await.status, 200);
    core.clock.advance(Duration::from_secs(1));
    assert_eq!(core.handle(look_up(BAD, Some(&chosen))).await.status, 200);
}

/// A method whose one password is "right".
struct Doorman;

const ROUTES: &[Route<Doorman>] =
    &[Route { patterns: &["login"], access: Access::Anyone, help: "", exists: None, operations: &[op!(Write, "", login)] }];

async fn login(_: &Doorman, call: &Call<'_>) -> Result<Reply, Failure> {
    let given = call.body.member("password").map(|raw| raw.get().to_owned());
    if given.as_deref() == Some("\"right\"") { Reply::bare(&"in") } else { Err(Failure::invalid("invalid password")) }
}

impl Routed for Doorman {
    fn table() -> &'static RouteTable<Self> {
        static TABLE: std::sync::OnceLock<RouteTable<Doorman>> = std::sync::OnceLock::new();
        TABLE.get_or_init(|| RouteTable::new(ROUTES))
    }
}

#[tokio::test]
async fn logins_of_any_method_are_counted_and_passwords_not_looked_at_beyond_the_limit() {
    let core = core().await;
    let mounted = Mounted { entry: new_entry(Table::Auth, "doorman/", "doorman"), engine: Arc::new(Doorman) };
    core.active().unwrap().router.put(Arc::new(mounted));
    let log_in = |address, password: &str| {
        let body = format!("{{\"password\":{password:?}}}");
        core.handle(from(address, Operation::Update, "auth/doorman/login", &body, None))
    };
    for _ in 0..BURST * 2 {
        assert_eq!(log_in(BAD, "right").await.status, 200);
    }
    for _ in 0..BURST {
        assert_eq!(log_in(BAD, "wrong").await.status, 400);
    }
    let answer = log_in(BAD, "right").await;
    assert_eq!((answer.status, wait(&answer)), (429, Some(1)));
    assert_eq!(log_in(GOOD, "right").await.status, 200);
    core.clock.advance(Duration::from_secs(1));
    assert_eq!(log_in(BAD, "right").await.status, 200);
}

#[tokio::test]
async fn audit_devices_learn_of_every_failure_within_the_limit_and_of_one_a_minute_beyond() {
    let core = core().await;
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
    let records = |text: &str| std::fs::read_to_string(&file).unwrap().lines().filter(|line| line.contains(text)).count();
    let before = records("");
    for _ in 0..1000 {
        core.handle(look_up(BAD, None)).await;
    }
    assert_eq!(records("too many failed authentications"), 1);
    assert!(records("") - before < 20, "the rest of a thousand leaves none, but for what time gave back meanwhile");
    core.clock.advance(Duration::from_secs(61));
    for _ in 0..1000 {
        core.handle(look_up(BAD, None)).await;
    }
    assert_eq!(records("too many failed authentications"), 2);
}
