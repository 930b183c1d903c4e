//! Reads a request body bit by bit, under a limit of its own and one for those of all clients.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use bytes::Bytes;
use futures_util::StreamExt;

use super::Shared;
use crate::counters::{CounterCells, add, sub};
use crate::gzip::{BodyBuffer, BodyError, DECODE_STEP_BYTES};
use crate::{DRAINED_BYTES_MAX, FAREWELL_TIMEOUT};

/// How long a client may pause within a body, or within a message of a WebSocket: as long as TCP tries on a line that loses most of what it
/// is given. What has come holds memory that all clients share, so it may not lie there for longer.
pub(super) const BODY_PAUSE_MAX: Duration = Duration::from_secs(30);

/// Bodies up to this size, in bytes, may use all of the memory for bodies, larger ones three quarters: who fills it with large ones
/// keeps nobody from ordinary messages.
const SMALL_BODY_BYTES: usize = 64 * 1024;

/// Why a body could not be read, or a message of a WebSocket.
#[derive(Clone, Debug)]
pub(super) enum ReadError {
    TooLarge,
    /// The connection broke, or the compressed form is damaged.
    Cut(String),
    /// The client sent nothing for too long.
    Slow,
    /// The bodies of all clients hold as much as they may.
    Busy,
}

/// The part that one body has in the memory for bodies, until it is dropped.
pub(super) struct Held<'a> {
    counters: &'a CounterCells,
    bytes: usize,
    all_max: usize,
}

impl<'a> Held<'a> {
    /// That of a body of which nothing has come.
    pub(super) fn nothing(shared: &'a Shared) -> Self {
        Self { counters: &shared.counters, bytes: 0, all_max: shared.options.bodies_bytes_max }
    }

    /// The body has so many bytes now. They count, also where there is no room for them.
    pub(super) fn grow_to(&mut self, bytes: usize) -> Result<(), ReadError> {
        let more = bytes.saturating_sub(self.bytes);
        self.bytes += more;
        let all = self.counters.body_bytes_held.fetch_add(more as u64, Relaxed) + more as u64;
        let all_max = if self.bytes <= SMALL_BODY_BYTES { self.all_max } else { self.all_max / 4 * 3 };
        if all <= all_max as u64 { Ok(()) } else { Err(ReadError::Busy) }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        sub(&self.counters.body_bytes_held, self.bytes);
    }
}

/// A body as far as it has come.
pub(super) struct BodyReader<'a> {
    shared: &'a Shared,
    chunks: BodyDataStream,
    /// What came and was not decoded yet.
    pending: Bytes,
    buffer: BodyBuffer,
    held: Held<'a>,
    is_gzip: bool,
    /// The client said that it would send more than the limit.
    announces_too_much: bool,
    /// Why nothing more can be read. What was read before may still tell who sent it.
    failed: Option<ReadError>,
}

impl<'a> BodyReader<'a> {
    pub(super) fn new(shared: &'a Shared, headers: &HeaderMap, body: Body, is_gzip: bool, bytes_max: usize) -> Self {
        let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        Self {
            shared,
            chunks: body.into_data_stream(),
            pending: Bytes::new(),
            buffer: BodyBuffer::new(is_gzip, bytes_max),
            held: Held::nothing(shared),
            is_gzip,
            announces_too_much: announced.is_some_and(|announced| announced > bytes_max as u64),
            failed: None,
        }
    }

    /// What came so far, decoded.
    pub(super) fn bytes(&self) -> &[u8] {
        self.buffer.bytes()
    }

    /// Whether reading on is in vain.
    pub(super) fn announces_too_much(&self) -> bool {
        self.announces_too_much
    }

    /// Reads a bit more; false at the end. After an error there is nothing but that error.
    pub(super) async fn read(&mut self) -> Result<bool, ReadError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.read_piece().await;
        self.failed = result.as_ref().err().cloned();
        result
    }

    async fn read_piece(&mut self) -> Result<bool, ReadError> {
        if self.pending.is_empty() {
            let next = tokio::time::timeout(BODY_PAUSE_MAX, self.chunks.next()).await.map_err(|_| ReadError::Slow)?;
            match next {
                None => return Ok(false),
                Some(Ok(bytes)) => {
                    add(&self.shared.counters.bytes_in, bytes.len());
                    self.pending = bytes;
                }
                Some(Err(error)) => return Err(ReadError::Cut(error.to_string())),
            }
        }
        // A compressed piece may expand a thousandfold: in small steps the caller sees what comes before it is too much.
        let step = if self.is_gzip { DECODE_STEP_BYTES } else { self.pending.len() };
        let piece = self.pending.split_to(step.min(self.pending.len()));
        self.buffer.push(&piece)?;
        self.held.grow_to(self.buffer.bytes().len())?;
        Ok(true)
    }

    /// Reads to the end.
    pub(super) async fn read_all(&mut self) -> Result<(), ReadError> {
        if self.announces_too_much {
            return Err(ReadError::TooLarge);
        }
        while self.read().await? {}
        Ok(())
    }

    /// The body, once [`read`](Self::read) has said that it is complete, and its part in the memory for bodies.
    pub(super) fn finish(self) -> Result<(Vec<u8>, Held<'a>), ReadError> {
        Ok((self.buffer.finish()?, self.held))
    }

    /// Throws away the rest, or some of it.
    pub(super) async fn discard(self) {
        let Self { mut chunks, buffer, held, .. } = self;
        drop((buffer, held));
        let rest = async move {
            let mut left = DRAINED_BYTES_MAX;
            while let Some(Ok(bytes)) = chunks.next().await {
                match left.checked_sub(bytes.len()) {
                    Some(less) => left = less,
                    None => return,
                }
            }
        };
        // Too slow or too much: then the answer may be lost to a client that was refused anyway.
        let _ = tokio::time::timeout(FAREWELL_TIMEOUT, rest).await;
    }
}

impl From<BodyError> for ReadError {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::TooLarge => Self::TooLarge,
            BodyError::Corrupt(reason) => Self::Cut(reason),
        }
    }
}
