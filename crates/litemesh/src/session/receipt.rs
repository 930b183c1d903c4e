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
    /// All messages up to this one are committed here.
    committed: u64,
    /// All messages up to this one are durable here: the disk has what was committed.
    durable: u64,
    /// The answer and the last message that the disk is being given.
    flushing: Option<(u32, u64)>,
    /// More is to be given to it afterwards.
    is_flush_due: bool,
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

/// What an acknowledgement that is due comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settled {
    /// To be sent now.
    pub(crate) ack: Option<Ack>,
    /// What is committed is to be flushed to the disk; [`Receipt::flushed`] tells the rest.
    pub(crate) is_flush: bool,
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
        (self.came, self.committed, self.durable, self.told) = (0, 0, 0, 0);
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

    /// The next message came, and is committed or not. Nothing is acknowledged any more after one that is not.
    pub(crate) fn take(&mut self, is_committed: bool, is_urgent: bool) -> Due {
        self.committed += u64::from(is_committed && self.committed == self.came);
        self.came += 1;
        // Often enough that the sender never waits for more than half of what it may send.
        if is_urgent || self.is_room_due() {
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
        self.told < self.came || self.durable < self.committed
    }

    /// An acknowledgement is due.
    pub(crate) fn settle(&mut self) -> Settled {
        if self.durable == self.committed {
            return Settled { ack: Some(self.acknowledge()), is_flush: false };
        }
        self.is_flush_due = self.flushing.is_some();
        let is_flush = !self.is_flush_due;
        if is_flush {
            self.flushing = Some((self.answer, self.committed));
        }
        // Who waits for room need not wait for the disk.
        Settled { ack: self.is_room_due().then(|| self.acknowledge()), is_flush }
    }

    /// The disk has what it was given.
    pub(crate) fn flushed(&mut self) -> Settled {
        let of_this = self.flushing.take().filter(|(answer, _)| *answer == self.answer);
        if let Some((_, number)) = of_this {
            self.durable = number;
        }
        let settled = if std::mem::take(&mut self.is_flush_due) { self.settle() } else { Settled::default() };
        Settled { ack: settled.ack.or_else(|| of_this.map(|_| self.acknowledge())), ..settled }
    }

    /// The sender has used up half of what it may send.
    fn is_room_due(&self) -> bool {
        self.came - self.told >= u64::from(CREDIT_MAX / 2)
    }

    fn acknowledge(&mut self) -> Ack {
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

    const CREDIT: u64 = CREDIT_MAX as u64;

    fn ack(number: u64, until: u64) -> Settled {
        Settled { ack: Some(Ack { answer: 1, number, until }), is_flush: false }
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
        let number = CREDIT / 2;
        // The sender goes on, while the disk is at work.
        assert_eq!(receipt.settle(), Settled { is_flush: true, ..ack(0, number + CREDIT) });
        assert_eq!(receipt.flushed(), ack(number, number + CREDIT));
        assert!(!receipt.timer());
        assert_eq!(receipt.take(true, false), Due::SetTimer);
        assert!(receipt.timer());
        assert_eq!(receipt.take(true, true), Due::Now);
    }

    /// What was refused holds back what is acknowledged, and not what may be sent.
    #[test]
    fn nothing_is_acknowledged_after_what_is_not_taken() {
        let mut receipt = Receipt::default();
        receipt.begin();
        for is_committed in [true, false, true] {
            receipt.take(is_committed, false);
        }
        assert!(receipt.settle().is_flush);
        assert_eq!(receipt.flushed(), ack(1, 3 + CREDIT));
        receipt.take(true, false);
        assert_eq!(receipt.settle(), ack(1, 4 + CREDIT), "the disk has it already");
    }

    /// One flush at a time; what is committed meanwhile waits for the next one.
    #[test]
    fn nothing_is_acknowledged_that_the_disk_was_not_given() {
        let mut receipt = Receipt::default();
        receipt.begin();
        receipt.take(true, false);
        let flush = Settled { ack: None, is_flush: true };
        assert_eq!(receipt.settle(), flush);
        receipt.take(true, false);
        assert_eq!(receipt.settle(), Settled::default());
        assert_eq!(receipt.flushed(), Settled { is_flush: true, ..ack(1, 2 + CREDIT) });
        assert_eq!(receipt.flushed(), ack(2, 2 + CREDIT));
    }

    /// The simulation found it: what came while the disk was at work was told of as having come, and not acknowledged.
    #[test]
    fn what_comes_during_a_flush_is_acknowledged_when_its_timer_goes_off() {
        let mut receipt = Receipt::default();
        receipt.begin();
        receipt.take(true, true);
        assert!(receipt.settle().is_flush);
        assert_eq!(receipt.take(true, false), Due::SetTimer);
        assert_eq!(receipt.flushed(), ack(1, 2 + CREDIT));
        assert!(receipt.timer());
        assert!(receipt.settle().is_flush);
        assert_eq!(receipt.flushed(), ack(2, 2 + CREDIT));
        assert!(!receipt.timer());
    }

    #[test]
    fn what_was_flushed_for_an_earlier_answer_says_nothing_of_this_one() {
        let mut receipt = Receipt::default();
        receipt.begin();
        for _ in 0..3 {
            receipt.take(true, false);
        }
        assert!(receipt.settle().is_flush);
        receipt.begin();
        receipt.take(true, false);
        assert_eq!(receipt.settle(), Settled::default());
        assert_eq!(receipt.flushed(), Settled { ack: None, is_flush: true });
        assert_eq!(receipt.flushed().ack.map(|ack| (ack.answer, ack.number)), Some((2, 1)));
    }
}
