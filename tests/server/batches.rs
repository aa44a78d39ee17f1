//! Batches of five thousand items with mistakes among them, in software and in the HSM: each item gets its own answer, in order.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::support::{Place, Reply, Server, measured, request};

const ITEMS: usize = 5000;

/// What is wrong with an item, if anything.
fn mistake(at: usize) -> Option<&'static str> {
    match at {
        _ if at % 100 == 7 => Some("base64"),
        _ if at % 250 == 11 => Some("other"),
        _ => None,
    }
}

fn plain(at: usize) -> String {
    BASE64_STANDARD.encode(format!("text number {at}"))
}

/// The items, made by `one` of a good place; `spoil` puts the mistakes in.
fn items(one: impl Fn(usize) -> Value, spoil: impl Fn(&str, &mut Value)) -> Value {
    let made = (0..ITEMS).map(|at| {
        let mut item = one(at);
        item["reference"] = json!(format!("item {at}"));
        if let Some(mistake) = mistake(at) {
            spoil(mistake, &mut item);
        }
        item
    });
    json!({"batch_input": made.collect::<Vec<_>>()})
}

fn results(reply: &Reply) -> &Vec<Value> {
    let results = reply.body["data"]["batch_results"].as_array();
    let results = results.unwrap_or_else(|| panic!("{} {}", reply.status, &reply.text[..reply.text.len().min(500)]));
    assert_eq!(results.len(), ITEMS);
    for (at, result) in results.iter().enumerate() {
        assert_eq!(result["reference"], format!("item {at}"));
    }
    results
}

/// Sends a batch; `good` judges the answers to items without a mistake, the others must have an error and nothing else.
fn send(server: &Server<'_>, what: &str, level: &str, body: Value, status: u16, good: impl Fn(usize, &Value)) -> Vec<Value> {
    let began = Instant::now();
    let reply = server.put(&format!("transit/{what}-{level}"), body);
    measured(&format!("{what} at {level}: {ITEMS} items in {:.1} s, unoptimised", began.elapsed().as_secs_f32()));
    assert_eq!(reply.status, status, "{what} at {level}: {}", &reply.text[..reply.text.len().min(500)]);
    let results = results(&reply);
    for (at, result) in results.iter().enumerate() {
        if mistake(at).is_none() {
            assert!(result["error"].is_null(), "{what} at {level}, {at}: {result}");
            good(at, result);
        } else {
            let error = result["error"].as_str().unwrap_or_else(|| panic!("{what} at {level}, {at}: {result}"));
            assert!(!error.is_empty());
            let nothing = |member: &str| result[member].as_str().unwrap_or_default().is_empty();
            assert!(["ciphertext", "plaintext", "signature", "hmac"].into_iter().all(nothing), "{result}");
            assert!(result["valid"].is_null() || result["valid"] == false, "{result}");
        }
    }
    results.clone()
}

fn encryption(server: &Server<'_>, level: &str) {
    let key = format!("aes-{level}");
    server.put(&format!("transit/keys/{key}"), json!({"protection_level": level})).ok();
    let to_encrypt = |code: Option<u16>| {
        let mut body = items(
            |at| json!({"plaintext": plain(at)}),
            |mistake, item| match mistake {
                "base64" => item["plaintext"] = json!("not base64!"),
                _ => item["key_version"] = json!(9),
            },
        );
        if let Some(code) = code {
            body["partial_failure_response_code"] = code.into();
        }
        body
    };
    let sealed = send(server, "encrypt/aes", level, to_encrypt(None), 400, |_, item| {
        assert!(item["ciphertext"].as_str().unwrap().starts_with("vault:v1:"));
        assert_eq!(item["key_version"], 1);
    });
    let ciphertexts: std::collections::HashSet<&str> = sealed.iter().filter_map(|item| item["ciphertext"].as_str()).collect();
    assert_eq!(ciphertexts.len(), (0..ITEMS).filter(|at| mistake(*at).is_none()).count());
    send(server, "encrypt/aes", level, to_encrypt(Some(207)), 207, |_, item| assert!(item["ciphertext"].is_string()));

    let of = |results: &[Value]| {
        let results = results.to_vec();
        move |at: usize| json!({"ciphertext": results[at]["ciphertext"].as_str().unwrap_or("vault:v1:AAAA")})
    };
    let spoil = |mistake: &str, item: &mut Value| match mistake {
        "base64" => item["ciphertext"] = json!("vault:v1:!"),
        // Long enough, and not authentic.
        _ => item["ciphertext"] = json!(format!("vault:v1:{}", BASE64_STANDARD.encode([7; 40]))),
    };
    let opened = |at: usize, item: &Value| assert_eq!(item["plaintext"], plain(at));
    send(server, "decrypt/aes", level, items(of(&sealed), spoil), 400, opened);

    server.put(&format!("transit/keys/{key}/rotate"), json!({})).ok();
    // As in Vault a mistake among the items of a rewrap leaves the status at 200.
    let rewrapped = send(server, "rewrap/aes", level, items(of(&sealed), spoil), 200, |_, item| {
        assert!(item["ciphertext"].as_str().unwrap().starts_with("vault:v2:"));
    });
    send(server, "decrypt/aes", level, items(of(&rewrapped), spoil), 400, opened);
    // Ciphertexts of both versions in one batch.
    let mixed: Vec<Value> = (0..ITEMS).map(|at| if at % 2 == 0 { sealed[at].clone() } else { rewrapped[at].clone() }).collect();
    send(server, "decrypt/aes", level, items(of(&mixed), spoil), 400, opened);
}

fn signing(server: &Server<'_>, level: &str) {
    server.put(&format!("transit/keys/ec-{level}"), json!({"type": "ecdsa-p256", "protection_level": level})).ok();
    let spoil_input = |_: &str, item: &mut Value| item["input"] = json!("not base64!");
    let input = |at: usize| json!({"input": plain(at)});
    for (make, member) in [("sign/ec", "signature"), ("hmac/ec", "hmac")] {
        // As in Vault a mistake among these leaves the status at 200.
        let made = send(server, make, level, items(input, spoil_input), 200, |_, item| {
            assert!(item[member].as_str().unwrap().starts_with("vault:v1:"));
        });
        let of = |at: usize| made[at][member].as_str().unwrap_or("vault:v1:AAAA").to_owned();
        let own = |at: usize| json!({"input": plain(at), member: of(at)});
        send(server, "verify/ec", level, items(own, spoil_input), 200, |_, item| assert_eq!(item["valid"], true));
        // Each with the input of its neighbour: nothing fits, and nothing but the mistakes is an error.
        let of_others = |at: usize| json!({"input": plain(at + 1), member: of(at)});
        let wrong =
            |_: usize, item: &Value| assert!(item["valid"] == false || (member == "hmac" && item["valid"].is_null()), "{item}");
        send(server, "verify/ec", level, items(of_others, spoil_input), 200, wrong);
    }
}

#[test]
fn five_thousand_items_in_order_with_mistakes_among_them() {
    let Some(place) = Place::hsm() else { return };
    let mut server = place.start();
    server.init(1, 1);
    server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
    for level in ["software", "hsm"] {
        encryption(&server, level);
        signing(&server, level);
    }
}

/// Says at its end, also in a panic, that there is nothing more to watch.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a large batch of items that cost their sender three bytes each costs the server.
#[test]
fn large_batches_are_answered_in_bounded_memory_and_larger_ones_refused() {
    /// MiB that the answer, its envelope and a window of items may take.
    const ROOM: u64 = 100;
    let Some(place) = Place::hsm() else { return };
    let mut server = place.start();
    server.init(1, 1);
    server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
    server.put("transit/keys/k", json!({"type": "ecdsa-p256", "protection_level": "hsm"})).ok();
    let batch = |item: &str, count: usize| format!("{{\"batch_input\":[{}{item}]}}", format!("{item},").repeat(count - 1));
    let send = |body: String| {
        let token = server.token.as_deref();
        request(server.url(), "PUT", "/v1/transit/sign/k", token, Some(&body)).unwrap()
    };
    let (idle, peak, done) = (server.resident(), AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(server.resident(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let ended = Ended(&done);
        let reply = send(batch("{}", 150_000));
        drop(ended);
        assert_eq!(reply.status, 200);
        let results = reply.body["data"]["batch_results"].as_array().unwrap();
        assert_eq!(results.len(), 150_000);
        assert!(results.iter().all(|item| item["error"] == "missing input"));
    });
    let peak = peak.into_inner();
    measured(&format!("signing 150,000 empty items: resident {idle} MiB before, {peak} MiB at the peak"));
    assert!(peak < idle + ROOM, "{idle} MiB before, {peak} MiB at the peak");
    let reply = send(batch("{}", 500_001));
    assert_eq!(reply.status, 400);
    assert!(reply.errors().contains("more than the 500000 items that one request takes"), "{}", reply.text);
}
