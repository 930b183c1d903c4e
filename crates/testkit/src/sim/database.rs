//! What simulations ask of a database: its state as the [`Model`](crate::Model) tells it, and what was written.

use litemesh_engine::Engine;
use litemesh_engine::proto::{CausalLength, Change, ColVersion, Column, DbVersion, PackedKey, Seq, SiteId, Value};
use litemesh_engine::rusqlite::types::{FromSql, ValueRef};
use litemesh_engine::rusqlite::{Connection, Params};

use crate::history::{Schema, quote};
use crate::model::State;

fn value(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(value) => Value::Integer(value),
        ValueRef::Real(value) => Value::Real(value),
        ValueRef::Text(bytes) => Value::Text(bytes.into()),
        ValueRef::Blob(bytes) => Value::Blob(bytes.into()),
    }
}

/// One value.
pub(super) fn ask<T: FromSql>(connection: &Connection, sql: &str, parameters: impl Params) -> T {
    let mut statement = connection.prepare_cached(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    statement.query_row(parameters, |row| row.get(0)).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// Rows of `crsql_changes`; the versions in them are local.
fn changes(connection: &Connection, rest: &str, parameters: impl Params) -> Vec<Change> {
    let sql = format!("SELECT * FROM crsql_changes {rest}");
    let mut statement = connection.prepare_cached(&sql).expect("crsql_changes is there");
    let rows = statement.query_map(parameters, |row| {
        Ok(Change {
            table: row.get::<_, String>(0)?.into(),
            key: PackedKey::from_bytes(row.get::<_, Vec<u8>>(1)?),
            column: Column::from(row.get::<_, String>(2)?.as_str()),
            value: value(row.get_ref(3)?),
            col_version: ColVersion::new(row.get(4)?),
            db_version: DbVersion::new(row.get(5)?),
            site: SiteId::from_slice(&row.get::<_, Vec<u8>>(6)?).expect("16 bytes"),
            causal_length: CausalLength::new(row.get(7)?),
            seq: Seq::new(row.get(8)?),
        })
    });
    rows.expect("a query without errors").map(|row| row.expect("nine columns of their types")).collect()
}

/// What this database itself wrote after a version.
pub(super) fn own_changes_since(connection: &Connection, version: DbVersion) -> Vec<Change> {
    changes(connection, "WHERE site_id = crsql_site_id() AND db_version > ?1", [version.get()])
}

/// Base rows, and the clocks as `crsql_changes` tells them, of the tables that are there.
pub(super) fn state(engine: &Engine, schemas: &[Schema]) -> State {
    let mut state = State::default();
    let tables = engine.tables().expect("a database that can be read");
    for schema in schemas.iter().filter(|schema| tables.contains(&schema.name)) {
        let names = schema.keys.iter().map(|key| quote(key.name)).chain(schema.cells.iter().map(|c| quote(&c.name)));
        let sql = format!("SELECT {} FROM {}", names.collect::<Vec<_>>().join(", "), quote(&schema.name));
        let mut statement = engine.connection().prepare_cached(&sql).expect("a table of the schema");
        let columns = statement.column_count();
        let mut rows = statement.query([]).expect("a query without parameters");
        while let Some(row) = rows.next().expect("a database that can be read") {
            let mut values: Vec<Value> =
                (0..columns).map(|column| value(row.get_ref(column).expect("a column of the query"))).collect();
            let cells = values.split_off(schema.keys.len());
            let key = PackedKey::pack(&values).expect("few enough key columns");
            state.put_row(&schema.name, key.as_bytes(), cells);
        }
    }
    for change in changes(engine.connection(), "", []) {
        let clock = (change.value, change.col_version.get(), change.causal_length.get());
        state.put_clock(&change.table, change.key.as_bytes(), change.column.as_str(), clock);
    }
    state
}

/// What somebody may know of a site.
#[derive(Clone, Copy, Default)]
pub(super) struct Known {
    /// Up to which of its versions it was read.
    pub(super) read: DbVersion,
    /// The newest version in which something was written there.
    pub(super) written: DbVersion,
}

impl Known {
    pub(super) fn join(self, other: Self) -> Self {
        Self { read: self.read.max(other.read), written: self.written.max(other.written) }
    }

    /// Under a later version nobody knows anything.
    pub(super) fn newest(self) -> DbVersion {
        self.read.max(self.written)
    }
}

/// What the database knows of a site: what it claims and has merged, also in part.
pub(super) fn known_of(engine: &Engine, site: SiteId) -> Known {
    const ORIGIN: &str = "SELECT coalesce(max(version), 0) FROM litemesh_origin o, crsql_site_id s
         WHERE s.ordinal = o.site AND s.site_id = ?1";
    let merged = DbVersion::new(ask(engine.connection(), ORIGIN, [site.as_bytes()]));
    let claimed = engine.cursor().expect("a database that can be read").get(&site);
    let read = engine.position(site).expect("a database that can be read").version;
    Known { read, written: claimed.max(merged) }
}

/// Merged clocks without the origin of their version.
pub(super) fn clocks_without_origin(engine: &Engine) -> i64 {
    let tables = engine.tables().expect("a database that can be read");
    let missing = |table: &str| {
        let sql = format!(
            "SELECT count(*) FROM {} c WHERE c.site_id <> 0 AND NOT EXISTS (SELECT 1 FROM litemesh_origin o
             WHERE o.local_version = c.db_version AND o.site = c.site_id)",
            quote(&format!("{table}__crsql_clock"))
        );
        ask::<i64>(engine.connection(), &sql, [])
    };
    tables.iter().map(|table| missing(table)).sum()
}
