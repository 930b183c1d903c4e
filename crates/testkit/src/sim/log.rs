//! Every change that an application was told is committed, as its author wrote it.

use std::collections::{BTreeMap, BTreeSet};

use litemesh_engine::proto::{Change, Cursor, DbVersion, SiteId};

#[derive(Default)]
pub(super) struct Log {
    written: BTreeMap<SiteId, BTreeMap<DbVersion, Vec<Written>>>,
    pub(super) changes: usize,
    pub(super) versions: usize,
}

pub(super) struct Written {
    pub(super) change: Change,
    /// Its author lost it, by a backup or for good, before anybody may have had it.
    pub(super) is_excused: bool,
}

impl Log {
    /// Adds what one transaction wrote.
    pub(super) fn add(&mut self, changes: Vec<Change>) {
        self.changes += changes.len();
        self.versions += changes.iter().map(|change| change.db_version).collect::<BTreeSet<_>>().len();
        for change in changes {
            let versions = self.written.entry(change.site).or_default();
            versions.entry(change.db_version).or_default().push(Written { change, is_excused: false });
        }
    }

    /// The author's file ends with `version` now.
    pub(super) fn excuse(&mut self, site: SiteId, version: DbVersion) {
        let newer = self.written.entry(site).or_default().range_mut(version.next()..);
        newer.flat_map(|(_, written)| written).for_each(|written| written.is_excused = true);
    }

    /// What `site` wrote after `version`, and nobody lost, is `forked`'s now.
    pub(super) fn relabel(&mut self, site: SiteId, version: DbVersion, forked: SiteId) {
        let Some(versions) = self.written.get_mut(&site) else { return };
        let mut moved: BTreeMap<DbVersion, Vec<Written>> = BTreeMap::new();
        for (version, written) in versions.range_mut(version.next()..) {
            let (lost, kept) = std::mem::take(written).into_iter().partition(|written| written.is_excused);
            *written = lost;
            let kept: Vec<Written> = kept;
            moved.insert(*version, kept);
        }
        self.written.insert(forked, moved);
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Written> {
        self.written.values().flat_map(BTreeMap::values).flatten()
    }

    /// What `cursor` covers and `before` did not.
    pub(super) fn between<'a>(&'a self, before: &'a Cursor, cursor: &'a Cursor) -> impl Iterator<Item = &'a Change> {
        let news = cursor.iter().filter_map(move |(site, version)| {
            let since = before.get(site);
            let versions = self.written.get(site).filter(|_| since < version)?;
            Some(versions.range(since.next()..=version))
        });
        let written = news.flatten().flat_map(|(_, written)| written);
        written.filter(|written| !written.is_excused).map(|written| &written.change)
    }
}
