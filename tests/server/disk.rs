//! The disk fails under the whole server: errors on read, write and sync, no room, damaged files.
//!
//! The calls are made to fail by the library in tests/powercut. A failed sync also loses a part of what was not synced, as
//! a kernel may that gives up dirty pages.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Made, Place, Server, measured};

const EIO: u32 = 5;
const ENOSPC: u32 = 28;

fn ready<'a>(place: &'a Place) -> (Server<'a>, Made) {
    let mut server = place.start();
    let made = server.init(1, 1);
    server.put("sys/unseal", json!({"key": made.shares[0]})).ok();
    server.mount_kv("kv");
    (server, made)
}

fn reopen<'a>(place: &'a Place, made: &Made) -> Server<'a> {
    let mut server = place.start();
    server.put("sys/unseal", json!({"key": made.shares[0]})).ok();
    server.token = Some(made.root.clone());
    server
}

fn path(number: usize) -> String {
    format!("kv/data/k{number}")
}

fn write(server: &Server<'_>, number: usize) -> (u16, String) {
    let reply = server.put(&path(number), json!({"data": {"x": number, "filling": "z".repeat(number % 7 * 500)}}));
    (reply.status, reply.errors())
}

#[track_caller]
fn all_there(server: &Server<'_>, acknowledged: &[usize], when: &str) {
    for number in acknowledged {
        let reply = server.get(&path(*number));
        assert_eq!((reply.status, &reply.body["data"]["data"]["x"]), (200, &json!(number)), "{when}: {number}: {}", reply.text);
    }
}

#[test]
fn a_failed_write_or_sync_is_told_and_never_acknowledged() {
    for storage in ["sled", "redb"] {
        let Some(place) = Place::behind_faults(storage) else { return };
        place.fault("lose", "");
        let (server, made) = ready(&place);
        let mut acknowledged = Vec::new();
        let mut next = 0;
        let mut put = |server: &Server<'_>| {
            next += 1;
            let (status, errors) = write(server, next);
            if status == 200 {
                acknowledged.push(next);
            }
            (status, errors, acknowledged.clone())
        };
        for (call, error) in [("sync", EIO), ("write", EIO), ("write", ENOSPC), ("sync", ENOSPC), ("sync", EIO)] {
            for _ in 0..5 {
                assert_eq!(put(&server).0, 200);
            }
            place.fault(call, &format!("{error} 1"));
            let began = Instant::now();
            // One failure is hit by one commit: the error is told to its client and to nobody as success.
            let (status, errors, _) = put(&server);
            assert!((500..600).contains(&status), "{storage} {call} {error}: {status} {errors}");
            while put(&server).0 != 200 {
                assert!(
                    began.elapsed() < Duration::from_secs(20),
                    "{storage} {call} {error}: no write holds any more\n{}",
                    server.log()
                );
            }
            let took = began.elapsed();
            let (_, _, acknowledged) = put(&server);
            all_there(&server, &acknowledged, &format!("{storage} after {call} {error}"));
            measured(&format!("{storage}: {call} fails with {error}: {status}, writes hold again after {took:.2?}: {errors}"));
        }
        let (_, _, acknowledged) = put(&server);
        server.kill();
        let server = reopen(&place, &made);
        all_there(&server, &acknowledged, &format!("{storage} after kill -9"));
    }
}

/// The share that counts after a rekey, and whether it is a new one.
fn rekey(server: &Server<'_>, old: &str) -> (String, bool) {
    server.call("DELETE", "sys/rekey/init", None);
    let begun = server.put("sys/rekey/init", json!({"secret_shares": 1, "secret_threshold": 1}));
    let reply = server.put("sys/rekey/update", json!({"nonce": begun.body["nonce"], "key": old}));
    match reply.body["keys"][0].as_str() {
        Some(new) if reply.status == 200 && reply.body["warnings"].is_null() => (new.to_owned(), true),
        _ => {
            assert_eq!(reply.status, 500, "{}", reply.text);
            (old.to_owned(), false)
        }
    }
}

#[test]
fn a_sync_that_fails_under_a_rekey_loses_no_share() {
    for storage in ["sled", "redb"] {
        let mut told = Vec::new();
        // Behind so many syncs that succeed: some engines sync a commit twice.
        for behind in 0..3 {
            let Some(place) = Place::behind_faults(storage) else { return };
            if behind == 1 {
                place.fault("lose", "");
            }
            let (server, mut made) = ready(&place);
            assert_eq!(write(&server, 1).0, 200);
            place.fault("sync", &format!("{EIO} 1 {behind}"));
            let (share, new) = rekey(&server, &made.shares[0]);
            place.mend("sync");
            told.push(if new { "new" } else { "old" });
            // The server goes on with the root key that counts, and the next process opens the store with the share that does.
            let rotated = server.put("sys/rotate", json!({}));
            assert!(rotated.status < 300, "{storage} {behind}: {}", rotated.text);
            server.kill();
            if new {
                let server = place.start();
                assert_ne!(server.put("sys/unseal", json!({"key": made.shares[0]})).body["sealed"], json!(false));
                server.kill();
            }
            made.shares = vec![share.clone()];
            let server = reopen(&place, &made);
            all_there(&server, &[1], &format!("{storage} {behind}"));
            assert!(rekey(&server, &share).1);
        }
        measured(&format!("{storage}: a sync fails in a rekey, behind 0, 1, 2 good ones: the {told:?} shares count"));
    }
}

#[test]
fn on_a_full_disk_reads_go_on_and_writes_are_refused_until_there_is_room() {
    for storage in ["sled", "redb"] {
        let Some(place) = Place::behind_faults(storage) else { return };
        let (server, made) = ready(&place);
        let mut acknowledged: Vec<usize> = (0..20).filter(|number| write(&server, *number).0 == 200).collect();
        assert_eq!(acknowledged.len(), 20);
        place.fault("write", &format!("{ENOSPC} 1000000"));
        let mut refusals = Vec::new();
        for number in 100..104 {
            let (status, errors) = write(&server, number);
            assert!((500..600).contains(&status), "{storage}: {status} {errors}");
            refusals.push(format!("{status} {errors}"));
        }
        let reads = acknowledged.iter().filter(|number| server.get(&path(**number)).status == 200).count();
        // What cannot be read now is an error and not absent.
        assert!(acknowledged.iter().all(|number| server.get(&path(*number)).status != 404));
        place.mend("write");
        let began = Instant::now();
        while write(&server, 200).0 != 200 {
            assert!(began.elapsed() < Duration::from_secs(20), "{storage}: no write holds any more\n{}", server.log());
        }
        acknowledged.push(200);
        all_there(&server, &acknowledged, storage);
        measured(&format!(
            "{storage}: disk full: {reads} of 20 read meanwhile, writes hold {:.2?} after there is room: {}",
            began.elapsed(),
            refusals[0]
        ));
        server.kill();
        all_there(&reopen(&place, &made), &acknowledged, storage);
    }
}

#[test]
fn a_read_error_is_an_error_and_never_absence() {
    for storage in ["sled", "redb"] {
        let Some(place) = Place::behind_faults(storage) else { return };
        let (server, made) = ready(&place);
        let acknowledged: Vec<usize> = (0..50).filter(|number| write(&server, *number).0 == 200).collect();
        server.kill();
        let server = reopen(&place, &made);
        place.fault("read", &format!("{EIO} 1000000"));
        for number in &acknowledged {
            let reply = server.get(&path(*number));
            assert!(reply.status == 200 || reply.status >= 500, "{storage}: {} {}", reply.status, reply.text);
        }
        server.kill();
        // A store that cannot be read is not opened as an empty one.
        let said = refused(&place).expect("the server must not start on a store that it cannot read");
        assert!(said.contains("store"), "{said}");
        place.mend("read");
        all_there(&reopen(&place, &made), &acknowledged, storage);
    }
}

/// What the server says when it ends by itself within some time; `None` when it listens.
fn refused(place: &Place) -> Option<String> {
    let log = place.path("refused.log");
    let mut child = place.command().stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
    let began = Instant::now();
    loop {
        let said = fs::read_to_string(&log).unwrap_or_default();
        if let Some(status) = child.try_wait().unwrap() {
            assert!(!status.success(), "{said}");
            return Some(fs::read_to_string(&log).unwrap());
        }
        if said.contains("listening url=") || began.elapsed() > Duration::from_secs(20) {
            child.kill().unwrap();
            child.wait().unwrap();
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn store_files(place: &Place) -> Vec<PathBuf> {
    let files = fs::read_dir(place.path("store")).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    let kept = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name == "db" || name == "conf" || name == "sos.redb" || name.starts_with("snap")
    };
    let mut files: Vec<_> = files.filter(kept).collect();
    files.sort();
    files
}

#[test]
fn a_damaged_file_is_noticed_and_nothing_wrong_is_served() {
    for storage in ["sled", "redb"] {
        let place = Place::shamir_on(storage);
        let (server, made) = ready(&place);
        let acknowledged: Vec<usize> = (0..40).filter(|number| write(&server, *number).0 == 200).collect();
        server.terminate();
        let good: Vec<(PathBuf, Vec<u8>)> =
            store_files(&place).into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect();
        let (mut refusals, mut errors, mut whole) = (0, 0, 0);
        for (path_of, bytes) in &good {
            for round in 0..4_usize {
                // Spread over the part of the file that holds something.
                let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
                let at = (used * (2 * round + 1) / 8).min(bytes.len() - 1);
                let mut damaged = bytes.clone();
                if round == 3 {
                    damaged.truncate(at)
                } else {
                    damaged[at] ^= 0x40
                }
                fs::write(path_of, &damaged).unwrap();
                let what = format!("{storage}: {} damaged at {at} of {}", path_of.display(), bytes.len());
                match refused(&place) {
                    Some(said) => {
                        assert!(said.contains("store"), "{what}: {said}");
                        refusals += 1;
                    }
                    None => {
                        let mut server = place.start();
                        server.token = Some(made.root.clone());
                        let opened = server.put("sys/unseal", json!({"key": made.shares[0]}));
                        if opened.status != 200 || opened.body["sealed"] == true {
                            assert!(opened.status >= 400, "{what}: {}", opened.text);
                            errors += 1;
                        } else {
                            let mut wrong = false;
                            for number in &acknowledged {
                                let reply = server.get(&path(*number));
                                let right = reply.status == 200 && reply.body["data"]["data"]["x"] == json!(number);
                                assert!(right || reply.status >= 500, "{what}: {number}: {} {}", reply.status, reply.text);
                                wrong |= !right;
                            }
                            if wrong { errors += 1 } else { whole += 1 }
                        }
                        server.kill();
                    }
                }
                for (path_of, bytes) in &good {
                    fs::write(path_of, bytes).unwrap();
                }
                // A snapshot that the damaged run wrote belongs to it alone.
                for path_of in store_files(&place) {
                    if !good.iter().any(|(path, _)| *path == path_of) {
                        fs::remove_file(path_of).unwrap();
                    }
                }
            }
        }
        measured(&format!(
            "{storage}: damaged files: {refusals} refused at the start, {errors} told at some request, {whole} touched nothing in use"
        ));
        all_there(&reopen(&place, &made), &acknowledged, storage);
    }
}
