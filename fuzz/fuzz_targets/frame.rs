//! Any bytes as a frame of wire v2, as changes, and as a stream. The body is that of `crates/proto/tests/frames/`.
//!
//! `seeds/frame/` has the golden frames: `cargo +nightly fuzz run frame fuzz/corpus/frame fuzz/seeds/frame`.
#![no_main]

#[path = "../../crates/proto/tests/frames/hostile.rs"]
mod hostile;
#[path = "../../crates/proto/tests/frames/memory.rs"]
mod memory;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile::check(bytes));
