//! Periodic work of several mounts.

use std::time::Duration;

use super::{
    Settings,
    clock::Clock,
    request::{Operation, Request},
    testing::unsealed_core_with,
};

#[tokio::test]
async fn periodic_work_that_takes_long_goes_on_with_the_next_mount() {
    let core = unsealed_core_with(Clock::movable(), Settings::default()).await;
    let active = core.active().unwrap();
    let root = active.tokens.create_root(None).await.unwrap();
    let ask = async |operation: Operation, path: &str, body: &str| {
        let request = Request { token: Some(root.duplicate()), ..Request::internal(operation, path, body.to_owned()) };
        let answer = core.handle(request).await;
        assert!(answer.status < 300, "{path}: {}", String::from_utf8_lossy(&answer.body));
        String::from_utf8(answer.body).unwrap()
    };
    for mount in ["a", "b"] {
        ask(Operation::Update, &format!("sys/mounts/{mount}"), r#"{"type":"transit"}"#).await;
        ask(Operation::Update, &format!("{mount}/keys/k"), r#"{"auto_rotate_period":"1h"}"#).await;
    }
    core.clock.advance(Duration::from_secs(2 * 3600));
    let rotated = async || {
        let mut rotated = Vec::new();
        for mount in ["a", "b"] {
            rotated.push(ask(Operation::Read, &format!("{mount}/keys/k"), "").await.contains("\"latest_version\":2"));
        }
        rotated
    };
    // No time at all is enough for one mount.
    let mut seen = vec![rotated().await];
    for _ in active.router.all() {
        core.tick_mounts(&active, Duration::ZERO).await;
        seen.push(rotated().await);
    }
    seen.dedup();
    assert_eq!(seen.len(), 3, "one after the other: {seen:?}");
    assert_eq!((&seen[0], &seen[2]), (&vec![false; 2], &vec![true; 2]));
}
