//! [`Engine`]: the native way in.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::sync::{Arc, MutexGuard};

use litemesh_proto::{Change, Changeset, Cursor, DbVersion, Position, SiteId};
use rusqlite::Connection;
use rusqlite::config::DbConfig;

use crate::alter::{self, Compaction};
use crate::bootstrap::refuse_what_is_not_ours;
use crate::check::repair::{self, Repaired};
use crate::check::{Checker, Finding};
use crate::core::{Core, Shared};
use crate::cursor::Witness;
use crate::cursor_moves::Moves;
use crate::error::{AlterError, MergeError, OpenError, ReplicateError, StageError, StorageError};
use crate::fork::{self, Forked};
use crate::heal::heal;
use crate::incarnation::{self, Claim};
use crate::load::load_shared;
use crate::merge::{MergeProgress, Merged, OpenChangeset, forget_own_origins, merge_batch};
use crate::merge_cache::LargerCache;
use crate::read::{LocalFilter, LocalPage, LocalPlace, PageLimits, SharedPage, SiteBounds, SitePlan};
use crate::staged::{Reach, Staged};
use crate::statement::Handle;
use crate::{cursor, history, read, replicate, staged};

/// Merges staged messages; where they lie at the front of their chain, with the position that they reach.
fn merge_group(
    shared: &Shared,
    core: &mut Core,
    sender: SiteId,
    numbers: (i64, i64),
    position: Option<Position>,
) -> Result<usize, MergeError> {
    let (forgets, mut open) = (position.is_some(), OpenChangeset::default());
    let merged = staged::merge_numbers(shared, core, sender, numbers, forgets, &mut open, history::keep)?;
    cursor::record_merged(core, merged.local_versions)?;
    if let Some(position) = position {
        cursor::store_position(core, sender, position)?;
    }
    Ok(merged.won)
}

/// One connection to a database whose tables can replicate.
///
/// Ordinary SQL goes through [`connection`](Self::connection), with the SQL surface of CRSqlite loaded. Writes to replicated
/// tables are recorded by triggers, in the transaction that makes them.
///
/// ```
/// use litemesh_engine::Engine;
///
/// let mut engine = Engine::open_in_memory()?;
/// engine.connection().execute_batch("CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT)")?;
/// engine.replicate("todo")?;
/// engine.connection().execute("INSERT INTO todo VALUES ('a', 'write docs')", [])?;
///
/// let mut other = Engine::open_in_memory()?;
/// other.connection().execute_batch("CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT)")?;
/// other.replicate("todo")?;
/// for changeset in engine.changes_since(&other.cursor()?) {
///     other.merge(&changeset?.changes, &Default::default())?;
/// }
/// let title: String = other.connection().query_row("SELECT title FROM todo", [], |row| row.get(0))?;
/// assert_eq!(title, "write docs");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Engine {
    connection: Connection,
    shared: Arc<Shared>,
    progress_count: u64,
    /// Remotes whose answers have ended since this file was opened: what they held of it is here.
    answered: HashSet<SiteId>,
}

/// Remotes that are remembered so; then it begins anew.
const ANSWERED_MAX: usize = 65_536;

impl Engine {
    /// Opens a file with the settings that sync wants: WAL, `synchronous=NORMAL`, a cache of 8 MiB, a busy timeout of 10 s.
    ///
    /// # Errors
    ///
    /// SQLite cannot open it, or its layout is not one that we may touch ([`OpenError`]).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        // SAFETY: the connection is open, and the handle is used no longer than this call.
        let checked = refuse_what_is_not_ours(unsafe { Handle::new(connection.handle()) });
        checked.inspect_err(|_| leave_as_it_is(&connection))?;
        configure(&connection)?;
        Self::attach(connection)
    }

    /// A database that lives as long as the engine.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_in_memory() -> Result<Self, OpenError> {
        Self::attach(Connection::open_in_memory()?)
    }

    /// Loads the engine into a connection. Of its settings only the busy timeout is changed, to 10 s. Where the connection
    /// has to stay the application's own, use [`load`](crate::load()).
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn attach(connection: Connection) -> Result<Self, OpenError> {
        connection.busy_timeout(BUSY_TIMEOUT)?;
        let (shared, found) = load_shared(&connection).inspect_err(|_| leave_as_it_is(&connection))?;
        let engine = Self { connection, shared, progress_count: 0, answered: HashSet::new() };
        if found.has_litemesh_tables && !engine.connection.is_readonly(rusqlite::MAIN_DB)? {
            let mut core = engine.core()?;
            core.refresh()?;
            heal(&mut core)?;
            drop(core);
            history::import_origins(&mut *engine.core()?);
            cursor::record_unknown_origins(&mut *engine.core()?)?;
        }
        Ok(engine)
    }

    pub(crate) fn core(&self) -> rusqlite::Result<MutexGuard<'_, Core>> {
        self.shared.lock()
    }

    /// The connection, for ordinary SQL.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The connection, for [`Connection::transaction`].
    pub fn connection_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// The site id of this database.
    pub fn site(&self) -> Result<SiteId, StorageError> {
        Ok(self.core()?.current_site()?)
    }

    /// The version of the last committed write or merge; `crsql_db_version()`.
    pub fn db_version(&self) -> Result<DbVersion, StorageError> {
        Ok(self.core()?.version()?)
    }

    /// `PRAGMA user_version`: the application's schema version.
    pub fn schema_version(&self) -> Result<i64, StorageError> {
        Ok(self.connection.query_row("PRAGMA user_version", [], |row| row.get(0))?)
    }

    /// Makes a table replicated. Does nothing where it is already.
    ///
    /// # Errors
    ///
    /// [`ReplicateError`] says which rule the table breaks, and what to write instead.
    pub fn replicate(&self, table: &str) -> Result<(), ReplicateError> {
        replicate::replicate(&self.shared, table)
    }

    /// Makes a replicated table ordinary again. Its rows stay, its history goes.
    ///
    /// # Errors
    ///
    /// SQLite fails.
    pub fn unreplicate(&self, table: &str) -> Result<(), ReplicateError> {
        replicate::unreplicate(&self.shared, table)
    }

    /// Changes the schema of a replicated table: runs `change`, then brings clocks and keys in line with what became of the
    /// table. An error, or a panic, in `change` undoes all of it.
    ///
    /// What `change` writes into the table is not recorded: it is a part of the migration, which every peer runs for itself.
    /// Only columns that are added, rows that are added or gone, and a primary key that changed are noticed afterwards.
    /// Outside of a transaction of the caller this is one of its own.
    ///
    /// ```
    /// # let mut engine = litemesh_engine::Engine::open_in_memory()?;
    /// # engine.connection().execute_batch("CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT)")?;
    /// # engine.replicate("todo")?;
    /// engine.alter("todo", |connection| connection.execute_batch("ALTER TABLE todo ADD COLUMN done INTEGER"))?;
    /// engine.connection().execute("INSERT INTO todo VALUES ('a', 'write docs', 1)", [])?;
    /// assert!(engine.alter("todo", |connection| connection.execute_batch("DROP TABLE todo")).is_err());
    /// let done: i64 = engine.connection().query_row("SELECT done FROM todo", [], |row| row.get(0))?;
    /// assert_eq!(done, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `change` failed, or the table can no longer replicate ([`AlterError`]). It is what it was before.
    pub fn alter<T>(
        &mut self,
        table: &str,
        change: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, AlterError> {
        let begin = || rusqlite::Transaction::new_unchecked(&self.connection, rusqlite::TransactionBehavior::Immediate);
        let transaction = self.connection.is_autocommit().then(begin).transpose()?;
        alter::begin_alter(&self.shared, table)?;
        let mut window = OpenWindow { shared: &self.shared, table, is_open: true };
        let value = change(&self.connection)?;
        window.is_open = false;
        alter::commit_alter(&self.shared, table, Compaction::Needed)?;
        if let Some(transaction) = transaction {
            transaction.commit()?;
        }
        Ok(value)
    }

    /// Makes every later version lie above what a remote has seen of this database. Says whether it was news.
    ///
    /// A file that was restored from a backup gives its last versions out again; peers that saw the first use would never
    /// take the second. What it lacks of what it wrote is claimed to be held only when it has come back. Bounded like every version of
    /// a remote: what is absurdly far above is ignored.
    ///
    /// # Errors
    ///
    /// SQLite fails.
    pub fn raise_version(&mut self, witness: Witness) -> Result<bool, StorageError> {
        let (version, is_answered) = (witness.seen, self.answered.contains(&witness.remote));
        let known = self.db_version()?;
        if version <= known || version.get() > self.core()?.claim_max() {
            return Ok(false);
        }
        let transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        {
            let mut core = self.shared.lock()?;
            let held = cursor::own_written(&mut core, known)?;
            cursor::record_forgotten(&mut core, held, witness, is_answered)?;
            // These versions are left out in this life; in another one, perhaps that of a copy, something lies there.
            core.record_incarnation(known.get() + 1)?;
            cursor::record_merged(&mut core, Some((known.next(), version)))?;
            core.raise_floor_to(version.get())?;
        }
        transaction.commit()?;
        Ok(true)
    }

    /// Notes that a remote has seen what this database stored after `common` in another life ([`Claim::Parted`]): of what was written
    /// there it claims no more until that came back, also where what it merged has taken as many versions. Later versions lie above.
    ///
    /// # Errors
    ///
    /// SQLite fails.
    pub fn part(&mut self, common: DbVersion, witness: Witness) -> Result<(), StorageError> {
        self.raise_version(witness)?;
        if witness.seen > self.db_version()? {
            // Further than any version may jump: nobody wrote that.
            return Ok(());
        }
        let is_answered = self.answered.contains(&witness.remote);
        self.in_transaction(|core| cursor::record_forgotten(core, common, witness, is_answered))
    }

    /// The highest version of this database that it has forgotten and that did not come back yet: others hold what was written
    /// up to here.
    ///
    /// # Errors
    ///
    /// SQLite fails.
    pub fn forgotten_until(&self) -> Result<Option<DbVersion>, StorageError> {
        self.snapshot(cursor::forgotten_until)
    }

    /// Judges what a remote claims to have read of this database: `position`, which it has from us, and `seen`, the highest
    /// version of ours that it holds from wherever.
    ///
    /// # Errors
    ///
    /// SQLite fails.
    pub fn judge(&self, position: Position, seen: DbVersion) -> Result<Claim, StorageError> {
        self.snapshot(|core| incarnation::judge(core, position, seen))
    }

    /// Names of the replicated tables.
    pub fn tables(&self) -> Result<Vec<Arc<str>>, StorageError> {
        let mut core = self.core()?;
        let _held = core.hold_state()?;
        core.refresh()?;
        Ok(core.tables().iter().map(|table| table.name.clone()).collect())
    }

    /// Calls `wake` after each commit of this connection that changed a replicated table. It carries no data, must be quick,
    /// and must not use the connection.
    pub fn on_commit(&self, wake: impl Fn() + Send + Sync + 'static) {
        self.shared.flags.set_wake(Some(Box::new(wake)));
    }

    /// What this database holds of every site.
    pub fn cursor(&self) -> Result<Cursor, StorageError> {
        Ok(cursor::read_cursor(&mut *self.core()?)?)
    }

    /// Up to which of `sender`'s local versions everything was merged from it.
    pub fn position(&self, sender: SiteId) -> Result<Position, StorageError> {
        Ok(cursor::read_position(&mut *self.core()?, sender)?)
    }

    /// Merges changes and stores the progress, in one transaction.
    ///
    /// `&mut self`: two merges on one connection would share a transaction. Changes of one author's transaction, and of one
    /// row, should stand together: each run of them is handled at once.
    ///
    /// # Errors
    ///
    /// Nothing was applied; [`MergeError::is_content`] tells bad changes from a database that is busy, full or broken.
    pub fn merge(&mut self, changes: &[Change], progress: &MergeProgress) -> Result<Merged, MergeError> {
        if changes.is_empty() && progress.is_empty() {
            return Ok(Merged::default());
        }
        let _cache = match &progress.completes {
            Some((sender, _)) => LargerCache::for_staged(&mut *self.shared.lock()?, *sender)?,
            None => None,
        };
        let (merged, has_moved) = self.in_merge(|shared, core| {
            let (mut merged, mut open) = (Merged::default(), OpenChangeset::default());
            if let Some((sender, since)) = progress.since
                && !cursor::holds(core, sender, since)?
            {
                return Err(MergeError::NotHeld);
            }
            if let Some((sender, until)) = &progress.completes {
                merged = staged::merge_until(shared, core, *sender, until, &mut open, history::keep)?;
            }
            let last = merge_batch(shared, core, changes, &mut open)?;
            history::keep(core, changes, &last)?;
            merged.add(last);
            if let (true, Some((first, last))) = (progress.is_provisional, merged.local_versions) {
                forget_own_origins(core, first.get(), last.get())?;
                cursor::store_provisional(core, last.get())?;
            }
            cursor::record_merged(core, merged.local_versions)?;
            let has_moved = cursor::store_progress(core, progress)?;
            history::keep_progress(core, progress)?;
            Ok((merged, has_moved))
        })?;
        self.progress_count += u64::from(has_moved);
        if let (true, Some((sender, _))) = (progress.ends_answer, progress.position) {
            if self.answered.len() >= ANSWERED_MAX {
                self.answered.clear();
            }
            self.answered.insert(sender);
        }
        Ok(merged)
    }

    /// Keeps a message that is to be merged together with later ones, until [`merge`](Self::merge) is told that it
    /// [completes](MergeProgress::completes) them. Nobody sees its changes before.
    ///
    /// The message leads from `after` to `until`; what was staged of the sender after `after` is forgotten. The parts of one
    /// transaction may take up to `bytes_max` bytes. Gives what is staged then.
    ///
    /// ```
    /// use litemesh_engine::{Engine, MergeProgress, Reach};
    /// use litemesh_proto::{Change, Place, SiteId};
    ///
    /// # fn example(mut engine: Engine, sender: SiteId, begin: &[Change], end: &[Change]) -> Result<(), Box<dyn std::error::Error>> {
    /// let after = engine.staged(sender)?.reach;
    /// let until = Reach { place: Some(Place([1].into())), ..after.clone() };
    /// engine.stage(sender, &after, &until, begin, 1 << 30)?;
    /// // Perhaps in another life of this process:
    /// assert_eq!(engine.staged(sender)?.reach, until);
    /// engine.merge(end, &MergeProgress { completes: Some((sender, until)), ..Default::default() })?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Nothing was changed; see [`StageError`].
    pub fn stage(
        &mut self,
        sender: SiteId,
        after: &Reach,
        until: &Reach,
        changes: &[Change],
        bytes_max: u64,
    ) -> Result<Staged, StageError> {
        let transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let staged = staged::stage(&mut *self.shared.lock()?, sender, after, until, changes, bytes_max)?;
        transaction.commit()?;
        Ok(staged)
    }

    /// What is [staged](Self::stage) of `sender`, and up to where it leads; where nothing is, up to where we are
    /// [merged](Self::position).
    ///
    /// # Errors
    ///
    /// SQLite fails.
    pub fn staged(&self, sender: SiteId) -> Result<Staged, StorageError> {
        self.snapshot(|core| staged::staged(core, sender))
    }

    /// The senders of whom something is [staged](Self::stage).
    ///
    /// # Errors
    ///
    /// SQLite fails.
    pub fn staged_senders(&self) -> Result<Vec<SiteId>, StorageError> {
        Ok(staged::senders(&mut *self.core()?)?)
    }

    /// Merges the whole transactions that are [staged](Self::stage) of `sender`, without waiting for what they wait for. All in one
    /// transaction, with the position that they reach. Where something among them is refused: message by message, with the position
    /// that lies before it; from there on everything stays staged, too, and comes to its place with the message that completes it.
    /// Parts of a transaction that is not complete stay in any case.
    ///
    /// Gives how many changes won.
    ///
    /// # Errors
    ///
    /// SQLite fails, or what is staged cannot be read.
    pub fn merge_staged(&mut self, sender: SiteId) -> Result<usize, MergeError> {
        let _cache = LargerCache::for_staged(&mut *self.shared.lock()?, sender)?;
        let all = self.in_merge(|shared, core| {
            let Some(&(end, position)) = staged::boundaries(core, sender)?.last() else { return Ok(0) };
            merge_group(shared, core, sender, (0, end), Some(position))
        });
        match all {
            Err(error) if error.is_content() => self.merge_staged_apart(sender),
            merged => merged,
        }
    }

    fn merge_staged_apart(&mut self, sender: SiteId) -> Result<usize, MergeError> {
        // While nothing was refused, groups at the front go; after that they stay, and are gone through by their index.
        let (mut won, mut index, mut is_refused) = (0, 0, false);
        loop {
            let merged = self.in_merge(|shared, core| {
                let boundaries = staged::boundaries(core, sender)?;
                let Some(&(end, position)) = boundaries.get(index) else { return Ok(None) };
                let first = index.checked_sub(1).map_or(0, |before| boundaries[before].0);
                merge_group(shared, core, sender, (first, end), (!is_refused).then_some(position)).map(Some)
            });
            match merged {
                Ok(None) => return Ok(won),
                Ok(Some(of_this)) => {
                    won += of_this;
                    index += usize::from(is_refused);
                }
                Err(error) if error.is_content() => {
                    tracing::warn!(%error, "staged changes are refused");
                    (is_refused, index) = (true, index + 1);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Forgets what is [staged](Self::stage) of `sender`; no position covers it, so it is sent again.
    ///
    /// # Errors
    ///
    /// SQLite fails.
    pub fn forget_staged(&mut self, sender: SiteId) -> Result<(), StorageError> {
        Ok(staged::forget(&mut *self.shared.lock()?, sender)?)
    }

    /// Does a part of a merge in a transaction of its own.
    fn in_merge<T>(
        &mut self,
        merge: impl FnOnce(&Shared, &mut Core) -> Result<T, MergeError>,
    ) -> Result<T, MergeError> {
        let transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let merged = {
            let mut core = self.shared.lock()?;
            core.enlist()?;
            heal(&mut core)?;
            core.refresh_for_merge()?;
            merge(&self.shared, &mut core)?
        };
        transaction.commit()?;
        Ok(merged)
    }

    /// How many merges of this engine moved our cursor.
    pub fn progress_count(&self) -> u64 {
        self.progress_count
    }

    /// Reads the next page of what a Litemesh peer lacks, in the order of our own versions.
    ///
    /// # Errors
    ///
    /// SQLite fails.
    pub fn read_local(
        &self,
        place: &LocalPlace,
        filter: &LocalFilter<'_>,
        limits: PageLimits,
    ) -> Result<LocalPage, StorageError> {
        self.snapshot(|core| read::read_local(core, place, filter, limits))
    }

    /// Reads the next page for all Litemesh peers that are at this place or further, and were told our cursor when it had moved as often as
    /// `told` says, or later; what each of them lacks of it, [`SharedPage::for_reader`] says. `None` where it has to be read for each: where
    /// CRSqlite itself merged, and noted no origins.
    ///
    /// # Errors
    ///
    /// SQLite fails.
    pub fn read_shared(
        &self,
        place: &LocalPlace,
        told: Moves,
        limits: PageLimits,
    ) -> Result<Option<SharedPage>, StorageError> {
        self.snapshot(|core| read::read_shared(core, place, told, limits))
    }

    /// Decides what a wire v1 peer is to be sent.
    ///
    /// # Errors
    ///
    /// SQLite fails.
    pub fn plan_sites(&self, bounds: &SiteBounds) -> Result<SitePlan, StorageError> {
        self.snapshot(|core| read::plan_sites(core, bounds))
    }

    /// Reads the next page of a plan; the flag says whether there is more.
    ///
    /// # Errors
    ///
    /// SQLite fails.
    pub fn read_sites(&self, plan: &mut SitePlan, limits: PageLimits) -> Result<(Vec<Change>, bool), StorageError> {
        self.snapshot(|core| read::read_sites(core, plan, limits))
    }

    /// Runs reads that must see one state of the database.
    fn snapshot<T>(&self, read: impl FnOnce(&mut Core) -> rusqlite::Result<T>) -> Result<T, StorageError> {
        let transaction =
            self.connection.is_autocommit().then(|| self.connection.unchecked_transaction()).transpose()?;
        let result = read(&mut *self.core()?)?;
        if let Some(transaction) = transaction {
            transaction.finish()?;
        }
        Ok(result)
    }

    /// Every change that `since` does not cover: site by site, ascending versions, one changeset for each.
    ///
    /// A site's superseded changes are not there any more: the newest version of each cell is what is kept. Memory: a page
    /// and one changeset at a time.
    pub fn changes_since(&self, since: &Cursor) -> Changesets<'_> {
        Changesets {
            engine: self,
            since: Some(since.clone()),
            plan: SitePlan::default(),
            pages: Vec::new(),
            open: None,
            more: true,
        }
    }

    /// The replicated tables with changes newer than `since`.
    ///
    /// # Errors
    ///
    /// SQLite fails.
    pub fn tables_changed_since(&self, since: DbVersion) -> Result<BTreeSet<Arc<str>>, StorageError> {
        let mut core = self.core()?;
        let _held = core.hold_state()?;
        core.refresh()?;
        let mut changed = BTreeSet::new();
        for table in core.tables().to_vec() {
            let newest = table.statement(core.db, |s| &s.newest, crate::schema::Table::sql_newest)?;
            if newest.query_integer(&[])?.unwrap_or_default() > since.get() {
                changed.insert(table.name.clone());
            }
        }
        Ok(changed)
    }

    /// Removes origins that no change needs any more, looking at about `limit` of them after `after`; gives where to
    /// go on, zero at the end. Cheap upkeep, to be called now and then.
    ///
    /// # Errors
    ///
    /// SQLite fails.
    pub fn prune_origins(&mut self, after: DbVersion, limit: usize) -> Result<DbVersion, StorageError> {
        let transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let next = {
            let mut core = self.shared.lock()?;
            core.refresh()?;
            cursor::prune_origins(&mut core, after.get(), limit)?
        };
        transaction.commit()?;
        Ok(DbVersion::new(next))
    }

    /// What is inconsistent in this database, one after the other: `crsql_check()` in SQL.
    ///
    /// Reads only, and works on a read-only connection. Memory does not grow with the database. Unless a transaction is open,
    /// each kind of finding is looked for in the state that the database has then.
    ///
    /// What nobody can find out: a value that was changed past the triggers, where its cell has a clock already.
    ///
    /// # Errors
    ///
    /// SQLite fails.
    ///
    /// ```
    /// use litemesh_engine::{Engine, FindingKind};
    ///
    /// let mut engine = Engine::open_in_memory()?;
    /// engine.connection().execute_batch("CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT)")?;
    /// engine.replicate("todo")?;
    /// // With the sync bit set the triggers record nothing.
    /// engine.connection().execute_batch("SELECT crsql_internal_sync_bit(1); INSERT INTO todo (id) VALUES ('a')")?;
    /// let found = engine.check()?.collect::<Result<Vec<_>, _>>()?;
    /// assert_eq!(found[0].kind, FindingKind::RowWithoutClocks);
    /// engine.repair()?;
    /// assert_eq!(engine.check()?.count(), 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn check(&self) -> Result<Findings<'_>, StorageError> {
        Ok(Findings { checker: Some(Checker::new(&mut *self.core()?, None)?), _engine: self })
    }

    /// Mends what [`check`](Self::check) finds, as far as that needs no decision: [`FindingKind::repair`] tells for each
    /// kind. One transaction; what is consistent is not touched. Check again to see what is left.
    ///
    /// [`FindingKind::repair`]: crate::FindingKind::repair
    ///
    /// # Errors
    ///
    /// SQLite fails; nothing was changed then.
    pub fn repair(&mut self) -> Result<Vec<Repaired>, StorageError> {
        self.in_transaction(repair::repair)
    }

    /// Deletes at all sites the rows that are gone here though their clocks say that they live
    /// ([`FindingKind::ClockWithoutRow`](crate::FindingKind::ClockWithoutRow)).
    ///
    /// Right where they were deleted past the triggers; wrong where they were lost.
    ///
    /// # Errors
    ///
    /// SQLite fails; nothing was changed then.
    pub fn bury_missing_rows(&mut self) -> Result<Vec<Repaired>, StorageError> {
        self.in_transaction(repair::bury_missing_rows)
    }

    /// Makes a copied file a database of its own: it gets a new site id, and what it took over counts as the original's.
    ///
    /// A copy has the site id of its original. Two databases that write under one id lose changes at everybody who hears of
    /// both; so fork a copy before it is written to or synced. One transaction; nothing of the application's tables changes,
    /// and what original and copy have in common is not sent again when they meet.
    ///
    /// `copied_at` is for a copy that was written to already: the original's version when it was copied. Own changes above it
    /// become those of the new site. `None`: all of them are the original's.
    ///
    /// Other connections to the file go on with the new id from their next operation on; a running peer ends with an error,
    /// because its remotes know it by the old one.
    ///
    /// ```
    /// use litemesh_engine::Engine;
    /// # let folder = tempfile::tempdir()?;
    /// # let (original, copy) = (folder.path().join("a.db"), folder.path().join("b.db"));
    ///
    /// let engine = Engine::open(&original)?;
    /// engine.connection().execute("VACUUM INTO ?1", [copy.to_str()])?;
    /// let mut copy = Engine::open(&copy)?;
    /// let forked = copy.fork(None)?;
    /// assert_eq!((forked.before, forked.after), (engine.site()?, copy.site()?));
    /// assert_ne!(forked.before, forked.after);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// SQLite fails; nothing was changed then.
    pub fn fork(&mut self, copied_at: Option<DbVersion>) -> Result<Forked, StorageError> {
        self.in_transaction(|core| fork::fork(core, copied_at))
    }

    fn in_transaction<T>(&mut self, work: impl FnOnce(&mut Core) -> rusqlite::Result<T>) -> Result<T, StorageError> {
        let transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let done = work(&mut *self.shared.lock()?)?;
        transaction.commit()?;
        Ok(done)
    }
}

/// Closes a window that was left by an error or a panic.
struct OpenWindow<'a> {
    shared: &'a Shared,
    table: &'a str,
    is_open: bool,
}

impl Drop for OpenWindow<'_> {
    fn drop(&mut self) {
        if self.is_open {
            // Fails only where the transaction is gone, and the window with it.
            let _ = alter::cancel_alter(self.shared, self.table);
        }
    }
}

/// How long a statement waits for another connection's write lock.
const BUSY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// A refused file is to be left byte by byte: who closes a WAL file last would write into it what another program, which died,
/// left in the log.
fn leave_as_it_is(connection: &Connection) {
    let Some(path) = connection.path().filter(|path| !path.is_empty()) else { return };
    let log = std::fs::metadata(format!("{path}-wal"));
    if log.is_ok_and(|log| log.len() > 0) {
        // Where it fails, what is committed already is moved from the log to the file, as anybody else would do.
        let _ = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
    }
}

/// Most memory that SQLite keeps pages in, in KiB. A merge of rows whose keys lie anywhere goes through two indexes of the key:
/// with SQLite's own 2,000 KiB, one of 50,000 rows already writes most pages out and reads them again.
const CACHE_KIB: i64 = 8192;

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    // A file that is read-only, or on a file system without shared memory, stays in the mode it has.
    if !connection.is_readonly(rusqlite::MAIN_DB)? {
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
    }
    Ok(())
}

/// Iterator of [`Engine::check`]. Ends with the first error.
pub struct Findings<'a> {
    checker: Option<Checker>,
    /// The statements of the check must be gone before the connection is.
    _engine: &'a Engine,
}

impl Iterator for Findings<'_> {
    type Item = Result<Finding, StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.checker.as_mut()?.next();
        if !matches!(next, Ok(Some(_))) {
            self.checker = None;
        }
        next.map_err(StorageError::from).transpose()
    }
}

/// Iterator of [`Engine::changes_since`].
pub struct Changesets<'a> {
    engine: &'a Engine,
    since: Option<Cursor>,
    plan: SitePlan,
    pages: Vec<Changeset>,
    /// The last changeset of a page: the next page may go on with it.
    open: Option<Changeset>,
    more: bool,
}

/// Page size of [`Engine::changes_since`].
const PAGE: PageLimits = PageLimits { changes_max: 4096, bytes_max: 1 << 20, stretch: 1 };

impl Changesets<'_> {
    fn fill(&mut self) -> Result<(), StorageError> {
        if let Some(sent) = self.since.take() {
            let held = |(site, _): (&SiteId, DbVersion)| (*site, DbVersion::new(i64::MAX));
            let mut until: Cursor = self.engine.cursor()?.iter().map(held).collect();
            let sites = self.engine.core()?.known_sites()?;
            until.update(sites.into_iter().map(|site| (site, DbVersion::new(i64::MAX))));
            let since_local = self.engine.db_version()?;
            self.plan = self.engine.plan_sites(&SiteBounds { sent, since_local, until, ..SiteBounds::default() })?;
            let plan = &mut self.plan;
            self.engine.snapshot(|core| read::plan_unknown(core, plan))?;
        }
        let (changes, more) = self.engine.read_sites(&mut self.plan, PAGE)?;
        self.more = more;
        let mut groups = Changeset::group(changes);
        if let Some(mut open) = self.open.take() {
            match groups.first_mut().filter(|first| first.site == open.site && first.version == open.version) {
                Some(first) => {
                    open.changes.append(&mut first.changes);
                    *first = open;
                }
                None => groups.insert(0, open),
            }
        }
        if more {
            self.open = groups.pop();
        }
        groups.reverse();
        self.pages = groups;
        Ok(())
    }
}

impl Iterator for Changesets<'_> {
    type Item = Result<Changeset, StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(changeset) = self.pages.pop() {
                return Some(Ok(changeset));
            }
            if !self.more {
                return None;
            }
            if let Err(error) = self.fill() {
                self.more = false;
                return Some(Err(error));
            }
        }
    }
}
