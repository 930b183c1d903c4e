//! A WebSocket to the server, where there is one.
//!
//! The request for a stream offers it; a server that has one answers 426, and is dialled again at `/ws`. So a server that has none
//! never notices. Where the socket comes to nothing and a stream does not, the client takes the stream; [`Way`](super::way::Way)
//! remembers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use litemesh_proto::limits::PING_INTERVAL;
use reqwest::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use reqwest::{StatusCode, Upgraded};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::debug;

use super::dial::{Dialer, Received};
use super::dial_error::DialError;
use super::link::{Ending, Link};
use super::post::{explain, read_answer};
use crate::websocket::{
    End, FAREWELL_TIMEOUT, FRAGMENT_BYTES, FRAMES_PROTOCOL, Farewell, JSON_PROTOCOL, Kind, SocketWriter, accept, code,
    has_word, random_key, split, until_after,
};

/// How long a WebSocket may take from the dial to the server's introduction, before the client turns to a stream: what swallows
/// either would otherwise cost each dial the patience that a silent stream gets.
pub(super) const OPENING_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the server hears that we are alive, where nothing else is said: also while our peer takes long over a message, and no
/// ping of the server's is read.
const SIGN_OF_LIFE_INTERVAL: Duration = PING_INTERVAL;

/// No idle timeout, however short, makes it more often than that.
const SIGN_OF_LIFE_INTERVAL_MIN: Duration = Duration::from_millis(1);

/// Messages that wait to be written. Beyond them whoever sends waits.
const OUTBOX_MAX: usize = 2;

/// Why there is no WebSocket.
#[derive(Debug)]
pub(super) enum NoSocket {
    /// The server refused us over the socket: it would be no better with a stream.
    Refused(DialError),
    /// The answer was another one than to a handshake.
    Broken(DialError),
    /// It could not be dialled, or there was no answer, or nothing behind it, or one that asks for patience.
    Failed(DialError),
}

impl NoSocket {
    pub(super) fn into_dial_error(self) -> DialError {
        match self {
            Self::Refused(error) | Self::Broken(error) | Self::Failed(error) => error,
        }
    }
}

impl Dialer {
    pub(super) async fn dial_socket(&self) -> Result<(SocketReader, Outbox), NoSocket> {
        let options = &self.shared.options;
        let (upgraded, kind) = self.shake_hands().await?;
        let (stream, sink) = split(upgraded, false, self.peer.limits().message_bytes_max);
        let (sender, messages) = mpsc::channel(OUTBOX_MAX);
        let reader = SocketReader { stream, kind, idle_timeout: options.idle_timeout, has_heard: false, code: None };
        let interval = SIGN_OF_LIFE_INTERVAL.min(options.idle_timeout / 3).max(SIGN_OF_LIFE_INTERVAL_MIN);
        Ok((reader, Outbox { sender, messages, sink, kind, interval }))
    }

    async fn shake_hands(&self) -> Result<(Upgraded, Kind), NoSocket> {
        let broken = |reason: &str| NoSocket::Broken(DialError::no_stream(&reason));
        let url = format!("{}/ws?peerId={}", self.shared.base, self.peer.site());
        let key = random_key();
        let (protocol, kind) = if self.shared.options.is_announced {
            (FRAMES_PROTOCOL, Kind::Binary)
        } else {
            (JSON_PROTOCOL, Kind::Text)
        };
        let request = self
            .announce(self.clients.upgrading.get(url))
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, &key)
            .header(SEC_WEBSOCKET_PROTOCOL, protocol);
        // Whatever it is, a stream may have none of it: it goes over connections of its own, be it of HTTP/2.
        let response = request.send().await.map_err(|error| NoSocket::Failed(DialError::of_request(&error)))?;
        let status = response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            let said = read_answer(response).await.unwrap_or_default();
            let error = DialError::of_answer(status, &said);
            // What a busy server says may be another thing the next time.
            let is_passing = matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS);
            return Err(if is_passing { NoSocket::Failed(error) } else { NoSocket::Broken(error) });
        }
        let headers = response.headers();
        if !has_word(headers, &CONNECTION, "upgrade") || !has_word(headers, &UPGRADE, "websocket") {
            return Err(broken("the answer agrees to another upgrade than that to a WebSocket"));
        }
        let head = |name| headers.get(name).and_then(|value| value.to_str().ok());
        if head(SEC_WEBSOCKET_ACCEPT) != Some(&*accept(key.as_bytes())) {
            return Err(broken("the answer is not to this handshake"));
        }
        if head(SEC_WEBSOCKET_PROTOCOL) != Some(protocol) {
            return Err(broken("the answer does not agree to the subprotocol that was offered"));
        }
        if headers.contains_key(SEC_WEBSOCKET_EXTENSIONS) {
            return Err(broken("the answer agrees to an extension, and none was offered"));
        }
        let upgraded = response.upgrade().await;
        Ok((upgraded.map_err(|error| NoSocket::Failed(DialError::no_stream(&explain(&error))))?, kind))
    }
}

/// The messages that come.
pub(super) struct SocketReader<S = Upgraded> {
    stream: crate::websocket::SocketReader<S>,
    /// What messages are made of.
    kind: Kind,
    idle_timeout: Duration,
    /// Anything came since the server introduced itself.
    pub(super) has_heard: bool,
    /// The code with which the server closed the socket.
    pub(super) code: Option<u16>,
}

impl<S: AsyncRead> SocketReader<S> {
    /// The next message; an error where the connection has ended. Whatever can be read at all is a message.
    ///
    /// A message that comes slowly is no silence: each of its bytes is a sign of life.
    pub(super) async fn next(&mut self) -> Result<Received, String> {
        loop {
            let read = tokio::time::timeout(self.idle_timeout, self.stream.read()).await;
            let read = read.map_err(|_| format!("no sign of life for {} s", self.idle_timeout.as_secs()))?;
            let read = read.map_err(|end| {
                if let End::Closed(said) = &end {
                    (self.has_heard, self.code) = (true, said.code);
                }
                end.reason("the server")
            })?;
            self.has_heard |= read.bytes > 0;
            match read.message {
                Some((kind, bytes)) if kind == self.kind => {
                    return Ok(if kind == Kind::Binary { Received::Frame(bytes) } else { Received::Json(bytes) });
                }
                Some(_) => {
                    let reason = "messages are text in litemesh.v1 and binary in litemesh.v2";
                    self.stream.say(Farewell::new(code::UNSUPPORTED, reason));
                    return Err(reason.to_owned());
                }
                None => {}
            }
        }
    }

    /// The first message, with which the server introduces itself.
    pub(super) async fn first(&mut self) -> Result<Received, String> {
        let first = self.next().await;
        self.has_heard = false;
        first
    }

    /// Whether the server found a message too large.
    pub(super) fn is_too_large(&self) -> bool {
        self.code == Some(code::TOO_LARGE)
    }

    /// Reads on for nothing until the server has hung up, for a bounded time.
    pub(super) async fn drain(&mut self) {
        let _ = tokio::time::timeout(FAREWELL_TIMEOUT, self.stream.drain()).await;
    }
}

/// The messages that go.
pub(super) struct Outbox<S = Upgraded> {
    pub(super) sender: mpsc::Sender<Vec<u8>>,
    messages: mpsc::Receiver<Vec<u8>>,
    sink: SocketWriter<S>,
    kind: Kind,
    /// Of signs of life.
    interval: Duration,
}

impl<S: AsyncWrite + Send + 'static> Outbox<S> {
    /// Writes what is sent over the link until that ends, and how it ended.
    pub(super) fn spawn(self, link: Arc<Link>) -> JoinHandle<()> {
        tokio::spawn(async move {
            let end = link.end.clone();
            if let Some(Err(error)) = until_after(&end, FAREWELL_TIMEOUT, self.write_all(&link)).await {
                debug!(%error, "a WebSocket cannot be written");
                link.lose(format!("the socket cannot be written: {error}"));
            }
        })
    }

    async fn write_all(self, link: &Link) -> io::Result<()> {
        let Self { sender, mut messages, mut sink, kind, interval } = self;
        drop(sender);
        let mut ticks = interval_at(Instant::now() + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Nothing is lost with a dropped branch: what was not taken waits.
            tokio::select! {
                () = link.end.cancelled() => break,
                Some(message) = messages.recv() => write_message(&mut sink, kind, &message, link).await?,
                payload = sink.pinged() => sink.pong(&payload).await?,
                _ = ticks.tick() => sink.pong(&[]).await?,
            }
        }
        // Whoever closes or stops has been told that these were taken.
        while !link.is_lost()
            && let Ok(message) = messages.try_recv()
        {
            write_message(&mut sink, kind, &message, link).await?;
        }
        let farewell = match link.ending() {
            Some(Ending::Reported(reason)) => Farewell::new(code::GOING_AWAY, reason),
            Some(Ending::Silent) => Farewell::new(code::NORMAL, "closed by the client"),
            None => Farewell::new(code::GOING_AWAY, "the client stops"),
        };
        sink.close(farewell).await
    }
}

/// Writes a message in parts, of which those that are left are not worth it once the connection is lost.
async fn write_message(
    sink: &mut SocketWriter<impl AsyncWrite>,
    kind: Kind,
    message: &[u8],
    link: &Link,
) -> io::Result<()> {
    let mut parts = message.chunks(FRAGMENT_BYTES).peekable();
    while !link.is_lost()
        && let Some(part) = parts.next()
    {
        sink.write(kind, part, parts.peek().is_none()).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use litemesh_proto::{Remote, SiteId};
    use tokio::io::DuplexStream;
    use tokio_util::sync::CancellationToken;

    use super::*;

    const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

    fn pair() -> (SocketReader<DuplexStream>, SocketWriter<DuplexStream>) {
        let (near, far) = tokio::io::duplex(1 << 20);
        let (stream, kind) = (split(near, false, 1 << 20).0, Kind::Binary);
        let reader = SocketReader { stream, kind, idle_timeout: IDLE_TIMEOUT, has_heard: false, code: None };
        (reader, split(far, true, 1 << 20).1)
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_message_is_no_silence_and_one_that_stops_is() {
        let (mut reader, mut writer) = pair();
        let writing = async {
            for number in 1..=10 {
                tokio::time::sleep(IDLE_TIMEOUT / 2).await;
                writer.write(Kind::Binary, &[7], number == 10).await.unwrap();
            }
            writer.write(Kind::Binary, &[7], false).await.unwrap();
        };
        let (message, ()) = tokio::join!(reader.next(), writing);
        assert_eq!(message, Ok(Received::Frame(vec![7; 10])));
        assert_eq!(reader.next().await, Err("no sign of life for 90 s".to_owned()));
    }

    fn link(stop: &CancellationToken) -> Arc<Link> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let site = SiteId::from_bytes([7; 16]);
        let remote = Remote { site, connection: Remote::next_connection(), is_litemesh: true };
        Arc::new(Link::new(remote, site, reqwest::Client::new(), None, 1 << 20, stop))
    }

    /// What writes at one end, and what reads at the other.
    fn outbox() -> (Outbox<DuplexStream>, crate::websocket::SocketReader<DuplexStream>) {
        let (near, far) = tokio::io::duplex(1 << 20);
        let (sender, messages) = mpsc::channel(OUTBOX_MAX);
        let sink = split(near, false, 1 << 20).1;
        let outbox = Outbox { sender, messages, sink, kind: Kind::Binary, interval: SIGN_OF_LIFE_INTERVAL };
        (outbox, split(far, true, 1 << 20).0)
    }

    /// Nobody here reads the server's pings.
    #[tokio::test(start_paused = true)]
    async fn a_busy_client_says_that_it_is_alive() {
        let (outbox, mut reader) = outbox();
        let stop = CancellationToken::new();
        let _sender = outbox.sender.clone();
        let writer = outbox.spawn(link(&stop));
        let started = Instant::now();
        for number in 1..5 {
            assert_eq!(reader.read().await.unwrap().message, None);
            assert_eq!(started.elapsed(), SIGN_OF_LIFE_INTERVAL * number);
        }
        stop.cancel();
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn what_was_taken_goes_before_a_close_and_not_after_a_loss() {
        for is_lost in [false, true] {
            let (outbox, mut reader) = outbox();
            let link = link(&CancellationToken::new());
            for number in 0..2 {
                outbox.sender.send(vec![number; 100_000]).await.unwrap();
            }
            if is_lost {
                link.lose("something else");
            } else {
                link.close();
            }
            outbox.spawn(link).await.unwrap();
            let mut messages = 0;
            let said = loop {
                match reader.read().await {
                    Ok(read) => messages += usize::from(read.message.is_some()),
                    Err(End::Closed(said)) => break said,
                    Err(other) => panic!("{other:?}"),
                }
            };
            let expected = if is_lost { (0, code::GOING_AWAY) } else { (2, code::NORMAL) };
            assert_eq!((messages, said.code), (expected.0, Some(expected.1)));
        }
    }

    #[tokio::test]
    async fn what_was_heard_is_remembered() {
        let (mut reader, mut writer) = pair();
        writer.write(Kind::Binary, b"hello", true).await.unwrap();
        assert_eq!(reader.first().await, Ok(Received::Frame(b"hello".to_vec())));
        assert!(!reader.has_heard);
        writer.close(Farewell::new(code::TOO_LARGE, "too large")).await.unwrap();
        assert_eq!(reader.next().await, Err("the server closed the socket: too large (1009)".to_owned()));
        assert!(reader.has_heard && reader.is_too_large());
        // Text where frames are spoken.
        let (mut reader, mut writer) = pair();
        writer.write(Kind::Text, b"{}", true).await.unwrap();
        assert!(reader.next().await.is_err());
    }
}
