//! Events on their way to relays: several at once, in the order of the chain.
//!
//! The chain is the order, so relays may take them in any other. What was refused goes alone until it is taken: what follows it would only
//! show the receiver that something is missing.

use std::collections::VecDeque;

use nostr::{Event, EventId, Timestamp};

use crate::dates;

/// Events that are under way at once: 160 in a second where each takes 100 ms.
pub const WINDOW_MAX: usize = 16;

/// The same to an original. It puts in order what comes in another, and nobody knows for how much of it there is room.
pub const WINDOW_MAX_V1: usize = 8;

/// Bytes of content from which on no other message is begun: whenever one is, all that are under way are stored. As much as as many of
/// the longest events as may be under way, so that it is these that bound what goes over a long line.
const BYTES_MAX: usize = 1 << 20;

/// Events that have to be taken one by one, at most, before several are under way again: some seconds at the pace of a relay that refuses.
const CAUTION_MAX: u32 = 64;

/// How many may be under way at once: one after something was refused, and then one more for each that is taken. Where that comes again
/// before the window is as large as it was, the first events go alone for longer and longer.
#[derive(Clone, Debug)]
pub struct Window {
    size: usize,
    size_max: usize,
    /// Times that something was refused since the window was as large as it may be.
    setbacks: u32,
    /// Events that still have to go alone.
    alone: u32,
}

impl Window {
    /// As large as it may be.
    pub fn new(size_max: usize) -> Self {
        Self { size: size_max, size_max, setbacks: 0, alone: 0 }
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    pub(crate) fn taken(&mut self) {
        if self.alone > 0 {
            self.alone -= 1;
            return;
        }
        self.size = (self.size + 1).min(self.size_max);
        if self.size == self.size_max {
            self.setbacks = 0;
        }
    }

    pub(crate) fn refused(&mut self) {
        // What was under way with the first one is no further setback.
        if self.size > 1 {
            self.setbacks = self.setbacks.saturating_add(1);
            self.alone = match self.setbacks {
                0 | 1 => 0,
                more => 1_u32.checked_shl(more).unwrap_or(CAUTION_MAX).min(CAUTION_MAX),
            };
        }
        self.size = 1;
    }
}

/// What relays are to take, and have not taken yet: whole messages.
pub struct UnderWay<M> {
    messages: VecDeque<Message<M>>,
    window: Window,
    /// How often the first event was refused in a row.
    refusals: u32,
}

struct Message<M> {
    slots: Vec<Slot>,
    /// What its end is reported as.
    name: M,
}

struct Slot {
    event: Event,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Out,
    Refused,
    Taken,
}

impl<M> UnderWay<M> {
    /// `window`: how many events relays took at once last.
    pub fn new(window: Window) -> Self {
        Self { messages: VecDeque::new(), window, refusals: 0 }
    }

    /// How many events relays take at once.
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Behind all others.
    pub fn add(&mut self, events: Vec<Event>, name: M) {
        let slots = events.into_iter().map(|event| Slot { event, phase: Phase::Waiting }).collect();
        self.messages.push_back(Message { slots, name });
    }

    /// Whether relays have taken everything.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Whether another message may be added.
    pub fn has_room(&self) -> bool {
        let bytes: usize = self.events().map(|event| event.content.len()).sum();
        self.slots().filter(|slot| slot.phase != Phase::Taken).count() < self.window.size_max && bytes < BYTES_MAX
    }

    /// The events of all messages that are not finished.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.slots().map(|slot| &slot.event)
    }

    /// Gives up what no relay will take: what has expired, and what a clock has dated that was ahead. The next look finds that it is not
    /// there. Says whether there is any.
    pub fn give_up(&mut self, now: Timestamp) -> bool {
        let mut has_given_up = false;
        for slot in self.slots_mut() {
            let is_refused = slot.phase == Phase::Refused && dates::is_ahead(slot.event.created_at, now);
            let is_expired = matches!(slot.phase, Phase::Waiting | Phase::Refused) && slot.event.is_expired_at(&now);
            if is_refused || is_expired {
                (slot.phase, has_given_up) = (Phase::Taken, true);
            }
        }
        has_given_up
    }

    /// The next event that may go out, which it then is.
    pub fn next_out(&mut self) -> Option<Event> {
        let out = self.count(Phase::Out);
        let (phase, out_max) = match self.count(Phase::Refused) {
            0 => (Phase::Waiting, self.window.size()),
            _ => (Phase::Refused, 1),
        };
        let slot = self.slots_mut().find(|slot| slot.phase == phase).filter(|_| out < out_max)?;
        slot.phase = Phase::Out;
        Some(slot.event.clone())
    }

    /// A relay has taken an event.
    pub fn taken(&mut self, id: EventId) {
        if self.is_first(id) {
            self.refusals = 0;
        }
        self.land(id, Phase::Taken);
        if self.count(Phase::Refused) == 0 {
            self.window.taken();
        }
    }

    /// None has. Gives how often in a row that happened to the first event.
    pub fn refused(&mut self, id: EventId) -> u32 {
        if self.is_first(id) {
            self.refusals = self.refusals.saturating_add(1);
        }
        self.land(id, Phase::Refused);
        self.window.refused();
        self.refusals
    }

    /// The first message, where all of it is taken: its name and its events.
    pub fn finished(&mut self) -> Option<(M, Vec<Event>)> {
        let is_finished = self.messages.front()?.slots.iter().all(|slot| slot.phase == Phase::Taken);
        let message = if is_finished { self.messages.pop_front()? } else { return None };
        Some((message.name, message.slots.into_iter().map(|slot| slot.event).collect()))
    }

    /// Forgets all of it, and not how many relays take at once.
    pub fn clear(&mut self) {
        self.messages.clear();
        self.refusals = 0;
    }

    fn is_first(&self, id: EventId) -> bool {
        self.slots().find(|slot| slot.phase != Phase::Taken).is_some_and(|slot| slot.event.id == id)
    }

    fn land(&mut self, id: EventId, phase: Phase) {
        if let Some(slot) = self.slots_mut().find(|slot| slot.event.id == id) {
            slot.phase = phase;
        }
    }

    fn count(&self, phase: Phase) -> usize {
        self.slots().filter(|slot| slot.phase == phase).count()
    }

    fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.messages.iter().flat_map(|message| &message.slots)
    }

    fn slots_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.messages.iter_mut().flat_map(|message| &mut message.slots)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nostr::{EventBuilder, Keys, Kind, Tag, Timestamp};

    use super::*;

    fn events(count: usize) -> Vec<Event> {
        let keys = Keys::generate();
        let event = |number| EventBuilder::new(Kind::Custom(4680), format!("{number}")).sign_with_keys(&keys).unwrap();
        (0..count).map(event).collect()
    }

    fn out<M>(under_way: &mut UnderWay<M>) -> Vec<EventId> {
        std::iter::from_fn(|| under_way.next_out()).map(|event| event.id).collect()
    }

    fn ids(events: &[Event]) -> Vec<EventId> {
        events.iter().map(|event| event.id).collect()
    }

    #[test]
    fn as_many_as_fit_are_out_and_messages_are_finished_in_their_order() {
        let events = events(6);
        let mut under_way = UnderWay::new(Window::new(4));
        under_way.add(events[..3].to_vec(), "first");
        under_way.add(events[3..].to_vec(), "second");
        under_way.add(Vec::new(), "nothing");
        assert_eq!(out(&mut under_way), ids(&events[..4]));
        assert!(!under_way.has_room());
        for (index, finished) in [(3, None), (1, None), (2, None), (0, Some("first"))] {
            under_way.taken(events[index].id);
            assert_eq!(under_way.finished().map(|(name, _)| name), finished);
        }
        assert_eq!(out(&mut under_way), ids(&events[4..]));
        assert!(under_way.has_room());
        assert_eq!(under_way.events().count(), 3, "of a message that is not finished all of it");
        under_way.taken(events[5].id);
        assert_eq!(under_way.finished(), None);
        under_way.taken(events[4].id);
        assert_eq!(under_way.finished(), Some(("second", events[3..].to_vec())));
        assert_eq!(under_way.finished(), Some(("nothing", Vec::new())));
        assert!(under_way.is_empty() && under_way.finished().is_none());
    }

    #[test]
    fn what_was_refused_goes_alone_until_it_is_taken() {
        let events = events(10);
        let mut under_way = UnderWay::new(Window::new(4));
        under_way.add(events.clone(), ());
        assert_eq!(out(&mut under_way), ids(&events[..4]));
        assert_eq!(under_way.refused(events[1].id), 0);
        assert_eq!(under_way.refused(events[0].id), 1);
        assert_eq!(out(&mut under_way), [], "two are still out");
        under_way.taken(events[2].id);
        assert_eq!(under_way.refused(events[3].id), 1, "what follows the first does not count");
        for refusals in 2..5 {
            assert_eq!(out(&mut under_way), ids(&events[..1]));
            assert_eq!(under_way.refused(events[0].id), refusals);
        }
        for index in [0, 1, 3] {
            assert_eq!(out(&mut under_way), ids(&events[index..=index]));
            under_way.taken(events[index].id);
        }
        // One more for each that is taken.
        assert_eq!(out(&mut under_way), ids(&events[4..6]));
        under_way.taken(events[4].id);
        assert_eq!(out(&mut under_way), ids(&events[6..8]));
        assert_eq!(under_way.refused(events[5].id), 1);
    }

    /// An event that no relay takes, among others that they take: what follows it would show that it is missing, again and again.
    #[test]
    fn the_more_often_something_is_refused_the_longer_events_go_alone() {
        let mut window = Window::new(4);
        let mut counts = Vec::new();
        for _ in 0..8 {
            window.refused();
            window.refused();
            assert_eq!(window.size(), 1);
            let taken = (0..).take_while(|_| {
                window.taken();
                window.size() == 1
            });
            counts.push(taken.count());
        }
        assert_eq!(counts, [0, 4, 8, 16, 32, 64, 64, 64]);
        while window.size() < 4 {
            window.taken();
        }
        window.refused();
        window.taken();
        assert_eq!(window.size(), 2, "as at first");
    }

    /// What is stored with each message is bounded.
    #[test]
    fn few_large_events_fill_the_room() {
        let keys = Keys::generate();
        let event = EventBuilder::new(Kind::Custom(4680), "x".repeat(BYTES_MAX / 2));
        let mut under_way = UnderWay::new(Window::new(WINDOW_MAX));
        for number in 0..2 {
            assert!(under_way.has_room());
            let event = event.clone().custom_created_at(Timestamp::from_secs(number)).sign_with_keys(&keys).unwrap();
            under_way.add(vec![event], number);
        }
        assert!(!under_way.has_room());
    }

    #[test]
    fn what_has_expired_holds_up_nothing() {
        let mut events = events(2);
        let expired = EventBuilder::new(Kind::Custom(4680), "").tag(Tag::expiration(Timestamp::from_secs(1)));
        events.insert(1, expired.sign_with_keys(&Keys::generate()).unwrap());
        let mut under_way = UnderWay::new(Window::new(1));
        under_way.add(events.clone(), ());
        assert!(under_way.give_up(Timestamp::now()));
        for index in [0, 2] {
            assert_eq!(out(&mut under_way), [events[index].id]);
            under_way.taken(events[index].id);
        }
        assert!(under_way.finished().is_some());
    }

    #[test]
    fn what_a_clock_has_dated_that_was_ahead_is_given_up_once_it_is_refused() {
        let event = events(1).remove(0);
        let (right, ahead) = (event.created_at - Duration::from_secs(3_600), event.created_at);
        let mut under_way = UnderWay::new(Window::new(1));
        under_way.add(vec![event.clone()], ());
        assert!(!under_way.give_up(right));
        assert_eq!(out(&mut under_way), [event.id]);
        under_way.refused(event.id);
        assert!(!under_way.give_up(ahead) && under_way.give_up(right));
        assert!(under_way.finished().is_some());
    }
}
