//! A hub that is killed, and whose peers all come back.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use clap::Args;
use litemesh::Database;
use litemesh::proto::limits::HERD_SHARE_MAX;
use serde_json::{Value, json};

use super::herd::Herd;
use super::hub::{self, Hub};
use crate::Error;

#[derive(Args)]
pub struct Arguments {
    #[arg(long, default_value_t = 500)]
    peers: usize,
    /// Rows that hub and peers have before.
    #[arg(long, default_value_t = 10_000)]
    rows: usize,
    /// Rows that are written while the hub is down, a transaction each.
    #[arg(long, default_value_t = 1000)]
    missed: usize,
    /// How long the hub stays away, in milliseconds.
    #[arg(long, default_value_t = 500)]
    away: u64,
    /// How often it is killed.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Peers dial again after the original's delays, all of them after the same.
    #[arg(long)]
    no_jitter: bool,
    /// Over streams and POSTs in place of WebSockets.
    #[arg(long)]
    streams: bool,
}

pub async fn run(arguments: &Arguments) -> Result<Value, Error> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("hub.db");
    let db = Database::open(&file)?;
    hub::create(&db)?;
    hub::fill(&db, "before", arguments.rows, 100)?;
    let mut hub = Hub::start(&file, "127.0.0.1:0").await?;
    let listen = hub.address().to_owned();
    let mut herd = Herd::new();
    herd.streams = arguments.streams;
    herd.has_jitter = !arguments.no_jitter;
    herd.join(&hub.url, 1).await?;
    herd.join(&hub.url, arguments.peers.saturating_sub(1)).await?;
    let mut rounds = Vec::new();
    for round in 0..arguments.rounds {
        let missed_before = herd.seen.untimed_changes.load(Relaxed);
        let (killed, memory_before) = (Instant::now(), hub.memory_kib()?);
        hub.kill().await?;
        hub::fill(&db, &format!("missed-{round}"), arguments.missed, 1)?;
        while killed.elapsed() < Duration::from_millis(arguments.away) || herd.in_sync() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        hub = Hub::start(&file, &listen).await?;
        let (back, connects_before) = (Instant::now(), herd.seen.connects.load(Relaxed));
        herd.wait_for_sync(Duration::from_secs(120)).await?;
        let in_sync = back.elapsed();
        let missed = herd.seen.untimed_changes.load(Relaxed) - missed_before;
        rounds.push(json!({
            "in_sync_after_ms": in_sync.as_millis(),
            "since_kill_ms": killed.elapsed().as_millis(),
            "connects": herd.seen.connects.load(Relaxed) - connects_before,
            // No thundering herd: so many at most.
            "connects_in_100_ms_max": herd.seen.connects_at_once(back),
            "connects_in_100_ms_bar": (HERD_SHARE_MAX * herd.peers.len() as f64).floor(),
            // If all of them came evenly within the time in which they did.
            "connects_in_100_ms_even": herd.seen.connects_evenly(back),
            "missed_rows_each": missed as f64 / herd.peers.len() as f64,
            "hub_cpu_seconds": hub.cpu_seconds()?,
            "hub_mib_before": memory_before / 1024,
            "hub_peak_mib": hub.peak_memory_kib()? / 1024,
        }));
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let result = json!({
        "scenario": "load restart", "streams": arguments.streams,
        "peers": herd.peers.len(),
        "jitter": !arguments.no_jitter,
        "missed": arguments.missed,
        "faults": herd.seen.faults.load(Relaxed),
        "rounds": rounds,
    });
    herd.stop().await;
    Ok(result)
}
