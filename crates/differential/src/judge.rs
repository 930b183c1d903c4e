//! Judges what is different between the shadow tables of the two engines.

use std::collections::{BTreeMap, BTreeSet};

use crate::Result;
use crate::deviation::Deviation;
use crate::engine::Row;
use crate::program::{About, Statement};
use crate::state::{Clock, TableState, is_same_key};

/// The shadow tables of one table, on both sides.
pub(crate) struct Judge<'a> {
    pub(crate) table: usize,
    /// What both held before the statement.
    pub(crate) before: &'a TableState,
    /// `crsql_db_version()` then.
    pub(crate) version_before: i64,
    pub(crate) ours: &'a TableState,
    pub(crate) original: &'a TableState,
    pub(crate) statement: &'a Statement,
}

/// Clocks by the values of their key rather than by its number.
type Clocks<'a> = BTreeMap<(&'a Row, &'a str), Clock>;

fn clocks(state: &TableState) -> Clocks<'_> {
    let mut clocks = BTreeMap::new();
    for ((key, name), clock) in &state.clocks {
        if let Some(values) = state.keys.get(key) {
            clocks.insert((values, name.as_str()), *clock);
        }
    }
    clocks
}

/// The name of sentinels, as a literal.
pub(crate) const ROW: &str = "'-1'";

impl Judge<'_> {
    /// Which deviations explain what is different. An error where none does.
    pub(crate) fn judge(self) -> Result<Vec<Deviation>> {
        if self.ours == self.original {
            return Ok(Vec::new());
        }
        if self.ours.base != self.original.base {
            return Err("base rows differ".into());
        }
        let mut found = self.judge_keys()?;
        let (before, ours, original) = (clocks(self.before), clocks(self.ours), clocks(self.original));
        let mut places: Vec<_> = ours.keys().chain(original.keys()).copied().collect();
        places.sort_unstable();
        places.dedup();
        for place in places {
            let (our, their) = (ours.get(&place).copied(), original.get(&place).copied());
            if our == their {
                continue;
            }
            let Some(deviation) = self.explain_clock(place, &before, &ours, our, their) else {
                return Err(format!("clock of {place:?}: ours {our:?}, original {their:?}").into());
            };
            found.push(deviation);
        }
        Ok(found)
    }

    /// MRG-5 and VER-6: CRSqlite keeps keys of changes that were ignored, and of rows that were not changed.
    fn judge_keys(&self) -> Result<Vec<Deviation>> {
        let mut found = Vec::new();
        let ours: BTreeMap<&Row, i64> = self.ours.keys.iter().map(|(key, values)| (values, *key)).collect();
        let mut last = i64::MIN;
        for (key, values) in &self.original.keys {
            if let Some(our) = ours.get(values) {
                if *our > last {
                    last = *our;
                    continue;
                }
                found.push(match &self.statement.about {
                    // A change that was ignored has numbered the row for a later one of the statement.
                    About::Merge(_) if !self.before.keys.contains_key(key) => Deviation::IgnoredKeys,
                    About::Refound { table } | About::Alter { table, .. } if *table == self.table => {
                        Deviation::BackfillOrder
                    }
                    _ => return Err("keys are numbered in another order".into()),
                });
                continue;
            }
            let has_clocks = self.original.clocks.keys().any(|(of, _)| of == key);
            let deviation = match &self.statement.about {
                About::Alter { table, .. } if *table == self.table => Some(Deviation::UnreadRows),
                _ if has_clocks => None,
                About::Merge(changes) => changes
                    .iter()
                    .any(|change| change.table == self.table && is_same_key(&change.keys, values))
                    .then_some(Deviation::IgnoredKeys),
                _ => self.statement.sql.contains("UPDATE").then_some(Deviation::IdleVersions),
            };
            found.push(deviation.ok_or_else(|| format!("the key {values:?} is theirs alone"))?);
        }
        let theirs: BTreeSet<&Row> = self.original.keys.values().collect();
        if !ours.keys().all(|values| theirs.contains(values)) {
            return Err("keys are ours alone".into());
        }
        Ok(found)
    }

    /// ALT-5 and ALT-6.
    fn explain_altered(
        &self,
        place: (&Row, &str),
        before: &Clocks<'_>,
        ours: &Clocks<'_>,
        our: Option<Clock>,
        their: Option<Clock>,
    ) -> Option<Deviation> {
        let is_first = |clock: Clock| (clock.col_version, clock.db_version, clock.site) == (1, self.version_before, 0);
        let sentinel = |clocks: &Clocks<'_>| clocks.get(&(place.0, ROW)).map_or(0, |clock| clock.col_version);
        let held = sentinel(before);
        let is_revived = held > 0 && held % 2 == 0 && sentinel(ours) == held + 1;
        match (our, their) {
            // First clocks of what was written while nothing was recorded.
            (None, Some(their)) if is_first(their) => Some(Deviation::UnreadRows),
            (Some(our), Some(their)) if (Clock { seq: 0, ..our }) == (Clock { seq: 0, ..their }) => {
                Some(Deviation::BackfillOrder)
            }
            // It counts as inserted: all of its cells do, those that were written since, too.
            (Some(our), Some(their)) if is_revived && place.1 != ROW => {
                let counted = Clock { col_version: their.col_version + 1, db_version: self.version_before, ..our };
                (our == counted && our.site == 0).then_some(Deviation::RevivedInside)
            }
            (Some(our), None) if is_revived && is_first(our) => Some(Deviation::RevivedInside),
            (Some(our), Some(their)) if is_revived && place.1 == ROW => (their.col_version == held
                && (our.db_version, our.site) == (self.version_before, 0))
                .then_some(Deviation::RevivedInside),
            _ => None,
        }
    }

    fn explain_clock(
        &self,
        place: (&Row, &str),
        before: &Clocks<'_>,
        ours: &Clocks<'_>,
        our: Option<Clock>,
        their: Option<Clock>,
    ) -> Option<Deviation> {
        if let About::Alter { table, .. } = &self.statement.about {
            return if *table == self.table { self.explain_altered(place, before, ours, our, their) } else { None };
        }
        let our = our?;
        let held = before.get(&place).map_or(0, |clock| clock.col_version);
        if place.1 == ROW {
            let their = their?;
            let is_else_equal = Clock { col_version: 0, ..our } == Clock { col_version: 0, ..their };
            if let About::Merge(changes) = &self.statement.about
                && let [change] = changes.as_slice()
                && is_else_equal
                && (our.col_version, their.col_version) == (change.causal_length, change.col_version)
            {
                return Some(Deviation::SentinelLength);
            }
            let is_else_equal =
                is_else_equal || Clock { col_version: 0, seq: our.seq, ..their } == Clock { col_version: 0, ..our };
            if is_else_equal
                && held > 0
                && held % 2 == 0
                && (our.col_version, their.col_version) == (held + 2, held + 1)
            {
                return Some(Deviation::EvenLength);
            }
        }
        // VER-7: the version did not fall when the clocks went, so the new ones are above it.
        if let (About::Refound { table }, Some(their)) = (&self.statement.about, their)
            && *table == self.table
            && (our.col_version, our.site) == (their.col_version, their.site)
            && our.db_version >= their.db_version
        {
            let is_order = our.db_version == their.db_version;
            return Some(if is_order { Deviation::BackfillOrder } else { Deviation::VersionFloor });
        }
        let About::Move { table, row } = &self.statement.about else { return None };
        if *table != self.table || our.db_version <= self.version_before || our.site != 0 {
            return None;
        }
        // What is stamped anew before this clock takes numbers from it.
        if their.is_some_and(|their| Clock { seq: our.seq, ..their } == our && their.seq < our.seq) {
            return Some(Deviation::MovedCells);
        }
        let sentinel = ours.get(&(place.0, ROW))?;
        if place.1 == ROW || sentinel.db_version != our.db_version {
            return None;
        }
        let their_version = their.map_or(0, |their| their.col_version);
        let is_right = match row {
            Some((from, to)) if is_same_key(to, place.0) => {
                let version = |clock: Option<Clock>| clock.map_or(0, |clock| clock.col_version);
                let moved = before
                    .iter()
                    .find(|((values, name), _)| *name == place.1 && is_same_key(values, from))
                    .map(|(_, clock)| *clock);
                // With recursive triggers a row that is overwritten is deleted first, with its clocks.
                [before.get(&place).copied(), None].iter().any(|held| {
                    // Written by the same statement: counted once more by both.
                    let wrote = i64::from(their != moved.or(*held));
                    our.col_version == version(moved).max(version(*held)) + 1 + wrote
                })
            }
            // Of several rows, one may come to where another has just left.
            _ => our.col_version > their_version,
        };
        is_right.then_some(Deviation::MovedCells)
    }
}
