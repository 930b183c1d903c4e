//! [`Cursor`]: what a database holds, as a version vector.

use std::collections::{BTreeMap, btree_map};

use crate::{DbVersion, SiteId};

/// So much more it costs to look a site up than to pass it.
const LOOK_UP_COSTS: usize = 5;

/// A version vector: for each site the highest version that is held with nothing missing below it.
///
/// `cursor[s] = v` means: for every change of site `s` up to `v`, the holder has it *or something that beat it*
/// (docs/storage.md; the causal delta-merging condition of Almeida, Shoker and Baquero, 2018).
///
/// Generic in the key only because wire v1 compares site ids as strings, verbatim; everything else uses [`SiteId`].
///
/// ```
/// use litemesh_proto::{Cursor, DbVersion, SiteId};
///
/// let site = SiteId::from_bytes([7; 16]);
/// let mut cursor = Cursor::new();
/// cursor.advance(site, DbVersion::new(5));
/// cursor.advance(site, DbVersion::new(3)); // never backwards
/// assert_eq!(cursor.get(&site), DbVersion::new(5));
/// assert!(cursor.covers(&site, DbVersion::new(5)));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor<S = SiteId> {
    versions: BTreeMap<S, DbVersion>,
}

impl<S> Default for Cursor<S> {
    fn default() -> Self {
        Self { versions: BTreeMap::new() }
    }
}

impl<S> Cursor<S> {
    /// Holds nothing.
    pub const NOTHING: Self = Self { versions: BTreeMap::new() };
}

impl<S: Ord + Clone> Cursor<S> {
    /// Holds nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The version held of `site`, zero where it is unknown.
    pub fn get(&self, site: &S) -> DbVersion {
        self.versions.get(site).copied().unwrap_or_default()
    }

    /// Whether `site` is known at all.
    pub fn contains(&self, site: &S) -> bool {
        self.versions.contains_key(site)
    }

    /// Whether `version` of `site` is held.
    pub fn covers(&self, site: &S, version: DbVersion) -> bool {
        self.versions.get(site).is_some_and(|held| version <= *held)
    }

    /// Moves one site forward. Says whether anything moved.
    pub fn advance(&mut self, site: S, version: DbVersion) -> bool {
        match self.versions.entry(site) {
            btree_map::Entry::Vacant(entry) => {
                entry.insert(version);
                true
            }
            btree_map::Entry::Occupied(mut entry) => {
                let moved = version > *entry.get();
                if moved {
                    entry.insert(version);
                }
                moved
            }
        }
    }

    /// Joins another cursor into this one, site by site the larger version. Says whether anything moved.
    pub fn join(&mut self, other: &Self) -> bool {
        let mut moved = false;
        for (site, version) in &other.versions {
            moved |= self.advance(site.clone(), *version);
        }
        moved
    }

    /// [Joins](Self::join) another cursor, of whose sites that are new here no more than make `sites_max` in all.
    pub fn join_within(&mut self, other: &Self, sites_max: usize) {
        for (site, version) in &other.versions {
            if self.versions.len() < sites_max || self.versions.contains_key(site) {
                self.advance(site.clone(), *version);
            }
        }
    }

    /// The entries of `self` that `other` does not cover: what is news to its holder.
    #[must_use]
    pub fn beyond(&self, other: &Self) -> Self {
        // Looking a site up costs five times as much as passing it, side by side.
        if self.len().saturating_mul(LOOK_UP_COSTS) < other.len() {
            let news = self.iter().filter(|(site, version)| !other.covers(site, *version));
            return news.map(|(site, version)| (site.clone(), version)).collect();
        }
        let mut held = other.versions.iter().peekable();
        let is_news = |(site, version): &(&S, DbVersion)| {
            while held.next_if(|(before, _)| before < site).is_some() {}
            held.next_if(|(same, _)| same == site).is_none_or(|(_, held)| version > held)
        };
        self.iter().filter(is_news).map(|(site, version)| (site.clone(), version)).collect()
    }

    /// The seed's `updateCursor`: moves to the highest version of each change, given as `(site, version)`.
    pub fn update(&mut self, changes: impl IntoIterator<Item = (S, DbVersion)>) {
        for (site, version) in changes {
            self.advance(site, version);
        }
    }

    /// The seed's `filterChanges`: whether a v1 receiver with this cursor keeps a change. Note *≥*: the newest version may
    /// be held in part only (`wire-protocol.md` 1.5).
    pub fn accepts(&self, site: &S, version: DbVersion) -> bool {
        version >= self.get(site)
    }

    /// The seed's `isCursorOlder`: whether `other` knows a site that we do not, or a later version of one that we know.
    pub fn is_older_than(&self, other: &Self) -> bool {
        other.iter().any(|(site, version)| !self.covers(site, version))
    }

    /// The entries, ordered by site.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&S, DbVersion)> {
        self.versions.iter().map(|(site, version)| (site, *version))
    }

    /// How many sites are known.
    pub fn len(&self) -> usize {
        self.versions.len()
    }

    /// Whether no site is known.
    pub fn is_empty(&self) -> bool {
        self.versions.is_empty()
    }
}

impl<S: Ord + Clone> FromIterator<(S, DbVersion)> for Cursor<S> {
    fn from_iter<I: IntoIterator<Item = (S, DbVersion)>>(entries: I) -> Self {
        // Made at once, the tree takes half of the memory.
        let mut entries: Vec<_> = entries.into_iter().collect();
        entries.sort_unstable();
        entries.dedup_by(|(site, version), (before, largest)| {
            let is_again = site == before;
            if is_again {
                *largest = *version;
            }
            is_again
        });
        Self { versions: entries.into_iter().collect() }
    }
}
