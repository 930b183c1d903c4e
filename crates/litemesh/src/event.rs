//! What the application hears: the seed's events, as one typed stream.

use std::collections::BTreeSet;
use std::sync::Arc;

use litemesh_proto::SiteId;
use tokio::sync::{broadcast, watch};

use crate::EventError;

/// Events kept for a listener that is behind. A busy hub makes a few hundred a second; a listener that sleeps for longer
/// than a second learns by [`EventError::Lagged`] that it must look at the database itself.
pub(crate) const EVENTS_KEPT: usize = 1024;

/// Something happened.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs)] // the variants explain the fields
pub enum Event {
    /// A connection to a remote peer stands.
    Connect { peer: SiteId, transport: Arc<str> },
    /// The remote asked for what it lacks.
    Sync { peer: SiteId, transport: Arc<str> },
    /// End of stored events: everything that the remote held when we asked is merged here. From now on its changes come as
    /// they are written. Not sent where something of the answer was refused.
    Eose { peer: SiteId, transport: Arc<str> },
    /// Everything that the remote asked for was sent, and taken by the transport (over HTTP from a client: committed there).
    Served { peer: SiteId, transport: Arc<str> },
    /// Rows of these replicated tables changed, written here or merged. Committed when the event is sent.
    Change { tables: BTreeSet<Arc<str>> },
    /// The remote's schema is newer. Its changes are neither merged nor skipped: they come after the application's upgrade.
    Outdated { schema_version: i64, peer: SiteId, transport: Arc<str> },
    /// The connection is gone. The transport dials again by itself.
    Disconnect { peer: SiteId, transport: Arc<str>, reason: String },
    /// Something was refused or failed; no cursor moved over it.
    Error { peer: Option<SiteId>, transport: Option<Arc<str>>, message: String },
}

/// A stream of [`Event`]s, from the moment it was made.
///
/// Each listener has its own. One that falls behind by more than 1024 events loses the oldest and is told how many; nothing
/// waits for it.
pub struct Events {
    receiver: broadcast::Receiver<Event>,
    stopped: watch::Receiver<bool>,
}

impl Events {
    pub(crate) fn new(receiver: broadcast::Receiver<Event>, stopped: watch::Receiver<bool>) -> Self {
        Self { receiver, stopped }
    }

    /// Waits for the next event.
    ///
    /// # Errors
    ///
    /// [`EventError`].
    ///
    /// # Cancel safety
    ///
    /// No event is lost when the future is dropped.
    pub async fn recv(&mut self) -> Result<Event, EventError> {
        // Losing a branch loses nothing: both leave their channel as it was.
        let received = tokio::select! {
            biased;
            received = self.receiver.recv() => received,
            // An error means that the peer was dropped, which stops it, too.
            _ = self.stopped.wait_for(|stopped| *stopped) => Err(broadcast::error::RecvError::Closed),
        };
        received.map_err(|error| match error {
            broadcast::error::RecvError::Lagged(count) => EventError::Lagged(count),
            broadcast::error::RecvError::Closed => EventError::Closed,
        })
    }
}
