//! Backups that are damaged, forged or of another cluster.

use serde_json::json;

use super::{created, path_text, restore_offline, started};
use crate::support::Place;

#[test]
fn damaged_and_foreign_backups_change_nothing() {
    let place = Place::shamir_on("redb");
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
    let foreign = Place::shamir_on("sled");
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
    let place = Place::shamir_on("redb");
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
    server.unseal(&made.shares);
    assert_eq!(server.get("kv/data/a").ok()["data"]["data"]["x"], "before");
}
