//! What a message holds, whichever way it came, and its way to the peer above.

use litemesh_proto::codec::v1::Envelope;
use litemesh_proto::codec::v2::{self, Frame};
use litemesh_proto::{Limits, Refusal, SyncRequest, Unverified};
use tracing::{debug, warn};

use super::connection::Connection;
use super::{Running, Shared};
use crate::counters::add;

/// From this size on JSON is parsed outside of the runtime's threads: a megabyte takes some milliseconds.
const INLINE_JSON_BYTES_MAX: usize = 256 * 1024;

/// As much of a frame, in bytes: one that shrank to an eighth is as long as that afterwards.
const INLINE_FRAME_BYTES_MAX: usize = INLINE_JSON_BYTES_MAX / 8;

#[derive(Debug)]
pub(crate) enum Content {
    Sync(SyncRequest),
    Data(Unverified),
}

impl Content {
    /// What a frame holds; `None` where there is nothing to do about it.
    pub(super) fn of(frame: Frame) -> Option<Self> {
        match frame {
            Frame::Sync(request) => Some(Self::Sync(request)),
            Frame::Message(message) => Some(Self::Data(message)),
            _ => None,
        }
    }
}

/// A message of a WebSocket that cannot be read.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) reason: String,
    /// Changes may be missing with it. A request has none.
    pub(super) may_hold_changes: bool,
}

/// What the bytes of a frame hold; `None` where there is nothing to do about it.
pub(super) async fn of_frame(frame: Vec<u8>, limits: &Limits) -> Result<Option<Content>, Unreadable> {
    let may_hold_changes = !v2::is_sync(&frame);
    let decoded = decode_frame(frame, limits).await;
    decoded.map(Content::of).map_err(|reason| Unreadable { reason, may_hold_changes })
}

/// What a message of JSON holds that says itself what it is; `None` where there is nothing to do about it.
pub(super) async fn of_json(json: Vec<u8>) -> Result<Option<Content>, Unreadable> {
    let read = read_json(json, |json| {
        let unreadable = |may_hold_changes| {
            move |error: litemesh_proto::DecodeError| Unreadable { reason: error.to_string(), may_hold_changes }
        };
        let envelope = Envelope::parse(json).map_err(unreadable(true))?;
        match envelope.kind() {
            "sync" => envelope.sync_request().map(|request| Some(Content::Sync(request))).map_err(unreadable(false)),
            "data" => envelope.message().map(|message| Some(Content::Data(message))).map_err(unreadable(true)),
            _ => Ok(None),
        }
    });
    read.await.unwrap_or_else(|reason| Err(Unreadable { reason, may_hold_changes: true }))
}

/// Decodes a frame, a long one outside of the runtime's threads.
pub(super) async fn decode_frame(frame: Vec<u8>, limits: &Limits) -> Result<Frame, String> {
    let limits = limits.clone();
    let read = read_apart(frame, INLINE_FRAME_BYTES_MAX, move |frame| v2::decode(frame, &limits));
    read.await?.map_err(|error| error.to_string())
}

/// Reads JSON, much of it outside of the runtime's threads. An error says that the reading itself failed.
pub(super) async fn read_json<T: Send + 'static>(
    json: Vec<u8>,
    read: impl FnOnce(&[u8]) -> T + Send + 'static,
) -> Result<T, String> {
    read_apart(json, INLINE_JSON_BYTES_MAX, read).await
}

async fn read_apart<T: Send + 'static>(
    bytes: Vec<u8>,
    inline_bytes_max: usize,
    read: impl FnOnce(&[u8]) -> T + Send + 'static,
) -> Result<T, String> {
    if bytes.len() <= inline_bytes_max {
        return Ok(read(&bytes));
    }
    tokio::task::spawn_blocking(move || read(&bytes)).await.map_err(|error| error.to_string())
}

impl Shared {
    /// Gives a message to the peer above.
    pub(super) async fn deliver(
        &self,
        running: &Running,
        connection: &Connection,
        content: Content,
    ) -> Result<(), Refusal> {
        let remote = connection.remote;
        let result = match content {
            Content::Sync(request) => running.peer.sync(remote, request).await,
            Content::Data(message) => running.peer.receive(remote, message).await,
        };
        match &result {
            Ok(()) => add(&self.counters.messages_in, 1),
            Err(refusal) => {
                debug!(remote = %remote.site.fmt_short(), %refusal, "a message was refused");
                add(&self.counters.refused_by_peer, 1);
            }
        }
        result
    }

    /// Tells the peer above that changes may be missing.
    pub(super) async fn report_garbled(&self, running: &Running, connection: &Connection, reason: String) {
        warn!(remote = %connection.remote.site.fmt_short(), reason, "a message could not be read");
        add(&self.counters.garbled, 1);
        running.peer.garbled(connection.remote, reason).await;
    }
}
