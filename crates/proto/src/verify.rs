//! The rules that a remote's change must keep before anything looks inside (`wire-protocol.md` 1.2 and 8.4).

use std::fmt;

use crate::limits::{NAME_BYTES_MAX, VERSION_MAX};
use crate::{Change, Column, KeyError, Limits};

/// The rule that a change broke. The first seven texts are the original's.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reason {
    NotAName(&'static str),
    NotHexText(&'static str),
    NotHex(&'static str),
    OddHex(&'static str),
    NotACount(&'static str),
    NotASite,
    NotAValue,
    TooLong { field: &'static str, bytes: usize, max: usize },
    TooLarge { field: &'static str, value: i64 },
    Key(KeyError),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAName(field) => write!(f, "Change.{field} must be a non-empty string"),
            Self::NotHexText(field) => write!(f, "Change.{field} must be a hex string"),
            Self::NotHex(field) => write!(f, "Change.{field} must be a valid hex string"),
            Self::OddHex(field) => write!(f, "Change.{field} hex string must have even length"),
            Self::NotACount(field) => write!(f, "Change.{field} must be a non-negative integer"),
            Self::NotASite => write!(f, "Change.site_id must be 32 hex digits"),
            Self::NotAValue => {
                write!(
                    f,
                    "Change.val must be null, a boolean, a number, a string or a Buffer, not another object or array"
                )
            }
            Self::TooLong { field, bytes, max } => {
                write!(f, "Change.{field} has {bytes} bytes, at most {max} are accepted")
            }
            Self::TooLarge { field, value } => {
                write!(f, "Change.{field} is {value}, at most {VERSION_MAX} is accepted")
            }
            Self::Key(error) => write!(f, "Change.pk is not a primary key: {error}"),
        }
    }
}

pub(crate) fn verify_change(change: &Change, limits: &Limits) -> Result<(), Reason> {
    verify_name("table", &change.table)?;
    if let Column::Cell(name) = &change.column {
        verify_name("cid", name)?;
    }
    let longest = limits.change_value_bytes_max;
    for (field, bytes) in [("pk", change.key.as_bytes().len()), ("val", change.value.payload_bytes())] {
        if bytes > longest {
            return Err(Reason::TooLong { field, bytes, max: longest });
        }
    }
    change.key.check().map_err(Reason::Key)?;
    for (field, value) in [
        ("col_version", change.col_version.get()),
        ("db_version", change.db_version.get()),
        ("cl", change.causal_length.get()),
        ("seq", change.seq.get()),
    ] {
        if value < 0 {
            return Err(Reason::NotACount(field));
        }
        if value > VERSION_MAX {
            return Err(Reason::TooLarge { field, value });
        }
    }
    Ok(())
}

fn verify_name(field: &'static str, name: &str) -> Result<(), Reason> {
    if name.trim().is_empty() {
        return Err(Reason::NotAName(field));
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(Reason::TooLong { field, bytes: name.len(), max: NAME_BYTES_MAX });
    }
    Ok(())
}
