//! How far the two streams of a pairing are.

use litemesh_proto::codec::v2::{self, Frame};
use litemesh_proto::{DbVersion, Incarnation, Limits, Position, Served, SyncRequest};
use nostr::{Event, EventId, JsonUtil, Timestamp};
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};

use super::{Pairing, Store, StoreError, content, seconds, timestamp};
use crate::StreamId;
use crate::reach::Reach;

/// Where a stream stands: what both ends of it remember.
#[derive(Clone, Debug, PartialEq)]
pub struct Stand {
    /// The stream's id.
    pub stream: StreamId,
    /// What the receiver asked for with it.
    pub request: SyncRequest,
    /// When, as the last event says that asks for it: the next one must be later.
    pub asked_at: Timestamp,
    /// The last event: whose message the receiver took, or that the sender made.
    pub head: Option<EventId>,
    /// When that was made; the beginning of time where there is none.
    pub head_at: Timestamp,
    /// How far it has brought the receiver.
    pub reach: Reach,
}

/// The stream that comes from a remote.
#[derive(Clone, Debug, PartialEq)]
pub struct Inbound {
    /// As of the last message that was taken.
    pub stand: Stand,
    /// The message that is being taken: stored before, since the database commits by itself.
    pub taking: Option<Taking>,
}

/// Where a stream stands once a message is taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Taking {
    /// The event that ends it.
    pub head: EventId,
    /// When that was made.
    pub head_at: Timestamp,
    /// How far the receiver is then.
    pub reach: Reach,
}

/// The stream that goes to a remote.
#[derive(Clone, Debug, PartialEq)]
pub struct Outbound {
    /// As of the last message that was made.
    pub stand: Stand,
    /// The date of the newest event that a relay has taken.
    pub taken_at: Timestamp,
    /// The events of the last message, and of those before it that were still under way. They are published again after a restart: nobody
    /// knows whether they were.
    pub last: Vec<Event>,
    /// How far another connection has brought the remote beyond where the stream stands.
    pub elsewhere: Option<Served>,
}

/// What a remote had been told before a connection.
pub struct Told {
    reach: Reach,
    went_elsewhere: bool,
}

impl Told {
    /// What was said on this stream, or beside it.
    pub fn by(outbound: Outbound) -> Self {
        Self { reach: outbound.stand.reach, went_elsewhere: outbound.elsewhere.is_some() }
    }

    /// Whether who asks so may have lost some of it. What was told over another connection, nothing here remembers.
    pub fn may_be_lost_to(&self, request: &SyncRequest) -> bool {
        self.went_elsewhere || !self.reach.was_told_by(request)
    }
}

impl Stand {
    /// A stream that begins.
    pub fn begun(stream: StreamId, request: SyncRequest, asked_at: Timestamp) -> Self {
        Self { stream, reach: Reach::of(&request), request, asked_at, head: None, head_at: Timestamp::from_secs(0) }
    }

    /// Columns that both tables have, in the order in which [`write`](Self::write) fills them.
    const COLUMNS: &str = "stream, request, asked_at, head, head_at, reach";

    fn read(row: &Row<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            stream: row.get::<_, String>(0)?.parse().map_err(|error| content("a stream's id", &error))?,
            request: read_request(row, 1)?,
            asked_at: timestamp(row.get(2)?),
            head: read_head(row, 3)?,
            head_at: timestamp(row.get(4)?),
            reach: Reach::of(&read_request(row, 5)?),
        })
    }

    fn write(&self) -> [Value; 6] {
        [
            self.stream.as_str().to_owned().into(),
            v2::sync(&self.request).into(),
            seconds(self.asked_at).into(),
            self.head.map(|id| id.to_hex()).into(),
            seconds(self.head_at).into(),
            write_reach(&self.reach).into(),
        ]
    }
}

impl Inbound {
    /// The message that was being taken is.
    pub fn taken(&mut self) {
        if let Some(Taking { head, head_at, reach }) = self.taking.take() {
            (self.stand.head, self.stand.head_at, self.stand.reach) = (Some(head), head_at, reach);
        }
    }

    /// The same stream from where who asks so stands, where that is on it. A process may have ended before it heard that a message was
    /// taken; where both places would do, the earlier one is the safe one, which repeats a message.
    pub fn resumed(&self, request: &SyncRequest) -> Option<Self> {
        let mut here = Self { taking: None, ..self.clone() };
        if here.stand.reach.is_where(request) {
            return Some(here);
        }
        here.taking.clone_from(&self.taking);
        here.taken();
        here.stand.reach.is_where(request).then_some(here)
    }
}

impl Store {
    pub(crate) fn inbound(&self, pairing: &Pairing) -> Result<Option<Inbound>, StoreError> {
        self.stream(pairing, "inbound", "taking, taking_at, taking_reach", |stand, row| {
            let taking = match read_head(row, 6)? {
                None => None,
                Some(head) => {
                    let reach = Reach::of(&read_request(row, 8)?);
                    Some(Taking { head, head_at: timestamp(row.get(7)?), reach })
                }
            };
            Ok(Inbound { stand, taking })
        })
    }

    pub(crate) fn set_inbound(&self, pairing: &Pairing, inbound: &Inbound) -> Result<(), StoreError> {
        let taking = inbound.taking.as_ref();
        let own = [
            taking.map(|taking| taking.head.to_hex()).into(),
            taking.map(|taking| seconds(taking.head_at)).into(),
            taking.map(|taking| write_reach(&taking.reach)).into(),
        ];
        set_stream(&self.connection(), pairing, "inbound", "taking, taking_at, taking_reach", &inbound.stand, own)
    }

    pub(crate) fn outbound(&self, pairing: &Pairing) -> Result<Option<Outbound>, StoreError> {
        let outbound = self.stream(pairing, "outbound", "last, taken_at", |stand, row| {
            let last: String = row.get(6)?;
            let last = last.lines().map(|event| Event::from_json(event).map_err(|error| content("an event", &error)));
            let taken_at = timestamp(row.get(7)?);
            Ok(Outbound { stand, taken_at, last: last.collect::<Result<_, _>>()?, elsewhere: None })
        })?;
        let Some(outbound) = outbound else { return Ok(None) };
        let elsewhere = self.elsewhere(pairing, &outbound.stand.stream)?;
        Ok(Some(Outbound { elsewhere, ..outbound }))
    }

    pub(crate) fn set_outbound(&self, pairing: &Pairing, outbound: &Outbound) -> Result<(), StoreError> {
        // JSON of events has no line breaks.
        let last: Vec<String> = outbound.last.iter().map(JsonUtil::as_json).collect();
        let mut connection = self.connection();
        let transaction = connection.transaction()?;
        let own = [last.join("\n").into(), seconds(outbound.taken_at).into()];
        set_stream(&transaction, pairing, "outbound", "last, taken_at", &outbound.stand, own)?;
        set_elsewhere(&transaction, pairing, &outbound.stand.stream, outbound.elsewhere)?;
        Ok(transaction.commit()?)
    }

    fn elsewhere(&self, pairing: &Pairing, stream: &StreamId) -> Result<Option<Served>, StoreError> {
        const SELECT: &str =
            "SELECT acknowledged, acknowledged_incarnation, reached, reached_incarnation FROM elsewhere
             WHERE local_key = ?1 AND peer_key = ?2 AND stream = ?3";
        let connection = self.connection();
        let mut statement = connection.prepare_cached(SELECT)?;
        let keys = params![pairing.local_key.to_hex(), pairing.peer_key.to_hex(), stream.as_str()];
        let position = |row: &Row<'_>, index| {
            let incarnation = Incarnation(row.get::<_, i64>(index + 1)?.cast_unsigned());
            Ok::<_, rusqlite::Error>(Position { version: DbVersion::new(row.get(index)?), incarnation })
        };
        let read = |row: &Row<'_>| Ok(Served { acknowledged: position(row, 0)?, reached: position(row, 2)? });
        Ok(statement.query_row(keys, read).optional()?)
    }

    /// Writes beside a stream that goes to a remote how far another connection has brought that.
    pub(crate) fn set_elsewhere(
        &self,
        pairing: &Pairing,
        stream: &StreamId,
        elsewhere: Option<Served>,
    ) -> Result<(), StoreError> {
        set_elsewhere(&self.connection(), pairing, stream, elsewhere)
    }

    /// Reads a stream from its table. `own` are the columns that only this table has.
    fn stream<T>(
        &self,
        pairing: &Pairing,
        table: &str,
        own: &str,
        read: impl FnOnce(Stand, &Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let columns = Stand::COLUMNS;
        let select = format!("SELECT {columns}, {own} FROM {table} WHERE local_key = ?1 AND peer_key = ?2");
        let connection = self.connection();
        let mut statement = connection.prepare_cached(&select)?;
        let mut rows = statement.query([pairing.local_key.to_hex(), pairing.peer_key.to_hex()])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        read(Stand::read(row)?, row).map(Some)
    }
}

/// Writes a stream into its table, if the pairing is still there.
fn set_stream<const N: usize>(
    connection: &Connection,
    pairing: &Pairing,
    table: &str,
    own: &str,
    stand: &Stand,
    values: [Value; N],
) -> Result<(), StoreError> {
    let keys = [pairing.local_key, pairing.peer_key].map(|key| Value::from(key.to_hex()));
    let values: Vec<Value> = keys.into_iter().chain(stand.write()).chain(values).collect();
    let columns = Stand::COLUMNS;
    let places: Vec<String> = (3..=values.len()).map(|place| format!("?{place}")).collect();
    let insert = format!(
        "INSERT OR REPLACE INTO {table} (local_key, peer_key, {columns}, {own})
         SELECT local_key, peer_key, {} FROM pairing WHERE local_key = ?1 AND peer_key = ?2",
        places.join(", ")
    );
    connection.prepare_cached(&insert)?.execute(params_from_iter(values))?;
    Ok(())
}

/// The same of what goes with it, if the stream is still there.
fn set_elsewhere(
    connection: &Connection,
    pairing: &Pairing,
    stream: &StreamId,
    elsewhere: Option<Served>,
) -> Result<(), StoreError> {
    const INSERT: &str = "INSERT OR REPLACE INTO elsewhere
         SELECT local_key, peer_key, stream, ?4, ?5, ?6, ?7 FROM outbound
         WHERE local_key = ?1 AND peer_key = ?2 AND stream = ?3";
    const DELETE: &str = "DELETE FROM elsewhere WHERE local_key = ?1 AND peer_key = ?2";
    let (local_key, peer_key) = (pairing.local_key.to_hex(), pairing.peer_key.to_hex());
    let Some(Served { acknowledged, reached }) = elsewhere else {
        connection.prepare_cached(DELETE)?.execute([local_key, peer_key])?;
        return Ok(());
    };
    connection.prepare_cached(INSERT)?.execute(params![
        local_key,
        peer_key,
        stream.as_str(),
        acknowledged.version.get(),
        acknowledged.incarnation.0.cast_signed(),
        reached.version.get(),
        reached.incarnation.0.cast_signed(),
    ])?;
    Ok(())
}

/// What stands in the file is a request that asks for the rest.
fn write_reach(reach: &Reach) -> Vec<u8> {
    v2::sync(&reach.to_request())
}

fn read_request(row: &Row<'_>, index: usize) -> Result<SyncRequest, StoreError> {
    let bytes = row.get_ref(index)?.as_blob().map_err(rusqlite::Error::from)?;
    match v2::decode(bytes, &Limits::default()) {
        Ok(Frame::Sync(request)) => Ok(request),
        Ok(_) => Err(content("a request", &"it is something else")),
        Err(error) => Err(content("a request", &error)),
    }
}

fn read_head(row: &Row<'_>, index: usize) -> Result<Option<EventId>, StoreError> {
    let hex: Option<String> = row.get(index)?;
    hex.map(|hex| EventId::from_hex(&hex).map_err(|error| content("an event's id", &error))).transpose()
}
