//! Two paired devices and a relay: catch-up between two processes, with the relay in a third, and live writes.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use litemesh::{Database, Event, Peer};
use litemesh_nostr::nostr::{Filter, JsonUtil};
use litemesh_nostr::{CHANGES_KIND, Listener, NostrTransport, Store, join};
use nostr_relay_builder::builder::RateLimit;
use nostr_relay_builder::prelude::{MemoryDatabase, MemoryDatabaseOptions, NostrDatabase};
use nostr_relay_builder::{LocalRelay, RelayBuilder};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::process::peak_memory_kib;
use crate::traffic::{Bytes, Traffic};
use crate::workload::Text;
use crate::{Error, latency, nostr_original, workload};

#[derive(Args, Clone, Copy)]
pub struct Options {
    /// Rows of three cells each.
    #[arg(long, default_value_t = 100_000)]
    pub rows: usize,
    #[arg(long, default_value_t = 1000)]
    pub writes: usize,
    /// Keys like UUIDv4 and random titles, which do not compress, for the catch-up between Litemesh peers.
    #[arg(long)]
    random: bool,
    /// Counts the bytes to the relay and from it, in place of times and memory.
    #[arg(long)]
    bytes: bool,
    /// How many milliseconds later everything arrives that goes to the relay or comes from it.
    #[arg(long, default_value_t = 0)]
    delay: u64,
    /// Nothing else is measured.
    #[arg(long, value_enum, conflicts_with = "bytes")]
    only: Option<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Between Litemesh peers.
    CatchUp,
    /// Single writes, one after the other.
    Live,
    /// Catch-up of an original peer, and from one.
    Original,
}

impl Options {
    pub const fn new(rows: usize, writes: usize) -> Self {
        Self { rows, writes, random: false, bytes: false, delay: 0, only: None }
    }
}

pub async fn run(options: Options) -> Result<Value, Error> {
    let Options { rows, writes, random, bytes, delay, only } = options;
    let text = if random { Text::Random } else { Text::Counting };
    let memory = MemoryDatabase::with_opts(MemoryDatabaseOptions { events: true, max_events: None });
    let limit = RateLimit { max_reqs: 10_000, notes_per_minute: u32::MAX };
    let relay = LocalRelay::new(RelayBuilder::default().rate_limit(limit).database(memory.clone()));
    relay.run().await?;
    let mut url = relay.url().await.to_string();
    let traffic = Traffic::default();
    if bytes || delay > 0 {
        let address = url.strip_prefix("ws://").ok_or("no URL")?.trim_end_matches('/').to_owned();
        url = format!("ws://{}", traffic.forward(address, Duration::from_millis(delay)).await?);
    }
    let mut result = json!({ "scenario": "nostr", "random": random, "delay_ms": delay });
    if bytes {
        let (_, caught_up) = catch_up(rows, text, &url, &memory, &traffic).await?;
        let (_, live) = live(writes, &url, &traffic).await?;
        result["changes"] = json!(3 * rows);
        result["bytes"] = caught_up.for_changes(3 * rows);
        result["writes"] = json!(writes);
        result["bytes_live"] = live.for_changes(3 * writes);
        return Ok(result);
    }
    let is_wanted = |part| only.is_none_or(|only| only == part);
    if is_wanted(Part::CatchUp) {
        result["catch_up"] = catch_up(rows, text, &url, &memory, &traffic).await?.0;
    }
    if is_wanted(Part::Live) {
        result["live_ms"] = live(writes, &url, &traffic).await?.0;
        result["writes"] = json!(writes);
    }
    if is_wanted(Part::Original) {
        result["original"] = nostr_original::run(rows, &url, &memory).await?;
    }
    Ok(result)
}

/// A device that has nothing catches up with one that is there. Gives what went over the line meanwhile, too, where that is counted.
async fn catch_up(
    rows: usize,
    text: Text,
    relay: &str,
    memory: &MemoryDatabase,
    traffic: &Traffic,
) -> Result<(Value, Bytes), Error> {
    let folder = tempfile::tempdir()?;
    let files = ["full.db", "empty.db"].map(|name| folder.path().join(name));
    for (file, rows) in files.iter().zip([rows, 0]) {
        let db = Database::open(file)?;
        workload::create(&db)?;
        workload::fill_with(db.lock().connection(), rows, 1000, text)?;
    }
    pair(&files, relay).await?;
    let before = traffic.read();
    let [mut sender, mut receiver] = [start(&files[0])?, start(&files[1])?];
    let mut lines = BufReader::new(receiver.stdout.take().ok_or("no stdout")?).lines();
    let mut next = async || -> Result<f64, Error> { Ok(lines.next_line().await?.ok_or("a peer failed")?.parse()?) };
    let seconds = next().await?;
    drop(receiver.stdin.take());
    let receiver_kib = next().await?;
    receiver.wait().await?;
    drop(sender.stdin.take());
    let mut lines = BufReader::new(sender.stdout.take().ok_or("no stdout")?).lines();
    let mut sender_kib = None;
    while let Some(line) = lines.next_line().await? {
        sender_kib = Some(line.parse::<f64>()?);
    }
    sender.wait().await?;
    let has = workload::count(Database::open(&files[1])?.lock().connection())?;
    if has != rows {
        return Err(format!("{rows} rows expected, the receiver has {has}").into());
    }
    let over_the_line = traffic.read().since(before);
    let events = memory.query(Filter::new().kind(CHANGES_KIND)).await?;
    let bytes: usize = events.iter().map(|event| event.as_json().len()).sum();
    let changes = 3 * rows;
    let result = json!({
        "changes": changes,
        "seconds": seconds,
        "changes_per_second": (changes as f64 / seconds).round(),
        "events": events.len(),
        "bytes_per_change": ((bytes as f64 / changes as f64) * 100.0).round() / 100.0,
        "receiver_peak_mib": receiver_kib / 1024.0,
        "sender_peak_mib": sender_kib.ok_or("the sender failed")? / 1024.0,
    });
    Ok((result, over_the_line))
}

/// From commit to commit, one write after the other, both peers in this process; and what went over the line meanwhile, where that is
/// counted.
async fn live(writes: usize, relay: &str, traffic: &Traffic) -> Result<(Value, Bytes), Error> {
    let folder = tempfile::tempdir()?;
    let files = ["from.db", "to.db"].map(|name| folder.path().join(name));
    for file in &files {
        workload::create(&Database::open(file)?)?;
    }
    pair(&files, relay).await?;
    let [from, to] = [Database::open(&files[0])?, Database::open(&files[1])?];
    let sender = Peer::builder(from.clone()).transport(transport(&files[0])?).start().await?;
    let builder = Peer::builder(to.clone()).transport(transport(&files[1])?);
    let mut events = builder.events();
    let receiver = builder.start().await?;
    while !matches!(events.recv().await?, Event::Eose { .. }) {}
    let before = traffic.read();
    let live = latency::measure(&from, &mut events, &to, "live", writes).await?;
    let over_the_line = traffic.read().since(before);
    sender.stop().await;
    receiver.stop().await;
    Ok((live, over_the_line))
}

/// Syncs a file until standard input ends. Prints after how long everything was there, then the peak memory.
pub async fn sync(file: &std::path::Path) -> Result<(), Error> {
    let builder = Peer::builder(Database::open(file)?).transport(transport(file)?);
    let mut events = builder.events();
    let started = Instant::now();
    let peer = builder.start().await?;
    while !matches!(events.recv().await?, Event::Eose { .. }) {}
    println!("{}", started.elapsed().as_secs_f64());
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while lines.next_line().await?.is_some() {}
    peer.stop().await;
    println!("{}", peak_memory_kib()?);
    Ok(())
}

fn start(file: &std::path::Path) -> Result<Child, Error> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("paired").arg(file).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    Ok(command.spawn()?)
}

pub fn transport(file: &std::path::Path) -> Result<NostrTransport, Error> {
    Ok(NostrTransport::new(Arc::new(Store::open(&Store::path_beside(file))?)))
}

async fn pair(files: &[std::path::PathBuf; 2], relay: &str) -> Result<(), Error> {
    let site = |file| -> Result<_, Error> { Ok(Database::open(file)?.lock().site()?) };
    let stores = [Store::open(&Store::path_beside(&files[0]))?, Store::open(&Store::path_beside(&files[1]))?];
    let listener = Listener::start(site(&files[0])?, "one", &[relay]).await?;
    let string = listener.connection_string().clone();
    let joining = join(site(&files[1])?, "other", &string, &stores[1]);
    tokio::try_join!(listener.paired(&stores[0]), joining)?;
    Ok(())
}
