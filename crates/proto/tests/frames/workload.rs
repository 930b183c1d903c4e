//! The page of a catch-up: what the engine reads of the table that the benchmarks use (`bench/src/workload.rs`).

use std::sync::Arc;

use litemesh_proto::{
    CausalLength, Change, ColVersion, Column, DbVersion, PackedKey, PeerMessage, Position, Progress, Seq, SiteId, Value,
};

const TRANSACTION_ROWS: i64 = 1000;

/// The changes of rows of three cells each, in transactions of a thousand rows.
pub(crate) fn page(first_row: i64, changes: usize) -> Vec<Change> {
    let (table, columns) = (Arc::from("todo"), ["title", "done", "ts"].map(Column::from));
    let site = SiteId::from_bytes(*b"\x5e\x1a\x90\x33\xb4\x07\x6c\xd2\x88\x41\xf9\x2e\x70\xab\x15\xc6");
    let row = |n: i64| {
        let key = PackedKey::pack(&[Value::text(format!("r-{n:08}"))]).unwrap();
        let values = [Value::text(format!("title of r {n}")), Value::Integer(n % 2), Value::Integer(1_700_000_000 + n)];
        let cells = columns.iter().zip(values).zip(n % TRANSACTION_ROWS * 3..);
        let change = |((column, value), seq): ((&Column, Value), i64)| Change {
            table: Arc::clone(&table),
            key: key.clone(),
            column: column.clone(),
            value,
            col_version: ColVersion::new(1),
            db_version: DbVersion::new(1 + n / TRANSACTION_ROWS),
            site,
            causal_length: CausalLength::FIRST,
            seq: Seq::new(seq),
        };
        cells.map(change).collect::<Vec<_>>()
    };
    (first_row..).flat_map(row).take(changes).collect()
}

/// The page as a message of an answer.
pub(crate) fn message(changes: Vec<Change>) -> PeerMessage {
    let position = changes.last().map(|last| Position { version: last.db_version, ..Position::default() });
    let progress = Progress { answer: 1, number: 17, position, ..Progress::default() };
    PeerMessage::Changes { changes, schema_version: 1, progress: Some(progress) }
}
