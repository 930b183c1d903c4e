//! CHANGES events: their tags, by which they form a chain, and what they say once they are decrypted.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use litemesh_proto::codec::v1;
use litemesh_proto::{SiteId, Unverified};
use nostr::{Event, EventId, Tag, TagKind, Timestamp};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::content::{SiteText, check_peer, from_json, malformed};
use crate::nip44v3::into_text;
use crate::{Batch, PLAINTEXT_BYTES_MAX, ReadError, StreamId};

/// How long relays are asked to keep a CHANGES event: what the original says unless it is told otherwise.
pub const CHANGES_LIFETIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Most bytes of frames in one CHANGES event: what a plaintext has room for behind what stands before them.
pub const FRAMES_BYTES_MAX: usize = PLAINTEXT_BYTES_MAX - FRAMES_START;

/// First byte of a plaintext that holds frames: the wire version, and no byte that JSON could begin with.
const FRAMES_MARK: u8 = 2;

/// Where the frames begin: after the mark and the sender's site id.
const FRAMES_START: usize = 1 + 16;

/// One event of a stream, as the next one refers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainHead {
    /// Its id, which stands in the tag `e` of the next one.
    pub id: EventId,
    /// When it was made, in seconds since 1970: the next one is not earlier.
    pub created_at: Timestamp,
}

impl ChainHead {
    /// The head that a stream has after this event.
    pub fn of(event: &Event) -> Self {
        Self { id: event.id, created_at: event.created_at }
    }
}

/// Where a CHANGES event stands: what its tags say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangesTags {
    /// The stream (`r`).
    pub stream_id: StreamId,
    /// When relays may forget the event (`expiration`). The original always says so; what cannot be read counts as nothing, since
    /// no receiver needs it.
    pub expiration: Option<Timestamp>,
    /// The event before it (`e`); `None` for the first of a stream.
    pub previous: Option<EventId>,
}

impl ChangesTags {
    /// Reads the tags, and checks nothing else of the event: enough to leave alone what belongs to another stream.
    ///
    /// Where a tag comes twice the first one counts.
    ///
    /// # Errors
    ///
    /// No `r`, or what stands in `r` or `e` cannot be read.
    pub fn of(event: &Event) -> Result<Self, ReadError> {
        let find = |name: &str| {
            let tag =
                event.tags.iter().map(Tag::as_slice).find(|tag| tag.first().is_some_and(|first| first == name))?;
            Some(tag.get(1).map_or("", String::as_str))
        };
        let stream_id = find("r").and_then(|text| text.parse().ok()).ok_or(ReadError::Tag { tag: "r" })?;
        let expiration = find("expiration").and_then(|text| text.parse().ok());
        // The original takes an empty one for none, too.
        let previous = find("e").filter(|text| !text.is_empty());
        let previous = previous.map(|text| EventId::from_hex(text).map_err(|_| ReadError::Tag { tag: "e" }));
        Ok(Self { stream_id, expiration: expiration.map(Timestamp::from_secs), previous: previous.transpose()? })
    }

    /// The tags in their order.
    pub(crate) fn to_tags(&self) -> Vec<Tag> {
        let mut tags = vec![Tag::custom(TagKind::custom("r"), [self.stream_id.as_str()])];
        tags.extend(self.expiration.map(Tag::expiration));
        tags.extend(self.previous.map(Tag::event));
        tags
    }
}

/// What a sender puts into a CHANGES event.
#[derive(Clone, Copy, Debug)]
pub enum Outgoing<'a> {
    /// JSON of the original, for a peer that has not announced itself as a Litemesh peer.
    Batch(&'a Batch),
    /// Frames of wire v2, at most [`FRAMES_BYTES_MAX`] bytes.
    Frames(&'a [u8]),
}

impl<'a> Outgoing<'a> {
    /// The plaintext, in parts that need not be joined.
    pub(crate) fn plaintext(self, author: SiteId) -> Vec<Cow<'a, [u8]>> {
        match self {
            Self::Batch(batch) => {
                let schema_version = batch.schema_version();
                let head = format!(
                    r#"{{"peer_id":"{author}","msg":{{"type":"changes","schemaVersion":{schema_version},"data":"#
                );
                vec![head.into_bytes().into(), batch.json().into(), b"}}".into()]
            }
            Self::Frames(frames) => vec![[&[FRAMES_MARK], author.as_bytes().as_slice()].concat().into(), frames.into()],
        }
    }
}

/// A CHANGES event as it was read.
#[derive(Clone, Debug)]
pub struct ReceivedChanges {
    /// The head of the chain once this event is processed.
    pub head: ChainHead,
    /// Where it stands.
    pub tags: ChangesTags,
    /// What it says.
    pub content: Incoming,
}

/// What stands in a CHANGES event.
#[derive(Clone, Debug)]
pub enum Incoming {
    /// JSON of the original.
    Message(Unverified),
    /// Frames of wire v2, not looked at yet.
    Frames(Bytes),
}

impl Incoming {
    /// Reads what was decrypted, of which the sender must be `peer`.
    pub(crate) fn read(plaintext: Vec<u8>, peer: SiteId) -> Result<Self, ReadError> {
        if plaintext.first() == Some(&FRAMES_MARK) {
            let site = plaintext.get(1..FRAMES_START).and_then(SiteId::from_slice);
            check_peer(site.ok_or_else(|| malformed("CHANGES", "it ends inside of the site id"))?, peer)?;
            return Ok(Self::Frames(Bytes::from(plaintext).slice(FRAMES_START..)));
        }
        let text = into_text(plaintext);
        let json: ChangesJson<'_> = from_json("CHANGES", &text)?;
        check_peer(json.peer_id.0, peer)?;
        Ok(Self::Message(v1::deserialize_message(json.msg.get().as_bytes())?))
    }
}

#[derive(Deserialize)]
struct ChangesJson<'a> {
    peer_id: SiteText,
    #[serde(borrow)]
    msg: &'a RawValue,
}
