//! What must hold: at a peer after each of its commits, on a connection when it ends, and of all peers when all is healed.

use std::cmp::Ordering;

use litemesh_engine::proto::{Change, Column, SiteId};
use litemesh_engine::{Engine, Severity};

use super::Simulation;
use super::database::{ask, clocks_without_origin, state};
use super::node::{RunningSession, Side};
use super::workload::LEDGER;
use crate::model::{Model, State};

/// Messages that may wait for a session beside those of the carrier's window: a request and what was repeated.
const INBOX_MAX: usize = 32;

/// Whether a change, or something that beat it, is there.
fn holds(held: &State, change: &Change) -> bool {
    let (key, length) = (change.key.as_bytes(), change.causal_length.get());
    match held.causal_length(&change.table, key).cmp(&length) {
        Ordering::Less => false,
        Ordering::Greater => true,
        Ordering::Equal if change.column == Column::Row => true,
        Ordering::Equal => held.clock(&change.table, key, change.column.as_str()).is_some_and(|clock| {
            let versions = clock.1.cmp(&change.col_version.get());
            versions.then_with(|| clock.0.merge_cmp(&change.value)).is_ge()
        }),
    }
}

/// Groups of the ledger whose rows differ: somebody could see a part of a transaction.
fn torn_groups(engine: &Engine) -> i64 {
    let sql = format!(
        "SELECT count(*) FROM (SELECT 1 FROM {LEDGER} GROUP BY grp HAVING count(*) <> 4 OR count(DISTINCT value) <> 1)"
    );
    ask(engine.connection(), &sql, [])
}

impl Simulation {
    /// What must hold at one peer whenever it committed something.
    pub(super) fn check(&mut self, node: usize, when: &str) {
        // A cursor of the original claims what came in part (A3).
        if self.nodes[node].original.is_some() {
            return;
        }
        let Some(engine) = self.nodes[node].engine() else { return };
        self.counts.checks += 1;
        let before = &self.nodes[node].cursor;
        let cursor = engine.cursor().expect("a database that can be read");
        // One that was restored, or has a twin, claims of itself what it does not have, until somebody tells it.
        let forgot = |site: &SiteId| *site == self.nodes[node].site && self.nodes[node].may_have_forgotten;
        if let Some((site, version)) =
            before.iter().find(|(site, version)| cursor.get(site) < *version && !forgot(site))
        {
            self.fail(
                &format!("{node} {when}"),
                &format!("its cursor for {site} went back from {version} to {}", cursor.get(site)),
            );
        }
        // A cursor that covers more now: of all that is new, this peer holds it or what beat it. Over wire v1 a cursor follows
        // each message of a history that should have no gaps; ours has, so there it is true only when the answer is complete.
        if self.faults.small_pages && self.faults.v1 && !self.is_quiet {
            return;
        }
        // What somebody holds as a write of a site that is there twice is not sent to who claims the same numbers of the other,
        // even where a third site wrote the same value. It comes when both have ids of their own.
        if self.is_contested && !self.is_quiet {
            return;
        }
        let news: Vec<&Change> = self.log.between(before, &cursor).collect();
        if !news.is_empty() {
            let held = state(engine, &self.tables);
            if let Some(change) = news.into_iter().find(|change| !holds(&held, change)) {
                self.fail(
                    &format!("{node} {when}"),
                    &format!("it claims {change:?} and holds neither it nor better (cursor {cursor:?})"),
                );
            }
        }
        // Wire v1 cuts transactions.
        let is_cut = self.faults.small_pages && (self.faults.v1 || self.faults.originals);
        let is_whole = !is_cut && self.log.doubtful().all(|(table, _)| &**table != LEDGER);
        if is_whole && torn_groups(engine) > 0 {
            self.fail(&format!("{node} {when}"), "half of a transaction can be seen");
        }
        self.nodes[node].cursor = cursor;
    }

    /// How much a session may have sent and kept: counted over its whole life, when it ends.
    pub(super) fn check_bounds(&self, connection: u64, session: &RunningSession) {
        if session.inbox.len() > INBOX_MAX {
            self.fail("a queue", &format!("{} messages wait at connection {connection}", session.inbox.len()));
        }
        // Over relays a connection is another at each end.
        if session.relayed.is_some() {
            return;
        }
        // The original sends what it sends; messages of ours are bounded with it, too.
        if matches!(session.session, Side::Original(_)) {
            return;
        }
        let ways = &self.connections[&connection].ways;
        let (way, back) = (&ways[session.end], &ways[1 - session.end]);
        if way.acks > back.brought {
            self.fail(
                "a message storm",
                &format!("connection {connection}: {} acknowledgements of {} messages", way.acks, back.brought),
            );
        }
        // Each answer goes once through what was ever written. A cell is sent again where a row that was dead came to a new
        // life with it (MRG-9), which another write caused; and a message without changes tells of a new version, of the author
        // or of somebody who merged it under a version of its own. To a v1 peer goes under another number, and again under its
        // own, what is not held completely yet.
        let times = if session.session.remote().is_litemesh { 2 } else { 4 };
        let changes_max = way.answers * times * self.log.changes;
        let messages_max = changes_max + way.answers * (self.log.versions + 1) * self.nodes.len();
        if way.changes > changes_max || way.messages > messages_max {
            self.fail(
                "a message storm",
                &format!(
                    "connection {connection} carried {} messages with {} changes in answer to {} requests, where {} changes \
                     of {} transactions were ever written",
                    way.messages, way.changes, way.answers, self.log.changes, self.log.versions
                ),
            );
        }
    }

    /// What must hold of all peers once everything works again and nothing is under way.
    pub(super) fn check_healed(&mut self) {
        self.note(format_args!("quiet"));
        self.is_quiet = true;
        let alive: Vec<usize> = (0..self.nodes.len()).filter(|node| !self.nodes[*node].is_gone).collect();
        for (index, wire) in self.wires.iter().enumerate().filter(|(_, wire)| !wire.is_removed) {
            for end in [0, 1] {
                let running = self.nodes[wire.nodes[end]].running.as_ref().expect("a healed peer runs");
                let session = wire.current[end].and_then(|connection| running.sessions.get(&connection));
                if !session.is_some_and(|session| session.session.is_caught_up()) {
                    let what = if session.is_some() { "is not caught up" } else { "has no connection" };
                    self.fail(&format!("wire {index}, {:?}", wire.nodes), &format!("end {end} {what}"));
                }
            }
        }
        for pairing in self.pairings.iter().filter(|pairing| !pairing.is_removed) {
            for end in [0, 1] {
                let running = self.nodes[pairing.nodes[end]].running.as_ref().expect("a healed peer runs");
                let session = pairing.current[end].and_then(|connection| running.sessions.get(&connection));
                if !session.is_some_and(|session| session.session.is_caught_up()) {
                    let what = if session.is_some() { "is not caught up" } else { "has no connection" };
                    self.fail(&format!("pairing of {:?}", pairing.nodes), &format!("end {end} {what}"));
                }
            }
        }
        let mut states: Vec<State> = alive.iter().map(|node| self.state_of(*node)).collect();
        for state in &mut states {
            self.log.doubtful().for_each(|(table, key)| state.remove_row(table, key));
        }
        let mut expected = Model::new(self.nodes[alive[0]].site, &self.tables);
        for written in self.log.all().filter(|written| !self.log.is_doubtful(&written.change)) {
            // What an author lost is expected where somebody has it.
            if !written.is_excused() || states.iter().any(|held| holds(held, &written.change)) {
                expected.merge(&written.change);
            }
        }
        let expected = expected.state();
        for (node, held) in alive.iter().zip(&states) {
            let differs = held.diff(&expected);
            if !differs.is_empty() {
                let who: Vec<String> = alive
                    .iter()
                    .zip(&states)
                    .map(|(node, held)| format!("{node}: {} lines differ", held.diff(&expected).lines().count()))
                    .collect();
                let lacks = self.log.all().filter(|written| !written.is_excused() && !holds(held, &written.change));
                let lacks = lacks.filter(|written| !self.log.is_doubtful(&written.change));
                let lacks: String = lacks.map(|written| format!("it lacks {:?}\n", written.change)).collect();
                self.fail(
                    &format!("{node} after healing"),
                    &format!("it holds, against the model, {}:\n{differs}{lacks}", who.join("; ")),
                );
            }
        }
        for node in alive {
            self.check(node, "after healing");
            let engine = self.nodes[node].engine().expect("a healed peer runs");
            let missing = clocks_without_origin(engine);
            if missing > 0 {
                self.fail(&format!("{node} after healing"), &format!("{missing} clocks have no origin"));
            }
            let findings = engine.check().expect("a database that can be read");
            let findings = findings.map(|finding| finding.expect("a database that can be read"));
            let findings: Vec<String> = findings
                .filter(|finding| finding.kind.severity() > Severity::Info)
                .map(|finding| format!("{finding:?}"))
                .collect();
            if !findings.is_empty() {
                self.fail(&format!("{node} after healing"), &findings.join("\n"));
            }
        }
        for running in self.nodes.iter().filter_map(|node| node.running.as_ref()) {
            for (connection, session) in &running.sessions {
                self.check_bounds(*connection, session);
            }
        }
        self.is_quiet = false;
        self.is_contested = false;
    }

    fn state_of(&self, node: usize) -> State {
        state(self.nodes[node].engine().expect("a healed peer runs"), &self.tables)
    }

    /// In a network that is quiet, one transaction reaches everybody and causes no more messages than a bound.
    pub(super) fn check_spread(&mut self) {
        let alive: Vec<usize> = (0..self.nodes.len()).filter(|node| !self.nodes[*node].is_gone).collect();
        let node = *self.rng.choice(&alive).expect("somebody is there");
        let (messages, transactions) = (self.counts.messages, self.counts.transactions);
        self.write(node);
        self.commit_open(node);
        self.run_until_quiet();
        self.check_healed();
        let sent = self.counts.messages - messages;
        let pairings = self.pairings.iter().filter(|pairing| !pairing.is_removed).count();
        let wires = self.wires.iter().filter(|wire| !wire.is_removed).count() + pairings;
        let parts = if self.faults.small_pages { self.log.changes } else { 1 };
        // Each way of each wire carries the changes once, and the news of each peer that merged them: its own version grew.
        let max = 2 * wires * (parts + alive.len()) * (self.counts.transactions - transactions);
        if sent > max {
            self.fail("a message storm", &format!("one transaction caused {sent} messages on {wires} wires"));
        }
    }

    /// Where two peers have a relay beside a connection, nothing is given to the relay after a restart of one of them that the other got
    /// over the connection: all of it.
    pub(super) fn check_restart(&mut self) {
        // What wire v1 brought nobody can say that he holds, and so is sent it again over each connection.
        if self.faults.v1 || self.faults.originals {
            return;
        }
        let is_wired = |nodes: [usize; 2]| {
            let is_between = |of: [usize; 2]| of == nodes || of == [nodes[1], nodes[0]];
            self.wires.iter().any(|wire| !wire.is_removed && wire.is_litemesh && is_between(wire.nodes))
        };
        let pairings = self.pairings.iter().enumerate();
        let pairings = pairings.filter(|(_, pairing)| !pairing.is_removed && is_wired(pairing.nodes));
        let Some(pairing) = self.rng.choice(pairings.map(|(pairing, _)| pairing).collect::<Vec<_>>()) else { return };
        let (node, changes) =
            (self.rng.choice(self.pairings[pairing].nodes).expect("two"), self.pairings[pairing].changes);
        self.crash(node);
        self.start(node);
        self.run_until_quiet();
        self.check_healed();
        let published = self.pairings[pairing].changes - changes;
        if published > 0 {
            let nodes = self.pairings[pairing].nodes;
            self.fail(
                "a repeat",
                &format!("a relay of {nodes:?} was given {published} changes after a restart of {node}"),
            );
        }
    }
}
