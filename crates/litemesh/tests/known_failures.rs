//! How the original loses or damages data (docs/testing.md, "Known failures of the original"), where no other test shows that
//! we do not. Each test says which entry it stands for.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use litemesh::proto::{
    Access, BoxFuture, CausalLength, Change, ColVersion, Column, DbVersion, PackedKey, PeerCallbacks, PeerMessage,
    Refusal, Remote, Seq, SiteId, SyncRequest, Transport, TransportError, Unverified, Value,
};
use litemesh::{Database, Event, Peer};
use litemesh_http::{HttpClient, HttpServer};
use litemesh_testkit::{Link, MemoryTransport, connect};
use support::{Node, PATIENCE, database};

const BOTH: [Link; 2] = [Link::Litemesh, Link::V1];

async fn pair(link: Link) -> (Node, Node) {
    let nodes = (Node::start().await, Node::start().await);
    connect(&nodes.0.transport, &nodes.1.transport, link).await.unwrap();
    nodes
}

fn file_database(path: &Path) -> Database {
    let db = Database::open(path).unwrap();
    db.lock().connection().execute_batch(support::SCHEMA).unwrap();
    for table in ["todo", "tag"] {
        db.lock().replicate(table).unwrap();
    }
    db
}

/// `known-failures.md` A5: nothing of a transaction is sent before it is committed, and nothing of one that is rolled back, ever.
#[tokio::test]
async fn a5_only_what_is_committed_is_sent() {
    for link in BOTH {
        // In memory, the peer's connection waits for the application's transaction.
        let folder = tempfile::tempdir().unwrap();
        let db = file_database(&folder.path().join("a.db"));
        let (mut a, mut b) = (Node::start_on(db).await, Node::start().await);
        connect(&a.transport, &b.transport, link).await.unwrap();
        // What the peer stores of a catch-up would wait for the transaction, and the test waits for the peer.
        for node in [&mut a, &mut b] {
            node.wait("caught up", |event| matches!(event, Event::Eose { .. })).await;
        }
        a.execute("BEGIN; INSERT INTO todo VALUES ('1', 'open', 0)");
        tokio::time::timeout(PATIENCE, a.peer.check_local_changes()).await.unwrap().unwrap();
        a.execute("INSERT INTO todo VALUES ('2', 'open', 0); ROLLBACK; INSERT INTO todo VALUES ('3', 'real', 0)");
        b.wait_for_rows(&a.rows()).await;
        assert_eq!(b.rows(), ["todo '3' 'real' 0"]);
    }
}

/// `known-failures.md` A6: what could not be recorded was not written either, and what is written later reaches everybody.
#[tokio::test]
async fn a6_a_full_disk_fails_the_write_and_nothing_else() {
    let (a, mut b) = pair(Link::Litemesh).await;
    a.execute("INSERT INTO todo VALUES ('1', 'before', 0)");
    b.wait_for_rows(&a.rows()).await;
    {
        let engine = a.db.lock();
        let connection = engine.connection();
        let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
        connection.execute_batch(&format!("PRAGMA max_page_count = {pages}")).unwrap();
        let full = connection.execute("INSERT INTO todo VALUES ('2', hex(zeroblob(100000)), 0)", []);
        assert!(full.unwrap_err().to_string().contains("full"));
        connection.execute_batch("PRAGMA max_page_count = 1000000").unwrap();
    }
    a.execute("INSERT INTO todo VALUES ('3', 'after', 0)");
    b.wait_for_rows(&a.rows()).await;
    assert_eq!(b.rows().len(), 2);
}

/// `known-failures.md` A7: a sender that ends with a backlog sends the rest when it starts again.
#[tokio::test]
async fn a7_a_sender_that_ends_with_a_backlog_sends_the_rest_later() {
    for link in BOTH {
        let (a, mut b) = (Node::start().await, Node::start().await);
        for first in (0..30_000).step_by(3000) {
            a.execute(&format!(
                "WITH RECURSIVE n(i) AS (VALUES ({first}) UNION ALL SELECT i + 1 FROM n WHERE i < {first} + 2999)
                 INSERT INTO todo SELECT i, 'title ' || i, i FROM n"
            ));
        }
        connect(&a.transport, &b.transport, link).await.unwrap();
        b.wait_for_messages(1).await;
        a.peer.stop().await;
        assert!(b.rows().len() < 30_000, "some of it was still to come");
        let a = Node::start_on(a.db.clone()).await;
        connect(&a.transport, &b.transport, link).await.unwrap();
        b.wait_for_rows(&a.rows()).await;
    }
}

/// `known-failures.md` A9: every value arrives as it is, type and bits.
#[tokio::test]
async fn a9_values_arrive_exactly() {
    const VALUES: &str = "INSERT INTO thing VALUES
        (1, x'00ff'), (2, 9e999), (3, -9e999), (4, 9007199254740993), (5, -9223372036854775808), (6, 9223372036854775807),
        (7, 1.0), (8, -0.0), (9, 5e-324), (10, 1.7976931348623157e308), (11, 'ü'), (12, ''), (13, x''), (14, NULL), (15, '1'), (16, 2147483648)";
    // What JSON cannot carry: text with NUL, and text that is no UTF-8.
    const TEXTS: &str = "INSERT INTO thing VALUES (20, CAST(x'610062' AS TEXT)), (21, CAST(x'fffe80' AS TEXT))";
    let dump = |node: &Node| -> Vec<(i64, String, Vec<u8>, Option<u64>)> {
        let engine = node.db.lock();
        let sql = "SELECT id, typeof(x), CAST(x AS BLOB), x FROM thing ORDER BY id";
        let mut statement = engine.connection().prepare(sql).unwrap();
        let row = |row: &litemesh::engine::rusqlite::Row<'_>| {
            let real = row.get::<_, f64>(3).ok().map(f64::to_bits);
            Ok((row.get(0)?, row.get(1)?, row.get::<_, Option<Vec<u8>>>(2)?.unwrap_or_default(), real))
        };
        statement.query_map([], row).unwrap().map(Result::unwrap).collect()
    };
    for is_litemesh in [true, false] {
        let node = || async {
            let db = database();
            db.lock().connection().execute_batch("CREATE TABLE thing (id INTEGER PRIMARY KEY NOT NULL, x)").unwrap();
            db.lock().replicate("thing").unwrap();
            db
        };
        let (server, client) = (node().await, node().await);
        let transport = HttpServer::new();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let hub = Peer::builder(server.clone()).transport(transport.clone()).start().await.unwrap();
        let serving = tokio::spawn(async move { transport.serve(listener, std::future::pending()).await });
        let builder = Peer::builder(client.clone()).transport(HttpClient::builder(url).announce(is_litemesh).build());
        let mut events = builder.events();
        let peer = builder.start().await.unwrap();
        client.lock().connection().execute_batch(VALUES).unwrap();
        if is_litemesh {
            client.lock().connection().execute_batch(TEXTS).unwrap();
        }
        let hub = Node { db: server, peer: hub, events: peer.events(), transport: MemoryTransport::new() };
        let leaf = Node { db: client, events: peer.events(), peer, transport: MemoryTransport::new() };
        let mut changes = hub.peer.events();
        while dump(&hub) != dump(&leaf) {
            tokio::time::timeout(PATIENCE, changes.recv()).await.unwrap().unwrap();
        }
        // And down again.
        hub.execute("UPDATE thing SET x = x'01' WHERE id = 1; INSERT INTO thing SELECT id + 100, x FROM thing");
        while dump(&hub) != dump(&leaf) {
            tokio::time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
        }
        leaf.peer.stop().await;
        hub.peer.stop().await;
        serving.abort();
    }
}

/// `known-failures.md` A11: a bulk import while a peer is still syncing.
#[tokio::test]
async fn a11_a_bulk_import_in_the_middle_of_a_sync_arrives() {
    for link in BOTH {
        let (a, mut b) = (Node::start().await, Node::start().await);
        a.execute(
            "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
             INSERT INTO todo SELECT 'old ' || i, 'x', i FROM n",
        );
        connect(&a.transport, &b.transport, link).await.unwrap();
        a.execute(
            "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 75000)
             INSERT INTO todo SELECT 'new ' || i, 'x', i FROM n",
        );
        b.wait_for_rows(&a.rows()).await;
    }
}

/// `known-failures.md` A10, A12: a connection that takes the place of another leaves nothing of it running, and a second request in the middle of an
/// answer loses nothing.
#[tokio::test]
async fn a12_a_new_connection_ends_the_old_one() {
    for link in BOTH {
        let (a, mut b) = (Node::start().await, Node::start().await);
        a.execute(
            "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
             INSERT INTO todo SELECT i, 'x', i FROM n",
        );
        for _ in 0..5 {
            connect(&a.transport, &b.transport, link).await.unwrap();
            a.execute("UPDATE todo SET done = done + 1 WHERE id IN ('1', '20000')");
        }
        b.wait_for_rows(&a.rows()).await;
        assert_eq!((a.peer.status().len(), b.peer.status().len()), (1, 1));
    }
}

/// `known-failures.md` A13: what was there before anything replicated is synced like the rest.
#[tokio::test]
async fn a13_data_that_was_there_before_is_synced() {
    let old = Database::open_in_memory().unwrap();
    old.lock().connection().execute_batch(support::SCHEMA).unwrap();
    old.lock().connection().execute_batch("INSERT INTO todo VALUES ('old', 'before replication', 0)").unwrap();
    for table in ["todo", "tag"] {
        old.lock().replicate(table).unwrap();
    }
    let (a, mut b) = (Node::start_on(old).await, Node::start().await);
    connect(&a.transport, &b.transport, Link::Litemesh).await.unwrap();
    b.wait_for_rows(&["todo 'old' 'before replication' 0".to_owned()]).await;
}

/// `known-failures.md` A14, A15: changes of a column that is not there are refused and nothing else is; they arrive once it is.
#[tokio::test]
async fn a14_a_column_that_only_one_side_has_holds_up_nothing_else() {
    for link in BOTH {
        let (a, mut b) = pair(link).await;
        let alter = |node: &Node| {
            node.db
                .lock()
                .alter("todo", |connection| connection.execute_batch("ALTER TABLE todo RENAME COLUMN title TO name"))
                .unwrap();
        };
        a.execute("INSERT INTO todo VALUES ('1', 'under the old name', 0)");
        b.wait("the row", |event| matches!(event, Event::Change { .. })).await;
        alter(&a);
        a.execute("UPDATE todo SET name = 'new' WHERE id = '1'");
        b.wait("a refusal", |event| matches!(event, Event::Error { message, .. } if message.contains("name"))).await;
        a.execute("INSERT INTO tag VALUES ('home', '1')");
        b.wait("the tag", |event| matches!(event, Event::Change { tables } if tables.contains("tag"))).await;
        alter(&b);
        b.execute("PRAGMA user_version = 1");
        b.peer.check_local_changes().await.unwrap();
        let is_there = || {
            let engine = b.db.lock();
            engine.connection().query_row("SELECT name FROM todo", [], |row| row.get::<_, String>(0)).unwrap() == "new"
        };
        let wait = async {
            while !is_there() {
                if a.peer.status().is_empty() {
                    // Over wire v1 it comes by a new connection.
                    connect(&a.transport, &b.transport, link).await.unwrap();
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap();
    }
}

fn change(key: PackedKey, site: SiteId) -> Change {
    Change {
        table: "todo".into(),
        key,
        column: Column::from("title"),
        value: Value::text("x"),
        col_version: ColVersion::new(1),
        db_version: DbVersion::new(1),
        site,
        causal_length: CausalLength::FIRST,
        seq: Seq::ZERO,
    }
}

/// A transport of which a test holds the other end: a remote that sends what it likes, and takes nothing unless it wants to.
#[derive(Clone, Default)]
struct Puppet {
    peer: Arc<std::sync::OnceLock<Arc<dyn PeerCallbacks>>>,
    /// What every message is answered with.
    refusal: Arc<std::sync::OnceLock<TransportError>>,
    is_stopped: Arc<AtomicBool>,
}

impl Transport for Puppet {
    fn name(&self) -> &str {
        "puppet"
    }
    fn start(&self, peer: Arc<dyn PeerCallbacks>) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(async move { self.peer.set(peer).map_err(|_| TransportError::AlreadyStarted) })
    }
    fn sync(&self, _: Remote, _: SyncRequest) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(async { Ok(()) })
    }
    /// Never taken, or refused.
    fn send(&self, _: Remote, _: PeerMessage) -> BoxFuture<'_, Result<(), TransportError>> {
        match self.refusal.get().cloned() {
            Some(refusal) => Box::pin(async { Err(refusal) }),
            None => Box::pin(std::future::pending()),
        }
    }
    fn close(&self, _: Remote) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { self.is_stopped.store(true, Ordering::Relaxed) })
    }
}

/// `known-failures.md` B5: a primary key of no bytes, and others that are none, are refused and harm nobody.
#[tokio::test]
async fn b5_keys_that_are_none_are_refused() {
    let puppet = Puppet::default();
    let db = database();
    let peer = Peer::builder(db.clone()).transport(puppet.clone()).start().await.unwrap();
    let site = SiteId::from_bytes([5; 16]);
    let remote = Remote { site, connection: Remote::next_connection(), is_litemesh: false };
    let callbacks = puppet.peer.get().unwrap();
    callbacks.connect(remote, Access::FULL).await.unwrap();
    for bytes in [&[][..], &[1], &[255], &[1, 0x0b], &[1, 0x0b, 200], &[2, 9, 1], &[1, 9, 1, 0], &[0]] {
        let changes = vec![change(PackedKey::from_bytes(bytes), site)];
        let message = PeerMessage::Changes { changes, schema_version: 0, progress: None };
        let refused = callbacks.receive(remote, Unverified::new(message)).await;
        assert!(matches!(refused, Err(Refusal::Invalid(_))), "{bytes:?}: {refused:?}");
    }
    let good = vec![change(PackedKey::pack(&[Value::text("1")]).unwrap(), site)];
    let message = PeerMessage::Changes { changes: good, schema_version: 0, progress: None };
    callbacks.receive(remote, Unverified::new(message)).await.unwrap();
    let count = |db: &Database| -> i64 {
        db.lock().connection().query_row("SELECT count(*) FROM todo", [], |row| row.get(0)).unwrap()
    };
    assert_eq!(count(&db), 1);
    peer.stop().await;
}

/// A remote that refuses a message for good is reported; one that has no room at the moment is only a lost connection.
#[tokio::test]
async fn only_what_stays_refused_is_an_error() {
    for (status, is_error) in [(413, true), (403, true), (429, false), (502, false), (503, false), (504, false)] {
        let puppet = Puppet::default();
        let refusal = TransportError::Refused { status, reason: "no".to_owned() };
        puppet.refusal.set(refusal).unwrap();
        let builder = Peer::builder(database()).transport(puppet.clone());
        let mut events = builder.events();
        let peer = builder.start().await.unwrap();
        let remote =
            Remote { site: SiteId::from_bytes([5; 16]), connection: Remote::next_connection(), is_litemesh: false };
        let callbacks = puppet.peer.get().unwrap();
        callbacks.connect(remote, Access::FULL).await.unwrap();
        callbacks.sync(remote, SyncRequest::default()).await.unwrap();
        let mut has_error = false;
        let ended = async {
            loop {
                match events.recv().await.unwrap() {
                    Event::Error { .. } => has_error = true,
                    Event::Disconnect { .. } => return,
                    _ => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, ended).await.unwrap();
        assert_eq!(has_error, is_error, "{status}");
        peer.stop().await;
    }
}

/// `known-failures.md` B2, B17, D9: a remote that takes nothing holds up nobody else.
#[tokio::test]
async fn b17_a_remote_that_takes_nothing_holds_up_nobody_else() {
    let (puppet, memory) = (Puppet::default(), MemoryTransport::new());
    let db = database();
    let builder = Peer::builder(db.clone()).transport(puppet.clone()).transport(memory.clone());
    let events = builder.events();
    let peer = builder.start().await.unwrap();
    let a = Node { db, peer, events, transport: memory };
    for number in 0..20 {
        let site = SiteId::from_bytes([100 + number; 16]);
        let is_litemesh = number % 2 == 0;
        let remote = Remote { site, connection: Remote::next_connection(), is_litemesh };
        let callbacks = puppet.peer.get().unwrap();
        callbacks.connect(remote, Access::FULL).await.unwrap();
        callbacks.sync(remote, SyncRequest::default()).await.unwrap();
    }
    let mut b = Node::start().await;
    connect(&a.transport, &b.transport, Link::Litemesh).await.unwrap();
    for number in 0..20 {
        a.execute(&format!(
            "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
             INSERT INTO todo SELECT {number} || '-' || i, 'x', i FROM n"
        ));
    }
    b.wait_for_rows(&a.rows()).await;
    a.peer.stop().await;
}

/// A commit does not wake a session that waits for its remote. Another schema does: what was held back for it is asked for.
#[tokio::test]
async fn who_waits_for_its_remote_hears_of_another_schema() {
    let (puppet, memory) = (Puppet::default(), MemoryTransport::new());
    let db = database();
    let builder = Peer::builder(db.clone()).transport(puppet.clone()).transport(memory.clone());
    let events = builder.events();
    let peer = builder.start().await.unwrap();
    let mut a = Node { db, peer, events, transport: memory };
    let callbacks = puppet.peer.get().unwrap();
    let remotes: Vec<Remote> = (100..108)
        .map(|number| Remote {
            site: SiteId::from_bytes([number; 16]),
            connection: Remote::next_connection(),
            is_litemesh: false,
        })
        .collect();
    for remote in &remotes {
        callbacks.connect(*remote, Access::FULL).await.unwrap();
    }
    // None of them ever asks: from the first commit on there is something that each could be sent.
    let mut b = Node::start().await;
    connect(&a.transport, &b.transport, Link::Litemesh).await.unwrap();
    a.wait("served", |event| matches!(event, Event::Served { .. })).await;
    a.execute("INSERT INTO todo VALUES ('1', 'x', 0)");
    // All sessions were woken when it came to one of them.
    b.wait_for_rows(&a.rows()).await;
    for remote in &remotes {
        let changes = vec![change(PackedKey::pack(&[Value::text("2")]).unwrap(), remote.site)];
        let message = PeerMessage::Changes { changes, schema_version: 2, progress: None };
        callbacks.receive(*remote, Unverified::new(message)).await.unwrap();
        a.wait("outdated", |event| matches!(event, Event::Outdated { schema_version: 2, .. })).await;
    }
    a.execute("PRAGMA user_version = 2");
    a.peer.check_local_changes().await.unwrap();
    let is_told =
        |event: &Event| matches!(event, Event::Disconnect { reason, .. } if reason.contains("schema was changed"));
    for _ in &remotes {
        a.wait("disconnect", is_told).await;
    }
    a.peer.stop().await;
}

/// Merges a row of each of so many sites.
fn write_by_many(db: &Database, sites: u32) {
    let change = |number: u32| {
        let mut site = [9; 16];
        site[..4].copy_from_slice(&number.to_be_bytes());
        change(PackedKey::pack(&[Value::text(number.to_string())]).unwrap(), SiteId::from_bytes(site))
    };
    let changes: Vec<Change> = (0..sites).map(change).collect();
    let cursor = changes.iter().map(|change| (change.site, change.db_version)).collect();
    let progress = litemesh::engine::MergeProgress { cursor, ..Default::default() };
    db.lock().merge(&changes, &progress).unwrap();
}

/// `known-failures.md` B22: thousands of sites, each of which wrote something.
#[tokio::test]
async fn b22_thousands_of_sites_are_synced() {
    const SITES: u32 = 3000;
    let db = database();
    write_by_many(&db, SITES);
    for link in BOTH {
        let (a, mut b) = (Node::start_on(db.clone()).await, Node::start().await);
        connect(&a.transport, &b.transport, link).await.unwrap();
        b.wait("eose", |event| matches!(event, Event::Eose { .. })).await;
        assert_eq!(b.rows(), a.rows());
        let cursor = b.peer.cursor().await.unwrap();
        assert!(cursor.iter().filter(|(site, _)| site.as_bytes()[4..] == [9; 12]).count() == SITES as usize);
        a.peer.stop().await;
    }
}

/// `known-failures.md` D7: nothing is sent where there is nothing to say.
#[tokio::test]
async fn d7_no_message_without_news() {
    let (a, mut b) = pair(Link::Litemesh).await;
    b.wait("eose", |event| matches!(event, Event::Eose { .. })).await;
    a.execute("CREATE TABLE aside (id INTEGER PRIMARY KEY); INSERT INTO aside VALUES (1)");
    a.peer.check_local_changes().await.unwrap();
    a.execute("INSERT INTO todo VALUES ('1', 'x', 0)");
    b.wait_for_rows(&a.rows()).await;
    assert_eq!(b.peer.status()[0].changes_received, 2);
}

/// Every row of every table, the internal ones included, as text; BLOBs in hex.
fn all_rows(node: &Node) -> Vec<String> {
    let engine = node.db.lock();
    let texts = |sql: &str| -> Vec<String> {
        let mut statement = engine.connection().prepare(sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    let row = |table: &String| -> String {
        let columns = texts(&format!("SELECT 'quote(\"' || name || '\")' FROM pragma_table_info('{table}')"));
        format!("SELECT '{table} ' || {} FROM \"{table}\"", columns.join(" || ' ' || "))
    };
    texts("SELECT name FROM sqlite_schema WHERE type = 'table'").iter().flat_map(|table| texts(&row(table))).collect()
}

/// `known-failures.md` C6: what was overwritten or deleted is kept nowhere, and is sent to nobody.
#[tokio::test]
async fn c6_there_is_no_history() {
    for link in BOTH {
        let (a, mut b) = pair(link).await;
        a.execute("INSERT INTO todo VALUES ('1', 'secret', 0), ('2', 'secret', 0), ('3', 'kept', 0)");
        b.wait_for_rows(&a.rows()).await;
        let has_secret = |node: &Node| {
            let hex = "736563726574";
            all_rows(node).iter().any(|row| row.contains("secret") || row.to_lowercase().contains(hex))
        };
        assert!(has_secret(&a) && has_secret(&b));
        a.execute("UPDATE todo SET title = 'new' WHERE id = '1'; DELETE FROM todo WHERE id = '2'");
        b.wait_for_rows(&a.rows()).await;
        assert!(!has_secret(&a) && !has_secret(&b));
        // Two rows of two cells, and the record of a deletion.
        let mut late = Node::start().await;
        connect(&b.transport, &late.transport, link).await.unwrap();
        late.wait_for_rows(&a.rows()).await;
        late.wait("eose", |event| matches!(event, Event::Eose { .. })).await;
        // A peer of the original may be sent the newest version of an author once more.
        let again = if link == Link::V1 { 2 } else { 0 };
        assert!((5..=5 + again).contains(&late.received()), "{link:?}: {}", late.received());
        assert!(!has_secret(&late));
    }
}

/// `known-failures.md` D3: what is stored depends on what there is, and not on how often something was written.
#[tokio::test]
async fn d3_writing_again_and_again_takes_no_room() {
    const WRITES: usize = 3000;
    for link in BOTH {
        let (a, mut b) = pair(link).await;
        a.execute("INSERT INTO todo VALUES ('1', 'x', 0)");
        b.wait_for_rows(&a.rows()).await;
        let before = [all_rows(&a).len(), all_rows(&b).len()];
        for _ in 0..WRITES {
            a.execute("UPDATE todo SET done = done + 1");
            b.wait_for_rows(&a.rows()).await;
        }
        let now = [all_rows(&a).len(), all_rows(&b).len()];
        // What nobody needs any more is removed now and then.
        assert!(now.iter().zip(before).all(|(now, before)| *now < before + WRITES / 5), "{before:?} rows are {now:?}");
    }
}

/// `known-failures.md` B21: in the original everybody writes over one connection, and what is written while somebody else's transaction
/// is open is undone by its rollback, although it was acknowledged.
#[tokio::test]
async fn b21_a_rollback_undoes_only_its_own_transaction() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.db");
    let (a, mut b) = (Node::start().await, Node::start_on(file_database(&path)).await);
    connect(&a.transport, &b.transport, Link::Litemesh).await.unwrap();
    b.wait("eose", |event| matches!(event, Event::Eose { .. })).await;
    // A transaction of the application, meanwhile one of a remote, and one of another part of the application.
    b.execute("BEGIN");
    assert_eq!(b.rows().len(), 0);
    a.execute("INSERT INTO todo VALUES ('2', 'of a remote', 0)");
    let written = a.db.lock().db_version().unwrap();
    let is_acknowledged = || a.peer.status()[0].acknowledged.is_some_and(|acknowledged| acknowledged >= written);
    let wait = async {
        while !is_acknowledged() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap();
    let other = Database::open(&path).unwrap();
    other.lock().connection().execute_batch("INSERT INTO todo VALUES ('1', 'of another part', 0)").unwrap();
    assert_eq!(b.rows().len(), 0, "what the transaction sees stays the same");
    b.execute("ROLLBACK");
    assert_eq!(b.rows(), ["todo '1' 'of another part' 0", "todo '2' 'of a remote' 0"]);
}

/// How many transactions a WAL holds: those frames that end one say how large the file is now (https://sqlite.org/walformat.html).
fn commits(db: &Path) -> usize {
    let wal = std::fs::read(db.with_extension("db-wal")).unwrap();
    let word = |at: usize| u32::from_be_bytes(wal[at..at + 4].try_into().unwrap());
    let (page_bytes, salt) = (word(8) as usize, &wal[16..24]);
    let frames = (32..wal.len()).step_by(24 + page_bytes);
    frames.filter(|frame| &wal[frame + 8..frame + 16] == salt && word(frame + 4) > 0).count()
}

/// `known-failures.md` D6: the original writes how far each remote is in a transaction of its own, for each message and each local write.
#[tokio::test]
async fn d6_a_write_is_one_transaction_on_each_side() {
    const WRITES: usize = 20;
    for link in BOTH {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a.db", "b.db"].map(|name| folder.path().join(name));
        let (mut a, mut b) =
            (Node::start_on(file_database(&paths[0])).await, Node::start_on(file_database(&paths[1])).await);
        connect(&a.transport, &b.transport, link).await.unwrap();
        for node in [&mut a, &mut b] {
            node.wait("caught up", |event| matches!(event, Event::Eose { .. })).await;
        }
        // The first one may have to make something.
        a.execute("INSERT INTO todo VALUES ('first', 'x', 0)");
        b.wait_for_rows(&a.rows()).await;
        let before = [commits(&paths[0]), commits(&paths[1])];
        for number in 0..WRITES {
            a.execute(&format!("INSERT INTO todo VALUES ('{number}', 'x', 0)"));
            b.wait_for_rows(&a.rows()).await;
        }
        for node in [&a, &b] {
            node.peer.check_local_changes().await.unwrap();
        }
        let made = [commits(&paths[0]) - before[0], commits(&paths[1]) - before[1]];
        assert_eq!(made, [WRITES, WRITES], "{link:?}");
    }
}

async fn write_both_ways(hub: &mut Node, leaf: &mut Node, number: usize) {
    hub.execute(&format!("INSERT INTO tag VALUES ('down', '{number}')"));
    leaf.wait_for_rows(&hub.rows()).await;
    leaf.execute(&format!("INSERT INTO tag VALUES ('up', '{number}')"));
    hub.wait_for_rows(&leaf.rows()).await;
}

/// `known-failures.md` D12: in the original every message and every write names every site that there ever was.
#[tokio::test]
async fn d12_a_write_sends_and_stores_the_same_however_many_sites_there_are() {
    const WRITES: usize = 10;
    for is_litemesh in [true, false] {
        let mut costs = Vec::new();
        for sites in [3, 3000] {
            let folder = tempfile::tempdir().unwrap();
            let paths = ["hub.db", "leaf.db"].map(|name| folder.path().join(name));
            let (hub_db, leaf_db) = (file_database(&paths[0]), file_database(&paths[1]));
            write_by_many(&hub_db, sites);
            let transport = HttpServer::new();
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let hub = Peer::builder(hub_db.clone()).transport(transport.clone()).start().await.unwrap();
            let server = transport.clone();
            let serving = tokio::spawn(async move { server.serve(listener, std::future::pending()).await });
            let builder =
                Peer::builder(leaf_db.clone()).transport(HttpClient::builder(url).announce(is_litemesh).build());
            let events = builder.events();
            let leaf = builder.start().await.unwrap();
            let mut hub = Node { db: hub_db, events: hub.events(), peer: hub, transport: MemoryTransport::new() };
            let mut leaf = Node { db: leaf_db, events, peer: leaf, transport: MemoryTransport::new() };
            leaf.wait_for_rows(&hub.rows()).await;
            // After the first ones both know how far the other is.
            for number in 0..5 {
                write_both_ways(&mut hub, &mut leaf, number).await;
            }
            // So that a WAL is as long as what is written from now on.
            for node in [&hub, &leaf] {
                let truncate = "PRAGMA wal_checkpoint(TRUNCATE)";
                let is_busy =
                    || node.db.lock().connection().query_row(truncate, [], |row| row.get::<_, i64>(0)).unwrap() > 0;
                let wait = async {
                    while is_busy() {
                        tokio::task::yield_now().await;
                    }
                };
                tokio::time::timeout(PATIENCE, wait).await.unwrap();
            }
            let before = transport.counters();
            for number in 5..5 + WRITES {
                write_both_ways(&mut hub, &mut leaf, number).await;
            }
            let after = transport.counters();
            let stored = paths.each_ref().map(|path| std::fs::metadata(path.with_extension("db-wal")).unwrap().len());
            costs.push([after.bytes_out - before.bytes_out, after.bytes_in - before.bytes_in, stored[0], stored[1]]);
            leaf.peer.stop().await;
            hub.peer.stop().await;
            serving.abort();
        }
        let is_alike = costs[0].iter().zip(costs[1]).all(|(few, many)| *few > 0 && 2 * many < 3 * few);
        assert!(is_alike, "bytes down, up, of the hub's WAL, of the leaf's: {costs:?}, Litemesh: {is_litemesh}");
    }
}

/// `known-failures.md` C8: names that a remote chooses become no names of files.
#[tokio::test]
async fn c8_a_remote_makes_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let path = inner.join("b.db");
    let (a, mut b) = (Node::start().await, Node::start_on(file_database(&path)).await);
    let names = ["../outside", "beside", "/tmp/litemesh-of-a-remote", "b.db-journal"];
    a.execute("CREATE TABLE \"../table\" (id TEXT PRIMARY KEY NOT NULL)");
    a.db.lock().replicate("../table").unwrap();
    for name in names {
        a.execute(&format!(
            "INSERT INTO todo VALUES ('{name}', '{name}', 0); INSERT INTO tag VALUES ('{name}', '{name}')"
        ));
    }
    connect(&a.transport, &b.transport, Link::Litemesh).await.unwrap();
    b.wait_for_rows(&a.rows()).await;
    a.execute("INSERT INTO \"../table\" VALUES ('x')");
    b.wait("an error", |event| matches!(event, Event::Error { message, .. } if message.contains("../table"))).await;
    let names_in = |folder: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names_in(&inner), ["b.db", "b.db-shm", "b.db-wal"]);
    assert_eq!(names_in(folder.path()), ["inner"]);
}

/// `known-failures.md` E1: a peer that is started is connected, and one that is stopped is not.
#[tokio::test]
async fn e1_a_peer_starts_and_stops_its_transports() {
    let puppets = [Puppet::default(), Puppet::default()];
    let mut builder = Peer::builder(database());
    for puppet in &puppets {
        builder = builder.transport(puppet.clone());
    }
    assert!(puppets.iter().all(|puppet| puppet.peer.get().is_none()));
    let peer = builder.start().await.unwrap();
    // What the original's `getConfig` gives reaches the transports by itself.
    assert!(puppets.iter().all(|puppet| puppet.peer.get().is_some_and(|callbacks| callbacks.site() == peer.id())));
    assert!(puppets.iter().all(|puppet| !puppet.is_stopped.load(Ordering::Relaxed)));
    peer.stop().await;
    assert!(puppets.iter().all(|puppet| puppet.is_stopped.load(Ordering::Relaxed)));
}

/// `known-failures.md` E2: the end of an answer is told only where all of it is here, and how it stands with each remote can be asked.
#[tokio::test]
async fn e2_no_end_is_told_of_what_is_not_here() {
    for link in BOTH {
        let (a, mut b) = (Node::start().await, Node::start().await);
        a.execute("PRAGMA user_version = 2; INSERT INTO todo VALUES ('1', 'of schema 2', 0)");
        a.peer.check_local_changes().await.unwrap();
        connect(&a.transport, &b.transport, link).await.unwrap();
        b.wait("outdated", |event| matches!(event, Event::Outdated { schema_version: 2, .. })).await;
        // Whatever ends the answer comes before this.
        a.execute("PRAGMA user_version = 3; INSERT INTO todo VALUES ('2', 'of schema 3', 0)");
        a.peer.check_local_changes().await.unwrap();
        let until_outdated = async {
            loop {
                match b.events.recv().await.unwrap() {
                    Event::Outdated { schema_version: 3, .. } => return,
                    Event::Eose { .. } => panic!("an end is told"),
                    _ => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, until_outdated).await.unwrap();
        let (at_a, at_b) = (a.peer.status().remove(0), b.peer.status().remove(0));
        assert!(!at_b.is_caught_up, "{at_b:?}");
        assert_eq!((at_b.peer, &*at_b.transport, at_b.changes_received), (a.peer.id(), "memory", 0), "{at_b:?}");
        if link == Link::Litemesh {
            let written = a.db.lock().db_version().unwrap();
            assert!(at_a.acknowledged.is_none_or(|acknowledged| acknowledged < written), "{at_a:?}");
            assert!(!at_a.is_caught_up, "{at_a:?}");
        }
    }
}

/// `known-failures.md` E8: a migration that only adds need not raise the schema version. Then only what uses it waits for the upgrade.
#[tokio::test]
async fn e8_a_migration_that_adds_holds_up_what_uses_it_and_nothing_else() {
    for link in BOTH {
        let (mut a, mut b) = pair(link).await;
        a.execute("INSERT INTO todo VALUES ('1', 'old', 0)");
        b.wait_for_rows(&a.rows()).await;
        let upgrade = |node: &Node| {
            let add = "ALTER TABLE todo ADD COLUMN due TEXT";
            node.db.lock().alter("todo", |connection| connection.execute_batch(add)).unwrap();
            node.execute("CREATE TABLE list (id TEXT PRIMARY KEY NOT NULL)");
            node.db.lock().replicate("list").unwrap();
        };
        upgrade(&a);
        a.execute("UPDATE todo SET title = 'new' WHERE id = '1'");
        b.wait_for_rows(&["todo '1' 'new' 0".to_owned()]).await;
        b.execute("UPDATE todo SET done = 1; INSERT INTO todo VALUES ('2', 'of the older peer', 0)");
        a.wait_for_rows(&b.rows()).await;
        for (sql, what) in
            [("UPDATE todo SET due = 'soon' WHERE id = '2'", "due"), ("INSERT INTO list VALUES ('x')", "list")]
        {
            a.execute(sql);
            b.wait(what, |event| matches!(event, Event::Error { message, .. } if message.contains(what))).await;
        }
        a.execute("UPDATE todo SET title = 'newer' WHERE id = '1'; INSERT INTO tag VALUES ('home', '1')");
        b.wait_for_rows(&a.rows()).await;
        upgrade(&b);
        b.peer.check_local_changes().await.unwrap();
        let has_all = || {
            let engine = b.db.lock();
            let sql = "SELECT (SELECT count(*) FROM list) + (SELECT count(*) FROM todo WHERE due = 'soon')";
            engine.connection().query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap() == 2
        };
        let wait = async {
            while !has_all() {
                if a.peer.status().is_empty() {
                    // A transport that dials makes the next one by itself.
                    connect(&a.transport, &b.transport, link).await.unwrap();
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap();
    }
}
