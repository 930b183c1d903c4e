//! The sender's half of numbered messages: what may be sent before the receiver has acknowledged more.

use std::collections::VecDeque;

use litemesh_proto::limits::CREDIT_MAX;
use litemesh_proto::{Ack, Position, Terms};

/// Messages that are sent without being acknowledged to a receiver that lets us send more and more. It cannot store one of
/// them, and takes what it can of the others.
const UNTOLD_MAX: usize = 4096;

/// The messages of one answer: numbered, on their way, durable at the receiver.
#[derive(Default)]
pub(crate) struct Window {
    answer: u32,
    /// The number of the last message that was made.
    made: u64,
    acknowledged: u64,
    /// The number of the last message that may be sent.
    allowed: u64,
    /// Messages that are not acknowledged, by number: what the receiver holds of us then. Never more than [`UNTOLD_MAX`] and
    /// those that wait to be sent.
    on_their_way: VecDeque<(u64, Option<Position>)>,
    /// What the receiver holds of us, as far as it acknowledged that in this answer. What it asks after may merely be staged there.
    position: Position,
    /// What was acknowledged when [`look`](Self::look) was called last.
    at_last_look: Option<u64>,
}

impl Window {
    pub(crate) fn new(terms: &Terms) -> Self {
        Self { answer: terms.answer, allowed: u64::from(terms.credit.min(CREDIT_MAX)), ..Self::default() }
    }

    pub(crate) fn answer(&self) -> u32 {
        self.answer
    }

    /// Gives the next message its number. `position`: what the receiver holds of us when it has merged it.
    pub(crate) fn number(&mut self, position: Option<Position>) -> u64 {
        self.made += 1;
        self.on_their_way.push_back((self.made, position));
        self.made
    }

    pub(crate) fn may_send(&self, number: u64) -> bool {
        number <= self.allowed && self.on_their_way.len() <= UNTOLD_MAX
    }

    /// Whether everything that was made is durable at the receiver.
    pub(crate) fn is_empty(&self) -> bool {
        self.on_their_way.is_empty()
    }

    pub(crate) fn is_acknowledged(&self, number: u64) -> bool {
        number <= self.acknowledged
    }

    /// How far in our versions the receiver has said that it holds everything.
    pub(crate) fn position(&self) -> Position {
        self.position
    }

    /// An acknowledgement came. One of another answer, or of what was never sent, changes nothing.
    pub(crate) fn acknowledge(&mut self, ack: Ack) {
        if ack.answer != self.answer || ack.number > self.made {
            return;
        }
        self.acknowledged = self.acknowledged.max(ack.number);
        self.allowed = self.allowed.max(ack.until.min(self.made + u64::from(CREDIT_MAX)));
        while let Some((number, position)) = self.on_their_way.front().copied() {
            if number > self.acknowledged {
                break;
            }
            self.on_their_way.pop_front();
            if let Some(position) = position.filter(|position| position.version >= self.position.version) {
                self.position = position;
            }
        }
    }

    /// Whether anything of this answer is acknowledged.
    pub(crate) fn has_begun(&self) -> bool {
        self.acknowledged > 0
    }

    /// To be called now and then while messages are on their way. Says whether nothing was acknowledged since the last call.
    pub(crate) fn look(&mut self) -> bool {
        self.at_last_look.replace(self.acknowledged) == Some(self.acknowledged)
    }

    /// Nothing is on its way: the next [`look`](Self::look) is the first again.
    pub(crate) fn stop_looking(&mut self) {
        self.at_last_look = None;
    }
}

#[cfg(test)]
mod tests {
    use litemesh_proto::{DbVersion, Incarnation};

    use super::*;

    fn at(version: i64) -> Position {
        Position { version: DbVersion::new(version), incarnation: Incarnation(1) }
    }

    fn ack(number: u64, until: u64) -> Ack {
        Ack { answer: 1, number, until }
    }

    #[test]
    fn credit_and_acknowledgements_bound_what_is_on_its_way() {
        let mut window = Window::new(&Terms { answer: 1, credit: 2, ..Terms::default() });
        for number in 1..=4 {
            let position = (number != 2).then(|| at(10 * number));
            assert_eq!(window.number(position), number.cast_unsigned());
        }
        assert!(window.may_send(2) && !window.may_send(3));
        window.acknowledge(ack(1, 3));
        assert!(window.may_send(3) && !window.may_send(4) && window.position() == at(10));
        window.acknowledge(ack(2, 2));
        assert!(!window.may_send(4) && window.position() == at(10));
        // An older one, one of another answer, and one of what was never made.
        for odd in [ack(1, 9), Ack { answer: 2, ..ack(4, 9) }, ack(5, 9)] {
            window.acknowledge(odd);
        }
        assert!(window.is_acknowledged(2) && !window.is_acknowledged(3));
        window.acknowledge(ack(4, u64::MAX));
        assert!(window.is_empty() && window.position() == at(40));
        assert!(window.may_send(4 + u64::from(CREDIT_MAX)) && !window.may_send(5 + u64::from(CREDIT_MAX)));
    }

    #[test]
    fn silence_shows_at_the_second_look() {
        let mut window = Window::new(&Terms { answer: 1, credit: 2, ..Terms::default() });
        window.number(None);
        window.number(None);
        assert!(!window.look());
        assert!(window.look());
        window.acknowledge(ack(1, 3));
        assert!(!window.look() && window.look());
        window.stop_looking();
        assert!(!window.look());
    }
}
