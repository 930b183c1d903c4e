//! How long we wait before something is done again, for tests to shorten.

use std::time::Duration;

/// What the pauses of this crate are divided by: those before a relay is asked, told or dialled again, and those before we look. Their
/// proportions stay the same. How long others may take is not among them: that would depend on how fast a machine is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pauses {
    divisor: u32,
}

impl Pauses {
    /// As they are where people wait.
    pub(crate) const USUAL: Self = Self { divisor: 1 };

    /// So many times shorter. 0 counts as 1.
    pub(crate) fn divided_by(divisor: u32) -> Self {
        Self { divisor: divisor.max(1) }
    }

    /// How long the pause is that is this long usually.
    pub(crate) fn of(self, usual: Duration) -> Duration {
        usual / self.divisor
    }
}
