//! `litemesh diff`: whether two files hold the same rows, or which differ.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use litemesh::rusqlite::types::Value as SqlValue;
use litemesh::rusqlite::{self, Connection, Row};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::args::DiffArgs;
use crate::database_file::{self, columns, key_columns, quote};
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::output::{self, Output, counted, thousands};
use crate::rows;

/// What the comparison of two files came to; printed with `--json`.
#[derive(Debug, Serialize)]
pub(crate) struct Difference {
    pub(crate) equal: bool,
    a: String,
    b: String,
    tables_only_in_a: Vec<String>,
    tables_only_in_b: Vec<String>,
    tables: Vec<TableDifference>,
}

#[derive(Debug, Default, Serialize)]
struct TableDifference {
    table: String,
    equal: bool,
    rows_a: u64,
    rows_b: u64,
    only_in_a: u64,
    only_in_b: u64,
    different: u64,
    columns_only_in_a: Vec<String>,
    columns_only_in_b: Vec<String>,
    /// As many as the limit allows.
    rows: Vec<RowDifference>,
}

#[derive(Debug, Serialize)]
struct RowDifference {
    kind: Kind,
    key: Map<String, Value>,
    /// Only for rows that both have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cells: Vec<CellDifference>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    OnlyInA,
    OnlyInB,
    Different,
}

#[derive(Debug, Serialize)]
struct CellDifference {
    column: String,
    a: Value,
    b: Value,
    #[serde(skip)]
    texts: (String, String),
}

pub(crate) fn run(args: &DiffArgs) -> Result<ExitCode, Failure> {
    let difference = compare(&args.a, &args.b, args.limit)?;
    let mut output = Output::new();
    if args.json {
        output.json(&difference)?;
    } else {
        print(&difference, &mut output)?;
    }
    Ok(if difference.equal { ExitCode::Ok } else { ExitCode::Different })
}

/// Compares the replicated tables of two files, reading only. At most `limit` rows of each table are listed.
pub(crate) fn compare(a: &Path, b: &Path, limit: usize) -> Result<Difference, Failure> {
    let tables_b = {
        let engine = database_file::open_read_only(b)?;
        database_file::replicated_tables(b, &engine)?.into_iter().collect::<BTreeSet<_>>()
    };
    let engine = database_file::open_read_only(a)?;
    let tables_a = database_file::replicated_tables(a, &engine)?.into_iter().collect::<BTreeSet<_>>();
    // Nothing compared is not nothing different.
    if tables_a.is_empty() && tables_b.is_empty() {
        let what = format!("neither {} nor {} has a replicated table", a.display(), b.display());
        return Err(Failure::database(what, "make tables replicated with `litemesh init FILE`"));
    }
    let connection = engine.connection();
    let names = |tables: &mut dyn Iterator<Item = &Arc<str>>| tables.map(ToString::to_string).collect::<Vec<_>>();
    let only_a = names(&mut tables_a.difference(&tables_b));
    let only_b = names(&mut tables_b.difference(&tables_a));
    attach(connection, b)?;
    let tables = tables_a
        .intersection(&tables_b)
        .map(|table| compare_table(connection, table, limit).map_err(|error| Failure::sqlite(a, &error)))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Difference {
        equal: only_a.is_empty() && only_b.is_empty() && tables.iter().all(|table| table.equal),
        a: a.display().to_string(),
        b: b.display().to_string(),
        tables_only_in_a: only_a,
        tables_only_in_b: only_b,
        tables,
    })
}

/// Makes `b` readable beside the main file, and fixes what both hold. It is opened with the flags of the main file, so for
/// reading only.
fn attach(connection: &Connection, b: &Path) -> Result<(), Failure> {
    let path = b.to_str().ok_or_else(|| {
        Failure::usage(format!("the path {} is no UTF-8", b.display()), "give it a name that is, such as by a link")
    })?;
    connection
        .execute("ATTACH ?1 AS other", [path])
        .and_then(|_| connection.execute_batch("BEGIN"))
        .map_err(|error| Failure::sqlite(b, &error))
}

fn compare_table(connection: &Connection, table: &str, limit: usize) -> rusqlite::Result<TableDifference> {
    let (columns_a, columns_b) = (columns(connection, "main", table)?, columns(connection, "other", table)?);
    let has = |columns: &[database_file::Column], name: &str| columns.iter().any(|column| column.name == name);
    let only = |these: &[database_file::Column], those: &[database_file::Column]| {
        these.iter().filter(|column| !has(those, &column.name)).map(|column| column.name.clone()).collect::<Vec<_>>()
    };
    let count = |schema: &str| {
        database_file::number(connection, &format!("SELECT count(*) FROM {schema}.{}", quote(table)), [])
    };
    let mut found = TableDifference {
        table: table.to_owned(),
        rows_a: count("main")?,
        rows_b: count("other")?,
        columns_only_in_a: only(&columns_a, &columns_b),
        columns_only_in_b: only(&columns_b, &columns_a),
        ..TableDifference::default()
    };
    let key = key_columns(&columns_a);
    if key == key_columns(&columns_b) && !key.is_empty() {
        let cells: Vec<&str> = columns_a
            .iter()
            .filter(|column| column.key_place == 0 && has(&columns_b, &column.name))
            .map(|column| column.name.as_str())
            .collect();
        let pair = Pair { connection, table, key: &key, cells: &cells, limit };
        found.only_in_a = pair.missing("main", "other", Kind::OnlyInA, &mut found.rows)?;
        found.only_in_b = pair.missing("other", "main", Kind::OnlyInB, &mut found.rows)?;
        found.different = pair.differing(&mut found.rows)?;
    } else {
        // Rows that have different keys cannot be told to be the same.
        (found.only_in_a, found.only_in_b) = (found.rows_a, found.rows_b);
    }
    let columns_agree = found.columns_only_in_a.is_empty() && found.columns_only_in_b.is_empty();
    found.equal =
        columns_agree && key == key_columns(&columns_b) && found.only_in_a + found.only_in_b + found.different == 0;
    Ok(found)
}

/// One table of both files.
struct Pair<'a> {
    connection: &'a Connection,
    table: &'a str,
    key: &'a [&'a str],
    cells: &'a [&'a str],
    limit: usize,
}

impl Pair<'_> {
    /// Whether row `x` and row `y` are the same one, in SQL.
    fn same_row(&self) -> String {
        let equal: Vec<String> = self.key.iter().map(|name| format!("y.{0} = x.{0}", quote(name))).collect();
        equal.join(" AND ")
    }

    /// Names of row `x` or `y`, in SQL.
    fn names(row: &str, names: &[&str]) -> String {
        names.iter().map(|name| format!("{row}.{}", quote(name))).collect::<Vec<_>>().join(", ")
    }

    /// Counts and lists rows that `here` has and `there` has not.
    fn missing(&self, here: &str, there: &str, kind: Kind, found: &mut Vec<RowDifference>) -> rusqlite::Result<u64> {
        let (table, key) = (quote(self.table), Self::names("x", self.key));
        let same = self.same_row();
        let sql = format!(
            "SELECT {key} FROM {here}.{table} x WHERE NOT EXISTS (SELECT 1 FROM {there}.{table} y WHERE {same}) ORDER BY {key}"
        );
        let mut statement = self.connection.prepare(&sql)?;
        let mut rows = statement.query([])?;
        let mut count = 0;
        while let Some(row) = rows.next()? {
            count += 1;
            if found.len() < self.limit {
                found.push(RowDifference { kind, key: self.key_of(row)?, cells: Vec::new() });
            }
        }
        Ok(count)
    }

    /// Counts and lists rows that both have, with different cells. Compared here rather than in SQL, where 1 equals 1.0.
    fn differing(&self, found: &mut Vec<RowDifference>) -> rusqlite::Result<u64> {
        let (table, key) = (quote(self.table), Self::names("x", self.key));
        let mut wanted = vec![key.clone(), Self::names("y", self.key)];
        if !self.cells.is_empty() {
            wanted.extend([Self::names("x", self.cells), Self::names("y", self.cells)]);
        }
        let wanted = wanted.join(", ");
        let same = self.same_row();
        let sql = format!("SELECT {wanted} FROM main.{table} x JOIN other.{table} y ON {same} ORDER BY {key}");
        let mut statement = self.connection.prepare(&sql)?;
        let mut rows = statement.query([])?;
        let mut count = 0;
        while let Some(row) = rows.next()? {
            let (keys, cells) = (self.key.len(), self.cells.len());
            let mut different = Vec::new();
            for (index, column) in self.key.iter().enumerate() {
                compare_cell(row, column, index, index + keys, &mut different)?;
            }
            for (index, column) in self.cells.iter().enumerate() {
                compare_cell(row, column, 2 * keys + index, 2 * keys + cells + index, &mut different)?;
            }
            if !different.is_empty() {
                count += 1;
                if found.len() < self.limit {
                    found.push(RowDifference { kind: Kind::Different, key: self.key_of(row)?, cells: different });
                }
            }
        }
        Ok(count)
    }

    fn key_of(&self, row: &Row<'_>) -> rusqlite::Result<Map<String, Value>> {
        let value = |index| Ok::<_, rusqlite::Error>(rows::json(&value_at(row, index)?));
        self.key.iter().enumerate().map(|(index, name)| Ok(((*name).to_owned(), value(index)?))).collect()
    }
}

fn compare_cell(
    row: &Row<'_>,
    column: &str,
    a: usize,
    b: usize,
    different: &mut Vec<CellDifference>,
) -> rusqlite::Result<()> {
    // References first: almost all cells are equal, and need no copy.
    if row.get_ref(a)? == row.get_ref(b)? {
        return Ok(());
    }
    let (a, b) = (value_at(row, a)?, value_at(row, b)?);
    different.push(CellDifference {
        column: column.to_owned(),
        a: rows::json(&a),
        b: rows::json(&b),
        texts: (rows::text(&a), rows::text(&b)),
    });
    Ok(())
}

fn value_at(row: &Row<'_>, index: usize) -> rusqlite::Result<SqlValue> {
    Ok(rows::owned(row.get_ref(index)?))
}

fn print(difference: &Difference, output: &mut Output) -> Result<(), Failure> {
    let Difference { a, b, tables, .. } = difference;
    if difference.equal {
        let rows = tables.iter().map(|table| table.rows_a).sum();
        let (tables, rows) = (counted(tables.len() as u64, "table"), counted(rows, "row"));
        return output.line(format_args!("equal: {tables}, {rows}"));
    }
    output.line(format_args!("different: A is {a}, B is {b}"))?;
    for table in &difference.tables_only_in_a {
        output.line(format_args!("table {table} is replicated in A only"))?;
    }
    for table in &difference.tables_only_in_b {
        output.line(format_args!("table {table} is replicated in B only"))?;
    }
    for table in tables.iter().filter(|table| !table.equal) {
        print_table(table, output)?;
    }
    Ok(())
}

fn print_table(table: &TableDifference, output: &mut Output) -> Result<(), Failure> {
    output.line(format_args!(
        "table {}: {} rows in A only, {} in B only, {} with different cells",
        table.table,
        thousands(table.only_in_a),
        thousands(table.only_in_b),
        thousands(table.different)
    ))?;
    for (columns, side) in [(&table.columns_only_in_a, "A"), (&table.columns_only_in_b, "B")] {
        if !columns.is_empty() {
            output.line(format_args!("  columns in {side} only: {}", columns.join(", ")))?;
        }
    }
    if table.rows.is_empty() {
        return Ok(());
    }
    let mut drawn = output::table(["row", "column", "A", "B"]);
    for row in &table.rows {
        let key = output::printable(&Value::Object(row.key.clone()).to_string());
        match row.kind {
            Kind::OnlyInA => drawn.add_row([&key, "", "has it", ""]),
            Kind::OnlyInB => drawn.add_row([&key, "", "", "has it"]),
            Kind::Different => {
                for cell in &row.cells {
                    drawn.add_row([&key, &cell.column, &cell.texts.0, &cell.texts.1]);
                }
                &mut drawn
            }
        };
    }
    output.line(drawn)?;
    let hidden = (table.only_in_a + table.only_in_b + table.different).saturating_sub(table.rows.len() as u64);
    if hidden > 0 {
        output.line(format_args!("  and {} more rows: --limit shows more", thousands(hidden)))?;
    }
    Ok(())
}
