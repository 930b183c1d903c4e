//! [`Core`]: the engine's state of one connection, and how it follows transactions and schema changes.
//!
//! SQL functions, the virtual table and the native API all work on the same `Core`, behind one mutex. A user's trigger can
//! call back into the engine while a merge writes; the mutex is then taken, and the call fails with an error instead of
//! waiting for itself.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasherDefault;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use litemesh_proto::limits::{VERSION_JUMP_MAX, VERSION_MAX, VERSION_STEP_MAX};
use litemesh_proto::{DbVersion, Incarnation, SiteId};
use rusqlite::types::ValueRef;
use smallvec::SmallVec;

use crate::alter::Window;
use crate::bootstrap::own_site;
use crate::cursor_moves::RecentMoves;
use crate::discovery::{Discovery, Repair, discover};
use crate::history::OriginalTables;
use crate::incarnation;
use crate::merge_rows::AsItIs;
use crate::merge_step::LastRow;
use crate::notes::{MergedClock, Notes};
use crate::record::{make_room, record_notes};
use crate::schema::{CLOCK_SUFFIX, Table};
use crate::sql::quote;
use crate::statement::{Bind, Handle, Statement};
use crate::transaction::{Ended, STATEMENTS_TABLE, TRANSACTION_TABLE, TransactionFlags};

/// Writes to the table whose callbacks tell us of transactions.
const ENLIST: &str = "INSERT INTO litemesh_transaction (enlisted) VALUES (1)";

/// What one connection's functions, virtual tables and native handle share.
pub(crate) struct Shared {
    core: Mutex<Core>,
    pub(crate) flags: Arc<TransactionFlags>,
    /// Non-zero while the engine itself writes base tables: the triggers do nothing then (MRG-13). Outside of the mutex,
    /// because triggers read it while a merge holds that.
    pub(crate) sync_bit: AtomicI64,
}

impl Shared {
    pub(crate) fn new(core: Core, flags: Arc<TransactionFlags>) -> Self {
        Self { core: Mutex::new(core), flags, sync_bit: AtomicI64::new(0) }
    }

    /// Takes the state for one operation. What the running transaction noted so far is recorded before.
    pub(crate) fn lock(&self) -> rusqlite::Result<MutexGuard<'_, Core>> {
        let mut core = self.lock_for_note()?;
        if self.flags.has_notes() {
            core.record_in_between()?;
        }
        Ok(core)
    }

    /// Takes the state to merge one change. What the last steps noted may stay notes, where nothing happened since then.
    pub(crate) fn lock_for_step(&self) -> rusqlite::Result<MutexGuard<'_, Core>> {
        let mut core = self.lock_for_note()?;
        if self.flags.has_failed() || !core.is_same_step() {
            if self.flags.has_notes() {
                core.record_in_between()?;
            }
            core.merged_rows.clear();
        }
        Ok(core)
    }

    /// Records what the running transaction noted so far, when SQLite says that it is time to.
    pub(crate) fn record(&self) -> rusqlite::Result<()> {
        let mut core = self.lock_for_note()?;
        if self.flags.has_notes() { record_notes(&mut core) } else { Ok(()) }
    }

    /// Makes room for more notes, before a statement that may add some.
    pub(crate) fn make_room(&self) -> rusqlite::Result<()> {
        let mut core = self.lock_for_note()?;
        if self.flags.has_notes() { make_room(&mut core) } else { Ok(()) }
    }

    /// Takes the state to add a note to it.
    pub(crate) fn lock_for_note(&self) -> rusqlite::Result<MutexGuard<'_, Core>> {
        match self.core.try_lock() {
            Ok(core) => Ok(core),
            // A panic inside an operation is a bug, but the state that it left is only a cache of the database.
            Err(TryLockError::Poisoned(poisoned)) => {
                let mut core = poisoned.into_inner();
                if std::mem::take(&mut core.is_recording) && self.flags.is_enlisted() {
                    // But clocks of which a part was written are not: nothing of the transaction may be committed.
                    self.flags.set_failed();
                }
                core.forget_after_panic();
                self.core.clear_poison();
                Ok(core)
            }
            Err(TryLockError::WouldBlock) => Err(module_error(
                "litemesh: the engine is busy with a merge on this connection; a trigger must not call it from there",
            )),
        }
    }

    /// Drops every prepared statement, so that the connection can close.
    pub(crate) fn finalize_statements(&self) {
        if let Ok(mut core) = self.lock_for_note() {
            core.finalize_statements();
        }
    }

    /// Sets the sync bit until the guard is dropped, whatever happens in between (MRG-15).
    pub(crate) fn sync_guard(&self) -> SyncGuard<'_> {
        SyncGuard { shared: self, before: self.sync_bit.swap(1, Ordering::Relaxed) }
    }
}

pub(crate) struct SyncGuard<'a> {
    shared: &'a Shared,
    before: i64,
}

impl Drop for SyncGuard<'_> {
    fn drop(&mut self) {
        self.shared.sync_bit.store(self.before, Ordering::Relaxed);
    }
}

pub(crate) fn module_error(message: impl Into<String>) -> rusqlite::Error {
    rusqlite::Error::ModuleError(message.into())
}

/// The state.
pub(crate) struct Core {
    pub(crate) db: Handle,
    pub(crate) site: SiteId,
    pub(crate) flags: Arc<TransactionFlags>,
    /// Last committed version as far as this connection knows (VER-2).
    committed: Option<i64>,
    /// A random number for this connection, once it has written; see [`crate::incarnation`].
    pub(crate) incarnation: Incarnation,
    is_incarnation_recorded: bool,
    /// The number of the newest incarnation when this connection was opened: no restored backup took the file's place since.
    pub(crate) opened_at: i64,
    /// The version of the database when this connection first looked. What a remote makes of it is bounded from there.
    opened_version: Option<i64>,
    /// Whether that includes the first version that the application wrote.
    is_writing_recorded: bool,
    /// What `crsql_next_db_version()` promised: the transaction's next version is at least that (FN-3).
    promised: i64,
    /// Whether a part of the running transaction was rolled back: its version may be in no clock row.
    is_pending_doubtful: bool,
    /// Writes and merges whose clocks are not written yet. The flags say how many of them count.
    pub(crate) notes: Notes,
    /// Whether notes are being recorded.
    pub(crate) is_recording: bool,
    /// Whether the schema was found changed while notes waited.
    pub(crate) is_schema_newer_than_notes: bool,
    data_version: i64,
    schema_version: i64,
    tables: Vec<Arc<Table>>,
    by_name: HashMap<Arc<str>, usize>,
    /// The table that a trigger named last: most triggers name the same one again.
    triggered_last: Option<Arc<Table>>,
    /// What clock tables are named after that no table replicates with. They still say which versions were given out.
    orphans: Vec<String>,
    /// What DDL left to be mended.
    pub(crate) repairs: Vec<Repair>,
    /// The tables of `@app/sync` that are to be kept.
    pub(crate) original: OriginalTables,
    /// Ordinals of sites, both ways.
    pub(crate) ordinals: HashMap<Vec<u8>, i64>,
    pub(crate) sites: HashMap<i64, Option<SiteId>>,
    /// The site that was looked for last, and its ordinal: mostly it is asked for again.
    last_site: Option<(SmallVec<[u8; 16]>, i64)>,
    /// The row that was merged through `crsql_changes` last.
    pub(crate) last_row: Option<LastRow>,
    /// Whether the row before that one was of no clocks, so that the next one may be, too.
    pub(crate) is_unseen_likely: bool,
    /// Hashes of the rows of which the last steps noted clocks. May have others, too.
    pub(crate) merged_rows: HashSet<u64, BuildHasherDefault<AsItIs>>,
    /// The origin row written last: `(local version, ordinal, author's version)`.
    pub(crate) last_origin: Option<(i64, i64, i64)>,
    pub(crate) merge_equal_values: i64,
    /// See [`crate::cursor::provisional_until`]; `None` before it is looked up in this transaction.
    pub(crate) provisional_until: Option<i64>,
    /// Which entries of our cursor moved lately.
    pub(crate) cursor_moves: RecentMoves,
    /// Whether the temporary schema has triggers: they can be on any table, and no version tells when they change.
    pub(crate) has_temporary_triggers: bool,
    /// Tables between `crsql_begin_alter` and `crsql_commit_alter`, the innermost last.
    pub(crate) windows: Vec<Window>,
    statements: HashMap<&'static str, Arc<Statement>>,
    has_statements: bool,
    /// Whether Litemesh's own tables are there. They are missing in a file that could only be opened for reading.
    pub(crate) has_litemesh_tables: bool,
    /// Whether CRSqlite's are there, likewise.
    pub(crate) has_crsql_tables: bool,
}

/// See [`Core::hold_state`]: a statement that is not finished. Unlike a transaction it has no end that the hooks of the
/// application would hear of.
pub(crate) struct HeldState(Option<Arc<Statement>>);

impl Drop for HeldState {
    fn drop(&mut self) {
        if let Some(statement) = &self.0 {
            drop(statement.start());
        }
    }
}

impl Core {
    pub(crate) fn new(db: Handle, site: SiteId, flags: Arc<TransactionFlags>, merge_equal_values: i64) -> Self {
        Self {
            db,
            site,
            flags,
            committed: None,
            promised: 0,
            is_pending_doubtful: false,
            incarnation: Incarnation::default(),
            is_incarnation_recorded: false,
            opened_at: 0,
            opened_version: None,
            is_writing_recorded: false,
            notes: Notes::default(),
            is_recording: false,
            is_schema_newer_than_notes: false,
            data_version: -1,
            schema_version: -1,
            tables: Vec::new(),
            by_name: HashMap::new(),
            triggered_last: None,
            orphans: Vec::new(),
            repairs: Vec::new(),
            original: OriginalTables::default(),
            ordinals: HashMap::new(),
            sites: HashMap::new(),
            last_site: None,
            last_row: None,
            is_unseen_likely: false,
            merged_rows: HashSet::default(),
            last_origin: None,
            merge_equal_values,
            provisional_until: None,
            cursor_moves: RecentMoves::default(),
            has_temporary_triggers: false,
            windows: Vec::new(),
            statements: HashMap::new(),
            has_statements: false,
            has_litemesh_tables: true,
            has_crsql_tables: true,
        }
    }

    /// A cached statement of fixed text.
    pub(crate) fn statement(&mut self, sql: &'static str) -> rusqlite::Result<Arc<Statement>> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        self.connect_statements_table()?;
        let statement = Arc::new(self.db.prepare(sql)?);
        self.statements.insert(sql, statement.clone());
        Ok(statement)
    }

    /// Before the first statement is kept, the table must be connected whose end finalizes it.
    fn connect_statements_table(&mut self) -> rusqlite::Result<()> {
        if !self.has_statements {
            drop(self.db.prepare(&format!("SELECT 1 FROM {STATEMENTS_TABLE}"))?);
            self.has_statements = true;
        }
        Ok(())
    }

    /// Finalizes all statements. They are prepared again when needed (FN-9).
    pub(crate) fn finalize_statements(&mut self) {
        // They hold their tables, and those their statements.
        self.notes.truncate(self.flags.noted());
        self.notes.finalize_statements();
        self.statements.clear();
        self.tables.clear();
        self.by_name.clear();
        self.triggered_last = None;
        self.last_row = None;
        self.schema_version = -1;
        self.has_statements = false;
    }

    /// Forgets what was read from the database.
    pub(crate) fn forget_everything(&mut self) {
        self.finalize_statements();
        self.committed = None;
        self.flags.set_pending(None);
        self.data_version = -1;
        self.forget_sites();
        self.cursor_moves.forget();
    }

    /// The same after a panic, which may have come in the middle of a transaction. What this one goes by stays: the version below it
    /// can be read at its beginning only, and it must not give its own versions out again.
    fn forget_after_panic(&mut self) {
        let (committed, pending) = (self.committed, self.flags.pending());
        self.forget_everything();
        if self.flags.is_enlisted() {
            self.committed = committed;
            self.flags.set_pending(pending);
            self.is_pending_doubtful = true;
        }
    }

    fn forget_sites(&mut self) {
        self.ordinals.clear();
        self.sites.clear();
        self.last_site = None;
        self.last_origin = None;
    }

    /// Catches up with transactions and schema changes that happened since the last call. Every operation begins here.
    pub(crate) fn refresh(&mut self) -> rusqlite::Result<()> {
        self.follow_transaction();
        self.follow_schema()
    }

    pub(crate) fn follow_transaction(&mut self) {
        if self.flags.take_savepoint_rolled_back() {
            self.forget_sites();
            self.cursor_moves.forget();
            self.last_row = None;
            self.is_pending_doubtful = true;
            (self.is_incarnation_recorded, self.is_writing_recorded) = (false, false);
        }
        let ended = self.flags.take_ended();
        if ended != Ended::No {
            // Other connections may write from here on.
            self.last_row = None;
        }
        match ended {
            Ended::No => {}
            Ended::Committed => {
                let pending = self.flags.pending();
                self.flags.set_pending(None);
                if self.is_pending_doubtful {
                    // A version that no clock row carries must not be reported: it would be given out again after a
                    // restart, and peers whose cursors cover it by then would never take what was written under it.
                    self.committed = None;
                } else if pending.is_some() {
                    self.committed = pending;
                }
                self.begin_counting();
                self.windows.clear();
                self.promised = 0;
                self.last_origin = None;
            }
            Ended::RolledBack => {
                self.flags.set_pending(None);
                // A raised floor went back with the rest.
                self.committed = None;
                (self.is_incarnation_recorded, self.is_writing_recorded) = (false, false);
                self.begin_counting();
                self.windows.clear();
                self.promised = 0;
                self.forget_sites();
                self.cursor_moves.forget();
            }
        }
    }

    fn follow_schema(&mut self) -> rusqlite::Result<()> {
        let schema_version = self.statement("PRAGMA schema_version")?.query_integer(&[])?.unwrap_or_default();
        // Not equal, rather than larger: a restored file may be older (TX-11).
        if schema_version != self.schema_version {
            self.reload_tables()?;
            self.schema_version = schema_version;
        }
        Ok(())
    }

    fn begin_counting(&mut self) {
        self.flags.forget_seqs();
        self.is_pending_doubtful = false;
    }

    fn reload_tables(&mut self) -> rusqlite::Result<()> {
        self.connect_statements_table()?;
        self.is_schema_newer_than_notes = true;
        self.triggered_last = None;
        let Discovery { tables, orphans, repairs } = discover(self.db)?;
        self.tables = tables.into_iter().map(Arc::new).collect();
        self.orphans = orphans;
        self.flags.set_wants_triggers(repairs.iter().any(|repair| matches!(repair, Repair::Triggers { .. })));
        self.repairs = repairs;
        self.original = OriginalTables::find(self.db, self.original)?;
        self.by_name = self.tables.iter().enumerate().map(|(index, table)| (table.name.clone(), index)).collect();
        // A table that left or came may change the stored version. Not inside of a transaction that we follow: what was read
        // at its beginning is what its own version must be above.
        if !self.flags.is_enlisted() {
            self.committed = None;
        }
        Ok(())
    }

    /// Before a note is made. The schema cannot change while a statement runs, so the first note of it looks; and not even
    /// that, where nothing but writes of replicated rows happened since the last note.
    ///
    /// Tells whether it is the first note of its statement, as far as can be told.
    pub(crate) fn begin_note(&mut self) -> rusqlite::Result<bool> {
        // What was finalized is to be looked at again.
        let is_known = self.schema_version >= 0 && self.flags.is_same_schema();
        let is_first = !is_known || !self.flags.is_same_statement();
        if is_first {
            self.flags.forget_savepoints();
            if is_known {
                self.follow_transaction();
            } else {
                self.refresh()?;
            }
        }
        self.notes.truncate(self.flags.noted());
        Ok(is_first)
    }

    pub(crate) fn end_note(&self) {
        self.flags.set_noted(self.notes.len(), self.notes.are_many());
    }

    /// Notes the clock of a change that was merged. Never so many notes that the next savepoint would have to record them: it may be
    /// that of a statement of a step, which holds the state.
    pub(crate) fn note_merged(&mut self, table: &Arc<Table>, clock: MergedClock) -> rusqlite::Result<()> {
        self.notes.truncate(self.flags.noted());
        self.notes.add_merged(table, clock);
        self.flags.set_noted(self.notes.len(), false);
        if self.notes.are_many() { record_notes(self) } else { Ok(()) }
    }

    /// Records what is noted, and leaves what the application can ask SQLite as it was.
    pub(crate) fn record_in_between(&mut self) -> rusqlite::Result<()> {
        let changes = self.db.changes();
        record_notes(self)?;
        self.set_changes(changes)
    }

    /// Begins to write: like [`refresh`](Self::refresh), and SQLite will tell us how the transaction ends.
    pub(crate) fn enlist(&mut self) -> rusqlite::Result<()> {
        self.refresh()?;
        self.join_transaction()
    }

    /// [`enlist`](Self::enlist) and the configuration, for who comes again and again in one transaction: what cannot have
    /// changed since [`end_step`](Self::end_step) is not looked at again.
    pub(crate) fn enlist_for_step(&mut self) -> rusqlite::Result<()> {
        if self.is_same_step() {
            self.follow_transaction();
            return Ok(());
        }
        self.enlist()?;
        self.refresh_for_merge()
    }

    /// Looks at what a merge goes by, and others may have changed without changing the schema.
    pub(crate) fn refresh_for_merge(&mut self) -> rusqlite::Result<()> {
        const TRIGGERS: &str = "SELECT EXISTS (SELECT 1 FROM sqlite_temp_master WHERE type = 'trigger')";
        self.has_temporary_triggers = self.statement(TRIGGERS)?.query_integer(&[])? == Some(1);
        self.provisional_until = None;
        self.refresh_config()
    }

    /// Whether no statement since [`end_step`](Self::end_step) can have changed a replicated table or the schema.
    pub(crate) fn is_same_step(&self) -> bool {
        // What was finalized is to be looked at again.
        self.schema_version >= 0 && self.flags.has_no_savepoint_since()
    }

    /// After the last thing that a step wrote.
    pub(crate) fn end_step(&self) {
        self.flags.end_step();
    }

    /// The second half of [`enlist`](Self::enlist), for who has refreshed already.
    pub(crate) fn join_transaction(&mut self) -> rusqlite::Result<()> {
        if self.flags.is_enlisted() {
            // Unknown only where a panic came before it was read below, so before anything was written.
            return if self.committed.is_none() { self.refresh_committed() } else { Ok(()) };
        }
        debug_assert!(ENLIST.contains(TRANSACTION_TABLE));
        self.statement(ENLIST)?.run(&[])?;
        self.flags.set_pending(None);
        self.begin_counting();
        self.refresh_committed()
    }

    /// Makes `changes()` tell the application what it told before we wrote: by as many writes that do nothing. Not in `xSync`, where
    /// SQLite lets nobody write to a virtual table.
    fn set_changes(&mut self, count: i64) -> rusqlite::Result<()> {
        const WRITES: &str = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
             INSERT INTO litemesh_transaction (enlisted) SELECT i FROM n WHERE ?1 > 0";
        let (rowid, savepoints) = (self.db.last_insert_rowid(), self.flags.savepoints());
        match count {
            1 => self.statement(ENLIST)?.run(&[])?,
            _ => self.statement(WRITES)?.run(&[count.into()])?,
        }
        self.flags.set_savepoints(savepoints);
        self.db.set_last_insert_rowid(rowid);
        Ok(())
    }

    /// Reads the version again if another connection may have moved it (TX-9).
    fn refresh_committed(&mut self) -> rusqlite::Result<()> {
        // Until it is known to hold.
        let committed = self.committed.take();
        let data_version = self.statement("PRAGMA data_version")?.query_integer(&[])?.unwrap_or_default();
        if data_version == self.data_version {
            self.committed = committed;
        } else {
            self.data_version = data_version;
            self.forget_sites();
            if self.has_crsql_tables {
                // Somebody may have forked the file (VER-16).
                self.site = own_site(self.db)?;
            }
        }
        if self.committed.is_none() {
            let stored = self.stored_version()?;
            self.opened_version.get_or_insert(stored);
            self.committed = Some(stored);
        }
        Ok(())
    }

    /// The site id of the database as it is now.
    pub(crate) fn current_site(&mut self) -> rusqlite::Result<SiteId> {
        self.db_version()?;
        Ok(self.site)
    }

    /// VER-1: the largest version in any clock table, or the floor left by removed ones.
    fn stored_version(&mut self) -> rusqlite::Result<i64> {
        if !self.has_crsql_tables {
            return Ok(0);
        }
        const FLOOR: &str = "SELECT value FROM crsql_master WHERE key = 'pre_compact_dbversion'";
        let mut version = self.statement(FLOOR)?.query_integer(&[])?.unwrap_or_default();
        for table in self.tables.clone() {
            let newest = table.statement(self.db, |s| &s.newest, Table::sql_newest)?;
            version = version.max(newest.query_integer(&[])?.unwrap_or_default());
        }
        for shadow in &self.orphans {
            let newest = format!("SELECT max(db_version) FROM main.{}", quote(&format!("{shadow}{CLOCK_SUFFIX}")));
            version = version.max(self.db.query_integer(&newest, &[])?.unwrap_or_default());
        }
        Ok(version)
    }

    /// Makes all statements of this connection see one state of the database, until what it gives is dropped.
    ///
    /// Outside of a transaction another connection may commit between any two of them, and a table that the list names may
    /// be gone when its clocks are read.
    pub(crate) fn hold_state(&mut self) -> rusqlite::Result<HeldState> {
        let statement = self.statement("SELECT 1 FROM sqlite_master")?;
        if statement.is_running() {
            return Ok(HeldState(None));
        }
        let held = HeldState(Some(statement.clone()));
        std::mem::ManuallyDrop::new(statement.start()).next()?;
        Ok(held)
    }

    /// VER-2.
    pub(crate) fn db_version(&mut self) -> rusqlite::Result<i64> {
        let _held = self.hold_state()?;
        self.refresh()?;
        if !self.flags.is_enlisted() {
            self.refresh_committed()?;
        }
        Ok(self.committed.unwrap_or_default())
    }

    /// VER-3, and marks the version as used: call it only when a clock row is about to be written (VER-6).
    pub(crate) fn next_version(&mut self, at_least: i64) -> rusqlite::Result<i64> {
        let next = self.peek_version(at_least);
        self.record_incarnation(next)?;
        self.flags.set_pending(Some(next));
        Ok(next)
    }

    /// Leaves the number of this connection, once, from this version on.
    pub(crate) fn record_incarnation(&mut self, since: i64) -> rusqlite::Result<()> {
        if !self.is_incarnation_recorded && self.has_litemesh_tables {
            incarnation::record(self, since)?;
            self.is_incarnation_recorded = true;
        }
        Ok(())
    }

    /// [`next_version`](Self::next_version) for what the application writes.
    pub(crate) fn version_to_write(&mut self) -> rusqlite::Result<i64> {
        let next = self.next_version(0)?;
        if !self.is_writing_recorded && self.has_litemesh_tables {
            incarnation::record_written(self, next)?;
            self.is_writing_recorded = true;
        }
        Ok(next)
    }

    /// The version of the database before the running transaction.
    pub(crate) fn committed_version(&self) -> i64 {
        self.committed.unwrap_or_default()
    }

    /// The version that the running transaction has used so far, to be [given back](Self::give_back) by what fails.
    pub(crate) fn used_version(&self) -> Option<i64> {
        self.flags.pending()
    }

    /// Takes back the versions used since: what was to carry them was not written.
    pub(crate) fn give_back(&mut self, used_before: Option<i64>) {
        self.flags.set_pending(used_before);
    }

    /// What [`next_version`](Self::next_version) would give, without using it up.
    fn peek_version(&self, at_least: i64) -> i64 {
        let after_committed = self.committed.unwrap_or_default().saturating_add(1);
        after_committed.max(self.flags.pending().unwrap_or_default()).max(self.promised).max(at_least)
    }

    /// Tells the next version, which is not taken before a clock row carries it (VER-6), but will not be lower (FN-3).
    pub(crate) fn promise_version(&mut self, at_least: i64) -> i64 {
        let next = self.peek_version(at_least);
        // BUG-29: a number near the end of the range would end all writing.
        if next <= VERSION_MAX {
            self.promised = next;
        }
        next
    }

    /// A version that no clock row has yet: each foreign changeset gets one of its own.
    pub(crate) fn fresh_version(&mut self, at_least: i64) -> rusqlite::Result<i64> {
        let after_pending = self.flags.pending().map_or(0, |pending| pending.saturating_add(1));
        self.next_version(at_least.max(after_pending))
    }

    /// The highest version known here, used or about to be.
    pub(crate) fn newest_version(&self) -> i64 {
        self.committed.unwrap_or_default().max(self.flags.pending().unwrap_or_default())
    }

    /// Largest version of this database that a remote may claim to have seen: what the file lost, it lost before it was opened.
    pub(crate) fn claim_max(&self) -> i64 {
        self.opened_version.unwrap_or_default().saturating_add(VERSION_JUMP_MAX).min(VERSION_MAX)
    }

    /// Largest version that may be merged (BUG-29: no remote may push our clock to its end).
    pub(crate) fn merge_max(&self) -> i64 {
        self.claim_max().max(self.newest_version().saturating_add(VERSION_STEP_MAX)).min(VERSION_MAX)
    }

    /// Winning operations of the running transaction (FN-5).
    pub(crate) fn rows_impacted(&self) -> i64 {
        self.flags.rows_impacted()
    }

    pub(crate) fn add_rows_impacted(&self, count: usize) {
        self.flags.add_rows_impacted(count);
    }

    /// Takes the next sequence numbers (VER-9), and gives the first.
    pub(crate) fn take_seqs(&mut self, count: usize) -> i64 {
        self.flags.take_seqs(i64::try_from(count).unwrap_or_default())
    }

    pub(crate) fn seq(&self) -> i64 {
        self.flags.seq()
    }

    /// The replicated table of exactly this name.
    pub(crate) fn table(&self, name: &str) -> Option<Arc<Table>> {
        self.by_name.get(name).map(|index| self.tables[*index].clone())
    }

    /// The table that a trigger named last, where this one names it again.
    pub(crate) fn table_of_last_trigger(&self, name: ValueRef<'_>) -> Option<Arc<Table>> {
        let ValueRef::Text(name) = name else { return None };
        self.triggered_last.as_ref().filter(|last| last.shadow.as_bytes() == name).cloned()
    }

    /// The replicated table whose triggers pass this name. CRSqlite can have left one in another case there (CRR-8).
    pub(crate) fn table_of_trigger(&mut self, name: &str) -> Option<Arc<Table>> {
        if let Some(last) = self.triggered_last.as_ref().filter(|last| *last.shadow == *name) {
            return Some(last.clone());
        }
        let is_exact = |table: &&Arc<Table>| &*table.shadow == name;
        let found = self.by_name.get(name).map(|index| &self.tables[*index]).filter(is_exact);
        let is_like = |table: &&Arc<Table>| table.shadow.eq_ignore_ascii_case(name);
        self.triggered_last = found.or_else(|| self.tables.iter().find(is_like)).cloned();
        self.triggered_last.clone()
    }

    /// Whether nothing reacts to a write of the table's base rows: see [`Reactions`](crate::schema::Reactions).
    pub(crate) fn is_alone(&self, table: &Table) -> rusqlite::Result<bool> {
        Ok(!self.has_temporary_triggers && !table.reactions(self.db)?.by_order)
    }

    /// The position of a table in discovery order, and how many there are.
    pub(crate) fn table_index(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// All replicated tables, in discovery order (DSK-9).
    pub(crate) fn tables(&self) -> &[Arc<Table>] {
        &self.tables
    }

    /// The site of an ordinal; `None` where it is not one of 16 bytes or not there.
    pub(crate) fn site_of(&mut self, ordinal: i64) -> rusqlite::Result<Option<SiteId>> {
        if ordinal == 0 {
            return Ok(Some(self.site));
        }
        if let Some(site) = self.sites.get(&ordinal) {
            return Ok(*site);
        }
        let statement = self.statement("SELECT site_id FROM crsql_site_id WHERE ordinal = ?1")?;
        let rows = statement.query(&[ordinal.into()])?;
        let site = if rows.next()? { SiteId::from_slice(rows.bytes(0)) } else { None };
        drop(rows);
        self.sites.insert(ordinal, site);
        Ok(site)
    }

    /// Every site that a change was merged from, and this one.
    pub(crate) fn known_sites(&mut self) -> rusqlite::Result<Vec<SiteId>> {
        if !self.has_crsql_tables {
            return Ok(Vec::new());
        }
        let statement = self.statement("SELECT site_id FROM crsql_site_id")?;
        let rows = statement.query(&[])?;
        let mut sites = Vec::new();
        while rows.next()? {
            sites.extend(SiteId::from_slice(rows.bytes(0)));
        }
        Ok(sites)
    }

    /// The bytes of a site as stored, whatever their number.
    pub(crate) fn site_bytes(&mut self, ordinal: i64) -> rusqlite::Result<Option<Vec<u8>>> {
        if let Some(site) = self.site_of(ordinal)? {
            return Ok(Some(site.as_bytes().to_vec()));
        }
        let statement = self.statement("SELECT site_id FROM crsql_site_id WHERE ordinal = ?1")?;
        let rows = statement.query(&[ordinal.into()])?;
        Ok(if rows.next()? { Some(rows.bytes(0).to_vec()) } else { None })
    }

    /// CFG-3: another connection may have changed the setting.
    pub(crate) fn refresh_config(&mut self) -> rusqlite::Result<()> {
        if !self.has_crsql_tables {
            return Ok(());
        }
        const GET: &str = "SELECT value FROM crsql_master
             WHERE key = 'config.merge-equal-values' AND typeof(value) = 'integer'";
        self.merge_equal_values = self.statement(GET)?.query_integer(&[])?.unwrap_or_default();
        Ok(())
    }

    /// The ordinal of a site, given by its bytes (16, except where plain SQL said otherwise: MRG-2). Adds it if it is new.
    pub(crate) fn ordinal_of(&mut self, site: &[u8]) -> rusqlite::Result<i64> {
        if let Some((_, ordinal)) = self.last_site.as_ref().filter(|(last, _)| **last == *site) {
            return Ok(*ordinal);
        }
        let ordinal = self.find_or_add_ordinal(site)?;
        self.last_site = Some((site.into(), ordinal));
        Ok(ordinal)
    }

    fn find_or_add_ordinal(&mut self, site: &[u8]) -> rusqlite::Result<i64> {
        if let Some(ordinal) = self.find_ordinal(site)? {
            return Ok(ordinal);
        }
        self.statement("INSERT INTO crsql_site_id (site_id) VALUES (?1)")?.run(&[Bind::Blob(site)])?;
        let ordinal = self.db.last_insert_rowid();
        self.ordinals.insert(site.to_vec(), ordinal);
        self.sites.remove(&ordinal);
        Ok(ordinal)
    }

    /// The ordinal of a site that is known already.
    pub(crate) fn find_ordinal(&mut self, site: &[u8]) -> rusqlite::Result<Option<i64>> {
        if site == self.site.as_bytes() {
            return Ok(Some(0));
        }
        if let Some(ordinal) = self.ordinals.get(site) {
            return Ok(Some(*ordinal));
        }
        if !self.has_crsql_tables {
            return Ok(None);
        }
        let statement = self.statement("SELECT ordinal FROM crsql_site_id WHERE site_id = ?1")?;
        let found = statement.query_integer(&[Bind::Blob(site)])?;
        if let Some(ordinal) = found {
            self.ordinals.insert(site.to_vec(), ordinal);
        }
        Ok(found)
    }

    /// VER-7: the version never falls, also when clock rows are removed.
    pub(crate) fn raise_floor(&mut self) -> rusqlite::Result<()> {
        // What the transaction has used so far is told as committed once it is.
        let version = self.db_version()?.max(self.newest_version());
        self.store_floor(version)
    }

    /// Makes the stored version at least this.
    pub(crate) fn raise_floor_to(&mut self, version: i64) -> rusqlite::Result<()> {
        self.store_floor(version)?;
        self.committed = self.committed.map(|committed| committed.max(version));
        Ok(())
    }

    fn store_floor(&mut self, version: i64) -> rusqlite::Result<()> {
        const RAISE: &str = "INSERT INTO crsql_master (key, value) VALUES ('pre_compact_dbversion', ?1)
             ON CONFLICT (key) DO UPDATE SET value = max(value, excluded.value)";
        self.statement(RAISE)?.run(&[version.into()])
    }

    pub(crate) fn version(&mut self) -> rusqlite::Result<DbVersion> {
        self.db_version().map(DbVersion::new)
    }
}
