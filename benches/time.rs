//! `cargo bench --bench time`: how long each stage of a request takes, beside its budget.

#![allow(missing_docs, clippy::expect_used)] // a bench that cannot be set up is to stop

mod stages;

use criterion::{Criterion, criterion_group, criterion_main};

fn time(criterion: &mut Criterion) {
    for mut stage in stages::all() {
        let name = format!("{} (budget {} ns, {} instructions)", stage.name, stage.budget, stage.instructions);
        criterion.bench_function(&name, |bencher| bencher.iter(|| (stage.run)()));
    }
}

criterion_group!(benches, time);
criterion_main!(benches);
