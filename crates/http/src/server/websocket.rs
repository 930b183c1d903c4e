//! `GET /ws`: a client's messages, and ours, over one WebSocket (RFC 6455; docs/protocol.md, "WebSocket").
//!
//! A connection like that of an event stream: the same door, the same queue of frames with the same patience, the same turn in which
//! messages are handled. Only the carrier is another.

use std::io;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{OriginalUri, Request, State};
use axum::http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use litemesh_proto::Refusal;
use litemesh_proto::codec::v1::Envelope;
use litemesh_proto::codec::v2::Frame;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::CapacityError;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::Frame as Fragment;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{Error, Message};
use tracing::debug;

use super::body::has_room;
use super::connection::Connection;
use super::post::{Content, decode_frame};
use super::queue::Chunk;
use super::sockets::Socket;
use super::stream::{Opened, Parameters, Wish, open, peer_id};
use super::{Phase, Running, Shared, answer};
use crate::counters::{add, sub};
use crate::form::StreamForm;
use crate::websocket::{FRAMES_PROTOCOL, JSON_PROTOCOL, close_reason, config};

/// How long a client may take to hear that the connection ends.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// What a client is told that asked for a stream and would rather have a WebSocket.
pub(super) fn instead() -> Response {
    let mut response = answer::error(StatusCode::UPGRADE_REQUIRED, "there is a WebSocket at /ws");
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    response
}

pub(super) async fn route(State(shared): State<Arc<Shared>>, uri: OriginalUri, mut request: Request) -> Response {
    if request.method() != Method::GET {
        return answer::not_found(uri, request.method().clone()).await;
    }
    let query = Parameters::read(request.uri());
    let grant = match shared.door.identify_stream(request.headers(), query.all("ticket").next()) {
        Ok(grant) => grant,
        Err(denial) => {
            add(&shared.counters.refused_unauthorized, 1);
            return denial.answer();
        }
    };
    Shared::note_known(request.extensions());
    let malformed = |response: Response| {
        add(&shared.counters.refused_malformed, 1);
        response
    };
    let site = match peer_id(&query) {
        Ok(site) => site,
        Err(bad) => return malformed(bad.answer()),
    };
    let (handshake, upgrade) = match Handshake::read(&request) {
        Ok(handshake) => (handshake, hyper::upgrade::on(&mut request)),
        Err(response) => return malformed(response),
    };
    let wish = Wish::read(site, grant, request.headers());
    let wish = Wish { form: handshake.form, is_gzip: false, resume: None, ..wish };
    let Phase::Running(running) = shared.phase.borrow().clone() else {
        return answer::retry_later(StatusCode::SERVICE_UNAVAILABLE, "Transport not started");
    };
    let socket = request.extensions().get::<Arc<Socket>>().cloned();
    match open(&shared, &running, wish) {
        Opened::Connection { connection, .. } => {
            let is_inside = AtomicBool::new(false);
            let carrier = Carrier { shared, running: running.clone(), connection, is_inside, _socket: socket };
            running.tasks.spawn(carrier.run(upgrade));
        }
        Opened::AlreadyConnected(frame) => {
            running.tasks.spawn(async move { say_and_close(upgrade, handshake.form, frame).await });
        }
        Opened::Unavailable(text) => return answer::retry_later(StatusCode::SERVICE_UNAVAILABLE, text),
        Opened::Denied(denial) => return denial.answer(),
        // Only a transport that was not started makes anybody wait.
        Opened::Later(_) => return answer::retry_later(StatusCode::SERVICE_UNAVAILABLE, "Transport not started"),
    }
    handshake.answer()
}

/// What a client asks for in the head of its request.
struct Handshake {
    accept: HeaderValue,
    form: StreamForm,
    protocol: Option<&'static str>,
}

impl Handshake {
    fn read(request: &Request) -> Result<Self, Response> {
        let headers = request.headers();
        let is_upgrade = has_word(headers, CONNECTION.as_str(), "upgrade") && has_word(headers, "upgrade", "websocket");
        if !is_upgrade || request.version() != Version::HTTP_11 || request.extensions().get::<OnUpgrade>().is_none() {
            return Err(instead());
        }
        if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
            let mut response = answer::error(StatusCode::UPGRADE_REQUIRED, "the version of WebSocket is not 13");
            response.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            return Err(response);
        }
        let bad = |text: &str| answer::error(StatusCode::BAD_REQUEST, text);
        let key = headers.get(SEC_WEBSOCKET_KEY).ok_or_else(|| bad("there is no sec-websocket-key"))?;
        let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()))
            .map_err(|_| bad("the sec-websocket-key cannot be answered"))?;
        let is_offered = |protocol| has_word(headers, SEC_WEBSOCKET_PROTOCOL.as_str(), protocol);
        let (form, protocol) = if is_offered(FRAMES_PROTOCOL) {
            (StreamForm::SocketFrames, Some(FRAMES_PROTOCOL))
        } else if is_offered(JSON_PROTOCOL) {
            (StreamForm::SocketJson, Some(JSON_PROTOCOL))
        } else if headers.contains_key(SEC_WEBSOCKET_PROTOCOL) {
            return Err(bad("none of the subprotocols is spoken here: there are litemesh.v2 and litemesh.v1"));
        } else {
            (StreamForm::SocketJson, None)
        };
        Ok(Self { accept, form, protocol })
    }

    fn answer(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, self.accept);
        if let Some(protocol) = self.protocol {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
        }
        response
    }
}

/// Whether a header lists this word.
fn has_word(headers: &HeaderMap, name: &str, word: &str) -> bool {
    let lists = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).any(|listed| listed.trim().eq_ignore_ascii_case(word))
}

/// For a client whose connection comes to nothing: it hears why.
async fn say_and_close(upgrade: OnUpgrade, form: StreamForm, message: Bytes) {
    let farewell = async {
        let Ok(upgraded) = upgrade.await else { return };
        let io = TokioIo::new(upgraded);
        let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config(1024))).await;
        // An error means that nobody is there any more.
        let _ = socket.send(Message::Frame(Fragment::message(message, OpCode::Data(data(form)), true))).await;
        let _ = socket.close(Some(close(CloseCode::Policy, "refused"))).await;
    };
    let _ = tokio::time::timeout(FAREWELL_TIMEOUT, farewell).await;
}

fn data(form: StreamForm) -> Data {
    if form == StreamForm::SocketJson { Data::Text } else { Data::Binary }
}

fn close(code: CloseCode, reason: &str) -> CloseFrame {
    CloseFrame { code, reason: close_reason(reason).into() }
}

type Socketed = WebSocketStream<Metered<TokioIo<Upgraded>>>;

/// One socket and the connection that goes over it.
struct Carrier {
    shared: Arc<Shared>,
    running: Arc<Running>,
    connection: Arc<Connection>,
    /// A frame has gone out in part, perhaps.
    is_inside: AtomicBool,
    /// It counts as open as long as this is there.
    _socket: Option<Arc<Socket>>,
}

impl Carrier {
    async fn run(self, upgrade: OnUpgrade) {
        let connection = &self.connection;
        let upgraded = tokio::select! {
            biased;
            () = connection.end.cancelled() => Err("ended before it began".to_owned()),
            upgraded = upgrade => upgraded.map_err(|error| error.to_string()),
        };
        match upgraded {
            Ok(upgraded) => self.carry(upgraded).await,
            Err(reason) => debug!(remote = %connection.remote.site.fmt_short(), reason, "no WebSocket"),
        }
        // As when the body of a stream is dropped.
        connection.queue.shed();
        connection.lose("the client closed the socket");
    }

    async fn carry(&self, upgraded: Upgraded) {
        let held = Arc::new(MessageMemory { shared: self.shared.clone(), bytes: AtomicUsize::new(0) });
        let io = Metered { inner: TokioIo::new(upgraded), held: held.clone() };
        let config = config(self.running.peer.limits().message_bytes_max);
        let socket: Socketed = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
        let (mut sink, stream) = socket.split();
        let close = {
            let (writing, reading) = (self.write_all(&mut sink), self.read_all(stream, &held));
            tokio::pin!(writing, reading);
            tokio::select! {
                close = &mut reading => close,
                is_written = &mut writing => {
                    // What is being handled is finished first, so that nothing is reported after the end.
                    self.connection.end.cancel();
                    reading.await;
                    is_written.then(|| self.farewell())
                }
            }
        };
        if let Some(frame) = close {
            let farewell = async {
                // What still waits, an error as a rule, goes before. Inside of a message only a close may come.
                self.connection.queue.finish();
                if !self.is_inside.load(Relaxed) {
                    self.write_all(&mut sink).await;
                }
                let _ = sink.send(Message::Close(Some(frame))).await;
            };
            let _ = tokio::time::timeout(FAREWELL_TIMEOUT, farewell).await;
        }
    }

    /// What a client is told whose connection was ended here.
    fn farewell(&self) -> CloseFrame {
        let code = if self.connection.is_closed() { CloseCode::Normal } else { CloseCode::Away };
        close(code, self.connection.reason())
    }

    /// Writes what waits, to the end of the queue; `false` where it cannot be written.
    async fn write_all(&self, sink: &mut SplitSink<Socketed, Message>) -> bool {
        let data = data(self.connection.form);
        let mut opcode = OpCode::Data(data);
        // A frame goes out in pieces, so that a client that takes a large one slowly is seen to move.
        while let Some(Chunk { bytes, ends_frame }) = self.connection.queue.next_chunk().await {
            let length = bytes.len();
            self.is_inside.store(true, Relaxed);
            if sink.send(Message::Frame(Fragment::message(bytes, opcode, ends_frame))).await.is_err() {
                return false;
            }
            self.is_inside.store(!ends_frame, Relaxed);
            add(&self.shared.counters.bytes_out, length);
            opcode = OpCode::Data(if ends_frame { data } else { Data::Continue });
        }
        true
    }

    /// Takes messages, one after another, until the connection ends. Gives how it is closed, where the client is still there.
    async fn read_all(&self, mut stream: SplitStream<Socketed>, held: &MessageMemory) -> Option<CloseFrame> {
        let connection = &self.connection;
        loop {
            // A message that is dropped half read belongs to a connection that has ended.
            let next = tokio::select! {
                biased;
                () = connection.end.cancelled() => return Some(self.farewell()),
                next = stream.next() => next,
            };
            let read = match next {
                Some(Ok(message)) => message,
                Some(Err(error)) => return self.broken(&error),
                None => return None,
            };
            let flow = self.take(read).await;
            held.release();
            if let ControlFlow::Break(close) = flow {
                return close;
            }
        }
    }

    fn broken(&self, error: &Error) -> Option<CloseFrame> {
        let reason = error.to_string();
        debug!(remote = %self.connection.remote.site.fmt_short(), reason, "a WebSocket ended");
        let code = match error {
            Error::Capacity(CapacityError::MessageTooLong { .. }) => {
                add(&self.shared.counters.refused_too_large, 1);
                CloseCode::Size
            }
            Error::Io(error) if error.kind() == io::ErrorKind::OutOfMemory => {
                add(&self.shared.counters.refused_busy, 1);
                CloseCode::Again
            }
            Error::Protocol(_) | Error::Utf8(_) => {
                add(&self.shared.counters.refused_malformed, 1);
                CloseCode::Protocol
            }
            _ => return None,
        };
        self.connection.lose(reason.clone());
        Some(close(code, &reason))
    }

    async fn take(&self, message: Message) -> ControlFlow<Option<CloseFrame>> {
        let connection = &self.connection;
        let is_frames = connection.form == StreamForm::SocketFrames;
        let content = match message {
            Message::Binary(frame) if is_frames => match decode_frame(frame, self.running.peer.limits()).await {
                Ok(Frame::Sync(request)) => Ok(Content::Sync(request)),
                Ok(Frame::Message(message)) => Ok(Content::Data(message)),
                Ok(_) => return ControlFlow::Continue(()),
                Err(reason) => Err(reason),
            },
            Message::Text(text) if !is_frames => {
                let json = text.as_bytes();
                let read =
                    Envelope::parse(json).map_err(|error| error.to_string()).map(|envelope| match envelope.kind() {
                        "sync" => Some(envelope.sync_request().map(Content::Sync)),
                        "data" => Some(envelope.message().map(Content::Data)),
                        _ => None,
                    });
                match read {
                    Ok(Some(content)) => content.map_err(|error| error.to_string()),
                    Ok(None) => return ControlFlow::Continue(()),
                    Err(reason) => Err(reason),
                }
            }
            Message::Binary(_) | Message::Text(_) => {
                add(&self.shared.counters.refused_malformed, 1);
                let reason = "messages are text in litemesh.v1 and binary in litemesh.v2";
                connection.lose(reason);
                return ControlFlow::Break(Some(close(CloseCode::Unsupported, reason)));
            }
            Message::Close(_) => return ControlFlow::Break(None),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => return ControlFlow::Continue(()),
        };
        // Not before the peer above knows the connection.
        let _turn = connection.turn.lock().await;
        if connection.end.is_cancelled() {
            return ControlFlow::Break(Some(self.farewell()));
        }
        let refused = match content {
            Ok(content) => self.shared.deliver(&self.running, connection, content).await,
            Err(reason) => {
                add(&self.shared.counters.refused_malformed, 1);
                self.shared.report_garbled(&self.running, connection, reason.clone()).await;
                Err(Refusal::Invalid(reason))
            }
        };
        if let Err(refusal) = refused {
            // Where the queue is full it goes unsaid: what was refused is asked for again anyway.
            connection.queue.try_push(connection.form.error(self.running.site, &refusal.to_string()));
        }
        ControlFlow::Continue(())
    }
}

/// The part that the message that one socket is receiving has in the memory for bodies.
struct MessageMemory {
    shared: Arc<Shared>,
    bytes: AtomicUsize,
}

impl MessageMemory {
    /// Counts bytes that came; `false` where there is no room for them.
    fn add(&self, more: usize) -> bool {
        add(&self.shared.counters.bytes_in, more);
        let bytes = self.bytes.fetch_add(more, Relaxed) + more;
        has_room(&self.shared.counters, self.shared.options.bodies_bytes_max, bytes, more)
    }

    fn release(&self) {
        sub(&self.shared.counters.body_bytes_held, self.bytes.swap(0, Relaxed));
    }
}

impl Drop for MessageMemory {
    fn drop(&mut self) {
        self.release();
    }
}

/// A stream of bytes that counts what is read from it.
struct Metered<S> {
    inner: S,
    held: Arc<MessageMemory>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        if self.held.add(buffer.filled().len() - before) {
            return Poll::Ready(Ok(()));
        }
        let text = "the messages of all clients take up the memory that there is for them";
        Poll::Ready(Err(io::Error::new(io::ErrorKind::OutOfMemory, text)))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
