use std::{path::Path, time::Instant};

use serde_json::Value;

use super::*;
use crate::{
    barrier::{Barrier, Txn, View, teststore::Store},
    core::{engine::Caller, mount_table::new_entry, mounts::Table, tokens::TokenEntry},
    secret::{SecretBytes, SecretString},
};

/// Values that no record may show.
const PLANTED: [&str; 5] = ["hvs.PLANTED-TOKEN", "planted-accessor", "planted-password", "planted-answer", "planted-query"];

async fn broker(folder: &Path, more: &[&str]) -> Broker {
    let allowed = std::iter::once(folder.to_str().unwrap()).chain(more.iter().copied()).map(str::to_owned).collect();
    let broker = Broker::new(Clock::system(), allowed);
    broker.load(View::new(barrier().await, "core/").unwrap()).unwrap();
    broker
}

async fn barrier() -> Arc<Barrier> {
    let barrier = Arc::new(Barrier::new(Arc::new(Store::default())));
    let root = SecretBytes::random(crate::barrier::ROOT_KEY_LEN);
    barrier.initialize(&root, crate::storage::Txn::new(), Txn::new(), Clock::system().now()).await.unwrap();
    barrier
}

fn record(path: &str, file: &str, more: &[(&str, &str)]) -> DeviceRecord {
    let pairs = std::iter::once(("file_path", file)).chain(more.iter().copied());
    DeviceRecord {
        uuid: uuid::Uuid::new_v4().to_string(),
        path: path.to_owned(),
        kind: "file".into(),
        description: String::new(),
        options: pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        local: false,
    }
}

fn caller() -> Caller {
    let token = TokenEntry {
        accessor: "planted-accessor".into(),
        policies: vec!["default".into(), "ops".into()],
        display_name: "userpass-ann".into(),
        creation_ttl: 3600,
        creation_time: 1_700_000_000,
        ..TokenEntry::default()
    };
    Caller { token: Some(Arc::new(token)), acl: None, remote: Some([127, 0, 0, 1].into()) }
}

fn request() -> Request {
    Request {
        token: Some(SecretString::new("hvs.PLANTED-TOKEN".into())),
        headers: vec![("x-trace".into(), "planted-query".into()), ("x-other".into(), "o".into())],
        ..Request::internal(Operation::Update, "secret/a", r#"{"password": "planted-password", "shown": "in clear", "n": 7}"#)
    }
}

async fn exchange(broker: &Broker) -> Result<(), Failure> {
    let (request, caller) = (request(), caller());
    let mut mount = new_entry(Table::Secret, "secret/", "kv");
    mount.config.audit_non_hmac_request_keys = vec!["shown".into()];
    let exchange = Exchange {
        request: &request,
        operation: Operation::Create,
        caller: Some(&caller),
        mount: Some(&mount),
        remote: caller.remote,
    };
    broker.request(exchange, None).await?;
    let reply = Reply::data(&BTreeMap::from([("value", "planted-answer")])).unwrap();
    broker.response(exchange, Outcome::Reply(&reply)).await
}

fn lines(path: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn file(folder: &Path) -> String {
    folder.join("audit.log").to_str().unwrap().to_owned()
}

#[tokio::test]
async fn records_have_vaults_shape_and_show_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path());
    let broker = broker(folder.path(), &[]).await;
    broker.enable(record("a/", &path, &[])).await.unwrap();
    broker.set_header("X-Trace", Some(true)).await.unwrap();
    exchange(&broker).await.unwrap();

    let text = std::fs::read_to_string(&path).unwrap();
    for planted in PLANTED {
        assert!(!text.contains(planted), "{planted} in {text}");
    }
    let lines = lines(&path);
    assert_eq!(lines.len(), 3, "the probe, the request, the answer");
    assert_eq!(lines[0]["request"]["path"], "sys/audit/test");
    let (asked, answered) = (&lines[1], &lines[2]);
    let hmac = |value: &str| broker.hash("a/", value).unwrap();
    assert_eq!(asked["type"], "request");
    assert_eq!(asked["request"]["data"]["password"], hmac("planted-password"));
    assert_eq!(asked["request"]["data"]["shown"], "in clear");
    assert_eq!(asked["request"]["data"]["n"], 7);
    assert_eq!(asked["request"]["operation"], "create");
    assert_eq!(asked["request"]["client_token"], hmac("hvs.PLANTED-TOKEN"));
    assert_eq!(asked["request"]["client_token_accessor"], hmac("planted-accessor"));
    assert_eq!(asked["request"]["mount_point"], "secret/");
    assert_eq!(asked["request"]["mount_type"], "kv");
    assert_eq!(asked["request"]["namespace"]["id"], "root");
    assert_eq!(asked["request"]["remote_address"], "127.0.0.1");
    assert_eq!(asked["request"]["headers"], serde_json::json!({"x-trace": [hmac("planted-query")]}));
    assert_eq!(asked["auth"]["display_name"], "userpass-ann");
    assert_eq!(asked["auth"]["policy_results"]["allowed"], true);
    assert_eq!(asked["auth"]["token_ttl"], 3600);
    assert_eq!(asked["auth"]["token_issue_time"], "2023-11-14T22:13:20Z");
    assert_eq!(answered["type"], "response");
    assert_eq!(answered["request"]["id"], asked["request"]["id"]);
    assert_eq!(answered["response"]["data"]["value"], hmac("planted-answer"));
    assert_eq!(answered["response"]["mount_type"], "kv");
}

#[tokio::test]
async fn refusals_are_recorded_with_their_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path());
    let broker = broker(folder.path(), &[]).await;
    broker.enable(record("a/", &path, &[])).await.unwrap();
    let request = request();
    let exchange = Exchange { request: &request, operation: Operation::Update, caller: None, mount: None, remote: None };
    broker.request(exchange, Some(&Failure::denied())).await.unwrap();
    let refused = lines(&path).pop().unwrap();
    assert_eq!(refused["error"], "1 error occurred:\n\t* permission denied\n\n");
    assert_eq!(refused["auth"]["policy_results"]["allowed"], false);
}

#[tokio::test]
async fn options_change_what_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path());
    let broker = broker(folder.path(), &[]).await;
    broker.enable(record("raw/", &path, &[("log_raw", "true")])).await.unwrap();
    exchange(&broker).await.unwrap();
    let last = lines(&path).pop().unwrap();
    assert_eq!(last["request"]["data"]["password"], "planted-password");
    assert_eq!(last["response"]["data"]["value"], "planted-answer");
    broker.disable("raw/").await.unwrap();

    let path = folder.path().join("second.log").to_str().unwrap().to_owned();
    let options = [("hmac_accessor", "false"), ("elide_list_responses", "true")];
    broker.enable(record("b/", &path, &options)).await.unwrap();
    let (request, caller) = (Request::internal(Operation::List, "secret/", ""), caller());
    let exchange = Exchange { request: &request, operation: Operation::List, caller: Some(&caller), mount: None, remote: None };
    let reply = Reply::keys(["x", "y"]).unwrap();
    broker.response(exchange, Outcome::Reply(&reply)).await.unwrap();
    let last = lines(&path).pop().unwrap();
    assert_eq!(last["auth"]["accessor"], "planted-accessor");
    assert_eq!(last["response"]["data"], serde_json::json!({"keys": 2}));
}

#[tokio::test]
async fn body_and_query_are_both_shown_where_both_count() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path());
    let broker = broker(folder.path(), &[]).await;
    broker.enable(record("a/", &path, &[])).await.unwrap();
    let hmac = |value: &str| broker.hash("a/", value).unwrap();
    let caller = caller();
    let shown = async |operation, body: &'static str, query: &[(&str, &str)]| {
        let mut request = Request::internal(operation, "sys/x", body);
        request.query = query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let exchange = Exchange { request: &request, operation, caller: Some(&caller), mount: None, remote: None };
        broker.request(exchange, None).await.unwrap();
        lines(&path).pop().unwrap()["request"]["data"].clone()
    };
    for operation in [Operation::Delete, Operation::List] {
        let both = shown(operation, r#"{"force": true}"#, &[("a", "b")]).await;
        assert_eq!(both, serde_json::json!({"body": {"force": true}, "query": {"a": hmac("b")}}));
        assert_eq!(shown(operation, r#"{"force": true}"#, &[]).await, serde_json::json!({"force": true}));
        assert_eq!(shown(operation, "", &[("a", "b")]).await, serde_json::json!({"a": hmac("b")}));
    }
    let several = shown(Operation::Read, "", &[("a", "b"), ("a", "c"), ("a", "d")]).await;
    assert_eq!(several, serde_json::json!({"a": [hmac("b"), hmac("c"), hmac("d")]}));
    assert_eq!(shown(Operation::Update, r#"{"n": 1}"#, &[("a", "b")]).await, serde_json::json!({"n": 1}));
    assert_eq!(shown(Operation::Update, "", &[("a", "b")]).await, serde_json::json!({"a": hmac("b")}));
}

#[tokio::test]
async fn devices_salts_and_headers_survive_a_seal() {
    let folder = tempfile::tempdir().unwrap();
    let view = View::new(barrier().await, "core/").unwrap();
    let allowed = vec![folder.path().to_str().unwrap().to_owned()];
    let broker = Broker::new(Clock::system(), allowed);
    broker.load(view.clone()).unwrap();
    broker.enable(record("a/", &file(folder.path()), &[])).await.unwrap();
    broker.set_header("X-Trace", Some(false)).await.unwrap();
    let before = broker.hash("a/", "value");
    broker.unload();
    assert!(!broker.is_enabled() && broker.hash("a/", "value").is_none());
    broker.load(view).unwrap();
    assert!(broker.is_enabled());
    assert_eq!(broker.hash("a/", "value"), before);
    assert_eq!(broker.headers().get("x-trace"), Some(&false));
}

#[tokio::test]
async fn a_device_that_cannot_be_written_is_not_enabled() {
    let folder = tempfile::tempdir().unwrap();
    let broker = broker(folder.path(), &["/dev/full"]).await;
    for path in ["/dev/full", "/etc/sos-audit", folder.path().to_str().unwrap()] {
        assert!(broker.enable(record("a/", path, &[])).await.is_err(), "{path}");
    }
    assert!(!broker.is_enabled());
    exchange(&broker).await.unwrap();
}

#[tokio::test]
async fn without_a_working_device_requests_fail_and_recover() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path());
    let broker = broker(folder.path(), &[]).await;
    broker.enable(record("a/", &path, &[])).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    broker.reopen();
    let started = Instant::now();
    let refused = exchange(&broker).await.unwrap_err();
    assert!(refused.text().starts_with("internal error"), "{refused}");
    assert!(started.elapsed() < DEADLINE / 2, "fails fast");
    // Another device is enough.
    let second = folder.path().join("second.log").to_str().unwrap().to_owned();
    broker.enable(record("b/", &second, &[])).await.unwrap();
    exchange(&broker).await.unwrap();
    broker.disable("b/").await.unwrap();
    assert!(exchange(&broker).await.is_err());
    std::fs::remove_dir(&path).unwrap();
    exchange(&broker).await.unwrap();
    assert_eq!(lines(&path).len(), 2);
}

#[tokio::test]
async fn rotated_files_are_opened_anew_on_reopen() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path());
    let broker = broker(folder.path(), &[]).await;
    broker.enable(record("a/", &path, &[])).await.unwrap();
    let rotated = format!("{path}.1");
    std::fs::rename(&path, &rotated).unwrap();
    exchange(&broker).await.unwrap();
    assert_eq!(lines(&rotated).len(), 3);
    broker.reopen();
    exchange(&broker).await.unwrap();
    assert_eq!((lines(&rotated).len(), lines(&path).len()), (3, 2));
}

#[tokio::test]
async fn a_hanging_device_holds_up_nothing_when_another_one_works() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    // A reader that never reads: writes block once the pipe is full.
    let _reader = std::fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    let broker = broker(folder.path(), &[]).await;
    broker.enable(record("stuck/", fifo.to_str().unwrap(), &[])).await.unwrap();
    let path = file(folder.path());
    broker.enable(record("works/", &path, &[])).await.unwrap();
    let started = Instant::now();
    // More than any pipe holds, so that only the file can have taken the last records.
    for _ in 0..1500 {
        exchange(&broker).await.unwrap();
    }
    assert!(started.elapsed() < DEADLINE * 4, "{:?}", started.elapsed());
    assert_eq!(lines(&path).len(), 3001);
    // Alone it fails, at the latest by the deadline.
    broker.disable("works/").await.unwrap();
    let alone = Instant::now();
    assert!(exchange(&broker).await.is_err());
    assert!(alone.elapsed() < DEADLINE * 2, "{:?}", alone.elapsed());
}

#[tokio::test]
async fn paths_of_devices_do_not_nest() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path());
    let broker = broker(folder.path(), &[]).await;
    broker.enable(record("a/one/", &path, &[])).await.unwrap();
    for taken in ["a/one/", "a/", "a/one/two/"] {
        assert_eq!(broker.enable(record(taken, &path, &[])).await.unwrap_err().text(), "path already in use");
    }
    broker.enable(record("a/other/", &path, &[])).await.unwrap();
}

#[tokio::test]
async fn more_records_than_a_device_may_hold_are_the_servers_load_and_no_fault() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    let mut reader = std::fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    let broker = broker(folder.path(), &[]).await;
    broker.enable(record("slow/", fifo.to_str().unwrap(), &[])).await.unwrap();
    let device = Arc::clone(broker.devices.load().first().unwrap());
    // More than a pipe holds, so that it is being written; then what is taken for a hundred MiB and is empty.
    let written = [vec![b'\n'; 1 << 20], Vec::with_capacity(queue::MOST_BYTES)].map(|line| device.send(line));
    let refused = exchange(&broker).await.unwrap_err();
    assert_eq!((refused.kind(), refused.text().contains("overloaded")), (Kind::Unavailable, true), "{refused}");
    // The reader goes on, and so does everything else.
    let reading = std::thread::spawn(move || {
        let mut read = 0;
        while read < 1 << 20 {
            read += std::io::Read::read(&mut reader, &mut [0; 65536]).unwrap();
        }
        reader
    });
    for sent in written {
        device.written(sent).await.unwrap();
    }
    let _reader = reading.join().unwrap();
    exchange(&broker).await.unwrap();
}

#[tokio::test]
async fn a_rotation_reaches_the_file_of_a_device_that_is_just_being_enabled() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path());
    let broker = broker(folder.path(), &[]).await;
    // The second is done while the first waits for the probe to be written.
    let (enabled, ()) = tokio::join!(broker.enable(record("a/", &path, &[])), async { broker.reopen() });
    enabled.unwrap();
    let rotated = format!("{path}.1");
    std::fs::rename(&path, &rotated).unwrap();
    exchange(&broker).await.unwrap();
    assert_eq!((lines(&rotated).len(), lines(&path).len()), (1, 2));
}

/// The records of a request with this body, refused or allowed, and of an answer that repeats it: their lengths, and what they say.
async fn recorded(broker: &Broker, path: &str, body: &str, refused: Option<Failure>) -> Vec<(usize, Value)> {
    let request = Request {
        token: Some(SecretString::new("hvs.x".into())),
        ..Request::internal(Operation::Update, "kv/big", body.to_owned())
    };
    let caller = caller();
    let operation = Operation::Update;
    let exchange = Exchange { request: &request, operation, caller: Some(&caller), mount: None, remote: None };
    let before = std::fs::read_to_string(path).unwrap().len();
    broker.request(exchange, refused.as_ref()).await.unwrap();
    if refused.is_none() {
        let reply = Reply { body: crate::core::reply::Body::Data(body.as_bytes().to_vec()), ..Reply::default() };
        broker.response(exchange, Outcome::Reply(&reply)).await.unwrap();
    }
    let text = std::fs::read_to_string(path).unwrap();
    text[before..].lines().map(|line| (line.len(), serde_json::from_str(line).unwrap())).collect()
}

#[tokio::test]
async fn no_body_makes_a_record_many_times_its_length() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path());
    let broker = broker(folder.path(), &[]).await;
    let empties = |bytes: usize| format!(r#"{{"data":{{"a":[{}""]}}}}"#, r#""","#.repeat(bytes / 3));
    for options in [&[][..], &[("log_raw", "true")]] {
        broker.enable(record("a/", &path, options)).await.unwrap();
        for len in [2 << 10, 30 << 10, 300 << 10, 6 << 20] {
            let body = empties(len);
            let whole = serde_json::json!({"http_raw_body": broker.hash("a/", &body).unwrap()});
            // Whatever the reason of a refusal is: the token's rights, the token, the path.
            for reason in
                [Failure::denied(), Failure::bad_token(), Failure::unsupported_path(), Failure::invalid("x".repeat(1 << 20))]
            {
                let refused = recorded(&broker, &path, &body, Some(reason)).await;
                assert_eq!(refused.len(), 1);
                assert_eq!(refused[0].1["request"]["data"], whole, "{len}");
                assert!(refused[0].0 < 3 << 10, "{len}: {}", refused[0].0);
            }
            // An answer's record has the request in it.
            let most = (8 * body.len()).clamp(64 << 10, 1 << 20);
            let allowed = recorded(&broker, &path, &body, None).await;
            let fits = if options.is_empty() { body.len() * 80 / 3 <= most } else { body.len() <= most };
            for (len, line) in &allowed {
                assert_eq!(line["request"]["data"] == whole, !fits, "{len}");
                assert!(*len <= (4 << 10) + if fits { 2 * most } else { 0 }, "{len} of {}", body.len());
            }
            assert_eq!(allowed[1].1["response"]["data"] == whole, !fits, "{len}");
        }
        broker.disable("a/").await.unwrap();
    }
    // One long value is one HMAC beside its name, also where it is allowed to be looked for.
    broker.enable(record("a/", &path, &[])).await.unwrap();
    let long = "x".repeat(4 << 20);
    let allowed = recorded(&broker, &path, &serde_json::json!({"a": long}).to_string(), None).await;
    assert_eq!(allowed[0].1["request"]["data"]["a"], broker.hash("a/", &long).unwrap());
}
