//! `GET /stream`: opens the event stream of a client (`wire-protocol.md` 5.3).

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{OriginalUri, Query, Request, State};
use axum::http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, CONNECTION,
    CONTENT_ENCODING, CONTENT_TYPE,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use litemesh_proto::codec::v1::LITEMESH_VERSION;
use litemesh_proto::limits::CREDIT_MAX;
use litemesh_proto::{Remote, SiteId, SyncRequest, Terms};
use tracing::debug;

use super::connection::{self, Chunks, Connection};
use super::door::{Denial, Grant};
use super::{Phase, Running, Shared, answer, websocket};
use crate::counters::add;
use crate::form::{FRAMES_TYPE, StreamForm, position_of_id};
use crate::gzip::accepts_gzip;
use crate::websocket::OFFER_HEADER;
use crate::{INSTANCE_HEADER, VERSION_HEADER};

/// A stream whose client has left something lying for so long gives way to a newcomer with the same id.
const REPLACE_AFTER: Duration = Duration::from_secs(5);

/// Bytes of the instance header that count; ours has 32.
pub(super) const INSTANCE_BYTES_MAX: usize = 64;

/// The header by which an event stream goes on where it stopped.
/// <https://html.spec.whatwg.org/multipage/server-sent-events.html>
pub(super) const LAST_EVENT_ID: &str = "last-event-id";

/// What a client wants of its stream.
pub(super) struct Wish {
    pub(super) site: SiteId,
    pub(super) grant: Grant,
    pub(super) form: StreamForm,
    pub(super) instance: Option<String>,
    pub(super) is_gzip: bool,
    /// What the client asks for by `Last-Event-ID`.
    pub(super) resume: Option<SyncRequest>,
}

pub(super) async fn route(State(shared): State<Arc<Shared>>, uri: OriginalUri, request: Request) -> Response {
    match *request.method() {
        Method::GET | Method::HEAD => {}
        _ => return answer::not_found(uri, request.method().clone()).await,
    }
    let query = Parameters::read(request.uri());
    let grant = match let_in(&shared, &request, &query) {
        Ok(grant) => grant,
        Err(denial) => return denial.answer(),
    };
    if request.method() == Method::HEAD {
        // Only the head was asked for, so nothing is opened.
        return respond(&request, StreamForm::Json, false, Body::empty());
    }
    let site = match peer_id(&query) {
        Ok(site) => site,
        Err(bad) => {
            add(&shared.counters.refused_malformed, 1);
            return bad.answer();
        }
    };
    let wish = Wish::read(site, grant, request.headers());
    let form = wish.form;
    let phase = shared.phase.borrow().clone();
    // A socket does not wait for the start.
    let is_offered = form.is_litemesh() && request.headers().contains_key(OFFER_HEADER);
    if is_offered && matches!(phase, Phase::Running(_)) {
        return websocket::instead(request.version());
    }
    let opened = match phase {
        Phase::Waiting => wait_for_start(shared.clone(), wish),
        Phase::Running(running) => open(&shared, &running, wish),
        Phase::Stopped => Opened::Unavailable("Transport stopped"),
    };
    match opened {
        Opened::Connection { connection, is_gzip } => {
            let chunks = connection.chunks(shared, is_gzip);
            respond(&request, form, is_gzip, Body::from_stream(chunks))
        }
        Opened::Later(chunks) => respond(&request, form, false, Body::from_stream(chunks)),
        Opened::AlreadyConnected(frame) => respond(&request, form, false, Body::from_stream(only(frame))),
        Opened::Unavailable(text) => answer::retry_later(StatusCode::SERVICE_UNAVAILABLE, text),
        Opened::Denied(denial) => denial.answer(),
    }
}

/// Finds out who asks for a stream, or for a WebSocket in its place.
pub(super) fn let_in(shared: &Shared, request: &Request, query: &Parameters) -> Result<Grant, Denial> {
    let grant = shared.door.identify_stream(request.headers(), query.all("ticket").next());
    match &grant {
        Ok(_) => Shared::note_known(request.extensions()),
        Err(_) => add(&shared.counters.refused_unauthorized, 1),
    }
    grant
}

impl Wish {
    pub(super) fn read(site: SiteId, grant: Grant, headers: &HeaderMap) -> Self {
        let text = |header: &str| headers.get(header).and_then(|value| value.to_str().ok());
        let any = |header, check: fn(&str) -> bool| {
            headers.get_all(header).iter().any(|value| value.to_str().is_ok_and(check))
        };
        let version = text(VERSION_HEADER).and_then(|version| version.parse::<u32>().ok());
        let form = match version {
            Some(version) if version >= LITEMESH_VERSION && any(ACCEPT, accepts_frames) => StreamForm::Frames,
            Some(version) if version >= LITEMESH_VERSION => StreamForm::Events,
            _ => StreamForm::Json,
        };
        Self {
            site,
            grant,
            form,
            instance: text(INSTANCE_HEADER).filter(|text| text.len() <= INSTANCE_BYTES_MAX).map(str::to_owned),
            // Frames are compressed themselves.
            is_gzip: form != StreamForm::Frames && any(ACCEPT_ENCODING, accepts_gzip),
            resume: text(LAST_EVENT_ID).filter(|_| form == StreamForm::Events).and_then(resume),
        }
    }
}

fn accepts_frames(accept: &str) -> bool {
    accept.split(',').any(|range| range.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(FRAMES_TYPE))
}

/// The request that stands for an id: everything after the event that had it. Its answer has number 0; the client's own
/// requests, which know more, begin with 1.
fn resume(last_event_id: &str) -> Option<SyncRequest> {
    let position = position_of_id(last_event_id)?;
    let terms = Terms { answer: 0, credit: CREDIT_MAX, position, ..Terms::default() };
    Some(SyncRequest { terms: Some(terms), ..SyncRequest::default() })
}

/// What is wrong with the `peerId` of a stream.
pub(super) enum BadId {
    Missing,
    Repeated,
    Empty,
    NotASite { bytes: usize },
}

impl BadId {
    pub(super) fn answer(&self) -> Response {
        let invalid = |message| answer::framework(StatusCode::BAD_REQUEST, "FST_ERR_VALIDATION", message);
        match self {
            Self::Missing => invalid("querystring must have required property 'peerId'"),
            Self::Repeated => invalid("querystring/peerId must be string"),
            Self::Empty => answer::error(StatusCode::BAD_REQUEST, "Missing peerId query parameter"),
            Self::NotASite { bytes } => {
                let text = format!("peerId must be 32 hex digits, got {bytes} bytes of something else");
                answer::error(StatusCode::BAD_REQUEST, &text)
            }
        }
    }
}

/// The query string.
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    pub(super) fn read(uri: &Uri) -> Self {
        let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri);
        Self(pairs.map(|Query(pairs)| pairs).unwrap_or_default())
    }

    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| &**value)
    }
}

pub(super) fn peer_id(query: &Parameters) -> Result<SiteId, BadId> {
    let mut ids = query.all("peerId");
    match (ids.next(), ids.next()) {
        (None, _) => Err(BadId::Missing),
        (Some(_), Some(_)) => Err(BadId::Repeated),
        (Some(""), None) => Err(BadId::Empty),
        (Some(id), None) => id.parse().map_err(|_| BadId::NotASite { bytes: id.len() }),
    }
}

/// The head that every stream begins with.
fn respond(request: &Request, form: StreamForm, is_gzip: bool, body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    let media_type = if form == StreamForm::Frames { FRAMES_TYPE } else { "text/event-stream" };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    if form == StreamForm::Frames {
        // For proxies, which know event streams and may collect anything else.
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("Cache-Control"));
    // HTTP/2 forbids it.
    if request.version() <= Version::HTTP_11 {
        headers.insert(CONNECTION, HeaderValue::from_static("keep-alive"));
    }
    if is_gzip {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

pub(super) enum Opened {
    Connection {
        connection: Arc<Connection>,
        is_gzip: bool,
    },
    /// What there will be once the transport is started.
    Later(Chunks),
    /// The frame that says so.
    AlreadyConnected(Bytes),
    Unavailable(&'static str),
    Denied(Denial),
}

fn only(frame: Bytes) -> Chunks {
    Box::pin(stream::once(async { Ok(frame) }))
}

/// Answers with the head, and with the rest when the transport is started. Uncompressed: what comes first may be an error.
fn wait_for_start(shared: Arc<Shared>, wish: Wish) -> Opened {
    let Ok(permit) = shared.waiting.try_acquire() else {
        add(&shared.counters.refused_streams, 1);
        return Opened::Unavailable("Too many streams wait for the transport to start");
    };
    // Given back by the future below, which may outlive this borrow.
    permit.forget();
    struct Place(Arc<Shared>);
    impl Drop for Place {
        fn drop(&mut self) {
            self.0.waiting.add_permits(1);
        }
    }
    let place = Place(shared);
    let opening = async move {
        let mut phases = place.0.phase.subscribe();
        let phase = phases.wait_for(|phase| !matches!(phase, Phase::Waiting)).await.map(|phase| phase.clone());
        // The head is sent already, so there is no status left to refuse with.
        match phase {
            Ok(Phase::Running(running)) => match open(&place.0, &running, Wish { is_gzip: false, ..wish }) {
                Opened::Connection { connection, .. } => connection.chunks(place.0.clone(), false),
                Opened::Later(chunks) => chunks,
                Opened::AlreadyConnected(frame) => only(frame),
                Opened::Unavailable(_) | Opened::Denied(_) => Box::pin(stream::empty()),
            },
            _ => Box::pin(stream::empty()) as Chunks,
        }
    };
    Opened::Later(Box::pin(stream::once(opening).flatten()))
}

/// Registers a client, unless it has a stream already.
pub(super) fn open(shared: &Arc<Shared>, running: &Arc<Running>, wish: Wish) -> Opened {
    let Wish { site, grant, form, instance, is_gzip, resume } = wish;
    let mut connections = running.connections();
    if running.stop.is_cancelled() {
        return Opened::Unavailable("Transport stopped");
    }
    // Under the lock: whoever reads the tokens again looks at the connections afterwards.
    if !shared.door.still_grants(&grant) {
        add(&shared.counters.refused_unauthorized, 1);
        return Opened::Denied(Denial::BadToken);
    }
    let former = match connections.get(&site) {
        Some(old) if gives_way(old, &grant, instance.as_deref()) => {
            old.queue.shed();
            old.lose("replaced by a newer stream of the same client");
            Some(old.finished.clone())
        }
        Some(old) => {
            debug!(remote = %site.fmt_short(), "client is connected already");
            // Where its socket is dead, writing to it is what makes TCP notice, so that the next try succeeds.
            old.queue.try_push(old.form.ping(running.site));
            add(&shared.counters.refused_streams, 1);
            return Opened::AlreadyConnected(form.error(running.site, "ALREADY_CONNECTED"));
        }
        None if connections.len() >= running.peer.limits().connections_max => {
            add(&shared.counters.refused_streams, 1);
            return Opened::Unavailable("Too many connections");
        }
        None => None,
    };
    let remote = Remote { site, connection: Remote::next_connection(), is_litemesh: form.is_litemesh() };
    let introduction = form.connect(running.site, &grant.access);
    let connection = Connection::new(remote, form, grant, instance, shared.options.frame_queue_len, &running.stop);
    let connection = Arc::new(connection);
    connection.queue.try_push(introduction);
    add(&shared.counters.messages_out, 1);
    add(&shared.counters.streams_open, 1);
    add(&shared.counters.streams_total, 1);
    // Nobody else knows the connection yet, so its turn is free.
    if let Ok(turn) = connection.turn.clone().try_lock_owned() {
        let owner = connection::own(shared.clone(), running.clone(), connection.clone(), turn, former, resume);
        running.tasks.spawn(owner);
    }
    connections.insert(site, connection.clone());
    drop(connections);
    Opened::Connection { connection, is_gzip }
}

/// Whether an open stream of the same id gives way: its client is gone, or is the one that asks. To another holder it gives
/// way only when it has ended.
fn gives_way(old: &Connection, grant: &Grant, instance: Option<&str>) -> bool {
    let is_own = old.grant.is_of_same_holder(grant);
    old.end.is_cancelled() || is_own && (old.is_of_instance(instance) || old.queue.stalled_for() >= REPLACE_AFTER)
}
