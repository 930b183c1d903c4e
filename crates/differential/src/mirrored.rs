//! Both engines run the same statements under the same site id, and must hold the same after each.
//!
//! Where they differ, the difference must be one of the register, to the clock. CRSqlite's shadow tables are then made
//! like ours, and everything must be equal again: so no deviation can hide what comes after it.

use fastrand::Rng;

use crate::deviation::Deviation;
use crate::engine::{Engine, Outcome, Row};
use crate::judge::{Judge, ROW};
use crate::original::{Original, Originals};
use crate::ours::Ours;
use crate::program::{About, Ends, Statement, Unit, comparing_units};
use crate::schema::{Purpose, Table, random_tables};
use crate::state::{
    State, check_order, differences, integer, is_same_key, rewriting_clocks, rewriting_master, rewriting_sites,
    run_all_and_read, run_and_read,
};
use crate::{Failure, Result, Tally};

/// A program: tables, and units that write to them.
#[derive(Clone)]
pub(crate) struct Program {
    tables: Vec<Table>,
    pub(crate) units: Vec<Unit>,
}

/// Units of one program.
const UNITS: usize = 40;

impl Program {
    pub(crate) fn random(rng: &mut Rng) -> Self {
        let tables = random_tables(rng, Purpose::Comparing);
        let units = comparing_units(rng, &tables, UNITS);
        Self { tables, units }
    }

    /// Runs it on a fresh pair of databases.
    pub(crate) fn run(&self, originals: &Originals) -> std::result::Result<Tally, Failure> {
        let mut pair = match Pair::open(&self.tables, originals) {
            Ok(pair) => pair,
            Err(error) => return Err(Failure { reason: error.to_string(), script: Vec::new() }),
        };
        match pair.run(&self.units) {
            Ok(()) => Ok(pair.tally),
            Err(error) => Err(Failure { reason: error.to_string(), script: pair.script }),
        }
    }
}

/// Bytes of the site id of both databases, the first of [`SITES`](crate::program::SITES).
const SITE: [u8; 16] = *b"Limesh\0\x40\0\x80\0\0\0\0\0\x01";

/// Gives `last_insert_rowid()` and `changes()` the same values on both: writing to shadow tables moves them.
const SET_COUNTERS: &str = "INSERT INTO scratch VALUES (0)";

/// Uses up one sequence number.
const NEXT_SEQ: &str = "SELECT crsql_increment_and_get_seq()";

struct Pair<'a> {
    ours: Ours,
    original: Original,
    tables: &'a [Table],
    /// What both hold.
    state: State,
    /// How much higher CRSqlite counts `crsql_rows_impacted()` since something was rolled back.
    impacted_leak: i64,
    /// Whether something was done since the last version after which CRSqlite may report one without clocks. A commit
    /// that writes nothing leaves CRSqlite's next version to the commit after it.
    may_idle: bool,
    /// Whether it rolled something back.
    may_leak: bool,
    tally: Tally,
    script: Vec<String>,
}

impl<'a> Pair<'a> {
    fn open(tables: &'a [Table], originals: &Originals) -> Result<Self> {
        let (ours, original) = (Ours::open(SITE)?, originals.open(SITE)?);
        let mut pair = Self {
            ours,
            original,
            tables,
            state: State::default(),
            impacted_leak: 0,
            may_idle: false,
            may_leak: false,
            tally: Tally::default(),
            script: Vec::new(),
        };
        let mut texts = vec!["CREATE TABLE scratch (n)".to_owned()];
        for table in tables {
            texts.extend(table.create.iter().cloned());
            texts.push(format!("SELECT crsql_as_crr('{}')", table.name));
        }
        texts.push(SET_COUNTERS.to_owned());
        pair.ours.must(&texts)?;
        pair.original.must(&texts)?;
        pair.script = texts;
        let (_, ours) = run_and_read(&mut pair.ours, "SELECT 1", tables)?;
        let (_, original) = run_and_read(&mut pair.original, "SELECT 1", tables)?;
        pair.state = ours;
        pair.expect_equal(&original)?;
        Ok(pair)
    }

    fn run(&mut self, units: &[Unit]) -> Result<()> {
        for unit in units {
            let (begin, end) = match unit.ends {
                Ends::Alone => (None, None),
                Ends::Commit => (Some("BEGIN"), Some("COMMIT")),
                Ends::Rollback => (Some("BEGIN"), Some("ROLLBACK")),
                Ends::Untracked => {
                    (Some("SELECT crsql_internal_sync_bit(1)"), Some("SELECT crsql_internal_sync_bit(0)"))
                }
            };
            if let Some(begin) = begin {
                self.step(&Statement::plain(begin))?;
            }
            for statement in &unit.statements {
                self.step(statement)?;
            }
            if let Some(end) = end {
                self.step(&Statement::plain(end))?;
            }
        }
        Ok(())
    }

    fn step(&mut self, statement: &Statement) -> Result<()> {
        self.script.push(statement.sql.clone());
        if let About::Alter { texts, .. } = &statement.about {
            return self.alter(statement, texts);
        }
        let (our_outcome, mut ours) = run_and_read(&mut self.ours, &statement.sql, self.tables)?;
        let (their_outcome, mut original) = run_and_read(&mut self.original, &statement.sql, self.tables)?;
        self.tally.statements += 1;
        self.tally.refused += u64::from(our_outcome.is_error());
        if self.ours.is_autocommit() != self.original.is_autocommit() {
            return Err("one of them is inside a transaction, the other is not".into());
        }
        self.compare_outcomes(statement, &our_outcome, &their_outcome)?;
        let is_taken_back = our_outcome.is_error() || statement.sql.starts_with("ROLLBACK TO");
        let is_failed_merge = our_outcome.is_error() && matches!(statement.about, About::Merge(_));
        if is_failed_merge {
            self.clear_sync_bit()?;
            self.align_next_version(Deviation::FailedMerge)?;
        } else if is_taken_back && !self.ours.is_autocommit() {
            if ours.seq < original.seq {
                self.tally.hits.count(Deviation::UnusedNumbers);
                let count = usize::try_from(original.seq - ours.seq)?;
                self.ours.must(&vec![NEXT_SEQ.to_owned(); count])?;
                ours.seq = original.seq;
            }
            self.align_next_version(Deviation::UnusedNumbers)?;
        }
        if is_failed_merge || matches!(statement.about, About::Refound { .. }) {
            // What the engines wrote inside moved `last_insert_rowid()`, which nobody asks for then.
            (_, ours) = run_and_read(&mut self.ours, SET_COUNTERS, self.tables)?;
            (_, original) = run_and_read(&mut self.original, SET_COUNTERS, self.tables)?;
        }
        self.note_leaks(statement, &our_outcome);
        let before = std::mem::replace(&mut self.state, ours);
        self.compare_impacted(&original)?;
        let found = match self.explain_failed_merge(&before, &original, statement, &our_outcome) {
            Some(undo) => {
                self.original.must(&undo)?;
                vec![Deviation::FailedMerge]
            }
            None => self.explain(&before, &original, statement)?,
        };
        self.settle(&original, &found)?;
        if self.ours.is_autocommit()
            && (self.state.version > before.version || found.contains(&Deviation::IdleVersions))
        {
            self.may_idle = false;
        }
        Ok(())
    }

    /// Everything must be equal, once what is explained has been made so.
    fn settle(&mut self, original: &State, found: &[Deviation]) -> Result<()> {
        if found.is_empty() {
            return self.expect_equal(original);
        }
        for deviation in found {
            self.tally.hits.count(*deviation);
        }
        let original = self.reconcile(original, found)?;
        self.expect_equal(&original)
    }

    /// A window is compared as a whole.
    fn alter(&mut self, statement: &Statement, texts: &[String]) -> Result<()> {
        let texts = [texts, &[SET_COUNTERS.to_owned()]].concat();
        let (our_outcomes, ours) = run_all_and_read(&mut self.ours, &texts, self.tables)?;
        let (their_outcomes, original) = run_all_and_read(&mut self.original, &texts, self.tables)?;
        self.tally.statements += texts.len() as u64;
        for (our, their) in our_outcomes.iter().zip(&their_outcomes) {
            self.tally.refused += u64::from(our.is_error());
            self.compare_outcomes(statement, our, their)?;
        }
        let before = std::mem::replace(&mut self.state, ours);
        let found = self.explain(&before, &original, statement)?;
        self.settle(&original, &found)
    }

    /// Fails where anything is different.
    fn expect_equal(&mut self, original: &State) -> Result<()> {
        let mut ours = self.state.clone();
        ours.rows_impacted += self.impacted_leak;
        self.tally.comparisons += 1;
        let lines = differences(&ours, original, self.tables);
        if lines.is_empty() { Ok(()) } else { Err(lines.join("\n").into()) }
    }

    fn compare_outcomes(&mut self, statement: &Statement, ours: &Outcome, original: &Outcome) -> Result<()> {
        let is_same = match (&statement.about, ours, original) {
            (About::Filter { order, unpushed }, Outcome::Rows(ours), original) => {
                return self.compare_selections(order, unpushed, ours, original);
            }
            // What is refused is the same, the words are ours (MRG-11).
            (About::Merge(_), ours, original) => ours.is_error() == original.is_error(),
            (_, Outcome::Error { code, .. }, Outcome::Error { code: theirs, .. }) => code == theirs,
            _ => ours == original,
        };
        if is_same { Ok(()) } else { Err(format!("outcome:\n    ours     {ours}\n    original {original}").into()) }
    }

    /// VT-8 to VT-10: the rows that SQLite itself finds among all, in the order that was asked for.
    fn compare_selections(
        &mut self,
        order: &[(usize, bool)],
        unpushed: &str,
        ours: &[Row],
        original: &Outcome,
    ) -> Result<()> {
        let sorted = |rows: &[Row]| {
            let mut rows = rows.to_vec();
            rows.sort();
            rows
        };
        let show = |rows: &[Row]| Outcome::Rows(rows.to_vec()).to_string();
        let expected = sorted(&self.ours.run_one(unpushed)?.rows()?);
        if sorted(ours) != expected {
            return Err(format!("our rows should be\n    {}\nand are\n    {}", show(&expected), show(ours)).into());
        }
        if order.is_empty() {
            check_order(ours)?;
        } else if !is_ordered(ours, order)? {
            return Err(format!("our rows are not in the order that was asked for: {}", show(ours)).into());
        }
        let Outcome::Rows(original) = original else {
            // ORDER BY val: CRSqlite makes SQL that does not parse.
            if matches!(order, [(VAL, _), ..]) {
                self.tally.hits.count(Deviation::TrueOrder);
                return Ok(());
            }
            return Err(format!("outcome:\n    ours     {}\n    original {original}", show(ours)).into());
        };
        if !is_ordered(original, order)? {
            self.tally.hits.count(Deviation::TrueOrder);
        }
        if sorted(original) == expected {
            return Ok(());
        }
        // Where SQLite scans once for each side of an OR, CRSqlite loses changes.
        if unpushed.contains(" OR ") && original.iter().all(|row| expected.contains(row)) {
            self.tally.hits.count(Deviation::Alternatives);
            return Ok(());
        }
        Err(format!("outcome:\n    ours     {}\n    original {}", show(ours), show(original)).into())
    }

    /// MRG-15: CRSqlite 0.16.0 goes on without recording after a merge that failed.
    fn clear_sync_bit(&mut self) -> Result<()> {
        const BIT: &str = "SELECT crsql_internal_sync_bit()";
        if self.ours.run_one(BIT)?.to_string() != "0" {
            return Err("our sync bit is set after a merge".into());
        }
        if self.original.run_one(BIT)?.to_string() != "0" {
            self.tally.hits.count(Deviation::SyncBitLeft);
            self.original.must(&["SELECT crsql_internal_sync_bit(0)".to_owned()])?;
        }
        Ok(())
    }

    /// MRG-14: the transaction keeps the version of a merge that failed.
    fn align_next_version(&mut self, deviation: Deviation) -> Result<()> {
        if self.ours.is_autocommit() {
            return Ok(());
        }
        const NEXT: &str = "SELECT crsql_next_db_version()";
        let (ours, original) = (self.ours.run_one(NEXT)?.to_string(), self.original.run_one(NEXT)?.to_string());
        if ours == original {
            return Ok(());
        }
        if integer(&ours)? > integer(&original)? {
            return Err(format!("next version: ours {ours}, original {original}").into());
        }
        self.tally.hits.count(deviation);
        self.ours.must(&[format!("SELECT crsql_next_db_version({original})")])
    }

    fn note_leaks(&mut self, statement: &Statement, outcome: &Outcome) {
        let sql = &statement.sql;
        self.may_idle |= outcome.is_error()
            || sql.contains("UPDATE")
            || sql.starts_with("ROLLBACK TO")
            || sql.contains("crsql_next_db_version");
        self.may_leak = outcome.is_error() || sql.starts_with("ROLLBACK");
    }

    /// FN-5.
    fn compare_impacted(&mut self, original: &State) -> Result<()> {
        let leak = original.rows_impacted - self.state.rows_impacted;
        if leak > self.impacted_leak && self.may_leak {
            self.tally.hits.count(Deviation::ImpactedRewound);
            self.impacted_leak = leak;
        }
        // CRSqlite begins to count anew when a transaction commits that merged something.
        if leak == 0 && self.ours.is_autocommit() {
            self.impacted_leak = 0;
        }
        if leak == self.impacted_leak {
            return Ok(());
        }
        Err(format!("crsql_rows_impacted(): ours {}, original {}", self.state.rows_impacted, original.rows_impacted)
            .into())
    }

    /// MRG-14: inside a transaction SQLite undoes a failing statement of one row only as far as it wrote itself, and of
    /// what the engines wrote nothing. Ours has then written nothing; CRSqlite has revived the row. Gives what removes
    /// that row.
    fn explain_failed_merge(
        &self,
        before: &State,
        original: &State,
        statement: &Statement,
        outcome: &Outcome,
    ) -> Option<Vec<String>> {
        let About::Merge(changes) = &statement.about else { return None };
        let [change] = changes.as_slice() else { return None };
        let is_ours_unchanged = before.tables == self.state.tables && before.sites == self.state.sites;
        if !outcome.is_error() || self.ours.is_autocommit() || !is_ours_unchanged || before.tables == original.tables {
            return None;
        }
        let is_theirs_alone = |index: usize| index == change.table || before.tables[index] == original.tables[index];
        let state = &original.tables[change.table];
        let key = state.keys.iter().find(|(_, values)| is_same_key(values, &change.keys)).map(|(key, _)| *key)?;
        let sentinel = state.clocks.get(&(key, ROW.to_owned()))?;
        if !(0..self.tables.len()).all(is_theirs_alone) || sentinel.col_version != change.causal_length {
            return None;
        }
        let mut undo = Vec::new();
        if before.tables[change.table].base.len() < state.base.len() {
            let row = self.tables[change.table].matching(&change.keys);
            undo.push("SELECT crsql_internal_sync_bit(1)".to_owned());
            undo.push(format!("DELETE FROM {} WHERE {row}", self.tables[change.table].name));
            undo.push("SELECT crsql_internal_sync_bit(0)".to_owned());
        }
        Some(undo)
    }

    /// Which deviations account for what is different. An error where something else is needed.
    fn explain(&self, before: &State, original: &State, statement: &Statement) -> Result<Vec<Deviation>> {
        let mut found = Vec::new();
        if matches!(statement.about, About::Move { .. }) && self.state.seq > original.seq {
            found.push(Deviation::MovedCells);
        }
        for (index, table) in self.tables.iter().enumerate() {
            let judge = Judge {
                table: index,
                before: &before.tables[index],
                version_before: before.version,
                ours: &self.state.tables[index],
                original: &original.tables[index],
                statement,
            };
            found.extend(judge.judge().map_err(|error| {
                let lines = differences(&self.state, original, self.tables).join("\n");
                format!("table {}: {error}\n{lines}", table.name)
            })?);
        }
        if matches!(statement.about, About::Refound { .. }) && self.state.master != original.master {
            // Only the floor may be new, and with it the version.
            let others = |state: &State| {
                state.master.iter().filter(|row| row[0] != "'pre_compact_dbversion'").cloned().collect::<Vec<_>>()
            };
            if others(&self.state) == others(original) && self.state.version >= original.version {
                found.push(Deviation::VersionFloor);
            }
        }
        if original.version > self.state.version && self.may_idle && self.ours.is_autocommit() {
            let newest = |state: &State| {
                state.tables.iter().flat_map(|table| table.clocks.values()).map(|clock| clock.db_version).max()
            };
            if newest(original).max(newest(&self.state)).unwrap_or_default() <= self.state.version {
                found.push(Deviation::IdleVersions);
            }
        }
        let is_version_explained = found.contains(&Deviation::IdleVersions) || found.contains(&Deviation::VersionFloor);
        if self.state.version != original.version && !is_version_explained {
            return Err(differences(&self.state, original, self.tables).join("\n").into());
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Makes CRSqlite's tables like ours where a deviation explains that they are not, and reads them again.
    fn reconcile(&mut self, original: &State, found: &[Deviation]) -> Result<State> {
        let mut texts = rewriting_clocks(&self.state, self.tables);
        if found.contains(&Deviation::FailedMerge) {
            texts.extend(rewriting_sites(&self.state));
        }
        if found.contains(&Deviation::VersionFloor) {
            texts.extend(rewriting_master(&self.state));
        }
        if self.ours.is_autocommit() {
            // A commit that wrote to no replicated table lets CRSqlite read its version anew.
            texts.insert(0, "BEGIN".to_owned());
            texts.push("COMMIT".to_owned());
        } else if found.contains(&Deviation::MovedCells) {
            // Numbers that our statement used up and theirs did not.
            let count = usize::try_from(self.state.seq - original.seq).unwrap_or_default();
            texts.extend(std::iter::repeat_n(NEXT_SEQ.to_owned(), count));
        }
        self.original.must(&texts)?;
        self.state.counters = run_and_read(&mut self.ours, SET_COUNTERS, self.tables)?.1.counters;
        Ok(run_and_read(&mut self.original, SET_COUNTERS, self.tables)?.1)
    }
}

/// Where `val` stands among the columns of `crsql_changes`.
const VAL: usize = 3;

/// Whether rows ascend by the terms. Only integers and NULL are judged; other types need SQLite's order.
fn is_ordered(rows: &[Row], order: &[(usize, bool)]) -> Result<bool> {
    let judged: Vec<_> = order.iter().take_while(|(column, _)| [4, 5, 7, 8].contains(column)).collect();
    let key = |row: &Row| -> Result<Vec<i64>> {
        let term = |(column, is_descending): &&(usize, bool)| {
            integer(&row[*column]).map(|value| if *is_descending { -value } else { value })
        };
        judged.iter().map(term).collect()
    };
    Ok(rows.iter().map(key).collect::<Result<Vec<_>>>()?.is_sorted())
}

#[cfg(test)]
mod tests {
    use super::SITE;
    use crate::engine::blob_literal;
    use crate::program::SITES;

    #[test]
    fn the_databases_have_the_first_of_the_sites() {
        assert_eq!(blob_literal(&SITE), SITES[0]);
    }
}
