//! One peer over several transports at once: a hub over HTTP that is paired with devices over Nostr, and a device that is reached both
//! ways.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use litemesh::channel::Channel;
use litemesh::proto::{Access, DbVersion, Transport};
use litemesh::{Database, Event, Events, Peer};
use litemesh_http::{HttpClient, HttpServer};
use litemesh_nostr::{Listener, NostrTransport, Store, join};
use litemesh_testkit::proxy::{Ending, Line, Proxy};
use nostr_relay_builder::builder::RateLimit;
use nostr_relay_builder::{LocalRelay, RelayBuilder};
use support::{PATIENCE, SCHEMA};
use tokio::net::{TcpListener, TcpStream};
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
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
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

/// What a row of [`Node::insert`] is: two cells.
const CHANGES_OF_ROW: u64 = 2;

/// A hub and a phone that reaches it by a stream with POSTs, and by a channel, each over a line that can break.
struct TwoLines {
    hub: Node,
    phone: Node,
    stream: Proxy,
    channel: Proxy,
    serving: Serving,
    rows: u64,
    _folder: tempfile::TempDir,
}

impl TwoLines {
    /// The channel cannot be reached yet.
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ((hub_db, _), (phone_db, _)) = (database(folder.path(), "hub.db"), database(folder.path(), "phone.db"));
        let (server, channel_of_hub) = (HttpServer::new(), Channel::new());
        let hub = Node::start(&hub_db, vec![Arc::new(server.clone()), Arc::new(channel_of_hub.clone())]).await;
        let serving = serve(server).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (stream, channel) = (Proxy::start(), Proxy::start());
        stream.lead_to(Some(serving.url.strip_prefix("http://").unwrap().parse().unwrap()));
        channel.lead_to(Some(listener.local_addr().unwrap()));
        channel.set_line(Line::Down);
        tokio::spawn(async move {
            loop {
                let (read, write) = listener.accept().await.unwrap().0.into_split();
                let channel = channel_of_hub.clone();
                tokio::spawn(async move { channel.accept(read, write, Access::FULL).await });
            }
        });
        let client = HttpClient::builder(stream.url()).websocket(false).reconnect_delay_min(SOON).build();
        let address = channel.address();
        let connect = move || async move { Ok(TcpStream::connect(address).await?.into_split()) };
        let channel_of_phone = Channel::dialling("channel", connect).reconnect_delay_min(SOON);
        let mut phone = Node::start(&phone_db, vec![Arc::new(client), Arc::new(channel_of_phone)]).await;
        served(&mut phone, "http").await;
        let mut lines = Self { hub, phone, stream, channel, serving, rows: 0, _folder: folder };
        lines.served_by_hub("http").await;
        lines
    }

    async fn served_by_hub(&mut self, transport: &str) {
        served(&mut self.hub, transport).await;
    }

    /// The hub writes a row, and it arrives.
    async fn write(&mut self) {
        self.rows += 1;
        let id = format!("row {}", self.rows);
        let sent = |hub: &Node| hub.changes_sent("http") + hub.changes_sent("channel");
        let before = sent(&self.hub);
        self.hub.insert(&id);
        self.phone.wait_for(&id).await;
        // It may be merged before it is counted.
        let counted = async {
            while sent(&self.hub) == before {
                tokio::task::yield_now().await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, counted).await.is_ok(), "{id} is not counted");
    }

    /// Rows until one has gone over this way, and has been acknowledged there.
    async fn write_until_carried_by(&mut self, transport: &str) {
        let (begun, sent) = (std::time::Instant::now(), self.hub.changes_sent(transport));
        while self.hub.changes_sent(transport) == sent {
            assert!(begun.elapsed() < PATIENCE, "{transport} is not used: {:?}", self.hub.peer.status());
            self.write().await;
        }
        self.hub.wait_for_acknowledgement(transport).await;
    }

    /// A line breaks, and both ends know.
    async fn cut(&mut self, transport: &str) {
        self.line(transport).set_line(Line::Down);
        self.line(transport).end_all(Ending::Reset);
        let is_lost = |event: &Event| matches!(event, Event::Disconnect { transport: of, .. } if &**of == transport);
        self.hub.wait_for_event("the end of a line", is_lost).await;
        self.phone.wait_for_event("the end of a line", is_lost).await;
    }

    fn clear(&self, transport: &str) {
        self.line(transport).set_line(Line::Clear);
    }

    fn line(&self, transport: &str) -> &Proxy {
        if transport == "http" { &self.stream } else { &self.channel }
    }

    async fn stop(self) {
        self.phone.peer.stop().await;
        self.hub.peer.stop().await;
        self.serving.stop().await;
    }
}

/// How long who dials waits at first.
const SOON: Duration = Duration::from_millis(50);

async fn served(node: &mut Node, transport: &str) {
    let is_served = |event: &Event| matches!(event, Event::Served { transport: of, .. } if &**of == transport);
    node.wait_for_event("up to date", is_served).await;
}

/// One line that goes both ways is better than a stream with POSTs, though it came later; and where it breaks the stream goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_better_of_two_lines_carries_and_a_break_loses_and_repeats_nothing() {
    let mut lines = TwoLines::start().await;
    for _ in 0..5 {
        lines.write().await;
    }
    let over = |lines: &TwoLines, transport: &str| lines.hub.changes_sent(transport);
    assert_eq!(over(&lines, "http"), 5 * CHANGES_OF_ROW);
    lines.clear("channel");
    lines.served_by_hub("channel").await;
    lines.write_until_carried_by("channel").await;
    // Each row has gone once, over one of them; and from now on over the channel alone.
    let over_http = over(&lines, "http");
    assert_eq!(over_http + over(&lines, "channel"), lines.rows * CHANGES_OF_ROW);
    for _ in 0..10 {
        lines.write().await;
    }
    assert_eq!((over(&lines, "http"), over_http + over(&lines, "channel")), (over_http, lines.rows * CHANGES_OF_ROW));
    lines.hub.wait_for_acknowledgement("channel").await;

    let before = lines.rows;
    lines.cut("channel").await;
    for _ in 0..5 {
        lines.write().await;
    }
    assert_eq!(over(&lines, "http"), over_http + (lines.rows - before) * CHANGES_OF_ROW);

    // It came and went: now the stream carries until it breaks.
    lines.clear("channel");
    lines.served_by_hub("channel").await;
    for _ in 0..5 {
        lines.write().await;
    }
    assert_eq!(over(&lines, "http"), over_http + (lines.rows - before) * CHANGES_OF_ROW);
    lines.hub.wait_for_acknowledgement("http").await;
    let (before, over_channel) = (lines.rows, over(&lines, "channel"));
    lines.cut("http").await;
    for _ in 0..5 {
        lines.write().await;
    }
    assert_eq!(over(&lines, "channel"), over_channel + (lines.rows - before) * CHANGES_OF_ROW);
    lines.stop().await;
}

/// Breaks in the middle of traffic: what was under way may go twice, and nothing is left out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn breaks_of_either_line_under_load_leave_nothing_out() {
    let mut lines = TwoLines::start().await;
    lines.clear("channel");
    lines.served_by_hub("channel").await;
    for (round, broken) in ["channel", "http", "channel", "http"].into_iter().enumerate() {
        for row in 0..50 {
            lines.hub.insert(&format!("hub {round} {row}"));
            lines.phone.insert(&format!("phone {round} {row}"));
            match row {
                // What is sent from here on is swallowed.
                20 => lines.line(broken).silence_those_that_stand(),
                25 => lines.cut(broken).await,
                _ => {}
            }
        }
        for row in 0..50 {
            lines.phone.wait_for(&format!("hub {round} {row}")).await;
            lines.hub.wait_for(&format!("phone {round} {row}")).await;
        }
        lines.clear(broken);
        lines.served_by_hub(broken).await;
    }
    lines.stop().await;
}
