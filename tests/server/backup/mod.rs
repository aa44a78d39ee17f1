//! Backups of a running server, and what becomes of them.

mod broken_off;
mod counts;
mod refused;
mod restore;
mod scheduled;
mod versions;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::support::{Made, Place, Server};

/// An unsealed server with a secret.
fn started<'a>(place: &'a Place) -> (Server<'a>, Made) {
    let mut server = place.start();
    let made = server.init(1, 1);
    server.unseal(&made.shares);
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

/// The server after a restore over its own store, while it runs or while it is stopped; unsealed.
fn restored_over<'a>(place: &'a Place, mut server: Server<'a>, made: &Made, file: &str, running: bool) -> Server<'a> {
    if running {
        sos(&server, &["restore", "-force", file]);
    } else {
        server.terminate();
        let (done, out) = restore_offline(place, &["-force", file]);
        assert!(done, "{out}");
        server = place.start();
        server.token = Some(made.root.clone());
    }
    server.unseal(&made.shares);
    server
}

fn path_text(path: &Path) -> String {
    path.display().to_string()
}
