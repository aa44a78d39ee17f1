//! HTTP as clients and careless people send it.

use serde_json::{Value, json};

use crate::support::{Place, raw, request};

#[test]
fn bad_input_is_a_4xx_and_the_server_stays_up() {
    let place = Place::shamir();
    let mut server = place.start();
    let made = server.init(1, 1);
    server.put("sys/unseal", json!({"key": made.shares[0]})).ok();
    server.mount_kv("kv");
    let root = Some(made.root.as_str());
    for (method, path, body) in [
        ("PUT", "/v1/kv/data/a", "{"),
        ("PUT", "/v1/kv/data/a", "[1,2]"),
        ("PUT", "/v1/kv/data/a", "\u{0}\u{1}"),
        ("PUT", "/v1/kv/data/a", r#"{"data": 5}"#),
        ("PUT", "/v1/kv/data/a", r#"{"data": {"a": 1}, "options": {"cas": "x"}}"#),
        ("PUT", "/v1/sys/policies/acl/p", r#"{"policy": "path { nonsense"}"#),
        ("PUT", "/v1/sys/mounts/x", r#"{"type": 7}"#),
        ("PUT", "/v1/sys/mounts/x", r#"{"type": "no-such-engine"}"#),
        ("PUT", "/v1/sys/unseal", r#"{"key": 5}"#),
        ("PUT", "/v1/sys/unseal", "nonsense"),
        ("PUT", "/v1/sys/init", r#"{"secret_shares": "many"}"#),
        ("PUT", "/v1/auth/token/create", r#"{"ttl": "eternal"}"#),
        ("PUT", "/v1/auth/token/create", r#"{"policies": {"a": 1}}"#),
        ("GET", "/v1/kv/data/%ff", ""),
        ("GET", "/v1/kv/data/../../sys/mounts", ""),
        ("GET", "/v1/kv/data/%2e%2e/x", ""),
        ("GET", "/v1/", ""),
        ("GET", "/v1/no/such/mount", ""),
        ("GET", "/nowhere", ""),
        ("GET", "/", ""),
        ("BREW", "/v1/kv/data/a", ""),
    ] {
        let reply = match request(server.url(), method, path, root, Some(body)) {
            Ok(reply) => reply,
            Err(error) => panic!("{method} {path} {body}: {error}\n{}", server.log()),
        };
        assert!((400..500).contains(&reply.status), "{method} {path} {body}: {} {}", reply.status, reply.text);
    }
    assert_eq!(server.get("kv/data/a").status, 404);
    let deep = format!("{{\"data\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let reply = request(server.url(), "PUT", "/v1/kv/data/deep", root, Some(&deep)).unwrap();
    assert!((400..500).contains(&reply.status), "{} {}", reply.status, reply.text);
    assert!(server.alive());
    server.put("kv/data/a", json!({"data": {"x": 1}})).ok();
}

#[test]
fn broken_http_does_no_harm() {
    let place = Place::shamir();
    let mut server = place.start();
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"GET /v1/sys/health HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"PUT /v1/sys/unseal HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ] {
        let answer = raw(server.url(), bytes);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.0 4"), "{answer}");
    }
    let long = format!("GET /v1/{} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "a".repeat(200_000));
    let answer = raw(server.url(), long.as_bytes());
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    assert!(server.alive());
    assert_eq!(server.get("sys/health").status, 501);
}

#[test]
fn verbs_and_sizes() {
    let place = Place::shamir();
    let mut server = place.start();
    let made = server.init(1, 1);
    server.put("sys/unseal", json!({"key": made.shares[0]})).ok();
    let host = server.url().trim_start_matches("http://").to_string();
    let root = made.root.as_str();

    let head = raw(server.url(), format!("HEAD /v1/sys/health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes());
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
    let options = request(server.url(), "OPTIONS", "/v1/sys/mounts", Some(root), None).unwrap();
    assert_eq!(options.status, 405, "{}", options.text);
    let strange = request(server.url(), "DELETE", "/v1/sys/health", Some(root), None).unwrap();
    assert_eq!((strange.status, strange.body["errors"].is_array()), (405, true), "{}", strange.text);
    let list = request(server.url(), "LIST", "/v1/sys/policies/acl", Some(root), None).unwrap();
    let queried = request(server.url(), "GET", "/v1/sys/policies/acl?list=true", Some(root), None).unwrap();
    assert_eq!(list.body["data"], queried.body["data"]);
    assert_eq!(list.status, 200);

    // Refused by its announced length, before the body is sent.
    let announce = format!(
        "PUT /v1/cubbyhole/a HTTP/1.1\r\nHost: {host}\r\nX-Vault-Token: {root}\r\nContent-Length: 34000000\r\nConnection: close\r\n\r\n{{\"a\":"
    );
    let answer = raw(server.url(), announce.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let body: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert!(body["errors"][0].as_str().unwrap().contains("too large"), "{body}");
    // Without a length it is cut off at the limit.
    let big = format!("{{\"a\":\"{}\"}}", "x".repeat(33 << 20));
    let chunked = format!(
        "PUT /v1/cubbyhole/a HTTP/1.1\r\nHost: {host}\r\nX-Vault-Token: {root}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n{:x}\r\n{big}\r\n0\r\n\r\n",
        big.len()
    );
    let answer = raw(server.url(), chunked.as_bytes());
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{}", answer.get(..200).unwrap_or(&answer));
    assert_eq!(server.get("cubbyhole/a").status, 404);

    let bearer = format!(
        "GET /v1/auth/token/lookup-self HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {root}\r\nConnection: close\r\n\r\n"
    );
    assert!(raw(server.url(), bearer.as_bytes()).starts_with("HTTP/1.1 200"));
}
