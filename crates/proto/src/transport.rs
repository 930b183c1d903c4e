//! The contract between a peer and what connects it: [`Transport`] below, [`PeerCallbacks`] above.
//!
//! # Contract
//!
//! Written for the worst of them, Nostr, whose relays reorder, repeat, delay and drop.
//!
//! 1. A transport makes *connections*. For each it calls [`PeerCallbacks::connect`] once, before anything else, with a
//!    [`Remote`] whose `connection` number is fresh, and [`PeerCallbacks::disconnect`] once, after everything else.
//! 2. Messages of one connection reach the peer whole, one after another, in the order in which the remote sent them; the
//!    next call to [`PeerCallbacks::receive`] is made after the last one resolved. A transport whose carrier reorders must
//!    restore the order or end the connection. Repeats are harmless.
//! 3. When `receive` resolves with `Ok`, the changes are committed. An acknowledgement, where the carrier has one, is given
//!    then and not earlier.
//! 4. [`Transport::send`] resolves when the carrier took the message, and waits while it cannot: that is the backpressure.
//!    A peer has at most one `send` a connection under way. An error means that the connection is of no more use: the peer
//!    gives it up, and everything not yet acknowledged is asked for again over the next one.
//! 5. A transport may be used as soon as it has called `connect`: the peer's [`sync`](Transport::sync) can come before that
//!    call, and even before [`start`](Transport::start), has resolved. [`stop`](Transport::stop) can come at any time, also
//!    to a transport that was never started, because another one of the peer could not be.
//! 6. A transport keeps no protocol state: no retries of content, no cursors, no filters. It dials again by itself, after pauses
//!    that grow and are not those of others ([`backoff_from`](crate::backoff_from)).
//! 7. A carrier may keep messages for a remote that is away, for days. Its connections stand whether or not somebody listens, and
//!    nobody waits for answers within any time: see [`Transport::keeps_messages`].
//! 8. A transport finds out who the remote is and what it may do; the peer enforces it. Whatever it reports as a message of a
//!    connection comes from whom that access was given to.
//!
//! # Futures
//!
//! Boxed, because transports are chosen at run time. Dropping one abandons the call: the connection must then be treated
//! as lost, since the message may or may not have left.

use std::pin::Pin;
use std::sync::Arc;

use crate::{Access, PeerMessage, Refusal, Remote, Resumed, Served, SiteId, SyncRequest, TransportError, Unverified};

/// A boxed future that can move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Something that connects this peer to others: the seed's `Transport`.
pub trait Transport: Send + Sync + 'static {
    /// A word for logs and events, such as `http`.
    fn name(&self) -> &str;

    /// Begins to dial or to accept, in tasks of its own, and reports to `peer` from then on. Called once.
    ///
    /// # Errors
    ///
    /// Only what will not mend by itself, such as an address that cannot be used. A remote that is not there (yet) is no
    /// error: the transport goes on dialling.
    fn start(&self, peer: Arc<dyn PeerCallbacks>) -> BoxFuture<'_, Result<(), TransportError>>;

    /// Asks the remote for everything that `request` does not cover. May be called before `start` has resolved; see the
    /// contract, 5.
    ///
    /// # Errors
    ///
    /// The connection is lost.
    fn sync(&self, remote: Remote, request: SyncRequest) -> BoxFuture<'_, Result<(), TransportError>>;

    /// Sends one message; see the contract, 4.
    ///
    /// # Errors
    ///
    /// The connection is lost, or the message can never be carried ([`TransportError::TooLarge`]).
    fn send(&self, remote: Remote, message: PeerMessage) -> BoxFuture<'_, Result<(), TransportError>>;

    /// Ends one connection. `disconnect` is *not* reported for it. Unknown connections are ignored.
    fn close(&self, remote: Remote) -> BoxFuture<'_, ()>;

    /// Ends all connections and all tasks. After it resolves nothing is reported any more. A transport that was never
    /// started has nothing to end, and is not started afterwards.
    fn stop(&self) -> BoxFuture<'_, ()>;

    /// Whether the carrier keeps messages for a remote that is away. Then silence says nothing: a request is not repeated because
    /// nobody answered it, and a connection not ended because nobody acknowledged what was sent.
    fn keeps_messages(&self) -> bool {
        false
    }

    /// Whether one line carries what comes and what goes over this connection. It is preferred to one over which each message that goes is
    /// a request of its own, and waits for its answer: of a remote that is reached over both ways, that one stands by. Asked once, when
    /// the connection stands.
    fn is_duplex(&self, _remote: Remote) -> bool {
        true
    }

    /// Another connection has brought the remote this far, and this one will go on behind it. For a carrier that keeps messages, which
    /// remembers it with what it has sent, and gives it back with [`PeerCallbacks::resume`] when it goes on with that. Called again and
    /// again; the last one counts. It may be lost: then the remote is sent once more what it has.
    fn served_elsewhere(&self, _remote: Remote, _served: Served) {}

    /// About how many bytes of JSON one message to this remote may take.
    fn message_bytes_max(&self, _remote: Remote) -> usize {
        crate::limits::BATCH_BYTES_MAX
    }
}

/// What a transport tells the peer above it: the seed's `TransportConfig` and `TransportCallbacks`.
pub trait PeerCallbacks: Send + Sync + 'static {
    /// The site id of this peer.
    fn site(&self) -> SiteId;

    /// What this process accepts from remotes.
    fn limits(&self) -> &crate::Limits;

    /// A connection stands, and the remote may do this much here: what the transport found out about who it is. A transport
    /// that asks nobody says [`Access::FULL`]. Access that changes takes a new connection.
    ///
    /// # Errors
    ///
    /// [`Refusal`] where the peer does not want it: it is stopping, the remote claims our own site id, or a wire v1 remote
    /// has access to some tables only.
    fn connect(&self, remote: Remote, access: Access) -> BoxFuture<'_, Result<(), Refusal>>;

    /// The remote asks for what it lacks. Resolves when the answer has *started*.
    ///
    /// # Errors
    ///
    /// The remote is unknown.
    fn sync(&self, remote: Remote, request: SyncRequest) -> BoxFuture<'_, Result<(), Refusal>>;

    /// As [`sync`](Self::sync), where the remote asked for it long ago, and since then has got this much: over this carrier, and over
    /// another connection what [`Transport::served_elsewhere`] said last.
    ///
    /// # Errors
    ///
    /// The remote is unknown.
    fn resume(&self, remote: Remote, request: SyncRequest, _resumed: Resumed) -> BoxFuture<'_, Result<(), Refusal>> {
        self.sync(remote, request)
    }

    /// The remote sent a message. Resolves when its changes are committed.
    ///
    /// # Errors
    ///
    /// Nothing of the message was applied; the text says why. The connection may go on: the peer moves no cursor over
    /// what it refused. [`Refusal::Outdated`] comes only where the transport [keeps messages](Transport::keeps_messages).
    fn receive(&self, remote: Remote, message: Unverified) -> BoxFuture<'_, Result<(), Refusal>>;

    /// The remote's message could not even be read (too large, cut off, no JSON): what it held may be missing.
    fn garbled(&self, remote: Remote, reason: String) -> BoxFuture<'_, ()>;

    /// The remote says that it refused a message of ours, and nothing of it was applied there. For carriers on which that is no
    /// answer to [`Transport::send`], which has resolved by then; where it is, the error of `send` says it.
    fn refused(&self, _remote: Remote, _reason: String) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    /// Something cannot be done for this remote, as a sentence for the application: such as a value that nothing carries to it. The
    /// connection goes on.
    fn trouble(&self, _remote: Remote, _reason: String) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    /// The connection is gone.
    fn disconnect(&self, remote: Remote, reason: String) -> BoxFuture<'_, ()>;
}
