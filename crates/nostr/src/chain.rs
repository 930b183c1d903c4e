//! The order of a stream: each event names the one before it, whatever order relays deliver them in.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod hostile;

use std::collections::{BTreeMap, VecDeque};

use nostr::{Event, EventId, Tag, Timestamp};

use crate::dates;

/// Events that wait for one before them. Others are fetched when it is their turn.
const WAITING_MAX: usize = 256;

/// Events up to the head that are known when they come again: more than a relay sends of one subscription
/// ([`CHANGES_PAGE`](crate::filter::CHANGES_PAGE)).
const PASSED_MAX: usize = 1024;

/// Bytes of events that wait for one before them: five of the longest. More of them would be memory for what relays keep anyway.
pub(crate) const WAITING_BYTES_MAX: usize = 8 << 20;

/// The events of one stream behind its head, in the order of the chain.
pub struct Chain {
    head: Option<EventId>,
    head_at: Timestamp,
    /// By the event before each; `None` for the first of a stream.
    waiting: BTreeMap<Option<EventId>, Event>,
    bytes: usize,
    /// Events up to the head, and the event before each.
    passed: VecDeque<(Option<EventId>, EventId)>,
}

/// Two events follow the same one: their author has forgotten the first, which its receiver may have, and what follows the second does
/// not follow the first.
#[derive(Debug, PartialEq, Eq)]
pub struct Forked;

impl Chain {
    /// A chain that goes on after this event, which is of this time.
    pub fn after(head: Option<EventId>, head_at: Timestamp) -> Self {
        Self { head, head_at, waiting: BTreeMap::new(), bytes: 0, passed: VecDeque::new() }
    }

    /// The last event that was taken.
    pub fn head(&self) -> Option<EventId> {
        self.head
    }

    /// Whether the event after the head is there.
    pub fn has_next(&self) -> bool {
        self.waiting.contains_key(&self.head)
    }

    /// Whether events wait for one that did not come.
    pub fn has_gap(&self) -> bool {
        !self.waiting.is_empty() && !self.has_next()
    }

    /// An event of the stream came, signed by its author, and follows `previous`. One for which there is no room is left out.
    ///
    /// What follows a head that is of the future may be dated before it, but not before `now`.
    pub fn offer(&mut self, previous: Option<EventId>, event: Event, now: Timestamp) -> Result<(), Forked> {
        if self.is_known(event.id) {
            self.pass(previous, event.id);
            return Ok(());
        }
        let taken = self.passed.iter().any(|(known, _)| *known == previous);
        let is_another = self.waiting.get(&previous).is_some_and(|waiting| waiting.id != event.id);
        // The author never dates an event before the one that it follows, unless that was of the future.
        let is_first_again = previous.is_none() && self.head.is_some();
        if taken || is_another || is_first_again && event.created_at > self.head_at {
            return Err(Forked);
        }
        let is_next = previous == self.head;
        if !is_next && (is_first_again || event.created_at < dates::since(self.head_at, now)) {
            return Ok(());
        }
        // The next one is always taken, so that those that wait cannot keep it out.
        if !self.waiting.contains_key(&previous) && (is_next || self.make_room(&event)) {
            self.bytes += held_bytes(&event);
            self.waiting.insert(previous, event);
        }
        Ok(())
    }

    /// Takes the event after the head, which it becomes.
    pub fn next(&mut self, now: Timestamp) -> Option<Event> {
        let event = self.waiting.remove(&self.head)?;
        self.bytes -= held_bytes(&event);
        self.remember(self.head, event.id);
        (self.head, self.head_at) = (Some(event.id), event.created_at);
        self.leave_behind(now);
        Some(event)
    }

    /// What is dated before the head and is not next came again, from before it. What follows it is let in no more, and nothing would
    /// tell that it has passed.
    fn leave_behind(&mut self, now: Timestamp) {
        let Self { head, head_at, waiting, bytes, .. } = self;
        let since = dates::since(*head_at, now);
        waiting.retain(|previous, event| {
            let may_come = previous == head || event.created_at >= since;
            if !may_come {
                *bytes -= held_bytes(event);
            }
            may_come
        });
    }

    /// Gives up later events for this one, whose turn comes sooner: relays send the newest first. Says whether there is room.
    fn make_room(&mut self, event: &Event) -> bool {
        let bytes = held_bytes(event);
        while self.waiting.len() >= WAITING_MAX || self.bytes + bytes > WAITING_BYTES_MAX {
            let latest = self.waiting.iter().max_by_key(|(_, waiting)| waiting.created_at);
            let latest = latest.filter(|(_, waiting)| waiting.created_at > event.created_at).map(|(key, _)| *key);
            let Some(given_up) = latest.and_then(|key| self.waiting.remove(&key)) else { return false };
            self.bytes -= held_bytes(&given_up);
        }
        true
    }

    /// Whether it is the head or an event before it.
    fn is_known(&self, id: EventId) -> bool {
        self.head == Some(id) || self.passed.iter().any(|(previous, known)| *known == id || *previous == Some(id))
    }

    /// An event up to the head follows this one, which with all before it is therefore known, too. After a restart nothing else says so:
    /// relays are asked for what came since the second of the head, and begin with the head itself.
    fn pass(&mut self, mut previous: Option<EventId>, mut id: EventId) {
        loop {
            self.remember(previous, id);
            let before = self.waiting.iter().find(|(_, event)| Some(event.id) == previous);
            let Some(key) = before.map(|(key, _)| *key) else { return };
            if let (Some(event), Some(known)) = (self.waiting.remove(&key), previous) {
                self.bytes -= held_bytes(&event);
                (previous, id) = (key, known);
            }
        }
    }

    fn remember(&mut self, previous: Option<EventId>, id: EventId) {
        if self.passed.iter().any(|(_, known)| *known == id) {
            return;
        }
        self.passed.push_back((previous, id));
        if self.passed.len() > PASSED_MAX {
            self.passed.pop_front();
        }
    }
}

/// Bytes of an event: its author may write as much into tags as into the content.
fn held_bytes(event: &Event) -> usize {
    let words = event.tags.iter().flat_map(Tag::as_slice);
    event.content.len() + words.map(|word| size_of::<String>() + word.len()).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use nostr::{EventBuilder, Keys, Kind};

    use super::*;

    const THEN: Timestamp = Timestamp::from_secs(1_000);
    const NOW: Timestamp = Timestamp::from_secs(2_000);

    fn events_of(seconds: impl IntoIterator<Item = u64>) -> Vec<Event> {
        let keys = Keys::generate();
        let event = |(number, seconds): (usize, u64)| {
            let event = EventBuilder::new(Kind::Custom(4680), format!("{number}"));
            event.custom_created_at(Timestamp::from_secs(seconds)).sign_with_keys(&keys).unwrap()
        };
        seconds.into_iter().enumerate().map(event).collect()
    }

    fn events(count: usize) -> Vec<Event> {
        events_of(std::iter::repeat_n(THEN.as_secs(), count))
    }

    fn begun() -> Chain {
        Chain::after(None, Timestamp::from_secs(0))
    }

    #[test]
    fn events_are_taken_in_the_order_of_the_chain() {
        let events = events(4);
        let mut chain = begun();
        for index in [2, 1, 3, 2] {
            chain.offer(Some(events[index - 1].id), events[index].clone(), NOW).unwrap();
        }
        assert!(chain.has_gap() && !chain.has_next() && chain.next(NOW).is_none());
        chain.offer(None, events[0].clone(), NOW).unwrap();
        assert!(chain.has_next() && !chain.has_gap());
        let taken: Vec<EventId> = std::iter::from_fn(|| chain.next(NOW)).map(|event| event.id).collect();
        assert_eq!(taken, events.iter().map(|event| event.id).collect::<Vec<_>>());
        assert!(!chain.has_gap() && chain.bytes == 0);
        assert_eq!(chain.head(), Some(events[3].id));
    }

    /// Else a relay could fill the room with events that nothing leads to (`known-failures.md` B9).
    #[test]
    fn what_waits_is_bounded_and_does_not_keep_out_the_next() {
        let events = events(WAITING_MAX + 3);
        let mut chain = Chain::after(Some(events[0].id), THEN);
        for pair in events[1..].windows(2) {
            chain.offer(Some(pair[0].id), pair[1].clone(), NOW).unwrap();
        }
        assert_eq!(chain.waiting.len(), WAITING_MAX);
        chain.offer(Some(events[0].id), events[1].clone(), NOW).unwrap();
        let taken = std::iter::from_fn(|| chain.next(NOW)).count();
        assert_eq!(taken, WAITING_MAX + 1);
    }

    #[test]
    fn what_comes_sooner_takes_the_place_of_what_comes_later() {
        let events = events_of((0..).take(2 * WAITING_MAX));
        let mut chain = Chain::after(Some(events[0].id), events[0].created_at);
        // The newest first, and not the next.
        for pair in events[1..].windows(2).rev() {
            chain.offer(Some(pair[0].id), pair[1].clone(), NOW).unwrap();
        }
        assert_eq!(chain.waiting.len(), WAITING_MAX);
        chain.offer(Some(events[0].id), events[1].clone(), NOW).unwrap();
        assert_eq!(std::iter::from_fn(|| chain.next(NOW)).count(), WAITING_MAX + 1);
        assert_eq!(chain.bytes, 0);
    }

    /// A sender that was killed may have forgotten an event that it had published, and publish another in its place.
    #[test]
    fn two_events_that_follow_the_same_one_are_a_fork() {
        let events = events(4);
        let mut chain = begun();
        chain.offer(None, events[0].clone(), NOW).unwrap();
        assert_eq!(chain.offer(None, events[1].clone(), NOW), Err(Forked));
        assert_eq!(chain.next(NOW).map(|event| event.id), Some(events[0].id));
        chain.offer(Some(events[0].id), events[2].clone(), NOW).unwrap();
        assert!(chain.next(NOW).is_some());
        for (previous, event) in [(None, &events[0]), (Some(events[0].id), &events[2])] {
            assert_eq!(chain.offer(previous, event.clone(), NOW), Ok(()), "they are only repeated");
        }
        assert_eq!(chain.offer(Some(events[0].id), events[3].clone(), NOW), Err(Forked));
        assert_eq!(chain.offer(None, events[1].clone(), NOW), Err(Forked));
        assert!(chain.next(NOW).is_none() && !chain.has_gap() && chain.bytes == 0);
    }

    /// Relays are asked for what came since the second of the head: that is the head, and what came before it within that second.
    #[test]
    fn what_comes_again_after_a_restart_is_no_gap() {
        let events = events_of([1, 2, 2, 2, 3]);
        for order in [[0_usize, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 1, 3, 0]] {
            let mut chain = Chain::after(Some(events[3].id), events[3].created_at);
            for index in order {
                let previous = index.checked_sub(1).map(|before| events[before].id);
                chain.offer(previous, events[index].clone(), NOW).unwrap();
            }
            assert!(!chain.has_gap() && chain.next(NOW).is_none(), "{order:?}");
            assert_eq!(chain.bytes, 0);
            chain.offer(Some(events[3].id), events[4].clone(), NOW).unwrap();
            assert!(chain.next(NOW).is_some());
        }
    }

    /// Relays send what is newest first, and what is of one second in any order.
    #[test]
    fn what_comes_again_while_the_stream_goes_on_is_no_gap() {
        let events = events_of([1, 2, 2, 2, 3]);
        let mut chain = Chain::after(Some(events[3].id), events[3].created_at);
        chain.offer(Some(events[3].id), events[4].clone(), NOW).unwrap();
        chain.offer(Some(events[0].id), events[1].clone(), NOW).unwrap();
        assert!(chain.next(NOW).is_some());
        for index in [2, 3] {
            chain.offer(Some(events[index - 1].id), events[index].clone(), NOW).unwrap();
        }
        assert!(!chain.has_gap() && chain.bytes == 0);
    }

    /// Its author has lost what it knew of the stream, and begins it again.
    #[test]
    fn a_stream_that_begins_again_is_forked() {
        let events = events_of([1, 2, 3]);
        let mut chain = Chain::after(Some(events[1].id), events[1].created_at);
        assert_eq!(chain.offer(None, events[0].clone(), NOW), Ok(()), "the first one comes again");
        assert_eq!(chain.offer(None, events[2].clone(), NOW), Err(Forked));
    }

    /// What its author says in tags takes room, too.
    #[test]
    fn long_tags_are_bounded_like_long_contents() {
        let keys = Keys::generate();
        let event = |number: u64| {
            let tags = (0..40).map(|_| Tag::parse(["x".to_owned(), "x".repeat(20_000)]).unwrap());
            let event = EventBuilder::new(Kind::Custom(4680), "").tags(tags);
            event.custom_created_at(Timestamp::from_secs(number)).sign_with_keys(&keys).unwrap()
        };
        let events: Vec<Event> = (0..14).map(event).collect();
        let mut chain = Chain::after(Some(events[0].id), events[0].created_at);
        for pair in events[1..].windows(2) {
            chain.offer(Some(pair[0].id), pair[1].clone(), NOW).unwrap();
            assert!(chain.bytes <= WAITING_BYTES_MAX);
        }
        assert_eq!(chain.waiting.len(), 10);
    }

    /// A clock that was ahead is right again.
    #[test]
    fn what_follows_a_head_of_the_future_shows_that_something_is_missing() {
        let events = events_of([1_000, 900_000, 900_001, 2_000]);
        for (now, has_gap) in [(NOW, true), (Timestamp::from_secs(900_002), false)] {
            let mut chain = Chain::after(Some(events[1].id), events[1].created_at);
            chain.offer(Some(events[2].id), events[3].clone(), now).unwrap();
            assert_eq!(chain.has_gap(), has_gap);
            chain.offer(Some(events[1].id), events[2].clone(), now).unwrap();
            assert!(chain.next(now).is_some());
            assert_eq!(chain.next(now).is_some(), has_gap);
        }
    }
}
