//! Any content and tags of a paired peer's events, and any JSON as an event. The body is that of `crates/nostr/tests/hostile/`.
#![no_main]

#[path = "../../crates/nostr/tests/hostile/event.rs"]
mod event;
#[path = "../../crates/proto/tests/frames/memory.rs"]
mod memory;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| event::check(bytes));
