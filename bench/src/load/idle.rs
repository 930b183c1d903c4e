//! Peers that are connected and in sync, and do nothing.

use std::time::Duration;

use clap::Args;
use litemesh::Database;
use serde_json::{Value, json};

use super::herd::Herd;
use super::hub::{self, Hub};
use super::stalled;
use crate::Error;

#[derive(Args)]
pub struct Arguments {
    #[arg(long, default_value_t = 2000)]
    peers: usize,
    /// Rows that hub and peers have.
    #[arg(long, default_value_t = 1000)]
    rows: usize,
    /// Seconds to watch what the peers cost the hub when all are there.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Peers that join in a second, at most.
    #[arg(long, default_value_t = f64::INFINITY)]
    pace: f64,
    /// Seconds after which a peer closes the connection over which it posted: 15, as `HttpClient` does.
    #[arg(long, default_value_t = 15)]
    socket_idle: u64,
    /// Readers that take nothing of what they ask for, which is all rows.
    #[arg(long, default_value_t = 0)]
    stalled: usize,
    /// Sites that the hub knows besides, and each peer when it has asked.
    #[arg(long, default_value_t = 0)]
    sites: usize,
    /// Over streams and POSTs in place of WebSockets.
    #[arg(long)]
    streams: bool,
}

pub async fn run(arguments: &Arguments) -> Result<Value, Error> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("hub.db");
    let db = Database::open(&file)?;
    hub::create(&db)?;
    hub::fill(&db, "before", arguments.rows, 1)?;
    hub::know_sites(&db, arguments.sites)?;
    let hub = Hub::start(&file, "127.0.0.1:0").await?;
    let mut herd = Herd::new();
    herd.streams = arguments.streams;
    herd.socket_idle_timeout = Duration::from_secs(arguments.socket_idle);
    // The first few make the hub allocate what it needs once.
    herd.join(&hub.url, 1).await?;
    herd.join(&hub.url, 9).await?;
    let stalled = stalled::start(hub.address(), arguments.stalled);
    if arguments.stalled > 0 {
        // Until they have used up what the hub sends ahead to them.
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (before, peers_before) = (hub.memory_kib()?, herd.peers.len());
    let cpu_before = hub.cpu_seconds()?;
    herd.join_paced(&hub.url, arguments.peers, arguments.pace).await?;
    let joining_cpu = hub.cpu_seconds()? - cpu_before;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let cpu_before = hub.cpu_seconds()?;
    let after = hub.memory_kib()?;
    tokio::time::sleep(Duration::from_secs(arguments.seconds)).await;
    let idle_cpu = hub.cpu_seconds()? - cpu_before;
    let later = hub.memory_kib()?;
    // One write reaches all of them.
    let started = std::time::Instant::now();
    let seen_before = herd.seen.untimed_changes.load(std::sync::atomic::Ordering::Relaxed);
    hub::fill(&db, "news", 1, 1)?;
    let wanted = seen_before + herd.peers.len() as u64;
    while herd.seen.untimed_changes.load(std::sync::atomic::Ordering::Relaxed) < wanted {
        if started.elapsed() > Duration::from_secs(30) {
            return Err("a write did not reach all peers".into());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let news = started.elapsed();
    let added = herd.peers.len() - peers_before;
    let in_sync = herd.in_sync();
    let after_news = hub.memory_kib()?;
    let each = |now: u64| (now.saturating_sub(before) as f64 / added as f64 * 10.0).round() / 10.0;
    let result = json!({
        "scenario": "load idle", "streams": arguments.streams,
        "peers": added,
        "stalled": arguments.stalled,
        "sites": arguments.sites,
        "in_sync": in_sync,
        "hub_mib_before": before / 1024,
        "hub_mib": after / 1024,
        "hub_kib_a_peer": each(after),
        "hub_kib_a_peer_later": each(later),
        "hub_kib_a_peer_after_news": each(after_news),
        "hub_cpu_ms_a_join": (joining_cpu * 1e5 / added as f64).round() / 100.0,
        "hub_cpu_percent_idle": (idle_cpu * 1e4 / arguments.seconds as f64).round() / 100.0,
        "news_to_all_ms": news.as_millis(),
    });
    drop(stalled);
    herd.stop().await;
    Ok(result)
}
