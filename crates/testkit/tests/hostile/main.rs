//! Hostile remotes: the real session and the real engine, whatever comes in whatever order.
//!
//! The body is that of the fuzz target `session` in `fuzz/`; here it runs on random bytes under a seed (docs/testing.md).

mod session;

use std::path::PathBuf;

use litemesh_testkit::for_seeds;

/// What LibFuzzer has found worth keeping.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    let paths = folder.read_dir().unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| std::fs::read(path).unwrap()).collect()
}

#[test]
fn any_messages_leave_a_consistent_database_and_an_answer_each() {
    seeds("session").iter().for_each(|seed| session::check(seed));
    for_seeds(0x5e55, 300, |rng| {
        let bytes: Vec<u8> = (0..rng.usize(..=1500)).map(|_| rng.u8(..)).collect();
        session::check(&bytes);
    });
}
