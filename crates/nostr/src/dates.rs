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
pub fn is_ahead(date: Timestamp, now: Timestamp) -> bool {
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
pub fn of_next(previous: Option<Timestamp>, now: Timestamp) -> Timestamp {
    previous.map_or(now, |previous| previous.max(now))
}

/// The same for what is said again, since relays did not take what the chain ends with. Its date may be the reason.
pub fn of_again(previous: Timestamp, now: Timestamp) -> Timestamp {
    of_refused(previous, now).max(now)
}

/// From when on relays are asked for what follows the last event: a stream whose head is of the future may go on before that.
pub(crate) fn since(head_at: Timestamp, now: Timestamp) -> Timestamp {
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

    #[test]
    fn a_clock_that_was_ahead_is_forgiven_only_where_relays_refused() {
        assert_eq!(of_request(THEN + YEAR, THEN), THEN + YEAR + Duration::from_secs(1));
        assert_eq!(of_request(of_refused(THEN + YEAR, THEN), THEN), THEN + Duration::from_secs(1));
        assert_eq!(of_next(Some(THEN + YEAR), THEN), THEN + YEAR);
        assert_eq!(of_again(THEN + YEAR, THEN), THEN);
    }

    #[test]
    fn clocks_that_hardly_differ_keep_the_order() {
        let soon = THEN + CLOCK_AHEAD_MAX;
        assert_eq!((of_refused(soon, THEN), of_again(soon, THEN)), (soon, soon));
        assert!(is_overtaken(THEN, soon, THEN) && !is_overtaken(THEN, THEN + YEAR, THEN));
    }
}
