//! The server side: [`HttpServer`].

mod accept;
mod answer;
mod body;
mod connection;
mod content;
mod door;
mod health;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod hostile;
mod last_word;
mod post;
mod queue;
mod sender;
mod sockets;
mod stream;
mod ticket;
mod tls;
mod websocket;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn;
use axum::routing::any;
use bytes::Bytes;
use litemesh_proto::limits::PING_INTERVAL;
use litemesh_proto::{
    Access, BoxFuture, PeerCallbacks, PeerMessage, Remote, SiteId, SyncRequest, Transport, TransportError,
};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use self::connection::Connection;
use self::door::Door;
use self::sockets::{Socket, SocketLimits, Sockets};
use self::tls::Certificate;
pub use self::tls::TlsError;
#[cfg(feature = "simulation")]
pub(crate) use self::{
    connection::encoded,
    post::{Route, read_message, split_frame},
    queue::FrameQueue,
    sender::{Sender, sender},
};
use crate::counters::{CounterCells, Counters, add};
use crate::form::StreamForm;
use crate::tokens::{TokenFile, TokenFileError, TokenSet};

/// How long a client may take nothing before it is dropped: as long as TCP waits for an acknowledgement of it ([`TCP_USER_TIMEOUT`]). Frames
/// for it, and its place among the connections, are held meanwhile.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Frames that wait for one client. With batches of `BATCH_BYTES_MAX` that bounds a slow client to 3 MiB.
const FRAME_QUEUE_LEN: usize = 4;

/// Most streams that wait for [`Transport::start`]: programs start their peer within moments, and each holds a socket that nobody answers.
const WAITING_STREAMS_MAX: usize = 64;

/// Bytes of the bodies of all clients at once: sixteen of the largest.
const BODIES_BYTES_MAX: usize = 512 << 20;

/// How long [`HttpServer::serve`] waits for the answers under way once it was told to shut down: a merge takes about a second, and whoever
/// supervises programs kills them after ten.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the files of tokens and of the certificate are read: how long a revoked token may still be used.
const RELOAD_INTERVAL: Duration = Duration::from_secs(1);

/// After so long without an acknowledgement of sent bytes, TCP gives a client up.
///
/// Without it a client whose network vanished would count as connected for a quarter of an hour, and would be locked out
/// of its own id (`known-failures.md` B15).
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);

/// The server side of the HTTP transport: the seed's `TransportServerFastify`.
///
/// A cheap handle: clones are the same server. Its [`routes`](Self::routes) answer byte for byte as the original does;
/// a client that says that it is a Litemesh peer is told so in return, and nothing else changes.
///
/// *Memory*: for each stream the frames that wait (see [`HttpServerBuilder::frame_queue_len`]), and for each client one
/// request body or message of up to `Limits::message_bytes_max`, of all together [`HttpServerBuilder::bodies_bytes_max`].
///
/// ```
/// use litemesh_http::HttpServer;
///
/// let transport = HttpServer::new();
/// // Beside the routes of an application, under any prefix.
/// let app: axum::Router = axum::Router::new().nest("/api/worker", transport.routes());
/// assert_eq!(transport.counters().streams_open, 0);
/// # let _ = app;
/// ```
#[derive(Clone)]
pub struct HttpServer {
    shared: Arc<Shared>,
}

/// Sets up an [`HttpServer`].
///
/// ```
/// use std::time::Duration;
///
/// let transport = litemesh_http::HttpServer::builder().stall_timeout(Duration::from_secs(10)).build();
/// # let _ = transport;
/// ```
#[derive(Clone, Debug)]
pub struct HttpServerBuilder {
    options: Options,
}

#[derive(Clone, Debug)]
struct Options {
    ping_interval: Duration,
    stall_timeout: Duration,
    frame_queue_len: usize,
    reload_interval: Duration,
    /// What who shows no token may do.
    anybody: Option<Access>,
    tokens: Option<(TokenFile, Arc<TokenSet>)>,
    certificate: Option<Arc<Certificate>>,
    sockets: SocketLimits,
    head_timeout: Duration,
    bodies_bytes_max: usize,
}

impl HttpServerBuilder {
    /// Time between two pings on a stream; 30 s where nothing else is said, as in the original.
    pub fn ping_interval(mut self, interval: Duration) -> Self {
        self.options.ping_interval = interval;
        self
    }

    /// How long a client may take nothing of what waits for it before it is dropped, or over a WebSocket leave a ping without an
    /// answer; 30 s where nothing else is said.
    pub fn stall_timeout(mut self, timeout: Duration) -> Self {
        self.options.stall_timeout = timeout;
        self
    }

    /// Frames that may wait for one client before `send` waits, at least 2; 4 where nothing else is said.
    pub fn frame_queue_len(mut self, len: usize) -> Self {
        // Two, so that the connect frame and the first sync request never have to wait for the client.
        self.options.frame_queue_len = len.clamp(2, Semaphore::MAX_PERMITS);
        self
    }

    /// What a client without a token may do: [`Access::FULL`] where nothing else is said, since the server may stand behind
    /// a layer of yours that knows who is who. `None` turns such clients away.
    pub fn anonymous(mut self, access: Option<Access>) -> Self {
        self.options.anybody = access;
        self
    }

    /// Asks clients for the tokens of this file (`Authorization: Bearer …`), with every request. What a token gives is told
    /// to the peer, which enforces it. With tokens, clients that have none are turned away, unless
    /// [`anonymous`](Self::anonymous) is called after this.
    ///
    /// Once started, the server reads the file again when it changes, and ends the connections of tokens that are gone or
    /// have other rights.
    ///
    /// # Errors
    ///
    /// The file cannot be read now.
    pub fn tokens(mut self, file: TokenFile) -> Result<Self, TokenFileError> {
        let set = file.parse(&file.read_bytes()?)?;
        self.options.tokens = Some((file, Arc::new(set)));
        self.options.anybody = None;
        Ok(self)
    }

    /// Lets [`HttpServer::serve`] and [`HttpServer::serve_router`] speak TLS, and nothing else, with the certificate chain and the
    /// key of these PEM files. They are read again when they change; connections that are open keep what they have.
    ///
    /// # Errors
    ///
    /// The files cannot be read now, or do not fit each other.
    pub fn tls(mut self, cert: impl AsRef<Path>, key: impl AsRef<Path>) -> Result<Self, TlsError> {
        self.options.certificate = Some(Arc::new(Certificate::read(cert.as_ref(), key.as_ref())?));
        Ok(self)
    }

    /// Sockets that [`HttpServer::serve`] and [`HttpServer::serve_router`] keep open at once, in all and from one network (an
    /// IPv4 address, 64 bits of an IPv6 address; the loopback is none); 4096 and 512 where nothing else is said.
    ///
    /// A client that posts over HTTP/1.1 has two.
    pub fn sockets_max(mut self, all: usize, of_one_network: usize) -> Self {
        self.options.sockets.sockets_max = all;
        self.options.sockets.per_network_max = of_one_network;
        self
    }

    /// Sockets of Litemesh clients that are kept open between two of their messages; 256 where nothing else is said. Beyond them the
    /// one that was used longest ago is closed; its client opens another one when it has to.
    pub fn idle_sockets_max(mut self, max: usize) -> Self {
        self.options.sockets.idle_max = max;
        self
    }

    /// How long a socket may be open without a request that was let in, 30 s where nothing else is said, and how many of them at
    /// once, 1024; beyond them the oldest is closed.
    pub fn strangers(mut self, timeout: Duration, max: usize) -> Self {
        self.options.sockets.stranger_timeout = timeout;
        self.options.sockets.strangers_max = max.max(1);
        self
    }

    /// Bytes of request bodies, decompressed, that are held at once, of all clients; 512 MiB where nothing else is said. A body for
    /// which there is no room is answered with 503, and its client comes again. Bodies above 64 KiB leave the last quarter to
    /// smaller ones, so three quarters must hold one of `Limits::message_bytes_max`.
    ///
    /// What is decoded of a body stands beside it until the peer has taken it.
    pub fn bodies_bytes_max(mut self, bytes: usize) -> Self {
        self.options.bodies_bytes_max = bytes;
        self
    }

    /// How long a client may take for the head of a request, and a socket be idle between two; 30 s where nothing else is said. A
    /// TLS handshake has as long, but 10 s at most.
    pub fn head_timeout(mut self, timeout: Duration) -> Self {
        self.options.head_timeout = timeout;
        self
    }

    /// Time between two looks at the files of tokens and of the certificate; 1 s where nothing else is said.
    pub fn reload_interval(mut self, interval: Duration) -> Self {
        self.options.reload_interval = interval;
        self
    }

    /// The server, not started yet.
    pub fn build(mut self) -> HttpServer {
        let sockets = Arc::new(Sockets::new(self.options.sockets));
        let door = Door::new(self.options.anybody.take(), self.options.tokens.take());
        HttpServer {
            shared: Arc::new(Shared {
                options: self.options,
                door,
                sockets,
                phase: watch::Sender::new(Phase::Waiting),
                counters: CounterCells::default(),
                waiting: Semaphore::new(WAITING_STREAMS_MAX),
                unclaimed: tokio::sync::Mutex::default(),
            }),
        }
    }
}

/// What all handles and requests of one server share.
struct Shared {
    options: Options,
    door: Door,
    /// Those of [`HttpServer::serve_router`]; who serves the routes otherwise counts their own.
    sockets: Arc<Sockets>,
    phase: watch::Sender<Phase>,
    counters: CounterCells,
    /// Permits for streams that wait for the start.
    waiting: Semaphore,
    /// Held by the one large body whose sender only its end can tell.
    unclaimed: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
enum Phase {
    Waiting,
    Running(Arc<Running>),
    Stopped,
}

/// What there is between start and stop.
struct Running {
    peer: Arc<dyn PeerCallbacks>,
    site: SiteId,
    connections: Mutex<HashMap<SiteId, Arc<Connection>>>,
    /// The owners of the connections, and the POSTs that are being handled.
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Running {
    /// Open connections, and ended ones whose end is not reported yet.
    fn connections(&self) -> MutexGuard<'_, HashMap<SiteId, Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The open connection of a site.
    fn connection(&self, site: SiteId) -> Option<Arc<Connection>> {
        self.connections().get(&site).filter(|connection| !connection.end.is_cancelled()).cloned()
    }

    /// Keeps the end of the transport waiting for whoever is about to begin something for it; `None` once it is ending.
    fn hold(&self) -> Option<TaskTrackerToken> {
        // Under the lock that stopping takes.
        let _connections = self.connections();
        (!self.stop.is_cancelled()).then(|| self.tasks.token())
    }

    /// The very connection that `remote` means.
    fn connection_of(&self, remote: Remote) -> Option<Arc<Connection>> {
        self.connection(remote.site).filter(|connection| connection.remote.connection == remote.connection)
    }
}

impl Default for HttpServer {
    fn default() -> Self {
        Self::new()
    }
}

impl HttpServer {
    /// A server with the usual settings.
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// A server with settings of your own.
    pub fn builder() -> HttpServerBuilder {
        let options = Options {
            ping_interval: PING_INTERVAL,
            stall_timeout: STALL_TIMEOUT,
            frame_queue_len: FRAME_QUEUE_LEN,
            reload_interval: RELOAD_INTERVAL,
            anybody: Some(Access::FULL),
            tokens: None,
            certificate: None,
            sockets: SocketLimits::default(),
            head_timeout: accept::HEAD_TIMEOUT,
            bodies_bytes_max: BODIES_BYTES_MAX,
        };
        HttpServerBuilder { options }
    }

    /// The routes `/stream`, `/sync`, `/data`, `/ws` and `/health`, and with tokens `/ticket`, to be mounted into an axum server under any
    /// prefix: the seed's `registerRoutes`.
    ///
    /// They can be mounted before the transport is started; until then messages are refused and streams wait.
    ///
    /// Who serves them without [`serve_router`](Self::serve_router) should set `TCP_USER_TIMEOUT` or the like on the
    /// sockets: an original client whose network vanished is locked out of its id until TCP gives its old stream up.
    pub fn routes(&self) -> Router {
        let mut routes = Router::new()
            .route("/stream", any(stream::route))
            .route("/sync", any(post::sync_route))
            .route("/data", any(post::data_route))
            .route("/ws", any(websocket::route))
            .route("/health", any(health::route));
        let has_tokens = self.shared.door.has_tokens();
        if has_tokens {
            routes = routes.route("/ticket", any(ticket::route));
        }
        routes
            .fallback(answer::not_found)
            .layer(from_fn(move |request, next| answer::cors(request, next, has_tokens)))
            .with_state(self.shared.clone())
    }

    /// Serves [`routes`](Self::routes) at the root of `listener`, over HTTP/1.1 and HTTP/2 (cleartext, prior knowledge),
    /// until `shutdown` resolves; see [`serve_router`](Self::serve_router).
    ///
    /// # Errors
    ///
    /// TLS cannot be set up.
    pub async fn serve(
        &self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        self.serve_router(self.routes(), listener, shutdown).await
    }

    /// Serves a router that [`routes`](Self::routes) were mounted into, with TLS where the server has a certificate.
    ///
    /// When `shutdown` resolves, the open streams end, which their clients see as a lost connection, and answers under
    /// way are waited for, for 5 s at most. The transport itself is not stopped.
    ///
    /// *Cancel safety*: dropping the future stops listening; connections that are open live on until their clients go or
    /// the transport is stopped.
    ///
    /// # Errors
    ///
    /// TLS cannot be set up.
    pub async fn serve_router(
        &self,
        router: Router,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        let certificate = self.shared.options.certificate.clone();
        let tls = certificate.as_ref().map(Certificate::acceptor).transpose().map_err(io::Error::other)?;
        let follow = async {
            match certificate {
                Some(certificate) => certificate.watch(self.shared.options.reload_interval).await,
                None => std::future::pending().await,
            }
        };
        let (closing, tasks) = (CancellationToken::new(), TaskTracker::new());
        let shut = async {
            shutdown.await;
            self.shared.end_streams("the server is shutting down");
            closing.cancel();
            // Never resolves: what ends is the serving.
            std::future::pending::<()>().await;
        };
        // What is dropped is no work of anybody: the certificate is not read again, and nobody is waited for twice.
        tokio::select! {
            () = accept::serve(&self.shared, router, listener, tls, &tasks, &closing) => {}
            () = shut => {}
            () = follow => {}
        }
        tasks.close();
        // What is left then are answers that their clients did not take in time.
        let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, tasks.wait()).await;
        Ok(())
    }

    /// Whether it speaks TLS.
    pub fn has_tls(&self) -> bool {
        self.shared.options.certificate.is_some()
    }

    /// What the server has done so far.
    pub fn counters(&self) -> Counters {
        self.shared.counters.read()
    }
}

impl Shared {
    fn running(&self) -> Option<Arc<Running>> {
        match &*self.phase.borrow() {
            Phase::Running(running) => Some(running.clone()),
            Phase::Waiting | Phase::Stopped => None,
        }
    }

    /// Follows the file of tokens until the transport is stopped.
    async fn watch_tokens(self: Arc<Self>, running: Arc<Running>) {
        let end_outdated = || {
            for connection in running.connections().values() {
                if !self.door.still_grants(&connection.grant) {
                    connection.lose("the token was revoked, or its rights were changed");
                }
            }
        };
        // Nothing is lost with a dropped branch: the transport ends.
        tokio::select! {
            () = running.stop.cancelled() => {}
            () = self.door.watch(self.options.reload_interval, end_outdated) => {}
        }
    }

    /// A request was let in, so its socket is no stranger's any more, even if its body takes long.
    fn note_known(extensions: &axum::http::Extensions) {
        if let Some(socket) = extensions.get::<Arc<Socket>>() {
            socket.become_known();
        }
    }

    fn end_streams(&self, reason: &str) {
        if let Some(running) = self.running() {
            for connection in running.connections().values() {
                connection.lose(reason);
            }
        }
    }

    /// Queues one frame for `remote`, and waits while its queue is full.
    async fn push(
        &self,
        remote: Remote,
        write: impl FnOnce(StreamForm, SiteId) -> Bytes,
    ) -> Result<(), TransportError> {
        let not_connected = TransportError::NotConnected { remote: remote.site };
        let running = self.running().ok_or_else(|| not_connected.clone())?;
        let connection = running.connection_of(remote).ok_or(not_connected)?;
        let push = connection.queue.push(|| write(connection.form, running.site));
        tokio::pin!(push);
        let timeout = self.options.stall_timeout;
        loop {
            let patience = timeout.saturating_sub(connection.queue.stalled_for());
            // The push is pinned outside and loses nothing; the other two can be asked again.
            tokio::select! {
                biased;
                () = connection.end.cancelled() => {
                    return Err(TransportError::Lost { reason: connection.reason().to_owned() });
                }
                pushed = &mut push => {
                    let Some(_) = pushed else {
                        return Err(TransportError::Lost { reason: connection.reason().to_owned() });
                    };
                    add(&self.counters.messages_out, 1);
                    return Ok(());
                }
                () = tokio::time::sleep(patience) => {
                    if connection.queue.stalled_for() >= timeout {
                        self.shed(&connection);
                        return Err(TransportError::Stalled { seconds: timeout.as_secs() });
                    }
                }
            }
        }
    }
}

impl Transport for HttpServer {
    fn name(&self) -> &str {
        "http"
    }

    fn start(&self, peer: Arc<dyn PeerCallbacks>) -> BoxFuture<'_, Result<(), TransportError>> {
        let running = Arc::new(Running {
            site: peer.site(),
            peer,
            connections: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        let is_first = self.shared.phase.send_if_modified(|phase| {
            let is_first = matches!(phase, Phase::Waiting);
            if is_first {
                *phase = Phase::Running(running.clone());
            }
            is_first
        });
        Box::pin(async move {
            if !is_first {
                return Err(TransportError::AlreadyStarted);
            }
            // It may have been stopped meanwhile.
            if self.shared.door.has_tokens()
                && let Some(_hold) = running.hold()
            {
                running.tasks.spawn(self.shared.clone().watch_tokens(running.clone()));
            }
            Ok(())
        })
    }

    fn sync(&self, remote: Remote, request: SyncRequest) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(self.shared.push(remote, move |form, site| form.sync(site, &request)))
    }

    fn send(&self, remote: Remote, message: PeerMessage) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(self.shared.push(remote, move |form, site| form.message(site, &message)))
    }

    fn close(&self, remote: Remote) -> BoxFuture<'_, ()> {
        if let Some(connection) = self.shared.running().and_then(|running| running.connection_of(remote)) {
            connection.close();
        }
        Box::pin(async {})
    }

    fn is_duplex(&self, remote: Remote) -> bool {
        let connection = self.shared.running().and_then(|running| running.connection_of(remote));
        connection.is_some_and(|connection| connection.form.is_socket())
    }

    /// Must not be called from inside of a callback: it waits for all callbacks to resolve.
    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let phase = self.shared.phase.send_replace(Phase::Stopped);
            let Phase::Running(running) = phase else { return };
            {
                // Under the lock that opening takes, so that nothing is opened behind our back.
                let _connections = running.connections();
                running.stop.cancel();
                running.tasks.close();
            }
            running.tasks.wait().await;
        })
    }
}

#[cfg(test)]
mod tests {
    use litemesh_proto::{Limits, Refusal, Unverified};

    use super::*;

    /// A peer to whom nothing matters.
    pub(super) struct Quiet(pub(super) Limits);

    impl PeerCallbacks for Quiet {
        fn site(&self) -> SiteId {
            SiteId::from_bytes([0x5e; 16])
        }

        fn limits(&self) -> &Limits {
            &self.0
        }

        fn connect(&self, _: Remote, _: Access) -> BoxFuture<'_, Result<(), Refusal>> {
            Box::pin(async { Ok(()) })
        }

        fn sync(&self, _: Remote, _: SyncRequest) -> BoxFuture<'_, Result<(), Refusal>> {
            Box::pin(async { Ok(()) })
        }

        fn receive(&self, _: Remote, _: Unverified) -> BoxFuture<'_, Result<(), Refusal>> {
            Box::pin(async { Ok(()) })
        }

        fn garbled(&self, _: Remote, _: String) -> BoxFuture<'_, ()> {
            Box::pin(async {})
        }

        fn disconnect(&self, _: Remote, _: String) -> BoxFuture<'_, ()> {
            Box::pin(async {})
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_about_to_begin_is_waited_for_and_nothing_begins_after_the_end() {
        let server = HttpServer::new();
        server.start(Arc::new(Quiet(Limits::default()))).await.unwrap();
        let running = server.shared.running().unwrap();
        let hold = running.hold().unwrap();
        let mut stopping = server.stop();
        assert!(tokio::time::timeout(Duration::from_secs(60), &mut stopping).await.is_err());
        assert!(running.hold().is_none());
        drop(hold);
        stopping.await;
    }

    #[test]
    fn a_queue_has_room_for_the_first_two_frames() {
        assert_eq!(HttpServer::builder().frame_queue_len(0).options.frame_queue_len, 2);
    }
}
