//! Runs the same random statements on Litemesh's engine and on real CRSqlite, and compares.
//!
//!     (cd interop && npm ci)
//!     cargo run -p litemesh-differential -- --programs 150
//!
//! docs/testing.md says more.

mod by_hand;
mod deviation;
mod engine;
mod judge;
mod mirrored;
mod mixed;
mod original;
mod ours;
mod program;
mod register;
mod scenario;
mod schema;
mod shrink;
mod state;

use std::fmt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use fastrand::Rng;

use crate::deviation::{Deviation, Hits};
use crate::mirrored::Program;
use crate::mixed::Cluster;
use crate::original::Originals;
use crate::shrink::{Shrinkable, shrink};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// How often a long run says how far it is.
const REPORT_INTERVAL: Duration = Duration::from_secs(600);

/// What was run.
#[derive(Default)]
struct Tally {
    programs: u64,
    statements: u64,
    /// Statements that an engine refused, on both sides.
    refused: u64,
    comparisons: u64,
    hits: Hits,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.programs += 1;
        self.statements += other.statements;
        self.refused += other.refused;
        self.comparisons += other.comparisons;
        self.hits.add(&other.hits);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { programs, statements, refused, comparisons, .. } = self;
        write!(
            f,
            "{programs} programs, {statements} statements and changes ({refused} refused), {comparisons} comparisons"
        )
    }
}

/// A difference that nothing explains.
struct Failure {
    reason: String,
    /// The statements that led to it.
    script: Vec<String>,
}

/// What is compared.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// The same statements under the same site id: everything equal after each, but for the register's deviations.
    Mirrored,
    /// Replicas of both engines that exchange changes: all equal in the end.
    Mixed,
}

/// Compares the engine with real CRSqlite.
#[derive(Parser)]
struct Arguments {
    /// Only this; without it the register, and both in turn.
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// The first seed.
    #[arg(long, env = "LITEMESH_SEED", default_value_t = 1)]
    seed: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 150)]
    programs: u64,
    /// Begin no program after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Go on after a failure.
    #[arg(long)]
    keep_going: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    let mut originals = Originals::start()?;
    let (mut mirrored, mut mixed) = (Tally::default(), Tally::default());
    let mut failures = 0;
    if arguments.mode.is_none() {
        failures += show_register(&mut originals)?;
    }
    let end = arguments.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut next_report = Instant::now() + REPORT_INTERVAL;
    for seed in (arguments.seed..).take(usize::try_from(arguments.programs)?) {
        if Instant::now() >= next_report {
            println!("before seed {seed}: {mirrored} mirrored, {mixed} mixed, {failures} failures");
            next_report += REPORT_INTERVAL;
        }
        if end.is_some_and(|end| Instant::now() >= end) || (failures > 0 && !arguments.keep_going) {
            break;
        }
        if arguments.mode != Some(Mode::Mixed) {
            let program = Program::random(&mut Rng::with_seed(seed));
            failures += u64::from(!run_one(seed, "mirrored", program, &mut originals, &mut mirrored)?);
        }
        if arguments.mode != Some(Mode::Mirrored) {
            let cluster = Cluster::random(&mut Rng::with_seed(seed));
            failures += u64::from(!run_one(seed, "mixed", cluster, &mut originals, &mut mixed)?);
        }
    }
    println!("programs from seed {} on:", arguments.seed);
    println!("  mirrored: {mirrored}");
    println!("  mixed: {mixed}");
    println!("deviations that mirrored programs met:");
    for deviation in Deviation::ALL {
        let ((rule, what), count) = (deviation.describe(), mirrored.hits.of(deviation));
        println!("  {rule:7}{count:>8}  {what}");
    }
    println!("{failures} failures");
    Ok(failures == 0)
}

/// Shows what the register holds, and says what is not as it stands there.
fn show_register(originals: &mut Originals) -> Result<u64> {
    let (count, wrong) = scenario::run_all(originals)?;
    println!("register: {} of {count} deviations shown", count - wrong.len());
    for line in &wrong {
        println!("  not as it stands: {line}");
    }
    for (rules, why) in register::NOT_SHOWN {
        println!("  cannot be shown: {rules}: {why}");
    }
    Ok(wrong.len() as u64)
}

/// Runs one program; a failure is cut down and printed.
fn run_one<P: Shrinkable>(
    seed: u64,
    mode: &str,
    program: P,
    originals: &mut Originals,
    tally: &mut Tally,
) -> Result<bool> {
    match program.run(originals) {
        Ok(one) => {
            tally.add(&one);
            Ok(true)
        }
        Err(first) => {
            let failure = shrink(program, originals, first)?;
            println!("--mode {mode} --seed {seed} fails:\n{}\n-> {}\n", failure.script.join(";\n"), failure.reason);
            Ok(false)
        }
    }
}
