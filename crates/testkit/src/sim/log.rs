//! Every change that an application was told is committed, as its author wrote it.

use std::collections::{BTreeMap, BTreeSet};

use litemesh_engine::proto::{Change, Cursor, DbVersion, SiteId};

#[derive(Default)]
pub(super) struct Log {
    written: BTreeMap<SiteId, BTreeMap<DbVersion, Vec<Written>>>,
    /// Sites that two peers had at once, and the version up to which both wrote the same: above it no cursor says anything.
    contested: BTreeMap<SiteId, DbVersion>,
    pub(super) changes: usize,
    pub(super) versions: usize,
}

pub(super) struct Written {
    pub(super) change: Change,
    /// The peer that wrote it.
    author: usize,
    /// Its author lost it, by a backup or for good, before anybody may have had it.
    pub(super) is_excused: bool,
}

impl Log {
    /// Adds what one transaction of a peer wrote.
    pub(super) fn add(&mut self, author: usize, changes: Vec<Change>) {
        self.changes += changes.len();
        self.versions += changes.iter().map(|change| change.db_version).collect::<BTreeSet<_>>().len();
        for change in changes {
            let versions = self.written.entry(change.site).or_default();
            versions.entry(change.db_version).or_default().push(Written { change, author, is_excused: false });
        }
    }

    /// The author's file ends with `version` now.
    pub(super) fn excuse(&mut self, author: usize, site: SiteId, version: DbVersion) {
        let newer = self.written.entry(site).or_default().range_mut(version.next()..);
        let newer = newer.flat_map(|(_, written)| written).filter(|written| written.author == author);
        newer.for_each(|written| written.is_excused = true);
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
        written.filter(|written| !written.is_excused).map(|written| &written.change)
    }
}
