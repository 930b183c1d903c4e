//! The deviations that random programs meet. Nothing else may differ.
//!
//! Each is in [`crate::register`] as well, with the script that shows it.

use std::collections::BTreeMap;

/// What explains a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Deviation {
    MovedCells,
    EvenLength,
    IdleVersions,
    VersionFloor,
    UnusedNumbers,
    BackfillOrder,
    RevivedInside,
    UnreadRows,
    IgnoredKeys,
    SentinelLength,
    FailedMerge,
    SyncBitLeft,
    ImpactedRewound,
    TrueOrder,
    Alternatives,
}

impl Deviation {
    pub(crate) const ALL: [Self; 15] = [
        Self::MovedCells,
        Self::EvenLength,
        Self::IdleVersions,
        Self::VersionFloor,
        Self::UnusedNumbers,
        Self::BackfillOrder,
        Self::RevivedInside,
        Self::UnreadRows,
        Self::IgnoredKeys,
        Self::SentinelLength,
        Self::FailedMerge,
        Self::SyncBitLeft,
        Self::ImpactedRewound,
        Self::TrueOrder,
        Self::Alternatives,
    ];

    /// Its rule in the specification, and what differs.
    pub(crate) fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::MovedCells => ("LW-6", "cells that an UPDATE of the key moves are stamped anew"),
            Self::EvenLength => ("4.5", "a deletion leads to an even causal length, whatever was there"),
            Self::IdleVersions => ("VER-6", "what records nothing uses up no version and leaves no key"),
            Self::VersionFloor => ("VER-7", "db_version does not fall when clocks go"),
            Self::UnusedNumbers => ("VER-9", "what fails or is rolled back to a savepoint uses up no numbers"),
            Self::BackfillOrder => ("CRR-5", "rows that were there before are numbered in the order of the table"),
            Self::RevivedInside => ("ALT-5", "rows written over their tombstones inside a window are alive"),
            Self::UnreadRows => ("ALT-6", "a window that only adds columns looks at no rows"),
            Self::IgnoredKeys => ("MRG-5", "changes that are ignored leave no key"),
            Self::SentinelLength => ("MRG-6", "a sentinel's version is the causal length"),
            Self::FailedMerge => ("MRG-14", "a merge that fails leaves nothing behind in its transaction"),
            Self::SyncBitLeft => ("MRG-15", "writes are recorded after a merge that failed"),
            Self::ImpactedRewound => ("FN-5", "crsql_rows_impacted() forgets what was rolled back"),
            Self::TrueOrder => ("VT-10", "ORDER BY gives the order that it names"),
            Self::Alternatives => ("VT-8", "OR loses no changes"),
        }
    }
}

/// How often each deviation explained a difference.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hits(BTreeMap<Deviation, u64>);

impl Hits {
    pub(crate) fn count(&mut self, deviation: Deviation) {
        *self.0.entry(deviation).or_default() += 1;
    }

    pub(crate) fn of(&self, deviation: Deviation) -> u64 {
        self.0.get(&deviation).copied().unwrap_or_default()
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (deviation, count) in &other.0 {
            *self.0.entry(*deviation).or_default() += count;
        }
    }
}
