//! [`Recorder`]: a peer above a transport, which watches that the transport keeps its contract.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use litemesh_proto::limits::VERSION_MAX;
use litemesh_proto::{
    Access, BoxFuture, Cursor, DbVersion, Limits, PeerCallbacks, PeerMessage, Refusal, Remote, SiteId, SyncRequest,
    Terms, Transport, TransportError, Unverified,
};
use tokio::sync::{Semaphore, mpsc};

use super::scene::FAR;

/// Bound of every wait. Far above what is ever needed, so that a slow machine fails nothing.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Calls that may wait to be looked at.
const REPORTS_MAX: usize = 10_000;

/// What a transport told the peer.
#[derive(Debug)]
pub(super) enum Report {
    Connect(Remote),
    Sync(Remote, SyncRequest),
    Receive(Remote, PeerMessage),
    Garbled(Remote),
    Disconnect(Remote),
}

/// A peer without a database. It asks for everything as soon as a connection stands, and checks what must hold of every call.
struct Recorder {
    site: SiteId,
    limits: Limits,
    transport: Arc<dyn Transport>,
    reports: mpsc::Sender<Report>,
    /// Permits for `receive`, where a check holds it up.
    gate: Semaphore,
    is_gated: AtomicBool,
    /// How many connections are still refused.
    refusals: Mutex<usize>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: BTreeSet<u64>,
    /// Every connection that there ever was.
    known: BTreeSet<u64>,
    /// Messages that are being taken, of these connections.
    busy: BTreeSet<u64>,
    /// The number of the last request of each connection.
    asked: BTreeMap<u64, u32>,
    /// Every message that came, and over which connection, where that is wanted.
    history: Option<Vec<(u64, PeerMessage)>>,
    is_stopped: bool,
    /// What broke the contract first.
    broken: Option<String>,
}

impl Recorder {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self, what: &str, is_right: impl FnOnce(&mut State) -> bool) {
        let mut state = self.state();
        let is_right = is_right(&mut state) && !state.is_stopped;
        if !is_right && state.broken.is_none() {
            let when = if state.is_stopped { " after the stop" } else { "" };
            state.broken = Some(format!("{what}{when}"));
        }
    }

    /// What a message is once it has come: a carrier that keeps messages numbers them anew.
    fn as_taken(&self, message: PeerMessage) -> PeerMessage {
        match message {
            PeerMessage::Changes { changes, schema_version, progress: Some(_) } if self.transport.keeps_messages() => {
                PeerMessage::Changes { changes, schema_version, progress: None }
            }
            other => other,
        }
    }

    fn report(&self, report: Report) {
        // Nobody looks any more where a check has ended.
        let _ = self.reports.try_send(report);
    }
}

impl PeerCallbacks for Recorder {
    fn site(&self) -> SiteId {
        self.site
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn connect(&self, remote: Remote, _access: Access) -> BoxFuture<'_, Result<(), Refusal>> {
        let number = remote.connection;
        self.watch("connect under a number that was there before", |state| state.known.insert(number));
        {
            let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(left) = refusals.checked_sub(1) {
                *refusals = left;
                return Box::pin(async { Err(Refusal::Unavailable("not now".to_owned())) });
            }
        }
        self.state().open.insert(number);
        self.report(Report::Connect(remote));
        let (transport, request) = (self.transport.clone(), request(self.site, remote));
        Box::pin(async move {
            // Before this call has resolved, as real peers do.
            tokio::spawn(async move {
                // An error means that the connection is lost, which is reported.
                let _ = transport.sync(remote, request).await;
            });
            tokio::task::yield_now().await;
            Ok(())
        })
    }

    fn sync(&self, remote: Remote, request: SyncRequest) -> BoxFuture<'_, Result<(), Refusal>> {
        self.watch("sync of no connection", |state| state.open.contains(&remote.connection));
        if let Some(terms) = &request.terms {
            self.state().asked.insert(remote.connection, terms.answer);
        }
        self.report(Report::Sync(remote, request));
        Box::pin(async { Ok(()) })
    }

    fn receive(&self, remote: Remote, message: Unverified) -> BoxFuture<'_, Result<(), Refusal>> {
        let number = remote.connection;
        self.watch("receive of no connection", |state| state.open.contains(&number));
        self.watch("receive before the last message was taken", |state| state.busy.insert(number));
        Box::pin(async move {
            let message = message.verify(&self.limits).map_err(|error| Refusal::Invalid(error.to_string()));
            match &message {
                // How much room there is, as carriers say that keep messages.
                Ok(PeerMessage::Ack(_)) => {
                    self.state().busy.remove(&number);
                    return Ok(());
                }
                Ok(message) => {
                    let message = self.as_taken(message.clone());
                    if let Some(history) = &mut self.state().history {
                        history.push((number, message.clone()));
                    }
                    self.report(Report::Receive(remote, message));
                }
                Err(_) => {}
            }
            if self.is_gated.load(SeqCst)
                && let Ok(permit) = self.gate.acquire().await
            {
                permit.forget();
            }
            self.state().busy.remove(&number);
            message.map(drop)
        })
    }

    fn garbled(&self, remote: Remote, _reason: String) -> BoxFuture<'_, ()> {
        self.watch("garbled of no connection", |state| state.open.contains(&remote.connection));
        self.report(Report::Garbled(remote));
        Box::pin(async {})
    }

    fn disconnect(&self, remote: Remote, _reason: String) -> BoxFuture<'_, ()> {
        self.watch("disconnect of no connection", |state| state.open.remove(&remote.connection));
        self.watch("disconnect while a message is being taken", |state| !state.busy.contains(&remote.connection));
        self.report(Report::Disconnect(remote));
        Box::pin(async {})
    }
}

/// The number of every request.
pub(super) const ANSWER: u32 = 3;

/// What a peer of this site asks for. It holds whatever it sends: one that holds less has lost it.
pub(super) fn request(site: SiteId, remote: Remote) -> SyncRequest {
    let cursor: Cursor = [(site, DbVersion::new(7)), (FAR, DbVersion::new(VERSION_MAX))].into_iter().collect();
    SyncRequest { cursor, terms: remote.is_litemesh.then(|| Terms { answer: ANSWER, credit: 5, ..Terms::default() }) }
}

/// What sends, in tasks of its own.
#[derive(Clone)]
pub(super) struct Sender(Arc<Recorder>);

impl Sender {
    pub(super) async fn send(&self, remote: Remote, mut message: PeerMessage) -> Result<(), TransportError> {
        if let PeerMessage::Changes { progress: Some(progress), .. } = &mut message
            && let Some(answer) = self.0.state().asked.get(&remote.connection)
        {
            progress.answer = *answer;
        }
        // Making and packing messages is all that a runtime of one thread would do for a while, and pings would come too late.
        tokio::task::yield_now().await;
        let sent = tokio::time::timeout(PATIENCE, self.0.transport.send(remote, message)).await;
        sent.unwrap_or_else(|_| panic!("a message does not leave"))
    }
}

/// A transport and the peer above it.
pub(super) struct Side {
    pub(super) site: SiteId,
    pub(super) transport: Arc<dyn Transport>,
    peer: Arc<Recorder>,
    reports: mpsc::Receiver<Report>,
    /// Looked at, and waited for by nobody yet.
    seen: VecDeque<Report>,
}

impl Side {
    pub(super) fn new(site: SiteId, transport: Arc<dyn Transport>) -> Self {
        let (sender, reports) = mpsc::channel(REPORTS_MAX);
        let peer = Arc::new(Recorder {
            site,
            limits: Limits::default(),
            transport: transport.clone(),
            reports: sender,
            gate: Semaphore::new(0),
            is_gated: AtomicBool::new(false),
            refusals: Mutex::default(),
            state: Mutex::default(),
        });
        Self { site, transport, peer, reports, seen: VecDeque::new() }
    }

    pub(super) async fn start(&self) {
        let started = self.transport.start(self.peer.clone()).await;
        started.unwrap_or_else(|error| panic!("the transport does not start: {error}"));
    }

    pub(super) fn sender(&self) -> Sender {
        Sender(self.peer.clone())
    }

    /// What a message is once it has come here.
    pub(super) fn as_taken(&self, message: PeerMessage) -> PeerMessage {
        self.peer.as_taken(message)
    }

    /// Writes down from now on what comes.
    pub(super) fn write_down(&self) {
        self.peer.state().history = Some(Vec::new());
    }

    /// What was written down, of each connection.
    pub(super) fn written_down(&self) -> BTreeMap<u64, Vec<PeerMessage>> {
        let mut of_each: BTreeMap<u64, Vec<PeerMessage>> = BTreeMap::new();
        for (connection, message) in self.peer.state().history.iter().flatten() {
            of_each.entry(*connection).or_default().push(message.clone());
        }
        of_each
    }

    /// Lets no message be taken before [`open_gate`](Self::open_gate).
    pub(super) fn close_gate(&self) {
        self.peer.is_gated.store(true, SeqCst);
    }

    pub(super) fn open_gate(&self) {
        self.peer.is_gated.store(false, SeqCst);
        self.peer.gate.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    /// Refuses the next connections.
    pub(super) fn refuse(&self, connections: usize) {
        *self.peer.refusals.lock().unwrap_or_else(PoisonError::into_inner) = connections;
    }

    /// Stops the transport; whatever it reports from then on breaks the contract.
    pub(super) async fn stop(&self) {
        let stopped = tokio::time::timeout(PATIENCE, self.transport.stop()).await;
        assert!(stopped.is_ok(), "the transport does not stop");
        self.peer.state().is_stopped = true;
    }

    /// Panics where the transport has broken its contract.
    #[track_caller]
    pub(super) fn check(&self) {
        let broken = self.peer.state().broken.clone();
        if let Some(broken) = broken {
            panic!("the contract is broken: {broken}");
        }
    }

    /// The next report for which `wanted` gives something. Others before it stay, in their order.
    pub(super) async fn find<T>(&mut self, what: &str, wanted: impl Fn(&Report) -> Option<T>) -> T {
        for index in 0..self.seen.len() {
            if let Some(found) = wanted(&self.seen[index]) {
                self.seen.remove(index);
                return found;
            }
        }
        let search = async {
            while let Some(report) = self.reports.recv().await {
                if let Some(found) = wanted(&report) {
                    return found;
                }
                self.seen.push_back(report);
            }
            panic!("the peer is gone");
        };
        match tokio::time::timeout(PATIENCE, search).await {
            Ok(found) => found,
            Err(_) => panic!("{what}: this did not come, but {:?}", self.seen),
        }
    }

    pub(super) async fn connect(&mut self) -> Remote {
        self.find("a connection", |report| match report {
            Report::Connect(remote) => Some(*remote),
            _ => None,
        })
        .await
    }

    pub(super) async fn disconnect(&mut self, of: Remote) {
        self.find("the end of a connection", |report| match report {
            Report::Disconnect(remote) => (*remote == of).then_some(()),
            _ => None,
        })
        .await;
    }

    pub(super) async fn request(&mut self, of: Remote) -> SyncRequest {
        self.find("a request", |report| match report {
            Report::Sync(remote, request) => (*remote == of).then(|| request.clone()),
            _ => None,
        })
        .await
    }

    pub(super) async fn message(&mut self, of: Remote) -> PeerMessage {
        self.find("a message", |report| match report {
            Report::Receive(remote, message) => (*remote == of).then(|| message.clone()),
            _ => None,
        })
        .await
    }

    /// Waits for this very message, over whatever connection, and tells over which.
    pub(super) async fn this_message(&mut self, wanted: &PeerMessage) -> Remote {
        self.find("this very message", |report| match report {
            Report::Receive(remote, message) => (message == wanted).then_some(*remote),
            _ => None,
        })
        .await
    }

    /// Whether this very message comes over this connection before that ends.
    pub(super) async fn message_or_end(&mut self, of: Remote, wanted: &PeerMessage) -> bool {
        self.find("a message, or the end of its connection", |report| match report {
            Report::Receive(remote, message) if *remote == of => (message == wanted).then_some(true),
            Report::Disconnect(remote) => (*remote == of).then_some(false),
            _ => None,
        })
        .await
    }

    /// What was reported so far of a connection: its messages, and whether something could not be read.
    pub(super) fn taken(&mut self, of: Remote) -> (Vec<PeerMessage>, bool) {
        while let Ok(report) = self.reports.try_recv() {
            self.seen.push_back(report);
        }
        let messages = self.seen.iter().filter_map(|report| match report {
            Report::Receive(remote, message) if *remote == of => Some(message.clone()),
            _ => None,
        });
        let is_garbled = self.seen.iter().any(|report| matches!(report, Report::Garbled(remote) if *remote == of));
        (messages.collect(), is_garbled)
    }

    /// Whether this connection has not ended yet.
    pub(super) fn stands(&self, remote: Remote) -> bool {
        self.peer.state().open.contains(&remote.connection)
    }

    /// Whether nothing was reported that nobody has waited for.
    pub(super) fn is_silent(&mut self) -> bool {
        while let Ok(report) = self.reports.try_recv() {
            self.seen.push_back(report);
        }
        self.seen.is_empty()
    }
}
