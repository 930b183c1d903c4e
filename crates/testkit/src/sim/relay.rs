//! Pairs of peers that relays join, as over Nostr: they keep what one sends until the other reads it.
//!
//! Each end has one connection after another, whether or not the other is there. Which stream is asked for and where it goes on is
//! decided as `litemesh-nostr` decides it (`inbox.rs`, `outbox.rs`), with its own [`Reach`]; its chain of events is a list here, of which a
//! relay may forget some. What its file keeps outlives a process, and is not in the database that a backup restores.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use litemesh::simulation::{self, Session};
use litemesh_engine::proto::codec::v2::{self, Frame as WireFrame};
use litemesh_engine::proto::limits::CREDIT_MAX;
use litemesh_engine::proto::{
    Ack, DbVersion, Limits, PeerMessage, Progress, Refusal, Remote, Served, SyncRequest, Unverified,
};
use litemesh_nostr::CHANGES_LIFETIME;
use litemesh_nostr::nostr::Timestamp;
use litemesh_nostr::simulation::{self as rules, Reach};

use super::network::Frame;
use super::node::{RunningSession, Side};
use super::{Event, Simulation};

/// How long an event may be missing that others refer to.
const GAP_PATIENCE: Duration = Duration::from_secs(30);

/// Least time between two acknowledgements.
const ACK_EVERY: Duration = Duration::from_secs(2);

/// How soon an end stores how far another connection has brought the other one.
const ELSEWHERE_EVERY: Duration = Duration::from_secs(1);

/// How long nothing may come until everything stored counts as read.
const QUIET: Duration = Duration::from_secs(10);

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
        let (session, opening) = Session::new(remote, true, &running.process, &Limits::default(), self.pages);
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
        if let Some(outbound) = &self.pairings[pairing].ways[end].outbound {
            let (onwards, elsewhere) = (outbound.reach.onwards(&outbound.request, 1), outbound.elsewhere);
            self.answer_relayed(node, connection, onwards, elsewhere);
        }
        let delay = self.relay_delay(pairing);
        self.relay_after(delay, pairing, end, RelayEvent::ReadRequest);
        if self.pairings[pairing].ways[end].outbound.as_ref().is_some_and(|outbound| !outbound.refused.is_empty()) {
            self.relay_after(Duration::ZERO, pairing, end, RelayEvent::Again);
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

    // What is sent.

    fn answer_relayed(&mut self, node: usize, connection: u64, request: SyncRequest, elsewhere: Option<Served>) {
        let Some(session) = self.relayed(node, connection) else { return };
        let relayed = session.relayed.as_mut().expect("filtered above");
        relayed.answers_as += 1;
        (relayed.published, relayed.heeded) = (0, 0);
        relayed.unheeded.clear();
        let terms = request.terms.map(|terms| litemesh_engine::proto::Terms { answer: relayed.answers_as, ..terms });
        let request = SyncRequest { terms, ..request };
        let event = match elsewhere {
            Some(served) => simulation::Event::Resumed(request, served),
            None => simulation::Event::Asked(request),
        };
        self.feed(node, connection, event);
    }

    fn read_request(&mut self, pairing: usize, end: usize) {
        let node = self.pairings[pairing].nodes[end];
        let Some(connection) = self.pairings[pairing].current[end] else { return };
        let now = self.wall_clock(node);
        let way = &mut self.pairings[pairing].ways[end];
        let Some(asked) = way.asked.clone() else { return };
        if let Some(outbound) = &mut way.outbound {
            if rules::is_overtaken(asked.asked_at, outbound.asked_at, now) {
                return;
            }
            outbound.asked_at = asked.asked_at;
        }
        if way.outbound.as_ref().is_none_or(|outbound| outbound.stream != asked.stream) {
            let reach = Reach::answering(&asked.request);
            let onwards = reach.onwards(&asked.request, 1);
            way.outbound = Some(Outbound {
                stream: asked.stream,
                request: asked.request,
                reach,
                asked_at: asked.asked_at,
                head_at: None,
                refused: Vec::new(),
                elsewhere: None,
            });
            // Nobody asks for the others any more.
            way.streams.retain(|stream, _| *stream >= asked.stream);
            let session = self.relayed(node, connection).and_then(|session| session.relayed.as_ref());
            if session.is_some_and(|relayed| relayed.answers_as > 0) {
                // What it asks for may be what it sent us over this connection.
                return self.end_session(node, connection, "the remote asks for another stream");
            }
            return self.answer_relayed(node, connection, onwards, None);
        }
        let Some(session) = self.relayed(node, connection) else { return };
        let relayed = session.relayed.as_mut().expect("filtered above");
        let before = relayed.unheeded.len();
        while let Some((number, event)) = relayed.unheeded.front().copied()
            && event <= asked.acknowledged
        {
            relayed.unheeded.pop_front();
            relayed.heeded = number;
        }
        if relayed.unheeded.len() < before {
            self.tell_relayed(node, connection);
        }
    }

    /// Tells the session what the other end has, and that the relay takes more.
    fn tell_relayed(&mut self, node: usize, connection: u64) {
        let Some(session) = self.relayed(node, connection) else { return };
        let relayed = session.relayed.as_ref().expect("filtered above");
        let until = relayed.published + u64::from(CREDIT_MAX);
        let ack = Ack { answer: relayed.answers_as, number: relayed.heeded, until };
        // It waits for its turn, and is answered at once.
        let receiving = session.receiving.take();
        self.feed(node, connection, simulation::Event::Received(Unverified::new(PeerMessage::Ack(ack))));
        if let Some(session) = self.relayed(node, connection) {
            session.receiving = receiving;
        }
    }

    pub(super) fn send_relayed(&mut self, node: usize, connection: u64, message: &PeerMessage) {
        let Some(session) = self.relayed(node, connection) else { return };
        let end = session.end;
        session.is_sending = true;
        let relayed = session.relayed.as_mut().expect("filtered above");
        let pairing = relayed.pairing;
        if let PeerMessage::Ack(ack) = message {
            let (is_of_this, mut has_news) = (ack.answer == relayed.asked_as, false);
            while let Some((number, event)) = relayed.unacknowledged.front().copied()
                && is_of_this
                && number <= ack.number
            {
                relayed.unacknowledged.pop_front();
                (relayed.acknowledged, has_news) = (event, true);
            }
            if has_news && !std::mem::replace(&mut relayed.is_publishing, true) {
                self.relay_after(ACK_EVERY, pairing, end, RelayEvent::Publish);
            }
            return self.relay_after(Duration::ZERO, pairing, end, RelayEvent::Taken(connection, None));
        }
        let answers_as = relayed.answers_as;
        let progress = message.progress().expect("between Litemesh peers");
        self.counts.messages += 1;
        self.counts.changes += message.change_count();
        self.pairings[pairing].changes += message.change_count();
        let (asked, now) = (self.pairings[pairing].asked[end], self.wall_clock(node));
        let way = &mut self.pairings[pairing].ways[end];
        let Some(outbound) = way.outbound.as_mut().filter(|_| progress.answer == answers_as) else {
            // What still comes for the last request.
            return self.relay_after(Duration::ZERO, pairing, end, RelayEvent::Taken(connection, None));
        };
        // Stored before it is published, and published again after a crash.
        outbound.reach.add(Some(progress), message.versions());
        // The stream itself leads there now.
        let is_told = progress.since.is_some();
        outbound.elsewhere = outbound.elsewhere.filter(|_| !is_told);
        let created_at = rules::of_next(outbound.head_at, now);
        outbound.head_at = Some(created_at);
        let published =
            Published { bytes: v2::message(message), asked, created_at, expires_at: now + CHANGES_LIFETIME };
        let (stream, count, is_taken) = self.give_relay(pairing, end, published, connection, progress.number);
        let session = self.relayed(node, connection).expect("looked at above");
        let relayed = session.relayed.as_mut().expect("looked at above");
        relayed.unheeded.push_back((progress.number, count));
        relayed.elsewhere = relayed.elsewhere.filter(|_| !is_told);
        self.note(format_args!(
            "{node} publishes event {count} of stream {stream}: {} changes",
            message.change_count()
        ));
        if !is_taken {
            self.note(format_args!("its date is {created_at}, and the relay refuses it"));
            return self.relay_after(PUBLISH_AGAIN, pairing, end, RelayEvent::Again);
        }
        let delay = self.relay_delay(pairing);
        self.relay_after(delay, pairing, end, RelayEvent::Taken(connection, Some(progress.number)));
        let delay = delay + self.relay_delay(pairing);
        self.relay_after(delay, pairing, 1 - end, RelayEvent::Arrive);
    }

    /// Gives the relay the next event of a stream. Says of which, how many events it has then, and whether this one was taken.
    fn give_relay(
        &mut self,
        pairing: usize,
        end: usize,
        published: Published,
        connection: u64,
        number: u64,
    ) -> (u64, usize, bool) {
        let is_taken = self.is_taken(pairing, published.created_at, published.expires_at);
        let way = &mut self.pairings[pairing].ways[end];
        let outbound = way.outbound.as_mut().expect("a stream that was asked for");
        let events = way.streams.entry(outbound.stream).or_default();
        if is_taken {
            events.push(Some(published));
        } else {
            outbound.refused.push(Refused { event: events.len(), published, connection, number });
            events.push(None);
        }
        (outbound.stream, events.len(), is_taken)
    }

    /// What the relay takes now. What it refuses for a date that is wrong by our clock, which was ahead or far behind, is said again.
    fn publish_again(&mut self, pairing: usize, end: usize) {
        let node = self.pairings[pairing].nodes[end];
        if self.pairings[pairing].current[end].is_none() {
            return;
        }
        let now = self.wall_clock(node);
        let Some(outbound) = &mut self.pairings[pairing].ways[end].outbound else { return };
        let stream = outbound.stream;
        for Refused { event, published, connection, number } in std::mem::take(&mut outbound.refused) {
            let is_taken = self.is_taken(pairing, published.created_at, published.expires_at);
            let way = &mut self.pairings[pairing].ways[end];
            let outbound = way.outbound.as_mut().expect("looked at above");
            if is_taken {
                way.streams.get_mut(&stream).expect("a stream with events")[event] = Some(published);
            } else if rules::is_ahead(published.created_at, now) || published.expires_at < now {
                let created_at = rules::of_again(outbound.head_at.unwrap_or(now), now);
                outbound.head_at = Some(created_at);
                let again = Published { created_at, expires_at: now + CHANGES_LIFETIME, ..published };
                let (_, count, is_taken) = self.give_relay(pairing, end, again, connection, number);
                self.note(format_args!(
                    "{node} says again what event {} of stream {stream} said, as event {count}",
                    event + 1
                ));
                let session = self.relayed(node, connection).and_then(|session| session.relayed.as_mut());
                let unheeded = session.into_iter().flat_map(|relayed| &mut relayed.unheeded);
                unheeded.filter(|(of, _)| *of == number).for_each(|(_, event)| *event = count);
                if !is_taken {
                    continue;
                }
            } else {
                outbound.refused.push(Refused { event, published, connection, number });
                continue;
            }
            let delay = self.relay_delay(pairing);
            self.relay_after(delay, pairing, end, RelayEvent::Taken(connection, Some(number)));
            self.relay_after(delay, pairing, 1 - end, RelayEvent::Arrive);
        }
        let outbound = self.pairings[pairing].ways[end].outbound.as_ref();
        if outbound.is_some_and(|outbound| !outbound.refused.is_empty()) {
            self.relay_after(PUBLISH_AGAIN, pairing, end, RelayEvent::Again);
        }
    }

    /// A session says how far another connection has brought the other end.
    pub(super) fn note_elsewhere(&mut self, node: usize, connection: u64, served: Served) {
        let Some(session) = self.relayed(node, connection) else { return };
        let (end, pairing) = (session.end, session.relayed.as_ref().expect("filtered above").pairing);
        let Some(outbound) = &self.pairings[pairing].ways[end].outbound else { return };
        let stream = outbound.stream;
        let Some(session) = self.relayed(node, connection) else { return };
        let relayed = session.relayed.as_mut().expect("filtered above");
        if relayed.elsewhere.replace((stream, served)).is_none() {
            self.relay_after(ELSEWHERE_EVERY, pairing, end, RelayEvent::Keep(connection));
        }
    }

    fn keep_elsewhere(&mut self, pairing: usize, end: usize, connection: u64) {
        let node = self.pairings[pairing].nodes[end];
        if let Some(session) = self.relayed(node, connection) {
            let elsewhere = session.relayed.as_mut().expect("filtered above").elsewhere.take();
            self.store_elsewhere(pairing, end, elsewhere);
        }
    }

    fn store_elsewhere(&mut self, pairing: usize, end: usize, elsewhere: Option<(u64, Served)>) {
        let Some((stream, served)) = elsewhere else { return };
        if let Some(outbound) = self.pairings[pairing].ways[end].outbound.as_mut().filter(|out| out.stream == stream) {
            outbound.elsewhere = Some(served);
        }
    }

    fn relay_took(&mut self, pairing: usize, end: usize, connection: u64, number: Option<u64>) {
        let node = self.pairings[pairing].nodes[end];
        let Some(session) = self.relayed(node, connection) else { return };
        session.is_sending = false;
        let relayed = session.relayed.as_mut().expect("filtered above");
        relayed.published = number.map_or(relayed.published, |number| relayed.published.max(number));
        self.feed(node, connection, simulation::Event::Sent);
        if number.is_some() {
            self.tell_relayed(node, connection);
        }
    }

    // What comes.

    pub(super) fn ask_relayed(&mut self, node: usize, connection: u64, request: SyncRequest) {
        let Some(session) = self.relayed(node, connection) else { return };
        let end = session.end;
        let relayed = session.relayed.as_mut().expect("filtered above");
        let is_first = std::mem::take(&mut relayed.is_first);
        let was_told = !std::mem::take(&mut relayed.was_told_elsewhere)
            && relayed.told.take().is_none_or(|told| told.was_told_by(&request));
        let pairing = relayed.pairing;
        let now = self.wall_clock(node);
        let pair = &mut self.pairings[pairing];
        let is_broken = std::mem::take(&mut pair.is_broken[end]);
        let known = pair.ways[1 - end].inbound.as_ref().filter(|_| is_first && !is_broken && was_told);
        let known = known.filter(|inbound| !rules::is_old(inbound.head_at, inbound.asked_at, CHANGES_LIFETIME, now));
        let asked_at = pair.ways[1 - end].inbound.as_ref().map_or(Timestamp::from_secs(0), |inbound| inbound.asked_at);
        let asked_as = request.terms.as_ref().map_or(0, |terms| terms.answer);
        let inbound = match known.and_then(|inbound| inbound.resumed(&request)) {
            Some(inbound) => inbound,
            None => {
                pair.streams_made += 1;
                let reach = Reach::of(&request);
                let head_at = Timestamp::from_secs(0);
                Inbound { stream: pair.streams_made, request, head: 0, reach, taking: None, asked_at, head_at }
            }
        };
        let (stream, head) = (inbound.stream, inbound.head);
        pair.ways[1 - end].inbound = Some(inbound);
        pair.asked[end] = Some(stream);
        let session = self.relayed(node, connection).expect("looked at above");
        let relayed = session.relayed.as_mut().expect("looked at above");
        relayed.asked_as = asked_as;
        (relayed.number, relayed.next, relayed.acknowledged) = (0, head, head);
        (relayed.holds_back, relayed.is_publishing) = (false, true);
        relayed.unacknowledged.clear();
        self.note(format_args!("{node} asks for stream {stream} after event {head}"));
        if head > 0 {
            self.relay_after(QUIET, pairing, end, RelayEvent::Quiet(connection));
        }
        for what in [RelayEvent::Publish, RelayEvent::Arrive] {
            let delay = self.relay_delay(pairing);
            self.relay_after(delay, pairing, end, what);
        }
    }

    /// Who went on with a stream is not told again that it was up to date.
    fn end_stored(&mut self, pairing: usize, end: usize, connection: u64) {
        let node = self.pairings[pairing].nodes[end];
        let Some(session) = self.relayed(node, connection) else { return };
        let relayed = session.relayed.as_mut().expect("filtered above");
        if session.receiving.is_some() {
            return self.relay_after(QUIET, pairing, end, RelayEvent::Quiet(connection));
        }
        relayed.number += 1;
        let progress = Some(Progress { more: true, ..Progress::default() });
        let message = Unverified::new(PeerMessage::Eose { progress }).numbered(relayed.asked_as, relayed.number);
        self.feed(node, connection, simulation::Event::Received(message));
    }

    fn publish_request(&mut self, pairing: usize, end: usize) {
        let node = self.pairings[pairing].nodes[end];
        let Some(connection) = self.pairings[pairing].current[end] else { return };
        let Some(session) = self.relayed(node, connection) else { return };
        let relayed = session.relayed.as_mut().expect("filtered above");
        if !std::mem::take(&mut relayed.is_publishing) {
            return;
        }
        let acknowledged = relayed.acknowledged;
        let (now, time) = (self.wall_clock(node), self.time());
        let judges_dates = self.pairings[pairing].judges_dates;
        let way = &mut self.pairings[pairing].ways[1 - end];
        let Some(inbound) = &mut way.inbound else { return };
        let asked_at = rules::of_request(inbound.asked_at, now);
        let newest = way.asked.as_ref().map_or(Timestamp::from_secs(0), |asked| asked.asked_at);
        let is_refused = judges_dates && asked_at > time + AHEAD_MAX;
        // Of two of one second relays keep either.
        if is_refused || asked_at <= newest {
            inbound.asked_at = if is_refused { rules::of_refused(asked_at, now) } else { newest };
            let session = self.relayed(node, connection).and_then(|session| session.relayed.as_mut());
            session.expect("looked at above").is_publishing = true;
            self.note(format_args!("{node} asks in vain, as of {asked_at}"));
            return self.relay_after(PUBLISH_AGAIN, pairing, end, RelayEvent::Publish);
        }
        inbound.asked_at = asked_at;
        let (stream, request) = (inbound.stream, inbound.request.clone());
        way.asked = Some(Asked { stream, request, acknowledged, asked_at });
        let delay = self.relay_delay(pairing);
        self.relay_after(delay, pairing, 1 - end, RelayEvent::ReadRequest);
    }

    fn take_event(&mut self, pairing: usize, end: usize) {
        let node = self.pairings[pairing].nodes[end];
        let Some(connection) = self.pairings[pairing].current[end] else { return };
        let Some(session) = self.relayed(node, connection) else { return };
        let relayed = session.relayed.as_mut().expect("filtered above");
        if relayed.is_first || session.receiving.is_some() {
            return;
        }
        let (asked_as, next, holds_back) = (relayed.asked_as, relayed.next, relayed.holds_back);
        let answers = self.pairings[pairing].ways[end].outbound.as_ref().map(|outbound| outbound.stream);
        let way = &mut self.pairings[pairing].ways[1 - end];
        let Some(inbound) = &mut way.inbound else { return };
        let events = way.streams.get(&inbound.stream).map_or(&[][..], |events| &events[next.min(events.len())..]);
        let answered = way.outbound.as_ref().filter(|outbound| outbound.stream == inbound.stream);
        let is_refused = answered.is_some_and(|outbound| outbound.refused.iter().any(|refused| refused.event == next));
        let Published { bytes, asked, created_at, .. } = match events.first() {
            None => return,
            // Nothing shows that it is missing, unless something refers to it.
            Some(None) if is_refused && events.iter().all(Option::is_none) => return,
            Some(None) => {
                return self.relay_after(GAP_PATIENCE, pairing, end, RelayEvent::Broken(connection));
            }
            Some(Some(published)) => published.clone(),
        };
        let message = read(&bytes);
        if !holds_back {
            let mut reach = inbound.reach.clone();
            reach.add(message.progress(), message.versions());
            inbound.taking = Some((next + 1, reach));
            inbound.head_at = created_at;
        }
        let session = self.relayed(node, connection).expect("looked at above");
        session.receiving = Some(Frame::Data(bytes));
        let relayed = session.relayed.as_mut().expect("looked at above");
        relayed.next += 1;
        relayed.number += 1;
        relayed.unacknowledged.push_back((relayed.number, relayed.next));
        let message = message.numbered(asked_as, relayed.number);
        // A device that was restored since has lost it, and asks for it.
        let is_early = asked.is_none() || asked != answers;
        let message = if is_early { message.early() } else { message };
        self.feed(node, connection, simulation::Event::Received(message));
    }

    /// A session answers the message that it received, if that was one and no acknowledgement.
    pub(super) fn replied_relayed(&mut self, node: usize, connection: u64, result: Result<(), Refusal>) {
        let Some(session) = self.relayed(node, connection) else { return };
        if session.receiving.take().is_none() {
            return;
        }
        let end = session.end;
        let relayed = session.relayed.as_mut().expect("filtered above");
        let pairing = relayed.pairing;
        match result {
            Ok(()) if relayed.holds_back => {}
            Ok(()) => {
                if let Some(inbound) = &mut self.pairings[pairing].ways[1 - end].inbound {
                    inbound.taken();
                }
            }
            Err(refusal) => {
                relayed.holds_back = true;
                self.note(format_args!("{node} refuses a message of connection {connection}: {refusal}"));
            }
        }
        let delay = self.relay_delay(pairing);
        self.relay_after(delay, pairing, end, RelayEvent::Arrive);
    }

    // What fails.

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
