//! Small transactions that go from some peers to all others.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use clap::Args;
use litemesh::{Database, Peer};
use litemesh_http::HttpClient;
use serde_json::{Value, json};

use super::herd::Herd;
use super::hub::{self, Hub};
use super::stalled;
use crate::Error;

#[derive(Args)]
pub struct Arguments {
    /// Peers that read everything.
    #[arg(long, default_value_t = 200)]
    peers: usize,
    /// How many of them write.
    #[arg(long, default_value_t = 200)]
    writers: usize,
    /// Transactions a second, of all writers together. Each is one row.
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Seconds of writes before that are not measured: stalled readers have used up what the hub sends ahead to them then.
    #[arg(long, default_value_t = 3)]
    warm_up: u64,
    /// Readers that take nothing.
    #[arg(long, default_value_t = 0)]
    stalled: usize,
    /// Rows that the hub and its peers have before, and that stalled readers ask for.
    #[arg(long, default_value_t = 10_000)]
    rows: usize,
    /// Sites that the hub knows besides, which are not there any more.
    #[arg(long, default_value_t = 0)]
    sites: usize,
    /// Peers with a database, beside the others.
    #[arg(long, default_value_t = 1)]
    real: usize,
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
    hub::know_sites(&db, arguments.sites)?;
    let hub = Hub::start(&file, "127.0.0.1:0").await?;
    let mut herd = Herd::new();
    herd.streams = arguments.streams;
    herd.join(&hub.url, 1).await?;
    herd.join(&hub.url, arguments.peers.saturating_sub(1)).await?;
    let mut real = Vec::new();
    for n in 0..arguments.real {
        let db = Database::open(folder.path().join(format!("peer-{n}.db")))?;
        hub::create(&db)?;
        real.push((
            Peer::builder(db.clone())
                .transport(HttpClient::builder(&hub.url).websocket(!arguments.streams).build())
                .start()
                .await?,
            db,
        ));
    }
    let before = hub.memory_kib()?;
    let stalled = stalled::start(hub.address(), arguments.stalled);
    tokio::time::sleep(Duration::from_secs(if arguments.stalled > 0 { 5 } else { 1 })).await;
    let memory_at_start = hub.memory_kib()?;

    let writing = Duration::from_secs(arguments.warm_up + arguments.seconds);
    herd.write(arguments.writers, arguments.rate, writing);
    tokio::time::sleep(Duration::from_secs(arguments.warm_up)).await;
    herd.seen.measure_from_now();

    let messages_before = herd.seen.messages.load(Relaxed);
    let acks_before = herd.seen.acks.load(Relaxed);
    let (started, cpu_before, own_cpu_before) = (Instant::now(), hub.cpu_seconds()?, hub::cpu_seconds("self")?);
    tokio::time::sleep(Duration::from_secs(arguments.seconds)).await;
    let took = started.elapsed().as_secs_f64();
    let (cpu, own_cpu) = (hub.cpu_seconds()? - cpu_before, hub::cpu_seconds("self")? - own_cpu_before);
    // What is left on its way.
    let drain = Instant::now();
    let (mut writes, mut wanted);
    loop {
        writes = herd.seen.writes.load(Relaxed);
        wanted = writes * (herd.peers.len() as u64 - 1);
        let is_due = writes as f64 >= (arguments.rate * writing.as_secs_f64()).floor();
        let is_there = is_due && herd.seen.timed_changes.load(Relaxed) >= wanted;
        if is_there || drain.elapsed() > Duration::from_secs(60) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let drained = drain.elapsed();
    let rows = arguments.rows + usize::try_from(writes)?;
    let mut converged = hub::count(&db)? == rows;
    for (_, db) in &real {
        let patience = Instant::now();
        while hub::count(db)? != rows && patience.elapsed() < Duration::from_secs(10) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        converged &= hub::count(db)? == rows;
    }
    let seen = &herd.seen;
    let messages = seen.messages.load(Relaxed) - messages_before;
    let round = |number: f64| (number * 10.0).round() / 10.0;
    let result = json!({
        "scenario": "load fan-out", "streams": arguments.streams,
        "peers": herd.peers.len(),
        "stalled": arguments.stalled,
        "sites": arguments.sites,
        "transactions": writes,
        "posts": seen.posts.load(Relaxed),
        "arrived": seen.timed_changes.load(Relaxed),
        "arrived_missing": wanted.saturating_sub(seen.timed_changes.load(Relaxed)),
        "faults": seen.faults.load(Relaxed),
        "disconnects": seen.disconnects.load(Relaxed),
        "propagation_ms": seen.quantiles(),
        "p99_ms_by_second": seen.p99_by_second(),
        "drained_after_ms": drained.as_millis(),
        "converged": converged,
        "empty_messages": seen.empty_messages.load(Relaxed),
        "messages_a_peer_and_second": round(messages as f64 / herd.peers.len() as f64 / took),
        "acks_a_peer_and_second": round((seen.acks.load(Relaxed) - acks_before) as f64 / herd.peers.len() as f64 / took),
        "hub_cpu_percent": round(cpu * 100.0 / took),
        "tool_cpu_percent": round(own_cpu * 100.0 / took),
        "hub_mib": [before / 1024, memory_at_start / 1024, hub.memory_kib()? / 1024],
        "hub_peak_mib": hub.peak_memory_kib()? / 1024,
    });
    drop(stalled);
    for (peer, _) in real {
        peer.stop().await;
    }
    herd.stop().await;
    Ok(result)
}
