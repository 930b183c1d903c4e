//! The handshake: an upgrade of HTTP/1.1 (RFC 6455, 4.2), or a stream of HTTP/2 (RFC 8441).

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::{HeaderValue, Method, StatusCode, Version};
use axum::response::Response;
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;

use super::super::answer;
use super::instead;
use crate::form::StreamForm;
use crate::websocket::{FRAMES_PROTOCOL, JSON_PROTOCOL, accept, has_word, is_key, words};

/// Whether a request has a method that a WebSocket begins with.
pub(super) fn is_method(request: &Request) -> bool {
    request.method() == Method::GET || is_stream(request)
}

/// Whether it asks for a stream of HTTP/2 to be a WebSocket.
fn is_stream(request: &Request) -> bool {
    let protocol = request.extensions().get::<Protocol>();
    request.method() == Method::CONNECT && protocol.is_some_and(|protocol| protocol.as_str() == "websocket")
}

/// What a client asks for in the head of its request.
pub(super) struct Handshake {
    /// The answer to the client's key; HTTP/2 has none.
    accept: Option<HeaderValue>,
    pub(super) form: StreamForm,
    protocol: Option<&'static str>,
}

/// What is wrong with a handshake.
pub(super) enum BadHandshake {
    NoUpgrade,
    Version,
    NoKey,
    Key,
    Protocol,
}

impl BadHandshake {
    pub(super) fn answer(&self, version: Version) -> Response {
        match self {
            Self::NoUpgrade => instead(version),
            Self::Version => {
                let mut response = answer::error(StatusCode::UPGRADE_REQUIRED, "the version of WebSocket is not 13");
                response.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
                response
            }
            Self::NoKey => answer::error(StatusCode::BAD_REQUEST, "there is no sec-websocket-key"),
            Self::Key => answer::error(StatusCode::BAD_REQUEST, "the sec-websocket-key is not 16 bytes in base64"),
            Self::Protocol => {
                let text = "none of the subprotocols is spoken here: there are litemesh.v2 and litemesh.v1";
                answer::error(StatusCode::BAD_REQUEST, text)
            }
        }
    }
}

impl Handshake {
    pub(super) fn read(request: &Request) -> Result<Self, BadHandshake> {
        let headers = request.headers();
        let is_upgrade = request.version() == Version::HTTP_11
            && has_word(headers, &CONNECTION, "upgrade")
            && has_word(headers, &UPGRADE, "websocket");
        if !(is_upgrade || is_stream(request)) || request.extensions().get::<OnUpgrade>().is_none() {
            return Err(BadHandshake::NoUpgrade);
        }
        if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
            return Err(BadHandshake::Version);
        }
        let accept = if is_upgrade {
            let key = headers.get(SEC_WEBSOCKET_KEY).ok_or(BadHandshake::NoKey)?;
            if !is_key(key.as_bytes()) {
                return Err(BadHandshake::Key);
            }
            Some(HeaderValue::try_from(accept(key.as_bytes())).map_err(|_| BadHandshake::Key)?)
        } else {
            None
        };
        // To the letter: the answer names what was offered, or a browser refuses it (RFC 6455, 4.1).
        let is_offered = |protocol| words(headers, &SEC_WEBSOCKET_PROTOCOL).any(|offered| offered == protocol);
        let (form, protocol) = if is_offered(FRAMES_PROTOCOL) {
            (StreamForm::SocketFrames, Some(FRAMES_PROTOCOL))
        } else if is_offered(JSON_PROTOCOL) {
            (StreamForm::SocketJson, Some(JSON_PROTOCOL))
        } else if headers.contains_key(SEC_WEBSOCKET_PROTOCOL) {
            return Err(BadHandshake::Protocol);
        } else {
            (StreamForm::SocketJson, None)
        };
        Ok(Self { accept, form, protocol })
    }

    pub(super) fn answer(self) -> Response {
        let mut response = Response::new(Body::empty());
        let status = if self.accept.is_some() { StatusCode::SWITCHING_PROTOCOLS } else { StatusCode::OK };
        *response.status_mut() = status;
        let headers = response.headers_mut();
        if let Some(accept) = self.accept {
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        }
        if let Some(protocol) = self.protocol {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
        }
        response
    }
}
