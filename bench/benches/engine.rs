//! Small operations of the engine, beside plain SQLite: `cargo bench`.

use litemesh::engine::{Engine, LocalFilter, LocalPlace, MergeProgress, PageLimits};

const SCHEMA: &str = "CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT, done INTEGER, ts INTEGER)";
const FILL: &str = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
     INSERT INTO todo SELECT 'r-' || i, 'title of r ' || i, i % 2, i FROM n";
const LIMITS: PageLimits = PageLimits { changes_max: 100_000, bytes_max: 64 << 20, stretch: 1 };

fn main() {
    divan::main();
}

fn engine(replicated: bool) -> Engine {
    let engine = Engine::open_in_memory().unwrap();
    engine.connection().execute_batch(SCHEMA).unwrap();
    if replicated {
        engine.replicate("todo").unwrap();
    }
    engine
}

#[divan::bench(args = [false, true])]
fn insert_10k(bencher: divan::Bencher<'_, '_>, replicated: bool) {
    bencher.with_inputs(|| engine(replicated)).bench_values(|engine| {
        engine.connection().execute_batch(FILL).unwrap();
        engine
    });
}

#[divan::bench]
fn read_30k_changes(bencher: divan::Bencher<'_, '_>) {
    let engine = engine(true);
    engine.connection().execute_batch(FILL).unwrap();
    bencher.bench_local(|| engine.read_local(&LocalPlace::default(), &LocalFilter::default(), LIMITS).unwrap());
}

#[divan::bench]
fn merge_30k_changes(bencher: divan::Bencher<'_, '_>) {
    let source = engine(true);
    source.connection().execute_batch(FILL).unwrap();
    let page = source.read_local(&LocalPlace::default(), &LocalFilter::default(), LIMITS).unwrap();
    bencher.with_inputs(|| engine(true)).bench_values(|mut target| {
        target.merge(&page.changes, &MergeProgress::default()).unwrap();
        target
    });
}
