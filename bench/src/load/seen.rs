//! What all light peers together have seen: counters, and how long transactions took.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use litemesh::proto::limits::HERD_WINDOW;
use serde_json::{Value, json};

/// One bucket for each half millisecond; the last holds all that took longer.
const BUCKETS: usize = 60_000;

/// One bucket for each millisecond of a second; the last holds all that took longer.
const SECOND_BUCKETS: usize = 2000;
const SECONDS_MAX: usize = 120;

pub struct Seen {
    pub in_sync: AtomicU64,
    pub connects: AtomicU64,
    pub disconnects: AtomicU64,
    pub messages: AtomicU64,
    /// Messages without changes: ends of answers, and news of what the hub holds.
    pub empty_messages: AtomicU64,
    /// Changes that carry a time.
    pub timed_changes: AtomicU64,
    pub untimed_changes: AtomicU64,
    pub acks: AtomicU64,
    pub writes: AtomicU64,
    /// Messages that carried writes.
    pub posts: AtomicU64,
    /// Numbers that were missing, and what could not be read.
    pub faults: AtomicU64,
    /// What comes before is not measured.
    measured_from: OnceLock<Instant>,
    took: Vec<AtomicU64>,
    /// The same by the second in which they came, in milliseconds.
    by_second: Vec<[AtomicU64; SECOND_BUCKETS]>,
    connected_at: Mutex<Vec<Instant>>,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            in_sync: AtomicU64::new(0),
            connects: AtomicU64::new(0),
            disconnects: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            empty_messages: AtomicU64::new(0),
            timed_changes: AtomicU64::new(0),
            untimed_changes: AtomicU64::new(0),
            acks: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            posts: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            measured_from: OnceLock::new(),
            took: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            by_second: (0..SECONDS_MAX).map(|_| std::array::from_fn(|_| AtomicU64::new(0))).collect(),
            connected_at: Mutex::default(),
        }
    }
}

impl Seen {
    pub fn measure_from_now(&self) {
        self.measured_from.get_or_init(Instant::now);
    }

    /// A change came so many nanoseconds after it was to be written.
    pub fn note(&self, nanos: u64) {
        self.timed_changes.fetch_add(1, Relaxed);
        let Some(from) = self.measured_from.get() else { return };
        let bucket = usize::try_from(nanos / 500_000).unwrap_or(BUCKETS).min(BUCKETS - 1);
        self.took[bucket].fetch_add(1, Relaxed);
        let second = usize::try_from(from.elapsed().as_secs()).unwrap_or(SECONDS_MAX);
        if let Some(buckets) = self.by_second.get(second) {
            let bucket = usize::try_from(nanos / 1_000_000).unwrap_or(SECOND_BUCKETS).min(SECOND_BUCKETS - 1);
            buckets[bucket].fetch_add(1, Relaxed);
        }
    }

    /// Milliseconds within which 99 in a hundred came, of those that came in each second.
    pub fn p99_by_second(&self) -> Vec<usize> {
        let seconds = self.by_second.iter().map(|buckets| {
            let counts = buckets.each_ref().map(|bucket| bucket.load(Relaxed));
            let wanted = (counts.iter().sum::<u64>() as f64 * 0.99).ceil() as u64;
            let mut sum = 0;
            let bucket = counts.iter().position(|count| {
                sum += count;
                sum >= wanted
            });
            bucket.filter(|_| wanted > 0).map(|bucket| bucket + 1)
        });
        seconds.map_while(|p99| p99).collect()
    }

    pub fn note_connect(&self) {
        self.connects.fetch_add(1, Relaxed);
        self.connected_at.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
    }

    /// Milliseconds: half, 99 and 99.9 in a hundred took no longer, and none did.
    pub fn quantiles(&self) -> Value {
        let counts: Vec<u64> = self.took.iter().map(|bucket| bucket.load(Relaxed)).collect();
        let total: u64 = counts.iter().sum();
        let at = |share: f64| {
            let wanted = (total as f64 * share).ceil() as u64;
            let mut sum = 0;
            let bucket = counts.iter().position(|count| {
                sum += count;
                sum >= wanted
            });
            bucket.map(|bucket| (bucket + 1) as f64 / 2.0)
        };
        json!({ "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999), "max": at(1.0) })
    }

    /// When connections began, in order, of those after `since`.
    fn connects_since(&self, since: Instant) -> Vec<Instant> {
        let connected = self.connected_at.lock().unwrap_or_else(PoisonError::into_inner);
        let mut connects: Vec<Instant> = connected.iter().copied().filter(|at| *at >= since).collect();
        connects.sort_unstable();
        connects
    }

    /// Most connections that began within a [`HERD_WINDOW`], wherever it lies, of those after `since`.
    pub fn connects_at_once(&self, since: Instant) -> usize {
        let connects = self.connects_since(since);
        let until = |from: Instant| connects.partition_point(|at| *at < from + HERD_WINDOW);
        connects.iter().enumerate().map(|(before, from)| until(*from) - before).max().unwrap_or(0)
    }

    /// How many of them began within a [`HERD_WINDOW`] on average, between the first and the last.
    pub fn connects_evenly(&self, since: Instant) -> f64 {
        let connects = self.connects_since(since);
        let (Some(first), Some(last)) = (connects.first(), connects.last()) else { return 0.0 };
        let windows = last.duration_since(*first).as_secs_f64() / HERD_WINDOW.as_secs_f64();
        (connects.len() as f64 / windows.max(1.0)).round()
    }
}
