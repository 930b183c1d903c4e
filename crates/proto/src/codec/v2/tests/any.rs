//! Any messages, also such as no database would make.

use std::sync::Arc;

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

use crate::limits::PLACE_BYTES_MAX;
use crate::{
    Ack, CausalLength, Change, ColVersion, Column, Cursor, DbVersion, Incarnation, PackedKey, Part, PeerMessage, Place,
    Position, Progress, Seq, SiteId, SyncRequest, Terms, Value,
};

/// Small ones, near each other, and any.
fn number() -> impl Strategy<Value = i64> {
    prop_oneof![4 => 0..4_i64, 2 => -70..200_i64, 1 => any::<i64>()]
}

fn site() -> impl Strategy<Value = SiteId> {
    prop_oneof![3 => (0..3_u8).prop_map(|byte| [byte; 16]), 1 => any::<[u8; 16]>()].prop_map(SiteId::from_bytes)
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![6 => "[a-c]", 1 => Just("-1".to_owned()), 1 => ".*"]
}

fn key() -> impl Strategy<Value = PackedKey> {
    prop_oneof![
        3 => number().prop_map(|number| PackedKey::pack(&[Value::Integer(number)]).unwrap()),
        2 => (0..200_usize, any::<u8>()).prop_map(|(length, last)| {
            PackedKey::pack(&[Value::blob(vec![7; length]), Value::blob([last])]).unwrap()
        }),
        1 => any::<Vec<u8>>().prop_map(PackedKey::from_bytes),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        1 => Just(Value::Null),
        4 => number().prop_map(Value::Integer),
        1 => any::<f64>().prop_map(Value::from),
        2 => ".*".prop_map(Value::text),
        1 => any::<Vec<u8>>().prop_map(|bytes| Value::Text(bytes.into())),
        1 => any::<Vec<u8>>().prop_map(Value::blob),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    let counters = (number(), number(), number(), number());
    (name(), key(), name(), value(), site(), counters).prop_map(|(table, key, column, value, site, counters)| Change {
        table: table.into(),
        key,
        column: Column::from(column.as_str()),
        value,
        col_version: ColVersion::new(counters.0),
        db_version: DbVersion::new(counters.1),
        site,
        causal_length: CausalLength::new(counters.2),
        seq: Seq::new(counters.3),
    })
}

/// Rows of several cells, as transactions have them, and their order disturbed now and then.
fn row() -> impl Strategy<Value = Vec<Change>> {
    let cells = vec((name(), value(), number()), 1..5);
    (change(), cells, any::<bool>()).prop_map(|(row, cells, in_order)| {
        let cell = |(nth, (column, value, version)): (usize, (String, Value, i64))| Change {
            table: Arc::clone(&row.table),
            key: row.key.clone(),
            column: Column::from(column.as_str()),
            value,
            col_version: ColVersion::new(version),
            seq: Seq::new(if in_order { row.seq.get().wrapping_add(nth as i64) } else { version }),
            ..row.clone()
        };
        cells.into_iter().enumerate().map(cell).collect()
    })
}

pub(super) fn changes() -> impl Strategy<Value = Vec<Change>> {
    let rows = vec(prop_oneof![change().prop_map(|change| vec![change]), row()], 0..20);
    // Rows that come back later make runs and gaps.
    (rows, vec(any::<prop::sample::Index>(), 0..20)).prop_map(|(rows, again)| {
        let repeated = again.iter().filter(|_| !rows.is_empty()).map(|index| index.get(&rows));
        rows.iter().chain(repeated).flatten().cloned().collect()
    })
}

fn cursor() -> impl Strategy<Value = Cursor> {
    btree_map(site(), number().prop_map(DbVersion::new), 0..10).prop_map(|entries| entries.into_iter().collect())
}

fn position() -> impl Strategy<Value = Position> {
    (number(), any::<u64>()).prop_map(|(version, incarnation)| Position {
        version: DbVersion::new(version),
        incarnation: Incarnation(incarnation),
    })
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![0..20_usize, Just(PLACE_BYTES_MAX)]
        .prop_flat_map(|length| vec(any::<u8>(), length))
        .prop_map(|bytes| Place(bytes.into()))
}

fn part() -> impl Strategy<Value = Part> {
    prop_oneof![
        Just(Part::Whole),
        (option::of(place()), place()).prop_map(|(after, until)| Part::Piece { after, until }),
        place().prop_map(|after| Part::Last { after }),
    ]
}

fn progress() -> impl Strategy<Value = Progress> {
    let flags = any::<(bool, bool)>();
    (any::<u32>(), any::<u64>(), part(), flags, [(); 3].map(|()| option::of(position())), option::of(cursor()))
        .prop_map(|(answer, number, part, (more, provisional), [since, position, as_of], cursor)| Progress {
            answer,
            number,
            part,
            more,
            provisional,
            since,
            position,
            as_of: as_of.filter(|_| more),
            cursor,
        })
}

pub(super) fn message() -> impl Strategy<Value = PeerMessage> {
    prop_oneof![
        4 => (changes(), any::<i64>(), option::of(progress())).prop_map(|(changes, schema_version, progress)| {
            PeerMessage::Changes { changes, schema_version, progress }
        }),
        1 => option::of(progress()).prop_map(|progress| PeerMessage::Eose { progress }),
        1 => any::<(u32, u64, u64)>().prop_map(|(answer, number, until)| {
            PeerMessage::Ack(Ack { answer, number, until })
        }),
    ]
}

pub(super) fn sync_request() -> impl Strategy<Value = SyncRequest> {
    let terms = (any::<u32>(), any::<u32>(), position(), option::of(place()), option::of(position()));
    let terms =
        terms.prop_map(|(answer, credit, position, staged, as_of)| Terms { answer, credit, position, staged, as_of });
    (cursor(), option::of(terms)).prop_map(|(cursor, terms)| SyncRequest { cursor, terms })
}
