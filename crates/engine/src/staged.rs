//! Parts of a transaction that was too large for one message: kept until the last one is here, then merged at once.
//!
//! They are stored in the file, so that a catch-up that breaks inside of such a transaction goes on where it stopped, and
//! memory holds one part at a time. A sender stages one transaction at a time: the first part of another one takes the place of
//! what was there.

use litemesh_proto::codec::v2;
use litemesh_proto::{Change, Place, SiteId};

use crate::core::{Core, Shared};
use crate::error::{MergeError, StageError, StorageError};
use crate::merge::{Merged, OpenChangeset, merge_batch};
use crate::statement::Bind;

/// The place up to which the staged parts of `sender` lead, if there are any.
pub(crate) fn staged_until(core: &mut Core, sender: SiteId) -> rusqlite::Result<Option<Place>> {
    Ok(last_part(core, sender)?.map(|(_, place)| place))
}

fn last_part(core: &mut Core, sender: SiteId) -> rusqlite::Result<Option<(i64, Place)>> {
    if !core.has_litemesh_tables {
        return Ok(None);
    }
    const LAST: &str = "SELECT number, place FROM litemesh_staged WHERE site_id = ?1 ORDER BY number DESC LIMIT 1";
    let statement = core.statement(LAST)?;
    let rows = statement.query(&[Bind::Blob(sender.as_bytes())])?;
    Ok(if rows.next()? { Some((rows.integer(0), Place(rows.bytes(1).into()))) } else { None })
}

/// Stages a part that goes on at `after`, or is the first.
pub(crate) fn stage(
    core: &mut Core,
    sender: SiteId,
    after: Option<&Place>,
    until: &Place,
    changes: &[Change],
    bytes_max: u64,
) -> Result<(), StageError> {
    let last = last_part(core, sender)?;
    let number = match (after, last) {
        // It came before, on another road or before the connection broke.
        (_, Some((_, place))) if place == *until => return Ok(()),
        (None, _) => {
            forget(core, sender)?;
            0
        }
        (Some(after), Some((number, place))) if place == *after => number + 1,
        (Some(_), _) => return Err(StageError::Gap),
    };
    let part = v2::encode_changes(changes);
    const HELD: &str = "SELECT coalesce(sum(length(changes)), 0) FROM litemesh_staged WHERE site_id = ?1";
    let held = core.statement(HELD)?.query_integer(&[Bind::Blob(sender.as_bytes())])?.unwrap_or_default();
    let bytes = held.cast_unsigned().saturating_add(part.len() as u64);
    if bytes > bytes_max {
        return Err(StageError::TooLarge { bytes, max: bytes_max });
    }
    const ADD: &str = "INSERT INTO litemesh_staged (site_id, number, place, changes) VALUES (?1, ?2, ?3, ?4)";
    core.statement(ADD)?.run(&[
        Bind::Blob(sender.as_bytes()),
        number.into(),
        Bind::Blob(&until.0),
        Bind::Blob(&part),
    ])?;
    Ok(())
}

/// Forgets what is staged of `sender`.
pub(crate) fn forget(core: &mut Core, sender: SiteId) -> rusqlite::Result<()> {
    core.statement("DELETE FROM litemesh_staged WHERE site_id = ?1")?.run(&[Bind::Blob(sender.as_bytes())])
}

/// Merges the staged parts of `sender`, which must lead up to `until`, and forgets them. What follows may go on with the
/// changeset in which they end.
pub(crate) fn merge_staged(
    shared: &Shared,
    core: &mut Core,
    sender: SiteId,
    until: &Place,
    open: &mut OpenChangeset,
    keep: impl Fn(&mut Core, &[Change], &Merged) -> rusqlite::Result<()>,
) -> Result<Merged, MergeError> {
    if staged_until(core, sender)?.as_ref() != Some(until) {
        return Err(MergeError::NotStaged);
    }
    let mut merged = Merged::default();
    let mut number = 0;
    while let Some(changes) = read_part(core, sender, number)? {
        let part = merge_batch(shared, core, &changes, open)?;
        keep(core, &changes, &part)?;
        merged.add(part);
        number += 1;
    }
    forget(core, sender)?;
    Ok(merged)
}

fn read_part(core: &mut Core, sender: SiteId, number: i64) -> Result<Option<Vec<Change>>, StorageError> {
    const PART: &str = "SELECT changes FROM litemesh_staged WHERE site_id = ?1 AND number = ?2";
    let statement = core.statement(PART)?;
    let rows = statement.query(&[Bind::Blob(sender.as_bytes()), number.into()])?;
    if !rows.next()? {
        return Ok(None);
    }
    let changes = v2::decode_changes(rows.bytes(0)).map_err(|error| {
        // Written by us: the file is damaged, or a later version of ours wrote it.
        StorageError(crate::error::to_sql(format!("a staged part cannot be read: {error}")))
    })?;
    Ok(Some(changes))
}
