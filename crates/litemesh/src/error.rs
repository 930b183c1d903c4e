//! Errors of a peer.

use litemesh_engine::{OpenError, StorageError};
use litemesh_proto::{DbVersion, TransportError};

/// Why a peer could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages explain the fields
pub enum StartError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("cannot start the engine thread: {0}")]
    Thread(#[source] std::io::Error),
    #[error("transport {transport}: {source}")]
    Transport { transport: String, source: TransportError },
    #[error(transparent)]
    Peer(#[from] PeerError),
}

/// Why a call on a running peer failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// [`crate::Peer::stop`] was called, or the engine thread ended.
    #[error("the peer was stopped")]
    Stopped,
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A remote has seen another life of this database: the file was restored from a backup and written to since (VER-16).
    #[error(
        "this database was restored from a backup and written to since: the remote has seen other versions of it after \
         {common}. Make it a site of its own with `litemesh fork FILE --copied-at {common}`, then connect again"
    )]
    Rewritten {
        /// The version up to which both are the same, zero where that cannot be told.
        common: DbVersion,
    },
}

/// Why no event came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// The listener was too slow: this many of the oldest events are gone. The next call goes on with those that are there.
    #[error("{0} events were missed by a listener that was too slow")]
    Lagged(u64),
    /// The peer was stopped, and all its events were delivered.
    #[error("the peer was stopped")]
    Closed,
}
