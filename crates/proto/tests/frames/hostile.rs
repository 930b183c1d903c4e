//! Any bytes as a frame, as changes, and as a stream of frames.

use litemesh_proto::codec::v2::{self, Deframer, Frame};
use litemesh_proto::limits::{FRAME_CHANGES_MAX, FRAME_EXPANSION_MAX};
use litemesh_proto::{Change, DecodeError, Limits, PeerMessage};

use crate::memory::peak_of;

/// The promise of `v2`: bytes of memory for each byte after decompression.
const MEMORY_PER_BYTE: usize = 200;

/// For texts of errors, and a context of zstd where it counts.
const MEMORY_ELSE: usize = 4096;

/// Nothing panics, memory stays within the promise, and what is read can be written and read again.
pub(crate) fn check(bytes: &[u8]) {
    check_frame(bytes);
    check_changes(bytes);
    check_stream(bytes);
}

fn check_frame(bytes: &[u8]) {
    let limits = Limits::default();
    let (frame, memory) = peak_of(|| v2::decode(bytes, &limits));
    let is_compressed = matches!(bytes, [1..=7, 1, ..]);
    let raw = bytes.len() * if is_compressed { FRAME_EXPANSION_MAX } else { 1 };
    assert!(memory <= raw * MEMORY_PER_BYTE + MEMORY_ELSE, "{memory} bytes of memory for {}: {frame:?}", bytes.len());
    match frame {
        Ok(Frame::Message(unverified)) => {
            // The order may be read without the rest.
            let order = unverified.order();
            if let Ok(message) = unverified.verify(&limits) {
                assert_eq!(read_message(&v2::message(&message), order), message);
            }
        }
        Ok(Frame::Sync(request)) => {
            assert!(matches!(v2::decode(&v2::sync(&request), &limits), Ok(Frame::Sync(found)) if found == request));
        }
        Ok(Frame::Hello(hello)) => {
            assert!(matches!(v2::decode(&v2::hello(&hello), &limits), Ok(Frame::Hello(found)) if found == hello));
        }
        Ok(Frame::Error(text)) => {
            assert!(matches!(v2::decode(&v2::error(&text), &limits), Ok(Frame::Error(found)) if found == text));
        }
        Ok(Frame::Ping | Frame::Unknown) | Err(_) => {}
    }
}

fn read_message(bytes: &[u8], order: Option<(u32, u64)>) -> PeerMessage {
    let limits = Limits::default();
    match v2::decode(bytes, &limits) {
        Ok(Frame::Message(unverified)) => {
            assert_eq!(unverified.order(), order);
            unverified.verify(&limits).expect("what was right before")
        }
        other => panic!("{other:?}"),
    }
}

fn check_changes(bytes: &[u8]) {
    let (changes, memory) = peak_of(|| v2::decode_changes(bytes));
    assert!(memory <= bytes.len() * MEMORY_PER_BYTE + MEMORY_ELSE, "{memory} bytes of memory for {}", bytes.len());
    if let Ok(changes) = changes {
        assert!(changes.len() <= FRAME_CHANGES_MAX.min(bytes.len()));
        let written = v2::encode_changes(&changes);
        assert_eq!(v2::decode_changes(&written).as_ref(), Ok(&changes));
    }
}

fn check_stream(bytes: &[u8]) {
    let limits = Limits { message_bytes_max: 1000, ..Limits::default() };
    let whole = deframe(&limits, [bytes]);
    let (pieces, memory) = peak_of(|| deframe(&limits, bytes.chunks(7)));
    assert_eq!(pieces, whole);
    assert!(memory <= bytes.len() * MEMORY_PER_BYTE + MEMORY_ELSE);
}

type Frames = (Vec<Vec<u8>>, Option<DecodeError>);

fn deframe<'a>(limits: &Limits, pieces: impl IntoIterator<Item = &'a [u8]>) -> Frames {
    let mut deframer = Deframer::new(limits);
    let mut frames = Vec::new();
    for mut piece in pieces {
        loop {
            match deframer.feed(&mut piece) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

/// How much memory the changes take for each of their bytes, and that this is what was promised.
#[allow(dead_code)] // for tests, not for the fuzz target
pub(crate) fn memory_per_byte(changes: &[Change]) -> usize {
    let bytes = v2::encode_changes(changes);
    check_changes(&bytes);
    peak_of(|| v2::decode_changes(&bytes)).1 / bytes.len()
}
