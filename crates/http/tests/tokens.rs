//! Tokens and tickets: who is let in, and what a holder can do to others.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use litemesh::{Database, Event, Events, Peer};
use litemesh_http::{HttpClient, HttpServer, HttpServerBuilder, NewToken, TokenFile};
use litemesh_proto::codec::v1;
use litemesh_proto::codec::v2::{self, Frame};
use litemesh_proto::{
    Access, Cursor, DbVersion, Incarnation, Limits, PeerMessage, Position, Progress, Rights, SiteId, SyncRequest, Terms,
};
use serde_json::Value;
use support::raw::{EventStream, FRAMES, FrameStream, JSON, exchange};
use support::{CLIENT, OTHER, PATIENCE, Reports, Running, change, changes, serve, soon, started};

/// Short beside [`PATIENCE`]; nothing depends on it being over.
const RELOAD_INTERVAL: Duration = Duration::from_millis(20);

struct Tokens {
    _folder: tempfile::TempDir,
    file: TokenFile,
}

impl Tokens {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = TokenFile::new(folder.path().join("tokens"));
        std::fs::write(file.path(), "").unwrap();
        Self { _folder: folder, file }
    }

    fn add(&self, access: &Access) -> NewToken {
        self.file.add("test", access).unwrap()
    }

    /// In one step, as an editor should: a file that is empty for a moment ends every token.
    fn replace(&self, content: &[u8]) {
        let new = self.file.path().with_extension("new");
        std::fs::write(&new, content).unwrap();
        std::fs::rename(new, self.file.path()).unwrap();
    }

    fn server(&self) -> HttpServerBuilder {
        HttpServer::builder().tokens(self.file.clone()).unwrap().reload_interval(RELOAD_INTERVAL)
    }

    async fn started(&self) -> (Running, Arc<support::RecordingPeer>, Reports) {
        started(self.server().build(), Limits::default()).await
    }
}

fn bearer(token: &NewToken) -> String {
    format!("Authorization: Bearer {}", token.token)
}

fn stream_url(site: SiteId) -> String {
    format!("/stream?peerId={site}")
}

async fn open(server: &Running, site: SiteId, token: &NewToken) -> EventStream {
    EventStream::open_with(server.address, &stream_url(site), &[&bearer(token)]).await
}

async fn post_as(server: &Running, url: &str, headers: &[&str], body: &[u8]) -> (u16, String) {
    let (head, body) = exchange(server.address, "POST", url, &[&[JSON], headers].concat(), Some(body)).await;
    (head.status(), String::from_utf8(body).unwrap())
}

fn data(site: SiteId, text: &str) -> Vec<u8> {
    v1::data(site, &changes(vec![change(1, text)]))
}

/// `known-failures.md` C1: the original lets in anybody.
#[tokio::test]
async fn without_a_valid_token_there_is_nothing_to_see_or_to_do() {
    let tokens = Tokens::new();
    let revoked = tokens.add(&Access::FULL);
    tokens.file.revoke(&revoked.id).unwrap();
    let (server, _peer, mut reports) = tokens.started().await;
    let forged = format!("Authorization: Bearer litemesh_{}_{}", revoked.id, "0".repeat(64));
    for headers in
        [&[][..], &["Authorization: Basic dXNlcjpwYXNz"], &[&bearer(&revoked)], &[&forged], &["Authorization: Bearer "]]
    {
        for (method, url, body) in [
            ("GET", stream_url(CLIENT), None),
            ("GET", "/stream".to_owned(), None),
            ("HEAD", stream_url(CLIENT), None),
            ("POST", "/sync".to_owned(), Some(&b"{}"[..])),
            ("POST", "/data".to_owned(), Some(&data(CLIENT, "x")[..])),
            ("POST", "/data".to_owned(), Some(b"not even JSON")),
            ("POST", "/ticket".to_owned(), Some(b"")),
        ] {
            let (head, answer) = exchange(server.address, method, &url, &[&[JSON], headers].concat(), body).await;
            assert_eq!(head.status(), 401, "{method} {url} {headers:?}");
            assert!(head.header("www-authenticate").unwrap().starts_with("Bearer"));
            let text = String::from_utf8(answer).unwrap();
            assert!(method == "HEAD" || text.contains("token"), "{text}");
        }
    }
    reports.assert_none();
    let counters = server.transport.counters();
    assert_eq!((counters.refused_unauthorized, counters.streams_total, counters.messages_in), (35, 0, 0));
}

#[tokio::test]
async fn a_token_gives_the_access_that_it_was_made_with() {
    let tokens = Tokens::new();
    let access = Access::new(Rights::Read).only(["todo"]).unwrap();
    let token = tokens.add(&access);
    let (server, peer, mut reports) = tokens.started().await;
    let headers = [&bearer(&token)[..], "Litemesh-Version: 2"];
    let mut stream = EventStream::open_with(server.address, &stream_url(CLIENT), &headers).await;
    let introduction = stream.expect("connect").await;
    assert_eq!(introduction["litemesh"], serde_json::json!({ "version": 2, "access": "read", "tables": ["todo"] }));
    reports.connect().await;
    assert_eq!(peer.access.lock().unwrap().take(), Some(access));
}

/// `known-failures.md` C1: whoever names a peer is that peer, to the original.
/// One who may connect is not yet everybody who is connected.
#[tokio::test]
async fn nobody_posts_for_a_connection_of_another_token() {
    let tokens = Tokens::new();
    let (ada, bob) = (tokens.add(&Access::FULL), tokens.add(&Access::FULL));
    let (server, _peer, mut reports) = tokens.started().await;
    let mut stream = open(&server, CLIENT, &ada).await;
    stream.expect("connect").await;
    reports.connect().await;
    // The sender named first, named last, and a body that cannot be read: what is reported as garbled ends connections.
    let named_last = data(CLIENT, "x");
    let text = String::from_utf8(named_last).unwrap();
    let late = format!(
        "{{\"data\":{},\"type\":\"data\",\"peerId\":\"{CLIENT}\"}}",
        &text[text.find("\"data\":{").unwrap() + 7..text.len() - 1]
    );
    let cut = &data(CLIENT, "x")[..60];
    for body in [&data(CLIENT, "x")[..], late.as_bytes(), cut] {
        for url in ["/data", "/sync"] {
            let (status, answer) = post_as(&server, url, &[&bearer(&bob)], body).await;
            assert!(status == 403 || url == "/sync" && status == 400, "{status} {answer}");
        }
    }
    reports.assert_none();
    assert_eq!(post_as(&server, "/data", &[&bearer(&ada)], &data(CLIENT, "x")).await.0, 200);
    assert_eq!(post_as(&server, "/data", &[&bearer(&ada)], late.as_bytes()).await.0, 200);
    // Nor does anybody take the connection over, by the word of its process or otherwise.
    let mut taken = open(&server, CLIENT, &bob).await;
    assert_eq!(taken.expect("error").await["error"], "ALREADY_CONNECTED");
}

#[tokio::test]
async fn a_process_word_is_no_key_to_the_stream_of_another_token() {
    let tokens = Tokens::new();
    let (ada, bob) = (tokens.add(&Access::FULL), tokens.add(&Access::FULL));
    let (server, _peer, _reports) = tokens.started().await;
    let word = "Litemesh-Instance: guessed";
    let open = async |token: &NewToken| {
        let mut stream = EventStream::open_with(server.address, &stream_url(CLIENT), &[&bearer(token), word]).await;
        let kind = stream.frame().await.unwrap()["type"].as_str().unwrap().to_owned();
        (stream, kind)
    };
    let (_first, kind) = open(&ada).await;
    assert_eq!(kind, "connect");
    assert_eq!(open(&bob).await.1, "error");
    assert_eq!(open(&ada).await.1, "connect");
}

#[tokio::test]
async fn a_ticket_opens_one_stream_in_place_of_a_token() {
    let tokens = Tokens::new();
    let access = Access::new(Rights::Read);
    let token = tokens.add(&access);
    let (server, peer, mut reports) = tokens.started().await;
    let (status, answer) = post_as(&server, "/ticket", &[&bearer(&token)], b"").await;
    assert_eq!(status, 200);
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let ticket = answer["ticket"].as_str().unwrap();
    assert!(answer["seconds"] == 30 && !token.token.contains(ticket.split_once('_').unwrap().1), "{answer}");

    let url = format!("{}&ticket={ticket}", stream_url(CLIENT));
    let mut stream = EventStream::open_with(server.address, &url, &[]).await;
    stream.expect("connect").await;
    reports.connect().await;
    assert_eq!(peer.access.lock().unwrap().take(), Some(access));
    // What is posted belongs to the same holder.
    let (status, _) = post_as(&server, "/data", &[&bearer(&token)], &data(CLIENT, "x")).await;
    assert_eq!(status, 200);
    for url in [url, format!("{}&ticket=x", stream_url(OTHER)), format!("{}&ticket=", stream_url(OTHER))] {
        let (head, _) = exchange(server.address, "GET", &url, &[], None).await;
        assert_eq!(head.status(), 401, "{url}");
    }
}

#[tokio::test]
async fn a_ticket_ends_with_its_token() {
    let tokens = Tokens::new();
    let token = tokens.add(&Access::FULL);
    let (server, _peer, _reports) = tokens.started().await;
    let (_, answer) = post_as(&server, "/ticket", &[&bearer(&token)], b"").await;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    tokens.file.revoke(&token.id).unwrap();
    while post_as(&server, "/ticket", &[&bearer(&token)], b"").await.0 != 401 {
        tokio::task::yield_now().await;
    }
    let url = format!("{}&ticket={}", stream_url(CLIENT), answer["ticket"].as_str().unwrap());
    assert_eq!(exchange(server.address, "GET", &url, &[], None).await.0.status(), 401);
}

#[tokio::test]
async fn a_revoked_token_ends_its_connection_and_no_other() {
    let tokens = Tokens::new();
    let (ada, bob) = (tokens.add(&Access::FULL), tokens.add(&Access::FULL));
    let (server, _peer, mut reports) = tokens.started().await;
    let mut first = open(&server, CLIENT, &ada).await;
    first.expect("connect").await;
    let remote = reports.connect().await;
    let mut second = open(&server, OTHER, &bob).await;
    second.expect("connect").await;
    reports.connect().await;
    // A file that cannot be read changes nothing.
    let good = std::fs::read(tokens.file.path()).unwrap();
    tokens.replace(b"broken");
    assert_eq!(post_as(&server, "/data", &[&bearer(&ada)], &data(CLIENT, "x")).await.0, 200);
    reports.message().await;
    tokens.replace(&good);

    tokens.file.revoke(&ada.id).unwrap();
    let (lost, reason) = reports.disconnect().await;
    assert_eq!((lost, &*reason), (remote, "the token was revoked, or its rights were changed"));
    assert_eq!(post_as(&server, "/data", &[&bearer(&ada)], &data(CLIENT, "x")).await.0, 401);
    assert_eq!(post_as(&server, "/data", &[&bearer(&bob)], &data(OTHER, "x")).await.0, 200);
    // A token that was made meanwhile is known.
    let new = tokens.add(&Access::FULL);
    while exchange(server.address, "HEAD", &stream_url(CLIENT), &[&bearer(&new)], None).await.0.status() != 200 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn where_anybody_may_read_a_token_may_do_more_and_a_wrong_one_nothing() {
    let tokens = Tokens::new();
    let token = tokens.add(&Access::FULL);
    let transport = tokens.server().anonymous(Some(Access::new(Rights::Read))).build();
    let (server, peer, mut reports) = started(transport, Limits::default()).await;
    let mut stream = EventStream::open(server.address, CLIENT).await;
    stream.expect("connect").await;
    reports.connect().await;
    assert_eq!(peer.access.lock().unwrap().take(), Some(Access::new(Rights::Read)));
    let mut stream = open(&server, OTHER, &token).await;
    stream.expect("connect").await;
    reports.connect().await;
    assert_eq!(peer.access.lock().unwrap().take(), Some(Access::FULL));
    let wrong = ["Authorization: Bearer litemesh_wrong"];
    assert_eq!(exchange(server.address, "GET", &stream_url(CLIENT), &wrong, None).await.0.status(), 401);
    assert_eq!(post_as(&server, "/data", &[], &data(OTHER, "x")).await.0, 403);
}

#[tokio::test]
async fn a_hub_without_tokens_looks_at_none() {
    let (server, _peer, mut reports) = started(HttpServer::new(), Limits::default()).await;
    let headers = ["Authorization: Bearer of-somebody-else"];
    let mut stream = EventStream::open_with(server.address, &stream_url(CLIENT), &headers).await;
    stream.expect("connect").await;
    reports.connect().await;
    assert_eq!(post_as(&server, "/ticket", &[], b"{}").await.0, 404);
}

#[tokio::test]
async fn browsers_may_send_a_token_where_there_are_tokens() {
    let asked = ["Origin: https://app.example", "Access-Control-Request-Method: POST"];
    for (server, allowed) in [
        (serve(Tokens::new().server().build()).await, "Content-Type, Cache-Control, Authorization"),
        (serve(HttpServer::new()).await, "Content-Type, Cache-Control"),
    ] {
        let (head, _) = exchange(server.address, "OPTIONS", "/data", &asked, None).await;
        assert_eq!((head.status(), head.header("access-control-allow-headers")), (204, Some(allowed)));
    }
}

fn database() -> Database {
    let db = Database::open_in_memory().unwrap();
    let schema = "CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT);
        CREATE TABLE salary (id TEXT PRIMARY KEY NOT NULL, title TEXT);";
    db.lock().connection().execute_batch(schema).unwrap();
    for table in ["todo", "salary"] {
        db.lock().replicate(table).unwrap();
    }
    db
}

fn insert(db: &Database, table: &str, id: &str) {
    db.lock().connection().execute_batch(&format!("INSERT INTO {table} VALUES ('{id}', 'x')")).unwrap();
}

fn ids(db: &Database, table: &str) -> Vec<String> {
    let engine = db.lock();
    let mut statement = engine.connection().prepare(&format!("SELECT id FROM {table} ORDER BY 1")).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

async fn wait(events: &mut Events, what: &str, found: impl Fn(&Event) -> bool) {
    let wait = async { while !found(&events.recv().await.unwrap()) {} };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("no event: {what}"));
}

/// The whole way: file, header, frame, session, engine, and back.
#[tokio::test]
async fn real_peers_exchange_what_their_tokens_allow() {
    let tokens = Tokens::new();
    let hub_db = database();
    let transport = tokens.server().build();
    let hub = Peer::builder(hub_db.clone()).transport(transport.clone()).start().await.unwrap();
    let server = serve(transport).await;
    let url = format!("http://{}", server.address);
    for table in ["todo", "salary"] {
        insert(&hub_db, table, "hub");
    }
    let some = Access::FULL.only(["todo"]).unwrap();
    for (access, todo, salary) in
        [(Access::new(Rights::Read), &["hub", "leaf"][..], &["hub", "leaf"][..]), (some, &["hub", "leaf"], &["leaf"])]
    {
        let token = tokens.add(&access);
        while exchange(server.address, "HEAD", &stream_url(CLIENT), &[&bearer(&token)], None).await.0.status() != 200 {
            tokio::task::yield_now().await;
        }
        let leaf_db = database();
        for table in ["todo", "salary"] {
            insert(&leaf_db, table, "leaf");
        }
        let builder = Peer::builder(leaf_db.clone()).transport(HttpClient::builder(&url).token(&token.token).build());
        let mut events = builder.events();
        let leaf = builder.start().await.unwrap();
        let (mut eose, mut served) = (false, false);
        while !(eose && served) {
            let event = soon(events.recv()).await.unwrap();
            eose |= matches!(event, Event::Eose { .. });
            served |= matches!(event, Event::Served { .. });
            assert!(!matches!(event, Event::Error { .. } | Event::Disconnect { .. }), "{event:?}");
        }
        assert_eq!((ids(&leaf_db, "todo"), ids(&leaf_db, "salary")), (owned(todo), owned(salary)), "{access:?}");
        let is_writer = access.may_write();
        assert_eq!(ids(&hub_db, "todo"), if is_writer { owned(&["hub", "leaf"]) } else { owned(&["hub"]) });
        assert_eq!(ids(&hub_db, "salary"), ["hub"]);
        // Revoked, it is turned away.
        tokens.file.revoke(&token.id).unwrap();
        wait(&mut events, "disconnect", |event| matches!(event, Event::Disconnect { .. })).await;
        leaf.stop().await;
    }
    hub.stop().await;
}

fn owned(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

async fn post_frame(server: &Running, token: &NewToken, site: SiteId, frame: &[u8]) -> (u16, String) {
    let headers = [FRAMES, &bearer(token), &format!("Litemesh-Peer: {site}")];
    let (head, body) = exchange(server.address, "POST", "/data", &headers, Some(&v2::framed(frame))).await;
    (head.status(), String::from_utf8(body).unwrap())
}

/// A client that claims and writes what it may not, over the real session and engine.
#[tokio::test]
async fn a_hostile_holder_moves_nothing_beyond_its_rights() {
    let tokens = Tokens::new();
    let db = database();
    let reader = tokens.add(&Access::new(Rights::Read));
    let some = tokens.add(&Access::FULL.only(["todo"]).unwrap());
    let transport = tokens.server().build();
    let hub = Peer::builder(db.clone()).transport(transport.clone()).start().await.unwrap();
    let server = serve(transport).await;
    let held = hub.cursor().await.unwrap();
    let version = db.lock().db_version().unwrap();
    let word = "Litemesh-Instance: the same process";
    let claimed: Cursor = [(OTHER, DbVersion::new(1000)), (CLIENT, DbVersion::new(7))].into_iter().collect();
    let position = Position { version: DbVersion::new(9), incarnation: Incarnation(1) };
    let accesses = [Access::new(Rights::Read), Access::FULL.only(["todo"]).unwrap()];
    for ((token, site), access) in [(&reader, CLIENT), (&some, OTHER)].into_iter().zip(accesses) {
        let mut stream = FrameStream::open(server.address, site, &[&bearer(token), word]).await;
        assert!(matches!(stream.frame().await, Frame::Hello(hello) if hello.access == access));
        let claim = |number| Progress {
            answer: 1,
            number,
            position: Some(position),
            cursor: Some(claimed.clone()),
            ..Progress::default()
        };
        let eose = PeerMessage::Eose { progress: Some(claim(1)) };
        let (status, answer) = post_frame(&server, token, site, &v2::message(&eose)).await;
        assert_eq!(status, 200, "{answer}");
        let mut forbidden = change(1, "x");
        forbidden.table = "salary".into();
        let forbidden = PeerMessage::Changes { changes: vec![forbidden], schema_version: 0, progress: Some(claim(2)) };
        let (status, answer) = post_frame(&server, token, site, &v2::message(&forbidden)).await;
        assert!(status == 403 && answer.contains("refused: this access"), "{status} {answer}");
    }
    // A reader that claims a version of ours that cannot be: ours stays, and it is answered.
    let mut stream = FrameStream::open(server.address, CLIENT, &[&bearer(&reader), word]).await;
    let ours: Cursor = [(hub.id(), DbVersion::new(1 << 39))].into_iter().collect();
    let position = Position { version: DbVersion::new(1 << 39), ..position };
    let terms = Terms { answer: 1, credit: 9, position, ..Terms::default() };
    let request = v2::sync(&SyncRequest { cursor: ours, terms: Some(terms) });
    assert_eq!(post_frame(&server, &reader, CLIENT, &request).await.0, 200);
    while !matches!(stream.frame().await, Frame::Message(_)) {}
    assert_eq!(db.lock().db_version().unwrap(), version);
    assert_eq!(hub.cursor().await.unwrap(), held);
    assert_eq!(ids(&db, "salary"), Vec::<String>::new());
    hub.stop().await;
}
