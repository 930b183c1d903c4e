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
    backoff_from(RECONNECT_DELAY_MIN, attempts, 0.0)
}

/// [`backoff`] from another first delay, lengthened by up to a quarter for a `jitter` from 0 to 1.
///
/// Without jitter a thousand clients of a hub that restarts all come back in the same millisecond, again and again.
///
/// ```
/// use std::time::Duration;
///
/// assert_eq!(litemesh_proto::backoff_from(Duration::from_secs(2), 1, 1.0), Duration::from_secs(5));
/// ```
pub fn backoff_from(first: Duration, attempts: u32, jitter: f64) -> Duration {
    /// Share of the delay that full jitter adds.
    const JITTER_SHARE: f64 = 0.25;
    let factor = 2_u32.checked_pow(attempts).unwrap_or(u32::MAX);
    let delay = first.saturating_mul(factor).min(RECONNECT_DELAY_MAX);
    delay + delay.mul_f64(JITTER_SHARE * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_thirty_seconds() {
        let seconds: Vec<u64> = (0..8).map(|attempts| backoff(attempts).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(backoff(u32::MAX), RECONNECT_DELAY_MAX);
    }

    #[test]
    fn jitter_only_lengthens_and_by_a_quarter_at_most() {
        let first = Duration::from_secs(1);
        assert_eq!(backoff_from(first, 2, 0.0), Duration::from_secs(4));
        assert_eq!(backoff_from(first, 2, 1.0), Duration::from_secs(5));
        assert_eq!(backoff_from(first, 2, 7.0), Duration::from_secs(5));
    }
}
