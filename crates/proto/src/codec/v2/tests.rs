//! What is written reads back the same, and what is not known or not allowed is told apart.

mod any;

use proptest::prelude::*;

use crate::codec::v2::{self, Frame, Hello};
use crate::limits::ERROR_BYTES_MAX;
use crate::{Access, DecodeError, Limits, PeerMessage, SiteId, SyncRequest};

fn read(bytes: &[u8]) -> Result<Frame, DecodeError> {
    v2::decode(bytes, &Limits::default())
}

fn read_message(bytes: &[u8]) -> PeerMessage {
    match read(bytes) {
        Ok(Frame::Message(unverified)) => unverified.message,
        other => panic!("{other:?}"),
    }
}

proptest! {
    #[test]
    fn any_changes_read_back_the_same(changes in any::changes()) {
        prop_assert_eq!(v2::decode_changes(&v2::encode_changes(&changes)), Ok(changes));
    }

    #[test]
    fn any_message_reads_back_the_same(message in any::message()) {
        prop_assert_eq!(read_message(&v2::message(&message)), message);
    }

    #[test]
    fn any_request_reads_back_the_same(request in any::sync_request()) {
        match read(&v2::sync(&request)) {
            Ok(Frame::Sync(found)) => prop_assert_eq!(found, request),
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn any_hello_reads_back_the_same_whatever_follows_it(version: u32, site: [u8; 16], later: Vec<u8>) {
        let hello = Hello { version, site: SiteId::from_bytes(site), access: Access::FULL };
        let mut bytes = v2::hello(&hello);
        bytes.extend(later);
        match read(&bytes) {
            Ok(Frame::Hello(found)) => prop_assert_eq!(found, hello),
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn any_error_reads_back_as_far_as_it_may_go(text: String) {
        match read(&v2::error(&text)) {
            Ok(Frame::Error(found)) => prop_assert_eq!(found, text),
            other => prop_assert!(false, "{:?}", other),
        }
    }
}

#[test]
fn a_long_error_is_cut_between_characters() {
    let long = "ü".repeat(ERROR_BYTES_MAX);
    let with = |text: &str| match read(&v2::error(text)) {
        Ok(Frame::Error(found)) => found,
        other => panic!("{other:?}"),
    };
    assert_eq!(with(&long).len(), ERROR_BYTES_MAX);
    assert_eq!(with(&format!("x{long}")).len(), ERROR_BYTES_MAX - 1);
}

#[test]
fn a_kind_from_the_future_is_no_error_and_flags_from_the_future_are() {
    for kind in [0, 8, 100, 255] {
        assert!(matches!(read(&[kind]), Ok(Frame::Unknown)));
        assert!(matches!(read(&[kind, 0xff, 1, 2, 3]), Ok(Frame::Unknown)));
    }
    assert!(matches!(read(&v2::message(&PeerMessage::Unknown)), Ok(Frame::Unknown)));
    let mut ping = v2::ping();
    ping[1] = 2;
    assert_eq!(read(&ping).unwrap_err(), DecodeError::UnknownFlags { what: "frame", flags: 2 });
}

#[test]
fn only_a_hello_may_go_on_after_its_end() {
    for mut frame in [
        v2::ping(),
        v2::sync(&SyncRequest::default()),
        v2::message(&PeerMessage::Eose { progress: None }),
        v2::message(&PeerMessage::Changes { changes: vec![], schema_version: 0, progress: None }),
    ] {
        frame.push(0);
        assert_eq!(read(&frame).unwrap_err(), DecodeError::TrailingBytes { what: "frame", bytes: 1 });
    }
}

#[test]
fn a_frame_beyond_the_limit_is_refused() {
    let limits = Limits { message_bytes_max: 5, ..Limits::default() };
    assert!(v2::decode(&v2::error("BUS"), &limits).is_ok());
    let refused = v2::decode(&v2::error("BUSY"), &limits).unwrap_err();
    assert_eq!(refused, DecodeError::TooLong { what: "frame", bytes: 6, max: 5 });
}
