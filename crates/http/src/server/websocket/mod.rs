//! `/ws`: a client's messages, and ours, over one WebSocket (RFC 6455; docs/protocol.md, "WebSocket").
//!
//! A connection like that of an event stream: the same door, the same queue of frames with the same patience, the same turn in which
//! messages are handled, the same memory for those that arrive. Only the carrier is another.

mod carrier;
mod handshake;
mod inbound;

use std::sync::Arc;

use axum::extract::{OriginalUri, Request, State};
use axum::http::header::{CONNECTION, UPGRADE};
use axum::http::{HeaderValue, StatusCode, Version};
use axum::response::Response;
use tokio_util::task::task_tracker::TaskTrackerToken;

use self::carrier::{Carrier, turn_away};
use self::handshake::Handshake;
use super::sockets::Socket;
use super::stream::{Opened, Parameters, Wish, let_in, open, peer_id};
use super::{Phase, Shared, answer};
use crate::counters::add;

/// What a client is told that asked for a stream and would rather have a WebSocket.
pub(super) fn instead(version: Version) -> Response {
    let mut response = answer::error(StatusCode::UPGRADE_REQUIRED, "there is a WebSocket at /ws");
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    // HTTP/2 forbids it.
    if version <= Version::HTTP_11 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    response
}

pub(super) async fn route(State(shared): State<Arc<Shared>>, uri: OriginalUri, mut request: Request) -> Response {
    if !handshake::is_method(&request) {
        return answer::not_found(uri, request.method().clone()).await;
    }
    let query = Parameters::read(request.uri());
    let grant = match let_in(&shared, &request, &query) {
        Ok(grant) => grant,
        Err(denial) => return denial.answer(),
    };
    let malformed = |response: Response| {
        add(&shared.counters.refused_malformed, 1);
        response
    };
    let site = match peer_id(&query) {
        Ok(site) => site,
        Err(bad) => return malformed(bad.answer()),
    };
    let handshake = match Handshake::read(&request) {
        Ok(handshake) => handshake,
        Err(bad) => return malformed(bad.answer(request.version())),
    };
    let wish = Wish::read(site, grant, request.headers());
    let wish = Wish { form: handshake.form, is_gzip: false, resume: None, ..wish };
    let Phase::Running(running) = shared.phase.borrow().clone() else {
        return answer::retry_later(StatusCode::SERVICE_UNAVAILABLE, "Transport not started");
    };
    // Until the tasks below have begun, which would otherwise be behind the back of who stops.
    let Some(_hold) = running.hold() else {
        return answer::retry_later(StatusCode::SERVICE_UNAVAILABLE, "Transport stopped");
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let place = Place::of(&request);
    match open(&shared, &running, wish) {
        Opened::Connection { connection, .. } => {
            let carrier = Carrier::new(shared, running.clone(), connection);
            running.tasks.spawn(async move {
                carrier.run(upgrade).await;
                drop(place);
            });
        }
        Opened::AlreadyConnected(frame) => {
            running.tasks.spawn(async move {
                turn_away(upgrade, handshake.form, &frame).await;
                drop(place);
            });
        }
        Opened::Unavailable(text) => return answer::retry_later(StatusCode::SERVICE_UNAVAILABLE, text),
        Opened::Denied(denial) => return denial.answer(),
        // Only a transport that was not started makes anybody wait.
        Opened::Later(_) => return answer::retry_later(StatusCode::SERVICE_UNAVAILABLE, "Transport not started"),
    }
    handshake.answer()
}

/// What a WebSocket has of the server that accepted its TCP connection: it counts as an open socket, and is waited for at the end.
struct Place {
    _socket: Option<Arc<Socket>>,
    _served: Option<TaskTrackerToken>,
}

impl Place {
    fn of(request: &Request) -> Self {
        Self { _socket: request.extensions().get().cloned(), _served: request.extensions().get().cloned() }
    }
}
