//! Wire v1 JSON to messages. Everything here reads a stranger's bytes: no panic, no recursion, memory in proportion to the
//! input.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::limits::{CURSOR_SITES_MAX, JSON_DEPTH_MAX};
use crate::verify::Reason;
use crate::{
    Access, CausalLength, Change, ColVersion, Column, Cursor, DbVersion, DecodeError, PackedKey, PeerMessage, Rights,
    Seq, SiteId, SyncRequest, Unverified, Value, VerifyError,
};

/// The parts of one transport message, still JSON inside.
#[derive(Debug, Default)]
pub struct Envelope<'a> {
    kind: Option<Cow<'a, str>>,
    peer_id: Option<Cow<'a, str>>,
    error: Option<Cow<'a, str>>,
    cursor: Option<&'a RawValue>,
    data: Option<&'a RawValue>,
    litemesh: Option<&'a RawValue>,
}

impl<'a> Envelope<'a> {
    /// Finds the parts of a message. A JSON value that is no object has none.
    ///
    /// # Errors
    ///
    /// Not JSON; the key `__proto__` anywhere (an original server refuses it, too); `null`.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        refuse_at_sight(bytes)?;
        let mut envelope = Self::default();
        let object: Object<'a> = from_json(bytes)?;
        for (key, value) in object.0 {
            match &*key {
                "type" => envelope.kind = text(value),
                "peerId" => envelope.peer_id = text(value).filter(|id| !id.is_empty()),
                "error" => envelope.error = text(value),
                "cursor" => envelope.cursor = not_null(value),
                "data" => envelope.data = not_null(value),
                "litemesh" => envelope.litemesh = not_null(value),
                _ => {}
            }
        }
        Ok(envelope)
    }

    /// `connect`, `sync`, `data`, `ping`, `error` or something unknown; empty where there is none.
    pub fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or_default()
    }

    /// The sender's id as text; `None` where it is missing or empty.
    pub fn peer_id(&self) -> Option<&str> {
        self.peer_id.as_deref()
    }

    /// The code of an `error` message.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Whether there is a `cursor`.
    pub fn has_cursor(&self) -> bool {
        self.cursor.is_some()
    }

    /// Whether there is a `data`.
    pub fn has_data(&self) -> bool {
        self.data.is_some()
    }

    /// Whether the sender announced itself as a Litemesh peer whose language we share.
    pub fn is_litemesh(&self) -> bool {
        let version = self.litemesh.and_then(|extra| field(extra, "version")).and_then(count);
        version.is_some_and(|version| version >= i64::from(super::LITEMESH_VERSION))
    }

    /// What the sender of a `connect` message lets us do, [`Access::FULL`] where it says nothing.
    ///
    /// # Errors
    ///
    /// Rights that this version does not know, a list of tables that is none, or too many tables.
    pub fn access(&self) -> Result<Access, DecodeError> {
        let said = |name| self.litemesh.and_then(|extra| field(extra, name)).and_then(not_null);
        let rights = match said("access").map(text) {
            None => Rights::ReadWrite,
            Some(Some(rights)) if rights == "read" => Rights::Read,
            Some(Some(rights)) if rights == "write" => Rights::Write,
            Some(_) => return Err(DecodeError::Shape { what: "litemesh.access", expected: "read or write" }),
        };
        let access = Access::new(rights);
        let Some(tables) = said("tables") else { return Ok(access) };
        let wrong = DecodeError::Shape { what: "litemesh.tables", expected: "an array of at most 256 names" };
        let tables: Vec<Text<'_>> = from_json(tables.get().as_bytes()).map_err(|_| wrong.clone())?;
        access.only(tables.iter().map(|Text(table)| table)).map_err(|_| wrong)
    }

    /// Reads the `cursor` of a `sync` message.
    ///
    /// Entries that are no site ids are left out: no site can have them, and a v1 server answers 200 to them.
    ///
    /// # Errors
    ///
    /// No object, no `peers`, or too many sites.
    pub fn sync_request(&self) -> Result<SyncRequest, DecodeError> {
        let Some(cursor) = self.cursor else {
            return Err(DecodeError::Shape { what: "cursor", expected: "an object" });
        };
        Ok(SyncRequest { cursor: read_cursor(cursor)?, terms: None })
    }

    /// Reads the `data` of a `data` message.
    ///
    /// # Errors
    ///
    /// No object, or `changes` without an array of objects. A change that breaks a rule is no error yet: see
    /// [`Unverified::verify`].
    pub fn message(&self) -> Result<Unverified, DecodeError> {
        match self.data {
            Some(data) => read_message(data),
            None => Err(DecodeError::Shape { what: "data", expected: "an object" }),
        }
    }
}

/// The seed's `deserializeCursor`: reads what [`serialize_cursor`](super::serialize_cursor) writes.
///
/// Entries that are no site ids are left out, as by [`Envelope::sync_request`].
///
/// # Errors
///
/// Not JSON, the key `__proto__`, no object with `peers`, or too many sites.
///
/// ```
/// use litemesh_proto::codec::v1;
/// use litemesh_proto::{Cursor, DbVersion, SiteId};
///
/// let cursor: Cursor = [(SiteId::from_bytes([7; 16]), DbVersion::new(5))].into_iter().collect();
/// assert_eq!(v1::deserialize_cursor(&v1::serialize_cursor(&cursor))?, cursor);
/// # Ok::<(), litemesh_proto::DecodeError>(())
/// ```
pub fn deserialize_cursor(bytes: &[u8]) -> Result<Cursor, DecodeError> {
    refuse_at_sight(bytes)?;
    read_cursor(from_json(bytes)?)
}

/// The seed's `deserializeChanges`: reads what [`serialize_changes`](super::serialize_changes) writes.
///
/// A change that breaks a rule is no error yet. [`Unverified::verify`] tells which one it is, and is the only road to the
/// changes; its message has schema version 0.
///
/// # Errors
///
/// Not JSON, the key `__proto__`, or no array of objects.
///
/// ```
/// use litemesh_proto::codec::v1;
/// use litemesh_proto::{Limits, PeerMessage};
///
/// let bytes = br#"[{"table":"todo","pk":"010b0161","cid":"title","val":"write docs","col_version":1,
///     "db_version":7,"site_id":"0123456789abcdef0123456789abcdef","cl":1,"seq":0}]"#;
/// let message = v1::deserialize_changes(bytes)?.verify(&Limits::default())?;
/// let PeerMessage::Changes { changes, .. } = message else { unreachable!("changes were read") };
/// assert_eq!(changes[0].value.as_str(), Some("write docs"));
///
/// // And back: the same fields in the same order, without the white space.
/// assert!(v1::serialize_changes(&changes).starts_with(br#"[{"table":"todo","pk":"010b0161""#));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn deserialize_changes(bytes: &[u8]) -> Result<Unverified, DecodeError> {
    refuse_at_sight(bytes)?;
    let ChangeList { changes, invalid } = from_json(bytes)?;
    let message = PeerMessage::Changes { changes, schema_version: 0, progress: None };
    Ok(Unverified { invalid: invalid.map(Box::new), ..Unverified::new(message) })
}

/// Reads one message without its envelope: `{"type":"changes",…}`, its keys in any order (`wire-protocol.md` 1.4).
///
/// What carries messages without the envelope of 5.1 reads them with this, as the Nostr transport does.
///
/// # Errors
///
/// Not JSON, the key `__proto__`, `null`, or `changes` without an array of objects. A change that breaks a rule is no error
/// yet: see [`Unverified::verify`].
///
/// ```
/// use litemesh_proto::codec::v1;
/// use litemesh_proto::{Limits, PeerMessage};
///
/// let message = v1::deserialize_message(br#"{"type":"changes","schemaVersion":49,"data":[]}"#)?;
/// let expected = PeerMessage::Changes { changes: Vec::new(), schema_version: 49, progress: None };
/// assert_eq!(message.verify(&Limits::default())?, expected);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn deserialize_message(bytes: &[u8]) -> Result<Unverified, DecodeError> {
    refuse_at_sight(bytes)?;
    read_message(from_json(bytes)?)
}

fn read_cursor(raw: &RawValue) -> Result<Cursor, DecodeError> {
    let wrong = DecodeError::Shape { what: "cursor.peers", expected: "an object of site ids and versions" };
    let Some(peers) = field(raw, "peers").and_then(not_null) else { return Err(wrong) };
    let entries: Object<'_> = from_json(peers.get().as_bytes())?;
    if entries.0.len() > CURSOR_SITES_MAX {
        return Err(DecodeError::CursorTooLarge { sites: entries.0.len(), max: CURSOR_SITES_MAX });
    }
    let known = entries.0.into_iter().filter_map(|(site, version)| {
        // A version that cannot be read counts as zero: the sender then gets more than it needs, never less.
        Some((site.parse::<SiteId>().ok()?, DbVersion::new(count(version).unwrap_or_default())))
    });
    Ok(known.collect())
}

fn read_message(raw: &RawValue) -> Result<Unverified, DecodeError> {
    let object: Object<'_> = from_json(raw.get().as_bytes())?;
    let (mut kind, mut data, mut schema_version) = (None, None, 0);
    for (key, value) in object.0 {
        match &*key {
            "type" => kind = text(value),
            "data" => data = Some(value),
            "schemaVersion" => schema_version = count(value).unwrap_or_default(),
            _ => {}
        }
    }
    match kind.as_deref() {
        Some("eose") => Ok(Unverified::new(PeerMessage::Eose { progress: None })),
        Some("changes") => {
            let Some(data) = data else {
                return Err(DecodeError::Shape { what: "data.data", expected: "an array of changes" });
            };
            let ChangeList { changes, invalid } = from_json(data.get().as_bytes())?;
            let message = PeerMessage::Changes { changes, schema_version, progress: None };
            Ok(Unverified { invalid: invalid.map(Box::new), ..Unverified::new(message) })
        }
        _ => Ok(Unverified::new(PeerMessage::Unknown)),
    }
}

fn from_json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, DecodeError> {
    serde_json::from_slice(bytes).map_err(|error| DecodeError::Json { reason: without_content(&error) })
}

/// What is wrong and where, but not with what: "invalid type: string …, expected an array" would put a stranger's string of any
/// length, or somebody's data, into logs and answers.
fn without_content(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(", expected ") {
        Some((_, expected)) => format!("expected {expected}"),
        None => text,
    }
}

/// What no honest JSON has, before anything of it is read.
fn refuse_at_sight(bytes: &[u8]) -> Result<(), DecodeError> {
    refuse_depth(bytes)?;
    refuse_proto_key(bytes)
}

fn refuse_depth(bytes: &[u8]) -> Result<(), DecodeError> {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'"' => match string_end(&bytes[at..]) {
                Some(end) => at += end + 1,
                // A string without end is no JSON, which others will say.
                None => return Ok(()),
            },
            b'[' | b'{' if depth == JSON_DEPTH_MAX => return Err(DecodeError::TooDeep { max: JSON_DEPTH_MAX }),
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// An object that sets `__proto__` can change what JavaScript code sees; an original server answers 400 to it, also where
/// letters of the key are escaped.
fn refuse_proto_key(bytes: &[u8]) -> Result<(), DecodeError> {
    // Only what has either is worth a second pass.
    if memchr::memmem::find(bytes, b"__proto__").is_none() && memchr::memmem::find(bytes, b"\\u00").is_none() {
        return Ok(());
    }
    let mut rest = bytes;
    while let Some(start) = memchr::memchr(b'"', rest) {
        // A string without end is no JSON, which others will say.
        let Some(end) = string_end(&rest[start + 1..]) else { return Ok(()) };
        let (string, after) = rest[start..].split_at(end + 2);
        let is_key = || after.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b':');
        if is_proto(string) && is_key() {
            return Err(DecodeError::ForbiddenKey);
        }
        rest = after;
    }
    Ok(())
}

/// Where the quote stands that ends a string.
fn string_end(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += memchr::memchr2(b'"', b'\\', text.get(at..)?)?;
        if text[at] == b'"' {
            return Some(at);
        }
        at += 2;
    }
}

/// Whether a string, in its quotes, is `__proto__`. Each letter takes at most six bytes.
fn is_proto(string: &[u8]) -> bool {
    const NAME: &str = "__proto__";
    (NAME.len()..=6 * NAME.len()).contains(&(string.len() - 2))
        && serde_json::from_slice::<Text<'_>>(string).is_ok_and(|Text(text)| text == NAME)
}

/// A JSON object as a list of its entries; where a key comes twice the later one counts, as in JavaScript. Any other JSON
/// value but `null` is an object without entries.
struct Object<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?;
        match raw.get().as_bytes().first() {
            Some(b'{') => {}
            Some(b'n') => return Err(serde::de::Error::custom("null instead of an object")),
            _ => return Ok(Self(Vec::new())),
        }
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Object<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some((Text(key), value)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
                    // One more than any object may have is enough to refuse it, and takes no more memory than that.
                    if entries.len() <= CURSOR_SITES_MAX {
                        entries.push((key, value));
                    }
                }
                Ok(Object(entries))
            }
        }
        serde_json::Deserializer::from_str(raw.get()).deserialize_map(Entries).map_err(serde::de::Error::custom)
    }
}

/// A string, borrowed where it has no escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

fn text(raw: &RawValue) -> Option<Cow<'_, str>> {
    serde_json::from_str::<Text<'_>>(raw.get()).ok().map(|text| text.0)
}

fn not_null(raw: &RawValue) -> Option<&RawValue> {
    (raw.get() != "null").then_some(raw)
}

fn field<'a>(raw: &'a RawValue, name: &str) -> Option<&'a RawValue> {
    let object: Object<'a> = serde_json::from_str(raw.get()).ok()?;
    object.0.into_iter().rev().find(|(key, _)| key == name).map(|(_, value)| value)
}

/// A non-negative integer; integral floats such as `3.0` and digits in a string pass, as they do in JavaScript.
fn count(raw: &RawValue) -> Option<i64> {
    let text = raw.get().trim_matches('"');
    integral(text).filter(|value| *value >= 0)
}

fn integral(text: &str) -> Option<i64> {
    text.parse::<i64>().ok().or_else(|| {
        let value = text.parse::<f64>().ok()?;
        // The cast saturates, and verification refuses what lies beyond the bounds.
        (value.is_finite() && value.fract() == 0.0).then_some(value as i64)
    })
}

struct ChangeList {
    changes: Vec<Change>,
    invalid: Option<VerifyError>,
}

impl<'de> Deserialize<'de> for ChangeList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListVisitor;
        impl<'de> Visitor<'de> for ListVisitor {
            type Value = ChangeList;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of changes")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut names = Names::default();
                let (mut changes, mut invalid) = (Vec::new(), None);
                let mut index = 0;
                while let Some(fields) = seq.next_element::<Fields<'de>>()? {
                    // After the first bad change only the syntax of the rest matters: nothing of it will be used.
                    if invalid.is_none() {
                        match fields.into_change(&mut names) {
                            Ok(change) => changes.push(change),
                            Err(reason) => {
                                invalid = Some(VerifyError::Change { index, reason: reason.to_string() });
                            }
                        }
                    }
                    index += 1;
                }
                Ok(ChangeList { changes, invalid })
            }
        }
        deserializer.deserialize_seq(ListVisitor)
    }
}

/// Names of tables and columns come in every change; each distinct one is stored once a message.
#[derive(Default)]
struct Names {
    known: HashSet<Arc<str>>,
    last: [Option<Arc<str>>; 2],
}

impl Names {
    fn intern(&mut self, slot: usize, name: &str) -> Arc<str> {
        if let Some(last) = self.last[slot].as_ref().filter(|last| ***last == *name) {
            return last.clone();
        }
        let interned = match self.known.get(name) {
            Some(known) => known.clone(),
            None => {
                let name: Arc<str> = name.into();
                self.known.insert(name.clone());
                name
            }
        };
        self.last[slot] = Some(interned.clone());
        interned
    }
}

/// The fields of one change object as they came.
#[derive(Default)]
struct Fields<'a> {
    table: Scalar<'a>,
    pk: Scalar<'a>,
    cid: Scalar<'a>,
    val: Option<&'a RawValue>,
    col_version: Scalar<'a>,
    db_version: Scalar<'a>,
    site_id: Scalar<'a>,
    cl: Scalar<'a>,
    seq: Scalar<'a>,
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;
        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Fields<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a change object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Fields::default();
                while let Some(Text(key)) = map.next_key::<Text<'de>>()? {
                    match &*key {
                        "table" => fields.table = map.next_value()?,
                        "pk" => fields.pk = map.next_value()?,
                        "cid" => fields.cid = map.next_value()?,
                        "val" => fields.val = Some(map.next_value()?),
                        "col_version" => fields.col_version = map.next_value()?,
                        "db_version" => fields.db_version = map.next_value()?,
                        "site_id" => fields.site_id = map.next_value()?,
                        "cl" => fields.cl = map.next_value()?,
                        "seq" => fields.seq = map.next_value()?,
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(FieldsVisitor)
    }
}

impl Fields<'_> {
    fn into_change(self, names: &mut Names) -> Result<Change, Reason> {
        let table = self.table.name("table")?;
        let key = PackedKey::from_bytes(self.pk.hex("pk")?);
        let column = match self.cid.name("cid")? {
            Column::ROW_NAME => Column::Row,
            name => Column::Cell(names.intern(1, name)),
        };
        let col_version = ColVersion::new(self.col_version.count("col_version")?);
        let db_version = DbVersion::new(self.db_version.count("db_version")?);
        let site = SiteId::from_slice(&self.site_id.hex("site_id")?).ok_or(Reason::NotASite)?;
        Ok(Change {
            table: names.intern(0, table),
            key,
            column,
            value: self.val.map_or(Ok(Value::Null), read_value)?,
            col_version,
            db_version,
            site,
            causal_length: CausalLength::new(self.cl.count("cl")?),
            seq: Seq::new(self.seq.count("seq")?),
        })
    }
}

#[derive(Default)]
enum Scalar<'a> {
    #[default]
    Missing,
    Text(Cow<'a, str>),
    Integer(i64),
    /// Anything else: a fraction, null, an object. No field may be that.
    Other,
}

impl Scalar<'_> {
    fn name(&self, field: &'static str) -> Result<&str, Reason> {
        match self {
            Self::Text(text) if !text.trim().is_empty() => Ok(text),
            _ => Err(Reason::NotAName(field)),
        }
    }

    fn hex(&self, field: &'static str) -> Result<Vec<u8>, Reason> {
        let Self::Text(text) = self else { return Err(Reason::NotHexText(field)) };
        // The check comes before the decoder's, which would take a `0x` prefix.
        if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Reason::NotHex(field));
        }
        const_hex::decode(&**text).map_err(|_| Reason::OddHex(field))
    }

    fn count(&self, field: &'static str) -> Result<i64, Reason> {
        match self {
            Self::Integer(value) if *value >= 0 => Ok(*value),
            _ => Err(Reason::NotACount(field)),
        }
    }
}

impl<'de> Deserialize<'de> for Scalar<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ScalarVisitor;
        impl<'de> Visitor<'de> for ScalarVisitor {
            type Value = Scalar<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any JSON value")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Scalar::Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Scalar::Text(Cow::Owned(text.to_owned())))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
                Ok(Scalar::Integer(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
                Ok(Scalar::Integer(i64::try_from(value).unwrap_or(i64::MAX)))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
                // `3.0` passes, `3.5` does not; the cast saturates.
                Ok(if value.fract() == 0.0 { Scalar::Integer(value as i64) } else { Scalar::Other })
            }
            fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
                Ok(Scalar::Other)
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Scalar::Other)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other)
            }
        }
        deserializer.deserialize_any(ScalarVisitor)
    }
}

/// `wire-protocol.md` 1.3: integers keep 64 bits, a fraction or an exponent means REAL, and both spellings of a BLOB are read.
fn read_value(raw: &RawValue) -> Result<Value, Reason> {
    let json = raw.get();
    match json.as_bytes().first() {
        Some(b'n') => Ok(Value::Null),
        Some(b't') => Ok(Value::Integer(1)),
        Some(b'f') => Ok(Value::Integer(0)),
        Some(b'"') => Ok(Value::text(text(raw).ok_or(Reason::NotAValue)?)),
        Some(b'{') => read_blob(raw).ok_or(Reason::NotAValue),
        Some(b'-' | b'0'..=b'9') => match json.parse::<i64>() {
            Ok(value) => Ok(Value::Integer(value)),
            // A fraction, an exponent, or too large for 64 bits: what JavaScript would make of it. `9e999` is infinity.
            Err(_) => json.parse::<f64>().map(Value::from).map_err(|_| Reason::NotAValue),
        },
        _ => Err(Reason::NotAValue),
    }
}

/// `{"type":"Buffer","data":[0,255]}` from node, `{"0":0,"1":255}` from a browser's `Uint8Array`.
fn read_blob(raw: &RawValue) -> Option<Value> {
    if let Some(data) = field(raw, "data")
        && field(raw, "type").and_then(text).as_deref() == Some("Buffer")
    {
        return serde_json::from_str::<Vec<u8>>(data.get()).ok().map(Value::blob);
    }
    let object: Object<'_> = serde_json::from_str(raw.get()).ok()?;
    let byte = |(index, (key, value)): (usize, (Cow<'_, str>, &RawValue))| {
        (key.parse() == Ok(index)).then(|| value.get().parse::<u8>().ok()).flatten()
    };
    object.0.into_iter().enumerate().map(byte).collect::<Option<Vec<u8>>>().map(Value::blob)
}
