//! Every case of `nostr_batching.json`, and what happens beyond it.

use litemesh_proto::{CausalLength, ColVersion, Column, DbVersion, PackedKey, Seq, SiteId};
use proptest::prelude::*;
use serde_json::Value as Json;

use super::*;

/// A change as the vectors have them: 55 units beside its value, which are those of this table, column and key.
fn change(value: Value, db_version: i64, seq: i64) -> Change {
    Change {
        table: "todo".into(),
        key: PackedKey::from_bytes(b"\x01\x0b\x04k123".as_slice()),
        column: Column::Cell("title".into()),
        value,
        col_version: ColVersion::new(1),
        db_version: DbVersion::new(db_version),
        site: SiteId::from_bytes([0xA1; 16]),
        causal_length: CausalLength::new(1),
        seq: Seq::new(seq),
    }
}

fn count(case: &Json, name: &str) -> usize {
    usize::try_from(case[name].as_u64().unwrap_or_else(|| panic!("{name} of {case}"))).unwrap()
}

fn input(case: &Json) -> Vec<Change> {
    let letter = match case["name"].as_str().unwrap() {
        "UTF-16 length is counted, not bytes" => "中",
        _ => "x",
    };
    if let Some(count) = case["input"].as_i64() {
        let value = |index| if index % 2 == 0 { Value::Null } else { Value::Integer(index) };
        return (1..=count).map(|index| change(value(index), index, 0)).collect();
    }
    let one = |case: &Json| {
        let numbers = ["db_version", "seq"].map(|name| case[name].as_i64().unwrap());
        let change = change(Value::text(letter.repeat(count(case, "val_length"))), numbers[0], numbers[1]);
        assert_eq!(size(&change), count(case, "size"));
        change
    };
    case["input"].as_array().unwrap().iter().map(one).collect()
}

#[test]
fn pending_changes_are_cut_as_the_original_cuts_them() {
    let vectors: Json = serde_json::from_str(include_str!("../../tests/vectors/nostr_batching.json")).unwrap();
    assert_eq!(count(&vectors, "max_batch_bytes"), BATCH_SIZE_MAX);
    let cases = vectors["cases"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let batches = Batch::cut(input(case), 7);
        let expected = case["batches"].as_array().unwrap();
        assert_eq!(batches.len(), expected.len(), "{}", case["name"]);
        for (batch, expected) in batches.iter().zip(expected) {
            assert_eq!(batch.schema_version(), expected["schemaVersion"].as_i64().unwrap());
            assert_eq!(batch.changes().len(), count(expected, "n"), "{}", case["name"]);
            let around = r#"{"type":"changes","schemaVersion":7,"data":}"#;
            assert_eq!(around.len() + batch.json().len(), count(expected, "json_bytes"), "{}", case["name"]);
            if let Some(order) = expected["order"].as_array() {
                let number = |value: &Json| value.as_i64().unwrap();
                let order: Vec<_> = order.iter().map(|pair| (number(&pair[0]), number(&pair[1]))).collect();
                let got: Vec<_> =
                    batch.changes().iter().map(|change| (change.db_version.get(), change.seq.get())).collect();
                assert_eq!(got, order, "{}", case["name"]);
            }
            assert_eq!(batch, &Batch::new(batch.changes().to_vec(), 7), "the JSON is that of the changes");
        }
    }
}

/// For the original each of them is as small as its key, and all are one message that it cannot encrypt.
#[test]
fn blobs_do_not_make_a_message_that_nobody_can_encrypt() {
    let batches = Batch::cut((1..=20).map(|index| change(Value::blob([200; 40_000]), index, 0)).collect(), 1);
    assert!(batches.len() > 1);
    for batch in &batches {
        assert!(batch.json().len() <= JSON_BYTES_MAX);
    }
    assert_eq!(batches.iter().map(|batch| batch.changes().len()).sum::<usize>(), 20);
}

#[test]
fn what_is_too_long_for_a_message_is_alone_in_one() {
    let huge = || Value::blob([200; 400_000]);
    let batches = Batch::cut(vec![change(0.into(), 1, 0), change(huge(), 2, 0), change(0.into(), 3, 0)], 1);
    let lengths: Vec<usize> = batches.iter().map(|batch| batch.changes().len()).collect();
    assert_eq!(lengths, [1, 1, 1]);
    assert!(batches[1].json().len() > JSON_BYTES_MAX);
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::Integer),
        any::<String>().prop_map(Value::text),
        (0_usize..120_000).prop_map(|length| Value::text("\u{1}".repeat(length))),
        (0_usize..120_000).prop_map(|length| Value::text("é".repeat(length))),
        (0_usize..60_000).prop_map(|length| Value::blob(vec![7; length])),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn nothing_is_lost_and_every_message_can_be_encrypted(values in prop::collection::vec((any_value(), 0_i64..5), 0..30)) {
        let changes: Vec<Change> = values.into_iter().enumerate()
            .map(|(index, (value, version))| change(value, version, index as i64)).collect();
        let batches = Batch::cut(changes.clone(), 3);

        let mut sorted = changes;
        sorted.sort_by_key(|change| change.db_version);
        let sent: Vec<Change> = batches.iter().flat_map(|batch| batch.changes().to_vec()).collect();
        prop_assert_eq!(sent, sorted);
        for batch in &batches {
            prop_assert!(!batch.changes().is_empty());
            let whole: usize = batch.changes().iter().map(size).sum();
            prop_assert!(batch.changes().len() == 1 || whole < BATCH_SIZE_MAX);
            prop_assert!(batch.json().len() <= JSON_BYTES_MAX);
            prop_assert_eq!(batch, &Batch::new(batch.changes().to_vec(), 3));
        }
    }
}
