//! Random operations on one key, compared with a simple model.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json as value;

use crate::engines::kv_testing::{Bench, json};

#[derive(Clone, Debug)]
enum Step {
    Write { n: u8, cas: Option<u64> },
    Patch { n: u8 },
    DeleteLatest,
    Delete(u64),
    Undelete(u64),
    Destroy(u64),
    Limit(u32),
    Remove,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let number = || 1..9_u64;
    let step = prop_oneof![
        4 => (any::<u8>(), prop::option::weighted(0.3, 0..6_u64)).prop_map(|(n, cas)| Step::Write { n, cas }),
        2 => any::<u8>().prop_map(|n| Step::Patch { n }),
        1 => Just(Step::DeleteLatest),
        1 => number().prop_map(Step::Delete),
        1 => number().prop_map(Step::Undelete),
        1 => number().prop_map(Step::Destroy),
        1 => (0..5_u32).prop_map(Step::Limit),
        1 => Just(Step::Remove),
    ];
    prop::collection::vec(step, 1..30)
}

#[derive(Clone, Debug, Default)]
struct Version {
    members: BTreeMap<&'static str, u8>,
    deleted: bool,
    destroyed: bool,
}

/// What the key should be.
#[derive(Default)]
struct Model {
    exists: bool,
    current: u64,
    limit: u32,
    versions: BTreeMap<u64, Version>,
}

impl Model {
    fn add(&mut self, members: BTreeMap<&'static str, u8>) {
        self.exists = true;
        self.current += 1;
        self.versions.insert(self.current, Version { members, ..Version::default() });
        let limit = if self.limit == 0 { 10 } else { u64::from(self.limit) };
        let current = self.current;
        self.versions.retain(|number, _| number + limit > current);
    }

    /// Answers whether the step is allowed.
    fn apply(&mut self, step: &Step) -> bool {
        match step {
            Step::Write { cas: Some(cas), .. } if *cas != self.current => return false,
            Step::Write { n, .. } => self.add(BTreeMap::from([("n", *n)])),
            Step::Patch { n } => match self.versions.get(&self.current) {
                Some(version) if !version.deleted && !version.destroyed => {
                    let mut members = version.members.clone();
                    members.insert("p", *n);
                    self.add(members);
                }
                _ => return false,
            },
            Step::DeleteLatest => self.with(self.current, |version| version.deleted = true),
            Step::Delete(number) => self.with(*number, |version| version.deleted = true),
            Step::Undelete(number) => self.with(*number, |version| version.deleted = false),
            Step::Destroy(number) => self.with(*number, |version| version.destroyed = true),
            Step::Limit(limit) => {
                self.exists = true;
                self.limit = *limit;
            }
            Step::Remove => *self = Self::default(),
        }
        true
    }

    fn with(&mut self, number: u64, change: impl Fn(&mut Version)) {
        if let Some(version) = self.versions.get_mut(&number).filter(|version| !version.destroyed) {
            change(version);
        }
    }
}

async fn run(bench: &Bench, step: &Step) -> bool {
    let numbered = |number: &u64| format!(r#"{{"versions": [{number}]}}"#);
    let reply = match step {
        Step::Write { n, cas: None } => bench.write("data/k", &format!(r#"{{"data": {{"n": {n}}}}}"#)).await,
        Step::Write { n, cas: Some(cas) } => {
            bench.write("data/k", &format!(r#"{{"data": {{"n": {n}}}, "options": {{"cas": {cas}}}}}"#)).await
        }
        Step::Patch { n } => bench.patch("data/k", &format!(r#"{{"data": {{"p": {n}, "none": null}}}}"#)).await,
        Step::DeleteLatest => bench.delete("data/k").await,
        Step::Delete(number) => bench.write("delete/k", &numbered(number)).await,
        Step::Undelete(number) => bench.write("undelete/k", &numbered(number)).await,
        Step::Destroy(number) => bench.write("destroy/k", &numbered(number)).await,
        Step::Limit(limit) => bench.write("metadata/k", &format!(r#"{{"max_versions": {limit}}}"#)).await,
        Step::Remove => bench.delete("metadata/k").await,
    };
    reply.is_ok_and(|reply| reply.status.is_none())
}

async fn compare(bench: &Bench, model: &Model) {
    assert_eq!(bench.exists("data/k").await, model.exists);
    for number in 0..=model.current + 1 {
        let read = bench.read(&format!("data/k?version={number}")).await;
        let wanted = if number == 0 { model.current } else { number };
        match (read, model.versions.get(&wanted)) {
            (Err(_), None) => {}
            (Ok(reply), Some(version)) => {
                let data = json(&reply);
                let gone = version.deleted || version.destroyed;
                assert_eq!(reply.status, gone.then_some(404));
                assert_eq!(data["data"], if gone { value!(null) } else { value!(version.members) });
                assert_eq!(data["metadata"]["version"], wanted);
                assert_eq!(data["metadata"]["destroyed"], version.destroyed);
                assert_eq!(data["metadata"]["deletion_time"] != "", version.deleted);
            }
            (got, wanted) => panic!("version {number}: {got:?}, but {wanted:?}"),
        }
    }
    // What is trimmed, destroyed or removed leaves nothing in the store, but for the name of the latest version.
    let stored = bench.view.scan("v/", None, usize::MAX).unwrap();
    let stored = stored.iter().filter(|(_, entry)| !entry.value.is_empty()).count();
    assert_eq!(stored, model.versions.values().filter(|version| !version.destroyed).count());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_sequence_of_changes_ends_as_the_model_says(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let bench = Bench::new("2").await;
            let mut model = Model::default();
            for step in &steps {
                assert_eq!(run(&bench, step).await, model.apply(step), "{step:?}");
                compare(&bench, &model).await;
            }
        });
    }
}
