//! [`Access`]: what a remote may do here. A transport finds it out, the session above enforces it.

use std::sync::Arc;

use crate::limits::ACCESS_TABLES_MAX;

/// Which way changes may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rights {
    /// The remote is sent changes, and its own are merged.
    ReadWrite,
    /// The remote is sent changes. Its own are refused, and nothing that it claims moves anything here.
    Read,
    /// The remote's changes are merged, and it is sent none: how a hub looks to a peer that may only read there.
    Write,
}

/// What a remote may do here: a direction, and the tables for which it holds.
///
/// Tables are compared as SQLite compares names: the case of ASCII letters does not count.
///
/// ```
/// use litemesh_proto::{Access, Rights};
///
/// let reader = Access::new(Rights::Read).only(["todo", "tag"])?;
/// assert!(reader.may_read() && !reader.may_write());
/// assert!(reader.covers("Todo") && !reader.covers("salary"));
/// assert!(Access::FULL.covers("salary"));
/// # Ok::<(), litemesh_proto::TooManyTables>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    rights: Rights,
    /// In lower case, sorted, each once; `None` for all tables, also those that are made later.
    tables: Option<Arc<[Arc<str>]>>,
}

/// More tables than one [`Access`] may list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{tables} tables are listed, at most {ACCESS_TABLES_MAX} can be: leave the list away to mean all")]
pub struct TooManyTables {
    /// How many were given.
    pub tables: usize,
}

impl Access {
    /// Everything: what every remote had before there were rights.
    pub const FULL: Self = Self::new(Rights::ReadWrite);

    /// These rights on all tables.
    pub const fn new(rights: Rights) -> Self {
        Self { rights, tables: None }
    }

    /// The same rights on these tables alone. None at all is a list, too.
    ///
    /// # Errors
    ///
    /// More than [`ACCESS_TABLES_MAX`] tables.
    pub fn only(self, tables: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self, TooManyTables> {
        let mut tables: Vec<Arc<str>> =
            tables.into_iter().map(|table| table.as_ref().to_ascii_lowercase().into()).collect();
        tables.sort();
        tables.dedup();
        if tables.len() > ACCESS_TABLES_MAX {
            return Err(TooManyTables { tables: tables.len() });
        }
        Ok(Self { tables: Some(tables.into()), ..self })
    }

    /// Which way changes may go.
    pub fn rights(&self) -> Rights {
        self.rights
    }

    /// The tables, in lower case and sorted; `None` for all.
    pub fn tables(&self) -> Option<&[Arc<str>]> {
        self.tables.as_deref()
    }

    /// Whether the remote is sent changes.
    pub fn may_read(&self) -> bool {
        self.rights != Rights::Write
    }

    /// Whether the remote's changes are merged.
    pub fn may_write(&self) -> bool {
        self.rights != Rights::Read
    }

    /// Whether there is a list of tables.
    pub fn is_restricted(&self) -> bool {
        self.tables.is_some()
    }

    /// Whether the rights hold for this table.
    pub fn covers(&self, table: &str) -> bool {
        let Some(tables) = &self.tables else { return true };
        let name = || table.bytes().map(|byte| byte.to_ascii_lowercase());
        tables.binary_search_by(|known| known.bytes().cmp(name())).is_ok()
    }

    /// The same agreement from the other side: who may only read there looks, from there, like one that only writes.
    #[must_use]
    pub fn mirrored(&self) -> Self {
        let rights = match self.rights {
            Rights::ReadWrite => Rights::ReadWrite,
            Rights::Read => Rights::Write,
            Rights::Write => Rights::Read,
        };
        Self { rights, tables: self.tables.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_as_sqlite_does() {
        let access = Access::FULL.only(["B", "a", "b", "Ä"]).unwrap();
        assert_eq!(access.tables().unwrap().iter().map(|table| &**table).collect::<Vec<_>>(), ["a", "b", "Ä"]);
        for table in ["a", "A", "b", "Ä"] {
            assert!(access.covers(table), "{table}");
        }
        for table in ["", "ab", "ä", "c", "a "] {
            assert!(!access.covers(table), "{table}");
        }
    }

    #[test]
    fn an_empty_list_covers_nothing() {
        let access = Access::FULL.only([""; 0]).unwrap();
        assert!(access.is_restricted() && !access.covers("a") && !access.covers(""));
    }

    #[test]
    fn a_list_has_a_limit() {
        let names = |count: usize| (0..count).map(|n| format!("t{n}"));
        assert!(Access::FULL.only(names(ACCESS_TABLES_MAX)).is_ok());
        let refused = Access::FULL.only(names(ACCESS_TABLES_MAX + 1)).unwrap_err();
        assert_eq!(refused.tables, ACCESS_TABLES_MAX + 1);
    }

    #[test]
    fn mirrored_twice_is_the_same() {
        for rights in [Rights::Read, Rights::Write, Rights::ReadWrite] {
            let access = Access::new(rights).only(["t"]).unwrap();
            assert_eq!(access.mirrored().mirrored(), access);
            assert_eq!(
                (access.mirrored().may_read(), access.mirrored().may_write()),
                (access.may_write(), access.may_read())
            );
        }
    }
}
