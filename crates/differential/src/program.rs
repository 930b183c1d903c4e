//! Random programs: statements as applications and peers send them. Made before anything runs, so that a failing
//! program can be cut down.

use fastrand::Rng;

use crate::engine::Literal;
use crate::schema::{Column, Table, pick, quote};

/// One statement, and what has to be known about it to judge a difference.
#[derive(Clone, Debug)]
pub(crate) struct Statement {
    pub(crate) sql: String,
    pub(crate) about: About,
}

#[derive(Clone, Debug)]
pub(crate) enum About {
    /// Savepoints, settings, writes to tables that do not replicate: must do the same on both.
    Plain,
    /// INSERT, DELETE, and UPDATE of cells.
    Write,
    /// UPDATE of a primary key.
    Move {
        table: usize,
        /// The keys of the only row that moves, before and after; `None` where several may.
        row: Option<(Vec<Literal>, Vec<Literal>)>,
    },
    /// INSERT INTO crsql_changes.
    Merge(Vec<Incoming>),
    /// The table becomes an ordinary one and a replicated one again.
    Refound { table: usize },
    /// A window of `crsql_begin_alter` and `crsql_commit_alter`, in one step: inside of it CRSqlite can read nothing.
    Alter { table: usize, texts: Vec<String> },
    /// SELECT from `crsql_changes`.
    Filter {
        /// The columns that it is ordered by; `true` is descending.
        order: Vec<(usize, bool)>,
        /// The same, where SQLite itself filters all rows.
        unpushed: String,
    },
}

impl Statement {
    pub(crate) fn plain(sql: impl Into<String>) -> Self {
        Self { sql: sql.into(), about: About::Plain }
    }
}

/// A change that is merged by SQL.
#[derive(Clone, Debug)]
pub(crate) struct Incoming {
    pub(crate) table: usize,
    pub(crate) keys: Vec<Literal>,
    pub(crate) column: String,
    pub(crate) col_version: i64,
    pub(crate) causal_length: i64,
}

/// Statements that run in one transaction, or each by itself.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    pub(crate) ends: Ends,
    pub(crate) statements: Vec<Statement>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    /// Each statement is a transaction of its own.
    Alone,
    Commit,
    Rollback,
    /// FN-7: nothing is recorded meanwhile.
    Untracked,
}

/// The sites that merged changes come from. The first is that of the two databases themselves.
pub(crate) const SITES: [&str; 4] = [
    "x'4c696d65736800400080000000000001'",
    "x'00112233445566778899aabbccddeeff'",
    "x'ffeeddccbbaa49988766554433221100'",
    "x'4c696d65736800400080000000000002'",
];

/// Units for two engines that are compared.
pub(crate) fn comparing_units(rng: &mut Rng, tables: &[Table], count: usize) -> Vec<Unit> {
    (0..count).map(|_| random_unit(rng, tables)).collect()
}

fn random_unit(rng: &mut Rng, tables: &[Table]) -> Unit {
    let alone = |statement| Unit { ends: Ends::Alone, statements: vec![statement] };
    match rng.u8(..100) {
        0..40 => alone(write(rng, tables)),
        40..62 => alone(merge(rng, tables)),
        62..70 => alone(filter(rng)),
        70..73 => {
            let on = if rng.bool() { "ON" } else { "OFF" };
            alone(Statement::plain(format!("PRAGMA recursive_triggers = {on}")))
        }
        73..75 => alone(Statement::plain("UPDATE scratch SET n = n + 1")),
        75..78 => bulk_load(rng, tables),
        78 => alone(refound(rng, tables)),
        79..82 => alone(alter(rng, tables)),
        _ => transaction(rng, tables),
    }
}

/// A transaction with savepoints, merges between writes, and statements that fail.
fn transaction(rng: &mut Rng, tables: &[Table]) -> Unit {
    let mut statements = Vec::new();
    let mut open = 0;
    for _ in 0..rng.usize(1..8) {
        let statement = match rng.u8(..20) {
            0..12 => write(rng, tables),
            12..15 => merge(rng, tables),
            15..17 => {
                open += 1;
                Statement::plain(format!("SAVEPOINT s{open}"))
            }
            17 if open > 0 => Statement::plain(format!("ROLLBACK TO s{open}")),
            18 if open > 0 => {
                open -= 1;
                Statement::plain(format!("RELEASE s{}", open + 1))
            }
            19 => filter(rng),
            _ => {
                // A transaction that writes nothing would leave the promise to the next one, in both engines
                // differently.
                statements.push(certain_write(rng, tables));
                Statement::plain(format!("SELECT crsql_next_db_version({})", pick(rng, &["", "0", "-1", "5", "60"])))
            }
        };
        statements.push(statement);
    }
    Unit { ends: if rng.u8(..4) == 0 { Ends::Rollback } else { Ends::Commit }, statements }
}

/// CRR-9, CRR-5.
fn refound(rng: &mut Rng, tables: &[Table]) -> Statement {
    let table = rng.usize(..tables.len());
    let name = &tables[table].name;
    Statement {
        sql: format!("SELECT crsql_as_table('{name}'), crsql_as_crr('{name}')"),
        about: About::Refound { table },
    }
}

/// Section 9.
fn alter(rng: &mut Rng, tables: &[Table]) -> Statement {
    let index = rng.usize(..tables.len());
    let table = &tables[index];
    let name = &table.name;
    let mut texts = Vec::new();
    for _ in 0..rng.usize(..3) {
        texts.push(match rng.u8(..6) {
            0..3 => {
                let default = pick(rng, &["", " DEFAULT NULL", " DEFAULT 1", " NOT NULL DEFAULT 2", " DEFAULT 'x'"]);
                format!("ALTER TABLE {name} ADD COLUMN n{}{default}", rng.u8(..4))
            }
            3 if !table.cells.is_empty() => {
                format!("ALTER TABLE {name} DROP COLUMN {}", quote(&pick(rng, &table.cells).name))
            }
            4 if !table.cells.is_empty() => {
                let cell = quote(&pick(rng, &table.cells).name);
                format!("ALTER TABLE {name} RENAME COLUMN {cell} TO r{}", rng.u8(..4))
            }
            _ => format!("ALTER TABLE {name} DROP COLUMN n{}", rng.u8(..4)),
        });
    }
    for _ in 0..rng.usize(..3) {
        texts.push(match rng.u8(..4) {
            0 | 1 => insert(rng, table),
            2 => format!("UPDATE {name} SET n{} = 5", rng.u8(..4)),
            _ => format!("DELETE FROM {name} WHERE {}", table.matching(&keys(rng, table))),
        });
    }
    rng.shuffle(&mut texts);
    texts.insert(0, format!("SELECT crsql_begin_alter('{name}')"));
    texts.push(format!("SELECT crsql_commit_alter('{name}')"));
    Statement { sql: texts.join(";\n"), about: About::Alter { table: index, texts } }
}

/// Rows that nobody is told of.
fn bulk_load(rng: &mut Rng, tables: &[Table]) -> Unit {
    let written = [pick(rng, tables), pick(rng, tables)];
    let insert = |table: Table| Statement { sql: insert(rng, &table), about: About::Write };
    Unit { ends: Ends::Untracked, statements: written.map(insert).to_vec() }
}

/// A write that does not fail and records something.
fn certain_write(rng: &mut Rng, tables: &[Table]) -> Statement {
    let table = pick(rng, tables);
    let names: Vec<_> = table.keys.iter().map(|column| quote(&column.name)).collect();
    let sql = format!("REPLACE INTO {} ({}) VALUES ({})", table.name, names.join(", "), keys(rng, &table).join(", "));
    Statement { sql, about: About::Write }
}

/// A write as applications make it.
pub(crate) fn write(rng: &mut Rng, tables: &[Table]) -> Statement {
    let index = rng.usize(..tables.len());
    let table = &tables[index];
    let sql = match rng.u8(..100) {
        0..50 => insert(rng, table),
        50..70 if !table.cells.is_empty() => update(rng, table),
        50..85 => return move_rows(rng, index, table),
        85..98 => format!("DELETE FROM {} WHERE {}", table.name, table.matching(&keys(rng, table))),
        _ => format!("DELETE FROM {}", table.name),
    };
    Statement { sql, about: About::Write }
}

fn keys(rng: &mut Rng, table: &Table) -> Vec<Literal> {
    table.keys.iter().map(|column| column.value(rng)).collect()
}

pub(crate) fn insert(rng: &mut Rng, table: &Table) -> String {
    let mut columns: Vec<&Column> = table.keys.iter().collect();
    columns.extend(table.cells.iter().filter(|_| rng.u8(..5) > 0));
    let names: Vec<_> = columns.iter().map(|column| quote(&column.name)).collect();
    let row = |rng: &mut Rng| {
        let values: Vec<_> = columns.iter().map(|column| column.written(rng)).collect();
        format!("({})", values.join(", "))
    };
    let rows: Vec<_> = (0..pick(rng, &[1, 1, 1, 2, 3])).map(|_| row(rng)).collect();
    let (verb, upsert) = match rng.u8(..10) {
        0..3 => ("INSERT", String::new()),
        3 => ("INSERT OR IGNORE", String::new()),
        4..7 => (pick(rng, &["REPLACE", "INSERT OR REPLACE"]), String::new()),
        7 => ("INSERT OR FAIL", String::new()),
        8 => ("INSERT", " ON CONFLICT DO NOTHING".to_owned()),
        _ if table.cells.is_empty() => ("INSERT", " ON CONFLICT DO NOTHING".to_owned()),
        _ if rng.bool() => {
            let cell = quote(&pick(rng, &table.cells).name);
            ("INSERT", format!(" ON CONFLICT DO UPDATE SET {cell} = excluded.{cell}"))
        }
        _ => ("INSERT", format!(" ON CONFLICT DO UPDATE SET {}", sets(rng, table).join(", "))),
    };
    format!("{verb} INTO {} ({}) VALUES {}{upsert}", table.name, names.join(", "), rows.join(", "))
}

fn sets(rng: &mut Rng, table: &Table) -> Vec<String> {
    let count = rng.usize(1..=table.cells.len().min(3));
    let cells = rng.choose_multiple(&table.cells, count);
    cells.into_iter().map(|cell| format!("{} = {}", quote(&cell.name), cell.written(rng))).collect()
}

fn update(rng: &mut Rng, table: &Table) -> String {
    let sets = if rng.u8(..5) == 0 {
        // Changes nothing.
        let cell = quote(&pick(rng, &table.cells).name);
        vec![format!("{cell} = {cell}")]
    } else {
        sets(rng, table)
    };
    let condition = match rng.u8(..6) {
        0 => String::new(),
        1 => format!(" WHERE {} IS NOT NULL", quote(&table.cells[0].name)),
        _ => format!(" WHERE {}", table.matching(&keys(rng, table))),
    };
    let or = pick(rng, &["", "", "", "OR IGNORE ", "OR REPLACE "]);
    format!("UPDATE {or}{} SET {}{condition}", table.name, sets.join(", "))
}

/// An UPDATE of the primary key, `OR REPLACE` now and then.
fn move_rows(rng: &mut Rng, index: usize, table: &Table) -> Statement {
    let cells = if rng.bool() || table.cells.is_empty() { Vec::new() } else { sets(rng, table) };
    let or = pick(rng, &["", "", "OR REPLACE ", "OR IGNORE "]);
    if rng.u8(..8) == 0 {
        // Whatever the type, each row gets a key of its own that was not there.
        let key = quote(&pick(rng, &table.keys).name);
        let mut all = vec![format!("{key} = {key} + 1")];
        all.extend(cells);
        let sql = format!("UPDATE {or}{} SET {}", table.name, all.join(", "));
        return Statement { sql, about: About::Move { table: index, row: None } };
    }
    let (from, to) = (keys(rng, table), keys(rng, table));
    // 1 and 1.0 are one key, which CRSqlite takes for two here (LW-6, in the register).
    let is_one = |value: &Literal| matches!(value.as_str(), "1" | "1.0");
    if from.iter().zip(&to).any(|(from, to)| is_one(from) && is_one(to)) {
        return Statement { sql: insert(rng, table), about: About::Write };
    }
    let mut all: Vec<_> =
        table.keys.iter().zip(&to).map(|(column, value)| format!("{} = {value}", quote(&column.name))).collect();
    all.extend(cells);
    let sql = format!("UPDATE {or}{} SET {} WHERE {}", table.name, all.join(", "), table.matching(&from));
    Statement { sql, about: About::Move { table: index, row: Some((from, to)) } }
}

/// Changes as peers could send them: any version, any life, any author.
fn merge(rng: &mut Rng, tables: &[Table]) -> Statement {
    match rng.u8(..16) {
        0 | 1 => return odd_merge(rng, tables),
        2 => return malformed_merge(rng, tables),
        _ => {}
    }
    let count = pick(rng, &[1, 1, 1, 2, 4]);
    let (rows, changes): (Vec<_>, Vec<_>) = (0..count)
        .map(|_| {
            let row = ChangeRow::random(rng, tables);
            (row.to_sql(), row.change)
        })
        .unzip();
    let sql = format!("INSERT INTO crsql_changes VALUES {}", rows.join(", "));
    Statement { sql, about: About::Merge(changes) }
}

/// MRG-6: a sentinel whose versions differ, or a cell of a dead row.
fn malformed_merge(rng: &mut Rng, tables: &[Table]) -> Statement {
    let mut row = ChangeRow::random(rng, tables);
    if row.change.column == ROW {
        row.change.col_version = rng.i64(0..5);
        row.numbers[0] = row.change.col_version.to_string();
    } else {
        row.change.causal_length = pick(rng, &[2, 4]);
        row.numbers[2] = row.change.causal_length.to_string();
    }
    Statement {
        sql: format!("INSERT INTO crsql_changes VALUES {}", row.to_sql()),
        about: About::Merge(vec![row.change]),
    }
}

/// Changes that are refused, and numbers and names of other types (MRG-2, MRG-3, MRG-4, MRG-11, 2.3).
fn odd_merge(rng: &mut Rng, tables: &[Table]) -> Statement {
    let mut row = ChangeRow::random(rng, tables);
    match rng.u8(..10) {
        // CRSqlite aborts on an empty key and on integers of more than 8 bytes: not here.
        0 => row.key = pick(rng, &["x'0109'", "x'010f'", "x'0106'", "x'ff0901'"]).to_owned(),
        1 => row.key = "x'0909010901090109010901090109010901'".to_owned(),
        2 => row.table = pick(rng, &["'no_such_table'", "'ITEMS'", "NULL", "7"]).to_owned(),
        3 => row.column = pick(rng, &["'no such column'", "'id'", "'k2'", "NULL", "'__crsql_key'", "''"]).to_owned(),
        4 => row.site = pick(rng, &["'short'", "x'00'", "x'00112233445566778899aabbccddeeff00'"]).to_owned(),
        5 => row.table = format!("'{}'", "t".repeat(2049)),
        6 => row.column = format!("'{}'", "c".repeat(2049)),
        _ => {
            let index = rng.usize(..row.numbers.len());
            let number = &row.numbers[index];
            row.numbers[index] = match rng.u8(..5) {
                0 => format!("'{number}'"),
                1 => format!("{number}.0"),
                2 => format!("'{number} and more'"),
                3 => format!("' {number}.9'"),
                _ => {
                    match index {
                        0 => row.change.col_version = 0,
                        2 => row.change.causal_length = 0,
                        _ => {}
                    }
                    "NULL".to_owned()
                }
            };
        }
    }
    Statement {
        sql: format!("INSERT INTO crsql_changes VALUES {}", row.to_sql()),
        about: About::Merge(vec![row.change]),
    }
}

const ROW: &str = "-1";

/// The values of a row that is inserted into `crsql_changes`, as SQL.
struct ChangeRow {
    table: String,
    key: String,
    column: String,
    value: Literal,
    /// col_version, db_version, cl, seq.
    numbers: [String; 4],
    site: String,
    change: Incoming,
}

impl ChangeRow {
    fn random(rng: &mut Rng, tables: &[Table]) -> Self {
        let index = rng.usize(..tables.len());
        let table = &tables[index];
        let keys = keys(rng, table);
        let causal_length = pick(rng, &[1, 1, 1, 2, 3, 4, 5, -1, 0]);
        let is_row = table.cells.is_empty() || causal_length % 2 == 0 || rng.u8(..5) == 0;
        let (column, value, col_version) = if is_row {
            (ROW.to_owned(), "NULL".to_owned(), causal_length)
        } else {
            let cell = pick(rng, &table.cells);
            (cell.name.clone(), cell.value(rng), rng.i64(0..5))
        };
        let db_version = pick(rng, &["0", "1", "3", "9", "40", "-5"]);
        let site = match rng.u8(..12) {
            0 => "NULL".to_owned(),
            n => SITES[usize::from(n) % SITES.len()].to_owned(),
        };
        Self {
            table: format!("'{}'", table.name),
            key: format!("crsql_pack_columns({})", keys.join(", ")),
            column: format!("'{column}'"),
            value,
            numbers: [
                col_version.to_string(),
                db_version.to_owned(),
                causal_length.to_string(),
                rng.u8(..6).to_string(),
            ],
            site,
            change: Incoming { table: index, keys, column, col_version, causal_length },
        }
    }

    fn to_sql(&self) -> String {
        let Self { table, key, column, value, site, .. } = self;
        let [col_version, db_version, causal_length, seq] = &self.numbers;
        format!("({table}, {key}, {column}, {value}, {col_version}, {db_version}, {site}, {causal_length}, {seq})")
    }
}

/// The columns of `crsql_changes`, in their order.
pub(crate) const CHANGE_COLUMNS: [&str; 9] =
    ["\"table\"", "pk", "cid", "val", "col_version", "db_version", "site_id", "cl", "seq"];
/// Where `db_version` and `seq` stand among them.
pub(crate) const DB_VERSION: usize = 5;
pub(crate) const SEQ: usize = 8;

/// VT-8: conditions on every column, and orders.
fn filter(rng: &mut Rng) -> Statement {
    let terms: Vec<_> = (0..rng.usize(1..4)).map(|_| condition(rng)).collect();
    let joined = match rng.u8(..6) {
        0 => terms.join(" OR "),
        // SQLite may scan once for each side.
        1 => format!("db_version < {} OR db_version > {}", rng.u8(..9), rng.u8(..9)),
        _ => terms.join(" AND "),
    };
    let order: Vec<(usize, bool)> =
        (0..pick(rng, &[0, 0, 1, 2])).map(|_| (rng.usize(..CHANGE_COLUMNS.len()), rng.bool())).collect();
    let by: Vec<_> = order
        .iter()
        .map(|(column, is_descending)| {
            format!("{}{}", CHANGE_COLUMNS[*column], if *is_descending { " DESC" } else { "" })
        })
        .collect();
    let by = if by.is_empty() { String::new() } else { format!(" ORDER BY {}", by.join(", ")) };
    let unpushed = format!("SELECT * FROM (SELECT *, rowid FROM crsql_changes LIMIT -1) WHERE {joined}");
    Statement {
        sql: format!("SELECT *, rowid FROM crsql_changes WHERE {joined}{by}"),
        about: About::Filter { order, unpushed },
    }
}

fn condition(rng: &mut Rng) -> String {
    let column = rng.usize(..CHANGE_COLUMNS.len());
    let mut value = || match column {
        0 => pick(rng, &["'items'", "'Notes'", "'a'", "NULL"]),
        1 => pick(rng, &["x'010901'", "x'010902'", "x'010b0161'", "NULL"]),
        2 => pick(rng, &["'-1'", "'b'", "'value'", "NULL", "-1"]),
        3 => pick(rng, &["1", "'x'", "2.5", "NULL", "'1'"]),
        6 => pick(rng, &SITES),
        // CRSqlite compares cl without the affinity of the column, so text finds other rows there (VT-8).
        7 => pick(rng, &["0", "1", "2", "3", "5", "NULL"]),
        _ => pick(rng, &["0", "1", "2", "3", "5", "NULL", "'2'", "2.5"]),
    };
    let (first, second) = (value(), value());
    let name = CHANGE_COLUMNS[column];
    match rng.u8(..14) {
        0 => format!("{name} IS NULL"),
        1 => format!("{name} NOTNULL"),
        2 => format!("{name} IN ({first}, {second})"),
        3 => format!("{name} BETWEEN {first} AND {second}"),
        4 if column == 2 => format!("{name} LIKE 'v%'"),
        5 if column == 2 => format!("{name} GLOB '*a*'"),
        n => format!(
            "{name} {} {first}",
            ["=", "==", "<", "<=", ">", ">=", "!=", "IS", "IS NOT", "="][usize::from(n) % 10]
        ),
    }
}
