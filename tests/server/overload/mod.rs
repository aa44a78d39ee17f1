//! More clients, larger bodies and slower readers than the server can serve: it answers or sheds, in bounded memory.
//!
//! `SOS_TEST_CONNECTIONS` sets how many connections are opened at once (at most what the descriptor limit allows).

mod audit;
mod authentication;
mod bodies;
mod connections;
mod large;
mod pipelined;
mod readers;
mod sigterm;

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;

use crate::support::{Made, Place, Server};

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
