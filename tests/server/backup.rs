//! Backups of a running server, and what becomes of them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Made, Place, Server, eventually, measured, request};

fn path_text(path: &Path) -> String {
    path.display().to_string()
}

/// `sos backup …` against a server; its output must be good.
#[track_caller]
fn sos(server: &Server<'_>, arguments: &[&str]) -> String {
    let (code, out, err) = server.operator(&[&["backup"], arguments].concat(), "");
    assert_eq!(code, Some(0), "{arguments:?}: {out}{err}");
    out
}

/// `sos backup restore` without a server.
fn restore_offline(place: &Place, arguments: &[&str]) -> (bool, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sos"));
    command.env_clear().args(["backup", "restore", &format!("-config={}", path_text(&place.path("sos.hcl")))]).args(arguments);
    let done = command.output().unwrap();
    (done.status.success(), String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned())
}

fn unseal(server: &Server<'_>, made: &Made) {
    for share in &made.shares {
        server.put("sys/unseal", json!({"key": share})).ok();
    }
    server.wait_unsealed();
}

/// A shamir server on a store of this kind, with a secret.
fn place_on(storage: &str) -> Place {
    let place = Place::shamir();
    place.configure(&place.plain_config(storage));
    place
}

fn started<'a>(place: &'a Place) -> (Server<'a>, Made) {
    let mut server = place.start();
    let made = server.init(1, 1);
    unseal(&server, &made);
    server.mount_kv("kv");
    server.put("kv/data/a", json!({"data": {"x": "before"}})).ok();
    (server, made)
}

fn created(server: &Server<'_>, name: &str) -> PathBuf {
    let file = server.place.path(name);
    let out = sos(server, &["create", &path_text(&file)]);
    assert!(out.contains("Opens With"), "{out}");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    file
}

#[test]
fn a_backup_goes_back_into_the_running_server_and_into_empty_ones() {
    for storage in ["sled", "redb", "inmem"] {
        let place = place_on(storage);
        let (server, made) = started(&place);
        let short = server.put("auth/token/create", json!({"ttl": "3s", "policies": ["default"]})).ok();
        let short = short["auth"]["client_token"].as_str().unwrap().to_owned();
        let made_at = Instant::now();
        let file = created(&server, "one.backup");
        let out = sos(&server, &["verify", &path_text(&file)]);
        assert!(out.contains("not altered since") && out.contains("every checksum is right"), "{out}");

        server.put("kv/data/a", json!({"data": {"x": "after"}})).ok();
        server.put("kv/data/b", json!({"data": {"y": 1}})).ok();
        let (code, _, err) = server.operator(&["backup", "restore", &path_text(&file)], "");
        assert_eq!(code, Some(2));
        assert!(err.contains("is older than what is here: ") && err.contains("would be lost"), "{err}");
        assert_eq!(server.get("kv/data/a").ok()["data"]["data"]["x"], "after");

        std::thread::sleep(Duration::from_millis(3500).saturating_sub(made_at.elapsed()));
        sos(&server, &["restore", "-force", &path_text(&file)]);
        assert_eq!(server.status()["sealed"], true, "{storage}");
        unseal(&server, &made);
        let found = server.get("kv/data/a").ok();
        assert_eq!((&found["data"]["data"]["x"], &found["data"]["metadata"]["version"]), (&json!("before"), &json!(1)));
        assert_eq!(server.get("kv/data/b").status, 404);
        assert!(server.log().contains("this store was restored from a backup"));
        assert_eq!(server.get("sys/key-status").ok()["data"]["term"], 2);
        // The token was alive when the backup was taken.
        let late = request(server.url(), "GET", "/v1/auth/token/lookup-self", Some(&short), None).unwrap();
        assert_eq!(late.status, 403);
        // Versions go on behind the one that was lost.
        assert_eq!(server.put("kv/data/a", json!({"data": {"x": "new"}})).ok()["data"]["version"], 3);
        drop(server);
        if storage == "inmem" {
            continue;
        }

        // The machine is dead: another folder, no cluster in it, the server stopped.
        let other = place_on(storage);
        let (done, out) = restore_offline(&other, &[&path_text(&file)]);
        assert!(done, "{out}");
        let mut server = other.start();
        server.token = Some(made.root.clone());
        unseal(&server, &made);
        assert_eq!(server.get("kv/data/a").ok()["data"]["data"]["x"], "before");

        // And over HTTP into one that was never initialised, with another engine.
        let third = place_on(if storage == "sled" { "redb" } else { "sled" });
        let mut server = third.start();
        server.wait_reason("not-initialized");
        sos(&server, &["restore", &path_text(&file)]);
        server.token = Some(made.root.clone());
        unseal(&server, &made);
        assert_eq!(server.get("kv/data/a").ok()["data"]["data"]["x"], "before");
        // Now there is a cluster, and nobody may do that again without a token.
        server.token = None;
        let bytes = std::fs::read(&file).unwrap();
        let (code, _, err) = server.operator(&["backup", "restore", "-force", &path_text(&file)], "");
        assert_eq!(code, Some(2), "{err}");
        assert!(err.contains("permission denied") && !bytes.is_empty(), "{err}");
    }
}

#[test]
fn damaged_and_foreign_backups_change_nothing() {
    let place = place_on("redb");
    let (server, _made) = started(&place);
    let file = created(&server, "good.backup");
    let good = std::fs::read(&file).unwrap();
    let mut altered = good.clone();
    altered[good.len() / 2] ^= 1;
    let bad = place.path("bad.backup");
    for (bytes, text) in
        [(&good[..good.len() - 700], "damaged"), (altered.as_slice(), "damaged"), (b"hello".as_slice(), "damaged")]
    {
        std::fs::write(&bad, bytes).unwrap();
        for arguments in [["backup", "verify"], ["backup", "restore"]] {
            let (code, _, err) = server.operator(&[arguments[0], arguments[1], &path_text(&bad)], "");
            assert_ne!(code, Some(0));
            assert!(err.contains(text), "{arguments:?}: {err}");
        }
        assert_eq!(server.get("kv/data/a").ok()["data"]["data"]["x"], "before");
    }
    // The checksums of a foreign cluster's backup are right; its code is under another key.
    let foreign = place_on("sled");
    let (other, _) = started(&foreign);
    let theirs = created(&other, "theirs.backup");
    let (code, _, err) = server.operator(&["backup", "verify", &path_text(&theirs)], "");
    assert_ne!(code, Some(0));
    assert!(err.contains("not authentic"), "{err}");
    let (code, _, err) = server.operator(&["backup", "restore", &path_text(&theirs)], "");
    assert_eq!(code, Some(2));
    assert!(err.contains("of another cluster"), "{err}");
    let full = server.operator(&["backup", "create", &path_text(&file)], "");
    assert!(full.2.contains("exists already"), "{full:?}");
    server.terminate();
    let (done, out) = restore_offline(&place, &[&path_text(&theirs)]);
    assert!(!done && out.contains("of another cluster"), "{out}");
    let server = place.start();
    server.wait_reason("waiting-for-shares");
}

/// A forged list of checksums needs no key; the code at the end does.
#[test]
fn an_altered_backup_is_not_served() {
    let place = place_on("redb");
    let (server, made) = started(&place);
    let file = created(&server, "good.backup");
    server.terminate();
    let folder = place.path("forged");
    std::fs::create_dir(&folder).unwrap();
    let script = "tar xzf ../good.backup && head -c -1 records/000000001 > r && printf x >> r && mv r records/000000001 && \
                  sed -i '/records/d' SHA256SUMS && sha256sum records/000000001 >> SHA256SUMS && sort -o SHA256SUMS -k2 SHA256SUMS && \
                  python3 - <<'E'\nimport hashlib,json\nnames=['header.json','records/000000001','end.json']\n\
                  sums=''.join('%s  %s\\n'%(hashlib.sha256(open(n,'rb').read()).hexdigest(),n) for n in names)\n\
                  open('SHA256SUMS','w').write(sums)\ns=json.load(open('SHA256SUMS.sealed'))\n\
                  s['digest']=hashlib.sha256(sums.encode()).hexdigest()\njson.dump(s,open('SHA256SUMS.sealed','w'))\nE\n\
                  tar --format=ustar -czf ../forged.backup header.json records/000000001 end.json SHA256SUMS SHA256SUMS.sealed";
    let done = std::process::Command::new("bash").args(["-c", script]).current_dir(&folder).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let forged = path_text(&place.path("forged.backup"));
    // A drill says what is wrong, and blames neither the shares nor speaks of the program's inside.
    let (code, out, err) = {
        use std::io::Write;
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sos"));
        command.env_clear().args(["recovery", "drill", &format!("-backup={forged}"), "-"]);
        let piped = std::process::Stdio::piped;
        let mut child = command.stdin(piped()).stdout(piped()).stderr(piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(made.shares[0].as_bytes()).unwrap();
        let done = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (done.status.code(), text(&done.stdout), text(&done.stderr))
    };
    assert!(code == Some(1) && err.contains("the backup is not authentic"), "{out}{err}");
    assert!(!err.contains("Failure(") && !err.contains("the shares do not open"), "{err}");
    let (done, out) = restore_offline(&place, &["-force", &forged]);
    assert!(done, "{out}");
    let mut server = place.start();
    let refused = server.put("sys/unseal", json!({"key": made.shares[0]}));
    assert_ne!(refused.status, 200, "{}", refused.text);
    assert!(server.log().contains("not authentic"), "{}", server.log());
    server.terminate();
    // The true one still goes.
    let (done, out) = restore_offline(&place, &["-force", &path_text(&file)]);
    assert!(done, "{out}");
    server = place.start();
    server.token = Some(made.root.clone());
    unseal(&server, &made);
    assert_eq!(server.get("kv/data/a").ok()["data"]["data"]["x"], "before");
}

#[test]
fn killed_while_restoring_the_store_is_the_old_or_the_new_one() {
    for storage in ["sled", "redb"] {
        let place = place_on(storage);
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
            unseal(&server, &made);
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
            unseal(&server, &made);
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

#[test]
fn scheduled_backups_are_private_verified_few_and_missed_when_they_fail() {
    let place = place_on("redb");
    let folder = place.path("backups");
    let stanza = format!("\nbackup {{ folder = \"{}\" interval = \"1s\" keep = 2 warn_after = \"3s\" }}\n", folder.display());
    place.configure(&(place.plain_config("redb") + &stanza));
    let (server, _made) = started(&place);
    let files = || {
        let mut names: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names
    };
    let finished = || files().into_iter().filter(|name| name.extension().is_some_and(|ending| ending == "sosbackup")).count();
    eventually("two backups", || finished() == 2);
    let first = files();
    eventually("others take their place", || finished() <= 2 && files().iter().all(|name| !first.contains(name)));
    assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    for name in files() {
        if let Ok(meta) = name.metadata() {
            assert_eq!(meta.permissions().mode() & 0o777, 0o600);
        }
    }
    let out = sos(&server, &["list"]);
    assert!(out.lines().count() >= 1 && out.contains(".sosbackup"), "{out}");
    let out = sos(&server, &["list", &path_text(&folder)]);
    assert!(out.contains(".sosbackup"), "{out}");
    let now = server.put("sys/sos/backups", json!({}));
    assert!(now.status == 200 || now.errors().contains("another backup"), "{}", now.text);
    assert!(server.get("sys/health").body.get("warnings").is_none());

    // The folder cannot be written to any more: a file stands in its place.
    std::fs::rename(&folder, place.path("elsewhere")).unwrap();
    std::fs::write(&folder, "").unwrap();
    eventually("a warning", || server.get("sys/health").body.get("warnings").is_some());
    let health = server.get("sys/health");
    assert_eq!(health.status, 200);
    assert!(health.body["warnings"][0].as_str().unwrap().contains("the last good backup"), "{}", health.text);
    let metrics = server.get("sys/metrics?format=prometheus").text;
    assert!(metrics.lines().any(|line| line.starts_with("sos_backup_overdue{") && line.ends_with(" 1")), "{metrics}");
    let (_, out, errors) = server.operator(&["status"], "");
    assert!(format!("{out}{errors}").contains("the last good backup"), "{out}{errors}");
}

/// What lies in the folder beside the server's own is neither counted nor removed, whatever date it claims.
#[test]
fn retention_leaves_strange_files_alone_and_keeps_the_newest_backups() {
    let place = place_on("redb");
    let folder = place.path("backups");
    std::fs::create_dir(&folder).unwrap();
    let strange = ["sos-nightly.sosbackup", "sos-x-20300101T000000Z-7.sosbackup", "sos-x-20310101T000000Z-8.sosbackup"];
    for (name, content) in strange.iter().zip(["hello\n", "cut short", ""]) {
        std::fs::write(folder.join(name), content).unwrap();
    }
    let stanza = format!("\nbackup {{ folder = \"{}\" interval = \"1h\" keep = 2 }}\n", folder.display());
    place.configure(&(place.plain_config("redb") + &stanza));
    let (server, made) = started(&place);
    eventually("the first backup", || !server.get("sys/sos/backups").ok()["data"]["last"].is_null());
    let mut written = Vec::new();
    for number in 0..4 {
        server.put("kv/data/a", json!({"data": {"x": number}})).ok();
        written.push(server.put("sys/sos/backups", json!({})).ok()["data"]["file"].as_str().unwrap().to_owned());
    }
    let left: Vec<_> = written.iter().map(|file| Path::new(file).exists()).collect();
    assert_eq!(left, [false, false, true, true]);
    assert!(strange.iter().all(|name| folder.join(name).exists()));
    for name in strange {
        assert_eq!(server.log().matches(name).count(), 1, "{}", server.log());
    }
    server.terminate();
    // The next start takes none of them for its own last backup.
    let mut server = place.start();
    server.token = Some(made.root.clone());
    unseal(&server, &made);
    assert_eq!(server.get("sys/sos/backups").ok()["data"]["last"]["file"], written[3].as_str());
}

/// A snapshot that a client does not read to its end holds up neither other backups nor a restore.
#[test]
fn a_stalled_client_holds_up_neither_backups_nor_a_restore() {
    let place = place_on("redb");
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
    unseal(&server, &made);
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
    let place = place_on("redb");
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

/// Bad day two as docs/operating.md has it: the server's user owns the folder and the file before the restore.
#[test]
fn on_a_new_machine_a_restore_runs_as_the_servers_user() {
    use std::os::unix::{fs::MetadataExt, process::CommandExt};
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        return crate::support::left_out("only root can take another user's place");
    }
    let old = place_on("sled");
    let (server, _made) = started(&old);
    let file = created(&server, "newest.sosbackup");
    server.terminate();
    let machine = place_on("sled");
    std::fs::set_permissions(machine.path(""), std::fs::Permissions::from_mode(0o755)).unwrap();
    let home = machine.path("var/sos");
    std::fs::create_dir(machine.path("var")).unwrap();
    let store = home.join("store");
    let config = machine.path("new.hcl");
    std::fs::write(
        &config,
        format!("storage \"sled\" {{ path = \"{}\" }}\nlistener \"tcp\" {{ tls_disable = true }}\n", store.display()),
    )
    .unwrap();
    let restore = |user: u32, file: &Path| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sos"));
        command.env_clear().args(["backup", "restore", &path_text(file), &format!("-config={}", path_text(&config))]);
        let done = command.uid(user).gid(user).current_dir("/").output().unwrap();
        (done.status.success(), String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned())
    };
    for user in [0, NOBODY] {
        let (done, out) = restore(user, &file);
        assert!(!done && out.contains("is missing: make it for the server's user"), "{out}");
        assert!(!home.exists());
    }
    let install = |arguments: &[&str]| {
        let done = std::process::Command::new("install").args(["-o", "65534", "-g", "65534"]).args(arguments).status().unwrap();
        assert!(done.success());
    };
    install(&["-d", "-m", "0700", &path_text(&home)]);
    let (done, out) = restore(0, &file);
    assert!(!done && out.contains("belongs to user 65534 and this command runs as user 0"), "{out}");
    let (done, out) = restore(NOBODY, &file);
    assert!(!done && out.contains("Permission denied"), "{out}");
    install(&["-m", "0600", &path_text(&file), &path_text(&home)]);
    let (done, out) = restore(NOBODY, &home.join("newest.sosbackup"));
    assert!(done, "{out}");
    let mut folders = vec![home.clone()];
    let mut count = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            assert_eq!(entry.metadata().unwrap().uid(), NOBODY, "{}", entry.path().display());
            count += 1;
            if entry.path().is_dir() {
                folders.push(entry.path());
            }
        }
    }
    assert!(count > 3, "{count}");
}

#[test]
fn a_full_disk_leaves_no_half_file() {
    // /dev/full takes no byte; a backup is made beside its final place, so a link to it stands there.
    let place = place_on("redb");
    let (server, _made) = started(&place);
    let file = place.path("x.backup");
    std::os::unix::fs::symlink("/dev/full", place.path("x.backup.part")).unwrap();
    let (code, _, err) = server.operator(&["backup", "create", &path_text(&file)], "");
    assert_ne!(code, Some(0));
    assert!(err.contains("No space left on device"), "{err}");
    assert!(!file.exists() && !place.path("x.backup.part").is_symlink(), "something is left");
}

#[test]
fn a_full_disk_leaves_the_earlier_scheduled_backups_and_no_half_one() {
    const ENOSPC: i32 = 28;
    let Some(mut place) = Place::behind_faults("redb") else { return };
    let folder = place.path("backups");
    for (name, value) in &mut place.environment {
        if name == "SOS_POWERCUT_ROOT" {
            *value = path_text(&folder);
        }
    }
    let stanza = format!("\nbackup {{ folder = \"{}\" interval = \"1s\" keep = 2 warn_after = \"3s\" }}\n", folder.display());
    place.configure(&(place.plain_config("redb") + &stanza));
    let (server, _made) = started(&place);
    let names = || {
        let mut names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names
    };
    eventually("two backups", || {
        names().iter().filter(|name| name.extension().is_some_and(|end| end == "sosbackup")).count() == 2
    });
    place.fault("write", &format!("{ENOSPC} 1000000"));
    let full =
        || server.get("sys/sos/backups").ok()["data"]["last_failure"].as_str().unwrap_or_default().contains("the disk is full");
    eventually("the disk is full", full);
    let kept = names();
    assert!(kept.len() == 2 && kept.iter().all(|name| name.extension().is_some_and(|end| end == "sosbackup")), "{kept:?}");
    kept.iter().for_each(|file| assert!(sos(&server, &["verify", &path_text(file)]).contains("every checksum is right")));
    // On request it is refused with the reason.
    let (code, _, errors) = server.operator(&["backup", "create"], "");
    assert!(code == Some(2) && (errors.contains("the disk is full") || errors.contains("another backup")), "{errors}");
    eventually("a warning", || server.get("sys/health").body["warnings"].to_string().contains("the disk is full"));
    assert_eq!(names(), kept);
    place.mend("write");
    eventually("backups again", || names() != kept && !full());
}

#[test]
fn with_its_hsm_a_restored_server_unseals_itself_and_without_it_the_shares_do() {
    let (Some(place), Some(other)) = (Place::hsm(), Place::hsm()) else { return };
    let mut server = place.start();
    let made = server.init(3, 2);
    server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
    server.put("transit/keys/kek", json!({})).ok();
    let wrapped = server.put("transit/encrypt/kek", json!({"plaintext": "YQ=="})).ok();
    let wrapped = json!({"ciphertext": wrapped["data"]["ciphertext"]});
    let file = created(&server, "hsm.backup");
    let out = sos(&server, &["verify", &path_text(&file)]);
    assert!(out.contains("2 of 3 shares") && out.contains("all of them in escrow"), "{out}");
    server.call("DELETE", "sys/mounts/transit", None).ok();
    sos(&server, &["restore", "-force", &path_text(&file)]);
    server.wait_unsealed();
    assert_eq!(server.put("transit/decrypt/kek", wrapped.clone()).ok()["data"]["plaintext"], "YQ==");
    let (code, out, _) = server.operator(&["status"], "");
    assert!(code == Some(0) && out.contains("from a backup of"), "{out}");

    // Another machine with another HSM: that has to be said before anything happens.
    let mut second = other.start();
    second.wait_reason("not-initialized");
    eventually("the HSM is ready", || second.get("sys/sos/status").body["hsms"][0]["state"] == "ready");
    let (code, _, err) = second.operator(&["backup", "restore", &path_text(&file)], "");
    assert_eq!(code, Some(2));
    assert!(err.contains("does not hold its seal key, so only shares would open it"), "{err}");
    second.wait_reason("not-initialized");
    sos(&second, &["restore", "-force", &path_text(&file)]);
    second.wait_reason("hsm-key-missing");
    for share in made.shares.iter().take(2) {
        second.put("sys/unseal", json!({"key": share})).ok();
    }
    second.wait_unsealed();
    second.token = Some(made.root.clone());
    assert_eq!(second.get("transit/keys/kek").ok()["data"]["latest_version"], 1);

    // A restore without a server asks the HSMs too, and refuses where they do not answer.
    second.terminate();
    server.terminate();
    let offline = |place: &Place, pin: Option<&str>| {
        std::fs::remove_dir_all(place.path("store")).unwrap();
        let config = format!("-config={}", path_text(&place.path("sos.hcl")));
        let mut command = place.command_of(&["backup", "restore", &config, &path_text(&file)]);
        command.envs(pin.map(|pin| ("VAULT_HSM_PIN", pin)));
        let done = command.output().unwrap();
        (done.status.success(), String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned())
    };
    let (done, out) = offline(&other, None);
    assert!(!done && out.contains("no HSM that answers here holds its seal key, so only shares would open it"), "{out}");
    let pin = std::fs::read_to_string(place.path("hsm/pin")).unwrap();
    std::fs::rename(place.path("hsm/pin"), place.path("hsm/pin-elsewhere")).unwrap();
    std::fs::create_dir_all(place.path("store")).unwrap();
    let (done, out) = offline(&place, None);
    assert!(!done && out.contains("Not every HSM could be asked (pkcs11: ") && out.contains("VAULT_HSM_PIN"), "{out}");
    assert!(!place.path("store/db").exists());
    std::fs::create_dir_all(place.path("store")).unwrap();
    let (done, out) = offline(&place, Some(pin.trim()));
    assert!(done && !out.contains(pin.trim()), "{out}");
}

/// A backup that is newer than the one that was restored by mistake is not older than what is here.
#[test]
fn a_wrong_restore_is_followed_by_the_right_one_without_force() {
    let place = place_on("redb");
    let (server, made) = started(&place);
    let first = created(&server, "n1.backup");
    server.put("kv/data/a", json!({"data": {"x": "between"}})).ok();
    let second = created(&server, "n2.backup");
    let missed = server.put("kv/data/a", json!({"data": {"x": "after"}})).ok();
    assert_eq!(missed["data"]["version"], 3);
    sos(&server, &["restore", "-force", &path_text(&first)]);
    unseal(&server, &made);
    assert_eq!(server.get("kv/data/a").ok()["data"]["data"]["x"], "before");
    sos(&server, &["restore", &path_text(&second)]);
    unseal(&server, &made);
    assert_eq!(server.get("kv/data/a").ok()["data"]["data"]["x"], "between");
    // What is written now counts, and nothing else does.
    for number in 0..3 {
        server.put("kv/data/a", json!({"data": {"x": number}})).ok();
    }
    for (file, word) in [(&first, "older than what is here"), (&second, "older than what is here")] {
        let (code, _, err) = server.operator(&["backup", "restore", &path_text(file)], "");
        assert!(code == Some(2) && err.contains(word), "{err}");
        let count: u64 = err.split(" commit(s)").next().unwrap().rsplit(' ').next().unwrap().parse().unwrap();
        assert!((3..100).contains(&count), "{err}");
    }
}

/// What a restore loses, and what is made of it: a secret with so many versions, and one that the backup does not know.
fn lose(server: &Server<'_>) -> String {
    for number in 1..=4 {
        server.put("kv/data/s", json!({"data": {"n": number}})).ok();
    }
    server.put("kv/destroy/s", json!({"versions": [5, 6]})).ok();
    server.put("kv/data/later", json!({"data": {"n": 1}})).ok();
    server.put("transit/keys/kek/rotate", json!({})).ok();
    let lost = server.put("transit/encrypt/kek", json!({"plaintext": "YQ=="})).ok();
    server.put("transit/keys/kek/rotate", json!({})).ok();
    lost["data"]["ciphertext"].as_str().unwrap().to_owned()
}

fn write(server: &Server<'_>, path: &str) -> u64 {
    server.put(path, json!({"data": {"n": "again"}})).ok()["data"]["version"].as_u64().unwrap()
}

#[track_caller]
fn rotated(server: &Server<'_>) -> u64 {
    server.put("transit/keys/kek/rotate", json!({})).ok();
    server.get("transit/keys/kek").ok()["data"]["latest_version"].as_u64().unwrap()
}

#[test]
fn version_numbers_that_were_given_after_the_backup_are_not_given_again() {
    for storage in ["sled", "redb"] {
        let place = place_on(storage);
        let (mut server, made) = started(&place);
        server.put("kv/data/s", json!({"data": {"n": 0}})).ok();
        server.put("kv/data/s", json!({"data": {"n": 0}})).ok();
        server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
        server.put("transit/keys/kek", json!({})).ok();
        let old = server.put("transit/encrypt/kek", json!({"plaintext": "YQ=="})).ok()["data"]["ciphertext"].clone();
        let file = path_text(&created(&server, "versions.backup"));
        let lost = lose(&server);

        // Over the running server, and then over a stopped one: what stands there tells.
        for round in 0..2 {
            if round == 0 {
                sos(&server, &["restore", "-force", &file]);
            } else {
                server.terminate();
                let (done, out) = restore_offline(&place, &["-force", &file]);
                assert!(done, "{out}");
                server = place.start();
                server.token = Some(made.root.clone());
            }
            unseal(&server, &made);
            let read = server.get("kv/data/s").ok();
            assert_eq!(read["data"]["metadata"]["version"], 2, "{read}");
            assert_eq!(server.get("kv/data/s?version=4").status, 404);
            // A writer who saw a lost version is told that it is not the current one.
            let stale = json!({"options": {"cas": 6}, "data": {"n": 7}});
            assert_eq!(server.put("kv/data/s", stale).status, 400);
            let cas = json!({"options": {"cas": 2}, "data": {"n": 7}});
            assert_eq!(server.put("kv/data/s", cas).ok()["data"]["version"], 7 + round, "{storage}");
            assert_eq!((write(&server, "kv/data/later"), write(&server, "kv/data/new")), (2 + round, 1 + round));
            assert_eq!(rotated(&server), 4 + round);
            let refused = server.put("transit/decrypt/kek", json!({"ciphertext": lost}));
            assert_eq!((refused.status, refused.errors().as_str()), (400, "no such key version"));
            assert_eq!(server.put("transit/decrypt/kek", json!({"ciphertext": old})).ok()["data"]["plaintext"], "YQ==");
            let keys = server.get("transit/keys/kek").ok()["data"]["keys"].as_object().unwrap().len();
            assert_eq!(keys, 2);
        }

        // Where nobody can tell, numbers are left out, as many as the operator says.
        for (flags, next, key) in [(&["-skip-versions=20"][..], 23, 22), (&[][..], 1003, 1002)] {
            let other = place_on(storage);
            let arguments: Vec<&str> = flags.iter().copied().chain([file.as_str()]).collect();
            let (done, out) = restore_offline(&other, &arguments);
            assert!(done, "{out}");
            let mut server = other.start();
            server.token = Some(made.root.clone());
            unseal(&server, &made);
            assert_eq!((write(&server, "kv/data/s"), rotated(&server)), (next, key));
            assert_eq!(server.get("kv/data/s?version=1").ok()["data"]["data"]["n"], 0, "no version was pushed out");
            server.put("transit/decrypt/kek", json!({"ciphertext": old})).ok();
            // Only once: numbers go on one by one from there, also after a restart.
            server.terminate();
            let mut server = other.start();
            server.token = Some(made.root.clone());
            unseal(&server, &made);
            assert_eq!((write(&server, "kv/data/s"), rotated(&server)), (next + 1, key + 1));
        }
    }
}
