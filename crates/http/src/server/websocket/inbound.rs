//! The next message of a client, under the limits of a body: [`next_message`].

use tokio::io::AsyncRead;
use tokio::time::{Instant, timeout_at};

use super::super::Shared;
use super::super::body::{BODY_PAUSE_MAX, Held, ReadError};
use crate::counters::add;
use crate::websocket::{End, Farewell, Fault, Kind, SocketReader, code};

/// A message, and its part in the memory for bodies.
pub(super) struct Inbound<'a> {
    pub(super) kind: Kind,
    pub(super) bytes: Vec<u8>,
    pub(super) held: Held<'a>,
}

/// Why there is no next message.
#[derive(Debug)]
pub(super) enum Over {
    Socket(End),
    /// Nothing of a message came for too long. What comes between its parts does not count.
    Slow,
    /// The messages of all clients hold as much as they may.
    Busy,
}

impl From<End> for Over {
    fn from(end: End) -> Self {
        Self::Socket(end)
    }
}

impl From<ReadError> for Over {
    fn from(_: ReadError) -> Self {
        Self::Busy
    }
}

/// Waits for the next message. Between two of them a client may be silent for as long as it likes.
///
/// *Cancel safety*: none, but that of the socket, which has to be given up then.
pub(super) async fn next_message<'a, S: AsyncRead>(
    shared: &'a Shared,
    reader: &mut SocketReader<S>,
) -> Result<Inbound<'a>, Over> {
    let mut held = Held::nothing(shared);
    // How much of a message has come, and when it was less.
    let mut progress: Option<(usize, Instant)> = None;
    loop {
        let read = match progress {
            None => reader.read().await?,
            Some((_, moved_at)) => {
                timeout_at(moved_at + BODY_PAUSE_MAX, reader.read()).await.map_err(|_| Over::Slow)??
            }
        };
        add(&shared.counters.bytes_in, read.bytes);
        if let Some((kind, bytes)) = read.message {
            held.grow_to(bytes.len())?;
            return Ok(Inbound { kind, bytes, held });
        }
        let bytes = reader.held_bytes();
        held.grow_to(bytes)?;
        if reader.is_inside() && progress.is_none_or(|(before, _)| bytes > before) {
            progress = Some((bytes, Instant::now()));
        }
    }
}

impl Over {
    /// Counts it, has the client told, and says why it is over.
    pub(super) fn note<S: AsyncRead>(self, shared: &Shared, reader: &SocketReader<S>) -> String {
        let counters = &shared.counters;
        let (counter, code, reason) = match self {
            Self::Socket(end) => {
                match end {
                    End::Fault(Fault::TooLarge { .. }) => add(&counters.refused_too_large, 1),
                    End::Fault(_) => add(&counters.refused_malformed, 1),
                    End::Closed(_) | End::HungUp | End::Broken(_) => {}
                }
                return end.reason("the client");
            }
            Self::Slow => (&counters.refused_malformed, code::POLICY, "a message stopped arriving"),
            Self::Busy => {
                let text = "the messages of all clients take up the memory that there is for them; try again later";
                (&counters.refused_busy, code::TRY_AGAIN, text)
            }
        };
        add(counter, 1);
        reader.say(Farewell::new(code, reason));
        reason.to_owned()
    }
}
