//! The litemesh program.
fn main() {}
