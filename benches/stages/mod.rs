//! The stages of a request, each as something that can be run alone, with its budgets.
//!
//! Nanoseconds are those of a 3 GHz core: what a stage may cost before the fractions of the floor that the design names are out
//! of reach; they are for people. Instructions are what a stage takes as it is today, rounded up: they repeat, so `cargo bench --bench
//! instructions` fails when a stage takes more, and a change that makes a stage dearer has to raise its budget where everybody sees it.

mod made;
mod token;

use std::{collections::BTreeMap, sync::Arc};

use actix_web::test::TestRequest;
use bytes::Bytes;
use made::{audited, make, record_of};
use sos::{
    barrier::Txn,
    core::{envelope, policy::AccessRequest, reply::Reply, request::Operation},
    http::decode,
    secret::SecretString,
};

const ENCRYPT: &str = r#"{"plaintext":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}"#;

/// One thing to measure.
pub struct Stage {
    /// What it is.
    pub name: &'static str,
    /// Nanoseconds that it may take.
    pub budget: u64,
    /// Instructions in user space that it may take, all threads of the process together.
    pub instructions: u64,
    /// Does it once.
    pub run: Box<dyn FnMut()>,
}

/// All stages over one core.
pub fn all() -> Vec<Stage> {
    let made = Arc::new(make());
    let mut stages = Vec::new();
    let mut stage = |name, budget, instructions, run: Box<dyn FnMut()>| stages.push(Stage { name, budget, instructions, run });
    let active = made.active();
    let token = SecretString::new(made.token.clone());
    let entry = active.tokens.lookup(&token).expect("a store").expect("a token");
    let acl = active.acl_of(&entry).expect("policies");
    let barrier = Arc::clone(&made.core.barrier);
    let record = record_of(&barrier);

    let get = TestRequest::get().uri("/v1/kv/data/hot").insert_header(("X-Vault-Token", made.token.clone())).to_http_request();
    stage("decode a GET", 500, 3_600, Box::new(move || drop(std::hint::black_box(decode::head(&get, &BTreeMap::new())))));
    let post = TestRequest::post().uri("/v1/transit/encrypt/aes").insert_header(("X-Vault-Token", made.token.clone()));
    let post = post.insert_header(("Content-Type", "application/json")).to_http_request();
    stage(
        "decode a POST and its body",
        600,
        4_500,
        Box::new(move || {
            drop(std::hint::black_box(decode::head(&post, &BTreeMap::new())));
            drop(std::hint::black_box(decode::body(decode::body_kind(&post), Bytes::from_static(ENCRYPT.as_bytes()))));
        }),
    );
    let (with, store) = (Arc::clone(&active), Arc::clone(&barrier));
    stage("mount", 150, 540, Box::new(move || drop(std::hint::black_box(with.router.find("kv/data/hot")))));
    let mounted = active.router.find("kv/").expect("a mount").0;
    stage("route", 250, 420, Box::new(move || drop(std::hint::black_box(mounted.engine.resolve("data/hot")))));
    let with = Arc::clone(&active);
    stage("token", 800, 9_200, Box::new(move || drop(std::hint::black_box(with.tokens.lookup(&token)))));
    let with = Arc::clone(&active);
    let known = Arc::clone(&entry);
    stage("policies of a token", 200, 440, Box::new(move || drop(std::hint::black_box(with.acl_of(&known)))));
    let checked = Arc::clone(&acl);
    stage(
        "policy",
        150,
        1_300,
        Box::new(move || {
            let asked = AccessRequest { path: "kv/data/disk/7", operation: Operation::Read, parameters: &(), wrap_ttl: None };
            std::hint::black_box(checked.check(&asked));
        }),
    );
    let path = record.clone();
    stage("storage get", 800, 2_700, Box::new(move || drop(std::hint::black_box(store.raw().get(&path)))));
    let store = Arc::clone(&barrier);
    stage("storage get and AEAD open", 1500, 11_000, Box::new(move || drop(std::hint::black_box(store.get(&record)))));
    let with = Arc::clone(&made);
    let commit = move || {
        let txn = Txn::new().put("logical/stages/record", vec![b'1'; 300]);
        std::hint::black_box(with.runtime.block_on(with.core.barrier.commit(txn)).expect("committed"));
    };
    stage("commit of one record, with its sync", 400_000, 29_000, Box::new(commit));
    stage(
        "envelope",
        400,
        1_400,
        Box::new(|| {
            let reply = Reply::raw_data(vec![b'1'; 200]);
            drop(std::hint::black_box(envelope::render(reply, "00000000-0000-0000-0000-000000000000", "kv")));
        }),
    );
    for (name, budget, instructions, operation, path, body) in [
        ("whole: health", 1_500, 30_000, Operation::Read, "sys/health", ""),
        ("whole: KV v2 read", 4_500, 64_000, Operation::Read, "kv/data/hot", ""),
        (
            "whole: KV v2 write, with its sync",
            500_000,
            150_000,
            Operation::Update,
            "kv/data/mine/own",
            r#"{"data":{"disk":"1"}}"#,
        ),
        ("whole: encrypt 32 B", 6_000, 52_000, Operation::Update, "transit/encrypt/aes", ENCRYPT),
        ("whole: lookup-self", 4_000, 71_000, Operation::Read, "auth/token/lookup-self", ""),
        ("whole: list of 1,000 keys", 200_000, 950_000, Operation::List, "kv/metadata/disk/", ""),
    ] {
        let with = Arc::clone(&made);
        stage(name, budget, instructions, Box::new(move || drop(std::hint::black_box(with.ask(operation, path, body)))));
    }
    stage("audit records of one request", 15_000, 60_000, audited(made, entry, acl));
    if let Some(encryption) = token::encryption() {
        stage("call to an HSM: encrypt 32 B", 60_000, 15_000, encryption);
    }
    stages
}
