//! Links between peers: what is under way on them, and how they fail. `line` has it as bytes.

use std::collections::VecDeque;
use std::time::Duration;

use fastrand::Rng;

use super::line::{Carrier, Line};

/// A pair of peers that one dials and the other listens to. Two of them may join the same peers: several transports.
pub(super) struct Wire {
    /// Who dials and who listens, as indexes of nodes.
    pub(super) nodes: [usize; 2],
    /// Which transport of its peers this is.
    pub(super) transport: usize,
    pub(super) is_litemesh: bool,
    /// What its connections go over.
    pub(super) carrier: Carrier,
    /// Whether the sender at an end hears of the commit, as a client over HTTP does, or only that the message was taken.
    pub(super) waits_for_commit: [bool; 2],
    /// How many messages may be under way from one end.
    pub(super) window: usize,
    pub(super) delay_max: Duration,
    /// Until when nothing goes from an end to the other.
    pub(super) blocked_until: [Duration; 2],
    /// Whether it repeats messages.
    pub(super) repeats: bool,
    /// The connection that an end believes in.
    pub(super) current: [Option<u64>; 2],
    pub(super) failed_dials: u32,
    pub(super) is_dial_due: bool,
    pub(super) is_removed: bool,
}

/// One connection over a wire.
pub(super) struct Connection {
    pub(super) wire: usize,
    /// What is under way from each end to the other.
    pub(super) ways: [Way; 2],
}

#[derive(Default)]
pub(super) struct Way {
    pub(super) frames: VecDeque<Frame>,
    /// The same as bytes, while somebody reads them.
    pub(super) line: Option<Box<Line>>,
    /// When the last frame arrives: nothing overtakes it.
    pub(super) last_arrival: Duration,
    /// A message waits until there is room.
    pub(super) is_waiting: bool,
    /// What was sent since the connection stands.
    pub(super) messages: usize,
    pub(super) changes: usize,
    pub(super) acks: usize,
    /// Messages that were brought to the other end, those that came again included.
    pub(super) brought: usize,
    /// Requests that the other end received: each may be answered in full.
    pub(super) answers: usize,
}

#[derive(Clone)]
pub(super) enum Frame {
    /// A message, under way as its carrier has it, and once it has arrived in the bytes of the codec. `Sync` is a request, which
    /// nobody acknowledges; a `Repeat` is of what was delivered already.
    Sync(Vec<u8>),
    Data(Vec<u8>),
    Repeat(Vec<u8>),
    Close(String),
}

impl Connection {
    pub(super) fn new(wire: usize, lines: [Line; 2]) -> Self {
        let way = |line| Way { line: Some(Box::new(line)), ..Way::default() };
        Self { wire, ways: lines.map(way) }
    }
}

impl Way {
    /// Messages that the sender counts as under way.
    pub(super) fn under_way(&self) -> usize {
        self.frames.iter().filter(|frame| matches!(frame, Frame::Data(_))).count()
    }

    /// Nothing behind the first messages arrives, but a part of the next one.
    pub(super) fn cut(&mut self, kept: usize, rng: &mut Rng) {
        if let Some(line) = &mut self.line {
            line.cut(&self.frames, kept, rng);
        }
        self.frames.truncate(kept);
    }

    /// Nothing of what is under way arrives, but that the connection ends.
    pub(super) fn silence(&mut self) {
        if let Some(line) = &mut self.line {
            line.break_off();
        }
        self.frames.retain(|frame| matches!(frame, Frame::Close(_)));
    }
}
