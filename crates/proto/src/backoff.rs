//! How long who dials waits before the next time: a pure function, so that the sequence itself is tested.

use std::time::Duration;

use crate::limits::{RECONNECT_DELAY_MAX, RECONNECT_DELAY_MIN};

/// The delay before the next dial, when `attempts` dials have failed since the last connection.
///
/// `wire-protocol.md` 5.6: 1, 2, 4, 8, 16, 30, 30 … seconds.
///
/// ```
/// use std::time::Duration;
///
/// assert_eq!(litemesh_proto::backoff(0), Duration::from_secs(1));
/// assert_eq!(litemesh_proto::backoff(4), Duration::from_secs(16));
/// assert_eq!(litemesh_proto::backoff(1000), Duration::from_secs(30));
/// ```
pub fn backoff(attempts: u32) -> Duration {
    backoff_from(RECONNECT_DELAY_MIN, attempts, 0.5)
}

/// [`backoff`] from another first delay, and anything from a half to one and a half of it for a `jitter` from 0 to 1; 0.5 leaves
/// it as it is.
///
/// A thousand clients of a hub that restarts, which all lost it in the same millisecond, so come back within as long a time as one
/// waits on average, evenly, and each later dial spreads them further. A lone client waits no longer than without.
///
/// ```
/// use std::time::Duration;
///
/// let first = Duration::from_secs(2);
/// assert_eq!(litemesh_proto::backoff_from(first, 1, 0.0), Duration::from_secs(2));
/// assert_eq!(litemesh_proto::backoff_from(first, 1, 0.5), Duration::from_secs(4));
/// assert_eq!(litemesh_proto::backoff_from(first, 1, 1.0), Duration::from_secs(6));
/// ```
pub fn backoff_from(first: Duration, attempts: u32, jitter: f64) -> Duration {
    let factor = 2_u32.checked_pow(attempts).unwrap_or(u32::MAX);
    let delay = first.saturating_mul(factor).min(RECONNECT_DELAY_MAX);
    delay.mul_f64(0.5 + jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{HERD_SHARE_MAX, HERD_WINDOW};

    #[test]
    fn delays_double_up_to_thirty_seconds() {
        let seconds: Vec<u64> = (0..8).map(|attempts| backoff(attempts).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(backoff(u32::MAX), RECONNECT_DELAY_MAX);
    }

    #[test]
    fn jitter_is_half_of_the_delay_to_either_side() {
        let first = Duration::from_secs(1);
        for (jitter, millis) in [(-7.0, 2000), (0.0, 2000), (0.25, 3000), (0.5, 4000), (1.0, 6000), (7.0, 6000)] {
            assert_eq!(backoff_from(first, 2, jitter), Duration::from_millis(millis), "{jitter}");
        }
    }

    /// When clients whose hub went at one moment are connected again, where it is back after so long.
    fn connects(clients: usize, away: Duration, seed: u64) -> Vec<Duration> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut connects = Vec::new();
        for _ in 0..clients {
            let mut now = Duration::ZERO;
            for attempts in 0.. {
                now += backoff_from(RECONNECT_DELAY_MIN, attempts, random.f64());
                if now >= away {
                    break;
                }
            }
            connects.push(now);
        }
        connects.sort_unstable();
        connects
    }

    fn most_at_once(connects: &[Duration]) -> usize {
        let until = |from: Duration| connects.partition_point(|at| *at < from + HERD_WINDOW);
        connects.iter().enumerate().map(|(before, from)| until(*from) - before).max().unwrap_or_default()
    }

    #[test]
    fn five_hundred_clients_of_a_hub_that_comes_back_are_no_herd() {
        const CLIENTS: usize = 500;
        for seed in 0..20 {
            for away in [0, 200, 500, 700, 1000, 1500, 3000, 10_000, 60_000, 600_000].map(Duration::from_millis) {
                let connects = connects(CLIENTS, away, seed);
                let most = most_at_once(&connects);
                assert!(
                    most as f64 <= HERD_SHARE_MAX * CLIENTS as f64,
                    "{most} at once, hub away for {away:?}, seed {seed}"
                );
                // Nobody is kept waiting for it.
                let mean = connects.iter().sum::<Duration>() / CLIENTS as u32;
                assert!(mean <= 2 * away + 2 * RECONNECT_DELAY_MIN, "{mean:?} on average, hub away for {away:?}");
            }
        }
        // What the criterion is about: without jitter, and with a little.
        assert_eq!(most_at_once(&[RECONNECT_DELAY_MIN; CLIENTS]), CLIENTS);
        let little: Vec<_> = (0..CLIENTS).map(|n| RECONNECT_DELAY_MIN.mul_f64(1.0 + 0.25 * n as f64 / 500.0)).collect();
        assert!(most_at_once(&little) as f64 > HERD_SHARE_MAX * CLIENTS as f64);
    }
}
