//! `POST /sync` and `POST /data`: takes the messages of clients (`wire-protocol.md` 5.4).

use std::borrow::Cow;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{OriginalUri, Request, State};
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;
use bytes::{Buf, Bytes};
use litemesh_proto::codec::v1::Envelope;
use litemesh_proto::codec::v2::{Deframer, Frame};
use litemesh_proto::limits::V1_BODY_BYTES_MAX;
use litemesh_proto::{DecodeError, Limits, Refusal, SiteId};
use tokio::sync::OwnedMutexGuard;
use tracing::warn;

use super::body::{BodyReader, Held, ReadError};
use super::connection::Connection;
use super::content::{self, Content};
use super::door::{Denial, Grant};
use super::sender::{Sender, sender};
use super::{Running, Shared, answer};
use crate::PEER_HEADER;
use crate::counters::add;
use crate::form::FRAMES_TYPE;

/// Bytes of a body that are held before it is known which client sent it: a request with the longest cursors that are usual. One who sends
/// more waits for the one larger body of strangers that is read at a time.
const UNCLAIMED_BYTES_MAX: usize = 64 * 1024;

const CONNECT_FIRST: &str = "Connect to /stream first";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Sync,
    Data,
}

impl Route {
    fn kind(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Data => "data",
        }
    }

    fn content(self) -> &'static str {
        match self {
            Self::Sync => "cursor",
            Self::Data => "data",
        }
    }
}

pub(super) async fn sync_route(State(shared): State<Arc<Shared>>, uri: OriginalUri, request: Request) -> Response {
    route(Route::Sync, shared, uri, request).await
}

pub(super) async fn data_route(State(shared): State<Arc<Shared>>, uri: OriginalUri, request: Request) -> Response {
    route(Route::Data, shared, uri, request).await
}

async fn route(route: Route, shared: Arc<Shared>, uri: OriginalUri, request: Request) -> Response {
    if request.method() != Method::POST {
        return answer::not_found(uri, request.method().clone()).await;
    }
    let (parts, body) = request.into_parts();
    let grant = match shared.door.identify(&parts.headers) {
        Ok(grant) => grant,
        Err(denial) => {
            add(&shared.counters.refused_unauthorized, 1);
            BodyReader::new(&shared, &parts.headers, body, false, 0).discard().await;
            return denial.answer();
        }
    };
    Shared::note_known(&parts.extensions);
    let form = match check_head(&parts.headers) {
        Ok(form) => form,
        Err(complaint) => {
            add(&shared.counters.refused_malformed, 1);
            BodyReader::new(&shared, &parts.headers, body, false, 0).discard().await;
            return complaint.answer(route);
        }
    };
    let Some(running) = shared.running() else {
        return refuse_unstarted(route, &shared, &parts.headers, body, form).await;
    };
    // In a task, because a client that hangs up drops this future, and a message must be handled in whole or reported.
    let task = {
        let _connections = running.connections();
        if running.stop.is_cancelled() {
            return answer::error(StatusCode::INTERNAL_SERVER_ERROR, "Transport not started");
        }
        let post = Post { route, grant, shared, running: running.clone() };
        running.tasks.spawn(async move { post.take(&parts.headers, body, form).await })
    };
    match task.await {
        Ok(response) => response,
        Err(error) => {
            warn!(%error, "handling a message failed");
            answer::error(StatusCode::INTERNAL_SERVER_ERROR, "handling the message failed")
        }
    }
}

/// In what form a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyForm {
    Json { is_gzip: bool },
    Frames,
}

/// The form of a body, where its type and encoding are known.
pub(super) fn check_head(headers: &HeaderMap) -> Result<BodyForm, Complaint> {
    let text = |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let media_type = text(CONTENT_TYPE);
    let essence = media_type.as_deref().map(|text| text.split(';').next().unwrap_or_default().trim());
    match essence {
        Some(essence) if essence.eq_ignore_ascii_case("application/json") => {}
        Some(essence) if essence.eq_ignore_ascii_case(FRAMES_TYPE) => return Ok(BodyForm::Frames),
        // The original takes it as a string, which is no message.
        Some(essence) if essence.eq_ignore_ascii_case("text/plain") => return Err(Complaint::Type),
        _ => return Err(Complaint::MediaType(media_type.map(Cow::into_owned))),
    }
    match text(CONTENT_ENCODING).as_deref().map(str::trim) {
        None | Some("") => Ok(BodyForm::Json { is_gzip: false }),
        Some(coding) if coding.eq_ignore_ascii_case("identity") => Ok(BodyForm::Json { is_gzip: false }),
        Some(coding) if coding.eq_ignore_ascii_case("gzip") => Ok(BodyForm::Json { is_gzip: true }),
        Some(coding) => Err(Complaint::Encoding(coding.to_owned())),
    }
}

/// Before the start and after the stop: a message still has to be well-formed to be told so.
async fn refuse_unstarted(route: Route, shared: &Shared, headers: &HeaderMap, body: Body, form: BodyForm) -> Response {
    let BodyForm::Json { is_gzip } = form else {
        BodyReader::new(shared, headers, body, false, 0).discard().await;
        return answer::error(StatusCode::INTERNAL_SERVER_ERROR, "Transport not started");
    };
    let mut reader = BodyReader::new(shared, headers, body, is_gzip, V1_BODY_BYTES_MAX);
    let body = match reader.read_all().await {
        Ok(()) => reader.finish(),
        Err(error) => {
            reader.discard().await;
            Err(error)
        }
    };
    match body.map(|(body, _held)| read_message(route, &body)) {
        Err(error) => unreadable(shared, &error),
        Ok(Err(complaint)) => complaint.answer(route),
        Ok(Ok(_)) => answer::error(StatusCode::INTERNAL_SERVER_ERROR, "Transport not started"),
    }
}

/// One POST to a running transport.
struct Post {
    route: Route,
    grant: Grant,
    shared: Arc<Shared>,
    running: Arc<Running>,
}

/// The right to be handled now, before everything that the same client sends later.
struct Turn {
    connection: Arc<Connection>,
    _guard: OwnedMutexGuard<()>,
}

impl Turn {
    async fn wait(connection: Arc<Connection>) -> Self {
        let guard = connection.turn.clone().lock_owned().await;
        Self { connection, _guard: guard }
    }
}

impl Post {
    async fn take(&self, headers: &HeaderMap, body: Body, form: BodyForm) -> Response {
        let bytes_max = self.running.peer.limits().message_bytes_max;
        let is_gzip = matches!(form, BodyForm::Json { is_gzip: true });
        let mut reader = BodyReader::new(&self.shared, headers, body, is_gzip, bytes_max);
        let sender = match form {
            BodyForm::Json { .. } => self.read_sender(&mut reader).await,
            BodyForm::Frames => Ok(peer_of_head(headers)),
        };
        let turn = match sender {
            Ok(Sender::Known(site)) => match self.connection(site) {
                Ok(Some(connection)) => Turn::wait(connection).await,
                Ok(None) => return self.take_unclaimed(reader, true).await,
                Err(denial) => {
                    reader.discard().await;
                    return denial.answer();
                }
            },
            Ok(Sender::Unclear | Sender::NotYet) => return self.take_unclaimed(reader, false).await,
            Err(error) => {
                reader.discard().await;
                return unreadable(&self.shared, &error);
            }
        };
        // Nothing is lost with a dropped branch: either way the body is given up.
        let read = tokio::select! {
            biased;
            () = turn.connection.end.cancelled() => return self.refuse_unknown(),
            read = reader.read_all() => read,
        };
        match self.complete(reader, read).await {
            Ok((body, _held)) if form == BodyForm::Frames => self.handle_frames(&turn, body).await,
            Ok((body, _held)) => self.handle(Some(&turn), body).await,
            Err(error) => {
                self.report_garbled(&turn, explain(&error, bytes_max)).await;
                unreadable(&self.shared, &error)
            }
        }
    }

    /// The open connection of a site, where it is the poster's own.
    fn connection(&self, site: SiteId) -> Result<Option<Arc<Connection>>, Denial> {
        match self.running.connection(site) {
            Some(connection) if !connection.grant.is_of_same_holder(&self.grant) => {
                add(&self.shared.counters.refused_unauthorized, 1);
                Err(Denial::OtherHolder)
            }
            connection => Ok(connection),
        }
    }

    /// Reads until it is known who sends, or that only the whole body can tell.
    async fn read_sender(&self, reader: &mut BodyReader<'_>) -> Result<Sender, ReadError> {
        loop {
            match sender(reader.bytes()) {
                Sender::NotYet if reader.bytes().len() <= UNCLAIMED_BYTES_MAX => {}
                Sender::NotYet => return Ok(Sender::Unclear),
                known => return Ok(known),
            }
            // Nothing is lost with a dropped branch: either way the body is given up.
            let more = tokio::select! {
                biased;
                () = self.running.stop.cancelled() => return Err(ReadError::Cut("the transport is stopping".to_owned())),
                more = reader.read() => more,
            };
            match more {
                Ok(true) => {}
                Ok(false) => return Ok(Sender::Unclear),
                // A compressed body may show its sender and exceed the limit in one step.
                Err(error) => match sender(reader.bytes()) {
                    Sender::Known(site) => return Ok(Sender::Known(site)),
                    Sender::Unclear | Sender::NotYet => return Err(error),
                },
            }
        }
    }

    /// A body whose sender is no client, or is named only at its end, which no known client does.
    async fn take_unclaimed(&self, mut reader: BodyReader<'_>, is_stranger: bool) -> Response {
        // Nothing is lost with a dropped branch: either way the body is given up.
        let read = tokio::select! {
            biased;
            () = self.running.stop.cancelled() => return self.refuse_unknown(),
            read = self.read_unclaimed(&mut reader, is_stranger) => read,
        };
        match self.complete(reader, read).await {
            Ok((body, _held)) => self.handle(None, body).await,
            // Too large only for somebody who has no stream.
            Err(ReadError::TooLarge) if is_stranger => self.refuse_unknown(),
            Err(error) => unreadable(&self.shared, &error),
        }
    }

    async fn read_unclaimed(&self, reader: &mut BodyReader<'_>, is_stranger: bool) -> Result<(), ReadError> {
        while reader.bytes().len() <= UNCLAIMED_BYTES_MAX && !reader.announces_too_much() {
            if !reader.read().await? {
                return Ok(());
            }
        }
        if is_stranger {
            return Err(ReadError::TooLarge);
        }
        // One at a time, so that bodies of unclear origin take up the room of one.
        let _alone = self.shared.unclaimed.lock().await;
        reader.read_all().await
    }

    async fn complete<'a>(
        &self,
        reader: BodyReader<'a>,
        read: Result<(), ReadError>,
    ) -> Result<(Vec<u8>, Held<'a>), ReadError> {
        match read {
            Ok(()) => reader.finish(),
            Err(error) => {
                reader.discard().await;
                Err(error)
            }
        }
    }

    async fn handle(&self, turn: Option<&Turn>, body: Vec<u8>) -> Response {
        let route = self.route;
        let read = content::read_json(body, move |body| read_message(route, body)).await;
        let read = read.unwrap_or_else(|reason| Err(Complaint::Json(reason)));
        let message = match read {
            Ok(message) => message,
            Err(complaint) => {
                add(&self.shared.counters.refused_malformed, 1);
                if let (Some(turn), Complaint::Json(reason)) = (turn, &complaint) {
                    self.report_garbled(turn, format!("a message is not valid JSON: {reason}")).await;
                }
                return complaint.answer(route);
            }
        };
        let site: Option<SiteId> = message.peer_id.parse().ok();
        let waited;
        let turn = match turn {
            // A body that names two senders is of neither.
            Some(turn) if site == Some(turn.connection.remote.site) => turn,
            Some(_) => return self.refuse_unknown(),
            None => match site.map_or(Ok(None), |site| self.connection(site)) {
                Ok(Some(connection)) => {
                    waited = Turn::wait(connection).await;
                    &waited
                }
                Ok(None) => return self.refuse_unknown(),
                Err(denial) => return denial.answer(),
            },
        };
        match message.content {
            Ok(content) => self.deliver(turn, content).await,
            Err(error) => {
                add(&self.shared.counters.refused_malformed, 1);
                self.report_garbled(turn, error.to_string()).await;
                answer::error(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string())
            }
        }
    }

    /// Handles wire v2 frames one after another. They come to either route: a frame says what it is.
    async fn handle_frames(&self, turn: &Turn, body: Vec<u8>) -> Response {
        if !turn.connection.remote.is_litemesh {
            add(&self.shared.counters.refused_malformed, 1);
            let text = "this client did not announce that it speaks wire v2";
            return answer::error(StatusCode::UNSUPPORTED_MEDIA_TYPE, text);
        }
        let (mut body, mut response) = (Bytes::from(body), answer::success());
        loop {
            let content = match self.read_frame(&mut body).await {
                Ok(Some(frame)) => match Content::of(frame) {
                    Some(content) => content,
                    None => continue,
                },
                Ok(None) => return response,
                Err(reason) => {
                    add(&self.shared.counters.refused_malformed, 1);
                    self.report_garbled(turn, reason.clone()).await;
                    return answer::error(StatusCode::BAD_REQUEST, &reason);
                }
            };
            response = self.deliver(turn, content).await;
            if !response.status().is_success() {
                return response;
            }
        }
    }

    /// The next frame of a body, off its front.
    ///
    /// One is held at a time: all of a body of tiny or of compressed frames would take up to a hundred times its memory.
    async fn read_frame(&self, body: &mut Bytes) -> Result<Option<Frame>, String> {
        // A body may have millions, none of which waits for anything.
        tokio::task::coop::consume_budget().await;
        let limits = self.running.peer.limits();
        let Some(frame) = split_frame(body, limits)? else { return Ok(None) };
        content::decode_frame(frame, limits).await.map(Some)
    }

    async fn deliver(&self, turn: &Turn, content: Content) -> Response {
        if turn.connection.end.is_cancelled() {
            return self.refuse_unknown();
        }
        let Err(refusal) = self.shared.deliver(&self.running, &turn.connection, content).await else {
            return answer::success();
        };
        match refusal {
            Refusal::UnknownRemote => answer::error(StatusCode::BAD_REQUEST, CONNECT_FIRST),
            Refusal::Unavailable(text) => answer::retry_later(StatusCode::INTERNAL_SERVER_ERROR, &text),
            Refusal::Forbidden(text) => answer::error(StatusCode::FORBIDDEN, &text),
            other => answer::error(StatusCode::INTERNAL_SERVER_ERROR, &other.to_string()),
        }
    }

    /// Tells the peer above that changes may be missing. A sync request holds none.
    async fn report_garbled(&self, turn: &Turn, reason: String) {
        if self.route == Route::Data && !turn.connection.end.is_cancelled() {
            self.shared.report_garbled(&self.running, &turn.connection, reason).await;
        }
    }

    fn refuse_unknown(&self) -> Response {
        add(&self.shared.counters.refused_unknown, 1);
        answer::error(StatusCode::BAD_REQUEST, CONNECT_FIRST)
    }
}

/// Who sends frames, as the head says.
fn peer_of_head(headers: &HeaderMap) -> Sender {
    let site = headers.get(PEER_HEADER).and_then(|value| value.to_str().ok()?.parse::<SiteId>().ok());
    site.map_or(Sender::Unclear, Sender::Known)
}

/// Takes a frame off the front of a body; `None` at its end.
pub(crate) fn split_frame(body: &mut Bytes, limits: &Limits) -> Result<Option<Vec<u8>>, String> {
    let mut deframer = Deframer::new(limits);
    let mut rest = &**body;
    match deframer.feed(&mut rest).map_err(|error| error.to_string())? {
        Some(frame) => {
            body.advance(body.len() - rest.len());
            Ok(Some(frame))
        }
        None if deframer.is_between_frames() => Ok(None),
        None => Err("the last frame is cut off".to_owned()),
    }
}

fn explain(error: &ReadError, bytes_max: usize) -> String {
    match error {
        ReadError::TooLarge => format!("a message is larger than {bytes_max} bytes"),
        ReadError::Cut(reason) => format!("a message was cut off: {reason}"),
        ReadError::Slow => "a message stopped arriving".to_owned(),
        ReadError::Busy => "there was no memory for a message".to_owned(),
    }
}

fn unreadable(shared: &Shared, error: &ReadError) -> Response {
    match error {
        ReadError::TooLarge => {
            add(&shared.counters.refused_too_large, 1);
            let status = StatusCode::PAYLOAD_TOO_LARGE;
            answer::framework(status, "FST_ERR_CTP_BODY_TOO_LARGE", "Request body is too large")
        }
        ReadError::Cut(reason) => {
            add(&shared.counters.refused_malformed, 1);
            answer::error(StatusCode::BAD_REQUEST, &format!("cannot read the body: {reason}"))
        }
        ReadError::Slow => {
            add(&shared.counters.refused_malformed, 1);
            answer::error(StatusCode::REQUEST_TIMEOUT, "the body stopped arriving")
        }
        ReadError::Busy => {
            add(&shared.counters.refused_busy, 1);
            let text = "the messages of all clients take up the memory that there is for them; try again later";
            answer::retry_later(StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }
}

/// A message whose frame is right. Its content may still be wrong, but who sent it is known.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) peer_id: String,
    pub(crate) content: Result<Content, DecodeError>,
}

/// What is wrong with a body, in the order in which the original looks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Complaint {
    MediaType(Option<String>),
    Encoding(String),
    Empty,
    Json(String),
    Null,
    Type,
    Parts,
}

impl Complaint {
    pub(super) fn answer(&self, route: Route) -> Response {
        let bad = StatusCode::BAD_REQUEST;
        match self {
            Self::MediaType(media_type) => {
                let message = format!("Unsupported Media Type: {}", media_type.as_deref().unwrap_or("undefined"));
                let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
                answer::framework(status, "FST_ERR_CTP_INVALID_MEDIA_TYPE", &message)
            }
            Self::Encoding(coding) => {
                let text = format!("Unsupported Content-Encoding: {coding}");
                answer::error(StatusCode::UNSUPPORTED_MEDIA_TYPE, &text)
            }
            Self::Empty => {
                let message = "Body cannot be empty when content-type is set to 'application/json'";
                answer::framework(bad, "FST_ERR_CTP_EMPTY_JSON_BODY", message)
            }
            Self::Json(_) => {
                let message = "Body is not valid JSON but content-type is set to 'application/json'";
                answer::framework(bad, "FST_ERR_CTP_INVALID_JSON_BODY", message)
            }
            Self::Null => {
                let text = format!("the body must be a {} message, it is null", route.kind());
                answer::error(StatusCode::INTERNAL_SERVER_ERROR, &text)
            }
            Self::Type => answer::error(bad, &format!("Expected {} message", route.kind())),
            Self::Parts => {
                answer::error(bad, &format!("Missing peerId or {} in {} message", route.content(), route.kind()))
            }
        }
    }
}

pub(crate) fn read_message(route: Route, body: &[u8]) -> Result<Message, Complaint> {
    if body.is_empty() {
        return Err(Complaint::Empty);
    }
    if body.trim_ascii() == b"null" {
        return Err(Complaint::Null);
    }
    let envelope = Envelope::parse(body).map_err(|error| Complaint::Json(error.to_string()))?;
    if envelope.kind() != route.kind() {
        return Err(Complaint::Type);
    }
    let has_content = match route {
        Route::Sync => envelope.has_cursor(),
        Route::Data => envelope.has_data(),
    };
    let (Some(peer_id), true) = (envelope.peer_id(), has_content) else { return Err(Complaint::Parts) };
    let content = match route {
        Route::Sync => envelope.sync_request().map(Content::Sync),
        Route::Data => envelope.message().map(Content::Data),
    };
    Ok(Message { peer_id: peer_id.to_owned(), content })
}
