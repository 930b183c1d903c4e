//! One remote, as a pure state machine: inputs in, effects out. No sockets, no clock, no randomness, no SQL, no `await`.
//!
//! The two directions are independent: [`incoming`](self::incoming) asks and merges, [`outgoing`](self::outgoing) answers.
//! What the remote may do is decided before either of them sees it, in [`access`](self::access).
//! `driver` feeds inputs and carries out effects; so can a simulation.

pub(crate) mod access;
mod claims;
pub(crate) mod incoming;
pub(crate) mod outgoing;
mod receipt;
#[cfg(test)]
mod tests;
mod window;

use std::sync::Arc;
use std::time::Duration;

use litemesh_engine::{LocalPage, LocalPlace, MergeProgress, Moves, Reach, SiteBounds, SitePlan, Staged};
use litemesh_proto::{
    Access, Change, Cursor, DbVersion, Limits, PeerMessage, Position, Refusal, Remote, Resumed, Served, SiteId,
    SyncRequest, Unverified,
};

use crate::shared_pages::is_near;
use crate::ways::Standing;
use access::Gate;
pub(crate) use claims::Room;
use incoming::Incoming;
use outgoing::Outgoing;

/// What happened.
#[derive(Debug)]
pub(crate) enum Input {
    /// Who we are, what we hold, and how far we are with this remote: what [`Effect::Open`] asks for.
    Opened { us: SiteId, cursor: Cursor, staged: Staged },
    /// Another session of the same remote is being caught up: we ask when it has ended or is done.
    Busy,
    /// The remote asks.
    Asked(SyncRequest),
    /// The same, of one who asked long ago, and has got this much since.
    Resumed(SyncRequest, Resumed),
    /// The remote sent a message.
    Received(Unverified),
    /// The remote sent something that could not be read.
    Garbled(String),
    /// The merge that we ordered is done, or the message is staged.
    Merged(Result<MergeDone, MergeFailure>),
    /// What was staged is merged, by [`Effect::MergeStaged`].
    StagedMerged,
    /// What was committed when we ordered a flush is durable.
    Flushed,
    /// The read that we ordered is done.
    Read(ReadDone),
    /// The message that we sent was taken.
    Sent,
    /// Something was committed here, by whomever.
    Committed,
    /// The application changed its schema version, or which tables replicate.
    SchemaChanged(i64),
    /// Another way to the remote began or ceased to carry what is written here, or has brought it further.
    OtherWays(Standing),
    /// A timer went off.
    Woken(Timer),
}

/// What a session wants to be woken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// To acknowledge what came.
    Acknowledge,
    /// To see whether what was sent is acknowledged.
    Silence,
    /// To see whether what was asked is answered.
    Answer,
    /// To see whether another session of the remote is still being caught up.
    StandBy,
}

/// A merge that succeeded.
#[derive(Clone, Debug, Default)]
pub(crate) struct MergeDone {
    /// The local versions that it took.
    pub(crate) local_versions: Option<(DbVersion, DbVersion)>,
    /// What is staged of the remote, where it was a message to be staged.
    pub(crate) staged: Option<Staged>,
}

/// A merge that failed. Nothing was applied.
#[derive(Clone, Debug)]
pub(crate) struct MergeFailure {
    pub(crate) message: String,
    pub(crate) fault: Fault,
}

/// What was at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The changes.
    Content,
    /// Our database.
    Database,
    /// The messages before this one are not staged here.
    Gap,
}

/// What to read.
#[derive(Clone, Debug)]
pub(crate) struct ReadOrder {
    pub(crate) generation: u64,
    pub(crate) what: ReadWhat,
}

#[derive(Clone, Debug)]
pub(crate) enum ReadWhat {
    Local {
        place: LocalPlace,
        covered: Arc<Cursor>,
        /// When the remote was told our cursor last.
        told: Moves,
        /// How far in our versions the remote says that it is, before the first page.
        claimed: Claimed,
        echoes: Vec<(DbVersion, DbVersion)>,
        /// What the last page said of when it was read.
        read_at: u64,
    },
    /// A new plan and its first page. The driver fills in what we hold.
    PlanSites(SiteBounds),
    Sites(SitePlan),
}

impl ReadWhat {
    /// Whether it is a piece of a catch-up, where our database is at `version`: a full page that is read for this remote alone.
    pub(crate) fn is_far(&self, version: DbVersion) -> bool {
        match self {
            Self::Local { place, .. } => place.to_inside().is_some() || !is_near(place.position(), version),
            Self::PlanSites(bounds) => bounds.inclusive || !is_near(bounds.since_local, version),
            Self::Sites(_) => true,
        }
    }
}

/// How far in our versions a remote says that it is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Claimed {
    pub(crate) position: Position,
    /// Our newest position when we read what it has, where we held more than has come.
    pub(crate) as_of: Option<Position>,
    /// How far another connection has brought it: the page is to begin there.
    pub(crate) elsewhere: Option<Served>,
    /// It holds nothing above this of what we wrote, where that is known.
    pub(crate) written: Option<DbVersion>,
}

/// Where a page begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// At the place that was asked for, or before it, where this file no longer knows how another connection brought the remote there.
    There,
    /// At another one, where no part was sent.
    Elsewhere,
    /// At the very start: of what the remote has we have lost what overwrote a part of it.
    Anew,
}

/// What was read.
#[derive(Clone, Debug)]
pub(crate) struct ReadDone {
    pub(crate) generation: u64,
    pub(crate) page: Page,
}

/// What a plan for a v1 remote comes to.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    /// Up to where it reaches.
    pub(crate) until: Cursor,
    /// What is above that, and may be here in part: under its own number it follows with the next plan, whatever the remote claims.
    pub(crate) follows: Cursor,
    /// Our version when it was made.
    pub(crate) version: DbVersion,
}

#[derive(Clone, Debug)]
pub(crate) enum Page {
    Local {
        page: LocalPage,
        begin: Begin,
        /// When it was read, by [`SharedPages`](crate::shared_pages::SharedPages): no earlier page may follow.
        read_at: u64,
    },
    Sites {
        plan: SitePlan,
        changes: Vec<Change>,
        more: bool,
        /// For a new plan.
        planned: Option<Planned>,
    },
}

/// What to do.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Read what we hold and how far we are with the remote, which is kept under this id, then come back with
    /// [`Input::Opened`].
    Open { key: SiteId },
    /// Ask the remote for everything that the request does not cover.
    Ask(SyncRequest),
    /// End the connection after this long, for this reason. The transport makes a new one.
    EndAfter(Duration, String),
    /// Merge, then come back with [`Input::Merged`].
    ///
    /// `reached`: versions of a v1 remote that we then hold, the newest of each site perhaps in part. `echoes`: all of it came over
    /// this connection, and so is not sent back over it. `is_resumed`: it was asked for before this process was there.
    Merge { changes: Vec<Change>, progress: MergeProgress, reached: Cursor, echoes: bool, is_resumed: bool },
    /// Stage a message, then come back with [`Input::Merged`].
    Stage { key: SiteId, changes: Vec<Change>, after: Reach, until: Reach },
    /// Merge what is staged, then come back with [`Input::StagedMerged`].
    MergeStaged { key: SiteId },
    /// Make durable what is committed, then come back with [`Input::Flushed`].
    Flush,
    /// Come back with [`Input::Woken`] after this long.
    Wake(Timer, Duration),
    /// Answer the remote's message.
    Reply(Result<(), Refusal>),
    /// Read, then come back with [`Input::Read`].
    Read(ReadOrder),
    /// Send, then come back with [`Input::Sent`].
    Send(PeerMessage),
    /// Let the transport remember how far another connection has brought the remote, if its carrier keeps messages.
    Note(Served),
    /// Tell the application.
    Tell(Notice),
}

/// What the application is told; the driver adds who and by what transport.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Notice {
    Sync,
    Eose,
    Served,
    Outdated(i64),
    Error(String),
}

/// A session with one remote over one connection.
pub(crate) struct Session {
    gate: Gate,
    incoming: Incoming,
    outgoing: Outgoing,
}

impl Session {
    /// `room`: for what the remotes of this peer claim.
    pub(crate) fn new(remote: Remote, access: Access, schema_version: i64, limits: Limits, room: Room) -> Self {
        let gate = Gate::new(access);
        let incoming = Incoming::new(remote, gate.position_key(remote.site), schema_version, limits);
        Self { gate, incoming, outgoing: Outgoing::new(remote, schema_version, room) }
    }

    /// Under which id our position in what the remote has is kept.
    pub(crate) fn key(&self) -> SiteId {
        self.incoming.key()
    }

    /// Takes one input. The effects are to be carried out in their order.
    pub(crate) fn handle(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Opened { us, cursor, staged } => {
                if self.gate.is_writer() {
                    self.incoming.ask(us, cursor, staged, &mut effects);
                }
                if !self.gate.is_reader() {
                    // It will not ask, and has everything that it wants.
                    effects.push(Effect::Tell(Notice::Served));
                }
            }
            Input::Busy => self.incoming.stand_by(&mut effects),
            Input::Asked(request) => self.answer(request, Resumed::default(), &mut effects),
            Input::Resumed(request, resumed) => self.answer(request, resumed, &mut effects),
            // What a reader holds it may say, too.
            Input::Received(message) if message.ack().is_some() => {
                if let Some(ack) = message.ack() {
                    self.outgoing.remote_acknowledged(ack, &mut effects);
                }
                effects.push(Effect::Reply(Ok(())));
            }
            Input::Received(message) => match self.gate.admit(message) {
                Ok(Some(message)) => {
                    let counts_end = self.outgoing.has_read_former();
                    if let Some(cursor) = self.incoming.receive(message, counts_end, &mut effects) {
                        self.outgoing.remote_holds(&cursor);
                    }
                }
                Ok(None) => effects.push(Effect::Reply(Ok(()))),
                Err(refusal) => self.incoming.forbid(refusal, &mut effects),
            },
            Input::Garbled(reason) => self.incoming.garbled(&reason, &mut effects),
            Input::Merged(result) => {
                if let Ok(MergeDone { local_versions: Some(range), .. }) = &result {
                    self.outgoing.add_echo(*range);
                }
                self.incoming.merged(result, &mut effects);
            }
            Input::StagedMerged => {}
            Input::Flushed => {
                if let Some(ack) = self.incoming.flushed(&mut effects) {
                    self.outgoing.acknowledge(ack, &mut effects);
                }
            }
            Input::Woken(Timer::Acknowledge) => self.incoming.woken(),
            Input::Woken(Timer::Silence) => self.outgoing.look(&mut effects),
            Input::Woken(Timer::StandBy) => self.incoming.end_stand_by(&mut effects),
            Input::Woken(Timer::Answer) => self.incoming.look(&mut effects),
            Input::Read(mut done) => {
                self.gate.narrow(&mut done.page);
                self.outgoing.read(done, &mut effects);
            }
            Input::Sent => self.outgoing.sent(&mut effects),
            Input::Committed => self.outgoing.committed(&mut effects),
            Input::OtherWays(standing) => self.outgoing.stand(standing, &mut effects),
            Input::SchemaChanged(version) => {
                self.outgoing.set_schema_version(version);
                self.incoming.schema_changed(version, &mut effects);
            }
        }
        if let Some(ack) = self.incoming.take_ack(&mut effects) {
            self.outgoing.acknowledge(ack, &mut effects);
        }
        effects
    }

    fn answer(&mut self, request: SyncRequest, resumed: Resumed, effects: &mut Vec<Effect>) {
        if let Some(request) = self.gate.heed(request) {
            self.incoming.remote_asked(&request.cursor);
            self.outgoing.restart(request, resumed, effects);
        }
    }

    /// How far in our versions the remote holds everything durably, as far as it has said; `None` for a v1 peer, which says nothing.
    pub(crate) fn acknowledged(&self) -> Option<Position> {
        self.outgoing.acknowledged()
    }

    /// How far the remote is, once it has acknowledged over this connection that it was up to date; never so for a v1 peer.
    pub(crate) fn served(&self) -> Option<Served> {
        self.outgoing.served()
    }

    /// Whether another connection carries what is written, and nothing is under way over this one.
    pub(crate) fn rests(&self) -> bool {
        self.outgoing.is_at_rest()
    }

    /// Whether a commit would make it read. Otherwise it will read when what it waits for has come.
    pub(crate) fn waits_for_commits(&self) -> bool {
        self.outgoing.waits_for_commits()
    }

    /// Whether both directions are caught up: the remote's answer is complete, and so is ours. A direction in which nothing
    /// may go is.
    pub(crate) fn is_caught_up(&self) -> bool {
        (self.incoming.is_caught_up() || !self.gate.is_writer())
            && (self.outgoing.is_caught_up() || !self.gate.is_reader())
    }
}
