//! Messages to wire v1 JSON.

use serde::Serialize;
use serde::ser::{SerializeMap, SerializeSeq, Serializer};
use serde_json::value::RawValue;

use crate::{Access, Change, Cursor, PeerMessage, Rights, SiteId, SyncRequest, Value};

/// `{"type":"connect",…}`; `announce` says that we are a Litemesh peer.
pub fn connect(peer: SiteId, announce: bool) -> Vec<u8> {
    introduce(peer, announce.then_some(&Access::FULL))
}

/// `{"type":"connect",…}` to a Litemesh peer that may do this much here. Full access goes without saying.
pub fn connect_with(peer: SiteId, access: &Access) -> Vec<u8> {
    introduce(peer, Some(access))
}

fn introduce(peer: SiteId, access: Option<&Access>) -> Vec<u8> {
    let litemesh = access.map(|access| Announcement {
        version: super::LITEMESH_VERSION,
        access: match access.rights() {
            Rights::ReadWrite => None,
            Rights::Read => Some("read"),
            Rights::Write => Some("write"),
        },
        tables: access.tables().map(|tables| tables.iter().map(|table| &**table).collect()),
    });
    to_json(&Frame { litemesh, ..Frame::new("connect", peer) })
}

/// `{"type":"sync",…}`.
pub fn sync(peer: SiteId, request: &SyncRequest) -> Vec<u8> {
    to_json(&SyncFrame { kind: "sync", peer_id: peer, cursor: WireCursor(&request.cursor) })
}

/// `{"type":"data",…}` around one message.
pub fn data(peer: SiteId, message: &PeerMessage) -> Vec<u8> {
    to_json(&DataFrame { kind: "data", peer_id: peer, data: WireMessage(message) })
}

/// `{"type":"ping",…}`.
pub fn ping(peer: SiteId) -> Vec<u8> {
    to_json(&Frame::new("ping", peer))
}

/// `{"type":"error",…}` with a code such as `ALREADY_CONNECTED`.
pub fn error(peer: SiteId, code: &str) -> Vec<u8> {
    to_json(&Frame { error: Some(code), ..Frame::new("error", peer) })
}

/// The seed's `serializeCursor`: `{"peers":{…}}`.
pub fn serialize_cursor(cursor: &Cursor) -> Vec<u8> {
    to_json(&WireCursor(cursor))
}

/// The seed's `serializeChanges`: a JSON array of change objects.
pub fn serialize_changes(changes: &[Change]) -> Vec<u8> {
    to_json(&WireChanges(changes))
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    // Writing to memory cannot fail, and none of the types here has a map with keys that are no strings.
    if let Err(error) = serde_json::to_writer(&mut out, value) {
        unreachable!("wire v1 types always have a JSON form: {error}");
    }
    out
}

#[derive(Serialize)]
struct Announcement<'a> {
    version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    access: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tables: Option<Vec<&'a str>>,
}

#[derive(Serialize)]
struct Frame<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(rename = "peerId", serialize_with = "display")]
    peer_id: SiteId,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    litemesh: Option<Announcement<'a>>,
}

impl Frame<'_> {
    fn new(kind: &'static str, peer_id: SiteId) -> Self {
        Self { kind, peer_id, error: None, litemesh: None }
    }
}

#[derive(Serialize)]
struct SyncFrame<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(rename = "peerId", serialize_with = "display")]
    peer_id: SiteId,
    cursor: WireCursor<'a>,
}

#[derive(Serialize)]
struct DataFrame<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(rename = "peerId", serialize_with = "display")]
    peer_id: SiteId,
    data: WireMessage<'a>,
}

fn display<S: Serializer>(site: &SiteId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(const_hex::Buffer::<16>::new().format(site.as_bytes()))
}

struct WireCursor<'a>(&'a Cursor);

impl Serialize for WireCursor<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Peers<'a>(&'a Cursor);
        impl Serialize for Peers<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_map(self.0.iter().map(|(site, version)| (site.to_string(), version.get())))
            }
        }
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry("peers", &Peers(self.0))?;
        map.end()
    }
}

struct WireMessage<'a>(&'a PeerMessage);

impl Serialize for WireMessage<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self.0 {
            PeerMessage::Changes { changes, schema_version, .. } => {
                map.serialize_entry("type", "changes")?;
                map.serialize_entry("data", &WireChanges(changes))?;
                map.serialize_entry("schemaVersion", schema_version)?;
            }
            PeerMessage::Eose { .. } => {
                map.serialize_entry("type", "eose")?;
                map.serialize_entry("data", &[(); 0])?;
            }
            // No original peer acknowledges anything, and all of them ignore a type that they do not know.
            PeerMessage::Ack(_) | PeerMessage::Unknown => map.serialize_entry("type", "unknown")?,
        }
        map.end()
    }
}

struct WireChanges<'a>(&'a [Change]);

impl Serialize for WireChanges<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(Some(self.0.len()))?;
        for change in self.0 {
            seq.serialize_element(&WireChange(change))?;
        }
        seq.end()
    }
}

struct WireChange<'a>(&'a Change);

impl Serialize for WireChange<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let change = self.0;
        let mut map = serializer.serialize_map(Some(9))?;
        map.serialize_entry("table", &*change.table)?;
        map.serialize_entry("pk", &const_hex::encode(change.key.as_bytes()))?;
        map.serialize_entry("cid", change.column.as_str())?;
        map.serialize_entry("val", &WireValue(&change.value))?;
        map.serialize_entry("col_version", &change.col_version.get())?;
        map.serialize_entry("db_version", &change.db_version.get())?;
        map.serialize_entry("site_id", const_hex::Buffer::<16>::new().format(change.site.as_bytes()))?;
        map.serialize_entry("cl", &change.causal_length.get())?;
        map.serialize_entry("seq", &change.seq.get())?;
        map.end()
    }
}

struct WireValue<'a>(&'a Value);

impl Serialize for WireValue<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Null => serializer.serialize_unit(),
            Value::Integer(value) => serializer.serialize_i64(*value),
            // Finite reals always get a fraction or an exponent (`1.0`), so that two careful peers keep the type.
            Value::Real(value) if value.is_finite() => serializer.serialize_f64(*value),
            Value::Real(value) => infinity(*value).serialize(serializer),
            Value::Text(bytes) => serializer.serialize_str(&String::from_utf8_lossy(bytes)),
            Value::Blob(bytes) => {
                let mut map = serializer.serialize_map(Some(2))?;
                map.serialize_entry("type", "Buffer")?;
                map.serialize_entry("data", &**bytes)?;
                map.end()
            }
        }
    }
}

/// JSON has no infinities, but a number too large for a double reads as one in every JavaScript engine; the original sends
/// `null` here and loses the value.
fn infinity(value: f64) -> &'static RawValue {
    let text = if value < 0.0 { "-9e999" } else { "9e999" };
    match serde_json::from_str(text) {
        Ok(raw) => raw,
        Err(error) => unreachable!("9e999 is a JSON number: {error}"),
    }
}
