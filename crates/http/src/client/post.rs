//! Sends messages, one at a time: posts them, or puts them into the WebSocket.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use litemesh_proto::codec::v1::Envelope;
use litemesh_proto::codec::v2;
use litemesh_proto::{Remote, TransportError};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Response, StatusCode};
use tracing::{debug, warn};

use super::link::Link;
use super::{Shared, V1_BODY_BYTES_SAFE};
use crate::PEER_HEADER;
use crate::form::FRAMES_TYPE;

/// How long one POST may take, from its first byte to the last of its answer.
///
/// An answer comes after the commit; a large body over a slow line and a busy server's queue both fit. Without a bound a
/// request that was swallowed somewhere would hold up everything behind it for as long as the stream lives.
pub(super) const POST_TIMEOUT: Duration = Duration::from_secs(300);

/// Bytes of an answer that are looked at: ours have under a hundred, and a proxy may send a page of HTML of any length.
const ANSWER_BYTES_MAX: usize = 4 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Sync,
    Data,
}

impl Route {
    fn path(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Data => "data",
        }
    }
}

impl Shared {
    /// Sends the messages that `encode` makes for the connection and the server's limit: posts each after the server took the last
    /// one, or puts them into the socket.
    ///
    /// Any failure ends the connection, since what the server holds is not known any more. So does dropping the future
    /// while a message is on its way.
    pub(super) async fn deliver(
        &self,
        remote: Remote,
        route: Route,
        encode: impl FnOnce(&Link, usize) -> Result<Vec<Vec<u8>>, TransportError>,
    ) -> Result<(), TransportError> {
        let link = self.link_of(remote)?;
        let _turn = link.turn.lock().await;
        let messages = encode(&link, self.body_bytes_max(remote, link.message_bytes_max))?;
        for message in messages {
            let under_way = UnderWay { link: &link };
            // A dropped branch is a request whose outcome is not known, and the connection has ended then.
            let result = tokio::select! {
                biased;
                () = link.end.cancelled() => Err(link.lost()),
                result = self.deliver_one(&link, route, message) => result,
            };
            std::mem::forget(under_way);
            if let Err(error) = result {
                debug!(remote = %remote.site.fmt_short(), %error, "a message could not be sent");
                link.lose(error.to_string());
                return Err(error);
            }
        }
        Ok(())
    }

    async fn deliver_one(&self, link: &Arc<Link>, route: Route, message: Vec<u8>) -> Result<(), TransportError> {
        match &link.outbox {
            Some(outbox) => {
                link.sent_bytes_max.fetch_max(message.len(), Relaxed);
                outbox.send(message).await.map_err(|_| link.lost())
            }
            None => self.post_one(link, route, body(link.remote.is_litemesh, message)).await,
        }
    }

    /// A Litemesh server takes no message of this size: the next try, over the next connection, is cut smaller.
    pub(super) fn send_less(&self, bytes: usize) {
        let smaller = (bytes / 2).max(V1_BODY_BYTES_SAFE);
        warn!(bytes, smaller, "the server takes no message of this size");
        self.litemesh_body_bytes_max.fetch_min(smaller, Relaxed);
    }

    async fn post_one(&self, link: &Arc<Link>, route: Route, body: Vec<u8>) -> Result<(), TransportError> {
        let url = format!("{}/{}", self.base, route.path());
        let bytes = body.len();
        let request = self.authorize(link.http.post(url)).timeout(POST_TIMEOUT).body(Bytes::from(body));
        let request = if link.remote.is_litemesh {
            request.header(CONTENT_TYPE, FRAMES_TYPE).header(PEER_HEADER, link.site.to_string())
        } else {
            request.header(CONTENT_TYPE, "application/json")
        };
        let lost = |error: reqwest::Error| TransportError::Lost { reason: explain(&error) };
        // A server may have closed the socket that waited, in the very moment in which it is used. Frames of an answer have
        // numbers, and a repeat does nothing. A request begins a new answer, and JSON has no numbers.
        let is_numbered = link.remote.is_litemesh && route == Route::Data;
        let again = request.try_clone().filter(|_| is_numbered);
        let response = match (request.send().await, again) {
            (Err(error), Some(again)) if !error.is_timeout() && !error.is_connect() => again.send().await,
            (response, _) => response,
        };
        let response = response.map_err(lost)?;
        let status = response.status();
        let answer = read_answer(response).await;
        if status.is_success() {
            // An answer that breaks off leaves open whether it was one.
            return answer.map(drop).map_err(lost);
        }
        if status == StatusCode::PAYLOAD_TOO_LARGE && link.remote.is_litemesh {
            self.send_less(bytes);
        }
        if matches!(status, StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN) {
            link.refuse();
        }
        let answer = answer.unwrap_or_default();
        let reason = Envelope::parse(&answer).ok().and_then(|envelope| envelope.error().map(str::to_owned));
        let reason = reason.unwrap_or_else(|| String::from_utf8_lossy(&answer).into_owned());
        Err(TransportError::Refused { status: status.as_u16(), reason })
    }
}

/// The body of a POST: frames have their length before them.
pub(crate) fn body(is_litemesh: bool, message: Vec<u8>) -> Vec<u8> {
    if is_litemesh { v2::framed(&message) } else { message }
}

/// Ends the connection when dropped: a body was on its way and nobody waited for the answer.
struct UnderWay<'a> {
    link: &'a Link,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.link.lose("a message was abandoned on its way");
    }
}

/// The beginning of an answer. Read to its end where it is short, so that the connection can be used again.
pub(super) async fn read_answer(mut response: Response) -> Result<Vec<u8>, reqwest::Error> {
    let mut answer = Vec::new();
    while let Some(bytes) = response.chunk().await? {
        let left = ANSWER_BYTES_MAX - answer.len();
        answer.extend_from_slice(&bytes[..bytes.len().min(left)]);
        if answer.len() == ANSWER_BYTES_MAX {
            break;
        }
    }
    Ok(answer)
}

/// An error with its causes: `reqwest` alone says "error sending request".
pub(super) fn explain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
