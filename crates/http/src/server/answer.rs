//! The answers of the server, byte for byte those of the original (`wire-protocol.md` 5.4 and 5.5).

use axum::body::Body;
use axum::extract::{OriginalUri, Request};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_REQUEST_METHOD, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ORIGIN, RETRY_AFTER, VARY,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use serde::Serialize;

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

/// Seconds after which a client may try again what we could not do just now.
const RETRY_SECONDS: HeaderValue = HeaderValue::from_static("1");

fn body(value: &impl Serialize) -> Vec<u8> {
    match serde_json::to_vec(value) {
        Ok(body) => body,
        Err(error) => unreachable!("structs of strings and numbers have a JSON form: {error}"),
    }
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let mut response = Response::new(Body::from(body(value)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

/// The message was taken.
pub(super) fn success() -> Response {
    #[derive(Serialize)]
    struct Success {
        success: bool,
    }
    json(StatusCode::OK, &Success { success: true })
}

#[derive(Serialize)]
struct Failure<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    error: &'a str,
}

/// An error of the transport or of the peer above it.
pub(super) fn error(status: StatusCode, text: &str) -> Response {
    json(status, &Failure { kind: "error", error: text })
}

/// The body of [`error`].
pub(super) fn error_body(text: &str) -> Vec<u8> {
    body(&Failure { kind: "error", error: text })
}

/// A ticket, and for how many seconds it is good.
pub(super) fn ticket(ticket: &str, seconds: u64) -> Response {
    #[derive(Serialize)]
    struct Ticket<'a> {
        ticket: &'a str,
        seconds: u64,
    }
    let mut response = json(StatusCode::OK, &Ticket { ticket, seconds });
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// An error that may be gone in a moment.
pub(super) fn retry_later(status: StatusCode, text: &str) -> Response {
    let mut response = error(status, text);
    response.headers_mut().insert(RETRY_AFTER, RETRY_SECONDS);
    response
}

/// An error of the original's web framework, which has a shape of its own.
pub(super) fn framework(status: StatusCode, code: &str, message: &str) -> Response {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Failure<'a> {
        status_code: u16,
        code: &'a str,
        error: &'a str,
        message: &'a str,
    }
    let error = status.canonical_reason().unwrap_or_default();
    json(status, &Failure { status_code: status.as_u16(), code, error, message })
}

/// No such route, or no such method on it.
pub(super) async fn not_found(OriginalUri(uri): OriginalUri, method: Method) -> Response {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Missing<'a> {
        message: String,
        error: &'a str,
        status_code: u16,
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let message = format!("Route {method}:{path} not found");
    json(StatusCode::NOT_FOUND, &Missing { message, error: "Not Found", status_code: 404 })
}

/// The CORS rules of the original: every origin is welcome.
///
/// Nothing comes with a request by itself that a page could abuse: there are no cookies, and a page of another origin has no
/// token. Who lets anybody in (`known-failures.md` C1) lets in any page, too; changing the rules here would only lock out
/// browsers. Who wants fewer origins puts a stricter layer around the routes.
pub(super) async fn cors(request: Request, next: Next, has_tokens: bool) -> Response {
    let origin = request.headers().get(ORIGIN).cloned();
    let mut response = match *request.method() {
        Method::OPTIONS => preflight(request.headers(), has_tokens),
        _ => next.run(request).await,
    };
    let headers = response.headers_mut();
    // A stream names its own origin, `*`, and nothing that varies.
    if !headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
        headers.insert(VARY, HeaderValue::from_static("Origin"));
        if let Some(origin) = origin {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        }
    }
    response
}

fn preflight(request: &HeaderMap, has_tokens: bool) -> Response {
    if !(request.contains_key(ORIGIN) && request.contains_key(ACCESS_CONTROL_REQUEST_METHOD)) {
        let mut response = Response::new(Body::from("Invalid Preflight Request"));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        return response;
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, OPTIONS"));
    let allowed = if has_tokens { "Content-Type, Cache-Control, Authorization" } else { "Content-Type, Cache-Control" };
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(allowed));
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    response
}
