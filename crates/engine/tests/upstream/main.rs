//! What CRSqlite tests of itself, tested of us: Appendix A of the compatibility specification, a module for each of
//! their files. The scenarios are theirs, as the specification describes them; where a deviation is wanted, its rule is
//! named.
//!
//! `inventory` lists all of them, with the test that stands for each, wherever it is.

#[path = "../support/mod.rs"]
mod support;

mod changes_filters;
mod changes_vtab;
mod cl_merging;
mod cl_triggers;
mod config;
mod crsqlite;
mod dbversion;
mod ext_data;
mod insert_new_rows;
mod inventory;
mod is_crr;
mod lookaside;
mod pk_only_tables;
mod prior_versions;
mod rows_impacted;
mod sandbox;
mod schema_modification;
mod sentinel_omission;
mod seq;
mod site_id_lookaside;
mod siteid;
mod sync;
mod sync_bit;
mod tableinfo;

use litemesh_engine::Engine;
use litemesh_engine::rusqlite::Connection;
use litemesh_engine::rusqlite::types::ValueRef;

/// A database whose site id is this byte, sixteen times.
fn replica(site: u8, sql: &str) -> Engine {
    let connection = Connection::open_in_memory().unwrap();
    connection
        .execute_batch("CREATE TABLE crsql_site_id (site_id BLOB NOT NULL, ordinal INTEGER PRIMARY KEY)")
        .unwrap();
    connection.execute("INSERT INTO crsql_site_id VALUES (?1, 0)", [[site; 16]]).unwrap();
    let engine = Engine::attach(connection).unwrap();
    run(&engine, sql);
    engine
}

/// The table of most scenarios.
const FOO: &str = "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo');";

fn run(engine: &Engine, sql: &str) {
    engine.connection().execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Each row as one text: values separated by spaces, BLOBs in hex.
fn rows(engine: &Engine, sql: &str) -> Vec<String> {
    let mut statement = engine.connection().prepare(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    let columns = statement.column_count();
    let mut rows = statement.query([]).unwrap();
    let mut texts = Vec::new();
    while let Some(row) = rows.next().unwrap() {
        let value = |column| match row.get_ref(column).unwrap() {
            ValueRef::Null => "NULL".to_owned(),
            ValueRef::Integer(value) => value.to_string(),
            ValueRef::Real(value) => format!("{value:?}"),
            ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
            ValueRef::Blob(bytes) => const_hex::encode(bytes),
        };
        texts.push((0..columns).map(value).collect::<Vec<_>>().join(" "));
    }
    texts
}

#[track_caller]
fn check(engine: &Engine, sql: &str, expected: &[&str]) {
    assert_eq!(rows(engine, sql), expected, "{sql}");
}

/// `(key, cid, col_version, db_version, site ordinal, seq)` of foo's clocks.
#[track_caller]
fn check_clocks(engine: &Engine, expected: &[&str]) {
    check(engine, "SELECT * FROM foo__crsql_clock ORDER BY key, col_name", expected);
}

/// `(pk, cid, val, col_version, db_version, first byte of the site, cl, seq)`, in the default order.
const CHANGES: &str = "SELECT pk, cid, val, col_version, db_version, substr(site_id, 1, 1), cl, seq FROM crsql_changes";

/// Copies the changes for which a condition holds, in one transaction, as any program can.
fn sync_where(from: &Engine, to: &Engine, condition: &str) {
    let changes = support::select_changes(from.connection(), &format!("WHERE {condition}"));
    run(to, "BEGIN");
    support::merge_by_sql(to.connection(), &changes);
    run(to, "COMMIT");
}

fn sync(from: &Engine, to: &Engine) {
    sync_where(from, to, "true");
}

fn version(engine: &Engine) -> i64 {
    engine.db_version().unwrap().get()
}
