//! Real processes under faults: hub and peers are killed, frozen and kept from writing, their lines are cut, silenced and slowed
//! down, while applications write to all files. Nothing that was committed is lost, nobody ever sees half of a transaction, and
//! when the faults end all files are equal and sound.
//!
//! What is done comes from a seed (`LITEMESH_SEED`, `LITEMESH_SEEDS`: docs/testing.md); when exactly it hits the processes does
//! not, so a seed that failed may have to be run several times.
#![cfg(unix)] // signals

mod application;
mod cluster;
mod line;
mod process;
#[path = "../support/mod.rs"]
mod support;

use std::time::Instant;

use cluster::{Cluster, Count};
use litemesh_testkit::for_seed_numbers;
use litemesh_testkit::proxy::Way;

/// Fewer bytes than the heads of HTTP, an introduction and a transaction take.
const POSITIONS_MIN: usize = 400;

/// Rounds of each cluster.
const ROUNDS: usize = 25;

#[test]
fn a_hundred_rounds_of_faults_lose_nothing() {
    let (started, mut count) = (Instant::now(), Count::default());
    for_seed_numbers(1, 4, |seed| {
        println!("seed {seed}");
        let mut cluster = Cluster::start(seed, std::mem::take(&mut count));
        for round in 0..ROUNDS {
            // One of the clusters has a transaction that takes a while.
            if seed % 4 == 0 && round == ROUNDS / 2 {
                cluster.write_many_rows();
            }
            cluster.round();
        }
        count = cluster.heal();
        println!("{count:?} after {:.1?}", started.elapsed());
    });
}

#[test]
fn a_line_that_breaks_at_any_byte_on_the_way_down_loses_nothing() {
    let positions = line::cut_at_every_byte(Way::Down);
    println!("{positions} positions");
    assert!(positions > POSITIONS_MIN, "only {positions} positions");
}

#[test]
fn a_line_that_breaks_at_any_byte_on_the_way_up_loses_nothing() {
    let positions = line::cut_at_every_byte(Way::Up);
    println!("{positions} positions");
    assert!(positions > POSITIONS_MIN, "only {positions} positions");
}

/// `known-failures.md` B15, B16: the original waits for TCP to notice.
#[test]
fn half_open_connections_are_noticed_and_replaced() {
    line::go_dead_without_a_word(5);
}
