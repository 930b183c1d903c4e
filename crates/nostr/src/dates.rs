//! What events are dated, and what dates say. Clocks differ, and any may have been wrong for a while: relays take little of the future, and
//! what is dated there holds up what follows it until that future has come.
//!
//! Pure: the clock is an argument, so that the simulation of `litemesh-testkit` can have clocks that jump.

use std::time::Duration;

use nostr::Timestamp;

/// How far ahead of our clock something may be dated, until it is taken for the work of a clock that was wrong: clocks that somebody sets are
/// closer.
pub(crate) const CLOCK_AHEAD_MAX: Duration = Duration::from_secs(60);

/// Whether a clock was wrong when this date was made, or ours is now.
pub(crate) fn is_ahead(date: Timestamp, now: Timestamp) -> bool {
    date > now + CLOCK_AHEAD_MAX
}

/// Of a request after another one: relays keep the latest, and of two of one second either.
pub fn of_request(last: Timestamp, now: Timestamp) -> Timestamp {
    now.max(last + Duration::from_secs(1))
}

/// What counts as the date of the last request once relays have not taken it. Where one has a later request all the same, a look finds
/// that.
pub fn of_refused(last: Timestamp, now: Timestamp) -> Timestamp {
    if is_ahead(last, now) { now } else { last }
}

/// Of an event of a stream: never before that of the one before it.
pub(crate) fn of_next(previous: Option<Timestamp>, now: Timestamp) -> Timestamp {
    previous.map_or(now, |previous| previous.max(now))
}

/// The same for what is said again, or next, since relays did not take what the chain ends with: its date may be the reason. What they
/// took last is of `taken`. They take that date again, and before it no receiver looks, whatever our clock says.
pub fn of_again(previous: Timestamp, taken: Timestamp, now: Timestamp) -> Timestamp {
    of_refused(previous, now).max(taken).max(now)
}

/// From when on relays are asked for what follows the last event: a stream whose head is of the future may go on before that.
pub fn since(head_at: Timestamp, now: Timestamp) -> Timestamp {
    head_at.min(now)
}

/// Whether a request is older than one that was heard. Of one of the future nobody can tell what is older.
pub fn is_overtaken(asked_at: Timestamp, heard: Timestamp, now: Timestamp) -> bool {
    asked_at < heard && !is_ahead(heard, now)
}

/// Whether relays may have forgotten what follows the head: then its absence says nothing.
pub fn is_old(head_at: Timestamp, asked_at: Timestamp, lifetime: Duration, now: Timestamp) -> bool {
    // A part of it is left for clocks that differ.
    now > head_at.max(asked_at) + (lifetime - lifetime / 7)
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEN: Timestamp = Timestamp::from_secs(1_000_000);
    const YEAR: Duration = Duration::from_secs(31_536_000);

    /// `known-failures.md` B11: of two requests of one second relays may keep the older one.
    #[test]
    fn each_request_is_later_than_the_one_before_it() {
        let second = Duration::from_secs(1);
        let dates = [THEN, THEN, THEN + second, THEN, THEN + YEAR];
        let asked: Vec<Timestamp> = dates
            .iter()
            .scan(THEN, |last, now| {
                *last = of_request(*last, *now);
                Some(*last)
            })
            .collect();
        assert!(asked[0] > THEN && asked.windows(2).all(|pair| pair[0] < pair[1]), "{asked:?}");
        assert_eq!(asked[4], THEN + YEAR, "and no later than need be");
    }

    #[test]
    fn a_clock_that_was_ahead_is_forgiven_only_where_relays_refused() {
        assert_eq!(of_request(THEN + YEAR, THEN), THEN + YEAR + Duration::from_secs(1));
        assert_eq!(of_request(of_refused(THEN + YEAR, THEN), THEN), THEN + Duration::from_secs(1));
        assert_eq!(of_next(Some(THEN + YEAR), THEN), THEN + YEAR);
        assert_eq!(of_again(THEN + YEAR, THEN - YEAR, THEN), THEN);
    }

    /// It was ahead, and is behind now.
    #[test]
    fn what_follows_is_never_before_what_relays_have_taken() {
        assert_eq!(of_again(THEN + YEAR, THEN, THEN - YEAR), THEN);
    }

    #[test]
    fn clocks_that_hardly_differ_keep_the_order() {
        let soon = THEN + CLOCK_AHEAD_MAX;
        assert_eq!((of_refused(soon, THEN), of_again(soon, THEN, THEN)), (soon, soon));
        assert!(is_overtaken(THEN, soon, THEN) && !is_overtaken(THEN, THEN + YEAR, THEN));
    }
}
