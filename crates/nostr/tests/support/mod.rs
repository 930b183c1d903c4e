//! Relays, and peers that meet there.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)] // each test binary uses a part of it

pub mod hostile_relay;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use litemesh::{Database, Event, Events, Peer};
use litemesh_nostr::nostr::PublicKey;
use litemesh_nostr::{CHANGES_KIND, Listener, NostrTransport, NostrTransportBuilder, Pairing, Store, join};
use nostr_relay_builder::builder::RateLimit;
use nostr_relay_builder::prelude::{Filter, MemoryDatabase, MemoryDatabaseOptions, NostrDatabase};
use nostr_relay_builder::{LocalRelay, RelayBuilder};

use hostile_relay::HostileRelay;

/// Long enough for any machine; a test that needs it fails.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// How long a missing event may be missing, where a test is not about whether the stream goes on.
pub const GAP_PATIENCE: Duration = Duration::from_secs(2);

pub fn builder() -> RelayBuilder {
    RelayBuilder::default().rate_limit(RateLimit { max_reqs: 100_000, notes_per_minute: 1_000_000 })
}

pub async fn relay() -> LocalRelay {
    run(builder()).await
}

/// What a relay keeps, to look at and to lose.
pub fn memory() -> MemoryDatabase {
    MemoryDatabase::with_opts(MemoryDatabaseOptions { events: true, max_events: None })
}

/// The streams of which a relay has events.
pub async fn streams(memory: &MemoryDatabase) -> std::collections::BTreeSet<String> {
    let events = memory.query(Filter::new().kind(CHANGES_KIND)).await.unwrap();
    let stream = |event| litemesh_nostr::ChangesTags::of(event).unwrap().stream_id.to_string();
    events.iter().map(stream).collect()
}

pub async fn run(builder: RelayBuilder) -> LocalRelay {
    let relay = LocalRelay::new(builder);
    relay.run().await.unwrap();
    relay
}

/// A transport that does not let tests wait.
pub fn transport(store: &Arc<Store>) -> NostrTransportBuilder {
    NostrTransport::builder(store.clone()).pauses_divided_by(10)
}

/// A database and its pairings.
pub struct Device {
    pub db: Database,
    pub path: PathBuf,
    pub store: Arc<Store>,
}

impl Device {
    pub fn new(folder: &Path, name: &str) -> Self {
        let device = Self::open(&folder.join(format!("{name}.db")));
        let engine = device.db.lock();
        engine
            .connection()
            .execute_batch("CREATE TABLE todo (id INTEGER PRIMARY KEY NOT NULL, title TEXT, data BLOB)")
            .unwrap();
        drop(engine);
        device.db.lock().replicate("todo").unwrap();
        device
    }

    pub fn open(path: &Path) -> Self {
        let store = Store::open(&Store::path_beside(path)).unwrap();
        Self { db: Database::open(path).unwrap(), path: path.to_owned(), store: Arc::new(store) }
    }

    pub fn site(&self) -> litemesh_proto::SiteId {
        self.db.lock().site().unwrap()
    }

    pub fn execute(&self, sql: &str) {
        self.db.lock().connection().execute_batch(sql).unwrap();
    }

    pub fn rows(&self) -> Vec<String> {
        let engine = self.db.lock();
        let mut statement = engine
            .connection()
            .prepare("SELECT id || ' ' || quote(title) || ' ' || ifnull(length(data), '') FROM todo ORDER BY id")
            .unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    pub async fn start(self) -> Running {
        self.start_with_lifetime(litemesh_nostr::CHANGES_LIFETIME).await
    }

    /// Relays are asked to keep for so long what it sends.
    pub async fn start_with_lifetime(self, lifetime: Duration) -> Running {
        let transport = transport(&self.store).lifetime(lifetime).build();
        self.start_over(transport).await
    }

    pub async fn start_over(self, transport: NostrTransport) -> Running {
        let builder = Peer::builder(self.db.clone()).transport(transport.clone());
        let events = builder.events();
        Running { peer: builder.start().await.unwrap(), events, transport, device: self }
    }
}

/// A device that syncs.
pub struct Running {
    pub device: Device,
    pub peer: Peer,
    pub events: Events,
    pub transport: NostrTransport,
}

impl Running {
    pub async fn wait(&mut self, what: &str, found: impl Fn(&Event) -> bool) {
        let wait = async { while !found(&self.events.recv().await.unwrap()) {} };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| {
            panic!("no event: {what}; last error: {:?}; {:?}", self.transport.last_error(), self.peer.status())
        });
    }

    /// Waits until the rows are these.
    pub async fn wait_for_rows(&mut self, rows: &[String]) {
        let wait = async {
            while self.device.rows() != rows {
                self.events.recv().await.unwrap();
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            let have = self.device.rows();
            panic!(
                "waiting for {} rows, have {}; last error: {:?}; {:?}",
                rows.len(),
                have.len(),
                self.transport.last_error(),
                self.peer.status()
            );
        }
    }

    /// Waits until so many changes (two for each row) were handed to the transport over the connection that stands.
    pub async fn wait_until_sent(&self, count: u64) {
        let sent = || self.peer.status().first().map_or(0, |remote| remote.changes_sent);
        let wait = async {
            while sent() < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "{} of {count} were sent", sent());
    }

    /// Ends the process, so to say.
    pub async fn stop(self) -> Device {
        self.peer.stop().await;
        self.device
    }
}

/// Copies a database or a file of pairings as it is now, also while it is written to.
pub fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_file(to);
    let connection = rusqlite::Connection::open(from).unwrap();
    connection.busy_timeout(PATIENCE).unwrap();
    connection.execute("VACUUM INTO ?1", [to.to_str().unwrap()]).unwrap();
}

/// Puts a copy back. Nobody has the file open.
pub fn restore(copy: &Path, to: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let mut path = to.as_os_str().to_owned();
        path.push(suffix);
        let _ = std::fs::remove_file(path);
    }
    std::fs::copy(copy, to).unwrap();
}

/// Waits until this is so.
pub async fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "not in time: {what}");
}

/// Pairs two devices at these relays.
pub async fn pair(one: &Device, other: &Device, relays: &[String]) -> (Pairing, Pairing) {
    let listener = Listener::start(one.site(), "one", relays).await.unwrap();
    let string = listener.connection_string().to_string().parse().unwrap();
    let (listened, joined) =
        tokio::join!(listener.paired(&one.store), join(other.site(), "other", &string, &other.store));
    (listened.unwrap(), joined.unwrap())
}

/// Two devices that are paired at a relay of ours, have synced one row, and have told each other that they have sent everything.
pub async fn two(folder: &Path) -> (HostileRelay, Running, Running, Vec<String>) {
    let (one, other) = (Device::new(folder, "one"), Device::new(folder, "other"));
    let relay = HostileRelay::start().await;
    pair(&one, &other, &[relay.url()]).await;
    one.execute("INSERT INTO todo VALUES (0, 'first', NULL)");
    let (mut one, mut other) = (one.start().await, other.start().await);
    for device in [&mut one, &mut other] {
        device.wait("the end of what is stored", |event| matches!(event, Event::Eose { .. })).await;
    }
    let rows = vec!["0 'first' ".to_owned()];
    other.wait_for_rows(&rows).await;
    (relay, one, other, rows)
}

/// Starts two devices that sync over relays and over a channel, and are up to date over both.
pub async fn both_ways(one: Device, other: Device) -> (Running, Running) {
    let (near, far) = litemesh::channel::pair();
    let (mut one, mut other) = (start_beside(one, near).await, start_beside(other, far).await);
    for device in [&mut one, &mut other] {
        let mut ways = std::collections::HashSet::new();
        let wait = async {
            while ways.len() < 2 {
                if let Event::Served { transport, .. } = device.events.recv().await.unwrap() {
                    ways.insert(transport);
                }
            }
        };
        assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "up to date only over {ways:?}");
    }
    (one, other)
}

async fn start_beside(device: Device, channel: litemesh::channel::Channel) -> Running {
    let transport = transport(&device.store).build();
    let builder = Peer::builder(device.db.clone()).transport(transport.clone()).transport(channel);
    let events = builder.events();
    Running { peer: builder.start().await.unwrap(), events, transport, device }
}

/// Writes a row, and says what it looks like.
pub fn write(device: &Device, id: usize, rows: &mut Vec<String>) {
    device.execute(&format!("INSERT INTO todo VALUES ({id}, 'row', NULL)"));
    rows.push(format!("{id} 'row' "));
    rows.sort_by_key(|row| row.split(' ').next().unwrap().parse::<usize>().unwrap());
}

/// What a device has published of its stream, as a relay has it.
pub fn events_of(device: &Device, relay: &HostileRelay) -> Vec<litemesh_nostr::nostr::Event> {
    let pairings = device.store.pairings(device.site()).unwrap();
    let events = relay.events(CHANGES_KIND).into_iter();
    events.filter(|event| event.pubkey == pairings[0].local_key).collect()
}

/// Whether an event is of the stream that this key signs.
pub fn by(key: PublicKey) -> impl Fn(&litemesh_nostr::nostr::Event) -> bool + Send + 'static {
    move |event| event.kind == CHANGES_KIND && event.pubkey == key
}

/// The key with which a device signs.
pub fn local_key(device: &Device) -> PublicKey {
    device.store.pairings(device.site()).unwrap()[0].local_key
}
