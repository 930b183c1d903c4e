//! Any bytes as a connection string. The body is that of `crates/nostr/tests/hostile/`.
#![no_main]

#[path = "../../crates/proto/tests/frames/memory.rs"]
mod memory;
#[path = "../../crates/nostr/tests/hostile/string.rs"]
mod string;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| string::check(bytes));
