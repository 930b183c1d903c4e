//! The table that all scenarios use: a TEXT key and three cells, short values, as in a to-do application.

use litemesh::Database;
use litemesh::rusqlite::{Connection, params};

use crate::Error;

pub const SCHEMA: &str = "CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT, done INTEGER, ts INTEGER)";

pub fn create(db: &Database) -> Result<(), Error> {
    db.lock().connection().execute_batch(SCHEMA)?;
    db.lock().replicate("todo")?;
    Ok(())
}

/// What stands in keys and titles.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Text {
    /// They count up, which zstd sees.
    Counting,
    /// Keys like UUIDv4, and titles of 30 random characters of 64.
    Random,
}

/// Inserts rows in transactions of `batch`.
pub fn fill(connection: &Connection, rows: usize, batch: usize) -> Result<(), Error> {
    fill_with(connection, rows, batch, Text::Counting)
}

pub fn fill_with(connection: &Connection, rows: usize, batch: usize, text: Text) -> Result<(), Error> {
    let (rows, batch) = (i64::try_from(rows)?, i64::try_from(batch)?);
    let mut random = Random(0);
    let mut row = 0;
    while row < rows {
        let transaction = connection.unchecked_transaction()?;
        {
            let mut insert = transaction.prepare_cached("INSERT INTO todo VALUES (?1, ?2, ?3, ?4)")?;
            for n in row..rows.min(row + batch) {
                let (key, title) = match text {
                    Text::Counting => (format!("r-{n:08}"), format!("title of r {n}")),
                    Text::Random => (random.key(), random.title()),
                };
                insert.execute(params![key, title, n % 2, 1_700_000_000 + n])?;
            }
        }
        transaction.commit()?;
        row += batch;
    }
    Ok(())
}

/// SplitMix64: the same rows in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn key(&mut self) -> String {
        let (high, low) = (self.next(), self.next());
        let (a, b, c) = (high >> 32, high >> 16 & 0xFFFF, high & 0xFFF);
        let (d, e) = (low >> 48 & 0x3FFF | 0x8000, low & 0xFFFF_FFFF_FFFF);
        format!("{a:08x}-{b:04x}-4{c:03x}-{d:04x}-{e:012x}")
    }

    fn title(&mut self) -> String {
        const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 .";
        (0..30).map(|_| char::from(LETTERS[(self.next() >> 58) as usize])).collect()
    }
}

pub fn count(connection: &Connection) -> Result<usize, Error> {
    let count: i64 = connection.query_row("SELECT count(*) FROM todo", [], |row| row.get(0))?;
    Ok(usize::try_from(count)?)
}
