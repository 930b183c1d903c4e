//! A process that writes and merges is killed in the middle of it, again and again on the same file. After each kill the file
//! is sound, rows and clocks fit together, and nothing that was committed is gone.
//!
//! The writer is this test binary, started again. It says on its standard error what it has committed; what it said before it
//! died is what must be there. `LITEMESH_SEEDS=20` kills 400 times (docs/testing.md).

#[path = "hostile/consistency.rs"]
mod consistency;
mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use consistency::assert_consistent;
use fastrand::Rng;
use litemesh_engine::proto::{Cursor, DbVersion, SiteId};
use litemesh_engine::{Engine, MergeProgress};
use litemesh_testkit::{Schema, Statement, for_seeds, schemas};
use support::{ask, assert_same, dump, execute, merge_by_sql, state};

/// How often a file's writer is killed.
const KILLS: usize = 20;

/// What tells a writer where to write: the file, its seed and the first number for its ledger.
const WRITER_VARIABLE: &str = "LITEMESH_KILLED_WRITER";

/// Longest wait for a writer's next commit. Only a writer that hangs reaches it.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// Each commit, local or merged, puts one row into this table.
const LEDGER: &str = "CREATE TABLE IF NOT EXISTS ledger (n INTEGER PRIMARY KEY NOT NULL, how TEXT)";

#[test]
fn killed_processes_leave_what_they_committed() {
    for_seeds(0xdead, 2, |rng| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("killed.db");
        let mut promised = Promised::default();
        for kill in 1..=KILLS {
            let first = i64::try_from(kill).unwrap() * 1_000_000;
            let writer = Writer::start(&path, rng.u64(..), first);
            writer.kill(rng, &mut promised);
            // Now and then the next writer is the first to open what the last one left.
            if rng.u8(..3) > 0 || kill == KILLS {
                check(&path, &promised);
            }
        }
        assert!(promised.commits > 0, "writers that commit");
    });
}

/// What writers said that they committed.
#[derive(Default)]
struct Promised {
    commits: usize,
    /// The last row of the ledger by the first one of its writer; each writer counts up by one.
    ledger: BTreeMap<i64, i64>,
    version: i64,
    cursor: Cursor,
}

impl Promised {
    /// `row, version` or `row, version, site, version of the site`.
    fn note(&mut self, first: i64, line: &str) {
        let parts: Vec<&str> = line.split(' ').collect();
        let number = |text: &str| text.parse::<i64>().unwrap_or_else(|_| panic!("a writer said {line:?}"));
        let (row, version) = (number(parts[0]), number(parts[1]));
        self.commits += 1;
        self.ledger.insert(first, row);
        assert!(version >= self.version, "a writer begins at version {version}, after {}", self.version);
        self.version = version;
        if let [_, _, site, theirs] = parts.as_slice() {
            let site = const_hex::decode(site).ok().and_then(|bytes| SiteId::from_slice(&bytes)).unwrap();
            self.cursor.update([(site, DbVersion::new(number(theirs)))]);
        }
    }
}

fn check(path: &Path, promised: &Promised) {
    let mut engine = Engine::open(path).unwrap();
    let connection = engine.connection();
    assert_eq!(ask::<String>(connection, "PRAGMA integrity_check"), "ok");
    assert_consistent(&engine);
    if promised.commits == 0 {
        return;
    }
    let mut rows = connection.prepare("SELECT n FROM ledger WHERE n BETWEEN ?1 AND ?1 + 999999 ORDER BY n").unwrap();
    for (first, last) in &promised.ledger {
        let found: Vec<i64> = rows.query_map([first], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        let expected: Vec<i64> = (*first..=*last).collect();
        // One more may be committed, and its writer was killed before it could say so.
        assert_eq!(found.get(..expected.len()), Some(&expected[..]), "of the writer that began at {first}");
        assert!(found.len() <= expected.len() + 1, "of the writer that began at {first}: {found:?}");
    }
    drop(rows);
    assert!(engine.db_version().unwrap().get() >= promised.version);
    let cursor = engine.cursor().unwrap();
    for (site, version) in promised.cursor.iter() {
        assert!(cursor.get(site) >= version, "of site {site}: {:?} of {version:?}", cursor.get(site));
    }
    // What it sends is all that it holds.
    let schemas = schemas();
    let mut copy = Engine::open_in_memory().unwrap();
    create(&copy, &schemas);
    copy.merge(&dump(&engine), &MergeProgress::default()).unwrap();
    assert_same(&state(&copy, &schemas), &state(&engine, &schemas), "sent to a new database");
    let count = "SELECT count(*) FROM ledger";
    assert_eq!(ask::<i64>(copy.connection(), count), ask::<i64>(engine.connection(), count));
    // And it can go on.
    engine.connection_mut().execute_batch("BEGIN; UPDATE ledger SET how = how || '.' WHERE n % 7 = 0; COMMIT").unwrap();
}

/// The process that will be killed.
struct Writer {
    child: Child,
    first: i64,
    lines: Receiver<String>,
}

impl Writer {
    fn start(path: &Path, seed: u64, first: i64) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "--nocapture", "writer"])
            .env(WRITER_VARIABLE, format!("{seed} {first} {}", path.display()))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = sync_channel(1024);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, first, lines }
    }

    /// Lets it commit a number of times, then kills it a moment later: in a statement, in a commit, in a checkpoint.
    fn kill(mut self, rng: &mut Rng, promised: &mut Promised) {
        // None: while it opens the file, or makes it.
        let commits = if rng.u8(..8) == 0 { 0 } else { rng.usize(1..80) };
        let mut said = Vec::new();
        while said.len() < commits {
            match self.lines.recv_timeout(SILENCE_MAX) {
                Ok(line) => said.push(line),
                Err(error) => {
                    let _ = self.child.kill();
                    panic!("the writer said nothing more ({error}), after: {said:#?}");
                }
            }
        }
        // The fault's moment, not a wait for anything. A sleep would be too coarse for it.
        let moment = Duration::from_micros(rng.u64(..if commits == 0 { 40_000 } else { 3_000 }));
        let now = Instant::now();
        while now.elapsed() < moment {
            std::hint::spin_loop();
        }
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        // What is in the pipe was said before it died. Its last line may be cut.
        said.extend(self.lines.iter());
        #[cfg(unix)]
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status}: {said:#?}");
        for line in &said {
            match line.strip_prefix('<').and_then(|line| line.strip_suffix('>')) {
                Some(commit) => promised.note(self.first, commit),
                None => assert!(line.starts_with('<'), "the writer said: {said:#?}"),
            }
        }
    }
}

fn create(engine: &Engine, schemas: &[Schema]) {
    let exists = "SELECT count(*) FROM sqlite_schema WHERE name = ?1";
    for schema in schemas {
        if engine.connection().query_row(exists, [&*schema.name], |row| row.get::<_, i64>(0)).unwrap() == 0 {
            engine.connection().execute_batch(schema.create).unwrap();
        }
        engine.replicate(&schema.name).unwrap();
    }
    engine.connection().execute_batch(LEDGER).unwrap();
    engine.replicate("ledger").unwrap();
}

#[test]
#[ignore = "is the process that the other test starts and kills"]
fn writer() {
    let task = std::env::var(WRITER_VARIABLE).expect("started by killed_processes_leave_what_they_committed");
    let mut parts = task.splitn(3, ' ');
    let mut number = || parts.next().unwrap().parse::<u64>().unwrap();
    let (seed, first) = (number(), number());
    write_until_killed(&PathBuf::from(parts.next().unwrap()), seed, i64::try_from(first).unwrap());
}

fn write_until_killed(path: &Path, seed: u64, first: i64) {
    let mut rng = Rng::with_seed(seed);
    let mut engine = Engine::open(path).unwrap();
    // Small logs are copied into the file all the time; a rollback journal is another way to be killed.
    let log = if rng.u8(..4) == 0 { "PRAGMA journal_mode = DELETE" } else { "PRAGMA journal_mode = WAL" };
    ask::<String>(engine.connection(), log);
    let pages = *rng.choice(&[1, 5, 50, 1000]).unwrap();
    ask::<i64>(engine.connection(), &format!("PRAGMA wal_autocheckpoint = {pages}"));
    let schemas = schemas();
    create(&engine, &schemas);
    let remote = Engine::open_in_memory().unwrap();
    create(&remote, &schemas);
    for n in first.. {
        let statements = rng.usize(..6);
        match rng.u8(..8) {
            0 => drop(engine.connection().execute("INSERT INTO ledger VALUES (?1, 'alone')", [n]).unwrap()),
            1..=4 => write_locally(&engine, &schemas, &mut rng, statements, n),
            5 => {
                write_remotely(&remote, &schemas, &mut rng, statements, n);
                engine.connection().execute_batch("BEGIN IMMEDIATE").unwrap();
                merge_by_sql(engine.connection(), &news(&remote, &engine));
                engine.connection().execute_batch("COMMIT").unwrap();
            }
            _ => {
                write_remotely(&remote, &schemas, &mut rng, statements, n);
                let (site, version) = (remote.site().unwrap(), remote.db_version().unwrap());
                let progress =
                    MergeProgress { cursor: [(site, version)].into_iter().collect(), ..MergeProgress::default() };
                engine.merge(&news(&remote, &engine), &progress).unwrap();
                let (ours, site) = (engine.db_version().unwrap().get(), const_hex::encode(site.as_bytes()));
                eprintln!("<{n} {ours} {site} {}>", version.get());
                continue;
            }
        }
        eprintln!("<{n} {}>", engine.db_version().unwrap().get());
    }
}

fn news(remote: &Engine, engine: &Engine) -> Vec<litemesh_engine::proto::Change> {
    remote.changes_since(&engine.cursor().unwrap()).flat_map(|changeset| changeset.unwrap().changes).collect()
}

/// A transaction of any statements, some of them taken back.
fn write_locally(engine: &Engine, schemas: &[Schema], rng: &mut Rng, statements: usize, n: i64) {
    let connection = engine.connection();
    connection.execute_batch("BEGIN").unwrap();
    for _ in 0..statements {
        let is_taken_back = rng.u8(..4) == 0;
        if is_taken_back {
            connection.execute_batch("SAVEPOINT s").unwrap();
        }
        execute(engine, schemas, &Statement::random(rng, schemas));
        if is_taken_back {
            connection.execute_batch("ROLLBACK TO s; RELEASE s").unwrap();
        }
    }
    connection.execute("INSERT INTO ledger VALUES (?1, 'local')", [n]).unwrap();
    connection.execute_batch("COMMIT").unwrap();
}

fn write_remotely(remote: &Engine, schemas: &[Schema], rng: &mut Rng, statements: usize, n: i64) {
    for _ in 0..statements {
        execute(remote, schemas, &Statement::random(rng, schemas));
    }
    remote.connection().execute("INSERT INTO ledger VALUES (?1, 'merged')", [n]).unwrap();
}
