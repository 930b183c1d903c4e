//! Verified changes -> one transaction of rows, clocks and cursor.
//!
//! The batch is cut into changesets (one author, one version) and those into rows. [`crate::merge_rows`] gathers rows, and reads
//! and writes them together; [`crate::merge_row`] decides about one.
//!
//! Each changeset is merged under a local version of its own, and `litemesh_origin` remembers whose version that was: the
//! clock tables alone could not say (`crsqlite-compat.md` 5.6; docs/storage.md).

use std::collections::BTreeSet;
use std::sync::Arc;

use litemesh_proto::{Change, Cursor, DbVersion, Position, SiteId};

use crate::core::{Core, Shared};
use crate::error::MergeError;
use crate::merge_rows::MergeRows;
use crate::staged::Reach;

/// How far a batch brings this database; stored in the transaction that merges it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MergeProgress {
    /// Joined into our cursor.
    pub cursor: Cursor,
    /// The sender, and up to where we now hold everything that it has.
    pub position: Option<(SiteId, Position)>,
    /// The sender whose staged messages are merged before the batch, and up to where they must lead: together they are one
    /// transaction (see [`Engine::stage`](crate::Engine::stage)).
    pub completes: Option<(SiteId, Reach)>,
    /// The sender, and up to where everything that it has must be here before, as another batch brought it. Version zero: this batch
    /// begins at the very start of what it has.
    pub since: Option<(SiteId, Position)>,
    /// Where the batch does not bring us to all that its sender held: the sender's newest position when it read this.
    pub as_of: Option<Position>,
    /// Whether the versions of the changes may be provisional: a wire v1 peer passes on what it does not hold completely under
    /// an earlier version of its author, and again under its own.
    pub is_provisional: bool,
    /// Whether the batch ends the sender's answer to what we asked it: everything that it held then is here.
    pub ends_answer: bool,
}

impl MergeProgress {
    /// Whether there is nothing to store.
    pub fn is_empty(&self) -> bool {
        self.cursor.is_empty() && self.position.is_none() && self.completes.is_none() && self.since.is_none()
    }
}

/// What a merge did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Merged {
    /// How many changes won and were written. The others were known, or lost.
    pub won: usize,
    /// Tables in which something changed.
    pub tables: BTreeSet<Arc<str>>,
    /// The local versions under which the winners were stored: first and last.
    pub local_versions: Option<(DbVersion, DbVersion)>,
}

impl Merged {
    /// Takes up what was merged after this, in the same transaction.
    pub(crate) fn add(&mut self, later: Self) {
        self.won += later.won;
        self.tables.extend(later.tables);
        self.local_versions = match (self.local_versions, later.local_versions) {
            (Some((first, _)), Some((_, last))) => Some((first, last)),
            (one, other) => one.or(other),
        };
    }
}

/// The changeset with which a batch ended, and under what it was stored: the next batch of the same transaction may go on
/// with it.
#[derive(Default)]
pub(crate) struct OpenChangeset(Option<(SiteId, DbVersion, Option<Stamp>)>);

/// Merges a batch inside the caller's transaction. What begins as `open` ended goes on with that changeset.
pub(crate) fn merge_batch(
    shared: &Shared,
    core: &mut Core,
    changes: &[Change],
    open: &mut OpenChangeset,
) -> Result<Merged, MergeError> {
    let mut rows = MergeRows::new(changes.len());
    let mut start = 0;
    while start < changes.len() {
        let first = &changes[start];
        let length = run_length(&changes[start..], |c| c.site == first.site && c.db_version == first.db_version);
        let mut author = Author::new(Some(first.site.as_bytes()), first.db_version.get(), true);
        if let Some((site, version, stamp)) = open.0.take()
            && (site, version) == (first.site, first.db_version)
        {
            author.stamp = stamp;
        }
        rows.begin_changeset(author);
        merge_changeset(shared, core, &changes[start..start + length], start, &mut rows)?;
        start += length;
    }
    rows.merge(shared, core)?;
    if let (Some(last), Some(author)) = (changes.last(), rows.last_author()) {
        open.0 = Some((last.site, last.db_version, author.stamp));
    }
    Ok(rows.into_merged())
}

fn run_length(changes: &[Change], same: impl Fn(&Change) -> bool) -> usize {
    changes.iter().take_while(|change| same(change)).count()
}

fn merge_changeset<'a>(
    shared: &Shared,
    core: &mut Core,
    changes: &'a [Change],
    offset: usize,
    rows: &mut MergeRows<'a>,
) -> Result<(), MergeError> {
    let mut start = 0;
    while start < changes.len() {
        let first = &changes[start];
        let length = run_length(&changes[start..], |c| c.key == first.key && c.table == first.table);
        rows.add(shared, core, &changes[start..start + length], offset + start)?;
        start += length;
    }
    Ok(())
}

/// Who wrote the changes that are being merged, and what local version they get once one of them wins.
pub(crate) struct Author<'a> {
    /// `None` stands for this database itself (MRG-8).
    pub(crate) site: Option<&'a [u8]>,
    version: i64,
    /// Whether the changeset gets a version of its own, rather than the transaction's.
    is_fresh: bool,
    /// `(local version, ordinal)`, once something won.
    stamp: Option<Stamp>,
}

impl<'a> Author<'a> {
    pub(crate) fn new(site: Option<&'a [u8]>, version: i64, is_fresh: bool) -> Self {
        Self { site, version, is_fresh, stamp: None }
    }

    /// The author's own version, where that is what the changes are numbered with. Those of `crsql_changes` have the local version
    /// of whoever they were read from.
    pub(crate) fn own_version(&self) -> Option<i64> {
        self.is_fresh.then_some(self.version)
    }

    pub(crate) fn check(&self, core: &Core, index: usize) -> Result<(), MergeError> {
        let max = core.merge_max();
        if self.version > max {
            return Err(MergeError::AbsurdVersion { index, version: self.version, max });
        }
        Ok(())
    }

    /// What its changes were stored under, once one of them won.
    pub(crate) fn stamped(&self) -> Option<DbVersion> {
        self.stamp.map(|stamp| DbVersion::new(stamp.local))
    }

    pub(crate) fn stamp(&mut self, core: &mut Core) -> rusqlite::Result<Stamp> {
        if let Some(stamp) = self.stamp {
            return Ok(stamp);
        }
        let ordinal = self.site.map_or(Ok(0), |site| core.ordinal_of(site))?;
        let local = if self.is_fresh { core.fresh_version(self.version)? } else { core.next_version(self.version)? };
        if ordinal != 0 {
            record_origin(core, local, ordinal, self.version)?;
        } else if self.is_fresh {
            record_own_origin(core, local, self.version)?;
        }
        let stamp = Stamp { local, ordinal };
        self.stamp = Some(stamp);
        Ok(stamp)
    }
}

/// What every clock of a merged changeset gets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The local version.
    pub(crate) local: i64,
    /// The author's ordinal.
    pub(crate) ordinal: i64,
}

/// Remembers which of our own versions a local one is: what this file has forgotten and others gave back keeps its number, or whoever
/// holds it under that would take it for something new.
pub(crate) fn record_own_origin(core: &mut Core, local: i64, version: i64) -> rusqlite::Result<()> {
    // Unless it is said otherwise, what we wrote has the local version.
    if version == local || !core.has_litemesh_tables {
        return Ok(());
    }
    const RECORD: &str = "INSERT INTO litemesh_origin (local_version, site, version) VALUES (?1, 0, ?2)
         ON CONFLICT (local_version, site) DO UPDATE SET version = max(version, excluded.version)";
    core.statement(RECORD)?.run(&[local.into(), version.into()])
}

/// What of our own lies under these local versions counts as written under them, whatever was said of it: a number that is too low could be
/// taken as covered by a cursor that does not hold it.
pub(crate) fn forget_own_origins(core: &mut Core, first: i64, last: i64) -> rusqlite::Result<()> {
    if !core.has_litemesh_tables {
        return Ok(());
    }
    const FORGET: &str = "DELETE FROM litemesh_origin WHERE local_version BETWEEN ?1 AND ?2 AND site = 0";
    core.statement(FORGET)?.run(&[first.into(), last.into()])
}

/// Remembers whose version a local one is. Where several author versions share a stamp the highest is kept: a label that is
/// too low could be taken as covered by a cursor that does not hold the change, one that is too high only sends it again.
pub(crate) fn record_origin(core: &mut Core, local: i64, ordinal: i64, version: i64) -> rusqlite::Result<()> {
    if !core.has_litemesh_tables {
        return Ok(());
    }
    if let Some((last_local, last_ordinal, last_version)) = core.last_origin
        && (last_local, last_ordinal) == (local, ordinal)
        && last_version >= version
    {
        return Ok(());
    }
    const RECORD: &str = "INSERT INTO litemesh_origin (local_version, site, version) VALUES (?1, ?2, ?3)
         ON CONFLICT (local_version, site) DO UPDATE SET version = max(version, excluded.version)";
    core.statement(RECORD)?.run(&[local.into(), ordinal.into(), version.into()])?;
    core.last_origin = Some((local, ordinal, version));
    Ok(())
}
