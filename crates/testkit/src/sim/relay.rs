//! Pairs of peers that relays join, as over Nostr: they keep what one sends until the other reads it.
//!
//! Each end has one connection after another, whether or not the other is there. Which stream is asked for and where it goes on is
//! decided as `litemesh-nostr` decides it (`inbox.rs`, `outbox.rs`, there as here), with its own [`Reach`]; its chain of events is a list here, of which a
//! relay may forget some. What its file keeps outlives a process, and is not in the database that a backup restores.

mod inbox;
mod outbox;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use litemesh::simulation::Session;
use litemesh_engine::proto::codec::v2::{self, Frame as WireFrame};
use litemesh_engine::proto::{DbVersion, Limits, Remote, Served, SyncRequest, Unverified};
use litemesh_nostr::nostr::Timestamp;
use litemesh_nostr::simulation::Reach;

use super::node::{RunningSession, Side};
use super::{Event, Simulation};

/// Until an end makes another connection.
const REOPEN_MICROS_MAX: u64 = 2_000_000;

/// How far ahead of the time relays take something that look at dates.
const AHEAD_MAX: Duration = Duration::from_secs(15 * 60);

/// How soon something is published again that the relay did not take.
const PUBLISH_AGAIN: Duration = Duration::from_secs(2);

/// When simulations begin.
const BEGINNING: u64 = 1_700_000_000;

/// Two peers, and the relay between them.
pub(super) struct Pairing {
    pub(super) nodes: [usize; 2],
    pub(super) transport: usize,
    pub(super) delay_max: Duration,
    /// Until when nobody reaches the relay.
    pub(super) away_until: Duration,
    pub(super) is_removed: bool,
    /// The relay takes nothing that is far in the future, or has expired.
    pub(super) judges_dates: bool,
    /// Changes that its relay was given.
    pub(super) changes: usize,
    /// The connection of each end.
    pub(super) current: [Option<u64>; 2],
    /// The next request of an end begins another stream.
    is_broken: [bool; 2],
    streams_made: u64,
    /// The stream that the process of an end has asked for last.
    asked: [Option<u64>; 2],
    /// From each end.
    ways: [Way; 2],
}

/// One direction.
#[derive(Default)]
struct Way {
    /// The newest request that the relay has.
    asked: Option<Asked>,
    /// Streams that the relay has: of each event the message, or nothing where it has forgotten that.
    streams: BTreeMap<u64, Vec<Option<Published>>>,
    /// What the sender's file keeps.
    outbound: Option<Outbound>,
    /// What the receiver's file keeps.
    inbound: Option<Inbound>,
}

#[derive(Clone)]
struct Published {
    bytes: Vec<u8>,
    /// What the process that made it had asked for.
    asked: Option<u64>,
    created_at: Timestamp,
    expires_at: Timestamp,
}

/// An event that the relay has not taken yet, and over which connection it was sent as which message.
struct Refused {
    event: usize,
    published: Published,
    connection: u64,
    number: u64,
}

#[derive(Clone)]
struct Asked {
    stream: u64,
    request: SyncRequest,
    /// Events that the receiver has acknowledged.
    acknowledged: usize,
    asked_at: Timestamp,
}

struct Outbound {
    stream: u64,
    request: SyncRequest,
    reach: Reach,
    asked_at: Timestamp,
    head_at: Option<Timestamp>,
    refused: Vec<Refused>,
    /// How far another connection has brought the receiver beyond that.
    elsewhere: Option<Served>,
}

#[derive(Clone)]
struct Inbound {
    stream: u64,
    request: SyncRequest,
    /// Events that were taken.
    head: usize,
    reach: Reach,
    taking: Option<(usize, Reach)>,
    asked_at: Timestamp,
    /// When the last event that came was made.
    head_at: Timestamp,
}

impl Inbound {
    fn taken(&mut self) {
        if let Some((head, reach)) = self.taking.take() {
            (self.head, self.reach) = (head, reach);
        }
    }

    /// From where who asks so stands, where that is on the stream.
    fn resumed(&self, request: &SyncRequest) -> Option<Self> {
        let mut here = Self { taking: None, ..self.clone() };
        if here.reach.is_where(request) {
            return Some(here);
        }
        here.taking.clone_from(&self.taking);
        here.taken();
        here.reach.is_where(request).then_some(here)
    }
}

/// What an end knows of its connection.
pub(super) struct Relayed {
    pub(super) pairing: usize,
    /// What the other end had been told before it.
    told: Option<Reach>,
    /// Some of it over another connection.
    was_told_elsewhere: bool,
    /// Nothing was asked for over it.
    is_first: bool,
    /// The request under way, the number of the last message of its answer, and the event after that.
    asked_as: u32,
    number: u64,
    next: usize,
    holds_back: bool,
    /// Messages that are not acknowledged, and how many events each ended.
    unacknowledged: VecDeque<(u64, usize)>,
    acknowledged: usize,
    is_publishing: bool,
    /// The same of what is sent.
    answers_as: u32,
    unheeded: VecDeque<(u64, usize)>,
    heeded: u64,
    published: u64,
    /// How far another connection has brought the other end, which is not stored yet, and beside which stream that is to be.
    elsewhere: Option<(u64, Served)>,
}

/// What happens at an end.
#[derive(Clone, Copy)]
pub(super) enum RelayEvent {
    /// It makes a connection.
    Open,
    /// It reads what the other end asks for.
    ReadRequest,
    /// It says what it asks for, and what has come.
    Publish,
    /// It looks for the next event.
    Arrive,
    /// It publishes again what the relay has not taken.
    Again,
    /// Over this connection a relay has taken a message, or an acknowledgement.
    Taken(u64, Option<u64>),
    /// Over this connection it stores how far another one has brought the other end.
    Keep(u64),
    /// Over this connection an event was missing for long.
    Broken(u64),
    /// Over this connection a stream was gone on with, and nothing came since.
    Quiet(u64),
}

impl Simulation {
    pub(super) fn pair(&mut self, one: usize, other: usize) {
        let delay_max = Duration::from_micros(self.rng.u64(100..200_000));
        self.pairings.push(Pairing {
            nodes: [one, other],
            // Above those of wires.
            transport: 1000 + self.pairings.len(),
            delay_max,
            away_until: Duration::ZERO,
            is_removed: false,
            judges_dates: self.faults.clocks && self.later.u8(..4) > 0,
            changes: 0,
            current: [None; 2],
            is_broken: [false; 2],
            streams_made: 0,
            asked: [None; 2],
            ways: Default::default(),
        });
        self.note(format_args!("{one} and {other} are paired"));
        for end in [0, 1] {
            self.relay_after(Duration::ZERO, self.pairings.len() - 1, end, RelayEvent::Open);
        }
    }

    fn relay_after(&mut self, delay: Duration, pairing: usize, end: usize, what: RelayEvent) {
        self.agenda.after(delay, Event::Relay { pairing, end, what });
    }

    fn relay_delay(&mut self, pairing: usize) -> Duration {
        self.pairings[pairing].delay_max.mul_f64(self.rng.f64())
    }

    pub(super) fn at_relay(&mut self, pairing: usize, end: usize, what: RelayEvent) {
        let away_until = self.pairings[pairing].away_until;
        if away_until > self.agenda.now() && !matches!(what, RelayEvent::Open | RelayEvent::Keep(_)) {
            return self.agenda.at(away_until, Event::Relay { pairing, end, what });
        }
        match what {
            RelayEvent::Open => self.open_relayed(pairing, end),
            RelayEvent::ReadRequest => self.read_request(pairing, end),
            RelayEvent::Publish => self.publish_request(pairing, end),
            RelayEvent::Arrive => self.take_event(pairing, end),
            RelayEvent::Again => self.publish_again(pairing, end),
            RelayEvent::Taken(connection, number) => self.relay_took(pairing, end, connection, number),
            RelayEvent::Keep(connection) => self.keep_elsewhere(pairing, end, connection),
            RelayEvent::Quiet(connection) => self.end_stored(pairing, end, connection),
            RelayEvent::Broken(connection) => {
                let node = self.pairings[pairing].nodes[end];
                if self.pairings[pairing].current[end] == Some(connection) {
                    self.pairings[pairing].is_broken[end] = true;
                    self.end_session(node, connection, "an event is missing that later ones refer to");
                }
            }
        }
    }

    pub(super) fn open_pairings(&mut self, node: usize) {
        for pairing in 0..self.pairings.len() {
            for end in [0, 1] {
                if self.pairings[pairing].nodes[end] == node {
                    self.pairings[pairing].asked[end] = None;
                    let delay = self.random_delay(REOPEN_MICROS_MAX);
                    self.relay_after(delay, pairing, end, RelayEvent::Open);
                }
            }
        }
    }

    /// A process died, and this connection with it.
    pub(super) fn forget_relayed(&mut self, connection: u64) {
        for current in self.pairings.iter_mut().flat_map(|pairing| &mut pairing.current) {
            if *current == Some(connection) {
                *current = None;
            }
        }
    }

    /// With whom a peer is paired.
    pub(super) fn paired(&self, node: usize) -> Vec<usize> {
        let pairings = self.pairings.iter().filter(|pairing| !pairing.is_removed && pairing.nodes.contains(&node));
        pairings.flat_map(|pairing| pairing.nodes).filter(|other| *other != node).collect()
    }

    /// A peer is gone for good. Whoever was paired with it ends that.
    pub(super) fn unpair(&mut self, node: usize) {
        for pairing in 0..self.pairings.len() {
            if self.pairings[pairing].nodes.contains(&node) && !self.pairings[pairing].is_removed {
                self.pairings[pairing].is_removed = true;
                for end in [0, 1] {
                    if let Some(connection) = self.pairings[pairing].current[end] {
                        self.end_session(self.pairings[pairing].nodes[end], connection, "unpaired");
                    }
                }
            }
        }
    }

    /// The peers of a node have to be paired again: it has another site id.
    pub(super) fn pair_again(&mut self, node: usize) {
        for pairing in 0..self.pairings.len() {
            if !self.pairings[pairing].nodes.contains(&node) || self.pairings[pairing].is_removed {
                continue;
            }
            for end in [0, 1] {
                if let Some(connection) = self.pairings[pairing].current[end] {
                    self.end_session(self.pairings[pairing].nodes[end], connection, "unpaired");
                }
            }
            self.pairings[pairing].ways = Default::default();
            self.pairings[pairing].asked = [None; 2];
        }
    }

    fn open_relayed(&mut self, pairing: usize, end: usize) {
        let pair = &self.pairings[pairing];
        let [node, other] = [pair.nodes[end], pair.nodes[1 - end]];
        let (site, transport) = (self.nodes[other].site, pair.transport);
        if pair.is_removed || pair.current[end].is_some() || site == self.nodes[node].site {
            return;
        }
        let Some(running) = &mut self.nodes[node].running else { return };
        self.connections_made += 1;
        let connection = self.connections_made;
        let remote = Remote { site, connection, is_litemesh: true };
        let (session, opening) = Session::new(remote, (true, true), &running.process, &Limits::default(), self.pages);
        let outbound = self.pairings[pairing].ways[end].outbound.as_ref();
        let relayed = Relayed {
            pairing,
            told: outbound.map(|outbound| outbound.reach.clone()),
            was_told_elsewhere: outbound.is_some_and(|outbound| outbound.elsewhere.is_some()),
            is_first: true,
            asked_as: 0,
            number: 0,
            next: 0,
            holds_back: false,
            unacknowledged: VecDeque::new(),
            acknowledged: 0,
            is_publishing: false,
            answers_as: 0,
            unheeded: VecDeque::new(),
            heeded: 0,
            published: 0,
            elsewhere: None,
        };
        let mut session = RunningSession::new(Side::Ours(Box::new(session)), end, transport);
        session.relayed = Some(Box::new(relayed));
        running.sessions.insert(connection, session);
        self.pairings[pairing].current[end] = Some(connection);
        self.note(format_args!("{node} reads what the relay has of {other}: connection {connection}"));
        self.order(node, connection, opening);
        if self.pairings[pairing].asked[end].is_some() {
            self.go_on_sending(pairing, end, connection);
        }
    }

    /// What the wall clock of a peer says.
    fn wall_clock(&self, node: usize) -> Timestamp {
        let time = self.time().as_secs();
        Timestamp::from_secs(time.saturating_add_signed(self.nodes[node].clock))
    }

    /// What a clock says that is right.
    fn time(&self) -> Timestamp {
        Timestamp::from_secs(BEGINNING + self.agenda.now().as_secs())
    }

    /// Whether the relay takes an event by its date.
    fn is_taken(&self, pairing: usize, created_at: Timestamp, expires_at: Timestamp) -> bool {
        let time = self.time();
        !self.pairings[pairing].judges_dates || created_at <= time + AHEAD_MAX && expires_at > time
    }

    /// The connection of a pairing has ended; its end makes another one.
    pub(super) fn close_relayed(&mut self, connection: u64, relayed: &Relayed, end: usize) {
        self.store_elsewhere(relayed.pairing, end, relayed.elsewhere);
        let pair = &mut self.pairings[relayed.pairing];
        if pair.current[end] == Some(connection) {
            pair.current[end] = None;
            let delay = self.random_delay(REOPEN_MICROS_MAX);
            self.relay_after(delay, relayed.pairing, end, RelayEvent::Open);
        }
    }

    fn relayed(&mut self, node: usize, connection: u64) -> Option<&mut RunningSession> {
        self.nodes[node].running.as_mut()?.sessions.get_mut(&connection).filter(|session| session.relayed.is_some())
    }

    pub(super) fn relay_away(&mut self) {
        let Some(pairing) = self.random_pairing() else { return };
        let duration = self.random_delay(100_000_000);
        self.pairings[pairing].away_until = self.agenda.now() + duration;
        let nodes = self.pairings[pairing].nodes;
        self.note(format_args!("the relay of {nodes:?} is away for {duration:?}"));
    }

    /// Relays forget what a peer has published and nobody has read.
    pub(super) fn silence_relays(&mut self, node: usize) {
        for pairing in &mut self.pairings {
            let ways = pairing.ways.iter_mut().zip(pairing.nodes).filter(|(_, author)| *author == node);
            for (way, _) in ways {
                let (stream, read) = way.inbound.as_ref().map_or((0, 0), |inbound| {
                    (inbound.stream, inbound.taking.as_ref().map_or(inbound.head, |(taking, _)| *taking))
                });
                for (of, events) in &mut way.streams {
                    let read = if *of == stream { read.min(events.len()) } else { 0 };
                    events[read..].iter_mut().for_each(|event| *event = None);
                }
            }
        }
    }

    /// The newest version of a peer that relays keep.
    pub(super) fn newest_kept(&self, node: usize) -> DbVersion {
        let site = self.nodes[node].site;
        let ways = self.pairings.iter().flat_map(|pairing| pairing.ways.iter().zip(pairing.nodes));
        let streams = ways.filter(|(_, author)| *author == node).flat_map(|(way, _)| way.streams.values());
        // What a relay has not taken yet is in the file of pairings, which no backup restores.
        let refused = self.pairings.iter().flat_map(|pairing| pairing.ways.iter().zip(pairing.nodes));
        let refused = refused.filter(|(_, author)| *author == node).flat_map(|(way, _)| &way.outbound);
        let refused = refused.flat_map(|outbound| &outbound.refused).map(|refused| &refused.published);
        let messages = streams.flatten().flatten().chain(refused).map(|published| read(&published.bytes));
        let newest = messages.map(|message| {
            let position = message.progress().and_then(|progress| progress.position).unwrap_or_default().version;
            let written = message.versions().filter(|(author, _)| *author == site).map(|(_, version)| version).max();
            position.max(written.unwrap_or_default())
        });
        newest.max().unwrap_or_default()
    }

    /// A relay forgets an event of each direction, or all.
    pub(super) fn relay_forgets(&mut self) {
        let Some(pairing) = self.random_pairing() else { return };
        let is_all = self.rng.u8(..3) == 0;
        for way in &mut self.pairings[pairing].ways {
            for events in way.streams.values_mut() {
                if is_all {
                    events.iter_mut().for_each(|event| *event = None);
                } else if let Some(event) = self.rng.choice(events) {
                    *event = None;
                }
            }
        }
        let nodes = self.pairings[pairing].nodes;
        self.note(format_args!("the relay of {nodes:?} forgets events"));
    }

    fn random_pairing(&mut self) -> Option<usize> {
        (!self.pairings.is_empty()).then(|| self.rng.usize(..self.pairings.len()))
    }
}

fn read(bytes: &[u8]) -> Unverified {
    match v2::decode(bytes, &Limits::default()) {
        Ok(WireFrame::Message(message)) => message,
        _ => unreachable!("a message of ours"),
    }
}
