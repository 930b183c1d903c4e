//! One connection to the server.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use litemesh_proto::{Remote, SiteId, TransportError};
use reqwest::Client;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

/// One connection to the server: an open stream and the POSTs that belong to it, or a WebSocket.
pub(super) struct Link {
    pub(super) remote: Remote,
    /// Our own site.
    pub(super) site: SiteId,
    pub(super) http: Client,
    /// Where messages go out over a WebSocket: what waits to be written. Otherwise they are posted.
    pub(super) outbox: Option<mpsc::Sender<Vec<u8>>>,
    /// Bytes of the largest message that went out over the WebSocket: the one that a server means that closes it for its size.
    pub(super) sent_bytes_max: AtomicUsize,
    /// Largest message that we accept ourselves, and so expect a Litemesh server to accept.
    pub(super) message_bytes_max: usize,
    was_refused: AtomicBool,
    /// Held while a message is sent: one after another, in order.
    pub(super) turn: Mutex<()>,
    /// Cancelled when the connection is over, whatever ended it.
    pub(super) end: CancellationToken,
    ending: OnceLock<Ending>,
}

/// Ends a connection when dropped: none stands without the tasks that carry it, also where one panics.
pub(super) struct Standing(pub(super) Arc<Link>);

impl Drop for Standing {
    fn drop(&mut self) {
        if !self.0.end.is_cancelled() {
            self.0.lose("a task of the client failed");
        }
    }
}

/// How a connection ended. The first ending counts.
pub(super) enum Ending {
    /// `disconnect` is reported with this reason.
    Reported(String),
    /// We ended it ourselves: nothing is reported.
    Silent,
}

impl Link {
    pub(super) fn new(
        remote: Remote,
        site: SiteId,
        http: Client,
        outbox: Option<mpsc::Sender<Vec<u8>>>,
        message_bytes_max: usize,
        stop: &CancellationToken,
    ) -> Self {
        Self {
            remote,
            site,
            http,
            outbox,
            sent_bytes_max: AtomicUsize::new(0),
            message_bytes_max,
            was_refused: AtomicBool::new(false),
            turn: Mutex::default(),
            end: stop.child_token(),
            ending: OnceLock::new(),
        }
    }

    /// The server does not take what it was sent, and would not the next time either.
    pub(super) fn refuse(&self) {
        self.was_refused.store(true, Ordering::Relaxed);
    }

    pub(super) fn was_refused(&self) -> bool {
        self.was_refused.load(Ordering::Relaxed)
    }

    /// Ends the connection, so that `disconnect` is reported.
    pub(super) fn lose(&self, reason: impl Into<String>) {
        self.finish(Ending::Reported(reason.into()));
    }

    /// Ends the connection without a word.
    pub(super) fn close(&self) {
        self.finish(Ending::Silent);
    }

    fn finish(&self, ending: Ending) {
        // A later ending changes nothing: something else was first.
        let _ = self.ending.set(ending);
        self.end.cancel();
    }

    /// How it ended; `None` while it stands, and where the transport is stopping.
    pub(super) fn ending(&self) -> Option<&Ending> {
        self.ending.get()
    }

    /// Whether something ended it that was no decision of ours.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self.ending(), Some(Ending::Reported(_)))
    }

    /// What a caller is told who needed the connection.
    pub(super) fn lost(&self) -> TransportError {
        let reason = match self.ending() {
            Some(Ending::Reported(reason)) => reason.clone(),
            Some(Ending::Silent) => "closed by this side".to_owned(),
            None => "the transport is stopping".to_owned(),
        };
        TransportError::Lost { reason }
    }
}
