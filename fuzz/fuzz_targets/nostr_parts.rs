//! Any parts of frames in any order. The body is that of `crates/nostr/src/parts/hostile.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| litemesh_nostr::hostile::parts(bytes));
