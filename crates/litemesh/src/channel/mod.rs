//! Peers over streams of bytes: pipes, Unix sockets, a program at the other end of `ssh`, or memory.
//!
//! A [`Channel`] is a [`Transport`] whose connections are pairs of an [`AsyncRead`] and an [`AsyncWrite`]. What goes over them are
//! frames of wire v2, each with its length before it, the first in each direction a `hello` (docs/protocol.md, "Over streams of
//! bytes"). The stream has to be as trustworthy as the access that it is given: a channel asks nobody who they are.
//!
//! ```
//! use litemesh::{Database, Event, Peer, channel};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let (near, far) = channel::pair();
//! let database = || -> Result<Database, Box<dyn std::error::Error>> {
//!     let db = Database::open_in_memory()?;
//!     db.lock().connection().execute_batch("CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT)")?;
//!     db.lock().replicate("todo")?;
//!     Ok(db)
//! };
//! let _one = Peer::builder(database()?).transport(near).start().await?;
//! let builder = Peer::builder(database()?).transport(far);
//! let mut events = builder.events();
//! let _other = builder.start().await?;
//! while !matches!(events.recv().await?, Event::Eose { .. }) {}
//! # Ok(()) }
//! # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
//! ```

mod connection;
mod dial;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use litemesh_proto::codec::v2;
use litemesh_proto::limits::{FRAME_BYTES_MAX, PING_INTERVAL, RECONNECT_DELAY_MIN};
use litemesh_proto::{Access, BoxFuture, PeerCallbacks, PeerMessage, Remote, SyncRequest, Transport, TransportError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::connection::Side;
use self::dial::Dial;

/// Bytes that a connection in memory holds in each direction.
const MEMORY_BYTES: usize = 64 * 1024;

/// Frames that wait to be written. Beyond them [`Transport::send`] waits.
const FRAMES_MAX: usize = 2;

/// A transport over streams of bytes. A cheap handle: clones are the same transport.
///
/// [`accept`](Self::accept) serves a stream that is there. A channel that [dials](Self::dialling) makes its streams itself, and makes
/// the next one when one has ended.
#[derive(Clone)]
pub struct Channel {
    shared: Arc<Shared>,
}

struct Shared {
    name: &'static str,
    dial: Option<Dial>,
    ping_interval: Mutex<Duration>,
    reconnect_delay_min: Mutex<Duration>,
    phase: watch::Sender<Phase>,
    /// Why the last dial came to nothing, or its connection ended.
    last_error: Mutex<Option<ChannelError>>,
    links: Mutex<HashMap<u64, Link>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[derive(Clone)]
enum Phase {
    Waiting,
    Running(Arc<dyn PeerCallbacks>),
    Stopped,
}

/// What is known of a connection outside of its task.
#[derive(Clone)]
struct Link {
    remote: Remote,
    frames: mpsc::Sender<Vec<u8>>,
    /// Nobody is to be told of its end.
    closed: CancellationToken,
    /// The carrier is gone.
    lost: CancellationToken,
}

/// Why a connection over a stream came to nothing, or ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// The stream could not be made.
    #[error("{reason}")]
    NoStream {
        /// What the dialler said.
        reason: String,
    },
    /// What is at the other end did not introduce itself as a Litemesh peer.
    #[error("no Litemesh peer answers: {reason}")]
    NoPeer {
        /// What was there instead.
        reason: String,
    },
    /// One of the two peers does not want the connection.
    #[error("{reason}")]
    Refused {
        /// Why, as a sentence.
        reason: String,
    },
    /// The connection stood, and ended.
    #[error("{reason}")]
    Ended {
        /// Why, as a sentence.
        reason: String,
    },
    /// The channel was stopped.
    #[error("the channel was stopped")]
    Stopped,
}

/// Two channels that are connected in memory. The first one dials, and dials again when the connection breaks.
pub fn pair() -> (Channel, Channel) {
    let far = Channel::new();
    let near = {
        let far = far.clone();
        Channel::dialling("memory", move || {
            let far = far.clone();
            async move {
                let (ours, theirs) = tokio::io::duplex(MEMORY_BYTES);
                let (read, write) = tokio::io::split(theirs);
                tokio::spawn(async move { far.accept(read, write, Access::FULL).await });
                Ok(tokio::io::split(ours))
            }
        })
    };
    (near, far)
}

impl Default for Channel {
    fn default() -> Self {
        Self::new()
    }
}

impl Channel {
    /// A channel that takes the streams that it is given.
    pub fn new() -> Self {
        Self::with("channel", None)
    }

    /// A channel that makes its own streams: `connect` is called at the start, and again after each end, with delays that grow to half
    /// a minute while it fails. `name` stands in logs and events.
    ///
    /// ```no_run
    /// # use litemesh::channel::Channel;
    /// let channel = Channel::dialling("unix", || async {
    ///     Ok(tokio::net::UnixStream::connect("/run/litemesh.sock").await?.into_split())
    /// });
    /// # let _ = channel;
    /// ```
    pub fn dialling<R, W, F>(name: &'static str, connect: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
        F: Future<Output = io::Result<(R, W)>> + Send + 'static,
    {
        Self::with(name, Some(Dial::new(connect)))
    }

    fn with(name: &'static str, dial: Option<Dial>) -> Self {
        let shared = Shared {
            name,
            dial,
            ping_interval: Mutex::new(PING_INTERVAL),
            reconnect_delay_min: Mutex::new(RECONNECT_DELAY_MIN),
            phase: watch::Sender::new(Phase::Waiting),
            last_error: Mutex::default(),
            links: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// How often something is said over each connection from now on where nothing else is; 30 s where nothing else is said. A connection
    /// over which nothing came for three times as long has ended.
    pub fn ping_interval(self, interval: Duration) -> Self {
        *self.shared.ping_interval.lock().unwrap_or_else(PoisonError::into_inner) = interval;
        self
    }

    /// How long a channel that dials waits from now on before it dials again, at first; 1 s where nothing else is said. The delay doubles
    /// with every dial in vain, to half a minute, and is then between a half and one and a half of that, at random.
    pub fn reconnect_delay_min(self, delay: Duration) -> Self {
        *self.shared.reconnect_delay_min.lock().unwrap_or_else(PoisonError::into_inner) = delay;
        self
    }

    /// Why there was no connection when a dial last failed, or how the last one ended; `None` while one stands.
    pub fn last_error(&self) -> Option<ChannelError> {
        self.shared.last_error().clone()
    }

    /// Serves one stream, in a task of its own, until it ends; gives why. Before the transport is started it waits for that. What is
    /// at the other end may do as much as `access` says.
    ///
    /// Dropping the future ends the connection.
    pub async fn accept(
        &self,
        read: impl AsyncRead + Send + Unpin + 'static,
        write: impl AsyncWrite + Send + Unpin + 'static,
        access: Access,
    ) -> ChannelError {
        let (shared, abandoned) = (self.shared.clone(), CancellationToken::new());
        let _guard = abandoned.clone().drop_guard();
        let serving = self.shared.tasks.spawn(async move {
            let Some(peer) = shared.started().await else { return ChannelError::Stopped };
            connection::run(&shared, &*peer, read, write, Side::Listener(access), &abandoned, || {}).await
        });
        serving.await.unwrap_or_else(|error| ChannelError::Ended { reason: format!("internal error: {error}") })
    }
}

impl Shared {
    fn reconnect_delay_min(&self) -> Duration {
        *self.reconnect_delay_min.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ping_interval(&self) -> Duration {
        *self.ping_interval.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn links(&self) -> MutexGuard<'_, HashMap<u64, Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last_error(&self) -> MutexGuard<'_, Option<ChannelError>> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link(&self, remote: Remote) -> Result<Link, TransportError> {
        let link = self.links().get(&remote.connection).cloned();
        link.ok_or(TransportError::NotConnected { remote: remote.site })
    }

    /// The peer, once there is one; `None` when there will be none any more.
    async fn started(&self) -> Option<Arc<dyn PeerCallbacks>> {
        let mut phases = self.phase.subscribe();
        // The sender lives in `self`.
        let phase = phases.wait_for(|phase| !matches!(phase, Phase::Waiting)).await.ok()?;
        match &*phase {
            Phase::Running(peer) => Some(peer.clone()),
            Phase::Waiting | Phase::Stopped => None,
        }
    }

    /// Gives a frame to the connection, and waits while that has enough of them.
    async fn push(&self, remote: Remote, frame: Vec<u8>) -> Result<(), TransportError> {
        let link = self.link(remote)?;
        let lost = || TransportError::Lost { reason: "the stream ended".to_owned() };
        // Nothing is lost with a dropped branch that the end of the connection does not lose, too.
        tokio::select! {
            biased;
            () = link.lost.cancelled() => Err(lost()),
            sent = link.frames.send(frame) => sent.map_err(|_| lost()),
        }
    }
}

impl Transport for Channel {
    fn name(&self) -> &str {
        self.shared.name
    }

    fn start(&self, peer: Arc<dyn PeerCallbacks>) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(async move {
            let mut is_first = false;
            self.shared.phase.send_if_modified(|phase| {
                is_first = matches!(phase, Phase::Waiting);
                if is_first {
                    *phase = Phase::Running(peer.clone());
                    // In here, so that a stop comes before all of this or after it.
                    if self.shared.dial.is_some() {
                        self.shared.tasks.spawn(dial::run(self.shared.clone(), peer.clone()));
                    }
                }
                is_first
            });
            if is_first { Ok(()) } else { Err(TransportError::AlreadyStarted) }
        })
    }

    fn sync(&self, remote: Remote, request: SyncRequest) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(async move { self.shared.push(remote, v2::sync(&request)).await })
    }

    fn send(&self, remote: Remote, message: PeerMessage) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(async move {
            let frame = v2::message(&message);
            if frame.len() > FRAME_BYTES_MAX {
                return Err(TransportError::too_large(&message, frame.len(), FRAME_BYTES_MAX));
            }
            self.shared.push(remote, frame).await
        })
    }

    fn close(&self, remote: Remote) -> BoxFuture<'_, ()> {
        if let Ok(link) = self.shared.link(remote) {
            link.closed.cancel();
        }
        Box::pin(async {})
    }

    /// Must not be called from inside of a callback: it waits for all callbacks to resolve.
    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.shared.phase.send_replace(Phase::Stopped);
            self.shared.stop.cancel();
            self.shared.tasks.close();
            self.shared.tasks.wait().await;
        })
    }
}
