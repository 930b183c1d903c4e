//! Two devices that share nothing but relays, with the real peer, the real engine and a real relay.
#![allow(clippy::unwrap_used)]

mod support;

use support::{Device, pair, relay};

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
