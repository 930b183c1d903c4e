//! Any bytes as JSON of wire v1: as a message, as changes, and as what a server says in its first event.

use litemesh_proto::codec::v1::{self, Envelope};
use litemesh_proto::limits::{ACCESS_TABLES_MAX, ERROR_BYTES_MAX};
use litemesh_proto::{DecodeError, Limits, PeerMessage, SiteId, Unverified};
use serde_json::Value as Json;

use crate::memory::peak_of;

/// Bytes of memory for each byte of JSON. The dearest are objects of empty entries: `"":0,` is a key and a place.
const MEMORY_PER_BYTE: usize = 40;

/// For texts of errors, and the first growth of what grows.
const MEMORY_ELSE: usize = 4096;

const SITE: SiteId = SiteId::from_bytes([7; 16]);

/// Nothing panics, memory stays in proportion, another parser of JSON agrees, and what is read can be written and read again.
pub(crate) fn check(bytes: &[u8]) {
    // What another parser says, which holds every value that it reads in memory.
    let json = serde_json::from_slice::<Json>(bytes).ok();
    check_envelope(bytes, json.as_ref());
    check_changes(bytes, json.as_ref());
}

fn check_envelope(bytes: &[u8], json: Option<&Json>) {
    let (envelope, memory) = peak_of(|| Envelope::parse(bytes));
    assert!(memory <= bytes.len() * MEMORY_PER_BYTE + MEMORY_ELSE, "{memory} bytes of memory for {}", bytes.len());
    let envelope = match envelope {
        Ok(envelope) => envelope,
        Err(error) => {
            check_error(&error);
            // The other one goes only so deep and takes no number beyond its range, so what it takes is JSON.
            let is_wrong = if error == DecodeError::ForbiddenKey { has_proto_key } else { Json::is_null };
            assert!(json.is_none_or(is_wrong), "{error}: {json:?}");
            return;
        }
    };
    if let Some(json) = json {
        assert!(!has_proto_key(json), "{json}");
        let text = |name| json.get(name).and_then(Json::as_str);
        let is_given = |name| json.get(name).is_some_and(|part| !part.is_null());
        assert_eq!(envelope.kind(), text("type").unwrap_or_default());
        assert_eq!(envelope.peer_id(), text("peerId").filter(|id| !id.is_empty()));
        assert_eq!(envelope.error(), text("error"));
        assert_eq!((envelope.has_cursor(), envelope.has_data()), (is_given("cursor"), is_given("data")));
    }
    if let Some(code) = envelope.error() {
        assert_eq!(Envelope::parse(&v1::error(SITE, code)).expect("of ours").error(), Some(code));
    }
    check_access(&envelope);
    let (request, memory) = peak_of(|| envelope.sync_request());
    assert!(memory <= bytes.len() * MEMORY_PER_BYTE + MEMORY_ELSE, "{memory} bytes of memory for {}", bytes.len());
    match request {
        Ok(request) => {
            let written = v1::sync(SITE, &request);
            let again = Envelope::parse(&written).and_then(|envelope| envelope.sync_request());
            assert_eq!(again.as_ref(), Ok(&request));
        }
        Err(error) => check_error(&error),
    }
    let (message, memory) = peak_of(|| envelope.message());
    assert!(memory <= bytes.len() * MEMORY_PER_BYTE + MEMORY_ELSE, "{memory} bytes of memory for {}", bytes.len());
    match message {
        Ok(message) => check_message(message, |message| {
            let written = v1::data(SITE, message);
            Envelope::parse(&written).and_then(|envelope| envelope.message())
        }),
        Err(error) => check_error(&error),
    }
}

fn check_access(envelope: &Envelope<'_>) {
    match envelope.access() {
        Ok(access) => {
            assert!(access.tables().is_none_or(|tables| tables.len() <= ACCESS_TABLES_MAX));
            let written = v1::connect_with(SITE, &access);
            let again = Envelope::parse(&written).expect("of ours");
            assert!(again.is_litemesh() && again.peer_id() == Some(&*SITE.to_string()));
            assert_eq!(again.access().as_ref(), Ok(&access));
        }
        Err(error) => check_error(&error),
    }
}

fn check_changes(bytes: &[u8], json: Option<&Json>) {
    let (changes, memory) = peak_of(|| v1::deserialize_changes(bytes));
    assert!(memory <= bytes.len() * MEMORY_PER_BYTE + MEMORY_ELSE, "{memory} bytes of memory for {}", bytes.len());
    match changes {
        Ok(changes) => check_message(changes, |message| match message {
            PeerMessage::Changes { changes, .. } => v1::deserialize_changes(&v1::serialize_changes(changes)),
            other => panic!("{other:?}"),
        }),
        Err(error) => {
            check_error(&error);
            let is_list = json.and_then(Json::as_array).is_some_and(|list| list.iter().all(Json::is_object));
            assert!(error == DecodeError::ForbiddenKey || !is_list, "{error}");
        }
    }
}

/// What keeps the rules comes back the same.
fn check_message(message: Unverified, again: impl Fn(&PeerMessage) -> Result<Unverified, DecodeError>) {
    let limits = Limits::default();
    let schema_version = message.schema_version();
    assert!(schema_version >= 0 && message.order().is_none() && message.ack().is_none());
    match message.verify(&limits) {
        Ok(message) => {
            let again = again(&message).expect("of ours");
            assert_eq!(again.schema_version(), schema_version);
            assert_eq!(again.verify(&limits).as_ref(), Ok(&message));
        }
        Err(error) => assert!(error.to_string().len() <= ERROR_BYTES_MAX, "{error}"),
    }
}

/// An error goes to logs and to who sent the bytes: it is short, and says nothing of what stands in them.
fn check_error(error: &DecodeError) {
    assert!(error.to_string().len() <= 200, "{error}");
}

fn has_proto_key(json: &Json) -> bool {
    match json {
        Json::Object(entries) => entries.iter().any(|(key, value)| key == "__proto__" || has_proto_key(value)),
        Json::Array(list) => list.iter().any(has_proto_key),
        _ => false,
    }
}
