//! Looks for events of a stream that did not come by themselves.
//!
//! Relays answer with the newest first, and with so many at most; a stream is read from its oldest on. So each event is asked for by the
//! one before it, and where one after another has to be, a page of what came within some time after it, too. That time is lengthened
//! and shortened so that a page is about as much as may wait.

use std::time::Duration;

use nostr::{Alphabet, Event, EventId, Filter, SingleLetterTag, Timestamp};

use crate::chain::WAITING_BYTES_MAX;
use crate::link::Ends;
use crate::relays::Fetched;
use crate::{CHANGES_KIND, ChangesTags, StreamId, filter};

/// Events of a page, and about how many bytes of content: as many as may wait in a chain. What is longer would be downloaded again and again.
const PAGE: usize = 128;
const PAGE_BYTES: usize = WAITING_BYTES_MAX;

/// Events that are followed backwards to the first one: more than relays take of one author in a second.
const BACKWARDS_MAX: usize = 2_000;

/// The longest time that a page is asked for, in seconds: a day. Relays cut off longer answers, each at a length of its own.
const WINDOW_SECONDS_MAX: u64 = 24 * 60 * 60;

/// How much is asked for at once.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    /// The last search found something, too.
    is_behind: bool,
    /// In seconds.
    window: u64,
    /// Of this second alone there are more events than make a page. The newest come first, so others of that second find no next one.
    crowded: Option<Timestamp>,
}

pub(crate) struct Found {
    pub(crate) events: Vec<Event>,
    /// A relay has answered: what is not there it does not have.
    pub(crate) is_answered: bool,
    /// For the next search.
    pub(crate) pace: Pace,
}

impl Pace {
    pub(crate) const START: Self = Self { is_behind: false, window: 4, crowded: None };

    /// Whether a page of what came from this time on may be of use.
    fn wants_page(self, since: Timestamp) -> bool {
        self.is_behind && self.crowded != Some(since)
    }

    /// A page of what came from this time on, of `page` events at most, had so many.
    fn after(self, since: Timestamp, count: usize, page: usize) -> Self {
        let crowded = (count >= page && self.window == 0).then_some(since);
        let window = match count {
            count if count >= page => self.window / 2,
            count if count < page / 2 => (self.window * 2).clamp(1, WINDOW_SECONDS_MAX),
            _ => self.window,
        };
        Self { is_behind: true, window, crowded }
    }
}

/// What relays have of the events after the head, or of the first ones of the stream: the next one, where one of them has it, and perhaps
/// others.
pub(crate) async fn find_next(
    ends: &Ends,
    stream: &StreamId,
    head: Option<EventId>,
    pace: Pace,
    patience: Duration,
) -> Found {
    let Some(head) = head else {
        let Fetched { events, is_answered, .. } = find_first(ends, stream, patience).await;
        return Found { pace: Pace { is_behind: !events.is_empty(), ..pace }, events, is_answered };
    };
    let is_next = |event: &Event| follows(ends, stream, event, Some(head));
    let of_stream = of_stream(ends, stream);
    let has_next = |events: &[Event]| events.iter().any(is_next);
    let Fetched { mut events, is_answered, .. } =
        ends.relays.fetch(of_stream.clone().event(head), 4, patience, has_next).await;
    let Some(next) = events.iter().find(|event| is_next(event)) else {
        return Found { events, is_answered, pace: Pace { is_behind: false, ..pace } };
    };
    let since = next.created_at;
    let mut next_pace = Pace { is_behind: true, ..pace };
    if pace.wants_page(since) {
        // The others are as long as the next one, mostly.
        let limit = (PAGE_BYTES / next.content.len().max(1)).clamp(2, PAGE);
        let page = of_stream.since(since).until(since + pace.window);
        let page = ends.relays.fetch(page, limit, patience, |events| events.len() > 1).await;
        next_pace = next_pace.after(since, page.events.len(), limit);
        events.extend(page.events);
    }
    Found { events, is_answered, pace: next_pace }
}

/// The first event has no tag to be found by, and may be older than what a relay sends: then it is the oldest.
async fn find_first(ends: &Ends, stream: &StreamId, patience: Duration) -> Fetched {
    let of_stream = of_stream(ends, stream);
    let is_first = |event: &Event| follows(ends, stream, event, None);
    let has_first = |events: &[Event]| events.iter().any(is_first);
    let newest = ends.relays.fetch(of_stream.clone(), filter::CHANGES_PAGE, patience, has_first).await;
    let Some(oldest) = newest.events.iter().map(|event| event.created_at).min() else { return newest };
    if has_first(&newest.events) || !newest.is_full {
        return newest;
    }
    let (mut low, mut high) = (0, oldest.as_secs());
    while low < high {
        let middle = low.midpoint(high);
        let until = of_stream.clone().until(Timestamp::from_secs(middle));
        let probe = ends.relays.fetch(until, 1, patience, |events| !events.is_empty()).await;
        match probe.events.iter().map(|event| event.created_at.as_secs()).min() {
            Some(oldest) => high = oldest.min(middle),
            None if probe.is_answered => low = middle + 1,
            None => return Fetched::default(),
        }
    }
    let until = of_stream.clone().until(Timestamp::from_secs(high));
    let mut found = ends.relays.fetch(until, filter::CHANGES_PAGE, patience, has_first).await;
    if has_first(&found.events) {
        return found;
    }
    // There are more of that second. Each names the one before it.
    let mut before =
        found.events.iter().filter_map(previous).find(|id| found.events.iter().all(|event| event.id != *id));
    for _ in 0..BACKWARDS_MAX {
        let Some(id) = before else { break };
        let is_it = |event: &Event| event.id == id;
        let fetched = ends.relays.fetch(Filter::new().id(id), 1, patience, |events| events.iter().any(is_it)).await;
        let Some(event) = fetched.events.into_iter().find(is_it) else { break };
        before = previous(&event);
        if is_first(&event) {
            found.events = vec![event];
            break;
        }
    }
    found
}

fn of_stream(ends: &Ends, stream: &StreamId) -> Filter {
    let stream_tag = SingleLetterTag::lowercase(Alphabet::R);
    Filter::new().kind(CHANGES_KIND).author(ends.pairing.peer_key).custom_tag(stream_tag, stream.as_str())
}

fn follows(ends: &Ends, stream: &StreamId, event: &Event, head: Option<EventId>) -> bool {
    let tags = ChangesTags::of(event);
    event.pubkey == ends.pairing.peer_key && tags.is_ok_and(|tags| tags.stream_id == *stream && tags.previous == head)
}

fn previous(event: &Event) -> Option<EventId> {
    ChangesTags::of(event).ok().and_then(|tags| tags.previous)
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEN: Timestamp = Timestamp::from_secs(1_000);

    #[test]
    fn pages_are_neither_full_nor_empty_for_long() {
        let mut pace = Pace::START;
        for _ in 0..10 {
            pace = pace.after(THEN, PAGE, PAGE);
        }
        assert_eq!(pace.window, 0);
        for _ in 0..40 {
            pace = pace.after(THEN, 1, PAGE);
        }
        assert_eq!(pace.window, WINDOW_SECONDS_MAX);
        assert_eq!(pace.after(THEN, PAGE / 2, PAGE).window, WINDOW_SECONDS_MAX);
    }

    /// Else each event of it would be found along with the same page, of which nothing can be taken.
    #[test]
    fn of_a_second_with_more_than_a_page_only_one_page_is_read() {
        let mut pace = Pace { is_behind: true, ..Pace::START };
        while pace.window > 0 {
            assert!(pace.wants_page(THEN));
            pace = pace.after(THEN, 10, 10);
        }
        assert!(pace.wants_page(THEN));
        pace = pace.after(THEN, 10, 10);
        assert!(!pace.wants_page(THEN) && pace.wants_page(THEN + 1_u64));
    }
}
