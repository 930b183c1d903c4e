//! In what order the engine thread carries out what it is asked for: what many wait for goes before catch-ups.

use std::collections::VecDeque;
use std::time::Duration;

use litemesh_engine::Engine;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// While live work waits, catch-ups get one part of the time and it gets so many.
const LIVE_SHARE: u32 = 3;

pub(crate) type Work = Box<dyn FnOnce(&mut Engine) + Send>;

/// Which commands go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Small, and waited for: local news, merges of single transactions, what is read once for all.
    Live,
    /// A piece of a catch-up. A hundred remotes that catch up have a hundred of them waiting, of 10 to 30 ms each; live work does
    /// not wait for them.
    Bulk,
}

pub(crate) struct Command {
    pub(crate) lane: Lane,
    pub(crate) work: Work,
    /// Its place among those of its lane, given back when it is its turn. What is not waited for has none.
    pub(crate) _place: Option<OwnedSemaphorePermit>,
}

/// The commands in the order in which they are carried out. As many as have places wait here.
pub(crate) struct Lanes {
    commands: mpsc::Receiver<Command>,
    live: VecDeque<Command>,
    bulk: VecDeque<Command>,
    /// What live work took since bulk work had its turn, and what that took then.
    live_took: Duration,
    bulk_took: Duration,
}

impl Lanes {
    pub(crate) fn new(commands: mpsc::Receiver<Command>) -> Self {
        let (live, bulk) = (VecDeque::new(), VecDeque::new());
        Self { commands, live, bulk, live_took: Duration::ZERO, bulk_took: Duration::ZERO }
    }

    /// The next command, waited for. `None` when the last handle is gone, and all is done.
    pub(crate) fn next(&mut self) -> Option<(Lane, Work)> {
        while let Ok(command) = self.commands.try_recv() {
            self.queue(command);
        }
        if self.live.is_empty() && self.bulk.is_empty() {
            let command = self.commands.blocking_recv()?;
            self.queue(command);
        }
        let is_bulk_due = self.live_took > self.bulk_took * LIVE_SHARE;
        if (self.live.is_empty() || is_bulk_due)
            && let Some(command) = self.bulk.pop_front()
        {
            return Some((Lane::Bulk, command.work));
        }
        self.live.pop_front().map(|command| (Lane::Live, command.work))
    }

    fn queue(&mut self, command: Command) {
        match command.lane {
            Lane::Live => self.live.push_back(command),
            Lane::Bulk => self.bulk.push_back(command),
        }
    }

    /// How long that command took.
    pub(crate) fn took(&mut self, lane: Lane, time: Duration) {
        match lane {
            Lane::Live => self.live_took += time,
            Lane::Bulk => (self.live_took, self.bulk_took) = (Duration::ZERO, time),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lane of each of the next commands, as it comes out where each takes as long as the last one said.
    fn order(lanes: &mut Lanes, count: usize, live: Duration, bulk: Duration) -> String {
        let next = |_| {
            let (lane, _) = lanes.next()?;
            lanes.took(lane, if lane == Lane::Live { live } else { bulk });
            Some(if lane == Lane::Live { 'l' } else { 'B' })
        };
        (0..count).map_while(next).collect()
    }

    /// `known-failures.md` D9: in one queue everything waits for the longest.
    #[test]
    fn live_work_goes_first_and_bulk_work_is_not_forgotten() {
        let (sender, commands) = mpsc::channel(33);
        let send = |lane: Lane, count: usize| {
            for _ in 0..count {
                let command = Command { lane, work: Box::new(|_| ()), _place: None };
                assert!(sender.try_send(command).is_ok());
            }
        };
        let mut lanes = Lanes::new(commands);
        let [short, long] = [1, 4].map(Duration::from_millis);
        send(Lane::Bulk, 3);
        send(Lane::Live, 30);
        // Live work has three parts of the time, once it is known what bulk work takes.
        let some = "l".repeat(13);
        assert_eq!(order(&mut lanes, 33, short, long), format!("lB{some}B{some}B{}", "l".repeat(3)));
        send(Lane::Bulk, 2);
        drop(sender);
        assert_eq!(order(&mut lanes, 9, short, long), "BB");
    }
}
