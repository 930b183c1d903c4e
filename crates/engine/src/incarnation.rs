//! Which life of the database a version belongs to: how a file that was restored from a backup is noticed.
//!
//! Each connection that writes leaves a row in `litemesh_incarnation`: a random number, the first version that it stored
//! anything under, and the first one that the application wrote. A remote that has read up to one of our versions keeps the
//! number of the newest row with it ([`Position`]). When it comes back, its number tells whether what lies here under our versions
//! is what it has seen: in a file that was restored and written to again, the newer rows are others.
//!
//! Where that was only merged, the remote is read to again from where both lives parted. Where the application wrote, versions
//! mean one thing to us and another to all who have seen the other life: they would never take what they believe to hold. Such
//! a file has to become a site of its own ([`crate::fork`]).

use litemesh_proto::{DbVersion, Incarnation, Position};

use crate::core::Core;
use crate::statement::Bind;

/// Rows that are kept: as many openings with writes. A remote that was away for longer cannot be told from one that knows
/// another life, and then nothing is said against it.
const ROWS_MAX: i64 = 4096;

/// What a remote's claim about our versions comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It has seen nothing of us that we have not.
    Held,
    /// It has seen later versions of ours than the file has, all of this life: the file lost its last commits, with the power
    /// or by being restored, and nothing was stored in it since. Later versions must lie above.
    Ahead(DbVersion),
    /// It has read another life of ours than the file's, and in this one the application wrote nothing that the remote would
    /// take for something else. What lies above the common versions is to be read to it again; later versions must lie above
    /// what it has seen.
    Parted {
        /// Up to here both are the same; zero where nothing can be told.
        common: DbVersion,
        /// The highest version that it has seen.
        seen: DbVersion,
    },
    /// The same, and the application has written since.
    Rewritten {
        /// Up to here both are the same; zero where nothing can be told.
        common: DbVersion,
    },
}

/// Leaves a row for this connection, before the first version that it writes.
pub(crate) fn record(core: &mut Core, since: i64) -> rusqlite::Result<()> {
    const ADD: &str = "INSERT INTO litemesh_incarnation (incarnation, since) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
    const FORGET: &str = "DELETE FROM litemesh_incarnation
         WHERE number <= (SELECT max(number) FROM litemesh_incarnation) - ?1";
    if core.incarnation == Incarnation::default() {
        // Zero is none; any bit set will do.
        let random = core.statement("SELECT random() | 1")?.query_integer(&[])?.unwrap_or(1);
        core.incarnation = Incarnation(random.cast_unsigned());
    }
    let incarnation = core.incarnation.0.cast_signed();
    core.statement(ADD)?.run(&[incarnation.into(), since.into()])?;
    core.statement(FORGET)?.run(&[Bind::Integer(ROWS_MAX)])
}

/// The incarnation of the newest version.
pub(crate) fn newest(core: &mut Core) -> rusqlite::Result<Incarnation> {
    if !core.has_litemesh_tables {
        return Ok(Incarnation::default());
    }
    const NEWEST: &str = "SELECT incarnation FROM litemesh_incarnation ORDER BY number DESC LIMIT 1";
    let newest = core.statement(NEWEST)?.query_integer(&[])?.unwrap_or_default();
    Ok(Incarnation(newest.cast_unsigned()))
}

/// The number of the newest row, zero where there is none.
pub(crate) fn newest_number(core: &mut Core) -> rusqlite::Result<i64> {
    if !core.has_litemesh_tables {
        return Ok(0);
    }
    Ok(core.db.query_integer("SELECT max(number) FROM litemesh_incarnation", &[])?.unwrap_or_default())
}

/// Notes that the application writes this version.
pub(crate) fn record_written(core: &mut Core, version: i64) -> rusqlite::Result<()> {
    const WRITTEN: &str = "UPDATE litemesh_incarnation SET written_since = ?2
         WHERE incarnation = ?1 AND written_since IS NULL";
    core.statement(WRITTEN)?.run(&[core.incarnation.0.cast_signed().into(), version.into()])
}

/// Judges what a remote claims: `position`, how far it has read us, and `seen`, the highest version of ours that it holds, from
/// wherever.
pub(crate) fn judge(core: &mut Core, position: Position, seen: DbVersion) -> rusqlite::Result<Claim> {
    let seen = seen.max(position.version);
    let version = core.version()?;
    if !core.has_litemesh_tables {
        return Ok(Claim::Held);
    }
    let ahead = if seen > version { ahead(core, seen)? } else { Claim::Held };
    if position.incarnation == Incarnation::default() {
        // It never read us, or from a version that gave no numbers.
        return Ok(ahead);
    }
    let number = number_of(core, position.incarnation)?;
    if number.is_none() && is_older_than_all(core, position.version)? {
        return Ok(ahead);
    }
    // What another life has stored since: all of it, where we do not know the one that the remote has read.
    const PARTED: &str = "SELECT since FROM litemesh_incarnation WHERE number > ?1 ORDER BY number LIMIT 1";
    let parted = core.statement(PARTED)?.query_integer(&[number.unwrap_or_default().into()])?;
    let common = match (number, parted) {
        (None, _) => DbVersion::ZERO,
        // What was read under this number includes what another one stored here, or the remote holds more than there ever was.
        (Some(_), Some(since)) if since <= position.version.get() || seen > version => DbVersion::new(since).previous(),
        (Some(_), _) => return Ok(ahead),
    };
    // What was written before a remote told us what the file had forgotten this remote has seen, too: else that one would not
    // have gone on with us.
    const WRITTEN: &str = "SELECT EXISTS (SELECT 1 FROM litemesh_incarnation WHERE number > ?1 AND written_since <= ?2
         AND written_since > coalesce((SELECT value FROM litemesh_meta WHERE key = 'parted_at'), 0))";
    let written = core.statement(WRITTEN)?.query_integer(&[number.unwrap_or_default().into(), seen.get().into()])?;
    Ok(if written == Some(1) { Claim::Rewritten { common } } else { Claim::Parted { common, seen } })
}

/// A remote holds later versions than there are, and all that is known of it is that it has read no other life of ours. While
/// this connection was open the file forgot nothing. So where the application has written meanwhile, what the remote holds is of
/// another life for sure: of the file before it was restored, or of a copy that writes under the same id.
fn ahead(core: &mut Core, seen: DbVersion) -> rusqlite::Result<Claim> {
    const WRITTEN: &str = "SELECT EXISTS (SELECT 1 FROM litemesh_incarnation WHERE number > ?1 AND written_since <= ?2
         AND written_since > coalesce((SELECT value FROM litemesh_meta WHERE key = 'parted_at'), 0))";
    let opened_at = core.opened_at;
    let written = core.statement(WRITTEN)?.query_integer(&[opened_at.into(), seen.get().into()])?;
    // Where they parted lies at the beginning of this connection or before: other processes may have written then.
    Ok(if written == Some(1) { Claim::Rewritten { common: DbVersion::ZERO } } else { Claim::Ahead(seen) })
}

fn number_of(core: &mut Core, incarnation: Incarnation) -> rusqlite::Result<Option<i64>> {
    const NUMBER: &str = "SELECT number FROM litemesh_incarnation WHERE incarnation = ?1";
    core.statement(NUMBER)?.query_integer(&[incarnation.0.cast_signed().into()])
}

/// Whether a version is older than the rows that are kept, so that its incarnation may have been forgotten.
fn is_older_than_all(core: &mut Core, version: DbVersion) -> rusqlite::Result<bool> {
    const OLDEST: &str = "SELECT number, since FROM litemesh_incarnation ORDER BY number LIMIT 1";
    let statement = core.statement(OLDEST)?;
    let rows = statement.query(&[])?;
    Ok(rows.next()? && rows.integer(0) > 1 && version.get() < rows.integer(1))
}
