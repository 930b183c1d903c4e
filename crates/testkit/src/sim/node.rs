//! One peer: its file, its process while that runs, and the sessions of the process.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use litemesh::simulation::{Look, Process, Session, Work};
use litemesh_engine::Engine;
use litemesh_engine::proto::{Cursor, DbVersion, Remote, SiteId};
use litemesh_engine::rusqlite::Connection;
use litemesh_engine::rusqlite::functions::{Context, FunctionFlags};

use super::network::Frame;
use super::original::{Original, Talk};
use super::relay::Relayed;
use crate::history::Schema;

/// The schema version of the tables that are there from the beginning; one more has the table that comes with an upgrade.
pub(super) const SCHEMA_VERSION: i64 = 1;

/// The site of files that others are made of: bytes that stand nowhere else in them.
const TEMPLATE_SITE: [u8; 16] = *b"of the templates";

/// The largest `max_page_count`: a disk with room.
const PAGES_MAX: i64 = 4_294_967_294;

pub(super) struct Node {
    pub(super) path: PathBuf,
    pub(super) site: SiteId,
    /// Counts the processes: what an older one ordered is nobody's any more.
    pub(super) boot: u64,
    /// `None` while it is down.
    pub(super) running: Option<Running>,
    /// Down for good.
    pub(super) is_gone: bool,
    /// How much slower than others its engine is.
    pub(super) slowness: u32,
    /// Until when it does nothing at all.
    pub(super) suspended_until: Duration,
    /// How far its wall clock is ahead of the time, in seconds.
    pub(super) clock: i64,
    pub(super) recursive_triggers: bool,
    pub(super) has_app_connection: bool,
    pub(super) is_upgraded: bool,
    pub(super) backup: Option<Backup>,
    /// What its disk has, where there are power cuts.
    pub(super) on_disk: Option<OnDisk>,
    /// Restored and not yet told of the versions that it forgot; the first connection that it made since.
    pub(super) restored: Option<u64>,
    /// The version that it was restored to.
    pub(super) restored_to: DbVersion,
    /// Up to here what it holds of itself is what it held in the lives that it has forgotten and was not told of.
    pub(super) common: DbVersion,
    /// It was restored at some time, or another peer had its site id: it may learn later what it lacks of itself.
    pub(super) may_have_forgotten: bool,
    /// The site id that another peer had as well from some version on, or a life of this one that it has forgotten. That version is known
    /// to who made the copy, or restored the backup.
    pub(super) parted: Option<(SiteId, DbVersion)>,
    /// It keeps the rules of the original.
    pub(super) original: Option<Original>,
    /// What it held when it was looked at last. Kept while it is down: a restart must not change it.
    pub(super) cursor: Cursor,
}

pub(super) struct Backup {
    pub(super) bytes: Vec<u8>,
    pub(super) version: DbVersion,
    /// Where it had forgotten something itself: [`Node::common`].
    pub(super) common: Option<DbVersion>,
    pub(super) is_upgraded: bool,
}

/// A file as it is on the disk, with its log.
pub(super) struct OnDisk {
    file: Vec<u8>,
    log: Vec<u8>,
    pub(super) version: DbVersion,
    /// [`Node::restored_to`] and [`Node::common`], where it had not been told yet of what it had forgotten.
    pub(super) untold: Option<(DbVersion, DbVersion)>,
    is_upgraded: bool,
}

pub(super) struct Running {
    /// The connection of the peer.
    pub(super) engine: Engine,
    /// That of the application, where it has one of its own.
    pub(super) app: Option<Engine>,
    /// The application's transaction that is open, and the version before it.
    pub(super) open_since: Option<DbVersion>,
    pub(super) process: Process,
    pub(super) look: Look,
    pub(super) sessions: BTreeMap<u64, RunningSession>,
    pub(super) jobs: VecDeque<Job>,
}

/// What waits for the engine.
pub(super) enum Job {
    Work { connection: u64, work: Box<Work> },
    Look,
}

/// Who talks with a remote.
pub(super) enum Side {
    Ours(Box<Session>),
    Original(Box<Talk>),
}

impl Side {
    pub(super) fn remote(&self) -> Remote {
        match self {
            Self::Ours(session) => session.remote(),
            Self::Original(talk) => talk.remote,
        }
    }

    pub(super) fn is_caught_up(&self) -> bool {
        match self {
            Self::Ours(session) => session.is_caught_up(),
            Self::Original(talk) => talk.is_caught_up(),
        }
    }
}

pub(super) struct RunningSession {
    pub(super) session: Side,
    /// Which end of its connection this is.
    pub(super) end: usize,
    pub(super) transport: usize,
    pub(super) inbox: VecDeque<Frame>,
    /// A message was given to the session and is not answered yet: the frame, and nothing is taken before.
    pub(super) receiving: Option<Frame>,
    pub(super) is_sending: bool,
    pub(super) is_announcement_due: bool,
    /// It goes over relays.
    pub(super) relayed: Option<Box<Relayed>>,
}

impl RunningSession {
    pub(super) fn new(session: Side, end: usize, transport: usize) -> Self {
        Self {
            session,
            end,
            transport,
            inbox: VecDeque::new(),
            receiving: None,
            is_sending: false,
            is_announcement_due: false,
            relayed: None,
        }
    }
}

impl Node {
    pub(super) fn engine(&self) -> Option<&Engine> {
        self.running.as_ref().map(|running| &running.engine)
    }

    /// The connection that the application writes on.
    pub(super) fn app(&mut self) -> Option<&mut Engine> {
        let running = self.running.as_mut()?;
        Some(running.app.as_mut().unwrap_or(&mut running.engine))
    }

    /// Makes the file, out of the bytes of one that was made before with the same tables: that is cheaper.
    pub(super) fn create(&self, schemas: &[Schema]) {
        static MADE: Mutex<BTreeMap<String, Vec<u8>>> = Mutex::new(BTreeMap::new());
        let tables: String = schemas.iter().map(|schema| schema.create).collect();
        let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        let template = made.entry(tables).or_insert_with(|| {
            self.create_template(schemas);
            std::fs::read(&self.path).expect("a file that was made just now")
        });
        // The site stands in its row, and in the index that has this one entry.
        let mut bytes = template.clone();
        let places = template.windows(TEMPLATE_SITE.len()).enumerate().filter(|(_, window)| *window == TEMPLATE_SITE);
        for (at, _) in places {
            bytes[at..at + TEMPLATE_SITE.len()].copy_from_slice(self.site.as_bytes());
        }
        self.replace_file(&bytes);
    }

    fn create_template(&self, schemas: &[Schema]) {
        let connection = Connection::open(&self.path).expect("a folder that can be written to");
        connection
            .execute_batch(
                "PRAGMA synchronous = OFF; PRAGMA page_size = 1024; PRAGMA journal_mode = WAL;
                 CREATE TABLE crsql_site_id (site_id BLOB NOT NULL, ordinal INTEGER PRIMARY KEY);",
            )
            .expect("a new file takes tables");
        connection.execute("INSERT INTO crsql_site_id VALUES (?1, 0)", [TEMPLATE_SITE]).expect("an empty table");
        let engine = Engine::attach(connection).expect("a file of ours");
        self.seed_random(engine.connection(), 0);
        for schema in schemas {
            engine.connection().execute_batch(schema.create).expect("a table that is new");
            engine.replicate(&schema.name).expect("a table that can replicate");
        }
        engine.connection().pragma_update(None, "user_version", SCHEMA_VERSION).expect("a file that can be written to");
    }

    /// `number`: differs between the connections of a node.
    fn open(&self, number: u64) -> Engine {
        let engine = Engine::open(&self.path).expect("a sound file");
        self.seed_random(engine.connection(), number);
        // Nothing here outlives the machine, and nobody waits in virtual time.
        engine.connection().pragma_update(None, "synchronous", "OFF").expect("a setting of SQLite");
        engine.connection().busy_timeout(Duration::ZERO).expect("a setting of SQLite");
        engine.connection().pragma_update(None, "recursive_triggers", self.recursive_triggers).expect("a setting");
        engine
    }

    /// Chance, as SQL knows it, is the seed's: incarnations are in messages, so how long these are depends on it.
    fn seed_random(&self, connection: &Connection, number: u64) {
        let mut hasher = DefaultHasher::new();
        (self.path.file_name(), self.site.as_bytes(), number).hash(&mut hasher);
        let rng = Mutex::new(Rng::with_seed(hasher.finish()));
        let random = move |_: &Context<'_>| Ok(rng.lock().unwrap_or_else(PoisonError::into_inner).i64(..));
        connection.create_scalar_function("random", 0, FunctionFlags::SQLITE_UTF8, random).expect("a known function");
    }

    /// Starts the process.
    pub(super) fn start(&mut self) {
        self.boot += 1;
        let engine = self.open(2 * self.boot);
        let app = self.has_app_connection.then(|| self.open(2 * self.boot + 1));
        let look = Look::at(&engine).expect("a sound file");
        self.running = Some(Running {
            engine,
            app,
            open_since: None,
            // Every other life of a process.
            process: Process::new(look, self.boot.is_multiple_of(2)),
            look,
            sessions: BTreeMap::new(),
            jobs: VecDeque::new(),
        });
    }

    /// The process dies: whatever is not committed is gone.
    pub(super) fn kill(&mut self) {
        self.running = None;
        self.suspended_until = Duration::ZERO;
    }

    /// Copies the file; `None` where somebody is writing to it.
    pub(super) fn copy(&self) -> Option<Vec<u8>> {
        checkpoint(self.engine()?.connection()).then(|| std::fs::read(&self.path).expect("the file of a peer"))
    }

    /// What was committed is on the disk from now on.
    pub(super) fn flush(&mut self) {
        let Some(engine) = self.engine() else { return };
        let version = engine.db_version().expect("a database that can be read");
        let file = std::fs::read(&self.path).expect("the file of a peer");
        let log = std::fs::read(self.path_of_log()).unwrap_or_default();
        let untold = self.restored.map(|_| (self.restored_to, self.common));
        self.on_disk = Some(OnDisk { file, log, version, untold, is_upgraded: self.is_upgraded });
    }

    /// Puts back what is on the disk.
    pub(super) fn lose_power(&mut self) -> Option<&OnDisk> {
        let on_disk = self.on_disk.as_ref()?;
        self.replace_file(&on_disk.file);
        std::fs::write(self.path_of_log(), &on_disk.log).expect("a folder that can be written to");
        self.is_upgraded = on_disk.is_upgraded;
        Some(on_disk)
    }

    fn path_of_log(&self) -> PathBuf {
        let mut path = self.path.as_os_str().to_owned();
        path.push("-wal");
        path.into()
    }

    /// Puts other bytes in the place of the file, as somebody who restores a backup does.
    pub(super) fn replace_file(&self, bytes: &[u8]) {
        for ending in ["-wal", "-shm"] {
            let mut path = self.path.as_os_str().to_owned();
            path.push(ending);
            // Not there where it was closed well.
            let _ = std::fs::remove_file(path);
        }
        std::fs::write(&self.path, bytes).expect("a folder that can be written to");
    }

    /// Lets the file grow by so many pages and no more; `None`: as it likes.
    pub(super) fn limit_disk(&self, pages: Option<i64>) {
        let Some(running) = &self.running else { return };
        for engine in std::iter::once(&running.engine).chain(&running.app) {
            let connection = engine.connection();
            let used = |connection: &Connection| super::database::ask::<i64>(connection, "PRAGMA page_count", []);
            let max = pages.map_or(PAGES_MAX, |pages| used(connection) + pages);
            super::database::ask::<i64>(connection, &format!("PRAGMA max_page_count = {max}"), []);
        }
    }
}

/// Moves everything from the log to the file.
fn checkpoint(connection: &Connection) -> bool {
    super::database::ask::<i64>(connection, "PRAGMA wal_checkpoint(TRUNCATE)", []) == 0
}

/// Gives a file another site, as chosen by the seed rather than by SQLite.
pub(super) fn set_site(path: &Path, site: SiteId) {
    let connection = Connection::open(path).expect("the file of a peer");
    connection.execute("UPDATE crsql_site_id SET site_id = ?1 WHERE ordinal = 0", [site.as_bytes()]).expect("a site");
}
