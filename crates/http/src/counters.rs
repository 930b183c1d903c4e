//! What a server has done so far, in numbers.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A reading of a server's counters: see [`HttpServer::counters`](crate::HttpServer::counters).
///
/// Each number is exact; together they are no snapshot, since the server goes on while they are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Streams that are open now, WebSockets among them.
    pub streams_open: u64,
    /// Streams that were ever opened.
    pub streams_total: u64,
    /// Sync and data messages that the peer above took.
    pub messages_in: u64,
    /// Frames given to streams, pings included.
    pub messages_out: u64,
    /// Bytes of request bodies as they came, compressed or not, and of WebSockets.
    pub bytes_in: u64,
    /// Bytes of stream bodies as they went out, compressed or not.
    pub bytes_out: u64,
    /// Bytes of request bodies, and of messages of WebSockets, that are held now, decompressed: those that arrive, and those that are
    /// being handled.
    pub body_bytes_held: u64,
    /// Requests that were wrong in themselves: answers 400, 408, 415 and those 500 that a malformed message gets; and such messages
    /// of WebSockets.
    pub refused_malformed: u64,
    /// Bodies and messages over the limit: answers 413, and closes 1009.
    pub refused_too_large: u64,
    /// Bodies and messages for which there was no memory left: answers 503, and closes 1013.
    pub refused_busy: u64,
    /// Requests without a valid token where one is asked for, and messages for a connection of another token: answers 401 and 403.
    pub refused_unauthorized: u64,
    /// Messages of clients without a stream.
    pub refused_unknown: u64,
    /// Streams of clients that had one already, and streams beyond the limit of connections.
    pub refused_streams: u64,
    /// Sockets closed at a limit: too many, or no request that was let in for too long.
    pub refused_sockets: u64,
    /// Messages that the peer above refused.
    pub refused_by_peer: u64,
    /// Data messages of known clients that could not be read.
    pub garbled: u64,
    /// Streams that were dropped because their client took nothing, and WebSockets whose client was silent.
    pub stalled: u64,
}

macro_rules! cells {
    ($($name:ident),* $(,)?) => {
        /// The living counters.
        #[derive(Debug, Default)]
        pub(crate) struct CounterCells {
            $(pub(crate) $name: AtomicU64,)*
        }

        impl CounterCells {
            pub(crate) fn read(&self) -> Counters {
                Counters { $($name: self.$name.load(Relaxed),)* }
            }
        }
    };
}

cells!(
    streams_open,
    streams_total,
    messages_in,
    messages_out,
    bytes_in,
    bytes_out,
    body_bytes_held,
    refused_malformed,
    refused_too_large,
    refused_busy,
    refused_unauthorized,
    refused_unknown,
    refused_streams,
    refused_sockets,
    refused_by_peer,
    garbled,
    stalled,
);

/// Adds to a counter.
pub(crate) fn add(cell: &AtomicU64, number: usize) {
    cell.fetch_add(number as u64, Relaxed);
}

/// Takes one off a counter.
pub(crate) fn sub_one(cell: &AtomicU64) {
    sub(cell, 1);
}

/// Takes off a counter what was added before.
pub(crate) fn sub(cell: &AtomicU64, number: usize) {
    cell.fetch_sub(number as u64, Relaxed);
}
