//! Processes of their own: the two of a catch-up, and a writer beside a peer.

use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use litemesh::{Database, Event, Limits, Peer};
use litemesh_http::{HttpClient, HttpServer};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::{Error, load};

/// Serves a file until standard input ends, then prints its peak memory.
pub async fn hub(file: &Path, listen: &str) -> Result<(), Error> {
    load::raise_file_limit();
    let server = HttpServer::new();
    let limits = Limits { connections_max: 20_000, ..Limits::default() };
    let peer = Peer::builder(Database::open(file)?).limits(limits).transport(server.clone()).start().await?;
    let listener = tokio::net::TcpListener::bind(listen).await?;
    println!("http://{}", listener.local_addr()?);
    let ended = async {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Ok(Some(_)) = lines.next_line().await {}
    };
    server.serve(listener, ended).await?;
    peer.stop().await;
    println!("{}", peak_memory_kib()?);
    Ok(())
}

/// Joins a hub until both directions are caught up; prints seconds and peak memory.
pub async fn join(file: &Path, url: &str, v1: bool, streams: bool) -> Result<(), Error> {
    let builder = Peer::builder(Database::open(file)?)
        .transport(HttpClient::builder(url).announce(!v1).websocket(!streams).build());
    let mut events = builder.events();
    let started = Instant::now();
    let peer = builder.start().await?;
    let (mut eose, mut served) = (false, false);
    while !(eose && served) {
        match events.recv().await? {
            Event::Eose { .. } => eose = true,
            Event::Served { .. } => served = true,
            Event::Error { message, .. } => return Err(message.into()),
            Event::Disconnect { reason, .. } => return Err(reason.into()),
            _ => {}
        }
    }
    println!("{}", started.elapsed().as_secs_f64());
    peer.stop().await;
    println!("{}", peak_memory_kib()?);
    Ok(())
}

/// Inserts a row for each line of standard input, which is its key; prints when each was committed, in nanoseconds of the
/// wall clock, which is the one that processes share.
pub fn write(file: &Path) -> Result<(), Error> {
    let db = Database::open(file)?;
    for key in std::io::stdin().lines() {
        db.lock().connection().execute("INSERT INTO todo VALUES (?1, 'live', 0, 0)", [key?])?;
        println!("{}", nanos_now()?);
    }
    Ok(())
}

pub fn nanos_now() -> Result<u64, Error> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?)
}

/// The process's peak resident memory, from the kernel.
pub fn peak_memory_kib() -> Result<u64, Error> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.split_whitespace().nth(1).ok_or("no VmHWM")?.parse()?)
}
