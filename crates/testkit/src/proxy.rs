//! A TCP proxy between two peers, which does to their connections what networks do.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// Bytes that are passed on at once. More than a frame of live traffic, less than a catch-up.
const PIECE_BYTES: usize = 16 * 1024;

/// How often a slow line passes something on.
const TICK: Duration = Duration::from_millis(20);

/// How far behind the other one is what was overtaken.
const OVERTAKEN: Duration = Duration::from_millis(20);

/// Bytes of a connection that are kept, to be passed on later or repeated.
const KEPT_BYTES_MAX: usize = 4 << 20;

/// How long nobody may answer until everything counts as answered. Less than transports under test take from ping to ping.
const QUIET: Duration = Duration::from_millis(300);

/// How long who heard something late may answer.
const LATE_ANSWER: Duration = Duration::from_secs(5);

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
    /// What a connection says up waits until another one has said something, for so long at most: the later overtakes the earlier.
    Overtaking(Duration),
    /// What connections with smaller numbers say up is kept. With the next line it is passed on, of those that were
    /// [hung up](Proxy::hang_up).
    Behind {
        /// The first number that is let through.
        below: u64,
    },
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
    /// To the peers of connections with smaller numbers it looks as if they had ended.
    hung_up_below: u64,
}

impl State {
    fn has_ended(&self, number: u64) -> bool {
        number < self.ended_below || self.ended == Some(number)
    }

    fn is_silent(&self, number: u64) -> bool {
        matches!(self.line, Line::Silent { below } if number < below)
    }

    fn is_behind(&self, number: u64) -> bool {
        matches!(self.line, Line::Behind { below } if number < below)
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
    /// When each was.
    times: Mutex<Vec<Instant>>,
    up: watch::Sender<u64>,
    down: watch::Sender<u64>,
    /// Bytes that are kept for [`Line::Behind`], of all connections together.
    kept: AtomicU64,
    /// Of each connection everything that it said up, where that is recorded.
    recorded: Mutex<Option<BTreeMap<u64, Vec<u8>>>>,
    /// Whether a connection waits to be overtaken, and how often one of them has said something meanwhile.
    waits: AtomicBool,
    said: watch::Sender<u64>,
    /// What was [slipped in](Proxy::slip_in) last, and where.
    slipped_in: watch::Sender<(Option<Way>, Arc<[u8]>)>,
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
        let state = State {
            line: Line::Clear,
            hub: None,
            ended_below: 0,
            ended: None,
            ending: Ending::Close,
            hung_up_below: 0,
        };
        let shared = Arc::new(Shared {
            state: watch::Sender::new(state),
            cut: Mutex::default(),
            cuts: watch::Sender::new(0),
            connections: AtomicU64::new(0),
            times: Mutex::default(),
            up: watch::Sender::new(0),
            down: watch::Sender::new(0),
            kept: AtomicU64::new(0),
            recorded: Mutex::default(),
            waits: AtomicBool::new(false),
            said: watch::Sender::new(0),
            slipped_in: watch::Sender::new((None, Arc::default())),
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

    /// Changes the line. What it swallowed or kept would be missing, so connections end with its silence.
    pub fn set_line(&self, line: Line) {
        let next = self.shared.connections.load(Ordering::SeqCst);
        self.shared.state.send_modify(|state| {
            match state.line {
                Line::Silent { below } => {
                    state.ended_below = state.ended_below.max(below.min(next));
                    state.ending = Ending::Reset;
                }
                Line::Behind { below } if state.hung_up_below < below => {
                    state.ended_below = state.ended_below.max(below.min(next));
                    state.ending = Ending::Reset;
                }
                _ => {}
            }
            state.line = line;
        });
    }

    /// Makes the connections that stand half-open, and lets new ones through.
    pub fn silence_those_that_stand(&self) {
        self.set_line(Line::Silent { below: self.connections() });
    }

    /// Keeps what the connections that stand say up, and lets new ones through.
    pub fn keep_those_that_stand(&self) {
        self.set_line(Line::Behind { below: self.connections() });
    }

    /// How many bytes were kept so far.
    pub fn kept(&self) -> u64 {
        self.shared.kept.load(Ordering::SeqCst)
    }

    /// Ends the connections of which something is kept, for the peer alone: the hub hears the rest with the next line.
    pub fn hang_up(&self) {
        self.shared.state.send_modify(|state| {
            if let Line::Behind { below } = state.line {
                state.hung_up_below = below;
            }
        });
    }

    /// Records what connections say up, of those that come from now on.
    pub fn record(&self) {
        *self.shared.recorded() = Some(BTreeMap::new());
    }

    /// Says to the hub once more what was recorded: each connection over one of its own, all at once, the first one first. What the
    /// hub answers is thrown away. Then they end.
    pub async fn repeat(&self) {
        let recorded = self.shared.recorded().take().unwrap_or_default();
        assert!(!recorded.is_empty(), "nothing was recorded");
        let hub = self.shared.state.borrow().hub.unwrap();
        let mut repeated = Vec::new();
        for bytes in recorded.into_values() {
            let (mut from_hub, mut to_hub) = TcpStream::connect(hub).await.unwrap().into_split();
            let answers = tokio::spawn(async move {
                let mut thrown_away = vec![0; PIECE_BYTES];
                while let Ok(Ok(1..)) = tokio::time::timeout(QUIET, from_hub.read(&mut thrown_away)).await {}
            });
            // It may hang up meanwhile.
            let _ = to_hub.write_all(&bytes).await;
            repeated.push((to_hub, answers));
        }
        for (_to_hub, answers) in repeated {
            answers.await.unwrap();
        }
    }

    /// Says this over all connections that stand, between what comes.
    pub fn slip_in(&self, way: Way, bytes: &[u8]) {
        self.shared.slipped_in.send_replace((Some(way), bytes.into()));
    }

    /// How long it took from each connection to the next.
    pub fn pauses(&self) -> Vec<Duration> {
        let times = self.shared.times.lock().unwrap_or_else(PoisonError::into_inner);
        times.windows(2).map(|pair| pair[1] - pair[0]).collect()
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

    fn recorded(&self) -> MutexGuard<'_, Option<BTreeMap<u64, Vec<u8>>>> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes down what was said.
    fn note(&self, number: u64, piece: &[u8]) {
        if let Some(recorded) = &mut *self.recorded() {
            let bytes = recorded.entry(number).or_default();
            bytes.extend_from_slice(piece);
            assert!(bytes.len() <= KEPT_BYTES_MAX, "this is too much to be said twice");
        }
    }

    /// Waits until another connection has said something, for so long at most. Who comes while one waits goes first.
    async fn be_overtaken(&self, delay: Duration) {
        if self.waits.swap(true, Ordering::SeqCst) {
            return;
        }
        let mut said = self.said.subscribe();
        let overtaken = tokio::time::timeout(delay, said.changed()).await;
        self.waits.store(false, Ordering::SeqCst);
        if overtaken.is_ok() {
            tokio::time::sleep(OVERTAKEN).await;
        }
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
            // Before it counts.
            shared.times.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
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
    let (mut from_hub, mut to_hub) = hub.into_split();
    let (mut kept, mut nothing) = (Vec::new(), Vec::new());
    // A dropped branch has passed a piece on in part, and no more is passed on.
    let has_hung_up = tokio::select! {
        state = states.wait_for(|state| state.has_ended(number) || number < state.hung_up_below) => {
            state.is_ok_and(|state| !state.has_ended(number))
        }
        _ = pump(Way::Up, number, &shared, from_peer, &mut to_hub, &mut kept) => false,
        _ = pump(Way::Down, number, &shared, &mut from_hub, &mut to_peer, &mut nothing) => false,
    };
    if has_hung_up {
        let _ = to_peer.shutdown().await;
        drop(to_peer);
        // An error means that nobody needs the proxy any more, or that the hub has hung up, too.
        let _ = states.wait_for(|state| !state.is_behind(number)).await;
        let _ = to_hub.write_all(&kept).await;
        let mut thrown_away = tokio::io::sink();
        let _ = tokio::time::timeout(LATE_ANSWER, async {
            let _ = tokio::time::timeout(QUIET, tokio::io::copy(&mut from_hub, &mut thrown_away)).await;
            let _ = to_hub.shutdown().await;
            let _ = tokio::io::copy(&mut from_hub, &mut thrown_away).await;
        })
        .await;
        return;
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
    mut from: impl AsyncRead + Unpin,
    to: &mut OwnedWriteHalf,
    kept: &mut Vec<u8>,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    let mut slipped_in = shared.slipped_in.subscribe();
    loop {
        let state = *shared.state.borrow();
        let room = match state.line {
            Line::Slow { bytes_per_second } => (bytes_per_second / (1000 / TICK.as_millis() as usize)).max(1),
            _ => PIECE_BYTES,
        };
        // Losing a branch loses nothing: what was not read waits.
        let read = tokio::select! {
            biased;
            Ok(()) = slipped_in.changed() => {
                let (where_to, bytes) = slipped_in.borrow_and_update().clone();
                if where_to == Some(way) {
                    to.write_all(&bytes).await?;
                }
                continue;
            }
            read = from.read(&mut piece[..room.min(PIECE_BYTES)]) => read,
        };
        // Again: it may have come long after.
        let state = *shared.state.borrow();
        if state.is_silent(number) {
            if !matches!(read, Ok(1..)) {
                // Nobody hears of the end.
                std::future::pending::<()>().await;
            }
            continue;
        }
        if way == Way::Up && state.is_behind(number) {
            match read {
                Ok(read @ 1..) if kept.len() < KEPT_BYTES_MAX => {
                    kept.extend_from_slice(&piece[..read]);
                    shared.kept.fetch_add(read as u64, Ordering::SeqCst);
                }
                // The end is kept, too.
                _ => std::future::pending().await,
            }
            continue;
        }
        let read = read?;
        match state.line {
            Line::Slow { .. } => tokio::time::sleep(TICK).await,
            Line::Late(delay) => tokio::time::sleep(delay).await,
            Line::Overtaking(delay) if way == Way::Up => shared.be_overtaken(delay).await,
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
        if way == Way::Up {
            shared.note(number, &piece[..allowed]);
            shared.said.send_modify(|said| *said += 1);
        }
        shared.counter(way).send_modify(|count| *count += allowed as u64);
        if let Some(ending) = ending {
            shared.end_all(ending);
            shared.cuts.send_modify(|cuts| *cuts += 1);
            return Ok(());
        }
    }
}
