//! What `scripts/bench` measures against and with: the floor server, raw loops, a filler and a crowd of waiting clients.
//!
//! None of it is part of the product. Each command prints one line of JSON.
//!
//! ```text
//! bench floor ADDRESS [CERT KEY]                bare actix-web server, see floor.rs
//! bench sign SECONDS THREADS                    the crypto library's own signing rate
//! bench fsync DIR BYTES SECONDS                 write + fdatasync, one after the other
//! bench fill ADDRESS PATH BODY COUNT SECONDS CONNECTIONS    POSTs, numbered
//! bench crowd ADDRESS PATH CLIENTS SECONDS      clients that retry until they are answered 200
//! ```
//!
//! `fill` and `crowd` read the token from the environment (`VAULT_TOKEN`).

mod clients;
mod floor;
mod raw;

use std::process::ExitCode;

type Outcome = Result<serde_json::Value, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(result) => {
            println!("{result}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Outcome {
    match arguments {
        ["floor", address] => floor::serve(address, None),
        ["floor", address, cert, key] => floor::serve(address, Some((cert, key))),
        ["sign", seconds, threads] => raw::sign(seconds.parse()?, threads.parse()?),
        ["fsync", dir, bytes, seconds] => raw::fsync(dir, bytes.parse()?, seconds.parse()?),
        ["fill", address, path, body, count, seconds, connections] => {
            clients::fill(address, path, body, count.parse()?, seconds.parse()?, connections.parse()?)
        }
        ["crowd", address, path, clients, seconds] => clients::crowd(address, path, clients.parse()?, seconds.parse()?),
        _ => Err("usage: bench floor|sign|fsync|fill|crowd …; see the head of examples/bench/main.rs".into()),
    }
}
