//! Any bytes as what a server sends: the body of the fuzz target `events`.
#![allow(clippy::unwrap_used, clippy::expect_used)] // to panic is what it is for

use bytes::Bytes;
use litemesh_proto::codec::v1::Envelope;
use litemesh_proto::codec::v2::{self, Frame};
use litemesh_proto::{Access, Limits, PeerMessage, SiteId};

use super::dial::{Parser, Received, remote_of_envelope};
use crate::form::StreamForm;
use crate::gzip::{DECODE_STEP_BYTES, StreamDecoder, StreamEncoder};
use crate::sse::{BYTE_ORDER_MARK, Event, EventParser, EventTooLarge};

const SITE: SiteId = SiteId::from_bytes([0x5e; 16]);

/// The first byte says how much of an event may be held, the second how the rest is cut; the rest is a stream.
///
/// However it is cut, a stream gives the same events, those of the standard, and the same messages; what a server writes is
/// read as it was meant; what is held is bounded.
pub fn events(bytes: &[u8]) {
    let [max, piece, stream @ ..] = bytes else { return };
    let (max, piece) = (3 + usize::from(*max), 1 + usize::from(*piece));
    check_events(stream, max, piece);
    for is_frames in [false, true] {
        check_messages(stream, is_frames, piece);
    }
    // Setting up compression takes longer than all of the above.
    if piece % 16 == 0 {
        check_gzip(stream, piece);
    }
}

fn check_events(stream: &[u8], max: usize, piece: usize) {
    let expected = reference(stream, max);
    for piece in [piece, stream.len().max(1)] {
        let mut parser = EventParser::new(max);
        let mut found = Found::new();
        for piece in stream.chunks(piece) {
            found.extend(parser.feed(piece));
            assert!(parser.held_bytes() <= max, "{} of {max} bytes", parser.held_bytes());
        }
        assert_eq!(found, expected, "in pieces of {piece}");
    }
}

/// Messages, or why one cannot be read, and why nothing more can be.
type Messages = (Vec<Result<Received, String>>, Option<String>);

fn messages(stream: &[u8], is_frames: bool, piece: usize) -> Messages {
    let limits = Limits { message_bytes_max: 1000, ..Limits::default() };
    let mut parser = Parser::new(is_frames, &limits);
    let mut messages = Vec::new();
    for piece in stream.chunks(piece) {
        let mut piece = Bytes::copy_from_slice(piece);
        loop {
            match parser.next(&mut piece) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(reason) => return (messages, Some(reason)),
            }
        }
    }
    (messages, None)
}

fn check_messages(stream: &[u8], is_frames: bool, piece: usize) {
    let whole = messages(stream, is_frames, stream.len().max(1));
    assert_eq!(messages(stream, is_frames, piece), whole, "in pieces of {piece}");
    for message in whole.0.into_iter().flatten() {
        match message {
            Received::Json(data) => check_introduction(&data, piece),
            Received::Frame(frame) => {
                assert!(!is_frames || frame.len() <= 1000);
                check_frame(&frame, piece);
            }
        }
    }
}

/// Who introduces itself with rights is taken for who it is, and nobody without an id.
fn check_introduction(data: &[u8], piece: usize) {
    let Ok((remote, access)) = remote_of_envelope(data) else { return };
    let envelope = Envelope::parse(data).expect("it was read");
    assert_eq!(envelope.peer_id().and_then(|id| id.parse().ok()), Some(remote.site));
    let written = StreamForm::Events.connect(remote.site, &access);
    let (found, end) = messages(&written, false, piece);
    // Longer than these limits let it be, where it lists many tables.
    if let ([Ok(Received::Json(again))], None) = (&*found, end) {
        let (again, same_access) = remote_of_envelope(again).expect("of ours");
        assert_eq!((again.site, again.is_litemesh, same_access), (remote.site, true, access));
    }
}

/// A message is the same after either form of a stream, between what else a server says.
fn check_frame(frame: &[u8], piece: usize) {
    let limits = Limits::default();
    let Ok(Frame::Message(message)) = v2::decode(frame, &limits) else { return };
    let Ok(message) = message.verify(&limits) else { return };
    for form in [StreamForm::Events, StreamForm::Frames] {
        let said = [form.connect(SITE, &Access::FULL), form.message(SITE, &message), form.ping(SITE)].concat();
        let found = messages_of_ours(&said, form == StreamForm::Frames, piece);
        let [Ok(_), Ok(Received::Frame(again)), Ok(_)] = &found[..] else { panic!("{found:?}") };
        assert_eq!(read(again), message);
    }
}

fn messages_of_ours(stream: &[u8], is_frames: bool, piece: usize) -> Vec<Result<Received, String>> {
    let mut parser = Parser::new(is_frames, &Limits::default());
    let mut found = Vec::new();
    for piece in stream.chunks(piece) {
        let mut piece = Bytes::copy_from_slice(piece);
        while let Some(message) = parser.next(&mut piece).expect("of ours") {
            found.push(message);
        }
    }
    found
}

fn read(frame: &[u8]) -> PeerMessage {
    let limits = Limits::default();
    match v2::decode(frame, &limits) {
        Ok(Frame::Message(message)) => message.verify(&limits).expect("what was right before"),
        other => panic!("{other:?}"),
    }
}

/// Compressed bytes, and bytes that are not, in any pieces.
fn check_gzip(stream: &[u8], piece: usize) {
    let decode = |bytes: &[u8], piece: usize| {
        let mut decoder = StreamDecoder::new();
        let mut decoded = Vec::new();
        for piece in bytes.chunks(piece) {
            let Ok(more) = decoder.write(piece) else { return (decoded, false) };
            // Deflate expands 1032 times at most, and the decoder holds back no more than its window.
            assert!(more.len() <= 1032 * piece.len() + (64 << 10), "{} of {}", more.len(), piece.len());
            decoded.extend(more);
        }
        (decoded, true)
    };
    let (whole, is_fine) = decode(stream, DECODE_STEP_BYTES);
    let (pieces, is_fine_in_pieces) = decode(stream, piece);
    assert_eq!(is_fine, is_fine_in_pieces, "in pieces of {piece}");
    // Of the piece with the error nothing is given.
    assert!(if is_fine { whole == pieces } else { whole.starts_with(&pieces) || pieces.starts_with(&whole) });

    let mut encoder = StreamEncoder::new();
    let encoded: Vec<Bytes> = stream.chunks(piece).map(|piece| encoder.write(piece, true)).collect();
    assert_eq!(decode(&encoded.concat(), piece), (stream.to_vec(), true));
}

type Found = Vec<Result<Event, EventTooLarge>>;

/// The standard, word for word, over a whole stream: what the parser must agree with.
fn reference(stream: &[u8], max: usize) -> Found {
    let stream = stream.strip_prefix(BYTE_ORDER_MARK).unwrap_or(stream);
    let mut lines = vec![Vec::new()];
    let mut bytes = stream.iter().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\r' => {
                bytes.next_if(|next| **next == b'\n');
                lines.push(Vec::new());
            }
            b'\n' => lines.push(Vec::new()),
            other => lines.last_mut().unwrap().push(*other),
        }
    }
    let unfinished = lines.pop().unwrap();
    let (mut found, mut event, mut has_data, mut skipping) = (Vec::new(), Event::default(), false, false);
    for (line, is_whole) in lines.into_iter().map(|line| (line, true)).chain([(unfinished, false)]) {
        if line.is_empty() && is_whole {
            let event = std::mem::take(&mut event);
            if std::mem::take(&mut has_data) {
                found.push(Ok(event));
            }
            skipping = false;
        } else if !skipping && event.data.len() + event.name.len() + line.len() > max {
            found.push(Err(EventTooLarge { max }));
            (event, has_data, skipping) = (Event::default(), false, true);
        } else if !skipping && is_whole {
            let text: Vec<u8> = line.clone();
            let at = text.iter().position(|byte| *byte == b':');
            let (name, value) = at.map_or((&text[..], &b""[..]), |at| (&text[..at], &text[at + 1..]));
            let value = value.strip_prefix(b" ").unwrap_or(value);
            if name == b"data" {
                if has_data {
                    event.data.push(b'\n');
                }
                has_data = true;
                event.data.extend_from_slice(value);
            } else if name == b"event" {
                event.name = value.to_vec();
            }
        }
    }
    found
}
