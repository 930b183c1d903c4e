//! Devices that were killed, restored from a backup, or away: nothing is lost, and where it can be a stream goes on.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use litemesh::Event;
use litemesh_nostr::{CHANGES_KIND, ChangesTags, Store};
use support::hostile_relay::{HostileRelay, Verdict};
use support::{Device, both_ways, by, copy, events_of, local_key, pair, restore, two, wait_until, write};

/// The file of a device and that of its pairings, each with a copy of how it was.
struct Backup {
    file: [PathBuf; 2],
    pairings: [PathBuf; 2],
}

impl Backup {
    fn of(device: &Device, folder: &Path) -> Self {
        let file = [device.path.clone(), folder.join("kept")];
        let pairings = [Store::path_beside(&device.path), folder.join("pairings-kept")];
        for [path, kept] in [&file, &pairings] {
            copy(path, kept);
        }
        Self { file, pairings }
    }

    /// Puts the copies back, while nobody has the files open.
    fn restore(&self, with_pairings: bool) -> Device {
        let [path, kept] = &self.file;
        restore(kept, path);
        if with_pairings {
            let [path, kept] = &self.pairings;
            restore(kept, path);
        }
        Device::open(path)
    }
}

/// `known-failures.md` A7, B7.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_killed_with_several_events_under_way_publishes_the_same_again() {
    let folder = tempfile::tempdir().unwrap();
    let (relay, one, mut other, mut rows) = two(folder.path()).await;
    let sent = Arc::new(Mutex::new(Vec::new()));
    let (seen, is_ours) = (sent.clone(), by(local_key(&one.device)));
    relay.delay_answers(by(local_key(&one.device)));
    // The relay has some of them.
    relay.judge(move |event| {
        if !is_ours(event) {
            return Verdict::Store;
        }
        let mut seen = seen.lock().unwrap();
        seen.push(event.id);
        if seen.len() % 3 == 1 { Verdict::Store } else { Verdict::Lie }
    });
    for id in 1..=10 {
        write(&one.device, id, &mut rows);
        wait_until("under way", || relay.owed() >= id).await;
    }
    let (path, kept) = (Store::path_beside(&one.device.path), folder.path().join("kept"));
    copy(&path, &kept);
    let device = one.stop().await;
    let file = device.path.clone();
    drop(device);
    restore(&kept, &path);
    relay.judge(|_| Verdict::Store);
    relay.delay_answers(|_| false);
    let one = Device::open(&file).start().await;
    other.wait_for_rows(&rows).await;
    write(&one.device, 11, &mut rows);
    other.wait_for_rows(&rows).await;
    let sent = sent.lock().unwrap().clone();
    assert!(sent.len() >= 10 && sent.iter().all(|id| relay.times_published(*id) > 1));
    assert!(relay.streams().len() <= 2, "one in each direction at most: {:?}", relay.streams());
    let previous: Vec<_> =
        events_of(&one.device, &relay).iter().map(|event| ChangesTags::of(event).unwrap().previous).collect();
    let different: HashSet<_> = previous.iter().collect();
    assert_eq!(different.len(), previous.len(), "no two follow the same event");
}

/// `known-failures.md` B7: a killed original publishes other events in the place of those that it has forgotten, and its receiver waits
/// for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_has_forgotten_what_it_sent_is_asked_for_another_stream() {
    let folder = tempfile::tempdir().unwrap();
    let (relay, one, mut other, mut rows) = two(folder.path()).await;
    let (path, kept) = (Store::path_beside(&one.device.path), folder.path().join("kept"));
    copy(&path, &kept);
    for id in 1..=3 {
        write(&one.device, id, &mut rows);
        other.wait_for_rows(&rows).await;
    }
    let device = one.stop().await;
    let file = device.path.clone();
    drop(device);
    restore(&kept, &path);
    let one = Device::open(&file).start().await;
    // The first event that it makes now follows one that others follow already.
    write(&one.device, 4, &mut rows);
    other.wait_for_rows(&rows).await;
    write(&one.device, 5, &mut rows);
    other.wait_for_rows(&rows).await;
    assert!(relay.streams().len() <= 4, "{:?}", relay.streams());
}

/// `known-failures.md` A7, B7.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_killed_between_publishing_and_recording_publishes_the_same_again() {
    let folder = tempfile::tempdir().unwrap();
    let (relay, one, mut other, mut rows) = two(folder.path()).await;
    let (path, kept) = (Store::path_beside(&one.device.path), folder.path().join("kept"));
    let key = one.device.store.pairings(one.device.site()).unwrap()[0].local_key;
    let (from, to) = (path.clone(), kept.clone());
    // The file as it is at the moment in which the relay gets the event.
    relay.judge(move |event| {
        if event.kind == CHANGES_KIND && event.pubkey == key {
            copy(&from, &to);
        }
        Verdict::Store
    });
    write(&one.device, 1, &mut rows);
    other.wait_for_rows(&rows).await;
    let device = one.stop().await;
    let file = device.path.clone();
    let last = events_of(&device, &relay).pop().unwrap();
    drop(device);
    restore(&kept, &path);
    let one = Device::open(&file).start().await;
    wait_until("published again", || relay.times_published(last.id) > 1).await;
    write(&one.device, 2, &mut rows);
    other.wait_for_rows(&rows).await;
    assert!(relay.streams().len() <= 2, "one in each direction at most: {:?}", relay.streams());
    let previous: Vec<_> =
        events_of(&one.device, &relay).iter().map(|event| ChangesTags::of(event).unwrap().previous).collect();
    let different: HashSet<_> = previous.iter().collect();
    assert_eq!(different.len(), previous.len(), "no two follow the same event");
}

/// `known-failures.md` A7: killed with much that was not published yet, the original never sends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_killed_with_a_backlog_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (relay, one, mut other, mut rows) = two(folder.path()).await;
    relay.judge(|event| if event.kind == CHANGES_KIND { Verdict::Refuse("error: not now") } else { Verdict::Store });
    for id in 1..=50 {
        write(&one.device, id, &mut rows);
    }
    one.wait_until_sent(2).await;
    let (path, kept) = (Store::path_beside(&one.device.path), folder.path().join("kept"));
    copy(&path, &kept);
    let device = one.stop().await;
    let file = device.path.clone();
    drop(device);
    restore(&kept, &path);
    relay.judge(|_| Verdict::Store);
    let one = Device::open(&file).start().await;
    other.wait_for_rows(&rows).await;
    assert!(relay.streams().len() <= 2, "one in each direction at most: {:?}", relay.streams());
    drop(one);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_restored_from_a_backup_gets_what_it_has_forgotten() {
    for with_file in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let (relay, one, other, mut rows) = two(folder.path()).await;
        let other = other.stop().await;
        let backup = Backup::of(&other, folder.path());
        let mut other = other.start().await;
        for id in 1..=3 {
            write(&one.device, id, &mut rows);
            other.wait_for_rows(&rows).await;
        }
        drop(other.stop().await);
        let device = backup.restore(with_file);
        assert_eq!(device.rows(), ["0 'first' "]);
        let mut other = device.start().await;
        other.wait_for_rows(&rows).await;
        write(&one.device, 4, &mut rows);
        other.wait_for_rows(&rows).await;
        // In this direction. What the other one has depends on what it had to say meanwhile.
        let streams: HashSet<_> =
            events_of(&one.device, &relay).iter().map(|event| ChangesTags::of(event).unwrap().stream_id).collect();
        let count = if with_file { 1 } else { 2 };
        assert_eq!(streams.len(), count, "with the file: {with_file}");
    }
}

/// The simulation found it: what a device sent, the other one does not send back, and on a stream that went on never did.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_restored_from_a_backup_gets_what_it_has_sent() {
    for with_file in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let (_relay, one, mut other, mut rows) = two(folder.path()).await;
        let one = one.stop().await;
        let backup = Backup::of(&one, folder.path());
        let one = one.start().await;
        for id in 1..=3 {
            write(&one.device, id, &mut rows);
            other.wait_for_rows(&rows).await;
        }
        drop(one.stop().await);
        let device = backup.restore(with_file);
        assert_eq!(device.rows(), ["0 'first' "]);
        let mut one = device.start().await;
        one.wait_for_rows(&rows).await;
        write(&one.device, 4, &mut rows);
        other.wait_for_rows(&rows).await;
        write(&other.device, 5, &mut rows);
        one.wait_for_rows(&rows).await;
    }
}

/// The simulation found it: whoever read later what a device had sent before it was restored took that for what it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_sender_gets_back_what_relays_still_had_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let (_relay, one, other, mut rows) = two(folder.path()).await;
    let (one, other) = (one.stop().await, other.stop().await);
    let backup = Backup::of(&one, folder.path());
    let one = one.start().await;
    for id in 1..=3 {
        write(&one.device, id, &mut rows);
        one.wait_until_sent(2 * id as u64).await;
    }
    // Relays get what was sent before it has ended.
    drop(one.stop().await);
    let device = backup.restore(false);
    assert_eq!(device.rows(), ["0 'first' "]);
    let mut one = device.start().await;
    let mut other = other.start().await;
    other.wait_for_rows(&rows).await;
    one.wait_for_rows(&rows).await;
    write(&one.device, 4, &mut rows);
    other.wait_for_rows(&rows).await;
    write(&other.device, 5, &mut rows);
    one.wait_for_rows(&rows).await;
}

/// A clock that was wrong once, by a year: relays take nothing that is dated like that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_asked_in_the_future_can_ask_again() {
    let folder = tempfile::tempdir().unwrap();
    let (relay, one, other, mut rows) = two(folder.path()).await;
    let other = other.stop().await;
    let backup = Backup::of(&other, folder.path());
    let mut other = other.start().await;
    write(&one.device, 1, &mut rows);
    other.wait_for_rows(&rows).await;
    drop(other.stop().await);
    let device = backup.restore(false);
    let file = rusqlite::Connection::open(Store::path_beside(&device.path)).unwrap();
    file.execute("UPDATE inbound SET asked_at = asked_at + 31536000", []).unwrap();
    drop(file);
    relay.judge(refuse_the_future);
    let mut other = device.start().await;
    other.wait_for_rows(&rows).await;
}

fn refuse_the_future(event: &litemesh_nostr::nostr::Event) -> Verdict {
    let latest = litemesh_nostr::nostr::Timestamp::now() + Duration::from_secs(900);
    if event.created_at > latest { Verdict::Refuse("invalid: created too far in the future") } else { Verdict::Store }
}

/// Nothing of a stream is dated before what it follows, so everything that followed was refused, too, until that year was over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_written_in_the_future_is_heard_again() {
    let folder = tempfile::tempdir().unwrap();
    let (relay, one, mut other, mut rows) = two(folder.path()).await;
    let one = one.stop().await;
    let file = rusqlite::Connection::open(Store::path_beside(&one.path)).unwrap();
    file.execute("UPDATE outbound SET head_at = head_at + 31536000", []).unwrap();
    drop(file);
    relay.judge(refuse_the_future);
    let one = one.start().await;
    for id in 1..=3 {
        write(&one.device, id, &mut rows);
        other.wait_for_rows(&rows).await;
    }
}

/// What went another way is in no stream, so nothing there tells the device that it has forgotten it: the other one says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_forgot_what_went_another_way_hears_of_it_over_relays() {
    let folder = tempfile::tempdir().unwrap();
    let (_relay, one, other, mut rows) = two(folder.path()).await;
    let (one, other) = (one.stop().await, other.stop().await);
    let (one, mut other) = both_ways(one, other).await;
    write(&one.device, 1, &mut rows);
    other.wait_for_rows(&rows).await;
    let backup = Backup::of(&one.device, folder.path());
    for id in 2..=4 {
        write(&one.device, id, &mut rows);
        other.wait_for_rows(&rows).await;
    }
    drop(one.stop().await);
    other.wait("the end of the channel", |event| matches!(event, Event::Disconnect { .. })).await;
    // The other one runs on, and has asked for nothing since.
    let mut one = backup.restore(false).start().await;
    one.wait_for_rows(&rows).await;
    write(&one.device, 5, &mut rows);
    other.wait_for_rows(&rows).await;
}

/// Longer than the relays keep anything. Set to the same everywhere, and known to the sender only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_was_away_for_too_long_catches_up() {
    const LIFETIME: Duration = Duration::from_secs(1);
    for receivers in [LIFETIME, litemesh_nostr::CHANGES_LIFETIME] {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (Device::new(folder.path(), "one"), Device::new(folder.path(), "other"));
        let relay = HostileRelay::start().await;
        pair(&one, &other, &[relay.url()]).await;
        let (one, mut other) = (one.start_with_lifetime(LIFETIME).await, other.start_with_lifetime(receivers).await);
        let mut rows = Vec::new();
        write(&one.device, 0, &mut rows);
        other.wait_for_rows(&rows).await;
        let other = other.stop().await;
        let before = events_of(&one.device, &relay).len();
        write(&one.device, 1, &mut rows);
        wait_until("published", || events_of(&one.device, &relay).len() > before).await;
        let one = one.stop().await;
        wait_until("expired", || events_of(&one, &relay).iter().all(litemesh_nostr::nostr::Event::is_expired)).await;
        let transport =
            support::transport(&other.store).lifetime(receivers).gap_patience(support::GAP_PATIENCE).build();
        let mut other = other.start_over(transport).await;
        let _one = one.start_with_lifetime(litemesh_nostr::CHANGES_LIFETIME).await;
        other.wait_for_rows(&rows).await;
    }
}

/// What it has published last relays do not take any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_was_away_for_too_long_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (relay, one, mut other, mut rows) = two(folder.path()).await;
    let one = one.stop().await.start_with_lifetime(Duration::from_secs(3)).await;
    write(&one.device, 1, &mut rows);
    other.wait_for_rows(&rows).await;
    let one = one.stop().await;
    wait_until("expired", || events_of(&one, &relay).last().is_some_and(litemesh_nostr::nostr::Event::is_expired))
        .await;
    relay.judge(|event| if event.is_expired() { Verdict::Refuse("invalid: event expired") } else { Verdict::Store });
    let one = one.start().await;
    write(&one.device, 2, &mut rows);
    other.wait_for_rows(&rows).await;
}
