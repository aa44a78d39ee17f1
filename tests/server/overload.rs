//! More clients, larger bodies and slower readers than the server can serve: it answers or sheds, in bounded memory.
//!
//! `SOS_TEST_CONNECTIONS` sets how many connections are opened at once (at most what the descriptor limit allows).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Made, Place, Server, eventually, measured, request};

/// Resident MiB that no overload may exceed. The budget for bodies and answers is 128 MiB; the rest is what working on them takes.
const CEILING: u64 = 640;

fn ready(place: &Place) -> Server<'_> {
    initialised(place.start()).0
}

fn ready_within(place: &Place, descriptors: u32) -> Server<'_> {
    initialised(place.start_limited(descriptors)).0
}

fn initialised(mut server: Server<'_>) -> (Server<'_>, Made) {
    let made = server.init(1, 1);
    server.put("sys/unseal", json!({"key": made.shares[0]})).ok();
    server.mount_kv("kv");
    (server, made)
}

fn connect(server: &Server<'_>) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(server.url().trim_start_matches("http://"))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.set_write_timeout(Some(Duration::from_secs(30)))?;
    Ok(stream)
}

/// The status of one answer on a kept connection, whose body is read as well.
fn status(stream: &mut TcpStream) -> Option<u16> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok()).unwrap_or(0);
    stream.read_exact(&mut vec![0; length]).ok()?;
    head.split(' ').nth(1)?.parse().ok()
}

#[test]
fn many_connections_and_slow_writers_leave_room_for_others() {
    let wanted: usize = std::env::var("SOS_TEST_CONNECTIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(1500);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum },
    )
    .unwrap();
    let most = limit.maximum.and_then(|most| usize::try_from(most).ok()).map_or(wanted, |most| most.saturating_sub(700));
    let place = Place::shamir();
    let server = ready(&place);
    let idle = server.resident();
    let mut streams: Vec<TcpStream> = (0..wanted.min(most)).map(|_| connect(&server).unwrap()).collect();
    // A third says nothing, a third sends half a head, a third half a body.
    for (number, stream) in streams.iter_mut().enumerate() {
        let text: &[u8] = match number % 3 {
            0 => b"",
            1 => b"GET /v1/sys/health HTTP/1.1\r\nHo",
            _ => b"PUT /v1/kv/data/a HTTP/1.1\r\nHost: x\r\nX-Vault-Token: no\r\nContent-Length: 100\r\n\r\n{\"data\":",
        };
        stream.write_all(text).unwrap();
    }
    let began = Instant::now();
    for number in 0..20 {
        server.put(&format!("kv/data/{number}"), json!({"data": {"x": number}})).ok();
    }
    let took = began.elapsed() / 20;
    // Now all of them ask at once.
    let asked = Instant::now();
    let mut answers: BTreeMap<u16, usize> = BTreeMap::new();
    for (number, stream) in streams.iter_mut().enumerate() {
        let rest: &[u8] = match number % 3 {
            0 => b"GET /v1/sys/health HTTP/1.1\r\nHost: x\r\n\r\n",
            1 => b"st: x\r\n\r\n",
            _ => b"                                                                                            ",
        };
        stream.write_all(rest).unwrap();
    }
    for stream in &mut streams {
        *answers.entry(status(stream).expect("every accepted request is answered")).or_default() += 1;
    }
    let resident = server.resident();
    measured(&format!(
        "{} connections: {answers:?} in {:.2?}, a write beside them took {took:.2?}, resident {idle} MiB before and {resident} MiB with them",
        streams.len(),
        asked.elapsed()
    ));
    assert!(answers.keys().all(|status| [200, 400, 403, 429, 503].contains(status)), "{answers:?}");
    // A third asked for the health without a token: all but what was shed is served.
    assert!(answers.get(&200).is_some_and(|served| *served >= streams.len() / 10), "{answers:?}");
    assert!(took < Duration::from_secs(5), "a write beside silent connections took {took:?}");
    assert!(asked.elapsed() < Duration::from_secs(60), "{:?}", asked.elapsed());
    assert!(resident < CEILING, "{resident} MiB");
}

#[test]
fn running_out_of_descriptors_stops_neither_work_nor_later_clients() {
    let place = Place::shamir();
    let (server, made) = initialised(place.start_limited(320));
    let mut kept = connect(&server).unwrap();
    let write = |stream: &mut TcpStream, name: &str, size: usize| {
        let body = format!("{{\"data\":{{\"x\":\"{}\"}}}}", "y".repeat(size));
        let head = format!(
            "PUT /v1/kv/data/{name} HTTP/1.1\r\nHost: x\r\nX-Vault-Token: {}\r\nContent-Length: {}\r\n\r\n",
            made.root,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        status(stream)
    };
    assert_eq!(write(&mut kept, "before", 10), Some(200));
    let mut flood: Vec<TcpStream> = (0..600).map(|_| connect(&server).unwrap()).collect();
    std::thread::sleep(Duration::from_millis(300));
    // Work that opens files goes on: a value so large that sled gives it a file of its own.
    assert_eq!(write(&mut kept, "large", 600_000), Some(200));
    // Those beyond the limit are told so and closed at once, whether they said something or not.
    let ask = |stream: &mut TcpStream| {
        let _ = stream.write_all(b"GET /v1/sys/health HTTP/1.1\r\nHost: x\r\n\r\n");
        status(stream)
    };
    let began = Instant::now();
    let answers: Vec<_> = flood.iter_mut().rev().take(400).map(status).collect();
    assert!(answers.iter().all(|answer| [Some(503), None].contains(answer)), "{answers:?}");
    assert!(answers.contains(&Some(503)), "{answers:?}");
    assert!(began.elapsed() < Duration::from_secs(10), "closed after {:?}", began.elapsed());
    assert_eq!(ask(flood.first_mut().unwrap()), Some(200), "who has a place keeps it");
    // Who comes when others have left is served.
    drop(flood);
    let began = Instant::now();
    while ask(&mut connect(&server).unwrap()) != Some(200) {
        assert!(began.elapsed() < Duration::from_secs(10), "no place is given back");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(server.get("kv/data/large").status, 200);
}

/// Connections from this address, each of which asks once: those that were served, and how many were refused.
fn gather(address: [u8; 4], server: &Server<'_>, wanted: usize) -> (Vec<TcpStream>, usize) {
    let mut streams: Vec<TcpStream> = (0..wanted).map(|_| connect_from(address, server)).collect();
    streams.iter_mut().for_each(|stream| {
        drop(stream.write_all(b"GET /v1/sys/health?uninitcode=200&sealedcode=200 HTTP/1.1\r\nHost: x\r\n\r\n"))
    });
    streams.retain_mut(|stream| {
        let answer = status(stream);
        // A refusal may be lost to the reset that the late request brings about.
        assert!([Some(200), Some(503), None].contains(&answer), "{answer:?}");
        answer == Some(200)
    });
    let refused = wanted - streams.len();
    (streams, refused)
}

#[test]
fn connections_of_one_address_leave_room_for_others() {
    let place = Place::shamir();
    // Room for some 140 connections.
    let server = ready_within(&place, 320);
    let (one, refused) = gather([127, 0, 0, 1], &server, 300);
    assert!(one.len() >= 100 && refused >= 150, "one alone has nearly all: {} served, {refused} refused", one.len());
    // All of them stay open; whoever comes is served all the same.
    let (two, _) = gather([127, 0, 0, 2], &server, 10);
    assert_eq!(two.len(), 10, "from a second address");
    let (three, _) = gather([127, 0, 0, 3], &server, 1);
    assert_eq!(three.len(), 1, "from a third");
    assert!(server.log().contains("max_connections_per_address"), "{}", server.log());
    // The first one gets no more while it has so many, and the others more when it has fewer.
    assert_eq!(gather([127, 0, 0, 1], &server, 20).0.len(), 0);
    drop(one);
    eventually("the places of the first", || gather([127, 0, 0, 2], &server, 60).0.len() == 60);
    eventually("a newcomer", || gather([127, 0, 0, 1], &server, 20).0.len() == 20);
}

#[test]
fn a_listener_bounds_the_connections_of_an_address() {
    let place = Place::shamir();
    for (most, expected) in [("20", 20), ("0", 60)] {
        place.configure(
            &place.plain_config("sled").replace("tls_disable", &format!("max_connections_per_address = {most} tls_disable")),
        );
        let server = place.start();
        let (one, _) = gather([127, 0, 0, 1], &server, 60);
        assert_eq!(one.len(), expected);
        assert_eq!(gather([127, 0, 0, 2], &server, 20).0.len(), 20, "from another address");
        let mut surplus = connect_from([127, 0, 0, 1], &server);
        let mut text = String::new();
        if most == "20" {
            surplus.read_to_string(&mut text).unwrap();
            assert!(text.starts_with("HTTP/1.1 503") && text.contains("too many connections of this address are open"), "{text}");
        }
    }
    place.configure(&place.plain_config("sled").replace("tls_disable", "max_connections_per_address = -1 tls_disable"));
    assert!(place.refused().contains("max_connections_per_address must be a number of connections"));
}

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

#[test]
fn large_requests_do_not_hold_up_the_threads_that_serve_connections() {
    let place = Place::shamir();
    let server = ready(&place);
    let text = "eHh4".repeat(2 << 20);
    let worst = |rounds: usize| {
        let mut worst = Duration::ZERO;
        for _ in 0..rounds {
            let began = Instant::now();
            server.get("auth/token/lookup-self").ok();
            worst = worst.max(began.elapsed());
        }
        worst
    };
    let alone = worst(50);
    let idle = server.cpu_of("large-requests");
    assert!(idle < Duration::from_millis(50), "small requests stay where they came in: {idle:?}");
    let beside = std::thread::scope(|scope| {
        let large = scope.spawn(|| server.put("sys/tools/hash", json!({"input": &text})).ok());
        let beside = worst(50);
        let answer = large.join().unwrap();
        assert_eq!(answer["data"]["sum"].as_str().unwrap().len(), 64, "{answer}");
        beside
    });
    let took = server.cpu_of("large-requests").saturating_sub(idle);
    measured(&format!(
        "a request of 8 MiB took {took:?} of threads of its own; the worst read beside it {:.1} times the worst alone",
        beside.as_secs_f64() / alone.as_secs_f64()
    ));
    assert!(took >= Duration::from_millis(20), "the large one was worked on elsewhere: {took:?}");
    // One that cannot be read is refused all the same, and forms are read there too.
    let url = server.url();
    let token = server.token.as_deref();
    let broken = format!("{{\"input\": \"{text}\"");
    assert_eq!(request(url, "PUT", "/v1/sys/tools/hash", token, Some(&broken)).unwrap().status, 400);
    let deep = "[".repeat(1 << 20);
    let reply = request(url, "PUT", "/v1/sys/tools/hash", token, Some(&deep)).unwrap();
    assert!(reply.status == 400 && reply.errors().contains("exceeded max depth"), "{} {}", reply.status, reply.text);
}

#[test]
fn large_answers_do_not_hold_up_the_threads_that_serve_connections() {
    let place = Place::shamir();
    let server = ready(&place);
    server
        .put("sys/audit/file", json!({"type": "file", "options": {"file_path": place.path("audit.log").display().to_string()}}))
        .ok();
    server.put("sys/mounts/kv1", json!({"type": "kv"})).ok();
    let text = "y".repeat(8 << 20);
    server.put("kv/data/large", json!({"data": {"x": text}})).ok();
    server.put("kv1/large", json!({"x": text})).ok();
    let worst = |rounds: usize| {
        let mut worst = Duration::ZERO;
        for _ in 0..rounds {
            let began = Instant::now();
            server.get("sys/health").ok();
            worst = worst.max(began.elapsed());
        }
        worst
    };
    let alone = worst(50);
    for (path, pointer) in [("kv/data/large", "/data/data/x"), ("kv1/large", "/data/x")] {
        let before = server.cpu_of("large-requests");
        let beside = std::thread::scope(|scope| {
            let large = scope.spawn(|| server.get(path).ok());
            let beside = worst(50);
            assert_eq!(large.join().unwrap().pointer(pointer).and_then(|x| x.as_str()).map(str::len), Some(8 << 20));
            beside
        });
        // Known as large it is moved before it is read, and its answer is the same.
        assert_eq!(server.get(path).ok().pointer(pointer).and_then(|x| x.as_str()).map(str::len), Some(8 << 20));
        let took = server.cpu_of("large-requests").saturating_sub(before);
        measured(&format!(
            "two answers of 8 MiB ({path}) took {took:?} of threads of their own; the worst look at the health beside one {:.1} times the worst alone",
            beside.as_secs_f64() / alone.as_secs_f64()
        ));
        assert!(took >= Duration::from_millis(20), "{path} was read and laid out elsewhere: {took:?}");
    }
    // What was large and is small again is read as everything is.
    server.put("kv1/large", json!({"x": "small"})).ok();
    assert_eq!(server.get("kv1/large").ok()["data"]["x"], "small");
    let before = server.cpu_of("large-requests");
    (0..100).for_each(|_| drop(server.get("kv1/large").ok()));
    let took = server.cpu_of("large-requests").saturating_sub(before);
    assert!(took <= Duration::from_millis(20), "{took:?}");
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

#[test]
fn readers_that_do_not_read_hold_bounded_memory() {
    let place = Place::shamir();
    let server = ready(&place);
    let token = server.token.clone().unwrap();
    server.put("kv/data/large", json!({"data": {"x": "y".repeat(4 << 20)}})).ok();
    let idle = server.resident();
    let ask = format!("GET /v1/kv/data/large HTTP/1.1\r\nHost: x\r\nX-Vault-Token: {token}\r\n\r\n");
    let mut silent: Vec<TcpStream> = (0..50).map(|_| connect(&server).unwrap()).collect();
    for stream in &mut silent {
        stream.write_all(ask.as_bytes()).unwrap();
    }
    // Answered when all of them have been worked on.
    assert_eq!(server.get("sys/health").status, 200);
    std::thread::sleep(Duration::from_secs(1));
    let resident = server.resident();
    // Others are served meanwhile.
    assert_eq!(server.get("sys/health").status, 200);
    server.put("kv/data/small", json!({"data": {"x": 1}})).ok();
    let mut answers: BTreeMap<u16, usize> = BTreeMap::new();
    for stream in &mut silent {
        *answers.entry(status(stream).unwrap()).or_default() += 1;
    }
    measured(&format!(
        "50 readers that do not read 4 MiB each: resident {idle} MiB before and {resident} MiB, then they read {answers:?}"
    ));
    assert!(answers.keys().all(|status| [200, 503].contains(status)) && answers.contains_key(&200), "{answers:?}");
    assert!(resident < CEILING, "{resident} MiB");
    assert_eq!(server.get("kv/data/large").status, 200, "room again");
}

/// Its work is not dropped with the connection's other half, and nobody's audit record or commit waits for it.
#[test]
fn a_client_that_closes_its_sending_side_is_answered_and_holds_up_nobody() {
    let place = Place::shamir();
    let server = ready(&place);
    server
        .put("sys/audit/file", json!({"type": "file", "options": {"file_path": place.path("audit.log").display().to_string()}}))
        .ok();
    let token = server.token.as_deref().unwrap();
    let write = |name: &str| {
        format!(
            "PUT /v1/cubbyhole/{name} HTTP/1.1\r\nHost: x\r\nX-Vault-Token: {token}\r\nContent-Length: 9\r\n\r\n{{\"a\":\"b\"}}"
        )
    };
    let mut stream = connect(&server).unwrap();
    stream.write_all(write("asked").as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(status(&mut stream), Some(204));
    // Clients with so many answers that they do not read that the server can send no more, and then with work behind them.
    let pipelined = "HEAD /v1/sys/health HTTP/1.1\r\nHost: x\r\n\r\n".repeat(24_000);
    let clients: Vec<TcpStream> = (0..4)
        .map(|client| {
            let mut stream = connect(&server).unwrap();
            stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
            // What the server does not take any more is not needed.
            let _ = stream.write_all(pipelined.as_bytes());
            let _ = stream.write_all(write(&format!("left-{client}")).repeat(10).as_bytes());
            let _ = stream.shutdown(Shutdown::Write);
            stream
        })
        .collect();
    let worst = (0..40)
        .map(|_| {
            let began = Instant::now();
            server.put("kv/data/beside", json!({"data": {"x": 1}})).ok();
            server.get("auth/token/lookup-self").ok();
            began.elapsed()
        })
        .max();
    drop(clients);
    // An audit device that waits for one of them is given up after 5 s.
    assert!(worst.is_some_and(|worst| worst < Duration::from_secs(4)), "{worst:?}");
}

#[test]
fn a_flood_without_a_token_is_refused_and_others_are_served() {
    let place = Place::shamir();
    let server = ready(&place);
    let url = server.url().to_string();
    let rate = |during: Duration| {
        let began = Instant::now();
        let mut count = 0_u32;
        while began.elapsed() < during {
            server.get("auth/token/lookup-self").ok();
            count += 1;
        }
        f64::from(count) / during.as_secs_f64()
    };
    let alone = rate(Duration::from_millis(500));
    let (refused, shed, done) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let began = Instant::now();
    let beside = std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut stream = connect(&server).unwrap();
                while done.load(Ordering::Relaxed) == 0 {
                    stream.write_all(b"GET /v1/kv/data/a HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
                    let status = status(&mut stream).unwrap();
                    assert!([403, 429, 503].contains(&status), "{status}");
                    refused.fetch_add(1, Ordering::Relaxed);
                    shed.fetch_add(usize::from(status == 429), Ordering::Relaxed);
                }
            });
        }
        let beside = rate(Duration::from_millis(500));
        done.store(1, Ordering::Relaxed);
        beside
    });
    measured(&format!(
        "a flood without a token: {} refused, {} of them shed; another client at {:.2} of its rate, {} MiB resident",
        refused.load(Ordering::Relaxed),
        shed.load(Ordering::Relaxed),
        beside / alone,
        server.resident()
    ));
    // Nine clients share the cores; far below what is printed, because other tests share them too.
    assert!(alone > 0.0 && beside / alone >= 0.05, "{beside:.0}/s beside the flood, {alone:.0}/s without it");
    // All but the address's burst and ten a second after it, however long this took; a good token from there was served.
    let took = usize::try_from(began.elapsed().as_secs()).unwrap() + 1;
    let least = refused.into_inner().saturating_sub(200 + 10 * took);
    assert!(shed.load(Ordering::Relaxed) >= least, "{} shed, at least {least}", shed.into_inner());
    assert!([403, 429].contains(&request(&url, "GET", "/v1/kv/data/a", None, None).unwrap().status));
}

/// A connection from this address.
fn connect_from(address: [u8; 4], server: &Server<'_>) -> TcpStream {
    use rustix::net::{AddressFamily, SocketAddrV4, SocketType, bind, connect, socket};
    let to: SocketAddrV4 = server.url().trim_start_matches("http://").parse().unwrap();
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddrV4::new(address.into(), 0)).unwrap();
    connect(&socket, &to).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

/// The status and `Retry-After` of one request on a connection from this address.
fn ask_from(address: [u8; 4], server: &Server<'_>, token: &str) -> (u16, Option<u64>) {
    let mut stream = connect_from(address, server);
    let head =
        format!("GET /v1/auth/token/lookup-self HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Vault-Token: {token}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let wait = answer.to_ascii_lowercase().lines().find_map(|line| line.strip_prefix("retry-after: ")?.trim().parse().ok());
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), wait)
}

#[test]
fn failed_authentications_are_bounded_by_address() {
    let place = Place::shamir();
    place.configure(&format!("{}\nfailed_auth_limit {{ burst = 20 per_second = 1 }}", place.plain_config("sled")));
    let server = ready(&place);
    let good = server.token.clone().unwrap();
    let unknown = "hvs.000000000000000000000000";
    let (bad, other) = ([127, 0, 0, 1], [127, 0, 0, 2]);
    let answers: Vec<_> = (0..40).map(|_| ask_from(bad, &server, unknown)).collect();
    assert!(answers[..20].iter().all(|answer| *answer == (403, None)), "{answers:?}");
    assert!(answers[20..].contains(&(429, Some(1))), "{answers:?}");
    assert!(answers[20..].iter().all(|(status, wait)| (*status == 429) == wait.is_some()), "{answers:?}");
    assert_eq!(ask_from(bad, &server, &good).0, 200);
    assert_eq!(ask_from(other, &server, &good).0, 200);
    assert_eq!(ask_from(other, &server, unknown).0, 403);
    assert!(server.log().contains("too many failed authentications from one address"), "{}", server.log());
    let metrics = server.get("sys/metrics").ok();
    let counters = metrics["Counters"].as_array().unwrap();
    let count = |name: &str| counters.iter().find(|counter| counter["Name"] == name).unwrap()["Count"].as_f64().unwrap();
    assert_eq!(count("sos.auth.failures.total"), 41.0);
    assert!(count("sos.auth.shed.total") > 0.0);
}

/// Whatever the server carried out is answered, and whatever was answered is there.
#[test]
fn sigterm_under_load_answers_what_it_took_on() {
    for storage in ["sled", "redb"] {
        let place = Place::shamir_on(storage);
        let (server, made) = initialised(place.start());
        let (token, root) = (server.token.clone().unwrap(), server.url().trim_start_matches("http://").to_string());
        let acknowledged: Mutex<BTreeSet<String>> = Mutex::default();
        let lost: Mutex<Vec<String>> = Mutex::default();
        let took = std::thread::scope(|scope| {
            for writer in 0..16 {
                let (token, root, acknowledged, lost) = (&token, &root, &acknowledged, &lost);
                scope.spawn(move || {
                    let Ok(mut stream) = TcpStream::connect(root) else { return };
                    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                    for number in 0.. {
                        let name = format!("{writer}-{number}");
                        let body = "{\"data\":{\"x\":1}}";
                        let text = format!(
                            "PUT /v1/kv/data/{name} HTTP/1.1\r\nHost: x\r\nX-Vault-Token: {token}\r\nContent-Length: {}\r\n\r\n{body}",
                            body.len()
                        );
                        if stream.write_all(text.as_bytes()).is_err() {
                            return;
                        }
                        match status(&mut stream) {
                            Some(200) => drop(acknowledged.lock().unwrap().insert(name)),
                            Some(503) => {}
                            Some(status) => panic!("{status}"),
                            None => {
                                lost.lock().unwrap().push(name);
                                return;
                            }
                        }
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(700));
            server.terminate()
        });
        let (acknowledged, lost) = (acknowledged.into_inner().unwrap(), lost.into_inner().unwrap());
        let mut server = place.start();
        server.token = Some(token);
        server.put("sys/unseal", json!({"key": made.shares[0]})).ok();
        for name in &acknowledged {
            assert_eq!(server.get(&format!("kv/data/{name}")).status, 200, "{storage} lost {name}");
        }
        // A request that got no answer was not carried out.
        for name in &lost {
            assert_eq!(server.get(&format!("kv/data/{name}")).status, 404, "{storage} carried out {name} and did not answer");
        }
        measured(&format!(
            "{storage}: SIGTERM beside 16 writers: ended in {took:.2?}, {} writes acknowledged and there",
            acknowledged.len()
        ));
        assert!(acknowledged.len() > 16);
    }
}
