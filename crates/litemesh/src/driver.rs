//! The one file that joins a [`Session`] to tokio, the engine thread and a transport: one task for each connection.
//!
//! The session decides; this carries out. Everything slow runs beside the loop, in tasks that are aborted with it, so that a
//! remote that takes nothing delays nobody else, and nothing of its own either.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use litemesh_engine::{Engine, LocalFilter, PageLimits, StorageError};
use litemesh_proto::limits::{BATCH_BYTES_MAX, BATCH_CHANGES_MAX};
use litemesh_proto::{
    Access, Change, Cursor, DbVersion, PeerMessage, Refusal, Remote, SiteId, SyncRequest, Transport, TransportError,
    Unverified,
};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::Instrument;

use crate::engine_thread::EngineThread;
use crate::event::Event;
use crate::session::access::Gate;
use crate::session::{Effect, Input, MergeDone, MergeFailure, Notice, Page, ReadDone, ReadOrder, ReadWhat, Session};
use crate::{PeerError, RemoteStatus};

/// Inputs that wait for one session. A transport has one message of a connection under way, so this is never long.
pub(crate) const INBOX_MAX: usize = 8;

/// What a transport brings to a session.
pub(crate) enum Inbound {
    Asked(SyncRequest, Reply),
    Received(Unverified, Reply),
    Garbled(String),
    Closed(String),
}

type Reply = oneshot::Sender<Result<(), Refusal>>;

/// What is shared by the sessions of one peer.
pub(crate) struct Common {
    pub(crate) site: SiteId,
    pub(crate) engine: EngineThread,
    pub(crate) events: broadcast::Sender<Event>,
    /// Versions of v1 remotes that we hold, the newest perhaps in part: what may be passed on to other v1 remotes.
    pub(crate) frontier: Arc<Mutex<Cursor>>,
    pub(crate) limits: litemesh_proto::Limits,
}

/// Counters of one connection.
#[derive(Default)]
pub(crate) struct Stats {
    pub(crate) changes_received: AtomicU64,
    pub(crate) changes_sent: AtomicU64,
    pub(crate) messages_refused: AtomicU64,
    pub(crate) is_caught_up: AtomicBool,
}

/// Local versions that were merged from the remote lately, written by the engine thread.
///
/// The session hears of a merge only after others may have heard of its commit; a read that came in between would send the
/// remote its own changes back.
type Recent = Arc<Mutex<VecDeque<(DbVersion, DbVersion)>>>;

/// Merges that the session may not have heard of yet: one is under way at a time.
const RECENT_MAX: usize = 4;

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
}

impl Driver {
    /// Runs one session until its connection ends. Says why it ended.
    pub(crate) async fn run(self, inbox: mpsc::Receiver<Inbound>) {
        let peer = tracing::info_span!("peer", site = %self.common.site.fmt_short());
        let (remote, transport) = (self.remote.site.fmt_short(), &self.transport_name);
        let session = tracing::info_span!(parent: &peer, "session", %remote, %transport);
        async {
            self.tell(|peer, transport| Event::Connect { peer, transport });
            let reason = self.serve(inbox).await;
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

    async fn serve(&self, mut inbox: mpsc::Receiver<Inbound>) -> String {
        let mut announced = self.common.engine.announced();
        let mut last = *announced.borrow_and_update();
        let mut session =
            Session::new(self.remote, self.access.clone(), last.schema_version, self.common.limits.clone());
        let mut tasks: JoinSet<Done> = JoinSet::new();
        let mut reply: Option<Reply> = None;
        self.spawn_opening(&mut tasks);
        loop {
            // Losing a branch loses nothing: inputs stay in their channels, tasks in their set.
            let input = tokio::select! {
                inbound = inbox.recv() => match inbound {
                    None => return "the peer was stopped".to_owned(),
                    Some(Inbound::Closed(reason)) => return reason,
                    Some(Inbound::Garbled(reason)) => Input::Garbled(reason),
                    Some(Inbound::Asked(request, answer)) => {
                        // The answer has started; that is all that a transport may know.
                        let _ = answer.send(Ok(()));
                        Input::Asked(request)
                    }
                    Some(Inbound::Received(message, answer)) => {
                        reply = Some(answer);
                        Input::Received(message)
                    }
                },
                Some(done) = tasks.join_next() => match done {
                    Ok(Done::Input(input)) => input,
                    Ok(Done::Failed(reason)) => return reason,
                    Err(error) => return format!("internal error: {error}"),
                },
                changed = announced.changed() => {
                    if changed.is_err() {
                        return "the engine ended".to_owned();
                    }
                    let now = *announced.borrow_and_update();
                    let schema_changed = (now.schema_version, now.tables) != (last.schema_version, last.tables);
                    last = now;
                    if schema_changed {
                        let effects = session.handle(Input::SchemaChanged(now.schema_version));
                        self.carry_out(effects, &mut tasks, &mut reply);
                    }
                    Input::Committed
                }
            };
            let effects = session.handle(input);
            self.carry_out(effects, &mut tasks, &mut reply);
            self.stats.is_caught_up.store(session.is_caught_up(), Ordering::Relaxed);
        }
    }

    fn carry_out(&self, effects: Vec<Effect>, tasks: &mut JoinSet<Done>, reply: &mut Option<Reply>) {
        for effect in effects {
            match effect {
                Effect::Ask(request) => self.spawn_ask(tasks, request),
                Effect::EndAfter(delay, reason) => {
                    spawn(tasks, async move {
                        tokio::time::sleep(delay).await;
                        Done::Failed(reason)
                    });
                }
                Effect::Merge { changes, progress, reached } => self.spawn_merge(tasks, changes, progress, reached),
                Effect::Read(order) => self.spawn_read(tasks, order),
                Effect::Send(message) => self.spawn_send(tasks, message),
                Effect::Reply(result) => {
                    self.stats.messages_refused.fetch_add(u64::from(result.is_err()), Ordering::Relaxed);
                    if let Some(reply) = reply.take() {
                        // The transport may have given up waiting.
                        let _ = reply.send(result);
                    }
                }
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

    /// Under which id our position in what the remote has is kept.
    fn position_key(&self) -> SiteId {
        Gate::new(self.access.clone()).position_key(self.remote.site)
    }

    /// Reads what we hold, to ask for the rest.
    fn spawn_opening(&self, tasks: &mut JoinSet<Done>) {
        let (engine, key) = (self.common.engine.clone(), self.position_key());
        spawn(tasks, async move {
            let read = move |engine: &mut Engine| Ok((engine.cursor()?, engine.position(key)?));
            match flatten(engine.call(read).await) {
                Ok((cursor, position)) => Done::Input(Input::Opened { cursor, position }),
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
        mut progress: litemesh_engine::MergeProgress,
        reached: Cursor,
    ) {
        progress.position = progress.position.map(|(_, position)| (self.position_key(), position));
        self.stats.changes_received.fetch_add(changes.len() as u64, Ordering::Relaxed);
        let (engine, frontier, recent) =
            (self.common.engine.clone(), self.common.frontier.clone(), self.recent.clone());
        let span = tracing::debug_span!("merge", remote = %self.remote.site.fmt_short(), changes = changes.len());
        let work = move |engine: &mut Engine| {
            // The work is done on the engine's thread, where no span would be known.
            let _entered = span.entered();
            let merged = engine.merge(&changes, &progress);
            if let Err(error) = &merged {
                tracing::warn!(%error, "not merged");
            }
            if let Ok(merged) = &merged {
                tracing::debug!("merged");
                // Before anybody is told of the commit, or the others would look too early and never again.
                frontier.lock().unwrap_or_else(PoisonError::into_inner).join(&reached);
                let mut recent = recent.lock().unwrap_or_else(PoisonError::into_inner);
                recent.extend(merged.local_versions);
                while recent.len() > RECENT_MAX {
                    recent.pop_front();
                }
            }
            merged
        };
        spawn(tasks, async move {
            let result = match engine.call(work).await {
                Err(error) => return Done::Failed(error.to_string()),
                Ok(Ok(merged)) => Ok(MergeDone { local_versions: merged.local_versions }),
                Ok(Err(error)) => Err(MergeFailure { message: error.to_string(), is_content: error.is_content() }),
            };
            Done::Input(Input::Merged(result))
        });
    }

    fn spawn_read(&self, tasks: &mut JoinSet<Done>, order: ReadOrder) {
        let (engine, frontier, recent) =
            (self.common.engine.clone(), self.common.frontier.clone(), self.recent.clone());
        let bytes_max = self.transport.message_bytes_max(self.remote).min(BATCH_BYTES_MAX);
        let limits = PageLimits { changes_max: BATCH_CHANGES_MAX, bytes_max };
        let gate = Gate::new(self.access.clone());
        spawn(tasks, async move {
            let generation = order.generation;
            let work = move |engine: &mut Engine| {
                let recent = recent.lock().unwrap_or_else(PoisonError::into_inner).clone();
                read(engine, order.what, &gate, &recent, &frontier, limits)
            };
            match flatten(engine.call(work).await) {
                Ok(page) => Done::Input(Input::Read(ReadDone { generation, page })),
                Err(error) => Done::Failed(error.to_string()),
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
                    if let TransportError::TooLarge { .. } | TransportError::Refused { .. } = error {
                        let (peer, transport, message) = (Some(remote.site), Some(name), error.to_string());
                        let _ = events.send(Event::Error { peer, transport, message });
                    }
                    Done::Failed(error.to_string())
                }
            }
        });
    }
}

/// Spawns a task that works for the session, and says so in what it logs.
fn spawn(tasks: &mut JoinSet<Done>, work: impl Future<Output = Done> + Send + 'static) {
    tasks.spawn(work.in_current_span());
}

fn read(
    engine: &mut Engine,
    what: ReadWhat,
    gate: &Gate,
    recent: &VecDeque<(DbVersion, DbVersion)>,
    frontier: &Mutex<Cursor>,
    limits: PageLimits,
) -> Result<Page, StorageError> {
    match what {
        ReadWhat::Local { place, covered, mut echoes } => {
            echoes.extend(recent);
            let (covered, place) = gate.believe(engine.site()?, engine.db_version()?, covered, place);
            // The remote has seen versions of ours that we do not know: this file was restored from a backup, or lost its last
            // commits with the power. What is written from now on must not hide below them.
            let claimed = covered.get(&engine.site()?).max(place.position());
            if engine.raise_version(claimed)? {
                tracing::warn!(%claimed, "a remote holds later versions of this database than the file does");
            }
            let filter = LocalFilter { covered, echoes: &echoes };
            engine.read_local(&place, &filter, limits).map(Page::Local)
        }
        ReadWhat::PlanSites(mut bounds) => {
            bounds.echoes.extend(recent);
            bounds.until = engine.cursor()?;
            bounds.until.join(&frontier.lock().unwrap_or_else(PoisonError::into_inner));
            let version = engine.db_version()?;
            let mut plan = engine.plan_sites(&bounds)?;
            let (changes, more) = engine.read_sites(&mut plan, limits)?;
            Ok(Page::Sites { plan, changes, more, planned: Some((bounds.until, version)) })
        }
        ReadWhat::Sites(mut plan) => {
            let (changes, more) = engine.read_sites(&mut plan, limits)?;
            Ok(Page::Sites { plan, changes, more, planned: None })
        }
    }
}

fn flatten<T>(result: Result<Result<T, StorageError>, PeerError>) -> Result<T, PeerError> {
    result.and_then(|inner| inner.map_err(PeerError::Storage))
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
            is_caught_up: self.is_caught_up.load(Ordering::Relaxed),
        }
    }
}
