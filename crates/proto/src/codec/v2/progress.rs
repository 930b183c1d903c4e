//! What stands in messages beside changes: requests, progress, acknowledgements, cursors.

use super::reader::Reader;
use super::writer::Writer;
use crate::limits::{CURSOR_SITES_MAX, PLACE_BYTES_MAX};
use crate::{
    Ack, Cursor, DbVersion, DecodeError, Incarnation, Part, Place, Position, Progress, SiteId, SyncRequest, Terms,
};

const HAS_TERMS: u8 = 1;
const HAS_STAGED: u8 = 2;
const WAS_MORE: u8 = 4;

/// Flags, terms, cursor.
pub(super) fn write_sync(out: &mut Writer, request: &SyncRequest) {
    match &request.terms {
        None => out.byte(0),
        Some(terms) => {
            let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
            out.byte(HAS_TERMS | flag(terms.staged.is_some(), HAS_STAGED) | flag(terms.as_of.is_some(), WAS_MORE));
            out.unsigned(u64::from(terms.answer));
            out.unsigned(u64::from(terms.credit));
            write_position(out, terms.position);
            if let Some(place) = &terms.staged {
                out.prefixed(&place.0);
            }
            if let Some(as_of) = terms.as_of {
                write_position(out, as_of);
            }
        }
    }
    write_cursor(out, &request.cursor);
}

pub(super) fn read_sync(from: &mut Reader<'_>) -> Result<SyncRequest, DecodeError> {
    let flags = from.byte()?;
    let terms = match flags {
        0 => None,
        HAS_TERMS | 3 | 5 | 7 => Some(Terms {
            answer: from.unsigned32()?,
            credit: from.unsigned32()?,
            position: read_position(from)?,
            staged: if flags & HAS_STAGED == 0 { None } else { Some(read_place(from)?) },
            as_of: if flags & WAS_MORE == 0 { None } else { Some(read_position(from)?) },
        }),
        _ => return Err(DecodeError::UnknownFlags { what: "sync request", flags }),
    };
    Ok(SyncRequest { terms, cursor: read_cursor(from)? })
}

/// There is progress, and it does not say as of which position it was read. Other bits without this one: it does.
const HAS_PROGRESS: u8 = 1;
const HAS_POSITION: u8 = 2;
const HAS_CURSOR: u8 = 4;
/// Two bits say which part of a transaction it is. Whole transactions: neither.
const PARTS: u8 = FIRST_PIECE | LATER_PIECE;
const FIRST_PIECE: u8 = 8;
const LATER_PIECE: u8 = 16;
const LAST_PIECE: u8 = 24;
const MORE: u8 = 32;
const PROVISIONAL: u8 = 64;
const HAS_SINCE: u8 = 128;

/// Flags, answer, number, places of a part, since, position, as of, cursor.
pub(super) fn write_progress(out: &mut Writer, progress: Option<&Progress>) {
    let Some(progress) = progress else {
        out.byte(0);
        return;
    };
    let (part, after, until) = match &progress.part {
        Part::Whole => (0, None, None),
        Part::Piece { after: None, until } => (FIRST_PIECE, None, Some(until)),
        Part::Piece { after: Some(after), until } => (LATER_PIECE, Some(after), Some(until)),
        Part::Last { after } => (LAST_PIECE, Some(after), None),
    };
    let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
    // Only what has more to come has it, so that some bit is set in any case.
    let as_of = progress.as_of.filter(|_| progress.more);
    out.byte(
        flag(as_of.is_none(), HAS_PROGRESS)
            | part
            | flag(progress.since.is_some(), HAS_SINCE)
            | flag(progress.position.is_some(), HAS_POSITION)
            | flag(progress.cursor.is_some(), HAS_CURSOR)
            | flag(progress.more, MORE)
            | flag(progress.provisional, PROVISIONAL),
    );
    out.unsigned(u64::from(progress.answer));
    out.unsigned(progress.number);
    after.into_iter().chain(until).for_each(|place| out.prefixed(&place.0));
    for position in [progress.since, progress.position, as_of].into_iter().flatten() {
        write_position(out, position);
    }
    if let Some(cursor) = &progress.cursor {
        write_cursor(out, cursor);
    }
}

pub(super) fn read_progress(from: &mut Reader<'_>) -> Result<Option<Progress>, DecodeError> {
    let flags = from.byte()?;
    if flags == 0 {
        return Ok(None);
    }
    // All other bits are taken.
    let has_as_of = flags & HAS_PROGRESS == 0;
    if has_as_of && flags & MORE == 0 {
        return Err(DecodeError::UnknownFlags { what: "progress", flags });
    }
    let (answer, number) = (from.unsigned32()?, from.unsigned()?);
    let part = match flags & PARTS {
        FIRST_PIECE => Part::Piece { after: None, until: read_place(from)? },
        LATER_PIECE => Part::Piece { after: Some(read_place(from)?), until: read_place(from)? },
        LAST_PIECE => Part::Last { after: read_place(from)? },
        _ => Part::Whole,
    };
    Ok(Some(Progress {
        answer,
        number,
        part,
        more: flags & MORE != 0,
        provisional: flags & PROVISIONAL != 0,
        since: if flags & HAS_SINCE == 0 { None } else { Some(read_position(from)?) },
        position: if flags & HAS_POSITION == 0 { None } else { Some(read_position(from)?) },
        as_of: if has_as_of { Some(read_position(from)?) } else { None },
        cursor: if flags & HAS_CURSOR == 0 { None } else { Some(read_cursor(from)?) },
    }))
}

pub(super) fn write_ack(out: &mut Writer, ack: &Ack) {
    out.unsigned(u64::from(ack.answer));
    out.unsigned(ack.number);
    out.unsigned(ack.until);
}

pub(super) fn read_ack(from: &mut Reader<'_>) -> Result<Ack, DecodeError> {
    Ok(Ack { answer: from.unsigned32()?, number: from.unsigned()?, until: from.unsigned()? })
}

fn write_position(out: &mut Writer, position: Position) {
    out.signed(position.version.get());
    out.bytes(&position.incarnation.0.to_le_bytes());
}

fn read_position(from: &mut Reader<'_>) -> Result<Position, DecodeError> {
    let version = DbVersion::new(from.signed()?);
    Ok(Position { version, incarnation: Incarnation(u64::from_le_bytes(from.array()?)) })
}

fn read_place(from: &mut Reader<'_>) -> Result<Place, DecodeError> {
    let place = from.prefixed()?;
    if place.len() > PLACE_BYTES_MAX {
        return Err(DecodeError::TooLong { what: "place", bytes: place.len(), max: PLACE_BYTES_MAX });
    }
    Ok(Place(place.into()))
}

/// How many sites, then of each its id and its version.
fn write_cursor(out: &mut Writer, cursor: &Cursor) {
    out.size(cursor.len());
    for (site, version) in cursor.iter() {
        out.bytes(site.as_bytes());
        out.signed(version.get());
    }
}

fn read_cursor(from: &mut Reader<'_>) -> Result<Cursor, DecodeError> {
    let sites = from.count(17)?;
    if sites > CURSOR_SITES_MAX {
        return Err(DecodeError::CursorTooLarge { sites, max: CURSOR_SITES_MAX });
    }
    (0..sites).map(|_| Ok((SiteId::from_bytes(from.array()?), DbVersion::new(from.signed()?)))).collect()
}
