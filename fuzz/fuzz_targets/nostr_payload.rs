//! Any bytes as a payload of the encryption, and as what is encrypted. The body is that of `crates/nostr/src/nip44v3/hostile.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| litemesh_nostr::hostile::payload(bytes));
