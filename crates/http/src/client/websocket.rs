//! A WebSocket to the server, where there is one.
//!
//! The request for a stream offers it; a server that has one answers 426, and is dialled again at `/ws`. So a server that has none
//! never notices. Where the socket comes to nothing, something between us breaks it, and the client goes back to the stream.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use reqwest::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use reqwest::{Response, StatusCode, Upgraded};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tracing::{debug, info};

use super::dial::{Dialer, Received};
use super::dial_error::DialError;
use super::link::{Ending, Link};
use super::post::{explain, read_answer};
use super::{Options, WebSocket};
use crate::websocket::{FRAMES_PROTOCOL, JSON_PROTOCOL, close_reason, config};

/// Nothing is known of the server's WebSocket.
pub(super) const UNKNOWN: u8 = 0;

/// It worked.
const WORKS: u8 = 1;

/// It did not.
const BROKEN: u8 = 2;

/// Messages that wait to be written. Beyond them whoever sends waits.
const OUTBOX_MAX: usize = 2;

/// How long the server may take to hear that the connection ends.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// Why there is no WebSocket.
pub(super) enum NoSocket {
    /// The server cannot be reached, or does not want us: it would be no better with a stream.
    Refused(DialError),
    /// There is none, or something between us does not let it through.
    Broken(String),
}

impl NoSocket {
    pub(super) fn into_dial_error(self) -> DialError {
        match self {
            Self::Refused(error) => error,
            Self::Broken(reason) => DialError::no_stream(&reason),
        }
    }
}

impl Options {
    fn may_use_websocket(&self) -> bool {
        self.websocket == WebSocket::Preferred && self.is_announced && self.takes_frames
    }
}

impl Dialer {
    /// Whether the request for a stream says that we would rather have a WebSocket.
    pub(super) fn offers_websocket(&self) -> bool {
        self.shared.options.may_use_websocket() && self.shared.websocket.load(Relaxed) != BROKEN
    }

    /// Whether the server had one that worked.
    pub(super) fn knows_websocket(&self) -> bool {
        self.shared.options.may_use_websocket() && self.shared.websocket.load(Relaxed) == WORKS
    }

    pub(super) fn has_websocket(&self) {
        self.shared.websocket.store(WORKS, Relaxed);
    }

    pub(super) fn give_up_websocket(&self, reason: &str) {
        info!(endpoint = self.shared.endpoint, reason, "no WebSocket to this server: using a stream and POSTs");
        self.shared.websocket.store(BROKEN, Relaxed);
    }

    pub(super) async fn dial_socket(&self) -> Result<(SocketReader, Outbox), NoSocket> {
        let options = &self.shared.options;
        let url = format!("{}/ws?peerId={}", self.shared.endpoint, self.peer.site());
        let key = generate_key();
        let protocols = if options.is_announced { FRAMES_PROTOCOL } else { JSON_PROTOCOL };
        let request = self
            .announce(self.clients.upgrading.get(url))
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, &key)
            .header(SEC_WEBSOCKET_PROTOCOL, protocols);
        let opening = async {
            let response = request.send().await.map_err(|error| match DialError::of_request(&error) {
                // It may be the upgrade that something between us does not like.
                DialError::Unreachable { .. } if !error.is_connect() => NoSocket::Broken(explain(&error)),
                error => NoSocket::Refused(error),
            })?;
            match response.status() {
                StatusCode::SWITCHING_PROTOCOLS => Ok(response),
                status => Err(of_answer(status, &read_answer(response).await.unwrap_or_default())),
            }
        };
        let timeout = options.idle_timeout;
        let response =
            tokio::time::timeout(timeout, opening).await.map_err(|_| NoSocket::Refused(DialError::TimedOut))??;
        let head = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        if head(SEC_WEBSOCKET_ACCEPT) != Some(&*derive_accept_key(key.as_bytes())) {
            return Err(NoSocket::Broken("the answer is not to this handshake".to_owned()));
        }
        let is_json = match head(SEC_WEBSOCKET_PROTOCOL) {
            Some(FRAMES_PROTOCOL) => false,
            Some(JSON_PROTOCOL) | None => true,
            Some(other) => return Err(NoSocket::Broken(format!("the subprotocol {other} was not asked for"))),
        };
        self.socket(response, is_json).await
    }

    async fn socket(&self, response: Response, is_json: bool) -> Result<(SocketReader, Outbox), NoSocket> {
        let upgraded = response.upgrade().await.map_err(|error| NoSocket::Broken(explain(&error)))?;
        let config = config(self.peer.limits().message_bytes_max);
        let socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await;
        let (sink, stream) = socket.split();
        let (sender, messages) = mpsc::channel(OUTBOX_MAX);
        let reader = SocketReader { stream, idle_timeout: self.shared.options.idle_timeout };
        Ok((reader, Outbox { sender, messages, sink, is_json }))
    }
}

/// What an answer other than 101 means.
fn of_answer(status: StatusCode, body: &[u8]) -> NoSocket {
    let error = DialError::of_answer(status, body);
    let is_final = matches!(
        status,
        StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::TOO_MANY_REQUESTS
    );
    if is_final { NoSocket::Refused(error) } else { NoSocket::Broken(error.to_string()) }
}

/// The messages that come.
pub(super) struct SocketReader {
    stream: SplitStream<WebSocketStream<Upgraded>>,
    idle_timeout: Duration,
}

impl SocketReader {
    /// The next message; an error where the connection has ended. Whatever can be read at all is a message.
    pub(super) async fn next(&mut self) -> Result<Result<Received, String>, String> {
        loop {
            let next = tokio::time::timeout(self.idle_timeout, self.stream.next()).await;
            let next = next.map_err(|_| format!("no sign of life for {} s", self.idle_timeout.as_secs()))?;
            return match next {
                Some(Ok(Message::Binary(frame))) => Ok(Ok(Received::Frame(frame.into()))),
                Some(Ok(Message::Text(json))) => Ok(Ok(Received::Json(json.as_bytes().to_vec()))),
                Some(Ok(Message::Close(Some(close)))) => {
                    Err(format!("the server closed the socket: {} ({})", close.reason, close.code))
                }
                Some(Ok(Message::Close(None))) | None => Err("the server closed the socket".to_owned()),
                Some(Ok(_)) => continue,
                Some(Err(error)) => Err(error.to_string()),
            };
        }
    }
}

/// The messages that go.
pub(super) struct Outbox {
    pub(super) sender: mpsc::Sender<Vec<u8>>,
    messages: mpsc::Receiver<Vec<u8>>,
    sink: SplitSink<WebSocketStream<Upgraded>, Message>,
    is_json: bool,
}

impl Outbox {
    /// Writes what is sent over the link until that ends.
    pub(super) fn spawn(self, link: Arc<Link>) -> JoinHandle<()> {
        let Self { sender, mut messages, mut sink, is_json } = self;
        drop(sender);
        tokio::spawn(async move {
            loop {
                // A message that is dropped half written belongs to a connection that has ended.
                let message = tokio::select! {
                    biased;
                    () = link.end.cancelled() => break,
                    message = messages.recv() => message,
                };
                let Some(message) = message else { break };
                let message = if is_json {
                    Message::text(String::from_utf8_lossy(&message).into_owned())
                } else {
                    Message::binary(message)
                };
                let sent = tokio::select! {
                    biased;
                    () = link.end.cancelled() => break,
                    sent = sink.send(message) => sent,
                };
                if let Err(error) = sent {
                    debug!(%error, "a WebSocket cannot be written");
                    link.lose(error.to_string());
                    return;
                }
            }
            let (code, reason) = match link.ending() {
                Some(Ending::Reported(reason)) => (CloseCode::Away, reason.as_str()),
                Some(Ending::Silent) => (CloseCode::Normal, "closed by the client"),
                None => (CloseCode::Away, "the client stops"),
            };
            let close = Message::Close(Some(CloseFrame { code, reason: close_reason(reason).into() }));
            // Who is gone does not hear it.
            let _ = tokio::time::timeout(FAREWELL_TIMEOUT, sink.send(close)).await;
        })
    }
}
