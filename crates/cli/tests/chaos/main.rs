//! Real processes under faults: hub and peers are killed, frozen and kept from writing, their lines are cut, silenced and slowed
//! down, while applications write to all files. Nothing that was committed is lost, nobody ever sees half of a transaction, and
//! when the faults end all files are equal and sound.
//!
//! What is done comes from a seed (`LITEMESH_SEED`, `LITEMESH_SEEDS`: docs/testing.md); when exactly it hits the processes does
//! not, so a seed that failed may have to be run several times.
#![cfg(unix)] // signals

mod application;
mod cluster;
mod process;
mod proxy;
#[path = "../support/mod.rs"]
mod support;

use std::time::Instant;

use cluster::{Cluster, Count};
use litemesh_testkit::for_seed_numbers;

/// Rounds of each cluster.
const ROUNDS: usize = 25;

#[test]
fn a_hundred_rounds_of_faults_lose_nothing() {
    let (started, mut sum) = (Instant::now(), Count::default());
    for_seed_numbers(1, 4, |seed| {
        println!("seed {seed}");
        let mut cluster = Cluster::start(seed);
        for round in 0..ROUNDS {
            // One of the clusters has a transaction that takes a while.
            if seed % 4 == 0 && round == ROUNDS / 2 {
                cluster.write_many_rows();
            }
            cluster.round();
        }
        let count = cluster.heal();
        println!("{count:?} after {:.1?}", started.elapsed());
        sum += count;
    });
    println!("in all: {sum:?} in {:.1?}", started.elapsed());
}
