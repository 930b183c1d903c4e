//! Seeds: every random test can be run again, and what fuzzing kept is run by tests, too.

use std::path::Path;

use fastrand::Rng;

/// The variable that names one seed to run, instead of all.
pub const SEED_VARIABLE: &str = "LITEMESH_SEED";

/// The variable that says how many seeds to run, for long runs; from the one that [`SEED_VARIABLE`] names, if it names one.
pub const SEEDS_VARIABLE: &str = "LITEMESH_SEEDS";

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().expect("a number in LITEMESH_SEED and LITEMESH_SEEDS"))
}

/// The inputs in `fuzz/seeds/` of a fuzz target, in the order of their names.
///
/// # Panics
///
/// There are none, or they cannot be read.
pub fn fuzz_seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    let entries = folder.read_dir().expect("a folder of seeds");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a folder that can be read").path()).collect();
    assert!(!paths.is_empty(), "{folder:?} is empty");
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("a file that can be read")).collect()
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

/// Runs `test` under `count` seeds from `first` on, or under the one in `LITEMESH_SEED` and those after it. A failing seed is printed.
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
        Some(seed) => seed..seed + number(SEEDS_VARIABLE).unwrap_or(1),
        None => first..first + number(SEEDS_VARIABLE).unwrap_or(count),
    };
    for seed in seeds {
        let _print = PrintOnPanic(seed);
        test(seed);
    }
}
