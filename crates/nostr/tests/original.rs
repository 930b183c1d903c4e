//! A peer of the original, played by the test: what it would send, what it would make of what it is sent.
//!
//! It follows `wire-protocol.md` 7.3 and 7.4, knows nothing of wire v2, and has a client of its own.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashSet;
use std::path::Path;

use litemesh::Event as Told;
use litemesh::engine::MergeProgress;
use litemesh_nostr::nostr::{Event, JsonUtil, Keys, RelayUrl, Timestamp};
use litemesh_nostr::{
    BATCH_SIZE_MAX, Batch, CHANGES_KIND, CHANGES_LIFETIME, CURSOR_KIND, ChainHead, ChangesTags, ConnectReply,
    ConnectRequest, ConnectionString, CursorContent, Envelope, Incoming, Listener, Outgoing, Pairing, StreamId, filter,
    join,
};
use litemesh_proto::{
    CausalLength, Change, ColVersion, Column, Cursor, DbVersion, Limits, PackedKey, PeerMessage, Seq, SiteId, Value,
};
use nostr_sdk::{Client, RelayPoolNotification};
use support::hostile_relay::{HostileRelay, Verdict};
use support::{Device, PATIENCE, wait_until};

const SITE: SiteId = SiteId::from_bytes([0xA7; 16]);

struct Original {
    client: Client,
    relay: HostileRelay,
    envelope: Envelope,
    peer: SiteId,
    /// Of the stream that it sends.
    head: Option<ChainHead>,
    asked_at: Timestamp,
}

impl Original {
    /// Paired with this device, as if long ago.
    async fn with(device: &Device) -> Self {
        let relay = HostileRelay::start().await;
        let (ours, theirs) = (Keys::generate(), Keys::generate());
        let pairing = Pairing {
            site: device.site(),
            local_key: theirs.public_key(),
            peer: SITE,
            peer_key: ours.public_key(),
            device: "an original".to_owned(),
            relays: vec![RelayUrl::parse(&relay.url()).unwrap()],
            paired_at: Timestamp::from_secs(1_700_000_000),
            is_litemesh: false,
        };
        device.store.pair(&pairing, Some(theirs.secret_key())).unwrap();
        let client = client(&relay).await;
        let envelope = Envelope::new(ours, theirs.public_key()).unwrap();
        Self { client, relay, envelope, peer: device.site(), head: None, asked_at: Timestamp::from_secs(1) }
    }

    /// Asks for a stream.
    async fn ask(&mut self, cursor: Cursor) -> StreamId {
        let stream = new_stream();
        self.asked_at = Timestamp::now().max(self.asked_at + std::time::Duration::from_secs(1));
        let event = self.request(&stream, cursor, self.asked_at);
        self.client.send_event(&event).await.unwrap();
        stream
    }

    fn request(&self, stream: &StreamId, cursor: Cursor, at: Timestamp) -> Event {
        let content = CursorContent { peer_id: SITE, stream_id: stream.clone(), cursor, litemesh: None };
        self.envelope.cursor(&content, at).unwrap()
    }

    /// The events of a stream in the order of the chain, which has no gap; each is checked.
    fn stream(&self, stream: &StreamId) -> Vec<(Event, Vec<Change>)> {
        let (found, waiting) = self.so_far(stream);
        assert_eq!(waiting, 0, "events that do not belong to the chain");
        found
    }

    /// The same up to the first gap, and how many events lie behind that: where one is refused, and sent again, later ones are there already.
    fn so_far(&self, stream: &StreamId) -> (Vec<(Event, Vec<Change>)>, usize) {
        let events = self.relay.events(CHANGES_KIND).into_iter();
        let mut events: Vec<(ChangesTags, Event)> =
            events.map(|event| (ChangesTags::of(&event).unwrap(), event)).collect();
        events.retain(|(tags, event)| tags.stream_id == *stream && event.pubkey == self.envelope.remote());
        let mut found = Vec::new();
        let mut previous: Option<ChainHead> = None;
        while let Some(index) = events.iter().position(|(tags, _)| tags.previous == previous.map(|head| head.id)) {
            let (_, event) = events.remove(index);
            let names: Vec<String> = event.tags.iter().map(|tag| tag.as_slice()[0].clone()).collect();
            let expected: &[&str] = if previous.is_some() { &["r", "expiration", "e"] } else { &["r", "expiration"] };
            assert_eq!(names, expected);
            assert!(previous.is_none_or(|head| head.created_at <= event.created_at));
            let lifetime = ChangesTags::of(&event).unwrap().expiration.unwrap().as_secs() - event.created_at.as_secs();
            assert!(lifetime <= CHANGES_LIFETIME.as_secs());
            let changes = self.read(&event);
            assert!(changes.is_sorted_by_key(|change| change.db_version));
            previous = Some(ChainHead::of(&event));
            found.push((event, changes));
        }
        (found, events.len())
    }

    fn read(&self, event: &Event) -> Vec<Change> {
        let Incoming::Message(message) = self.envelope.read_changes(event, self.peer).unwrap().content else {
            panic!("frames of wire v2")
        };
        match message.verify(&Limits::default()).unwrap() {
            PeerMessage::Changes { changes, progress: None, .. } if !changes.is_empty() => changes,
            other => panic!("{other:?}"),
        }
    }

    /// Titles of the rows that came by this stream.
    fn titles(&self, stream: &StreamId) -> Vec<String> {
        let changes = self.so_far(stream).0.into_iter().flat_map(|(_, changes)| changes);
        let title =
            |change: &Change| (change.column.as_str() == "title").then(|| change.value.as_str().map(str::to_owned));
        changes.filter_map(|change| title(&change).flatten()).collect()
    }

    /// What the device asks for last.
    fn asked(&self) -> Option<CursorContent> {
        let events = self.relay.events(CURSOR_KIND);
        let event = events.iter().find(|event| event.pubkey == self.envelope.remote())?;
        Some(self.envelope.read_cursor(event, self.peer).unwrap())
    }

    async fn wait_for_request(&self, but: Option<&StreamId>) -> CursorContent {
        let is_other = || self.asked().is_some_and(|asked| Some(&asked.stream_id) != but);
        wait_until("a request for a stream", is_other).await;
        self.asked().unwrap()
    }

    /// Sends the next message of the stream that the device asks for.
    async fn send(&mut self, stream: &StreamId, changes: Vec<Change>, schema_version: i64) -> Event {
        let event = self.next(stream, changes, schema_version, Timestamp::now());
        self.client.send_event(&event).await.unwrap();
        event
    }

    fn next(&mut self, stream: &StreamId, changes: Vec<Change>, schema_version: i64, now: Timestamp) -> Event {
        let batch = Batch::new(changes, schema_version);
        let content = Outgoing::Batch(&batch);
        let event = self.envelope.changes(SITE, content, stream, self.head, CHANGES_LIFETIME, now).unwrap();
        self.head = Some(ChainHead::of(&event));
        event
    }
}

async fn client(relay: &HostileRelay) -> Client {
    let client = Client::default();
    client.add_relay(relay.url()).await.unwrap();
    client.connect().await;
    client.wait_for_connection(PATIENCE).await;
    client
}

fn new_stream() -> StreamId {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).unwrap();
    StreamId::from_bytes(bytes)
}

/// A row as its author's transaction `version` inserts it: two cells.
fn row(id: i64, title: &str, version: i64) -> Vec<Change> {
    let cell = |column: &str, value, seq| Change {
        table: "todo".into(),
        key: PackedKey::pack(&[Value::Integer(id)]).unwrap(),
        column: Column::from(column),
        value,
        col_version: ColVersion::new(1),
        db_version: DbVersion::new(version),
        site: SITE,
        causal_length: CausalLength::new(1),
        seq: Seq::new(seq),
    };
    vec![cell("title", Value::text(title), 0), cell("data", Value::Null, 1)]
}

fn device(folder: &Path) -> Device {
    Device::new(folder, "device")
}

fn holding(version: i64, site: SiteId) -> Cursor {
    [(site, DbVersion::new(version))].into_iter().collect()
}

/// 7.4, and `known-failures.md` B12: an older request resets the stream to one that nobody reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_original_gets_a_chain_of_json_that_goes_on_after_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let device = device(folder.path());
    let mut original = Original::with(&device).await;
    for id in 0..40 {
        device.execute(&format!("INSERT INTO todo VALUES ({id}, '{}', NULL)", "x".repeat(20_000 + id)));
    }
    // As many relays do.
    original.relay.judge(|event| {
        if event.as_json().len() > 64 * 1024 { Verdict::Refuse("invalid: too large") } else { Verdict::Store }
    });
    let running = device.start().await;
    let stream = original.ask(Cursor::new()).await;
    wait_until("all rows", || original.titles(&stream).len() == 40).await;
    let events = original.stream(&stream);
    assert!(events.len() >= 4, "cut into messages: {}", events.len());
    for (_, changes) in &events {
        let size: usize = changes.iter().map(|change| change.value.payload_bytes()).sum();
        assert!(size < BATCH_SIZE_MAX, "{size}");
    }
    running.device.execute("INSERT INTO todo VALUES (100, 'live', NULL)");
    wait_until("what is written live", || original.titles(&stream).contains(&"live".to_owned())).await;
    // After a restart the chain goes on. The newest version may come again.
    let running = running.stop().await.start().await;
    running.device.execute("INSERT INTO todo VALUES (101, 'later', NULL)");
    wait_until("what comes after a restart", || original.titles(&stream).contains(&"later".to_owned())).await;
    assert!(original.titles(&stream).len() < 50);

    // An older request that a relay still has begins nothing.
    let dead = new_stream();
    original.relay.send_forged("cursors", &original.request(&dead, Cursor::new(), Timestamp::from_secs(2)));
    running.device.execute("INSERT INTO todo VALUES (102, 'last', NULL)");
    wait_until("the stream goes on", || original.titles(&stream).contains(&"last".to_owned())).await;
    assert!(original.stream(&dead).is_empty());

    // A new stream begins after what the request holds, whose newest version may be there in part only.
    let cursor = holding(42, running.device.site());
    let anew = original.ask(cursor).await;
    wait_until("another stream", || original.titles(&anew).len() == 2).await;
    assert_eq!(original.titles(&anew), ["later", "last"]);
    running.stop().await;
}

/// `known-failures.md` B3, A10: after a backlog and three of these the original sends nothing any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_original_may_begin_anew_in_the_middle_of_a_backlog() {
    let folder = tempfile::tempdir().unwrap();
    let device = device(folder.path());
    let mut original = Original::with(&device).await;
    device.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 6000)
         INSERT INTO todo SELECT i, 'row', NULL FROM n",
    );
    let running = device.start().await;
    let mut stream = new_stream();
    // One message each, and then nothing more.
    let mut begun = HashSet::new();
    original.relay.judge(move |event| {
        let is_more =
            event.kind == CHANGES_KIND && !begun.insert(ChangesTags::of(event).unwrap().stream_id.to_string());
        if is_more { Verdict::Refuse("error: full") } else { Verdict::Store }
    });
    for _ in 0..3 {
        stream = original.ask(Cursor::new()).await;
        wait_until("it begins", || !original.stream(&stream).is_empty()).await;
    }
    original.relay.judge(|_| Verdict::Store);
    wait_until("all rows", || original.titles(&stream).len() == 6000).await;
    running.stop().await;
    original.stream(&stream);
}

/// `known-failures.md` B4: nothing can carry it to an original, whose events end at 1 MiB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_too_long_for_an_original_is_named_and_holds_up_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let device = device(folder.path());
    let mut original = Original::with(&device).await;
    device.execute("INSERT INTO todo VALUES (1, 'before', NULL)");
    device.execute("INSERT INTO todo VALUES (2, printf('%.*c', 1200000, 'x'), NULL)");
    device.execute("INSERT INTO todo VALUES (3, 'after', NULL)");
    let mut running = device.start().await;
    let stream = original.ask(Cursor::new()).await;
    let is_named = |event: &Told| matches!(event, Told::Error { message, .. } if message.contains("table todo, column title, key 010902"));
    running.wait("an error", is_named).await;
    wait_until("the rest", || original.titles(&stream) == ["before", "after"]).await;
    let mut running = running.stop().await.start().await;
    running.device.execute("INSERT INTO todo VALUES (4, 'live', NULL)");
    wait_until("what is written live", || original.titles(&stream).contains(&"live".to_owned())).await;
    running.device.execute("UPDATE todo SET title = printf('%.*c', 1200000, 'y') WHERE id = 4");
    running
        .wait("an error", |event| matches!(event, Told::Error { message, .. } if message.contains("key 010904")))
        .await;
}

/// `known-failures.md` E9: the original's streams cut strings between the two halves of a letter. Here nothing is cut inside of a value.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_of_two_units_stay_whole() {
    let folder = tempfile::tempdir().unwrap();
    let device = device(folder.path());
    let mut original = Original::with(&device).await;
    let mut running = device.start().await;
    // Wherever something is cut, one of them has a letter there.
    let titles: Vec<String> = (0..4).map(|n| "x".repeat(n) + &"😀".repeat(20_000)).collect();
    for (id, title) in titles.iter().enumerate() {
        running.device.execute(&format!("INSERT INTO todo VALUES ({id}, '{title}', NULL)"));
    }
    let stream = original.ask(Cursor::new()).await;
    wait_until("all rows", || original.titles(&stream).len() == titles.len()).await;
    assert_eq!(original.titles(&stream), titles);
    // And back.
    let asked = original.wait_for_request(None).await.stream_id;
    for (id, title) in titles.iter().enumerate() {
        let id = i64::try_from(id).unwrap();
        original.send(&asked, row(10 + id, title, 1 + id), 0).await;
    }
    let all: Vec<String> =
        (0..4).chain(10..14).zip(titles.iter().cycle()).map(|(id, title)| format!("{id} '{title}' ")).collect();
    running.wait_for_rows(&all).await;
}

/// 7.3, and `known-failures.md` A3: a transaction that is cut by a message boundary is not claimed before all of it is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_of_an_original_may_come_in_two_messages() {
    let folder = tempfile::tempdir().unwrap();
    let device = device(folder.path());
    let mut original = Original::with(&device).await;
    let mut running = device.start().await;
    let stream = original.wait_for_request(None).await.stream_id;
    original.send(&stream, row(1, "whole", 4), 0).await;
    let [first, second] = <[Change; 2]>::try_from(row(2, "in two", 5)).unwrap();
    original.send(&stream, vec![first], 0).await;
    running.wait_for_rows(&["1 'whole' ".to_owned(), "2 'in two' ".to_owned()]).await;
    // Restarted between the two.
    let device = running.stop().await;
    let second = Change { value: Value::blob([1, 2, 3]), ..second };
    original.send(&stream, vec![second], 0).await;
    let mut running = device.start().await;
    running.wait_for_rows(&["1 'whole' ".to_owned(), "2 'in two' 3".to_owned()]).await;
    assert_eq!(original.asked().unwrap().stream_id, stream, "the stream goes on");

    // The rest of version 6 never comes: the stream breaks, and another is asked for without it.
    let [first, _] = <[Change; 2]>::try_from(row(3, "half", 6)).unwrap();
    let head = original.head;
    original.send(&stream, vec![first], 0).await;
    running.wait_for_rows(&["1 'whole' ".to_owned(), "2 'in two' 3".to_owned(), "3 'half' ".to_owned()]).await;
    original.head = head;
    // What a killed original does: another event after the same one.
    original.send(&stream, row(9, "forked", 7), 0).await;
    let asked = original.wait_for_request(Some(&stream)).await;
    assert_eq!(asked.cursor.get(&SITE), DbVersion::new(5));
    original.head = None;
    let mut again = row(3, "half", 6);
    again.extend(row(4, "new", 7));
    original.send(&asked.stream_id, again, 0).await;
    let rows = ["1 'whole' ", "2 'in two' 3", "3 'half' ", "4 'new' "].map(str::to_owned);
    running.wait_for_rows(&rows).await;
}

/// `known-failures.md` A8: ignored, and never asked for again. The version after the last one that came whole is the worst case.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outdated_changes_of_an_original_come_after_the_upgrade() {
    for is_restarted in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let device = device(folder.path());
        let mut original = Original::with(&device).await;
        let mut running = device.start().await;
        let stream = original.wait_for_request(None).await.stream_id;
        original.send(&stream, row(1, "old", 4), 0).await;
        running.wait_for_rows(&["1 'old' ".to_owned()]).await;
        original.send(&stream, row(2, "newer", 5), 9).await;
        let is_outdated = |event: &Told| matches!(event, Told::Outdated { schema_version: 9, .. });
        running.wait("outdated", is_outdated).await;
        if is_restarted {
            running = running.stop().await.start().await;
            running.wait("outdated", is_outdated).await;
            running = running.stop().await.start().await;
            running.wait("outdated", is_outdated).await;
        }
        running.device.execute("PRAGMA user_version = 9");
        running.wait_for_rows(&["1 'old' ".to_owned(), "2 'newer' ".to_owned()]).await;
        running.stop().await;
    }
}

/// `known-failures.md` B18: errors in handlers of the original reach nobody, or end the process.
/// 7.3: the receiver asks for another stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_of_an_original_is_asked_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let device = device(folder.path());
    let mut original = Original::with(&device).await;
    let mut running = device.start().await;
    let stream = original.wait_for_request(None).await.stream_id;
    let batch = Batch::new(row(1, "of somebody else", 4), 0);
    let other_site = SiteId::from_bytes([0xA8; 16]);
    let content = Outgoing::Batch(&batch);
    let event = original.envelope.changes(other_site, content, &stream, None, CHANGES_LIFETIME, Timestamp::now());
    original.client.send_event(&event.unwrap()).await.unwrap();
    let again = original.wait_for_request(Some(&stream)).await.stream_id;
    original.send(&again, row(1, "its own", 4), 0).await;
    running.wait_for_rows(&["1 'its own' ".to_owned()]).await;
}

/// `known-failures.md` B19: refused each time, and everything else arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_cannot_be_merged_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let device = device(folder.path());
    let mut original = Original::with(&device).await;
    let mut running = device.start().await;
    let stream = original.wait_for_request(None).await.stream_id;
    let mut poison = row(1, "poison", 4);
    poison[0].table = "nowhere".into();
    original.send(&stream, poison, 0).await;
    running.wait("an error", |event| matches!(event, Told::Error { .. })).await;
    original.send(&stream, row(2, "good", 5), 0).await;
    running.wait_for_rows(&["2 'good' ".to_owned()]).await;
}

/// `known-failures.md` B10: more events than a relay sends at once, many of the same second; and what waits is bounded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_for_more_events_than_a_relay_sends_at_once_gets_them() {
    const COUNT: i64 = 560;
    for has_begun in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let device = device(folder.path());
        let mut original = Original::with(&device).await;
        let mut running = device.start().await;
        let stream = original.wait_for_request(None).await.stream_id;
        if has_begun {
            original.send(&stream, row(1, "row", 1), 0).await;
            running.wait_for_rows(&["1 'row' ".to_owned()]).await;
        }
        let device = running.stop().await;
        let now = Timestamp::now();
        for id in 1 + i64::from(has_begun)..=COUNT {
            let event = original.next(&stream, row(id, "row", id), 0, now + u64::try_from(id / 60).unwrap());
            original.relay.keep(&event);
        }
        let mut running = device.start().await;
        let rows: Vec<String> = (1..=COUNT).map(|id| format!("{id} 'row' ")).collect();
        running.wait_for_rows(&rows).await;
        assert_eq!(original.asked().unwrap().stream_id, stream, "the stream goes on, begun: {has_begun}");
        running.stop().await;
    }
}

/// An original's are up to a megabyte. Of those that there is no room for none may be read again with each one that there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_long_events_of_a_second_than_may_wait_are_each_read_a_few_times_at_most() {
    const COUNT: i64 = 60;
    let folder = tempfile::tempdir().unwrap();
    let device = device(folder.path());
    let mut original = Original::with(&device).await;
    let mut running = device.start().await;
    let stream = original.wait_for_request(None).await.stream_id;
    original.send(&stream, row(1, "row", 1), 0).await;
    running.wait_for_rows(&["1 'row' ".to_owned()]).await;
    let device = running.stop().await;
    let now = Timestamp::now();
    for id in 2..=COUNT {
        let event = original.next(&stream, row(id, &"x".repeat(300_000), id), 0, now);
        original.relay.keep(&event);
    }
    let before = original.relay.events_said();
    let mut running = device.start().await;
    let wait = async {
        while running.device.rows().len() < usize::try_from(COUNT).unwrap() {
            running.events.recv().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap();
    let said = original.relay.events_said() - before;
    assert!(said < 6 * usize::try_from(COUNT).unwrap(), "{said} events were sent for {COUNT}");
    running.stop().await;
}

/// Who holds the changes of many sites cannot name all of them in an event that relays take. Of those that are left out it gets again
/// what it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_relays_refuse_names_fewer_sites() {
    const COUNT: u16 = 1_500;
    let folder = tempfile::tempdir().unwrap();
    let device = device(folder.path());
    let mut original = Original::with(&device).await;
    let site = |number: u16| {
        let mut bytes = [1; 16];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        SiteId::from_bytes(bytes)
    };
    let cursor = (0..COUNT).map(|number| (site(number), DbVersion::new(7))).collect();
    let progress = MergeProgress { cursor, ..MergeProgress::default() };
    device.db.lock().merge(&[], &progress).unwrap();
    original.relay.judge(|event| {
        if event.as_json().len() > 64 * 1024 { Verdict::Refuse("invalid: too large") } else { Verdict::Store }
    });
    let mut running = device.start().await;
    let asked = original.wait_for_request(None).await;
    let named = asked.cursor.iter().filter(|(_, version)| *version == DbVersion::new(7)).count();
    assert!(named > 300 && named < usize::from(COUNT), "{named}");
    original.send(&asked.stream_id, row(1, "row", 1), 0).await;
    running.wait_for_rows(&["1 'row' ".to_owned()]).await;
}

/// 7.5.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_original_that_listens_is_joined() {
    let folder = tempfile::tempdir().unwrap();
    let device = device(folder.path());
    let relay = HostileRelay::start().await;
    let client = client(&relay).await;
    let keys = Keys::generate();
    let string = ConnectionString::generate(&keys.public_key(), [relay.url()]).unwrap();
    let mut notifications = client.notifications();
    client.subscribe(filter::connect_requests(string.nonce()), None).await.unwrap();
    let listening = async {
        let event = next_event(&mut notifications).await;
        let envelope = Envelope::new(keys.clone(), event.pubkey).unwrap();
        let request = envelope.read_connect_request(&event).unwrap();
        assert!(request.has_secret(string.secret()));
        assert_eq!(request.peer_id, device.site());
        let reply = ConnectReply { peer_id: SITE, device_info: "an original".to_owned(), litemesh: None };
        client.send_event(&envelope.connect_reply(&reply, Timestamp::now()).unwrap()).await.unwrap();
    };
    let (pairing, ()) = tokio::join!(join(device.site(), "device", &string, &device.store), listening);
    let pairing = pairing.unwrap();
    assert_eq!((pairing.peer, pairing.peer_key, pairing.is_litemesh), (SITE, keys.public_key(), false));
    assert_eq!(device.store.pairings(device.site()).unwrap(), [pairing]);
}

/// 7.5.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_original_that_joins_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let device = device(folder.path());
    let relay = HostileRelay::start().await;
    let client = client(&relay).await;
    let listener = Listener::start(device.site(), "device", &[relay.url()]).await.unwrap();
    let string: ConnectionString = listener.connection_string().to_string().parse().unwrap();
    let keys = Keys::generate();
    let envelope = Envelope::new(keys.clone(), string.listener().unwrap()).unwrap();
    let mut notifications = client.notifications();
    client.subscribe(filter::connect_replies(envelope.remote()), None).await.unwrap();
    let joining = async {
        let request = |secret: &str| ConnectRequest {
            secret: secret.to_owned(),
            peer_id: SITE,
            device_info: "an original".to_owned(),
            litemesh: None,
        };
        // Its listener may not be subscribed yet; an original's user tries again.
        let mut asking = tokio::time::interval(std::time::Duration::from_millis(200));
        let reply = loop {
            tokio::select! {
                event = next_event(&mut notifications) => break event,
                _ = asking.tick() => {
                    for secret in ["wrong", string.secret()] {
                        let event = envelope.connect_request(&request(secret), string.nonce(), Timestamp::now());
                        client.send_event(&event.unwrap()).await.unwrap();
                    }
                }
            }
        };
        envelope.read_connect_reply(&reply).unwrap()
    };
    let (pairing, reply) = tokio::join!(listener.paired(&device.store), joining);
    let pairing = pairing.unwrap();
    assert_eq!((reply.peer_id, reply.device_info.as_str()), (device.site(), "device"));
    assert_eq!((pairing.peer, pairing.peer_key, pairing.is_litemesh), (SITE, keys.public_key(), false));
}

async fn next_event(notifications: &mut tokio::sync::broadcast::Receiver<RelayPoolNotification>) -> Event {
    let next = async {
        loop {
            if let RelayPoolNotification::Event { event, .. } = notifications.recv().await.unwrap() {
                return *event;
            }
        }
    };
    tokio::time::timeout(PATIENCE, next).await.unwrap()
}
