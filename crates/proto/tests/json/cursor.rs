//! Any bytes as a cursor: as JSON alone and in a request, as what a frame holds, and as two cursors to calculate with.

use litemesh_proto::codec::v1::{self, Envelope};
use litemesh_proto::codec::v2::{self, Frame};
use litemesh_proto::{Cursor, DbVersion, Limits, SiteId, SyncRequest};

const SITE: SiteId = SiteId::from_bytes([7; 16]);

/// Every form of a cursor gives the same one, and the laws of version vectors hold for what a stranger claims.
pub(crate) fn check(bytes: &[u8]) {
    check_json(bytes);
    check_frame(bytes);
    let (first, second) = bytes.split_at(bytes.len() / 2);
    check_laws(&few_sites(first), &few_sites(second));
}

fn check_json(bytes: &[u8]) {
    let alone = v1::deserialize_cursor(bytes);
    let request = [br#"{"type":"sync","peerId":"x","cursor":"#, bytes, b"}"].concat();
    let asked = Envelope::parse(&request).and_then(|envelope| envelope.sync_request()).map(|request| request.cursor);
    match (&alone, &asked) {
        (Ok(cursor), _) => {
            assert_eq!(asked.as_ref(), Ok(cursor), "alone and in a request");
            // An entry takes at least its id, two quotes, a colon and a digit.
            assert!(cursor.len() <= bytes.len() / 36);
            assert!(cursor.iter().all(|(_, version)| version >= DbVersion::ZERO));
            assert_eq!(v1::deserialize_cursor(&v1::serialize_cursor(cursor)).as_ref(), Ok(cursor));
            check_written(cursor);
        }
        // Bytes that close the cursor and go on with another key are a request, and no cursor.
        (Err(_), Ok(_)) => assert!(serde_json::from_slice::<serde_json::Value>(bytes).is_err()),
        (Err(_), Err(_)) => {}
    }
}

fn check_frame(bytes: &[u8]) {
    // The bytes as the rest of a sync request without terms.
    let frame = [&[2, 0, 0], bytes].concat();
    if let Ok(Frame::Sync(request)) = v2::decode(&frame, &Limits::default()) {
        assert!(request.terms.is_none() && request.cursor.len() <= bytes.len() / 17);
        check_written(&request.cursor);
    }
}

/// A cursor that was read is the same after a request of either wire version.
fn check_written(cursor: &Cursor) {
    let request = SyncRequest { cursor: cursor.clone(), terms: None };
    let frame = v2::sync(&request);
    assert!(matches!(v2::decode(&frame, &Limits::default()), Ok(Frame::Sync(found)) if found == request));
    let json = v1::sync(SITE, &request);
    let found = Envelope::parse(&json).and_then(|envelope| envelope.sync_request()).expect("of ours").cursor;
    // JSON has no versions below zero; they count as zero, for which a sender sends more and never less.
    let expected: Cursor = cursor.iter().map(|(site, version)| (*site, version.max(DbVersion::ZERO))).collect();
    assert_eq!(found, expected);
}

/// A cursor of nine bytes an entry. Few sites, so that two cursors meet.
fn few_sites(bytes: &[u8]) -> Cursor {
    let entries = bytes.chunks_exact(9).map(|entry| {
        let (site, version) = entry.split_first().expect("nine bytes");
        let version = i64::from_le_bytes(version.try_into().expect("eight bytes"));
        (SiteId::from_bytes([site % 12; 16]), DbVersion::new(version))
    });
    entries.collect()
}

fn check_laws(a: &Cursor, b: &Cursor) {
    let mut joined = a.clone();
    assert_eq!(joined.join(b), a.is_older_than(b), "joining moves what is older");
    let mut other_way = b.clone();
    other_way.join(a);
    assert_eq!(joined, other_way);
    assert!(!joined.join(a) && !joined.join(b) && !joined.is_older_than(a) && !joined.is_older_than(b));
    for (site, version) in a.iter() {
        assert!(joined.covers(site, version) && a.accepts(site, version));
    }
    // News, and what was known, make the whole.
    let mut caught_up = b.clone();
    caught_up.join(&a.beyond(b));
    assert_eq!(caught_up, joined);
    assert!(joined.beyond(&joined).is_empty());
}
