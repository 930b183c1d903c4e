//! Pairs of peers that relays join, as over Nostr: they keep what one sends until the other reads it.
//!
//! Each end has one connection after another, whether or not the other is there. All that is pure of what `litemesh-nostr` does is done
//! by it, on events that are encrypted and signed: messages are cut, requests made, both read, put in order, and gone on with after a
//! restart (`litemesh_nostr::simulation`). What is played here is the relay, the way to it, and when its `inbox.rs` and `outbox.rs`, there
//! as here, call what. What its file keeps outlives a process, and is not in the database that a backup restores.

mod inbox;
mod outbox;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use litemesh::simulation::{Rank, Session};
use litemesh_engine::proto::{Limits, PeerMessage, Remote, Served, SiteId};
use litemesh_nostr::nostr::{Event as NostrEvent, EventId, Timestamp};
use litemesh_nostr::simulation::{
    self as rules, Assembler, Chain, Inbound, Outbound, PART_BYTES_MAX, Receipts, Told, UnderWay, WINDOW_MAX,
    WINDOW_MAX_V1, Window, Writer,
};
use litemesh_nostr::{CHANGES_LIFETIME, Envelope, StreamId};

use super::database::Known;
use super::node::{RunningSession, Side};
use super::original::Talk;
use super::{Event, Simulation};

/// Until an end makes another connection.
const REOPEN_MICROS_MAX: u64 = 2_000_000;

/// How far ahead of the time relays take something that look at dates.
const AHEAD_MAX: Duration = Duration::from_secs(15 * 60);

/// How soon something is tried again of a relay that is away.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Most time until somebody looks who was not told.
const LOOK_MAX: Duration = Duration::from_secs(60);

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
    /// Neither is an original.
    is_litemesh: bool,
    /// Changes that its relay was given.
    pub(super) changes: usize,
    /// The connection of each end.
    pub(super) current: [Option<u64>; 2],
    /// The keys of each end.
    envelopes: [Envelope; 2],
    /// Most bytes of a message in one event.
    part_bytes_max: usize,
    /// The next request of an end begins another stream.
    is_broken: [bool; 2],
    /// The stream that the process of an end has asked for last, and the last one that it began.
    asked: [Option<StreamId>; 2],
    begun: [Option<StreamId>; 2],
    /// How many events the relay took at once from the process of an end.
    windows: [Window; 2],
    /// From each end.
    ways: [Way; 2],
}

/// One direction.
#[derive(Default)]
struct Way {
    /// The newest request that the relay has, by the receiver.
    asked: Option<NostrEvent>,
    /// On their way to the relay.
    flying: Vec<NostrEvent>,
    /// What the relay has.
    kept: Vec<Kept>,
    /// What the message of an event says of its sender.
    known: BTreeMap<EventId, Known>,
    /// What the sender's file keeps.
    outbound: Option<Outbound>,
    /// What the receiver's file keeps.
    inbound: Option<Inbound>,
}

/// An event, and what its tags say.
struct Kept {
    event: NostrEvent,
    stream: StreamId,
    previous: Option<EventId>,
}

/// What an end knows of its connection.
pub(super) struct Relayed {
    pub(super) pairing: usize,
    /// What the other end had been told before it.
    told: Option<Told>,
    /// Nothing was asked for over it.
    is_first: bool,
    /// The request under way, and the number of the last message of its answer.
    asked_as: u32,
    number: u64,
    chain: Chain,
    /// The stream was asked for before the process of this end was there.
    is_resumed: bool,
    assembler: Assembler,
    /// Events in the chain.
    heard: BTreeSet<EventId>,
    /// Since when an event is missing.
    gap: Option<Duration>,
    holds_back: bool,
    /// When everything stored by an original counts as read.
    quiet_at: Option<Duration>,
    /// Messages that are not acknowledged, and the event that each ended with.
    unacknowledged: VecDeque<(u64, EventId)>,
    acknowledged: Option<EventId>,
    is_publishing: bool,
    /// The same of what is sent.
    answers_as: u32,
    under_way: UnderWay<Option<(u64, EventId)>>,
    flights: BTreeSet<EventId>,
    /// Something was refused just now.
    is_pausing: bool,
    has_given_up: bool,
    /// The session has handed over a message, and there is no room for another.
    is_full: bool,
    /// The newest events that may not have arrived anywhere.
    recent: VecDeque<NostrEvent>,
    receipts: Receipts,
    /// How far another connection has brought the other end, which is not stored yet, and beside which stream that is to be.
    elsewhere: Option<(StreamId, Served)>,
}

impl Relayed {
    fn new(pairing: usize, told: Option<Told>, window: Window) -> Self {
        Self {
            pairing,
            told,
            is_first: true,
            asked_as: 0,
            number: 0,
            chain: Chain::after(None, Timestamp::from_secs(0)),
            is_resumed: false,
            assembler: Assembler::default(),
            heard: BTreeSet::new(),
            gap: None,
            holds_back: false,
            quiet_at: None,
            unacknowledged: VecDeque::new(),
            acknowledged: None,
            is_publishing: false,
            answers_as: 0,
            under_way: UnderWay::new(window),
            flights: BTreeSet::new(),
            is_pausing: false,
            has_given_up: false,
            is_full: false,
            recent: VecDeque::new(),
            receipts: Receipts::default(),
            elsewhere: None,
        }
    }
}

/// What happens at an end; most of it over this connection.
#[derive(Clone, Copy)]
pub(super) enum RelayEvent {
    /// It makes a connection.
    Open,
    /// It reads what the other end asks for.
    ReadRequest,
    /// It says what it asks for, and what has come.
    Publish,
    /// An event that it has sent reaches the relay.
    Give(u64, EventId),
    /// The relay has taken that, or refused it.
    Landed(u64, EventId, bool),
    /// It publishes again what the relay has refused.
    Again(u64),
    /// It looks whether the relay has the last events of its stream.
    Check(u64),
    /// It takes the next message of its session.
    Ready(u64),
    /// The relay brings it an event.
    Hear(u64, EventId),
    /// It looks for the event after its head.
    Look(u64),
    /// It stores how far another connection has brought the other end.
    Keep(u64),
    /// An event was missing for long.
    Broken(u64),
    /// A stream was gone on with, and nothing came since.
    Quiet(u64),
}

impl Simulation {
    pub(super) fn pair(&mut self, one: usize, other: usize) {
        let is_litemesh = [one, other].iter().all(|node| self.nodes[*node].original.is_none());
        let delay_max = Duration::from_micros(self.rng.u64(100..200_000));
        // Messages are short here, and are to come in parts all the same; but what an original has in part it gives out as if it were all (A3).
        let part_bytes_max =
            if self.relay_rng.u8(..3) == 0 && is_litemesh { self.relay_rng.usize(16..200) } else { PART_BYTES_MAX };
        let envelopes = self.new_envelopes();
        self.pairings.push(Pairing {
            nodes: [one, other],
            // Above those of wires.
            transport: 1000 + self.pairings.len(),
            delay_max,
            away_until: Duration::ZERO,
            is_removed: false,
            judges_dates: self.faults.clocks && self.later.u8(..4) > 0 && is_litemesh,
            is_litemesh,
            changes: 0,
            current: [None; 2],
            envelopes,
            part_bytes_max,
            is_broken: [false; 2],
            asked: [None, None],
            begun: [None, None],
            windows: [new_window(is_litemesh), new_window(is_litemesh)],
            ways: Default::default(),
        });
        self.note(format_args!("{one} and {other} are paired, and send {part_bytes_max} bytes in an event"));
        for end in [0, 1] {
            self.relay_after(Duration::ZERO, self.pairings.len() - 1, end, RelayEvent::Open);
        }
    }

    fn new_envelopes(&mut self) -> [Envelope; 2] {
        rules::envelopes(&mut self.relay_rng).expect("keys of the seed")
    }

    /// Makes the events of an end.
    fn writer(&self, pairing: usize, end: usize) -> Writer<'_> {
        let pair = &self.pairings[pairing];
        Writer {
            envelope: &pair.envelopes[end],
            site: self.nodes[pair.nodes[end]].site,
            lifetime: CHANGES_LIFETIME,
            part_bytes_max: pair.part_bytes_max,
        }
    }

    /// The site at the other end.
    fn site_of_other(&self, pairing: usize, end: usize) -> SiteId {
        self.nodes[self.pairings[pairing].nodes[1 - end]].site
    }

    fn relay_after(&mut self, delay: Duration, pairing: usize, end: usize, what: RelayEvent) {
        self.agenda.after(delay, Event::Relay { pairing, end, what });
    }

    fn relay_delay(&mut self, pairing: usize) -> Duration {
        self.pairings[pairing].delay_max.mul_f64(self.rng.f64())
    }

    /// How long it takes until somebody finds by himself what the relay has; nothing where it brings that, as it mostly does.
    fn until_found(&mut self) -> Option<Duration> {
        let is_found = !self.is_healed && self.relay_rng.u8(..8) == 0;
        is_found.then(|| LOOK_MAX.mul_f64(self.relay_rng.f64()))
    }

    pub(super) fn at_relay(&mut self, pairing: usize, end: usize, what: RelayEvent) {
        let away_until = self.pairings[pairing].away_until;
        let needs_none = matches!(what, RelayEvent::Open | RelayEvent::Keep(_) | RelayEvent::Ready(_));
        if away_until > self.agenda.now() && !needs_none {
            // It may be back sooner, when all is healed.
            let again = away_until.min(self.agenda.now() + TRY_AGAIN);
            return self.agenda.at(again, Event::Relay { pairing, end, what });
        }
        match what {
            RelayEvent::Open => self.open_relayed(pairing, end),
            RelayEvent::ReadRequest => self.read_request(pairing, end),
            RelayEvent::Publish => self.publish_request(pairing, end),
            RelayEvent::Give(connection, id) => self.give_relay(pairing, end, connection, id),
            RelayEvent::Landed(connection, id, is_taken) => self.landed(pairing, end, connection, id, is_taken),
            RelayEvent::Again(connection) => self.publish_again(pairing, end, connection),
            RelayEvent::Check(connection) => self.check_last(pairing, end, connection),
            RelayEvent::Ready(connection) => self.relay_ready(pairing, end, connection),
            RelayEvent::Hear(connection, id) => self.hear(pairing, end, connection, id),
            RelayEvent::Look(connection) => self.look_for_next(pairing, end, connection),
            RelayEvent::Keep(connection) => self.keep_elsewhere(pairing, end, connection),
            RelayEvent::Quiet(connection) => self.end_stored(pairing, end, connection),
            RelayEvent::Broken(connection) => self.end_gap(pairing, end, connection),
        }
    }

    pub(super) fn open_pairings(&mut self, node: usize) {
        for pairing in 0..self.pairings.len() {
            for end in [0, 1] {
                if self.pairings[pairing].nodes[end] == node {
                    (self.pairings[pairing].asked[end], self.pairings[pairing].begun[end]) = (None, None);
                    self.pairings[pairing].windows[end] = new_window(self.pairings[pairing].is_litemesh);
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
            let envelopes = self.new_envelopes();
            let pair = &mut self.pairings[pairing];
            (pair.envelopes, pair.ways, pair.asked) = (envelopes, Default::default(), [None, None]);
        }
    }

    fn open_relayed(&mut self, pairing: usize, end: usize) {
        let pair = &self.pairings[pairing];
        let [node, other] = [pair.nodes[end], pair.nodes[1 - end]];
        let (site, transport) = (self.nodes[other].site, pair.transport);
        if pair.is_removed || pair.current[end].is_some() || site == self.nodes[node].site {
            return;
        }
        let is_original = self.nodes[node].original.is_some();
        let Some(running) = &mut self.nodes[node].running else { return };
        self.connections_made += 1;
        let connection = self.connections_made;
        let is_litemesh = self.pairings[pairing].is_litemesh;
        let remote = Remote { site, connection, is_litemesh };
        let (side, opening) = if is_original {
            (Side::Original(Box::new(Talk::new(remote))), None)
        } else {
            let (session, opening) = Session::new(remote, Rank::KEPT, &running.process, &Limits::default(), self.pages);
            (Side::Ours(Box::new(session)), Some(opening))
        };
        let pair = &self.pairings[pairing];
        let relayed = Relayed::new(pairing, pair.ways[end].outbound.clone().map(Told::by), pair.windows[end].clone());
        let mut session = RunningSession::new(side, end, transport);
        session.relayed = Some(Box::new(relayed));
        running.sessions.insert(connection, session);
        self.pairings[pairing].current[end] = Some(connection);
        self.note(format_args!("{node} reads what the relay has of {other}: connection {connection}"));
        let has_asked = self.pairings[pairing].asked[end].is_some();
        match opening {
            Some(opening) => self.order(node, connection, opening),
            None => {
                let request = self.request_of_original(node);
                self.ask_relayed(node, connection, request);
            }
        }
        if has_asked {
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
    fn is_taken(&self, pairing: usize, event: &NostrEvent) -> bool {
        let time = self.time();
        !self.pairings[pairing].judges_dates || event.created_at <= time + AHEAD_MAX && !event.is_expired_at(&time)
    }

    /// The connection of a pairing has ended; its end makes another one.
    pub(super) fn close_relayed(&mut self, connection: u64, relayed: &Relayed, end: usize) {
        self.store_elsewhere(relayed.pairing, end, relayed.elsewhere.clone());
        let pair = &mut self.pairings[relayed.pairing];
        if pair.current[end] == Some(connection) {
            pair.current[end] = None;
            let delay = self.random_delay(REOPEN_MICROS_MAX);
            self.relay_after(delay, relayed.pairing, end, RelayEvent::Open);
        }
    }

    pub(super) fn relayed(&mut self, node: usize, connection: u64) -> Option<&mut RunningSession> {
        self.nodes[node].running.as_mut()?.sessions.get_mut(&connection).filter(|session| session.relayed.is_some())
    }

    fn ways_of(&mut self, node: usize, connection: u64) -> Option<&mut Relayed> {
        self.relayed(node, connection)?.relayed.as_deref_mut()
    }

    /// The connection of an end, where its peer runs.
    fn connection_of(&self, pairing: usize, end: usize) -> Option<u64> {
        let pair = &self.pairings[pairing];
        pair.current[end].filter(|_| self.nodes[pair.nodes[end]].running.is_some())
    }

    pub(super) fn relay_away(&mut self) {
        let Some(pairing) = self.random_pairing() else { return };
        let duration = self.random_delay(100_000_000);
        self.pairings[pairing].away_until = self.agenda.now() + duration;
        let nodes = self.pairings[pairing].nodes;
        self.note(format_args!("the relay of {nodes:?} is away for {duration:?}"));
    }

    /// Relays forget what a peer has published that is gone for good.
    pub(super) fn silence_relays(&mut self, node: usize) {
        for pairing in &mut self.pairings {
            let ways = pairing.ways.iter_mut().zip(pairing.nodes).filter(|(_, author)| *author == node);
            for (way, _) in ways {
                (way.flying, way.kept) = (Vec::new(), Vec::new());
            }
        }
    }

    /// What others may still read of a peer: on relays, on the way there, in the file of pairings, which no backup restores, or in a chain in
    /// which an earlier event is missing.
    pub(super) fn kept_of(&self, node: usize) -> Known {
        let mut all = Known::default();
        for pair in &self.pairings {
            for (end, way) in pair.ways.iter().enumerate().filter(|(end, _)| pair.nodes[*end] == node) {
                let published =
                    way.kept.iter().map(|kept| kept.event.id).chain(way.flying.iter().map(|event| event.id));
                let last = way.outbound.iter().flat_map(|outbound| &outbound.last).map(|event| event.id);
                let receiver = self.nodes[pair.nodes[1 - end]].running.as_ref();
                let receiver = receiver.zip(pair.current[1 - end]).and_then(|(running, id)| running.sessions.get(&id));
                let heard = receiver.and_then(|session| session.relayed.as_ref()).map(|relayed| &relayed.heard);
                let heard = heard.into_iter().flatten().copied();
                let known = published.chain(last).chain(heard).filter_map(|id| way.known.get(&id));
                all = known.fold(all, |all, known| all.join(*known));
            }
        }
        all
    }

    /// A relay forgets an event of each direction, or all.
    pub(super) fn relay_forgets(&mut self) {
        let Some(pairing) = self.random_pairing() else { return };
        let is_all = self.rng.u8(..3) == 0;
        if !self.pairings[pairing].is_litemesh {
            // An original waits for ever for what is missing (B7).
            return;
        }
        for end in [0, 1] {
            let kept = &mut self.pairings[pairing].ways[end].kept;
            if is_all {
                kept.clear();
            } else if !kept.is_empty() {
                kept.remove(self.rng.usize(..kept.len()));
            }
            // What nobody refers to only its sender misses.
            if let Some(connection) = self.connection_of(pairing, end) {
                let delay = LOOK_MAX.mul_f64(self.relay_rng.f64());
                self.relay_after(delay, pairing, end, RelayEvent::Check(connection));
            }
        }
        let nodes = self.pairings[pairing].nodes;
        self.note(format_args!("the relay of {nodes:?} forgets events"));
    }

    fn random_pairing(&mut self) -> Option<usize> {
        (!self.pairings.is_empty()).then(|| self.rng.usize(..self.pairings.len()))
    }
}

fn new_window(is_litemesh: bool) -> Window {
    Window::new(if is_litemesh { WINDOW_MAX } else { WINDOW_MAX_V1 })
}

/// Names an event in the trace.
fn short(id: EventId) -> String {
    id.to_hex()[..8].to_owned()
}

/// What a message tells of a site, its sender.
fn told_of(site: SiteId, message: &PeerMessage) -> Known {
    let read = message.progress().and_then(|progress| progress.position).unwrap_or_default().version;
    let claimed = message.progress().and_then(|progress| progress.cursor.as_ref()).map(|cursor| cursor.get(&site));
    let written = message.versions().filter(|(author, _)| *author == site).map(|(_, version)| version);
    Known { read, written: written.chain(claimed).max().unwrap_or_default() }
}
