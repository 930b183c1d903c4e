//! Seeds: every random test can be run again.

use fastrand::Rng;

/// The variable that names one seed to run, instead of all.
pub const SEED_VARIABLE: &str = "LITEMESH_SEED";

/// The variable that says how many seeds to run, for long runs.
pub const SEEDS_VARIABLE: &str = "LITEMESH_SEEDS";

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().expect("a number in LITEMESH_SEED and LITEMESH_SEEDS"))
}

/// Prints the seed where a test fails under it.
struct PrintOnPanic(u64);

impl Drop for PrintOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to repeat: {SEED_VARIABLE}={}", self.0);
        }
    }
}

/// Runs `test` under `count` seeds from `first` on, or under the one in `LITEMESH_SEED`. A failing seed is printed.
///
/// # Panics
///
/// A variable is no number; the test panics.
pub fn for_seeds(first: u64, count: u64, mut test: impl FnMut(&mut Rng)) {
    for_seed_numbers(first, count, |seed| test(&mut Rng::with_seed(seed)));
}

/// [`for_seeds`] for tests that make their own generators.
///
/// # Panics
///
/// As [`for_seeds`].
pub fn for_seed_numbers(first: u64, count: u64, mut test: impl FnMut(u64)) {
    let seeds = match number(SEED_VARIABLE) {
        Some(seed) => seed..seed + 1,
        None => first..first + number(SEEDS_VARIABLE).unwrap_or(count),
    };
    for seed in seeds {
        let _print = PrintOnPanic(seed);
        test(seed);
    }
}
