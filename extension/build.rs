//! Keeps the library in memory once it is loaded, where the linker can say so.
//!
//! SQLite unloads an extension whose entry point failed. Had that happened in the middle of registering functions, those that
//! were registered would point at nothing.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let family = std::env::var("CARGO_CFG_TARGET_FAMILY").unwrap_or_default();
    let vendor = std::env::var("CARGO_CFG_TARGET_VENDOR").unwrap_or_default();
    // Apple's loader keeps every library with thread-local variables, which Rust's standard library has.
    if family.contains("unix") && vendor != "apple" {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}
