//! Backups that the server takes by itself, and which of them it keeps.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{path_text, sos, started};
use crate::support::{Place, eventually};

#[test]
fn scheduled_backups_are_private_verified_few_and_missed_when_they_fail() {
    let place = Place::shamir_on("redb");
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
    let place = Place::shamir_on("redb");
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
    server.unseal(&made.shares);
    assert_eq!(server.get("sys/sos/backups").ok()["data"]["last"]["file"], written[3].as_str());
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
