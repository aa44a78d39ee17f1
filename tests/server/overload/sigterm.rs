//! SIGTERM under load.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::json;

use super::{initialised, status};
use crate::support::{Place, measured};

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
