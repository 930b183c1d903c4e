//! One peer over several transports at once: a hub over HTTP that is paired with devices over Nostr, and a device that is reached both
//! ways.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use litemesh::proto::{DbVersion, Transport};
use litemesh::{Database, Event, Events, Peer};
use litemesh_http::{HttpClient, HttpServer};
use litemesh_nostr::{Listener, NostrTransport, Store, join};
use nostr_relay_builder::builder::RateLimit;
use nostr_relay_builder::{LocalRelay, RelayBuilder};
use support::{PATIENCE, SCHEMA};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

async fn relay() -> LocalRelay {
    let limit = RateLimit { max_reqs: 100_000, notes_per_minute: 1_000_000 };
    let relay = LocalRelay::new(RelayBuilder::default().rate_limit(limit));
    relay.run().await.unwrap();
    relay
}

fn database(folder: &Path, name: &str) -> (Database, Arc<Store>) {
    let path = folder.join(name);
    let db = Database::open(&path).unwrap();
    db.lock().connection().execute_batch(SCHEMA).unwrap();
    for table in ["todo", "tag"] {
        db.lock().replicate(table).unwrap();
    }
    (db, Arc::new(Store::open(&Store::path_beside(&path)).unwrap()))
}

async fn pair((one, at_one): (&Database, &Store), (other, at_other): (&Database, &Store), relay: &LocalRelay) {
    let site = |db: &Database| db.lock().site().unwrap();
    let listener = Listener::start(site(one), "one", &[relay.url().await.as_str()]).await.unwrap();
    let string = listener.connection_string().clone();
    let (listened, joined) = tokio::join!(listener.paired(at_one), join(site(other), "other", &string, at_other));
    assert_eq!((listened.unwrap().peer, joined.unwrap().peer), (site(other), site(one)));
}

struct Node {
    db: Database,
    peer: Peer,
    events: Events,
    /// Under which version the last row was written here.
    written: DbVersion,
}

impl Node {
    async fn start(db: &Database, transports: Vec<Arc<dyn Transport>>) -> Self {
        let mut builder = Peer::builder(db.clone());
        for transport in transports {
            builder = builder.shared_transport(transport);
        }
        let events = builder.events();
        Self { db: db.clone(), peer: builder.start().await.unwrap(), events, written: DbVersion::ZERO }
    }

    fn insert(&mut self, id: &str) {
        let engine = self.db.lock();
        let transaction = engine.connection().unchecked_transaction().unwrap();
        transaction.execute("INSERT INTO todo (id) VALUES (?1)", [id]).unwrap();
        // After the commit it may be that of a merge already.
        let version = transaction.query_row("SELECT crsql_next_db_version()", (), |row| row.get(0)).unwrap();
        transaction.commit().unwrap();
        self.written = DbVersion::new(version);
    }

    fn has(&self, id: &str) -> bool {
        let engine = self.db.lock();
        let count = engine.connection().query_row("SELECT count(*) FROM todo WHERE id = ?1", [id], |row| row.get(0));
        count == Ok(1)
    }

    async fn wait_for(&mut self, id: &str) {
        let wait = async {
            while !self.has(id) {
                self.events.recv().await.unwrap();
            }
        };
        let waited = tokio::time::timeout(PATIENCE, wait).await;
        assert!(waited.is_ok(), "{id} does not come: {:?}", self.peer.status());
    }

    async fn wait_for_event(&mut self, what: &str, found: impl Fn(&Event) -> bool) {
        let wait = async { while !found(&self.events.recv().await.unwrap()) {} };
        assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "no event: {what}");
    }

    /// Until the remote has acknowledged everything that was written here.
    async fn wait_for_acknowledgement(&self, transport: &str) {
        let is_acknowledged = || {
            let ways = self.peer.status();
            ways.iter().any(|way| &*way.transport == transport && way.acknowledged >= Some(self.written))
        };
        let wait = async {
            while !is_acknowledged() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "not acknowledged: {:?}", self.peer.status());
    }

    fn changes_sent(&self, transport: &str) -> u64 {
        self.peer.status().iter().filter(|way| &*way.transport == transport).map(|way| way.changes_sent).sum()
    }
}

struct Serving {
    url: String,
    end: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

async fn serve(server: HttpServer) -> Serving {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (end, ended) = oneshot::channel::<()>();
    let ended = async move { drop(ended.await) };
    let task = tokio::spawn(async move { server.serve(listener, ended).await.unwrap() });
    Serving { url, end, task }
}

impl Serving {
    async fn stop(self) {
        self.end.send(()).unwrap();
        self.task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_any_transport_reach_all_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let (hub_db, hub_store) = database(folder.path(), "hub.db");
    let (phone_db, phone_store) = database(folder.path(), "phone.db");
    let (socket_db, _) = database(folder.path(), "socket.db");
    let (stream_db, _) = database(folder.path(), "stream.db");
    let relay = relay().await;
    pair((&hub_db, &hub_store), (&phone_db, &phone_store), &relay).await;
    let server = HttpServer::new();
    let hub = Node::start(&hub_db, vec![Arc::new(server.clone()), Arc::new(NostrTransport::new(hub_store))]).await;
    let serving = serve(server).await;
    let mut nodes = [
        hub,
        Node::start(&phone_db, vec![Arc::new(NostrTransport::new(phone_store))]).await,
        Node::start(&socket_db, vec![Arc::new(HttpClient::new(serving.url.replace("http", "ws")))]).await,
        Node::start(&stream_db, vec![Arc::new(HttpClient::builder(&serving.url).websocket(false).build())]).await,
    ];
    for round in 0..3 {
        for writer in 0..nodes.len() {
            let id = format!("{round} of {writer}");
            nodes[writer].insert(&id);
            for node in &mut nodes {
                node.wait_for(&id).await;
            }
        }
    }
    for node in &nodes {
        node.peer.stop().await;
    }
    serving.stop().await;
}

/// The same device over HTTP and over Nostr: one way carries what is written, and where it breaks the other goes on from there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remote_that_is_reached_two_ways_stays_in_sync_when_one_breaks() {
    let folder = tempfile::tempdir().unwrap();
    let (hub_db, hub_store) = database(folder.path(), "hub.db");
    let (phone_db, phone_store) = database(folder.path(), "phone.db");
    let relay = relay().await;
    pair((&hub_db, &hub_store), (&phone_db, &phone_store), &relay).await;
    let server = HttpServer::new();
    let mut hub = Node::start(&hub_db, vec![Arc::new(server.clone()), Arc::new(NostrTransport::new(hub_store))]).await;
    let serving = serve(server).await;
    let ways: Vec<Arc<dyn Transport>> =
        vec![Arc::new(HttpClient::new(&serving.url)), Arc::new(NostrTransport::new(phone_store))];
    let mut phone = Node::start(&phone_db, ways).await;
    for node in [&mut hub, &mut phone] {
        let mut ways = vec!["http", "nostr"];
        let wait = async {
            while !ways.is_empty() {
                if let Event::Served { transport, .. } = node.events.recv().await.unwrap() {
                    ways.retain(|way| *way != &*transport);
                }
            }
        };
        assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "not up to date over {ways:?}");
    }
    let mut both = 0..20;
    let mut write = async |hub: &mut Node, phone: &mut Node| {
        let number = both.next().unwrap();
        let (of_hub, of_phone) = (format!("hub {number}"), format!("phone {number}"));
        hub.insert(&of_hub);
        phone.insert(&of_phone);
        hub.wait_for(&of_phone).await;
        phone.wait_for(&of_hub).await;
        hub.wait_for_acknowledgement("http").await;
        phone.wait_for_acknowledgement("http").await;
    };
    // The sessions hear of each other beside all this: the first rows may go both ways.
    write(&mut hub, &mut phone).await;
    for _ in 1..20 {
        write(&mut hub, &mut phone).await;
    }
    // Each row is two changes, and over Nostr, which stands by, goes nothing more.
    let sent = |over: &str| hub.changes_sent(over) + phone.changes_sent(over);
    let sent = (sent("http"), sent("nostr"));
    assert!(sent.0 <= 2 * 2 * 20 && sent.1 <= 2 * 2, "{sent:?} changes went over HTTP and Nostr");

    serving.stop().await;
    let is_http = |event: &Event| matches!(event, Event::Disconnect { transport, .. } if &**transport == "http");
    phone.wait_for_event("the end of HTTP", is_http).await;
    hub.insert("after the break");
    phone.wait_for("after the break").await;
    phone.insert("and back");
    hub.wait_for("and back").await;
    // Neither what was acknowledged over HTTP, nor what came over it. The first rows may have gone both ways.
    let over_nostr = hub.changes_sent("nostr") + phone.changes_sent("nostr");
    assert!(over_nostr <= 2 * (2 + 2), "{over_nostr} changes went over Nostr");
    phone.peer.stop().await;
    hub.peer.stop().await;
}
