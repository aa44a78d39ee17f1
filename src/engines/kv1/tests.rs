use crate::{
    core::request::Operation,
    engines::kv_testing::{Bench, json, text},
};

async fn lease(bench: &Bench, body: &str) -> u64 {
    bench.write("k", body).await.unwrap();
    bench.read("k").await.unwrap().lease_duration.unwrap().as_secs()
}

#[tokio::test]
async fn secrets_come_back_byte_for_byte() {
    let bench = Bench::new("1").await;
    let body = r#"  {"a": 1.50, "n": 123456789012345678901234567890, "z": {"b": [1,  2]}} "#;
    assert!(!bench.exists("dir/k").await);
    assert!(bench.write("dir/k", body).await.unwrap().is_empty());
    assert!(bench.exists("dir/k").await);
    assert_eq!(text(&bench.read("dir/k").await.unwrap()), body.trim());
    assert_eq!(bench.list("").await, ["dir/"]);
    assert_eq!(bench.list("dir/").await, ["k"]);
    bench.delete("dir/k").await.unwrap();
    bench.delete("dir/k").await.unwrap();
    assert!(bench.read("dir/k").await.is_err());
    assert!(bench.list("").await.is_empty());
}

#[tokio::test]
async fn of_repeated_members_the_last_counts() {
    let bench = Bench::new("1").await;
    bench.write("k", r#"{"a": 1, "b": 2, "a": 3}"#).await.unwrap();
    assert_eq!(text(&bench.read("k").await.unwrap()), r#"{"b":2,"a":3}"#);
}

#[tokio::test]
async fn ttl_and_lease_set_what_reads_show() {
    let bench = Bench::new("1").await;
    for (body, seconds) in [
        (r#"{"v": 1}"#, 1000),
        (r#"{"ttl": "1h"}"#, 3600),
        (r#"{"ttl": 30}"#, 30),
        (r#"{"ttl": "45"}"#, 45),
        (r#"{"lease": "2h30m"}"#, 9000),
        (r#"{"ttl": "10s", "lease": "2h"}"#, 10),
        (r#"{"ttl": "banana", "lease": "5m"}"#, 1000),
        (r#"{"ttl": 0}"#, 0),
        (r#"{"ttl": "1d"}"#, 86400),
        (r#"{"ttl": ["1d"]}"#, 1000),
    ] {
        assert_eq!(lease(&bench, body).await, seconds, "{body}");
    }
}

#[tokio::test]
async fn nothing_to_write_and_nowhere_to_write_are_refused() {
    let bench = Bench::new("1").await;
    for body in ["", "{}", "null", "  "] {
        assert_eq!(bench.write("k", body).await.unwrap_err().text(), "missing data fields");
    }
    assert_eq!(bench.write("", "{\"a\":1}").await.unwrap_err().text(), "missing path");
    assert!(bench.delete("").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_scan_finds_all_and_an_empty_one_is_no_error() {
    let bench = Bench::new("1").await;
    for key in ["a", "d/x", "d/e/y"] {
        bench.write(key, "{\"v\":1}").await.unwrap();
    }
    let scan = async |path| json(&bench.send(Operation::Scan, path, "").await.unwrap());
    assert_eq!(scan("").await["keys"], serde_json::json!(["a", "d/x", "d/e/y"]));
    assert_eq!(scan("d/").await["keys"], serde_json::json!(["x", "e/y"]));
    assert_eq!(scan("none/").await, serde_json::json!({}));
}

#[tokio::test]
async fn an_engine_of_version_one_is_fenced_once_its_mount_is_upgraded() {
    let old = Bench::new("1").await;
    old.write("k", "{\"v\":1}").await.unwrap();
    old.tuned("2").await;
    for refused in [old.write("k", "{\"v\":2}").await, old.read("k").await, old.delete("k").await] {
        assert!(refused.unwrap_err().text().starts_with("Upgrading from non-versioned"));
    }
}
