//! Connections: thousands at once, more than there are descriptors for, and the bound of each address.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{CEILING, connect, connect_from, initialised, ready, ready_within, status};
use crate::support::{Place, Server, eventually, measured};

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

/// Heads that do not end, behind a request that was answered: nobody needs a token for them.
#[test]
fn heads_without_end_are_taken_in_bounded_memory() {
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, rustix::process::Rlimit { current: most, maximum: most })
        .unwrap();
    let place = Place::shamir();
    let server = ready(&place);
    let idle = server.resident();
    let begun = format!("GET /v1/sys/health HTTP/1.1\r\nHost: x\r\nX: {}", "x".repeat(120_000));
    let (mut streams, refused) = gather([127, 0, 0, 1], &server, 800);
    assert_eq!(refused, 0);
    for stream in &mut streams {
        // Who is refused is closed, which may be noticed while the rest is sent.
        let _ = stream.write_all(begun.as_bytes());
    }
    let mut closed = vec![false; streams.len()];
    let mut refused = || {
        for (stream, closed) in streams.iter_mut().zip(&mut closed).filter(|(_, closed)| !**closed) {
            stream.set_nonblocking(true).unwrap();
            let mut answer = [0; 12];
            match stream.read(&mut answer) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                // The answer may be lost to the reset that what is still sent brings about.
                read => *closed = read.is_err() || &answer == b"HTTP/1.1 503",
            }
        }
        closed.iter().filter(|closed| **closed).count()
    };
    // Of 128 MiB one address has half, and each of these is a buffer of 128 KiB.
    let began = Instant::now();
    while refused() < 288 {
        assert!(began.elapsed() < Duration::from_secs(20), "{} refused", refused());
        std::thread::sleep(Duration::from_millis(20));
    }
    let (refused, resident) = (refused(), server.resident());
    measured(&format!(
        "800 heads of 120 KB without end: {refused} refused, resident {idle} MiB before and {resident} MiB with them"
    ));
    assert!(refused <= 500, "{refused} refused");
    assert!(resident < idle + 160, "{idle} MiB before, {resident} MiB then");
    for address in [[127, 0, 0, 1], [127, 0, 0, 2]] {
        assert_eq!(gather(address, &server, 5).0.len(), 5, "small requests from {address:?}");
    }
    // Who ends its head is answered, and its connection, with the buffer, ends.
    let mut whole = connect_from([127, 0, 0, 2], &server);
    whole.write_all(format!("{begun}\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    whole.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
}

#[test]
fn no_address_fills_one_of_several_listeners() {
    let place = Place::shamir();
    let socket = place.path("sos.sock");
    place.configure(&format!("{}\nlistener \"unix\" {{ address = \"{}\" }}", place.plain_config("sled"), socket.display()));
    // Room for some 70 connections at each.
    let server = ready_within(&place, 320);
    let (one, refused) = gather([127, 0, 0, 1], &server, 200);
    assert!(one.len() >= 40 && refused >= 120, "{} served, {refused} refused", one.len());
    assert_eq!(gather([127, 0, 0, 2], &server, 3).0.len(), 3, "from a second address");
    // The clients of the other listener are one address there.
    let ask = |stream: &mut UnixStream| {
        // It may be closed already.
        let _ = stream.write_all(b"GET /v1/sys/health HTTP/1.1\r\nHost: x\r\n\r\n");
        let mut answer = [0; 12];
        let _ = stream.read(&mut answer);
        answer
    };
    let mut local: Vec<UnixStream> = (0..200).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    let answers: Vec<_> = local.iter_mut().map(ask).collect();
    let served = answers.iter().filter(|answer| *answer == b"HTTP/1.1 200").count();
    assert!((40..80).contains(&served), "{served} served");
    assert_eq!(gather([127, 0, 0, 2], &server, 3).0.len(), 3, "whatever is at the other listener");
}
