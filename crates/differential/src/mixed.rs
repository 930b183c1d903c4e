//! Replicas of both engines write and exchange what they have, and must end up the same.

use std::collections::BTreeSet;

use fastrand::Rng;
use litemesh_engine::MergeProgress;
use litemesh_engine::proto::{
    CausalLength, Change, ColVersion, Column, Cursor, DbVersion, PackedKey, Seq, SiteId, Value,
};

use crate::engine::{Engine, Literal, Outcome, Row, blob_literal, real_literal, text_literal};
use crate::original::{Original, Originals};
use crate::ours::Ours;
use crate::program::{Ends, Unit, insert, write};
use crate::schema::{Purpose, Table, pick, quote, random_tables};
use crate::state::integer;
use crate::{Failure, Result, Tally};

/// Replicas, and what they do.
#[derive(Clone)]
pub(crate) struct Cluster {
    tables: Vec<Table>,
    members: Vec<Member>,
    pub(crate) steps: Vec<Step>,
}

#[derive(Clone)]
struct Member {
    is_ours: bool,
    /// Whether `PRAGMA recursive_triggers` is on.
    is_recursive: bool,
    /// Rows that are there before the tables replicate.
    rows: Vec<String>,
}

#[derive(Clone)]
pub(crate) enum Step {
    Write { at: usize, unit: Unit },
    Pass { from: usize, to: usize, how: How },
}

/// How changes go from one replica to another.
#[derive(Clone, Debug)]
pub(crate) struct How {
    /// What the receiver lacks since it last asked, without what it wrote itself; else all.
    is_since: bool,
    /// In another order, by this seed.
    shuffle: Option<u64>,
    /// Only some of it, by this seed. The receiver does not come to know that.
    part: Option<u64>,
    /// Each change in a transaction of its own, else all in one.
    is_each_alone: bool,
    /// By the native interface where a side of ours has one.
    is_native: bool,
    times: usize,
}

impl How {
    const WHOLE: Self =
        Self { is_since: false, shuffle: None, part: None, is_each_alone: false, is_native: false, times: 1 };

    fn random(rng: &mut Rng) -> Self {
        let one_in = |rng: &mut Rng, n: u8| rng.u8(..n) == 0;
        let part = one_in(rng, 5).then(|| rng.u64(..));
        Self {
            // A cursor must not move over what was left out.
            is_since: part.is_none() && rng.bool(),
            shuffle: one_in(rng, 3).then(|| rng.u64(..)),
            part,
            is_each_alone: one_in(rng, 4),
            is_native: rng.bool(),
            times: pick(rng, &[1, 1, 1, 2]),
        }
    }
}

const STEPS: usize = 40;

impl Cluster {
    pub(crate) fn random(rng: &mut Rng) -> Self {
        let tables = random_tables(rng, Purpose::Converging);
        let count = rng.usize(2..=4);
        let mut members: Vec<Member> = (0..count)
            .map(|index| Member {
                is_ours: if index < 2 { index == 0 } else { rng.bool() },
                is_recursive: rng.u8(..3) == 0,
                rows: Vec::new(),
            })
            .collect();
        for member in &mut members {
            if rng.u8(..4) == 0 {
                let written = [pick(rng, &tables), pick(rng, &tables), pick(rng, &tables)];
                member.rows = written.iter().map(|table| insert(rng, table)).collect();
            }
        }
        let steps = (0..STEPS)
            .map(|_| {
                let at = rng.usize(..count);
                if rng.u8(..5) < 3 {
                    let statements: Vec<_> = (0..pick(rng, &[1, 1, 1, 2, 4])).map(|_| write(rng, &tables)).collect();
                    let ends =
                        if statements.len() == 1 { Ends::Alone } else { pick(rng, &[Ends::Commit, Ends::Rollback]) };
                    Step::Write { at, unit: Unit { ends, statements } }
                } else {
                    Step::Pass { from: at, to: (at + rng.usize(1..count)) % count, how: How::random(rng) }
                }
            })
            .collect();
        Self { tables, members, steps }
    }

    pub(crate) fn run(&self, originals: &Originals) -> std::result::Result<Tally, Failure> {
        let mut running =
            Running { tables: &self.tables, replicas: Vec::new(), tally: Tally::default(), script: Vec::new() };
        match running.run(self, originals) {
            Ok(()) => Ok(running.tally),
            Err(error) => Err(Failure { reason: error.to_string(), script: running.script }),
        }
    }
}

enum Database {
    Ours(Ours),
    Original(Original),
}

impl Database {
    fn engine(&mut self) -> &mut dyn Engine {
        match self {
            Self::Ours(ours) => ours,
            Self::Original(original) => original,
        }
    }
}

struct Replica {
    database: Database,
    site: [u8; 16],
    /// Up to which version of each other replica everything was asked for.
    cursors: Vec<i64>,
}

impl Replica {
    fn rows(&mut self, text: &str) -> Result<Vec<Row>> {
        let outcome = self.database.engine().run_one(text)?;
        outcome.rows().map_err(|error| format!("{text}: {error}").into())
    }

    /// Rows of `crsql_changes`.
    fn changes(&mut self, how: &How, since: i64, receiver: [u8; 16]) -> Result<Vec<Row>> {
        if how.is_native
            && !how.is_since
            && let Database::Ours(ours) = &self.database
        {
            let mut rows = Vec::new();
            for changeset in ours.engine.changes_since(&Cursor::new()) {
                rows.extend(changeset?.changes.iter().map(to_row));
            }
            return Ok(rows);
        }
        let condition = if how.is_since {
            format!(" WHERE db_version > {since} AND site_id IS NOT {}", blob_literal(&receiver))
        } else {
            String::new()
        };
        self.rows(&format!("SELECT * FROM crsql_changes{condition}"))
    }

    fn merge(&mut self, rows: &[Row], how: &How) -> Result<()> {
        if how.is_native
            && let Database::Ours(ours) = &mut self.database
        {
            let changes: Vec<Change> = rows.iter().map(|row| to_change(row)).collect::<Result<_>>()?;
            let batch = if how.is_each_alone { 1 } else { changes.len().max(1) };
            for batch in changes.chunks(batch) {
                ours.engine.merge(batch, &MergeProgress::default())?;
            }
            return Ok(());
        }
        let mut texts: Vec<_> =
            rows.iter().map(|row| format!("INSERT INTO crsql_changes VALUES ({})", row.join(", "))).collect();
        if !how.is_each_alone {
            texts.insert(0, "BEGIN".to_owned());
            texts.push("COMMIT".to_owned());
        }
        self.database.engine().must(&texts)
    }
}

struct Running<'a> {
    tables: &'a [Table],
    replicas: Vec<Replica>,
    tally: Tally,
    script: Vec<String>,
}

impl Running<'_> {
    fn run(&mut self, cluster: &Cluster, originals: &Originals) -> Result<()> {
        let count = cluster.members.len();
        for (index, member) in cluster.members.iter().enumerate() {
            // Which of two sites is larger must not depend on their engine.
            let site = [[0x11, 0xee, 0x88, 0x44][index]; 16];
            let mut database = if member.is_ours {
                Database::Ours(Ours::open(site)?)
            } else {
                Database::Original(originals.open(site)?)
            };
            let on = if member.is_recursive { "ON" } else { "OFF" };
            let mut texts = vec![format!("PRAGMA recursive_triggers = {on}")];
            texts.extend(self.tables.iter().flat_map(|table| table.create.clone()));
            database.engine().must(&texts)?;
            // Some of them fail.
            database.engine().run(&member.rows)?;
            let replicate: Vec<_> =
                self.tables.iter().map(|table| format!("SELECT crsql_as_crr('{}')", table.name)).collect();
            database.engine().must(&replicate)?;
            let engine = if member.is_ours { "ours" } else { "original" };
            self.script.push(format!("-- {index} is {engine}"));
            for text in texts.iter().chain(&member.rows).chain(&replicate) {
                self.script.push(format!("{index}: {text}"));
            }
            self.replicas.push(Replica { database, site, cursors: vec![0; count] });
        }
        for step in &cluster.steps {
            match step {
                Step::Write { at, unit } => self.write(*at, unit)?,
                Step::Pass { from, to, how } => {
                    self.script.push(format!("-- from {from} to {to}: {how:?}"));
                    self.pass(*from, *to, how)?;
                }
            }
        }
        self.converge()
    }

    fn write(&mut self, at: usize, unit: &Unit) -> Result<()> {
        let mut texts: Vec<_> = unit.statements.iter().map(|statement| statement.sql.clone()).collect();
        if unit.ends != Ends::Alone {
            texts.insert(0, "BEGIN".to_owned());
            texts.push(if unit.ends == Ends::Commit { "COMMIT" } else { "ROLLBACK" }.to_owned());
        }
        self.script.extend(texts.iter().map(|text| format!("{at}: {text}")));
        let outcomes = self.replicas[at].database.engine().run(&texts)?;
        self.tally.statements += texts.len() as u64;
        self.tally.refused += outcomes.iter().filter(|outcome| outcome.is_error()).count() as u64;
        for (text, outcome) in texts.iter().zip(&outcomes) {
            // Constraints and types refuse what they must; anything else is a fault.
            if let Outcome::Error { code, .. } = outcome
                && ![19, 20].contains(code)
            {
                return Err(format!("{text}: {outcome}").into());
            }
        }
        Ok(())
    }

    fn pass(&mut self, from: usize, to: usize, how: &How) -> Result<()> {
        let (since, receiver) = (self.replicas[to].cursors[from], self.replicas[to].site);
        let sender = &mut self.replicas[from];
        let mut rows = sender.changes(how, since, receiver)?;
        let version = integer(&sender.rows("SELECT crsql_db_version()")?[0][0])?;
        if let Some(seed) = how.part {
            let mut rng = Rng::with_seed(seed);
            rows.retain(|_| rng.bool());
        }
        if let Some(seed) = how.shuffle {
            Rng::with_seed(seed).shuffle(&mut rows);
        }
        for _ in 0..how.times {
            self.replicas[to].merge(&rows, how)?;
            self.tally.statements += rows.len() as u64;
        }
        if how.is_since {
            self.replicas[to].cursors[from] = version;
        }
        Ok(())
    }

    /// MRG-16: after everybody had everything, all hold the same.
    fn converge(&mut self) -> Result<()> {
        let count = self.replicas.len();
        self.script.push("-- from each to each: everything".to_owned());
        for _ in 0..count {
            for from in 0..count {
                for to in (0..count).filter(|to| *to != from) {
                    self.pass(from, to, &How { is_native: (from + to) % 2 == 0, ..How::WHOLE })?;
                }
            }
            if self.is_same()?.is_none() {
                return self.check_integrity();
            }
        }
        let difference = self.is_same()?.unwrap_or_default();
        Err(format!("replicas differ after {count} rounds:\n{difference}").into())
    }

    /// What the first replica and another hold differently.
    fn is_same(&mut self) -> Result<Option<String>> {
        let mut texts = vec!["SELECT \"table\", pk, cid, val, col_version, cl FROM crsql_changes".to_owned()];
        texts.extend(self.tables.iter().map(|table| format!("SELECT * FROM {}", table.name)));
        for (number, text) in texts.iter().enumerate() {
            let mut first: Option<BTreeSet<Row>> = None;
            for (index, replica) in self.replicas.iter_mut().enumerate() {
                let rows = replica.rows(text)?;
                let rows = if number == 0 { without_first_sentinels(rows) } else { rows.into_iter().collect() };
                let first = first.get_or_insert_with(|| rows.clone());
                self.tally.comparisons += 1;
                if *first != rows {
                    let show = |a: &BTreeSet<Row>, b: &BTreeSet<Row>| {
                        a.difference(b).map(|row| row.join(", ")).collect::<Vec<_>>().join("\n    ")
                    };
                    return Ok(Some(format!(
                        "{text}:\n  only at 0\n    {}\n  only at {index}\n    {}",
                        show(first, &rows),
                        show(&rows, first)
                    )));
                }
            }
        }
        Ok(None)
    }

    /// Section 19, 5: what every file must keep, whoever wrote it.
    fn check_integrity(&mut self) -> Result<()> {
        for table in self.tables {
            for (what, text) in unsound(table) {
                for (index, replica) in self.replicas.iter_mut().enumerate() {
                    let found = replica.rows(&text)?;
                    if !found.is_empty() {
                        return Err(format!("{what} in {} at {index}: {}", table.name, Outcome::Rows(found)).into());
                    }
                }
            }
        }
        Ok(())
    }
}

/// What must not be found, and the text that looks for it.
fn unsound(table: &Table) -> [(&'static str, String); 4] {
    let name = &table.name;
    let (clock, pks) = (format!("{name}__crsql_clock"), format!("{name}__crsql_pks"));
    let same_key: Vec<_> = table.keys.iter().map(|key| format!("p.{0} IS b.{0}", quote(&key.name))).collect();
    let same_key = same_key.join(" AND ");
    let base = format!("EXISTS (SELECT 1 FROM {name} b WHERE {same_key})");
    let clocks = |and: &str| format!("EXISTS (SELECT 1 FROM {clock} c WHERE c.key = p.__crsql_key{and})");
    let (any, cells) = (clocks(""), clocks(" AND c.col_name <> '-1'"));
    let dead = clocks(" AND c.col_name = '-1' AND c.col_version % 2 = 0");
    [
        ("clocks without a key", format!("SELECT * FROM {clock} WHERE key NOT IN (SELECT __crsql_key FROM {pks})")),
        (
            "rows without clocks",
            format!("SELECT * FROM {name} b WHERE NOT EXISTS (SELECT 1 FROM {pks} p WHERE {same_key} AND {any})"),
        ),
        (
            "dead rows that are there, or have cells",
            format!("SELECT * FROM {pks} p WHERE {dead} AND ({base} OR {cells})"),
        ),
        ("living rows that are not there", format!("SELECT * FROM {pks} p WHERE {any} AND NOT {dead} AND NOT {base}")),
    ]
}

/// Leaves out the sentinel of a first life that has cells: it says nothing that they do not, and whether a replica has
/// it depends on what came first (5.2, rule 4).
fn without_first_sentinels(rows: Vec<Row>) -> BTreeSet<Row> {
    let with_cells: BTreeSet<(Literal, Literal)> =
        rows.iter().filter(|row| row[2] != "'-1'").map(|row| (row[0].clone(), row[1].clone())).collect();
    let says_nothing =
        |row: &Row| row[2] == "'-1'" && row[5] == "1" && with_cells.contains(&(row[0].clone(), row[1].clone()));
    rows.into_iter().filter(|row| !says_nothing(row)).collect()
}

fn to_row(change: &Change) -> Row {
    let Change { table, key, column, value, col_version, db_version, site, causal_length, seq } = change;
    vec![
        text_literal(table.as_bytes()),
        blob_literal(key.as_bytes()),
        text_literal(column.as_str().as_bytes()),
        match value {
            Value::Null => "NULL".to_owned(),
            Value::Integer(value) => value.to_string(),
            Value::Real(value) => real_literal(*value),
            Value::Text(bytes) => text_literal(bytes),
            Value::Blob(bytes) => blob_literal(bytes),
        },
        col_version.get().to_string(),
        db_version.get().to_string(),
        blob_literal(site.as_bytes()),
        causal_length.get().to_string(),
        seq.get().to_string(),
    ]
}

pub(crate) fn to_change(row: &[Literal]) -> Result<Change> {
    let [table, key, column, value, col_version, db_version, site, causal_length, seq] = row else {
        return Err("a change has nine values".into());
    };
    Ok(Change {
        table: text_of(table)?.as_str().into(),
        key: PackedKey::from_bytes(bytes_of(key)?),
        column: Column::from(text_of(column)?.as_str()),
        value: value_of(value)?,
        col_version: ColVersion::new(integer(col_version)?),
        db_version: DbVersion::new(integer(db_version)?),
        site: SiteId::from_slice(&bytes_of(site)?).ok_or("a site id")?,
        causal_length: CausalLength::new(integer(causal_length)?),
        seq: Seq::new(integer(seq)?),
    })
}

fn text_of(literal: &Literal) -> Result<String> {
    match value_of(literal)? {
        Value::Text(bytes) => Ok(String::from_utf8(bytes.into())?),
        other => Err(format!("{other:?} is no text").into()),
    }
}

fn bytes_of(literal: &Literal) -> Result<Vec<u8>> {
    match value_of(literal)? {
        Value::Blob(bytes) => Ok(bytes.into()),
        other => Err(format!("{other:?} is no blob").into()),
    }
}

/// The value of a literal that the engines' results are written as.
fn value_of(literal: &str) -> Result<Value> {
    let quoted = |prefix: &str, suffix: &str| literal.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(suffix));
    if literal == "NULL" {
        return Ok(Value::Null);
    }
    if let Some(hex) = quoted("CAST(x'", "' AS TEXT)") {
        return Ok(Value::Text(const_hex::decode(hex)?.into()));
    }
    if let Some(hex) = quoted("x'", "'") {
        return Ok(Value::Blob(const_hex::decode(hex)?.into()));
    }
    if let Some(text) = quoted("'", "'") {
        return Ok(Value::text(text.replace("''", "'")));
    }
    if let Ok(value) = literal.parse() {
        return Ok(Value::Integer(value));
    }
    match literal {
        "9e999" => Ok(Value::Real(f64::INFINITY)),
        "-9e999" => Ok(Value::Real(f64::NEG_INFINITY)),
        _ => Ok(Value::Real(literal.parse()?)),
    }
}
