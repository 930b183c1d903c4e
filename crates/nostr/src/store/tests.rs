use std::path::Path;

use litemesh_proto::limits::CREDIT_MAX;
use litemesh_proto::{Cursor, DbVersion, Incarnation, Place, Position, Served, SyncRequest, Terms};
use nostr::{Event, EventBuilder, Kind};

use super::*;
use crate::StreamId;
use crate::reach::Reach;

const SITE: SiteId = SiteId::from_bytes([1; 16]);

fn pairing(peer: u8) -> (Pairing, Keys) {
    let keys = Keys::generate();
    let pairing = Pairing {
        site: SITE,
        local_key: keys.public_key(),
        peer: SiteId::from_bytes([peer; 16]),
        peer_key: Keys::generate().public_key(),
        device: "a device\nof two lines".to_owned(),
        relays: ["wss://one.example", "ws://two.example:7777/path"]
            .map(|relay| RelayUrl::parse(relay).unwrap())
            .to_vec(),
        paired_at: Timestamp::from_secs(1_700_000_000 + u64::from(peer)),
        is_litemesh: true,
    };
    (pairing, keys)
}

fn request(version: i64, is_litemesh: bool) -> SyncRequest {
    let position = Position { version: DbVersion::new(version), incarnation: Incarnation(7) };
    let staged = Some(Place(Box::from(*b"half")));
    let terms = is_litemesh.then_some(Terms { answer: 3, credit: CREDIT_MAX, position, staged, as_of: None });
    let cursor: Cursor = [(SITE, DbVersion::new(version))].into_iter().collect();
    SyncRequest { cursor, terms }
}

fn streams(is_litemesh: bool) -> (Inbound, Outbound) {
    let event = |number| EventBuilder::new(Kind::Custom(4680), format!("{number}\n")).sign_with_keys(&Keys::generate());
    let events: Vec<Event> = (0..3).map(|number| event(number).unwrap()).collect();
    let stand = |version, head: &Event| Stand {
        stream: StreamId::from_bytes([9; 16]),
        request: request(version, is_litemesh),
        asked_at: Timestamp::from_secs(1_700_000_100),
        head: Some(head.id),
        head_at: head.created_at,
        reach: Reach::of(&request(version + 3, is_litemesh)),
    };
    let taking =
        Taking { head: events[1].id, head_at: events[1].created_at, reach: Reach::of(&request(9, is_litemesh)) };
    let inbound = Inbound { stand: stand(5, &events[0]), taking: Some(taking) };
    let outbound =
        Outbound { stand: stand(6, &events[2]), taken_at: Timestamp::from_secs(5), last: events, elsewhere: None };
    (inbound, outbound)
}

#[test]
fn what_is_stored_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db-nostr");
    let (pairing, keys) = pairing(2);
    for is_litemesh in [true, false] {
        let (inbound, outbound) = streams(is_litemesh);
        let store = Store::open(&path).unwrap();
        store.pair(&pairing, Some(keys.secret_key())).unwrap();
        assert_eq!(store.inbound(&pairing).unwrap(), None);
        assert_eq!(store.outbound(&pairing).unwrap(), None);
        store.set_inbound(&pairing, &inbound).unwrap();
        store.set_outbound(&pairing, &outbound).unwrap();
        drop(store);
        let store = Store::open(&path).unwrap();
        assert_eq!(store.pairings(SITE).unwrap(), std::slice::from_ref(&pairing));
        assert_eq!(store.keys(pairing.local_key).unwrap().unwrap().secret_key(), keys.secret_key());
        assert_eq!(store.inbound(&pairing).unwrap(), Some(inbound.clone()));
        assert_eq!(store.outbound(&pairing).unwrap(), Some(outbound.clone()));
        let (mut first, mut none) = (Inbound { taking: None, ..inbound }, Outbound { last: Vec::new(), ..outbound });
        (first.stand.head, none.stand.head) = (None, None);
        store.set_inbound(&pairing, &first).unwrap();
        store.set_outbound(&pairing, &none).unwrap();
        assert_eq!((store.inbound(&pairing).unwrap(), store.outbound(&pairing).unwrap()), (Some(first), Some(none)));
    }
}

/// It is of this stream, and gone with it.
#[test]
fn how_far_another_way_led_is_stored_beside_the_stream() {
    let store = Store::open_in_memory().unwrap();
    let (pairing, keys) = pairing(2);
    let (_, outbound) = streams(true);
    let at = |version| Position { version: DbVersion::new(version), incarnation: Incarnation(u64::MAX) };
    let served = Some(Served { acknowledged: at(70), reached: at(75) });
    let stream = outbound.stand.stream.clone();
    store.pair(&pairing, Some(keys.secret_key())).unwrap();
    store.set_elsewhere(&pairing, &stream, served).unwrap();
    store.set_outbound(&pairing, &outbound).unwrap();
    assert_eq!(store.outbound(&pairing).unwrap().unwrap().elsewhere, None, "there was no such stream");
    store.set_elsewhere(&pairing, &stream, served).unwrap();
    let along = Outbound { elsewhere: served, ..outbound.clone() };
    assert_eq!(store.outbound(&pairing).unwrap(), Some(along.clone()));
    store.set_outbound(&pairing, &along).unwrap();
    assert_eq!(store.outbound(&pairing).unwrap(), Some(along.clone()));
    // Another stream, by a program that does not know of it.
    store.connection().execute("UPDATE outbound SET stream = ?1", [StreamId::from_bytes([8; 16]).as_str()]).unwrap();
    assert_eq!(store.outbound(&pairing).unwrap().unwrap().elsewhere, None);
    store.set_outbound(&pairing, &along).unwrap();
    store.set_outbound(&pairing, &outbound).unwrap();
    assert_eq!(store.outbound(&pairing).unwrap(), Some(outbound));
    store.set_elsewhere(&pairing, &stream, served).unwrap();
    store.unpair(SITE, pairing.peer).unwrap();
    let count: i64 = store.connection().query_row("SELECT count(*) FROM elsewhere", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 0);
}

#[test]
fn who_uses_the_same_handle_hears_of_pairings_at_once() {
    let store = Store::open_in_memory().unwrap();
    let mut changes = store.changes();
    let (pairing, keys) = pairing(2);
    store.pair(&pairing, Some(keys.secret_key())).unwrap();
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    store.unpair(SITE, pairing.peer).unwrap();
    assert!(changes.has_changed().unwrap());
}

/// `known-failures.md` B13: what is left of a pairing that was ended is in the way of the next one.
#[test]
fn streams_end_with_their_pairing() {
    let store = Store::open_in_memory().unwrap();
    let (inbound, outbound) = streams(true);
    let ((one, keys), (two, other_keys)) = (pairing(2), pairing(3));
    for (pairing, keys) in [(&one, &keys), (&two, &other_keys)] {
        store.pair(pairing, Some(keys.secret_key())).unwrap();
        store.set_inbound(pairing, &inbound).unwrap();
        store.set_outbound(pairing, &outbound).unwrap();
    }
    assert_eq!(store.pairings(SITE).unwrap(), [two.clone(), one.clone()], "the newest first");
    assert!(store.unpair(SITE, one.peer).unwrap() && !store.unpair(SITE, one.peer).unwrap());
    // A link that has not heard of it yet stores nothing any more.
    store.set_inbound(&one, &inbound).unwrap();
    store.set_outbound(&one, &outbound).unwrap();
    assert_eq!((store.inbound(&one).unwrap(), store.outbound(&one).unwrap()), (None, None));
    assert!(store.keys(one.local_key).unwrap().is_none());
    assert_eq!(store.pairings(SITE).unwrap(), std::slice::from_ref(&two));
    assert_eq!(store.inbound(&two).unwrap(), Some(inbound.clone()));

    // Paired again, with other keys.
    let again = Pairing { local_key: one.local_key, ..two.clone() };
    store.pair(&again, Some(keys.secret_key())).unwrap();
    assert_eq!(store.pairings(SITE).unwrap(), std::slice::from_ref(&again));
    assert_eq!((store.inbound(&again).unwrap(), store.inbound(&two).unwrap()), (None, None));

    // The remote became one of the original: what it is sent is something else. When it was asked last is not forgotten: relays keep
    // the latest request only.
    store.set_inbound(&again, &inbound).unwrap();
    store.set_outbound(&again, &outbound).unwrap();
    store.set_litemesh(&again, false).unwrap();
    assert_eq!(store.inbound(&again).unwrap().unwrap().stand.asked_at, inbound.stand.asked_at);
    assert_eq!(store.outbound(&again).unwrap(), None);
    assert!(!store.pairings(SITE).unwrap()[0].is_litemesh);
    // A copied database has another id, and no pairings.
    assert!(store.pairings(SiteId::from_bytes([8; 16])).unwrap().is_empty());
}

/// `known-failures.md` C5: keys lie in clear for everybody on the machine.
#[cfg(unix)]
#[test]
fn only_the_owner_reads_the_file_and_those_beside_it() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db-nostr");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    // One that was there, with other permissions.
    std::fs::write(&path, b"").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let store = Store::open(&path).unwrap();
    let (pairing, keys) = pairing(2);
    store.pair(&pairing, Some(keys.secret_key())).unwrap();
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.clone().into_os_string();
        name.push(suffix);
        assert_eq!(mode(Path::new(&name)), 0o600, "{suffix}");
    }
}

/// Also those that a process has left that was killed.
#[cfg(unix)]
#[test]
fn files_that_others_could_read_are_closed_to_them() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db-nostr");
    let store = Store::open(&path).unwrap();
    let (pairing, keys) = pairing(2);
    store.pair(&pairing, Some(keys.secret_key())).unwrap();
    let of_all = ["", "-wal", "-shm"].map(|suffix| with_suffix(&path, suffix));
    for file in &of_all {
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o666)).unwrap();
    }
    // It does not clean up behind itself.
    std::mem::forget(store);
    let store = Store::open(&path).unwrap();
    for file in &of_all {
        assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
    }
    assert_eq!(store.pairings(pairing.site).unwrap().len(), 1);
}

#[test]
fn a_key_that_is_forgotten_is_gone_from_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db-nostr");
    let (pairing, keys) = pairing(2);
    let secret = keys.secret_key().to_secret_hex();
    let has_secret = || {
        let bytes = std::fs::read(&path).unwrap();
        bytes.windows(secret.len()).any(|window| window == secret.as_bytes())
    };
    let store = Store::open(&path).unwrap();
    store.pair(&pairing, Some(keys.secret_key())).unwrap();
    drop(store);
    assert!(has_secret());
    let store = Store::open(&path).unwrap();
    assert!(store.unpair(pairing.site, pairing.peer).unwrap());
    drop(store);
    assert!(!has_secret() && !with_suffix(&path, "-wal").exists());
}

#[test]
fn a_file_of_a_later_version_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db-nostr");
    drop(Store::open(&path).unwrap());
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 2).unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::Newer { version: 2 })));
}

#[test]
fn what_cannot_be_read_is_named() {
    let store = Store::open_in_memory().unwrap();
    let (pairing, keys) = pairing(2);
    let (inbound, _) = streams(true);
    store.pair(&pairing, Some(keys.secret_key())).unwrap();
    store.set_inbound(&pairing, &inbound).unwrap();
    store.connection().execute_batch("UPDATE inbound SET stream = ''").unwrap();
    let error = store.inbound(&pairing).unwrap_err().to_string();
    assert!(error.contains("a stream's id cannot be read"), "{error}");
}

/// A process may end before it hears that a message was taken, or take it and forget that it did.
#[test]
fn a_stream_goes_on_before_or_after_the_message_that_was_being_taken() {
    let (inbound, _) = streams(true);
    let taking = inbound.taking.clone().unwrap();
    let head = |version| inbound.resumed(&request(version, true)).map(|here| (here.stand.head, here.taking));
    assert_eq!(head(8), Some((inbound.stand.head, None)));
    assert_eq!(head(9), Some((Some(taking.head), None)));
    assert_eq!((head(7), head(10)), (None, None));
    // Of an original nobody knows whether all of a version has come, so the message comes again.
    let (inbound, _) = streams(false);
    assert_eq!(inbound.resumed(&request(9, false)).map(|here| here.stand.head), Some(inbound.stand.head));
    assert_eq!(inbound.resumed(&request(7, false)), None);
}
