//! The HSM fails under clients of the whole server, through the proxy module (softhsm/proxy) on a real SoftHSM.
//!
//! Two kinds of other clients run all the time: one that needs the HSM, one that does not (KV). For each fault is shown what
//! clients are told, how long until the HSM serves again, the longest time that anybody waited, and the rate of the clients
//! that do not need the HSM beside their rate before.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Place, Server, left_out, measured, request};

/// The part of their rate that clients keep at least while others have trouble. Far below what is printed: other tests run on the
/// same cores.
const LEAST: f64 = 0.2;

/// How long rates are measured at least.
const WINDOW: Duration = Duration::from_millis(400);

/// How long the HSM may take to serve again once a fault is gone.
const RECOVERY: Duration = Duration::from_secs(15);

/// How long one operation on the HSM may take, waiting included; the server's own limit.
const DEADLINE: Duration = Duration::from_secs(10);

fn ready(place: &Place) -> Server<'_> {
    let mut server = place.start();
    server.init(1, 1);
    server.mount_kv("kv");
    server.put("kv/data/a", json!({"data": {"x": 1}})).ok();
    server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
    server.put("transit/keys/held", json!({"protection_level": "hsm"})).ok();
    encrypt(&server).expect("the HSM works");
    server
}

/// Answers the ciphertext, or status and text of the refusal.
fn encrypt(server: &Server<'_>) -> Result<String, (u16, String)> {
    let reply = server.put("transit/encrypt/held", json!({"plaintext": "YQ=="}));
    match reply.status {
        200 => Ok(reply.body["data"]["ciphertext"].as_str().unwrap().to_owned()),
        status => Err((status, reply.errors())),
    }
}

/// What others saw while a fault was there.
#[derive(Default)]
struct Seen {
    answers: Mutex<BTreeMap<(u16, String), u32>>,
    longest: Mutex<Duration>,
    reads: AtomicU32,
    stop: AtomicBool,
}

impl Seen {
    fn note(&self, answer: (u16, String), took: Duration) {
        *self.answers.lock().unwrap().entry(answer).or_default() += 1;
        let mut longest = self.longest.lock().unwrap();
        *longest = took.max(*longest);
    }
}

/// Runs `fault` beside the other clients, and shows what they saw. It answers when the HSM serves again.
fn beside(server: &Server<'_>, what: &str, fault: impl FnOnce()) {
    let ciphertext = encrypt(server).unwrap();
    let seen = Seen::default();
    let (url, token) = (server.url(), server.token.as_deref());
    let body = json!({"ciphertext": ciphertext}).to_string();
    let (before, during, took) = std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !seen.stop.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    let reply = request(url, "PUT", "/v1/transit/decrypt/held", token, Some(&body)).unwrap();
                    assert!(reply.status != 200 || reply.body["data"]["plaintext"] == "YQ==", "{what}: {}", reply.text);
                    seen.note((reply.status, reply.errors()), began.elapsed());
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
        }
        scope.spawn(|| {
            while !seen.stop.load(Ordering::Relaxed) {
                let reply = request(url, "GET", "/v1/kv/data/a", token, None).unwrap();
                assert_eq!(reply.status, 200, "{what}: a client that needs no HSM: {}", reply.text);
                seen.reads.fetch_add(1, Ordering::Relaxed);
            }
        });
        let rate = |began: Instant, reads: u32| f64::from(reads) / began.elapsed().as_secs_f64();
        let began = Instant::now();
        std::thread::sleep(WINDOW);
        let before = rate(began, seen.reads.swap(0, Ordering::Relaxed));
        let began = Instant::now();
        // The threads must end also when an assertion does not hold.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            fault();
            let mended = Instant::now();
            while encrypt(server).is_err() {
                assert!(mended.elapsed() < RECOVERY, "{what}: the HSM does not serve again\n{}", server.log());
                std::thread::sleep(Duration::from_millis(10));
            }
            mended.elapsed()
        }));
        // A rate over a few milliseconds says nothing.
        std::thread::sleep(WINDOW.saturating_sub(began.elapsed()));
        let during = rate(began, seen.reads.load(Ordering::Relaxed));
        seen.stop.store(true, Ordering::Relaxed);
        (before, during, done.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let (answers, longest) = (seen.answers.into_inner().unwrap(), seen.longest.into_inner().unwrap());
    let told: Vec<_> = answers.iter().map(|((status, text), count)| format!("{count} x {status} {text}")).collect();
    measured(&format!(
        "{what}: serves again after {took:.2?}, longest wait {longest:.2?}, clients without the HSM at {:.2} of their rate; told: {}",
        during / before,
        told.join(" | ")
    ));
    assert!(before > 0.0 && during / before >= LEAST, "{what}: clients without the HSM fell from {before:.0}/s to {during:.0}/s");
    assert!(answers.keys().any(|(status, _)| *status == 200), "{what}: nobody was served before or after: {answers:?}");
    for (status, text) in answers.keys() {
        assert!(*status == 200 || *status == 503 && text.to_lowercase().contains("hsm"), "{what}: {status} {text}");
    }
    assert!(longest < DEADLINE + Duration::from_secs(3), "{what}: somebody waited {longest:?}");
    assert_eq!(server.status()["sealed"], false, "{what}");
}

pub fn kill_workers(server: &Server<'_>) {
    for worker in server.pids().into_iter().skip(1) {
        let pid = rustix::process::Pid::from_raw(worker.try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
}

#[test]
fn sessions_token_module_and_worker_fail_and_come_back() {
    let Some(place) = Place::behind_proxy() else { return };
    let server = ready(&place);
    beside(&server, "sessions closed under it", || place.fault("close_sessions_once", ""));
    beside(&server, "module crashing", || place.fault("crash_once", ""));
    beside(&server, "worker killed", || kill_workers(&server));
    beside(&server, "token removed for a second", || {
        place.fault("removed", "");
        std::thread::sleep(Duration::from_secs(1));
        let (status, text) = encrypt(&server).unwrap_err();
        assert_eq!(status, 503, "{text}");
        place.mend("removed");
    });
    beside(&server, "device slow, 100 ms a call", || {
        place.fault("latency_ms", "100");
        std::thread::sleep(Duration::from_secs(1));
        place.mend("latency_ms");
    });
}

#[test]
fn a_hanging_module_holds_nobody_past_the_deadline() {
    let Some(place) = Place::behind_proxy() else { return };
    let server = ready(&place);
    beside(&server, "module hanging", || {
        place.fault("hang_once", "");
        let taken = Instant::now();
        while place.path("faults/hang_once").exists() {
            assert!(taken.elapsed() < DEADLINE, "the fault was never met");
            std::thread::sleep(Duration::from_millis(5));
        }
        // Until the hung call has met its deadline.
        std::thread::sleep(DEADLINE + Duration::from_millis(500));
    });
}

#[test]
fn a_changed_pin_is_told_and_a_new_one_taken_up() {
    let Some(place) = Place::behind_proxy() else { return };
    let server = ready(&place);
    let old = fs::read_to_string(place.path("hsm/pin")).unwrap().trim().to_owned();
    let mut change = Command::new("pkcs11-tool");
    change.env("SOFTHSM2_CONF", place.path("hsm/softhsm2.conf")).arg("--module").arg(&place.environment[0].1);
    change.args(["--token-label", "sos-test", "--login", "--pin", &old, "--change-pin", "--new-pin", "87654321"]);
    if change.output().is_err() {
        return left_out("pkcs11-tool is not installed (opensc)");
    }
    beside(&server, "PIN changed", || {
        kill_workers(&server);
        let began = Instant::now();
        let text = loop {
            if let Err((status, text)) = encrypt(&server)
                && text.contains("hsm-pin-refused")
            {
                assert_eq!(status, 503);
                break text;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "the refused PIN is never told\n{}", server.log());
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(!text.contains(&old));
        fs::write(place.path("hsm/pin"), "87654321").unwrap();
        fs::set_permissions(place.path("hsm/pin"), fs::Permissions::from_mode(0o600)).unwrap();
    });
    assert!(!server.log().contains("87654321"));
}

#[test]
fn a_flood_of_tampered_ciphertexts_costs_the_others_little() {
    let Some(place) = Place::behind_proxy() else { return };
    let server = ready(&place);
    let good = encrypt(&server).unwrap();
    let swap = |byte: char| if byte == 'A' { 'B' } else { 'A' };
    let last = good.len() - 5;
    let bad: String = good.chars().enumerate().map(|(at, byte)| if at == last { swap(byte) } else { byte }).collect();
    let logins = || fs::read_to_string(place.path("faults/logins")).map_or(0, |text| text.lines().count());
    let before = logins();
    let (url, token) = (server.url(), server.token.as_deref());
    let decrypt = |ciphertext: &str| {
        let body = json!({"ciphertext": ciphertext}).to_string();
        request(url, "PUT", "/v1/transit/decrypt/held", token, Some(&body)).unwrap()
    };
    let rate = || {
        let began = Instant::now();
        let mut count = 0_u32;
        while began.elapsed() < Duration::from_millis(800) {
            assert_eq!(decrypt(&good).body["data"]["plaintext"], "YQ==");
            count += 1;
        }
        f64::from(count) / began.elapsed().as_secs_f64()
    };
    let alone = rate();
    let (stop, refused) = (AtomicBool::new(false), AtomicU32::new(0));
    // The same work with good ciphertexts, to tell the cost of the badness from the cost of the load.
    let loaded = |ciphertext: &str, wanted: u16| {
        stop.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let reply = decrypt(ciphertext);
                    assert_eq!(reply.status, wanted, "{}", reply.text);
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            });
            let rate = std::panic::catch_unwind(std::panic::AssertUnwindSafe(rate));
            stop.store(true, Ordering::Relaxed);
            rate.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    };
    let beside_good = loaded(&good, 200);
    refused.store(0, Ordering::Relaxed);
    let beside_bad = loaded(&bad, 400);
    let tampered = refused.into_inner();
    measured(&format!(
        "{tampered} tampered ciphertexts from one client: another client at {:.2} of its rate beside as many good ones, {:.2} of its rate alone",
        beside_bad / beside_good,
        beside_bad / alone
    ));
    assert!(tampered > 0);
    assert!(beside_bad / beside_good >= LEAST, "{beside_bad:.0}/s beside bad ciphertexts, {beside_good:.0}/s beside good ones");
    assert_eq!(logins(), before, "nobody was logged in again");
}
