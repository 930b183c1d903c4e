//! Which entries of our cursor moved lately: whoever was told the cursor once is told these alone.
//!
//! A cursor names every site that there ever was. If all of it were read and compared for each write, each write would cost more,
//! the more sites there are (`known-failures.md` D12). So a merge that moves entries counts as one more move, in the database and in the
//! transaction of the merge; which entries it moved is kept in memory, of the last merges. What another process moved shows by
//! the count alone: then everybody is told the whole cursor once more.

use std::collections::{BTreeSet, VecDeque};

use litemesh_proto::SiteId;

use crate::core::Core;

/// Most entries that are remembered to have moved, at 24 bytes each. Whoever was told the cursor before these is told all of it.
const MOVES_MAX: usize = 4096;

/// How often the cursor of a database has moved. Zero: before anybody was told it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moves(i64);

impl Moves {
    /// Never told.
    pub const NONE: Self = Self(0);
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

    /// The entries that moved after this one, each once; `None` where that is not known.
    fn after(&self, told: Moves) -> Option<BTreeSet<SiteId>> {
        let is_known = told != Moves::NONE && (self.since..=self.until).contains(&told);
        is_known.then(|| {
            let newest_first = self.moved.iter().rev();
            newest_first.take_while(|(number, _)| *number > told).map(|(_, site)| *site).collect()
        })
    }
}

/// How often the cursor has moved, and which entries did after `told`, where that is known.
pub(crate) fn moved_after(core: &mut Core, told: Moves) -> rusqlite::Result<(Moves, Option<BTreeSet<SiteId>>)> {
    const COUNT: &str = "SELECT value FROM litemesh_meta WHERE key = 'cursor_moves'";
    if !core.has_litemesh_tables {
        return Ok((Moves::NONE, None));
    }
    let now = Moves(core.statement(COUNT)?.query_integer(&[])?.unwrap_or_default());
    core.cursor_moves.follow(now);
    Ok((now, core.cursor_moves.after(told)))
}

/// Counts that the running transaction moved these entries.
pub(crate) fn record_moves(core: &mut Core, sites: &[SiteId]) -> rusqlite::Result<()> {
    const ONE_MORE: &str = "INSERT INTO litemesh_meta (key, value) VALUES ('cursor_moves', 1)
         ON CONFLICT (key) DO UPDATE SET value = value + 1 RETURNING value";
    if sites.is_empty() || !core.has_litemesh_tables {
        return Ok(());
    }
    let number = core.statement(ONE_MORE)?.query_integer(&[])?.unwrap_or_default();
    core.cursor_moves.follow(Moves(number - 1));
    core.cursor_moves.add(Moves(number), sites);
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
        recent.after(Moves(told)).map(Vec::from_iter)
    }

    #[test]
    fn what_moved_is_known_since_somebody_else_moved_anything() {
        let mut recent = RecentMoves::default();
        recent.follow(Moves(6));
        recent.add(Moves(7), &[site(1), site(2)]);
        recent.add(Moves(8), &[site(1)]);
        assert_eq!(after(&recent, 6), Some(vec![site(1), site(2)]));
        assert_eq!(after(&recent, 7), Some(vec![site(1)]));
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
