//! Any bytes as a cursor, in every form. The body is that of `crates/proto/tests/json/`.
#![no_main]

#[path = "../../crates/proto/tests/json/cursor.rs"]
mod cursor;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cursor::check(bytes));
