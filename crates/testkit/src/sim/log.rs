//! Every change that an application was told is committed, as its author wrote it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use litemesh_engine::proto::{Change, Cursor, DbVersion, SiteId};

#[derive(Default)]
pub(super) struct Log {
    written: BTreeMap<SiteId, BTreeMap<DbVersion, Vec<Written>>>,
    /// Sites that two peers had at once, and the version up to which both wrote the same: above it no cursor says anything.
    contested: BTreeMap<SiteId, DbVersion>,
    /// Rows that a file wrote under versions that it gave out again, when it had forgotten them.
    doubtful: BTreeSet<(Arc<str>, Vec<u8>)>,
    pub(super) changes: usize,
    pub(super) versions: usize,
}

pub(super) struct Written {
    pub(super) change: Change,
    /// The peer that wrote it.
    author: usize,
    /// Its author has lost it, by a backup, with the power or for good.
    is_lost: bool,
    /// Peers that have told their author that they hold it durably.
    kept_by: BTreeSet<usize>,
}

impl Written {
    /// Its author has lost it before anybody had to have it.
    pub(super) fn is_excused(&self) -> bool {
        self.is_lost && self.kept_by.is_empty()
    }
}

impl Log {
    /// Adds what one transaction of a peer wrote.
    pub(super) fn add(&mut self, author: usize, changes: Vec<Change>) {
        self.changes += changes.len();
        self.versions += changes.iter().map(|change| change.db_version).collect::<BTreeSet<_>>().len();
        for change in changes {
            let versions = self.written.entry(change.site).or_default();
            let written = Written { change, author, is_lost: false, kept_by: BTreeSet::new() };
            versions.entry(written.change.db_version).or_default().push(written);
        }
    }

    /// The author's file ends with `version` now.
    pub(super) fn excuse(&mut self, author: usize, site: SiteId, version: DbVersion) {
        let newer = self.written.entry(site).or_default().range_mut(version.next()..);
        let newer = newer.flat_map(|(_, written)| written).filter(|written| written.author == author);
        newer.for_each(|written| written.is_lost = true);
    }

    /// `keeper` has told the author that it holds everything up to `version`.
    pub(super) fn acknowledge(&mut self, author: usize, site: SiteId, version: DbVersion, keeper: usize) {
        let older = self.written.entry(site).or_default().range_mut(..=version);
        for written in older.flat_map(|(_, written)| written).filter(|w| w.author == author && !w.is_lost) {
            written.kept_by.insert(keeper);
        }
    }

    /// The peer is gone for good, with what it wrote and what it kept.
    pub(super) fn excuse_all(&mut self, peer: usize) {
        for written in self.written.values_mut().flat_map(BTreeMap::values_mut).flatten() {
            written.is_lost |= written.author == peer;
            written.kept_by.remove(&peer);
        }
    }

    /// After `version` the author writes once more under versions that stood for what it has lost since. Who takes the one for the other is
    /// not sent it, so nobody can promise who holds that.
    pub(super) fn doubt(&mut self, author: usize, site: SiteId, version: DbVersion) {
        let newer = self.written.get(&site).into_iter().flat_map(|versions| versions.range(version.next()..));
        let lost = newer.flat_map(|(_, written)| written).filter(|w| w.author == author && w.is_excused());
        self.doubtful.extend(lost.map(|written| row(&written.change)));
    }

    /// Rows that may be others at each peer.
    pub(super) fn doubtful(&self) -> impl Iterator<Item = &(Arc<str>, Vec<u8>)> {
        self.doubtful.iter()
    }

    pub(super) fn is_doubtful(&self, change: &Change) -> bool {
        !self.doubtful.is_empty() && self.doubtful.contains(&row(change))
    }

    /// From `version` on two peers write as `site`.
    pub(super) fn contest(&mut self, site: SiteId, version: DbVersion) {
        let contested = self.contested.entry(site).or_insert(version);
        *contested = version.min(*contested);
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Written> {
        self.written.values().flat_map(BTreeMap::values).flatten()
    }

    /// What `cursor` covers and `before` did not.
    pub(super) fn between<'a>(&'a self, before: &'a Cursor, cursor: &'a Cursor) -> impl Iterator<Item = &'a Change> {
        let news = cursor.iter().filter_map(move |(site, version)| {
            let since = before.get(site);
            let version = self.contested.get(site).map_or(version, |contested| version.min(*contested));
            let versions = self.written.get(site).filter(|_| since < version)?;
            Some(versions.range(since.next()..=version))
        });
        let written = news.flatten().flat_map(|(_, written)| written);
        let written = written.filter(|written| !written.is_excused()).map(|written| &written.change);
        written.filter(|change| !self.is_doubtful(change))
    }
}

fn row(change: &Change) -> (Arc<str>, Vec<u8>) {
    (change.table.clone(), change.key.as_bytes().to_vec())
}
