//! What all light peers together have seen: counters, and how long transactions took.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};

/// One bucket for each half millisecond; the last holds all that took longer.
const BUCKETS: usize = 60_000;

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
    took: Vec<AtomicU64>,
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
            took: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            connected_at: Mutex::default(),
        }
    }
}

impl Seen {
    /// A change came so many nanoseconds after it was to be written.
    pub fn note(&self, nanos: u64) {
        let bucket = usize::try_from(nanos / 500_000).unwrap_or(BUCKETS).min(BUCKETS - 1);
        self.took[bucket].fetch_add(1, Relaxed);
        self.timed_changes.fetch_add(1, Relaxed);
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

    /// Most connections that began within a tenth of a second, of those after `since`.
    pub fn connects_at_once(&self, since: Instant) -> usize {
        let connected = self.connected_at.lock().unwrap_or_else(PoisonError::into_inner);
        let mut counts = std::collections::HashMap::new();
        for at in connected.iter().filter(|at| **at >= since) {
            *counts.entry(at.duration_since(since).as_millis() / 100).or_insert(0) += 1;
        }
        counts.into_values().max().unwrap_or(0)
    }
}
