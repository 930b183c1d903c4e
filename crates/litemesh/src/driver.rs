//! The one file that joins a [`Session`] to tokio, the engine thread and a transport: one task for each connection.
//!
//! The session decides; this carries out. Everything slow runs beside the loop, in tasks that are aborted with it, so that a
//! remote that takes nothing delays nobody else, and nothing of its own either.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};

use litemesh_engine::{Engine, PageLimits, Reach};
use litemesh_proto::limits::{BATCH_BYTES_MAX, BATCH_CHANGES_MAX, BATCH_STRETCH};
use litemesh_proto::{
    Access, Change, Cursor, DbVersion, PeerMessage, Refusal, Remote, Resumed, SiteId, SyncRequest, Transport,
    TransportError, Unverified,
};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::Instrument;

use crate::beat::Beat;
use crate::disk::Disk;
use crate::engine_thread::EngineThread;
use crate::event::Event;
use crate::lanes::Lane;
use crate::session::access::Gate;
use crate::session::{Effect, Input, Notice, ReadDone, ReadOrder, Room, Session, Timer};
use crate::shared_pages::SharedPages;
use crate::ways::{Way, Ways};
use crate::work::{self, Frontier, Recent, Stuck};
use crate::{PeerError, RemoteStatus};

/// Inputs that wait for one session. A transport has one message of a connection under way, so this is never long.
pub(crate) const INBOX_MAX: usize = 8;

/// Merging more changes than these does not go before what others wait for.
const BULK_CHANGES_MIN: usize = 1000;

/// What a transport brings to a session. Boxed where it waits: a channel has room for 32 from the start.
pub(crate) enum Inbound {
    /// With how far another connection has brought the remote since it asked, where the carrier kept that.
    Asked(SyncRequest, Option<Resumed>, Reply),
    Received(Unverified, Reply),
    Garbled(String),
    Closed(String),
}

type Reply = oneshot::Sender<Result<(), Refusal>>;

/// What is shared by the sessions of one peer.
pub(crate) struct Common {
    pub(crate) site: SiteId,
    pub(crate) engine: EngineThread,
    pub(crate) disk: Disk,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) frontier: Frontier,
    pub(crate) stuck: Stuck,
    pub(crate) ways: Ways,
    pub(crate) limits: litemesh_proto::Limits,
    pub(crate) room: Room,
    pub(crate) beats: watch::Receiver<Beat>,
    /// Says that a beat brought another schema.
    pub(crate) schemas: watch::Receiver<()>,
    pub(crate) pages: Arc<SharedPages>,
    /// Sessions that the last beat made read.
    pub(crate) readers: Arc<AtomicUsize>,
}

/// Stands for a version where there is none.
const NOTHING: i64 = -1;

/// Counters of one connection.
pub(crate) struct Stats {
    pub(crate) changes_received: AtomicU64,
    pub(crate) changes_sent: AtomicU64,
    pub(crate) messages_refused: AtomicU64,
    pub(crate) is_caught_up: AtomicBool,
    /// Our local version that the remote has acknowledged; -1 where it acknowledges nothing.
    pub(crate) acknowledged: AtomicI64,
}

/// What a task of the driver came to.
enum Done {
    Input(Input),
    Failed(String),
}

pub(crate) struct Driver {
    pub(crate) remote: Remote,
    /// What the remote may do here.
    pub(crate) access: Access,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) transport_name: Arc<str>,
    pub(crate) common: Arc<Common>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) recent: Recent,
    pub(crate) way: Way,
}

impl Driver {
    /// Runs one session until its connection ends. Says why it ended.
    pub(crate) async fn run(self, inbox: mpsc::Receiver<Box<Inbound>>) {
        let peer = tracing::info_span!("peer", site = %self.common.site.fmt_short());
        let (remote, transport) = (self.remote.site.fmt_short(), &self.transport_name);
        let session = tracing::info_span!(parent: &peer, "session", %remote, %transport);
        async {
            self.tell(|peer, transport| Event::Connect { peer, transport });
            let reason = self.serve(inbox).await;
            self.way.end();
            self.transport.close(self.remote).await;
            tracing::debug!(reason, "session ended");
            self.tell(|peer, transport| Event::Disconnect { peer, transport, reason });
        }
        .instrument(session)
        .await;
    }

    fn tell(&self, event: impl FnOnce(SiteId, Arc<str>) -> Event) {
        // An error means that nobody listens.
        let _ = self.common.events.send(event(self.remote.site, self.transport_name.clone()));
    }

    async fn serve(&self, mut inbox: mpsc::Receiver<Box<Inbound>>) -> String {
        let (mut beats, mut schemas) = (self.common.beats.clone(), self.common.schemas.clone());
        schemas.mark_unchanged();
        let mut last = beats.borrow_and_update().announced;
        let (limits, room) = (self.common.limits.clone(), self.common.room.clone());
        let mut session = Session::new(self.remote, self.access.clone(), last.schema_version, limits, room);
        let mut tasks: JoinSet<Done> = JoinSet::new();
        let mut reply: Option<Reply> = None;
        self.spawn_opening(&mut tasks, session.key(), Some(self.common.stuck.clone()));
        loop {
            // Losing a branch loses nothing: inputs stay in their channels, tasks in their set.
            let input = tokio::select! {
                inbound = inbox.recv() => match inbound.map(|inbound| *inbound) {
                    None => return "the peer was stopped".to_owned(),
                    Some(Inbound::Closed(reason)) => return reason,
                    Some(Inbound::Garbled(reason)) => Some(Input::Garbled(reason)),
                    Some(Inbound::Asked(request, resumed, answer)) => {
                        // The answer has started; that is all that a transport may know.
                        let _ = answer.send(Ok(()));
                        Some(match resumed {
                            Some(resumed) => Input::Resumed(request, resumed),
                            None => Input::Asked(request),
                        })
                    }
                    Some(Inbound::Received(message, answer)) => {
                        reply = Some(answer);
                        Some(Input::Received(message))
                    }
                },
                Some(done) = tasks.join_next() => match done {
                    Ok(Done::Input(input)) => Some(input),
                    Ok(Done::Failed(reason)) => return reason,
                    Err(error) => return format!("internal error: {error}"),
                },
                changed = beats.changed(), if session.waits_for_commits() => match changed {
                    Ok(()) => Some(Input::Committed),
                    Err(_) => return "the engine ended".to_owned(),
                },
                changed = schemas.changed() => match changed {
                    Ok(()) => None,
                    Err(_) => return "the engine ended".to_owned(),
                },
                () = self.way.changed() => Some(Input::OtherWays(self.way.standing())),
            };
            let now = beats.borrow().announced;
            if now.is_other_schema(&last) {
                let effects = session.handle(Input::SchemaChanged(now.schema_version));
                self.carry_out(effects, &mut tasks, &mut reply, &mut beats);
            }
            last = now;
            let Some(input) = input else { continue };
            let is_beat = matches!(input, Input::Committed);
            let effects = session.handle(input);
            if is_beat && effects.iter().any(|effect| matches!(effect, Effect::Read(_))) {
                self.common.readers.fetch_add(1, Ordering::Relaxed);
            }
            self.carry_out(effects, &mut tasks, &mut reply, &mut beats);
            self.stats.is_caught_up.store(session.is_caught_up(), Ordering::Relaxed);
            let acknowledged = session.acknowledged();
            let version = acknowledged.map_or(NOTHING, |position| position.version.get());
            self.stats.acknowledged.store(version, Ordering::Relaxed);
            if let Some(served) = session.served() {
                self.way.report(served, session.rests());
            }
        }
    }

    fn carry_out(
        &self,
        effects: Vec<Effect>,
        tasks: &mut JoinSet<Done>,
        reply: &mut Option<Reply>,
        beats: &mut watch::Receiver<Beat>,
    ) {
        for effect in effects {
            match effect {
                Effect::Open { key } => self.spawn_opening(tasks, key, None),
                Effect::Ask(request) => self.spawn_ask(tasks, request),
                Effect::EndAfter(delay, reason) => {
                    spawn(tasks, async move {
                        tokio::time::sleep(delay).await;
                        Done::Failed(reason)
                    });
                }
                Effect::Merge { changes, progress, reached, echoes, is_resumed } => {
                    self.spawn_merge(tasks, changes, progress, reached, (echoes, is_resumed));
                }
                Effect::Stage { key, changes, after, until } => self.spawn_stage(tasks, key, changes, after, until),
                Effect::MergeStaged { key } => self.spawn_merge_staged(tasks, key),
                Effect::Flush => self.spawn_flush(tasks),
                // Of one who is away an answer may take days.
                Effect::Wake(Timer::Silence | Timer::Answer, _) if self.transport.keeps_messages() => {}
                Effect::Wake(timer, delay) => {
                    spawn(tasks, async move {
                        tokio::time::sleep(delay).await;
                        Done::Input(Input::Woken(timer))
                    });
                }
                Effect::Read(order) => {
                    // What is read from now on has everything of this beat: it need not wake us.
                    let beat = beats.borrow_and_update().number;
                    self.spawn_read(tasks, order, beat);
                }
                Effect::Send(message) => self.spawn_send(tasks, message),
                Effect::Reply(result) => {
                    // Nothing went wrong, and there is nothing that the remote could do. Only who keeps the message has to know.
                    let is_outdated = matches!(result, Err(Refusal::Outdated(_)));
                    let result = if is_outdated && !self.transport.keeps_messages() { Ok(()) } else { result };
                    self.stats
                        .messages_refused
                        .fetch_add(u64::from(result.is_err() && !is_outdated), Ordering::Relaxed);
                    if let Some(reply) = reply.take() {
                        // The transport may have given up waiting.
                        let _ = reply.send(result);
                    }
                }
                Effect::Note(served) => self.transport.served_elsewhere(self.remote, served),
                Effect::Tell(notice) => self.notice(notice),
            }
        }
    }

    fn notice(&self, notice: Notice) {
        self.tell(|peer, transport| match notice {
            Notice::Sync => Event::Sync { peer, transport },
            Notice::Eose => Event::Eose { peer, transport },
            Notice::Served => Event::Served { peer, transport },
            Notice::Outdated(schema_version) => Event::Outdated { schema_version, peer, transport },
            Notice::Error(message) => Event::Error { peer: Some(peer), transport: Some(transport), message },
        });
    }

    /// Reads what we hold, to ask for the rest. To name a position is to acknowledge what lies before it.
    fn spawn_opening(&self, tasks: &mut JoinSet<Done>, key: SiteId, stuck: Option<Stuck>) {
        let (way, flush) = (self.way.clone(), self.flush());
        let engine = self.common.engine.clone();
        spawn(tasks, async move {
            let open = move |engine: &mut Engine| work::open(engine, key, &way, stuck.as_ref());
            match flatten(engine.call(open).await) {
                Ok(opened) => flush.await.map_or_else(Done::Failed, |()| Done::Input(opened)),
                Err(error) => Done::Failed(error.to_string()),
            }
        });
    }

    fn spawn_ask(&self, tasks: &mut JoinSet<Done>, request: SyncRequest) {
        let (transport, remote) = (self.transport.clone(), self.remote);
        spawn(tasks, async move {
            match transport.sync(remote, request).await {
                // Nothing follows from it: the answer comes by itself.
                Ok(()) => std::future::pending().await,
                Err(error) => Done::Failed(error.to_string()),
            }
        });
    }

    fn spawn_merge(
        &self,
        tasks: &mut JoinSet<Done>,
        changes: Vec<Change>,
        progress: litemesh_engine::MergeProgress,
        reached: Cursor,
        (echoes, is_resumed): (bool, bool),
    ) {
        self.stats.changes_received.fetch_add(changes.len() as u64, Ordering::Relaxed);
        let (engine, frontier, recent) =
            (self.common.engine.clone(), self.common.frontier.clone(), self.recent.clone());
        let way = self.way.clone();
        let (remote, gate) = (self.remote.site, Gate::new(self.access.clone()));
        let keeps_messages = self.transport.keeps_messages();
        let lane = if progress.completes.is_some() { Lane::Bulk } else { lane_of_merge(changes.len()) };
        let span = tracing::debug_span!("merge", remote = %self.remote.site.fmt_short(), changes = changes.len());
        let work = move |engine: &mut Engine| {
            // The work is done on the engine's thread, where no span would be known.
            let _entered = span.entered();
            if keeps_messages {
                work::heed_message(engine, &progress, is_resumed, remote, &gate)?;
            }
            work::merge(engine, &changes, &progress, &reached, &way, echoes, (&frontier, &recent))
        };
        spawn(tasks, async move {
            match engine.call_in(lane, work).await {
                Ok(result) => Done::Input(Input::Merged(result)),
                Err(error) => Done::Failed(error.to_string()),
            }
        });
    }

    fn spawn_stage(&self, tasks: &mut JoinSet<Done>, key: SiteId, changes: Vec<Change>, after: Reach, until: Reach) {
        self.stats.changes_received.fetch_add(changes.len() as u64, Ordering::Relaxed);
        let (engine, bytes_max) = (self.common.engine.clone(), self.common.limits.staged_bytes_max);
        let (way, lane) = (self.way.clone(), lane_of_merge(changes.len()));
        let work = move |engine: &mut Engine| work::stage(engine, &way, key, &after, &until, &changes, bytes_max);
        spawn(tasks, async move {
            match engine.call_in(lane, work).await {
                Ok(result) => Done::Input(Input::Merged(result)),
                Err(error) => Done::Failed(error.to_string()),
            }
        });
    }

    fn spawn_merge_staged(&self, tasks: &mut JoinSet<Done>, key: SiteId) {
        let engine = self.common.engine.clone();
        spawn(tasks, async move {
            let work = move |engine: &mut Engine| work::merge_staged(engine, key);
            match engine.call_in(Lane::Bulk, work).await {
                Ok(()) => Done::Input(Input::StagedMerged),
                Err(error) => Done::Failed(error.to_string()),
            }
        });
    }

    fn spawn_flush(&self, tasks: &mut JoinSet<Done>) {
        let flush = self.flush();
        spawn(tasks, async move { flush.await.map_or_else(Done::Failed, |()| Done::Input(Input::Flushed)) });
    }

    /// Makes durable what is committed. Says why that failed, which ends the session.
    fn flush(&self) -> impl Future<Output = Result<(), String>> + Send + 'static {
        let (common, remote, name) = (self.common.clone(), self.remote.site, self.transport_name.clone());
        async move {
            common.disk.flush().await.map_err(|error| {
                let message = format!("what came cannot be made durable: {error}");
                let (peer, transport) = (Some(remote), Some(name));
                // An error means that nobody listens.
                let _ = common.events.send(Event::Error { peer, transport, message: message.clone() });
                message
            })
        }
    }

    fn spawn_read(&self, tasks: &mut JoinSet<Done>, order: ReadOrder, beat: u64) {
        let pages = self.common.pages.clone();
        let (engine, frontier, recent) =
            (self.common.engine.clone(), self.common.frontier.clone(), self.recent.clone());
        let bytes_max = self.transport.message_bytes_max(self.remote).min(BATCH_BYTES_MAX);
        let (remote, events, name) = (self.remote, self.common.events.clone(), self.transport_name.clone());
        let limits = PageLimits { changes_max: BATCH_CHANGES_MAX, bytes_max, stretch: BATCH_STRETCH };
        let gate = Gate::new(self.access.clone());
        let is_far = order.what.is_far(self.common.engine.announced().borrow().db_version);
        let lane = if is_far { Lane::Bulk } else { Lane::Live };
        spawn(tasks, async move {
            let generation = order.generation;
            let work = move |engine: &mut Engine| {
                work::read(
                    engine,
                    order.what,
                    (remote.site, &gate),
                    &recent,
                    &frontier,
                    limits,
                    Some((pages.as_ref(), beat)),
                )
            };
            match flatten(engine.call_while_awaited(lane, work).await) {
                Ok(page) => Done::Input(Input::Read(ReadDone { generation, page })),
                Err(error) => {
                    if let PeerError::Rewritten { .. } = error {
                        // Nothing goes on by itself; somebody has to do something.
                        let (peer, transport) = (Some(remote.site), Some(name));
                        // An error means that nobody listens.
                        let _ = events.send(Event::Error { peer, transport, message: error.to_string() });
                    }
                    Done::Failed(error.to_string())
                }
            }
        });
    }

    fn spawn_send(&self, tasks: &mut JoinSet<Done>, message: PeerMessage) {
        let (transport, remote, stats) = (self.transport.clone(), self.remote, self.stats.clone());
        let (events, name) = (self.common.events.clone(), self.transport_name.clone());
        spawn(tasks, async move {
            let count = message.change_count() as u64;
            match transport.send(remote, message).await {
                Ok(()) => {
                    stats.changes_sent.fetch_add(count, Ordering::Relaxed);
                    Done::Input(Input::Sent)
                }
                Err(error) => {
                    // What can never be carried must be said; a lost connection says itself.
                    if let TransportError::TooLarge { .. } | TransportError::Refused { .. } = error
                        && !error.is_passing()
                    {
                        let (peer, transport, message) = (Some(remote.site), Some(name), error.to_string());
                        let _ = events.send(Event::Error { peer, transport, message });
                    }
                    Done::Failed(error.to_string())
                }
            }
        });
    }
}

fn lane_of_merge(changes: usize) -> Lane {
    if changes > BULK_CHANGES_MIN { Lane::Bulk } else { Lane::Live }
}

/// Spawns a task that works for the session, and says so in what it logs.
fn spawn(tasks: &mut JoinSet<Done>, work: impl Future<Output = Done> + Send + 'static) {
    tasks.spawn(work.in_current_span());
}

fn flatten<T, E: Into<PeerError>>(result: Result<Result<T, E>, PeerError>) -> Result<T, PeerError> {
    result.and_then(|inner| inner.map_err(Into::into))
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            changes_received: AtomicU64::new(0),
            changes_sent: AtomicU64::new(0),
            messages_refused: AtomicU64::new(0),
            is_caught_up: AtomicBool::new(false),
            acknowledged: AtomicI64::new(NOTHING),
        }
    }
}

impl Stats {
    pub(crate) fn status(&self, remote: Remote, access: Access, transport: Arc<str>) -> RemoteStatus {
        RemoteStatus {
            peer: remote.site,
            transport,
            is_litemesh: remote.is_litemesh,
            access,
            changes_received: self.changes_received.load(Ordering::Relaxed),
            changes_sent: self.changes_sent.load(Ordering::Relaxed),
            messages_refused: self.messages_refused.load(Ordering::Relaxed),
            acknowledged: Some(self.acknowledged.load(Ordering::Relaxed))
                .filter(|version| *version != NOTHING)
                .map(DbVersion::new),
            is_caught_up: self.is_caught_up.load(Ordering::Relaxed),
        }
    }
}
