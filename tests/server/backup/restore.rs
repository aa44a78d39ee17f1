//! A good backup goes back: into the running server, over a stopped one, onto a new machine.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{created, path_text, restore_offline, sos, started};
use crate::support::{Place, eventually, request};

#[test]
fn a_backup_goes_back_into_the_running_server_and_into_empty_ones() {
    for storage in ["sled", "redb", "inmem"] {
        let place = Place::shamir_on(storage);
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
        server.unseal(&made.shares);
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
        let other = Place::shamir_on(storage);
        let (done, out) = restore_offline(&other, &[&path_text(&file)]);
        assert!(done, "{out}");
        let mut server = other.start();
        server.token = Some(made.root.clone());
        server.unseal(&made.shares);
        assert_eq!(server.get("kv/data/a").ok()["data"]["data"]["x"], "before");

        // And over HTTP into one that was never initialised, with another engine.
        let third = Place::shamir_on(if storage == "sled" { "redb" } else { "sled" });
        let mut server = third.start();
        server.wait_reason("not-initialized");
        sos(&server, &["restore", &path_text(&file)]);
        server.token = Some(made.root.clone());
        server.unseal(&made.shares);
        assert_eq!(server.get("kv/data/a").ok()["data"]["data"]["x"], "before");
        // Now there is a cluster, and nobody may do that again without a token.
        server.token = None;
        let bytes = std::fs::read(&file).unwrap();
        let (code, _, err) = server.operator(&["backup", "restore", "-force", &path_text(&file)], "");
        assert_eq!(code, Some(2), "{err}");
        assert!(err.contains("permission denied") && !bytes.is_empty(), "{err}");
    }
}

/// A backup that is newer than the one that was restored by mistake is not older than what is here.
#[test]
fn a_wrong_restore_is_followed_by_the_right_one_without_force() {
    let place = Place::shamir_on("redb");
    let (server, made) = started(&place);
    let first = created(&server, "n1.backup");
    server.put("kv/data/a", json!({"data": {"x": "between"}})).ok();
    let second = created(&server, "n2.backup");
    let missed = server.put("kv/data/a", json!({"data": {"x": "after"}})).ok();
    assert_eq!(missed["data"]["version"], 3);
    sos(&server, &["restore", "-force", &path_text(&first)]);
    server.unseal(&made.shares);
    assert_eq!(server.get("kv/data/a").ok()["data"]["data"]["x"], "before");
    sos(&server, &["restore", &path_text(&second)]);
    server.unseal(&made.shares);
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

/// Bad day two as docs/operating.md has it: the server's user owns the folder and the file before the restore.
#[test]
fn on_a_new_machine_a_restore_runs_as_the_servers_user() {
    use std::os::unix::{fs::MetadataExt, process::CommandExt};
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        return crate::support::left_out("only root can take another user's place");
    }
    let old = Place::shamir_on("sled");
    let (server, _made) = started(&old);
    let file = created(&server, "newest.sosbackup");
    server.terminate();
    let machine = Place::shamir_on("sled");
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
