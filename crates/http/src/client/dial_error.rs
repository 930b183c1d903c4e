//! [`DialError`]: why a dial came to nothing.

use std::error::Error;
use std::io;

use litemesh_proto::SiteId;
use reqwest::StatusCode;
use serde::Deserialize;

/// Characters of an answer's body that are repeated in an error: a sentence or two. The rest may be a page of HTML.
const SAID_MAX: usize = 200;

/// Why the last dial of an [`HttpClient`](crate::HttpClient) came to nothing. The client dials on, whatever it was.
///
/// The texts say what happened; what to do about it depends on who dials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages explain the fields
pub enum DialError {
    /// Told apart only with the HTTP client that the transport makes itself; another one's failure is `Unreachable`.
    #[error("the name {host} has no address: {reason}")]
    UnknownHost { host: String, reason: String },
    /// The machine is there, and says that nothing listens at the port.
    #[error("connection refused")]
    ConnectionRefused,
    #[error("no connection: {reason}")]
    Unreachable { reason: String },
    #[error("no TLS connection: {reason}")]
    Tls { reason: String },
    #[error("no answer in time")]
    TimedOut,
    /// An answer other than 200. The reason is what its body says, else the name of the status.
    #[error("the server answered {status}: {reason}")]
    Status { status: u16, reason: String },
    /// 200, and then something that is no stream of a sync server, or one that broke off at once.
    #[error("what answers is no sync server: {reason}")]
    NoStream { reason: String },
    /// Another connection with our site id stands: of another process on this database, of a copy of its file, or our own
    /// lost one, which the server has not given up yet.
    #[error("the server refused: ALREADY_CONNECTED")]
    AlreadyConnected,
    /// Another error frame in place of the introduction.
    #[error("the server refused: {code}")]
    ErrorFrame { code: String },
    /// The server has our own site id: one database is a copy of the other.
    #[error("the server's site id {site} is our own")]
    SameSite { site: SiteId },
    /// The peer above the transport does not want this server.
    #[error("this peer refused the server: {reason}")]
    RefusedByPeer { reason: String },
}

impl DialError {
    pub(super) fn no_stream(reason: &impl ToString) -> Self {
        Self::NoStream { reason: reason.to_string() }
    }

    /// Why a request got no answer.
    pub(super) fn of_request(error: &reqwest::Error) -> Self {
        if let Some(UnresolvedName { host, reason }) = find(error) {
            return Self::UnknownHost { host: host.clone(), reason: reason.clone() };
        }
        if let Some(error) = find::<rustls::Error>(error) {
            return Self::Tls { reason: error.to_string() };
        }
        if error.is_timeout() {
            return Self::TimedOut;
        }
        match find::<io::Error>(error) {
            Some(error) if error.kind() == io::ErrorKind::ConnectionRefused => Self::ConnectionRefused,
            Some(error) => Self::Unreachable { reason: error.to_string() },
            None => Self::Unreachable { reason: super::post::explain(error) },
        }
    }

    /// What an answer other than 200 means.
    pub(super) fn of_answer(status: StatusCode, body: &[u8]) -> Self {
        Self::Status { status: status.as_u16(), reason: said(status, body) }
    }
}

/// What a refusing answer says: an error of the transport, one of the original's web framework, or plain text.
fn said(status: StatusCode, body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Failure {
        message: Option<String>,
        error: Option<String>,
    }
    let text = match serde_json::from_slice::<Failure>(body) {
        Ok(Failure { message, error }) => message.or(error).unwrap_or_default(),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let text = text.trim();
    if text.is_empty() || text.starts_with('<') {
        // Nothing, or a page for a browser.
        return status.canonical_reason().unwrap_or("no reason given").to_owned();
    }
    text.lines().next().unwrap_or_default().chars().take(SAID_MAX).collect()
}

/// The first error of this type among an error and its causes.
///
/// What an `io::Error` was made of is not its source but beside it.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// Resolves names as the HTTP client would, with an error that can be told from others.
#[derive(Debug)]
pub(super) struct Resolver;

#[derive(Debug, thiserror::Error)]
#[error("{host}: {reason}")]
struct UnresolvedName {
    host: String,
    reason: String,
}

impl reqwest::dns::Resolve for Resolver {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let host = name.as_str().to_owned();
        Box::pin(async move {
            // The port comes from the URL.
            let found = tokio::net::lookup_host((host.as_str(), 0)).await;
            let found = found.map(Iterator::collect::<Vec<_>>);
            match found {
                Ok(addresses) => Ok(Box::new(addresses.into_iter()) as reqwest::dns::Addrs),
                Err(error) => Err(UnresolvedName { reason: error.to_string(), host }.into()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_without_an_address_is_told_from_an_address_without_a_server() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().dns_resolver(std::sync::Arc::new(Resolver)).build().unwrap();
        // Too long for a name, so that nobody is asked for it.
        let host = format!("{}.invalid", "x".repeat(64));
        let error = http.get(format!("http://{host}/stream")).send().await.unwrap_err();
        match DialError::of_request(&error) {
            DialError::UnknownHost { host: found, .. } => assert_eq!(found, host),
            other => panic!("{other:?}"),
        }
        // Names go on being resolved.
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = http.get(format!("http://localhost:{}/stream", free.port())).send().await.unwrap_err();
        assert_eq!(DialError::of_request(&error), DialError::ConnectionRefused);
    }

    #[test]
    fn what_an_answer_says_is_one_short_line() {
        let check = |status: u16, body: &str, expected: &str| {
            assert_eq!(said(StatusCode::from_u16(status).unwrap(), body.as_bytes()), expected, "{body}");
        };
        check(503, r#"{"type":"error","error":"Too many connections"}"#, "Too many connections");
        check(
            404,
            r#"{"message":"Route GET:/x not found","error":"Not Found","statusCode":404}"#,
            "Route GET:/x not found",
        );
        check(404, "", "Not Found");
        check(502, "<html>\n<title>502</title>", "Bad Gateway");
        check(403, "not you\nnor you", "not you");
        check(400, &"x".repeat(5000), &"x".repeat(SAID_MAX));
        check(599, "{}", "no reason given");
    }
}
