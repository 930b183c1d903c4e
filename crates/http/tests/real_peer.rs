//! The transcript of the original, and whole peers, against real databases.

mod support;

use std::time::Duration;

use litemesh::{Database, Event, Events, Limits, Peer};
use litemesh_http::{HttpClient, HttpServer};
use litemesh_proto::limits::V1_BODY_BYTES_MAX;
use serde_json::{Value, json};
use support::raw::{EventStream, post};
use support::replay::{FRAMES, HEAD_REQUEST, replay, transcript};
use support::{Running, serve, soon};

const SCHEMA: &str = "CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT, done INT, ts INT)";

fn database() -> Database {
    let db = Database::open_in_memory().unwrap();
    db.lock().connection().execute_batch(SCHEMA).unwrap();
    db.lock().replicate("todo").unwrap();
    db
}

fn execute(db: &Database, sql: &str) {
    db.lock().connection().execute_batch(sql).unwrap();
}

fn rows(db: &Database) -> Vec<String> {
    let engine = db.lock();
    let mut statement = engine
        .connection()
        .prepare("SELECT id || ' ' || quote(title) || ' ' || quote(done) || ' ' || quote(ts) FROM todo ORDER BY id")
        .unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

/// The database that the transcript was recorded with.
fn recorded_database() -> Database {
    let db = database();
    execute(
        &db,
        "PRAGMA user_version = 1; BEGIN;
         INSERT INTO todo VALUES ('r-00000000', 'title of r 0', 0, 1700000000);
         INSERT INTO todo VALUES ('r-00000001', 'title of r 1', 1, 1700000001); COMMIT",
    );
    db
}

async fn hub(db: &Database, transport: HttpServer, limits: Limits) -> (Peer, Events, Running) {
    let builder = Peer::builder(db.clone()).transport(transport.clone()).limits(limits);
    let events = builder.events();
    (builder.start().await.unwrap(), events, serve(transport).await)
}

async fn wait(events: &mut Events, what: &str, found: impl Fn(&Event) -> bool) {
    let wait = async { while !found(&events.recv().await.unwrap()) {} };
    tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap_or_else(|_| panic!("no event: {what}"));
}

/// All cases up to 59, now also those that a database decides.
#[tokio::test]
async fn a_real_peer_answers_as_the_original() {
    let db = recorded_database();
    let limits = Limits { message_bytes_max: V1_BODY_BYTES_MAX, ..Limits::default() };
    let (peer, _events, server) = hub(&db, HttpServer::new(), limits).await;
    let stream = replay(server.address, "", &peer.id().to_string(), 0..HEAD_REQUEST).await;
    // Of all the messages the good ones are merged, and nothing of the others.
    assert_eq!(rows(&db).last().unwrap(), "z 'v' NULL NULL");
    assert_eq!(rows(&db).len(), 3);
    drop(stream);
    peer.stop().await;
}

/// Case 61: what a fresh client hears, from `connect` to the first ping.
#[tokio::test]
async fn a_fresh_client_hears_what_the_original_says() {
    let recorded = transcript()[FRAMES].frames.clone().unwrap();
    let db = recorded_database();
    let transport = HttpServer::builder().ping_interval(Duration::from_millis(300)).build();
    let (peer, _events, server) = hub(&db, transport, Limits::default()).await;
    let id = peer.id().to_string();
    let of_us = |json: &Value| serde_json::from_str::<Value>(&json.to_string().replace("<SERVER_ID>", &id)).unwrap();
    let client = "c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1";
    let mut stream = EventStream::open_with(server.address, &format!("/stream?peerId={client}"), &[]).await;
    let mut next = async |kind: &str| loop {
        let frame = soon(stream.frame()).await.unwrap();
        // The ping comes by the clock, wherever the exchange stands.
        if frame["type"] == kind {
            return frame;
        }
        assert_eq!(frame["type"], "ping", "{frame}");
    };
    assert_eq!(next("connect").await, of_us(&recorded[0]));
    assert_eq!(next("sync").await, json!({"type":"sync","peerId":id,"cursor":{"peers":{id.clone():1}}}));

    let body = json!({"type":"sync","peerId":client,"cursor":{"peers":{}}}).to_string();
    assert_eq!(post(server.address, "/sync", body.as_bytes()).await, (200, r#"{"success":true}"#.to_owned()));
    let mut expected = of_us(&recorded[2]);
    // The two changes that an earlier client had written there were never written here.
    expected["data"]["data"].as_array_mut().unwrap().truncate(6);
    let answer = next("data").await;
    let sorted = |json: &Value| {
        let mut changes: Vec<String> = json["data"]["data"].as_array().unwrap().iter().map(Value::to_string).collect();
        changes.sort();
        changes
    };
    // Within one version the order is free.
    assert_eq!(sorted(&answer), sorted(&expected));
    assert_eq!(answer["data"]["schemaVersion"], 1);
    assert_eq!(next("data").await, of_us(&recorded[3]));

    execute(&db, "INSERT INTO todo VALUES ('live-00000000', 'title of live 0', 0, 1700000000)");
    let mut expected = of_us(&recorded[4]);
    for change in expected["data"]["data"].as_array_mut().unwrap() {
        // Version 3 was recorded, after the earlier client's two.
        change["db_version"] = json!(2);
    }
    assert_eq!(sorted(&next("data").await), sorted(&expected));
    assert_eq!(next("ping").await, of_us(&recorded[5]));
    peer.stop().await;
}

fn fill(db: &Database, prefix: &str, rows: usize) {
    execute(
        db,
        &format!(
            "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
             INSERT INTO todo SELECT '{prefix}' || i, 'title ' || i, i % 2, i FROM n"
        ),
    );
}

#[tokio::test]
async fn two_peers_converge_over_http_also_after_the_hub_was_away() {
    let (hub_db, peer_db) = (database(), database());
    fill(&hub_db, "hub", 5000);
    fill(&peer_db, "peer", 5000);
    let (first, mut hub_events, server) = hub(&hub_db, HttpServer::new(), Limits::default()).await;
    let address = server.address;
    let client =
        HttpClient::builder(format!("http://{address}")).reconnect_delay_min(Duration::from_millis(20)).build();
    let builder = Peer::builder(peer_db.clone()).transport(client.clone());
    let mut events = builder.events();
    let peer = builder.start().await.unwrap();
    wait(&mut events, "eose", |event| matches!(event, Event::Eose { .. })).await;
    wait(&mut hub_events, "eose", |event| matches!(event, Event::Eose { .. })).await;
    assert_eq!(rows(&hub_db), rows(&peer_db));
    assert_eq!(client.remote_peer_id(), Some(first.id()));

    // The hub goes away; both sides write; it comes back at the same address.
    server.shutdown.cancel();
    server.task.await.unwrap().unwrap();
    first.stop().await;
    wait(&mut events, "disconnect", |event| matches!(event, Event::Disconnect { .. })).await;
    execute(&hub_db, "UPDATE todo SET title = 'hub was away' WHERE id = 'hub1'; DELETE FROM todo WHERE id = 'peer2'");
    execute(&peer_db, "UPDATE todo SET done = 7 WHERE id = 'hub1'; UPDATE todo SET title = 'lost' WHERE id = 'peer2'");
    let transport = HttpServer::new();
    let builder = Peer::builder(hub_db.clone()).transport(transport.clone());
    let mut hub_events = builder.events();
    let second = builder.start().await.unwrap();
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let serving = tokio::spawn(async move { transport.serve(listener, std::future::pending()).await });
    wait(&mut events, "eose", |event| matches!(event, Event::Eose { .. })).await;
    wait(&mut hub_events, "eose", |event| matches!(event, Event::Eose { .. })).await;
    assert_eq!(rows(&hub_db), rows(&peer_db));
    assert!(rows(&hub_db).contains(&"hub1 'hub was away' 7 1".to_owned()));
    peer.stop().await;
    second.stop().await;
    serving.abort();
}

/// `known-failures.md` A1: what does not fit one body travels in several, and nothing is lost.
#[tokio::test]
async fn an_upload_larger_than_a_v1_body_arrives() {
    let (hub_db, peer_db) = (database(), database());
    fill(&peer_db, &"long key ".repeat(20), 8000);
    let limits = Limits { message_bytes_max: V1_BODY_BYTES_MAX, ..Limits::default() };
    let (hub_peer, _hub_events, server) = hub(&hub_db, HttpServer::new(), limits).await;
    let builder = Peer::builder(peer_db.clone()).transport(HttpClient::new(format!("http://{}", server.address)));
    let mut events = builder.events();
    let peer = builder.start().await.unwrap();
    wait(&mut events, "served", |event| matches!(event, Event::Served { .. })).await;
    assert_eq!(rows(&hub_db).len(), 8000);
    assert_eq!(rows(&hub_db), rows(&peer_db));
    peer.stop().await;
    hub_peer.stop().await;
}
