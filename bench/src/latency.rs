//! From commit to commit: one writer, one reader, a real HTTP connection between them. The writer is the peer's own process,
//! or another one that writes to the peer's file.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use litemesh::{Database, Event, Events, Peer};
use litemesh_http::{HttpClient, HttpServer};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

use crate::{Error, process, workload};

pub async fn run(writes: usize, streams: bool) -> Result<Value, Error> {
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
    let peer_builder = Peer::builder(peer_db.clone()).transport(HttpClient::builder(&url).websocket(!streams).build());
    let mut peer_events = peer_builder.events();
    let peer = peer_builder.start().await?;
    while !matches!(peer_events.recv().await?, Event::Eose { .. }) {}
    while !matches!(hub_events.recv().await?, Event::Eose { .. }) {}

    let down = measure(&hub_db, &mut peer_events, &peer_db, "down", writes).await?;
    let up = measure(&peer_db, &mut hub_events, &hub_db, "up", writes).await?;
    let foreign = measure_foreign(&folder.path().join("peer.db"), &mut hub_events, &hub_db, writes).await?;
    peer.stop().await;
    hub.stop().await;
    serving.abort();
    Ok(json!({
        "scenario": "live latency", "over": if streams { "streams" } else { "websocket" }, "hub_to_peer_ms": down, "peer_to_hub_ms": up, "other_process_to_hub_ms": foreign,
        "writes": writes,
    }))
}

/// One write after the other, each until it is there.
pub async fn measure(
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
        wait_for_rows(events, to, before + n + 1).await?;
        latencies.push(committed.elapsed());
    }
    Ok(quantiles(latencies))
}

/// As [`measure`], with a writer that is another process: the peer hears of its commits from the file alone.
async fn measure_foreign(file: &Path, events: &mut Events, to: &Database, writes: usize) -> Result<Value, Error> {
    let mut writer = Command::new(std::env::current_exe()?)
        .arg("write")
        .arg(file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut keys = writer.stdin.take().ok_or("no stdin")?;
    let mut commits = BufReader::new(writer.stdout.take().ok_or("no stdout")?).lines();
    let mut latencies = Vec::with_capacity(writes);
    let before = workload::count(to.lock().connection())?;
    for n in 0..writes {
        keys.write_all(format!("foreign-{n}\n").as_bytes()).await?;
        let committed: u64 = commits.next_line().await?.ok_or("the writer ended")?.parse()?;
        wait_for_rows(events, to, before + n + 1).await?;
        latencies.push(Duration::from_nanos(process::nanos_now()?.saturating_sub(committed)));
    }
    drop(keys);
    writer.wait().await?;
    Ok(quantiles(latencies))
}

async fn wait_for_rows(events: &mut Events, db: &Database, rows: usize) -> Result<(), Error> {
    while workload::count(db.lock().connection())? < rows {
        while !matches!(events.recv().await?, Event::Change { .. }) {}
    }
    Ok(())
}

fn quantiles(mut latencies: Vec<Duration>) -> Value {
    latencies.sort();
    let at = |share: f64| millis(latencies[((latencies.len() - 1) as f64 * share) as usize]);
    json!({ "p50": at(0.5), "p99": at(0.99), "max": at(1.0) })
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
