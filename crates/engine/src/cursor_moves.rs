//! Which entries of our cursor moved lately: whoever was told the cursor once is told these alone.
//!
//! A cursor names every site that there ever was. If all of it were read and compared for each write, each write would cost more,
//! the more sites there are (`known-failures.md` D12). So a merge that moves entries counts as one more move, in the database and in the
//! transaction of the merge, and each entry says with which it moved. Those of the last merges are kept in memory, too, so that
//! nobody has to look for them; where another process moved any, which shows by the count, the table is gone through.

use std::collections::{BTreeMap, VecDeque};

use litemesh_proto::SiteId;

use crate::core::Core;

/// Most entries that are remembered to have moved, at 24 bytes each. For who was told the cursor before these the table is gone through.
const MOVES_MAX: usize = 4096;

/// How often the cursor of a database has moved. Zero: before anybody was told it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moves(i64);

impl Moves {
    /// Never told.
    pub const NONE: Self = Self(0);

    pub(crate) fn new(count: i64) -> Self {
        Self(count)
    }

    pub(crate) fn get(self) -> i64 {
        self.0
    }

    /// With one more.
    pub(crate) fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// The moves of this connection that followed each other without one of another process in between.
#[derive(Debug, Default)]
pub(crate) struct RecentMoves {
    /// All moves after this one are here.
    since: Moves,
    until: Moves,
    moved: VecDeque<(Moves, SiteId)>,
}

impl RecentMoves {
    /// Nothing is known any more, as after a rollback.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    /// The count is `now`: where it is not ours, somebody else moved entries.
    fn follow(&mut self, now: Moves) {
        if self.until != now {
            *self = Self { since: now, until: now, moved: VecDeque::new() };
        }
    }

    fn add(&mut self, number: Moves, sites: &[SiteId]) {
        self.until = number;
        self.moved.extend(sites.iter().map(|site| (number, *site)));
        while self.moved.len() > MOVES_MAX {
            // A move is remembered whole, or not at all.
            self.since = self.moved.front().map_or(number, |(first, _)| *first);
            while self.moved.front().is_some_and(|(first, _)| *first <= self.since) {
                self.moved.pop_front();
            }
        }
    }

    /// The entries that moved after this one, and when last; `None` where that is not known.
    fn after(&self, told: Moves) -> Option<BTreeMap<SiteId, Moves>> {
        let is_known = told != Moves::NONE && (self.since..=self.until).contains(&told);
        is_known.then(|| {
            let first = self.moved.partition_point(|(number, _)| *number <= told);
            self.moved.range(first..).map(|(number, site)| (*site, *number)).collect()
        })
    }
}

/// How often the cursor has moved.
pub(crate) fn count(core: &mut Core) -> rusqlite::Result<Moves> {
    const COUNT: &str = "SELECT value FROM litemesh_meta WHERE key = 'cursor_moves'";
    if !core.has_litemesh_tables {
        return Ok(Moves::NONE);
    }
    Ok(Moves(core.statement(COUNT)?.query_integer(&[])?.unwrap_or_default()))
}

/// The entries that moved after `told`, of `now` moves, where that is remembered.
pub(crate) fn remembered(core: &mut Core, told: Moves, now: Moves) -> Option<BTreeMap<SiteId, Moves>> {
    core.cursor_moves.follow(now);
    core.cursor_moves.after(told)
}

/// Counts one more: the running transaction moved these entries.
pub(crate) fn record(core: &mut Core, number: Moves, sites: &[SiteId]) -> rusqlite::Result<()> {
    const COUNT: &str = "INSERT INTO litemesh_meta (key, value) VALUES ('cursor_moves', ?1)
         ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    if sites.is_empty() {
        return Ok(());
    }
    core.statement(COUNT)?.run(&[number.get().into()])?;
    core.cursor_moves.follow(Moves(number.0 - 1));
    core.cursor_moves.add(number, sites);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(number: u16) -> SiteId {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        SiteId::from_bytes(bytes)
    }

    fn after(recent: &RecentMoves, told: i64) -> Option<Vec<SiteId>> {
        recent.after(Moves(told)).map(|moved| moved.into_keys().collect())
    }

    #[test]
    fn what_moved_is_known_since_somebody_else_moved_anything() {
        let mut recent = RecentMoves::default();
        recent.follow(Moves(6));
        recent.add(Moves(7), &[site(1), site(2)]);
        recent.add(Moves(8), &[site(1)]);
        assert_eq!(after(&recent, 6), Some(vec![site(1), site(2)]));
        assert_eq!(after(&recent, 7), Some(vec![site(1)]));
        assert_eq!(recent.after(Moves(6)).unwrap()[&site(1)], Moves(8), "when it moved last");
        assert_eq!(after(&recent, 8), Some(vec![]));
        assert_eq!(after(&recent, 5), None, "moved by somebody else");
        assert_eq!(after(&recent, 9), None, "of another file");
        assert_eq!(after(&recent, 0), None, "never told");
        recent.follow(Moves(9));
        assert_eq!((after(&recent, 8), after(&recent, 9)), (None, Some(vec![])));
        recent.forget();
        recent.follow(Moves(9));
        assert_eq!(after(&recent, 9), Some(vec![]));
    }

    #[test]
    fn old_moves_are_forgotten_whole() {
        let many: Vec<SiteId> = (0..1000).map(site).collect();
        let mut recent = RecentMoves::default();
        for number in 1..=9 {
            recent.add(Moves(number), &many);
            assert!(recent.moved.len() <= MOVES_MAX);
        }
        assert_eq!(after(&recent, 4), None);
        assert_eq!(after(&recent, 5), Some(many));
        recent.add(Moves(10), &vec![site(1); MOVES_MAX + 1]);
        assert_eq!((after(&recent, 9), after(&recent, 10)), (None, Some(vec![])));
    }
}
