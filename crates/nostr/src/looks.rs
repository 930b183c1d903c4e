//! When relays are asked for what did not come by itself: soon after something happened, and then less and less often. What is found is
//! followed without a pause.

use std::time::Duration;

use litemesh_proto::BoxFuture;
use tokio::time::Instant;

use crate::pauses::Pauses;

/// How soon after something happened.
const LOOK_MIN: Duration = Duration::from_secs(2);

/// How soon something is looked for again that is known to be missing, at first, and the least time between two looks of which the first
/// found nothing: a relay that floods us would keep us looking, and so would a page that is longer than what is kept of it.
const MISSING_LOOK: Duration = Duration::from_millis(500);

/// Most time between two looks for what a relay should have delivered: each costs relays a question. So long is late what one has kept
/// from us.
pub(crate) const LOOK_MAX: Duration = Duration::from_secs(60);

/// When the next look is due.
pub(crate) struct Looks {
    pauses: Pauses,
    wait_max: Duration,
    wait: Duration,
    /// When the last look began, if it found nothing.
    in_vain: Option<Instant>,
    /// The last look found what comes next, and there may be more.
    is_on_trail: bool,
    due: Option<Instant>,
}

impl Looks {
    /// None is due before [`begin`](Self::begin).
    pub(crate) fn new(wait_max: Duration, pauses: Pauses) -> Self {
        let (wait_max, wait) = (pauses.of(wait_max), pauses.of(LOOK_MIN));
        Self { pauses, wait_max, wait, in_vain: None, is_on_trail: false, due: None }
    }

    /// Something happened. On a trail the next look follows at once: once for each look that found something.
    pub(crate) fn begin(&mut self) {
        self.wait = self.pauses.of(LOOK_MIN);
        let pause = if self.is_on_trail { Duration::ZERO } else { self.wait };
        self.due = Some(Instant::now() + pause);
    }

    /// Something is known to be missing.
    pub(crate) fn missing(&mut self) {
        self.wait = self.pauses.of(MISSING_LOOK);
        self.at_once();
    }

    /// Something may have come that was dropped.
    pub(crate) fn at_once(&mut self) {
        let Some(due) = self.due else { return };
        let pause = self.pauses.of(MISSING_LOOK);
        let soonest = self.in_vain.map_or_else(Instant::now, |in_vain| in_vain + pause);
        self.due = Some(due.min(soonest));
    }

    /// The last look found what comes next.
    pub(crate) fn is_on_trail(&self) -> bool {
        self.is_on_trail
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// One begins; the next one is later. Gives how much later: so long it may wait for relays that are slower than others, since
    /// nothing else is done meanwhile.
    pub(crate) fn looked(&mut self) -> Duration {
        let (now, wait) = (Instant::now(), self.wait);
        (self.in_vain, self.is_on_trail, self.due) = (Some(now), false, Some(now + wait));
        self.wait = (wait * 2).min(self.wait_max);
        wait
    }

    /// It found what comes next.
    pub(crate) fn found(&mut self) {
        (self.in_vain, self.is_on_trail) = (None, true);
    }
}

/// Pending where there is no time.
pub(crate) async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// What comes of the future; pending where there is none. Dropping this loses nothing.
pub(crate) async fn pending<T>(work: &mut Option<BoxFuture<'_, T>>) -> T {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn looks_become_rare_and_begin_again() {
        let mut looks = Looks::new(LOOK_MAX, Pauses::USUAL);
        looks.at_once();
        assert_eq!(looks.due(), None, "not begun");
        looks.begin();
        let mut waits = Vec::new();
        for _ in 0..8 {
            let before = Instant::now();
            at(looks.due()).await;
            waits.push(before.elapsed().as_secs());
            looks.looked();
        }
        assert_eq!(waits, [2, 2, 4, 8, 16, 32, 60, 60]);
        looks.begin();
        assert_eq!(looks.due(), Some(Instant::now() + LOOK_MIN));
    }

    #[tokio::test(start_paused = true)]
    async fn looking_in_vain_is_not_done_at_once_again() {
        let mut looks = Looks::new(LOOK_MAX, Pauses::USUAL);
        looks.begin();
        looks.missing();
        assert_eq!(looks.due(), Some(Instant::now()));
        looks.looked();
        looks.at_once();
        assert_eq!(looks.due(), Some(Instant::now() + MISSING_LOOK));
        looks.found();
        looks.at_once();
        assert_eq!(looks.due(), Some(Instant::now()));
    }

    /// Each event of a chain is found by the one before it.
    #[tokio::test(start_paused = true)]
    async fn a_trail_is_followed_without_pauses_to_its_end() {
        let mut looks = Looks::new(LOOK_MAX, Pauses::USUAL);
        looks.begin();
        at(looks.due()).await;
        let began = Instant::now();
        for _ in 0..100 {
            looks.looked();
            looks.found();
            // What was found is taken.
            looks.begin();
            at(looks.due()).await;
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        looks.looked();
        assert_eq!(looks.due(), Some(Instant::now() + LOOK_MIN), "there is no more of it");
        // What comes by itself afterwards is no trail.
        looks.begin();
        assert_eq!(looks.due(), Some(Instant::now() + LOOK_MIN));
    }
}
