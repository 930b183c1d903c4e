//! Any bytes as a packed key. The body is that of `crates/engine/tests/hostile/`.
#![no_main]

#[path = "../../crates/engine/tests/hostile/packed_key.rs"]
mod packed_key;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| packed_key::check(bytes));
