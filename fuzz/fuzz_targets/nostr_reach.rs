//! Any requests and messages to what is remembered of a stream. The body is that of `crates/nostr/src/reach/hostile.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| litemesh_nostr::hostile::reach(bytes));
