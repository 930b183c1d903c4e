//! Any changes of a remote. The body is that of `crates/engine/tests/hostile/`.
#![no_main]

#[path = "../../crates/engine/tests/hostile/consistency.rs"]
mod consistency;
#[path = "../../crates/engine/tests/hostile/merge.rs"]
mod merge;
#[path = "../../crates/engine/tests/hostile/snapshot.rs"]
mod snapshot;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| merge::check(bytes));
