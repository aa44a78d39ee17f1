//! Floods without a token, and with tokens that are not good.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{connect, connect_from, ready, status};
use crate::support::{Place, Server, measured, request};

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
