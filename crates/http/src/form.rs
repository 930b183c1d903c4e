//! In what form the messages of a stream are written (docs/protocol.md, "HTTP").

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use litemesh_proto::codec::{v1, v2};
use litemesh_proto::{Access, Incarnation, PeerMessage, Position, SiteId, SyncRequest};

/// Media type of a stream or a body of wire v2 frames, each with its length before it.
pub(crate) const FRAMES_TYPE: &str = "application/vnd.litemesh.frames";

/// Name of the server-sent events that carry a wire v2 frame.
pub(crate) const FRAME_EVENT: &[u8] = b"frame";

/// Bytes of a message that go out at a time.
///
/// Small against a message, so that a reader that takes a large one slowly is seen to move, and pings and the end of a WebSocket, whose
/// frames have as many, are not held up by it.
pub(crate) const CHUNK_BYTES: usize = 64 * 1024;

/// In what form a server writes to one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamForm {
    /// Server-sent events of wire v1 JSON: for a client of the original.
    Json,
    /// Server-sent events with a wire v2 frame in base64 each: for a Litemesh client, where something between us passes on
    /// nothing else.
    Events,
    /// Wire v2 frames.
    Frames,
    /// A WebSocket with a message of wire v1 JSON in each text message.
    SocketJson,
    /// A WebSocket with a wire v2 frame in each binary message.
    SocketFrames,
}

impl StreamForm {
    /// Whether the client speaks wire v2.
    pub(crate) fn is_litemesh(self) -> bool {
        matches!(self, Self::Events | Self::Frames | Self::SocketFrames)
    }

    /// Whether it goes over a WebSocket.
    pub(crate) fn is_socket(self) -> bool {
        matches!(self, Self::SocketJson | Self::SocketFrames)
    }

    /// What a stream begins with: who we are, and what a Litemesh client may do here.
    pub(crate) fn connect(self, site: SiteId, access: &Access) -> Bytes {
        match self {
            Self::Json | Self::SocketJson => self.json(v1::connect(site, false)),
            Self::Events => self.json(v1::connect_with(site, access)),
            Self::Frames | Self::SocketFrames => {
                let hello = v2::Hello { version: v1::LITEMESH_VERSION, site, access: access.clone() };
                self.frame(v2::hello(&hello), None)
            }
        }
    }

    pub(crate) fn ping(self, site: SiteId) -> Bytes {
        match self {
            Self::Json | Self::Events | Self::SocketJson => self.json(v1::ping(site)),
            Self::Frames | Self::SocketFrames => self.frame(v2::ping(), None),
        }
    }

    pub(crate) fn error(self, site: SiteId, code: &str) -> Bytes {
        match self {
            Self::Json | Self::Events | Self::SocketJson => self.json(v1::error(site, code)),
            Self::Frames | Self::SocketFrames => self.frame(v2::error(code), None),
        }
    }

    pub(crate) fn sync(self, site: SiteId, request: &SyncRequest) -> Bytes {
        if self.is_litemesh() { self.frame(v2::sync(request), None) } else { self.json(v1::sync(site, request)) }
    }

    pub(crate) fn message(self, site: SiteId, message: &PeerMessage) -> Bytes {
        if !self.is_litemesh() {
            return self.json(v1::data(site, message));
        }
        self.frame(v2::message(message), message.progress().and_then(|progress| progress.position))
    }

    /// A message of wire v1, on its own or as an event: `data: <json>` and an empty line.
    fn json(self, json: Vec<u8>) -> Bytes {
        match self {
            Self::SocketJson => json.into(),
            _ => [b"data: ", &*json, b"\n\n"].concat().into(),
        }
    }

    /// A frame of wire v2: on its own, with its length before it, or as an event whose id is the position to which it brings its
    /// receiver.
    fn frame(self, frame: Vec<u8>, position: Option<Position>) -> Bytes {
        match self {
            Self::SocketFrames => frame.into(),
            Self::Events => {
                let id = position.map(|position| format!("id: {}\n", event_id(position))).unwrap_or_default();
                format!("event: frame\n{id}data: {}\n\n", STANDARD.encode(frame)).into()
            }
            _ => v2::framed(&frame).into(),
        }
    }
}

/// The frame in the data of an event.
pub(crate) fn frame_of_event(data: &[u8]) -> Result<Vec<u8>, String> {
    STANDARD.decode(data).map_err(|error| format!("a frame is not valid base64: {error}"))
}

pub(crate) fn event_id(position: Position) -> String {
    format!("{}-{:x}", position.version.get(), position.incarnation.0)
}

/// Reads the id of an event, as a client gives it back in `Last-Event-ID`.
pub(crate) fn position_of_id(id: &str) -> Option<Position> {
    let (version, incarnation) = id.split_once('-')?;
    let version = version.parse::<i64>().ok().filter(|version| *version >= 0)?;
    let incarnation = Incarnation(u64::from_str_radix(incarnation, 16).ok()?);
    Some(Position { version: litemesh_proto::DbVersion::new(version), incarnation })
}

#[cfg(test)]
mod tests {
    use litemesh_proto::{DbVersion, Progress};

    use super::*;

    #[test]
    fn the_id_of_an_event_is_the_position_that_it_leads_to() {
        let position = Position { version: DbVersion::new(77), incarnation: Incarnation(u64::MAX) };
        let progress = Progress { position: Some(position), ..Progress::default() };
        let eose = PeerMessage::Eose { progress: Some(progress) };
        let bytes = StreamForm::Events.message(SiteId::default(), &eose);
        let text = std::str::from_utf8(&bytes).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..2], ["event: frame", "id: 77-ffffffffffffffff"]);
        assert_eq!(position_of_id(lines[1].strip_prefix("id: ").unwrap()), Some(position));
        let data = lines[2].strip_prefix("data: ").unwrap();
        assert_eq!(frame_of_event(data.as_bytes()).unwrap(), v2::message(&eose));
        assert!(lines[3].is_empty() && text.ends_with("\n\n"));
    }

    #[test]
    fn other_ids_are_no_positions() {
        for id in ["", "-", "7", "7-", "-7-1", "x-1", "1-x", "1-11111111111111111", "9223372036854775808-1"] {
            assert_eq!(position_of_id(id), None, "{id}");
        }
    }
}
