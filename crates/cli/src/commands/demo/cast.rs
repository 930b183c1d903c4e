//! [`Cast`]: the hub, the laptop and the phone, what they write, and waiting until they agree.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use litemesh::engine::Engine;
use litemesh::rusqlite::{self, OptionalExtension, TransactionBehavior, params};
use litemesh::{Database, DbVersion, Event, Peer, SiteId};
use tokio::task::JoinSet;
use tokio::time::Instant as Deadline;

use super::conflicts::{self, CONFLICTS, Conflict};
use super::digest::digest;
use super::report::{FileReport, Report, Speed, TableReport};
use super::venue::Venue;
use crate::commands::{diff, init};
use crate::failure::Failure;

/// The sites; the first one is the hub.
pub(super) const NAMES: [&str; 3] = ["hub", "laptop", "phone"];

/// The tables of the demo: text, integers, reals, BLOBs, a key of two columns.
pub(super) const SCHEMA: &str = "\
CREATE TABLE project (id TEXT PRIMARY KEY NOT NULL, name TEXT NOT NULL DEFAULT '');
CREATE TABLE task (
  id TEXT PRIMARY KEY NOT NULL,
  project TEXT,
  title TEXT NOT NULL DEFAULT '',
  done INTEGER NOT NULL DEFAULT 0,
  estimate REAL
);
CREATE TABLE note (
  task TEXT NOT NULL,
  place INTEGER NOT NULL,
  body TEXT,
  attachment BLOB,
  PRIMARY KEY (task, place)
);
PRAGMA user_version = 1;
";

/// Rows of one transaction that fills the hub.
const FILL_TRANSACTION_ROWS: u32 = 1000;

/// Tasks that all sites write to at once.
const SHARED_TASKS: u32 = 20;

/// How often a wait looks at the cursors: they are read between merges, and looking is cheap.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// One of the three.
pub(super) struct Member {
    pub(super) name: &'static str,
    pub(super) file: PathBuf,
    pub(super) database: Database,
    pub(super) site: SiteId,
    peer: Option<Peer>,
    /// The version of its last own transaction: what the others must reach.
    written: DbVersion,
    /// The last number of a transaction of its own; keeps ids apart.
    transaction: u32,
}

pub(super) struct Cast {
    members: [Member; 3],
    patience: Duration,
}

impl Cast {
    pub(super) fn make(folder: &Path, patience: Duration) -> Result<Self, Failure> {
        let member = |name: &'static str| {
            let file = folder.join(format!("{name}.db"));
            init::init(&file, Some(SCHEMA), &[])?;
            let database = Database::open(&file).map_err(|error| Failure::open(&file, &error))?;
            let site = database.lock().site().map_err(|error| Failure::sqlite(&file, &error.0))?;
            let written = DbVersion::ZERO;
            Ok::<_, Failure>(Member { name, file, database, site, peer: None, written, transaction: 0 })
        };
        let [hub, laptop, phone] = NAMES;
        Ok(Self { members: [member(hub)?, member(laptop)?, member(phone)?], patience })
    }

    /// The hub, and the others.
    pub(super) fn hub_and_others(&self) -> (&Member, &[Member]) {
        let [hub, others @ ..] = &self.members;
        (hub, others)
    }

    pub(super) fn hub_serves(&mut self, peer: Peer) {
        self.members[0].peer = Some(peer);
    }

    /// What the hub has before anybody joins.
    pub(super) async fn fill_hub(&mut self, rows: u32) -> Result<(), Failure> {
        let hub = &mut self.members[0];
        hub.written = hub
            .write(move |engine| {
                let mut written = DbVersion::ZERO;
                for first in (0..rows).step_by(FILL_TRANSACTION_ROWS as usize) {
                    written = transaction(engine, |tx| {
                        let sql = "INSERT INTO task VALUES (?1, ?2, ?3, ?4, ?5)";
                        let mut insert = tx.prepare_cached(sql)?;
                        for row in first..rows.min(first + FILL_TRANSACTION_ROWS) {
                            let (id, title) = (format!("task-{row:07}"), format!("task number {row}"));
                            insert.execute(params![id, "inbox", title, row % 3 == 0, f64::from(row % 7) / 2.0])?;
                        }
                        Ok(())
                    })?;
                }
                transaction(engine, |tx| {
                    for shared in 0..SHARED_TASKS {
                        let sql = "INSERT INTO task (id, project, title) VALUES (?1, 'inbox', 'shared')";
                        tx.execute(sql, [format!("shared-{shared}")])?;
                    }
                    for conflict in &CONFLICTS {
                        tx.execute_batch(conflict.before)?;
                    }
                    tx.execute("INSERT INTO project VALUES ('inbox', 'Inbox')", [])?;
                    Ok(())
                })
                .map(|last| last.max(written))
            })
            .await?;
        Ok(())
    }

    /// Laptop and phone start to sync with the hub.
    pub(super) async fn go_online(&mut self, venue: &Venue) -> Result<(), Failure> {
        for member in &mut self.members[1..] {
            let peer = Peer::builder(member.database.clone()).shared_transport(venue.way(&member.file)?).start().await;
            member.peer = Some(peer.map_err(|error| Failure::start(&member.file, &error))?);
        }
        Ok(())
    }

    /// Laptop and phone stop.
    pub(super) async fn go_offline(&self) {
        for member in &self.members[1..] {
            if let Some(peer) = &member.peer {
                peer.stop().await;
            }
        }
    }

    /// Laptop and phone stop, and the hub has noticed, where it can.
    pub(super) async fn go_offline_and_tell_hub(&mut self, venue: &Venue) -> Result<(), Failure> {
        let hub = self.members[0].peer()?.clone();
        self.go_offline().await;
        for member in &mut self.members[1..] {
            member.peer = None;
        }
        let before = Deadline::now() + self.patience;
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        while venue.notices_absence() && !hub.status().is_empty() {
            if Deadline::now() >= before {
                return Err(late("the hub did not notice that the others left", self.patience));
            }
            looks.tick().await;
        }
        Ok(())
    }

    /// Each site commits `count` transactions, all at the same time.
    pub(super) async fn write_on_all_sides(&mut self, count: u32) -> Result<(), Failure> {
        let mut writers = JoinSet::new();
        for (index, member) in self.members.iter_mut().enumerate() {
            let (name, first) = (member.name, member.transaction + 1);
            member.transaction += count;
            let write = member.write(move |engine| {
                let mut written = DbVersion::ZERO;
                for number in first..first + count {
                    written = transaction(engine, |tx| work(tx, name, number))?;
                }
                Ok(written)
            });
            writers.spawn(async move { (index, write.await) });
        }
        while let Some(done) = writers.join_next().await {
            let (index, written) = done.map_err(|error| Failure::internal(error.to_string()))?;
            self.members[index].written = written?;
        }
        Ok(())
    }

    /// Each site does its part of the conflicts, without knowing of the others.
    pub(super) async fn write_conflicts(&mut self) -> Result<(), Failure> {
        for (index, member) in self.members.iter_mut().enumerate() {
            let name = member.name;
            member.written = member
                .write(move |engine| {
                    for conflict in &CONFLICTS {
                        transaction(engine, |tx| tx.execute_batch(conflict.writes[index]))?;
                    }
                    // Last a row that nobody else writes. A change that was beaten on its way is not passed on, and the
                    // others would wait in vain for its version.
                    let last = "INSERT INTO project VALUES (?1, 'written last')";
                    transaction(engine, |tx| tx.execute(last, [format!("{name}-conflicts")]).map(drop))
                })
                .await?;
        }
        Ok(())
    }

    /// Waits until each holds what the others have written: their cursors say so, and a cursor moves in the transaction
    /// that makes it true.
    pub(super) async fn converge(&self) -> Result<(), Failure> {
        let before = Deadline::now() + self.patience;
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        for member in &self.members {
            let peer = member.peer()?;
            loop {
                let cursor = peer.cursor().await.map_err(|error| Failure::peer(&member.file, &error))?;
                if self.members.iter().all(|other| cursor.get(&other.site) >= other.written) {
                    break;
                }
                if Deadline::now() >= before {
                    return Err(late(&format!("{} did not catch up", member.name), self.patience));
                }
                looks.tick().await;
            }
        }
        Ok(())
    }

    /// Changes that came in over the present connections, on all sides.
    pub(super) fn changes_received(&self) -> u64 {
        let peers = self.members.iter().filter_map(|member| member.peer.as_ref());
        peers.flat_map(Peer::status).map(|status| status.changes_received).sum()
    }

    /// How long single writes on the laptop take until a query on the phone sees them.
    pub(super) async fn latencies(&mut self, samples: usize) -> Result<Vec<Duration>, Failure> {
        let [_, laptop, phone] = &mut self.members;
        let mut events = phone.peer()?.events();
        let mut latencies = Vec::with_capacity(samples);
        for sample in 0..samples {
            let id = format!("latency-{sample}");
            let started = Instant::now();
            let written = id.clone();
            laptop.written = laptop
                .write(move |engine| {
                    let sql = "INSERT INTO project VALUES (?1, 'how long does this take?')";
                    transaction(engine, |tx| tx.execute(sql, [&written]).map(drop))
                })
                .await?;
            let before = Deadline::now() + self.patience;
            while !phone.has_project(&id).await? {
                match tokio::time::timeout_at(before, events.recv()).await {
                    Ok(Ok(Event::Change { .. }) | Err(_)) => {}
                    Ok(Ok(_)) => continue,
                    Err(_) => return Err(late("a write on the laptop did not reach the phone", self.patience)),
                }
            }
            latencies.push(started.elapsed());
        }
        Ok(latencies)
    }

    /// Compares the three files row by row, and reads what the conflicts came to.
    pub(super) async fn report(&self, url: String, speed: Speed, took: Duration) -> Result<Report, Failure> {
        let files: Vec<(&'static str, PathBuf, Database)> =
            self.members.iter().map(|member| (member.name, member.file.clone(), member.database.clone())).collect();
        let sites = self.members.iter().map(|member| FileReport {
            name: member.name,
            file: member.file.display().to_string(),
            site_id: member.site.to_string(),
        });
        let sites = sites.collect();
        let compared = tokio::task::spawn_blocking(move || compare(&files)).await;
        let (equal, tables, conflicts) = compared.map_err(|error| Failure::internal(error.to_string()))??;
        Ok(Report { equal, hub_url: url, files: sites, tables, conflicts, speed, seconds: took.as_secs_f64() })
    }
}

impl Member {
    fn peer(&self) -> Result<&Peer, Failure> {
        self.peer.as_ref().ok_or_else(|| Failure::internal(format!("{} is not online", self.name)))
    }

    /// Runs writes on a connection of its own, as another program would. Borrows nothing, so that all sites can write at
    /// once.
    fn write<W>(&self, work: W) -> impl Future<Output = Result<DbVersion, Failure>> + Send + 'static + use<W>
    where
        W: FnOnce(&mut Engine) -> rusqlite::Result<DbVersion> + Send + 'static,
    {
        let (database, file) = (self.database.clone(), self.file.clone());
        let blocking = move || {
            let mut engine = database.connect().map_err(|error| Failure::open(&file, &error))?;
            work(&mut engine).map_err(|error| Failure::sqlite(&file, &error))
        };
        async move { tokio::task::spawn_blocking(blocking).await.map_err(|error| Failure::internal(error.to_string()))? }
    }

    async fn has_project(&self, id: &str) -> Result<bool, Failure> {
        let (database, file, id) = (self.database.clone(), self.file.clone(), id.to_owned());
        let look = move || {
            let sql = "SELECT 1 FROM project WHERE id = ?1";
            let found = database.lock().connection().query_row(sql, [id], |_| Ok(())).optional();
            found.map(|row| row.is_some()).map_err(|error| Failure::sqlite(&file, &error))
        };
        tokio::task::spawn_blocking(look).await.map_err(|error| Failure::internal(error.to_string()))?
    }
}

/// Runs one transaction, and gives the version that it got.
fn transaction(
    engine: &mut Engine,
    work: impl FnOnce(&rusqlite::Transaction<'_>) -> rusqlite::Result<()>,
) -> rusqlite::Result<DbVersion> {
    let tx = engine.connection_mut().transaction_with_behavior(TransactionBehavior::Immediate)?;
    work(&tx)?;
    // Inside of the transaction: after it a merge could have taken a version already.
    let version = tx.query_row("SELECT crsql_next_db_version()", [], |row| row.get(0))?;
    tx.commit()?;
    Ok(DbVersion::new(version))
}

/// One transaction of several tables: rows of its own, and cells that the other sites write at the same time.
fn work(tx: &rusqlite::Transaction<'_>, name: &str, number: u32) -> rusqlite::Result<()> {
    let (own, shared) = (format!("{name}-{number}"), format!("shared-{}", number % SHARED_TASKS));
    let attachment: Vec<u8> = own.bytes().chain([0, 255]).collect();
    tx.execute("UPDATE task SET title = ?1, estimate = ?2 WHERE id = ?3", params![own, number, shared])?;
    if number.is_multiple_of(10) {
        // One site deletes what the others update, and all of them make it anew.
        tx.execute("DELETE FROM task WHERE id = ?1", [&shared])?;
    } else if number % 10 == 5 {
        tx.execute("INSERT INTO task (id, title) VALUES (?1, ?2) ON CONFLICT DO NOTHING", params![shared, own])?;
    }
    tx.execute("INSERT INTO note VALUES (?1, 1, 'written by ' || ?2, ?3)", params![own, name, attachment])?;
    // Last a row that nobody else writes. A change that was beaten on its way is not passed on, and the others would wait
    // in vain for its version.
    tx.execute("INSERT INTO task (id, project, title) VALUES (?1, 'inbox', ?1)", [&own])?;
    Ok(())
}

type Compared = (bool, Vec<TableReport>, Vec<conflicts::Outcome>);

fn compare(files: &[(&'static str, PathBuf, Database)]) -> Result<Compared, Failure> {
    let (_, hub_file, hub) = &files[0];
    let mut equal = true;
    for (_, file, _) in &files[1..] {
        equal &= diff::compare(hub_file, file, 0)?.equal;
    }
    let names = hub.lock().tables().map_err(|error| Failure::sqlite(hub_file, &error.0))?;
    let mut tables = Vec::new();
    for table in names {
        let mut digests = Vec::new();
        let mut rows = 0;
        for (name, file, database) in files {
            let read = digest(database.lock().connection(), &table).map_err(|error| Failure::sqlite(file, &error))?;
            rows = read.rows;
            digests.push((*name, read.hex));
        }
        let equal = digests.iter().all(|(_, hex)| *hex == digests[0].1);
        tables.push(TableReport { table: table.to_string(), rows, equal, digests: digests.into_iter().collect() });
    }
    equal &= tables.iter().all(|table| table.equal);
    let outcomes = CONFLICTS.iter().map(|conflict| outcome(conflict, files)).collect::<Result<_, _>>()?;
    Ok((equal, tables, outcomes))
}

fn outcome(
    conflict: &'static Conflict,
    files: &[(&'static str, PathBuf, Database)],
) -> Result<conflicts::Outcome, Failure> {
    let mut results = Vec::new();
    for (_, file, database) in files {
        let result = database.lock().connection().query_row(conflict.question, [], |row| row.get::<_, String>(0));
        results.push(result.map_err(|error| Failure::sqlite(file, &error))?);
    }
    Ok(conflict.outcome(&results))
}

fn late(what: &str, patience: Duration) -> Failure {
    Failure::network(
        format!("{what} within {} s", patience.as_secs()),
        "run the demo again with fewer --rows, and with -v to see what happens",
    )
}
