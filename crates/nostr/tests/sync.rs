//! Two devices that share nothing but relays, with the real peer, the real engine and a real relay.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use litemesh::{Event, Peer};
use litemesh_nostr::nostr::{Keys, Tag};
use litemesh_nostr::{CHANGES_KIND, CONNECT_KIND, CURSOR_KIND, Listener, NostrTransport, Signer, join_with};
use nostr_relay_builder::builder::{PolicyResult, QueryPolicy, RelayBuilderNip42, RelayBuilderNip42Mode};
use nostr_relay_builder::prelude::{Alphabet, BoxedFuture, Filter, MemoryDatabase, NostrDatabase, SingleLetterTag};
use support::hostile_relay::{HostileRelay, Verdict};
use support::{Device, PATIENCE, Running, builder, memory, pair, relay, run, streams, wait_until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_devices_are_paired_by_a_string_and_sync_both_ways() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Device::new(folder.path(), "one"), Device::new(folder.path(), "other"));
    let relay = relay().await;
    let url = relay.url().await.to_string();
    one.execute("INSERT INTO todo VALUES (1, 'from one', x'00ff')");
    other.execute("INSERT INTO todo VALUES (2, 'from the other', NULL)");
    let (at_one, at_other) = pair(&one, &other, &[url]).await;
    assert_eq!((at_one.device.as_str(), at_other.device.as_str()), ("other", "one"));
    assert_eq!((at_one.peer, at_other.peer), (other.site(), one.site()));
    assert_eq!((at_one.peer_key, at_one.local_key), (at_other.local_key, at_other.peer_key));
    assert!(at_one.is_litemesh && at_other.is_litemesh);

    let (mut one, mut other) = (one.start().await, other.start().await);
    let mut rows = vec!["1 'from one' 2".to_owned(), "2 'from the other' ".to_owned()];
    one.wait_for_rows(&rows).await;
    other.wait_for_rows(&rows).await;

    one.device.execute("INSERT INTO todo VALUES (3, 'live', NULL)");
    rows.push("3 'live' ".to_owned());
    other.wait_for_rows(&rows).await;
    other.device.execute("DELETE FROM todo WHERE id = 1");
    rows.remove(0);
    one.wait_for_rows(&rows).await;
    one.stop().await;
    other.stop().await;
}

/// What relays learn is in docs/nostr.md: keys, times, sizes, and that both talk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_see_only_ciphertext() {
    const TITLE: &str = "a Title of 40 Letters, which no one reads";
    const VERSION: u8 = 3;
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Device::new(folder.path(), "one"), Device::new(folder.path(), "other"));
    let relay = HostileRelay::start().await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let seeing = seen.clone();
    relay.judge(move |event| {
        seeing.lock().unwrap().push(event.clone());
        Verdict::Store
    });
    let (at_one, at_other) = pair(&one, &other, &[relay.url()]).await;
    let keys = [at_one.local_key, at_other.local_key];
    let sites = [one.site(), other.site()].map(|site| (site.to_string(), *site.as_bytes()));
    one.execute(&format!("INSERT INTO todo VALUES (1, '{TITLE}', NULL)"));
    let (one, mut other) = (one.start().await, other.start().await);
    other.wait_for_rows(&[format!("1 '{TITLE}' ")]).await;
    one.stop().await;
    other.stop().await;

    let events = seen.lock().unwrap();
    for kind in [CONNECT_KIND, CURSOR_KIND, CHANGES_KIND] {
        assert!(events.iter().any(|event| event.kind == kind), "{kind}");
    }
    let mut secrets: Vec<&[u8]> = vec![TITLE.as_bytes(), b"peer_id", b"device_info", b"stream_id"];
    for (text, bytes) in &sites {
        secrets.extend([text.as_bytes(), bytes]);
    }
    for event in events.iter() {
        assert!(keys.contains(&event.pubkey), "another key: {event:?}");
        let is_known = |name: &str| ["n", "r", "e", "expiration"].contains(&name);
        assert!(event.tags.iter().all(|tag| is_known(tag.as_slice()[0].as_str())), "{event:?}");
        let content = STANDARD.decode(&event.content).unwrap();
        assert_eq!(content[0], VERSION);
        let tags = event.tags.iter().flat_map(Tag::as_slice).map(String::as_bytes);
        for seen in tags.chain([event.content.as_bytes(), &content]) {
            let secret = secrets.iter().find(|secret| seen.windows(secret.len()).any(|window| window == **secret));
            assert_eq!(secret, None, "{event:?}");
        }
    }
}

/// The original throws the stream away at each start (`known-failures.md` B8).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_go_on_after_both_were_restarted() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Device::new(folder.path(), "one"), Device::new(folder.path(), "other"));
    let memory = memory();
    let relay = run(builder().database(memory.clone())).await;
    pair(&one, &other, &[relay.url().await.to_string()]).await;
    one.execute("INSERT INTO todo VALUES (1, 'first', NULL)");
    let (one, mut other) = (one.start().await, other.start().await);
    let mut rows = vec!["1 'first' ".to_owned()];
    other.wait_for_rows(&rows).await;
    let (mut one, mut other) = (one.stop().await, other.stop().await);
    for round in 2..5 {
        let (running, mut receiving) = (one.start().await, other.start().await);
        running.device.execute(&format!("INSERT INTO todo VALUES ({round}, 'again', NULL)"));
        rows.push(format!("{round} 'again' "));
        receiving.wait_for_rows(&rows).await;
        (one, other) = (running.stop().await, receiving.stop().await);
    }
    assert!(streams(&memory).await.len() <= 2, "one in each direction at most");
}

/// Writes a row, and waits until the relay has it.
async fn write_to_relay(running: &Running, memory: &MemoryDatabase, id: usize, rows: &mut Vec<String>) {
    let length = 2_000 * id;
    let key = running.device.store.pairings(running.device.site()).unwrap()[0].local_key;
    let bytes_by_us = async || {
        let events = memory.query(Filter::new().kind(CHANGES_KIND).author(key)).await.unwrap();
        events.iter().map(|event| event.content.len()).sum::<usize>()
    };
    // What goes beside it is shorter: the row of the other device, where that is sent back because it was sent before the device asked.
    let until = bytes_by_us().await + length / 3 * 4;
    running.device.execute(&format!("INSERT INTO todo VALUES ({id}, 'alone', randomblob({length}))"));
    rows.push(format!("{id} 'alone' {length}"));
    let wait = async {
        while bytes_by_us().await < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "row {id} is not at the relay");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_that_are_never_there_at_the_same_time_sync() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Device::new(folder.path(), "one"), Device::new(folder.path(), "other"));
    let memory = memory();
    let relay = run(builder().database(memory.clone())).await;
    pair(&one, &other, &[relay.url().await.to_string()]).await;
    // Once, so that each knows what the other asks for.
    let (one, mut other) = (one.start().await, other.start().await);
    one.device.execute("INSERT INTO todo VALUES (1, 'together', NULL)");
    let mut rows = vec!["1 'together' ".to_owned()];
    other.wait_for_rows(&rows).await;
    let (mut one, mut other) = (one.stop().await, other.stop().await);
    for round in (2..8).step_by(2) {
        let mut running = one.start().await;
        if round > 2 {
            running.wait_for_rows(&rows).await;
        }
        write_to_relay(&running, &memory, round, &mut rows).await;
        one = running.stop().await;

        let mut running = other.start().await;
        running.wait_for_rows(&rows).await;
        write_to_relay(&running, &memory, round + 1, &mut rows).await;
        other = running.stop().await;
    }
    assert!(streams(&memory).await.len() <= 2, "one in each direction at most");
}

/// `known-failures.md` B2, B6: one relay that is not there stops everything in the original.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_relays_cost_nothing_while_one_works() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Device::new(folder.path(), "one"), Device::new(folder.path(), "other"));
    // One that refuses connections, one that takes them and says nothing.
    let refusing = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let relay = relay().await;
    let relays =
        [format!("ws://{refusing}"), format!("ws://{}", silent.local_addr().unwrap()), relay.url().await.to_string()];
    pair(&one, &other, &relays).await;
    let (one, mut other) = (one.start().await, other.start().await);
    let mut rows = Vec::new();
    for round in 0..100 {
        one.device.execute(&format!("INSERT INTO todo VALUES ({round}, 'live', NULL)"));
        rows.push(format!("{round} 'live' "));
        other.wait_for_rows(&rows).await;
    }
}

/// `known-failures.md` B4: such a value ends the original's process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_larger_than_an_event_travel_in_parts() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Device::new(folder.path(), "one"), Device::new(folder.path(), "other"));
    let relay = relay().await;
    pair(&one, &other, &[relay.url().await.to_string()]).await;
    one.execute("INSERT INTO todo VALUES (1, 'large', randomblob(3000000))");
    let (_one, mut other) = (one.start().await, other.start().await);
    other.wait_for_rows(&["1 'large' 3000000".to_owned()]).await;
}

/// `known-failures.md` E9: also where a value is longer than an event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_of_two_units_stay_whole_in_parts() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Device::new(folder.path(), "one"), Device::new(folder.path(), "other"));
    let relay = relay().await;
    pair(&one, &other, &[relay.url().await.to_string()]).await;
    // Nothing that compression could make short.
    let mut rng = fastrand::Rng::with_seed(9);
    let letters: String = (0..200_000).map(|_| rng.char('\u{1F300}'..='\u{1F64F}')).collect();
    let rows: Vec<String> = (0..4).map(|n| format!("{n} '{}{letters}' ", "x".repeat(n))).collect();
    for n in 0..4 {
        one.execute(&format!("INSERT INTO todo VALUES ({n}, '{}{letters}', NULL)", "x".repeat(n)));
    }
    let (_one, mut other) = (one.start().await, other.start().await);
    other.wait_for_rows(&rows).await;
}

/// NIP-42.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_that_want_a_login_get_one() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Device::new(folder.path(), "one"), Device::new(folder.path(), "other"));
    let relay = run(builder().nip42(RelayBuilderNip42 { mode: RelayBuilderNip42Mode::Both })).await;
    pair(&one, &other, &[relay.url().await.to_string()]).await;
    one.execute("INSERT INTO todo VALUES (1, 'behind a login', NULL)");
    let (_one, mut other) = (one.start().await, other.start().await);
    other.wait_for_rows(&["1 'behind a login' ".to_owned()]).await;
}

/// A relay that is set up anew, or keeps events for an hour only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_forgot_everything_gets_another_stream() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Device::new(folder.path(), "one"), Device::new(folder.path(), "other"));
    let memory = memory();
    let relay = run(builder().database(memory.clone())).await;
    pair(&one, &other, &[relay.url().await.to_string()]).await;
    one.execute("INSERT INTO todo VALUES (1, 'first', NULL)");
    let (one, mut other) = (one.start().await, other.start().await);
    let mut rows = vec!["1 'first' ".to_owned()];
    other.wait_for_rows(&rows).await;
    let other = other.stop().await;
    one.device.execute("INSERT INTO todo VALUES (2, 'lost', NULL)");
    one.wait_until_sent(4).await;
    memory.wipe().await.unwrap();
    one.device.execute("INSERT INTO todo VALUES (3, 'refers to what is lost', NULL)");
    rows.extend(["2 'lost' ".to_owned(), "3 'refers to what is lost' ".to_owned()]);
    let mut other = other.start().await;
    other.wait_for_rows(&rows).await;
}

/// `known-failures.md` B13: who was unpaired cannot be paired again before a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_are_paired_and_unpaired_while_they_sync() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Device::new(folder.path(), "one"), Device::new(folder.path(), "other"));
    let relay = relay().await;
    let url = [relay.url().await.to_string()];
    let (one_store, other_store) = (one.store.clone(), other.store.clone());
    let (mut one, mut other) = (one.start().await, other.start().await);
    let mut rows = Vec::new();
    for round in 0..2 {
        pair(&one.device, &other.device, &url).await;
        one.device.execute(&format!("INSERT INTO todo VALUES ({round}, 'paired', NULL)"));
        rows.push(format!("{round} 'paired' "));
        other.wait_for_rows(&rows).await;
        let (at_one, at_other) = (one.device.site(), other.device.site());
        assert!(one_store.unpair(at_one, at_other).unwrap() && other_store.unpair(at_other, at_one).unwrap());
        one.wait("the end", |event| matches!(event, Event::Disconnect { .. })).await;
        other.wait("the end", |event| matches!(event, Event::Disconnect { .. })).await;
        wait_until("no connection", || one.peer.status().is_empty()).await;
    }
}

/// A relay that answers what is asked for by the event before it, and nothing else of a stream.
#[derive(Debug)]
struct NoStreams(Arc<AtomicBool>);

impl QueryPolicy for NoStreams {
    fn admit_query<'a>(&'a self, query: &'a Filter, _: &'a SocketAddr) -> BoxedFuture<'a, PolicyResult> {
        let is_stream = query.kinds.as_ref().is_some_and(|kinds| kinds.contains(&CHANGES_KIND));
        let is_step = query.generic_tags.contains_key(&SingleLetterTag::lowercase(Alphabet::E));
        let refused = is_stream && !is_step && self.0.load(Ordering::Relaxed);
        Box::pin(
            async move { if refused { PolicyResult::Reject("no streams".to_owned()) } else { PolicyResult::Accept } },
        )
    }
}

/// What was dropped because it came too fast is fetched later, one event after the other (`known-failures.md` B9).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_which_nothing_comes_by_itself_is_fetched_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Device::new(folder.path(), "one"), Device::new(folder.path(), "other"));
    let (memory, is_closed) = (memory(), Arc::new(AtomicBool::new(false)));
    let policy = NoStreams(is_closed.clone());
    let relay = run(builder().database(memory.clone()).query_policy(policy)).await;
    pair(&one, &other, &[relay.url().await.to_string()]).await;
    let (one, mut other) = (one.start().await, other.start().await);
    one.device.execute("INSERT INTO todo VALUES (0, 'first', NULL)");
    let mut rows = vec!["0 'first' ".to_owned()];
    other.wait_for_rows(&rows).await;
    let other = other.stop().await;
    for id in 1..=30 {
        one.device.execute(&format!("INSERT INTO todo VALUES ({id}, 'later', NULL)"));
        rows.push(format!("{id} 'later' "));
        one.wait_until_sent(2 * (id + 1)).await;
    }
    // All of it is at the relay.
    let _one = one.stop().await;
    is_closed.store(true, Ordering::Relaxed);
    let mut other = other.start().await;
    other.wait_for_rows(&rows).await;
    assert!(streams(&memory).await.len() <= 2, "one in each direction at most");
}

/// Two that publish with the same keys would break each other's streams (`known-failures.md` B18).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_program_at_a_time_syncs_over_the_same_pairings() {
    let folder = tempfile::tempdir().unwrap();
    let one = Device::new(folder.path(), "one");
    let path = one.path.clone();
    let running = one.start().await;
    let second = Device::open(&path);
    let builder = Peer::builder(second.db.clone()).transport(NostrTransport::new(second.store.clone()));
    let refused = builder.start().await.err().unwrap().to_string();
    assert!(refused.contains("another program syncs over these pairings"), "{refused}");
    let one = running.stop().await;
    second.start().await.stop().await;
    drop(one);
}

/// Keys of applications that keep them elsewhere: the file has none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_may_stay_with_a_signer() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Device::new(folder.path(), "one"), Device::new(folder.path(), "other"));
    let relay = relay().await;
    let relays = [relay.url().await.to_string()];
    let signers: [Arc<dyn Signer>; 2] = [Arc::new(Keys::generate()), Arc::new(Keys::generate())];
    let listener = Listener::start_with(signers[0].clone(), one.site(), "one", &relays).await.unwrap();
    let string = listener.connection_string().clone();
    let joining = join_with(signers[1].clone(), other.site(), "other", &string, &other.store);
    let (listened, joined) = tokio::join!(listener.paired(&one.store), joining);
    assert_eq!(listened.unwrap().local_key, signers[0].pairing_key().unwrap());
    assert_eq!(joined.unwrap().local_key, signers[1].pairing_key().unwrap());

    one.execute("INSERT INTO todo VALUES (1, 'signed elsewhere', NULL)");
    // Without the signer nothing can be signed, and that is said.
    let (store, db) = (one.store.clone(), one.db.clone());
    let transport = NostrTransport::new(store.clone());
    let peer = Peer::builder(db.clone()).transport(transport.clone()).start().await.unwrap();
    let says_why = || transport.last_error().is_some_and(|error| error.contains("not in the file of pairings"));
    wait_until("an error", says_why).await;
    peer.stop().await;
    let transport = support::transport(&store).signer(signers[0].clone()).build();
    let peer = Peer::builder(db).transport(transport).start().await.unwrap();
    let transport = support::transport(&other.store).signer(signers[1].clone()).build();
    let mut other = other.start_over(transport).await;
    other.wait_for_rows(&["1 'signed elsewhere' ".to_owned()]).await;
    peer.stop().await;
    other.stop().await;
}
