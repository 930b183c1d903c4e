//! Frames of wire v2, from outside.

mod golden;
#[cfg(feature = "compress")]
mod size;
mod workload;
