//! Relays that do everything wrong: nothing is lost, and where it can be a stream is mended rather than begun anew.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashSet;
use std::time::Duration;

use litemesh::Event;
use litemesh_nostr::nostr::{EventBuilder, JsonUtil, Keys, Timestamp};
use litemesh_nostr::{
    CHANGES_KIND, CURSOR_KIND, ChangesTags, CursorContent, Envelope, Listener, PairError, Store, StreamId, join,
};
use litemesh_proto::{Cursor, SiteId};
use support::hostile_relay::{Delivery, HostileRelay, Verdict};
use support::{Device, by, copy, events_of, local_key, pair, restore, two, wait_until, write};

/// Events of a stream that relays are given at once.
const UNDER_WAY_MAX: usize = 16;

/// Relays keep nothing of what pairs two devices: an answer that comes before who asked listens is lost, and then one is paired and the
/// other is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_to_be_paired_listens_before() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Device::new(folder.path(), "one"), Device::new(folder.path(), "other"));
    let relay = HostileRelay::start().await;
    for _ in 0..20 {
        pair(&one, &other, &[relay.url()]).await;
    }
    assert_eq!(relay.published_first(), 0);
}

/// The other side has the answer then, or may have it, and is paired.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shows_the_string_is_paired_where_no_relay_says_that_it_took_the_answer() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Device::new(folder.path(), "one"), Device::new(folder.path(), "other"));
    let relay = HostileRelay::start().await;
    relay.delay_answers(|_| true);
    let listener = Listener::start(one.site(), "one", &[relay.url()]).await.unwrap();
    let string = listener.connection_string().to_string().parse().unwrap();
    let listener = listener.answer_patience(Duration::from_millis(500));
    let joining = join(other.site(), "other", &string, &other.store);
    let (listened, joined) = tokio::join!(listener.paired(&one.store), joining);
    assert_eq!(listened.unwrap().peer_key, joined.unwrap().local_key);
    assert_eq!(one.store.pairings(one.site()).unwrap().len(), 1);
}

/// Then the other side cannot have it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shows_the_string_is_not_paired_where_relays_refuse_the_answer() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Device::new(folder.path(), "one"), Device::new(folder.path(), "other"));
    let relay = HostileRelay::start().await;
    let listener = Listener::start(one.site(), "one", &[relay.url()]).await.unwrap();
    let key = listener.connection_string().listener().unwrap();
    relay.judge(move |event| if event.pubkey == key { Verdict::Refuse("blocked: no") } else { Verdict::Store });
    let string = listener.connection_string().to_string().parse().unwrap();
    let listener = listener.answer_patience(Duration::from_millis(500));
    let joining = join(other.site(), "other", &string, &other.store);
    let listened = tokio::select! {
        listened = listener.paired(&one.store) => listened,
        joined = joining => panic!("{joined:?}"),
    };
    assert!(matches!(listened, Err(PairError::Relays { reason }) if reason.contains("blocked: no")));
    assert!(one.store.pairings(one.site()).unwrap().is_empty());
}

/// The sender goes on trying. What follows the event would show the receiver, stream after stream, that it is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_all_relays_refuse_is_followed_by_nothing_on_later_streams() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Device::new(folder.path(), "one"), Device::new(folder.path(), "other"));
    let relay = HostileRelay::start().await;
    pair(&one, &other, &[relay.url()]).await;
    let (one, mut other) = {
        let impatient =
            |device: &Device| support::transport(&device.store).gap_patience(Duration::from_millis(200)).build();
        let (first, second) = (impatient(&one), impatient(&other));
        (one.start_over(first).await, other.start_over(second).await)
    };
    let mut rows = Vec::new();
    write(&one.device, 0, &mut rows);
    other.wait_for_rows(&rows).await;
    // Its own: that of the other one may begin later.
    let streams = |device: &Device| -> HashSet<_> {
        events_of(device, &relay).iter().map(|event| ChangesTags::of(event).unwrap().stream_id).collect()
    };
    let begun = streams(&one.device);
    // The first part of the message is refused, and the last one is not.
    relay.judge(
        |event| if event.content.len() > 50_000 { Verdict::Refuse("invalid: too large") } else { Verdict::Store },
    );
    one.device.execute("INSERT INTO todo VALUES (1, 'large', randomblob(60000))");
    wait_until("it is tried again and again", || relay.times_refused() > 9).await;
    assert_eq!(streams(&one.device), begun, "nothing of the message goes alone");
    relay.judge(|_| Verdict::Store);
    rows.push("1 'large' 60000".to_owned());
    other.wait_for_rows(&rows).await;
}

/// `known-failures.md` B7: the original waits for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_relay_does_not_deliver_is_fetched() {
    let folder = tempfile::tempdir().unwrap();
    let (relay, one, mut other, mut rows) = two(folder.path()).await;
    let mut count = 0;
    relay.carry(move |event| {
        count += usize::from(event.kind == CHANGES_KIND);
        if event.kind == CHANGES_KIND && count.is_multiple_of(3) { Delivery::Never } else { Delivery::Now }
    });
    for id in 1..=12 {
        write(&one.device, id, &mut rows);
        other.wait_for_rows(&rows).await;
    }
    assert!(relay.streams().len() <= 2, "one in each direction at most: {:?}", relay.streams());
}

/// Neither the changes nor the requests for them: only who asks gets something.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_delivers_nothing_by_itself_serves() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Device::new(folder.path(), "one"), Device::new(folder.path(), "other"));
    let relay = HostileRelay::start().await;
    pair(&one, &other, &[relay.url()]).await;
    relay.carry(|_| Delivery::Never);
    let mut rows = Vec::new();
    write(&one, 1, &mut rows);
    let (_one, mut other) = (one.start().await, other.start().await);
    other.wait_for_rows(&rows).await;
    assert!(relay.streams().len() <= 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_late_and_backwards_is_put_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let (relay, one, mut other, mut rows) = two(folder.path()).await;
    relay.carry(|event| if event.kind == CHANGES_KIND { Delivery::Late } else { Delivery::Now });
    for round in 0..4 {
        let before = events_of(&one.device, &relay).len();
        for id in 1..=5 {
            write(&one.device, 10 * round + id, &mut rows);
            wait_until("published", || events_of(&one.device, &relay).len() >= before + id).await;
        }
        relay.release();
        other.wait_for_rows(&rows).await;
    }
    assert!(relay.streams().len() <= 2, "one in each direction at most: {:?}", relay.streams());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_wants_less_gets_it_later() {
    let folder = tempfile::tempdir().unwrap();
    let (relay, one, mut other, mut rows) = two(folder.path()).await;
    let mut count = 0;
    relay.judge(move |_| {
        count += 1;
        if count % 3 == 0 { Verdict::Store } else { Verdict::Refuse("rate-limited: slow down") }
    });
    for id in 1..=5 {
        write(&one.device, id, &mut rows);
        other.wait_for_rows(&rows).await;
    }
    assert!(relay.streams().len() <= 2, "one in each direction at most: {:?}", relay.streams());
}

/// Who was restarted publishes its last events again. To some relays that they have one is a reason to refuse it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_refuses_what_it_has_holds_nothing_up() {
    let folder = tempfile::tempdir().unwrap();
    let (relay, one, mut other, mut rows) = two(folder.path()).await;
    let mut known = std::collections::HashSet::new();
    relay.judge(
        move |event| {
            if known.insert(event.id) { Verdict::Store } else { Verdict::Refuse("duplicate: exists") }
        },
    );
    write(&one.device, 1, &mut rows);
    other.wait_for_rows(&rows).await;
    let one = one.stop().await.start().await;
    for id in 2..=4 {
        write(&one.device, id, &mut rows);
        other.wait_for_rows(&rows).await;
    }
    assert!(relay.streams().len() <= 2, "one in each direction at most: {:?}", relay.streams());
}

/// One event after another would wait for an answer each (`known-failures.md` D10).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_long_line_several_events_are_under_way() {
    let folder = tempfile::tempdir().unwrap();
    let (relay, one, mut other, mut rows) = two(folder.path()).await;
    relay.delay_answers(by(local_key(&one.device)));
    // Parts of one message.
    one.device.execute("INSERT INTO todo VALUES (1, 'large', randomblob(2000000))");
    let (mut answered, mut delays) = (0, 0);
    while answered < 50 {
        let wanted = UNDER_WAY_MAX.min(50 - answered);
        wait_until("events under way", || relay.owed() >= wanted).await;
        assert!(relay.owed() <= UNDER_WAY_MAX, "{}", relay.owed());
        answered += relay.answer();
        delays += 1;
    }
    assert!(delays <= 5, "{delays} delays for {answered} events");
    relay.delay_answers(|_| false);
    relay.answer();
    rows.push("1 'large' 2000000".to_owned());
    other.wait_for_rows(&rows).await;
    // Messages.
    relay.delay_answers(by(local_key(&one.device)));
    for id in 2..2 + UNDER_WAY_MAX {
        write(&one.device, id, &mut rows);
        wait_until("a message under way", || relay.owed() > id - 2).await;
    }
    // Then they wait, and come together.
    let published = events_of(&one.device, &relay).len();
    for id in 100..150 {
        write(&one.device, id, &mut rows);
    }
    other.wait_for_rows(&rows[..2 + UNDER_WAY_MAX]).await;
    assert_eq!(relay.owed(), UNDER_WAY_MAX);
    relay.delay_answers(|_| false);
    relay.answer();
    other.wait_for_rows(&rows).await;
    assert!(events_of(&one.device, &relay).len() - published < 40, "they come together");
    assert!(relay.streams().len() <= 2, "one in each direction at most: {:?}", relay.streams());
}

/// A relay that takes one event at a time, and says so of each other one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_takes_one_event_at_a_time_gets_no_more_once_it_has_said_so() {
    let folder = tempfile::tempdir().unwrap();
    let (relay, one, mut other, mut rows) = two(folder.path()).await;
    let key = local_key(&one.device);
    relay.delay_answers(by(key));
    let is_ours = by(key);
    relay.judge(move |event| if is_ours(event) { Verdict::Refuse("rate-limited: slow down") } else { Verdict::Store });
    one.device.execute("INSERT INTO todo VALUES (1, 'large', randomblob(2000000))");
    wait_until("events under way", || relay.owed() == UNDER_WAY_MAX).await;
    relay.answer();
    // All of them were refused: the first one goes alone, again and again.
    let mut tried = Vec::new();
    for _ in 0..3 {
        wait_until("one is under way", || relay.owed() > 0).await;
        assert_eq!(relay.owed(), 1);
        tried.push(relay.last_published(key));
        relay.answer();
    }
    assert_eq!(tried, [tried[0]; 3]);
    relay.delay_answers(|_| false);
    relay.judge(|_| Verdict::Store);
    rows.push("1 'large' 2000000".to_owned());
    other.wait_for_rows(&rows).await;
    assert!(relay.streams().len() <= 2, "one in each direction at most: {:?}", relay.streams());
}

/// `known-failures.md` B4, D10: events of the original reach 0.6 MB, and a value of more than 1 MiB ends its process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_that_refuse_large_events_carry_large_values() {
    let folder = tempfile::tempdir().unwrap();
    let (relay, one, mut other, mut rows) = two(folder.path()).await;
    relay.judge(
        |event| {
            if event.as_json().len() > 64 * 1024 { Verdict::Refuse("invalid: too large") } else { Verdict::Store }
        },
    );
    one.device.execute("INSERT INTO todo VALUES (1, 'large', randomblob(2000000))");
    rows.push("1 'large' 2000000".to_owned());
    other.wait_for_rows(&rows).await;
    assert!(relay.streams().len() <= 2, "one in each direction at most: {:?}", relay.streams());
}

/// Nobody refers to the last event of a stream, and nobody else can know that a request was made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_relay_only_says_that_it_has_stored_is_published_again() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Device::new(folder.path(), "one"), Device::new(folder.path(), "other"));
    let relay = HostileRelay::start().await;
    pair(&one, &other, &[relay.url()]).await;
    let mut rows = Vec::new();
    write(&one, 1, &mut rows);
    let (mut seen, mut asked) = (HashSet::new(), HashSet::new());
    relay.judge(move |event| {
        // A request that is made again is another event.
        let is_first = if event.kind == CURSOR_KIND { asked.insert(event.pubkey) } else { seen.insert(event.id) };
        if is_first { Verdict::Lie } else { Verdict::Store }
    });
    // The requests of both, and the answers to them.
    let (one, mut other) = (one.start().await, other.start().await);
    other.wait_for_rows(&rows).await;
    write(&one.device, 2, &mut rows);
    other.wait_for_rows(&rows).await;
}

/// The receiver is away meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_event_is_published_again_where_a_relay_has_forgotten_it() {
    let folder = tempfile::tempdir().unwrap();
    let (relay, one, other, mut rows) = two(folder.path()).await;
    let other = other.stop().await;
    let before = events_of(&one.device, &relay).len();
    write(&one.device, 1, &mut rows);
    wait_until("published", || events_of(&one.device, &relay).len() > before).await;
    let last = events_of(&one.device, &relay).pop().unwrap();
    relay.forget(|event| event.id == last.id);
    let mut other = other.start().await;
    other.wait_for_rows(&rows).await;
    assert!(relay.times_published(last.id) > 1);
    assert!(relay.streams().len() <= 2, "one in each direction at most: {:?}", relay.streams());
}

/// `known-failures.md` A8: the original never asks again for what it could not take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outdated_changes_are_still_there_after_the_upgrade() {
    let folder = tempfile::tempdir().unwrap();
    let (_relay, one, other, mut rows) = two(folder.path()).await;
    let (one, other) = (one.stop().await, other.stop().await);
    one.execute("PRAGMA user_version = 2");
    let (one, mut other) = (one.start().await, other.start().await);
    for id in 1..=3 {
        write(&one.device, id, &mut rows);
    }
    other.wait("outdated", |event| matches!(event, Event::Outdated { schema_version: 2, .. })).await;
    // Restarted before the upgrade, and once more after it.
    let mut other = other.stop().await.start().await;
    other.wait("outdated", |event| matches!(event, Event::Outdated { schema_version: 2, .. })).await;
    assert_eq!(other.device.rows().len(), 1);
    let other = other.stop().await;
    other.execute("PRAGMA user_version = 2");
    let mut other = other.start().await;
    other.wait_for_rows(&rows).await;
    // And upgraded while it runs.
    one.device.execute("PRAGMA user_version = 3");
    write(&one.device, 4, &mut rows);
    other.wait("outdated", |event| matches!(event, Event::Outdated { schema_version: 3, .. })).await;
    other.device.execute("PRAGMA user_version = 3");
    other.wait_for_rows(&rows).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_events_are_not_merged_and_break_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (relay, one, mut other, mut rows) = two(folder.path()).await;
    write(&one.device, 1, &mut rows);
    other.wait_for_rows(&rows).await;
    let known = events_of(&one.device, &relay).pop().unwrap();
    // Another body under a known id, a wrong signature, the right one of a stranger.
    let mut other_body = known.clone();
    other_body.content.replace_range(0..1, "B");
    let mut unsigned = known.clone();
    unsigned.created_at = Timestamp::from_secs(known.created_at.as_secs() + 1);
    unsigned.id = litemesh_nostr::nostr::EventId::all_zeros();
    let tags = known.tags.clone();
    let stranger = EventBuilder::new(CHANGES_KIND, known.content.clone()).tags(tags);
    let stranger = stranger.sign_with_keys(&Keys::generate()).unwrap();
    let asked = EventBuilder::new(CURSOR_KIND, known.content.clone()).sign_with_keys(&Keys::generate()).unwrap();
    for id in 2..=6 {
        for event in [&other_body, &unsigned, &stranger] {
            relay.send_forged("changes", event);
        }
        for _ in 0..1_000 {
            relay.send_forged("changes", &stranger);
            relay.send_forged("cursors", &asked);
        }
        write(&one.device, id, &mut rows);
        other.wait_for_rows(&rows).await;
    }
    assert!(relay.streams().len() <= 2, "one in each direction at most: {:?}", relay.streams());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_that_hang_up_are_dialled_again() {
    let folder = tempfile::tempdir().unwrap();
    let (relay, one, mut other, mut rows) = two(folder.path()).await;
    for id in 1..=3 {
        relay.hang_up();
        write(&one.device, id, &mut rows);
        other.wait_for_rows(&rows).await;
    }
    relay.set_messages_max(20);
    for id in 4..=6 {
        write(&one.device, id, &mut rows);
        other.wait_for_rows(&rows).await;
    }
    assert!(relay.streams().len() <= 2, "one in each direction at most: {:?}", relay.streams());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_that_a_relay_gives_up_are_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let (relay, mut one, mut other, mut rows) = two(folder.path()).await;
    for id in 1..=2 {
        relay.close_subscriptions();
        write(&one.device, id, &mut rows);
        other.wait_for_rows(&rows).await;
        write(&other.device, 10 + id, &mut rows);
        one.wait_for_rows(&rows).await;
    }
    assert!(relay.streams().len() <= 2, "one in each direction at most: {:?}", relay.streams());
}

/// `known-failures.md` B2, B6: connected, and says nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_answers_nothing_holds_up_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Device::new(folder.path(), "one"), Device::new(folder.path(), "other"));
    let (mute, relay) = (HostileRelay::start().await, HostileRelay::start().await);
    pair(&one, &other, &[mute.url(), relay.url()]).await;
    mute.set_mute(true);
    mute.judge(|_| Verdict::Lie);
    // What the other one has must be fetched, each time.
    relay.carry(|event| if event.kind == CHANGES_KIND { Delivery::Never } else { Delivery::Now });
    let (one, mut other) = (one.start().await, other.start().await);
    let mut rows = Vec::new();
    for id in 1..=3 {
        write(&one.device, id, &mut rows);
        other.wait_for_rows(&rows).await;
    }
}

/// Paired when both, or one of them, still ran the original; and one that went back to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn litemesh_peers_find_each_other_whatever_they_were_taken_for() {
    for taken_for in [[false, false], [false, true], [true, false]] {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (Device::new(folder.path(), "one"), Device::new(folder.path(), "other"));
        let (relay, stale) = (HostileRelay::start().await, HostileRelay::start().await);
        pair(&one, &other, &[relay.url(), stale.url()]).await;
        for (device, is_litemesh) in [&one, &other].into_iter().zip(taken_for) {
            let pairing = device.store.pairings(device.site()).unwrap().remove(0);
            let path = Store::path_beside(&device.path);
            let connection = rusqlite::Connection::open(path).unwrap();
            connection.execute("UPDATE pairing SET is_litemesh = ?1", [is_litemesh]).unwrap();
            // A relay that takes nothing any more, and has what the original asked for once.
            let secret: String = connection.query_row("SELECT secret FROM pairing", (), |row| row.get(0)).unwrap();
            let envelope = Envelope::new(Keys::parse(&secret).unwrap(), pairing.peer_key).unwrap();
            let (peer_id, stream_id) = (device.site(), StreamId::from_bytes([1; 16]));
            let content = CursorContent { peer_id, stream_id, cursor: Cursor::new(), litemesh: None };
            stale.keep(&envelope.cursor(&content, Timestamp::from_secs(1_700_000_000)).unwrap());
        }
        stale.judge(|_| Verdict::Refuse("blocked: read only"));
        one.execute("INSERT INTO todo VALUES (1, 'large', zeroblob(2000000))");
        other.execute("INSERT INTO todo VALUES (2, 'other', x'00')");
        let rows = ["1 'large' 2000000".to_owned(), "2 'other' 1".to_owned()];
        let (mut one, mut other) = (one.start().await, other.start().await);
        one.wait_for_rows(&rows).await;
        other.wait_for_rows(&rows).await;
        for running in [&one, &other] {
            assert!(running.peer.status()[0].is_litemesh);
            assert!(running.device.store.pairings(running.device.site()).unwrap()[0].is_litemesh);
        }
        one.stop().await;
        other.stop().await;
    }
}

/// The clock was wrong once, and what is known of that was restored from a backup: relays keep the latest request (`known-failures.md`
/// B11).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_from_the_future_does_not_stand_in_the_way_of_later_ones() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Device::new(folder.path(), "one"), Device::new(folder.path(), "other"));
    let relay = HostileRelay::start().await;
    pair(&one, &other, &[relay.url()]).await;
    let connection = rusqlite::Connection::open(Store::path_beside(&other.path)).unwrap();
    let secret: String = connection.query_row("SELECT secret FROM pairing", (), |row| row.get(0)).unwrap();
    let future = EventBuilder::new(CURSOR_KIND, "").custom_created_at(Timestamp::now() + 3_600_u64);
    relay.keep(&future.sign_with_keys(&Keys::parse(&secret).unwrap()).unwrap());
    let mut rows = Vec::new();
    write(&one, 1, &mut rows);
    let (_one, mut other) = (one.start().await, other.start().await);
    other.wait_for_rows(&rows).await;
}

/// `known-failures.md` B2, B3: in the original everybody waits for the slowest pairing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remote_whose_relay_takes_nothing_holds_up_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let [hub, one, other] = ["hub", "one", "other"].map(|name| Device::new(folder.path(), name));
    let (refusing, relay) = (HostileRelay::start().await, HostileRelay::start().await);
    pair(&hub, &one, &[refusing.url()]).await;
    pair(&hub, &other, &[relay.url()]).await;
    let (hub, mut one, mut other) = (hub.start().await, one.start().await, other.start().await);
    let mut rows = Vec::new();
    write(&hub.device, 0, &mut rows);
    one.wait_for_rows(&rows).await;
    refusing.judge(|_| Verdict::Refuse("error: full"));
    // More than the original queues.
    hub.device.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 6000)
         INSERT INTO todo SELECT i, 'row', NULL FROM n",
    );
    rows.extend((1..=6000).map(|id| format!("{id} 'row' ")));
    other.wait_for_rows(&rows).await;
    write(&hub.device, 6001, &mut rows);
    other.wait_for_rows(&rows).await;
    assert_eq!(one.device.rows().len(), 1);
    wait_until("it is said", || hub.transport.last_error().is_some_and(|error| error.contains("full"))).await;
    refusing.judge(|_| Verdict::Store);
    one.wait_for_rows(&rows).await;
}

/// `known-failures.md` C2: in the original a row of a replicated table, planted over any transport, pairs a stranger for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_row_of_the_database_pairs_anybody() {
    let folder = tempfile::tempdir().unwrap();
    let (relay, one, other, mut rows) = two(folder.path()).await;
    let (one, other) = (one.stop().await, other.stop().await);
    let pairings = one.store.pairings(one.site()).unwrap();
    let (stranger, stranger_site) = (Keys::generate(), SiteId::from_bytes([0xEE; 16]));
    // What the original reads, and what our own file of pairings holds.
    for device in [&one, &other] {
        device.execute(
            "CREATE TABLE nostr_peers (peer_pubkey TEXT PRIMARY KEY NOT NULL, peer_id TEXT, local_pubkey TEXT, local_id TEXT,
                 device_info TEXT, relays TEXT, timestamp TEXT);
             CREATE TABLE pairing (local_key TEXT NOT NULL, peer_key TEXT NOT NULL, site BLOB, peer BLOB, device TEXT,
                 relays TEXT, paired_at INTEGER, is_litemesh INTEGER, secret TEXT, PRIMARY KEY (local_key, peer_key))",
        );
        for table in ["nostr_peers", "pairing"] {
            device.db.lock().replicate(table).unwrap();
        }
    }
    let (ours, theirs, site) = (pairings[0].local_key.to_hex(), stranger.public_key().to_hex(), one.site());
    let url = relay.url();
    other.execute(&format!(
        "INSERT INTO nostr_peers VALUES ('{theirs}', '{stranger_site}', '{ours}', '{site}', 'stranger', '{url}', '2026-01-01');
         INSERT INTO pairing VALUES ('{ours}', '{theirs}', x'{site}', x'{stranger_site}', 'stranger', '{url}', 1, 1, NULL)"
    ));
    // And the stranger asks for everything.
    let envelope = Envelope::new(stranger.clone(), pairings[0].local_key).unwrap();
    let stream_id = StreamId::from_bytes([0xEE; 16]);
    let content =
        CursorContent { peer_id: stranger_site, stream_id: stream_id.clone(), cursor: Cursor::new(), litemesh: None };
    relay.keep(&envelope.cursor(&content, Timestamp::now()).unwrap());

    let (one, other) = (one.start().await, other.start().await);
    let planted = || -> i64 {
        let sql = "SELECT (SELECT count(*) FROM nostr_peers) + (SELECT count(*) FROM pairing)";
        one.device.db.lock().connection().query_row(sql, [], |row| row.get(0)).unwrap()
    };
    wait_until("the rows are planted", || planted() == 2).await;
    // Also for a transport that begins now.
    let (one, mut other) = (one.stop().await.start().await, other);
    write(&one.device, 1, &mut rows);
    other.wait_for_rows(&rows).await;
    assert_eq!(one.device.store.pairings(one.device.site()).unwrap(), pairings);
    assert_eq!(one.peer.status().iter().map(|remote| remote.peer).collect::<Vec<_>>(), [other.device.site()]);
    assert!(!relay.streams().contains(&stream_id.to_string()), "the stranger is sent something");
}

/// Everything at once, in an order from a seed: `LITEMESH_SEED` replays one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_converge_whatever_two_relays_and_their_users_do() {
    let given = std::env::var("LITEMESH_SEED").ok().map(|seed| seed.parse().unwrap());
    let seeds: Vec<u64> = given.map_or_else(|| (1..=3).collect(), |seed| vec![seed]);
    for seed in seeds {
        println!("LITEMESH_SEED={seed}");
        let folder = tempfile::tempdir().unwrap();
        let mut random = fastrand::Rng::with_seed(seed);
        let relays = [HostileRelay::start().await, HostileRelay::start().await];
        let (one, other) = (Device::new(folder.path(), "one"), Device::new(folder.path(), "other"));
        pair(&one, &other, &relays.clone().map(|relay| relay.url())).await;
        let start = async |device: Device| {
            let transport = support::transport(&device.store).gap_patience(support::GAP_PATIENCE).build();
            device.start_over(transport).await
        };
        let mut devices = [Some(start(one).await), Some(start(other).await)];
        for step in 0..60 {
            let relay = &relays[random.usize(..2)];
            let side = random.usize(..2);
            match random.u32(..20) {
                0..=9 => {
                    let (id, device) = (random.u32(..20), &devices[side].as_ref().unwrap().device);
                    device.execute(&match random.u32(..4) {
                        0 => format!("DELETE FROM todo WHERE id = {id}"),
                        1 => format!("REPLACE INTO todo VALUES ({id}, 'large', randomblob(150000))"),
                        _ => format!("INSERT OR IGNORE INTO todo VALUES ({id}, 's{step}', NULL); UPDATE todo SET title = 't{step}' WHERE id = {id}"),
                    });
                }
                10 => relay.hang_up(),
                11 => relay.close_subscriptions(),
                12 => relay.release(),
                13 => {
                    // Killed, or restored from an older copy of what it knows of streams.
                    let device = devices[side].take().unwrap().stop().await;
                    let (path, kept) = (Store::path_beside(&device.path), folder.path().join(format!("kept{side}")));
                    let file = device.path.clone();
                    drop(device);
                    if kept.exists() && random.bool() {
                        restore(&kept, &path);
                    }
                    copy(&path, &kept);
                    devices[side] = Some(start(Device::open(&file)).await);
                }
                14 | 15 => {
                    let mut random = random.fork();
                    relay.judge(move |_| match random.u32(..6) {
                        0 => Verdict::Lie,
                        1 | 2 => Verdict::Refuse("rate-limited: slow down"),
                        _ => Verdict::Store,
                    });
                }
                16 | 17 => {
                    let mut random = random.fork();
                    relay.carry(move |_| match random.u32(..4) {
                        0 => Delivery::Never,
                        1 => Delivery::Late,
                        _ => Delivery::Now,
                    });
                }
                18 => relay.forget(|event| event.kind == CHANGES_KIND && event.id.as_bytes()[0] < 64),
                // What was done so far gets somewhere.
                _ => tokio::time::sleep(Duration::from_millis(300)).await,
            }
        }
        for relay in &relays {
            relay.judge(|_| Verdict::Store);
            relay.carry(|_| Delivery::Now);
            relay.release();
        }
        let [one, other] = devices.map(Option::unwrap);
        let converge = async {
            while one.device.rows() != other.device.rows() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let is_converged = tokio::time::timeout(4 * support::PATIENCE, converge).await.is_ok();
        let (one_rows, other_rows) = (one.device.rows(), other.device.rows());
        let errors = (one.transport.last_error(), other.transport.last_error());
        assert!(is_converged, "LITEMESH_SEED={seed}: {one_rows:?} and {other_rows:?}; {errors:?}");
        one.stop().await;
        other.stop().await;
    }
}
