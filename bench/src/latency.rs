//! From commit to commit: one writer, one reader, a real HTTP connection between them.

use std::time::{Duration, Instant};

use litemesh::{Database, Event, Events, Peer};
use litemesh_http::{HttpClient, HttpServer};
use serde_json::{Value, json};

use crate::{Error, workload};

pub async fn run(writes: usize) -> Result<Value, Error> {
    let folder = tempfile::tempdir()?;
    let (hub_db, peer_db) =
        (Database::open(folder.path().join("hub.db"))?, Database::open(folder.path().join("peer.db"))?);
    workload::create(&hub_db)?;
    workload::create(&peer_db)?;
    let server = HttpServer::new();
    let hub_builder = Peer::builder(hub_db.clone()).transport(server.clone());
    let mut hub_events = hub_builder.events();
    let hub = hub_builder.start().await?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let serving = tokio::spawn(async move { server.serve(listener, std::future::pending()).await });
    let peer_builder = Peer::builder(peer_db.clone()).transport(HttpClient::new(&url));
    let mut peer_events = peer_builder.events();
    let peer = peer_builder.start().await?;
    while !matches!(peer_events.recv().await?, Event::Eose { .. }) {}
    while !matches!(hub_events.recv().await?, Event::Eose { .. }) {}

    let down = measure(&hub_db, &mut peer_events, &peer_db, "down", writes).await?;
    let up = measure(&peer_db, &mut hub_events, &hub_db, "up", writes).await?;
    peer.stop().await;
    hub.stop().await;
    serving.abort();
    Ok(json!({ "scenario": "live latency", "hub_to_peer_ms": down, "peer_to_hub_ms": up, "writes": writes }))
}

async fn measure(
    from: &Database,
    events: &mut Events,
    to: &Database,
    name: &str,
    writes: usize,
) -> Result<Value, Error> {
    let mut latencies = Vec::with_capacity(writes);
    let before = workload::count(to.lock().connection())?;
    for n in 0..writes {
        let committed = {
            let engine = from.lock();
            engine.connection().execute("INSERT INTO todo VALUES (?1, 'live', 0, 0)", [format!("{name}-{n}")])?;
            Instant::now()
        };
        // The row is committed at the far side when its change event comes; other events may come before it.
        while workload::count(to.lock().connection())? < before + n + 1 {
            while !matches!(events.recv().await?, Event::Change { .. }) {}
        }
        latencies.push(committed.elapsed());
    }
    latencies.sort();
    let at = |share: f64| millis(latencies[((latencies.len() - 1) as f64 * share) as usize]);
    Ok(json!({ "p50": at(0.5), "p99": at(0.99), "max": at(1.0) }))
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
