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
use super::link::{Ending, Link, Standing};
use super::post::{POST_TIMEOUT, explain, read_answer};
use crate::form::CHUNK_BYTES;
use crate::websocket::{
    End, FRAMES_PROTOCOL, Farewell, JSON_PROTOCOL, Kind, Read, SocketWriter, accept, code, has_word, random_key, split,
    until_after,
};
use crate::{DRAINED_BYTES_MAX, FAREWELL_TIMEOUT};

/// How long a WebSocket may take from the dial to the server's introduction, before the client turns to a stream: what swallows
/// either would otherwise cost each dial the patience that a silent stream gets.
pub(super) const OPENING_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the server is asked whether it hears us, by which it hears that we are alive: also while our peer takes long over a
/// message, and no ping of the server's is read.
const SIGN_OF_LIFE_INTERVAL: Duration = PING_INTERVAL;

/// No idle timeout, however short, makes it more often than that.
const SIGN_OF_LIFE_INTERVAL_MIN: Duration = Duration::from_millis(1);

/// How long the server may answer no ping, or take nothing of what is written. As with a POST: it reads nothing while its peer
/// handles a message.
const ANSWER_TIMEOUT: Duration = POST_TIMEOUT;

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
        let sink = sink.with_patience(ANSWER_TIMEOUT);
        let (sender, messages) = mpsc::channel(OUTBOX_MAX);
        let reader = SocketReader::new(stream, kind, options.idle_timeout);
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
        // Whatever it is, a stream may have none of it: with TLS it goes over connections of HTTP/2.
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
    opened_at: Instant,
    /// When the server last answered a ping: then it heard us.
    answered_at: Option<Instant>,
    /// When the server closed the socket, and with which code.
    closed: Option<(Instant, Option<u16>)>,
    /// Nothing more can be read.
    is_over: bool,
}

impl<S: AsyncRead> SocketReader<S> {
    fn new(stream: crate::websocket::SocketReader<S>, kind: Kind, idle_timeout: Duration) -> Self {
        let opened_at = Instant::now();
        Self { stream, kind, idle_timeout, opened_at, answered_at: None, closed: None, is_over: false }
    }

    /// The next message; an error where the connection has ended. Whatever can be read at all is a message.
    ///
    /// A message that comes slowly is no silence: each of its bytes is a sign of life.
    pub(super) async fn next(&mut self) -> Result<Received, String> {
        loop {
            // What has come is read first, however late: it may have the answer.
            let unanswered = self.answered_at.unwrap_or(self.opened_at).elapsed();
            let patience = self.idle_timeout.min(ANSWER_TIMEOUT.saturating_sub(unanswered));
            let read = tokio::time::timeout(patience, self.read()).await;
            let read = read.map_err(|_| match self.idle_timeout {
                idle_timeout if patience < idle_timeout => format!("no answer for {} s", ANSWER_TIMEOUT.as_secs()),
                idle_timeout => format!("no sign of life for {} s", idle_timeout.as_secs()),
            })?;
            match read.map_err(|end| end.reason("the server"))?.message {
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

    async fn read(&mut self) -> Result<Read, End> {
        let read = self.stream.read().await;
        if self.stream.take_answer() {
            self.answered_at = Some(Instant::now());
        }
        if let Err(end) = &read {
            self.is_over = true;
            if let End::Closed(said) = end {
                self.closed = Some((Instant::now(), said.code));
            }
        }
        read
    }

    /// Whether the server found a message too large.
    pub(super) fn is_too_large(&self) -> bool {
        matches!(self.closed, Some((_, Some(code::TOO_LARGE))))
    }

    /// Whether we were heard, too: the server answered a ping, or closed the socket before it had to. Who hears nothing of us says
    /// so in the end.
    pub(super) fn is_two_way(&self) -> bool {
        let is_early = |closed_at: Instant| closed_at - self.opened_at < self.idle_timeout.min(OPENING_TIMEOUT);
        self.answered_at.is_some() || self.closed.is_some_and(|(closed_at, _)| is_early(closed_at))
    }

    /// Reads on until the server has hung up, for a bounded time. Of what comes only how it closes the socket matters any more: where
    /// it was not read when the connection ended, because our peer was busy or the socket could not be written, it is heard here.
    pub(super) async fn drain(&mut self) {
        let drained = async {
            let mut left = DRAINED_BYTES_MAX;
            while !self.is_over && left > 0 {
                if let Ok(read) = self.read().await {
                    left = left.saturating_sub(read.bytes);
                }
            }
            self.stream.drain().await;
        };
        let _ = tokio::time::timeout(FAREWELL_TIMEOUT, drained).await;
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
        let Self { sender: _, mut messages, sink, kind, interval } = self;
        tokio::spawn(async move {
            let _standing = Standing(link.clone());
            let writing = write_all(&mut messages, sink, kind, interval, &link);
            if let Some(Err(error)) = until_after(&link.end, FAREWELL_TIMEOUT, writing).await {
                debug!(%error, "a WebSocket cannot be written");
                // Where the server has closed it, the reader is about to find out why. Who sends waits as long.
                let _ = tokio::time::timeout(FAREWELL_TIMEOUT, link.end.cancelled()).await;
                link.lose(format!("the socket cannot be written: {error}"));
            }
        })
    }
}

async fn write_all(
    messages: &mut mpsc::Receiver<Vec<u8>>,
    mut sink: SocketWriter<impl AsyncWrite>,
    kind: Kind,
    interval: Duration,
    link: &Link,
) -> io::Result<()> {
    // At once and before any message, over which the server may take long: a socket is soon known to go both ways.
    sink.ping().await?;
    let mut ticks = interval_at(Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Nothing is lost with a dropped branch: what was not taken waits.
        tokio::select! {
            () = link.end.cancelled() => break,
            Some(message) = messages.recv() => write_message(&mut sink, kind, &message, link).await?,
            payload = sink.pinged() => sink.pong(&payload).await?,
            _ = ticks.tick() => sink.ping().await?,
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

/// Writes a message in parts, of which those that are left are not worth it once the connection is lost.
async fn write_message(
    sink: &mut SocketWriter<impl AsyncWrite>,
    kind: Kind,
    message: &[u8],
    link: &Link,
) -> io::Result<()> {
    let mut parts = message.chunks(CHUNK_BYTES).peekable();
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
        let reader = SocketReader::new(split(near, false, 1 << 20).0, Kind::Binary, IDLE_TIMEOUT);
        (reader, split(far, true, 1 << 20).1)
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_message_is_no_silence_and_one_that_stops_is() {
        let (mut reader, mut writer) = pair();
        let writing = async {
            for number in 1..=10 {
                tokio::time::sleep(IDLE_TIMEOUT / 2).await;
                writer.write(Kind::Binary, &[7], number == 10).await.unwrap();
                writer.pong(&[]).await.unwrap();
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
        for number in 0..5 {
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

    /// Whatever else comes: that it comes says nothing of the other direction.
    #[tokio::test(start_paused = true)]
    async fn who_answers_no_ping_does_not_hear_us() {
        let (mut reader, mut writer) = pair();
        let pinging = async {
            for _ in 0..20 {
                tokio::time::sleep(IDLE_TIMEOUT / 3).await;
                writer.ping().await.unwrap();
            }
        };
        let started = Instant::now();
        let silence = async { (reader.next().await, started.elapsed()) };
        let (silence, ()) = tokio::join!(silence, pinging);
        assert_eq!(silence, (Err("no answer for 300 s".to_owned()), ANSWER_TIMEOUT));
        assert!(!reader.is_two_way());
    }

    /// A peer that takes long over a message looks at the answer late.
    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_read_late_is_one() {
        let (mut reader, mut writer) = pair();
        writer.pong(&[]).await.unwrap();
        tokio::time::sleep(ANSWER_TIMEOUT * 2).await;
        writer.write(Kind::Binary, b"hello", true).await.unwrap();
        assert_eq!(reader.next().await, Ok(Received::Frame(b"hello".to_vec())));
        assert!(reader.is_two_way());
    }

    #[tokio::test(start_paused = true)]
    async fn who_closes_a_socket_soon_heard_of_us_and_who_closes_it_late_may_not_have() {
        for (after, is_two_way) in [(Duration::ZERO, true), (OPENING_TIMEOUT, false)] {
            let (mut reader, mut writer) = pair();
            writer.write(Kind::Binary, b"hello", true).await.unwrap();
            assert_eq!(reader.next().await, Ok(Received::Frame(b"hello".to_vec())));
            assert!(!reader.is_two_way());
            tokio::time::sleep(after).await;
            writer.close(Farewell::new(code::POLICY, "no sign of life")).await.unwrap();
            assert_eq!(reader.next().await, Err("the server closed the socket: no sign of life (1008)".to_owned()));
            assert_eq!(reader.is_two_way(), is_two_way);
        }
    }

    #[tokio::test]
    async fn what_the_server_said_last_is_heard_also_behind_messages_that_nobody_reads() {
        let (mut reader, mut writer) = pair();
        writer.pong(&[]).await.unwrap();
        writer.write(Kind::Binary, &[7; 100_000], true).await.unwrap();
        writer.close(Farewell::new(code::TOO_LARGE, "too large")).await.unwrap();
        reader.drain().await;
        assert!(reader.is_two_way() && reader.is_too_large());
        // Text where frames are spoken.
        let (mut reader, mut writer) = pair();
        writer.write(Kind::Text, b"{}", true).await.unwrap();
        assert!(reader.next().await.is_err());
    }

    /// A server that closes a socket stops reading, and the close waits behind what it has still written.
    #[tokio::test(start_paused = true)]
    async fn why_a_server_hung_up_counts_more_than_that_it_did() {
        let (near, far) = tokio::io::duplex(10_000);
        let (stream, sink) = split(near, false, 1 << 20);
        let mut reader = SocketReader::new(stream, Kind::Binary, IDLE_TIMEOUT);
        let (sender, messages) = mpsc::channel(OUTBOX_MAX);
        let outbox = Outbox { sender, messages, sink, kind: Kind::Binary, interval: SIGN_OF_LIFE_INTERVAL };
        let link = link(&CancellationToken::new());
        outbox.sender.send(vec![7; 100_000]).await.unwrap();
        let writer = outbox.spawn(link.clone());
        let (_reader, closing) = split(far, true, 1 << 20);
        closing.close(Farewell::new(code::TOO_LARGE, "too large")).await.unwrap();
        drop(_reader);
        tokio::time::sleep(FAREWELL_TIMEOUT / 2).await;
        assert!(!link.is_lost(), "{}", link.lost());
        let reason = reader.next().await.unwrap_err();
        assert!(reason.contains("1009") && reader.is_too_large(), "{reason}");
        link.lose(reason);
        writer.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_reads_nothing_is_given_up() {
        let (near, far) = tokio::io::duplex(10_000);
        let sink = split(near, false, 1 << 20).1.with_patience(ANSWER_TIMEOUT);
        let (sender, messages) = mpsc::channel(OUTBOX_MAX);
        let outbox =
            Outbox { sender: sender.clone(), messages, sink, kind: Kind::Binary, interval: SIGN_OF_LIFE_INTERVAL };
        let link = link(&CancellationToken::new());
        let started = Instant::now();
        let writer = outbox.spawn(link.clone());
        // Whoever sends waits for no longer than that.
        while sender.send(vec![7; 100_000]).await.is_ok() {}
        writer.await.unwrap();
        assert!(link.lost().to_string().contains("nothing is taken for 300 s"), "{}", link.lost());
        assert_eq!(started.elapsed(), ANSWER_TIMEOUT + FAREWELL_TIMEOUT);
        drop(far);
    }

    #[tokio::test]
    async fn no_connection_stands_without_the_task_that_carries_it() {
        let link = link(&CancellationToken::new());
        let standing = Standing(link.clone());
        let task = tokio::spawn(async move {
            let _standing = standing;
            panic!("a peer's");
        });
        assert!(task.await.unwrap_err().is_panic() && link.is_lost());
    }
}
