//! How far the two streams of a pairing are.

use litemesh_proto::codec::v2::{self, Frame};
use litemesh_proto::{Limits, SyncRequest};
use nostr::{Event, EventId, JsonUtil, Timestamp};
use rusqlite::params;

use super::{Pairing, Store, StoreError, content, seconds, timestamp};
use crate::StreamId;
use crate::reach::Reach;

/// The stream that comes from a remote.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Inbound {
    /// The stream's id.
    pub(crate) stream: StreamId,
    /// What was asked for with it.
    pub(crate) request: SyncRequest,
    /// When, as the last event said that asks for it: the next one must be later.
    pub(crate) asked_at: Timestamp,
    /// The last event whose message was taken.
    pub(crate) head: Option<EventId>,
    pub(crate) head_at: Timestamp,
    pub(crate) reach: Reach,
    /// The one whose message is being taken: stored before, since the database commits by itself.
    pub(crate) taking: Option<Taking>,
}

/// Where a stream stands once a message is taken.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Taking {
    pub(crate) head: EventId,
    pub(crate) head_at: Timestamp,
    pub(crate) reach: Reach,
}

impl Inbound {
    /// The message that was being taken is.
    pub(crate) fn taken(&mut self) {
        if let Some(Taking { head, head_at, reach }) = self.taking.take() {
            (self.head, self.head_at, self.reach) = (Some(head), head_at, reach);
        }
    }

    /// The same stream from where who asks so stands, where that is on it. A process may have ended before it heard that a message was
    /// taken; where both places would do, the earlier one is the safe one, which repeats a message.
    pub(crate) fn resumed(&self, request: &SyncRequest) -> Option<Self> {
        let mut here = Self { taking: None, ..self.clone() };
        if here.reach.is_where(request) {
            return Some(here);
        }
        here.taking.clone_from(&self.taking);
        here.taken();
        here.reach.is_where(request).then_some(here)
    }
}

/// The stream that goes to a remote.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outbound {
    pub(crate) stream: StreamId,
    pub(crate) request: SyncRequest,
    /// When the remote asked for it, as the last event says that was heard.
    pub(crate) asked_at: Timestamp,
    /// The events of the last message. They are published again after a restart: nobody knows whether they were.
    pub(crate) last: Vec<Event>,
    pub(crate) head: Option<EventId>,
    pub(crate) head_at: Timestamp,
    pub(crate) reach: Reach,
}

impl Store {
    pub(crate) fn inbound(&self, pairing: &Pairing) -> Result<Option<Inbound>, StoreError> {
        let connection = self.connection();
        let mut statement = connection.prepare_cached(
            "SELECT stream, request, asked_at, head, head_at, reach, taking, taking_at, taking_reach FROM inbound
             WHERE local_key = ?1 AND peer_key = ?2",
        )?;
        let mut rows = statement.query([pairing.local_key.to_hex(), pairing.peer_key.to_hex()])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        Ok(Some(Inbound {
            stream: read_stream(&row.get::<_, String>(0)?)?,
            request: read_request(row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?)?,
            asked_at: timestamp(row.get(2)?),
            head: read_head(row.get(3)?)?,
            head_at: timestamp(row.get(4)?),
            reach: Reach::of(&read_request(row.get_ref(5)?.as_blob().map_err(rusqlite::Error::from)?)?),
            taking: match read_head(row.get(6)?)? {
                None => None,
                Some(head) => Some(Taking {
                    head,
                    head_at: timestamp(row.get(7)?),
                    reach: Reach::of(&read_request(row.get_ref(8)?.as_blob().map_err(rusqlite::Error::from)?)?),
                }),
            },
        }))
    }

    pub(crate) fn set_inbound(&self, pairing: &Pairing, inbound: &Inbound) -> Result<(), StoreError> {
        let connection = self.connection();
        let mut statement = connection.prepare_cached(
            "INSERT OR REPLACE INTO inbound (local_key, peer_key, stream, request, asked_at, head, head_at, reach, taking,
                 taking_at, taking_reach)
             SELECT local_key, peer_key, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11 FROM pairing
             WHERE local_key = ?1 AND peer_key = ?2",
        )?;
        let taking = inbound.taking.as_ref();
        statement.execute(params![
            pairing.local_key.to_hex(),
            pairing.peer_key.to_hex(),
            inbound.stream.as_str(),
            v2::sync(&inbound.request),
            seconds(inbound.asked_at),
            inbound.head.map(|id| id.to_hex()),
            seconds(inbound.head_at),
            write_reach(&inbound.reach),
            taking.map(|taking| taking.head.to_hex()),
            taking.map(|taking| seconds(taking.head_at)),
            taking.map(|taking| write_reach(&taking.reach)),
        ])?;
        Ok(())
    }

    pub(crate) fn outbound(&self, pairing: &Pairing) -> Result<Option<Outbound>, StoreError> {
        let connection = self.connection();
        let mut statement = connection.prepare_cached(
            "SELECT stream, request, asked_at, head, head_at, reach, last FROM outbound
             WHERE local_key = ?1 AND peer_key = ?2",
        )?;
        let mut rows = statement.query([pairing.local_key.to_hex(), pairing.peer_key.to_hex()])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let last: String = row.get(6)?;
        let last = last.lines().map(|event| Event::from_json(event).map_err(|error| content("an event", &error)));
        Ok(Some(Outbound {
            stream: read_stream(&row.get::<_, String>(0)?)?,
            request: read_request(row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?)?,
            asked_at: timestamp(row.get(2)?),
            head: read_head(row.get(3)?)?,
            head_at: timestamp(row.get(4)?),
            reach: Reach::of(&read_request(row.get_ref(5)?.as_blob().map_err(rusqlite::Error::from)?)?),
            last: last.collect::<Result<_, _>>()?,
        }))
    }

    pub(crate) fn set_outbound(&self, pairing: &Pairing, outbound: &Outbound) -> Result<(), StoreError> {
        let connection = self.connection();
        let mut statement = connection.prepare_cached(
            "INSERT OR REPLACE INTO outbound (local_key, peer_key, stream, request, asked_at, head, head_at, reach, last)
             SELECT local_key, peer_key, ?3, ?4, ?5, ?6, ?7, ?8, ?9 FROM pairing WHERE local_key = ?1 AND peer_key = ?2",
        )?;
        // JSON of events has no line breaks.
        let last: Vec<String> = outbound.last.iter().map(JsonUtil::as_json).collect();
        statement.execute(params![
            pairing.local_key.to_hex(),
            pairing.peer_key.to_hex(),
            outbound.stream.as_str(),
            v2::sync(&outbound.request),
            seconds(outbound.asked_at),
            outbound.head.map(|id| id.to_hex()),
            seconds(outbound.head_at),
            write_reach(&outbound.reach),
            last.join("\n"),
        ])?;
        Ok(())
    }
}

/// What stands in the file is a request that asks for the rest.
fn write_reach(reach: &Reach) -> Vec<u8> {
    v2::sync(&reach.onwards(&SyncRequest::default(), 0))
}

fn read_request(bytes: &[u8]) -> Result<SyncRequest, StoreError> {
    match v2::decode(bytes, &Limits::default()) {
        Ok(Frame::Sync(request)) => Ok(request),
        Ok(_) => Err(content("a request", &"it is something else")),
        Err(error) => Err(content("a request", &error)),
    }
}

fn read_head(hex: Option<String>) -> Result<Option<EventId>, StoreError> {
    hex.map(|hex| EventId::from_hex(&hex).map_err(|error| content("an event's id", &error))).transpose()
}

fn read_stream(text: &str) -> Result<StreamId, StoreError> {
    text.parse().map_err(|error| content("a stream's id", &error))
}
