//! The contract between a transport and its peer (crates/proto/src/transport.rs), with a peer that takes notes.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use litemesh_nostr::nostr::{Event, Keys, RelayUrl, Timestamp};
use litemesh_nostr::{
    Batch, CHANGES_LIFETIME, CURSOR_KIND, CursorContent, Envelope, NostrTransport, Outgoing, Pairing, Store, StreamId,
};
use litemesh_proto::{
    Access, BoxFuture, Cursor, Limits, PeerCallbacks, PeerMessage, Refusal, Remote, SiteId, SyncRequest, Transport,
    TransportError, Unverified,
};
use support::hostile_relay::HostileRelay;
use support::wait_until;

const HERE: SiteId = SiteId::from_bytes([1; 16]);
const THERE: SiteId = SiteId::from_bytes([2; 16]);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    Connect,
    Sync,
    Receive,
    Disconnect,
}

/// Writes down what it is told, and whether it is told two things at once.
#[derive(Default)]
struct Notes {
    limits: Limits,
    calls: Mutex<Vec<(u64, Call)>>,
    under_way: AtomicUsize,
    overlapped: AtomicBool,
    refuses: AtomicBool,
}

impl Notes {
    async fn note(&self, remote: Remote, call: Call) {
        if self.under_way.fetch_add(1, Ordering::SeqCst) > 0 {
            self.overlapped.store(true, Ordering::SeqCst);
        }
        self.calls.lock().unwrap().push((remote.connection, call));
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        self.under_way.fetch_sub(1, Ordering::SeqCst);
    }

    fn count(&self, call: Call) -> usize {
        self.calls.lock().unwrap().iter().filter(|(_, known)| *known == call).count()
    }

    fn connections(&self) -> Vec<u64> {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|(_, call)| *call == Call::Connect).map(|(connection, _)| *connection).collect()
    }

    /// Of each connection: first that it stands, last and once that it is gone, where that is said at all.
    fn check(&self) {
        assert!(!self.overlapped.load(Ordering::SeqCst), "one at a time");
        let calls = self.calls.lock().unwrap().clone();
        let mut connections = self.connections();
        connections.dedup();
        assert!(connections.is_sorted_by(|one, next| one < next), "fresh numbers: {connections:?}");
        for connection in connections {
            let of_it: Vec<Call> = calls.iter().filter(|(of, _)| *of == connection).map(|(_, call)| *call).collect();
            assert_eq!(of_it[0], Call::Connect);
            let ends = of_it.iter().filter(|call| **call == Call::Disconnect).count();
            assert!(ends == 0 || ends == 1 && *of_it.last().unwrap() == Call::Disconnect, "{of_it:?}");
        }
    }
}

impl PeerCallbacks for Notes {
    fn site(&self) -> SiteId {
        HERE
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn connect(&self, remote: Remote, _access: Access) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async move {
            // Before it is noted: who sees the note may change it.
            let refuses = self.refuses.load(Ordering::SeqCst);
            self.note(remote, Call::Connect).await;
            if refuses { Err(Refusal::Unavailable("not now".to_owned())) } else { Ok(()) }
        })
    }

    fn sync(&self, remote: Remote, _request: SyncRequest) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async move {
            self.note(remote, Call::Sync).await;
            Ok(())
        })
    }

    fn receive(&self, remote: Remote, _message: Unverified) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async move {
            self.note(remote, Call::Receive).await;
            Ok(())
        })
    }

    fn garbled(&self, _remote: Remote, reason: String) -> BoxFuture<'_, ()> {
        panic!("{reason}")
    }

    fn disconnect(&self, remote: Remote, _reason: String) -> BoxFuture<'_, ()> {
        Box::pin(self.note(remote, Call::Disconnect))
    }
}

/// A transport with one pairing, and the other side of it.
struct Setup {
    relay: HostileRelay,
    store: Arc<Store>,
    transport: NostrTransport,
    notes: Arc<Notes>,
    envelope: Envelope,
}

impl Setup {
    async fn new() -> Self {
        let relay = HostileRelay::start().await;
        let (ours, theirs) = (Keys::generate(), Keys::generate());
        let store = Arc::new(Store::open_in_memory().unwrap());
        let pairing = Pairing {
            site: HERE,
            local_key: ours.public_key(),
            peer: THERE,
            peer_key: theirs.public_key(),
            device: String::new(),
            relays: vec![RelayUrl::parse(&relay.url()).unwrap()],
            paired_at: Timestamp::now(),
            is_litemesh: false,
        };
        store.pair(&pairing, Some(ours.secret_key())).unwrap();
        let transport = support::transport(&store).build();
        let envelope = Envelope::new(theirs, ours.public_key()).unwrap();
        Self { relay, store, transport, notes: Arc::default(), envelope }
    }

    async fn start(&self) {
        self.transport.start(self.notes.clone()).await.unwrap();
    }

    fn remote(&self) -> Remote {
        let connection = *self.notes.connections().last().unwrap();
        Remote { site: THERE, connection, is_litemesh: false }
    }

    fn cursor(&self, number: u8, at: Timestamp) -> Event {
        let stream_id = StreamId::from_bytes([number; 16]);
        let content = CursorContent { peer_id: THERE, stream_id, cursor: Cursor::new(), litemesh: None };
        self.envelope.cursor(&content, at).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_thing_is_told_at_a_time_and_nothing_after_the_end() {
    let setup = Setup::new().await;
    setup.start().await;
    wait_until("connected", || setup.notes.count(Call::Connect) == 1).await;
    setup.transport.sync(setup.remote(), SyncRequest::default()).await.unwrap();
    let is_asked = || setup.relay.events(CURSOR_KIND).iter().any(|event| event.pubkey == setup.envelope.remote());
    wait_until("asked", is_asked).await;
    let asked = setup.relay.events(CURSOR_KIND).remove(0);
    let stream = setup.envelope.read_cursor(&asked, HERE).unwrap().stream_id;
    // Messages and requests of the other side, at once.
    let now = Timestamp::now();
    let mut head = None;
    for number in 1..=50 {
        let batch = Batch::new(Vec::new(), 0);
        let content = Outgoing::Batch(&batch);
        let event = setup.envelope.changes(THERE, content, &stream, head, CHANGES_LIFETIME, now).unwrap();
        head = Some(litemesh_nostr::ChainHead::of(&event));
        setup.relay.keep(&event);
        if number == 25 {
            setup.relay.keep(&setup.cursor(number, now));
        }
    }
    wait_until("received", || setup.notes.count(Call::Receive) >= 50 && setup.notes.count(Call::Sync) >= 1).await;
    setup.transport.stop().await;
    let count = setup.notes.calls.lock().unwrap().len();
    setup.relay.keep(&setup.cursor(99, now + 1));
    assert_eq!(setup.notes.under_way.load(Ordering::SeqCst), 0);
    setup.notes.check();
    assert_eq!(setup.notes.count(Call::Disconnect), 0, "who stops it knows");
    let gone = setup.transport.sync(setup.remote(), SyncRequest::default()).await;
    assert!(matches!(gone, Err(TransportError::NotConnected { .. })), "{gone:?}");
    assert_eq!(setup.notes.calls.lock().unwrap().len(), count);
    assert!(setup.transport.start(setup.notes.clone()).await.is_err(), "it is not started again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_is_told_once_and_not_to_who_closed_or_refused() {
    let setup = Setup::new().await;
    setup.notes.refuses.store(true, Ordering::SeqCst);
    setup.start().await;
    wait_until("tried twice", || setup.notes.count(Call::Connect) == 2).await;
    let refused = setup.notes.connections();
    setup.notes.refuses.store(false, Ordering::SeqCst);
    wait_until("taken", || setup.notes.count(Call::Connect) > refused.len()).await;
    // Unknown ones are ignored.
    setup.transport.close(Remote { site: THERE, connection: u64::MAX, is_litemesh: false }).await;
    let closed = setup.remote();
    wait_until("known", || !matches!(setup.notes.connections().as_slice(), [])).await;
    setup.transport.close(closed).await;
    wait_until("another one", || setup.notes.connections().last() != Some(&closed.connection)).await;
    assert_eq!(setup.notes.count(Call::Disconnect), 0);
    // A send that waits ends with the connection.
    let last = setup.remote();
    assert!(setup.store.unpair(HERE, THERE).unwrap());
    wait_until("the end", || setup.notes.count(Call::Disconnect) == 1).await;
    let sent = setup.transport.send(last, PeerMessage::Unknown).await;
    assert!(matches!(sent, Err(TransportError::NotConnected { .. })), "{sent:?}");
    setup.transport.stop().await;
    setup.notes.check();
    assert_eq!(setup.notes.count(Call::Disconnect), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_never_started_can_be_stopped() {
    let setup = Setup::new().await;
    setup.transport.stop().await;
    let started = setup.transport.start(setup.notes.clone()).await;
    assert!(matches!(started, Err(TransportError::AlreadyStarted)), "{started:?}");
    assert!(setup.notes.calls.lock().unwrap().is_empty());
}
