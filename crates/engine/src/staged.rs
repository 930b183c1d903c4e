//! Messages that are not merged yet: parts of a transaction that is too large for one, and what came of a catch-up that is not
//! complete. They are kept until what they wait for is here, then merged at once.
//!
//! They are stored in the file, so that a catch-up that breaks goes on where it stopped, and memory holds one message at a time.
//! Those of one sender make a chain: each leads from where the one before it ended. A chain may be gone on with anywhere; what was
//! staged after that place is forgotten.

use litemesh_proto::codec::v2;
use litemesh_proto::{Change, DbVersion, Incarnation, Place, Position, SiteId};

use crate::core::{Core, Shared};
use crate::cursor;
use crate::error::{MergeError, StageError};
use crate::merge::{Merged, OpenChangeset, merge_batch};
use crate::statement::Bind;

/// Up to where that leads which came of a sender, merged or staged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Everything up to this position of the sender.
    pub position: Position,
    /// Of the transaction after it, the parts up to this place; in the sender's words.
    pub place: Option<Place>,
    /// Where its sender held more when this was read: its newest position then. What came is a state of the sender only together with
    /// the rest of that.
    pub as_of: Option<Position>,
}

/// What came of a sender.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Staged {
    /// Up to where it leads: what is staged, or else what is merged.
    pub reach: Reach,
    /// How many messages are staged.
    pub messages: u64,
    /// How many changes they have.
    pub changes: u64,
    /// How many bytes they take in the file.
    pub bytes: u64,
}

/// What is staged of `sender`.
pub(crate) fn staged(core: &mut Core, sender: SiteId) -> rusqlite::Result<Staged> {
    let sender_key = [Bind::Blob(sender.as_bytes())];
    let mut staged = Staged::default();
    if core.has_litemesh_tables {
        const AMOUNT: &str = "SELECT count(*), coalesce(sum(count), 0), coalesce(sum(length(changes)), 0)
             FROM litemesh_stage WHERE site_id = ?1";
        let statement = core.statement(AMOUNT)?;
        let rows = statement.query(&sender_key)?;
        if rows.next()? {
            let amount = [rows.integer(0), rows.integer(1), rows.integer(2)];
            [staged.messages, staged.changes, staged.bytes] = amount.map(i64::cast_unsigned);
        }
    }
    staged.reach = match staged.messages {
        0 => Reach { position: cursor::read_position(core, sender)?, ..Reach::default() },
        _ => {
            const LAST: &str = "SELECT position, incarnation, place FROM litemesh_stage
                 WHERE site_id = ?1 ORDER BY number DESC LIMIT 1";
            let statement = core.statement(LAST)?;
            let rows = statement.query(&sender_key)?;
            if rows.next()? {
                let incarnation = Incarnation(rows.integer(1).cast_unsigned());
                let position = Position { version: DbVersion::new(rows.integer(0)), incarnation };
                let place = (!rows.is_null(2)).then(|| Place(rows.bytes(2).into()));
                Reach { position, place, as_of: None }
            } else {
                Reach::default()
            }
        }
    };
    staged.reach.as_of = cursor::read_as_of(core, sender)?;
    Ok(staged)
}

/// Of whom something is staged.
pub(crate) fn senders(core: &mut Core) -> rusqlite::Result<Vec<SiteId>> {
    let mut senders = Vec::new();
    if core.has_litemesh_tables {
        let statement = core.statement("SELECT DISTINCT site_id FROM litemesh_stage ORDER BY site_id")?;
        let rows = statement.query(&[])?;
        while rows.next()? {
            senders.extend(SiteId::from_slice(rows.bytes(0)));
        }
    }
    Ok(senders)
}

/// How many of the staged messages lead up to `reach`; `None` where there is no such place. What begins at the very start goes on after
/// none of them.
fn count_until(core: &mut Core, sender: SiteId, reach: &Reach) -> rusqlite::Result<Option<i64>> {
    if reach.position == Position::default() && reach.place.is_none() {
        return Ok(Some(0));
    }
    const FIND: &str = "SELECT number FROM litemesh_stage
         WHERE site_id = ?1 AND position = ?2 AND incarnation = ?3 AND place IS ?4 ORDER BY number DESC LIMIT 1";
    let Position { version, incarnation } = reach.position;
    let found = core.statement(FIND)?.query_integer(&[
        Bind::Blob(sender.as_bytes()),
        version.get().into(),
        incarnation.0.cast_signed().into(),
        reach.place.as_ref().map_or(Bind::Null, |place| Bind::Blob(&place.0)),
    ])?;
    if let Some(number) = found {
        return Ok(Some(number + 1));
    }
    let is_merged = reach.place.is_none() && cursor::read_position(core, sender)? == reach.position;
    Ok(is_merged.then_some(0))
}

/// Stages a message that leads from `after` to `until`.
pub(crate) fn stage(
    core: &mut Core,
    sender: SiteId,
    after: &Reach,
    until: &Reach,
    changes: &[Change],
    bytes_max: u64,
) -> Result<Staged, StageError> {
    let Some(number) = count_until(core, sender, after)? else { return Err(StageError::Gap) };
    const FORGET: &str = "DELETE FROM litemesh_stage WHERE site_id = ?1 AND number >= ?2";
    core.statement(FORGET)?.run(&[Bind::Blob(sender.as_bytes()), number.into()])?;
    let part = v2::encode_changes(changes);
    if until.place.is_some() {
        const HELD: &str = "SELECT coalesce(sum(length(changes)), 0) FROM litemesh_stage
             WHERE site_id = ?1 AND place IS NOT NULL AND position = ?2 AND incarnation = ?3";
        let Position { version, incarnation } = until.position;
        let held = core.statement(HELD)?.query_integer(&[
            Bind::Blob(sender.as_bytes()),
            version.get().into(),
            incarnation.0.cast_signed().into(),
        ])?;
        let bytes = held.unwrap_or_default().cast_unsigned().saturating_add(part.len() as u64);
        if bytes > bytes_max {
            return Err(StageError::TooLarge { bytes, max: bytes_max });
        }
    }
    const ADD: &str = "INSERT INTO litemesh_stage (site_id, number, position, incarnation, place, count, changes)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    core.statement(ADD)?.run(&[
        Bind::Blob(sender.as_bytes()),
        number.into(),
        until.position.version.get().into(),
        until.position.incarnation.0.cast_signed().into(),
        until.place.as_ref().map_or(Bind::Null, |place| Bind::Blob(&place.0)),
        i64::try_from(changes.len()).unwrap_or(i64::MAX).into(),
        Bind::Blob(&part),
    ])?;
    cursor::store_as_of(core, sender, until.as_of)?;
    Ok(staged(core, sender)?)
}

/// Forgets what is staged of `sender`.
pub(crate) fn forget(core: &mut Core, sender: SiteId) -> rusqlite::Result<()> {
    forget_before(core, sender, i64::MAX)
}

/// Forgets the staged messages below this number.
pub(crate) fn forget_before(core: &mut Core, sender: SiteId, number: i64) -> rusqlite::Result<()> {
    const FORGET: &str = "DELETE FROM litemesh_stage WHERE site_id = ?1 AND number < ?2";
    core.statement(FORGET)?.run(&[Bind::Blob(sender.as_bytes()), number.into()])
}

/// Merges what is staged of `sender` up to `until`, and forgets all of it. What follows may go on with the changeset in which it
/// ends.
pub(crate) fn merge_until(
    shared: &Shared,
    core: &mut Core,
    sender: SiteId,
    until: &Reach,
    open: &mut OpenChangeset,
    keep: impl Fn(&mut Core, &[Change], &Merged) -> rusqlite::Result<()>,
) -> Result<Merged, MergeError> {
    let Some(count) = count_until(core, sender, until)? else { return Err(MergeError::NotStaged) };
    let merged = merge_numbers(shared, core, sender, (0, count), true, open, keep)?;
    forget(core, sender)?;
    Ok(merged)
}

/// Merges the messages of these numbers, as far as they are there: those at the front of a chain may be merged already. `forgets`:
/// each before it is merged, so that what is merged takes its room in the file.
pub(crate) fn merge_numbers(
    shared: &Shared,
    core: &mut Core,
    sender: SiteId,
    (first, end): (i64, i64),
    forgets: bool,
    open: &mut OpenChangeset,
    keep: impl Fn(&mut Core, &[Change], &Merged) -> rusqlite::Result<()>,
) -> Result<Merged, MergeError> {
    let mut merged = Merged::default();
    for number in first..end {
        let Some(changes) = read_message(core, sender, number)? else { continue };
        if forgets {
            forget_before(core, sender, number + 1)?;
        }
        let of_this = merge_batch(shared, core, &changes, open)?;
        keep(core, &changes, &of_this)?;
        merged.add(of_this);
    }
    Ok(merged)
}

/// Where transactions end among what is staged of `sender`: after so many messages, at these positions.
pub(crate) fn boundaries(core: &mut Core, sender: SiteId) -> rusqlite::Result<Vec<(i64, Position)>> {
    const WHOLE: &str = "SELECT number, position, incarnation FROM litemesh_stage
         WHERE site_id = ?1 AND place IS NULL ORDER BY number";
    let mut boundaries = Vec::new();
    if core.has_litemesh_tables {
        let statement = core.statement(WHOLE)?;
        let binds = [Bind::Blob(sender.as_bytes())];
        let rows = statement.query(&binds)?;
        while rows.next()? {
            let incarnation = Incarnation(rows.integer(2).cast_unsigned());
            let position = Position { version: DbVersion::new(rows.integer(1)), incarnation };
            boundaries.push((rows.integer(0) + 1, position));
        }
    }
    Ok(boundaries)
}

fn read_message(core: &mut Core, sender: SiteId, number: i64) -> Result<Option<Vec<Change>>, MergeError> {
    const MESSAGE: &str = "SELECT changes FROM litemesh_stage WHERE site_id = ?1 AND number = ?2";
    let statement = core.statement(MESSAGE)?;
    let binds = [Bind::Blob(sender.as_bytes()), number.into()];
    let rows = statement.query(&binds)?;
    if !rows.next()? {
        return Ok(None);
    }
    // Written by us: where it cannot be read the file is damaged, or a later version of ours wrote it.
    let changes = v2::decode_changes(rows.bytes(0));
    changes.map(Some).map_err(|error| MergeError::StagedUnreadable { reason: error.to_string() })
}
