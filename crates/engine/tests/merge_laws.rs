//! Laws of merging, as properties of real engines: order, repetition, cutting and path make no difference.

mod support;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use fastrand::Rng;
use litemesh_engine::proto::{CausalLength, Change, Column, Cursor, DbVersion, Place, SiteId};
use litemesh_engine::rusqlite::Connection;
use litemesh_engine::{Engine, LocalFilter, LocalPlace, MergeProgress, PageLimits, Reach};
use litemesh_testkit::{Model, Schema, State, Statement, schemas};
use support::{
    ask, assert_origins_complete, assert_same, attach, create, dump, engine, execute, for_seeds, identity, merge,
    merge_by_sql, select_changes, state,
};
use tempfile::TempDir;

/// A replica, and what it should be.
struct Replica {
    engine: Engine,
    model: Model,
}

impl Replica {
    fn new(schemas: &[Schema], recursive_triggers: bool) -> Self {
        let engine = engine(schemas);
        engine.connection().pragma_update(None, "recursive_triggers", recursive_triggers).unwrap();
        let model = Model::new(engine.site().unwrap(), schemas).with_recursive_triggers(recursive_triggers);
        Self { engine, model }
    }

    fn random(rng: &mut Rng, schemas: &[Schema]) -> Self {
        Self::new(schemas, rng.bool())
    }

    fn write(&mut self, rng: &mut Rng, schemas: &[Schema], count: usize) {
        for _ in 0..count {
            let statement = Statement::random(rng, schemas);
            let is_done = execute(&self.engine, schemas, &statement);
            assert_eq!(self.model.execute(&statement), is_done, "{}", statement.to_sql(schemas));
        }
    }

    fn merge(&mut self, changes: &[Change]) {
        merge(&mut self.engine, changes);
        for change in changes {
            self.model.merge(change);
        }
    }

    #[track_caller]
    fn check(&self, schemas: &[Schema]) {
        assert_same(&state(&self.engine, schemas), &self.model.state(), "engine against model");
        assert_origins_complete(&self.engine);
    }
}

/// Replicas with histories of their own, some of them on top of what another one wrote before.
fn replicas(rng: &mut Rng, schemas: &[Schema], count: usize) -> Vec<Replica> {
    let mut replicas: Vec<Replica> = (0..count).map(|_| Replica::random(rng, schemas)).collect();
    for i in 0..count {
        let (before, after) = (rng.usize(..25), rng.usize(5..25));
        replicas[i].write(rng, schemas, before);
        if i > 0 && rng.bool() {
            let changes = dump(&replicas[i - 1].engine);
            replicas[i].merge(&changes);
        }
        replicas[i].write(rng, schemas, after);
    }
    replicas
}

/// A fresh engine that merged these changes, cut into batches of these sizes.
fn merged(schemas: &[Schema], batches: &[&[Change]]) -> Engine {
    let mut engine = engine(schemas);
    for batch in batches {
        merge(&mut engine, batch);
    }
    assert_origins_complete(&engine);
    engine
}

#[test]
fn local_writes_leave_what_the_model_says() {
    let schemas = schemas();
    for_seeds(0x10ca1, 30, |rng| {
        let mut replica = Replica::random(rng, &schemas);
        for _ in 0..6 {
            replica.write(rng, &schemas, 15);
            replica.check(&schemas);
        }
    });
}

#[test]
fn merge_is_commutative_associative_and_idempotent() {
    let schemas = schemas();
    for_seeds(0xacac, 20, |rng| {
        let replicas = replicas(rng, &schemas, 3);
        let dumps: Vec<Vec<Change>> = replicas.iter().map(|replica| dump(&replica.engine)).collect();
        let [a, b, c] = dumps.as_slice() else { unreachable!("three replicas") };
        let expected = state(&merged(&schemas, &[a, b, c]), &schemas);

        assert_same(&state(&merged(&schemas, &[c, a, b]), &schemas), &expected, "another order");
        assert_same(&state(&merged(&schemas, &[a, b, a, c, b, b]), &schemas), &expected, "repeated");
        let inner = dump(&merged(&schemas, &[b, c]));
        assert_same(&state(&merged(&schemas, &[a, &inner]), &schemas), &expected, "grouped otherwise");
        let mut model = Model::new(replicas[0].model.site(), &schemas);
        for change in dumps.iter().flatten() {
            model.merge(change);
        }
        assert_same(&model.state(), &expected, "model");

        // What a replica holds already it does not store again.
        let mut engine = merged(&schemas, &[a, b, c]);
        let version = engine.db_version().unwrap();
        merge(&mut engine, b);
        assert_eq!(engine.db_version().unwrap(), version, "a merge of known changes took a version");
    });
}

/// Copies, shuffles and cuts.
fn mangled(rng: &mut Rng, dumps: &[Vec<Change>]) -> Vec<Vec<Change>> {
    let mut cells: Vec<Change> = dumps.iter().flatten().cloned().collect();
    let again = rng.usize(..=cells.len() / 4);
    cells.extend(rng.choose_multiple(cells.clone(), again));
    rng.shuffle(&mut cells);
    let mut batches = Vec::new();
    while !cells.is_empty() {
        let size = rng.usize(1..=12).min(cells.len());
        batches.push(cells.split_off(cells.len() - size));
    }
    batches
}

#[test]
fn merge_does_not_depend_on_messages_or_the_order_of_cells() {
    let schemas = schemas();
    for_seeds(0x5aff1e, 20, |rng| {
        let replicas = replicas(rng, &schemas, 3);
        let dumps: Vec<Vec<Change>> = replicas.iter().map(|replica| dump(&replica.engine)).collect();
        let whole: Vec<&[Change]> = dumps.iter().map(Vec::as_slice).collect();
        let expected = state(&merged(&schemas, &whole), &schemas);
        for _ in 0..2 {
            let batches = mangled(rng, &dumps);
            let mut fresh = engine(&schemas);
            let mut model = Model::new(fresh.site().unwrap(), &schemas);
            for batch in &batches {
                merge(&mut fresh, batch);
                for change in batch {
                    model.merge(change);
                }
                assert_same(&state(&fresh, &schemas), &model.state(), "engine against model on the way");
            }
            assert_origins_complete(&fresh);
            assert_same(&state(&fresh, &schemas), &expected, "shuffled");
        }
    });
}

#[test]
fn native_merge_equals_plain_sql() {
    let schemas = schemas();
    for_seeds(0x591, 20, |rng| {
        let replicas = replicas(rng, &schemas, 3);
        let dumps: Vec<Vec<Change>> = replicas.iter().map(|replica| dump(&replica.engine)).collect();
        let batches = if rng.bool() { mangled(rng, &dumps) } else { dumps };
        let (mut native, by_sql) = (engine(&schemas), engine(&schemas));
        let breaks_ties = rng.bool();
        for engine in [&native, &by_sql] {
            break_ties_by_site(engine, breaks_ties);
        }
        for batch in &batches {
            merge(&mut native, batch);
            let in_transaction = rng.bool();
            if in_transaction {
                by_sql.connection().execute_batch("BEGIN").unwrap();
            }
            merge_by_sql(by_sql.connection(), batch);
            if in_transaction {
                by_sql.connection().execute_batch("COMMIT").unwrap();
            }
        }
        assert_same(&state(&native, &schemas), &state(&by_sql, &schemas), "native against SQL");
        assert_origins_complete(&by_sql);
        assert_eq!(authored(&native), authored(&by_sql));
    });
}

fn break_ties_by_site(engine: &Engine, yes: bool) {
    let sql = format!("SELECT crsql_config_set('merge-equal-values', {})", i64::from(yes));
    assert_eq!(ask::<i64>(engine.connection(), &sql), i64::from(yes));
}

/// What an engine holds, and by whom. Without first births: see [`State`].
fn authored(engine: &Engine) -> BTreeSet<(String, SiteId)> {
    let is_first_birth = |change: &&Change| change.column == Column::Row && change.causal_length == CausalLength::FIRST;
    let changes = dump(engine);
    changes.iter().filter(|change| !is_first_birth(change)).map(|change| (identity(change), change.site)).collect()
}

/// BUG-4 and MRG-12: with `merge-equal-values`, replicas agree on authors, too; without it, who comes first stays.
#[test]
fn replicas_that_break_ties_by_site_agree_on_authors() {
    let schemas = schemas();
    for_seeds(0xa47402, 20, |rng| {
        let mut replicas = replicas(rng, &schemas, 3);
        for replica in &replicas {
            break_ties_by_site(&replica.engine, true);
        }
        for _ in 0..2 {
            for (sender, receiver) in [(0, 1), (1, 2), (2, 1), (1, 0), (0, 2), (2, 0)] {
                let changes = dump(&replicas[sender].engine);
                replicas[receiver].merge(&changes);
            }
        }
        for replica in &replicas {
            replica.check(&schemas);
            assert_eq!(authored(&replica.engine), authored(&replicas[0].engine));
        }
    });
}

/// MRG-16.
#[test]
fn replicas_that_exchange_everything_converge() {
    let schemas = schemas();
    for_seeds(0xa11, 20, |rng| {
        let count = rng.usize(2..=4);
        let mut replicas = replicas(rng, &schemas, count);
        for round in 0..3 {
            for (sender, receiver) in (0..count).flat_map(|a| (0..count).map(move |b| (a, b))) {
                if sender == receiver || (round == 0 && rng.bool()) {
                    continue;
                }
                let since = replicas[receiver].engine.cursor().unwrap();
                // The cursor of a receiver that stores none of the sender's covers nothing but its own writes.
                let changes: Vec<Change> =
                    replicas[sender].engine.changes_since(&since).flat_map(|c| c.unwrap().changes).collect();
                replicas[receiver].merge(&changes);
                if round == 0 {
                    let more = rng.usize(..4);
                    replicas[receiver].write(rng, &schemas, more);
                }
            }
        }
        for replica in &replicas {
            replica.check(&schemas);
            assert_same(&state(&replica.engine, &schemas), &state(&replicas[0].engine, &schemas), "after the exchange");
        }
    });
}

/// A Litemesh peer as far as its engine goes: it reads others in their local order, and may vanish for good.
struct Peer {
    engine: Engine,
    site: SiteId,
    is_alive: bool,
    recursive_triggers: bool,
}

/// What a sender knows of a link while it lasts.
struct Link {
    place: LocalPlace,
    /// Up to where the parts lead that were sent of a version.
    part: Option<Place>,
    covered: Cursor,
    /// The sender's local versions that came over the same link.
    echoes: Vec<(DbVersion, DbVersion)>,
}

/// Peers, their links by `(sender, receiver)`, and every change that was ever written, as its author wrote it.
struct Network<'a> {
    schemas: &'a [Schema],
    peers: Vec<Peer>,
    links: BTreeMap<(usize, usize), Link>,
    written: Vec<Change>,
    folder: TempDir,
}

impl<'a> Network<'a> {
    fn new(rng: &mut Rng, schemas: &'a [Schema]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut network = Self { schemas, peers: Vec::new(), links: BTreeMap::new(), written: Vec::new(), folder };
        for peer in 0..rng.usize(3..=4) {
            let recursive_triggers = rng.bool();
            drop(attach(Connection::open(network.path(peer)).unwrap()));
            let engine = network.open(peer, recursive_triggers);
            create(&engine, schemas);
            let site = engine.site().unwrap();
            network.peers.push(Peer { engine, site, is_alive: true, recursive_triggers });
        }
        network
    }

    fn path(&self, peer: usize) -> PathBuf {
        self.folder.path().join(format!("{peer}.db"))
    }

    fn open(&self, peer: usize, recursive_triggers: bool) -> Engine {
        let engine = Engine::open(self.path(peer)).unwrap();
        // Nothing here outlives the machine.
        engine.connection().pragma_update(None, "synchronous", "OFF").unwrap();
        engine.connection().pragma_update(None, "recursive_triggers", recursive_triggers).unwrap();
        engine
    }

    /// Closes a database and opens it again: whatever was only in memory is gone.
    fn restart(&mut self, peer: usize) {
        self.break_links(peer);
        let engine = self.open(peer, self.peers[peer].recursive_triggers);
        let before = std::mem::replace(&mut self.peers[peer].engine, engine);
        let engine = &self.peers[peer].engine;
        assert_eq!(engine.cursor().unwrap(), before.cursor().unwrap());
        drop(before);
    }

    fn break_links(&mut self, peer: usize) {
        self.links.retain(|(sender, receiver), _| *sender != peer && *receiver != peer);
    }

    fn alive(&self) -> Vec<usize> {
        (0..self.peers.len()).filter(|peer| self.peers[*peer].is_alive).collect()
    }

    fn write(&mut self, rng: &mut Rng, peer: usize) {
        let engine = &self.peers[peer].engine;
        let before = engine.db_version().unwrap();
        let in_transaction = rng.u8(..3) == 0;
        if in_transaction {
            engine.connection().execute_batch("BEGIN").unwrap();
        }
        for _ in 0..if in_transaction { rng.usize(1..5) } else { 1 } {
            let is_undone = in_transaction && rng.u8(..3) == 0;
            if is_undone {
                engine.connection().execute_batch("SAVEPOINT undone").unwrap();
            }
            execute(engine, self.schemas, &Statement::random(rng, self.schemas));
            if is_undone {
                engine.connection().execute_batch("ROLLBACK TO undone; RELEASE undone").unwrap();
            }
        }
        if in_transaction {
            engine.connection().execute_batch("COMMIT").unwrap();
        }
        let own = format!("WHERE site_id = crsql_site_id() AND db_version > {before}");
        self.written.extend(select_changes(engine.connection(), &own));
    }

    /// Sends the next page of a link. `true` where it brought the receiver to all that the sender holds.
    fn send_page(&mut self, sender: usize, receiver: usize, limits: PageLimits) -> bool {
        let from = self.peers[sender].site;
        let open = |receiver: &Peer| {
            let staged = receiver.engine.staged(from).unwrap().reach;
            let position = staged.position.version;
            let place =
                staged.place.as_ref().and_then(LocalPlace::from_inside).filter(|place| place.position() >= position);
            Link {
                part: place.as_ref().and_then(LocalPlace::to_inside),
                place: place.unwrap_or_else(|| LocalPlace::after(position)),
                covered: receiver.engine.cursor().unwrap(),
                echoes: Vec::new(),
            }
        };
        let link = self.links.entry((sender, receiver)).or_insert_with(|| open(&self.peers[receiver]));
        let filter = LocalFilter { covered: &link.covered, echoes: &link.echoes, ..LocalFilter::default() };
        let page = self.peers[sender].engine.read_local(&link.place, &filter, limits).unwrap();
        link.place = page.place.clone();
        let part = link.part.take();
        link.part = page.place.to_inside();
        let engine = &mut self.peers[receiver].engine;
        let is_staged = engine.staged(from).unwrap().messages > 0;
        // Where a transaction is begun anew, what was staged of it is forgotten.
        let after = Reach { place: part, ..engine.staged(from).unwrap().reach };
        if let Some(until) = &link.part {
            // A part of a version that is larger than a page: nobody may see it before the rest is here.
            let until = Reach { place: Some(until.clone()), ..after.clone() };
            engine.stage(from, &after, &until, &page.changes, u64::MAX).unwrap();
            return false;
        }
        let is_complete = page.complete.is_some();
        let progress = MergeProgress {
            position: Some((from, page.position())),
            completes: is_staged.then_some((from, after)),
            cursor: page.complete.unwrap_or_default(),
            ..MergeProgress::default()
        };
        let merged = self.peers[receiver].engine.merge(&page.changes, &progress).unwrap();
        if let (Some(range), Some(back)) = (merged.local_versions, self.links.get_mut(&(receiver, sender))) {
            back.echoes.push(range);
        }
        is_complete
    }

    /// The claim of a cursor: of everything that it covers, the peer holds it or something that beat it.
    #[track_caller]
    fn check_claim(&self, peer: usize) {
        let peer = &self.peers[peer];
        let (held, cursor) = (state(&peer.engine, self.schemas), peer.engine.cursor().unwrap());
        for change in self.written.iter().filter(|change| cursor.covers(&change.site, change.db_version)) {
            let (key, length) = (change.key.as_bytes(), change.causal_length.get());
            let held_length = held.causal_length(&change.table, key);
            let is_held = match held_length.cmp(&length) {
                Ordering::Less => false,
                Ordering::Greater => true,
                Ordering::Equal if change.column == Column::Row => true,
                Ordering::Equal => held.clock(&change.table, key, change.column.as_str()).is_some_and(|clock| {
                    let versions = clock.1.cmp(&change.col_version.get());
                    versions.then_with(|| clock.0.merge_cmp(&change.value)).is_ge()
                }),
            };
            assert!(is_held, "{} claims {change:?} and holds neither it nor better", peer.site);
        }
        assert_origins_complete(&peer.engine);
    }

    fn step(&mut self, rng: &mut Rng) {
        let alive = self.alive();
        let mut two = rng.choose_multiple(alive.iter().copied(), 2);
        rng.shuffle(&mut two);
        let (one, other) = (two[0], two[1]);
        match rng.u8(..100) {
            0..30 => {
                self.write(rng, one);
                self.check_claim(one);
            }
            30..85 => {
                let limits = PageLimits { changes_max: rng.usize(1..8), bytes_max: 1 << 20, stretch: rng.usize(1..4) };
                self.send_page(one, other, limits);
                self.check_claim(other);
            }
            85..93 => {
                self.links.remove(&(one, other));
                self.links.remove(&(other, one));
            }
            93..95 => self.restart(one),
            95..98 => {
                self.peers[one].engine.prune_origins(DbVersion::ZERO, rng.usize(1..50)).unwrap();
                self.check_claim(one);
            }
            _ if alive.len() > 2 => {
                self.peers[one].is_alive = false;
                self.break_links(one);
            }
            _ => {}
        }
    }

    /// The survivors exchange all that they have, over new links, and must agree.
    fn heal(&mut self) {
        self.links.clear();
        let alive = self.alive();
        for _ in 0..alive.len() {
            for (sender, receiver) in alive.iter().flat_map(|a| alive.iter().map(move |b| (*a, *b))) {
                while sender != receiver
                    && !self.send_page(
                        sender,
                        receiver,
                        PageLimits { changes_max: 100, bytes_max: 1 << 20, stretch: 1 },
                    )
                {}
            }
        }
        let states: Vec<State> = alive.iter().map(|peer| state(&self.peers[*peer].engine, self.schemas)).collect();
        for (peer, held) in alive.iter().zip(&states) {
            self.check_claim(*peer);
            assert_same(held, &states[0], "survivors");
        }
    }
}

/// The cursor rule (docs/storage.md), on links that break between pages, with peers that vanish in the middle.
#[test]
fn a_cursor_never_claims_what_its_peer_lacks_and_survivors_converge() {
    let all = schemas();
    for_seeds(0xc1a1, 60, |rng| {
        let schemas = rng.choose_multiple(all.iter().cloned(), 2);
        let mut network = Network::new(rng, &schemas);
        for _ in 0..120 {
            network.step(rng);
        }
        network.heal();
    });
}
