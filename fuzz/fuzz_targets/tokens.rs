//! Any bytes as tokens, tickets, and a file of tokens. The body is that of `crates/http/src/hostile.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| litemesh_http::hostile::tokens(bytes));
