//! Several ways to one remote: which of them stages what comes, and which carries what is written here.
//!
//! A remote that is reached over several transports has a session for each, and asks over each. Once it is up to date over one of them,
//! one way carries what is committed from then on, and over the others nothing is sent: they *stand by*. When that way ends,
//! the best of the next goes on behind what the remote acknowledged over the first, and says so
//! ([`Progress::since`](litemesh_proto::Progress::since)). [`Rank`] says which is better; of equal ones it is the older.
//!
//! A way that carries is left for a better one where that is worth it:
//!
//! - one whose carrier keeps messages, for any other, and at once;
//! - a stream with requests beside it, for one line, in a moment when the remote has acknowledged everything: the first *yields*, which
//!   is that it sends no more, and then the other carries, so that nothing goes twice. Not any more once a line was lost while it
//!   carried and others were there: one that comes and goes would have the last messages sent again with each break;
//! - for one that is equal, never.
//!
//! A way that stands by and whose carrier keeps messages hears, too, how far the remote is meanwhile: its transport remembers that over
//! a restart, which this does not outlive.
//!
//! A wire v1 peer acknowledges nothing, and is sent everything over each of its ways.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use litemesh_proto::{Remote, Served, SiteId, Transport};
use tokio::sync::Notify;

/// All ways of one process, by the id under which the remote's position is kept: ways with other rights are not ways to the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ways(Arc<Mutex<HashMap<SiteId, Weak<Mutex<ToRemote>>>>>);

/// The ways to one remote.
#[derive(Debug, Default)]
struct ToRemote {
    /// In the order in which they came.
    ways: Vec<Seat>,
    /// The way that carries what is written.
    carrier: Option<u64>,
    /// The way that will, as soon as nothing is under way over that.
    successor: Option<u64>,
    /// A line was lost while it carried, and another way took its place.
    has_lost_line: bool,
    /// How far the remote is, by the way that carries.
    served: Served,
    /// The way whose session stages what comes of the remote.
    ///
    /// Each way is sent what one of *its* pages says; a chain of messages of both could lack what was written between two pages, and
    /// be completed by the session that does not know of it.
    stages: Option<u64>,
    /// Ways that there ever were.
    count: u64,
}

/// How good a way is, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// One line that goes both ways.
    Line,
    /// What comes and what goes are apart ([`Transport::is_duplex`]).
    Split,
    /// The carrier keeps messages for who is away ([`Transport::keeps_messages`]): over the others the remote is known to listen.
    Kept,
}

impl Rank {
    pub(crate) fn of(transport: &dyn Transport, remote: Remote) -> Self {
        if transport.keeps_messages() {
            Self::Kept
        } else if transport.is_duplex(remote) {
            Self::Line
        } else {
            Self::Split
        }
    }
}

/// One way, as the others see it.
#[derive(Debug)]
struct Seat {
    number: u64,
    rank: Rank,
    is_served: bool,
    /// What its session was told last. One that does not know that it carries has not gone on where another one ended.
    role: Role,
    /// How far it was told that the remote is.
    told: Served,
    news: Arc<Notify>,
}

/// What a way is for, as far as what is written here goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// The remote is up to date over none.
    Open,
    Carries,
    /// Another one will carry once nothing is under way over this.
    Yields,
    StandsBy,
}

/// The way of one session. Gone with it.
#[derive(Clone, Debug)]
pub(crate) struct Way(Arc<Held>);

#[derive(Debug)]
struct Held {
    remote: Arc<Mutex<ToRemote>>,
    number: u64,
    news: Arc<Notify>,
}

/// What a session has to know of the other ways to its remote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Another way carries what is written, or is about to.
    pub(crate) stands_by: bool,
    /// How far the remote is, by whichever way carried.
    pub(crate) served: Served,
}

impl Ways {
    /// A further way to a remote.
    pub(crate) fn add(&self, remote: SiteId, rank: Rank) -> Way {
        let mut remotes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those of remotes that are gone.
        if remotes.len() == remotes.capacity() {
            remotes.retain(|_, remote| remote.strong_count() > 0);
        }
        let known = remotes.get(&remote).and_then(Weak::upgrade);
        let remote = known.unwrap_or_else(|| {
            let new = Arc::default();
            remotes.insert(remote, Arc::downgrade(&new));
            new
        });
        let news = Arc::new(Notify::new());
        let number = {
            let mut remote = lock(&remote);
            remote.count += 1;
            let number = remote.count;
            let (role, told) = (Role::Open, Served::default());
            remote.ways.push(Seat { number, rank, is_served: false, role, told, news: news.clone() });
            number
        };
        if lock(&remote).carrier.is_some() {
            news.notify_one();
        }
        Way(Arc::new(Held { remote, number, news }))
    }
}

impl ToRemote {
    fn seat(&self, number: Option<u64>) -> Option<&Seat> {
        self.ways.iter().find(|way| Some(way.number) == number)
    }

    /// Decides which way carries.
    fn settle(&mut self) {
        let served = self.ways.iter().filter(|way| way.is_served);
        let best = served.min_by_key(|way| way.rank).map(|way| (way.number, way.rank));
        let carrier = self.seat(self.carrier).map(|way| (way.number, way.rank));
        (self.carrier, self.successor) = match (carrier, best) {
            (Some((carrier, Rank::Split)), Some((best, Rank::Line))) if !self.has_lost_line => {
                (Some(carrier), Some(best))
            }
            (Some((_, Rank::Kept)), Some((best, Rank::Line | Rank::Split))) | (None, Some((best, _))) => {
                (Some(best), None)
            }
            (Some((carrier, _)), _) => (Some(carrier), None),
            (None, None) => (None, None),
        };
    }

    fn role(&self, number: u64) -> Role {
        match self.carrier {
            None => Role::Open,
            Some(carrier) if carrier != number => Role::StandsBy,
            Some(_) if self.successor.is_some() => Role::Yields,
            Some(_) => Role::Carries,
        }
    }

    /// Whether a way that stands by does not know how far the remote is, and its transport has to remember that.
    fn is_behind(&self, way: &Seat) -> bool {
        way.rank == Rank::Kept && way.told != self.served && self.role(way.number) == Role::StandsBy
    }

    fn remove(&mut self, number: u64) {
        let is_line = self.seat(Some(number)).is_some_and(|way| way.rank == Rank::Line);
        if is_line && self.carrier == Some(number) {
            self.has_lost_line |= self.ways.iter().any(|way| way.is_served && way.number != number);
        }
        self.change(|remote| remote.ways.retain(|way| way.number != number));
    }

    /// Does this, and tells the ways for which that changed something.
    fn change(&mut self, change: impl FnOnce(&mut Self)) {
        let before = (self.carrier, self.successor);
        change(self);
        self.settle();
        if (self.carrier, self.successor) != before {
            self.ways.iter().for_each(|way| way.news.notify_one());
        }
    }
}

impl Way {
    /// The remote is this far over this way. `rests`: nothing is under way to it, nor will be while the way stands by.
    pub(crate) fn report(&self, served: Served, rests: bool) {
        let mut remote = lock(&self.0.remote);
        let number = self.0.number;
        remote.change(|remote| {
            if let Some(seat) = remote.ways.iter_mut().find(|way| way.number == number) {
                seat.is_served = true;
            }
        });
        // What its session was told. One that does not know of it goes by what it was before.
        let told = remote.seat(Some(number)).map(|seat| seat.role);
        let (is_carrier, role) = (remote.carrier == Some(number), remote.role(number));
        // An answer that begins anew says nothing of what was acknowledged before.
        if is_carrier
            && matches!(told, Some(Role::Carries | Role::Yields))
            && served != Served::default()
            && served != remote.served
        {
            remote.served = served;
            remote.ways.iter().filter(|way| remote.is_behind(way)).for_each(|way| way.news.notify_one());
        }
        if rests && role == Role::Yields && told == Some(role) {
            remote.change(|remote| remote.carrier = remote.successor);
        }
    }

    /// What its session goes by from now on.
    pub(crate) fn standing(&self) -> Standing {
        let mut remote = lock(&self.0.remote);
        let (role, served) = (remote.role(self.0.number), remote.served);
        for way in remote.ways.iter_mut().filter(|way| way.number == self.0.number) {
            (way.role, way.told) = (role, served);
        }
        Standing { stands_by: matches!(role, Role::StandsBy | Role::Yields), served }
    }

    /// Its session has ended. What it ordered may still be under way.
    pub(crate) fn end(&self) {
        lock(&self.0.remote).remove(self.0.number);
    }

    /// Whether the [standing](Self::standing) is another than its session goes by.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn has_news(&self) -> bool {
        let remote = lock(&self.0.remote);
        let role = remote.role(self.0.number);
        let mut ways = remote.ways.iter().filter(|way| way.number == self.0.number);
        ways.any(|way| way.role != role || remote.is_behind(way))
    }

    /// Resolves when the [standing](Self::standing) may be another. Dropping this loses nothing.
    pub(crate) async fn changed(&self) {
        self.0.news.notified().await;
    }

    /// Takes the chain of what is staged of the remote, unless another way has it that is not worse.
    ///
    /// A better one takes it away: a carrier that keeps messages may never bring the rest.
    pub(crate) fn claim_stage(&self) -> bool {
        let mut remote = lock(&self.0.remote);
        let keeps = |number: u64| remote.seat(Some(number)).map(|way| way.rank == Rank::Kept);
        let is_another = |owner: &u64| *owner != self.0.number;
        let may_take = match remote.stages.filter(is_another).and_then(keeps) {
            Some(owner_keeps) => owner_keeps && keeps(self.0.number) == Some(false),
            None => true,
        };
        if may_take {
            remote.stages = Some(self.0.number);
        }
        may_take
    }

    /// Gives it back: nothing is staged any more.
    pub(crate) fn release_stage(&self) {
        let mut remote = lock(&self.0.remote);
        if remote.stages == Some(self.0.number) {
            remote.stages = None;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut remote = lock(&self.remote);
        if remote.stages == Some(self.number) {
            remote.stages = None;
        }
        remote.remove(self.number);
    }
}

fn lock(remote: &Mutex<ToRemote>) -> MutexGuard<'_, ToRemote> {
    remote.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use litemesh_proto::{DbVersion, Position};

    use super::*;

    const REMOTE: SiteId = SiteId::from_bytes([1; 16]);

    fn served(version: i64) -> Served {
        let reached = Position { version: DbVersion::new(version), ..Position::default() };
        Served { acknowledged: reached, reached }
    }

    fn is_notified(way: &Way) -> bool {
        let mut changed = Box::pin(way.changed());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        changed.as_mut().poll(&mut context).is_ready()
    }

    #[test]
    fn the_best_way_that_is_up_to_date_carries_and_the_others_stand_by() {
        let ways = Ways::default();
        let (relayed, first, second) =
            (ways.add(REMOTE, Rank::Kept), ways.add(REMOTE, Rank::Line), ways.add(REMOTE, Rank::Line));
        let all = [&relayed, &first, &second];
        let stands_by = || all.map(|way| way.standing().stands_by);
        assert_eq!(stands_by(), [false; 3], "nobody carries yet");
        relayed.report(served(1), false);
        assert!(all.into_iter().all(|way| is_notified(way) && way.has_news()));
        assert_eq!(stands_by(), [false, true, true]);
        second.report(served(2), false);
        assert!(all.into_iter().all(is_notified));
        assert_eq!(stands_by(), [true, true, false]);
        first.report(served(3), true);
        assert!(!all.into_iter().any(|way| is_notified(way) || way.has_news()), "an equal one takes nothing away");
        // Only who carries says how far the remote is, and an answer that begins anew says nothing.
        second.report(served(4), false);
        assert!(is_notified(&relayed) && relayed.has_news(), "its transport remembers it");
        assert!(!is_notified(&first) && !first.has_news());
        assert_eq!(relayed.standing(), Standing { stands_by: true, served: served(4) });
        second.report(served(4), false);
        assert!(!is_notified(&relayed) && !relayed.has_news());
        first.report(served(9), false);
        second.report(Served::default(), false);
        assert_eq!(first.standing().served, served(4));
        second.end();
        assert!(is_notified(&first) && first.has_news());
        // It has not gone on where the other ended.
        first.report(served(1), false);
        assert_eq!(first.standing(), Standing { stands_by: false, served: served(4) });
        first.report(served(5), false);
        drop((first, second));
        assert!(is_notified(&relayed));
        assert_eq!(relayed.standing(), Standing { stands_by: false, served: served(5) });
        assert_eq!(ways.add(SiteId::from_bytes([2; 16]), Rank::Line).standing(), Standing::default());
    }

    #[test]
    fn a_line_takes_over_when_nothing_is_under_way() {
        let ways = Ways::default();
        let [split, line, other] = [Rank::Split, Rank::Line, Rank::Line].map(|rank| ways.add(REMOTE, rank));
        let stands_by = || [&split, &line, &other].map(|way| way.standing().stands_by);
        split.report(served(1), true);
        assert_eq!(stands_by(), [false, true, true], "nobody better is up to date");
        line.report(served(1), true);
        assert!(split.has_news() && is_notified(&split));
        split.report(served(2), true);
        assert!(line.standing().stands_by, "the first does not know that it yields, and may send more");
        assert_eq!(stands_by(), [true; 3]);
        other.report(served(9), true);
        split.report(served(3), false);
        assert_eq!(stands_by(), [true; 3], "something is under way");
        split.report(served(4), true);
        assert_eq!(stands_by(), [true, false, true], "of equal ones the older");
        assert_eq!(line.standing().served, served(4));
        split.report(served(9), true);
        assert_eq!((stands_by(), line.standing().served), ([true, false, true], served(4)));
    }

    #[test]
    fn any_direct_way_takes_over_from_a_carrier_that_keeps_messages_and_an_equal_one_does_not() {
        let ways = Ways::default();
        let [first, second, direct] = [Rank::Kept, Rank::Kept, Rank::Split].map(|rank| ways.add(REMOTE, rank));
        let stands_by = || [&first, &second, &direct].map(|way| way.standing().stands_by);
        second.report(served(1), false);
        first.report(served(1), false);
        assert_eq!(stands_by(), [true, false, true]);
        direct.report(served(1), false);
        assert_eq!(stands_by(), [true, true, false], "at once, whatever is under way");
        drop(direct);
        assert!(!first.standing().stands_by, "of equal ones the older");
    }

    #[test]
    fn who_is_lost_before_it_takes_over_changes_nothing() {
        let ways = Ways::default();
        let (split, line) = (ways.add(REMOTE, Rank::Split), ways.add(REMOTE, Rank::Line));
        split.report(served(1), true);
        split.standing();
        line.report(served(1), true);
        assert!(split.standing().stands_by);
        line.end();
        assert!(split.has_news() && !split.standing().stands_by);
        // It never carried, so the next may.
        let next = ways.add(REMOTE, Rank::Line);
        next.report(served(1), true);
        assert!(split.standing().stands_by);
    }

    #[test]
    fn a_line_that_comes_and_goes_takes_over_once() {
        let ways = Ways::default();
        let (split, line) = (ways.add(REMOTE, Rank::Split), ways.add(REMOTE, Rank::Line));
        let take_over = |line: &Way| {
            line.report(served(1), true);
            split.standing();
            split.report(served(1), true);
            !line.standing().stands_by
        };
        split.report(served(1), true);
        assert!(take_over(&line));
        drop(line);
        let line = ways.add(REMOTE, Rank::Line);
        assert!(!take_over(&line) && !split.standing().stands_by);
        // Where the first ends it is the best again, before an older one that is worse.
        let other = ways.add(REMOTE, Rank::Split);
        other.report(served(1), true);
        split.end();
        assert!(!line.standing().stands_by && other.standing().stands_by);
    }

    #[test]
    fn one_way_stages_and_a_better_one_takes_it_away() {
        let ways = Ways::default();
        let (relayed, first) = (ways.add(REMOTE, Rank::Kept), ways.add(REMOTE, Rank::Line));
        let second = ways.add(REMOTE, Rank::Line);
        assert!(relayed.claim_stage() && relayed.claim_stage() && first.claim_stage());
        assert!(!relayed.claim_stage() && !second.claim_stage());
        relayed.release_stage();
        assert!(!second.claim_stage(), "it was another's");
        first.release_stage();
        assert!(second.claim_stage() && !first.claim_stage());
        drop(second);
        assert!(relayed.claim_stage());
    }

    #[test]
    fn remotes_that_are_gone_are_forgotten() {
        let ways = Ways::default();
        for number in 0..=255 {
            ways.add(SiteId::from_bytes([number; 16]), Rank::Line);
        }
        assert!(ways.0.lock().unwrap().len() < 16);
    }
}
