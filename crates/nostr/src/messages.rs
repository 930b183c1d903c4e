//! Messages and requests as the events of a stream, and back.
//!
//! Pure: relays, the file and the peer are the caller's, so that the simulation of `litemesh-testkit` does the same as we do.

use std::time::Duration;

use litemesh_proto::codec::v2::{self, Frame};
use litemesh_proto::{Change, Cursor, Limits, PeerMessage, SiteId, SyncRequest, Unverified};
use nostr::{Event, EventId, Timestamp};

use crate::parts::{self, Assembler, Whole};
use crate::store::{Inbound, Outbound, Stand};
use crate::{
    Batch, BuildError, ChainHead, CursorContent, CursorTerms, EncryptError, Envelope, Incoming, Outgoing, ReadError,
    StreamId, dates,
};

/// Who makes the events of one pairing.
pub struct Writer<'a> {
    /// Keys of both.
    pub envelope: &'a Envelope,
    /// Ours.
    pub site: SiteId,
    /// How long relays are asked to keep events.
    pub lifetime: Duration,
    /// Most bytes of a message in one event.
    pub part_bytes_max: usize,
}

/// In which wire version a message goes out.
#[derive(Clone, Copy)]
pub enum Wire<'a> {
    /// JSON, to an original peer.
    Json,
    /// A frame, with the stream that its sender has asked for last.
    Frames(Option<&'a StreamId>),
}

/// A message as events.
#[derive(Default)]
pub struct Written {
    /// In their order. None where nothing is to be said.
    pub events: Vec<Event>,
    /// What no event can carry.
    pub left_out: Vec<Change>,
}

impl Writer<'_> {
    /// Makes the events of the next message of a stream, which then stands behind it.
    pub fn message(
        &self,
        stand: &mut Stand,
        message: &PeerMessage,
        wire: Wire<'_>,
        now: Timestamp,
    ) -> Result<Written, BuildError> {
        let mut written = Written::default();
        match (wire, message) {
            (Wire::Frames(asked), _) => {
                for part in parts::split(&v2::message(message), asked, self.part_bytes_max) {
                    written.events.push(self.next(stand, Outgoing::Frames(&part), now)?);
                }
            }
            (Wire::Json, PeerMessage::Changes { changes, schema_version, .. }) => {
                for batch in Batch::cut_within(changes.clone(), *schema_version, self.part_bytes_max) {
                    match self.next(stand, Outgoing::Batch(&batch), now) {
                        Ok(event) => written.events.push(event),
                        // Such a change is alone in its batch.
                        Err(BuildError::Encrypt(EncryptError::PlaintextSize { .. })) => {
                            written.left_out.extend_from_slice(batch.changes());
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
            // The original says nothing else over relays.
            (Wire::Json, _) => {}
        }
        stand.reach.add(message.progress(), message.versions());
        stand.reach.sent(message.versions());
        Ok(written)
    }

    fn next(&self, stand: &mut Stand, content: Outgoing<'_>, now: Timestamp) -> Result<Event, BuildError> {
        let head = stand.head.map(|id| ChainHead { id, created_at: stand.head_at });
        let event = self.envelope.changes(self.site, content, &stand.stream, head, self.lifetime, now)?;
        (stand.head, stand.head_at) = (Some(event.id), event.created_at);
        Ok(event)
    }

    /// Says once more, as the next events of the stream, what its last ones say. Who has those takes a repeat; who has not sees that
    /// something is missing.
    pub fn again(&self, outbound: &mut Outbound, now: Timestamp) -> Result<(), ReadError> {
        let Outbound { stand, last, taken_at, .. } = outbound;
        for event in last {
            let Some(head) = stand.head else { return Ok(()) };
            let head = ChainHead { id: head, created_at: dates::of_again(stand.head_at, *taken_at, now) };
            *event = self.envelope.again(event, head, self.lifetime, now)?;
            (stand.head, stand.head_at) = (Some(event.id), event.created_at);
        }
        Ok(())
    }

    /// Makes a request for a stream, which names so many sites at most, and says how much has come.
    pub fn request(
        &self,
        inbound: &Inbound,
        acknowledged: Option<EventId>,
        sites_max: usize,
        asked_at: Timestamp,
    ) -> Result<Event, BuildError> {
        let request = naming(&inbound.stand.request, sites_max);
        let litemesh = CursorTerms {
            version: litemesh_proto::codec::v1::LITEMESH_VERSION,
            sync: Some(v2::sync(&request)).filter(|_| request.terms.is_some()),
            ack: acknowledged,
        };
        let content = CursorContent {
            peer_id: self.site,
            stream_id: inbound.stand.stream.clone(),
            cursor: request.cursor,
            litemesh: Some(litemesh),
        };
        self.envelope.cursor(&content, asked_at)
    }
}

/// The same request that names so many sites at most. What we hold of others comes once more, unless it stands before our position.
fn naming(request: &SyncRequest, sites_max: usize) -> SyncRequest {
    let named: Cursor = request.cursor.iter().take(sites_max).map(|(site, version)| (*site, version)).collect();
    SyncRequest { cursor: named, terms: request.terms.clone() }
}

/// What is asked for; nothing where that cannot be read.
pub fn read_request(content: &CursorContent, limits: &Limits) -> Result<Option<SyncRequest>, String> {
    let Some(frame) = content.litemesh.as_ref().and_then(|terms| terms.sync.as_ref()) else {
        return Ok(Some(SyncRequest { cursor: content.cursor.clone(), terms: None }));
    };
    match v2::decode(frame, limits) {
        Ok(Frame::Sync(request)) if request.terms.is_some() => Ok(Some(request)),
        Ok(_) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// What the next event of a stream completes.
pub enum Read {
    /// A message of an original peer.
    Message(Unverified),
    /// A frame, which is to be decoded.
    Frame(Whole),
    /// Nothing yet.
    Part,
}

/// Reads the next event of a stream. The reason why that is broken is a sentence.
pub fn read(
    envelope: &Envelope,
    event: &Event,
    peer: SiteId,
    assembler: &mut Assembler,
    limits: &Limits,
) -> Result<Read, String> {
    let changes = envelope.read_changes(event, peer).map_err(|error| format!("an event cannot be read: {error}"))?;
    Ok(match changes.content {
        Incoming::Message(message) => Read::Message(message),
        Incoming::Frames(part) => {
            let whole = assembler.add(&part, limits.message_bytes_max).map_err(|error| error.to_string())?;
            whole.map_or(Read::Part, Read::Frame)
        }
    })
}

/// Whether what came was sent before the remote asked for what it is being sent, as far as it says. A device that was restored from a
/// backup since has lost it, and asks for it.
pub fn is_early(whole_asked: Option<&StreamId>, asked_by_remote: Option<&StreamId>) -> bool {
    whole_asked.is_none() || whole_asked != asked_by_remote
}

/// Whether the last events of a stream are of no use any more: they have expired, or relays have refused them for a date of when our
/// clock was ahead. Where they were not refused it may be that our clock is behind now, and their date right: what is said again with an
/// earlier one, a receiver may not look at.
pub fn is_useless(events: &[Event], were_refused: bool, now: Timestamp) -> bool {
    let is_ahead = |event: &Event| were_refused && dates::is_ahead(event.created_at, now);
    events.iter().any(|event| event.is_expired_at(&now) || is_ahead(event))
}

#[cfg(test)]
mod tests {
    use nostr::{EventBuilder, Keys, Kind, Tag};

    use super::*;
    use crate::reach::Reach;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

    fn event(created_at: Timestamp, expires_at: Timestamp) -> Event {
        let event = EventBuilder::new(Kind::Custom(4680), "").tag(Tag::expiration(expires_at));
        event.custom_created_at(created_at).sign_with_keys(&Keys::generate()).unwrap()
    }

    /// A clock that is behind takes all that it said before for the work of one that was ahead.
    #[test]
    fn what_was_not_refused_is_of_use_whatever_its_date() {
        let ahead = [event(NOW + DAY, NOW + 8 * DAY)];
        assert!(!is_useless(&ahead, false, NOW) && is_useless(&ahead, true, NOW));
        let expired = [event(NOW - DAY, NOW - Duration::from_secs(1))];
        assert!(is_useless(&expired, false, NOW));
        assert!(!is_useless(&[event(NOW, NOW + DAY)], true, NOW));
    }

    /// The other end looks at nothing before the head of the stream that it has.
    #[test]
    fn what_is_said_again_is_not_before_what_relays_have_taken() {
        let (ours, theirs) = (Keys::generate(), Keys::generate());
        let remote = theirs.public_key();
        let envelope = Envelope::new(ours, remote).unwrap();
        let writer =
            Writer { envelope: &envelope, site: SiteId::from_bytes([1; 16]), lifetime: DAY, part_bytes_max: 40_000 };
        let request = SyncRequest { cursor: Cursor::new(), terms: None };
        let stand = Stand::begun(StreamId::from_bytes([7; 16]), request.clone(), NOW);
        assert_eq!(stand.reach, Reach::of(&request));
        let mut outbound = Outbound { stand, taken_at: Timestamp::from_secs(0), last: Vec::new(), elsewhere: None };
        let message = PeerMessage::Eose { progress: None };
        let say = |outbound: &mut Outbound, now| {
            let written = writer.message(&mut outbound.stand, &message, Wire::Frames(None), now).unwrap();
            outbound.last = written.events;
        };
        say(&mut outbound, NOW);
        outbound.taken_at = NOW;
        // The clock is ahead, and relays refuse this one; then it is behind.
        say(&mut outbound, NOW + DAY);
        let refused = outbound.last[0].id;
        writer.again(&mut outbound, NOW - DAY).unwrap();
        let again = &outbound.last[0];
        assert_eq!((again.created_at, outbound.stand.head), (NOW, Some(again.id)));
        assert_eq!(crate::ChangesTags::of(again).unwrap().previous, Some(refused));
    }
}
