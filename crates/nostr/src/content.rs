//! What CONNECT and CURSOR events say once they are decrypted, and the JSON of it.
//!
//! Keys that are not known here are ignored. The key `litemesh` is ours, and the original ignores it: by it two Litemesh peers
//! find out that they can speak wire v2 (docs/protocol.md, "Who speaks what").

use std::fmt;

use litemesh_proto::codec::v1;
use litemesh_proto::{Cursor, SiteId};
use nostr::EventId;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use subtle::ConstantTimeEq;

use crate::{ReadError, StreamId};

/// Longest `device_info` that is read, in bytes: it is stored and shown.
pub const DEVICE_INFO_BYTES_MAX: usize = 1024;

/// What a connector says: CONNECT with the nonce of the connection string.
///
/// Its `Debug` hides the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct ConnectRequest {
    /// The secret of the connection string, which shows that the connector has it.
    pub secret: String,
    /// The connector's site id.
    pub peer_id: SiteId,
    /// For people: what kind of device this is.
    pub device_info: String,
    /// Set by Litemesh peers.
    pub litemesh: Option<Announcement>,
}

/// What a listener answers: CONNECT without tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectReply {
    /// The listener's site id.
    pub peer_id: SiteId,
    /// For people: what kind of device this is.
    pub device_info: String,
    /// Set by Litemesh peers.
    pub litemesh: Option<Announcement>,
}

/// What a receiver says: send me, as this stream, what lies beyond this cursor.
#[derive(Clone, Debug, PartialEq)]
pub struct CursorContent {
    /// The receiver's site id.
    pub peer_id: SiteId,
    /// The stream that it wants to be answered with.
    pub stream_id: StreamId,
    /// What it holds.
    pub cursor: Cursor,
    /// Set by Litemesh peers.
    pub litemesh: Option<CursorTerms>,
}

/// By which a Litemesh peer makes itself known when it is paired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// The newest wire version that it speaks.
    pub version: u32,
}

impl Announcement {
    /// What this version of Litemesh says of itself.
    pub const OURS: Self = Self { version: v1::LITEMESH_VERSION };

    /// Whether who says this speaks our wire version.
    pub fn speaks_ours(self) -> bool {
        self.version >= v1::LITEMESH_VERSION
    }
}

/// How a Litemesh peer wants to be answered, beside its cursor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CursorTerms {
    /// The newest wire version that it speaks.
    pub version: u32,
    /// A request in the bytes of wire v2. In JSON it is base64, with the standard alphabet and padded.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "base64_text")]
    pub sync: Option<Vec<u8>>,
    /// The last event of the stream whose message it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack: Option<EventId>,
}

impl CursorTerms {
    /// Whether who says this speaks our wire version. It asks in it where it knows that we do, too.
    pub fn speaks_ours(&self) -> bool {
        self.version >= v1::LITEMESH_VERSION
    }
}

impl ConnectRequest {
    /// Whether it has the secret of the connection string. Compares in constant time.
    pub fn has_secret(&self, secret: &str) -> bool {
        self.secret.as_bytes().ct_eq(secret.as_bytes()).into()
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        to_json(&RequestJson {
            secret: self.secret.clone(),
            peer_id: SiteText(self.peer_id),
            device_info: self.device_info.clone(),
            litemesh: self.litemesh,
        })
    }

    pub(crate) fn from_json(text: &str) -> Result<Self, ReadError> {
        let json: RequestJson = from_json("CONNECT request", text)?;
        check_device_info("CONNECT request", &json.device_info)?;
        Ok(Self {
            secret: json.secret,
            peer_id: json.peer_id.0,
            device_info: json.device_info,
            litemesh: json.litemesh,
        })
    }
}

impl fmt::Debug for ConnectRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectRequest")
            .field("peer_id", &self.peer_id)
            .field("device_info", &self.device_info)
            .field("litemesh", &self.litemesh)
            .finish_non_exhaustive()
    }
}

impl ConnectReply {
    pub(crate) fn to_json(&self) -> Vec<u8> {
        to_json(&ReplyJson {
            success: true,
            peer_id: SiteText(self.peer_id),
            device_info: self.device_info.clone(),
            litemesh: self.litemesh,
        })
    }

    pub(crate) fn from_json(text: &str) -> Result<Self, ReadError> {
        // Who refuses need not say who it is.
        if !from_json::<Success>("CONNECT reply", text)?.success {
            return Err(ReadError::Rejected);
        }
        let json: ReplyJson = from_json("CONNECT reply", text)?;
        check_device_info("CONNECT reply", &json.device_info)?;
        Ok(Self { peer_id: json.peer_id.0, device_info: json.device_info, litemesh: json.litemesh })
    }
}

impl CursorContent {
    pub(crate) fn to_json(&self) -> Vec<u8> {
        to_json(&CursorJson {
            peer_id: SiteText(self.peer_id),
            stream_id: self.stream_id.as_str().to_owned(),
            cursor: raw(v1::serialize_cursor(&self.cursor)),
            litemesh: self.litemesh.clone(),
        })
    }

    /// Reads what was decrypted, of which the receiver must be `peer`.
    pub(crate) fn from_json(text: &str, peer: SiteId) -> Result<Self, ReadError> {
        let json: CursorJson = from_json("CURSOR", text)?;
        let stream_id = json
            .stream_id
            .parse()
            .map_err(|error: crate::ParseStreamIdError| malformed("CURSOR", error.to_string()))?;
        check_peer(json.peer_id.0, peer)?;
        let cursor = v1::deserialize_cursor(json.cursor.get().as_bytes())?;
        Ok(Self { peer_id: json.peer_id.0, stream_id, cursor, litemesh: json.litemesh })
    }
}

#[derive(Serialize, Deserialize)]
struct RequestJson {
    secret: String,
    peer_id: SiteText,
    #[serde(default)]
    device_info: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    litemesh: Option<Announcement>,
}

#[derive(Serialize, Deserialize)]
struct ReplyJson {
    success: bool,
    peer_id: SiteText,
    #[serde(default)]
    device_info: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    litemesh: Option<Announcement>,
}

#[derive(Deserialize)]
struct Success {
    success: bool,
}

#[derive(Serialize, Deserialize)]
struct CursorJson {
    peer_id: SiteText,
    stream_id: String,
    cursor: Box<RawValue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    litemesh: Option<CursorTerms>,
}

/// A site id as text.
pub(crate) struct SiteText(pub(crate) SiteId);

impl Serialize for SiteText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SiteText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

mod base64_text {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => serializer.serialize_str(&STANDARD.encode(bytes)),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
        STANDARD.decode(text).map(Some).map_err(|_| serde::de::Error::custom("no base64"))
    }
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    match serde_json::to_vec(value) {
        Ok(json) => json,
        Err(error) => unreachable!("strings, numbers and JSON always have a JSON form: {error}"),
    }
}

fn raw(json: Vec<u8>) -> Box<RawValue> {
    match String::from_utf8(json).map(RawValue::from_string) {
        Ok(Ok(raw)) => raw,
        _ => unreachable!("a serialized cursor is JSON"),
    }
}

pub(crate) fn from_json<'a, T: Deserialize<'a>>(what: &'static str, text: &'a str) -> Result<T, ReadError> {
    // Where it is wrong, and not with what: the library's text may quote a secret, or a stranger's string of any length.
    serde_json::from_str(text).map_err(|error| {
        let kind = match error.classify() {
            serde_json::error::Category::Data => "a key is missing or its value wrong",
            _ => "no JSON",
        };
        malformed(what, format!("{kind}, at line {} column {}", error.line(), error.column()))
    })
}

pub(crate) fn check_peer(got: SiteId, expected: SiteId) -> Result<(), ReadError> {
    if got == expected { Ok(()) } else { Err(ReadError::Peer { expected, got }) }
}

fn check_device_info(what: &'static str, device_info: &str) -> Result<(), ReadError> {
    if device_info.len() <= DEVICE_INFO_BYTES_MAX {
        return Ok(());
    }
    let reason = format!("device_info has {} bytes, at most {DEVICE_INFO_BYTES_MAX} are accepted", device_info.len());
    Err(malformed(what, reason))
}

pub(crate) fn malformed(what: &'static str, reason: impl Into<String>) -> ReadError {
    ReadError::Malformed { what, reason: reason.into() }
}
