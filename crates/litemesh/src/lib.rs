//! Peer-to-peer, conflict-free sync for SQLite.
//!
//! An application keeps its data in ordinary SQLite tables. Litemesh makes chosen tables replicated, and keeps any number of
//! copies of the database converging over whatever connects them.
//!
//! ```no_run
//! use litemesh::{Database, Event, Peer};
//! # async fn example(http: impl litemesh::proto::Transport) -> Result<(), Box<dyn std::error::Error>> {
//! let db = Database::open("todo.db")?;
//! db.lock().replicate("todo")?;
//!
//! let builder = Peer::builder(db).transport(http); // litemesh_http::HttpClient::new("https://hub.example.com")
//! let mut events = builder.events();
//! let peer = builder.start().await?;
//! println!("started with id {}", peer.id());
//!
//! while let Ok(event) = events.recv().await {
//!     match event {
//!         Event::Eose { peer, .. } => println!("caught up with {peer}"),
//!         Event::Change { tables } => println!("changed: {tables:?}"),
//!         Event::Outdated { schema_version, .. } => println!("upgrade to schema {schema_version}"),
//!         _ => {}
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! # Concepts
//!
//! A [`Database`] is the application's side: its connection, on which it writes as always. A [`Peer`] syncs the same file
//! from a thread of its own, over one or more transports ([`proto::Transport`]). Nothing needs to be told about writes.
//!
//! # Guarantees
//!
//! - Peers that have seen the same changes hold the same rows, whatever the order, repetition or path.
//! - A cursor moves in the transaction that makes it true, never before. Whatever was refused or lost on the way is asked
//!   for again.
//! - Every queue is bounded. A slow remote holds back only itself.
//!
//! # What it does not do
//!
//! Unique indexes besides the primary key, and checked foreign keys, cannot hold on tables that several databases write at
//! once: the engine refuses such tables and says why. A transaction of a remote becomes visible as a whole, whatever its size, and
//! so does a catch-up; but one that is longer than [`Limits::catch_up_changes_max`](proto::Limits::catch_up_changes_max) comes in steps,
//! and between two of them, of a transaction that was overwritten in part since, the rest can be seen alone.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]
#![forbid(unsafe_code)]

mod beat;
pub mod channel;
mod database;
mod disk;
mod driver;
mod engine_thread;
mod error;
mod event;
mod lanes;
mod peer;
mod session;
mod shared_pages;
#[cfg(feature = "simulation")]
#[doc(hidden)]
pub mod simulation;
mod watch;
mod ways;
mod work;

pub use database::Database;
pub use error::{EventError, PeerError, StartError};
pub use event::{Event, Events};
pub use litemesh_engine as engine;
pub use litemesh_engine::rusqlite;
pub use litemesh_proto as proto;
pub use litemesh_proto::{Cursor, DbVersion, Limits, SiteId};
pub use peer::{Peer, PeerBuilder, RemoteStatus};

/// The examples of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
