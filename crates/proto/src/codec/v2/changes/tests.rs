//! Lists of changes that are hard to group.

use crate::codec::v2::{decode_changes, encode_changes};
use crate::{CausalLength, Change, ColVersion, Column, DbVersion, DecodeError, PackedKey, Seq, SiteId, Value};

fn change(key: i64, column: &str, version: i64, seq: i64) -> Change {
    Change {
        table: "todo".into(),
        key: PackedKey::pack(&[Value::Integer(key)]).unwrap(),
        column: Column::from(column),
        value: Value::Integer(key),
        col_version: ColVersion::new(1),
        db_version: DbVersion::new(version),
        site: SiteId::from_bytes([7; 16]),
        causal_length: CausalLength::FIRST,
        seq: Seq::new(seq),
    }
}

fn check(changes: &[Change]) -> usize {
    let bytes = encode_changes(changes);
    assert_eq!(decode_changes(&bytes).as_deref(), Ok(changes));
    bytes.len()
}

#[test]
fn any_order_is_kept() {
    check(&[]);
    let rows = [
        change(1, "a", 1, 0),
        change(1, "b", 1, 1),
        change(2, "a", 1, 2),
        change(1, "a", 1, 0),
        change(1, "a", 1, 0),
        change(1, "-1", 1, i64::MAX),
        change(1, "", 1, i64::MIN),
        change(3, "b", i64::MIN, -1),
        change(3, "b", i64::MAX, 1),
        change(2, "a", 0, 0),
    ];
    check(&rows);
    let backwards: Vec<_> = rows.iter().rev().cloned().collect();
    check(&backwards);
    for cut in 0..rows.len() {
        check(&rows[..cut]);
        check(&rows[cut..]);
    }
}

#[test]
fn what_a_row_has_once_cuts_rows() {
    let first = change(1, "a", 1, 0);
    let mut list = vec![first.clone()];
    list.push(Change { table: "other".into(), ..first.clone() });
    list.push(Change { site: SiteId::from_bytes([8; 16]), ..first.clone() });
    list.push(Change { causal_length: CausalLength::new(3), ..first.clone() });
    list.push(Change { db_version: DbVersion::new(2), ..first.clone() });
    list.push(Change { key: PackedKey::from_bytes([]), ..first });
    check(&list);
}

#[test]
fn values_come_back_bit_for_bit() {
    let values = [
        Value::Null,
        Value::Integer(i64::MIN),
        Value::Integer(i64::MAX),
        Value::Integer(0),
        Value::Real(1.0),
        Value::Real(f64::INFINITY),
        Value::Real(f64::NEG_INFINITY),
        Value::Real(f64::MIN_POSITIVE / 2.0),
        Value::text(""),
        Value::text("a\0b"),
        Value::Text(Box::from([0xff, 0xfe])),
        Value::blob([]),
        Value::blob([0, 255]),
    ];
    let with = |value: &Value| Change { value: value.clone(), ..change(1, "a", 1, 0) };
    for value in &values {
        // All alike, and beside another type.
        check(&[with(value), with(value)]);
        check(&[with(value), with(&Value::Integer(1)), with(value)]);
    }
    check(&values.iter().map(with).collect::<Vec<_>>());

    let negative_zero = decode_changes(&encode_changes(&[with(&Value::Real(-0.0))])).unwrap();
    assert!(matches!(negative_zero[0].value, Value::Real(zero) if zero.to_bits() == (-0.0_f64).to_bits()));
    // SQLite has no NaN.
    let nan = decode_changes(&encode_changes(&[with(&Value::Real(f64::NAN))])).unwrap();
    assert_eq!(nan[0].value, Value::Null);
}

#[test]
fn strings_and_keys_are_shared() {
    let changes = [change(1, "a", 1, 0), change(1, "b", 1, 1), change(2, "a", 1, 2)];
    let read = decode_changes(&encode_changes(&changes)).unwrap();
    assert!(std::sync::Arc::ptr_eq(&read[0].table, &read[2].table));
    assert!(std::ptr::eq(read[0].key.as_bytes(), read[1].key.as_bytes()));
}

#[test]
fn bytes_that_are_cut_or_go_on_are_errors() {
    let bytes = encode_changes(&[change(1, "a", 1, 0), change(2, "b", 1, 1), change(3, "a", 1, 2)]);
    for end in 0..bytes.len() {
        assert!(decode_changes(&bytes[..end]).is_err(), "{end}");
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert_eq!(decode_changes(&longer), Err(DecodeError::TrailingBytes { what: "changes", bytes: 1 }));
}
