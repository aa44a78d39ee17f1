//! An instance of sled whose large value could not be written never ends its flush, and holds up all others with that. The process ends
//! with a status by which a supervisor starts it again, and nothing that was acknowledged is missing then.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Made, Place, Server, measured};

const EIO: u32 = 5;

/// What a supervisor sees, as from sysexits.h: try again.
const STUCK: i32 = 75;

/// sled gives a value of this size a file of its own.
const LARGE: usize = 600_000;

fn place() -> Option<Place> {
    let place = Place::behind_faults("sled")?;
    place.configure(&format!(
        "storage \"sled\" {{ path = {:?} compact_above = \"64KiB\" }}\nlistener \"tcp\" {{ address = \"127.0.0.1:0\" tls_disable = true }}\ndisable_mlock = true\n",
        place.path("store")
    ));
    Some(place)
}

fn ready<'a>(place: &'a Place) -> (Server<'a>, Made) {
    let mut server = place.start();
    let made = server.init(1, 1);
    server.put("sys/unseal", json!({"key": made.shares[0]})).ok();
    server.mount_kv("kv");
    for number in 0..3 {
        server.put(&path(number), json!({"data": {"filling": "x".repeat(LARGE)}})).ok();
    }
    (server, made)
}

fn path(number: u32) -> String {
    format!("kv/data/k{number}")
}

/// Writes and deletes, in the background, until nothing is answered: the files grow and are written anew meanwhile. Answers what of `3..` was
/// acknowledged last.
fn write_until_it_ends(server: &Server<'_>) -> std::thread::JoinHandle<u32> {
    let (url, token) = (server.url().to_owned(), server.token.clone());
    std::thread::spawn(move || {
        let mut acknowledged = 3;
        for number in 3.. {
            let put = |path: &str, filling: usize| {
                let body = json!({"data": {"filling": "y".repeat(filling)}}).to_string();
                crate::support::request(&url, "PUT", &format!("/v1/{path}"), token.as_deref(), Some(&body))
                    .is_ok_and(|reply| reply.status == 200)
            };
            if !put(&path(number), 10) || !put("kv/data/churn", 100_000) {
                break;
            }
            acknowledged = number;
        }
        acknowledged
    })
}

fn all_there(place: &Place, made: &Made, acknowledged: u32) {
    let mut server = place.start();
    server.put("sys/unseal", json!({"key": made.shares[0]})).ok();
    server.token = Some(made.root.clone());
    for number in 0..=acknowledged {
        let filling = if number < 3 { LARGE } else { 10 };
        let reply = server.get(&path(number));
        assert_eq!(reply.status, 200, "{number}: {}", reply.text);
        assert_eq!(reply.body["data"]["data"]["filling"].as_str().map(str::len), Some(filling), "{number}");
    }
    server.terminate();
}

#[test]
fn a_copy_whose_large_value_cannot_be_written_ends_the_process_and_loses_nothing() {
    let Some(mut place) = place() else { return };
    place.environment.push(("SOS_GIVE_UP_AFTER".into(), "1500".into()));
    let (server, made) = ready(&place);
    place.fault("write", &format!("{EIO} 1 0 generation-1/blobs"));
    let writing = write_until_it_ends(&server);
    let began = Instant::now();
    let (status, log) = server.wait_ended();
    assert_eq!(status.code(), Some(STUCK), "{log}");
    assert!(log.contains("does not let go of its files") && log.contains("status 75"), "{log}");
    let acknowledged = writing.join().unwrap();
    measured(&format!(
        "sled: the copy's large value fails: ended with {STUCK} after {:.1?}, {acknowledged} acknowledged",
        began.elapsed()
    ));
    assert_eq!(fs::read_to_string(place.path("faults/write")).unwrap().split(' ').nth(1), Some("0"), "it was that write");
    place.mend("write");
    assert!(!place.path("store/current").exists());
    all_there(&place, &made, acknowledged);
}

#[test]
fn a_store_whose_large_value_cannot_be_written_ends_the_process_and_loses_nothing() {
    let Some(mut place) = place() else { return };
    place.environment.push(("SOS_GIVE_UP_AFTER".into(), "1500".into()));
    let (server, made) = ready(&place);
    place.fault("write", &format!("{EIO} 1 0 store/blobs"));
    // To show a record sled may tidy up a page with large values: then it is a read that fails, and the next flush does not end.
    server.send("PUT", &path(9), &json!({"data": {"filling": "x".repeat(LARGE)}}));
    server.send("PUT", "kv/data/small", &json!({"data": {"filling": "x"}}));
    let (status, log) = server.wait_ended();
    assert_eq!(status.code(), Some(STUCK), "{log}");
    place.mend("write");
    all_there(&place, &made, 2);
}

#[test]
fn a_server_whose_store_is_stuck_ends_on_sigterm() {
    let Some(place) = place() else { return };
    let (server, made) = ready(&place);
    place.fault("write", &format!("{EIO} 1 0 generation-1/blobs"));
    let writing = write_until_it_ends(&server);
    server.wait_log("sled does not end the flush of a copy");
    server.signal(rustix::process::Signal::TERM);
    let began = Instant::now();
    let (status, log) = server.wait_ended();
    measured(&format!("sled: stuck, ended {:.1?} after SIGTERM with {status}", began.elapsed()));
    assert!(status.success(), "{log}");
    assert!(log.lines().next_back().unwrap().ends_with(" stopped"), "that is said last: {log}");
    assert!(began.elapsed() < Duration::from_secs(20), "{log}");
    let acknowledged = writing.join().unwrap();
    place.mend("write");
    all_there(&place, &made, acknowledged);
}
