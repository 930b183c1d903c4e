//! What this database holds of every site, how far we have read each sender, and the upkeep of origins.

use litemesh_proto::limits::{CURSOR_SITES_MAX, VERSION_MAX};
use litemesh_proto::{Cursor, DbVersion, Incarnation, Position, SiteId};

use crate::core::Core;
use crate::cursor_moves::{self, Moves};
use crate::merge::MergeProgress;
use crate::schema::Table;
use crate::staged;
use crate::statement::Bind;

/// The cursor: `litemesh_cursor` and our own version. Everything that we wrote we hold, unless the file has forgotten it. Versions
/// that merges took claim nothing: what others hold of us there was written before the file was restored from a backup.
pub(crate) fn read_cursor(core: &mut Core) -> rusqlite::Result<Cursor> {
    let _held = core.hold_state()?;
    Ok(read_news(core, Moves::NONE)?.for_reader(Moves::NONE))
}

/// What there is to tell of our cursor.
#[derive(Clone, Debug, Default)]
pub(crate) struct CursorNews {
    /// Our own version, which is told anew each time, unless we claim nothing of ourselves.
    own: Option<(SiteId, DbVersion)>,
    /// Entries of others, and when they moved.
    others: Vec<(SiteId, DbVersion, Moves)>,
    /// All that moved after this are there: each that there is, where it is zero.
    after: Moves,
    pub(crate) now: Moves,
}

impl CursorNews {
    /// Whether it has all that is news for who was `told` the cursor.
    pub(crate) fn serves(&self, told: Moves) -> bool {
        self.after <= told
    }

    /// What is news for who was `told` the cursor, and our own version.
    pub(crate) fn for_reader(&self, told: Moves) -> Cursor {
        // Later than now is of another file.
        let is_told = told != Moves::NONE && told <= self.now;
        let moved = self.others.iter().filter(|(_, _, moved)| !is_told || *moved > told);
        moved.map(|(site, version, _)| (*site, *version)).chain(self.own).collect()
    }
}

/// What of our cursor moved since somebody was `told` it, in one state of the database.
pub(crate) fn read_news(core: &mut Core, told: Moves) -> rusqlite::Result<CursorNews> {
    const ALL: &str = "SELECT site_id, version, moved FROM litemesh_cursor";
    const MOVED: &str = "SELECT site_id, version, moved FROM litemesh_cursor WHERE moved > ?1";
    let version = core.version()?;
    let now = cursor_moves::count(core)?;
    // Of another file, where it is later than anything here.
    let after = if told <= now { told } else { Moves::NONE };
    let mut news = CursorNews { after, now, ..CursorNews::default() };
    if let Some(moved) = cursor_moves::remembered(core, after, now) {
        for (site, number) in moved {
            news.others.push((site, held_version(core, site)?, number));
        }
    } else if core.has_litemesh_tables {
        let (sql, binds) = if after == Moves::NONE { (ALL, None) } else { (MOVED, Some(after.get().into())) };
        let statement = core.statement(sql)?;
        let rows = statement.query(binds.as_slice())?;
        while rows.next()? {
            if let Some(site) = SiteId::from_slice(rows.bytes(0)) {
                news.others.push((site, DbVersion::new(rows.integer(1)), Moves::new(rows.integer(2))));
            }
        }
    }
    let version = own_written(core, version)?;
    let held = own_held(core)?.map_or(version, |held| held.min(version));
    news.own = (held > DbVersion::ZERO).then_some((core.site, held));
    Ok(news)
}

/// The entry of another site.
pub(crate) fn held_version(core: &mut Core, site: SiteId) -> rusqlite::Result<DbVersion> {
    const HELD: &str = "SELECT version FROM litemesh_cursor WHERE site_id = ?1";
    if !core.has_litemesh_tables {
        return Ok(DbVersion::ZERO);
    }
    let version = core.statement(HELD)?.query_integer(&[Bind::Blob(site.as_bytes())])?;
    Ok(DbVersion::new(version.unwrap_or_default()))
}

/// Up to where we may have written something, in a database at `version`.
pub(crate) fn own_written(core: &mut Core, version: DbVersion) -> rusqlite::Result<DbVersion> {
    if !core.has_litemesh_tables {
        return Ok(version);
    }
    const WRITTEN: &str = "SELECT value FROM litemesh_meta WHERE key = 'merged_after'
         AND (SELECT value FROM litemesh_meta WHERE key = 'merged_until') = ?1";
    Ok(core.statement(WRITTEN)?.query_integer(&[version.get().into()])?.map_or(version, DbVersion::new))
}

/// Notes that the merge of the running transaction took these versions, and those between them and what was stored before. What
/// triggers of the application write meanwhile has no clocks (DSK-8).
pub(crate) fn record_merged(core: &mut Core, versions: Option<(DbVersion, DbVersion)>) -> rusqlite::Result<()> {
    let Some((_, last)) = versions.filter(|_| core.has_litemesh_tables) else { return Ok(()) };
    const GO_ON: &str = "UPDATE litemesh_meta SET value = ?2 WHERE key = 'merged_until' AND value = ?1";
    const BEGIN: &str = "INSERT INTO litemesh_meta (key, value) VALUES ('merged_after', ?1), ('merged_until', ?2)
         ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    let versions = [core.committed_version().into(), last.get().into()];
    core.statement(GO_ON)?.run(&versions)?;
    if core.db.changes() > 0 {
        return Ok(());
    }
    core.statement(BEGIN)?.run(&versions)
}

/// Up to where we hold what we wrote ourselves, where the file has forgotten some of it.
fn own_held(core: &mut Core) -> rusqlite::Result<Option<DbVersion>> {
    if !core.has_litemesh_tables {
        return Ok(None);
    }
    const HELD: &str = "SELECT value FROM litemesh_meta WHERE key = 'own_held_until'";
    Ok(core.statement(HELD)?.query_integer(&[])?.map(DbVersion::new))
}

/// Up to where somebody holds, or may hold, what the file has forgotten of us, until all of it came back.
pub(crate) fn forgotten_until(core: &mut Core) -> rusqlite::Result<Option<DbVersion>> {
    if own_held(core)?.is_none() {
        return Ok(None);
    }
    const SEEN: &str = "SELECT max(value) FROM litemesh_meta
         WHERE key = 'own_seen_until' OR key BETWEEN 'own_doubted_by:' AND 'own_doubted_by:g'";
    let seen = core.statement(SEEN)?.query_integer(&[])?;
    Ok(Some(DbVersion::new(seen.unwrap_or(VERSION_MAX))))
}

/// What a remote shows to know of another life of this file.
#[derive(Clone, Copy, Debug)]
pub struct Witness {
    /// Who: under the id under which our position in it is kept.
    pub remote: SiteId,
    /// Up to where it has read us.
    pub seen: DbVersion,
    /// Up to where its cursor says that it holds what we wrote. Who may see some tables only has none.
    pub written: DbVersion,
    /// Above this it holds nothing of what we wrote, whatever its cursor says.
    pub newest: DbVersion,
}

/// Notes that others know another life of this file. Until what they hold of us came back, we claim no more of ourselves than what is
/// `held`, or it would be taken for held: until somebody's answer reaches what the witness says was written, or where it does not say,
/// all that it may hold, or until its own answer ends. Where that has ended already, `is_answered`, everything is here.
pub(crate) fn record_forgotten(
    core: &mut Core,
    held: DbVersion,
    witness: Witness,
    is_answered: bool,
) -> rusqlite::Result<()> {
    const HELD: &str = "INSERT INTO litemesh_meta (key, value) VALUES ('own_held_until', ?1)
         ON CONFLICT (key) DO UPDATE SET value = min(value, excluded.value)";
    const SEEN: &str = "INSERT INTO litemesh_meta (key, value) VALUES ('own_seen_until', ?1)
         ON CONFLICT (key) DO UPDATE SET value = max(value, excluded.value)";
    const DOUBT: &str = "INSERT INTO litemesh_meta (key, value) VALUES ('own_doubted_by:' || lower(hex(?1)), ?2)
         ON CONFLICT (key) DO UPDATE SET value = max(value, excluded.value)";
    const PARTED: &str = "INSERT INTO litemesh_meta (key, value) VALUES ('parted_at', ?1)
         ON CONFLICT (key) DO UPDATE SET value = max(value, excluded.value)";
    const CAME_BACK: &str = "SELECT value FROM litemesh_meta WHERE key = 'own_back_until'";
    let version = core.db_version()?;
    core.statement(PARTED)?.run(&[version.into()])?;
    let held = held.get().min(version);
    let came_back = core.statement(CAME_BACK)?.query_integer(&[])?.unwrap_or_default();
    let (written, newest) = (witness.written.get(), witness.newest.get());
    let is_said = written > held;
    if is_answered || (if is_said { written } else { newest }) <= held.max(came_back) {
        return Ok(());
    }
    core.statement(HELD)?.run(&[held.into()])?;
    if is_said {
        core.statement(SEEN)?.run(&[written.into()])
    } else {
        core.statement(DOUBT)?.run(&[Bind::Blob(witness.remote.as_bytes()), newest.into()])
    }
}

/// The answer of this remote came to its end.
fn store_end_of_answer(core: &mut Core, remote: SiteId) -> rusqlite::Result<()> {
    const ENDS: &str = "DELETE FROM litemesh_meta WHERE key = 'own_doubted_by:' || lower(hex(?1))";
    core.statement(ENDS)?.run(&[Bind::Blob(remote.as_bytes())])?;
    forget_forgotten(core)
}

/// Nothing is missing any more where nobody says so.
fn forget_forgotten(core: &mut Core) -> rusqlite::Result<()> {
    const FORGET: &str =
        "DELETE FROM litemesh_meta WHERE key = 'own_held_until' AND NOT EXISTS (SELECT 1 FROM litemesh_meta
         WHERE key = 'own_seen_until' OR key BETWEEN 'own_doubted_by:' AND 'own_doubted_by:g')";
    core.statement(FORGET)?.run(&[])
}

/// Everything that we ever wrote up to `version` is here, as far as anybody knows.
fn store_own(core: &mut Core, version: DbVersion) -> rusqlite::Result<()> {
    const MOVE: &str = "UPDATE litemesh_meta SET value = max(value, ?1) WHERE key = 'own_held_until'";
    const FORGET: &str = "DELETE FROM litemesh_meta WHERE key = 'own_seen_until' AND value <= ?1";
    const SETTLED: &str = "DELETE FROM litemesh_meta
         WHERE key BETWEEN 'own_doubted_by:' AND 'own_doubted_by:g' AND value <= ?1";
    const BACK: &str = "INSERT INTO litemesh_meta (key, value) VALUES ('own_back_until', ?1)
         ON CONFLICT (key) DO UPDATE SET value = max(value, excluded.value)";
    for statement in [MOVE, FORGET, SETTLED, BACK] {
        core.statement(statement)?.run(&[version.get().into()])?;
    }
    forget_forgotten(core)
}

/// The position reached in what `sender` has, zero where nothing was merged from it yet.
pub(crate) fn read_position(core: &mut Core, sender: SiteId) -> rusqlite::Result<Position> {
    if !core.has_litemesh_tables {
        return Ok(Position::default());
    }
    let statement = core.statement("SELECT position, incarnation FROM litemesh_position WHERE site_id = ?1")?;
    let rows = statement.query(&[Bind::Blob(sender.as_bytes())])?;
    Ok(if rows.next()? {
        let incarnation = Incarnation(rows.integer(1).cast_unsigned());
        Position { version: DbVersion::new(rows.integer(0)), incarnation }
    } else {
        Position::default()
    })
}

/// Stores how far a batch brought us, in the transaction that merges it: saved afterwards, a crash in between would lose no
/// data but repeat work; saved before, it would make us claim what we do not hold. Says whether the cursor moved.
pub(crate) fn store_progress(core: &mut Core, progress: &MergeProgress) -> rusqlite::Result<bool> {
    let before = core.db.total_changes();
    store_cursor(core, &progress.cursor, CURSOR_SITES_MAX)?;
    let own = progress.cursor.get(&core.site.clone());
    if own > DbVersion::ZERO && core.has_litemesh_tables {
        const CAME_BACK: &str = "UPDATE litemesh_meta SET value = ?1 WHERE key = 'merged_after' AND value < ?1
             AND ?1 <= (SELECT value FROM litemesh_meta WHERE key = 'merged_until')";
        core.statement(CAME_BACK)?.run(&[own.get().into()])?;
        if own_held(core)?.is_some() {
            store_own(core, own)?;
        }
    }
    if let (true, Some((sender, _))) = (progress.ends_answer, progress.position)
        && own_held(core)?.is_some()
    {
        store_end_of_answer(core, sender)?;
    }
    let has_moved = core.db.total_changes() != before;
    if let Some((sender, position)) = progress.position {
        // What is staged still lies before it, or was to be gone on with from elsewhere.
        staged::forget(core, sender)?;
        store_position(core, sender, position)?;
        let is_anew = progress.since.is_some_and(|(_, since)| since == Position::default());
        let before = read_as_of(core, sender)?.filter(|_| !is_anew);
        // One of an earlier state of the sender, as another connection may bring it, does not have the rest.
        if progress.as_of.is_some() || before.is_none_or(|before| before.version <= position.version) {
            store_as_of(core, sender, progress.as_of)?;
        }
    }
    Ok(has_moved)
}

/// The newest position of `sender` when it read what is here of it, where it held more than has come of it.
pub(crate) fn read_as_of(core: &mut Core, sender: SiteId) -> rusqlite::Result<Option<Position>> {
    if !core.has_litemesh_tables {
        return Ok(None);
    }
    const AS_OF: &str = "SELECT value FROM litemesh_meta WHERE key = 'as_of:' || lower(hex(?1))";
    let statement = core.statement(AS_OF)?;
    let rows = statement.query(&[Bind::Blob(sender.as_bytes())])?;
    if !rows.next()? {
        return Ok(None);
    }
    let Some((version, incarnation)) = rows.bytes(0).split_first_chunk() else { return Ok(None) };
    let Ok(incarnation) = incarnation.try_into().map(u64::from_be_bytes) else { return Ok(None) };
    let version = DbVersion::new(i64::from_be_bytes(*version));
    Ok(Some(Position { version, incarnation: Incarnation(incarnation) }))
}

pub(crate) fn store_as_of(core: &mut Core, sender: SiteId, as_of: Option<Position>) -> rusqlite::Result<()> {
    const STORE: &str = "INSERT INTO litemesh_meta (key, value) VALUES ('as_of:' || lower(hex(?1)), ?2)
         ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    const FORGET: &str = "DELETE FROM litemesh_meta WHERE key = 'as_of:' || lower(hex(?1))";
    let sender = Bind::Blob(sender.as_bytes());
    let Some(Position { version, incarnation }) = as_of else { return core.statement(FORGET)?.run(&[sender]) };
    let value = [version.get().to_be_bytes(), incarnation.0.to_be_bytes()].concat();
    core.statement(STORE)?.run(&[sender, Bind::Blob(&value)])
}

/// Whether everything up to this position of `sender` is merged, as far as the positions of one life of its database say.
pub(crate) fn holds(core: &mut Core, sender: SiteId, position: Position) -> rusqlite::Result<bool> {
    if position == Position::default() {
        return Ok(true);
    }
    let here = read_position(core, sender)?;
    Ok(here.incarnation == position.incarnation && here.version >= position.version)
}

/// Everything up to this position of `sender` is merged. Over several connections to it an earlier one may come later.
pub(crate) fn store_position(core: &mut Core, sender: SiteId, position: Position) -> rusqlite::Result<()> {
    const POSITION: &str = "INSERT INTO litemesh_position (site_id, position, incarnation) VALUES (?1, ?2, ?3)
         ON CONFLICT (site_id) DO UPDATE SET position = excluded.position, incarnation = excluded.incarnation
         WHERE excluded.incarnation <> incarnation OR excluded.position > position";
    let incarnation = position.incarnation.0.cast_signed();
    core.statement(POSITION)?.run(&[Bind::Blob(sender.as_bytes()), position.version.get().into(), incarnation.into()])
}

/// Stores claims. Sites beyond the limit are left out: we then claim less than we hold, and are sent some of it again.
fn store_cursor(core: &mut Core, cursor: &Cursor, sites_max: usize) -> rusqlite::Result<()> {
    const KNOWN: &str = "SELECT 1 FROM litemesh_cursor WHERE site_id = ?1";
    const STORE: &str = "INSERT INTO litemesh_cursor (site_id, version, moved) VALUES (?1, ?2, ?3)
         ON CONFLICT (site_id) DO UPDATE SET version = excluded.version, moved = excluded.moved
         WHERE excluded.version > version";
    if cursor.is_empty() {
        return Ok(());
    }
    let number = cursor_moves::count(core)?.next();
    // How many new ones there is room for: counted once a message, and only where one is new.
    let mut room = None;
    let mut moved = Vec::new();
    for (site, version) in cursor.iter().filter(|(site, _)| **site != core.site).collect::<Vec<_>>() {
        let key = Bind::Blob(site.as_bytes());
        if core.statement(KNOWN)?.query_integer(&[key])?.is_none() {
            let left = match room {
                Some(left) => left,
                None => {
                    let known = core.statement("SELECT count(*) FROM litemesh_cursor")?.query_integer(&[])?;
                    sites_max.saturating_sub(usize::try_from(known.unwrap_or_default()).unwrap_or(usize::MAX))
                }
            };
            room = Some(left.saturating_sub(1));
            if left == 0 {
                continue;
            }
        }
        core.statement(STORE)?.run(&[Bind::Blob(site.as_bytes()), version.get().into(), number.get().into()])?;
        if core.db.changes() > 0 {
            moved.push(*site);
        }
    }
    cursor_moves::record(core, number, &moved)
}

/// Local versions up to this one may have an origin that is lower than the author's version, because a wire v1 peer sent what they
/// stamp ([`MergeProgress::is_provisional`]). Zero where none has.
pub(crate) fn provisional_until(core: &mut Core) -> rusqlite::Result<i64> {
    if let Some(until) = core.provisional_until {
        return Ok(until);
    }
    const UNTIL: &str = "SELECT value FROM litemesh_meta WHERE key = 'provisional_until'";
    let until = if core.has_litemesh_tables { core.statement(UNTIL)?.query_integer(&[])? } else { None };
    Ok(*core.provisional_until.insert(until.unwrap_or_default()))
}

/// What was stored up to `local` may have provisional origins.
pub(crate) fn store_provisional(core: &mut Core, local: i64) -> rusqlite::Result<()> {
    if !core.has_litemesh_tables || local <= provisional_until(core)? {
        return Ok(());
    }
    const STORE: &str = "INSERT INTO litemesh_meta (key, value) VALUES ('provisional_until', ?1)
         ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    core.statement(STORE)?.run(&[local.into()])?;
    core.provisional_until = Some(local);
    Ok(())
}

/// Gives an origin of version zero, *unknown*, to merged cells that have none: CRSqlite itself merged them. They are sent
/// to everybody: to Litemesh peers under version zero, to others under a version that we hold completely.
pub(crate) fn record_unknown_origins(core: &mut Core) -> rusqlite::Result<()> {
    const COMPLETE: &str = "SELECT value FROM litemesh_meta WHERE key = 'origins_complete_until'";
    let until = core.db_version()?;
    let since = core.statement(COMPLETE)?.query_integer(&[])?.unwrap_or_default();
    if until <= since {
        return Ok(());
    }
    core.db.execute("SAVEPOINT litemesh_origins")?;
    let recorded = fill(core, since, until);
    if recorded.is_err() {
        core.db.execute("ROLLBACK TO litemesh_origins")?;
    }
    core.db.execute("RELEASE litemesh_origins")?;
    recorded
}

fn fill(core: &mut Core, since: i64, until: i64) -> rusqlite::Result<()> {
    // First, because with the write lock the list of tables stays true.
    const SET: &str = "INSERT INTO litemesh_meta (key, value) VALUES ('origins_complete_until', ?1)
         ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    core.statement(SET)?.run(&[until.into()])?;
    core.refresh()?;
    for table in core.tables().to_vec() {
        let fill = format!(
            "INSERT INTO litemesh_origin (local_version, site, version)
             SELECT DISTINCT db_version, site_id, 0 FROM {} WHERE db_version > ?1 AND site_id <> 0
             ON CONFLICT DO NOTHING",
            table.clock()
        );
        core.db.prepare(&fill)?.run(&[since.into()])?;
    }
    Ok(())
}

/// Removes origins that no clock row needs any more, looking at about `limit` of them after `after`. Gives the local
/// version to go on from, zero when the end was reached.
pub(crate) fn prune_origins(core: &mut Core, after: i64, limit: usize) -> rusqlite::Result<i64> {
    // Whole local versions: several sites can share one, and the next call goes on after the last.
    const LIST: &str = "SELECT local_version, site FROM litemesh_origin WHERE local_version > ?1 AND local_version <=
         coalesce((SELECT local_version FROM litemesh_origin WHERE local_version > ?1 ORDER BY local_version
         LIMIT 1 OFFSET ?2), 9223372036854775807) ORDER BY local_version";
    let statement = core.statement(LIST)?;
    let offset = i64::try_from(limit).unwrap_or(i64::MAX) - 1;
    let rows = statement.query(&[after.into(), offset.into()])?;
    let mut candidates = Vec::new();
    while rows.next()? {
        candidates.push((rows.integer(0), rows.integer(1)));
    }
    drop(rows);
    let tables = core.tables().to_vec();
    for (local, ordinal) in &candidates {
        let mut is_used = false;
        for table in &tables {
            let stamped = table.statement(core.db, |s| &s.stamped, Table::sql_stamped)?;
            is_used |= stamped.query(&[(*local).into(), (*ordinal).into()])?.next()?;
        }
        if !is_used {
            const DELETE: &str = "DELETE FROM litemesh_origin WHERE local_version = ?1 AND site = ?2";
            core.statement(DELETE)?.run(&[(*local).into(), (*ordinal).into()])?;
        }
    }
    Ok(if candidates.len() < limit { 0 } else { candidates.last().map_or(0, |(local, _)| *local) })
}
