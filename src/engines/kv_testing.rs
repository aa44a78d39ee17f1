//! A KV mount over a store in memory, driven as the pipeline drives it.

use std::sync::Arc;

use serde_json::Value;

use super::{MountContext, kv};
use crate::{
    barrier::{Barrier, Txn, View},
    core::{
        clock::Clock,
        engine::{Call, Caller, Engine},
        failure::Failure,
        mount_table::new_entry,
        mounts::{MountEntry, MountRecord, Table},
        reply::{Body, Reply},
        request::{Operation, Request},
        testing::services,
    },
    secret::SecretBytes,
    storage::{self, InMem},
    wire::json::RawObject,
};

/// A mounted engine with its store.
pub struct Bench {
    pub view: View,
    pub clock: Clock,
    context: MountContext,
    engine: Arc<dyn Engine>,
}

impl Bench {
    pub async fn new(version: &str) -> Self {
        let barrier = Arc::new(Barrier::new(Arc::new(InMem::open().unwrap())));
        let root = SecretBytes::new(vec![7; 32]);
        let clock = Clock::movable();
        barrier.initialize(&root, storage::Txn::new(), Txn::new(), clock.now()).await.unwrap();
        let view = View::new(Arc::clone(&barrier), "logical/test/").unwrap();
        let mut entry = new_entry(Table::Secret, "kv/", "kv");
        entry.options.insert("version".into(), version.into());
        let context = MountContext {
            record: MountRecord::new(&View::new(Arc::clone(&barrier), "core").unwrap(), &entry.uuid),
            entry,
            view: view.clone(),
            clock: clock.clone(),
            system_default_ttl: 1000,
            system_max_ttl: 2000,
            services: services(&barrier),
        };
        let mounted = Txn::new().put(format!("core/mounts/{}", context.entry.uuid), serde_json::to_vec(&context.entry).unwrap());
        barrier.commit(mounted).await.unwrap();
        let engine = kv::build(context.clone()).unwrap();
        engine.start().await.unwrap();
        Self { view, clock, context, engine }
    }

    /// The same mount with another version, as after `tune`.
    pub async fn tuned(&self, version: &str) -> Self {
        let mut context = self.context.clone();
        context.entry.options.insert("version".into(), version.into());
        let engine = kv::build(context.clone()).unwrap();
        engine.start().await.unwrap();
        Self { view: self.view.clone(), clock: self.clock.clone(), context, engine }
    }

    fn mount(&self) -> &MountEntry {
        &self.context.entry
    }

    pub async fn send(&self, operation: Operation, path: &str, body: &str) -> Result<Reply, Failure> {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let mut request = Request::internal(operation, &format!("kv/{path}"), body.to_owned());
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        request.query = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let parsed = RawObject::parse(&request.body)?;
        let found = self.engine.resolve(path);
        let caller = Caller::anyone(None);
        let call = Call {
            request: &request,
            operation,
            path,
            captures: found.as_ref().map_or(&[], |found| &found.captures),
            body: &parsed,
            caller: &caller,
            mount: self.mount(),
            now: self.clock.now(),
        };
        self.engine.run(found.as_ref().map(|found| found.route), &call).await
    }

    /// What the pipeline would ask before a write.
    pub async fn exists(&self, path: &str) -> bool {
        let request = Request::internal(Operation::Update, path, "");
        let found = self.engine.resolve(path).unwrap();
        let (caller, body) = (Caller::anyone(None), RawObject::default());
        let call = Call {
            request: &request,
            operation: Operation::Update,
            path,
            captures: &found.captures,
            body: &body,
            caller: &caller,
            mount: self.mount(),
            now: self.clock.now(),
        };
        self.engine.exists(found.route, &call).await.unwrap().unwrap()
    }

    pub async fn read(&self, path: &str) -> Result<Reply, Failure> {
        self.send(Operation::Read, path, "").await
    }

    pub async fn write(&self, path: &str, body: &str) -> Result<Reply, Failure> {
        self.send(Operation::Update, path, body).await
    }

    pub async fn patch(&self, path: &str, body: &str) -> Result<Reply, Failure> {
        self.send(Operation::Patch, path, body).await
    }

    pub async fn delete(&self, path: &str) -> Result<Reply, Failure> {
        self.send(Operation::Delete, path, "").await
    }

    pub async fn list(&self, path: &str) -> Vec<String> {
        match self.send(Operation::List, path, "").await {
            Ok(reply) => serde_json::from_value(json(&reply)["keys"].clone()).unwrap(),
            Err(_) => Vec::new(),
        }
    }
}

/// The text of a reply's data.
pub fn text(reply: &Reply) -> &str {
    match &reply.body {
        Body::Data(bytes) => std::str::from_utf8(bytes).unwrap(),
        _ => "",
    }
}

/// The data of a reply.
pub fn json(reply: &Reply) -> Value {
    serde_json::from_str(text(reply)).unwrap_or(Value::Null)
}
