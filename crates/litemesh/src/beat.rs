//! When sessions hear of commits: of the first at once, then in beats, the slower the more sessions have to read.
//!
//! Each session that is woken costs a read, a message and an acknowledgement, whether one transaction is new or a hundred. Woken by
//! every commit, the sessions of a busy hub leave the engine no time to merge. All are woken at once, so that those which are up to
//! date stand at the same place, and what is read for one of them serves all. A session that waits for its remote is not woken.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::watch;

use crate::engine_thread::Announced;

/// How long nobody is woken after a beat, for each session that the one before made read: about twice what that cost.
const PAUSE_A_SESSION: Duration = Duration::from_micros(250);

/// No longer pause, however many sessions there are: what is written live arrives within a second.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Shorter pauses are none: the timer's step is a millisecond. A few sessions hear of every commit.
const PAUSE_MIN: Duration = Duration::from_millis(2);

/// Receivers that are no session: the one from which sessions get theirs, and the one of the shared pages.
const OTHER_RECEIVERS: usize = 2;

/// What sessions are woken with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beat {
    /// Counts beats.
    pub(crate) number: u64,
    /// How many sessions there are.
    pub(crate) sessions: usize,
    pub(crate) announced: Announced,
}

/// Passes on what is announced until the engine has ended. `schemas` wakes every session when the schema is another, also those
/// that wait for their remotes. `readers` counts sessions that a beat made read: the others are not to slow these down.
pub(crate) async fn run(
    mut announced: watch::Receiver<Announced>,
    beats: watch::Sender<Beat>,
    schemas: watch::Sender<()>,
    readers: Arc<AtomicUsize>,
) {
    let mut last = beats.borrow().announced;
    while announced.changed().await.is_ok() {
        let now = *announced.borrow_and_update();
        let sessions = beats.receiver_count().saturating_sub(OTHER_RECEIVERS);
        beats.send_modify(|beat| *beat = Beat { number: beat.number + 1, sessions, announced: now });
        // Behind the beat, which says what it is.
        if now.is_other_schema(&last) {
            schemas.send_replace(());
        }
        last = now;
        let pause = pause(readers.swap(0, Relaxed));
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
}

fn pause(readers: usize) -> Duration {
    let readers = u32::try_from(readers).unwrap_or(u32::MAX);
    let pause = PAUSE_A_SESSION.saturating_mul(readers).min(PAUSE_MAX);
    if pause < PAUSE_MIN { Duration::ZERO } else { pause }
}

/// A beat for the state in which a peer starts.
pub(crate) fn first(announced: Announced) -> watch::Sender<Beat> {
    watch::Sender::new(Beat { number: 0, sessions: 0, announced })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_sessions_are_never_kept_waiting_and_many_not_long() {
        assert_eq!(pause(7), Duration::ZERO);
        assert_eq!(pause(200), Duration::from_millis(50));
        assert_eq!(pause(usize::MAX), PAUSE_MAX);
    }
}
