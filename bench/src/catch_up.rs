//! Catch-up over loopback HTTP, in both directions.

use std::process::Stdio;

use clap::ValueEnum;
use litemesh::Database;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::{Error, workload};

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Direction {
    /// The hub has the rows, a new peer gets them.
    Down,
    /// A peer has them, the hub gets them.
    Up,
}

pub async fn run(rows: usize, direction: Direction, v1: bool, streams: bool) -> Result<Value, Error> {
    let folder = tempfile::tempdir()?;
    let (hub_file, peer_file) = (folder.path().join("hub.db"), folder.path().join("peer.db"));
    let (full, empty) = match direction {
        Direction::Down => (&hub_file, &peer_file),
        Direction::Up => (&peer_file, &hub_file),
    };
    let db = Database::open(full)?;
    workload::create(&db)?;
    workload::fill(db.lock().connection(), rows, 1000)?;
    drop(db);
    workload::create(&Database::open(empty)?)?;

    let program = std::env::current_exe()?;
    let mut hub = Command::new(&program)
        .arg("hub")
        .arg(&hub_file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut hub_lines = BufReader::new(hub.stdout.take().ok_or("no stdout")?).lines();
    let url = hub_lines.next_line().await?.ok_or("the hub did not start")?;
    let peer = Command::new(&program)
        .arg("join")
        .arg(&peer_file)
        .arg(&url)
        .args(v1.then_some("--v1"))
        .args(streams.then_some("--streams"))
        .stderr(Stdio::inherit())
        .output()
        .await?;
    let output = String::from_utf8(peer.stdout)?;
    let mut lines = output.lines();
    let seconds: f64 = lines.next().ok_or("the peer failed")?.parse()?;
    let peer_kib: u64 = lines.next().ok_or("the peer failed")?.parse()?;
    drop(hub.stdin.take());
    let hub_kib: u64 = hub_lines.next_line().await?.ok_or("the hub failed")?.parse()?;
    hub.wait().await?;

    let (hub_rows, peer_rows) = (rows_of(&hub_file)?, rows_of(&peer_file)?);
    if (hub_rows, peer_rows) != (rows, rows) {
        return Err(format!("{rows} rows expected, the hub has {hub_rows}, the peer {peer_rows}").into());
    }
    let changes = 3 * rows;
    Ok(json!({
        "scenario": "catch-up",
        "wire": if v1 { "v1, plain" } else { "v2" },
        "over": if streams { "streams" } else { "websocket" },
        "direction": format!("{direction:?}").to_lowercase(),
        "changes": changes,
        "seconds": seconds,
        "changes_per_second": (changes as f64 / seconds).round(),
        "hub_peak_mib": hub_kib / 1024,
        "peer_peak_mib": peer_kib / 1024,
    }))
}

fn rows_of(file: &std::path::Path) -> Result<usize, Error> {
    workload::count(Database::open(file)?.lock().connection())
}
