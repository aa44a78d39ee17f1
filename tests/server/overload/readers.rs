//! Clients that do not read what they asked for, or have closed their sending side.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{CEILING, connect, ready, status};
use crate::support::{Place, measured};

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
