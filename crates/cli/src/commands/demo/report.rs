//! What the demo shows at its end.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::conflicts::Outcome;
use crate::failure::Failure;
use crate::output::{self, Output, thousands};

/// The end of the story; printed with `--json`.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) equal: bool,
    pub(super) hub_url: String,
    pub(super) files: Vec<FileReport>,
    pub(super) tables: Vec<TableReport>,
    pub(super) conflicts: Vec<Outcome>,
    pub(super) speed: Speed,
    pub(super) seconds: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct FileReport {
    pub(super) name: &'static str,
    pub(super) file: String,
    pub(super) site_id: String,
}

#[derive(Debug, Serialize)]
pub(super) struct TableReport {
    pub(super) table: String,
    pub(super) rows: u64,
    pub(super) equal: bool,
    /// By the name of the file.
    pub(super) digests: BTreeMap<&'static str, String>,
}

/// How fast it went.
#[derive(Debug, Serialize)]
pub(super) struct Speed {
    /// Two copies that had nothing, from the first dial on.
    catch_up: Pace,
    /// All three write and sync at once.
    at_once: Pace,
    /// Two that were offline, from the dial on.
    reunion: Pace,
    latency_ms: Latency,
}

/// Changes that travelled, and how long that took until the last cursor had moved.
#[derive(Debug, Serialize)]
pub(super) struct Pace {
    changes: u64,
    seconds: f64,
    changes_per_second: u64,
}

/// From before a write on the laptop until a query on the phone sees it, through the hub.
#[derive(Debug, Serialize)]
struct Latency {
    samples: usize,
    p50: f64,
    max: f64,
}

impl Pace {
    pub(super) fn new(changes: u64, took: Duration) -> Self {
        let seconds = took.as_secs_f64();
        let changes_per_second = if seconds > 0.0 { (changes as f64 / seconds) as u64 } else { 0 };
        Self { changes, seconds, changes_per_second }
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (changes, pace) = (thousands(self.changes), thousands(self.changes_per_second));
        write!(f, "{changes} changes in {:.2} s, {pace} changes/s", self.seconds)
    }
}

impl Speed {
    pub(super) fn new(catch_up: Pace, at_once: Pace, reunion: Pace, latencies: &[Duration]) -> Self {
        let mut sorted: Vec<f64> = latencies.iter().map(|latency| latency.as_secs_f64() * 1000.0).collect();
        sorted.sort_by(f64::total_cmp);
        let p50 = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
        let max = sorted.last().copied().unwrap_or_default();
        Self { catch_up, at_once, reunion, latency_ms: Latency { samples: sorted.len(), p50, max } }
    }
}

impl Report {
    /// Equal, and each conflict came to what its rule says.
    pub(super) fn is_success(&self) -> bool {
        self.equal && self.conflicts.iter().all(|outcome| outcome.as_expected)
    }

    pub(super) fn print(&self, output: &mut Output) -> Result<(), Failure> {
        output.line("\nWhat the conflicts came to")?;
        let mut drawn = output::table(["conflict", "hub", "laptop", "phone", "came to", "because"]);
        for outcome in &self.conflicts {
            let result =
                if outcome.as_expected { outcome.result.clone() } else { format!("{} (UNEXPECTED)", outcome.result) };
            drawn.add_row([outcome.conflict, outcome.hub, outcome.laptop, outcome.phone, &result, outcome.rule]);
        }
        output.line(drawn)?;

        output.line("\nWhat the files hold")?;
        let names: Vec<&str> = self.files.iter().map(|file| file.name).collect();
        let mut drawn = output::table(["table", "rows"].into_iter().chain(names.iter().copied()).chain(["equal"]));
        for table in &self.tables {
            let digests = names.iter().map(|name| table.digests.get(name).cloned().unwrap_or_default());
            let mut row = vec![table.table.clone(), thousands(table.rows)];
            row.extend(digests);
            row.push(if table.equal { "yes" } else { "NO" }.to_owned());
            drawn.add_row(row);
        }
        output.line(drawn)?;

        output.line("\nHow fast it went")?;
        let Speed { catch_up, at_once, reunion, latency_ms } = &self.speed;
        let mut drawn = output::table(["part", "changes", "seconds", "changes/s"]);
        for (part, pace) in
            [("two empty copies catch up", catch_up), ("all three write at once", at_once), ("two come back", reunion)]
        {
            let (changes, per_second) = (thousands(pace.changes), thousands(pace.changes_per_second));
            drawn.add_row([part.to_owned(), changes, format!("{:.2}", pace.seconds), per_second]);
        }
        output.line(drawn)?;
        output.line(format_args!(
            "a write on the laptop is on the phone after {:.1} ms (median of {}; the longest {:.1} ms)",
            latency_ms.p50, latency_ms.samples, latency_ms.max
        ))?;
        let verdict = match (self.equal, self.is_success()) {
            (true, true) => "The three files are equal.",
            (true, false) => "The three files are equal, but a conflict came to something that its rule does not say.",
            (false, _) => "THE FILES ARE NOT EQUAL. This is a mistake in litemesh, please report it.",
        };
        output.line(format_args!("\n{verdict} ({:.1} s)", self.seconds))
    }
}
