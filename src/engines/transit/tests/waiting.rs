//! Requests that nobody waits for any longer, or not for so long.

use super::*;

/// A backup of one version, and so many of the same material in its place.
fn with_versions(backup: &str, versions: usize) -> String {
    let text = String::from_utf8(b64::decode(backup).unwrap()).unwrap();
    let (before, rest) = text.split_once("\"keys\":{\"1\":").unwrap();
    // Taken as text: its numbers have thousands of digits.
    let entry: &serde_json::value::RawValue = serde_json::Deserializer::from_str(rest).into_iter().next().unwrap().unwrap();
    let entries: Vec<String> = (1..=versions).map(|version| format!("\"{version}\":{entry}")).collect();
    let after = &rest[entry.get().len()..];
    let text = format!("{before}\"keys\":{{{}{after}", entries.join(","));
    let text = text.replace("\"latest_version\":1,", &format!("\"latest_version\":{versions},"));
    b64::encode(text.replace("\"archive_version\":1,", &format!("\"archive_version\":{versions},")).as_bytes())
}

async fn backup_of(bench: &Bench, kind: &str) -> String {
    let path = format!("keys/{kind}");
    bench.post(&path, json!({ "type": kind, "exportable": true, "allow_plaintext_backup": true })).await;
    let answer = data(bench.call(Operation::Read, &format!("backup/{kind}"), json!({})).await.unwrap());
    answer["backup"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_restore_that_nobody_waits_for_has_no_effect() {
    let bench = Bench::new().await;
    let backup = backup_of(&bench, "aes256-gcm96").await;
    for versions in [1, 1000] {
        let body = json!({ "backup": with_versions(&backup, versions) });
        let (wanted, waiting) = Wanted::within(Duration::from_secs(3600));
        drop(waiting);
        let ended = bench.call_while(wanted, Operation::Update, "restore/r", body.clone()).await.unwrap_err();
        assert_eq!(ended.kind(), Kind::Unavailable, "{ended:?}");
        assert!(bench.transit.store.key("r").unwrap().is_none());
        // The client's next try finds nothing in its way.
        bench.call(Operation::Update, "restore/r", body).await.unwrap();
        assert_eq!(bench.transit.store.key("r").unwrap().unwrap().record.versions.len(), versions);
        bench.post("keys/r/config", json!({ "deletion_allowed": true })).await;
        bench.call(Operation::Delete, "keys/r", json!({})).await.unwrap();
    }
}

#[tokio::test]
async fn a_restore_that_cannot_end_in_time_is_refused_at_once_and_says_how_many_versions_fit() {
    let bench = Bench::new().await;
    let backup = with_versions(&backup_of(&bench, "rsa-2048").await, 2000);
    let (wanted, _waiting) = Wanted::within(Duration::from_secs(20));
    let refused =
        bench.call_while(wanted.clone(), Operation::Update, "restore/r", json!({ "backup": backup })).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Invalid, "{refused:?}");
    assert!(refused.text().starts_with("the key has 2000 versions, of which about "), "{}", refused.text());
    assert!(wanted.check().is_ok(), "it was refused before its time was over");
    assert!(bench.transit.store.key("r").unwrap().is_none());
}

#[tokio::test]
async fn what_is_done_for_a_whole_key_ends_when_the_server_is_sealed() {
    let bench = Bench::new().await;
    let (begun, beginning) = std::sync::mpsc::channel();
    let work = bench.services.transit.gate.whole_key(false, gate::Going::at(&bench.transit.store.view), move |job| {
        loop {
            job.version()?;
            begun.send(()).map_err(Failure::internal)?;
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let sealing = async {
        while beginning.try_recv().is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        bench.barrier.lock().await;
        beginning
    };
    let (ended, _beginning): (Result<(), Failure>, _) = tokio::join!(work, sealing);
    assert_eq!(ended.unwrap_err().text(), "Vault is sealed");
}

#[tokio::test]
async fn long_batches_that_nobody_waits_for_end_and_short_ones_are_done() {
    let bench = Bench::new().await;
    bench.post("keys/k", json!({})).await;
    bench.post("keys/s", json!({ "type": "ed25519" })).await;
    for (path, member) in [("encrypt/k", "plaintext"), ("hmac/k", "input"), ("sign/s", "input")] {
        for (items, ends) in [(5, false), (3000, true)] {
            let (wanted, waiting) = Wanted::within(Duration::from_secs(3600));
            drop(waiting);
            let body = json!({ "batch_input": vec![json!({ member: "YQ==" }); items] });
            let done = bench.call_while(wanted, Operation::Update, path, body).await;
            assert_eq!(done.is_err(), ends, "{path} {items}");
            assert!(done.err().is_none_or(|failure| failure.kind() == Kind::Unavailable));
        }
    }
}
