//! Random histories: statements as applications write them, as SQL and for the [`Model`](crate::Model).

use std::fmt::Write as _;
use std::sync::Arc;

use fastrand::Rng;
use litemesh_proto::Value;

/// A table that replicates.
#[derive(Clone, Debug)]
pub struct Schema {
    /// Its name.
    pub name: Arc<str>,
    /// What makes it.
    pub create: &'static str,
    /// Primary key columns, in PRIMARY KEY order.
    pub keys: Vec<KeyColumn>,
    /// The other columns, in table order.
    pub cells: Vec<Cell>,
}

/// A primary key column.
#[derive(Clone, Debug)]
pub struct KeyColumn {
    /// Its name.
    pub name: &'static str,
    /// The values that histories use. Few, so that replicas meet in the same rows.
    pub values: Vec<Value>,
}

/// A column that is no key.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Its name.
    pub name: Arc<str>,
    /// What it holds in a row that was inserted without it.
    pub default: Value,
}

impl Schema {
    /// The position of a cell.
    ///
    /// # Panics
    ///
    /// There is none of that name.
    pub fn cell_index(&self, name: &str) -> usize {
        self.cells.iter().position(|cell| &*cell.name == name).expect("a column of the schema")
    }

    fn random_key(&self, rng: &mut Rng) -> Vec<Value> {
        self.keys.iter().map(|column| rng.choice(&column.values).expect("a key column has values").clone()).collect()
    }
}

/// The tables of histories: an INTEGER key, a TEXT key, a composite key out of table order, nothing but keys, many columns.
pub fn schemas() -> Vec<Schema> {
    let integers = |name| KeyColumn { name, values: [1, 2, -3, 300].map(Value::Integer).to_vec() };
    let texts = |name| KeyColumn { name, values: ["a", "b'\"", "ü"].map(Value::text).to_vec() };
    let cell = |name: &str| Cell { name: name.into(), default: Value::Null };
    vec![
        Schema {
            name: "items".into(),
            create: "CREATE TABLE items (id INTEGER PRIMARY KEY NOT NULL, a, b)",
            keys: vec![integers("id")],
            cells: vec![cell("a"), cell("b")],
        },
        Schema {
            name: "notes".into(),
            create: "CREATE TABLE notes (id TEXT PRIMARY KEY NOT NULL, title NOT NULL DEFAULT 'untitled', body)",
            keys: vec![texts("id")],
            cells: vec![Cell { name: "title".into(), default: Value::text("untitled") }, cell("body")],
        },
        Schema {
            name: "pairs".into(),
            create: "CREATE TABLE pairs (x INTEGER NOT NULL, v, y TEXT NOT NULL, PRIMARY KEY (y, x)) WITHOUT ROWID",
            keys: vec![texts("y"), integers("x")],
            cells: vec![cell("v")],
        },
        Schema {
            name: "tags".into(),
            create: "CREATE TABLE tags (item INTEGER NOT NULL, tag TEXT NOT NULL, PRIMARY KEY (item, tag))",
            keys: vec![integers("item"), texts("tag")],
            cells: Vec::new(),
        },
        Schema {
            name: "wide table".into(),
            create:
                "CREATE TABLE \"wide table\" (\"the key\" PRIMARY KEY NOT NULL, c0, c1, c2, c3, c4, c5, c6, c7, c8, c9,
                     \"order\" DEFAULT 7)",
            keys: vec![KeyColumn {
                name: "the key",
                values: vec![Value::Integer(1), Value::text("1"), Value::Real(2.5), Value::blob([0, 1])],
            }],
            cells: (0..10)
                .map(|n| cell(&format!("c{n}")))
                .chain([Cell { name: "order".into(), default: Value::Integer(7) }])
                .collect(),
        },
    ]
}

/// What an INSERT does where the row is there.
#[derive(Clone, Debug)]
pub enum Conflict {
    /// Fails.
    Abort,
    /// `INSERT OR IGNORE`.
    Ignore,
    /// `INSERT OR REPLACE`.
    Replace,
    /// `ON CONFLICT DO UPDATE SET`, or `DO NOTHING` where there is nothing to set.
    Update(Vec<(usize, Value)>),
}

/// One statement of an application.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // the fields say it
pub enum Statement {
    /// `None` is a column that is not given: it takes its default.
    Insert {
        table: Arc<str>,
        key: Vec<Value>,
        cells: Vec<Option<Value>>,
        conflict: Conflict,
    },
    Update {
        table: Arc<str>,
        key: Vec<Value>,
        set: Vec<(usize, Value)>,
    },
    UpdateAll {
        table: Arc<str>,
        set: Vec<(usize, Value)>,
    },
    /// An UPDATE of the primary key; `OR REPLACE` where asked.
    Move {
        table: Arc<str>,
        from: Vec<Value>,
        to: Vec<Value>,
        set: Vec<(usize, Value)>,
        replace: bool,
    },
    Delete {
        table: Arc<str>,
        key: Vec<Value>,
    },
    DeleteAll {
        table: Arc<str>,
    },
}

impl Statement {
    /// A random one, about one of the tables.
    ///
    /// # Panics
    ///
    /// There are no tables.
    pub fn random(rng: &mut Rng, schemas: &[Schema]) -> Self {
        let schema = rng.choice(schemas).expect("a table to write to");
        let (table, key) = (schema.name.clone(), schema.random_key(rng));
        match rng.u8(..100) {
            0..45 => {
                let given = |rng: &mut Rng| (rng.u8(..5) > 0).then(|| random_value(rng));
                let cells = schema.cells.iter().map(|cell| given(rng).filter(|value| fits(cell, value))).collect();
                let conflict = match rng.u8(..5) {
                    0 => Conflict::Abort,
                    1 => Conflict::Ignore,
                    2 | 3 => Conflict::Replace,
                    _ => Conflict::Update(random_set(rng, schema)),
                };
                Self::Insert { table, key, cells, conflict }
            }
            45..65 if !schema.cells.is_empty() => {
                let set = random_set(rng, schema);
                if rng.u8(..10) == 0 { Self::UpdateAll { table, set } } else { Self::Update { table, key, set } }
            }
            45..83 => {
                let set = if rng.bool() { random_set(rng, schema) } else { Vec::new() };
                Self::Move { table, from: key, to: schema.random_key(rng), set, replace: rng.bool() }
            }
            83..98 => Self::Delete { table, key },
            _ => Self::DeleteAll { table },
        }
    }

    /// The table that is written.
    pub fn table(&self) -> &str {
        match self {
            Self::Insert { table, .. }
            | Self::Update { table, .. }
            | Self::UpdateAll { table, .. }
            | Self::Move { table, .. }
            | Self::Delete { table, .. }
            | Self::DeleteAll { table } => table,
        }
    }

    /// The statement as SQL.
    ///
    /// # Panics
    ///
    /// Its table is none of `schemas`.
    pub fn to_sql(&self, schemas: &[Schema]) -> String {
        let schema = schemas.iter().find(|schema| &*schema.name == self.table()).expect("a table of the schemas");
        let name = quote(&schema.name);
        let matches = |key: &[Value]| {
            let equal = |(column, value): (&KeyColumn, &Value)| format!("{} = {}", quote(column.name), literal(value));
            schema.keys.iter().zip(key).map(equal).collect::<Vec<_>>().join(" AND ")
        };
        let sets = |set: &[(usize, Value)]| {
            let one =
                |(cell, value): &(usize, Value)| format!("{} = {}", quote(&schema.cells[*cell].name), literal(value));
            set.iter().map(one).collect::<Vec<_>>()
        };
        match self {
            Self::Insert { key, cells, conflict, .. } => insert_sql(schema, key, cells, conflict, &sets),
            Self::Update { set, key, .. } => {
                format!("UPDATE {name} SET {} WHERE {}", sets(set).join(", "), matches(key))
            }
            Self::UpdateAll { set, .. } => format!("UPDATE {name} SET {}", sets(set).join(", ")),
            Self::Move { from, to, set, replace, .. } => {
                let moved = schema.keys.iter().zip(to);
                let mut all: Vec<_> =
                    moved.map(|(column, value)| format!("{} = {}", quote(column.name), literal(value))).collect();
                all.extend(sets(set));
                let or = if *replace { "OR REPLACE " } else { "" };
                format!("UPDATE {or}{name} SET {} WHERE {}", all.join(", "), matches(from))
            }
            Self::Delete { key, .. } => format!("DELETE FROM {name} WHERE {}", matches(key)),
            Self::DeleteAll { .. } => format!("DELETE FROM {name}"),
        }
    }
}

fn insert_sql(
    schema: &Schema,
    key: &[Value],
    cells: &[Option<Value>],
    conflict: &Conflict,
    sets: &impl Fn(&[(usize, Value)]) -> Vec<String>,
) -> String {
    let mut columns: Vec<_> = schema.keys.iter().map(|column| quote(column.name)).collect();
    let mut values: Vec<_> = key.iter().map(literal).collect();
    for (cell, value) in schema.cells.iter().zip(cells) {
        if let Some(value) = value {
            columns.push(quote(&cell.name));
            values.push(literal(value));
        }
    }
    let (verb, upsert) = match conflict {
        Conflict::Abort => ("INSERT", String::new()),
        Conflict::Ignore => ("INSERT OR IGNORE", String::new()),
        Conflict::Replace => ("REPLACE", String::new()),
        Conflict::Update(set) if set.is_empty() => ("INSERT", " ON CONFLICT DO NOTHING".to_owned()),
        Conflict::Update(set) => ("INSERT", format!(" ON CONFLICT DO UPDATE SET {}", sets(set).join(", "))),
    };
    format!("{verb} INTO {} ({}) VALUES ({}){upsert}", quote(&schema.name), columns.join(", "), values.join(", "))
}

/// At least one cell where there are any, each at most once.
fn random_set(rng: &mut Rng, schema: &Schema) -> Vec<(usize, Value)> {
    let count = if schema.cells.is_empty() { 0 } else { rng.usize(1..=schema.cells.len().min(3)) };
    let cells = rng.choose_multiple(0..schema.cells.len(), count);
    let fitting = |cell: usize, value| if fits(&schema.cells[cell], &value) { value } else { Value::Integer(0) };
    cells.into_iter().map(|cell| (cell, fitting(cell, random_value(rng)))).collect()
}

/// A column with a default is NOT NULL, or might as well be.
fn fits(cell: &Cell, value: &Value) -> bool {
    cell.default == Value::Null || *value != Value::Null
}

/// Few values of each type, so that equal versions often meet equal values.
fn random_value(rng: &mut Rng) -> Value {
    match rng.u8(..8) {
        0 => Value::Null,
        1..4 => Value::Integer(rng.i64(-1..3)),
        4 => Value::Real(f64::from(rng.i8(-2..3)) + 0.5),
        5 | 6 => Value::text(*rng.choice(&["", "x", "it's", "longer than x"]).expect("not empty")),
        _ => Value::blob([rng.u8(..2)]),
    }
}

/// An identifier in double quotes.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A value as SQL.
pub fn literal(value: &Value) -> String {
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Integer(value) => value.to_string(),
        Value::Real(value) => format!("{value:?}"),
        Value::Text(bytes) => format!("'{}'", String::from_utf8_lossy(bytes).replace('\'', "''")),
        Value::Blob(bytes) => {
            let mut hex = String::new();
            for byte in bytes {
                write!(hex, "{byte:02x}").expect("a String takes everything");
            }
            format!("x'{hex}'")
        }
    }
}
