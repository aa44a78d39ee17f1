//! Clients that send requests without waiting for their answers, whether they read them or not.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{CEILING, connect, ready, status};
use crate::support::{Place, Server, measured};

/// Nobody has to have a token for this. Served at a stretch, what one such connection has sent takes a tenth of a second and more,
/// and everybody else waits for all of them.
#[test]
fn connections_that_pipeline_leave_their_turn_to_others() {
    let place = Place::shamir();
    let server = ready(&place);
    server
        .put("sys/audit/file", json!({"type": "file", "options": {"file_path": place.path("audit.log").display().to_string()}}))
        .ok();
    let idle = server.resident();
    let asked = "GET /v1/sys/health HTTP/1.1\r\nHost: x\r\n\r\n".repeat(400);
    let (done, read) = (AtomicBool::new(false), AtomicUsize::new(0));
    let worst = std::thread::scope(|scope| {
        scope.spawn(|| {
            let open = || {
                let stream = connect(&server).unwrap();
                stream.set_nonblocking(true).unwrap();
                stream
            };
            let mut streams: Vec<TcpStream> = (0..50).map(|_| open()).collect();
            let mut answers = vec![0; 1 << 20];
            while !done.load(Ordering::Relaxed) {
                for (number, stream) in streams.iter_mut().enumerate() {
                    // What the server does not take or has not answered yet is for a later round. One in five never reads.
                    let closed = |done: std::io::Result<usize>| match done {
                        Ok(bytes) => (bytes == 0, bytes),
                        Err(error) => (error.kind() != std::io::ErrorKind::WouldBlock, 0),
                    };
                    let (mut over, _) = closed(stream.write(asked.as_bytes()));
                    if number % 5 != 0 {
                        let (ended, bytes) = closed(stream.read(&mut answers));
                        read.fetch_add(bytes, Ordering::Relaxed);
                        over |= ended;
                    }
                    if over {
                        *stream = open();
                    }
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        std::thread::sleep(Duration::from_millis(500));
        let began = Instant::now();
        let mut worst = Duration::ZERO;
        while began.elapsed() < Duration::from_secs(2) {
            let one = Instant::now();
            server.put("kv/data/beside", json!({"data": {"x": 1}})).ok();
            server.get("kv/data/beside").ok();
            worst = worst.max(one.elapsed());
        }
        done.store(true, Ordering::Relaxed);
        worst
    });
    let (resident, read) = (server.resident(), read.into_inner());
    measured(&format!(
        "50 pipelining connections: {} KiB of answers read, a write and a read beside them at most {worst:.2?}, resident {idle} MiB before and {resident} MiB then",
        read >> 10
    ));
    assert!(read > 1 << 10, "they are served too: {read} bytes");
    // Answered at a stretch, tens of seconds.
    assert!(worst < Duration::from_secs(4), "{worst:?}");
    assert!(resident < CEILING, "{resident} MiB");
}

const HEALTH: &str = "GET /v1/sys/health HTTP/1.1\r\nHost: x\r\n\r\n";

fn write(server: &Server<'_>, verb: &str, path: &str, body: &str) -> String {
    let token = server.token.as_deref().unwrap();
    format!("{verb} /v1/{path} HTTP/1.1\r\nHost: x\r\nX-Vault-Token: {token}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// How what was sent at once is answered, until the server closes or so many answers are there.
fn answers(server: &Server<'_>, sent: &str, half_closed: bool, most: usize) -> Vec<u16> {
    let mut stream = connect(server).unwrap();
    stream.write_all(sent.as_bytes()).unwrap();
    if half_closed {
        stream.shutdown(Shutdown::Write).unwrap();
    }
    std::iter::from_fn(|| status(&mut stream)).take(most).collect()
}

#[test]
fn all_that_is_pipelined_is_answered_in_order() {
    let place = Place::shamir();
    let server = ready(&place);
    let put = |name: &str| write(&server, "PUT", &format!("cubbyhole/{name}"), r#"{"a":"b"}"#);
    // One that takes long before many that are answered at once, and many with bodies, for clients that go on and such that have ended.
    for half_closed in [false, true] {
        let mixed = format!("{}{}", put("first"), HEALTH.repeat(50));
        let expected = [vec![204], vec![200; 50]].concat();
        assert_eq!(answers(&server, &mixed, half_closed, 51), expected, "half closed: {half_closed}");
        let writes: String = (0..30).map(|number| put(&format!("{half_closed}-{number}"))).collect();
        assert_eq!(answers(&server, &writes, half_closed, 30), vec![204; 30], "half closed: {half_closed}");
        for number in 0..30 {
            server.get(&format!("cubbyhole/{half_closed}-{number}")).ok();
        }
        let removals: String = (0..100).map(|_| write(&server, "DELETE", "cubbyhole/first", "")).collect();
        assert_eq!(answers(&server, &removals, half_closed, 100), vec![204; 100], "half closed: {half_closed}");
    }
    // Chunks, empty lines in and between requests, verbs without a body in their answers.
    let token = server.token.as_deref().unwrap();
    let chunked = format!(
        "PUT /v1/cubbyhole/chunked HTTP/1.1\r\nHost: x\r\nX-Vault-Token: {token}\r\nTransfer-Encoding: chunked\r\n\r\n\
         5\r\n{{\"a\":\r\n4\r\n\n\n\r\n\r\n4\r\n\"b\"}}\r\n0\r\n\r\n"
    );
    let spaced = write(&server, "PUT", "cubbyhole/spaced", "\r\n\r\n{\"a\":\"b\"}\n\n\n");
    let long = write(&server, "PUT", "cubbyhole/long", &format!("{{\"a\":\"{}\"}}", "b".repeat(200_000)));
    let mixed = format!("{chunked}{spaced}\r\n\r\n{HEALTH}{long}").repeat(10);
    assert_eq!(answers(&server, &mixed, false, 40), [204, 204, 200, 204].repeat(10));
    assert_eq!(server.get("cubbyhole/chunked").ok()["data"]["a"], "b");
}

#[test]
fn what_is_pipelined_behind_a_close_is_not_carried_out_and_the_answer_arrives() {
    let place = Place::shamir();
    let server = ready(&place);
    let last = HEALTH.replace("Host: x", "Host: x\r\nConnection: close");
    let behind = write(&server, "PUT", "cubbyhole/behind", r#"{"a":"b"}"#);
    for many in [1, 20, 5000] {
        assert_eq!(
            answers(&server, &format!("{HEALTH}{last}{}", behind.repeat(many)), false, 100),
            [200, 200],
            "{many} behind it"
        );
    }
    assert_eq!(server.get("cubbyhole/behind").status, 404);
}

/// Whoever leaves answers lying gets no further, and costs no more than its connection until it is given up.
#[test]
fn clients_that_pipeline_and_do_not_read_cost_no_time() {
    let place = Place::shamir();
    let socket = place.path("sos.sock");
    place.configure(&format!("{}\nlistener \"unix\" {{ address = \"{}\" }}", place.plain_config("sled"), socket.display()));
    let server = ready(&place);
    let asked = HEALTH.repeat(1000);
    let mut tcp = connect(&server).unwrap();
    let mut unix = UnixStream::connect(&socket).unwrap();
    tcp.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    unix.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let sent = |result: std::io::Result<()>| result.is_ok();
    while sent(tcp.write_all(asked.as_bytes())) {}
    while sent(unix.write_all(asked.as_bytes())) {}
    let used = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        // Linux counts a hundred ticks a second towards programs.
        Duration::from_millis(10 * (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()))
    };
    let before = used();
    std::thread::sleep(Duration::from_secs(1));
    let used = used().saturating_sub(before);
    measured(&format!("two clients that pipeline and do not read: {used:.2?} of CPU time in a second"));
    assert!(used < Duration::from_millis(400), "{used:?}");
    // One that reads after all is answered.
    tcp.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    for _ in 0..2_000 {
        assert_eq!(status(&mut tcp), Some(200));
    }
}
