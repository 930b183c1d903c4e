//! Test support for Litemesh: what tests of several crates share.
//!
//! - [`Model`]: replicated tables as maps, to compare the engine with.
//! - [`Statement`] and [`schemas`]: random histories, as SQL and for the model.
//! - [`for_seeds`]: every random test prints its seed and runs again under it.
//! - [`fuzz_seeds`]: the seeds of a fuzz target, which tests run, too.
//! - [`MemoryTransport`]: two peers in one process, on a link that can fail.
//! - `conformance`, with the feature of that name: what every transport owes a peer, as checks; and `proxy`, a line that fails.
//! - `Simulation`, with the feature `simulation`: many peers on virtual time, from one seed.
//!
//! Nothing but the simulation knows the engine: the engine's own tests use the rest, and are not to wait for the peer.

#[cfg(feature = "conformance")]
pub mod conformance;
mod history;
mod memory_transport;
mod model;
#[cfg(feature = "conformance")]
pub mod proxy;
mod seed;
#[cfg(feature = "simulation")]
mod sim;

pub use history::{Cell, Conflict, KeyColumn, Schema, Statement, literal, quote, schemas};
pub use memory_transport::{Link, MemoryTransport, connect, connect_with};
pub use model::{Clock, Model, State};
pub use seed::{SEED_VARIABLE, SEEDS_VARIABLE, for_seed_numbers, for_seeds, fuzz_seeds};
#[cfg(feature = "simulation")]
pub use sim::{Carried, Faults, Lossy, Options, Report, Simulation};
