//! Floods of failed authentications and of requests without a token: what an address gets beyond its limit, who is not
//! meant, and what is recorded.

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
    testing::{unsealed_core_and_share, unsealed_core_with},
    tokens::TokenSpec,
};
use crate::{audit::DeviceRecord, op, secret::SecretString};

const BURST: u32 = 5;

fn limited() -> Settings {
    let limit = AuthFailureLimit { burst: BURST, per_second: 1 };
    Settings { auth_failure_limit: Some(limit), ..Settings::default() }
}

async fn core() -> Arc<Core> {
    unsealed_core_with(Clock::movable(), limited()).await
}

/// An audit device that writes into the folder.
pub(super) async fn audited(core: &Core, folder: &tempfile::TempDir, options: &[(&str, &str)]) -> std::path::PathBuf {
    let file = folder.path().join("audit.log");
    let mut device = DeviceRecord {
        uuid: "one".into(),
        path: "one/".into(),
        kind: "file".into(),
        description: String::new(),
        options: [("file_path".to_owned(), file.display().to_string())].into(),
        local: false,
    };
    device.options.extend(options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    core.audit.enable(device).await.unwrap();
    file
}

fn size(file: &std::path::Path) -> u64 {
    std::fs::metadata(file).unwrap().len()
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
    assert_eq!(core.auth_failures.totals(), (10, 5));
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

/// Routes that answer anyone look at a token that comes along: it must not be guessed there instead.
#[tokio::test]
async fn open_routes_are_no_way_around_the_limit_on_guesses() {
    for path in [
        "sys/internal/ui/mounts",
        "sys/internal/ui/mounts/cubbyhole",
        "sys/internal/specs/openapi",
        "sys/decode-token",
        "sys/replication/status",
        "sys/generate-root/attempt",
        "sys/wrapping/lookup",
    ] {
        let core = core().await;
        let folder = tempfile::tempdir().unwrap();
        audited(&core, &folder, &[]).await;
        let chosen = token(&core, Some("letmein")).await;
        let writes = path.ends_with("token") || path.ends_with("attempt");
        let operation = if writes { Operation::Update } else { Operation::Read };
        let ask = |address, token: String| core.handle(from(address, operation, path, "", Some(&token)));
        for number in 0..BURST {
            assert_ne!(ask(BAD, format!("guess{number}")).await.status, 429, "{path} {number}");
        }
        for token in ["guess".to_owned(), chosen.clone(), "hvs.000000000000000000000000.x.y".into()] {
            let answer = ask(BAD, token).await;
            assert_eq!((answer.status, wait(&answer)), (429, Some(1)), "{path}");
        }
        let good = token(&core, None).await;
        // There only wrapping tokens are good.
        if path != "sys/wrapping/lookup" {
            assert_ne!(ask(BAD, good).await.status, 429, "{path}");
        }
        assert_ne!(ask(GOOD, chosen).await.status, 429, "{path}");
    }
}

#[tokio::test]
async fn jwts_are_not_looked_at_while_an_address_has_no_try_left() {
    let core = core().await;
    let forged = format!("x.y.{}", "A".repeat(176));
    for _ in 0..BURST {
        assert_eq!(core.handle(look_up(BAD, Some(&forged))).await.status, 403);
    }
    assert_eq!(core.handle(look_up(BAD, Some(&forged))).await.status, 429);
    let body = format!("{{\"token\": {forged:?}}}");
    assert_eq!(core.handle(from(BAD, Operation::Update, "sys/wrapping/unwrap", &body, None)).await.status, 429);
    assert_eq!(core.handle(from(GOOD, Operation::Update, "sys/wrapping/unwrap", &body, None)).await.status, 400);
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
    let file = audited(&core, &folder, &[]).await;
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

/// What anyone may ask of a server that is not sealed, and what leaves a record.
const OPEN: [(Operation, &str, &str); 6] = [
    (Operation::Read, "sys/internal/specs/openapi", ""),
    (Operation::Read, "sys/internal/ui/mounts", ""),
    (Operation::Update, "sys/decode-token", r#"{"encoded_token": "a", "otp": "b"}"#),
    (Operation::Update, "sys/unseal", r#"{"key": "AAAA"}"#),
    (Operation::Update, "sys/generate-root/attempt", "{}"),
    (Operation::Delete, "sys/generate-root/attempt", ""),
];

#[tokio::test]
async fn what_strangers_ask_for_is_recorded_in_few_bytes() {
    for options in [&[][..], &[("log_raw", "true")]] {
        let core = core().await;
        let folder = tempfile::tempdir().unwrap();
        let file = audited(&core, &folder, options).await;
        let many = format!("{{\"a\": [{}\"\"]}}", "\"\",".repeat(100_000));
        let deep = format!("sys/internal/ui/mounts/{}", "x".repeat(50_000));
        let asked = OPEN.into_iter().chain([
            (Operation::Update, "sys/unseal", many.as_str()),
            (Operation::Update, "sys/decode-token", many.as_str()),
            (Operation::Update, "sys/mounts/a", many.as_str()),
            (Operation::Read, deep.as_str(), ""),
        ]);
        for (number, (operation, path, body)) in asked.enumerate() {
            let before = size(&file);
            let answer = core.handle(from([10, 0, 1, u8::try_from(number).unwrap()], operation, path, body, None)).await;
            let written = size(&file) - before;
            let path = &path[..path.len().min(50)];
            assert!(
                (400..8192).contains(&written),
                "{operation:?} {path}: {written} bytes for an answer of {}",
                answer.body.len()
            );
        }
        let answer = core.handle(from(GOOD, Operation::Read, "sys/internal/specs/openapi", "", None)).await;
        assert!(answer.body.len() > 50_000);
        let document = core.audit.hash("one/", std::str::from_utf8(&answer.body).unwrap()).unwrap();
        let log = std::fs::read_to_string(&file).unwrap();
        assert!(log.lines().last().unwrap().contains(&format!("{{\"http_raw_body\":\"{document}\"}}")), "{log}");
    }
}

/// An answer that was wrapped is shown value by value to auditors when it is taken out, whatever its length.
#[tokio::test]
async fn what_is_unwrapped_is_recorded_value_by_value() {
    let core = core().await;
    let folder = tempfile::tempdir().unwrap();
    let file = audited(&core, &folder, &[]).await;
    let root = token(&core, None).await;
    let values: Vec<String> = (0..200).map(|number| format!("\"name{number}\": \"value{number}\"")).collect();
    let body = format!("{{{}}}", values.join(","));
    let mut wrap = from(GOOD, Operation::Update, "sys/wrapping/wrap", &body, Some(&root));
    wrap.wrap_ttl = Some(Duration::from_secs(60));
    let wrapped: serde_json::Value = serde_json::from_slice(&core.handle(wrap).await.body).unwrap();
    let wrapping = wrapped["wrap_info"]["token"].as_str().unwrap();
    let answer = core.handle(from(GOOD, Operation::Update, "sys/wrapping/unwrap", "", Some(wrapping))).await;
    assert_eq!(answer.status, 200);
    let log = std::fs::read_to_string(&file).unwrap();
    let shown = format!("\"name150\":\"{}\"", core.audit.hash("one/", "value150").unwrap());
    assert!(log.lines().last().unwrap().contains(&shown), "{log}");
}

#[tokio::test]
async fn strangers_leave_records_only_as_often_as_their_address_may() {
    let (core, share) = unsealed_core_and_share(Clock::movable(), limited()).await;
    let folder = tempfile::tempdir().unwrap();
    let file = audited(&core, &folder, &[]).await;
    let root = token(&core, None).await;
    let before = size(&file);
    let ask = async |address, number: usize, token| {
        let (operation, path, body) = OPEN[number % OPEN.len()];
        core.handle(from(address, operation, path, body, token)).await
    };
    let mut let_in = 0;
    for number in 0..1000 {
        let answer = ask(BAD, number, None).await;
        if answer.status == 429 {
            assert_eq!(wait(&answer), Some(1));
            let body = String::from_utf8(answer.body).unwrap();
            assert!(body.contains("too many requests without a token from this address: send a token"), "{body}");
        } else {
            let_in += 1;
        }
    }
    assert_eq!(let_in, BURST);
    assert!(size(&file) - before < 20_000, "{} bytes for a thousand requests", size(&file) - before);
    // Who has a token is no stranger, and neither are others.
    for number in 0..usize::try_from(BURST).unwrap() * 3 {
        assert_ne!(ask(BAD, number, Some(&root)).await.status, 429);
    }
    assert_ne!(ask(GOOD, 0, None).await.status, 429);
    // Failed authentications are counted apart.
    assert_eq!(core.handle(look_up(BAD, None)).await.status, 403);
    // An operator makes a root token meanwhile, from elsewhere or with any token.
    for (address, token) in [(GOOD, None), (BAD, Some(root.as_str()))] {
        let write = async |path: &str, body: &str| {
            let answer = core.handle(from(address, Operation::Update, path, body, token)).await;
            let value: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
            assert_eq!(answer.status, 200, "{value}");
            value
        };
        let begun = write("sys/generate-root/attempt", "{}").await;
        let body = format!("{{\"key\": {share:?}, \"nonce\": {}}}", begun["nonce"]);
        assert_eq!(write("sys/generate-root/update", &body).await["complete"], true);
    }
    // A sealed server records nothing, so nobody is kept from unsealing it.
    assert_eq!(core.handle(from(GOOD, Operation::Update, "sys/seal", "", Some(&root))).await.status, 204);
    for _ in 0..BURST * 2 {
        assert_eq!(core.handle(from(BAD, Operation::Update, "sys/unseal", r#"{"reset": true}"#, None)).await.status, 200);
    }
    let answer = core.handle(from(BAD, Operation::Update, "sys/unseal", &format!("{{\"key\": {share:?}}}"), None)).await;
    assert!(String::from_utf8(answer.body).unwrap().contains("\"sealed\":false"));
}
