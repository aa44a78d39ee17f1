//! Bodies: huge ones, slow ones, and those of many clients behind one address.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;

use super::{CEILING, connect, connect_from, ready, status};
use crate::support::{Place, Server, eventually, measured};

#[test]
fn huge_bodies_are_received_or_shed_in_bounded_memory() {
    let place = Place::shamir();
    let server = ready(&place);
    let idle = server.resident();
    let answers: Mutex<BTreeMap<u16, usize>> = Mutex::default();
    let peak = AtomicUsize::new(0);
    let sent = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| {
                let mut stream = connect(&server).unwrap();
                let length = 30 << 20;
                let head =
                    format!("PUT /v1/kv/data/big HTTP/1.1\r\nHost: x\r\nX-Vault-Token: no\r\nContent-Length: {length}\r\n\r\n");
                stream.write_all(head.as_bytes()).unwrap();
                let piece = vec![b' '; 1 << 20];
                // Slowly, so that all of them are under way together; a server that sheds closes early.
                for number in 0..30 {
                    if stream.write_all(&piece).is_err() {
                        break;
                    }
                    sent.fetch_add(1, Ordering::Relaxed);
                    if number < 10 {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                }
                // Where it closes at once the answer may be lost to the reset.
                let status = status(&mut stream).unwrap_or(0);
                *answers.lock().unwrap().entry(status).or_default() += 1;
            });
        }
        scope.spawn(|| {
            for _ in 0..40 {
                peak.fetch_max(usize::try_from(server.resident()).unwrap(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
    });
    let (answers, peak) = (answers.into_inner().unwrap(), peak.into_inner());
    measured(&format!(
        "40 bodies of 30 MiB at once ({} MiB sent): {answers:?}, resident {idle} MiB before, {peak} MiB at the peak",
        sent.into_inner()
    ));
    assert!(answers.keys().all(|status| [0, 400, 403, 503].contains(status)), "{answers:?}");
    assert!(answers.contains_key(&503) && answers.len() > 1, "some are shed and some are served: {answers:?}");
    assert!(peak < usize::try_from(CEILING).unwrap(), "{peak} MiB");
    server.put("kv/data/a", json!({"data": {"x": 1}})).ok();
}

/// What costs its sender two bytes a piece is not taken apart for those who have shown no token.
#[test]
fn bodies_of_very_many_pieces_cost_strangers_more_than_the_server() {
    let place = Place::shamir();
    let server = ready(&place);
    let idle = server.resident();
    let form: String = (0..4_000_000).map(|number: u32| format!("{number:x}&")).collect();
    let object = format!("{{{}\"a\":1}}", "\"\":1,".repeat(5_500_000));
    let answers: Mutex<BTreeMap<u16, usize>> = Mutex::default();
    let sent = form.len() + object.len();
    for path in ["sys/unseal", "kv/data/a"] {
        std::thread::scope(|scope| {
            for (kind, body) in [("application/x-www-form-urlencoded", &form), ("application/json", &object)] {
                let (server, answers) = (&server, &answers);
                scope.spawn(move || {
                    let mut stream = connect(server).unwrap();
                    let length = body.len();
                    let head = format!(
                        "PUT /v1/{path} HTTP/1.1\r\nHost: x\r\nX-Vault-Token: no\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
                    );
                    stream.write_all(head.as_bytes()).unwrap();
                    stream.write_all(body.as_bytes()).unwrap();
                    *answers.lock().unwrap().entry(status(&mut stream).unwrap()).or_default() += 1;
                });
            }
        });
    }
    let answers = answers.into_inner().unwrap();
    let most = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let most =
        most.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap();
    measured(&format!(
        "{} MiB of small pieces at once, twice: {answers:?}, resident {idle} MiB before, {} MiB at the peak",
        sent >> 20,
        most >> 10
    ));
    // The forms, and the object where no token is needed, are too long; the other one has no good token.
    assert_eq!(answers, BTreeMap::from([(403, 1), (413, 3)]));
    assert!(most >> 10 < idle + 320, "{most} KiB");
}

#[test]
fn slow_bodies_without_a_token_keep_out_neither_small_bodies_nor_other_addresses() {
    let place = Place::shamir();
    let server = ready(&place);
    let (own, other) = ([127, 0, 0, 1], [127, 0, 0, 2]);
    let largest = 32 << 20;
    let idle = server.resident();
    // Four that lack ten bytes each and one that takes what is left of the 128 MiB: what no more than half of is for them.
    let large: Vec<TcpStream> = [largest - 10, largest - 10, largest - 10, largest - 10, 39]
        .iter()
        .map(|bytes| begin_body(&server, largest, *bytes))
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    for bytes in [9, 2_000, 50_000] {
        assert_eq!(write_from(own, &server, bytes), 200, "{bytes} bytes from the same address");
        assert_eq!(write_from(other, &server, bytes), 200, "{bytes} bytes from another address");
    }
    assert_eq!(write_from(other, &server, 8 << 20), 200, "a large one from another address");
    assert_eq!(write_from(own, &server, 8 << 20), 503, "a large one from the same address");
    let resident = server.resident();
    measured(&format!("five bodies that do not end: resident {idle} MiB before and {resident} MiB with them"));
    assert!(resident < CEILING, "{resident} MiB");
    // Many small ones on top: what is as small as most secrets are still passes.
    let small: Vec<TcpStream> = (0..300).map(|_| begin_body(&server, 64 << 10, 60 << 10)).collect();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(write_from(own, &server, 50_000), 503, "as large as those from the same address");
    assert_eq!(write_from(own, &server, 2_000), 200, "a smaller one from the same address");
    assert_eq!(write_from(other, &server, 50_000), 200, "from another address");
    for path in ["sys/health", "sys/seal-status", "sys/leader", "auth/token/lookup-self"] {
        server.get(path).ok();
    }
    drop((large, small));
    eventually("room again", || write_from(own, &server, 8 << 20) == 200);
}

/// What a proxy or a machine with many clients does: many connections of one address, all of them at work.
#[test]
fn one_busy_address_is_not_shed() {
    let place = Place::shamir();
    let server = ready(&place);
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for number in 0..100 {
            let (server, done) = (&server, &done);
            scope.spawn(move || {
                for turn in 0..2 {
                    // One in ten is large: ten of 2 MiB at once, beside small ones.
                    let bytes = if number % 10 == 0 { 2 << 20 } else { 100 + 1000 * (number % 40) };
                    if turn % 2 == 0 {
                        assert_eq!(write_from([127, 0, 0, 1], server, bytes), 200, "{bytes} bytes");
                    } else {
                        server.get("auth/token/lookup-self").ok();
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(done.into_inner(), 200);
}

/// The status of a write of so many bytes on a connection of its own.
fn write_from(address: [u8; 4], server: &Server<'_>, bytes: usize) -> u16 {
    let mut stream = connect_from(address, server);
    let body = format!("{{\"data\":{{\"x\":\"{}\"}}}}", "y".repeat(bytes));
    let token = server.token.as_deref().unwrap();
    let head =
        format!("PUT /v1/kv/data/a HTTP/1.1\r\nHost: x\r\nX-Vault-Token: {token}\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    // Head and body apart, so that the server has to wait for the body.
    std::thread::sleep(Duration::from_millis(20));
    // Where it sheds it closes, which the client may notice while it still writes.
    let sent = stream.write_all(body.as_bytes());
    let status = status(&mut stream);
    assert!(sent.is_ok() || status.is_none_or(|status| status == 503), "{status:?}");
    status.unwrap_or(503)
}

/// The first so many bytes of a body of 32 MiB, from a client without a token that then falls silent.
fn begin_body(server: &Server<'_>, declared: usize, bytes: usize) -> TcpStream {
    let mut stream = connect(server).unwrap();
    stream.write_all(format!("PUT /v1/kv/data/a HTTP/1.1\r\nHost: x\r\nContent-Length: {declared}\r\n\r\n").as_bytes()).unwrap();
    let piece = vec![b' '; 64 << 10];
    let mut left = bytes;
    while left > 0 {
        let Ok(sent) = stream.write(&piece[..left.min(piece.len())]) else { break };
        left -= sent;
    }
    stream
}
