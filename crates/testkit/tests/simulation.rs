//! Many peers on virtual time, with faults (docs/testing.md, "Simulation"). The same seed is the same run.

use litemesh_testkit::{Faults, Lossy, Options, Simulation, for_seed_numbers};

fn check(options: &Options, first: u64, count: u64) {
    for_seed_numbers(first, count, |seed| {
        Simulation::new(seed, options).run();
    });
}

#[test]
fn peers_converge_on_links_that_only_delay() {
    check(&Options { faults: Faults::NONE, ..Options::default() }, 1, 20);
}

#[test]
fn peers_converge_whatever_fails() {
    check(&Options::default(), 1, 100);
}

/// Litemesh sessions notice themselves what their carrier lost or reordered.
#[test]
fn litemesh_peers_converge_on_links_that_lose_and_reorder() {
    check(&Options { lossy: Lossy::PassOn, ..Options::default() }, 1, 100);
}

#[test]
fn the_same_seed_is_the_same_run() {
    for_seed_numbers(1, 10, |seed| {
        let run = || Simulation::new(seed, &Options::default()).run();
        assert_eq!(run(), run(), "seed {seed}");
    });
}
