//! Devices that reach each other over relays and another way, and are restarted: what went the other way relays are not given.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};

use litemesh::engine::MergeProgress;
use litemesh_nostr::Store;
use litemesh_proto::Cursor;
use support::hostile_relay::HostileRelay;
use support::{Device, Running, both_ways, copy, events_of, restore, two, wait_until, write};

/// A database, and the file of its pairings.
fn files(device: &Device) -> [PathBuf; 2] {
    [device.path.clone(), Store::path_beside(&device.path)]
}

/// A copy of one, beside it.
fn kept(file: &Path) -> PathBuf {
    file.with_added_extension("kept")
}

fn keep(file: &Path) {
    copy(file, &kept(file));
}

/// Writes rows of 20,000 bytes each at one device, and some at the other, all of which go over the channel, and the next ones, too.
async fn exchange(one: &mut Running, other: &mut Running, ids: std::ops::Range<usize>, rows: &mut Vec<String>) {
    for id in ids {
        if id % 4 == 3 {
            write(&other.device, id, rows);
        } else {
            one.device.execute(&format!("INSERT INTO todo VALUES ({id}, 'long', randomblob(20000))"));
            rows.push(format!("{id} 'long' 20000"));
        }
        other.wait_for_rows(rows).await;
        one.wait_for_rows(rows).await;
    }
}

/// Until it is stored that the other device needs nothing any more that is in this one, whichever way it went.
async fn wait_until_kept(one: &Device) {
    let version = one.db.lock().db_version().unwrap().get();
    let file = rusqlite::Connection::open(Store::path_beside(&one.path)).unwrap();
    let reached = || file.query_row("SELECT reached FROM elsewhere", [], |row| row.get::<_, i64>(0));
    wait_until("stored", || reached().is_ok_and(|reached| reached >= version)).await;
}

/// Bytes of what a device has published.
fn published(device: &Device, relay: &HostileRelay) -> usize {
    events_of(device, relay).iter().map(|event| event.content.len()).sum()
}

/// More than a few short rows take, with what is said beside them, and much less than one of the long ones.
const SHORT: usize = 10_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_nothing_is_published_that_went_another_way() {
    for is_killed in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (relay, one, other, mut rows) = two(folder.path()).await;
        let (mut one, mut other) = both_ways(one.stop().await, other.stop().await).await;
        let before = published(&one.device, &relay);
        exchange(&mut one, &mut other, 1..21, &mut rows).await;
        assert_eq!(published(&one.device, &relay), before, "over the channel");
        wait_until_kept(&one.device).await;
        let files = files(&one.device);
        files.iter().for_each(|file| keep(file));
        drop(one.stop().await);
        if is_killed {
            files.iter().for_each(|file| restore(&kept(file), file));
        }

        // The channel is gone.
        let mut one = Device::open(&files[0]).start().await;
        write(&one.device, 21, &mut rows);
        other.wait_for_rows(&rows).await;
        write(&other.device, 22, &mut rows);
        one.wait_for_rows(&rows).await;
        let bytes = published(&one.device, &relay) - before;
        assert!(bytes < SHORT, "{bytes} bytes for a short row, killed: {is_killed}");

        // What the stream itself has led to.
        let before = published(&one.device, &relay);
        let one = one.stop().await.start().await;
        write(&one.device, 23, &mut rows);
        other.wait_for_rows(&rows).await;
        let bytes = published(&one.device, &relay) - before;
        assert!(bytes < SHORT, "{bytes} bytes for a short row after another start");
    }
}

/// Both end, and the next start is without the other way. Who starts first does not know yet what the other one asks for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_of_both_nothing_is_published_that_went_another_way() {
    let folder = tempfile::tempdir().unwrap();
    let (relay, one, other, mut rows) = two(folder.path()).await;
    let (mut one, mut other) = both_ways(one.stop().await, other.stop().await).await;
    let before = published(&one.device, &relay);
    exchange(&mut one, &mut other, 1..21, &mut rows).await;
    wait_until_kept(&one.device).await;
    let (one, other) = (one.stop().await, other.stop().await);
    let count = events_of(&one, &relay).len();
    let mut one = one.start().await;
    wait_until("published", || events_of(&one.device, &relay).len() > count).await;
    let mut other = other.start().await;
    write(&one.device, 21, &mut rows);
    other.wait_for_rows(&rows).await;
    write(&other.device, 22, &mut rows);
    one.wait_for_rows(&rows).await;
    let bytes = published(&one.device, &relay) - before;
    assert!(bytes < SHORT, "{bytes} bytes for a short row");
}

/// It may die before it has stored what the other one has acknowledged: then that goes out once more, and nothing is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_killed_before_it_stored_what_went_another_way_loses_nothing() {
    for keeps_some in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (relay, one, other, mut rows) = two(folder.path()).await;
        let (mut one, mut other) = both_ways(one.stop().await, other.stop().await).await;
        let [database, pairings] = files(&one.device);
        if keeps_some {
            exchange(&mut one, &mut other, 1..6, &mut rows).await;
            wait_until_kept(&one.device).await;
        }
        keep(&pairings);
        let before = published(&one.device, &relay);
        exchange(&mut one, &mut other, 6..11, &mut rows).await;
        keep(&database);
        drop(one.stop().await);
        for file in [&database, &pairings] {
            restore(&kept(file), file);
        }
        let mut one = Device::open(&database).start().await;
        write(&one.device, 11, &mut rows);
        other.wait_for_rows(&rows).await;
        let bytes = published(&one.device, &relay) - before;
        // Twice where the other one asks anew meanwhile.
        assert!(bytes < 250_000, "{bytes} bytes");
        write(&other.device, 12, &mut rows);
        one.wait_for_rows(&rows).await;
    }
}

/// What it had acknowledged it has not any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_restored_from_a_backup_gets_what_went_another_way() {
    for with_file in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let (_relay, one, other, mut rows) = two(folder.path()).await;
        let (mut one, mut other) = both_ways(one.stop().await, other.stop().await).await;
        exchange(&mut one, &mut other, 1..5, &mut rows).await;
        let files = files(&other.device);
        files.iter().for_each(|file| keep(file));
        exchange(&mut one, &mut other, 5..10, &mut rows).await;
        wait_until_kept(&one.device).await;
        drop(other.stop().await);
        let mut one = one.stop().await.start().await;
        for file in &files[..if with_file { 2 } else { 1 }] {
            restore(&kept(file), file);
        }
        let device = Device::open(&files[0]);
        assert!(device.rows().len() < rows.len());
        let mut other = device.start().await;
        other.wait_for_rows(&rows).await;
        write(&one.device, 11, &mut rows);
        other.wait_for_rows(&rows).await;
        write(&other.device, 12, &mut rows);
        one.wait_for_rows(&rows).await;
    }
}

/// It stands where its stream stands, so nothing that is said on that shows what it has lost: changes of a third one, which it had passed
/// on the other way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_restored_to_where_its_stream_stands_gets_back_what_it_had_passed_on() {
    let folder = tempfile::tempdir().unwrap();
    let (_relay, one, other, mut rows) = two(folder.path()).await;
    let (mut one, other) = both_ways(one.stop().await, other.stop().await).await;
    let [database, _] = files(&other.device);
    keep(&database);
    let third = Device::new(folder.path(), "third");
    write(&third, 1, &mut rows);
    let (changes, progress) = {
        let theirs = third.db.lock();
        let changesets = theirs.changes_since(&Cursor::new()).map(Result::unwrap);
        let changes: Vec<_> = changesets.flat_map(|changeset| changeset.changes).collect();
        (changes, MergeProgress { cursor: theirs.cursor().unwrap(), ..MergeProgress::default() })
    };
    other.device.db.lock().merge(&changes, &progress).unwrap();
    one.wait_for_rows(&rows).await;
    wait_until_kept(&other.device).await;
    drop(other.stop().await);
    let one = one.stop().await;
    restore(&kept(&database), &database);

    let device = Device::open(&database);
    assert_eq!(device.rows().len(), rows.len() - 1);
    let (mut one, mut other) = (one.start().await, device.start().await);
    write(&one.device, 2, &mut rows);
    other.wait_for_rows(&rows).await;
    write(&other.device, 3, &mut rows);
    one.wait_for_rows(&rows).await;
}
