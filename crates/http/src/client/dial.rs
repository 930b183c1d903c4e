//! The task of a client: dials, reads the stream frame by frame, dials again.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::{Buf, Bytes};
use litemesh_proto::codec::v1::{Envelope, LITEMESH_VERSION};
use litemesh_proto::codec::v2::{self, Deframer, Frame};
use litemesh_proto::{Access, DecodeError, Limits, PeerCallbacks, Refusal, Remote, SiteId, backoff_from};
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE};
use reqwest::{Response, StatusCode};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::dial_error::DialError;
use super::link::{Ending, Link, Standing};
use super::post::{explain, read_answer};
use super::websocket::{NoSocket, OPENING_TIMEOUT, Outbox, SocketReader};
use super::{Clients, Options, Shared, WebSocket};
use crate::form::{FRAME_EVENT, FRAMES_TYPE, frame_of_event};
use crate::gzip::{DECODE_STEP_BYTES, StreamDecoder};
use crate::sse::{Event, EventParser, EventTooLarge};
use crate::websocket::OFFER_HEADER;
use crate::{INSTANCE_HEADER, VERSION_HEADER};

/// Room in a frame for what stands around the message.
const FRAME_ENVELOPE_BYTES: usize = 64 * 1024;

/// What a stream may be, the best first.
const ACCEPT_FRAMES: &str = "application/vnd.litemesh.frames, text/event-stream";

/// Media type of server-sent events.
const EVENTS_TYPE: &str = "text/event-stream";

/// Dials until the transport is stopped.
pub(super) async fn run(shared: Arc<Shared>, clients: Clients, peer: Arc<dyn PeerCallbacks>) {
    let dialer = Dialer { shared: shared.clone(), clients, peer };
    loop {
        // Not interrupted from outside: it looks at the token wherever it waits for the network, and finishes callbacks.
        let reason = match dialer.connect().await {
            Ok(reason) => reason,
            Err(error) => {
                let reason = error.to_string();
                shared.state().last_error = Some(error);
                reason
            }
        };
        shared.set_link(None);
        if shared.stop.is_cancelled() {
            return;
        }
        let attempts = shared.attempts.load(Relaxed);
        let refusals = shared.refusals.load(Relaxed);
        let delay = shared.options.delay(attempts.max(refusals.saturating_sub(1)), fastrand::f64());
        debug!(endpoint = shared.endpoint, reason, attempts, ?delay, "not connected, dialling again later");
        // Nothing is lost with a dropped branch.
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(delay) => {}
        }
        shared.attempts.store(attempts.saturating_add(1), Relaxed);
    }
}

pub(super) struct Dialer {
    pub(super) shared: Arc<Shared>,
    pub(super) clients: Clients,
    pub(super) peer: Arc<dyn PeerCallbacks>,
}

/// Why there is no stream.
enum NoStream {
    /// The server says so itself, or cannot be reached: it would be no better with a stream of another form.
    Refused(DialError),
    /// The answer is not what a server gives that was asked for frames.
    Broken(DialError),
    /// Nothing of it came, or not enough.
    Failed(DialError),
}

impl NoStream {
    fn into_dial_error(self) -> DialError {
        match self {
            Self::Refused(error) | Self::Broken(error) | Self::Failed(error) => error,
        }
    }
}

/// A connection whose server has introduced itself.
struct Opened {
    source: Source,
    /// Where a WebSocket takes our messages.
    outbox: Option<Outbox>,
    remote: Remote,
    access: Access,
}

impl Options {
    /// Whether a WebSocket is taken where there is one.
    fn may_use_websocket(&self) -> bool {
        self.websocket != WebSocket::Never && self.is_announced && self.takes_frames
    }

    /// How long to wait before the next dial; `random` is from 0 to 1.
    pub(super) fn delay(&self, attempts: u32, random: f64) -> Duration {
        let jitter = if self.has_jitter { random } else { 0.5 };
        backoff_from(self.reconnect_delay_min, attempts, jitter)
    }
}

impl Dialer {
    /// One connection from the dial to its end; the reason why it ended.
    async fn connect(&self) -> Result<String, DialError> {
        // Nothing is lost with a dropped branch: nobody was told of the connection yet.
        let Opened { mut source, outbox, remote, access } = tokio::select! {
            () = self.shared.stop.cancelled() => return Ok("stopped".to_owned()),
            opened = self.open() => opened?,
        };
        let bytes_max = self.peer.limits().message_bytes_max;
        let sender = outbox.as_ref().map(|outbox| outbox.sender.clone());
        let http = self.clients.http.clone();
        let link = Arc::new(Link::new(remote, self.peer.site(), http, sender, bytes_max, &self.shared.stop));
        let _standing = Standing(link.clone());
        // What the peer sends from within `connect` is written meanwhile.
        let writer = outbox.map(|outbox| outbox.spawn(link.clone()));
        // Before the peer hears of the connection, since it sends its request from within the call.
        self.shared.set_link(Some(link.clone()));
        if let Err(refusal) = self.peer.connect(remote, access).await {
            link.close();
            source.part(writer).await;
            return Err(match remote.site {
                site if site == self.peer.site() => DialError::SameSite { site },
                _ => DialError::RefusedByPeer { reason: refusal.to_string() },
            });
        }
        info!(remote = %remote.site.fmt_short(), endpoint = self.shared.endpoint, "connected");
        self.shared.attempts.store(0, Relaxed);
        self.shared.state().last_error = None;
        self.read(&link, &mut source).await;
        let reason = self.report_end(&link).await;
        source.part(writer).await;
        let refusals = if link.was_refused() { self.shared.refusals.load(Relaxed).saturating_add(1) } else { 0 };
        self.shared.refusals.store(refusals, Relaxed);
        match &source {
            Source::Socket(reader) => self.judge_socket(&link, reader),
            Source::Stream(stream) => self.judge_stream(&link, stream),
        }
        Ok(reason)
    }

    /// Tells the peer that a connection is lost, where it has not ended it itself. Says how it ended.
    async fn report_end(&self, link: &Link) -> String {
        let (remote, reason) = match link.ending() {
            _ if self.shared.stop.is_cancelled() => return "stopped".to_owned(),
            Some(Ending::Reported(reason)) => (link.remote, reason.clone()),
            Some(Ending::Silent) => return "closed by this side".to_owned(),
            None => return "stopped".to_owned(),
        };
        info!(remote = %remote.site.fmt_short(), reason, "disconnected");
        self.shared.set_link(None);
        self.peer.disconnect(remote, reason.clone()).await;
        reason
    }

    /// What the end of a WebSocket says of the way and of the server.
    fn judge_socket(&self, link: &Link, reader: &SocketReader) {
        if reader.is_too_large() && link.remote.is_litemesh {
            self.shared.send_less(link.sent_bytes_max.load(Relaxed));
        }
        if self.shared.options.websocket == WebSocket::Only {
            // There is no other way.
            return;
        }
        let is_lost = link.is_lost() && !self.shared.stop.is_cancelled();
        if reader.is_two_way() {
            self.shared.way().works();
        } else if is_lost && self.shared.way().failed(Instant::now()) {
            self.note_broken("no answer comes over it");
        }
    }

    /// What the end of a stream of frames says of what lies between. Who was heard asked for something at once, or said more later.
    fn judge_stream(&self, link: &Link, stream: &MessageStream) {
        let is_lost = link.is_lost() && !self.shared.stop.is_cancelled();
        if !stream.is_frames {
            return;
        }
        if stream.has_said_more && !stream.is_garbled {
            self.shared.way_of_frames().works();
        } else if is_lost && self.shared.way_of_frames().failed(Instant::now()) {
            self.note_no_frames("what comes over it cannot be read, or nothing does");
        }
    }

    /// Opens a WebSocket or a stream, and reads its first message, in which the server introduces itself.
    async fn open(&self) -> Result<Opened, DialError> {
        let options = &self.shared.options;
        if options.websocket == WebSocket::Only {
            return self.open_socket().await.map_err(NoSocket::into_dial_error);
        }
        let now = Instant::now();
        let (is_open, is_known) = {
            let way = self.shared.way();
            (options.may_use_websocket() && way.is_open(now), options.may_use_websocket() && way.is_known(now))
        };
        if !is_known && let Some(opened) = self.open_any_stream(is_open).await? {
            return Ok(opened);
        }
        // The server has a WebSocket.
        let no_socket = match self.open_socket().await {
            Ok(opened) => return Ok(opened),
            Err(NoSocket::Refused(error)) => return Err(error),
            Err(no_socket) => no_socket,
        };
        debug!(endpoint = self.shared.endpoint, ?no_socket, "no WebSocket");
        let stream = self.open_any_stream(false).await?;
        let stream = stream.ok_or_else(|| DialError::no_stream(&"426 where no WebSocket was offered"))?;
        // So it is not the server, nor we.
        match no_socket {
            NoSocket::Broken(error) => {
                self.shared.way().broke(now);
                self.note_broken(&error.to_string());
            }
            NoSocket::Failed(error) | NoSocket::Refused(error) => {
                if self.shared.way().failed(now) {
                    self.note_broken(&error.to_string());
                }
            }
        }
        Ok(stream)
    }

    fn note_broken(&self, reason: &str) {
        info!(
            endpoint = self.shared.endpoint,
            reason, "no WebSocket to this server: using a stream and POSTs for a while"
        );
    }

    fn note_no_frames(&self, reason: &str) {
        let endpoint = &self.shared.endpoint;
        info!(endpoint, reason, "no stream of frames from this server: using server-sent events for a while");
    }

    /// Opens a stream: of frames, or of events where these do not get through. `None` where the server would rather have the WebSocket
    /// that we offer.
    async fn open_any_stream(&self, offers_websocket: bool) -> Result<Option<Opened>, DialError> {
        let options = &self.shared.options;
        let now = Instant::now();
        let takes_frames = options.is_announced && options.takes_frames && self.shared.way_of_frames().is_open(now);
        let no_frames = match self.open_stream(takes_frames, offers_websocket).await {
            Ok(opened) => return Ok(opened),
            Err(NoStream::Refused(error)) => return Err(error),
            Err(no_stream) if !takes_frames => return Err(no_stream.into_dial_error()),
            Err(no_frames) => no_frames,
        };
        let Ok(events) = self.open_stream(false, offers_websocket).await else {
            // So it is the server.
            return Err(no_frames.into_dial_error());
        };
        let is_shut = match &no_frames {
            NoStream::Broken(_) => {
                self.shared.way_of_frames().broke(now);
                true
            }
            NoStream::Failed(_) | NoStream::Refused(_) => self.shared.way_of_frames().failed(now),
        };
        if is_shut {
            self.note_no_frames(&no_frames.into_dial_error().to_string());
        }
        Ok(events)
    }

    async fn open_socket(&self) -> Result<Opened, NoSocket> {
        let failed = |reason: String| NoSocket::Failed(DialError::no_stream(&reason));
        let opening = async {
            let (mut reader, outbox) = self.dial_socket().await?;
            let first = reader.next().await.map_err(failed)?;
            Ok((reader, outbox, first))
        };
        let patience = self.shared.options.idle_timeout.min(OPENING_TIMEOUT);
        let opened = tokio::time::timeout(patience, opening).await;
        let (reader, outbox, first) = opened.map_err(|_| NoSocket::Failed(DialError::TimedOut))??;
        let (remote, access) = self.introduced(&first).map_err(NoSocket::Refused)?;
        self.shared.way().found();
        Ok(Opened { source: Source::Socket(Box::new(reader)), outbox: Some(outbox), remote, access })
    }

    /// Opens a stream of frames, or of events; `None` where the server would rather have the WebSocket that we offer.
    async fn open_stream(&self, takes_frames: bool, offers_websocket: bool) -> Result<Option<Opened>, NoStream> {
        let url = format!("{}/stream?peerId={}", self.shared.base, self.peer.site());
        let accept = if takes_frames { ACCEPT_FRAMES } else { EVENTS_TYPE };
        let mut request = self
            .announce(self.clients.http.get(url))
            .header(ACCEPT, accept)
            .header(CACHE_CONTROL, "no-cache")
            .header(ACCEPT_ENCODING, "gzip");
        if offers_websocket {
            request = request.header(OFFER_HEADER, "1");
        }
        let idle_timeout = self.shared.options.idle_timeout;
        // What collects a stream would otherwise cost each dial the patience that a silent one gets.
        let patience = if takes_frames { idle_timeout.min(OPENING_TIMEOUT) } else { idle_timeout };
        let opening = async {
            let response = request.send().await.map_err(|error| NoStream::Refused(DialError::of_request(&error)))?;
            match response.status() {
                StatusCode::OK => Ok(Some(response)),
                StatusCode::UPGRADE_REQUIRED if offers_websocket => Ok(None),
                status => {
                    // What was said before it broke off, or nothing: the status counts.
                    let error = DialError::of_answer(status, &read_answer(response).await.unwrap_or_default());
                    Err(if is_of_server(status) { NoStream::Refused(error) } else { NoStream::Broken(error) })
                }
            }
        };
        let timed_out = |_| NoStream::Failed(DialError::TimedOut);
        let response = tokio::time::timeout(patience, opening).await.map_err(timed_out)??;
        let Some(response) = response else { return Ok(None) };
        let no_stream = |reason: String| DialError::no_stream(&reason);
        let broken = |reason: String| NoStream::Broken(no_stream(reason));
        let is_frames = is_of_type(&response, FRAMES_TYPE);
        if takes_frames && !is_frames && !is_of_type(&response, EVENTS_TYPE) {
            return Err(broken("a stream of another type than it was asked for".to_owned()));
        }
        let introducing = async {
            let stream = MessageStream::new(response, self.peer.limits(), idle_timeout, is_frames);
            let mut stream = stream.map_err(broken)?;
            let patience = if is_frames { patience } else { idle_timeout };
            let first = tokio::time::timeout(patience, stream.next()).await.map_err(timed_out)?;
            let first = first.map_err(|reason| NoStream::Failed(no_stream(reason)))?.map_err(broken)?;
            let (remote, access) = self.introduced(&first).map_err(|error| match error {
                DialError::NoStream { .. } => NoStream::Broken(error),
                error => NoStream::Refused(error),
            })?;
            Ok(Some(Opened { source: Source::Stream(Box::new(stream)), outbox: None, remote, access }))
        };
        // Where these are events already, it would not be better with events.
        introducing
            .await
            .map_err(|error: NoStream| if is_frames { error } else { NoStream::Refused(error.into_dial_error()) })
    }

    /// Adds who we are: the token, and that we are a Litemesh peer.
    pub(super) fn announce(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        let request = self.shared.authorize(request);
        if !self.shared.options.is_announced {
            return request;
        }
        request.header(VERSION_HEADER, LITEMESH_VERSION).header(INSTANCE_HEADER, &self.shared.instance)
    }

    /// Who introduces itself, and what we may do there, seen from here: a server that takes nothing of us is sent nothing.
    fn introduced(&self, first: &Received) -> Result<(Remote, Access), DialError> {
        let (remote, access) = introduction(first, self.peer.limits())?;
        Ok((remote, access.mirrored()))
    }

    /// Handles messages, one after another, until the link ends.
    async fn read(&self, link: &Link, source: &mut Source) {
        while !link.end.is_cancelled() {
            // A message that is dropped half read belongs to a connection that has ended.
            let next = tokio::select! {
                biased;
                () = link.end.cancelled() => return,
                next = source.next() => next,
            };
            let handled = match next {
                Ok(Ok(Received::Json(data))) => self.handle_json(link, &data).await,
                Ok(Ok(Received::Frame(frame))) => match v2::decode(&frame, self.peer.limits()) {
                    Ok(frame) => self.handle_frame(link, frame).await,
                    Err(error) => {
                        source.note_garbled();
                        self.handle_unreadable(link.remote, &frame, &error).await
                    }
                },
                Ok(Err(reason)) => {
                    self.peer.garbled(link.remote, reason).await;
                    ControlFlow::Continue(())
                }
                Err(reason) => ControlFlow::Break(reason),
            };
            if let ControlFlow::Break(reason) = handled {
                link.lose(reason);
            }
        }
    }

    async fn handle_json(&self, link: &Link, data: &[u8]) -> ControlFlow<String> {
        let remote = link.remote;
        let envelope = match Envelope::parse(data) {
            Ok(envelope) => envelope,
            Err(error) => return self.garbled(remote, &error).await,
        };
        let result = match envelope.kind() {
            "data" => match envelope.message() {
                Ok(message) => self.peer.receive(remote, message).await,
                Err(error) => return self.garbled(remote, &error).await,
            },
            "sync" => match envelope.sync_request() {
                Ok(request) => self.peer.sync(remote, request).await,
                Err(error) => Err(Refusal::Invalid(error.to_string())),
            },
            "error" => return self.hear_error(link, envelope.error().unwrap_or_default()).await,
            _ => Ok(()),
        };
        handled(remote, result)
    }

    async fn handle_frame(&self, link: &Link, frame: Frame) -> ControlFlow<String> {
        let remote = link.remote;
        let result = match frame {
            Frame::Message(message) => self.peer.receive(remote, message).await,
            Frame::Sync(request) => self.peer.sync(remote, request).await,
            Frame::Error(code) => return self.hear_error(link, &code).await,
            _ => Ok(()),
        };
        handled(remote, result)
    }

    async fn handle_unreadable(&self, remote: Remote, frame: &[u8], error: &DecodeError) -> ControlFlow<String> {
        // Nothing is lost with a request.
        if v2::is_sync(frame) {
            return handled(remote, Err(Refusal::Invalid(error.to_string())));
        }
        self.garbled(remote, error).await
    }

    /// Over a socket an error is what the answer to a POST is otherwise: a message was refused. As there, it ends the connection.
    async fn hear_error(&self, link: &Link, code: &str) -> ControlFlow<String> {
        warn!(remote = %link.remote.site.fmt_short(), code, "the server reports an error");
        if link.outbox.is_none() {
            return ControlFlow::Continue(());
        }
        link.refuse();
        self.peer.refused(link.remote, code.to_owned()).await;
        ControlFlow::Break(format!("the server refused a message: {code}"))
    }

    async fn garbled(&self, remote: Remote, error: &DecodeError) -> ControlFlow<String> {
        warn!(remote = %remote.site.fmt_short(), %error, "a message could not be read");
        self.peer.garbled(remote, error.to_string()).await;
        ControlFlow::Continue(())
    }
}

fn is_of_type(response: &Response, media_type: &str) -> bool {
    let said = response.headers().get(CONTENT_TYPE).map(|value| value.as_bytes().to_ascii_lowercase());
    said.is_some_and(|said| said.starts_with(media_type.as_bytes()))
}

/// Whether a server of ours answers so. Whatever else may be of something between that knows no streams of frames.
fn is_of_server(status: StatusCode) -> bool {
    use StatusCode as S;
    matches!(
        status,
        S::BAD_REQUEST
            | S::UNAUTHORIZED
            | S::NOT_FOUND
            | S::UPGRADE_REQUIRED
            | S::TOO_MANY_REQUESTS
            | S::SERVICE_UNAVAILABLE
    )
}

fn handled(remote: Remote, result: Result<(), Refusal>) -> ControlFlow<String> {
    match result {
        Ok(()) => ControlFlow::Continue(()),
        // Sent again it would be refused again; the peer moves no cursor over it (`known-failures.md` B19).
        Err(Refusal::Invalid(reason)) => {
            warn!(remote = %remote.site.fmt_short(), reason, "a message of the server was refused");
            ControlFlow::Continue(())
        }
        // Going on with the next message would leave a hole (A4); over a new connection it is asked for again.
        Err(refusal) => ControlFlow::Break(format!("a message could not be taken: {refusal}")),
    }
}

/// Who introduces itself in the first message, and what it lets us do.
pub(crate) fn introduction(first: &Received, limits: &Limits) -> Result<(Remote, Access), DialError> {
    match first {
        Received::Json(data) => remote_of_envelope(data),
        Received::Frame(frame) => remote_of_frame(frame, limits),
    }
}

/// Who introduces itself in the first event.
pub(super) fn remote_of_envelope(data: &[u8]) -> Result<(Remote, Access), DialError> {
    let envelope = Envelope::parse(data).map_err(|error| DialError::no_stream(&error))?;
    let site = envelope.peer_id().and_then(|id| id.parse::<SiteId>().ok());
    match (envelope.kind(), site) {
        ("connect", Some(site)) => {
            let remote = Remote { site, connection: Remote::next_connection(), is_litemesh: envelope.is_litemesh() };
            Ok((remote, envelope.access().map_err(|error| DialError::no_stream(&error))?))
        }
        ("error", _) => Err(refused_with(envelope.error().unwrap_or("no reason given"))),
        (kind, _) => Err(DialError::no_stream(&format!("the stream began with {kind:?} instead of a connect message"))),
    }
}

/// Who introduces itself in the first frame.
fn remote_of_frame(frame: &[u8], limits: &Limits) -> Result<(Remote, Access), DialError> {
    match v2::decode(frame, limits).map_err(|error| DialError::no_stream(&error))? {
        Frame::Hello(hello) if hello.version >= LITEMESH_VERSION => {
            let remote = Remote { site: hello.site, connection: Remote::next_connection(), is_litemesh: true };
            Ok((remote, hello.access))
        }
        Frame::Error(code) => Err(refused_with(&code)),
        _ => Err(DialError::no_stream(&"the stream did not begin with a hello")),
    }
}

fn refused_with(code: &str) -> DialError {
    match code {
        "ALREADY_CONNECTED" => DialError::AlreadyConnected,
        code => DialError::ErrorFrame { code: code.to_owned() },
    }
}

/// A message as it came, whatever its form.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// Wire v1.
    Json(Vec<u8>),
    /// Wire v2.
    Frame(Vec<u8>),
}

/// Where messages come from.
enum Source {
    Stream(Box<MessageStream>),
    Socket(Box<SocketReader>),
}

impl Source {
    async fn next(&mut self) -> Result<Result<Received, String>, String> {
        match self {
            Self::Stream(stream) => {
                let next = stream.next().await?;
                stream.has_said_more = true;
                Ok(next)
            }
            Self::Socket(reader) => reader.next().await.map(Ok),
        }
    }

    /// A message of it cannot be read.
    fn note_garbled(&mut self) {
        if let Self::Stream(stream) = self {
            stream.is_garbled = true;
        }
    }

    /// Waits, for a bounded time, until the server has heard that the connection ended.
    async fn part(&mut self, writer: Option<JoinHandle<()>>) {
        if let Self::Socket(reader) = self {
            reader.drain().await;
        }
        if let Some(writer) = writer
            && let Err(error) = writer.await
        {
            warn!(%error, "the task that writes to a WebSocket failed");
        }
    }
}

/// The messages of a response.
struct MessageStream {
    response: Response,
    intake: StreamIntake,
    idle_timeout: Duration,
    is_frames: bool,
    /// Something came after the introduction.
    has_said_more: bool,
    /// Something came that cannot be read.
    is_garbled: bool,
}

/// The messages of a stream, out of bytes that somebody else reads.
pub(crate) struct StreamIntake {
    decoder: Option<StreamDecoder>,
    parser: Parser,
    /// Bytes that came and were not decoded yet.
    pending: Bytes,
    /// Decoded bytes that were not parsed yet.
    decoded: Bytes,
}

impl StreamIntake {
    pub(crate) fn new(is_frames: bool, is_gzip: bool, limits: &Limits) -> Self {
        let decoder = is_gzip.then(StreamDecoder::new);
        Self { decoder, parser: Parser::new(is_frames, limits), pending: Bytes::new(), decoded: Bytes::new() }
    }

    /// Takes the next chunk, once [`next`](Self::next) has given all of the last one.
    pub(crate) fn feed(&mut self, chunk: Bytes) {
        debug_assert!(self.pending.is_empty(), "a chunk is taken in before the next one comes");
        self.pending = chunk;
    }

    /// The next message, or why it cannot be read; `None` where it takes another chunk. An outer error where nothing more can be
    /// read.
    pub(crate) fn next(&mut self) -> Result<Option<Result<Received, String>>, String> {
        loop {
            if let Some(message) = self.parser.next(&mut self.decoded)? {
                return Ok(Some(message));
            }
            if self.pending.is_empty() {
                return Ok(None);
            }
            // Decoded in small steps, because a piece may expand a thousandfold.
            let step = self.pending.len().min(DECODE_STEP_BYTES);
            self.decoded = match &mut self.decoder {
                Some(decoder) => decoder.write(&self.pending.split_to(step)).map_err(|error| error.to_string())?.into(),
                None => std::mem::take(&mut self.pending),
            };
        }
    }
}

/// Cuts a stream into messages.
pub(super) enum Parser {
    Events { parser: EventParser, waiting: VecDeque<Result<Event, EventTooLarge>> },
    Frames(Deframer),
}

impl Parser {
    pub(super) fn new(is_frames: bool, limits: &Limits) -> Self {
        if is_frames {
            return Self::Frames(Deframer::new(limits));
        }
        // Base64 is a third longer than what it stands for.
        let event_bytes_max = (limits.message_bytes_max / 3).saturating_mul(4).saturating_add(FRAME_ENVELOPE_BYTES);
        Self::Events { parser: EventParser::new(event_bytes_max), waiting: VecDeque::new() }
    }

    /// The next message in `bytes`, from the front of which it takes what it reads, or why the message cannot be read; an outer
    /// error where nothing more can be.
    pub(super) fn next(&mut self, bytes: &mut Bytes) -> Result<Option<Result<Received, String>>, String> {
        match self {
            Self::Events { parser, waiting } => {
                waiting.extend(parser.feed(&std::mem::take(bytes)));
                while let Some(event) = waiting.pop_front() {
                    return Ok(Some(match event {
                        Ok(Event { name, data }) if name.is_empty() || name == b"message" => Ok(Received::Json(data)),
                        Ok(Event { name, data }) if name == FRAME_EVENT => frame_of_event(&data).map(Received::Frame),
                        Ok(_) => continue,
                        Err(too_large) => Err(too_large.to_string()),
                    }));
                }
                Ok(None)
            }
            Self::Frames(deframer) => {
                let mut rest = &**bytes;
                let frame = deframer.feed(&mut rest).map_err(|error| error.to_string())?;
                let taken = bytes.len() - rest.len();
                bytes.advance(taken);
                Ok(frame.map(|frame| Ok(Received::Frame(frame))))
            }
        }
    }
}

#[cfg(feature = "simulation")]
impl StreamIntake {
    /// Bytes held of an event that is not complete. Of a frame it is what has come, at most what the limits say.
    pub(crate) fn held_bytes(&self) -> usize {
        match &self.parser {
            Parser::Events { parser, .. } => parser.held_bytes(),
            Parser::Frames(_) => 0,
        }
    }
}

impl MessageStream {
    fn new(response: Response, limits: &Limits, idle_timeout: Duration, is_frames: bool) -> Result<Self, String> {
        let encoding = response.headers().get(CONTENT_ENCODING).map(|value| value.as_bytes().to_ascii_lowercase());
        let is_gzip = match encoding.as_deref() {
            None | Some(b"" | b"identity") => false,
            Some(b"gzip") => true,
            Some(other) => return Err(format!("unknown encoding {}", String::from_utf8_lossy(other))),
        };
        let intake = StreamIntake::new(is_frames, is_gzip, limits);
        Ok(Self { response, intake, idle_timeout, is_frames, has_said_more: false, is_garbled: false })
    }

    /// The next message, or why it cannot be read; an outer error where the stream has ended.
    async fn next(&mut self) -> Result<Result<Received, String>, String> {
        loop {
            match self.intake.next() {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => {}
                Err(reason) => {
                    self.is_garbled = true;
                    return Err(reason);
                }
            }
            let chunk = tokio::time::timeout(self.idle_timeout, self.response.chunk()).await;
            let chunk = chunk.map_err(|_| format!("no sign of life for {} s", self.idle_timeout.as_secs()))?;
            match chunk.map_err(|error| explain(&error))? {
                Some(bytes) => self.intake.feed(bytes),
                None => return Err("the server closed the stream".to_owned()),
            }
        }
    }
}
