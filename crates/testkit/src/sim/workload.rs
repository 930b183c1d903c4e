//! What applications write.

use fastrand::Rng;
use litemesh_engine::Engine;
use litemesh_engine::proto::{DbVersion, Value};
use litemesh_engine::rusqlite::{self, ErrorCode};

use super::database::{Known, known_of, own_changes_since};
use super::node::Job;
use super::{Event, Simulation};
use crate::history::{Cell, Conflict, KeyColumn, Schema, Statement, schemas};

/// A table whose rows come in groups. Every transaction that writes to it writes the same to all rows of a group, so they
/// are the same wherever transactions are seen whole.
pub(super) const LEDGER: &str = "ledger";
const GROUPS: i64 = 3;
const SLOTS: i64 = 4;

/// A table that comes with an upgrade of the schema.
pub(super) const ADDED: &str = "added";

/// The tables of a simulation: some of those of histories, the ledger, and last the one that is added later.
pub(super) fn tables(rng: &mut Rng) -> Vec<Schema> {
    let integers = |name, values: i64| KeyColumn { name, values: (0..values).map(Value::Integer).collect() };
    let cell = |name: &str| Cell { name: name.into(), default: Value::Null };
    let mut tables = rng.choose_multiple(schemas(), 2);
    tables.push(Schema {
        name: LEDGER.into(),
        create: "CREATE TABLE ledger (grp INTEGER NOT NULL, slot INTEGER NOT NULL, value, PRIMARY KEY (grp, slot))",
        keys: vec![integers("grp", GROUPS), integers("slot", SLOTS)],
        cells: vec![cell("value")],
    });
    tables.push(Schema {
        name: ADDED.into(),
        create: "CREATE TABLE added (id INTEGER PRIMARY KEY NOT NULL, a, b)",
        keys: vec![integers("id", 4)],
        cells: vec![cell("a"), cell("b")],
    });
    tables
}

/// The tables that statements are drawn from. The ledger has its own.
pub(super) fn free_tables(tables: &[Schema], is_upgraded: bool) -> Vec<Schema> {
    let is_free = |schema: &&Schema| match &*schema.name {
        LEDGER => false,
        ADDED => is_upgraded,
        _ => true,
    };
    tables.iter().filter(is_free).cloned().collect()
}

/// The same for all rows of a group.
fn ledger_entry(rng: &mut Rng) -> Vec<Statement> {
    let (group, is_delete) = (Value::Integer(rng.i64(0..GROUPS)), rng.u8(..6) == 0);
    let value = Value::Integer(rng.i64(0..1000));
    let one = |slot| {
        let (table, key) = (LEDGER.into(), vec![group.clone(), Value::Integer(slot)]);
        if is_delete {
            Statement::Delete { table, key }
        } else {
            let (cells, conflict) = (vec![Some(value.clone())], Conflict::Update(vec![(0, value.clone())]));
            Statement::Insert { table, key, cells, conflict }
        }
    };
    (0..SLOTS).map(one).collect()
}

/// How a transaction ended.
enum Outcome {
    Committed,
    RolledBack,
    /// SQLite could not take it: the disk is full, or another connection writes.
    Failed(ErrorCode),
}

impl Simulation {
    /// One transaction of the application of a peer, whole or held open.
    pub(super) fn write(&mut self, node: usize) {
        if self.nodes[node].running.as_ref().is_none_or(|running| running.open_since.is_some()) {
            return self.commit_open(node);
        }
        let is_told = self.may_write(node);
        if !is_told && (!self.faults.hasty || self.is_healed) {
            return;
        }
        let free = free_tables(&self.tables, self.nodes[node].is_upgraded);
        let statements = match self.rng.u8(..10) {
            0..5 => vec![Statement::random(&mut self.rng, &free)],
            5..8 => ledger_entry(&mut self.rng),
            _ => (0..self.rng.usize(2..6)).map(|_| Statement::random(&mut self.rng, &free)).collect(),
        };
        let is_held = self.nodes[node].has_app_connection && self.rng.u8(..8) == 0;
        let is_undone = self.rng.u8(..10) == 0;
        let tables = self.tables.clone();
        if !is_told && !is_undone {
            self.write_hastily(node);
        }
        let app = self.nodes[node].app().expect("a peer that runs");
        let before = app.db_version().expect("a database that can be read");
        let outcome = transaction(app, &tables, &statements, is_held, is_undone);
        match outcome {
            Outcome::Committed if is_held => {
                self.nodes[node].running.as_mut().expect("a peer that runs").open_since = Some(before);
                self.note(format_args!("{node} holds a transaction of {} statements open", statements.len()));
            }
            Outcome::Committed => self.committed(node, before),
            Outcome::RolledBack => self.note(format_args!("{node} rolls a transaction back")),
            Outcome::Failed(code) => self.note(format_args!("{node} cannot write: {code:?}")),
        }
    }

    /// Ends the transaction that the application holds open.
    pub(super) fn commit_open(&mut self, node: usize) {
        let Some(running) = &mut self.nodes[node].running else { return };
        let Some(before) = running.open_since.take() else { return };
        let app = running.app.as_ref().expect("a connection of the application").connection();
        match app.execute_batch("COMMIT") {
            Ok(()) => self.committed(node, before),
            Err(error) => {
                // A full disk: nothing was committed, and nobody was told that it was.
                if !app.is_autocommit() {
                    app.execute_batch("ROLLBACK").expect("a transaction that is open");
                }
                self.note(format_args!("{node} cannot commit: {:?}", error.sqlite_error_code()));
            }
        }
    }

    fn committed(&mut self, node: usize, before: DbVersion) {
        let app = self.nodes[node].app().expect("a peer that runs");
        let (version, changes) =
            (app.db_version().expect("a database that can be read"), own_changes_since(app.connection(), before));
        self.note(format_args!("{node} commits {} changes, now at {version}", changes.len()));
        self.counts.transactions += 1;
        self.log.add(node, changes);
        self.check(node, "after a write");
        // The original looks every five seconds.
        let delay_max = if self.nodes[node].original.is_some() { 5_000_000 } else { 2_000 };
        let (boot, delay) = (self.nodes[node].boot, self.random_delay(delay_max));
        self.agenda.after(delay, Event::Wake { node, boot });
    }

    /// Whether a write can keep its promise. One that was restored from a backup gives its forgotten versions out again, until
    /// a remote tells it of them.
    fn may_write(&mut self, node: usize) -> bool {
        let Some(since) = self.nodes[node].restored else { return true };
        let site = self.nodes[node].site;
        let is_pending = |job: &Job| matches!(job, Job::Work { connection, .. } if *connection < since);
        for other in self.nodes.iter().filter(|other| !other.is_gone) {
            let Some(running) = &other.running else { return false };
            if running.jobs.iter().any(is_pending) {
                return false;
            }
        }
        let others = self.nodes.iter().filter(|other| !other.is_gone && other.site != site);
        let known = others.filter_map(|other| other.engine()).map(|engine| known_of(engine, site));
        let known = known.fold(self.kept_of(node), Known::join);
        let own = self.nodes[node].engine().expect("a peer that runs").db_version().expect("a database to read");
        // Who merged as many versions since as it forgot has not been told for all that.
        let engine = self.nodes[node].engine().expect("a peer that runs");
        let has = known_of(engine, site).newest().max(self.nodes[node].restored_to);
        let told = engine.forgotten_until().expect("a database to read").unwrap_or_default().max(has);
        if known.newest() > own || known.written > told {
            return false;
        }
        self.nodes[node].restored = None;
        self.note(format_args!("{node} knows of the versions that it forgot"));
        true
    }

    /// The application writes under versions under which others may hold something of a life that the file has forgotten.
    fn write_hastily(&mut self, node: usize) {
        let peer = &mut self.nodes[node];
        let site = peer.site;
        let before = peer.parted.filter(|(parted, _)| *parted == site).map(|(_, version)| version);
        let common = before.map_or(peer.common, |version| version.min(peer.common));
        peer.parted = Some((site, common));
        self.log.contest(site, common);
        self.log.doubt(node, site, common);
        self.is_contested = true;
        if before != Some(common) {
            self.note(format_args!("{node} writes and does not know what it has forgotten since {common}"));
        }
    }

    /// The application's upgrade: a table more, and a new schema version, in one transaction.
    pub(super) fn upgrade(&mut self, node: usize) {
        self.commit_open(node);
        let create = self.tables.iter().find(|schema| &*schema.name == ADDED).expect("the table of the upgrade").create;
        if self.nodes[node].is_upgraded {
            return;
        }
        let Some(app) = self.nodes[node].app() else { return };
        let version = super::node::SCHEMA_VERSION + 1;
        let sql = format!("BEGIN; {create}; SELECT crsql_as_crr('{ADDED}'); PRAGMA user_version = {version}; COMMIT");
        match app.connection().execute_batch(&sql) {
            Ok(()) => {
                (self.nodes[node].is_upgraded, self.has_upgraded) = (true, true);
                self.note(format_args!("{node} upgrades its schema"));
                if self.nodes[node].original.is_some() {
                    // It reads its schema version when it starts.
                    self.crash(node);
                    return self.start(node);
                }
                let (boot, delay) = (self.nodes[node].boot, self.random_delay(2_000));
                self.agenda.after(delay, Event::Wake { node, boot });
            }
            Err(error) => {
                if !app.connection().is_autocommit() {
                    app.connection().execute_batch("ROLLBACK").expect("a transaction that is open");
                }
                self.note(format_args!("{node} cannot upgrade: {:?}", error.sqlite_error_code()));
            }
        }
    }
}

fn transaction(app: &Engine, tables: &[Schema], statements: &[Statement], is_held: bool, is_undone: bool) -> Outcome {
    let connection = app.connection();
    let run = || -> rusqlite::Result<()> {
        let is_single = statements.len() == 1 && !is_held && !is_undone;
        if !is_single {
            connection.execute_batch("BEGIN IMMEDIATE")?;
        }
        for statement in statements {
            match connection.execute(&statement.to_sql(tables), []) {
                // A statement that breaks a constraint is none.
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {}
                other => drop(other?),
            }
        }
        match (is_undone, is_single || is_held) {
            (true, _) => connection.execute_batch("ROLLBACK"),
            (false, true) => Ok(()),
            (false, false) => connection.execute_batch("COMMIT"),
        }
    };
    match run() {
        Ok(()) if is_undone => Outcome::RolledBack,
        Ok(()) => Outcome::Committed,
        Err(error) => {
            if !connection.is_autocommit() {
                connection.execute_batch("ROLLBACK").expect("a transaction that is open");
            }
            match error.sqlite_error_code() {
                Some(code @ (ErrorCode::DiskFull | ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)) => {
                    Outcome::Failed(code)
                }
                _ => panic!("an application's transaction failed: {error}"),
            }
        }
    }
}
