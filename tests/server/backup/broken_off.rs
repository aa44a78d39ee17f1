//! Backups and restores that are killed or run out of disk, and clients that stall or go away.

use std::time::Instant;

use serde_json::json;

use super::{created, path_text, restore_offline, started};
use crate::support::{Place, eventually, measured};

#[test]
fn killed_while_restoring_the_store_is_the_old_or_the_new_one() {
    for storage in ["sled", "redb"] {
        let place = Place::shamir_on(storage);
        let (server, made) = started(&place);
        // Enough that a restore takes a while.
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let server = &server;
                scope.spawn(move || {
                    let filler = "f".repeat(20_000);
                    for number in 0..25 {
                        server.put(&format!("kv/data/fill-{writer}-{number}"), json!({"data": {"f": filler}})).ok();
                    }
                });
            }
        });
        let file = created(&server, "good.backup");
        server.put("kv/data/a", json!({"data": {"x": "after"}})).ok();
        server.terminate();
        let began = Instant::now();
        let (done, out) = restore_offline(&place, &["-force", &path_text(&file)]);
        assert!(done, "{out}");
        let whole = began.elapsed();
        let (mut old, mut new) = (0, 0);
        for round in 0..8 {
            // Brought forward first, so that old and new can be told apart.
            let mut server = place.start();
            server.token = Some(made.root.clone());
            server.unseal(&made.shares);
            server.put("kv/data/a", json!({"data": {"x": format!("round {round}")}})).ok();
            server.terminate();
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sos"));
            command.env_clear().args(["backup", "restore", "-force", &format!("-config={}", path_text(&place.path("sos.hcl")))]);
            let mut child =
                command.arg(&file).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
            std::thread::sleep(whole.mul_f64(f64::from(round + 1) / 8.0));
            child.kill().unwrap();
            child.wait().unwrap();
            let mut server = place.start();
            server.token = Some(made.root.clone());
            server.unseal(&made.shares);
            match server.get("kv/data/a").ok()["data"]["data"]["x"].as_str().unwrap() {
                "before" => new += 1,
                text => {
                    assert_eq!(text, format!("round {round}"));
                    old += 1;
                }
            }
            assert_eq!(server.call("LIST", "kv/metadata", None).ok()["data"]["keys"].as_array().unwrap().len(), 101);
            server.terminate();
            assert!(!place.path("store/restore.new").exists());
        }
        measured(&format!("kill -9 while restoring on {storage}: {old} times the old store, {new} times the new one"));
    }
}

/// A snapshot that a client does not read to its end holds up neither other backups nor a restore.
#[test]
fn a_stalled_client_holds_up_neither_backups_nor_a_restore() {
    let place = Place::shamir_on("redb");
    let stanza = format!("\nbackup {{ folder = \"{}\" interval = \"1h\" }}\n", place.path("backups").display());
    place.configure(&(place.plain_config("redb") + &stanza));
    let (server, made) = started(&place);
    // More than the buffers between the two take.
    let filler = "f".repeat(900_000);
    for number in 0..20 {
        server.put(&format!("kv/data/fill-{number}"), json!({"data": {"f": filler}})).ok();
    }
    let file = created(&server, "good.backup");
    let stalled: Vec<_> = (0..2)
        .map(|_| {
            use std::io::{Read, Write};
            let mut stream = std::net::TcpStream::connect(server.url().trim_start_matches("http://")).unwrap();
            let ask = format!("GET /v1/sys/storage/raft/snapshot HTTP/1.1\r\nHost: x\r\nX-Vault-Token: {}\r\n\r\n", made.root);
            stream.write_all(ask.as_bytes()).unwrap();
            stream.read_exact(&mut [0; 1000]).unwrap();
            stream
        })
        .collect();
    server.put("sys/sos/backups", json!({})).ok();
    created(&server, "another.backup");
    server.put("kv/data/a", json!({"data": {"x": "after"}})).ok();
    let (code, _, err) = server.operator(&["backup", "restore", "-force", &path_text(&file)], "");
    assert_eq!(code, Some(0), "{err}{}", server.log());
    server.unseal(&made.shares);
    assert_eq!(server.get("kv/data/a").ok()["data"]["data"]["x"], "before");
    assert!(server.log().contains("broke off"), "{}", server.log());
    // Neither client may take what it has for whole.
    for mut stream in stalled {
        let mut rest = Vec::new();
        let _ = std::io::Read::read_to_end(&mut stream, &mut rest);
        assert!(!rest.ends_with(b"0\r\n\r\n"));
    }
}

/// A server that sends the beginning of a backup and then nothing more.
#[test]
fn an_interrupted_create_leaves_no_file() {
    use std::io::{Read, Write};
    let folder = tempfile::tempdir().unwrap();
    for (signal, code) in [(rustix::process::Signal::INT, 130), (rustix::process::Signal::TERM, 143)] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let file = folder.path().join("x.backup");
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sos"));
        command.env_clear().env("VAULT_ADDR", format!("http://{}", listener.local_addr().unwrap())).env("VAULT_TOKEN", "t");
        command.args(["backup", "create", &path_text(&file)]).stderr(std::process::Stdio::null());
        let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/gzip\r\nContent-Length: 99999999\r\n\r\n").unwrap();
        stream.write_all(&vec![7; 300_000]).unwrap();
        let unfinished = folder.path().join("x.backup.part");
        eventually("the file is begun", || unfinished.exists());
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

/// Whoever reads the log sees how a restore ended that its client gave up.
#[test]
fn a_restore_whose_client_goes_away_changes_nothing_and_says_so() {
    use std::io::Write;
    let place = Place::shamir_on("redb");
    let (server, made) = started(&place);
    for number in 0..10 {
        server.put(&format!("kv/data/fill-{number}"), json!({"data": {"f": "f".repeat(200_000)}})).ok();
    }
    let file = created(&server, "good.backup");
    server.put("kv/data/a", json!({"data": {"x": "after"}})).ok();
    let bytes = std::fs::read(file).unwrap();
    let mut stream = std::net::TcpStream::connect(server.url().trim_start_matches("http://")).unwrap();
    let head = format!(
        "POST /v1/sys/storage/raft/snapshot-force HTTP/1.1\r\nHost: x\r\nX-Vault-Token: {}\r\nContent-Length: {}\r\n\r\n",
        made.root,
        bytes.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&bytes[..bytes.len() / 2]).unwrap();
    eventually("the restore begins", || server.log().contains("restoring with force"));
    drop(stream);
    eventually("its end is told", || server.log().contains("no backup was restored"));
    assert_eq!(server.get("kv/data/a").ok()["data"]["data"]["x"], "after");
}

#[test]
fn a_full_disk_leaves_no_half_file() {
    // /dev/full takes no byte; a backup is made beside its final place, so a link to it stands there.
    let place = Place::shamir_on("redb");
    let (server, _made) = started(&place);
    let file = place.path("x.backup");
    std::os::unix::fs::symlink("/dev/full", place.path("x.backup.part")).unwrap();
    let (code, _, err) = server.operator(&["backup", "create", &path_text(&file)], "");
    assert_ne!(code, Some(0));
    assert!(err.contains("No space left on device"), "{err}");
    assert!(!file.exists() && !place.path("x.backup.part").is_symlink(), "something is left");
}
