//! Virtual time, and what is to happen when.

use std::collections::BTreeMap;
use std::time::Duration;

/// Events in the order of their time, and of their making where that is equal.
pub(super) struct Agenda<E> {
    now: Duration,
    made: u64,
    events: BTreeMap<(Duration, u64), E>,
}

impl<E> Agenda<E> {
    pub(super) fn new() -> Self {
        Self { now: Duration::ZERO, made: 0, events: BTreeMap::new() }
    }

    /// Since the beginning of the simulation.
    pub(super) fn now(&self) -> Duration {
        self.now
    }

    pub(super) fn after(&mut self, delay: Duration, event: E) {
        self.at(self.now + delay, event);
    }

    pub(super) fn at(&mut self, time: Duration, event: E) {
        self.made += 1;
        self.events.insert((time.max(self.now), self.made), event);
    }

    /// The next event until then, whose time it becomes.
    pub(super) fn next_until(&mut self, until: Duration) -> Option<E> {
        let entry = self.events.first_entry().filter(|entry| entry.key().0 <= until)?;
        self.now = entry.key().0;
        Some(entry.remove())
    }

    pub(super) fn advance_to(&mut self, time: Duration) {
        self.now = self.now.max(time);
    }

    /// Makes events due now, in their order.
    pub(super) fn hasten(&mut self, is_meant: impl Fn(&E) -> bool) {
        let due: Vec<_> = self.events.extract_if(.., |_, event| is_meant(event)).collect();
        for (_, event) in due {
            self.after(Duration::ZERO, event);
        }
    }
}
