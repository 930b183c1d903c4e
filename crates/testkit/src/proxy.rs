//! A TCP proxy between two peers, which does to their connections what networks do.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// Bytes that are passed on at once. More than a frame of live traffic, less than a catch-up.
const PIECE_BYTES: usize = 16 * 1024;

/// How often a slow line passes something on.
const TICK: Duration = Duration::from_millis(20);

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the peer to the hub.
    Up,
    /// From the hub to the peer.
    Down,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// In order, after everything that was passed on.
    Close,
    /// By a reset, which may overtake what was passed on before.
    Reset,
}

/// What the line does with what comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// It passes everything on.
    Clear,
    /// Connections are reset as they come.
    Down,
    /// New connections stand, and nothing is passed on yet.
    Held,
    /// Connections with smaller numbers are half-open: what comes is swallowed, and nobody hears of any end, until they are
    /// ended here.
    Silent {
        /// The first number that is let through.
        below: u64,
    },
    /// At most so many bytes a second.
    Slow {
        /// In each direction.
        bytes_per_second: usize,
    },
    /// Every piece is held back for so long.
    Late(Duration),
}

#[derive(Clone, Copy, Debug)]
struct State {
    line: Line,
    hub: Option<SocketAddr>,
    /// Connections with smaller numbers have ended, like this.
    ended_below: u64,
    /// One connection that has ended, too.
    ended: Option<u64>,
    ending: Ending,
}

impl State {
    fn has_ended(&self, number: u64) -> bool {
        number < self.ended_below || self.ended == Some(number)
    }

    fn is_silent(&self, number: u64) -> bool {
        matches!(self.line, Line::Silent { below } if number < below)
    }
}

/// Ends all connections after a number of bytes in one direction.
#[derive(Clone, Copy, Debug)]
struct Cut {
    way: Way,
    bytes: usize,
    ending: Ending,
}

struct Shared {
    state: watch::Sender<State>,
    cut: Mutex<Option<Cut>>,
    /// Cuts that were made.
    cuts: watch::Sender<u64>,
    /// Connections that were accepted: the number of the next one.
    connections: AtomicU64,
    up: watch::Sender<u64>,
    down: watch::Sender<u64>,
}

/// A proxy. Its connections end when it is dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

impl Proxy {
    /// A proxy that leads nowhere yet.
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        // Without waiting: this may be called from within another runtime.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let listener = {
            let _entered = runtime.enter();
            TcpListener::from_std(listener).unwrap()
        };
        let state = State { line: Line::Clear, hub: None, ended_below: 0, ended: None, ending: Ending::Close };
        let shared = Arc::new(Shared {
            state: watch::Sender::new(state),
            cut: Mutex::default(),
            cuts: watch::Sender::new(0),
            connections: AtomicU64::new(0),
            up: watch::Sender::new(0),
            down: watch::Sender::new(0),
        });
        runtime.spawn(accept(listener, shared.clone()));
        Self { address, shared, runtime: Some(runtime) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens, for HTTP.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where the hub is now, if it is anywhere.
    pub fn lead_to(&self, hub: Option<SocketAddr>) {
        self.shared.state.send_modify(|state| state.hub = hub);
    }

    /// Changes the line. What it swallowed would be missing, so connections end with its silence.
    pub fn set_line(&self, line: Line) {
        let next = self.shared.connections.load(Ordering::SeqCst);
        self.shared.state.send_modify(|state| {
            if let Line::Silent { below } = state.line {
                state.ended_below = state.ended_below.max(below.min(next));
                state.ending = Ending::Reset;
            }
            state.line = line;
        });
    }

    /// Makes the connections that stand half-open, and lets new ones through.
    pub fn silence_those_that_stand(&self) {
        self.set_line(Line::Silent { below: self.connections() });
    }

    /// Ends all connections that stand.
    pub fn end_all(&self, ending: Ending) {
        self.shared.end_all(ending);
    }

    /// Ends the newest connection: mostly the one that posts.
    pub fn end_newest(&self, ending: Ending) {
        let newest = self.connections().checked_sub(1);
        self.shared.state.send_modify(|state| (state.ended, state.ending) = (newest, ending));
    }

    /// Ends all connections once so many bytes more have gone in this direction, over however many connections.
    pub fn cut_after(&self, way: Way, bytes: usize, ending: Ending) {
        *self.shared.cut() = Some(Cut { way, bytes, ending });
    }

    /// Takes back a cut. Tells whether it had not been made yet.
    pub fn leave_whole(&self) -> bool {
        self.shared.cut().take().is_some()
    }

    /// Waits until so many bytes more have gone in this direction, `patience` at most. Tells whether they have. Blocks the thread.
    pub fn wait_for_bytes(&self, way: Way, bytes: u64, patience: Duration) -> bool {
        let mut count = self.shared.counter(way).subscribe();
        let until = *count.borrow() + bytes;
        self.block_on(patience, async move { count.wait_for(|count| *count >= until).await.is_ok() })
    }

    fn block_on(&self, patience: Duration, wait: impl Future<Output = bool>) -> bool {
        let runtime = self.runtime.as_ref().unwrap();
        runtime.block_on(async { tokio::time::timeout(patience, wait).await.unwrap_or(false) })
    }

    /// How many [cuts](Self::cut_after) were made.
    pub fn cuts(&self) -> u64 {
        *self.shared.cuts.borrow()
    }

    /// How many connections were accepted.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Bytes that went through.
    pub fn bytes(&self, way: Way) -> u64 {
        *self.shared.counter(way).borrow()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Shared {
    fn cut(&self) -> MutexGuard<'_, Option<Cut>> {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counter(&self, way: Way) -> &watch::Sender<u64> {
        match way {
            Way::Up => &self.up,
            Way::Down => &self.down,
        }
    }

    fn end_all(&self, ending: Ending) {
        let next = self.connections.load(Ordering::SeqCst);
        self.state.send_modify(|state| (state.ended_below, state.ending) = (next, ending));
    }

    /// How many of so many bytes may be passed on, and how the connections end after them, if they do.
    fn allow(&self, way: Way, bytes: usize) -> (usize, Option<Ending>) {
        let mut cut = self.cut();
        match &mut *cut {
            Some(of) if of.way == way && of.bytes <= bytes => {
                let ending = (of.bytes, Some(of.ending));
                *cut = None;
                ending
            }
            Some(of) if of.way == way => {
                of.bytes -= bytes;
                (bytes, None)
            }
            _ => (bytes, None),
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // An error is that of one connection which has gone again.
    loop {
        if let Ok((peer, _)) = listener.accept().await {
            let number = shared.connections.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(carry(peer, number, shared.clone()));
        }
    }
}

/// One connection, from its beginning to its end.
async fn carry(peer: TcpStream, number: u64, shared: Arc<Shared>) {
    let mut states = shared.state.subscribe();
    // An error means that nobody needs the proxy any more.
    let Ok(state) = states.wait_for(|state| state.line != Line::Held).await.map(|state| *state) else { return };
    let hub = match state {
        State { line: Line::Down, .. } | State { hub: None, .. } => None,
        State { hub: Some(hub), .. } => TcpStream::connect(hub).await.ok(),
    };
    let Some(hub) = hub else { return reset(&peer) };
    let _ = (peer.set_nodelay(true), hub.set_nodelay(true));
    let (from_peer, mut to_peer) = peer.into_split();
    let (from_hub, mut to_hub) = hub.into_split();
    // A dropped branch has passed a piece on in part, and no more is passed on.
    tokio::select! {
        _ = states.wait_for(|state| state.has_ended(number)) => {}
        _ = pump(Way::Up, number, &shared, from_peer, &mut to_hub) => {}
        _ = pump(Way::Down, number, &shared, from_hub, &mut to_peer) => {}
    }
    let ending = states.borrow().ending;
    if ending == Ending::Reset {
        reset(to_peer.as_ref());
        reset(to_hub.as_ref());
    } else {
        let _ = to_peer.shutdown().await;
        let _ = to_hub.shutdown().await;
    }
}

/// A socket that is closed after this is reset.
fn reset(socket: &TcpStream) {
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Passes on what comes until one side ends.
async fn pump(
    way: Way,
    number: u64,
    shared: &Shared,
    mut from: OwnedReadHalf,
    to: &mut OwnedWriteHalf,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let state = *shared.state.borrow();
        let room = match state.line {
            Line::Slow { bytes_per_second } => (bytes_per_second / (1000 / TICK.as_millis() as usize)).max(1),
            _ => PIECE_BYTES,
        };
        let read = from.read(&mut piece[..room.min(PIECE_BYTES)]).await;
        // Again: it may have come long after.
        let state = *shared.state.borrow();
        if state.is_silent(number) {
            if !matches!(read, Ok(1..)) {
                // Nobody hears of the end.
                std::future::pending::<()>().await;
            }
            continue;
        }
        let read = read?;
        match state.line {
            Line::Slow { .. } => tokio::time::sleep(TICK).await,
            Line::Late(delay) => tokio::time::sleep(delay).await,
            _ => {}
        }
        if read == 0 {
            return Ok(());
        }
        let state = *shared.state.borrow();
        if state.has_ended(number) {
            return Ok(());
        }
        if state.is_silent(number) {
            continue;
        }
        let (allowed, ending) = shared.allow(way, read);
        to.write_all(&piece[..allowed]).await?;
        shared.counter(way).send_modify(|count| *count += allowed as u64);
        if let Some(ending) = ending {
            shared.end_all(ending);
            shared.cuts.send_modify(|cuts| *cuts += 1);
            return Ok(());
        }
    }
}
