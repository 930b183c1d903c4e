//! What remotes say that they hold, bounded for all sessions of a peer together.
//!
//! A session keeps it, so as to leave out what its remote has. Of sites for which there is no room nothing is kept: the remote is then
//! sent what it has, and merges it to no effect.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use litemesh_proto::Cursor;
use litemesh_proto::limits::CLAIMED_SITES_MAX;

/// How many more sites the remotes of a peer may claim.
#[derive(Clone, Debug)]
pub(crate) struct Room(Arc<AtomicUsize>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(CLAIMED_SITES_MAX)))
    }
}

impl Room {
    /// Takes as much as there is, at most so much.
    fn take(&self, wanted: usize) -> usize {
        let left = self.0.fetch_update(Relaxed, Relaxed, |left| Some(left.saturating_sub(wanted)));
        left.unwrap_or_else(|left| left).min(wanted)
    }
}

/// The claims of one session's remote.
pub(crate) struct Claims {
    room: Room,
    taken: usize,
}

impl Claims {
    pub(crate) fn new(room: Room) -> Self {
        Self { room, taken: 0 }
    }

    /// Everything that the remote claims from now on.
    pub(crate) fn begin(&mut self, claims: Cursor) -> Cursor {
        self.give_back();
        self.taken = self.room.take(claims.len());
        if self.taken == claims.len() {
            return claims;
        }
        claims.iter().take(self.taken).map(|(site, version)| (*site, version)).collect()
    }

    /// More of it.
    pub(crate) fn add(&mut self, known: &mut Cursor, claims: &Cursor) {
        for (site, version) in claims.iter() {
            if !known.contains(site) {
                if self.room.take(1) == 0 {
                    continue;
                }
                self.taken += 1;
            }
            known.advance(*site, version);
        }
    }

    /// What of the claims lies beyond what the remote was told: of the rest it need not be kept that the remote holds it.
    pub(crate) fn beyond(&mut self, claims: &Cursor, told: &Cursor) -> Cursor {
        let beyond = claims.beyond(told);
        let freed = self.taken.saturating_sub(beyond.len());
        self.taken -= freed;
        self.room.0.fetch_add(freed, Relaxed);
        beyond
    }

    fn give_back(&mut self) {
        self.room.0.fetch_add(std::mem::take(&mut self.taken), Relaxed);
    }
}

impl Drop for Claims {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use litemesh_proto::{DbVersion, SiteId};

    use super::*;

    fn cursor(sites: std::ops::Range<u8>, version: i64) -> Cursor {
        sites.map(|site| (SiteId::from_bytes([site; 16]), DbVersion::new(version))).collect()
    }

    #[test]
    fn all_sessions_share_the_room_and_give_it_back() {
        let room = Room(Arc::new(AtomicUsize::new(10)));
        let (mut one, mut other) = (Claims::new(room.clone()), Claims::new(room.clone()));
        let mut held = one.begin(cursor(0..6, 1));
        let mut others = other.begin(cursor(0..6, 1));
        assert_eq!((held.len(), others.len()), (6, 4));
        // What is known moves on, and nothing is added.
        one.add(&mut held, &cursor(0..9, 2));
        assert_eq!(held, cursor(0..6, 2));
        drop(one);
        other.add(&mut others, &cursor(3..9, 3));
        assert_eq!(others.len(), 9);
        assert_eq!(other.begin(cursor(0..2, 1)).len(), 2);
        drop(other);
        assert_eq!(room.0.load(Relaxed), 10);
    }

    #[test]
    fn what_the_remote_was_told_takes_no_room() {
        let room = Room(Arc::new(AtomicUsize::new(10)));
        let mut claims = Claims::new(room.clone());
        let held = claims.begin(cursor(0..8, 2));
        let mut told = cursor(2..9, 2);
        told.advance(SiteId::from_bytes([0; 16]), DbVersion::new(1));
        let mut held = claims.beyond(&held, &told);
        assert_eq!((&held, room.0.load(Relaxed)), (&cursor(0..2, 2), 8));
        claims.add(&mut held, &cursor(3..5, 3));
        assert_eq!((held.len(), room.0.load(Relaxed)), (4, 6));
        drop(claims);
        assert_eq!(room.0.load(Relaxed), 10);
    }
}
