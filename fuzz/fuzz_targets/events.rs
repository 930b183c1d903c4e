//! Any bytes as what a server sends to a client. The body is that of `crates/http/src/hostile.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| litemesh_http::hostile::events(bytes));
