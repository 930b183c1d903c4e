//! Many peers in one thread, on virtual time, from one seed: the real sessions and the real engine, on links and machines
//! that fail.
//!
//! A [`Simulation`] writes and breaks things in rounds, and heals everything after each. What must hold is checked after every
//! commit (`checkers`) and, of all peers together, after each healing. Everything that is decided here is decided by one
//! random generator, and nothing reads a clock: the same seed is the same run, down to the trace.
//!
//! `node` is a peer, `network` what joins peers, `carry` the driver of their sessions; `workload` and `faults` are what
//! happens to them.

mod carry;
mod checkers;
mod clock;
mod database;
mod faults;
mod line;
mod log;
mod network;
mod node;
mod options;
mod original;
mod relay;
mod trace;
mod workload;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use fastrand::Rng;
use litemesh::simulation::{Done, Timer};
use litemesh_engine::PageLimits;
use litemesh_engine::proto::limits::{BATCH_BYTES_MAX, BATCH_CHANGES_MAX, BATCH_STRETCH};
use litemesh_engine::proto::{Cursor, DbVersion, SiteId};
use tempfile::TempDir;

use crate::history::Schema;
use clock::Agenda;
pub use line::Carried;
use line::Carrier;
use log::Log;
use network::{Connection, Wire};
use node::Node;
pub use options::{Faults, Lossy, Options};
use original::Original;
use relay::{Pairing, RelayEvent};
use trace::Trace;

/// Something that will happen.
enum Event {
    /// The dialling end of a wire tries.
    Dial { wire: usize },
    /// The next frame reaches an end.
    Arrive { connection: u64, end: usize },
    /// The message that an end sent was taken, or refused.
    Taken { connection: u64, end: usize, refused: Option<String> },
    /// An end is brought once more what it was brought before.
    Repeat { connection: u64, end: usize, bytes: Vec<u8> },
    /// An end has heard nothing for so long that it gives the connection up, unless the way is free again.
    Silent { connection: u64, end: usize },
    /// The application committed something.
    Wake { node: usize, boot: u64 },
    /// The engine has time for its next job.
    Work { node: usize, boot: u64 },
    /// A session learns what came of its work.
    Done { node: usize, boot: u64, connection: u64, result: Result<Done, String> },
    /// A session learns that the database changed.
    Announce { node: usize, boot: u64, connection: u64 },
    /// Somebody forks the file of a peer that was this site.
    Fork { node: usize, site: SiteId, common: DbVersion },
    /// Something happens at an end of a pairing.
    Relay { pairing: usize, end: usize, what: RelayEvent },
    /// Another session to the same remote began or ceased to carry what is written.
    OtherWays { node: usize, boot: u64, connection: u64 },
    /// A session wanted to be woken about now.
    Timer { node: usize, boot: u64, connection: u64, timer: Timer },
    /// A session wanted its connection to end about now.
    End { node: usize, boot: u64, connection: u64, reason: String },
}

/// What a simulation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it
pub struct Report {
    pub nodes: usize,
    pub wires: usize,
    pub events: u64,
    pub transactions: usize,
    pub connections: u64,
    pub messages: usize,
    pub changes: usize,
    pub checks: usize,
    /// Pairs of peers that relays join.
    pub pairings: usize,
    pub carried: Carried,
    /// The same where the same happened.
    pub trace: u64,
}

#[derive(Default)]
struct Counts {
    events: u64,
    transactions: usize,
    messages: usize,
    changes: usize,
    checks: usize,
    carried: Carried,
}

/// Peers, what joins them, and what happened so far.
pub struct Simulation {
    seed: u64,
    options: Options,
    faults: Faults,
    rng: Rng,
    /// Decides of what came later: what `rng` draws stays what it was.
    later: Rng,
    /// How messages become bytes, and where these are cut. Apart, so that nothing else of a seed depends on it.
    line_rng: Rng,
    /// Keys, ids and sizes of what goes over relays, and what these do not deliver.
    relay_rng: Rng,
    agenda: Agenda<Event>,
    /// All tables, that of the upgrade last.
    tables: Vec<Schema>,
    pages: PageLimits,
    nodes: Vec<Node>,
    wires: Vec<Wire>,
    pairings: Vec<Pairing>,
    connections: BTreeMap<u64, Connection>,
    connections_made: u64,
    /// Nothing fails on its own any more.
    is_healed: bool,
    /// Nothing is under way any more.
    is_quiet: bool,
    /// Somebody has upgraded its schema; it may have been restored since.
    has_upgraded: bool,
    /// Two peers had one site id since all was quiet last.
    is_contested: bool,
    log: Log,
    trace: Trace,
    counts: Counts,
    folder: TempDir,
}

/// How long a healed network may take, in events: some thousand are usual.
const EVENTS_TO_QUIET_MAX: u64 = 200_000;

impl Simulation {
    /// Peers and links as a seed has them, connected but empty.
    pub fn new(seed: u64, options: &Options) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut later = Rng::with_seed(!seed);
        let faults = options.faults.some(&mut rng, &mut later);
        let tables = workload::tables(&mut rng);
        let changes_max = if faults.small_pages { rng.usize(1..12) } else { BATCH_CHANGES_MAX };
        let mut simulation = Self {
            seed,
            options: options.clone(),
            faults,
            rng,
            later,
            line_rng: Rng::with_seed(seed ^ 0x11e5),
            relay_rng: Rng::with_seed(seed ^ 0x3e1a),
            agenda: Agenda::new(),
            tables,
            pages: PageLimits { changes_max, bytes_max: BATCH_BYTES_MAX, stretch: BATCH_STRETCH },
            nodes: Vec::new(),
            wires: Vec::new(),
            pairings: Vec::new(),
            connections: BTreeMap::new(),
            connections_made: 0,
            is_healed: false,
            is_quiet: false,
            has_upgraded: false,
            is_contested: false,
            log: Log::default(),
            trace: Trace::new(),
            counts: Counts::default(),
            folder: tempfile::tempdir().expect("a folder for temporary files"),
        };
        simulation.build();
        simulation
    }

    /// Runs all rounds.
    ///
    /// # Panics
    ///
    /// Something that must hold does not. The message has the seed, what differs, and the end of the trace.
    pub fn run(mut self) -> Report {
        for _ in 0..self.rng.usize(1..=self.options.rounds) {
            self.is_healed = false;
            for _ in 0..self.rng.usize(5..self.options.steps.max(6)) {
                let gap = self.random_gap();
                self.run_for(gap);
                self.step();
            }
            self.heal();
            self.run_until_quiet();
            self.check_healed();
            self.check_spread();
            self.check_restart();
        }
        Report {
            nodes: self.nodes.len(),
            wires: self.wires.len(),
            events: self.counts.events,
            transactions: self.counts.transactions,
            connections: self.connections_made,
            messages: self.counts.messages,
            changes: self.counts.changes,
            checks: self.counts.checks,
            pairings: self.pairings.len(),
            carried: self.counts.carried,
            trace: self.trace.hash(),
        }
    }

    fn build(&mut self) {
        let shape = self.options.shape(&mut self.rng, self.faults);
        for _ in 0..shape.nodes {
            self.add_node();
        }
        for [dialler, listener] in shape.wires {
            self.add_wire(dialler, listener, true);
        }
        for [one, other] in shape.pairings {
            self.pair(one, other);
        }
        for [dialler, listener] in shape.v1_wires {
            self.add_wire(dialler, listener, false);
        }
        for node in shape.nodes..shape.nodes + shape.originals {
            self.add_node();
            self.nodes[node].original = Some(Original::default());
            // It has one connection, and nothing writes to it while a transaction is open.
            self.nodes[node].has_app_connection = false;
            self.nodes[node].running.as_mut().expect("started above").app = None;
        }
        for [dialler, listener] in shape.original_wires {
            let (is_paired, is_wired) = self.ways_to_original();
            if is_paired {
                self.pair(dialler, listener);
            }
            if is_wired {
                self.add_wire(dialler, listener, false);
            }
        }
    }

    /// Whether a relay joins an original to one of ours, and whether a wire does. Both only where it may be a part of a cycle.
    fn ways_to_original(&mut self) -> (bool, bool) {
        if !self.faults.relays {
            return (false, true);
        }
        let is_paired = self.relay_rng.bool();
        (is_paired, !is_paired || self.options.original_cycles && self.relay_rng.bool())
    }

    fn random_site(&mut self) -> SiteId {
        SiteId::from_bytes(std::array::from_fn(|_| self.rng.u8(..)))
    }

    fn new_node(&mut self, site: SiteId) -> Node {
        let slowness = if self.faults.slow && self.rng.u8(..3) == 0 { self.rng.u32(10..1000) } else { 1 };
        Node {
            path: self.folder.path().join(format!("{}.db", self.nodes.len())),
            site,
            boot: 0,
            running: None,
            is_gone: false,
            slowness,
            suspended_until: Duration::ZERO,
            clock: 0,
            recursive_triggers: self.rng.bool(),
            has_app_connection: self.rng.bool(),
            is_upgraded: false,
            backup: None,
            on_disk: None,
            restored: None,
            restored_to: DbVersion::ZERO,
            common: DbVersion::ZERO,
            may_have_forgotten: false,
            parted: None,
            original: None,
            cursor: Cursor::new(),
        }
    }

    fn add_node(&mut self) -> usize {
        let site = self.random_site();
        let mut node = self.new_node(site);
        let (_, from_beginning) = self.tables.split_last().expect("the table of the upgrade");
        node.create(from_beginning);
        node.start();
        if self.faults.power {
            node.flush();
        }
        self.nodes.push(node);
        let index = self.nodes.len() - 1;
        self.note(format_args!("{index} is {site}"));
        index
    }

    fn add_wire(&mut self, dialler: usize, listener: usize, is_litemesh: bool) {
        let is_same = |wire: &&Wire| wire.nodes == [dialler, listener] || wire.nodes == [listener, dialler];
        let transport = self.wires.iter().filter(is_same).count();
        let delay_max = Duration::from_micros(self.rng.u64(100..200_000));
        let waits_for_commit = [self.rng.bool(), self.rng.bool()];
        let originals = [dialler, listener].map(|node| self.nodes[node].original.is_some());
        let carrier = Carrier::draw(&mut self.line_rng, is_litemesh, waits_for_commit, originals);
        self.wires.push(Wire {
            nodes: [dialler, listener],
            transport,
            is_litemesh,
            carrier,
            waits_for_commit,
            window: self.rng.usize(1..8),
            delay_max,
            blocked_until: [Duration::ZERO; 2],
            repeats: self.faults.repeats && self.rng.bool(),
            current: [None; 2],
            failed_dials: 0,
            is_dial_due: false,
            is_removed: false,
        });
        self.note(format_args!("{dialler} dials {listener} over {carrier:?}, its transport {transport}"));
        self.dial_after(self.wires.len() - 1, Duration::ZERO);
    }

    /// Adds a line to the trace.
    fn note(&mut self, what: fmt::Arguments<'_>) {
        self.trace.add(self.agenda.now(), what);
    }

    fn fail(&self, what: &str, why: &str) -> ! {
        panic!(
            "{what}: {why}\nseed {}, faults {:?}, pages of {} changes\n{}",
            self.seed,
            self.faults,
            self.pages.changes_max,
            self.trace.tail()
        );
    }

    fn random_delay(&mut self, micros_max: u64) -> Duration {
        Duration::from_micros(self.rng.u64(..micros_max))
    }

    /// Until the next step: mostly within one exchange of messages, sometimes long enough for timers.
    fn random_gap(&mut self) -> Duration {
        match self.rng.u8(..10) {
            0..6 => self.random_delay(20_000),
            6..9 => self.random_delay(1_000_000),
            _ => self.random_delay(60_000_000),
        }
    }

    fn run_for(&mut self, duration: Duration) {
        let until = self.agenda.now() + duration;
        let events = self.counts.events;
        while let Some(event) = self.agenda.next_until(until) {
            self.handle(event);
            if self.counts.events - events > EVENTS_TO_QUIET_MAX {
                self.fail("a message storm", "too much happens between two steps");
            }
        }
        self.agenda.advance_to(until);
    }

    /// Runs until nothing will happen any more.
    fn run_until_quiet(&mut self) {
        let events = self.counts.events;
        while let Some(event) = self.agenda.next_until(Duration::MAX) {
            self.handle(event);
            if self.counts.events - events > EVENTS_TO_QUIET_MAX {
                self.fail("a message storm", "a healed network does not become quiet");
            }
        }
    }

    fn handle(&mut self, event: Event) {
        if let Some(until) = self.node_of(&event).map(|node| self.nodes[node].suspended_until)
            && until > self.agenda.now()
        {
            return self.agenda.at(until, event);
        }
        self.counts.events += 1;
        match event {
            Event::Dial { wire } => self.dial(wire),
            Event::Arrive { connection, end } => self.arrive(connection, end),
            Event::Taken { connection, end, refused } => self.taken(connection, end, refused),
            Event::Repeat { connection, end, bytes } => self.repeat(connection, end, bytes),
            Event::Silent { connection, end } => self.silent(connection, end),
            Event::Wake { node, boot } => self.wake(node, boot),
            Event::Work { node, boot } => self.work(node, boot),
            Event::Done { node, boot, connection, result } => self.done(node, boot, connection, result),
            Event::Announce { node, boot, connection } => self.announce(node, boot, connection),
            Event::Fork { node, site, common } => self.fork(node, site, common),
            Event::Relay { pairing, end, what } => self.at_relay(pairing, end, what),
            Event::OtherWays { node, boot, connection } => self.other_ways(node, boot, connection),
            Event::Timer { node, boot, connection, timer } => self.timer(node, boot, connection, timer),
            Event::End { node, boot, connection, reason } => {
                if self.nodes[node].boot == boot {
                    self.end_session(node, connection, &reason);
                }
            }
        }
    }

    /// The peer to which an event happens.
    fn node_of(&self, event: &Event) -> Option<usize> {
        match event {
            Event::Dial { wire } => Some(self.wires[*wire].nodes[0]),
            Event::Arrive { connection, end }
            | Event::Taken { connection, end, .. }
            | Event::Repeat { connection, end, .. }
            | Event::Silent { connection, end } => {
                let connection = self.connections.get(connection)?;
                Some(self.wires[connection.wire].nodes[*end])
            }
            Event::Relay { pairing, end, .. } => Some(self.pairings[*pairing].nodes[*end]),
            Event::Wake { node, .. }
            | Event::Work { node, .. }
            | Event::Done { node, .. }
            | Event::Announce { node, .. }
            | Event::Fork { node, .. }
            | Event::OtherWays { node, .. }
            | Event::Timer { node, .. }
            | Event::End { node, .. } => Some(*node),
        }
    }
}
