//! `POST /ticket`: what a browser shows in place of its token when it opens a stream.
//!
//! `EventSource` sends no headers, and a URL ends up in logs and histories. So the URL has something that is good once and
//! for half a minute.

use std::sync::Arc;

use axum::extract::{OriginalUri, Request, State};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use tracing::warn;

use super::body::BodyReader;
use super::door::TICKET_LIFETIME;
use super::{Shared, answer};
use crate::counters::add;

pub(super) async fn route(State(shared): State<Arc<Shared>>, uri: OriginalUri, request: Request) -> Response {
    if request.method() != Method::POST {
        return answer::not_found(uri, request.method().clone()).await;
    }
    let (parts, body) = request.into_parts();
    let grant = shared.door.identify(&parts.headers);
    BodyReader::new(&shared, &parts.headers, body, false, 0).discard().await;
    let grant = match grant {
        Ok(grant) => grant,
        Err(denial) => {
            add(&shared.counters.refused_unauthorized, 1);
            return denial.answer();
        }
    };
    match shared.door.ticket(&grant) {
        Some(Ok(ticket)) => answer::ticket(&ticket, TICKET_LIFETIME.as_secs()),
        Some(Err(error)) => {
            warn!(%error, "no ticket can be made");
            answer::retry_later(StatusCode::SERVICE_UNAVAILABLE, "no ticket can be made now")
        }
        None => answer::error(StatusCode::BAD_REQUEST, "a stream without a token needs no ticket"),
    }
}
