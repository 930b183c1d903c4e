//! From commit to commit: one writer, one reader, a real connection between them. Hub and peer are processes of their own; the writer is
//! one of them, or another one that writes to the peer's file.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use litemesh::{Database, Event, EventError, Events, Peer};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

use crate::hub::{Hub, Talk};
use crate::way::{self, Way};
use crate::{Error, process, workload};

pub async fn run(writes: usize, options: way::Options) -> Result<Value, Error> {
    let folder = tempfile::tempdir()?;
    let (hub_file, peer_file) = (folder.path().join("hub.db"), folder.path().join("peer.db"));
    workload::create(&Database::open(&hub_file)?)?;
    let db = Database::open(&peer_file)?;
    workload::create(&db)?;
    let carrier = options.carrier(false);
    let hub = Hub::start(carrier, &hub_file).await?;
    let way = Way::open(carrier, &hub.far, false, options.bytes).await?;
    let builder = Peer::builder(db.clone()).shared_transport(way.transport.clone());
    let mut events = builder.events();
    let peer = builder.start().await?;
    process::until_in_sync(&mut events).await?;
    way.check()?;
    let mut hub = hub.talk().await?;

    let before = way.bytes();
    let down = measure_down(&mut hub, &mut events, &db, writes).await?;
    let between = way.bytes();
    let up = measure_up(&db, &mut hub, writes).await?;
    let after = way.bytes();
    let foreign = measure_foreign(&peer_file, &mut hub, writes).await?;
    peer.stop().await;
    hub.end().await?;
    let mut result = json!({ "scenario": "live latency", "over": carrier.name(), "writes": writes });
    if options.bytes {
        // A row is three changes.
        result["bytes_hub_to_peer"] = between.since(before).for_changes(3 * writes);
        result["bytes_peer_to_hub"] = after.since(between).for_changes(3 * writes);
    } else {
        result["hub_to_peer_ms"] = down;
        result["peer_to_hub_ms"] = up;
        result["other_process_to_hub_ms"] = foreign;
    }
    Ok(result)
}

async fn measure_down(hub: &mut Talk, events: &mut Events, to: &Database, writes: usize) -> Result<Value, Error> {
    let mut latencies = Vec::with_capacity(writes);
    let before = workload::count(to.lock().connection())?;
    for n in 0..writes {
        hub.order(&format!("write down-{n}")).await?;
        let arrival = async {
            wait_for_rows(events, to, before + n + 1).await?;
            process::nanos_now()
        };
        // The row may be here before the hub has said when it was committed.
        let (arrived, committed) = tokio::try_join!(arrival, hub.answer())?;
        latencies.push(nanos_between(committed.parse()?, arrived));
    }
    Ok(quantiles(latencies))
}

async fn measure_up(from: &Database, hub: &mut Talk, writes: usize) -> Result<Value, Error> {
    let mut latencies = Vec::with_capacity(writes);
    expect(hub, writes).await?;
    for n in 0..writes {
        let committed = process::insert(from, &format!("up-{n}"))?;
        latencies.push(nanos_between(committed, hub.answer().await?.parse()?));
    }
    Ok(quantiles(latencies))
}

/// Lets the hub say when each of the next rows arrives.
async fn expect(hub: &mut Talk, writes: usize) -> Result<(), Error> {
    hub.order(&format!("arrivals {writes}")).await?;
    match hub.answer().await?.as_str() {
        "ready" => Ok(()),
        other => Err(format!("the hub is not ready: {other}").into()),
    }
}

/// One write after the other, each until it is there, between two peers of this process.
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

/// As [`measure_up`], with a writer that is another process: the peer hears of its commits from the file alone.
async fn measure_foreign(file: &Path, hub: &mut Talk, writes: usize) -> Result<Value, Error> {
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
    expect(hub, writes).await?;
    for n in 0..writes {
        keys.write_all(format!("foreign-{n}\n").as_bytes()).await?;
        let committed: u64 = commits.next_line().await?.ok_or("the writer ended")?.parse()?;
        latencies.push(nanos_between(committed, hub.answer().await?.parse()?));
    }
    drop(keys);
    writer.wait().await?;
    Ok(quantiles(latencies))
}

/// Until so many rows are there.
pub async fn wait_for_rows(events: &mut Events, db: &Database, rows: usize) -> Result<(), Error> {
    while workload::count(db.lock().connection())? < rows {
        loop {
            match events.recv().await {
                // Who fell behind looks again.
                Ok(Event::Change { .. }) | Err(EventError::Lagged(_)) => break,
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

fn nanos_between(committed: u64, arrived: u64) -> Duration {
    Duration::from_nanos(arrived.saturating_sub(committed))
}

fn quantiles(mut latencies: Vec<Duration>) -> Value {
    latencies.sort();
    let at = |share: f64| millis(latencies[((latencies.len() - 1) as f64 * share) as usize]);
    json!({ "p50": at(0.5), "p99": at(0.99), "max": at(1.0) })
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
