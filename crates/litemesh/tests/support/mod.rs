//! A peer on the memory transport, and what tests ask of it.
#![allow(dead_code, missing_docs, unreachable_pub)] // each test binary uses a part of it

use std::time::Duration;

use litemesh::{Database, Event, Events, Peer};
use litemesh_testkit::MemoryTransport;

pub const SCHEMA: &str = "CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT, done INTEGER);
     CREATE TABLE tag (name TEXT NOT NULL, todo TEXT NOT NULL, PRIMARY KEY (name, todo));";

/// Long enough for any machine; a test that needs it fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Node {
    pub db: Database,
    pub peer: Peer,
    pub events: Events,
    pub transport: MemoryTransport,
}

impl Node {
    pub async fn start() -> Self {
        Self::start_on(database()).await
    }

    pub async fn start_on(db: Database) -> Self {
        let transport = MemoryTransport::new();
        let builder = Peer::builder(db.clone()).transport(transport.clone());
        let events = builder.events();
        Self { db, peer: builder.start().await.unwrap(), events, transport }
    }

    pub fn execute(&self, sql: &str) {
        self.db.lock().connection().execute_batch(sql).unwrap();
    }

    pub fn rows(&self) -> Vec<String> {
        let engine = self.db.lock();
        let mut statement = engine
            .connection()
            .prepare(
                "SELECT 'todo ' || quote(id) || ' ' || quote(title) || ' ' || quote(done) FROM todo
                 UNION ALL SELECT 'tag ' || quote(name) || ' ' || quote(todo) FROM tag ORDER BY 1",
            )
            .unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    pub async fn wait(&mut self, what: &str, found: impl Fn(&Event) -> bool) {
        let wait = async { while !found(&self.events.recv().await.unwrap()) {} };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("no event: {what}"));
    }

    /// How many changes came over the connection.
    pub fn received(&self) -> u64 {
        self.peer.status().first().map_or(0, |remote| remote.changes_received)
    }

    /// Waits until the first `count` messages of a connection came, whether they can be seen or not.
    pub async fn wait_for_messages(&self, count: usize) {
        let mut counts = std::collections::BTreeSet::new();
        let wait = async {
            while counts.len() <= count {
                counts.insert(self.received());
                tokio::task::yield_now().await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "messages that come: {counts:?}");
    }

    /// Waits until the rows are these.
    pub async fn wait_for_rows(&mut self, rows: &[String]) {
        let wait = async {
            while self.rows() != rows {
                self.events.recv().await.unwrap();
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            panic!("waiting for {rows:#?}, have {:#?}", self.rows());
        }
    }
}

pub fn database() -> Database {
    let db = Database::open_in_memory().unwrap();
    db.lock().connection().execute_batch(SCHEMA).unwrap();
    for table in ["todo", "tag"] {
        db.lock().replicate(table).unwrap();
    }
    db
}
