//! Peers over the memory transport: what they do whatever connects them.

mod support;

use std::collections::BTreeSet;

use litemesh::proto::DbVersion;
use litemesh::{Database, Event};
use litemesh_testkit::{Link, connect};
use support::{Node, PATIENCE, SCHEMA, database};

async fn check_two_peers(link: Link) {
    let (mut a, mut b) = (Node::start().await, Node::start().await);
    a.execute("INSERT INTO todo VALUES ('a1', 'before', 0)");
    b.execute("INSERT INTO todo VALUES ('b1', 'before', 1); INSERT INTO tag VALUES ('home', 'b1')");
    connect(&a.transport, &b.transport, link).await.unwrap();
    a.wait("eose at a", |event| matches!(event, Event::Eose { .. })).await;
    b.wait("eose at b", |event| matches!(event, Event::Eose { .. })).await;
    assert_eq!(a.rows(), b.rows());
    assert_eq!(a.rows().len(), 3);
    // Live, both ways, and a transaction of two tables.
    a.execute("BEGIN; INSERT INTO todo VALUES ('a2', 'live', 0); INSERT INTO tag VALUES ('work', 'a2'); COMMIT");
    b.wait_for_rows(&a.rows()).await;
    b.execute("UPDATE todo SET title = 'changed', done = 1 WHERE id = 'a2'; DELETE FROM tag WHERE name = 'home'");
    a.wait_for_rows(&b.rows()).await;
    a.peer.stop().await;
    b.peer.stop().await;
}

#[tokio::test]
async fn two_peers_catch_up_and_stay_equal() {
    check_two_peers(Link::Litemesh).await;
}

#[tokio::test]
async fn two_peers_catch_up_and_stay_equal_over_wire_v1() {
    check_two_peers(Link::V1).await;
}

/// A star of v1 links, as the original has it: the hub passes on what it gets, and sends nothing back.
#[tokio::test]
async fn hub_forwards_between_v1_peers() {
    let mut hub = Node::start().await;
    let mut leaves = [Node::start().await, Node::start().await, Node::start().await];
    for leaf in &leaves {
        connect(&hub.transport, &leaf.transport, Link::V1).await.unwrap();
    }
    // An answer that is given later would bring what came live under two numbers.
    for leaf in &mut leaves {
        leaf.wait("eose", |event| matches!(event, Event::Eose { .. })).await;
    }
    for (n, leaf) in leaves.iter().enumerate() {
        leaf.execute(&format!("INSERT INTO todo VALUES ('leaf{n}', 'x', {n})"));
    }
    let expected: Vec<String> = (0..3).map(|n| format!("todo 'leaf{n}' 'x' {n}")).collect();
    hub.wait_for_rows(&expected).await;
    for leaf in &mut leaves {
        leaf.wait_for_rows(&expected).await;
    }
    // Each leaf sent its own two cells and no echo of others'; the hub answered only with the other leaves' cells.
    for leaf in &leaves {
        leaf.peer.check_local_changes().await.unwrap();
        let status = &leaf.peer.status()[0];
        assert_eq!((status.changes_sent, status.changes_received), (2, 4), "{status:?}");
    }
}

/// `known-failures.md` B1: a ring must come to rest.
#[tokio::test]
async fn ring_of_litemesh_peers_comes_to_rest() {
    let mut nodes = Vec::new();
    for _ in 0..4 {
        nodes.push(Node::start().await);
    }
    for n in 0..4 {
        connect(&nodes[n].transport, &nodes[(n + 1) % 4].transport, Link::Litemesh).await.unwrap();
    }
    for (n, node) in nodes.iter().enumerate() {
        for row in 0..5 {
            node.execute(&format!("INSERT INTO todo VALUES ('{n}-{row}', 't', {row})"));
        }
    }
    let expected: BTreeSet<String> =
        (0..4).flat_map(|n| (0..5).map(move |row| format!("todo '{n}-{row}' 't' {row}"))).collect();
    let expected: Vec<String> = expected.into_iter().collect();
    for node in &mut nodes {
        node.wait_for_rows(&expected).await;
    }
    for node in &nodes {
        node.peer.check_local_changes().await.unwrap();
    }
    let sent: u64 = nodes.iter().flat_map(|node| node.peer.status()).map(|status| status.changes_sent).sum();
    // 40 cells to three other peers each; over two paths a cell may cross itself on every link once.
    assert!(sent <= 40 * 8, "{sent} changes were sent for 40 cells");
}

/// The link breaks in the middle of catch-up, again and again.
#[tokio::test]
async fn broken_catch_up_resumes_and_loses_nothing() {
    let (a, mut b) = (Node::start().await, Node::start().await);
    for first in (0..30_000).step_by(1000) {
        a.execute(&format!(
            "WITH RECURSIVE n(i) AS (VALUES ({first}) UNION ALL SELECT i + 1 FROM n WHERE i < {first} + 999)
             INSERT INTO todo SELECT 'row ' || i, 'title ' || i, i FROM n",
        ));
    }
    for _ in 0..3 {
        connect(&a.transport, &b.transport, Link::Litemesh).await.unwrap();
        b.wait_for_messages(1).await;
        b.transport.disconnect_all().await;
        // A catch-up is seen when it is complete.
        let rows = b.rows();
        assert!(rows.is_empty() || rows == a.rows(), "{} rows", rows.len());
    }
    connect(&a.transport, &b.transport, Link::Litemesh).await.unwrap();
    b.wait("eose", |event| matches!(event, Event::Eose { .. })).await;
    assert_eq!(a.rows(), b.rows());
    assert!(b.received() < 60_000, "what came before came again: {} changes", b.received());
    assert_eq!(b.peer.cursor().await.unwrap().get(&a.peer.id()), a.peer.cursor().await.unwrap().get(&a.peer.id()));
}

/// `known-failures.md` A3: a transaction that is larger than a message is seen as a whole or not at all, and a catch-up that breaks inside of it
/// goes on there.
#[tokio::test]
async fn a_large_transaction_is_never_seen_in_part_and_goes_on_where_it_broke() {
    const ROWS: u64 = 60_000;
    let (a, mut b) = (Node::start().await, Node::start().await);
    a.execute(&format!(
        "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
         INSERT INTO todo SELECT 'row ' || i, 'title ' || i, i FROM n",
    ));
    connect(&a.transport, &b.transport, Link::Litemesh).await.unwrap();
    // The second part is asked to be stored when the first one is.
    b.wait_for_messages(2).await;
    assert!(b.rows().is_empty());
    b.transport.disconnect_all().await;
    connect(&a.transport, &b.transport, Link::Litemesh).await.unwrap();
    b.wait("eose", |event| matches!(event, Event::Eose { .. })).await;
    assert_eq!(b.rows(), a.rows());
    // The first part was not sent again; two changes a row.
    assert!(b.received() < 2 * ROWS, "{} changes", b.received());
}

/// Of the transaction that wrote both rows one is left, since the other was written again; in the order of the sender's versions it
/// comes long before that. A reader sees both or none.
#[tokio::test]
async fn a_transaction_that_was_overwritten_in_part_is_not_seen_in_part() {
    let (a, mut b) = (Node::start().await, Node::start().await);
    let pair = |node: &Node| {
        let rows = node.rows();
        let title = |id: &str| rows.iter().find(|row| row.starts_with(&format!("todo '{id}'"))).cloned();
        (title("debit"), title("credit"))
    };
    a.execute("INSERT INTO todo VALUES ('debit', 'at first', 0), ('credit', 'at first', 0)");
    connect(&a.transport, &b.transport, Link::Litemesh).await.unwrap();
    b.wait_for_rows(&a.rows()).await;
    let before = pair(&b);
    b.transport.disconnect_all().await;
    a.execute("UPDATE todo SET title = 'booked'");
    for first in (0..30_000).step_by(3000) {
        a.execute(&format!(
            "WITH RECURSIVE n(i) AS (VALUES ({first}) UNION ALL SELECT i + 1 FROM n WHERE i < {first} + 2999)
             INSERT INTO todo SELECT 'row ' || i, 'title ' || i, i FROM n",
        ));
    }
    a.execute("UPDATE todo SET title = 'corrected' WHERE id = 'debit'");
    let after = pair(&a);
    // Also where the catch-up breaks after the first messages.
    for is_last in [false, true] {
        connect(&a.transport, &b.transport, Link::Litemesh).await.unwrap();
        if !is_last {
            b.wait_for_messages(2).await;
            b.transport.disconnect_all().await;
        }
        while is_last && b.rows().len() < a.rows().len() {
            b.wait("a change", |event| matches!(event, Event::Change { .. })).await;
            assert!([&before, &after].contains(&&pair(&b)), "{:?}", pair(&b));
        }
    }
    assert_eq!(a.rows(), b.rows());
}

/// `known-failures.md` A8: a newer schema is neither merged nor skipped.
#[tokio::test]
async fn outdated_changes_come_after_the_upgrade() {
    let (a, mut b) = (Node::start().await, Node::start().await);
    a.execute("PRAGMA user_version = 2; INSERT INTO todo VALUES ('new', 'schema 2', 0)");
    a.peer.check_local_changes().await.unwrap();
    connect(&a.transport, &b.transport, Link::V1).await.unwrap();
    b.wait("outdated", |event| matches!(event, Event::Outdated { schema_version: 2, .. })).await;
    assert_eq!(b.rows(), Vec::<String>::new());
    b.execute("PRAGMA user_version = 2");
    b.peer.check_local_changes().await.unwrap();
    // The connection that saw the old schema ends by itself; a transport that dials makes the next one.
    b.wait(
        "disconnect",
        |event| matches!(event, Event::Disconnect { reason, .. } if reason.contains("schema was changed")),
    )
    .await;
    connect(&a.transport, &b.transport, Link::V1).await.unwrap();
    b.wait_for_rows(&a.rows()).await;
    assert_eq!(b.peer.schema_version(), 2);
}

/// A change for a table that is not there: an error, no cursor moved, the connection alive; it comes once the table is there.
/// (`known-failures.md` A15)
#[tokio::test]
async fn unknown_table_parks_nothing_silently() {
    let (a, mut b) = (Node::start().await, Node::start().await);
    a.execute("CREATE TABLE extra (id INTEGER PRIMARY KEY NOT NULL, x)");
    a.db.lock().replicate("extra").unwrap();
    a.execute("INSERT INTO extra VALUES (1, 'x')");
    connect(&a.transport, &b.transport, Link::Litemesh).await.unwrap();
    b.wait("error", |event| matches!(event, Event::Error { message, .. } if message.contains("index 0") && message.contains("extra")))
        .await;
    assert!(b.peer.cursor().await.unwrap().is_empty());
    a.execute("INSERT INTO todo VALUES ('later', 'still merged', 0)");
    b.wait_for_rows(&["todo 'later' 'still merged' 0".to_owned()]).await;
    let held = b.peer.cursor().await.unwrap();
    assert!(!held.contains(&a.peer.id()), "no cursor may move over what was refused: {held:?}");
    b.execute("CREATE TABLE extra (id INTEGER PRIMARY KEY NOT NULL, x)");
    b.db.lock().replicate("extra").unwrap();
    // Now what was refused can be merged: a new connection is made for it at once.
    b.wait(
        "disconnect",
        |event| matches!(event, Event::Disconnect { reason, .. } if reason.contains("schema was changed")),
    )
    .await;
    connect(&a.transport, &b.transport, Link::Litemesh).await.unwrap();
    b.wait("eose", |event| matches!(event, Event::Eose { .. })).await;
    let x: String = b.db.lock().connection().query_row("SELECT x FROM extra", [], |row| row.get(0)).unwrap();
    assert_eq!(x, "x");
}

#[tokio::test]
async fn own_site_id_in_other_hands_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (first, copy) = (folder.path().join("first.db"), folder.path().join("copy.db"));
    drop({
        let db = Database::open(&first).unwrap();
        db.lock().connection().execute_batch(SCHEMA).unwrap();
        db
    });
    std::fs::copy(&first, &copy).unwrap();
    let a = Node::start_on(Database::open(&first).unwrap()).await;
    let b = Node::start_on(Database::open(&copy).unwrap()).await;
    let (mut a, mut b) = (a, b);
    for [one, other] in [[&a, &b], [&b, &a]] {
        let error = connect(&one.transport, &other.transport, Link::Litemesh).await.unwrap_err();
        let refused = litemesh::proto::Refusal::SameSite { site: one.peer.id() };
        assert!(error.to_string().contains(&refused.to_string()), "{error}");
    }
    // Whoever is told of the other says so, and what to do.
    let is_told = |event: &Event| match event {
        Event::Error { peer: Some(_), transport: Some(_), message } => message.contains("`litemesh fork`"),
        _ => false,
    };
    a.wait("error at a", is_told).await;
    b.wait("error at b", is_told).await;
    assert!(a.peer.status().is_empty() && b.peer.status().is_empty());

    // And then it works.
    b.peer.stop().await;
    b.db.lock().fork(None).unwrap();
    let mut b = Node::start_on(b.db).await;
    assert_ne!(b.peer.id(), a.peer.id());
    connect(&a.transport, &b.transport, Link::Litemesh).await.unwrap();
    b.wait("eose", |event| matches!(event, Event::Eose { .. })).await;
}

/// VER-16: remotes know a peer by its site id, so it cannot go on under another.
#[tokio::test]
async fn a_peer_ends_when_its_database_is_forked() {
    let (mut a, mut b) = (Node::start().await, Node::start().await);
    a.execute("INSERT INTO todo VALUES ('a', 'x', 0)");
    connect(&a.transport, &b.transport, Link::Litemesh).await.unwrap();
    b.wait("eose", |event| matches!(event, Event::Eose { .. })).await;
    let forked = b.db.lock().fork(None).unwrap();
    b.execute("INSERT INTO todo VALUES ('b', 'y', 0)");
    let after = forked.after.to_string();
    b.wait("error", |event| {
        matches!(event, Event::Error { peer: None, message, .. } if message.contains("forked") && message.contains(&after))
    })
    .await;
    let end = async { while b.events.recv().await != Err(litemesh::EventError::Closed) {} };
    tokio::time::timeout(PATIENCE, end).await.unwrap();
    a.wait("disconnect", |event| matches!(event, Event::Disconnect { .. })).await;
    assert!(b.peer.check_local_changes().await.is_err());
    // Nothing of the new site came under the old one's name; a peer that is started again goes on.
    let mut b = Node::start_on(b.db).await;
    connect(&a.transport, &b.transport, Link::Litemesh).await.unwrap();
    b.wait("eose", |event| matches!(event, Event::Eose { .. })).await;
    // The cursor moves with the end of the answer, after the rows.
    a.wait("eose", |event| matches!(event, Event::Eose { .. })).await;
    assert_eq!(a.rows(), b.rows());
    assert_eq!(a.peer.cursor().await.unwrap().get(&forked.after), b.db.lock().db_version().unwrap());
}

/// `known-failures.md` D8, E7: the original looks every five seconds, and has one connection.
#[tokio::test]
async fn commits_of_other_connections_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shared.db");
    let db = Database::open(&path).unwrap();
    db.lock().connection().execute_batch(SCHEMA).unwrap();
    db.lock().replicate("todo").unwrap();
    let mut node = Node::start_on(db).await;
    // Not opened through the database, so nothing but the file tells of its commit.
    let stranger = litemesh::engine::Engine::open(&path).unwrap();
    stranger.connection().execute_batch("INSERT INTO todo VALUES ('s', 'foreign', 0)").unwrap();
    node.wait("change", |event| matches!(event, Event::Change { tables } if tables.contains("todo"))).await;
}

/// An application may write for long. What a peer would tidy up meanwhile can wait, and is no reason to report anything.
#[tokio::test]
async fn a_long_transaction_of_the_application_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let db = Database::open(folder.path().join("busy.db")).unwrap();
    db.lock().connection().execute_batch(SCHEMA).unwrap();
    db.lock().replicate("todo").unwrap();
    let mut node = Node::start_on(db).await;
    node.execute("INSERT INTO todo VALUES ('1', 'x', 0); BEGIN IMMEDIATE");
    node.peer.check_local_changes().await.unwrap();
    node.execute("COMMIT; INSERT INTO tag VALUES ('the', 'end')");
    node.db.lock().replicate("tag").unwrap();
    node.peer.check_local_changes().await.unwrap();
    let until_the_end = async {
        loop {
            match node.events.recv().await.unwrap() {
                Event::Error { message, .. } => panic!("{message}"),
                Event::Change { tables } if tables.contains("tag") => return,
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, until_the_end).await.unwrap();
}

#[tokio::test]
async fn stop_ends_everything_and_a_restart_goes_on() {
    let db = database();
    let mut a = Node::start_on(db.clone()).await;
    a.peer.stop().await;
    assert!(a.peer.status().is_empty());
    a.execute("INSERT INTO todo VALUES ('while', 'stopped', 0)");
    let mut again = Node::start_on(db).await;
    let mut b = Node::start().await;
    connect(&again.transport, &b.transport, Link::Litemesh).await.unwrap();
    b.wait_for_rows(&again.rows()).await;
    again.wait("served", |event| matches!(event, Event::Served { .. })).await;
    drop(again.peer);
    // The last handle is gone: the events end.
    while again.events.recv().await.is_ok() {}
    while a.events.recv().await.is_ok() {}
}

/// A file restored from a backup has forgotten versions that others have seen: what it writes next must not hide below them.
#[tokio::test]
async fn writes_after_a_restore_from_backup_are_seen() {
    let folder = tempfile::tempdir().unwrap();
    let (path, backup) = (folder.path().join("a.db"), folder.path().join("backup.db"));
    let mut b = Node::start().await;
    {
        let db = Database::open(&path).unwrap();
        db.lock().connection().execute_batch(SCHEMA).unwrap();
        for table in ["todo", "tag"] {
            db.lock().replicate(table).unwrap();
        }
        let a = Node::start_on(db).await;
        a.execute("INSERT INTO todo VALUES ('kept', 'x', 0)");
        a.execute(&format!("VACUUM INTO '{}'", backup.display()));
        for n in 0..5 {
            a.execute(&format!("INSERT INTO todo VALUES ('forgotten {n}', 'x', 0)"));
        }
        connect(&a.transport, &b.transport, Link::Litemesh).await.unwrap();
        b.wait("eose", |event| matches!(event, Event::Eose { .. })).await;
        a.peer.stop().await;
    }
    let mut a = Node::start_on(Database::open(&backup).unwrap()).await;
    connect(&a.transport, &b.transport, Link::Litemesh).await.unwrap();
    a.wait("eose", |event| matches!(event, Event::Eose { .. })).await;
    b.wait("eose", |event| matches!(event, Event::Eose { .. })).await;
    assert_eq!(a.rows(), b.rows(), "what the backup lacks comes back from the others");
    a.execute("INSERT INTO todo VALUES ('new', 'after the restore', 0)");
    b.wait_for_rows(&a.rows()).await;
    assert_eq!(b.rows().len(), 7);
}

/// The same, but the restored file was written to before it met those who have seen what it lacks: they would take its new
/// versions for the ones that they hold.
#[tokio::test]
async fn a_restored_file_that_was_written_to_is_refused_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let (path, backup) = (folder.path().join("a.db"), folder.path().join("backup.db"));
    let mut b = Node::start().await;
    {
        let db = Database::open(&path).unwrap();
        db.lock().connection().execute_batch(SCHEMA).unwrap();
        for table in ["todo", "tag"] {
            db.lock().replicate(table).unwrap();
        }
        let a = Node::start_on(db).await;
        a.execute("INSERT INTO todo VALUES ('1', 'in the backup', 0)");
        a.execute(&format!("VACUUM INTO '{}'", backup.display()));
        a.execute("INSERT INTO todo VALUES ('2', 'after it', 0)");
        connect(&a.transport, &b.transport, Link::Litemesh).await.unwrap();
        b.wait_for_rows(&a.rows()).await;
        a.peer.stop().await;
    }
    let mut a = Node::start_on(Database::open(&backup).unwrap()).await;
    a.execute("INSERT INTO todo VALUES ('3', 'under the version of 2', 0)");
    connect(&a.transport, &b.transport, Link::Litemesh).await.unwrap();
    let remedy = "`litemesh fork FILE --copied-at 1`";
    a.wait("an error", |event| matches!(event, Event::Error { message, .. } if message.contains(remedy))).await;
    a.peer.stop().await;
    let db = a.db.clone();
    db.lock().fork(Some(DbVersion::new(1))).unwrap();
    let mut a = Node::start_on(db).await;
    connect(&a.transport, &b.transport, Link::Litemesh).await.unwrap();
    a.wait("eose", |event| matches!(event, Event::Eose { .. })).await;
    b.wait_for_rows(&a.rows()).await;
    assert_eq!(a.rows().len(), 3, "what either life wrote is there");
}
