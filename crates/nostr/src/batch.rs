//! [`Batch`]: how pending changes are cut into messages for an original peer.

use litemesh_proto::codec::v1;
use litemesh_proto::{Change, Value};

use crate::PLAINTEXT_BYTES_MAX;

/// Size at which a message is closed, as the original counts it: UTF-16 units of names, key, site id and text, nothing for the
/// rest.
pub const BATCH_SIZE_MAX: usize = 200_000;

/// Room in a plaintext for what stands around the changes: `{"peer_id":…,"msg":{"type":"changes",…}}`, with the longest number.
const ENVELOPE_BYTES_MAX: usize = 128;

/// Longest array of changes, as JSON, in bytes: with its envelope it still fits a plaintext.
pub(crate) const JSON_BYTES_MAX: usize = PLAINTEXT_BYTES_MAX - ENVELOPE_BYTES_MAX;

/// Changes that go out as one message, and the JSON of them.
///
/// The JSON is made when the batch is cut, because its length decides, and is kept for the event.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    changes: Vec<Change>,
    schema_version: i64,
    json: Vec<u8>,
}

impl Batch {
    /// All of these changes as one message, whatever its size. May be empty.
    pub fn new(changes: Vec<Change>, schema_version: i64) -> Self {
        let json = v1::serialize_changes(&changes);
        Self { changes, schema_version, json }
    }

    /// Cuts pending changes into messages: sorted by their authors' versions, and otherwise in the order in which they came.
    ///
    /// A message is closed where the next change would bring it to [`BATCH_SIZE_MAX`]. The original knows no other rule, and
    /// sends nothing any more once a message is too long to be encrypted, as a few blobs may be: their size counts as nothing.
    /// Here a message is closed before that, too. A single change that is too long is alone in its message, which then cannot
    /// be encrypted ([`EncryptError::PlaintextSize`](crate::EncryptError::PlaintextSize)).
    ///
    /// `schema_version` is the highest of the messages that the changes came with.
    ///
    /// Source: `wire-protocol.md` 7.4.
    pub fn cut(changes: Vec<Change>, schema_version: i64) -> Vec<Self> {
        Self::cut_within(changes, schema_version, JSON_BYTES_MAX)
    }

    /// The same, and a message is also closed before its array of changes would be longer than this many bytes of JSON. To an original
    /// receiver every cut is as good as another, and many relays take no event of more than 64 KiB.
    pub(crate) fn cut_within(mut changes: Vec<Change>, schema_version: i64, json_bytes_max: usize) -> Vec<Self> {
        changes.sort_by_key(|change| change.db_version);
        let mut batches = Vec::new();
        let mut batch = Builder::default();
        for change in changes {
            let size = size(&change);
            let object = object(&change);
            if !batch.takes(size, &object, json_bytes_max) {
                batches.push(std::mem::take(&mut batch).finish(schema_version));
            }
            batch.push(change, size, &object);
        }
        if !batch.changes.is_empty() {
            batches.push(batch.finish(schema_version));
        }
        batches
    }

    /// The changes, in the order in which they are sent.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// The schema version that is sent with them.
    pub fn schema_version(&self) -> i64 {
        self.schema_version
    }

    /// The changes as a JSON array.
    pub(crate) fn json(&self) -> &[u8] {
        &self.json
    }
}

/// A message that is not closed yet.
#[derive(Default)]
struct Builder {
    changes: Vec<Change>,
    size: usize,
    json: Vec<u8>,
}

impl Builder {
    /// The first change is always taken: alone or with others, it has to go.
    fn takes(&self, size: usize, object: &[u8], json_bytes_max: usize) -> bool {
        self.changes.is_empty()
            || (self.size + size < BATCH_SIZE_MAX && self.json.len() + object.len() + 2 <= json_bytes_max)
    }

    fn push(&mut self, change: Change, size: usize, object: &[u8]) {
        self.json.push(if self.changes.is_empty() { b'[' } else { b',' });
        self.json.extend_from_slice(object);
        self.changes.push(change);
        self.size += size;
    }

    fn finish(mut self, schema_version: i64) -> Batch {
        self.json.push(b']');
        Batch { changes: self.changes, schema_version, json: self.json }
    }
}

/// One change as a JSON object.
fn object(change: &Change) -> Vec<u8> {
    let mut json = v1::serialize_changes(std::slice::from_ref(change));
    // Without the brackets of the array.
    json.pop();
    json.remove(0);
    json
}

/// The size of a change as the original counts it.
fn size(change: &Change) -> usize {
    let value = match &change.value {
        Value::Text(text) => utf16_units(&String::from_utf8_lossy(text)),
        Value::Null | Value::Integer(_) | Value::Real(_) | Value::Blob(_) => 0,
    };
    // The key and the site id stand there as hex digits.
    utf16_units(change.column.as_str())
        + 2 * change.key.as_bytes().len()
        + 2 * change.site.as_bytes().len()
        + utf16_units(&change.table)
        + value
}

fn utf16_units(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.encode_utf16().count() }
}

#[cfg(test)]
mod tests;
