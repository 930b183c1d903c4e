//! How much of what was published has come where: relays and the remote say so independently of each other.
//!
//! Pure, as what the simulation of `litemesh-testkit` shares is.

use std::collections::VecDeque;

use litemesh_proto::Ack;
use litemesh_proto::limits::CREDIT_MAX;
use nostr::EventId;

/// Messages of which it is known which event they ended with, until they are acknowledged: one that is away may not do so for days.
pub(crate) const UNACKNOWLEDGED_MAX: usize = 4096;

/// The messages of one answer.
#[derive(Default)]
pub struct Receipts {
    /// The number of the last message that a relay has taken, and of the last that the remote has.
    published: u64,
    acknowledged: u64,
    /// Messages that the remote has not acknowledged, and the event that each ended with.
    unacknowledged: VecDeque<(u64, EventId)>,
    /// The remote has said that it has everything up to this event.
    confirmed: Option<EventId>,
}

impl Receipts {
    /// The number of the last message that a relay has taken.
    pub fn published(&self) -> u64 {
        self.published
    }

    /// Up to which event the remote has everything, as it has said.
    pub fn confirmed(&self) -> Option<EventId> {
        self.confirmed
    }

    /// Another answer begins: what comes of the last one says nothing of it.
    pub fn begin(&mut self) {
        (self.published, self.acknowledged) = (0, 0);
        self.unacknowledged.clear();
    }

    /// A relay has taken a message, up to this event; none where the remote acknowledges nothing.
    pub fn taken(&mut self, number: u64, last: Option<EventId>) {
        self.published = number;
        let Some(last) = last else { return };
        if self.unacknowledged.len() == UNACKNOWLEDGED_MAX {
            // It is acknowledged along with a later one.
            self.unacknowledged.pop_front();
        }
        self.unacknowledged.push_back((number, last));
        if self.confirmed == Some(last) {
            // The remote has it, and has said so, before we hear that a relay has it.
            self.count_up_to(last);
        }
    }

    /// What the last message ended with was said again, and ends with another event.
    pub fn said_again(&mut self, head: EventId, again: EventId) {
        if let Some((_, event)) = self.unacknowledged.back_mut().filter(|(_, event)| *event == head) {
            *event = again;
        }
    }

    /// The remote has everything up to this event. Says whether that is news of this answer: of an earlier one, which our peer has
    /// forgotten, nothing is counted.
    pub fn confirm(&mut self, event: EventId) -> bool {
        self.confirmed = Some(event);
        self.count_up_to(event)
    }

    fn count_up_to(&mut self, event: EventId) -> bool {
        let Some(last) = self.unacknowledged.iter().position(|(_, ended)| *ended == event) else { return false };
        for (number, _) in self.unacknowledged.drain(..=last) {
            self.acknowledged = number;
        }
        true
    }

    /// What our peer is told: what the remote has, and that there is room for more, since relays keep what it has not read yet.
    pub fn to_ack(&self, answer: u32) -> Ack {
        Ack { answer, number: self.acknowledged, until: self.published + u64::from(CREDIT_MAX) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> EventId {
        EventId::from_byte_array([number; 32])
    }

    #[test]
    fn a_message_counts_once_both_have_it_whoever_says_so_first() {
        let mut receipts = Receipts::default();
        receipts.taken(1, Some(id(1)));
        receipts.taken(2, Some(id(2)));
        assert!(receipts.confirm(id(2)) && receipts.to_ack(7).number == 2);
        assert!(!receipts.confirm(id(3)), "no relay has said that it has it");
        assert_eq!(receipts.to_ack(7).number, 2);
        receipts.taken(3, Some(id(3)));
        assert_eq!(receipts.to_ack(7), Ack { answer: 7, number: 3, until: 3 + u64::from(CREDIT_MAX) });
    }

    #[test]
    fn what_was_said_again_is_acknowledged_as_that() {
        let mut receipts = Receipts::default();
        receipts.taken(1, Some(id(1)));
        receipts.said_again(id(1), id(9));
        assert!(!receipts.confirm(id(1)) && receipts.confirm(id(9)));
        assert_eq!(receipts.to_ack(7).number, 1);
    }

    #[test]
    fn another_answer_begins_at_nothing() {
        let mut receipts = Receipts::default();
        receipts.taken(5, Some(id(5)));
        receipts.confirm(id(5));
        receipts.taken(6, Some(id(6)));
        receipts.begin();
        assert_eq!(receipts.to_ack(8), Ack { answer: 8, number: 0, until: u64::from(CREDIT_MAX) });
        assert!(!receipts.confirm(id(6)));
    }

    #[test]
    fn of_a_remote_that_is_away_a_bounded_number_is_remembered() {
        let mut receipts = Receipts::default();
        for number in 0..2 * UNACKNOWLEDGED_MAX as u64 {
            receipts.taken(number, Some(id(number as u8)));
        }
        assert_eq!(receipts.unacknowledged.len(), UNACKNOWLEDGED_MAX);
    }
}
