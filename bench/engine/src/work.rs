//! The workloads. Each has a part that prepares and a part that counts, so that the preparation can be measured alone and
//! subtracted.

use std::path::Path;

use clap::ValueEnum;
use litemesh_engine::{Engine, LocalFilter, LocalPlace, MergeProgress, PageLimits};
use litemesh_proto::codec::v2;
use litemesh_proto::{Change, Column, DbVersion, PeerMessage, Position, Progress, Value};
use rusqlite::types::Value as SqlValue;
use rusqlite::{Connection, Statement, params, params_from_iter};

use crate::subject::{Store, Subject};
use crate::{Error, bulk_floor, floor};

/// What a user does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Work {
    /// Insert rows.
    Insert,
    /// Update one column, by key.
    Update,
    /// Update one column of all rows by one statement.
    UpdateBulk,
    /// Update that changes no value, by one statement.
    UpdateNothing,
    /// Delete rows by key.
    Delete,
    /// Delete the first half of the rows by key, so that others stay.
    DeleteHalf,
    /// Merge changes of new rows. Plain: insert the rows.
    MergeNew,
    /// Merge changes that are known. Plain: insert rows that are there, or ignore.
    MergeKnown,
    /// Merge one newer value a row. Plain: upsert one column.
    MergeNewer,
    /// Merge deletes. Plain: delete by key.
    MergeDelete,
    /// Merge changes of new rows through `crsql_changes`.
    MergeSql,
    /// Read every change. Plain: select the rows.
    Read,
    /// Read every change through `crsql_changes`.
    ReadSql,
    /// Read one changed cell of each row, each written in a transaction of its own. Plain: select that column.
    ReadCells,
    /// The same through `crsql_changes`.
    ReadCellsSql,
    /// The same, all written in one transaction.
    ReadColumn,
    /// Read every change of rows that were each inserted in a transaction of its own. Plain: select the rows.
    ReadSmall,
    /// Pack what [`Read`](Self::Read) reads into frames, page by page, compressed.
    Pack,
    /// Pack what [`ReadSmall`](Self::ReadSmall) reads.
    PackSmall,
}

impl Work {
    /// Whether the database is asked for anything: what is packed was read before.
    pub fn is_of_database(self) -> bool {
        !matches!(self, Self::Pack | Self::PackSmall)
    }
}

/// As it is written on the command line.
pub fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// The shape of the table.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Columns in all, with the key.
    pub columns: usize,
    pub keys: Keys,
}

/// What primary keys are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Keys {
    /// TEXT like UUIDv7: ascending in time, random at its end. Rows that follow each other lie side by side.
    Ascending,
    /// TEXT like UUIDv4: rows lie anywhere.
    Random,
    /// INTEGER, ascending.
    Integer,
}

impl Shape {
    pub fn schema(self) -> String {
        let key = if self.keys == Keys::Integer { "INTEGER" } else { "TEXT" };
        let cells =
            (1..self.columns).map(|n| format!(", {} {}", NAMES[n - 1], if n % 3 == 1 { "TEXT" } else { "INT" }));
        format!("CREATE TABLE todo (id {key} PRIMARY KEY NOT NULL{})", cells.collect::<String>())
    }

    fn key(self, row: usize) -> SqlValue {
        let random = (row as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let time = 1_760_000_000_000 + row as u64;
        let uuid = |version: u64, first: u64| {
            SqlValue::Text(format!(
                "{:08x}-{:04x}-{version}{:03x}-8{:03x}-{:012x}",
                first >> 16,
                first & 0xffff,
                random >> 52,
                random >> 40 & 0xfff,
                random & 0xffff_ffff_ffff
            ))
        };
        match self.keys {
            Keys::Ascending => uuid(7, time),
            Keys::Random => uuid(4, random >> 16),
            Keys::Integer => SqlValue::Integer(row as i64 + 1),
        }
    }

    pub fn row(self, row: usize) -> Vec<SqlValue> {
        let cell = |n: usize| match n % 3 {
            1 => SqlValue::Text(format!("Write the report of week {row}")),
            2 => SqlValue::Integer(row as i64 % 2),
            _ => SqlValue::Integer(1_700_000_000 + row as i64),
        };
        std::iter::once(self.key(row)).chain((1..self.columns).map(cell)).collect()
    }

    /// The columns after the key.
    pub fn cells(self) -> &'static [&'static str] {
        &NAMES[..self.columns - 1]
    }

    pub fn insert(self) -> String {
        format!("INSERT INTO todo VALUES ({})", vec!["?"; self.columns].join(", "))
    }
}

/// Columns after the key: `todo(id, title, done, ts)` for four of them.
const NAMES: [&str; 9] = ["title", "done", "ts", "note", "rank", "size", "place", "state", "more"];

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    pub work: Work,
    pub shape: Shape,
    pub rows: usize,
    /// Rows in one transaction.
    pub batch: usize,
    pub memory_temp_store: bool,
}

/// A task that is prepared.
pub struct Prepared {
    store: Store,
    task: Task,
    /// Made beforehand, so that the driver costs as little as it can.
    rows: Vec<Vec<SqlValue>>,
    changes: Vec<Change>,
    /// To be packed, as a session would send them.
    messages: Vec<PeerMessage>,
    /// Bytes of all frames that were packed.
    packed: usize,
}

impl Task {
    pub fn prepare(self, subject: &Subject, folder: &Path) -> Result<Prepared, Error> {
        if matches!(subject, Subject::Floor | Subject::BulkFloor(_)) {
            let connection = floor::prepare(self, folder)?;
            let rows: Vec<_> = (0..self.rows).map(|row| self.shape.row(row)).collect();
            let is_bulk = matches!(subject, Subject::BulkFloor(_));
            if let Subject::BulkFloor(notices) = subject {
                bulk_floor::prepare(self, &connection, &rows, *notices)?;
            }
            return Ok(Prepared::new(Store::Bare { connection, is_bulk }, self, rows, Vec::new()));
        }
        let store = subject.open(&folder.join("measured.db"), self.memory_temp_store)?;
        store.connection().execute_batch(&self.shape.schema())?;
        store.replicate("todo")?;
        let rows: Vec<_> = (0..self.rows).map(|row| self.shape.row(row)).collect();
        let mut changes = Vec::new();
        match self.work {
            Work::Insert => {}
            Work::Update
            | Work::UpdateBulk
            | Work::UpdateNothing
            | Work::Delete
            | Work::DeleteHalf
            | Work::Read
            | Work::ReadSql => {
                self.fill(store.connection(), &rows)?;
            }
            Work::ReadSmall => Self { batch: 1, ..self }.fill(store.connection(), &rows)?,
            Work::Pack | Work::PackSmall => {
                let batch = if self.work == Work::PackSmall { 1 } else { self.batch };
                Self { batch, ..self }.fill(store.connection(), &rows)?;
                let Store::Native(engine) = &store else { return Err("only what the engine reads is packed".into()) };
                let mut messages = Vec::new();
                each_page(engine, LocalPlace::default(), |page| messages.push(message(page)))?;
                return Ok(Prepared { messages, ..Prepared::new(store, self, rows, Vec::new()) });
            }
            Work::ReadCells | Work::ReadCellsSql => {
                self.fill(store.connection(), &rows)?;
                for row in &rows {
                    store.connection().execute("UPDATE todo SET done = done + 5 WHERE id = ?1", [&row[0]])?;
                }
            }
            Work::ReadColumn => {
                self.fill(store.connection(), &rows)?;
                store.connection().execute_batch("UPDATE todo SET done = done + 5")?;
            }
            _ => {
                // Somebody else's rows, so that they merge as foreign ones.
                let author = Engine::open(folder.join("author.db"))?;
                author.connection().execute_batch(&self.shape.schema())?;
                author.replicate("todo")?;
                self.fill(author.connection(), &rows)?;
                changes = read_all(&author)?;
                if matches!(self.work, Work::MergeKnown | Work::MergeNewer | Work::MergeDelete) {
                    let mut known = Prepared::new(store, self, rows, changes);
                    known.merge()?;
                    let since = author.db_version()?.get();
                    match self.work {
                        Work::MergeNewer => drop(author.connection().execute_batch("UPDATE todo SET done = done + 5")?),
                        Work::MergeDelete => drop(author.connection().execute_batch("DELETE FROM todo WHERE true")?),
                        _ => {}
                    }
                    if self.work != Work::MergeKnown {
                        known.changes = read_all(&author)?;
                        known.changes.retain(|change| change.db_version.get() > since);
                    }
                    author.connection().execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?;
                    known.store.connection().execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?;
                    return Ok(known);
                }
            }
        }
        store.connection().execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?;
        Ok(Prepared::new(store, self, rows, changes))
    }

    pub fn fill(self, connection: &Connection, rows: &[Vec<SqlValue>]) -> Result<(), Error> {
        self.each_row(connection, &self.shape.insert(), |statement, row| {
            Ok(statement.execute(params_from_iter(&rows[row]))?)
        })
    }

    /// Runs a statement for every row, in transactions of `batch`.
    fn each_row(
        self,
        connection: &Connection,
        sql: &str,
        mut execute: impl FnMut(&mut Statement<'_>, usize) -> Result<usize, Error>,
    ) -> Result<(), Error> {
        let mut statement = connection.prepare(sql)?;
        let mut row = 0;
        while row < self.rows {
            let end = self.rows.min(row + self.batch);
            let transaction = (self.batch > 1).then(|| connection.unchecked_transaction()).transpose()?;
            for row in row..end {
                execute(&mut statement, row)?;
            }
            if let Some(transaction) = transaction {
                transaction.commit()?;
            }
            row = end;
        }
        Ok(())
    }
}

/// A page of changes as a message of an answer.
fn message(changes: Vec<Change>) -> PeerMessage {
    let position = changes.last().map(|last| Position { version: last.db_version, ..Position::default() });
    let progress = Progress { answer: 1, number: 1, position, ..Progress::default() };
    PeerMessage::Changes { changes, schema_version: 1, progress: Some(progress) }
}

impl Prepared {
    fn new(store: Store, task: Task, rows: Vec<Vec<SqlValue>>, changes: Vec<Change>) -> Self {
        Self { store, task, rows, changes, messages: Vec::new(), packed: 0 }
    }

    /// Bytes of the frames that were packed, for each change; zero where none were.
    pub fn bytes_a_change(&self) -> f64 {
        self.packed as f64 / self.operations() as f64
    }

    /// How many operations [`run`](Self::run) does: rows, or changes.
    pub fn operations(&self) -> usize {
        let is_of_changes = !self.changes.is_empty() && !matches!(self.store, Store::Sql(_));
        match self.task.work {
            Work::Read | Work::ReadSql | Work::ReadSmall | Work::Pack | Work::PackSmall
                if !matches!(self.store, Store::Sql(_)) =>
            {
                self.task.rows * (self.task.shape.columns - 1)
            }
            Work::DeleteHalf => self.task.rows / 2,
            _ if is_of_changes => self.changes.len(),
            // A row stands for its changes.
            Work::MergeNew | Work::MergeKnown if matches!(self.store, Store::Bare { .. }) => {
                self.task.rows * (self.task.shape.columns - 1)
            }
            _ => self.task.rows,
        }
    }

    pub fn run(&mut self) -> Result<(), Error> {
        let task = self.task;
        let connection = self.store.connection();
        if let Store::Bare { connection, is_bulk } = &self.store {
            let run = if *is_bulk { bulk_floor::run } else { floor::run };
            return run(task, connection, &self.rows);
        }
        match task.work {
            Work::Insert => task.fill(connection, &self.rows),
            Work::Update => task.each_row(connection, "UPDATE todo SET done = ?2 WHERE id = ?1", |statement, row| {
                Ok(statement.execute(params![&self.rows[row][0], row as i64 % 2 + 5])?)
            }),
            Work::UpdateBulk => Ok(connection.execute_batch("UPDATE todo SET done = done + 1")?),
            Work::UpdateNothing => Ok(connection.execute_batch("UPDATE todo SET done = done")?),
            Work::Delete | Work::DeleteHalf => {
                let rows = self.operations();
                Task { rows, ..task }.each_row(connection, "DELETE FROM todo WHERE id = ?1", |statement, row| {
                    Ok(statement.execute([&self.rows[row][0]])?)
                })
            }
            Work::Read | Work::ReadSql | Work::ReadSmall | Work::ReadCells | Work::ReadCellsSql | Work::ReadColumn => {
                self.read()
            }
            Work::MergeNew | Work::MergeKnown | Work::MergeNewer | Work::MergeDelete | Work::MergeSql => self.merge(),
            Work::Pack | Work::PackSmall => {
                self.packed =
                    self.messages.iter().map(|message| std::hint::black_box(v2::message(message)).len()).sum();
                Ok(())
            }
        }
    }

    fn read(&self) -> Result<(), Error> {
        let sql = match (&self.store, self.task.work) {
            (Store::Native(engine), Work::Read | Work::ReadSmall) => return read_all(engine).map(drop),
            (Store::Native(engine), Work::ReadCells | Work::ReadColumn) => {
                let filled_in = self.task.rows.div_ceil(self.task.batch) as i64;
                let read = read_after(engine, LocalPlace::after(DbVersion::new(filled_in)))?;
                assert_eq!(read.len(), self.task.rows);
                return Ok(());
            }
            (Store::Sql(_), Work::ReadCells | Work::ReadCellsSql | Work::ReadColumn) => "SELECT id, done FROM todo",
            (Store::Sql(_), _) => "SELECT * FROM todo",
            // All rows were filled in by the first transactions.
            (_, Work::ReadCellsSql | Work::ReadColumn | Work::ReadCells) => {
                "SELECT * FROM crsql_changes WHERE db_version > (SELECT min(db_version) FROM todo__crsql_clock)"
            }
            _ => "SELECT * FROM crsql_changes",
        };
        let mut statement = self.store.connection().prepare(sql)?;
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        let mut bytes = 0;
        while let Some(row) = rows.next()? {
            for column in 0..columns {
                bytes += match row.get_ref(column)? {
                    rusqlite::types::ValueRef::Text(text) => text.len(),
                    rusqlite::types::ValueRef::Null => 0,
                    _ => 8,
                };
            }
        }
        std::hint::black_box(bytes);
        Ok(())
    }

    /// Merges the changes, or does what a plain table would need to follow.
    fn merge(&mut self) -> Result<(), Error> {
        let (task, shape) = (self.task, self.task.shape);
        match &mut self.store {
            Store::Sql(connection) => match task.work {
                Work::MergeKnown if shape.count(connection)? > 0 => {
                    let sql = shape.insert().replacen("INSERT", "INSERT OR IGNORE", 1);
                    task.each_row(connection, &sql, |statement, row| {
                        Ok(statement.execute(params_from_iter(&self.rows[row]))?)
                    })
                }
                Work::MergeNewer if shape.count(connection)? > 0 => {
                    let sql = "INSERT INTO todo (id, done) VALUES (?1, ?2)
                         ON CONFLICT (id) DO UPDATE SET done = excluded.done";
                    task.each_row(connection, sql, |statement, row| {
                        Ok(statement.execute(params![&self.rows[row][0], row as i64 % 2 + 5])?)
                    })
                }
                Work::MergeDelete if shape.count(connection)? > 0 => {
                    task.each_row(connection, "DELETE FROM todo WHERE id = ?1", |statement, row| {
                        Ok(statement.execute([&self.rows[row][0]])?)
                    })
                }
                _ => task.fill(connection, &self.rows),
            },
            Store::Native(engine) if task.work != Work::MergeSql => {
                let size = self.changes.len().max(1).div_ceil(task.rows.div_ceil(task.batch));
                for batch in self.changes.chunks(size) {
                    engine.merge(batch, &MergeProgress::default())?;
                }
                Ok(())
            }
            store => merge_by_sql(store.connection(), &self.changes),
        }
    }

    /// Pages of the database file after a checkpoint.
    pub fn file_bytes(&self) -> Result<u64, Error> {
        let connection = self.store.connection();
        let count = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
        Ok(u64::try_from(count("page_count")? * count("page_size")?)?)
    }

    pub fn close(self) -> Result<(), Error> {
        self.store.close()
    }
}

impl Shape {
    fn count(self, connection: &Connection) -> Result<i64, Error> {
        Ok(connection.query_row("SELECT EXISTS (SELECT 1 FROM todo)", [], |row| row.get(0))?)
    }
}

fn merge_by_sql(connection: &Connection, changes: &[Change]) -> Result<(), Error> {
    let transaction = connection.unchecked_transaction()?;
    {
        let mut insert =
            transaction.prepare("INSERT INTO crsql_changes VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?;
        for change in changes {
            let value = match &change.value {
                Value::Null => SqlValue::Null,
                Value::Integer(value) => SqlValue::Integer(*value),
                Value::Real(value) => SqlValue::Real(*value),
                Value::Text(text) => SqlValue::Text(String::from_utf8(text.to_vec())?),
                Value::Blob(bytes) => SqlValue::Blob(bytes.to_vec()),
            };
            let column = match &change.column {
                Column::Row => Column::ROW_NAME,
                Column::Cell(name) => name,
            };
            insert.execute(params![
                &*change.table,
                change.key.as_bytes(),
                column,
                value,
                change.col_version.get(),
                change.db_version.get(),
                &change.site.as_bytes()[..],
                change.causal_length.get(),
                change.seq.get(),
            ])?;
        }
    }
    transaction.commit()?;
    Ok(())
}

/// Every change of a database, page by page.
pub fn read_all(engine: &Engine) -> Result<Vec<Change>, Error> {
    read_after(engine, LocalPlace::default())
}

fn read_after(engine: &Engine, place: LocalPlace) -> Result<Vec<Change>, Error> {
    let mut changes = Vec::new();
    each_page(engine, place, |page| changes.extend(page))?;
    Ok(changes)
}

fn each_page(engine: &Engine, mut place: LocalPlace, mut take: impl FnMut(Vec<Change>)) -> Result<(), Error> {
    const LIMITS: PageLimits = PageLimits { changes_max: 4096, bytes_max: 1 << 20, stretch: 1 };
    loop {
        let page = engine.read_local(&place, &LocalFilter::default(), LIMITS)?;
        take(page.changes);
        place = page.place;
        if page.complete.is_some() {
            return Ok(());
        }
    }
}
