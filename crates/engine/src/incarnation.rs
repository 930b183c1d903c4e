//! Which life of the database a version belongs to: how a file that was restored from a backup is noticed.
//!
//! Each connection that writes leaves a row in `litemesh_incarnation`: a random number, and the first version that it wrote.
//! A remote that has read up to one of our versions keeps the number of the newest row with it ([`Position`]). When it comes
//! back, its number tells whether what we wrote since is what it has seen of us: in a file that was restored and written to
//! again, the newer rows are others. Versions since then mean one thing to us and another to the remote, and it would never
//! take what it believes to hold. Such a file has to become a site of its own ([`crate::fork`]).

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
    /// or by being restored, and was not written to since. Later writes must lie above.
    Ahead(DbVersion),
    /// It has seen another life of ours than the file's. Both share the versions up to this one, as far as can be told.
    Restored {
        /// Zero where nothing can be told.
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

/// Judges what a remote claims: `position`, how far it has read us, and `seen`, the highest version of ours that it holds, from
/// wherever.
pub(crate) fn judge(core: &mut Core, position: Position, seen: DbVersion) -> rusqlite::Result<Claim> {
    let seen = seen.max(position.version);
    let version = core.version()?;
    if !core.has_litemesh_tables {
        return Ok(Claim::Held);
    }
    let ahead = if seen > version { Claim::Ahead(seen) } else { Claim::Held };
    if position.incarnation == Incarnation::default() {
        // It never read us, or from a version that gave no numbers.
        return Ok(ahead);
    }
    const NUMBER: &str = "SELECT number FROM litemesh_incarnation WHERE incarnation = ?1";
    let Some(number) = core.statement(NUMBER)?.query_integer(&[position.incarnation.0.cast_signed().into()])? else {
        const OLDEST: &str = "SELECT since FROM litemesh_incarnation WHERE number > 1 ORDER BY number LIMIT 1";
        const IS_WHOLE: &str = "SELECT EXISTS (SELECT 1 FROM litemesh_incarnation WHERE number = 1)";
        let oldest = core.statement(OLDEST)?.query_integer(&[])?.unwrap_or_default();
        let is_whole = core.statement(IS_WHOLE)?.query_integer(&[])? == Some(1);
        let is_before_all = !is_whole && position.version.get() < oldest;
        return Ok(if is_before_all { ahead } else { Claim::Restored { common: DbVersion::ZERO } });
    };
    const NEXT: &str = "SELECT since FROM litemesh_incarnation WHERE number > ?1 ORDER BY number LIMIT 1";
    match core.statement(NEXT)?.query_integer(&[number.into()])? {
        // What was read under this number includes what another one wrote here, or the remote holds more than we ever wrote.
        Some(since) if since <= position.version.get() || seen > version => {
            Ok(Claim::Restored { common: DbVersion::new(since).previous() })
        }
        _ => Ok(ahead),
    }
}
