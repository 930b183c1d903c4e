//! Any bytes as what comes over a WebSocket, from either end. The body is that of `crates/http/src/hostile.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| litemesh_http::hostile::socket(bytes));
