//! kill -9 at any moment: what was acknowledged is there, and the next start serves.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Place, request};

/// A pseudo-random sequence; where the moments fall matters little, that they differ does.
fn moments(mut state: u64) -> impl FnMut(u64) -> u64 {
    move |below| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % below.max(1)
    }
}

#[test]
fn killed_during_init() {
    let Some(place) = Place::hsm() else { return };
    let mut server = place.start();
    let began = Instant::now();
    server.init(1, 1);
    let whole = began.elapsed();
    drop(server);
    let mut pick = moments(0x5051);
    let (mut resumed, mut finished) = (0, 0);
    for _ in 0..10 {
        let Some(place) = Place::hsm() else { return };
        let server = place.start();
        server.wait_reason("not-initialized");
        let url = server.url().to_string();
        let after = Duration::from_micros(pick(u64::try_from(whole.as_micros()).unwrap()));
        let asking = std::thread::spawn(move || {
            let _ = request(&url, "PUT", "/v1/sys/init", None, Some(r#"{"recovery_shares":1,"recovery_threshold":1}"#));
        });
        std::thread::sleep(after);
        server.kill();
        asking.join().unwrap();

        let mut server = place.start();
        if server.status()["initialized"] == true {
            finished += 1;
            server.wait_unsealed();
        } else {
            resumed += 1;
            server.init(1, 1);
            assert_eq!(server.get("auth/token/lookup-self").status, 200);
            server.terminate();
            place.start().wait_unsealed();
        }
    }
    crate::support::measured(&format!("kill -9 during init: {resumed} initialised again, {finished} were through"));
}

#[test]
fn killed_during_writes() {
    for storage in ["sled", "redb"] {
        let Some(place) = Place::hsm_on(storage) else { return };
        let mut server = place.start();
        let made = server.init(1, 1);
        server.mount_kv("kv");
        let mut pick = moments(0xacc);
        let mut acknowledged: Vec<String> = Vec::new();
        for round in 0..3 {
            let (url, root) = (server.url().to_string(), made.root.clone());
            let written = Mutex::new(Vec::new());
            std::thread::scope(|scope| {
                for writer in 0..4 {
                    let (url, root, written) = (&url, &root, &written);
                    scope.spawn(move || {
                        for number in 0.. {
                            let name = format!("{round}-{writer}-{number}");
                            let body = json!({"data": {"name": name}}).to_string();
                            match request(url, "PUT", &format!("/v1/kv/data/{name}"), Some(root), Some(&body)) {
                                Ok(reply) if reply.status == 200 => written.lock().unwrap().push(name),
                                _ => return,
                            }
                        }
                    });
                }
                std::thread::sleep(Duration::from_millis(200 + pick(400)));
                server.kill();
            });
            acknowledged.extend(written.into_inner().unwrap());
            server = place.start();
            server.wait_unsealed();
            server.token = Some(made.root.clone());
            for name in &acknowledged {
                let found = server.get(&format!("kv/data/{name}")).ok();
                assert_eq!(found["data"]["data"]["name"], name.as_str(), "{storage} lost {name}");
            }
        }
        assert!(acknowledged.len() > 20, "too few writes to tell: {}", acknowledged.len());
    }
}
