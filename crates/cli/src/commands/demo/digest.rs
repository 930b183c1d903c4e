//! A digest of the rows of a table: equal digests, equal rows.

use litemesh::rusqlite::types::ValueRef;
use litemesh::rusqlite::{self, Connection};
use sha2::{Digest, Sha256};

use crate::database_file::{columns, key_columns, quote};

/// Hex digits that are shown and compared: 64 bits, beside the comparison cell by cell.
const DIGITS: usize = 16;

/// What a table holds, in short.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TableDigest {
    pub(super) rows: u64,
    pub(super) hex: String,
}

/// Digests all rows in the order of their key, columns in the order of their names, since that of the columns may differ
/// between files.
pub(super) fn digest(connection: &Connection, table: &str) -> rusqlite::Result<TableDigest> {
    let columns = columns(connection, "main", table)?;
    let mut names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    names.sort_unstable();
    let list = |names: &[&str]| names.iter().map(|name| quote(name)).collect::<Vec<_>>().join(", ");
    let (cells, key) = (list(&names), list(&key_columns(&columns)));
    let mut statement = connection.prepare(&format!("SELECT {cells} FROM main.{} ORDER BY {key}", quote(table)))?;
    let mut found = statement.query([])?;
    let mut hash = Sha256::new();
    hash.update(cells.as_bytes());
    let mut rows = 0;
    while let Some(row) = found.next()? {
        rows += 1;
        for index in 0..names.len() {
            update(&mut hash, row.get_ref(index)?);
        }
    }
    let mut hex = const_hex::encode(hash.finalize());
    hex.truncate(DIGITS);
    Ok(TableDigest { rows, hex })
}

/// The storage class, the length and the bytes: no two rows look the same.
fn update(hash: &mut Sha256, value: ValueRef<'_>) {
    let mut feed = |class: u8, bytes: &[u8]| {
        hash.update([class]);
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    match value {
        ValueRef::Null => feed(0, &[]),
        ValueRef::Integer(integer) => feed(1, &integer.to_be_bytes()),
        ValueRef::Real(real) => feed(2, &real.to_bits().to_be_bytes()),
        ValueRef::Text(text) => feed(3, text),
        ValueRef::Blob(blob) => feed(4, blob),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_tells_values_and_types_apart_but_not_the_order_of_writing() {
        let digest_of = |rows: &str| {
            let connection = Connection::open_in_memory().unwrap();
            connection.execute_batch("CREATE TABLE t (k PRIMARY KEY NOT NULL, v, w)").unwrap();
            connection.execute_batch(&format!("INSERT INTO t VALUES {rows}")).unwrap();
            digest(&connection, "t").unwrap()
        };
        let base = digest_of("(1, 'ab', 'c'), (2, 1, NULL)");
        assert_eq!(base.rows, 2);
        assert_eq!(base, digest_of("(2, 1, NULL), (1, 'ab', 'c')"));
        for other in
            ["(1, 'a', 'bc'), (2, 1, NULL)", "(1, 'ab', 'c'), (2, 1.0, NULL)", "(1, 'ab', x'63'), (2, 1, NULL)"]
        {
            assert_ne!(base, digest_of(other), "{other}");
        }
    }
}
