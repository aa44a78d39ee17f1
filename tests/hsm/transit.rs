//! The Transit engine on a real token, with a clock that the test moves: keys that rotate by themselves at every level.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sos::barrier::{Barrier, Txn, View};
use sos::core::clock::Clock;
use sos::core::engine::{Call, Caller, Engine};
use sos::core::mounts::{MountConfig, MountEntry, MountRecord, Table};
use sos::core::reply::Body;
use sos::core::request::{Operation, Request};
use sos::engines::transit::Transit;
use sos::engines::{MountContext, Services};
use sos::hsm::Hsm;
use sos::seal::wire::InitRequest;
use sos::seal::{Seal, SealSettings};
use sos::wire::json::RawObject;
use sos::zones::Zones;

use crate::support::Token;

/// A Transit mount whose server has this HSM.
async fn mounted(hsm: Arc<dyn Hsm>, clock: &Clock) -> (Transit, MountEntry) {
    let barrier = Arc::new(Barrier::new(Arc::new(sos::storage::InMem::open().unwrap())));
    let settings = SealSettings { key_label: "prod".into(), escrow: true, ..SealSettings::default() };
    let seal = Seal::new(Arc::clone(&barrier), Some(Arc::clone(&hsm)), settings);
    let request = InitRequest { recovery_shares: 1, recovery_threshold: 1, ..InitRequest::default() };
    seal.init(request, clock.now()).await.unwrap();
    let zones = Arc::new(Zones::new(Arc::clone(&barrier), Some(Arc::clone(&hsm)), "prod"));
    zones.unsealed(&[], clock.now()).await.unwrap();
    let services = Services { hsm: Some(hsm), zones, default_protection: None, transit: Arc::default() };
    let entry = MountEntry {
        table: Table::Secret,
        path: "transit/".into(),
        kind: "transit".into(),
        uuid: "uuid".into(),
        accessor: "transit_1".into(),
        description: String::new(),
        options: BTreeMap::new(),
        config: MountConfig::default(),
        local: false,
        seal_wrap: false,
        external_entropy_access: false,
    };
    let txn = Txn::new().put("core/mounts/uuid", serde_json::to_vec(&entry).unwrap());
    barrier.commit(txn).await.unwrap();
    let context = MountContext {
        entry: entry.clone(),
        record: MountRecord::new(&View::new(Arc::clone(&barrier), "core").unwrap(), "uuid"),
        view: View::new(barrier, "logical/uuid").unwrap(),
        clock: clock.clone(),
        system_default_ttl: 0,
        system_max_ttl: 0,
        services: Arc::new(services),
    };
    (Transit::new(&context).unwrap(), entry)
}

/// A request's data.
async fn ask(transit: &Transit, mount: &MountEntry, clock: &Clock, path: &str, body: Value) -> Value {
    let operation = if body.is_null() { Operation::Read } else { Operation::Update };
    let request = Request::internal(operation, path, body.to_string().into_bytes());
    let body = RawObject::parse(&request.body).unwrap();
    let found = transit.resolve(path).unwrap();
    let caller = Caller::anyone(None);
    let captures = &found.captures;
    let call = Call { request: &request, operation, path, captures, body: &body, caller: &caller, mount, now: clock.now() };
    match transit.run(Some(found.route), &call).await.unwrap().body {
        Body::Data(bytes) => serde_json::from_slice(&bytes).unwrap(),
        other => panic!("{path}: no data: {other:?}"),
    }
}

#[tokio::test]
async fn keys_of_every_level_rotate_by_age_and_stay_at_their_level() {
    const INPUT: &str = "b3BlbiBzZXNhbWU=";
    let Some(token) = Token::softhsm() else { return };
    let hsm = token.client().await;
    let clock = Clock::movable();
    let (transit, mount) = mounted(Arc::clone(&hsm) as Arc<dyn Hsm>, &clock).await;
    let before = hsm.find("sos/prod/transit/").await.unwrap().len();
    let kinds = ["aes256-gcm96", "ecdsa-p256", "rsa-2048"];
    let levels = ["software", "hsm", "hsm-only"];
    let all = || kinds.into_iter().flat_map(|kind| levels.into_iter().map(move |level| (format!("{kind}-{level}"), kind, level)));
    let mut made = BTreeMap::new();
    for (name, kind, level) in all() {
        let body = json!({"type": kind, "protection_level": level, "auto_rotate_period": "2h"});
        ask(&transit, &mount, &clock, &format!("keys/{name}"), body).await;
        let (use_it, input) = if kind.starts_with("aes") { ("encrypt", "plaintext") } else { ("sign", "input") };
        let answer = ask(&transit, &mount, &clock, &format!("{use_it}/{name}"), json!({input: INPUT})).await;
        made.insert(name, answer);
    }
    for (hours, version) in [(1, 1), (1, 2), (1, 2), (1, 3)] {
        clock.advance(Duration::from_secs(hours * 3600));
        transit.tick().await.unwrap();
        for (name, ..) in all() {
            let shown = ask(&transit, &mount, &clock, &format!("keys/{name}"), Value::Null).await;
            assert_eq!(shown["latest_version"], version, "{name}");
        }
    }
    for (name, kind, level) in all() {
        let shown = ask(&transit, &mount, &clock, &format!("keys/{name}"), Value::Null).await;
        assert_eq!((&shown["protection_level"], &shown["protection_levels"]), (&json!(level), &Value::Null), "{name}");
        if kind.starts_with("aes") {
            let opened =
                ask(&transit, &mount, &clock, &format!("decrypt/{name}"), json!({"ciphertext": made[&name]["ciphertext"]})).await;
            assert_eq!(opened["plaintext"], INPUT, "{name}");
        } else {
            let signed = ask(&transit, &mount, &clock, &format!("sign/{name}"), json!({"input": INPUT})).await;
            assert!(signed["signature"].as_str().unwrap().starts_with("vault:v3:"), "{name}");
            for signature in [&made[&name]["signature"], &signed["signature"]] {
                let body = json!({"input": INPUT, "signature": signature});
                assert_eq!(ask(&transit, &mount, &clock, &format!("verify/{name}"), body).await["valid"], true, "{name}");
            }
        }
    }
    let found = hsm.find("sos/prod/transit/").await.unwrap();
    // Three versions of each hsm-only key, and nothing of the others.
    assert!(found.iter().all(|object| object.label.contains("-hsm-only/")), "{found:?}");
    assert_eq!(found.len() - before, 9, "{found:?}");
}
