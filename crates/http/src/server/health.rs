//! `GET /health`: whether the hub serves, for a proxy or whoever watches it. It says nothing about the database, so no token is asked for.

use std::sync::Arc;

use axum::extract::{OriginalUri, Request, State};
use axum::http::{Method, StatusCode};
use axum::response::Response;

use super::{Phase, Shared, answer};

pub(super) async fn route(State(shared): State<Arc<Shared>>, uri: OriginalUri, request: Request) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return answer::not_found(uri, request.method().clone()).await;
    }
    let is_running = matches!(*shared.phase.borrow(), Phase::Running(_));
    if is_running {
        answer::success()
    } else {
        answer::retry_later(StatusCode::SERVICE_UNAVAILABLE, "Transport not started")
    }
}
