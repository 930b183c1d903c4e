//! [`Way`]: whether a dial tries a WebSocket, or a stream of frames, by what came of the last ones. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// Those in a row that failed without a word while what is simpler works, until something between us counts as breaking them. One may
/// be an accident.
const FAILURES_MAX: u32 = 3;

/// How long none is tried where something breaks them. Each try costs a connection, and a laptop changes networks.
const SHUT_FOR: Duration = Duration::from_secs(600);

/// What is known of the way of WebSockets, or of streams of frames, to one server.
#[derive(Debug, Default)]
pub(super) struct Way {
    /// The server had one, so that it need not be asked.
    is_known: bool,
    /// In a row, passing ones.
    failures: u32,
    shut_until: Option<Instant>,
}

impl Way {
    /// Whether to try one where the server has it.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        self.shut_until.is_none_or(|until| until <= now)
    }

    /// Whether to try without asking the server first.
    pub(super) fn is_known(&self, now: Instant) -> bool {
        self.is_known && self.is_open(now)
    }

    /// The server introduced itself over one.
    pub(super) fn found(&mut self) {
        self.is_known = true;
        self.shut_until = None;
    }

    /// The server heard us over one and we it, be it that it ends.
    pub(super) fn works(&mut self) {
        self.failures = 0;
    }

    /// One failed as a line may: it was reset, or nothing came, or nothing arrived. Whether that was one too many.
    pub(super) fn failed(&mut self, now: Instant) -> bool {
        self.failures += 1;
        let is_enough = self.failures >= FAILURES_MAX;
        if is_enough {
            self.broke(now);
        }
        is_enough
    }

    /// The answer was something else, while what is simpler works.
    pub(super) fn broke(&mut self, now: Instant) {
        *self = Self { is_known: false, failures: 0, shut_until: Some(now + SHUT_FOR) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_shuts_it_only_where_it_comes_again_and_again() {
        let (mut way, now) = (Way::default(), Instant::now());
        for _ in 0..10 {
            way.found();
            assert!(!way.failed(now) && !way.failed(now) && way.is_known(now));
            way.works();
        }
        assert!(!way.failed(now) && !way.failed(now) && way.failed(now));
        assert!(!way.is_open(now) && !way.is_known(now));
    }

    #[test]
    fn it_is_shut_for_a_bounded_time() {
        let (mut way, now) = (Way::default(), Instant::now());
        assert!(way.is_open(now) && !way.is_known(now));
        way.found();
        assert!(way.is_known(now));
        way.broke(now);
        assert!(!way.is_open(now) && !way.is_open(now + SHUT_FOR - Duration::from_secs(1)));
        assert!(way.is_open(now + SHUT_FOR) && !way.is_known(now + SHUT_FOR));
    }
}
