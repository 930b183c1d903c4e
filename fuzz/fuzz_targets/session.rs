//! Any messages of a remote to a session. The body is that of `crates/testkit/tests/hostile/`.
#![no_main]

#[path = "../../crates/testkit/tests/hostile/session.rs"]
mod session;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| session::check(bytes));
