//! Frames that would cost more than they weigh, or do not hold what they say.

use std::sync::Arc;

use litemesh_proto::codec::v2;
use litemesh_proto::limits::{FRAME_CHANGES_MAX, KEY_SHARED_BYTES_MAX, PLACE_BYTES_MAX};
use litemesh_proto::{
    Change, Column, DecodeError, Limits, PackedKey, Part, PeerMessage, Place, Progress, SyncRequest, Terms, Value,
};

use crate::{hostile, workload};

fn refusal(frame: &[u8]) -> DecodeError {
    v2::decode(frame, &Limits::default()).unwrap_err()
}

/// A change of one cell, as short as can be.
fn short() -> Change {
    let first = workload::page(0, 1).remove(0);
    Change { table: "".into(), key: PackedKey::from_bytes([]), column: Column::from("a"), value: Value::Null, ..first }
}

fn of_one_row(cells: usize, value: &Value) -> Vec<Change> {
    let columns = ["a", "b"].map(Column::from);
    let cell = |nth: usize| Change { column: columns[nth % 2].clone(), value: value.clone(), ..short() };
    (0..cells).map(cell).collect()
}

/// Rows whose keys differ in their last byte, so that each takes over as much as it may.
fn of_long_keys(rows: usize) -> Vec<Change> {
    let key = |nth: usize| PackedKey::from_bytes([vec![7; KEY_SHARED_BYTES_MAX], vec![nth as u8]].concat());
    (0..rows).map(|nth| Change { key: key(nth), ..short() }).collect()
}

#[test]
fn changes_that_cost_most_stay_within_the_promise() {
    let rows = |row: Vec<Change>| -> Vec<Change> {
        let with_key = |nth: usize| {
            let key = PackedKey::from_bytes([nth as u8]);
            row.iter().map(move |change| Change { key: key.clone(), ..change.clone() })
        };
        (0..100).flat_map(with_key).collect()
    };
    let wide_null = hostile::memory_per_byte(&rows(of_one_row(100, &Value::Null)));
    let wide_empty = hostile::memory_per_byte(&rows(of_one_row(100, &Value::text(""))));
    let wide_short = hostile::memory_per_byte(&rows(of_one_row(100, &Value::text("x"))));
    let long_keys = hostile::memory_per_byte(&of_long_keys(10_000));
    // The test is worth nothing if these are not dear.
    for dear in [wide_null, wide_empty, wide_short, long_keys] {
        assert!(dear > 40, "{wide_null} {wide_empty} {wide_short} {long_keys}");
    }
}

/// Dictionaries take memory before any change is read.
#[test]
fn dictionaries_that_cost_most_stay_within_the_promise() {
    let count = [0xd0, 0x86, 0x03]; // 50,000
    let names = [[1, 0].as_slice(), &count, &[0; 50_000]].concat();
    hostile::check(&names);
    // Layout, no sites, one empty name, then shapes of one cell and no row.
    let shapes = [[1, 0, 1, 0].as_slice(), &count, &[0, 1, 0].repeat(50_000)].concat();
    hostile::check(&shapes);
    // No rows, and the columns of every shape: keys, column version, values.
    let columns = [0, 0, 0, 0, 0, 0, 0].repeat(50_000);
    let with_columns = [shapes.as_slice(), &[0], &[0; 10], &columns].concat();
    assert_eq!(v2::decode_changes(&with_columns), Ok(vec![]));
    hostile::check(&with_columns);
    // A cursor.
    let mut cursor = vec![2, 0, 0, 0xd0, 0x86, 0x03];
    for nth in 0..50_000_u32 {
        cursor.extend([&nth.to_be_bytes(), [7; 13].as_slice()].concat());
    }
    assert!(v2::decode(&cursor, &Limits::default()).is_ok());
    hostile::check(&cursor);
}

#[test]
fn more_changes_than_a_frame_may_have_are_refused_before_space_is_reserved() {
    let changes = of_one_row(FRAME_CHANGES_MAX, &Value::Null);
    let fits = v2::encode_changes(&changes);
    assert_eq!(v2::decode_changes(&fits).map(|changes| changes.len()), Ok(FRAME_CHANGES_MAX));
    let one_more = v2::encode_changes(&of_one_row(FRAME_CHANGES_MAX + 1, &Value::Null));
    let refused = DecodeError::TooManyChanges { changes: FRAME_CHANGES_MAX + 1, max: FRAME_CHANGES_MAX };
    assert_eq!(v2::decode_changes(&one_more), Err(refused));
}

#[test]
fn places_are_bounded() {
    let longest = Place(vec![1; PLACE_BYTES_MAX].into());
    let longer = Place(vec![1; PLACE_BYTES_MAX + 1].into());
    let request = |place: Place| {
        v2::sync(&SyncRequest {
            terms: Some(Terms { staged: Some(place), ..Terms::default() }),
            ..SyncRequest::default()
        })
    };
    let eose = |after: Place| {
        let progress = Progress { part: Part::Last { after }, ..Progress::default() };
        v2::message(&PeerMessage::Eose { progress: Some(progress) })
    };
    let refused = DecodeError::TooLong { what: "place", bytes: PLACE_BYTES_MAX + 1, max: PLACE_BYTES_MAX };
    for frame in [request(longest.clone()), eose(longest)] {
        assert!(v2::decode(&frame, &Limits::default()).is_ok());
    }
    for frame in [request(longer.clone()), eose(longer)] {
        assert_eq!(refusal(&frame), refused);
    }
}

#[test]
fn what_a_list_of_changes_points_to_must_be_there() {
    let good = v2::encode_changes(&[Change { table: Arc::from("t"), ..short() }]);
    assert!(v2::decode_changes(&good).is_ok());
    // Layout, one site, then names: 2, `t`, `a`; shapes: 1, table, cells, column; rows: 1, shape, site…
    let names = 1 + 1 + 16;
    assert_eq!(good[names..][..14], [2, 1, b't', 1, b'a', 1, 0, 1, 1, 1, 0, 0, 0, 0]);
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        v2::decode_changes(&bytes).unwrap_err()
    };
    assert_eq!(with(0, 2), DecodeError::UnknownLayout { layout: 2, known: 1 });
    assert_eq!(with(names + 2, 0xff), DecodeError::NotUtf8 { what: "name" });
    assert_eq!(with(names + 6, 2), DecodeError::NotThere { what: "name", number: 2, count: 2 });
    assert_eq!(with(names + 7, 0), DecodeError::EmptyRow);
    assert_eq!(with(names + 8, 9), DecodeError::NotThere { what: "name", number: 9, count: 2 });
    assert_eq!(with(names + 11, 2), DecodeError::NotThere { what: "shape", number: 1, count: 1 });
    assert_eq!(with(names + 13, 1), DecodeError::NotThere { what: "site", number: usize::MAX, count: 1 });
}

#[cfg(feature = "compress")]
mod compressed {
    use litemesh_proto::limits::FRAME_EXPANSION_MAX;

    use super::*;

    const CHANGES: u8 = 3;

    /// A frame that says it has `raw` bytes.
    fn frame(raw: usize, zstd: &[u8]) -> Vec<u8> {
        let mut bytes = vec![CHANGES, 1];
        let mut rest = raw;
        while rest >= 0x80 {
            bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        bytes.push(rest as u8);
        bytes.extend(zstd);
        bytes
    }

    #[test]
    fn a_bomb_is_refused_before_it_goes_off() {
        let zstd = zstd::bulk::compress(&vec![0; 30 << 20], 1).unwrap();
        let refused = DecodeError::Expansion { compressed: zstd.len(), raw: 30 << 20, ratio: FRAME_EXPANSION_MAX };
        assert_eq!(refusal(&frame(30 << 20, &zstd)), refused);
        // One that says less than it has is stopped where it said it would end.
        assert!(matches!(refusal(&frame(1000, &zstd)), DecodeError::Zstd { .. }));
        let max = Limits::default().message_bytes_max;
        let refused = DecodeError::TooLong { what: "frame", bytes: max + 1, max };
        assert_eq!(refusal(&frame(max + 1, &zstd)), refused);
    }

    #[test]
    fn what_is_no_zstd_or_shorter_than_it_says_is_refused() {
        let zstd = zstd::bulk::compress(&[0; 100], 1).unwrap();
        assert!(matches!(refusal(&frame(101, &zstd)), DecodeError::Zstd { .. }));
        assert!(matches!(refusal(&frame(100, &zstd[..zstd.len() - 1])), DecodeError::Zstd { .. }));
        assert!(matches!(refusal(&frame(100, &[7; 30])), DecodeError::Zstd { .. }));
        assert!(matches!(refusal(&frame(0, &[])), DecodeError::Truncated { .. }));
    }

    /// A sender never makes what a receiver refuses, and pads rather than give up compression.
    #[test]
    fn frames_that_expand_far_are_padded_and_read() {
        let zeros = |bytes: usize| PeerMessage::Changes {
            changes: vec![Change { value: Value::blob(vec![0; bytes]), ..workload::page(0, 1).remove(0) }],
            schema_version: 0,
            progress: None,
        };
        for bytes in [300, 1000, 10_000, 1 << 20, 16 << 20] {
            let message = zeros(bytes);
            let frame = v2::message(&message);
            assert!(frame.len() < 150 + bytes / (FRAME_EXPANSION_MAX - 1), "{bytes}: {}", frame.len());
            match v2::decode(&frame, &Limits::default()).unwrap() {
                v2::Frame::Message(read) => assert_eq!(read.verify(&Limits::default()), Ok(message)),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_does_not_shrink_is_sent_as_it_is() {
        let mut seed = 1_u64;
        let mut noise = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed as u8
        };
        let value = Value::blob((0..100_000).map(|_| noise()).collect::<Vec<_>>());
        let change = Change { value, ..workload::page(0, 1).remove(0) };
        let frame = v2::message(&PeerMessage::Changes { changes: vec![change], schema_version: 0, progress: None });
        assert_eq!(frame[1], 0);
    }
}
