//! Any events of a stream in any order. The body is that of `crates/nostr/src/chain/hostile.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| litemesh_nostr::hostile::chain(bytes));
