//! Thousands of requests at once whose records go to an audit file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde_json::{Value, json};

use super::{CEILING, connect, ready, status};
use crate::support::{Place, Server, measured, request};

/// So many connections that ask at once.
const CLIENTS: usize = 2000;
const ROUNDS: usize = 3;

/// How many whole records a file has of each type for `path`, and the ids of its requests.
fn recorded(file: &Path, path: &str) -> (BTreeMap<String, usize>, BTreeSet<String>) {
    let (mut types, mut ids) = (BTreeMap::new(), BTreeSet::new());
    for line in fs::read_to_string(file).unwrap().lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        if record["request"]["path"] == path {
            *types.entry(record["type"].as_str().unwrap().to_owned()).or_default() += 1;
            ids.insert(record["request"]["id"].as_str().unwrap().to_owned());
        }
    }
    (types, ids)
}

/// None of those that a healthy audit file could not record in time, and a file that is rotated meanwhile gets no record after SIGHUP.
#[test]
fn thousands_at_once_are_all_recorded_and_answered_and_the_file_is_rotated_meanwhile() {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
    let place = Place::shamir();
    let server = ready(&place);
    let fifo = place.path("fifo");
    mkfifoat(CWD, &fifo, Mode::from_raw_mode(0o600)).unwrap();
    let mut reader = fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    server.put("sys/audit/fifo", json!({"type": "file", "options": {"file_path": fifo}})).ok();
    let (current, rotated) = (place.path("audit.log"), place.path("audit.log.1"));
    let token = server.token.clone().unwrap();
    let ask = format!("GET /v1/auth/token/lookup-self HTTP/1.1\r\nHost: x\r\nX-Vault-Token: {token}\r\n\r\n");
    let mut streams: Vec<TcpStream> = (0..CLIENTS).map(|_| connect(&server).unwrap()).collect();
    let mut answers: BTreeMap<u16, usize> = BTreeMap::new();
    let ask_all = |streams: &mut [TcpStream]| streams.iter_mut().for_each(|stream| stream.write_all(ask.as_bytes()).unwrap());
    let mut hear_all = |streams: &mut [TcpStream]| {
        for stream in streams {
            *answers.entry(status(stream).expect("every request is answered")).or_default() += 1;
        }
    };
    // A device that takes nothing for a while: all records wait for it, and then all are written.
    ask_all(&mut streams);
    std::thread::sleep(Duration::from_secs(1));
    let (done, ends) = mpsc::channel::<()>();
    let reading = std::thread::spawn(move || {
        while ends.try_recv() == Err(mpsc::TryRecvError::Empty) {
            assert!(reader.read(&mut [0; 65536]).unwrap() > 0);
        }
    });
    hear_all(&mut streams);
    server.put("sys/audit/file", json!({"type": "file", "options": {"file_path": current}})).ok();
    drop(done);
    server.call("DELETE", "sys/audit/fifo", None);
    reading.join().unwrap();
    // A file.
    let began = Instant::now();
    for round in 0..ROUNDS {
        ask_all(&mut streams[..CLIENTS / 2]);
        if round == ROUNDS / 2 {
            fs::rename(&current, &rotated).unwrap();
            server.signal(Signal::HUP);
        }
        ask_all(&mut streams[CLIENTS / 2..]);
        hear_all(&mut streams);
    }
    measured(&format!(
        "{CLIENTS} connections, {ROUNDS} requests each, with an audit file: {answers:?} with those before in {:.2?}",
        began.elapsed()
    ));
    assert_eq!(answers, BTreeMap::from([(200, CLIENTS * (ROUNDS + 1))]));
    let (before, first) = recorded(&rotated, "auth/token/lookup-self");
    let (after, second) = recorded(&current, "auth/token/lookup-self");
    for kind in ["request", "response"] {
        assert_eq!(before[kind] + after[kind], CLIENTS * ROUNDS, "{kind}: {before:?} {after:?}");
    }
    assert_eq!(first.union(&second).count(), CLIENTS * ROUNDS);
    // All of the last round at least came after the signal.
    assert!(after["request"] >= CLIENTS && before["request"] >= CLIENTS, "{before:?} {after:?}");
    let len = fs::metadata(&rotated).unwrap().len();
    server.get("sys/mounts").ok();
    assert_eq!(fs::metadata(&rotated).unwrap().len(), len, "nothing goes into the rotated file any more");
}

/// The most memory that the server has had, in MiB.
fn peak(server: &Server<'_>) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

/// Each of its strings would be one of 79 bytes in a record.
#[test]
fn bodies_of_millions_of_empty_strings_cost_neither_memory_nor_an_audit_file_many_times_as_much() {
    let place = Place::shamir();
    let server = ready(&place);
    let file = place.path("audit.log");
    server.put("sys/audit/file", json!({"type": "file", "options": {"file_path": file}})).ok();
    let powerless = server.put("auth/token/create", json!({"policies": ["default"]})).ok();
    let powerless = powerless["auth"]["client_token"].as_str().unwrap();
    let body = format!(r#"{{"data":{{"a":[{}""]}}}}"#, r#""","#.repeat(4 << 20));
    let ask = |token: &str, times: u64, expected: u16| {
        let before = fs::metadata(&file).unwrap().len();
        for _ in 0..times {
            let reply = request(server.url(), "PUT", "/v1/kv/data/big", Some(token), Some(&body)).unwrap();
            assert_eq!(reply.status, expected, "{}", reply.text);
        }
        (fs::metadata(&file).unwrap().len() - before) / times
    };
    let idle = peak(&server);
    let refused = ask(powerless, 2, 403);
    let held = peak(&server);
    let allowed = ask(server.token.as_deref().unwrap(), 1, 200);
    measured(&format!(
        "a body of {} MiB of empty strings: {refused} bytes of records when refused, {allowed} when allowed; peak {idle} MiB before, {held} and {} after",
        body.len() >> 20,
        peak(&server)
    ));
    assert!(refused < 4 << 10 && allowed < 8 << 10, "{refused} {allowed}");
    assert!(held < CEILING, "{held} MiB");
}
