//! The three bad days of an operator, one after the other, and their rehearsal: an HSM dies, the machine dies, everything
//! dies but a backup and the escrow shares.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::seals::{all_open, ciphertexts};
use crate::support::{Place, Server};

/// Runs `sos` with the place's tokens in reach; answers exit code, output and errors.
fn sos(place: &Place, server: Option<&Server<'_>>, arguments: &[&str], input: &str) -> (Option<i32>, String, String) {
    use std::io::Write;
    let mut command = Command::new(env!("CARGO_BIN_EXE_sos"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("SOFTHSM2_CONF", place.path("hsm/softhsm2.conf")).env("KRYOPTIC_CONF", place.path("kryoptic/token.conf"));
    if let Some(server) = server {
        command.env("VAULT_ADDR", server.url()).env("VAULT_TOKEN", server.token.as_deref().unwrap_or_default());
    }
    let mut child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that refuses its arguments does not read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let done = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (done.status.code(), text(&done.stdout), text(&done.stderr))
}

#[track_caller]
fn good(done: (Option<i32>, String, String)) -> String {
    assert_eq!(done.0, Some(0), "{}{}", done.1, done.2);
    done.1
}

/// Secrets with two versions each, in version 2 and version 1 mounts.
fn write_secrets(server: &Server<'_>, tag: &str, count: usize) {
    for number in 0..count {
        for version in 1..=2 {
            let data = json!({"data": {"value": format!("{tag}-{number}-{version}")}});
            server.put(&format!("kv/data/{tag}/{number}"), data).ok();
        }
        server.put(&format!("old/{tag}/{number}"), json!({"value": format!("{tag}-{number}")})).ok();
    }
}

#[track_caller]
fn secrets_are_there(server: &Server<'_>, tag: &str, count: usize) {
    for number in 0..count {
        for version in 1..=2 {
            let read = server.get(&format!("kv/data/{tag}/{number}?version={version}")).ok();
            assert_eq!(read["data"]["data"]["value"], format!("{tag}-{number}-{version}"));
        }
        let read = server.get(&format!("old/{tag}/{number}")).ok();
        assert_eq!(read["data"]["value"], format!("{tag}-{number}"));
    }
}

fn mounts(server: &Server<'_>) {
    server.mount_kv("kv");
    server.put("sys/mounts/old", json!({"type": "kv"})).ok();
    server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
}

/// A key pair in the HSM, with something it encrypted.
fn rsa_in_hsm(server: &Server<'_>) -> Option<(String, Value)> {
    let made = server.put("transit/keys/rsa-held", json!({"type": "rsa-2048", "protection_level": "hsm"}));
    if made.status == 400 {
        // One of the two modules cannot hold it; the reason is in the answer.
        eprintln!("{}", made.text);
        return None;
    }
    made.ok();
    let sealed = server.put("transit/encrypt/rsa-held", json!({"plaintext": "YQ=="})).ok();
    Some(("transit/decrypt/rsa-held".to_owned(), json!({"ciphertext": sealed["data"]["ciphertext"]})))
}

#[test]
fn three_bad_days() {
    let Some(place) = Place::two_hsms() else { return };
    let mut server = place.start();
    let made = server.init(3, 2);
    let root = made.root.clone();
    server.wait("second HSM ready", |_| server.get("sys/sos/seals/kryoptic").ok()["data"]["state"] == "ready");
    good(sos(&place, Some(&server), &["seal", "add", "kryoptic", "-"], &made.shares[..2].join("\n")));
    mounts(&server);
    write_secrets(&server, "before", 5);
    let mut sealed = ciphertexts(&server, "before");
    sealed.extend(rsa_in_hsm(&server));
    good(sos(&place, Some(&server), &["backup", "create", &place.path("first.backup").display().to_string()], ""));

    // The first bad day: the first HSM dies under the running server. Nobody does anything, everything goes on.
    fs::remove_dir_all(place.path("hsm/tokens")).unwrap();
    server.wait("served by the second HSM", |_| server.put(&sealed[0].0, sealed[0].1.clone()).status == 200);
    all_open(&server, &sealed);
    write_secrets(&server, "after", 5);
    sealed.extend(ciphertexts(&server, "after"));
    let backup = place.path("second.backup").display().to_string();
    good(sos(&place, Some(&server), &["backup", "create", &backup], ""));

    // The second bad day: the machine dies with its folder. The backup goes into an empty one.
    server.kill();
    fs::remove_dir_all(place.path("store")).unwrap();
    let config = format!("-config={}", place.path("sos.hcl").display());
    good(sos(&place, None, &["backup", "restore", &config, &backup], ""));
    let mut server = place.start();
    server.token = Some(root.clone());
    server.wait_unsealed();
    all_open(&server, &sealed);
    secrets_are_there(&server, "before", 5);
    secrets_are_there(&server, "after", 5);
    server.terminate();

    // The third bad day: the second HSM dies too. An empty token and two of three shares bring everything back.
    fs::remove_file(place.path("kryoptic/token.sql")).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("softhsm/make-token");
    let done = Command::new(script).arg(place.path("hsm")).arg("sos-test").output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let mut server = place.start();
    server.token = Some(root.clone());
    server.wait("sealed", |status| status["sealed"] == true && status["sealed_reason"] != "hsm-starting");
    server.unseal(&made.shares[1..]);
    server.wait("new token ready", |_| server.get("sys/sos/seals/softhsm").ok()["data"]["state"] == "ready");
    let out = good(sos(&place, Some(&server), &["operator", "recover-hsm", "-"], &made.shares[1..].join("\n")));
    assert!(out.contains("default/v1"), "{out}");
    all_open(&server, &sealed);
    secrets_are_there(&server, "before", 5);
    secrets_are_there(&server, "after", 5);
    good(sos(&place, Some(&server), &["seal", "remove", "-force", "kryoptic"], ""));
    server.terminate();
    let mut server = place.start();
    server.token = Some(root);
    server.wait_unsealed();
    all_open(&server, &sealed);
}

/// What the drill leaves behind in its folder.
fn left_in(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn the_drill_rehearses_it_beside_the_running_server_and_from_a_backup() {
    let Some(place) = Place::two_hsms() else { return };
    let mut server = place.start();
    let made = server.init(3, 2);
    mounts(&server);
    write_secrets(&server, "secret", 12);
    let sealed = ciphertexts(&server, "key");
    for name in ["key-hsm-aes256-gcm96", "key-software-rsa-2048"] {
        server.put(&format!("transit/keys/{name}/rotate"), json!({})).ok();
    }
    server.put("transit/keys/derived", json!({"derived": true, "protection_level": "software"})).ok();
    server.put("transit/keys/signs", json!({"type": "ecdsa-p256"})).ok();
    server.put("transit/keys/mac", json!({"type": "hmac", "key_size": 32})).ok();
    server.put("sys/sos/zones/default/rotate", json!({})).ok();
    server
        .put("sys/audit/file", json!({"type": "file", "options": {"file_path": place.path("audit.log").display().to_string()}}));
    let folder = place.path("drill");
    fs::create_dir(&folder).unwrap();
    let flags = [format!("-folder={}", folder.display())];
    let drill = |server: Option<&Server<'_>>, more: &[&str], shares: &[String]| {
        let mut arguments = vec!["recovery", "drill", flags[0].as_str()];
        arguments.extend(more);
        arguments.push("-");
        sos(&place, server, &arguments, &shares.join("\n"))
    };
    let before = server.get("sys/sos/seals").ok()["data"].clone();

    // Everything, beside the running server: 12 * (2 + 1) secrets; 2 + 1 + 2 + 1 + 1 + 1 key versions.
    let out = good(drill(Some(&server), &["-all", "-format=json"], &made.shares[1..]));
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["passed"], true, "{report}");
    assert_eq!(report["master_keys"], json!(["default/v1", "default/v2"]), "{report}");
    assert_eq!(
        report["secrets"],
        json!({"tried": 36, "opened": 36, "same": 36, "changed_since": 0, "not_compared": 0}),
        "{report}"
    );
    assert_eq!(
        report["key_versions"],
        json!({"tried": 8, "opened": 8, "same": 8, "changed_since": 0, "not_compared": 0}),
        "{report}"
    );
    assert_eq!((&report["lost_hsm_only"], &report["failed"]), (&json!([]), &json!(0)));

    // What would be lost is said by name, and the exit code tells.
    server.put("transit/keys/stays", json!({"protection_level": "hsm-only"})).ok();
    let (code, out, errors) = drill(Some(&server), &["-sample=3"], &made.shares[..2]);
    assert_eq!(code, Some(3), "{out}{errors}");
    assert!(out.contains("transit/stays v1") && out.contains("9 of 9 versions opened, 9 the same"), "{out}");
    assert!(errors.contains("rebuilding seal key"), "{errors}");

    // Shares that are too few, wrong, or another cluster's.
    for shares in [&made.shares[..1], &[made.shares[0].clone(), made.shares[0].clone()][..]] {
        let (code, _, errors) = drill(Some(&server), &[], shares);
        assert_eq!(code, Some(1), "{errors}");
        assert!(errors.contains("2 are needed"), "{errors}");
    }
    let mut foreign = made.shares[0].clone();
    foreign.replace_range(0..1, if foreign.starts_with('A') { "B" } else { "A" });
    let (code, _, errors) = drill(Some(&server), &[], &[foreign, made.shares[1].clone()]);
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("wrong shares"), "{errors}");

    // Nothing is left of it, and production is as it was.
    assert_eq!(left_in(&folder), [""; 0]);
    assert_eq!(server.get("sys/sos/seals").ok()["data"], before);
    all_open(&server, &sealed);

    // Offline, from a backup, on a token that the operator names. Afterwards that token is empty again.
    let backup = place.path("drill.backup").display().to_string();
    good(sos(&place, Some(&server), &["backup", "create", &backup], ""));
    server.terminate();
    let kryoptic: Vec<String> = fs::read_to_string(place.path("sos.hcl")).unwrap().lines().map(str::to_owned).collect();
    let kryoptic = kryoptic.iter().find(|line| line.contains("name = \"kryoptic\"")).unwrap();
    fs::write(place.path("token.hcl"), format!("{}\n{kryoptic}\n", place.plain_config("inmem"))).unwrap();
    let (backup, config) = (format!("-backup={backup}"), format!("-config={}", place.path("token.hcl").display()));
    for _ in 0..2 {
        let (code, out, errors) = drill(None, &[&backup, &config], &made.shares[..2]);
        assert_eq!(code, Some(3), "{out}{errors}");
        assert!(out.contains("36 of 36 versions opened\n"), "{out}");
    }
    // A token that holds the cluster's keys is not empty.
    let first = fs::read_to_string(place.path("sos.hcl")).unwrap();
    let first = first.lines().find(|line| line.contains("name = \"softhsm\"")).unwrap();
    fs::write(place.path("token.hcl"), format!("{}\n{first}\n", place.plain_config("inmem"))).unwrap();
    let (code, _, errors) = drill(None, &[&backup, &config], &made.shares[..2]);
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("name an empty token"), "{errors}");
    // Nor is one whose seal key is not that of the backup any more: its master keys would prove nothing.
    let mut server = place.start();
    server.token = Some(made.root.clone());
    server.wait_unsealed();
    server.put("sys/sos/seals/softhsm/rewrap", json!({})).ok();
    server.terminate();
    let (code, _, errors) = drill(None, &[&backup, &config], &made.shares[..2]);
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("name an empty token"), "{errors}");
    place.start().wait_unsealed();
}

/// Waits until the child has said `text` on its standard error; answers everything said so far.
fn until_said(errors: &mut impl std::io::Read, text: &str) -> String {
    let (mut said, mut byte) = (Vec::new(), [0]);
    while errors.read(&mut byte).unwrap() == 1 {
        said.push(byte[0]);
        if said.ends_with(text.as_bytes()) {
            break;
        }
    }
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn a_drill_that_finds_another_key_fails_and_one_that_is_cut_off_leaves_nothing() {
    use std::io::Write;
    let Some(place) = Place::two_hsms() else { return };
    let mut server = place.start();
    let made = server.init(3, 2);
    mounts(&server);
    write_secrets(&server, "secret", 5);
    ciphertexts(&server, "key");
    let backup = place.path("drill.backup").display().to_string();
    good(sos(&place, Some(&server), &["backup", "create", &backup], ""));
    let backup = format!("-backup={backup}");
    let shares = made.shares[..2].join("\n");

    // What the running server has is something else under the same names and versions.
    server.call("DELETE", "kv/metadata/secret/3", None).ok();
    server.put("kv/data/secret/3", json!({"data": {"value": "another"}})).ok();
    server.put("transit/keys/key-hsm-aes256-gcm96/config", json!({"deletion_allowed": true})).ok();
    server.call("DELETE", "transit/keys/key-hsm-aes256-gcm96", None).ok();
    server.put("transit/keys/key-hsm-aes256-gcm96", json!({"protection_level": "hsm"})).ok();
    let (code, out, errors) = sos(&place, Some(&server), &["recovery", "drill", "-all", &backup, "-"], &shares);
    assert_eq!(code, Some(2), "{out}{errors}");
    for said in [
        "FAILED: not everything came back",
        "transit/key-hsm-aes256-gcm96 v1: it is another key than the running server has",
        "kv/data/secret/3 v1: it opens to something else than the running server has",
        "Did not come back: 2",
    ] {
        assert!(out.contains(said), "{said:?} is missing: {out}");
    }
    let (code, out, _) = sos(&place, Some(&server), &["recovery", "drill", "-all", "-format=json", &backup, "-"], &shares);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &report["passed"], &report["failed"]), (Some(2), &json!(false), &json!(2)), "{report}");
    server.terminate();

    // On a token that stays: interrupted, it takes its objects away; killed, the next drill does.
    let text = fs::read_to_string(place.path("sos.hcl")).unwrap();
    let kryoptic = text.lines().find(|line| line.contains("name = \"kryoptic\"")).unwrap();
    fs::write(place.path("token.hcl"), format!("{}\n{kryoptic}\n", place.plain_config("inmem"))).unwrap();
    let config = format!("-config={}", place.path("token.hcl").display());
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM, rustix::process::Signal::KILL] {
        let mut command = place.command_of(&["recovery", "drill", "-all", &backup, &config, "-"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(shares.as_bytes()).unwrap();
        let mut errors = child.stderr.take().unwrap();
        until_said(&mut errors, "opening secrets");
        // It stands still while the token is looked at, so that it is not done before.
        let pid = rustix::process::Pid::from_raw(child.id().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        assert!(place.objects_on_kryoptic().iter().any(|label| label.starts_with("sos/drill-")));
        rustix::process::kill_process(pid, signal).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
        let rest = until_said(&mut errors, "never said");
        let code = child.wait().unwrap().code();
        if signal == rustix::process::Signal::KILL {
            assert!(place.objects_on_kryoptic().iter().any(|label| label.starts_with("sos/drill-")));
        } else if code == Some(1) {
            assert!(rest.contains("interrupted"), "{rest}");
            assert_eq!(place.objects_on_kryoptic(), [""; 0]);
        } else {
            // It was done before the signal arrived.
            assert_eq!((code, place.objects_on_kryoptic().len()), (Some(0), 0), "{rest}");
        }
    }
    let (code, out, errors) = sos(&place, None, &["recovery", "drill", &backup, &config, "-"], &shares);
    assert_eq!(code, Some(0), "{out}{errors}");
    assert!(errors.contains("of earlier drills that were cut off were removed"), "{errors}");
    for stage in ["preparing an empty token", "rebuilding seal key", "opening secrets", "cleaning up"] {
        assert!(errors.contains(stage), "{stage}: {errors}");
    }
    assert_eq!(place.objects_on_kryoptic(), [""; 0]);
}
