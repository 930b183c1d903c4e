//! The order of a stream: each event names the one before it, whatever order relays deliver them in.

use std::collections::{HashMap, VecDeque};

use nostr::{Event, EventId};

/// Events that wait for one before them. Others are fetched when it is their turn.
const WAITING_MAX: usize = 256;

/// Events before the head that are known to be.
const PASSED_MAX: usize = 1024;

/// Bytes of content that wait for an event before them.
const WAITING_BYTES_MAX: usize = 8 << 20;

/// The events of one stream behind its head, in the order of the chain.
pub(crate) struct Chain {
    head: Option<EventId>,
    /// By the event before each; `None` for the first of a stream. Of two that follow the same event the first that came counts.
    waiting: HashMap<Option<EventId>, Event>,
    bytes: usize,
    /// Events before the head. Relays send some of them again.
    passed: VecDeque<EventId>,
}

impl Chain {
    /// A chain that goes on after this event.
    pub(crate) fn after(head: Option<EventId>) -> Self {
        Self { head, waiting: HashMap::new(), bytes: 0, passed: VecDeque::new() }
    }

    /// The last event that was taken.
    pub(crate) fn head(&self) -> Option<EventId> {
        self.head
    }

    /// Whether the event after the head is there.
    pub(crate) fn has_next(&self) -> bool {
        self.waiting.contains_key(&self.head)
    }

    /// Whether events wait for one that did not come.
    pub(crate) fn has_gap(&self) -> bool {
        !self.waiting.is_empty() && !self.has_next()
    }

    /// An event of the stream came, and follows `previous`. One for which there is no room is left out.
    pub(crate) fn offer(&mut self, previous: Option<EventId>, event: Event) {
        if self.head == Some(event.id) || self.passed.contains(&event.id) {
            self.pass(previous);
            return;
        }
        let is_next = previous == self.head;
        // What follows one before the head is a fork.
        if !is_next && previous.is_none_or(|previous| self.passed.contains(&previous)) {
            return;
        }
        // The next one is always taken, so that those that wait cannot keep it out.
        let has_room = self.waiting.len() < WAITING_MAX && self.bytes + event.content.len() <= WAITING_BYTES_MAX;
        if (is_next || has_room) && !self.waiting.contains_key(&previous) {
            self.bytes += event.content.len();
            self.waiting.insert(previous, event);
        }
    }

    /// An event is known to be before the head, and so are those before it.
    fn pass(&mut self, event: Option<EventId>) {
        let mut next = event;
        while let Some(id) = next
            && !self.passed.contains(&id)
        {
            self.passed.push_back(id);
            if self.passed.len() > PASSED_MAX {
                self.passed.pop_front();
            }
            let here = self.waiting.iter().find(|(_, event)| event.id == id).map(|(previous, _)| *previous);
            next = here.and_then(|previous| {
                self.bytes -= self.waiting.remove(&previous)?.content.len();
                previous
            });
        }
    }

    /// Takes the event after the head, which it becomes.
    pub(crate) fn next(&mut self) -> Option<Event> {
        let event = self.waiting.remove(&self.head)?;
        self.bytes -= event.content.len();
        let before = self.head.replace(event.id);
        self.pass(before);
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use nostr::{EventBuilder, Keys, Kind};

    use super::*;

    fn events(count: usize) -> Vec<Event> {
        let keys = Keys::generate();
        let event = |number| EventBuilder::new(Kind::Custom(4680), format!("{number}")).sign_with_keys(&keys).unwrap();
        (0..count).map(event).collect()
    }

    #[test]
    fn events_are_taken_in_the_order_of_the_chain() {
        let events = events(4);
        let mut chain = Chain::after(None);
        for index in [2, 1, 3, 2] {
            chain.offer(Some(events[index - 1].id), events[index].clone());
        }
        assert!(chain.has_gap() && chain.next().is_none());
        chain.offer(None, events[0].clone());
        let taken: Vec<EventId> = std::iter::from_fn(|| chain.next()).map(|event| event.id).collect();
        assert_eq!(taken, events.iter().map(|event| event.id).collect::<Vec<_>>());
        assert!(!chain.has_gap() && chain.bytes == 0);
        assert_eq!(chain.head(), Some(events[3].id));
    }

    /// Else a relay could fill the room with events that nothing leads to.
    #[test]
    fn what_waits_is_bounded_and_does_not_keep_out_the_next() {
        let events = events(WAITING_MAX + 3);
        let mut chain = Chain::after(Some(events[0].id));
        for pair in events[1..].windows(2) {
            chain.offer(Some(pair[0].id), pair[1].clone());
        }
        assert_eq!(chain.waiting.len(), WAITING_MAX);
        chain.offer(Some(events[0].id), events[1].clone());
        let taken = std::iter::from_fn(|| chain.next()).count();
        assert_eq!(taken, WAITING_MAX + 1);
    }

    /// A sender that was killed may have forgotten an event that it had published, and publish another in its place.
    #[test]
    fn of_two_that_follow_the_same_event_the_first_counts() {
        let events = events(4);
        let mut chain = Chain::after(None);
        chain.offer(None, events[0].clone());
        chain.offer(None, events[1].clone());
        assert_eq!(chain.next().map(|event| event.id), Some(events[0].id));
        chain.offer(Some(events[0].id), events[2].clone());
        assert!(chain.next().is_some());
        for (previous, event) in [(None, &events[0]), (None, &events[1]), (Some(events[0].id), &events[3])] {
            chain.offer(previous, event.clone());
        }
        assert!(chain.next().is_none() && !chain.has_gap() && chain.bytes == 0);
    }

    /// After a restart relays send everything again that is as old as the head, the newest first or in any order.
    #[test]
    fn what_is_before_the_head_leaves_no_gap() {
        let events = events(5);
        let previous = |index: usize| index.checked_sub(1).map(|index| events[index].id);
        for order in [[4, 3, 2, 1, 0], [0, 1, 2, 3, 4], [2, 0, 3, 1, 4]] {
            let mut chain = Chain::after(Some(events[3].id));
            for index in order {
                chain.offer(previous(index), events[index].clone());
            }
            assert_eq!(chain.next().map(|event| event.id), Some(events[4].id));
            assert!(!chain.has_gap() && chain.waiting.is_empty() && chain.bytes == 0);
        }
    }
}
