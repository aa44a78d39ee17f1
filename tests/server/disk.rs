//! The disk fails under the whole server: errors on read, write and sync, no room, damaged files.
//!
//! The calls are made to fail by the library in tests/powercut. A failed sync also loses a part of what was not synced, as
//! a kernel may that gives up dirty pages.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Made, Place, Server, measured};

const EIO: u32 = 5;
const ENOSPC: u32 = 28;

/// How often each file is damaged.
const ROUNDS: usize = 4;

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
        // redb reads on. sled has to tidy pages up first, for which there is no room: it reads anything from none to all.
        assert!(storage != "redb" || reads == 20, "{storage}: {reads} of 20 were read");
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

/// The store's own files with their content. The rest (locks, the reserve, notes) is made anew when it is missing.
fn store_files(place: &Place) -> Vec<(PathBuf, Vec<u8>)> {
    let mut folders = vec![place.path("store")];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                folders.push(path);
            } else if ["db", "conf", "sos.redb", "current"].contains(&name)
                || name.starts_with("snap")
                || path.parent().is_some_and(|folder| folder.ends_with("blobs"))
            {
                files.push((path.clone(), fs::read(path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

/// Puts a store back as it was; what a damaged run wrote belongs to it alone.
fn put_back(place: &Place, whole: &tempfile::TempDir) {
    fs::remove_dir_all(place.path("store")).unwrap();
    copy_folder(whole.path(), &place.path("store"));
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() { copy_folder(&entry.path(), &to) } else { fs::copy(entry.path(), to).map(|_bytes| ()).unwrap() }
    }
}

/// What became of a damaged store. Fails where something wrong or nothing is served.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Damage {
    Refused,
    Told,
    NotMet,
}

fn meet(place: &Place, made: &Made, acknowledged: &[usize], what: &str) -> Damage {
    if let Some(said) = refused(place) {
        assert!(said.contains("store"), "{what}: {said}");
        return Damage::Refused;
    }
    let mut server = place.start();
    server.token = Some(made.root.clone());
    let opened = server.put("sys/unseal", json!({"key": made.shares[0]}));
    let mut told = opened.status != 200 || opened.body["sealed"] == true;
    if told {
        assert!(opened.status >= 400, "{what}: {}", opened.text);
    } else {
        for number in acknowledged {
            let reply = server.get(&path(*number));
            let right = reply.status == 200 && reply.body["data"]["data"]["x"] == json!(number);
            assert!(right || reply.status >= 500, "{what}: {number}: {} {}", reply.status, reply.text);
            told |= !right;
        }
    }
    server.kill();
    if told { Damage::Told } else { Damage::NotMet }
}

/// Damages each of the store's files in turn, in several places; counts what became of it, by file name.
fn damage_all(place: &Place, made: &Made, acknowledged: &[usize], storage: &str) -> BTreeMap<(String, Damage), usize> {
    let whole = tempfile::tempdir().unwrap();
    copy_folder(&place.path("store"), whole.path());
    let mut tally = BTreeMap::new();
    for (path_of, bytes) in store_files(place) {
        for round in 0..ROUNDS {
            // Spread over the part of the file that holds something.
            let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
            let at = (used * (2 * round + 1) / 8).min(bytes.len() - 1);
            let mut damaged = bytes.clone();
            if round == 3 {
                damaged.truncate(at)
            } else {
                damaged[at] ^= 0x40
            }
            fs::write(&path_of, &damaged).unwrap();
            let what = format!("{storage}: {} damaged at {at} of {}", path_of.display(), bytes.len());
            let name = match path_of.parent().is_some_and(|folder| folder.ends_with("blobs")) {
                true => "a blob".to_owned(),
                false => path_of.file_name().unwrap().to_str().unwrap().to_owned(),
            };
            *tally.entry((name, meet(place, made, acknowledged, &what))).or_default() += 1;
            put_back(place, &whole);
        }
    }
    tally
}

fn judge(storage: &str, when: &str, tally: &BTreeMap<(String, Damage), usize>, wanted: &[&str]) {
    measured(&format!("{storage}, {when}: {tally:?}"));
    for name in wanted {
        let count = |met: bool| -> usize {
            tally
                .iter()
                .filter(|((of, damage), _)| of == name && (*damage != Damage::NotMet) == met)
                .map(|(_, count)| count)
                .sum()
        };
        // `current` is one line without an idle place, and one blob at least is a record that is read. Of the other files much holds
        // what nobody needs any more.
        let least = match *name {
            "current" => count(false) + count(true),
            "a blob" => ROUNDS,
            _ => 1,
        };
        assert!(count(true) >= least.max(1), "{storage}, {when}: {name} was damaged and nobody noticed: {tally:?}");
    }
}

#[test]
fn a_damaged_file_is_noticed_and_nothing_wrong_is_served() {
    for storage in ["sled", "redb"] {
        let place = Place::shamir_on(storage);
        let small = format!("storage {storage:?} {{ path = {:?} compact_above = \"64KiB\" }}", place.path("store"));
        let large = format!("storage {storage:?} {{ path = {:?} compact_above = \"1GiB\" }}", place.path("store"));
        let rest = "\nlistener \"tcp\" { address = \"127.0.0.1:0\" tls_disable = true }\ndisable_mlock = true\n";
        place.configure(&format!("{large}{rest}"));
        let (server, made) = ready(&place);
        let mut acknowledged: Vec<usize> = (0..40).filter(|number| write(&server, *number).0 == 200).collect();
        // sled gives a value of this size a file of its own.
        server.put(&path(1000), json!({"data": {"x": 1000, "filling": "z".repeat(300_000)}})).ok();
        acknowledged.push(1000);
        assert_eq!(acknowledged.len(), 41);
        server.terminate();
        let main: &[&str] = if storage == "sled" { &["db", "a blob"] } else { &["sos.redb"] };
        judge(storage, "as it was made", &damage_all(&place, &made, &acknowledged, storage), main);

        place.configure(&format!("{small}{rest}"));
        let server = reopen(&place, &made);
        // More than the journal before redb keeps from it, and then no longer needed: the files are written anew.
        for number in 0..100 {
            server.put(&format!("kv/data/room-{number}"), json!({"data": {"filling": "z".repeat(72_000)}})).ok();
        }
        for number in 0..100 {
            server.call("DELETE", &format!("kv/metadata/room-{number}"), None);
        }
        let began = Instant::now();
        while !place.path("store/current").exists() {
            assert!(began.elapsed() < Duration::from_secs(30), "{storage}: the files are not written anew\n{}", server.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        server.terminate();
        place.configure(&format!("{large}{rest}"));
        let main: &[&str] = if storage == "sled" { &["db", "a blob", "current"] } else { &["sos.redb", "current"] };
        judge(storage, "after a compaction", &damage_all(&place, &made, &acknowledged, storage), main);
        all_there(&reopen(&place, &made), &acknowledged, storage);
    }
}
