//! [`Peer`]: a database that syncs.

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use litemesh_proto::{
    Access, BoxFuture, Cursor, DbVersion, Limits, PeerCallbacks, Refusal, Remote, Resumed, SiteId, SyncRequest,
    Transport, Unverified,
};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::disk::Disk;
use crate::driver::{Common, Driver, INBOX_MAX, Inbound, Stats};
use crate::engine_thread::EngineThread;
use crate::event::{EVENTS_KEPT, Events};
use crate::session::Room;
use crate::session::access::{Gate, check_remote};
use crate::shared_pages::SharedPages;
use crate::watch::FileWatch;
use crate::ways::{Rank, Ways};
use crate::{Database, Event, PeerError, StartError, beat};

/// Builds a [`Peer`].
pub struct PeerBuilder {
    database: Database,
    transports: Vec<Arc<dyn Transport>>,
    limits: Limits,
    events: broadcast::Sender<Event>,
    stopped: watch::Sender<bool>,
}

impl PeerBuilder {
    /// Adds a transport. A peer uses all of its transports at once.
    ///
    /// Any type that keeps the contract of [`Transport`] will do. Here two peers in one process talk through channels; the
    /// example `custom_transport` goes over Unix sockets, and docs/transports.md says what a transport owes a peer.
    ///
    /// ```
    /// use std::sync::{Arc, Mutex, PoisonError};
    /// use litemesh::proto::{Access, BoxFuture, PeerCallbacks, PeerMessage, Remote, SyncRequest, Transport, TransportError, Unverified};
    /// use litemesh::{Database, Event, Peer, SiteId};
    /// use tokio::sync::mpsc;
    ///
    /// enum Said {
    ///     Hello(SiteId),
    ///     Sync(SyncRequest),
    ///     Message(PeerMessage),
    /// }
    ///
    /// struct Channel {
    ///     sender: mpsc::Sender<Said>,
    ///     receiver: Mutex<Option<mpsc::Receiver<Said>>>,
    ///     task: Mutex<Option<tokio::task::JoinHandle<()>>>,
    /// }
    ///
    /// impl Channel {
    ///     fn pair() -> (Self, Self) {
    ///         let ((to_a, at_a), (to_b, at_b)) = (mpsc::channel(4), mpsc::channel(4));
    ///         let end = |sender, at| Self { sender, receiver: Mutex::new(Some(at)), task: Mutex::default() };
    ///         (end(to_b, at_a), end(to_a, at_b))
    ///     }
    ///
    ///     // Waits while the channel is full: that is the backpressure.
    ///     async fn say(&self, said: Said) -> Result<(), TransportError> {
    ///         self.sender.send(said).await.map_err(|error| TransportError::Lost { reason: error.to_string() })
    ///     }
    ///
    ///     async fn end(&self) {
    ///         let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
    ///         if let Some(task) = task {
    ///             task.abort();
    ///             let _ = task.await; // from here on nothing is reported any more
    ///         }
    ///     }
    /// }
    ///
    /// /// Delivers what the other end says, one after another.
    /// async fn listen(mut receiver: mpsc::Receiver<Said>, peer: Arc<dyn PeerCallbacks>) {
    ///     let Some(Said::Hello(site)) = receiver.recv().await else { return };
    ///     let remote = Remote { site, connection: Remote::next_connection(), is_litemesh: true };
    ///     if peer.connect(remote, Access::FULL).await.is_err() {
    ///         return;
    ///     }
    ///     while let Some(said) = receiver.recv().await {
    ///         // The peer itself notes what it refuses.
    ///         let _ = match said {
    ///             Said::Sync(request) => peer.sync(remote, request).await,
    ///             Said::Message(message) => peer.receive(remote, Unverified::new(message)).await,
    ///             Said::Hello(_) => Ok(()),
    ///         };
    ///     }
    ///     peer.disconnect(remote, "the other end is gone".to_owned()).await;
    /// }
    ///
    /// impl Transport for Channel {
    ///     fn name(&self) -> &str {
    ///         "channel"
    ///     }
    ///     fn start(&self, peer: Arc<dyn PeerCallbacks>) -> BoxFuture<'_, Result<(), TransportError>> {
    ///         Box::pin(async move {
    ///             let receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take();
    ///             let receiver = receiver.ok_or(TransportError::AlreadyStarted)?;
    ///             self.say(Said::Hello(peer.site())).await?;
    ///             let task = tokio::spawn(listen(receiver, peer));
    ///             *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
    ///             Ok(())
    ///         })
    ///     }
    ///     fn sync(&self, _: Remote, request: SyncRequest) -> BoxFuture<'_, Result<(), TransportError>> {
    ///         Box::pin(self.say(Said::Sync(request)))
    ///     }
    ///     fn send(&self, _: Remote, message: PeerMessage) -> BoxFuture<'_, Result<(), TransportError>> {
    ///         Box::pin(self.say(Said::Message(message)))
    ///     }
    ///     fn close(&self, _: Remote) -> BoxFuture<'_, ()> {
    ///         Box::pin(self.end())
    ///     }
    ///     fn stop(&self) -> BoxFuture<'_, ()> {
    ///         Box::pin(self.end())
    ///     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (here, there) = Channel::pair();
    /// let builder = Peer::builder(Database::open_in_memory()?).transport(here);
    /// let mut events = builder.events();
    /// let peer = builder.start().await?;
    /// let other = Peer::builder(Database::open_in_memory()?).transport(there).start().await?;
    /// while !matches!(events.recv().await?, Event::Eose { .. }) {}
    /// assert_eq!(peer.status()[0].peer, other.id());
    /// peer.stop().await;
    /// other.stop().await;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn transport(self, transport: impl Transport) -> Self {
        self.shared_transport(Arc::new(transport))
    }

    /// Adds a transport that the application keeps a handle of, such as a server whose routes it mounts.
    #[must_use]
    pub fn shared_transport(mut self, transport: Arc<dyn Transport>) -> Self {
        self.transports.push(transport);
        self
    }

    /// What this peer accepts from remotes.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// A stream of events that misses none, from the first on.
    pub fn events(&self) -> Events {
        Events::new(self.events.subscribe(), self.stopped.subscribe())
    }

    /// Starts the engine thread and all transports.
    ///
    /// # Errors
    ///
    /// The database cannot be opened, or a transport cannot be used at all. A remote that is not there yet is no error.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops what was started.
    pub async fn start(self) -> Result<Peer, StartError> {
        let engine = self.database.connect()?;
        let site = engine.site().map_err(PeerError::from)?;
        let engine = EngineThread::spawn(engine, self.events.clone())?;
        let waker = engine.waker();
        self.database.wakers().add(move || waker.wake());
        let watch = FileWatch::start(self.database.path(), engine.waker());
        let announced = engine.announced();
        let beating = beat::first(*announced.borrow());
        let beats = beating.subscribe();
        let (changing, schemas) = watch::channel(());
        let readers = Arc::new(AtomicUsize::new(0));
        let beating = tokio::spawn(beat::run(announced, beating, changing, readers.clone()));
        let common = Arc::new(Common {
            site,
            engine,
            disk: Disk::of(self.database.path()),
            events: self.events,
            frontier: Arc::default(),
            stuck: Arc::default(),
            ways: Ways::default(),
            limits: self.limits,
            room: Room::default(),
            pages: Arc::new(SharedPages::new(beats.clone())),
            beats,
            schemas,
            readers,
        });
        let stop = CancellationToken::new();
        let inner = Arc::new(Inner {
            site,
            common,
            transports: self.transports,
            sessions: Mutex::default(),
            stop: stop.clone(),
        });
        let stopped = self.stopped.subscribe();
        tokio::spawn(supervise(inner.clone(), watch, beating, self.stopped));
        let peer = Peer { handle: Arc::new(Handle { inner: inner.clone(), stopped, guard: stop.drop_guard() }) };
        for (index, transport) in inner.transports.iter().enumerate() {
            let callbacks =
                Arc::new(Callbacks { peer: Arc::downgrade(&inner), site, limits: inner.common.limits.clone(), index });
            transport
                .start(callbacks)
                .await
                .map_err(|source| StartError::Transport { transport: transport.name().to_owned(), source })?;
        }
        Ok(peer)
    }
}

/// A running peer. Cheap to clone; it stops when [`stop`](Self::stop) is called or the last clone is dropped.
///
/// ```
/// use litemesh::{Database, Peer};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let db = Database::open_in_memory()?;
/// let peer = Peer::builder(db).start().await?;
/// println!("started with id {}", peer.id());
/// peer.stop().await;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Peer {
    handle: Arc<Handle>,
}

struct Handle {
    inner: Arc<Inner>,
    stopped: watch::Receiver<bool>,
    #[allow(dead_code)] // dropped with the last peer handle, which stops everything
    guard: tokio_util::sync::DropGuard,
}

struct Inner {
    site: SiteId,
    common: Arc<Common>,
    transports: Vec<Arc<dyn Transport>>,
    sessions: Mutex<Sessions>,
    stop: CancellationToken,
}

#[derive(Default)]
struct Sessions {
    running: HashMap<u64, Running>,
    tasks: JoinSet<()>,
}

struct Running {
    remote: Remote,
    access: Access,
    transport_index: usize,
    transport: Arc<str>,
    inbox: mpsc::Sender<Box<Inbound>>,
    stats: Arc<Stats>,
}

/// How it stands with one remote.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RemoteStatus {
    /// The remote.
    pub peer: SiteId,
    /// The transport that connects us.
    pub transport: Arc<str>,
    /// Whether it is a Litemesh peer, rather than one of the original.
    pub is_litemesh: bool,
    /// What it may do here.
    pub access: Access,
    /// Changes that it sent, whether they won or not.
    pub changes_received: u64,
    /// Changes that were sent to it.
    pub changes_sent: u64,
    /// Messages of it that were refused.
    pub messages_refused: u64,
    /// Our local version up to which it has said that it holds everything, durably. `None` for a peer of the original, which
    /// acknowledges nothing.
    pub acknowledged: Option<DbVersion>,
    /// Both directions are caught up.
    pub is_caught_up: bool,
}

impl Peer {
    /// Begins to build a peer on a database.
    pub fn builder(database: Database) -> PeerBuilder {
        let ((events, _), (stopped, _)) = (broadcast::channel(EVENTS_KEPT), watch::channel(false));
        PeerBuilder { database, transports: Vec::new(), limits: Limits::default(), events, stopped }
    }

    /// The site id of the database.
    pub fn id(&self) -> SiteId {
        self.handle.inner.site
    }

    /// `PRAGMA user_version` of the database, as last seen.
    pub fn schema_version(&self) -> i64 {
        self.handle.inner.common.engine.announced().borrow().schema_version
    }

    /// A stream of events, from now on. [`PeerBuilder::events`] misses none from the start.
    pub fn events(&self) -> Events {
        Events::new(self.handle.inner.common.events.subscribe(), self.handle.stopped.clone())
    }

    /// Looks for changes now.
    ///
    /// Never needed: commits are noticed by themselves, also those of other processes. When it resolves, everything
    /// committed before the call was announced as [`Event::Change`], and every session sends it with its next message.
    ///
    /// ```
    /// use litemesh::{Database, Event, Peer};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let db = Database::open_in_memory()?;
    /// db.lock().connection().execute_batch("CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT)")?;
    /// db.lock().replicate("todo")?;
    /// let peer = Peer::builder(db.clone()).start().await?;
    /// let mut events = peer.events();
    ///
    /// db.lock().connection().execute("INSERT INTO todo VALUES ('a', 'write docs')", [])?;
    /// peer.check_local_changes().await?;
    /// assert_eq!(events.recv().await?, Event::Change { tables: ["todo".into()].into() });
    /// # peer.stop().await;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// The peer was stopped.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn check_local_changes(&self) -> Result<(), PeerError> {
        self.handle.inner.common.engine.check().await
    }

    /// What this database holds of every site.
    ///
    /// # Errors
    ///
    /// The peer was stopped, or the database failed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn cursor(&self) -> Result<Cursor, PeerError> {
        Ok(self.handle.inner.common.engine.call(|engine| engine.cursor()).await??)
    }

    /// How it stands with each connected remote.
    pub fn status(&self) -> Vec<RemoteStatus> {
        let sessions = self.handle.inner.sessions();
        sessions
            .running
            .values()
            .map(|running| running.stats.status(running.remote, running.access.clone(), running.transport.clone()))
            .collect()
    }

    /// Stops all transports and sessions, and closes the peer's connection to the database: its file may be copied, moved or replaced then
    /// as far as the peer is concerned. Nothing is lost: what was not sent is sent after the next start.
    ///
    /// # Cancel safety
    ///
    /// The peer stops also when the future is dropped.
    pub async fn stop(&self) {
        self.handle.inner.stop.cancel();
        let mut stopped = self.handle.stopped.clone();
        // An error means that the supervisor is gone, so everything has stopped.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    }
}

/// Owns what runs, and ends it in order: transports, then sessions, then the watch, then the engine's thread, which does before what
/// sessions have ordered. Also where the engine ends by itself.
async fn supervise(inner: Arc<Inner>, watch: FileWatch, beating: JoinHandle<()>, stopped: watch::Sender<bool>) {
    let mut announced = inner.common.engine.announced();
    // Losing a branch loses nothing: what is announced is of no interest here.
    tokio::select! {
        () = inner.stop.cancelled() => {}
        () = async { while announced.changed().await.is_ok() {} } => inner.stop.cancel(),
    }
    for transport in &inner.transports {
        transport.stop().await;
    }
    let mut tasks = {
        let mut sessions = inner.sessions();
        // Without their senders the sessions end.
        sessions.running.clear();
        std::mem::take(&mut sessions.tasks)
    };
    while tasks.join_next().await.is_some() {}
    beating.abort();
    // Aborted or not, it has ended.
    let _ = beating.await;
    drop(watch);
    inner.common.engine.end().await;
    stopped.send_replace(true);
}

impl Inner {
    fn sessions(&self) -> std::sync::MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(self: Arc<Self>, remote: Remote, access: Access, index: usize) -> Result<(), Refusal> {
        if remote.site == self.site {
            // Changes of two databases under one id would hide each other (VER-16). Both sides come here.
            let refusal = Refusal::SameSite { site: remote.site };
            let transport = Some(self.transports[index].name().into());
            // An error means that nobody listens.
            let message = refusal.to_string();
            let _ = self.common.events.send(Event::Error { peer: Some(remote.site), transport, message });
            return Err(refusal);
        }
        check_remote(remote, &access)?;
        if self.stop.is_cancelled() {
            return Err(Refusal::Unavailable("the peer is stopping".to_owned()));
        }
        let transport = self.transports[index].clone();
        let name: Arc<str> = transport.name().into();
        let (inbox, receiver) = mpsc::channel(INBOX_MAX);
        let stats = Arc::new(Stats::default());
        let key = Gate::new(access.clone()).position_key(remote.site);
        let way = self.common.ways.add(key, Rank::of(&*transport, remote));
        let driver = Driver {
            remote,
            access: access.clone(),
            transport,
            transport_name: name.clone(),
            common: self.common.clone(),
            stats: stats.clone(),
            recent: Arc::default(),
            way,
        };
        let running = Running { remote, access, transport_index: index, transport: name, inbox, stats };
        let peer = Arc::downgrade(&self);
        let mut sessions = self.sessions();
        // One session a remote and transport: the newest connection counts. Without its sender the older session ends by
        // itself. Over another transport the same remote may be connected beside it: ending that, too, would make two
        // transports that dial by themselves replace each other for ever.
        sessions.running.retain(|_, running| running.remote.site != remote.site || running.transport_index != index);
        sessions.running.insert(remote.connection, running);
        while sessions.tasks.try_join_next().is_some() {}
        sessions.tasks.spawn(async move {
            driver.run(receiver).await;
            if let Some(peer) = peer.upgrade() {
                peer.sessions().running.remove(&remote.connection);
            }
        });
        Ok(())
    }

    /// As when `send` fails because the remote refused the message.
    fn tell_refusal(&self, remote: Remote, reason: &str) {
        let running = self.sessions().running.get(&remote.connection).map(|running| running.transport.clone());
        if let Some(transport) = running {
            let message = format!("the remote refused a message: {reason}");
            // An error means that nobody listens.
            let _ =
                self.common.events.send(Event::Error { peer: Some(remote.site), transport: Some(transport), message });
        }
    }

    fn inbox(&self, remote: Remote) -> Result<mpsc::Sender<Box<Inbound>>, Refusal> {
        self.sessions()
            .running
            .get(&remote.connection)
            .map(|running| running.inbox.clone())
            .ok_or(Refusal::UnknownRemote)
    }
}

/// What one transport sees of the peer. Weak, so that a transport does not keep a dropped peer alive.
struct Callbacks {
    peer: Weak<Inner>,
    site: SiteId,
    limits: Limits,
    index: usize,
}

impl Callbacks {
    async fn deliver(
        &self,
        remote: Remote,
        inbound: impl FnOnce(oneshot::Sender<Result<(), Refusal>>) -> Inbound,
    ) -> Result<(), Refusal> {
        let inbox = self.peer.upgrade().ok_or(Refusal::UnknownRemote)?.inbox(remote)?;
        let place = inbox.reserve_owned().await.map_err(|_| Refusal::UnknownRemote)?;
        hand_over(place, inbound).await
    }
}

/// Hands a message to a session, and waits for what comes of it.
async fn hand_over(
    place: mpsc::OwnedPermit<Box<Inbound>>,
    inbound: impl FnOnce(oneshot::Sender<Result<(), Refusal>>) -> Inbound,
) -> Result<(), Refusal> {
    let (reply, answer) = oneshot::channel();
    // The sender goes before the wait. Where the session ended after the place was taken, nobody empties the channel any more:
    // the message and its reply live as long as the last sender does, and whoever kept one would wait for ever.
    drop(place.send(Box::new(inbound(reply))));
    answer.await.map_err(|_| Refusal::UnknownRemote)?
}

impl PeerCallbacks for Callbacks {
    fn site(&self) -> SiteId {
        self.site
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn connect(&self, remote: Remote, access: Access) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async move { self.peer.upgrade().ok_or(Refusal::UnknownRemote)?.connect(remote, access, self.index) })
    }

    fn sync(&self, remote: Remote, request: SyncRequest) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(self.deliver(remote, move |reply| Inbound::Asked(request, None, reply)))
    }

    fn resume(&self, remote: Remote, request: SyncRequest, resumed: Resumed) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(self.deliver(remote, move |reply| Inbound::Asked(request, Some(resumed), reply)))
    }

    fn receive(&self, remote: Remote, message: Unverified) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(self.deliver(remote, move |reply| Inbound::Received(message, reply)))
    }

    fn garbled(&self, remote: Remote, reason: String) -> BoxFuture<'_, ()> {
        Box::pin(self.end(remote, Inbound::Garbled(reason)))
    }

    fn refused(&self, remote: Remote, reason: String) -> BoxFuture<'_, ()> {
        if let Some(peer) = self.peer.upgrade() {
            peer.tell_refusal(remote, &reason);
        }
        Box::pin(async {})
    }

    fn trouble(&self, remote: Remote, reason: String) -> BoxFuture<'_, ()> {
        if let Some(peer) = self.peer.upgrade() {
            let transport = Some(peer.transports[self.index].name().into());
            // An error means that nobody listens.
            let _ = peer.common.events.send(Event::Error { peer: Some(remote.site), transport, message: reason });
        }
        Box::pin(async {})
    }

    fn disconnect(&self, remote: Remote, reason: String) -> BoxFuture<'_, ()> {
        Box::pin(self.end(remote, Inbound::Closed(reason)))
    }
}

impl Callbacks {
    async fn end(&self, remote: Remote, inbound: Inbound) {
        if let Some(Ok(inbox)) = self.peer.upgrade().map(|peer| peer.inbox(remote)) {
            // An error means that the session has ended already.
            let _ = inbox.send(Box::new(inbound)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kills and broken lines found it: a client waited for ever, and never dialled again.
    #[tokio::test]
    async fn a_message_to_a_session_that_has_just_ended_is_refused() {
        let (inbox, receiver) = mpsc::channel(INBOX_MAX);
        let place = inbox.reserve_owned().await.unwrap();
        drop(receiver);
        let handed = hand_over(place, |reply| Inbound::Asked(SyncRequest::default(), None, reply));
        let refused = tokio::time::timeout(std::time::Duration::from_secs(60), handed).await.expect("an end");
        assert!(matches!(refused, Err(Refusal::UnknownRemote)), "{refused:?}");
    }
}
