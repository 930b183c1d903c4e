//! The next message of a client, under the limits of a body: [`next_message`].

use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::time::{Instant, timeout};

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
    /// Nothing came at all, no answer to a ping either.
    Silent(Duration),
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

/// Waits for the next message. Between two of them a client may say nothing for as long as it likes, but that it is alive: it is
/// asked each time that a stream would have a ping.
///
/// *Cancel safety*: none, but that of the socket, which has to be given up then.
pub(super) async fn next_message<'a, S: AsyncRead>(
    shared: &'a Shared,
    reader: &mut SocketReader<S>,
) -> Result<Inbound<'a>, Over> {
    let mut held = Held::nothing(shared);
    // How much of a message has come, and when it was less.
    let mut progress: Option<(usize, Instant)> = None;
    let silence_max = shared.options.ping_interval.saturating_add(shared.options.stall_timeout);
    loop {
        let paused = progress.map(|(_, moved_at)| BODY_PAUSE_MAX.saturating_sub(moved_at.elapsed()));
        let patience = paused.unwrap_or(silence_max).min(silence_max);
        let read = timeout(patience, reader.read()).await;
        let read = read.map_err(|_| if patience < silence_max { Over::Slow } else { Over::Silent(silence_max) })??;
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
            Self::Slow => (&counters.refused_malformed, code::POLICY, "a message stopped arriving".to_owned()),
            Self::Silent(silence) => {
                (&counters.stalled, code::POLICY, format!("no sign of life for {} s", silence.as_secs()))
            }
            Self::Busy => {
                let text = "the messages of all clients take up the memory that there is for them; try again later";
                (&counters.refused_busy, code::TRY_AGAIN, text.to_owned())
            }
        };
        add(counter, 1);
        reader.say(Farewell::new(code, &reason));
        reason
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HttpServer;
    use crate::websocket::{SocketWriter, split};
    use tokio::io::DuplexStream;

    const PART: Duration = Duration::from_secs(20);

    /// A server, and a client's socket to it.
    fn pair() -> (HttpServer, SocketReader<DuplexStream>, SocketWriter<DuplexStream>) {
        let (near, far) = tokio::io::duplex(1 << 20);
        (HttpServer::new(), split(far, true, 1 << 20).0, split(near, false, 1 << 20).1)
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_may_come_slowly() {
        let (server, mut reader, mut writer) = pair();
        let writing = async {
            for number in 1..=10 {
                tokio::time::sleep(PART).await;
                writer.write(Kind::Binary, &[7; 10], number == 10).await.unwrap();
            }
        };
        let (message, ()) = tokio::join!(next_message(&server.shared, &mut reader), writing);
        let message = message.unwrap_or_else(|over| panic!("{over:?}"));
        assert_eq!(message.bytes, [7; 100]);
        assert_eq!(server.counters().body_bytes_held, 100);
        drop(message);
        assert_eq!(server.counters().body_bytes_held, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_stops_is_given_up_whatever_else_comes() {
        let (server, mut reader, mut writer) = pair();
        writer.write(Kind::Binary, &[7; 10], false).await.unwrap();
        let started = Instant::now();
        let pinging = async {
            loop {
                tokio::time::sleep(PART).await;
                writer.ping().await.unwrap();
            }
        };
        let over = tokio::select! {
            message = next_message(&server.shared, &mut reader) => message.err().unwrap(),
            () = pinging => unreachable!(),
        };
        assert!(matches!(over, Over::Slow) && started.elapsed() == BODY_PAUSE_MAX, "{over:?}");
        assert_eq!(server.counters().body_bytes_held, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_says_nothing_but_that_it_is_alive() {
        let (server, mut reader, mut writer) = pair();
        let living = async {
            for _ in 0..10 {
                tokio::time::sleep(PART).await;
                writer.pong(&[]).await.unwrap();
            }
        };
        let (over, ()) = tokio::join!(next_message(&server.shared, &mut reader), living);
        assert!(matches!(over.err(), Some(Over::Silent(silence)) if silence == Duration::from_secs(60)));
    }
}
