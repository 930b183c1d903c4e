//! Catch-up between two processes, in both directions.

use std::process::Stdio;

use clap::ValueEnum;
use litemesh::Database;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::hub::Hub;
use crate::traffic::Bytes;
use crate::workload::Text;
use crate::{Error, way, workload};

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Direction {
    /// The hub has the rows, a new peer gets them.
    Down,
    /// A peer has them, the hub gets them.
    Up,
}

pub async fn run(rows: usize, direction: Direction, v1: bool, text: Text, way: way::Options) -> Result<Value, Error> {
    let folder = tempfile::tempdir()?;
    let (hub_file, peer_file) = (folder.path().join("hub.db"), folder.path().join("peer.db"));
    let (full, empty) = match direction {
        Direction::Down => (&hub_file, &peer_file),
        Direction::Up => (&peer_file, &hub_file),
    };
    let db = Database::open(full)?;
    workload::create(&db)?;
    workload::fill_with(db.lock().connection(), rows, 1000, text)?;
    drop(db);
    workload::create(&Database::open(empty)?)?;

    let carrier = way.carrier(v1);
    let hub = Hub::start(carrier, &hub_file).await?;
    let peer = Command::new(std::env::current_exe()?)
        .arg("join")
        .arg(&peer_file)
        .arg(&hub.far)
        .args(["--transport", carrier.name()])
        .args(v1.then_some("--v1"))
        .args(way.bytes.then_some("--bytes"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?
        .wait_with_output()
        .await?;
    let output = String::from_utf8(peer.stdout)?;
    let mut lines = output.lines();
    let mut next = || lines.next().ok_or("the peer failed");
    let seconds: f64 = next()?.parse()?;
    let peer_kib: u64 = next()?.parse()?;
    let bytes = Bytes { up: next()?.parse()?, down: next()?.parse()? };
    let hub_kib = hub.talk().await?.end().await?;

    let (hub_rows, peer_rows) = (rows_of(&hub_file)?, rows_of(&peer_file)?);
    if (hub_rows, peer_rows) != (rows, rows) {
        return Err(format!("{rows} rows expected, the hub has {hub_rows}, the peer {peer_rows}").into());
    }
    let changes = 3 * rows;
    let mut result = json!({
        "scenario": "catch-up",
        "wire": if v1 { "v1, plain" } else { "v2" },
        "over": carrier.name(),
        "direction": format!("{direction:?}").to_lowercase(),
        "changes": changes,
        "random": text == Text::Random,
    });
    if way.bytes {
        result["bytes"] = bytes.for_changes(changes);
    } else {
        result["seconds"] = json!(seconds);
        result["changes_per_second"] = json!((changes as f64 / seconds).round());
        result["hub_peak_mib"] = json!(hub_kib / 1024);
        result["peer_peak_mib"] = json!(peer_kib / 1024);
    }
    Ok(result)
}

fn rows_of(file: &std::path::Path) -> Result<usize, Error> {
    workload::count(Database::open(file)?.lock().connection())
}
