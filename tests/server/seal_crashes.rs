//! kill -9 at every named point of adding, removing and re-wrapping a seal, and of a restore: the next start serves, the
//! list of seals is true, the same command again finishes, and nothing is left on a token that no record names.

use serde_json::{Value, json};

use crate::seals::{all_open, ciphertexts};
use crate::support::{Made, Place, Server, eventually};

/// What is done to Kryoptic (or, where it says so, to SoftHSM) when the point is passed.
#[derive(Clone, Copy, PartialEq)]
enum Work {
    Add,
    Remove,
    Rewrap(&'static str),
}

/// A point, the work that passes it, and whether Kryoptic is enrolled afterwards.
const POINTS: &[(&str, Work, bool)] = &[
    ("seal-transport-key", Work::Add, true),
    ("seal-add-intent", Work::Add, false),
    ("seal-rewrap-intent", Work::Rewrap("kryoptic"), true),
    ("seal-add-key", Work::Add, false),
    ("seal-rewrap-key", Work::Rewrap("softhsm"), true),
    ("seal-add-transport", Work::Add, false),
    ("seal-rewrap-committed", Work::Rewrap("kryoptic"), true),
    ("seal-add-masters", Work::Add, false),
    ("seal-remove-committed", Work::Remove, false),
    ("seal-add-committed", Work::Add, true),
    ("seal-settle-destroyed", Work::Remove, false),
];

impl Work {
    fn request(self, made: &Made) -> (&'static str, String, Value) {
        match self {
            Work::Add => ("PUT", "sys/sos/seals/kryoptic".into(), json!({"keys": made.shares[..2]})),
            Work::Remove => ("DELETE", "sys/sos/seals/kryoptic".into(), json!({})),
            Work::Rewrap(name) => ("PUT", format!("sys/sos/seals/{name}/rewrap"), json!({})),
        }
    }
}

fn seal(server: &Server<'_>, name: &str) -> Value {
    server.get(&format!("sys/sos/seals/{name}")).ok()["data"].clone()
}

/// Starts a server on the cluster that kills itself at `point`, and waits until it serves with both HSMs.
fn start<'a>(place: &'a Place, made: &Made, point: &str) -> Server<'a> {
    let mut server = place.start_to_crash_at(point);
    server.token = Some(made.root.clone());
    server.wait_unsealed();
    for name in ["softhsm", "kryoptic"] {
        server.wait("ready", |_| seal(&server, name)["state"] == "ready");
    }
    server
}

/// What the cluster has on a token: so many seal keys, transport keys and versions of the zone's master key.
fn counted(labels: &[String]) -> [usize; 3] {
    let count = |part: &str| labels.iter().filter(|label| label.contains(part)).count();
    let counts = [count("/seal/root/"), count("/seal/transport/"), count("/zone/default/")];
    assert_eq!(counts.iter().sum::<usize>(), labels.len(), "{labels:?}");
    counts
}

#[test]
fn killed_at_any_point_of_add_remove_and_rewrap() {
    let Some(place) = Place::two_hsms() else { return };
    let mut server = place.start();
    let made = server.init(3, 2);
    server.mount_kv("kv");
    server.put("kv/data/a", json!({"data": {"x": "1"}})).ok();
    let sealed = ciphertexts(&server, "k");
    server.terminate();
    let mut before: Option<(Work, bool)> = None;
    for (point, work, enrolled) in POINTS {
        let server = start(&place, &made, point);
        if let Some((work, enrolled)) = before.replace((*work, *enrolled)) {
            check(&place, &server, work, enrolled, &sealed, &made);
        }
        if *work == Work::Add && seal(&server, "kryoptic")["enrolled"] == true {
            server.call("DELETE", "sys/sos/seals/kryoptic", None).ok();
        }
        let (method, path, body) = work.request(&made);
        server.send(method, &path, &body);
        server.wait_crashed();
    }
    let server = start(&place, &made, "none");
    let (work, enrolled) = before.unwrap();
    check(&place, &server, work, enrolled, &sealed, &made);
    server.terminate();
}

#[track_caller]
fn check(place: &Place, server: &Server<'_>, work: Work, enrolled: bool, sealed: &[(String, Value)], made: &Made) {
    let again = |what: &str| {
        assert_eq!(server.get("kv/data/a").ok()["data"]["data"]["x"], "1", "{what}");
        all_open(server, sealed);
        for name in ["softhsm", "kryoptic"] {
            server.wait("settled", |_| seal(server, name)["unfinished"] == "");
        }
    };
    again("after the crash");
    assert_eq!((&seal(server, "kryoptic")["enrolled"], &seal(server, "softhsm")["enrolled"]), (&json!(enrolled), &json!(true)));
    tokens_hold(place, enrolled);

    let (method, path, body) = work.request(made);
    let done = server.call(method, &path, body);
    let gone = work == Work::Remove && !enrolled;
    if gone {
        assert!(done.status == 400 && done.errors().contains("no HSM \"kryoptic\" is enrolled"), "{}", done.text);
    } else {
        done.ok();
    }
    again("after the repetition");
    let enrolled = work != Work::Remove;
    assert_eq!(seal(server, "kryoptic")["enrolled"], enrolled);
    if enrolled {
        server.wait("transport key", |_| seal(server, "softhsm")["transport_key"] == true);
        assert_eq!((&seal(server, "softhsm")["pending"], &seal(server, "kryoptic")["pending"]), (&json!([]), &json!([])));
    }
    tokens_hold(place, enrolled);
}

/// One seal key, a transport key at most (two objects) and one master key where the HSM is enrolled; nothing where not.
#[track_caller]
fn tokens_hold(place: &Place, enrolled: bool) {
    let [seals, transports, masters] = counted(&place.objects());
    assert_eq!((seals, masters), (1, 1));
    assert!(transports <= 2);
    let theirs = place.objects_on_kryoptic();
    let [seals, transports, masters] = counted(&theirs);
    match enrolled {
        true => assert_eq!((seals, masters, transports.clamp(1, 2)), (1, 1, transports), "{theirs:?}"),
        false => assert_eq!(theirs, [""; 0]),
    }
}

/// Points of a restore, and whether the restored store is the one that counts afterwards.
const RESTORE_POINTS: &[(&str, bool)] = &[
    ("restore-built", false),
    ("restore-begin", false),
    ("restore-plan", false),
    ("restore-planned", true),
    ("restore-moving", true),
    ("restore-moving:3", true),
    ("restore-left", true),
    ("restore-moved", true),
    ("restore-synced", true),
    ("restore-cleaned", true),
    ("restore-exchanged", true),
    ("restored-rotated", true),
    ("restored-burnt", true),
    ("restored-swept", true),
];

#[test]
fn killed_at_any_point_of_a_restore() {
    let place = Place::shamir();
    let mut server = place.start();
    let made = server.init_shamir(1, 1);
    server.mount_kv("kv");
    server.put("kv/data/a", json!({"data": {"x": "before"}})).ok();
    server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
    server.put("transit/keys/kek", json!({})).ok();
    let sealed = server.put("transit/encrypt/kek", json!({"plaintext": "YQ=="})).ok();
    let sealed = vec![("transit/decrypt/kek".to_owned(), json!({"ciphertext": sealed["data"]["ciphertext"]}))];
    let file = place.path("good.backup").display().to_string();
    let (code, _, errors) = server.operator(&["backup", "create", &file], "");
    assert_eq!(code, Some(0), "{errors}");
    server.terminate();
    for (point, restored) in RESTORE_POINTS {
        let mut server = place.start_to_crash_at(point);
        server.token = Some(made.root.clone());
        server.unseal(&made.shares);
        server.put("kv/data/a", json!({"data": {"x": "after"}})).ok();
        let _ = server.operator(&["backup", "restore", "-force", &file], "");
        if point.starts_with("restored") {
            server.send("PUT", "sys/unseal", &json!({"key": made.shares[0]}));
        }
        server.wait_crashed();

        let mut server = place.start();
        server.token = Some(made.root.clone());
        server.unseal(&made.shares);
        let expected = if *restored { "before" } else { "after" };
        assert_eq!(server.get("kv/data/a").ok()["data"]["data"]["x"], expected, "{point}");
        all_open(&server, &sealed);
        for left in ["restore.new", "restore.plan"] {
            assert!(!place.path("store").join(left).exists(), "{point} leaves {left}");
        }
        let (code, _, errors) = server.operator(&["backup", "restore", "-force", &file], "");
        assert_eq!(code, Some(0), "{point}: {errors}");
        server.unseal(&made.shares);
        eventually("restored", || server.get("kv/data/a").body["data"]["data"]["x"] == "before");
        all_open(&server, &sealed);
        server.terminate();
    }
}
