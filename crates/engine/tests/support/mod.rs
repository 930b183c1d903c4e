//! What the engine's tests share. Lives here rather than in the testkit, which must not depend on the engine.
#![allow(dead_code)] // each test file uses its part

use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};

use fastrand::Rng;
use litemesh_engine::proto::{
    CausalLength, Change, ColVersion, Column, Cursor, DbVersion, PackedKey, Seq, SiteId, Value,
};
use litemesh_engine::rusqlite::types::{ToSqlOutput, Value as SqlValue, ValueRef};
use litemesh_engine::rusqlite::{self, Connection, ToSql, ffi};
use litemesh_engine::{Engine, MergeProgress};
use litemesh_testkit::{Schema, State, Statement, quote};

thread_local! {
    static SITES: RefCell<Rng> = const { RefCell::new(Rng::with_seed(0)) };
}

/// As the testkit's, with sites that depend on the seed as well: their order decides ties and the order of reads.
pub(crate) fn for_seeds(first: u64, count: u64, mut test: impl FnMut(&mut Rng)) {
    litemesh_testkit::for_seeds(first, count, |rng| {
        SITES.set(rng.fork());
        test(rng);
    });
}

/// An engine whose site is the next one of this seed.
pub(crate) fn attach(connection: Connection) -> Engine {
    let site: [u8; 16] = SITES.with_borrow_mut(|sites| std::array::from_fn(|_| sites.u8(..)));
    connection
        .execute_batch("CREATE TABLE crsql_site_id (site_id BLOB NOT NULL, ordinal INTEGER PRIMARY KEY)")
        .unwrap();
    connection.execute("INSERT INTO crsql_site_id VALUES (?1, 0)", [site]).unwrap();
    Engine::attach(connection).unwrap()
}

pub(crate) fn engine(schemas: &[Schema]) -> Engine {
    let engine = attach(Connection::open_in_memory().unwrap());
    create(&engine, schemas);
    engine
}

pub(crate) fn create(engine: &Engine, schemas: &[Schema]) {
    for schema in schemas {
        engine.connection().execute_batch(schema.create).unwrap();
        engine.replicate(&schema.name).unwrap();
    }
}

/// Runs a statement as a transaction of its own. `false` where SQLite refuses it for a constraint.
pub(crate) fn execute(engine: &Engine, schemas: &[Schema], statement: &Statement) -> bool {
    let sql = statement.to_sql(schemas);
    match engine.connection().execute(&sql, []) {
        Ok(_) => true,
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) => false,
        Err(error) => panic!("{sql}: {error}"),
    }
}

/// Does something; gives how many steps SQLite's virtual machine takes for it, too.
pub(crate) fn count_steps<T>(engine: &mut Engine, work: impl FnOnce(&mut Engine) -> T) -> (T, usize) {
    unsafe extern "C" fn count(counter: *mut c_void) -> c_int {
        // SAFETY: the counter below, which outlives the handler.
        unsafe { &*counter.cast::<AtomicUsize>() }.fetch_add(1, Ordering::Relaxed);
        0
    }
    let counter = AtomicUsize::new(0);
    // SAFETY: the connection is open, and the handler is taken away before the counter goes.
    let done = unsafe {
        let db = engine.connection().handle();
        ffi::sqlite3_progress_handler(db, 1, Some(count), (&raw const counter).cast_mut().cast());
        let done = work(engine);
        ffi::sqlite3_progress_handler(db, 0, None, std::ptr::null_mut());
        done
    };
    (done, counter.into_inner())
}

/// One number or text.
pub(crate) fn ask<T: rusqlite::types::FromSql>(connection: &Connection, sql: &str) -> T {
    connection.query_row(sql, [], |row| row.get(0)).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// The message of a statement that must fail.
pub(crate) fn refusal(connection: &Connection, sql: &str) -> String {
    let run = || -> rusqlite::Result<()> {
        let mut statement = connection.prepare(sql)?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
        Ok(())
    };
    run().expect_err(sql).to_string()
}

pub(crate) fn value(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(value) => Value::Integer(value),
        ValueRef::Real(value) => Value::Real(value),
        ValueRef::Text(bytes) => Value::Text(bytes.into()),
        ValueRef::Blob(bytes) => Value::Blob(bytes.into()),
    }
}

/// A value as a parameter.
pub(crate) struct Parameter<'a>(pub(crate) &'a Value);

impl ToSql for Parameter<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self.0 {
            Value::Null => ToSqlOutput::Owned(SqlValue::Null),
            Value::Integer(value) => ToSqlOutput::Owned(SqlValue::Integer(*value)),
            Value::Real(value) => ToSqlOutput::Owned(SqlValue::Real(*value)),
            Value::Text(bytes) => ToSqlOutput::Borrowed(ValueRef::Text(bytes)),
            Value::Blob(bytes) => ToSqlOutput::Borrowed(ValueRef::Blob(bytes)),
        })
    }
}

pub(crate) const INSERT: &str = "INSERT INTO crsql_changes VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";

/// Merges by plain SQL, one change at a time; each is a transaction of its own unless the caller began one.
pub(crate) fn merge_by_sql(connection: &Connection, changes: &[Change]) {
    let mut insert = connection.prepare_cached(INSERT).unwrap();
    for change in changes {
        let Change { table, key, column, value, col_version, db_version, site, causal_length, seq } = change;
        insert
            .execute((
                &**table,
                key.as_bytes(),
                column.as_str(),
                Parameter(value),
                col_version.get(),
                db_version.get(),
                site.as_bytes(),
                causal_length.get(),
                seq.get(),
            ))
            .unwrap();
    }
}

pub(crate) fn merge(engine: &mut Engine, changes: &[Change]) {
    engine.merge(changes, &MergeProgress::default()).unwrap();
}

/// Rows of `crsql_changes`; the versions in them are local.
pub(crate) fn select_changes(connection: &Connection, rest: &str) -> Vec<Change> {
    let mut statement = connection.prepare(&format!("SELECT * FROM crsql_changes {rest}")).unwrap();
    let rows = statement.query_map([], |row| {
        Ok(Change {
            table: row.get::<_, String>(0)?.into(),
            key: PackedKey::from_bytes(row.get::<_, Vec<u8>>(1)?),
            column: Column::from(row.get::<_, String>(2)?.as_str()),
            value: value(row.get_ref(3)?),
            col_version: ColVersion::new(row.get(4)?),
            db_version: DbVersion::new(row.get(5)?),
            site: SiteId::from_slice(&row.get::<_, Vec<u8>>(6)?).unwrap(),
            causal_length: CausalLength::new(row.get(7)?),
            seq: Seq::new(row.get(8)?),
        })
    });
    rows.unwrap().map(Result::unwrap).collect()
}

/// Everything that the engine holds, read natively.
pub(crate) fn dump(engine: &Engine) -> Vec<Change> {
    engine.changes_since(&Cursor::new()).flat_map(|changeset| changeset.unwrap().changes).collect()
}

/// A change without its versions of databases: `(table, pk, cid, val, col_version, cl)`, printed so that sets can be made.
pub(crate) fn identity(change: &Change) -> String {
    let Change { table, key, column, value, col_version, causal_length, .. } = change;
    format!("{table} {key:?} {column:?} {value:?} {col_version:?} {causal_length:?}")
}

/// Base rows, and the clocks as `crsql_changes` tells them.
pub(crate) fn state(engine: &Engine, schemas: &[Schema]) -> State {
    let mut state = State::default();
    for schema in schemas {
        let names = schema.keys.iter().map(|key| quote(key.name)).chain(schema.cells.iter().map(|c| quote(&c.name)));
        let sql = format!("SELECT {} FROM {}", names.collect::<Vec<_>>().join(", "), quote(&schema.name));
        let mut statement = engine.connection().prepare(&sql).unwrap();
        let columns = statement.column_count();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let mut values: Vec<Value> = (0..columns).map(|column| value(row.get_ref(column).unwrap())).collect();
            let cells = values.split_off(schema.keys.len());
            state.put_row(&schema.name, PackedKey::pack(&values).unwrap().as_bytes(), cells);
        }
    }
    for change in select_changes(engine.connection(), "") {
        let clock = (change.value, change.col_version.get(), change.causal_length.get());
        state.put_clock(&change.table, change.key.as_bytes(), change.column.as_str(), clock);
    }
    state
}

#[track_caller]
pub(crate) fn assert_same(left: &State, right: &State, what: &str) {
    let diff = left.diff(right);
    assert!(diff.is_empty(), "{what}:\n{diff}");
}

/// Every merged clock has the origin of its version.
#[track_caller]
pub(crate) fn assert_origins_complete(engine: &Engine) {
    for table in engine.tables().unwrap() {
        let missing: i64 = ask(
            engine.connection(),
            &format!(
                "SELECT count(*) FROM {} c WHERE c.site_id <> 0 AND NOT EXISTS (SELECT 1 FROM litemesh_origin o
                 WHERE o.local_version = c.db_version AND o.site = c.site_id)",
                quote(&format!("{table}__crsql_clock"))
            ),
        );
        assert_eq!(missing, 0, "clocks of {table} without origin");
    }
}
