//! Hostile remotes: the real session and the real engine, whatever comes in whatever order.
//!
//! The body is that of the fuzz target `session` in `fuzz/`; here it runs on random bytes under a seed (docs/testing.md).

mod session;

use litemesh_testkit::{for_seeds, fuzz_seeds};

#[test]
fn any_messages_leave_a_consistent_database_and_an_answer_each() {
    fuzz_seeds("session").iter().for_each(|seed| session::check(seed));
    for_seeds(0x5e55, 300, |rng| {
        let bytes: Vec<u8> = (0..rng.usize(..=1500)).map(|_| rng.u8(..)).collect();
        session::check(&bytes);
    });
}
