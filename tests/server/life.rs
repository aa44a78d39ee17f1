//! From an empty folder to a server that restarts with nobody present.

use serde_json::json;

use crate::support::{Place, measured};

#[test]
fn init_over_http_then_restarts_unseal_by_themselves() {
    for storage in ["sled", "redb"] {
        let Some(place) = Place::hsm_on(storage) else { return };
        let mut server = place.start();
        assert_eq!(server.get("sys/health").status, 501);
        let made = server.init(5, 3);
        let status = server.status();
        assert_eq!(status["type"], "pkcs11");
        assert_eq!(status["storage_type"], storage);
        assert_eq!((&status["recovery_seal"], &status["t"], &status["n"]), (&json!(true), &json!(3), &json!(5)));
        server.mount_kv("kv");
        server.put("kv/data/a", json!({"data": {"x": 1}})).ok();
        assert!(server.terminate().as_secs() < 10);

        for _ in 0..2 {
            let mut server = place.start();
            let status = server.wait_unsealed();
            assert!(status.get("sealed_reason").is_none());
            server.token = Some(made.root.clone());
            assert_eq!(server.get("kv/data/a").ok()["data"]["data"]["x"], 1);
            server.kill();
        }
    }
}

#[test]
fn init_through_the_command_line() {
    let Some(place) = Place::hsm() else { return };
    let server = place.start();
    server.wait_reason("not-initialized");
    let (code, _, _) = server.operator(&["operator", "init", "-status"], "");
    assert_eq!(code, Some(2));
    // The HSM's worker may still be starting.
    let (code, out, err) = loop {
        let done = server.operator(&["operator", "init", "-recovery-shares=3", "-recovery-threshold=2"], "");
        if !done.2.contains("hsm-starting") {
            break done;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(out.matches("Recovery Key ").count(), 3, "{out}");
    assert_eq!(out.matches("Initial Root Token: hvs.").count(), 1);
    server.wait_unsealed();
    let (code, out, _) = server.operator(&["status"], "");
    assert_eq!(code, Some(0), "{out}");
    let (code, _, _) = server.operator(&["operator", "init", "-status"], "");
    assert_eq!(code, Some(0));
}

#[test]
fn init_over_a_cluster_is_refused() {
    let Some(place) = Place::hsm() else { return };
    let mut server = place.start();
    let made = server.init(1, 1);
    let again = server.put("sys/init", json!({"recovery_shares": 1, "recovery_threshold": 1}));
    assert_eq!((again.status, again.errors()), (400, "Vault is already initialized".into()));
    // Nothing has changed.
    drop(server);
    let mut server = place.start();
    server.wait_unsealed();
    server.token = Some(made.root);
    assert_eq!(server.get("auth/token/lookup-self").status, 200);
}

#[test]
fn an_empty_store_beside_a_used_hsm_is_no_new_cluster() {
    let Some(place) = Place::hsm() else { return };
    let mut server = place.start();
    server.init(1, 1);
    server.terminate();
    std::fs::rename(place.path("store"), place.path("lost")).unwrap();
    let server = place.start();
    server.wait_reason("not-initialized");
    let init = || server.put("sys/init", json!({"recovery_shares": 1, "recovery_threshold": 1}));
    // The HSM's worker may still be starting.
    server.wait("the HSM to be asked", |_| init().status != 503);
    let refused = init();
    assert_eq!(refused.status, 400, "{}", refused.text);
    assert!(refused.errors().contains("already holds"), "{}", refused.text);
    server.terminate();
    // The old store still works with this HSM.
    std::fs::remove_dir_all(place.path("store")).unwrap();
    std::fs::rename(place.path("lost"), place.path("store")).unwrap();
    place.start().wait_unsealed();
}

#[test]
fn sealed_by_an_operator_holds_until_restart() {
    let Some(place) = Place::hsm() else { return };
    let mut server = place.start();
    server.init(1, 1);
    server.put("sys/seal", json!({})).ok();
    server.wait_reason("sealed-by-operator");
    // Longer than the retries after a failure of the HSM.
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(server.status()["sealed"], true);
    assert_eq!(server.get("auth/token/lookup-self").status, 503);
    server.terminate();
    place.start().wait_unsealed();
}

#[test]
fn starting_does_not_depend_on_how_much_is_stored() {
    let Some(place) = Place::hsm() else { return };
    let count: usize = std::env::var("SOS_TEST_SECRETS").ok().and_then(|text| text.parse().ok()).unwrap_or(2000);
    let mut server = place.start();
    server.init(1, 1);
    server.mount_kv("kv");
    let (url, token) = (server.url().to_string(), server.token.clone().unwrap());
    std::thread::scope(|scope| {
        for worker in 0..16 {
            let (url, token) = (&url, &token);
            scope.spawn(move || {
                let agent = ureq::Agent::new_with_defaults();
                for number in (worker..count).step_by(16) {
                    let body =
                        format!(r#"{{"data":{{"dek":"c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlYw==","disk":"{number}"}}}}"#);
                    let path = format!("{url}/v1/kv/data/rack-{}/{number}", number % 100);
                    agent.post(path).header("X-Vault-Token", token).send(body).unwrap();
                }
            });
        }
    });
    let resident = server.resident();
    server.terminate();
    let began = std::time::Instant::now();
    let mut server = place.start();
    server.wait_unsealed();
    server.token = Some(token);
    assert_eq!(server.get("kv/data/rack-7/7").status, 200);
    let took = began.elapsed();
    measured(&format!(
        "{count} secrets: {resident} MiB resident after writing, start to first answer {took:.2?}, {} MiB then",
        server.resident()
    ));
    assert!(took.as_secs() < 10, "{took:?}");
}
