//! N peers on links that break, with random histories: in the end all hold the same rows.
//!
//! The topology and the histories come from a seed. What runs between them, threads and tasks, does not: a failing seed is a
//! strong hint, not a replay. (`crates/engine/tests/merge_laws.rs` replays exactly.)

use std::time::Duration;

use fastrand::Rng;
use litemesh::{Database, Peer};
use litemesh_testkit::{Link, MemoryTransport, Schema, Statement, connect, for_seeds, quote, schemas};

const PATIENCE: Duration = Duration::from_secs(60);

struct Node {
    db: Database,
    peer: Peer,
    transport: MemoryTransport,
}

impl Node {
    async fn start(schemas: &[Schema]) -> Self {
        let db = Database::open_in_memory().unwrap();
        for schema in schemas {
            db.lock().connection().execute_batch(schema.create).unwrap();
            db.lock().replicate(&schema.name).unwrap();
        }
        let transport = MemoryTransport::new();
        let peer = Peer::builder(db.clone()).transport(transport.clone()).start().await.unwrap();
        Self { db, peer, transport }
    }

    /// A statement that breaks a constraint is none.
    fn execute(&self, schemas: &[Schema], statement: &Statement) {
        let _ = self.db.lock().connection().execute(&statement.to_sql(schemas), []);
    }

    fn rows(&self, schemas: &[Schema]) -> Vec<String> {
        let engine = self.db.lock();
        let mut rows = Vec::new();
        for schema in schemas {
            let columns = schema
                .keys
                .iter()
                .map(|key| key.name.to_owned())
                .chain(schema.cells.iter().map(|c| c.name.to_string()));
            let columns: Vec<String> = columns.map(|name| format!("quote({})", quote(&name))).collect();
            let sql = format!("SELECT {} FROM {} ORDER BY 1", columns.join(" || ' ' || "), quote(&schema.name));
            let mut statement = engine.connection().prepare(&sql).unwrap();
            let found = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
            rows.extend(found.map(|row| format!("{} {}", schema.name, row.unwrap())));
        }
        rows
    }
}

/// Links between nodes by index.
type Links = Vec<(usize, usize, Link)>;

/// A ring of Litemesh peers with one chord, and wire v1 leaves on each of them: no cycle has a v1 link in it.
fn topology(rng: &mut Rng) -> (usize, Links) {
    let ring = rng.usize(2..=4);
    let mut links: Links =
        (0..ring).map(|n| (n, (n + 1) % ring, Link::Litemesh)).filter(|(a, b, _)| a < b || ring > 2).collect();
    if ring == 4 {
        links.push((0, 2, Link::Litemesh));
    }
    let leaves = rng.usize(1..=2);
    links.extend((0..leaves).map(|leaf| (leaf % ring, ring + leaf, Link::V1)));
    (ring + leaves, links)
}

/// A hub whose peers are enough to be woken in beats and to share what is read.
fn star(rng: &mut Rng) -> (usize, Links) {
    let leaves = rng.usize(6..=12);
    (leaves + 1, (1..=leaves).map(|leaf| (0, leaf, Link::Litemesh)).collect())
}

async fn converge(rng: &mut Rng, topology: fn(&mut Rng) -> (usize, Links)) {
    let schemas = schemas();
    let (count, links) = topology(rng);
    let mut nodes = Vec::new();
    for _ in 0..count {
        nodes.push(Node::start(&schemas).await);
    }
    for _ in 0..4 {
        for (a, b, link) in &links {
            // A link that stands already is replaced, as a client that dials again replaces its connection.
            connect(&nodes[*a].transport, &nodes[*b].transport, *link).await.unwrap();
        }
        for _ in 0..rng.usize(5..40) {
            let node = rng.usize(0..count);
            nodes[node].execute(&schemas, &Statement::random(rng, &schemas));
            if rng.u8(..) < 16 {
                nodes[rng.usize(0..count)].transport.disconnect_all().await;
            }
            tokio::task::yield_now().await;
        }
        for node in &nodes {
            node.transport.disconnect_all().await;
        }
    }
    for (a, b, link) in &links {
        connect(&nodes[*a].transport, &nodes[*b].transport, *link).await.unwrap();
    }
    let mut events: Vec<_> = nodes.iter().map(|node| node.peer.events()).collect();
    let equal = async {
        loop {
            let states: Vec<_> = nodes.iter().map(|node| node.rows(&schemas)).collect();
            if states.windows(2).all(|pair| pair[0] == pair[1]) {
                return;
            }
            // Something must still happen somewhere, or they never become equal.
            let waits = events.iter_mut().map(|events| Box::pin(events.recv()));
            let _ = futures_util::future::select_all(waits).await.0;
        }
    };
    if tokio::time::timeout(PATIENCE, equal).await.is_err() {
        let states: Vec<_> = nodes.iter().map(|node| node.rows(&schemas)).collect();
        for (n, state) in states.iter().enumerate() {
            let missing: Vec<_> = states[0].iter().filter(|row| !state.contains(row)).collect();
            let extra: Vec<_> = state.iter().filter(|row| !states[0].contains(row)).collect();
            eprintln!("node {n}: lacks {missing:?}, has {extra:?} beyond node 0");
        }
        panic!("{count} nodes over {links:?} do not converge");
    }
    for node in &nodes {
        node.peer.stop().await;
    }
}

#[test]
fn peers_converge_whatever_breaks() {
    for_seeds(1, 25, |rng| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(converge(rng, topology));
    });
}

#[test]
fn the_peers_of_a_hub_converge_whatever_breaks() {
    for_seeds(100, 10, |rng| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(converge(rng, star));
    });
}
