//! Nothing secret in logs, on command lines or in readable files.

use std::fs;
use std::path::Path;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::json;

use crate::support::{Place, measured};

/// Every file below `folder`, with its bytes.
fn files(folder: &Path, found: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, found);
        } else if let Ok(bytes) = fs::read(&path) {
            found.push((path.display().to_string(), bytes));
        }
    }
}

fn contains(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

#[test]
fn secrets_stay_out_of_logs_files_and_command_lines() {
    let Some(place) = Place::hsm() else { return };
    let more = format!("log_level = \"trace\"\naudit_paths = [\"{}\"]\n", place.path("").display());
    place.configure(&format!("{}\n{}\n{more}", place.plain_config("sled"), place.seal_stanza()));
    let pin = fs::read_to_string(place.path("hsm/pin")).unwrap().trim().to_string();
    let mut server = place.start();
    let made = server.init(2, 2);
    let audit = place.path("audit.log");
    server.put("sys/audit/file", json!({"type": "file", "options": {"file_path": audit}})).ok();
    server.mount_kv("kv");
    let planted = "planted-plaintext-7f3a9c";
    server.put("kv/data/a", json!({"data": {"password": planted}})).ok();
    server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
    for level in ["hsm", "software"] {
        server.put(&format!("transit/keys/{level}"), json!({"protection_level": level})).ok();
        let sealed = server.put(&format!("transit/encrypt/{level}"), json!({"plaintext": BASE64_STANDARD.encode(planted)})).ok();
        server.put(&format!("transit/decrypt/{level}"), json!({"ciphertext": sealed["data"]["ciphertext"]})).ok();
    }
    let child = server.put("auth/token/create", json!({"policies": ["default"]})).ok();
    let child = child["auth"]["client_token"].as_str().unwrap().to_string();
    // Errors must not quote what they were given.
    server.put("kv/data/a", json!(planted));
    server.put("sys/unseal", json!({"key": made.shares[0]}));
    server.call("GET", &format!("nowhere/{}", "x"), json!({"password": planted}));

    for pid in server.pids() {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        for secret in [&pin, &made.root] {
            assert!(!contains(&line, secret), "a secret is on the command line of process {pid}");
        }
    }
    measured(&format!("{} MiB resident after a few requests (debug build)", server.resident()));
    assert!(server.terminate().as_secs() < 10);

    let base64 = BASE64_STANDARD.encode(planted);
    let secrets: Vec<&str> =
        [&pin, &made.root, &child, planted, &base64].into_iter().chain(made.shares.iter().map(String::as_str)).collect();
    let mut found = vec![("server.log".to_string(), fs::read(place.path("server.log")).unwrap())];
    found.push(("audit.log".to_string(), fs::read(&audit).unwrap()));
    assert!(contains(&found[1].1, "kv/data/a"), "the audit device has no record");
    files(&place.path("store"), &mut found);
    assert!(found.len() > 1);
    for (name, bytes) in &found {
        for (index, secret) in secrets.iter().enumerate() {
            assert!(!contains(bytes, secret), "secret {index} is in {name}");
        }
    }
}
