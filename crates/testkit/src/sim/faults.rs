//! What goes wrong, and how it is put right.

use std::time::Duration;

use litemesh_engine::Engine;
use litemesh_engine::proto::{DbVersion, SiteId};

use super::carry::SILENCE_MAX;
use super::database::own_changes_since;
use super::network::Frame;
use super::node::{Backup, set_site};
use super::{Event, Simulation};

/// What a step may be.
#[derive(Clone, Copy)]
enum Fault {
    Break,
    Partition,
    Crash,
    Start,
    Vanish,
    Backup,
    Restore,
    CutPower,
    Copy,
    Twin,
    FillDisk,
    FreeDisk,
    Suspend,
    Jump,
    Upgrade,
    Prune,
    RelayAway,
    RelayForgets,
}

/// Most peers that are made from copies.
const COPIES_MAX: usize = 2;

impl Simulation {
    /// One thing that happens to a random peer: mostly a write.
    pub(super) fn step(&mut self) {
        let alive: Vec<usize> = (0..self.nodes.len()).filter(|node| !self.nodes[*node].is_gone).collect();
        let node = *self.rng.choice(&alive).expect("somebody is there");
        if self.faults.clocks && self.later.u8(..8) == 0 {
            self.turn_clock();
        }
        if self.rng.u8(..100) < 60 {
            return self.write(node);
        }
        let faults = self.faults;
        let kinds = [
            (faults.breaks, 4, Fault::Break),
            (faults.partitions, 2, Fault::Partition),
            (faults.crashes, 2, Fault::Crash),
            (true, 3, Fault::Start),
            (faults.vanishing && alive.len() > 2, 1, Fault::Vanish),
            (faults.restores, 2, Fault::Backup),
            (faults.restores, 1, Fault::Restore),
            (faults.power, 3, Fault::CutPower),
            (faults.copies, 1, Fault::Copy),
            (faults.twins, 1, Fault::Twin),
            (faults.full_disks, 2, Fault::FillDisk),
            (faults.full_disks, 2, Fault::FreeDisk),
            (faults.suspensions, 1, Fault::Suspend),
            (faults.suspensions, 1, Fault::Jump),
            (faults.upgrades, 1, Fault::Upgrade),
            (true, 2, Fault::Prune),
            (faults.relays, 1, Fault::RelayAway),
            // Where nothing is to fail that originals do not survive.
            (faults.relays && !self.options.original_cycles, 1, Fault::RelayForgets),
        ];
        let total: usize = kinds.iter().filter(|(may, ..)| *may).map(|(_, weight, _)| weight).sum();
        let mut at = self.rng.usize(..total);
        for (_, weight, fault) in kinds.into_iter().filter(|(may, ..)| *may) {
            if at < weight {
                return self.happen(node, fault);
            }
            at -= weight;
        }
    }

    fn happen(&mut self, node: usize, fault: Fault) {
        match fault {
            Fault::Break => self.break_connection(),
            Fault::Partition => self.partition(),
            Fault::Crash => self.crash(node),
            Fault::Start => self.start(node),
            Fault::Vanish => self.vanish(node),
            Fault::Backup => self.back_up(node),
            Fault::Restore => self.restore(node),
            Fault::CutPower => self.cut_power(node),
            Fault::Copy => self.copy(node),
            Fault::Twin => self.double(node),
            Fault::FillDisk => self.limit_disk(node, true),
            Fault::FreeDisk => self.limit_disk(node, false),
            Fault::Suspend => self.suspend(node),
            Fault::Jump => self.jump(node),
            Fault::Upgrade => self.upgrade(node),
            Fault::Prune => self.prune(node),
            Fault::RelayAway => self.relay_away(),
            Fault::RelayForgets => self.relay_forgets(),
        }
    }

    fn break_connection(&mut self) {
        let open: Vec<u64> = self.wires.iter().flat_map(|wire| wire.current[0]).collect();
        if let Some(connection) = self.rng.choice(open) {
            self.cut(connection, "broken");
        }
    }

    fn partition(&mut self) {
        if self.wires.is_empty() {
            return;
        }
        let index = self.rng.usize(..self.wires.len());
        let duration = if self.rng.u8(..4) == 0 { 300_000_000 } else { 5_000_000 };
        let until = self.agenda.now() + self.random_delay(duration);
        let is_both = self.rng.bool();
        let first = self.rng.usize(..2);
        let wire = &mut self.wires[index];
        let [a, b] = wire.nodes;
        let current = wire.current;
        for end in [first, 1 - first].into_iter().take(if is_both { 2 } else { 1 }) {
            wire.blocked_until[end] = wire.blocked_until[end].max(until);
        }
        let what = if is_both { "both ways" } else { "one way" };
        self.note(format_args!("nothing goes between {a} and {b}, {what}, from {first}, until {until:?}"));
        for (end, connection) in current.into_iter().enumerate().filter_map(|(end, c)| Some((end, c?))) {
            self.agenda.after(SILENCE_MAX, Event::Silent { connection, end });
        }
    }

    pub(super) fn crash(&mut self, node: usize) {
        let Some(running) = &self.nodes[node].running else { return };
        let connections: Vec<(u64, usize)> = running.sessions.iter().map(|(c, session)| (*c, session.end)).collect();
        self.note(format_args!("{node} crashes"));
        self.nodes[node].kill();
        for (connection, end) in connections {
            if !self.connections.contains_key(&connection) {
                self.forget_relayed(connection);
                continue;
            }
            let wire = self.connections[&connection].wire;
            self.wires[wire].current[end] = None;
            self.break_off(connection, end);
            if self.rng.bool() {
                self.push(connection, end, Frame::Close("reset by a machine that crashed".to_owned()));
            } else {
                // Nobody says anything: the other end finds out by the silence, or when a newer connection comes.
                self.agenda.after(
                    SILENCE_MAX,
                    Event::End {
                        node: self.wires[wire].nodes[1 - end],
                        boot: self.nodes[self.wires[wire].nodes[1 - end]].boot,
                        connection,
                        reason: "silence".to_owned(),
                    },
                );
            }
        }
    }

    pub(super) fn start(&mut self, node: usize) {
        if self.nodes[node].running.is_some() || self.nodes[node].is_gone {
            return;
        }
        self.nodes[node].start();
        self.note(format_args!("{node} starts"));
        self.check(node, "after a start");
        if self.nodes[node].original.is_some() {
            let (boot, delay) = (self.nodes[node].boot, self.random_delay(5_000_000));
            self.agenda.after(delay, Event::Wake { node, boot });
        }
        self.open_pairings(node);
        for wire in 0..self.wires.len() {
            if self.wires[wire].nodes[0] == node {
                self.wires[wire].failed_dials = 0;
                let delay = self.random_delay(1_000_000);
                self.dial_after(wire, delay);
            }
        }
    }

    /// What a peer sent and nobody received is lost with it, but for what relays keep.
    fn silence(&mut self, node: usize) {
        for connection in self.connections.values_mut() {
            for end in [0, 1] {
                if self.wires[connection.wire].nodes[end] == node {
                    connection.ways[end].silence();
                }
            }
        }
    }

    fn vanish(&mut self, node: usize) {
        // Who is left must be able to reach each other: only leaves vanish.
        let wires = self.wires.iter().filter(|wire| !wire.is_removed && wire.nodes.contains(&node));
        let others: std::collections::BTreeSet<usize> =
            wires.flat_map(|wire| wire.nodes).chain(self.paired(node)).filter(|n| *n != node).collect();
        if others.len() > 1 && !self.is_clique(&others) {
            return;
        }
        // One of two that write under one id must be there to get another.
        if self.nodes[node].parted.is_some() {
            return;
        }
        self.crash(node);
        self.silence(node);
        self.silence_relays(node);
        self.note(format_args!("{node} is gone for good"));
        self.nodes[node].is_gone = true;
        for wire in self.wires.iter_mut().filter(|wire| wire.nodes.contains(&node)) {
            wire.is_removed = true;
        }
        self.unpair(node);
        // Nobody can promise what only it had.
        self.log.excuse_all(node);
    }

    /// Whether it dials a peer with the rules of the original, which makes it no leaf.
    fn is_joined_to_original(&self, node: usize) -> bool {
        let dialled = self.wires.iter().filter(|wire| wire.nodes[0] == node).map(|wire| wire.nodes[1]);
        dialled.into_iter().any(|listener| self.nodes[listener].original.is_some())
    }

    fn is_clique(&self, nodes: &std::collections::BTreeSet<usize>) -> bool {
        let is_joined = |a: usize, b: usize| {
            let is_wire = |wire: &super::Wire| !wire.is_removed && (wire.nodes == [a, b] || wire.nodes == [b, a]);
            self.wires.iter().any(is_wire) || self.paired(a).contains(&b)
        };
        nodes.iter().all(|a| nodes.iter().all(|b| a == b || is_joined(*a, *b)))
    }

    fn back_up(&mut self, node: usize) {
        if self.nodes[node].original.is_some() {
            return;
        }
        // An old one has forgotten more.
        if self.faults.hasty && self.nodes[node].backup.is_some() && self.later.u8(..4) > 0 {
            return;
        }
        let Some(engine) = self.nodes[node].engine() else { return };
        let version = engine.db_version().expect("a database that can be read");
        let Some(bytes) = self.nodes[node].copy() else { return };
        self.note(format_args!("{node} is backed up at {version}"));
        let peer = &mut self.nodes[node];
        let common = peer.restored.map(|_| peer.common);
        peer.backup = Some(Backup { bytes, version, common, is_upgraded: peer.is_upgraded });
    }

    /// The file is replaced by its backup: what was written since is lost here, and the machine does not know it.
    fn restore(&mut self, node: usize) {
        if self.nodes[node].is_gone || self.nodes[node].backup.is_none() {
            return;
        }
        self.crash(node);
        self.silence(node);
        let peer = &mut self.nodes[node];
        let backup = peer.backup.take().expect("looked at above");
        peer.replace_file(&backup.bytes);
        peer.is_upgraded = backup.is_upgraded;
        let site = peer.site;
        let parted = peer.parted;
        self.forget_after(node, backup.version, backup.common);
        self.log.excuse(node, site, backup.version);
        if let Some((_, common)) = parted.filter(|(parted, _)| *parted == site) {
            // One more life whose versions stood for something else already.
            self.log.doubt(node, site, common);
        }
        self.note(format_args!("{node} is restored to {}", backup.version));
        self.start(node);
        if self.faults.hasty {
            // Its application does not wait for anybody.
            for _ in 0..self.later.usize(..5) {
                self.write(node);
            }
        }
    }

    /// What was committed and is not on the disk is lost.
    fn cut_power(&mut self, node: usize) {
        if self.nodes[node].is_gone {
            return;
        }
        self.crash(node);
        self.silence(node);
        let Some((version, untold)) = self.nodes[node].lose_power().map(|disk| (disk.version, disk.untold)) else {
            return;
        };
        self.forget_after(node, version, untold.map(|(_, common)| common));
        if let Some((restored_to, _)) = untold {
            // What came since by merges is none of what it had forgotten.
            self.nodes[node].restored_to = restored_to.min(version);
        }
        self.log.excuse(node, self.nodes[node].site, version);
        self.note(format_args!("{node} has no power, and {version} on its disk"));
        self.start(node);
    }

    /// The file of a peer ends with this version now. `common`: [`Node::common`](super::node::Node::common), where it had forgotten something before.
    fn forget_after(&mut self, node: usize, version: DbVersion, common: Option<DbVersion>) {
        let first = self.connections_made + 1;
        let peer = &mut self.nodes[node];
        (peer.restored, peer.restored_to) = (Some(first), version);
        peer.common = common.map_or(version, |common| common.min(version));
        peer.may_have_forgotten = true;
        peer.cursor = litemesh_engine::proto::Cursor::new();
    }

    /// A copy of the file becomes a peer. Before it is forked, both refuse each other.
    fn copy(&mut self, node: usize) {
        if self.nodes.len() >= self.options.nodes + 2 + COPIES_MAX || self.nodes[node].restored.is_some() {
            return;
        }
        // Of one that wrote under an id that another has, too, one would say at which version it was copied; `double` has that.
        if self.nodes[node].original.is_some() || self.nodes[node].parted.is_some() {
            return;
        }
        let Some(bytes) = self.nodes[node].copy() else { return };
        let site = self.nodes[node].site;
        let mut copy = self.new_node(site);
        copy.is_upgraded = self.nodes[node].is_upgraded;
        copy.replace_file(&bytes);
        let mut engine = Engine::open(&copy.path).expect("a sound file");
        engine.fork(None).expect("a file that can be written to");
        drop(engine);
        copy.site = self.random_site();
        set_site(&copy.path, copy.site);
        copy.start();
        self.nodes.push(copy);
        let index = self.nodes.len() - 1;
        self.note(format_args!("{index} is a copy of {node}"));
        self.check(index, "after a fork");
        self.connect_copy(index);
    }

    /// A copy of the file becomes a peer, and nobody forks it: both write under one site id.
    fn double(&mut self, node: usize) {
        if self.nodes.len() >= self.options.nodes + 2 + COPIES_MAX {
            return;
        }
        if self.nodes[node].original.is_some() {
            return;
        }
        // What is held open would be in neither.
        self.commit_open(node);
        let Some(bytes) = self.nodes[node].copy() else { return };
        let site = self.nodes[node].site;
        let mut twin = self.new_node(site);
        twin.is_upgraded = self.nodes[node].is_upgraded;
        twin.replace_file(&bytes);
        twin.start();
        let version = twin.engine().expect("started above").db_version().expect("a database that can be read");
        self.nodes.push(twin);
        let index = self.nodes.len() - 1;
        for twin in [node, index] {
            let parted = self.nodes[twin].parted.filter(|(parted, _)| *parted == site);
            let version = parted.map_or(version, |(_, parted)| parted.min(version));
            self.nodes[twin].parted = Some((site, version));
            self.nodes[twin].may_have_forgotten = true;
        }
        self.log.contest(site, version);
        self.is_contested = true;
        self.note(format_args!("{index} is a copy of {node} at {version}, and writes as {site}, too"));
        self.check(index, "after a copy");
        self.connect_copy(index);
    }

    fn connect_copy(&mut self, index: usize) {
        let others: Vec<usize> = (0..index).filter(|other| !self.nodes[*other].is_gone).collect();
        // v1 peers stay leaves.
        let is_v1 = |node: &usize| {
            let is_leaf = self.wires.iter().any(|wire| !wire.is_litemesh && wire.nodes[0] == *node);
            self.nodes[*node].original.is_some() || (is_leaf && !self.is_joined_to_original(*node))
        };
        let others: Vec<usize> = others.into_iter().filter(|other| !is_v1(other)).collect();
        let count = self.rng.usize(1..=2);
        for other in self.rng.choose_multiple(others, count) {
            self.add_wire(index, other, true);
        }
    }

    /// Somebody reads that the file of a peer was restored and written to, and follows the advice.
    pub(super) fn fork(&mut self, node: usize, site: SiteId, common: DbVersion) {
        if self.nodes[node].site != site || self.nodes[node].is_gone {
            return;
        }
        // Who restored it knows from where on it may have written what it wrote before.
        let parted = self.nodes[node].parted.filter(|(parted, _)| self.faults.hasty && *parted == site);
        let common = parted.map_or(common, |(_, version)| version.min(common));
        self.commit_open(node);
        self.crash(node);
        let path = self.nodes[node].path.clone();
        let mut engine = Engine::open(&path).expect("a sound file");
        engine.fork(Some(common)).expect("a file that can be written to");
        drop(engine);
        let forked = self.random_site();
        set_site(&path, forked);
        let engine = Engine::open(&path).expect("a sound file");
        let kept = own_changes_since(engine.connection(), common);
        drop(engine);
        let peer = &mut self.nodes[node];
        (peer.site, peer.cursor, peer.restored) = (forked, litemesh_engine::proto::Cursor::new(), None);
        // It has the id that the file had, and others know of that what the file has left.
        peer.backup = None;
        // What stays its own counts as written once more.
        self.log.add(node, kept);
        self.note(format_args!("{node} is forked at {common}, and is {forked} now"));
        self.pair_again(node);
        self.start(node);
        if self.faults.power {
            // Whoever closes a file last moves all of its log there, and flushes that.
            self.nodes[node].flush();
        }
    }

    fn limit_disk(&mut self, node: usize, is_full: bool) {
        // The original goes on after a batch that it could not write (A4, A6).
        if self.nodes[node].original.is_some() {
            return;
        }
        let pages = is_full.then(|| self.rng.i64(..3));
        self.nodes[node].limit_disk(pages);
        self.note(format_args!("{node} has {} left on its disk", if is_full { "little" } else { "enough" }));
    }

    fn suspend(&mut self, node: usize) {
        let duration = self.random_delay(200_000_000);
        self.nodes[node].suspended_until = self.agenda.now() + duration;
        self.note(format_args!("{node} does nothing for {duration:?}"));
    }

    /// Somebody sets the wall clock of a machine, or it has lost the time: right, or by minutes, hours, or days.
    fn turn_clock(&mut self) {
        let node = self.later.usize(..self.nodes.len());
        let seconds_max = [1, 3_600, 24 * 3_600, 10 * 24 * 3_600][self.later.usize(..4)];
        let seconds = self.later.i64(0..seconds_max);
        let seconds = if self.later.bool() { seconds } else { -seconds };
        if self.nodes[node].original.is_some() {
            // It publishes what is of the future until that has come.
            return;
        }
        self.nodes[node].clock = seconds;
        self.note(format_args!("the wall clock of {node} is {seconds} s ahead"));
    }

    /// The clock of a machine jumps: all that its peer waits for is due.
    fn jump(&mut self, node: usize) {
        self.note(format_args!("the clock of {node} jumps"));
        let wires = &self.wires;
        self.agenda.hasten(|event| match event {
            Event::End { node: of, .. } => *of == node,
            Event::Dial { wire } => wires[*wire].nodes[0] == node,
            _ => false,
        });
    }

    fn prune(&mut self, node: usize) {
        let limit = self.rng.usize(1..50);
        let Some(running) = &mut self.nodes[node].running else { return };
        // Fails where the disk is full or the application writes; it is only upkeep.
        let pruned = running.engine.prune_origins(Default::default(), limit).is_ok();
        self.note(format_args!("{node} prunes origins: {pruned}"));
        self.check(node, "after pruning");
    }

    /// Everything works again, and nobody writes any more.
    pub(super) fn heal(&mut self) {
        self.note(format_args!("healed"));
        self.is_healed = true;
        let now = self.agenda.now();
        for wire in &mut self.wires {
            wire.blocked_until = [now; 2];
        }
        for pairing in &mut self.pairings {
            pairing.away_until = now;
        }
        // Where no relay looks at dates, clocks may stay wrong.
        if self.faults.clocks && (self.pairings.iter().any(|pairing| pairing.judges_dates) || self.later.bool()) {
            for node in 0..self.nodes.len() {
                self.nodes[node].clock = self.later.i64(-20..=20);
            }
        }
        for node in 0..self.nodes.len() {
            self.nodes[node].suspended_until = Duration::ZERO;
            self.start(node);
            self.nodes[node].limit_disk(None);
            self.commit_open(node);
        }
        for node in 0..self.nodes.len() {
            // Who was told has a site of its own already; who made a copy knows what both have in common.
            if let Some((site, common)) = self.nodes[node].parted.take() {
                self.fork(node, site, common);
            }
        }
        // Relays may have what was sent after an upgrade that was lost with a restored file.
        let is_sent = self.has_upgraded && !self.pairings.is_empty();
        if is_sent || self.nodes.iter().any(|node| node.is_upgraded) {
            for node in 0..self.nodes.len() {
                self.upgrade(node);
            }
        }
    }
}
