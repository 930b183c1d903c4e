//! Processes of their own: hub and peer, and a writer beside a peer.

use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use litemesh::channel::Channel;
use litemesh::proto::Access;
use litemesh::{Database, Event, Events, Limits, Peer};
use litemesh_http::HttpServer;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use crate::way::{self, Way};
use crate::{Error, hub, load};

/// Serves a file until standard input, which says what to do, ends; then prints its peak memory.
pub async fn hub(file: &Path, listen: &str) -> Result<(), Error> {
    load::raise_file_limit();
    let server = HttpServer::new();
    let limits = Limits { connections_max: 20_000, ..Limits::default() };
    let db = Database::open(file)?;
    let peer = Peer::builder(db.clone()).limits(limits).transport(server.clone()).start().await?;
    let listener = tokio::net::TcpListener::bind(listen).await?;
    println!("http://{}", listener.local_addr()?);
    let (end, ended) = oneshot::channel::<()>();
    let obeying = async {
        let orders = BufReader::new(tokio::io::stdin()).lines();
        let obeyed = hub::obey(&db, &peer, orders, tokio::io::stdout()).await;
        drop(end);
        obeyed
    };
    let serving = server.serve(listener, async move { drop(ended.await) });
    let (served, obeyed) = tokio::join!(serving, obeying);
    served?;
    obeyed?;
    peer.stop().await;
    println!("{}", peak_memory_kib()?);
    Ok(())
}

/// Serves a file to the peer that started this, over standard input and output, until these end and the socket beside the file, by
/// which it is told what to do; then says its peak memory there.
pub async fn stdio(file: &Path) -> Result<(), Error> {
    let db = Database::open(file)?;
    let channel = Channel::new();
    let peer = Peer::builder(db.clone()).transport(channel.clone()).start().await?;
    let (orders, mut answers) = UnixStream::connect(hub::socket_of(file)).await?.into_split();
    let (_, obeyed) = tokio::join!(
        channel.accept(tokio::io::stdin(), tokio::io::stdout(), Access::FULL),
        hub::obey(&db, &peer, BufReader::new(orders).lines(), &mut answers),
    );
    obeyed?;
    peer.stop().await;
    Ok(answers.write_all(format!("{}\n", peak_memory_kib()?).as_bytes()).await?)
}

/// Joins a hub until both directions are caught up; prints seconds, peak memory, and the bytes to the hub and from it, where these
/// are counted.
pub async fn join(file: &Path, far: &str, v1: bool, way: way::Options) -> Result<(), Error> {
    let way = Way::open(way.carrier(v1), far, v1, way.bytes).await?;
    let builder = Peer::builder(Database::open(file)?).shared_transport(way.transport.clone());
    let mut events = builder.events();
    let started = Instant::now();
    let peer = builder.start().await?;
    until_in_sync(&mut events).await?;
    println!("{}", started.elapsed().as_secs_f64());
    way.check()?;
    peer.stop().await;
    println!("{}", peak_memory_kib()?);
    let bytes = way.bytes();
    println!("{}\n{}", bytes.up, bytes.down);
    Ok(())
}

/// Until both directions are caught up.
pub async fn until_in_sync(events: &mut Events) -> Result<(), Error> {
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
    Ok(())
}

/// Inserts a row for each line of standard input, which is its key; prints when each was committed, in nanoseconds of the
/// wall clock, which is the one that processes share.
pub fn write(file: &Path) -> Result<(), Error> {
    let db = Database::open(file)?;
    for key in std::io::stdin().lines() {
        println!("{}", insert(&db, &key?)?);
    }
    Ok(())
}

/// Inserts a row, and gives when it was committed.
pub fn insert(db: &Database, key: &str) -> Result<u64, Error> {
    let engine = db.lock();
    engine.connection().execute("INSERT INTO todo VALUES (?1, 'live', 0, 0)", [key])?;
    nanos_now()
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
