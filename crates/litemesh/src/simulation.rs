//! What a simulation needs of this crate: the real session, and the work that it orders, without tokio, threads or a clock.
//!
//! The driver of tokio (`driver`) has a task for each connection; here the caller decides what happens when. Everything that
//! knows the session's own inputs and effects is in this file, and all that a caller can see is what a transport, the engine
//! or a clock would.

use std::sync::Arc;
use std::time::Duration;

use litemesh_engine::{Engine, MergeProgress, PageLimits, Reach, StorageError};
use litemesh_proto::{
    Access, Change, Cursor, DbVersion, Limits, PeerMessage, Refusal, Remote, Resumed, Served, SiteId, SyncRequest,
    Unverified,
};
use tokio::sync::watch;

use crate::PeerError;
use crate::beat::{self, Beat};
use crate::engine_thread::{Announced, look};
use crate::session::access::Gate;
use crate::session::{self, Effect, Input, Notice, ReadDone, ReadOrder};
use crate::shared_pages::SharedPages;
use crate::ways::{self, Way, Ways};
use crate::work::{self, Frontier, Recent, Stuck};

/// What the sessions of one running peer share. Gone when it ends.
#[derive(Clone)]
pub struct Process {
    frontier: Frontier,
    stuck: Stuck,
    ways: Ways,
    beats: Arc<watch::Sender<Beat>>,
    pages: Arc<SharedPages>,
}

impl Process {
    /// A process that starts with a database in this state. `shares`: whether what is read for one session serves the others, as
    /// it does where they are many.
    pub fn new(look: Look, shares: bool) -> Self {
        let beats = beat::first(look.0);
        if shares {
            beats.send_modify(|beat| beat.sessions = usize::MAX);
        }
        let pages = Arc::new(SharedPages::new(beats.subscribe()));
        Self {
            frontier: Frontier::default(),
            stuck: Stuck::default(),
            ways: Ways::default(),
            beats: Arc::new(beats),
            pages,
        }
    }

    /// The database changed; [`Event::Announced`] tells a session of it.
    pub fn announce(&self, look: Look) {
        self.beats.send_modify(|beat| *beat = Beat { number: beat.number + 1, announced: look.0, ..*beat });
    }
}

/// The state of a database as it was last announced to sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look(Announced);

impl Look {
    /// Looks at a database.
    ///
    /// # Errors
    ///
    /// SQLite fails.
    pub fn at(engine: &Engine) -> Result<Self, StorageError> {
        look(engine).map(Self)
    }
}

/// What happened to a session.
#[derive(Debug)]
pub enum Event {
    /// The remote asks.
    Asked(SyncRequest),
    /// The same, of one who asked long ago, and has got this much since.
    Resumed(SyncRequest, Resumed),
    /// The remote sent a message.
    Received(Unverified),
    /// The remote sent something that could not be read.
    Garbled(String),
    /// The carrier took the message that the session sent.
    Sent,
    /// The database changed: as far as [`Process::announce`] said.
    Announced,
    /// [`Session::has_news`] said so.
    OtherWays,
    /// A work is done.
    Done(Done),
    /// A timer went off.
    Woken(Timer),
}

/// What a session wants to be woken for.
#[derive(Clone, Copy, Debug)]
pub struct Timer(session::Timer);

/// What kind of way to a remote a transport is.
#[derive(Clone, Copy, Debug)]
pub struct Rank(ways::Rank);

impl Rank {
    /// One line that goes both ways.
    pub const LINE: Self = Self(ways::Rank::Line);
    /// What comes and what goes are apart.
    pub const SPLIT: Self = Self(ways::Rank::Split);
    /// The carrier keeps messages for who is away.
    pub const KEPT: Self = Self(ways::Rank::Kept);
}

/// What a session wants.
#[derive(Debug)]
pub enum Action {
    /// Ask the remote.
    Ask(SyncRequest),
    /// Send this; [`Event::Sent`] when the carrier took it.
    Send(PeerMessage),
    /// Let the engine do this; [`Event::Done`] when it did. Ends the session where it fails.
    Work(Work),
    /// Come back with [`Event::Woken`] after this long.
    Wake(Timer, Duration),
    /// End the connection after this long.
    EndAfter(Duration, String),
    /// Answer the message that was received last.
    Reply(Result<(), Refusal>),
    /// Let the carrier remember how far another connection has brought the remote, if it keeps messages.
    Note(Served),
    /// Tell the application.
    Tell(String),
}

/// Work for the engine.
pub struct Work {
    kind: Kind,
    process: Process,
    recent: Recent,
    way: Way,
    limits: PageLimits,
    beat: u64,
}

#[derive(Debug)]
enum Kind {
    Open {
        remote: SiteId,
        is_first: bool,
    },
    /// `keeper`: the remote, where the carrier keeps messages, and whether this was asked for in an earlier process.
    Merge {
        changes: Vec<Change>,
        progress: MergeProgress,
        reached: Cursor,
        echoes: bool,
        keeper: Option<(SiteId, bool)>,
    },
    Stage {
        sender: SiteId,
        changes: Vec<Change>,
        after: Reach,
        until: Reach,
        bytes_max: u64,
    },
    MergeStaged(SiteId),
    Flush,
    Read(SiteId, ReadOrder),
}

/// Work that is done.
#[derive(Debug)]
pub struct Done(Input);

impl Work {
    /// Does it.
    ///
    /// # Errors
    ///
    /// The session ends for this reason.
    pub fn run(self, engine: &mut Engine) -> Result<Done, PeerError> {
        let Self { kind, process, recent, way, limits, beat } = self;
        Ok(Done(match kind {
            Kind::Open { remote, is_first } => work::open(engine, remote, &way, is_first.then_some(&process.stuck))?,
            Kind::Merge { changes, progress, reached, echoes, keeper } => {
                let shared = (&*process.frontier, &*recent);
                let gate = Gate::new(Access::FULL);
                let heed = |(remote, is_resumed)| work::heed_message(engine, &progress, is_resumed, remote, &gate);
                let heeded = keeper.map_or(Ok(()), heed);
                let merge = |()| work::merge(engine, &changes, &progress, &reached, &way, echoes, shared);
                Input::Merged(heeded.and_then(merge))
            }
            Kind::Stage { sender, changes, after, until, bytes_max } => {
                Input::Merged(work::stage(engine, &way, sender, &after, &until, &changes, bytes_max))
            }
            Kind::MergeStaged(sender) => {
                work::merge_staged(engine, sender);
                Input::StagedMerged
            }
            // The caller knows what is on its disks.
            Kind::Flush => Input::Flushed,
            Kind::Read(remote, ReadOrder { generation, what }) => {
                let gate = Gate::new(Access::FULL);
                let shared = Some((process.pages.as_ref(), beat));
                let page = work::read(engine, what, (remote, &gate), &recent, &process.frontier, limits, shared)?;
                Input::Read(ReadDone { generation, page })
            }
        }))
    }

    /// Whether what was committed is durable once it is done: until then a power cut may take that.
    pub fn is_flush(&self) -> bool {
        matches!(self.kind, Kind::Flush)
    }

    /// Whether it reads where we stand with a remote, to ask for the rest: what was committed before is durable before that is asked.
    pub fn is_open(&self) -> bool {
        matches!(self.kind, Kind::Open { .. })
    }

    /// Whether it writes.
    pub fn is_merge(&self) -> bool {
        matches!(self.kind, Kind::Merge { .. } | Kind::MergeStaged(_))
    }
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.kind {
            Kind::Open { remote, .. } => write!(f, "open {}", remote.fmt_short()),
            Kind::Merge { changes, progress, .. } => {
                write!(f, "merge {} changes, {}", changes.len(), Reached(progress))
            }
            Kind::Stage { changes, .. } => write!(f, "stage {} changes", changes.len()),
            Kind::MergeStaged(_) => f.write_str("merge what is staged"),
            Kind::Flush => f.write_str("flush"),
            Kind::Read(..) => f.write_str("read"),
        }
    }
}

struct Reached<'a>(&'a MergeProgress);

impl std::fmt::Display for Reached<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some((_, position)) = &self.0.position {
            write!(f, "position {}, ", position.version)?;
        }
        f.write_str("cursor")?;
        self.0.cursor.iter().try_for_each(|(site, version)| write!(f, " {}:{version}", site.fmt_short()))
    }
}

/// A session and what its driver keeps for it.
pub struct Session {
    remote: Remote,
    session: session::Session,
    process: Process,
    recent: Recent,
    way: Way,
    keeps_messages: bool,
    limits: PageLimits,
    staged_bytes_max: u64,
    announced: Announced,
    /// The number of the last beat that made it read, or need not.
    heard: u64,
}

impl Session {
    /// A session with a remote that connected just now, and the first work for it. `rank`: of its transport.
    pub fn new(
        remote: Remote,
        Rank(rank): Rank,
        process: &Process,
        limits: &Limits,
        pages: PageLimits,
    ) -> (Self, Work) {
        let Beat { number, announced, .. } = *process.beats.borrow();
        let session = Self {
            remote,
            session: session::Session::new(
                remote,
                Access::FULL,
                announced.schema_version,
                limits.clone(),
                session::Room::default(),
            ),
            process: process.clone(),
            recent: Arc::default(),
            way: process.ways.add(remote.site, rank),
            keeps_messages: rank == ways::Rank::Kept,
            limits: pages,
            staged_bytes_max: limits.staged_bytes_max,
            announced,
            heard: number,
        };
        let opening = session.work(Kind::Open { remote: remote.site, is_first: true });
        (session, opening)
    }

    /// The remote.
    pub fn remote(&self) -> Remote {
        self.remote
    }

    /// Our version up to which the remote has said that it holds everything durably.
    pub fn acknowledged(&self) -> Option<DbVersion> {
        self.session.acknowledged().map(|position| position.version)
    }

    /// Whether both directions are caught up.
    pub fn is_caught_up(&self) -> bool {
        self.session.is_caught_up()
    }

    /// Whether another session of the remote began or ceased to carry what is written here, or has brought it further:
    /// [`Event::OtherWays`].
    pub fn has_news(&self) -> bool {
        self.way.has_news()
    }

    /// Its connection has ended. What it ordered may still be done.
    pub fn end(&self) {
        self.way.end();
    }

    /// Takes what happened. What it wants is to be carried out in this order.
    pub fn handle(&mut self, event: Event) -> Vec<Action> {
        let beat = *self.process.beats.borrow();
        let mut effects = Vec::new();
        if beat.announced.is_other_schema(&self.announced) {
            effects = self.session.handle(Input::SchemaChanged(beat.announced.schema_version));
        }
        self.announced = beat.announced;
        let input = match event {
            Event::Asked(request) => Some(Input::Asked(request)),
            Event::Resumed(request, resumed) => Some(Input::Resumed(request, resumed)),
            Event::Received(message) => Some(Input::Received(message)),
            Event::Garbled(reason) => Some(Input::Garbled(reason)),
            Event::Sent => Some(Input::Sent),
            Event::Done(Done(input)) => Some(input),
            Event::OtherWays => Some(Input::OtherWays(self.way.standing())),
            Event::Woken(Timer(timer)) => Some(Input::Woken(timer)),
            Event::Announced if self.heard != beat.number && self.session.waits_for_commits() => {
                self.heard = beat.number;
                Some(Input::Committed)
            }
            Event::Announced => None,
        };
        if let Some(input) = input {
            effects.extend(self.session.handle(input));
        }
        if effects.iter().any(|effect| matches!(effect, Effect::Read(_))) {
            self.heard = beat.number;
        }
        if let Some(served) = self.session.served() {
            self.way.report(served, self.session.rests());
        }
        effects.into_iter().filter_map(|effect| self.action(effect)).collect()
    }

    /// What the driver of tokio makes of it, too.
    fn action(&self, effect: Effect) -> Option<Action> {
        Some(match effect {
            Effect::Open { key } => Action::Work(self.work(Kind::Open { remote: key, is_first: false })),
            // Of one who is away an answer may take days.
            Effect::Wake(session::Timer::Silence | session::Timer::Answer, _) if self.keeps_messages => return None,
            Effect::Wake(timer, delay) => Action::Wake(Timer(timer), delay),
            Effect::Stage { key, changes, after, until } => Action::Work(self.work(Kind::Stage {
                sender: key,
                changes,
                after,
                until,
                bytes_max: self.staged_bytes_max,
            })),
            Effect::MergeStaged { key } => Action::Work(self.work(Kind::MergeStaged(key))),
            Effect::Flush => Action::Work(self.work(Kind::Flush)),
            Effect::Ask(request) => Action::Ask(request),
            Effect::Send(message) => Action::Send(message),
            Effect::Note(served) => Action::Note(served),
            Effect::EndAfter(delay, reason) => Action::EndAfter(delay, reason),
            // Nothing went wrong, and only who keeps the message has to know.
            Effect::Reply(Err(Refusal::Outdated(_))) if !self.keeps_messages => Action::Reply(Ok(())),
            Effect::Reply(result) => Action::Reply(result),
            Effect::Merge { changes, progress, reached, echoes, is_resumed } => {
                let keeper = self.keeps_messages.then_some((self.remote.site, is_resumed));
                Action::Work(self.work(Kind::Merge { changes, progress, reached, echoes, keeper }))
            }
            Effect::Read(order) => Action::Work(self.work(Kind::Read(self.remote.site, order))),
            Effect::Tell(notice) => Action::Tell(match notice {
                Notice::Sync => "sync".to_owned(),
                Notice::Eose => "eose".to_owned(),
                Notice::Served => "served".to_owned(),
                Notice::Outdated(version) => format!("outdated: {version}"),
                Notice::Error(message) => format!("error: {message}"),
            }),
        })
    }

    fn work(&self, kind: Kind) -> Work {
        Work {
            kind,
            process: self.process.clone(),
            recent: self.recent.clone(),
            way: self.way.clone(),
            limits: self.limits,
            beat: self.heard,
        }
    }
}
