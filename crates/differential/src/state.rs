//! What a database holds: base rows, shadow tables, changes, counters.

use std::collections::BTreeMap;

use crate::Result;
use crate::engine::{Engine, Literal, Outcome, Row};
use crate::program::{DB_VERSION, SEQ};
use crate::schema::{Table, quote};

/// A row of a clock table without its primary key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clock {
    pub(crate) col_version: i64,
    pub(crate) db_version: i64,
    pub(crate) site: i64,
    pub(crate) seq: i64,
}

/// One replicated table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TableState {
    /// Base rows, sorted.
    pub(crate) base: Vec<Row>,
    /// `__crsql_key` to the key's values.
    pub(crate) keys: BTreeMap<i64, Row>,
    pub(crate) clocks: BTreeMap<(i64, String), Clock>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) tables: Vec<TableState>,
    /// `crsql_changes`, sorted.
    pub(crate) changes: Vec<Row>,
    pub(crate) sites: Vec<Row>,
    /// `crsql_master` without the number of the layout.
    pub(crate) master: Vec<Row>,
    pub(crate) version: i64,
    pub(crate) seq: i64,
    pub(crate) rows_impacted: i64,
    /// `last_insert_rowid()` and `changes()`.
    pub(crate) counters: Row,
}

/// Whether these are the values of one key: 1 and 1.0 are equal (DSK-7).
pub(crate) fn is_same_key(a: &[Literal], b: &[Literal]) -> bool {
    let integral = |value: &'_ Literal| value.strip_suffix(".0").map_or_else(|| value.clone(), str::to_owned);
    a.iter().map(integral).eq(b.iter().map(integral))
}

/// The texts that read a state.
fn texts(tables: &[Table]) -> Vec<String> {
    let mut texts: Vec<String> = [
        "SELECT last_insert_rowid(), changes()",
        "SELECT crsql_db_version(), crsql_get_seq(), crsql_rows_impacted()",
        "SELECT *, rowid FROM crsql_changes",
        "SELECT * FROM crsql_site_id ORDER BY ordinal",
        "SELECT key, value FROM crsql_master WHERE key <> 'crsqlite_version' ORDER BY key",
    ]
    .map(str::to_owned)
    .to_vec();
    for Table { name, .. } in tables {
        texts.push(format!("SELECT * FROM {name}"));
        texts.push(format!("SELECT * FROM {name}__crsql_pks"));
        texts.push(format!("SELECT * FROM {name}__crsql_clock"));
    }
    texts
}

/// Runs one text, then reads everything.
pub(crate) fn run_and_read(engine: &mut impl Engine, text: &str, tables: &[Table]) -> Result<(Outcome, State)> {
    let (mut outcomes, state) = run_all_and_read(engine, &[text.to_owned()], tables)?;
    Ok((outcomes.pop().ok_or("an outcome")?, state))
}

/// Runs texts, then reads everything. What comes of a text is in its outcome.
pub(crate) fn run_all_and_read(
    engine: &mut impl Engine,
    first: &[String],
    tables: &[Table],
) -> Result<(Vec<Outcome>, State)> {
    let mut all = first.to_vec();
    all.extend(texts(tables));
    let mut outcomes = engine.run(&all)?;
    let read = outcomes.split_off(first.len());
    let mut read = read.into_iter().zip(all.split_off(first.len()));
    let mut rows = || -> Result<Vec<Row>> {
        let (outcome, text) = read.next().ok_or("an outcome")?;
        outcome.rows().map_err(|error| format!("{text}: {error}").into())
    };
    let mut state = State { counters: one(rows()?)?, ..State::default() };
    let numbers = one(rows()?)?;
    (state.version, state.seq, state.rows_impacted) =
        (integer(&numbers[0])?, integer(&numbers[1])?, integer(&numbers[2])?);
    state.changes = rows()?;
    check_order(&state.changes)?;
    state.changes.sort();
    state.sites = rows()?;
    state.master = rows()?;
    for _ in tables {
        let mut table = TableState { base: rows()?, ..TableState::default() };
        table.base.sort();
        for mut row in rows()? {
            let key = integer(&row.remove(0))?;
            table.keys.insert(key, row);
        }
        for row in rows()? {
            let [key, name, col_version, db_version, site, seq] =
                <[Literal; 6]>::try_from(row).map_err(|_| "a clock")?;
            let clock = Clock {
                col_version: integer(&col_version)?,
                db_version: integer(&db_version)?,
                site: integer(&site)?,
                seq: integer(&seq)?,
            };
            table.clocks.insert((integer(&key)?, name), clock);
        }
        state.tables.push(table);
    }
    Ok((outcomes, state))
}

fn one(rows: Vec<Row>) -> Result<Row> {
    rows.into_iter().next().ok_or_else(|| "a row".into())
}

pub(crate) fn integer(literal: &str) -> Result<i64> {
    literal.parse().map_err(|_| format!("{literal} is no integer").into())
}

/// VT-9: peers rely on the default order.
pub(crate) fn check_order(changes: &[Row]) -> Result<()> {
    let places: Vec<(i64, i64)> =
        changes.iter().map(|row| Ok((integer(&row[DB_VERSION])?, integer(&row[SEQ])?))).collect::<Result<_>>()?;
    if places.is_sorted() { Ok(()) } else { Err(format!("crsql_changes is not in its order: {places:?}").into()) }
}

/// What is different, each on a line.
pub(crate) fn differences(ours: &State, original: &State, tables: &[Table]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut compare = |what: &str, ours: String, original: String| {
        if ours != original {
            lines.push(format!("{what}:\n    ours     {ours}\n    original {original}"));
        }
    };
    let rows = |rows: &[Row]| rows.iter().map(|row| row.join(", ")).collect::<Vec<_>>().join("; ");
    for ((table, ours), original) in tables.iter().zip(&ours.tables).zip(&original.tables) {
        compare(&table.name, rows(&ours.base), rows(&original.base));
        compare(&format!("{}__crsql_pks", table.name), format!("{:?}", ours.keys), format!("{:?}", original.keys));
        compare(&format!("{}__crsql_clock", table.name), clocks(ours), clocks(original));
    }
    compare("crsql_changes", rows(&ours.changes), rows(&original.changes));
    compare("crsql_site_id", rows(&ours.sites), rows(&original.sites));
    compare("crsql_master", rows(&ours.master), rows(&original.master));
    let counters = |state: &State| {
        format!(
            "version {}, seq {}, rows impacted {}, last rowid and changes {:?}",
            state.version, state.seq, state.rows_impacted, state.counters
        )
    };
    compare("counters", counters(ours), counters(original));
    lines
}

fn clocks(table: &TableState) -> String {
    let clock = |((key, name), clock): (&(i64, String), &Clock)| {
        let Clock { col_version, db_version, site, seq } = clock;
        format!("({key}, {name}, {col_version}, {db_version}, {site}, {seq})")
    };
    table.clocks.iter().map(clock).collect::<Vec<_>>().join(" ")
}

/// The texts that make the shadow tables as in `wanted`.
pub(crate) fn rewriting_clocks(wanted: &State, tables: &[Table]) -> Vec<String> {
    let mut texts = Vec::new();
    for (table, state) in tables.iter().zip(&wanted.tables) {
        let name = &table.name;
        texts.push(format!("DELETE FROM {name}__crsql_clock"));
        texts.push(format!("DELETE FROM {name}__crsql_pks"));
        let columns: Vec<_> = table.keys.iter().map(|column| quote(&column.name)).collect();
        for (key, values) in &state.keys {
            texts.push(format!(
                "INSERT INTO {name}__crsql_pks (__crsql_key, {}) VALUES ({key}, {})",
                columns.join(", "),
                values.join(", ")
            ));
        }
        for ((key, column), clock) in &state.clocks {
            let Clock { col_version, db_version, site, seq } = clock;
            texts.push(format!(
                "INSERT INTO {name}__crsql_clock VALUES ({key}, {column}, {col_version}, {db_version}, {site}, {seq})"
            ));
        }
    }
    texts
}

/// The text that leaves no sites but those of `wanted`.
pub(crate) fn rewriting_sites(wanted: &State) -> Vec<String> {
    let ordinals: Vec<_> = wanted.sites.iter().map(|row| row[1].clone()).collect();
    vec![format!("DELETE FROM crsql_site_id WHERE ordinal NOT IN ({})", ordinals.join(", "))]
}

/// The texts that make `crsql_master` as in `wanted`.
pub(crate) fn rewriting_master(wanted: &State) -> Vec<String> {
    let mut texts = vec!["DELETE FROM crsql_master WHERE key <> 'crsqlite_version'".to_owned()];
    let insert = |row: &Row| format!("INSERT INTO crsql_master (key, value) VALUES ({})", row.join(", "));
    texts.extend(wanted.master.iter().map(insert));
    texts
}
