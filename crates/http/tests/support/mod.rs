//! What the tests of this crate share: a peer that records, HTTP by hand, and the replay of the original's transcript.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used)] // each test binary uses a part of it

pub mod raw;
pub mod replay;

use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use litemesh_http::{HttpClient, HttpServer};
use litemesh_proto::{
    Access, BoxFuture, CausalLength, Change, ColVersion, Column, Cursor, DbVersion, Limits, PackedKey, PeerCallbacks,
    PeerMessage, Refusal, Remote, Seq, SiteId, SyncRequest, Transport, Unverified, Value,
};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// Bound of every wait in these tests. Far above what is ever needed, so that a slow machine fails nothing.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub const SERVER: SiteId = SiteId::from_bytes([0x5e; 16]);
pub const CLIENT: SiteId = SiteId::from_bytes([0xc1; 16]);
pub const OTHER: SiteId = SiteId::from_bytes([0xc2; 16]);

/// Waits, but not for ever.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("this should have happened by now")
}

/// Waits until something is so, but not for ever.
pub async fn until(is_so: impl Fn() -> bool) {
    soon(async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// What a transport told the peer.
#[derive(Debug, PartialEq)]
pub enum Report {
    Connect(Remote),
    Sync(Remote, SyncRequest),
    Receive(Remote, PeerMessage),
    Garbled(Remote, String),
    Refused(Remote, String),
    Disconnect(Remote, String),
}

/// A peer without a database. It asks for everything when a connection stands, checks what comes in by the rules of the
/// protocol, commits nothing, and writes down every call.
pub struct RecordingPeer {
    site: SiteId,
    limits: Limits,
    transport: OnceLock<Arc<dyn Transport>>,
    reports: mpsc::Sender<Report>,
    /// Permits for `receive`, where a test wants to hold it up.
    gate: Option<Semaphore>,
    /// What the next calls of `receive` answer; afterwards `Ok`.
    pub answers: Mutex<VecDeque<Result<(), Refusal>>>,
    /// What the last remote may do.
    pub access: Mutex<Option<Access>>,
    pub connect_answers: Mutex<VecDeque<Result<(), Refusal>>>,
}

impl RecordingPeer {
    pub fn new(site: SiteId) -> (Arc<Self>, Reports) {
        Self::with(site, Limits::default(), false)
    }

    pub fn with(site: SiteId, limits: Limits, is_gated: bool) -> (Arc<Self>, Reports) {
        let (reports, receiver) = mpsc::channel(10_000);
        let peer = Arc::new(Self {
            site,
            limits,
            transport: OnceLock::new(),
            reports,
            gate: is_gated.then(|| Semaphore::new(0)),
            answers: Mutex::default(),
            access: Mutex::default(),
            connect_answers: Mutex::default(),
        });
        (peer, Reports(receiver))
    }

    /// Starts a transport under this peer.
    pub async fn start(self: &Arc<Self>, transport: Arc<dyn Transport>) {
        self.transport.set(transport.clone()).ok().unwrap();
        transport.start(self.clone()).await.unwrap();
    }

    /// Lets `receive` go on as often as that.
    pub fn open_gate(&self, times: usize) {
        self.gate.as_ref().unwrap().add_permits(times);
    }

    pub fn answer_next(&self, refusal: Refusal) {
        self.answers.lock().unwrap().push_back(Err(refusal));
    }

    pub fn request(&self) -> SyncRequest {
        SyncRequest { cursor: [(self.site, DbVersion::new(1))].into_iter().collect::<Cursor>(), terms: None }
    }

    fn report(&self, report: Report) {
        self.reports.try_send(report).expect("a test reads its reports");
    }
}

impl PeerCallbacks for RecordingPeer {
    fn site(&self) -> SiteId {
        self.site
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn connect(&self, remote: Remote, access: Access) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async move {
            *self.access.lock().unwrap() = Some(access);
            if let Some(answer) = self.connect_answers.lock().unwrap().pop_front() {
                answer?;
            }
            self.report(Report::Connect(remote));
            // Like a real peer, in a task of its own: the answer to it is no part of connecting.
            let (transport, request) = (self.transport.get().unwrap().clone(), self.request());
            tokio::spawn(async move {
                let _ = transport.sync(remote, request).await;
            });
            Ok(())
        })
    }

    fn sync(&self, remote: Remote, request: SyncRequest) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async move {
            self.report(Report::Sync(remote, request));
            Ok(())
        })
    }

    fn receive(&self, remote: Remote, message: Unverified) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async move {
            let message = message.verify(&self.limits).map_err(|error| Refusal::Invalid(error.to_string()))?;
            if let Some(gate) = &self.gate {
                gate.acquire().await.unwrap().forget();
            }
            self.report(Report::Receive(remote, message));
            self.answers.lock().unwrap().pop_front().unwrap_or(Ok(()))
        })
    }

    fn garbled(&self, remote: Remote, reason: String) -> BoxFuture<'_, ()> {
        Box::pin(async move { self.report(Report::Garbled(remote, reason)) })
    }

    fn refused(&self, remote: Remote, reason: String) -> BoxFuture<'_, ()> {
        Box::pin(async move { self.report(Report::Refused(remote, reason)) })
    }

    fn disconnect(&self, remote: Remote, reason: String) -> BoxFuture<'_, ()> {
        Box::pin(async move { self.report(Report::Disconnect(remote, reason)) })
    }
}

/// The reports of a peer, in order.
pub struct Reports(mpsc::Receiver<Report>);

impl Reports {
    pub async fn next(&mut self) -> Report {
        soon(self.0.recv()).await.unwrap()
    }

    /// There is none, now. Used after something that would have come later.
    pub fn assert_none(&mut self) {
        if let Ok(report) = self.0.try_recv() {
            panic!("unexpected {report:?}");
        }
    }

    pub async fn connect(&mut self) -> Remote {
        match self.next().await {
            Report::Connect(remote) => remote,
            other => panic!("{other:?} instead of a connect"),
        }
    }

    pub async fn message(&mut self) -> PeerMessage {
        match self.next().await {
            Report::Receive(_, message) => message,
            other => panic!("{other:?} instead of a message"),
        }
    }

    pub async fn garbled(&mut self) -> String {
        match self.next().await {
            Report::Garbled(_, reason) => reason,
            other => panic!("{other:?} instead of garbled"),
        }
    }

    pub async fn disconnect(&mut self) -> (Remote, String) {
        match self.next().await {
            Report::Disconnect(remote, reason) => (remote, reason),
            other => panic!("{other:?} instead of a disconnect"),
        }
    }
}

/// A server on a free port of the loopback; it ends with the test's runtime.
pub struct Running {
    pub address: SocketAddr,
    pub transport: HttpServer,
    pub shutdown: CancellationToken,
    pub task: tokio::task::JoinHandle<std::io::Result<()>>,
}

pub async fn serve(transport: HttpServer) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn({
        let (transport, shutdown) = (transport.clone(), shutdown.clone());
        async move { transport.serve(listener, shutdown.cancelled_owned()).await }
    });
    Running { address, transport, shutdown, task }
}

/// A server with a recording peer, started.
pub async fn started(transport: HttpServer, limits: Limits) -> (Running, Arc<RecordingPeer>, Reports) {
    let (peer, reports) = RecordingPeer::with(SERVER, limits, false);
    peer.start(Arc::new(transport.clone())).await;
    (serve(transport).await, peer, reports)
}

/// The delay of clients that come back at once.
pub const FIRST_DELAY: Duration = Duration::from_millis(10);

pub fn client(scheme: &str, address: SocketAddr) -> HttpClient {
    HttpClient::builder(format!("{scheme}://{address}")).reconnect_delay_min(FIRST_DELAY).build()
}

/// A connect and a sync request, in whichever order they come.
pub async fn greeted(reports: &mut Reports) -> Remote {
    let remote = reports.connect().await;
    match reports.next().await {
        Report::Sync(from, _) => assert_eq!(from, remote),
        other => panic!("{other:?}"),
    }
    remote
}

/// Waits for the connection that works both ways, after others that came and went.
pub async fn settled(reports: &mut Reports) -> Remote {
    let mut last = None;
    loop {
        match reports.next().await {
            Report::Connect(remote) => last = Some(remote),
            Report::Sync(from, _) if Some(from) == last => return from,
            _ => {}
        }
    }
}

pub fn change(version: i64, text: impl Into<String>) -> Change {
    Change {
        table: "todo".into(),
        key: PackedKey::from_bytes(vec![1, 0x0b, 1, b'z']),
        column: Column::Cell("title".into()),
        value: Value::text(text),
        col_version: ColVersion::new(1),
        db_version: DbVersion::new(version),
        site: CLIENT,
        causal_length: CausalLength::new(1),
        seq: Seq::new(0),
    }
}

pub fn changes(changes: Vec<Change>) -> PeerMessage {
    PeerMessage::Changes { changes, schema_version: 1, progress: None }
}

pub fn eose() -> PeerMessage {
    PeerMessage::Eose { progress: None }
}

/// Letters and digits without a pattern, which no compression shrinks much. The same for the same `seed`.
pub fn noise(seed: u64, bytes: usize) -> String {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..bytes).map(|_| random.alphanumeric()).collect()
}

/// A client of our own choosing, with the TLS that the transport would have chosen.
pub fn http_client() -> reqwest::ClientBuilder {
    // An error means that another test of this process was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
}
