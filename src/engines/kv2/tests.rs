use std::{collections::BTreeSet, sync::Arc, time::Duration};

use serde_json::{Value, json as value};

use crate::{
    core::{failure::Kind, request::Operation},
    engines::kv_testing::{Bench, json, text},
};

async fn versions(bench: &Bench, key: &str) -> Vec<u64> {
    let data = json(&bench.read(&format!("metadata/{key}")).await.unwrap());
    let mut numbers: Vec<u64> = data["versions"].as_object().unwrap().keys().map(|number| number.parse().unwrap()).collect();
    numbers.sort_unstable();
    numbers
}

#[tokio::test]
async fn data_comes_back_byte_for_byte_with_its_metadata() {
    let bench = Bench::new("2").await;
    let wrote = bench.write("data/a", r#"{"data": {"n": 1.50, "big": 123456789012345678901234567890}}"#).await.unwrap();
    assert_eq!(json(&wrote)["version"], 1);
    let read = bench.read("data/a").await.unwrap();
    assert!(
        text(&read).starts_with(r#"{"data":{"n": 1.50, "big": 123456789012345678901234567890},"metadata":{"created_time":""#)
    );
    assert_eq!(json(&read)["metadata"], json(&wrote));
    assert_eq!(bench.read("data/b").await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(bench.read("data/a?version=2").await.unwrap_err().kind(), Kind::NotFound);
}

#[tokio::test]
async fn check_and_set_takes_many_notations() {
    let bench = Bench::new("2").await;
    let write = async |options: &str| {
        let body = format!(r#"{{"data": {{}}, "options": {options}}}"#);
        bench.write("data/a", &body).await.map(|reply| json(&reply)["version"].as_u64().unwrap())
    };
    let mismatch = "check-and-set parameter did not match the current version";
    for (options, expected) in [
        (r#"{"cas": 1}"#, Err(mismatch)),
        (r#"{"cas": "0"}"#, Ok(1)),
        (r#"{"cas": true}"#, Ok(2)),
        (r#"{"cas": null}"#, Err(mismatch)),
        (r#"{"cas": ""}"#, Err(mismatch)),
        (r#"{"cas": false}"#, Err(mismatch)),
        (r#"{"cas": -1}"#, Err(mismatch)),
        (r#"{"cas": 2.0}"#, Err("error parsing check-and-set parameter")),
        (r#"{"cas": [2]}"#, Err("error parsing check-and-set parameter")),
        (r#"{"cas": "2"}"#, Ok(3)),
        ("null", Ok(4)),
        ("{}", Ok(5)),
    ] {
        match (write(options).await, expected) {
            (Ok(version), Ok(expected)) => assert_eq!(version, expected, "{options}"),
            (Err(failure), Err(expected)) => assert_eq!(failure.text(), expected, "{options}"),
            (got, expected) => panic!("{options}: {got:?} and not {expected:?}"),
        }
    }
    assert!(write(r#""cas=0""#).await.unwrap_err().text().contains("\"options\""));
    bench.write("config", r#"{"cas_required": true}"#).await.unwrap();
    assert_eq!(write("{}").await.unwrap_err().text(), "check-and-set parameter required for this call");
}

#[tokio::test]
async fn versions_expire_by_the_clock() {
    let bench = Bench::new("2").await;
    bench.write("metadata/a", r#"{"delete_version_after": "2s"}"#).await.unwrap();
    bench.write("data/a", r#"{"data": {"v": 1}}"#).await.unwrap();
    assert!(bench.read("data/a").await.unwrap().status.is_none());
    bench.clock.advance(Duration::from_secs(3));
    let gone = bench.read("data/a").await.unwrap();
    assert_eq!((gone.status, &json(&gone)["data"]), (Some(404), &Value::Null));
    assert_eq!(bench.patch("data/a", r#"{"data": {"w": 1}}"#).await.unwrap().status, Some(404));
    bench.write("metadata/a", r#"{"delete_version_after": 0}"#).await.unwrap();
    bench.write("undelete/a", r#"{"versions": [1]}"#).await.unwrap();
    assert_eq!(json(&bench.read("data/a").await.unwrap())["data"], value!({"v": 1}));
}

#[tokio::test]
async fn trimmed_destroyed_and_removed_versions_leave_no_record() {
    let bench = Bench::new("2").await;
    let records = || bench.view.scan("v/", None, 100).unwrap().len();
    bench.write("config", r#"{"max_versions": 3}"#).await.unwrap();
    for number in 0..5 {
        bench.write("data/a", &format!(r#"{{"data": {{"n": {number}}}}}"#)).await.unwrap();
    }
    assert_eq!(versions(&bench, "a").await, [3, 4, 5]);
    assert_eq!(records(), 3);
    bench.write("destroy/a", r#"{"versions": "3, 4"}"#).await.unwrap();
    assert_eq!(records(), 1);
    // The latest leaves its name, without data, so that a restore sees how far the numbers went.
    bench.write("destroy/a", r#"{"versions": "5"}"#).await.unwrap();
    let left = bench.view.scan("v/", None, 100).unwrap();
    assert!(matches!(left.as_slice(), [(path, entry)] if path == "v/a/5" && entry.value.is_empty()));
    bench.delete("metadata/a").await.unwrap();
    assert_eq!(records(), 0);
    assert!(!bench.exists("data/a").await);
    assert_eq!(json(&bench.write("data/a", r#"{"data": {}}"#).await.unwrap())["version"], 1);
}

#[tokio::test]
async fn keys_that_end_in_numbers_do_not_meet_versions() {
    let bench = Bench::new("2").await;
    for key in ["a", "a/1", "a/1/1"] {
        bench.write(&format!("data/{key}"), &format!(r#"{{"data": {{"k": "{key}"}}}}"#)).await.unwrap();
    }
    bench.delete("metadata/a").await.unwrap();
    for key in ["a/1", "a/1/1"] {
        assert_eq!(json(&bench.read(&format!("data/{key}")).await.unwrap())["data"]["k"], key);
    }
}

#[tokio::test]
async fn writers_of_one_key_get_different_versions_and_share_commits() {
    let bench = Arc::new(Bench::new("2").await);
    bench.write("config", r#"{"max_versions": 1000}"#).await.unwrap();
    let writers: Vec<_> = (0..200)
        .map(|number| {
            let bench = Arc::clone(&bench);
            tokio::spawn(async move {
                let reply = bench.write("data/a", &format!(r#"{{"data": {{"n": {number}}}}}"#)).await.unwrap();
                (json(&reply)["version"].as_u64().unwrap(), number)
            })
        })
        .collect();
    let mut given = BTreeSet::new();
    for writer in writers {
        let (version, number) = writer.await.unwrap();
        assert!(given.insert(version));
        let read = bench.read(&format!("data/a?version={version}")).await.unwrap();
        assert_eq!(json(&read)["data"]["n"], number);
    }
    assert_eq!(given, (1..=200).collect());
    let commits: BTreeSet<_> = bench.view.scan("v/a/", None, 1000).unwrap().into_iter().map(|(_, entry)| entry.version).collect();
    assert!(commits.len() < 100, "{} commits", commits.len());
}

#[tokio::test]
async fn of_writers_with_the_same_expectation_one_wins() {
    let bench = Arc::new(Bench::new("2").await);
    let writers: Vec<_> = (0..50)
        .map(|_| {
            let bench = Arc::clone(&bench);
            tokio::spawn(async move { bench.write("data/a", r#"{"data": {}, "options": {"cas": 0}}"#).await.is_ok() })
        })
        .collect();
    let mut won = 0;
    for writer in writers {
        won += usize::from(writer.await.unwrap());
    }
    assert_eq!(won, 1);
}

#[tokio::test]
async fn a_writer_that_goes_away_does_not_block_the_key() {
    let bench = Bench::new("2").await;
    for _ in 0..20 {
        let write = bench.write("data/a", r#"{"data": {}}"#);
        let _ = tokio::time::timeout(Duration::from_nanos(1), write).await;
    }
    let reply = bench.write("data/a", r#"{"data": {"last": true}}"#).await.unwrap();
    assert_eq!(json(&bench.read("data/a").await.unwrap())["metadata"], json(&reply));
}

#[tokio::test]
async fn secrets_of_version_one_become_first_versions_and_an_interrupted_upgrade_goes_on() {
    let old = Bench::new("1").await;
    for number in 0..450 {
        old.write(&format!("k/{number}"), &format!(r#"{{"n": {number}, "ttl": "1h"}}"#)).await.unwrap();
    }
    // As after a crash behind the marker: nothing is moved yet, and no writer of version 1 gets in any more.
    old.view.commit(crate::barrier::Txn::new().put("versioned", Vec::new())).await.unwrap();
    let new = old.tuned("2").await;
    assert_eq!(new.list("metadata/k/").await.len(), 450);
    assert!(new.view.scan("v1/", None, 1).unwrap().is_empty());
    let read = json(&new.read("data/k/449").await.unwrap());
    assert_eq!((&read["data"], &read["metadata"]["version"]), (&value!({"n": 449, "ttl": "1h"}), &value!(1)));
    assert_eq!(json(&new.read("metadata/k/0").await.unwrap())["oldest_version"], 1);
    let again = new.tuned("2").await;
    assert_eq!(json(&again.write("data/k/0", r#"{"data": {}}"#).await.unwrap())["version"], 2);
}

#[tokio::test]
async fn lists_are_paged_and_the_root_is_explained() {
    let bench = Bench::new("2").await;
    for key in ["a", "b", "c", "d/x", "e"] {
        bench.write(&format!("data/{key}"), r#"{"data": {}}"#).await.unwrap();
    }
    assert_eq!(bench.list("metadata/?limit=2").await, ["a", "b"]);
    assert_eq!(bench.list("metadata/?after=b&limit=2").await, ["c", "d/"]);
    assert_eq!(bench.list("metadata/?limit=-3").await.len(), 5);
    assert!(bench.list("metadata/?after=e").await.is_empty());
    let detailed = bench.send(Operation::List, "detailed-metadata/?limit=1", "").await.unwrap();
    assert_eq!(json(&detailed)["key_info"]["a"]["current_version"], 1);
    let lost = bench.read("metadata").await.unwrap();
    assert_eq!((lost.status, lost.warnings.len()), (Some(404), 1));
    assert!(bench.write("a", r#"{"v": 1}"#).await.unwrap().warnings[0].ends_with("use 'vault kv put' for this operation."));
    assert_eq!(bench.send(Operation::List, "data/", "").await.unwrap_err().kind(), Kind::UnsupportedOperation);
}

#[tokio::test]
async fn settings_are_patched_and_guarded() {
    let bench = Bench::new("2").await;
    assert!(bench.write("metadata/a", r#"{"unknown": 1}"#).await.unwrap().is_empty());
    assert!(!bench.exists("data/a").await);
    assert_eq!(bench.patch("metadata/a", r#"{"max_versions": 1}"#).await.unwrap().status, Some(404));
    bench.write("metadata/a", r#"{"custom_metadata": {"a": "1", "b": 2}, "metadata_cas": 0}"#).await.unwrap();
    assert!(bench.patch("metadata/a", r#"{"max_versions": 3, "metadata_cas": 5}"#).await.is_err());
    bench
        .patch("metadata/a", r#"{"custom_metadata": {"a": null, "c": "3"}, "max_versions": 3, "metadata_cas": 1}"#)
        .await
        .unwrap();
    let shown = json(&bench.read("metadata/a").await.unwrap());
    assert_eq!(shown["custom_metadata"], value!({"b": "2", "c": "3"}));
    assert_eq!((&shown["max_versions"], &shown["current_metadata_version"]), (&value!(3), &value!(2)));
    bench.patch("metadata/a", r#"{"custom_metadata": null, "max_versions": null}"#).await.unwrap();
    let shown = json(&bench.read("metadata/a").await.unwrap());
    assert_eq!((&shown["custom_metadata"], &shown["max_versions"]), (&Value::Null, &value!(0)));
    bench.write("config", r#"{"cas_required": true, "delete_version_after": "-30s"}"#).await.unwrap();
    assert_eq!(bench.write("metadata/a", r#"{"cas_required": false}"#).await.unwrap().warnings.len(), 1);
    assert_eq!(json(&bench.read("config").await.unwrap())["delete_version_after"], "-1s");
}

#[tokio::test]
async fn a_version_whose_record_is_lost_is_an_error_and_not_absent() {
    let bench = Bench::new("2").await;
    bench.write("data/a", r#"{"data": {}}"#).await.unwrap();
    bench.view.commit(crate::barrier::Txn::new().delete("v/a/1")).await.unwrap();
    assert_eq!(bench.read("data/a").await.unwrap_err().kind(), Kind::Internal);
}

#[tokio::test]
async fn a_slash_at_the_end_of_a_deletion_is_not_looked_at() {
    let bench = Bench::new("2").await;
    bench.write("data/a/b", r#"{"data": {}}"#).await.unwrap();
    assert_eq!(json(&bench.read("metadata/a/b/").await.unwrap())["current_version"], 1);
    assert_eq!(bench.read("metadata/a/").await.unwrap_err().kind(), Kind::NotFound);
    bench.delete("data/a/b/").await.unwrap();
    let metadata = json(&bench.read("metadata/a/b").await.unwrap());
    assert_ne!(metadata["versions"]["1"]["deletion_time"], "");
    bench.delete("metadata/a/").await.unwrap();
    assert_eq!(versions(&bench, "a/b").await, [1]);
    bench.delete("metadata/a/b/").await.unwrap();
    assert_eq!(bench.read("metadata/a/b").await.unwrap_err().kind(), Kind::NotFound);
}
