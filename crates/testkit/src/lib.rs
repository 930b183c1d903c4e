//! Test support for Litemesh: what tests of several crates share.
//!
//! - [`Model`]: replicated tables as maps, to compare the engine with.
//! - [`Statement`] and [`schemas`]: random histories, as SQL and for the model.
//! - [`for_seeds`]: every random test prints its seed and runs again under it.
//! - [`MemoryTransport`]: two peers in one process, on a link that can fail.
//!
//! Nothing here knows the engine: it would have to be one that is built without its own tests, and its types would differ.

mod history;
mod memory_transport;
mod model;
mod seed;

pub use history::{Cell, Conflict, KeyColumn, Schema, Statement, literal, quote, schemas};
pub use memory_transport::{Link, MemoryTransport, connect, connect_with};
pub use model::{Clock, Model, State};
pub use seed::{SEED_VARIABLE, SEEDS_VARIABLE, for_seeds};
