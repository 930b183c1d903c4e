//! Vocabulary, limits, wire formats and the transport contract of Litemesh: no I/O, no runtime, no SQLite.
//!
//! The life of a change on one page, and where each word of it lives:
//!
//! - An application writes a row. Each cell becomes a [`Change`], written by a *site* ([`SiteId`]) at one of its versions
//!   ([`DbVersion`]); the changes of one transaction are a [`Changeset`].
//! - What a database holds is a [`Cursor`], site by site. A peer asks with one ([`SyncRequest`]) and is answered with
//!   [`PeerMessage`]s: changes, then *end of stored events*, then changes as they are written.
//! - A codec ([`codec::v1`]) turns messages into bytes; what it makes of a remote's bytes is [`Unverified`] until checked
//!   against the rules and the [`Limits`].
//! - A [`Transport`] carries messages between two peers, and says with each connection what the remote may do ([`Access`]).
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]
#![forbid(unsafe_code)]

mod access;
mod backoff;
mod change;
pub mod codec;
mod cursor;
mod error;
mod key;
pub mod limits;
mod message;
mod site_id;
mod transport;
mod value;
mod verify;
mod version;

pub use access::{Access, Rights, TooManyTables};
pub use backoff::{backoff, backoff_from};
pub use change::{Change, Changeset, Column};
pub use cursor::Cursor;
pub use error::{DecodeError, Refusal, TransportError, VerifyError};
pub use key::{KeyError, KeyValue, PackedKey};
pub use limits::Limits;
pub use message::{
    Ack, Incarnation, Part, PeerMessage, Place, Position, Progress, Remote, Resumed, Served, SyncRequest, Terms,
    Unverified,
};
pub use site_id::{ParseSiteIdError, SiteId};
pub use transport::{BoxFuture, PeerCallbacks, Transport};
pub use value::Value;
pub use version::{CausalLength, ColVersion, DbVersion, Seq};
