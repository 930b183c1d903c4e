//! Any bytes as JSON of wire v1. The body is that of `crates/proto/tests/json/`.
#![no_main]

#[path = "../../crates/proto/tests/json/hostile.rs"]
mod hostile;
#[path = "../../crates/proto/tests/frames/memory.rs"]
mod memory;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile::check(bytes));
