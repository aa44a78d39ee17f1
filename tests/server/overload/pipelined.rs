//! Clients that send requests without waiting for their answers, whether they read them or not.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{CEILING, connect, ready};
use crate::support::{Place, measured};

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
