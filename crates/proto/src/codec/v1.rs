//! Wire v1: the JSON of the original `@app/sync`, byte-compatible (`wire-protocol.md` sections 1 and 5.1).
//!
//! Between Litemesh peers the same JSON carries one more key, `litemesh`, which an original peer ignores; see
//! `docs/protocol.md`, "What Litemesh adds". It is never sent to a peer that did not say that it is one.
//!
//! Decoding has two steps. [`Envelope::parse`] finds the parts and checks nothing else, because a server must complain in a
//! certain order; [`Envelope::sync_request`] and [`Envelope::message`] then read a part. What comes out is
//! [`Unverified`](crate::Unverified).

mod decode;
mod encode;

pub use decode::Envelope;
pub use encode::{connect, data, error, ping, serialize_changes, serialize_cursor, sync};

/// The version of the fields that Litemesh adds. A peer announces it when it connects.
pub const LITEMESH_VERSION: u32 = 1;
