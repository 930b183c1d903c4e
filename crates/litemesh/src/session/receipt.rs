//! The receiver's half of numbered messages: which one is next, and what is acknowledged when.

use litemesh_proto::Ack;
use litemesh_proto::limits::CREDIT_MAX;

/// The messages of the answer to our last request, as far as they came.
#[derive(Default)]
pub(crate) struct Receipt {
    /// Counts our requests.
    answer: u32,
    /// All messages up to this one came.
    came: u64,
    /// All messages up to this one are durable here.
    durable: u64,
    /// What had come when we said so last.
    told: u64,
    /// An acknowledgement is due when the timer goes off.
    is_timer_set: bool,
}

/// Where a message stands among those that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Next,
    /// It came before.
    Known,
    /// Others before it did not come.
    Gap,
    /// It answers an earlier request.
    Stale,
}

/// When an acknowledgement is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Now,
    /// When a timer goes off that is to be set.
    SetTimer,
    /// When the timer goes off that is set.
    Later,
}

impl Receipt {
    /// Before the first request over a connection.
    ///
    /// Requests of different connections have different numbers: what a slow line still brings of an older connection, after the
    /// next one stands, must not be taken for an answer to the newer one.
    pub(crate) fn of_connection(connection: u64) -> Self {
        // The low bits count the requests of one connection; the high ones come again after millions of connections.
        Self { answer: (connection << 8) as u32, ..Self::default() }
    }

    /// Begins anew. Gives the number of the request.
    pub(crate) fn begin(&mut self) -> u32 {
        (self.came, self.durable, self.told) = (0, 0, 0);
        self.answer = self.answer.wrapping_add(1);
        self.answer
    }

    pub(crate) fn standing(&self, (answer, number): (u32, u64)) -> Standing {
        if answer != self.answer {
            Standing::Stale
        } else if number <= self.came {
            Standing::Known
        } else if number == self.came + 1 {
            Standing::Next
        } else {
            Standing::Gap
        }
    }

    /// Whether nothing of the answer came.
    pub(crate) fn is_unanswered(&self) -> bool {
        self.came == 0
    }

    /// The next message came, and is durable or not. Nothing is durable any more after one that is not.
    pub(crate) fn take(&mut self, is_durable: bool, is_urgent: bool) -> Due {
        self.durable += u64::from(is_durable && self.durable == self.came);
        self.came += 1;
        // Often enough that the sender never waits for more than half of what it may send.
        if is_urgent || self.came - self.told >= u64::from(CREDIT_MAX / 2) {
            Due::Now
        } else if std::mem::replace(&mut self.is_timer_set, true) {
            Due::Later
        } else {
            Due::SetTimer
        }
    }

    /// The timer went off. Says whether there is something to acknowledge.
    pub(crate) fn timer(&mut self) -> bool {
        self.is_timer_set = false;
        self.told < self.came
    }

    pub(crate) fn acknowledge(&mut self) -> Ack {
        self.told = self.came;
        Ack { answer: self.answer, number: self.durable, until: self.came + u64::from(CREDIT_MAX) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_next_message_of_the_last_answer_is_taken() {
        let mut receipt = Receipt::default();
        assert_eq!(receipt.begin(), 1);
        receipt.take(true, false);
        assert_eq!(receipt.standing((1, 1)), Standing::Known);
        assert_eq!(receipt.standing((1, 2)), Standing::Next);
        assert_eq!(receipt.standing((1, 3)), Standing::Gap);
        assert_eq!(receipt.begin(), 2);
        assert_eq!(receipt.standing((1, 2)), Standing::Stale);
        assert_eq!(receipt.standing((2, 1)), Standing::Next);
        assert_eq!(receipt.standing((3, 1)), Standing::Stale);
    }

    #[test]
    fn an_older_connection_answers_nothing() {
        let (mut old, mut new) = (Receipt::of_connection(7), Receipt::of_connection(8));
        let (of_old, of_new) = (old.begin(), new.begin());
        assert_ne!(of_old, of_new);
        assert_eq!(new.standing((of_old, 1)), Standing::Stale);
    }

    #[test]
    fn half_of_the_credit_or_a_timer_brings_an_acknowledgement() {
        let mut receipt = Receipt::default();
        receipt.begin();
        assert_eq!(receipt.take(true, false), Due::SetTimer);
        for _ in 2..CREDIT_MAX / 2 {
            assert_eq!(receipt.take(true, false), Due::Later);
        }
        assert_eq!(receipt.take(true, false), Due::Now);
        let number = u64::from(CREDIT_MAX / 2);
        assert_eq!(receipt.acknowledge(), Ack { answer: 1, number, until: number + u64::from(CREDIT_MAX) });
        assert!(!receipt.timer());
        assert_eq!(receipt.take(true, false), Due::SetTimer);
        assert!(receipt.timer());
        assert_eq!(receipt.take(true, true), Due::Now);
    }

    /// What was refused holds back what is acknowledged, and not what may be sent.
    #[test]
    fn nothing_is_durable_after_what_is_not() {
        let mut receipt = Receipt::default();
        receipt.begin();
        for is_durable in [true, false, true] {
            receipt.take(is_durable, false);
        }
        assert_eq!(receipt.acknowledge(), Ack { answer: 1, number: 1, until: 3 + u64::from(CREDIT_MAX) });
    }
}
