//! Calls of any SQL function with any arguments. The body is that of `crates/engine/tests/hostile/`.
#![no_main]

#[path = "../../crates/engine/tests/hostile/function_call.rs"]
mod function_call;
#[path = "../../crates/engine/tests/hostile/snapshot.rs"]
mod snapshot;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| function_call::check(bytes));
