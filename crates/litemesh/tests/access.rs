//! Rights of remotes, on real databases over the memory transport.

use std::time::Duration;

use litemesh::proto::{Access, Rights};
use litemesh::{Database, Event, Events, Peer};
use litemesh_testkit::{Link, MemoryTransport, connect_with};

const SCHEMA: &str = "CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT);
     CREATE TABLE salary (id TEXT PRIMARY KEY NOT NULL, title TEXT);";

/// Long enough for any machine; a test that needs it fails.
const PATIENCE: Duration = Duration::from_secs(60);

struct Node {
    db: Database,
    peer: Peer,
    events: Events,
    transport: MemoryTransport,
}

impl Node {
    async fn start() -> Self {
        let db = Database::open_in_memory().unwrap();
        db.lock().connection().execute_batch(SCHEMA).unwrap();
        for table in ["todo", "salary"] {
            db.lock().replicate(table).unwrap();
        }
        let transport = MemoryTransport::new();
        let builder = Peer::builder(db.clone()).transport(transport.clone());
        let events = builder.events();
        Self { db, peer: builder.start().await.unwrap(), events, transport }
    }

    fn insert(&self, table: &str, id: &str) {
        self.db.lock().connection().execute_batch(&format!("INSERT INTO {table} VALUES ('{id}', 'x')")).unwrap();
    }

    fn ids(&self, table: &str) -> Vec<String> {
        let engine = self.db.lock();
        let mut statement = engine.connection().prepare(&format!("SELECT id FROM {table} ORDER BY 1")).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    async fn wait(&mut self, what: &str, found: impl Fn(&Event) -> bool) {
        let wait = async { while !found(&self.events.recv().await.unwrap()) {} };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("no event: {what}"));
    }

    async fn wait_for(&mut self, table: &str, ids: &[&str]) {
        let wait = async {
            while self.ids(table) != ids {
                self.events.recv().await.unwrap();
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            panic!("waiting for {ids:?} in {table}, have {:?}", self.ids(table));
        }
    }

    async fn caught_up(&mut self) {
        self.wait("eose", |event| matches!(event, Event::Eose { .. })).await;
    }
}

async fn join(hub: &Node, leaf: &Node, access: Access) {
    connect_with(&hub.transport, &leaf.transport, Link::Litemesh, access).await.unwrap();
}

/// `known-failures.md` E5: the original has no readers.
#[tokio::test]
async fn a_reader_hears_everything_and_changes_nothing() {
    let (hub, mut leaf) = (Node::start().await, Node::start().await);
    hub.insert("todo", "hub");
    leaf.insert("todo", "leaf");
    join(&hub, &leaf, Access::new(Rights::Read)).await;
    // Nothing is wanted of it, so it is done with that at once.
    leaf.wait("served", |event| matches!(event, Event::Served { .. })).await;
    leaf.wait_for("todo", &["hub", "leaf"]).await;
    leaf.insert("todo", "leaf, later");
    leaf.peer.check_local_changes().await.unwrap();
    hub.insert("todo", "hub, later");
    leaf.wait_for("todo", &["hub", "hub, later", "leaf", "leaf, later"]).await;
    assert_eq!(hub.ids("todo"), ["hub", "hub, later"]);
    let (seen, status) = (hub.peer.status(), leaf.peer.status());
    assert_eq!((seen[0].messages_refused, seen[0].changes_received, status[0].changes_sent), (0, 0, 0));
    assert_eq!((seen[0].access.rights(), status[0].access.rights()), (Rights::Read, Rights::Write));
    assert!(!hub.peer.cursor().await.unwrap().contains(&leaf.peer.id()));
}

/// `known-failures.md` E5: the original has all or nothing.
#[tokio::test]
async fn some_tables_go_both_ways_and_the_others_neither() {
    let (mut hub, mut leaf) = (Node::start().await, Node::start().await);
    for table in ["todo", "salary"] {
        hub.insert(table, "hub");
        leaf.insert(table, "leaf");
    }
    join(&hub, &leaf, Access::FULL.only(["TODO"]).unwrap()).await;
    hub.wait_for("todo", &["hub", "leaf"]).await;
    leaf.wait_for("todo", &["hub", "leaf"]).await;
    for table in ["salary", "todo"] {
        hub.insert(table, "live");
    }
    leaf.wait_for("todo", &["hub", "leaf", "live"]).await;
    assert_eq!(
        (hub.ids("salary"), leaf.ids("salary")),
        (vec!["hub".to_owned(), "live".to_owned()], vec!["leaf".to_owned()])
    );
    // Neither claims what it was not sent, here or to anybody else.
    assert!(!leaf.peer.cursor().await.unwrap().contains(&hub.peer.id()));
    assert!(!hub.peer.cursor().await.unwrap().contains(&leaf.peer.id()));
    assert_eq!(hub.peer.status()[0].messages_refused, 0);
}

/// A position of some tables says nothing of those that are added later.
#[tokio::test]
async fn more_rights_bring_what_was_held_back() {
    let (mut hub, mut leaf) = (Node::start().await, Node::start().await);
    for table in ["todo", "salary"] {
        hub.insert(table, "hub");
        leaf.insert(table, "leaf");
    }
    let todo = Access::FULL.only(["todo"]).unwrap();
    join(&hub, &leaf, todo.clone()).await;
    leaf.caught_up().await;
    hub.wait_for("todo", &["hub", "leaf"]).await;
    let received = leaf.peer.status()[0].changes_received;
    assert_eq!(received, 1);

    // The same again goes on where it was.
    leaf.transport.disconnect_all().await;
    leaf.wait("disconnect", |event| matches!(event, Event::Disconnect { .. })).await;
    join(&hub, &leaf, todo).await;
    leaf.caught_up().await;
    assert_eq!(leaf.peer.status()[0].changes_received, 0);

    leaf.transport.disconnect_all().await;
    join(&hub, &leaf, Access::FULL).await;
    leaf.wait_for("salary", &["hub", "leaf"]).await;
    hub.wait_for("salary", &["hub", "leaf"]).await;
    leaf.caught_up().await;
    assert!(leaf.peer.cursor().await.unwrap().contains(&hub.peer.id()));
}

#[tokio::test]
async fn a_v1_remote_with_some_tables_is_refused() {
    let (hub, leaf) = (Node::start().await, Node::start().await);
    let access = Access::FULL.only(["todo"]).unwrap();
    let refused = connect_with(&hub.transport, &leaf.transport, Link::V1, access).await.unwrap_err();
    assert!(refused.to_string().contains("needs a Litemesh peer"), "{refused}");
    assert!(hub.peer.status().is_empty());
}

/// A reader of wire v1, which answers nobody's question and is asked none.
#[tokio::test]
async fn a_v1_reader_is_served() {
    let (hub, mut leaf) = (Node::start().await, Node::start().await);
    hub.insert("todo", "hub");
    leaf.insert("todo", "leaf");
    connect_with(&hub.transport, &leaf.transport, Link::V1, Access::new(Rights::Read)).await.unwrap();
    leaf.wait_for("todo", &["hub", "leaf"]).await;
    leaf.caught_up().await;
    assert_eq!(hub.ids("todo"), ["hub"]);
}
