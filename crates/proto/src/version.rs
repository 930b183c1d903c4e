//! The counters of a change. No raw integers beyond this file: swapped arguments would pass every test that uses equal
//! values.

use std::fmt;

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(i64);

        impl $name {
            /// Zero: before everything.
            pub const ZERO: Self = Self(0);

            /// Wraps SQLite's integer.
            pub const fn new(value: i64) -> Self {
                Self(value)
            }

            /// SQLite's integer.
            pub const fn get(self) -> i64 {
                self.0
            }

            /// The next value. Saturates: the bounds of `limits` are far below the end of the range.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }

            /// The previous value, never below zero.
            #[must_use]
            pub const fn previous(self) -> Self {
                if self.0 > 0 { Self(self.0 - 1) } else { Self(0) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter! {
    /// A version of one database: one new value for each of its writing transactions, strictly increasing, not contiguous
    /// (a Lamport clock: it also jumps over every version that is merged). `crsqlite-compat.md` VER-1 to VER-8.
    DbVersion
}
counter! {
    /// How often one cell was written, a Lamport clock per cell. The larger one wins at equal causal length.
    ColVersion
}
counter! {
    /// Position of a change inside its author's transaction. Gaps are legal.
    Seq
}
counter! {
    /// Causal length of a row: odd = alive, even = deleted, 0 = never seen. The larger one wins before anything else.
    CausalLength
}

impl CausalLength {
    /// First life of a row.
    pub const FIRST: Self = Self(1);

    /// Whether a row of this causal length exists.
    pub const fn is_alive(self) -> bool {
        self.0 % 2 != 0
    }

    /// Causal length after the row is deleted: the next even number (`crsqlite-compat.md` 4.5, with its FIX).
    #[must_use]
    pub const fn deleted(self) -> Self {
        if self.0 == 0 {
            Self(2)
        } else if self.is_alive() {
            Self(self.0 + 1)
        } else {
            Self(self.0 + 2)
        }
    }

    /// Causal length after the row is inserted (again): the next odd number.
    #[must_use]
    pub const fn inserted(self) -> Self {
        if self.is_alive() { Self(self.0 + 2) } else { Self(self.0 + 1) }
    }
}
