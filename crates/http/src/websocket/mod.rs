//! What both ends of a WebSocket share (RFC 6455; docs/protocol.md, "WebSocket").
//!
//! The handshake is HTTP, and goes through hyper and reqwest. From there on the bytes are ours: libraries reserve memory for what a
//! frame's head announces, keep the buffer of the largest one, and queue an answer to every ping; none of which a server with
//! thousands of strangers can afford.

mod assembler;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod hostile;
mod socket;

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{HeaderMap, HeaderName};
use sha1::{Digest, Sha1};

pub(crate) use self::assembler::{Assembler, Event, Fault, Kind};
pub(crate) use self::socket::{End, Read, SocketReader, SocketWriter, split, until_after};
#[cfg(feature = "simulation")]
pub(crate) use self::socket::{Framer, Intake};

/// The subprotocol of wire v2: a frame in each binary message.
pub(crate) const FRAMES_PROTOCOL: &str = "litemesh.v2";

/// The subprotocol of wire v1: JSON in each text message. Also where none is named.
pub(crate) const JSON_PROTOCOL: &str = "litemesh.v1";

/// Request header of a stream: the client would rather have a WebSocket, if there are any.
pub(crate) const OFFER_HEADER: &str = "litemesh-websocket";

/// Bytes of the reason in a close frame: a control frame has 125 at most.
const REASON_BYTES_MAX: usize = 123;

/// What is hashed with the client's key, so that no cache answers by accident (RFC 6455, 1.3).
const ACCEPT_SALT: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Why a socket is closed, as a number (RFC 6455, 7.4.1).
pub(crate) mod code {
    pub(crate) const NORMAL: u16 = 1000;
    pub(crate) const GOING_AWAY: u16 = 1001;
    pub(crate) const PROTOCOL: u16 = 1002;
    pub(crate) const UNSUPPORTED: u16 = 1003;
    pub(crate) const NO_TEXT: u16 = 1007;
    pub(crate) const POLICY: u16 = 1008;
    pub(crate) const TOO_LARGE: u16 = 1009;
    pub(crate) const TRY_AGAIN: u16 = 1013;
}

/// Bytes of a key, before they are encoded.
const KEY_BYTES: usize = 16;

/// What a client says in `Sec-WebSocket-Key`: another one each time, no secret.
pub(crate) fn random_key() -> String {
    let mut random = [0; KEY_BYTES];
    fastrand::fill(&mut random);
    STANDARD.encode(random)
}

/// Whether this can be a client's key.
pub(crate) fn is_key(key: &[u8]) -> bool {
    STANDARD.decode(key).is_ok_and(|key| key.len() == KEY_BYTES)
}

/// What `Sec-WebSocket-Accept` says where this is the key.
pub(crate) fn accept(key: &[u8]) -> String {
    STANDARD.encode(Sha1::new().chain_update(key).chain_update(ACCEPT_SALT).finalize())
}

/// The words that a header lists, however many times it stands there.
pub(crate) fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lists = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).map(str::trim)
}

/// Whether a header lists this word, in capitals or not.
pub(crate) fn has_word(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    words(headers, name).any(|listed| listed.eq_ignore_ascii_case(word))
}

/// How a socket is closed: what stands in the close frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Farewell {
    /// `None` where the other end gave none either.
    pub(crate) code: Option<u16>,
    pub(crate) reason: String,
}

impl Farewell {
    /// The reason is cut to what fits a control frame.
    pub(crate) fn new(code: u16, reason: &str) -> Self {
        let reason = &reason[..reason.floor_char_boundary(REASON_BYTES_MAX)];
        Self { code: Some(code), reason: reason.to_owned() }
    }

    /// Where the other end said no more.
    pub(crate) fn without_reason(code: Option<u16>) -> Self {
        Self { code, reason: String::new() }
    }

    /// The payload of the close frame.
    fn payload(&self) -> Vec<u8> {
        match self.code {
            Some(code) => [&code.to_be_bytes(), self.reason.as_bytes()].concat(),
            None => Vec::new(),
        }
    }
}

impl fmt::Display for Farewell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = if self.reason.is_empty() { "no reason given" } else { &self.reason };
        match self.code {
            Some(code) => write!(f, "{reason} ({code})"),
            None => f.write_str(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_a_key_is_that_of_the_standard() {
        // RFC 6455, 1.3.
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn keys_are_sixteen_bytes_in_base64() {
        assert!(is_key(random_key().as_bytes()) && is_key(b"dGhlIHNhbXBsZSBub25jZQ=="));
        for key in ["", "=", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZQ== ", "AAAA", "no key at all, but long"] {
            assert!(!is_key(key.as_bytes()), "{key:?}");
        }
    }

    #[test]
    fn a_reason_fits_a_control_frame() {
        assert_eq!(Farewell::new(1000, "short").reason, "short");
        let long = Farewell::new(1000, &"ü".repeat(100));
        assert_eq!((long.reason.len(), long.payload().len()), (122, 124));
    }
}
