//! [`Change`]: one cell, or one row's birth or death; the unit of replication.

use std::fmt;
use std::sync::Arc;

use crate::{CausalLength, ColVersion, DbVersion, PackedKey, Seq, SiteId, Value};

/// What of a row a change is about.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Column {
    /// The row itself: its birth, death or return. `-1` on the wire and on disk (the *sentinel*).
    Row,
    /// The cell in the column of this name.
    Cell(Arc<str>),
}

impl Column {
    /// How the sentinel is written.
    pub const ROW_NAME: &'static str = "-1";

    /// The name as it stands on the wire and in clock tables.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Row => Self::ROW_NAME,
            Self::Cell(name) => name,
        }
    }
}

impl From<&str> for Column {
    fn from(name: &str) -> Self {
        if name == Self::ROW_NAME { Self::Row } else { Self::Cell(name.into()) }
    }
}

impl fmt::Debug for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One cell as its author wrote it, or one row's birth or death: a row of `crsql_changes`.
///
/// `db_version` is the *author's* version. Source: `crsqlite-compat.md` section 6.1, `wire-protocol.md` 1.2.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Name of the replicated table.
    pub table: Arc<str>,
    /// Primary key of the row.
    pub key: PackedKey,
    /// The cell, or the row itself.
    pub column: Column,
    /// The new value; NULL for [`Column::Row`].
    pub value: Value,
    /// How often the cell was written; for [`Column::Row`] the causal length.
    pub col_version: ColVersion,
    /// The author's database version.
    pub db_version: DbVersion,
    /// The author.
    pub site: SiteId,
    /// Causal length of the row.
    pub causal_length: CausalLength,
    /// Position inside the author's transaction.
    pub seq: Seq,
}

impl Change {
    /// About how many bytes this change takes in wire v1 JSON: what batches are bounded by.
    ///
    /// The fixed part is what a change of short names takes there (`wire-protocol.md` 4.4 counted 173 bytes).
    pub fn wire_bytes(&self) -> usize {
        150 + self.table.len()
            + 2 * self.key.as_bytes().len()
            + self.column.as_str().len()
            + match &self.value {
                Value::Blob(bytes) => 30 + 4 * bytes.len(),
                value => value.payload_bytes(),
            }
    }
}

/// The changes of one transaction of one site, or a part of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Changeset {
    /// The author.
    pub site: SiteId,
    /// The author's version.
    pub version: DbVersion,
    /// At least one change, all of this site and version.
    pub changes: Vec<Change>,
}

impl Changeset {
    /// Cuts a list of changes where the author or its version changes, keeping the order.
    pub fn group(changes: Vec<Change>) -> Vec<Self> {
        let mut out: Vec<Self> = Vec::new();
        for change in changes {
            match out.last_mut() {
                Some(last) if last.site == change.site && last.version == change.db_version => {
                    last.changes.push(change);
                }
                _ => out.push(Self { site: change.site, version: change.db_version, changes: vec![change] }),
            }
        }
        out
    }
}
