//! Random tables, of every shape that both engines take.

use fastrand::Rng;

use crate::engine::Literal;

/// A table that replicates.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) name: String,
    /// What makes it, indexes included.
    pub(crate) create: Vec<String>,
    /// Primary key columns, in PRIMARY KEY order.
    pub(crate) keys: Vec<Column>,
    /// The other columns that replicate, in table order.
    pub(crate) cells: Vec<Column>,
}

impl Table {
    /// The condition that holds for the row of this key.
    pub(crate) fn matching(&self, keys: &[Literal]) -> String {
        let equal = |(column, value): (&Column, &Literal)| format!("{} = {value}", quote(&column.name));
        self.keys.iter().zip(keys).map(equal).collect::<Vec<_>>().join(" AND ")
    }
}

/// A column, and the values that are written to it.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    pub(crate) name: String,
    declared: &'static str,
    /// Values as the column stores them. Few for a key, so that statements meet in the same rows.
    pub(crate) stored: Vec<Literal>,
    /// Values that the column converts. Only local writes use them.
    pub(crate) converted: Vec<Literal>,
    clauses: String,
}

impl Column {
    /// A value that a local statement may write.
    pub(crate) fn written(&self, rng: &mut Rng) -> Literal {
        if !self.converted.is_empty() && rng.u8(..8) == 0 {
            return pick(rng, &self.converted);
        }
        self.value(rng)
    }

    /// A value as the column stores it.
    pub(crate) fn value(&self, rng: &mut Rng) -> Literal {
        pick(rng, &self.stored)
    }
}

/// One of several.
pub(crate) fn pick<T: Clone>(rng: &mut Rng, list: &[T]) -> T {
    list[rng.usize(..list.len())].clone()
}

/// An identifier in double quotes.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// What tables are made for. Peers of different engines must agree; two engines that are compared may both refuse.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Comparing,
    Converging,
}

/// One to three tables.
pub(crate) fn random_tables(rng: &mut Rng, purpose: Purpose) -> Vec<Table> {
    // CRSqlite cannot replicate a table whose name has to be quoted (CRR-6).
    let mut names = vec!["items", "Notes", "pairs_2", "t__x", "a"];
    rng.shuffle(&mut names);
    (0..rng.usize(1..=3)).map(|index| random_table(rng, names[index], purpose)).collect()
}

const TYPES: [&str; 8] = ["INTEGER", "TEXT", "BLOB", "REAL", "NUMERIC", "", "VARCHAR(10)", "BIGINT"];
const STRICT_TYPES: [&str; 6] = ["INTEGER", "TEXT", "BLOB", "REAL", "ANY", "INT"];

fn random_table(rng: &mut Rng, name: &str, purpose: Purpose) -> Table {
    let is_strict = rng.u8(..4) == 0;
    let types: &[&str] = if is_strict { &STRICT_TYPES } else { &TYPES };
    let key_count = [1, 1, 1, 2, 2, 3][rng.usize(..6)];
    let cell_count = [0, 1, 1, 2, 2, 3, 4, 6][rng.usize(..8)];
    let key_names = ["id", "k2", "third key"];
    let mut keys: Vec<Column> =
        key_names[..key_count].iter().map(|name| key_column(rng, name, types, is_strict, purpose)).collect();
    let cell_names = ["b", "value", "order", "two words", "Ü", "c5"];
    let cells: Vec<Column> =
        cell_names[..cell_count].iter().map(|name| cell_column(rng, name, types, is_strict, purpose)).collect();

    let is_inline = key_count == 1 && rng.bool();
    let mut definitions: Vec<String> = keys
        .iter()
        .map(|key| {
            let primary = if is_inline { " PRIMARY KEY" } else { "" };
            format!("{} {}{primary} NOT NULL", quote(&key.name), key.declared)
        })
        .chain(cells.iter().map(|cell| format!("{} {}{}", quote(&cell.name), cell.declared, cell.clauses)))
        .collect();
    if rng.u8(..6) == 0 && !cells.is_empty() {
        let declared = if is_strict { "ANY" } else { "" };
        definitions.push(format!("made {declared} AS ({} IS NULL) VIRTUAL", quote(&cells[0].name)));
    }
    // The order of the table and that of the key may differ.
    rng.shuffle(&mut definitions[..key_count]);
    if !is_inline {
        rng.shuffle(&mut keys);
        let names: Vec<_> = keys.iter().map(|key| quote(&key.name)).collect();
        definitions.push(format!("PRIMARY KEY ({})", names.join(", ")));
    }
    let mut options = Vec::new();
    if rng.u8(..3) == 0 {
        options.push("WITHOUT ROWID");
    }
    if is_strict {
        options.push("STRICT");
    }
    let mut create = vec![format!("CREATE TABLE {name} ({}) {}", definitions.join(", "), options.join(", "))];
    if rng.u8(..4) == 0
        && let Some(cell) = cells.first()
    {
        create.push(format!("CREATE INDEX {name}_index ON {name} ({})", quote(&cell.name)));
    }
    Table { name: name.to_owned(), create, keys, cells }
}

fn key_column(rng: &mut Rng, name: &str, types: &[&'static str], is_strict: bool, purpose: Purpose) -> Column {
    let declared = pick(rng, types);
    let (stored, converted) = values_of(declared, is_strict);
    let mut stored: Vec<Literal> = stored.into_iter().filter(|value| *value != "NULL").map(str::to_owned).collect();
    // Where a column keeps both, 1 and 1.0 are one key to every replica, but not the same value (DSK-7).
    if purpose == Purpose::Converging && declared != "REAL" {
        stored.retain(|value| value != "1.0");
    }
    rng.shuffle(&mut stored);
    stored.truncate(3);
    Column {
        name: name.to_owned(),
        declared,
        stored,
        converted: converted.into_iter().map(str::to_owned).collect(),
        clauses: String::new(),
    }
}

fn cell_column(rng: &mut Rng, name: &str, types: &[&'static str], is_strict: bool, purpose: Purpose) -> Column {
    let declared = pick(rng, types);
    let (stored, converted) = values_of(declared, is_strict);
    let stored: Vec<Literal> = stored.into_iter().map(str::to_owned).collect();
    let mut clauses = String::new();
    let default = stored.iter().find(|value| *value != "NULL").cloned().unwrap_or_default();
    match rng.u8(..6) {
        0 => clauses = format!(" DEFAULT {default}"),
        1 => clauses = format!(" NOT NULL DEFAULT {default}"),
        2 if purpose == Purpose::Comparing => clauses = format!(" CHECK ({} IS NOT {default})", quote(name)),
        3 if declared.contains("TEXT") => clauses = " COLLATE NOCASE".to_owned(),
        _ => {}
    }
    Column {
        name: name.to_owned(),
        declared,
        stored,
        converted: converted.into_iter().map(str::to_owned).collect(),
        clauses,
    }
}

/// Values as a column of this type stores them, and some that it converts.
fn values_of(declared: &str, is_strict: bool) -> (Vec<&'static str>, Vec<&'static str>) {
    let any = vec![
        "1",
        "1.0",
        "'1'",
        "2.5",
        "x'31'",
        "NULL",
        "''",
        "x''",
        "0",
        "'x'",
        "-0.5",
        "9223372036854775807",
        "CAST(x'610062' AS TEXT)",
    ];
    match (declared, is_strict) {
        ("INTEGER" | "INT" | "BIGINT", _) => (
            vec!["1", "2", "-3", "300", "NULL", "-9223372036854775808", "9007199254740993"],
            vec!["'2'", "300.0", "' 1 '"],
        ),
        ("TEXT" | "VARCHAR(10)", _) => {
            (vec!["'a'", "'b''\"'", "'ü😀'", "NULL", "''", "'1'", "CAST(x'610062' AS TEXT)"], vec!["1", "2.5"])
        }
        ("REAL", _) => (vec!["1.0", "2.5", "-0.25", "NULL", "1e300", "9e999"], vec!["1", "'2.5'"]),
        ("NUMERIC", _) => (vec!["1", "2.5", "'x'", "NULL", "x'00'"], vec!["'1'", "1.0", "'2.50'"]),
        ("BLOB", true) => (vec!["x''", "x'00'", "x'00ff'", "NULL"], Vec::new()),
        _ => (any, Vec::new()),
    }
}
