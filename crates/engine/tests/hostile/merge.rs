//! Any changes of a remote, merged natively as one batch and by SQL one by one.

use arbitrary::{Arbitrary, Result, Unstructured};
use litemesh_engine::proto::{CausalLength, Change, ColVersion, Column, DbVersion, PackedKey, Seq, SiteId, Value};
use litemesh_engine::rusqlite::types::{ToSqlOutput, Value as SqlValue, ValueRef};
use litemesh_engine::rusqlite::{ToSql, params};
use litemesh_engine::{Engine, MergeProgress};

use crate::consistency::assert_consistent;
use crate::snapshot::{append, snapshot};

const SCHEMA: &str = "
    CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c TEXT NOT NULL DEFAULT 'c' CHECK (c <> 'refused'));
    CREATE TABLE pair (x NOT NULL, y NOT NULL, v, PRIMARY KEY (y, x)) WITHOUT ROWID;
    CREATE TABLE tag (t TEXT PRIMARY KEY NOT NULL);
    SELECT crsql_as_crr('foo'), crsql_as_crr('pair'), crsql_as_crr('tag');
    INSERT INTO foo (a, b) VALUES (1, 'x'), (2, 'y'), (3, 'z');
    DELETE FROM foo WHERE a > 1;
    INSERT INTO foo (a) VALUES (3);
    INSERT INTO pair VALUES (1, 2, 3);
    INSERT INTO tag VALUES ('t')";

/// Both databases are the same site, so that ties between it and a change are decided alike.
const OWN_SITE: &str = "
    CREATE TABLE crsql_site_id (site_id BLOB NOT NULL, ordinal INTEGER PRIMARY KEY);
    INSERT INTO crsql_site_id VALUES (x'42424242424242424242424242424242', 0)";

fn database() -> Engine {
    let connection = litemesh_engine::rusqlite::Connection::open_in_memory().expect("a database in memory");
    connection.execute_batch(OWN_SITE).unwrap();
    let engine = Engine::attach(connection).expect("the site table is one of ours");
    engine.connection().execute_batch(SCHEMA).expect("the schema is right");
    engine
}

/// A table, how many columns its key has, and its other columns with the one that stands for the row.
const TABLES: [(&str, usize, &[&str]); 3] =
    [("foo", 1, &["-1", "b", "c"]), ("pair", 2, &["-1", "v"]), ("tag", 1, &["-1"])];

fn small(bytes: &mut Unstructured<'_>) -> Result<i64> {
    bytes.int_in_range(0..=6)
}

fn any_number(bytes: &mut Unstructured<'_>) -> Result<i64> {
    const ENDS: [i64; 9] = [i64::MAX, i64::MAX - 1, i64::MIN, -1, 1 << 31, 1 << 32, 1 << 52, 1 << 62, 7];
    Ok(if bool::arbitrary(bytes)? { i64::arbitrary(bytes)? } else { *bytes.choose(&ENDS)? })
}

fn any_value(bytes: &mut Unstructured<'_>) -> Result<Value> {
    Ok(match bytes.int_in_range(0..=5)? {
        0 => Value::Null,
        1 => Value::from(f64::arbitrary(bytes)?),
        2 => Value::Text(Vec::arbitrary(bytes)?.into()),
        3 => Value::Blob(Vec::arbitrary(bytes)?.into()),
        4 => Value::text(*bytes.choose(&["1", "1.0", "refused", ""])?),
        _ => Value::Integer(any_number(bytes)?),
    })
}

/// A change as an honest peer sends it. Few values, so that changes meet in the same cells and tie.
fn honest_change(bytes: &mut Unstructured<'_>) -> Result<Change> {
    let (table, keys, columns) = *bytes.choose(&TABLES)?;
    let mut key = Vec::new();
    for _ in 0..keys {
        key.push(Value::Integer(bytes.int_in_range(1..=3)?));
    }
    let value = match bytes.int_in_range(0..=9)? {
        0 => any_value(bytes)?,
        1 => Value::text("t"),
        2 => Value::Real(1.0),
        _ => Value::Integer(small(bytes)?),
    };
    let mut change = Change {
        table: table.into(),
        key: PackedKey::pack(&key).expect("one value or two"),
        column: Column::from(*bytes.choose(columns)?),
        value,
        col_version: ColVersion::new(small(bytes)?),
        db_version: DbVersion::new(small(bytes)?),
        site: SiteId::from_bytes([*bytes.choose(&[0x11, 0x42, 0x99])?; 16]),
        causal_length: CausalLength::new(small(bytes)?),
        seq: Seq::new(small(bytes)?),
    };
    if change.column == Column::Row {
        (change.value, change.col_version) = (Value::Null, ColVersion::new(change.causal_length.get()));
    }
    Ok(change)
}

/// Puts something into one field that no honest peer sends there.
fn spoil(change: &mut Change, bytes: &mut Unstructured<'_>) -> Result<()> {
    match bytes.int_in_range(0..=10)? {
        0 => change.table = String::arbitrary(bytes)?.as_str().into(),
        1 => change.table = (*bytes.choose(&["FOO", "foo", "pair", "tag", "crsql_master", ""])?).into(),
        2 => change.key = PackedKey::from_bytes(Vec::arbitrary(bytes)?),
        3 => {
            let mut key = Vec::new();
            for _ in 0..bytes.int_in_range(0..=3)? {
                key.push(any_value(bytes)?);
            }
            change.key = PackedKey::pack(&key).expect("at most three values");
        }
        4 => change.column = Column::from(String::arbitrary(bytes)?.as_str()),
        5 => change.column = Column::from(*bytes.choose(&["a", "x", "B", "", "rowid", "-1", "b"])?),
        6 => change.value = any_value(bytes)?,
        7 => change.col_version = ColVersion::new(any_number(bytes)?),
        8 => change.db_version = DbVersion::new(any_number(bytes)?),
        9 => change.causal_length = CausalLength::new(any_number(bytes)?),
        _ => change.seq = Seq::new(any_number(bytes)?),
    }
    Ok(())
}

fn batch(bytes: &mut Unstructured<'_>) -> Result<Vec<Change>> {
    let spoils = bytes.int_in_range(0..=3)?;
    let mut changes = Vec::new();
    while !bytes.is_empty() && changes.len() < CHANGES_MAX {
        changes.push(honest_change(bytes)?);
    }
    for _ in 0..spoils {
        if !changes.is_empty() {
            let index = bytes.choose_index(changes.len())?;
            spoil(&mut changes[index], bytes)?;
        }
    }
    Ok(changes)
}

struct Parameter<'a>(&'a Value);

impl ToSql for Parameter<'_> {
    fn to_sql(&self) -> litemesh_engine::rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self.0 {
            Value::Null => ToSqlOutput::Owned(SqlValue::Null),
            Value::Integer(value) => ToSqlOutput::Owned(SqlValue::Integer(*value)),
            Value::Real(value) => ToSqlOutput::Owned(SqlValue::Real(*value)),
            Value::Text(bytes) => ToSqlOutput::Borrowed(ValueRef::Text(bytes)),
            Value::Blob(bytes) => ToSqlOutput::Borrowed(ValueRef::Blob(bytes)),
        })
    }
}

fn insert(engine: &Engine, change: &Change) -> litemesh_engine::rusqlite::Result<usize> {
    let mut insert =
        engine.connection().prepare_cached("INSERT INTO crsql_changes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")?;
    insert.execute(params![
        &*change.table,
        change.key.as_bytes(),
        change.column.as_str(),
        Parameter(&change.value),
        change.col_version.get(),
        change.db_version.get(),
        change.site.as_bytes(),
        change.causal_length.get(),
        change.seq.get(),
    ])
}

/// Base rows and clocks, without the versions and numbers that depend on how changes were cut (VER-4).
fn state(engine: &Engine) -> String {
    let mut state = String::new();
    for sql in [
        "SELECT \"table\", pk, cid, val, col_version, cl FROM crsql_changes ORDER BY 1, 2, 3",
        "SELECT * FROM foo ORDER BY 1",
        "SELECT * FROM pair ORDER BY 1, 2",
        "SELECT * FROM tag ORDER BY 1",
    ] {
        append(engine.connection(), sql, &mut state);
    }
    state
}

/// Everything that is stored, once the clocks that were noted are.
fn recorded(engine: &Engine) -> String {
    engine.connection().execute_batch("SELECT crsql_get_seq()").unwrap();
    snapshot(engine.connection())
}

/// Most changes of one batch.
const CHANGES_MAX: usize = 12;

/// Merges the changes that the bytes describe: refused whole, or merged and consistent; and both ways give the same.
pub(crate) fn check(bytes: &[u8]) {
    let Ok(changes) = batch(&mut Unstructured::new(bytes)) else { return };

    let mut native = database();
    let before = snapshot(native.connection());
    let merged = native.merge(&changes, &MergeProgress::default());
    if let Err(error) = &merged {
        assert!(snapshot(native.connection()) == before, "refused, and changed something: {error}\n{changes:#?}");
    }
    assert_consistent(&native);

    let (by_sql, waiting) = (database(), database());
    for engine in [&by_sql, &waiting] {
        engine.connection().execute_batch("BEGIN").unwrap();
    }
    let mut refused = 0;
    for change in &changes {
        let before = recorded(&by_sql);
        let inserted = insert(&by_sql, change);
        if let Err(error) = &inserted {
            assert!(!by_sql.connection().is_autocommit(), "{error} ended the transaction: {change:#?}");
            assert!(recorded(&by_sql) == before, "refused, and changed something: {error}\n{change:#?}");
            refused += 1;
        }
        // Here nothing is recorded in between.
        assert_eq!(insert(&waiting, change).is_ok(), inserted.is_ok(), "{change:#?}");
        let rowid = |engine: &Engine| engine.connection().last_insert_rowid();
        assert_eq!(rowid(&waiting), rowid(&by_sql), "{change:#?}");
    }
    waiting.connection().execute_batch("COMMIT").unwrap();
    by_sql.connection().execute_batch("COMMIT").unwrap();
    assert_consistent(&by_sql);
    let tables = ["foo", "pair", "tag"]
        .map(|name| [name.to_owned(), format!("{name}__crsql_pks"), format!("{name}__crsql_clock")]);
    for table in tables.into_iter().flatten().chain(["litemesh_origin".to_owned(), "crsql_site_id".to_owned()]) {
        let rows = |engine: &Engine| {
            let mut rows = String::new();
            append(engine.connection(), &format!("SELECT * FROM {table} ORDER BY 1"), &mut rows);
            rows
        };
        assert_eq!(rows(&waiting), rows(&by_sql), "{table}, recorded at the end and in between: {changes:#?}");
    }
    match merged {
        Ok(_) if refused == 0 => assert_eq!(state(&native), state(&by_sql), "natively and by SQL: {changes:#?}"),
        _ => {}
    }
}
