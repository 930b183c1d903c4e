//! What happened, line by line: its end is printed where a check fails, its hash tells whether two runs were the same.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::Duration;

/// Lines that are kept for a failure.
const LINES_KEPT: usize = 80;

/// The variable that prints every line as it happens.
const TRACE_VARIABLE: &str = "LITEMESH_TRACE";

pub(super) struct Trace {
    lines: VecDeque<String>,
    count: u64,
    hash: u64,
    is_printed: bool,
}

impl Trace {
    pub(super) fn new() -> Self {
        let is_printed = std::env::var_os(TRACE_VARIABLE).is_some();
        Self { lines: VecDeque::new(), count: 0, hash: 0xcbf2_9ce4_8422_2325, is_printed }
    }

    pub(super) fn add(&mut self, now: Duration, what: std::fmt::Arguments<'_>) {
        let mut line = if self.lines.len() == LINES_KEPT { self.lines.pop_front() } else { None }.unwrap_or_default();
        line.clear();
        write!(line, "{:>12.6} {what}", now.as_secs_f64()).expect("a String takes everything");
        // FNV-1a: the same on every machine and in every version of Rust.
        for byte in line.bytes().chain([b'\n']) {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        self.count += 1;
        if self.is_printed {
            eprintln!("{line}");
        }
        self.lines.push_back(line);
    }

    /// The same for two runs in which the same happened.
    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn tail(&self) -> String {
        let mut tail =
            format!("the last {} of {} lines ({TRACE_VARIABLE}=1 prints all):\n", self.lines.len(), self.count);
        for line in &self.lines {
            tail.push_str(line);
            tail.push('\n');
        }
        tail
    }
}
