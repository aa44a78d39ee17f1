//! Large requests and answers, which threads of their own work on.

use std::time::{Duration, Instant};

use serde_json::json;

use super::ready;
use crate::support::{Place, measured, request};

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
